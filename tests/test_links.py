"""Relative links of the front pages, rooms, reports and notebooks lead to a file, and to a heading of it."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import pytest

from mmgen.base.files import repo_root

ROOT = repo_root()
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "data" / "README.md"]
PAGES += sorted([*(ROOT / "nbs").rglob("README.md"), *(ROOT / "reports").glob("*.md")])
NOTEBOOKS = [p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
LINK = re.compile(
    r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^\s)>]+)>?[^)]*\)|<(?:a|img)\b[^>]*(?:href|src)=[\"']([^\"']+)"
)


def markdown_of(page: Path) -> str:
    if page.suffix != ".ipynb":
        return page.read_text(encoding="utf-8")
    cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def links_of(text: str) -> list[str]:
    "Relative targets of the links outside code."
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.S)
    targets = [one or other for one, other in LINK.findall(prose)]
    return [unquote(t) for t in targets if not re.match(r"[a-z]+:|//", t)]


def anchors_of(page: Path) -> set[str]:
    "The anchors that GitHub gives to the headings of a page."
    headings = re.findall(r"^#{1,6}\s+(.*)$", markdown_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", h.strip().lower()).replace(" ", "-") for h in headings}


def broken(page: Path) -> list[str]:
    wrong = []
    for link in links_of(markdown_of(page)):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or not target.is_relative_to(ROOT):
            wrong.append(link)
        elif anchor and target.suffix in (".md", ".ipynb") and anchor.lower() not in anchors_of(target):
            wrong.append(link)
    return wrong


def test_links_are_found():
    assert links_of("[a](b.md) ![c](d.png) `[no](no.md)` [web](https://x.org/y) [e [f]](g.md#h)") == [
        "b.md",
        "d.png",
        "g.md#h",
    ]


@pytest.mark.parametrize("page", [p for p in PAGES if p.exists()], ids=lambda p: str(p.relative_to(ROOT)))
def test_links_of_pages(page):
    assert not broken(page)


def test_links_of_notebooks():
    assert not {str(p.relative_to(ROOT)): b for p in NOTEBOOKS if (b := broken(p))}


def test_the_front_page_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 150
    long = {p: n for p in PAGES if p.parent.parent == ROOT / "nbs" and (n := len(p.read_text().splitlines())) > 40}
    assert not long
