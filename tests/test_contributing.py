"""The worked examples of CONTRIBUTING.md and README.md run, and each guide fits on a screen."""

import re
import sys

import numpy as np
import pytest
from PIL import Image

from mmgen.app.cli import main
from mmgen.base.files import repo_root
from mmgen.data import portraits

SECTIONS = re.split(r"^## ", (repo_root() / "CONTRIBUTING.md").read_text(encoding="utf-8"), flags=re.M)[1:]
GUIDES = {section.split("\n", 1)[0]: section for section in SECTIONS if section.startswith("Add ")}


def test_the_guides_are_there():
    assert list(GUIDES) == ["Add an Editor", "Add a data set", "Add a metric"]


@pytest.mark.parametrize("name", GUIDES)
def test_guide(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"^```python\n(.*?)^```", GUIDES[name], flags=re.M | re.S)
    assert "assert" in example and len(GUIDES[name].splitlines()) < 40
    exec(compile(example, name, "exec"), {"__name__": "__main__"})


def test_the_editor_of_the_guide_is_one_by_its_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (example,) = re.findall(r"^```python\n(.*?)^```", GUIDES["Add an Editor"], flags=re.M | re.S)
    (tmp_path / "monochrome.py").write_text(example)
    image = portraits.render(portraits.sample(3), 64)
    Image.fromarray(image).save("me.png")
    assert main(
        ["edit", "me.png", "monochrome", "--editor", "monochrome:Monochrome", "-o", "grey.png", "--strength", "1"]
    ) in (None, 0)
    grey = np.asarray(Image.open("grey.png").convert("RGB")).astype(int)
    assert np.ptp(grey, axis=2).max() <= 1 < np.ptp(image.astype(int), axis=2).max()
    body = example.split("if __name__")[0].strip().splitlines()
    assert len(body) <= 16


def test_the_python_example_of_the_front_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(portraits.render(portraits.sample(3), 200)).save("me.png")
    example = re.findall(r"^```python\n(.*?)^```", (repo_root() / "README.md").read_text("utf-8"), flags=re.M | re.S)[0]
    exec(compile(example, "README.md", "exec"), names := {})
    green, smile = names["green"], names["smile"]
    assert green.size == smile.size == (200, 200) and green.tobytes() != smile.tobytes()
