"The command line: what it prints where, exit codes, the mistakes that people make."
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgen.cli import main
from mmgen.data import portraits
from mmgen.launch import FITS
from mmgen.presets import JOBS


@pytest.fixture
def me(tmp_path):
    path = tmp_path / "me.png"
    Image.fromarray(portraits.render(portraits.sample(200_000_007), 150)).save(path)
    return path


def test_an_edit_from_the_shell_makes_a_picture_and_one_line_of_json(me):
    mmgen = Path(sys.executable).parent / "mmgen"
    done = subprocess.run([str(mmgen), "edit", str(me), "green hair", "--steps", "3", "--json"], capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert about["file"] == str(me.with_name("me-edited.png")) and about["editor"] == "sdedit" and "green hair" in about["wanted"]
    result = np.asarray(Image.open(about["file"]))
    assert result.shape == (64, 64, 3) and result.std() > 5 and "wanted:" in done.stderr


@pytest.mark.parametrize("out, said", [("me.txt", "no image format"), ("me.png", "is the picture that is edited")])
def test_an_edit_never_lands_where_it_should_not(me, out, said, capsys):
    before = me.read_bytes()
    assert main(["edit", str(me), "green hair", "-o", str(me.with_name(out))]) == 1
    assert said in capsys.readouterr().err and me.read_bytes() == before and [p.name for p in me.parent.iterdir()] == ["me.png"]


@pytest.mark.parametrize("arguments, said", [
    (["edit", "nowhere.png", "green hair"], "does not exist"), (["edit", "nowhere.png", "green hair", "--editor", "sdedti"], "did you mean 'sdedit'"),
    (["edit", "nowhere.png", "green hair", "--strength", "2"], "strength must be from 0 to 1"), (["sample", "smile", "-n", "0"], "at least 1"),
    (["sample", "smile", "--model", "nothing"], "There are no weights"), (["weights", "nothing"], "There are no weights"),
    (["train", "ldm", "--prediction", "epsilon"], "did you mean 'eps'"), (["data", "show", "none.parquet"], "The file none.parquet does not exist")])
def test_mistakes_are_one_sentence(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert said in printed.err and printed.out == "" and "Traceback" not in printed.err


@pytest.mark.parametrize("arguments", [[], ["edti"], ["edit"], ["train", "lmd"], ["edit", "a", "b", "--seed", "x"], ["train", "ldm", "--tensorboard", "maybe"]])
def test_a_misspelt_command_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage: mmgen" in capsys.readouterr().err


@pytest.mark.parametrize("job", FITS)
def test_every_field_of_a_job_is_an_option_with_help(job, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", job, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and f"mmgen train {job} --preset small" in text
    assert all(f"--{name.replace('_', '-')}" in text for name in vars(JOBS[job]["small"]))


def test_samples_weights_and_data(tmp_path, capsys):
    assert main(["sample", "green hair, smile", "-n", "3", "--steps", "2", "-o", str(tmp_path / "sheet.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 3 and Image.open(tmp_path / "sheet.png").size == (64 * 3 + 4, 64)
    assert main(["weights", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ldm-portraits"]["bytes"] > 1e6
    assert main(["weights", "ldm-portraits"]) == 0
    assert "# " in capsys.readouterr().err
    assert main(["data", "show", "portraits", "--images", "5", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["rows"] == 5 and len(about["first"]) == 3 and "image" in about["columns"]


def test_training_from_the_shell_is_the_notebooks_job(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    assert main(["train", "oracle", "--preset", "smoke", "--images", "48", "--run-id", "mine", "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    about = json.loads(printed.out)
    assert about["status"] == "completed" and "step 6/6" in printed.err
    record = json.loads((tmp_path / "reports" / "runs" / "mine" / "run.json").read_text())
    assert record["config"]["images"] == 48 and record["config"]["preset"] == "smoke"
