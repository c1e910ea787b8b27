"The demo page: what it does without a browser, and a click-through in headless Chromium."

import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import CHROMIUM, DRIVER, headless
from PIL import Image

from mmgen.app.demo import (
    MAX_BYTES,
    VARIANTS,
    _Page,
    build_demo,
    exact,
    examples,
    known_words,
    painted,
    past_proxies,
    serve,
)
from mmgen.app.workbench import Workbench
from mmgen.data import portraits
from mmgen.data.images import open_image
from mmgen.editing.protocol import EditError
from mmgen.ldm.editors.instruct import random_instruct
from mmgen.ldm.pipeline import random_pipeline


def test_examples_know_their_exact_answers():
    for picture, source, wish, seed in examples(5):
        assert (
            np.array_equal(picture, portraits.render(portraits.sample(seed), 512))
            and portraits.tags(portraits.sample(seed))[0] in source
        )
        assert exact(seed, f" {wish} ").shape == (512, 512, 3)


def test_two_users_at_once_get_each_their_own_picture():
    bench, found = Workbench("cpu"), {}
    rows = examples(2)

    def user(i):
        found[i] = bench.edit(rows[i][0], rows[i][1], "green hair", "styleclip-mapper", 0.6)

    users = [threading.Thread(target=user, args=(i,)) for i in range(2)]
    for one in users:
        one.start()
    for one in users:
        one.join()
    alone = Workbench("cpu")
    for i, (result, wanted) in found.items():
        again, _ = alone.edit(rows[i][0], rows[i][1], "green hair", "styleclip-mapper", 0.6)
        assert np.array_equal(result, again) and result.size == (512, 512) and "green hair" in wanted


def test_an_edit_goes_on_from_the_last_one_and_is_undone():
    rows = examples(1)
    page, (picture, source, _, seed) = _Page(Workbench("cpu"), rows), rows[0]
    left, right, answer, pair, last, variants, said = page.edit(
        picture, None, source, "pink hair", seed, "styleclip-mapper", 0.8, "copy-input", 0.5
    )
    assert np.array_equal(pair[0], picture) and np.array_equal(np.asarray(last), pair[1]) and variants is None
    assert "check: " in said and answer is not None and np.array_equal(right, picture)
    assert page.go_on(None, [], picture, source, seed, "sdedit")[-2:] == ["There is no result to go on from.", []]
    further = page.go_on(last, [], picture, source, seed, "styleclip-mapper")
    assert np.array_equal(further[0].pixels, np.asarray(last)) and "pink hair" in further[2] and len(further[-1]) == 1
    back = page.undo(further[-1])
    assert back[0] is picture and back[2:4] == (source, seed) and back[-1] == []
    assert page.undo([])[-2] == "There is nothing to undo." and len(back) == len(further) == len(page.undo([])) == 13
    assert len(page.open(None, "sdedit")) == 12 and len(page.choose(0)) == 13


def test_variants_differ_and_only_the_painted_part_changes():
    rows = examples(1)
    page, (picture, source, _, _) = _Page(Workbench("cpu"), rows), rows[0]
    found, said = page.variants(picture, None, source, "pink hair", "sdedit", 0.6)
    assert len(found) == VARIANTS and len({np.asarray(image).tobytes() for image, _ in found}) == VARIANTS
    _, notice = page.variants(picture, None, source, "pink hair", "styleclip-mapper", 0.6)
    assert "styleclip-mapper has no seed" in notice
    strokes = np.zeros((256, 256, 4), np.uint8)
    strokes[:128] = 255
    region = painted({"layers": [strokes], "background": None}, picture)
    result, _ = page.bench.edit(picture, source, "pink hair", "styleclip-mapper", 0.8, region=region)
    assert np.array_equal(np.asarray(result)[260:], picture[260:]) and not np.array_equal(np.asarray(result), picture)
    assert painted(None, picture) is None and "**hair colour**: black hair" in known_words()


def test_the_page_has_its_parts():
    config = build_demo("cpu").get_config_file()
    found = {part["props"].get("elem_id") for part in config["components"]}
    assert {"slider", "variants", "paint", "further", "undo", "more", "words", "left-result", "gallery"} <= found
    names = {one["api_name"] for one in config["dependencies"]}
    assert {"edit", "go_on", "undo", "variants"} <= names


def test_a_port_in_use_is_said():
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        with pytest.raises(ValueError, match=f"The port {busy.getsockname()[1]} on 127.0.0.1 cannot be used .*--port"):
            serve(busy.getsockname()[1])


@contextlib.contextmanager
def served(**environment):
    "The page as `mmgen demo` serves it: its process and its address."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).parent / "mmgen"),
        "demo",
        "--port",
        str(port),
        "--no-browser",
        "--device",
        "cpu",
    ]
    # a test run in the background of a shell inherits an ignored SIGINT, and so does the server: as there, here always
    with subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    ) as server:
        try:
            line = server.stderr.readline()
            while line and "Ctrl-C stops it" not in line:
                line = server.stderr.readline()
            assert line, "the page was not served"
            yield server, f"http://127.0.0.1:{port}"
        finally:
            server.kill()


@pytest.fixture
def address():
    with served() as (_, address):
        yield address


@pytest.mark.parametrize("stop", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_signal_ends_a_page_with_a_full_queue_behind_a_proxy(stop):
    from gradio_client import Client

    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "all_proxy")}
    with served(**nowhere, OMP_NUM_THREADS="1") as (server, address):
        client = Client(address, verbose=False)
        asked = "black hair", "green hair", "styleclip-optimization", 0.5, "sdedit", 0.5
        jobs = [client.submit(*asked, api_name="/edit") for _ in range(12)]
        while not any(job.status().code.name == "PROCESSING" for job in jobs):
            assert not all(job.done() for job in jobs), jobs[0].exception()
            time.sleep(0.1)
        time.sleep(1)  # during an edit
        server.send_signal(stop)
        assert server.wait(300) == 0, server.stderr.read()


def test_a_closed_page_edits_no_more():
    bench, (picture, source, wish, _) = Workbench("cpu"), examples(1)[0]
    bench.close()
    with pytest.raises(ValueError, match="page is closed"):
        bench.edit(picture, source, wish, "copy-input", 0.5)


def test_a_proxy_is_passed_only_while_the_page_starts(monkeypatch):
    for before in (None, "example.org"):
        monkeypatch.delenv("no_proxy", raising=False) if before is None else monkeypatch.setenv("no_proxy", before)
        with past_proxies():
            assert os.environ["no_proxy"] == "*"
        assert os.environ.get("no_proxy") == before


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="no chromium with chromedriver")
def test_click_through(address, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser = headless(tmp_path / "profile")
    find = lambda css: browser.find_elements(By.CSS_SELECTOR, css)
    picture_of = lambda name: [e.get_attribute("src") for e in find(f"#{name} img")]
    text_of = lambda name: find(f"#{name} textarea, #{name} input")[0].get_attribute("value")
    wait = WebDriverWait(browser, 60)
    load = lambda url: urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url).read()
    try:
        browser.get(address)
        wait.until(lambda b: len(find("#gallery img")) == 10 and picture_of("picture-result"))
        first = text_of("source")
        find("#gallery button.thumbnail-item, #gallery .thumbnail-item")[3].click()
        wait.until(lambda b: text_of("source") != first)
        wish = text_of("prompt")
        assert wish == examples(10)[3][2]
        find("button#edit")[0].click()
        wait.until(lambda b: picture_of("left-result") and picture_of("right-result") and picture_of("exact-result"))
        assert (
            all(wish in line for line in find("#said")[0].text.split("\n") if line.strip())
            and "flowedit:" in find("#said")[0].text
        )

        tab = lambda name: next(b for b in find("button[role=tab]") if name in b.text).click()
        unpainted, pixels = picture_of("left-result"), lambda name: open_image(load(picture_of(name)[0]))
        tab("part")
        wait.until(lambda b: find("#paint canvas"))
        time.sleep(2)  # until the editor has drawn the picture
        canvas, brush = find("#paint canvas")[0], ActionChains(browser)
        brush.move_to_element(canvas).click_and_hold().move_by_offset(60, -80).move_by_offset(9, 9).release().perform()
        tab("side")
        find("button#edit")[0].click()
        wait.until(lambda b: picture_of("left-result") not in ([], unpainted))
        changed = (pixels("left-result") != pixels("picture-result")).any(2)
        assert 0 < changed.mean() < 0.1, "only what was painted may change"

        Image.fromarray(portraits.render(portraits.sample(11), 200)).save(tmp_path / "me.png")
        find("#upload input[type=file]")[0].send_keys(str(tmp_path / "me.png"))
        wait.until(lambda b: "Your own image" in find("#said")[0].text)
        assert "hair" in text_of("source") and not picture_of("left-result")
        find("button#edit")[0].click()
        wait.until(lambda b: picture_of("left-result") and picture_of("right-result"))
        assert not picture_of("exact-result"), "nobody knows the exact answer of a picture of one's own"
        browser.save_screenshot(str(tmp_path / "page.png"))

        (tmp_path / "no.png").write_bytes(b"no picture")
        find("#upload button[aria-label='Clear'], #upload button[aria-label*='emove']")[0].click()
        wait.until(lambda b: find("#upload input[type=file]"))
        find("#upload input[type=file]")[0].send_keys(str(tmp_path / "no.png"))
        wait.until(lambda b: "not in an image format" in find("#said")[0].text)
        assert MAX_BYTES == 8 * 2**20
    finally:
        browser.quit()


def test_a_port_that_does_not_exist_is_said():
    for port in (0, 99_999, -1):
        with pytest.raises(ValueError, match=f"The port {port} does not exist"):
            serve(port)


def test_a_small_file_of_many_pixels_is_refused_before_it_is_decoded():
    file = io.BytesIO()
    Image.new("1", (8000, 5000)).save(file, "PNG")
    assert len(file.getvalue()) < 100_000
    with pytest.raises(ValueError, match="8000 × 5000 pixels; at most 32 million"):
        Workbench("cpu").see(file.getvalue(), "styleclip-mapper")


def test_the_page_reads_a_misspelt_tag_and_refuses_what_it_does_not_know():
    picture, source, _, _ = examples(1)[0]
    _, said = Workbench("cpu").edit(picture, source, "gren hair", "styleclip-mapper", 0.5)
    assert said.startswith("green hair") and "understood: green hair" in said
    with pytest.raises(EditError, match="'beard'.*nearest.*mustache"):
        Workbench("cpu").edit(picture, source, "give him a beard", "styleclip-mapper", 0.5)
    with pytest.raises(EditError) as error:
        Workbench("cpu").edit(picture, source, "word " * 10_000, "styleclip-mapper", 0.5)
    assert len(str(error.value)) < 500


def test_a_page_starts_with_a_model_of_instruct_pix2pix_and_computes_in_the_given_precision():
    bench = Workbench("cpu", "bf16", model=random_instruct())
    assert bench.usable("sdedit") == "instruct-pix2pix" and bench.usable("styleclip-mapper") == "styleclip-mapper"
    unet = bench.editor("instruct-pix2pix").network
    assert next(unet.parameters()).dtype == torch.bfloat16
    with pytest.raises(EditError, match="sdedit needs a LatentDiffusion"):
        bench.editor("sdedit")
    assert Workbench("cpu", model=random_pipeline(size=32)).usable("sdedit") == "sdedit"
