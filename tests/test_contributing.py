"""The worked examples of CONTRIBUTING.md and README.md run, and each guide fits on a screen."""

import re

import pytest
from PIL import Image

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
    exec(compile(example, name, "exec"), {})


def test_the_python_example_of_the_front_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(portraits.render(portraits.sample(3), 200)).save("me.png")
    example = re.findall(r"^```python\n(.*?)^```", (repo_root() / "README.md").read_text("utf-8"), flags=re.M | re.S)[0]
    exec(compile(example, "README.md", "exec"), names := {})
    green, smile = names["green"], names["smile"]
    assert green.size == smile.size == (64, 64) and green.tobytes() != smile.tobytes()
