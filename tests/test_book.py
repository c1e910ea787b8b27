"""The book is built from the committed notebooks, and a browser reads it from disk: pages, formulas, search, API."""

import re
import subprocess
import sys

import pytest
from browser import CHROMIUM

from mmgen.base.files import repo_root

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    out = tmp_path_factory.mktemp("book")
    command = [sys.executable, repo_root() / "docs" / "build.py", out]
    built = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert built.returncode == 0, built.stderr[-3000:]
    return out


def test_every_notebook_and_module_has_a_page(book):
    root = repo_root()
    for notebook in (root / "nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" not in notebook.parts:
            assert (book / notebook.relative_to(root).with_suffix(".html")).is_file()
    for module in (root / "mmgen").rglob("*.py"):
        if not module.name.startswith("_"):
            name = ".".join(module.relative_to(root).with_suffix("").parts)
            assert f'id="module-{name}"' in (book / "api" / f"{name}.html").read_text("utf-8"), name


def in_browser(address: str, profile) -> str:
    "The page after its scripts have run."
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000", f"--user-data-dir={profile}"]
    return subprocess.run([CHROMIUM, *flags, "--dump-dom", address], capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(not CHROMIUM, reason="no chromium")
def test_a_browser_reads_it_from_disk(book, tmp_path):
    tour = in_browser((book / "nbs" / "tour.html").as_uri(), tmp_path)
    assert re.search(r"<h1>A tour", tour) and "</math>" in tour
    images = re.findall(r'<img [^>]*src="(\.\./_images/[^"]+)"', tour)
    assert len(images) > 8 and all((book / "nbs" / image).is_file() for image in images)

    api = in_browser((book / "api" / "mmgen.ldm.diffusion.html").as_uri(), tmp_path)
    assert 'id="mmgen.ldm.diffusion.q_sample"' in api and "Parameters" in api

    search = in_browser((book / "search.html").as_uri() + "?q=AdaIN", tmp_path)
    results = search[search.index('id="search-results"') :]
    assert "nbs/stylegan/layers.html" in results and "search finished" in results.lower()
