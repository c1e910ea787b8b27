"""Builds the book: the notebooks as chapters in the paper's order, the reports, and the API of every module, as a site.

`python docs/build.py [OUT]` writes OUT (default: book/) and executes nothing. Open OUT/index.html from disk.
"""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = {
    "Latent diffusion and CLIP": ["clip", "ldm"],
    "StyleGAN2 and StyleCLIP": ["stylegan", "styleclip", "identity"],
    "Data": ["data", "danbooru"],
    "Experiments": ["training", "jobs", "editing", "instructions"],
    "Evaluation": ["metrics", "benchmark", "paper_figures", "report"],
    "Tools": ["app", "base", "backbones"],
}  # in the order of the paper's sections 3.1 to 4.4
ASSETS = (".jpg", ".png", ".svg", ".json", ".jsonl", ".html")


def toctree(pages: list[str], caption: str = "", hidden: bool = False, depth: int = 1) -> str:
    options = [f":caption: {caption}"] * bool(caption) + [":hidden:"] * hidden + [f":maxdepth: {depth}"]
    return "\n".join(["", "```{toctree}", *options, "", *pages, "```", ""])


def notebook(file: Path, module: str | None) -> str:
    "A notebook without nbdev's directives and hidden cells, with a link to the API of its module."
    book = json.loads(file.read_text(encoding="utf-8"))
    cells = []
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "raw" or re.search(r"^#\|\s*(hide|default_exp)\b", source, re.M):
            continue
        if "nbdev_export()" in source:
            continue
        cell["source"] = re.sub(r"^#\|.*\n?", "", source, flags=re.M)
        if cell["source"].strip():
            cells.append(cell)
    if module:
        text = f"API: [{module}](/api/{module}.rst)"
        cells.append({"cell_type": "markdown", "id": "api", "metadata": {}, "source": text})
    return json.dumps(book | {"cells": cells})


def room_order(room: Path) -> list[str]:
    "The notebooks of a room in the reading order of its README, then the others."
    text = (room / "README.md").read_text(encoding="utf-8") if (room / "README.md").is_file() else ""
    named = [link for link in re.findall(r"\]\(([\w./-]+\.ipynb)\)", text) if (room / link).is_file()]
    named = [link for link in named if ".." not in link]
    every = [str(p.relative_to(room)) for p in sorted(room.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    return [name.removesuffix(".ipynb") for name in dict.fromkeys(named + every)]


def stage(source: Path) -> None:
    "Copies pages, notebooks, figures and module pages into `source`, with the repository's own relative paths."
    shutil.rmtree(source, ignore_errors=True)
    for folder in ("nbs", "reports", "data"):
        for file in sorted((ROOT / folder).rglob("*")):
            if not file.is_file() or ".ipynb_checkpoints" in file.parts:
                continue
            inside = file.relative_to(ROOT)
            if folder == "data" and file.name != "README.md":
                continue
            if folder == "reports" and file.suffix not in (".md", *ASSETS):
                continue
            (copy := source / inside).parent.mkdir(parents=True, exist_ok=True)
            if file.suffix == ".ipynb" and folder == "nbs":
                module = ".".join(["mmgen", *inside.with_suffix("").parts[1:]]) if len(inside.parts) > 2 else None
                copy.write_text(notebook(file, module), encoding="utf-8")
            elif file.suffix in (".md", *ASSETS):
                shutil.copyfile(file, copy)
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE"):
        shutil.copyfile(ROOT / name, source / name)

    parts = [toctree(["nbs/tour", "nbs/README"], "Start", hidden=True)]
    for caption, rooms in CHAPTERS.items():
        for room in rooms:
            page = source / "nbs" / room / "README.md"
            page.write_text(page.read_text(encoding="utf-8") + toctree(room_order(page.parent), hidden=True))
        parts.append(toctree([f"nbs/{room}/README" for room in rooms], caption, hidden=True))
    run = sorted(p.stem for p in (source / "nbs").glob("*.ipynb") if p.stem != "tour")
    parts.append(toctree([f"nbs/{name}" for name in run], "Notebooks to run", hidden=True))
    pages = sorted(p.stem for p in (source / "reports").glob("*.md"))
    parts.append(toctree([f"reports/{name}" for name in pages], "Reports", hidden=True))
    parts.append(toctree(["api/index", "CONTRIBUTING", "CHANGELOG", "data/README"], "Reference", hidden=True))
    (source / "index.md").write_text((ROOT / "README.md").read_text(encoding="utf-8") + "".join(parts))

    api, modules = source / "api", []
    api.mkdir()
    for file in sorted((ROOT / "mmgen").rglob("*.py")):
        if file.name.startswith("_") or "packaged" in file.parts:
            continue
        modules.append(name := ".".join(file.relative_to(ROOT).with_suffix("").parts))
        head = f"{name}\n{'=' * len(name)}\n\nNotebook: :doc:`/nbs/{'/'.join(name.split('.')[1:])}`\n\n"
        (api / f"{name}.rst").write_text(f"{head}.. automodule:: {name}\n")
    head = "API\n===\n\n.. toctree::\n   :maxdepth: 1\n\n"
    (api / "index.rst").write_text(head + "".join(f"   {name}\n" for name in modules))


def main(out: Path) -> int:
    source = ROOT / "build" / "book"
    stage(source)
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-q", "-c", str(ROOT / "docs"), str(source), str(out)]
    return subprocess.run([*command, "-d", str(ROOT / "build" / "book-cache")], cwd=ROOT).returncode


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "book").resolve()))
