"""The worked examples of CONTRIBUTING.md run, and each fits on a screen."""

import re

import pytest

from mmgen.base.files import repo_root

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
