"Headless Chromium for tests that click through a page."

import shutil

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def headless(
    profile,  # a new folder
    size="1400,1400",  # of the window, pixels
):
    "A browser; the caller quits it."
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--window-size={size}",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
