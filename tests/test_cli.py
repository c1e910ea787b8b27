"The command line: what it prints where, exit codes, the mistakes that people make."

import argparse
import json
import os
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mmgen.app.cli import build_parser, main
from mmgen.app.commands import save_picture
from mmgen.data import portraits
from mmgen.jobs.registry import JOBS, TRAINING


@pytest.fixture
def me(tmp_path):
    path = tmp_path / "me.png"
    Image.fromarray(portraits.render(portraits.sample(200_000_007), 150)).save(path)
    return path


def test_an_edit_from_the_shell_makes_a_picture_and_one_line_of_json(me):
    mmgen = Path(sys.executable).parent / "mmgen"
    done = subprocess.run(
        [str(mmgen), "edit", str(me), "green hair", "--steps", "3", "--json"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    about = json.loads(done.stdout)
    assert (
        about["file"] == str(me.with_name("me-edited.png"))
        and about["editor"] == "flowedit"
        and "green hair" in about["wanted"]
    )
    result = np.asarray(Image.open(about["file"]))
    assert result.shape == (150, 150, 3) and result.std() > 5 and "wanted:" in done.stderr


def test_a_second_edit_leaves_the_first(me, capsys):
    for name in ("me-edited.png", "me-edited-2.png", "me-edited-3.png"):
        assert main(["edit", str(me), "green hair", "--editor", "copy-input", "--json"]) == 0
        assert Path(json.loads(capsys.readouterr().out)["file"]).name == name
    assert sorted(p.name for p in me.parent.iterdir()) == [
        "me-edited-2.png",
        "me-edited-3.png",
        "me-edited.png",
        "me.png",
    ]


def test_results_that_come_at_once_get_names_of_their_own(tmp_path):
    code = (
        "import sys; import numpy as np; from pathlib import Path; from mmgen.app.commands import save_picture\n"
        "print(flush=True); sys.stdin.readline()\n"
        "for n in range(10): print(save_picture(np.full((8, 8, 3), n, np.uint8), Path(sys.argv[1]), 'PNG', keep=True))"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "a.png")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        process.stdout.readline()  # both have imported
    for process in both:
        process.stdin.write("\n"), process.stdin.flush()
    names = [name for process in both for name in process.communicate(timeout=120)[0].split()]
    assert len(set(names)) == 20 and sorted(names) == sorted(map(str, tmp_path.iterdir()))
    with pytest.raises(KeyError):
        save_picture(np.zeros((8, 8, 3), np.uint8), tmp_path / "b.gif", "no such kind", keep=True)
    assert not list(tmp_path.glob("b*")) and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("out, said", [("me.txt", "no image format"), ("me.png", "is the source image")])
def test_an_edit_never_lands_where_it_should_not(me, out, said, capsys):
    before = me.read_bytes()
    assert main(["edit", str(me), "green hair", "-o", str(me.with_name(out))]) == 1
    assert (
        said in capsys.readouterr().err
        and me.read_bytes() == before
        and [p.name for p in me.parent.iterdir()] == ["me.png"]
    )


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["edit", "nowhere.png", "green hair"], "does not exist"),
        (["edit", "", "green hair"], "The image '' has no name"),
        (["weights", "~nobody-at-all/x"], "There are no weights"),
        (["edit", "nowhere.png", "green hair", "--editor", "sdedti"], "did you mean 'sdedit'"),
        (["edit", "nowhere.png", "green hair", "--strength", "2"], "strength must be from 0 to 1"),
        (["sample", "smile", "-n", "0"], "at least 1"),
        (["sample", "smile", "--model", "nothing"], "There are no weights"),
        (["weights", "nothing"], "There are no weights"),
        (["train", "ldm", "--prediction", "epsilon"], "did you mean 'eps'"),
        (["data", "show", "none.parquet"], "The file none.parquet does not exist"),
    ],
)
def test_mistakes_are_one_sentence(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert said in printed.err and printed.out == "" and "Traceback" not in printed.err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["edti"],
        ["edit"],
        ["train", "lmd"],
        ["edit", "a", "b", "--seed", "x"],
        ["train", "ldm", "--tensorboard", "maybe"],
    ],
)
def test_a_misspelt_command_ends_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and "usage: mmgen" in capsys.readouterr().err


@pytest.mark.parametrize("job", TRAINING)
def test_every_field_of_a_job_is_an_option_with_help(job, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["train", job, "--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0 and f"mmgen train {job}" in text
    assert all(f"--{name.replace('_', '-')}" in text for name in vars(JOBS[job].presets["small"]))


def test_samples_weights_and_data(tmp_path, capsys):
    assert (
        main(["sample", "green hair, smile", "-n", "3", "--steps", "2", "-o", str(tmp_path / "sheet.png"), "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["n"] == 3 and Image.open(tmp_path / "sheet.png").size == (64 * 3 + 4, 64)
    assert main(["weights", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ldm-portraits"]["bytes"] > 1e6
    assert main(["weights", "ldm-portraits"]) == 0
    assert "# " in capsys.readouterr().out
    assert main(["weights"]) == 0 and "ldm-portraits " in capsys.readouterr().out
    assert main(["data", "show", "portraits", "--images", "5"]) == 0 and "5 rows" in capsys.readouterr().out
    assert main(["data", "show", "portraits", "--images", "5", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["rows"] == 5 and len(about["first"]) == 3 and "image" in about["columns"]


def test_a_dump_is_prepared_from_the_shell(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    assert main(["data", "prepare", "--preset", "smoke", "--posts", "60", "--run-id", "mine", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert (
        about["dropped"]["no tags"] == 1
        and sum(about["images"].values()) > 10
        and (tmp_path / "data" / "danbooru-smoke" / "manifest.json").is_file()
    )
    assert main(["data", "show", "data/danbooru-smoke", "--json"]) == 0
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    capsys.readouterr()
    assert main(["data", "prepare", "--preset", "smoke", "--posts", "60", "--out", "mine", "--run-id", "other"]) == 0
    assert (
        tmp_path / "here" / "mine" / "manifest.json"
    ).is_file() and f"train with --data {tmp_path / 'here' / 'mine'}" in capsys.readouterr().err


def test_training_from_the_shell_is_the_notebooks_job(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    assert (
        main(
            ["train", "oracle", "--preset", "smoke", "--images", "48", "--run-id", "mine", "--device", "cpu", "--json"]
        )
        == 0
    )
    printed = capsys.readouterr()
    about = json.loads(printed.out)
    assert about["status"] == "completed" and "step 6/6" in printed.err
    record = json.loads((tmp_path / "reports" / "runs" / "mine" / "run.json").read_text())
    assert record["config"]["images"] == 48 and record["config"]["preset"] == "smoke"


def test_where_a_picture_cannot_go_is_said_before_the_weights_are_opened(me, capsys):
    (me.parent / "folder.png").mkdir()
    for command in (["edit", str(me), "green hair"], ["sample", "smile"]):
        for out, said in (
            # an edit goes into the folder under the picture's name, a new image has none
            ("folder.png", "is a folder; name a file in it" if command[0] == "sample" else "no weights 'nothing'"),
            ("me.png/a.png", "me.png is not a folder"),
            ("a.gif", "no image format"),
            ("a" * 300 + ".png", "File name too long"),
        ):
            assert main([*command, "--model", "nothing", "-o", str(me.parent / out)]) == 1
            assert said in capsys.readouterr().err
    assert (
        main(["edit", str(me), " , ", "--model", "nothing"]) == 1 and "The prompt is empty" in capsys.readouterr().err
    )
    assert sorted(p.name for p in me.parent.iterdir()) == ["folder.png", "me.png"]


def test_a_picture_that_cannot_be_written_leaves_nothing(me, monkeypatch, capsys):
    def full(self, *where, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    assert main(["edit", str(me), "green hair", "--editor", "copy-input"]) == 1
    assert "me-edited.png cannot be written (No space left on device)" in capsys.readouterr().err and [
        p.name for p in me.parent.iterdir()
    ] == ["me.png"]


@pytest.mark.parametrize(
    "option, value, said",
    [
        ("--steps", "0", "at least 1"),
        ("--guidance", "nan", "at least 0"),
        ("--seed", "-1", "at least 0"),
        ("-n", "100000", "1000 at most"),
        ("--sampler", "eular", "There is no sampler 'eular'"),
    ],
)
def test_samples_that_cannot_be_meant_are_refused(option, value, said, capsys):
    assert main(["sample", "smile", option, value]) == 1
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (
            ["edit", "me.png", "green", "hair"],
            "'hair' is one argument too many; put several words in quotes",
        ),
        (["edit", "a", "b", "--stregnth", "1"], "no option --stregnth; did you mean --strength?"),
        (["train", "ldm", "--learning-rate=1"], "did you mean --lr?"),
        (["train", "mapper", "--batch_size", "4"], "did you mean --batch-size?"),
    ],
)
def test_the_option_that_was_meant_is_named(arguments, said, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2 and said in capsys.readouterr().err


def test_an_unexpected_error_is_one_sentence_with_its_place(monkeypatch, capsys):
    monkeypatch.setattr("mmgen.base.weights.packaged", lambda: 1 / 0)
    assert main(["weights", "--json"]) == 1
    printed = capsys.readouterr()
    assert (
        printed.out == ""
        and printed.err.count("\n") == 1
        and "unexpected error: ZeroDivisionError (division by zero) in test_cli.py, line" in printed.err
    )


def test_the_bar_counts_to_its_end_and_changes_nothing(me, monkeypatch, capsys):
    from tqdm import tqdm

    seen = []

    class Bar(tqdm):
        def close(self):
            seen.append((self.n, self.total))
            super().close()

    monkeypatch.setattr("mmgen.app.commands.tqdm", Bar)
    for editor, total in (("sdedit", 2), ("ddim-inversion", 4), ("flowedit", 2), ("styleclip-optimization", None)):
        pictures = []
        for wanted in (False, True):
            monkeypatch.setattr("mmgen.training.guards.wants_bar", lambda: wanted)
            seen.clear()
            captions = ["--source", "blonde hair", "--caption", "word " * 1000]
            assert main(["edit", str(me), *captions, "--steps", "2", "--editor", editor, "--json"]) == 0
            printed = capsys.readouterr()
            assert printed.err.count("it ignores") == 1 and set(json.loads(printed.out)) > {
                "file",
                "editor",
            }  # said once, though twice heard
            pictures.append(Path(json.loads(printed.out)["file"]).read_bytes())
        assert pictures[0] == pictures[1] and (total is None or seen[0] == (total, total))


def test_two_trainings_in_one_second_have_two_names(monkeypatch):
    from argparse import Namespace

    from mmgen.app import commands
    from mmgen.jobs import launch

    seen = []
    monkeypatch.setattr(launch, "launch", lambda config: seen.append(config.run_id) or 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            commands.train(Namespace(job="oracle"))
    assert len(set(seen)) == 2


def parsers(one):
    "A parser and all below it."
    yield one
    for action in one._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_every_example_in_the_help_is_understood():
    whole = build_parser()
    texts = [one.format_help() for one in parsers(whole)]
    examples = [line.strip() for text in texts for line in text.splitlines() if line.startswith("  mmgen ")]
    assert len(examples) > 30 and not any("None" in text for text in texts)
    for line in examples:
        whole.parse_args(shlex.split(line)[1:])


def test_help_comes_without_torch():
    code = """
        import argparse, contextlib, io, sys
        import mmgen.app.cli

        def commands(parser, words):
            yield words
            for action in parser._actions:
                if isinstance(action, argparse._SubParsersAction):
                    for name, below in action.choices.items(): yield from commands(below, [*words, name])

        mmgen.editors()
        for words in commands(mmgen.app.cli.build_parser(), []):
            with contextlib.redirect_stdout(io.StringIO()) as text, contextlib.suppress(SystemExit):
                mmgen.app.cli.main([*words, "--help"])
            heavy = {"torch", "transformers", "diffusers", "accelerate", "scipy", "matplotlib"} & sys.modules.keys()
            assert "usage: mmgen" in text.getvalue() and not heavy, (words, heavy)
            print(*words)"""
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    assert {"edit", "sample", "demo", "weights", "data prepare", *(f"train {job}" for job in TRAINING)} <= set(
        child.stdout.splitlines()
    )
