"""The files around the library agree; the repository stays lean and names no machine's folders."""

import configparser
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mmgen.base.files import repo_root

ROOT = repo_root()
SETTINGS = configparser.ConfigParser(delimiters=["="])
SETTINGS.read(ROOT / "settings.ini", encoding="utf-8")
SETTINGS = SETTINGS["DEFAULT"]
name_of = lambda spec: re.split(r"[<>=!\[ ]", spec)[0].lower().replace("_", "-")


def tracked():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / line for line in listed.stdout.split("\0") if line and (ROOT / line).is_file()]


def test_constraints_pin_every_requirement_once():
    lines = [line for line in (ROOT / "constraints.txt").read_text().split("\n") if line and not line.startswith("#")]
    pins = {name_of(line): line.split("==")[1] for line in lines}
    assert len(pins) == len(lines) and all("==" in line for line in lines)
    wanted = {name_of(spec) for spec in (SETTINGS["requirements"] + " " + SETTINGS["dev_requirements"]).split()}
    assert wanted <= set(pins), wanted - set(pins)
    for name in wanted:
        assert importlib.metadata.version(name).split("+")[0] == pins[name], name


def test_environment_yml_names_the_same_python_and_the_same_constraints():
    text = (ROOT / "environment.yml").read_text()
    assert f"python={SETTINGS['min_python']}" in text and "-c constraints.txt" in text and "-e .[dev]" in text


def test_the_version_is_one():
    import mmgen

    assert mmgen.__version__ == SETTINGS["version"] == importlib.metadata.version("mmgen")


def test_importing_mmgen_imports_no_torch():
    code = "import mmgen, sys; assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_installed_copy_edits_a_portrait(tmp_path):
    "`pip install .` brings tables and weights along: what is installed works far from the repository."
    for file in (
        tracked()
    ):  # from a copy: pip builds in the folder that it is given, and keeps what an earlier build left there
        if file.relative_to(ROOT).parts[0] not in ("nbs", "tests", "reports", "benchmarks", "data"):
            (copy := tmp_path / "source" / file.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(tmp_path / "site"),
        str(tmp_path / "source"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    if "Could not find a version" in done.stderr or "onnection" in done.stderr:
        pytest.skip("pip finds no setuptools: there is no network")
    assert done.returncode == 0, done.stderr
    code = """
import mmgen, pathlib
from mmgen.data import portraits
from mmgen.app.workbench import edit_image
assert pathlib.Path(mmgen.__file__).is_relative_to(pathlib.Path.cwd()), mmgen.__file__
face = portraits.sample(3)
print(edit_image(mmgen.editor("sdedit"), portraits.render(face), ", ".join(portraits.tags(face)), "green hair").shape)
"""
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.stdout.strip() == "(64, 64, 3)", done.stderr


def test_the_path_of_a_library_notebook_is_its_modules_path():
    for notebook in (ROOT / "nbs").rglob("*.ipynb"):
        if ".ipynb_checkpoints" in notebook.parts:
            continue
        source = "\n".join("".join(c["source"]) for c in json.loads(notebook.read_text(encoding="utf-8"))["cells"])
        exported = re.findall(r"^#\|\s*default_exp\s+(\S+)", source, re.M)
        path = notebook.relative_to(ROOT / "nbs").with_suffix("")
        if len(path.parts) == 1:
            assert not exported, f"{path}: nbs/ itself holds what a person runs"
        else:
            assert exported == [".".join(path.parts)], path
            assert (ROOT / "mmgen" / path).with_suffix(".py").is_file()
    for module in (ROOT / "mmgen").rglob("*.py"):
        path = (ROOT / "nbs" / module.relative_to(ROOT / "mmgen")).with_suffix(".ipynb")
        assert path.is_file() or module.name in ("__init__.py", "_modidx.py", "_moved.py"), f"{module}: no notebook"


def test_the_tree_is_lean():
    files = tracked()
    assert sum(-(-f.stat().st_size // 4096) * 4096 for f in files) < 100 * 2**20  # as they lie on a disk
    notebooks = [f for f in files if f.suffix == ".ipynb" and "executed" not in f.parts]
    assert all(f.stat().st_size < 300_000 for f in notebooks)
    weights = [f for f in files if "packaged" in f.parts]
    assert sum(f.stat().st_size for f in weights) < 60_000_000


def test_no_path_of_one_machine():
    pattern = re.compile(r"(^|[\s\"'=(])[/](home|root|work|opt|Users|tmp)[/][a-z]|[/]tmp[/]ipykernel")
    for file in tracked():
        if (
            file.suffix in (".py", ".ipynb", ".md", ".json", ".jsonl", ".ini", ".toml", ".yml", ".txt")
            and file.name != Path(__file__).name
        ):
            assert not pattern.search(file.read_text(encoding="utf-8")), file


def test_packaged_weights_have_card_config_and_record():
    for folder in (ROOT / "mmgen" / "packaged").glob("*"):
        assert {"model.safetensors", "config.json", "README.md", "run.json"} <= {f.name for f in folder.iterdir()}
        record = json.loads((folder / "run.json").read_text())
        assert record["status"] == "completed" and record["config"]
