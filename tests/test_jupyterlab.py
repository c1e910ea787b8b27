"""JupyterLab in a browser: `make lab` opens the tour; edit.ipynb runs, shows images, and opens another one."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from browser import CHROMIUM, DRIVER, headless
from PIL import Image

from mmgen.base.files import repo_root
from mmgen.base.weights import packaged
from mmgen.data import portraits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("ldm-portraits" not in packaged(), reason="ldm-portraits is not packaged"),
]


@pytest.fixture
def lab(tmp_path):
    "A JupyterLab server on copies of README, tour and edit notebook, with nbdev's hooks; its address and folder."
    root = repo_root()
    for name in ("README.md", "settings.ini", "nbs/tour.ipynb", "nbs/edit.ipynb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(root / name, tmp_path / name)
    environment = os.environ | {"MMGEN_ROOT": str(tmp_path), "HOME": str(tmp_path), "PYTHONPATH": str(root)}
    binaries = Path(sys.executable).parent
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    subprocess.run([binaries / "nbdev_install_hooks"], cwd=tmp_path, env=environment, check=True)
    flags = re.search(r"^\t\$\(BIN\)/jupyter lab (.*)$", (root / "Makefile").read_text(), re.M)[1].split()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(binaries / "jupyter"),
        "lab",
        *flags,
        "--no-browser",
        f"--port={port}",
        "--ip=127.0.0.1",
        "--allow-root",
        "--IdentityProvider.token=",
        "--ServerApp.password=",
        "--ServerApp.disable_check_xsrf=True",
        f"--ServerApp.root_dir={tmp_path}",
    ]
    with subprocess.Popen(
        command, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            for _ in range(120):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api", timeout=2)
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}", tmp_path
        finally:
            server.terminate()


def test_make_lab_opens_the_tour_and_saving_it_changes_nothing(lab):
    address, root = lab
    assert urllib.request.urlopen(address).geturl() == f"{address}/lab/tree/nbs/tour.ipynb"
    tour = f"{address}/api/contents/nbs/tour.ipynb"
    model = json.load(urllib.request.urlopen(tour))
    model["content"]["metadata"]["language_info"] = {"name": "python", "version": "3.11.9"}  # as JupyterLab does
    for cell in model["content"]["cells"]:
        cell["metadata"] |= {"trusted": True, "execution": {"iopub.status.idle": "now"}}
    (root / "nbs" / "tour.ipynb").write_text("")
    body = json.dumps({"type": "notebook", "format": "json", "content": model["content"]}).encode()
    urllib.request.urlopen(urllib.request.Request(tour, body, {"Content-Type": "application/json"}, method="PUT"))
    assert (root / "nbs" / "tour.ipynb").read_bytes() == (repo_root() / "nbs" / "tour.ipynb").read_bytes()


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with chromedriver")
def test_all_cells_run_and_the_result_is_seen(lab, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    address, root = lab
    browser = headless(tmp_path / "profile", "1400,2400")
    try:
        browser.get(f"{address}/lab/tree/nbs/edit.ipynb")
        wait = WebDriverWait(browser, 120)
        wait.until(lambda b: b.find_elements(By.CSS_SELECTOR, ".jp-Notebook .jp-CodeCell"))
        wait.until(
            lambda b: (
                b.find_elements(By.CSS_SELECTOR, "[data-status='idle'], .jp-NotebookPanel-toolbar [title*='Idle']")
                or True
            )
        )
        time.sleep(3)
        click = lambda css, text: next(
            e for e in browser.find_elements(By.CSS_SELECTOR, css) if e.text.strip() == text
        ).click()
        click(".lm-MenuBar-itemLabel", "Run")
        time.sleep(1)
        click(".lm-Menu-itemLabel", "Run All Cells")
        WebDriverWait(browser, 240).until(
            lambda b: b.find_elements(
                By.CSS_SELECTOR,
                ".widget-slider, .jp-OutputArea-output[data-mime-type='application/vnd.jupyter.stderr']",
            )
        )
        pictures = browser.find_elements(By.CSS_SELECTOR, ".jp-RenderedImage img")
        assert pictures and pictures[0].size["width"] > 200, "source and result, side by side"
        assert browser.find_elements(By.CSS_SELECTOR, ".widget-slider") and browser.find_elements(
            By.CSS_SELECTOR, ".widget-text input"
        )
        assert list((root / "reports" / "runs").glob("edit-*/result.png"))

        Image.fromarray(portraits.render(portraits.sample(11), 200)).save(tmp_path / "me.png")
        shows = lambda b: b.find_element(By.CSS_SELECTOR, ".widget-text input").get_attribute("value")
        seen = lambda b: [e.get_attribute("src") for e in b.find_elements(By.CSS_SELECTOR, "img.widget-image")]
        before, words = seen(browser), shows(browser)
        assert len(before) == 1
        # the button opens a file dialogue, which a test cannot answer: its input field is put on the page instead
        browser.execute_script(
            "HTMLInputElement.prototype.click = function () {"
            " document.body.append(this); this.style.display = 'block'; }"
        )
        browser.find_element(By.CSS_SELECTOR, ".widget-upload, .jupyter-button").click()
        browser.find_element(By.CSS_SELECTOR, "body > input[type='file']").send_keys(str(tmp_path / "me.png"))
        wait.until(lambda b: shows(b) != words and seen(b) != before)
        assert len(set(shows(browser).split(", ")) & set(portraits.tags(portraits.sample(11)))) > 5, shows(browser)
        browser.save_screenshot(str(tmp_path / "lab.png"))
    finally:
        browser.quit()
