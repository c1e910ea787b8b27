"""`mmgen bench`: exports that `datasets` opens, results judged from a folder, runs that go on after a failure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import mmgen
from mmgen.app.cli import main
from mmgen.benchmark.board import board, entry, read_entry, write_entry
from mmgen.benchmark.export import export, read_settings, settings, texts, write_settings
from mmgen.benchmark.own_pictures import read_edits
from mmgen.benchmark.scene_page import results_page
from mmgen.benchmark.scene_run import costs_of, edit_rows, editor_size, run_editor
from mmgen.benchmark.scene_scores import FAILED, accuracies, read_result, row_scores, score_folder, to_lab
from mmgen.benchmark.seasons import (
    HASHED,
    SEASONS,
    BenchError,
    Season,
    fingerprint,
    judge_of,
    opened,
    sealed,
    season_rows,
)
from mmgen.data.portraits import change, render
from mmgen.editing.editor import BaseEditor, CopyInput

ROOT = Path(mmgen.__file__).parent.parent
ROWS = season_rows("dev", 4)
WANTED = settings("dev", 4, 64)


def save_targets(folder, rows=ROWS, size=64):
    folder.mkdir(parents=True, exist_ok=True)
    for row in rows:
        Image.fromarray(row.pictures(size)[1]).save(folder / f"{row.id}.png")
    return folder


@pytest.mark.parametrize("track", ["instruction", "captions", "mask"])
def test_datasets_opens_an_export(tmp_path, track):
    from datasets import load_dataset

    export(tmp_path / "test", rows=3, size=32, track=track, targets=track != "captions")
    data = load_dataset("imagefolder", data_dir=str(tmp_path / "test"), split="train", cache_dir=str(tmp_path / "c"))
    assert len(data) == 3 and data[1]["image"].size == (32, 32) and data[1]["id"] == ROWS[1].id
    assert (np.asarray(data[1]["image"]) == ROWS[1].pictures(32)[0]).all()
    assert ("target" in data.features) == ("spec" in data.features) == (track != "captions")
    assert ("mask" in data.features) == (track == "mask") and ("instruction" in data.features) == (track != "captions")
    assert (
        texts(ROWS[1], track).keys() <= set(data.features) and (tmp_path / "test" / "LICENCES.txt").stat().st_size > 500
    )


def test_an_export_replaces_nothing_else(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BenchError, match="is not empty"):
        export(tmp_path, rows=1, size=32)
    export(tmp_path / "a", rows=1, size=32)
    export(tmp_path / "a", rows=1, size=32)  # the same again
    with pytest.raises(BenchError, match="not empty"):
        export(tmp_path / "a", rows=2, size=32)


def test_the_dev_season_is_the_published_one():
    assert fingerprint(season_rows("dev", HASHED), 64) == SEASONS["dev"].sha256[64]
    assert {64, 128, 256, 512, 1024} == set(SEASONS["dev"].sha256)


SECRET = "a secret of a season in a test, not of one that counts"


@pytest.fixture
def toy_season(monkeypatch):
    monkeypatch.setattr("mmgen.benchmark.seasons.HASHED", 2)
    return sealed("toy", SECRET, "2026-12-01", (16,))


def test_a_sealed_season_holds_hashes_alone(toy_season):
    assert toy_season.sealed and SECRET not in repr(toy_season)
    with pytest.raises(BenchError, match="at least 32"):
        sealed("toy", "guess me", "2026-12-01")
    for name, season in SEASONS.items():
        assert set(season.sha256) == {64, 128, 256, 512, 1024}, name
        assert all(len(value) == 64 for value in season.sha256.values())
    assert any(season.secret_sha256 for season in SEASONS.values())


def test_a_sealed_season_is_refused_until_it_is_opened(toy_season, monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(SEASONS, "toy", toy_season)
    for use in (lambda: season_rows("toy", 1), lambda: settings("toy", 2, 64)):
        with pytest.raises(BenchError, match="'toy' is sealed since 2026-12-01.* open are .*dev.*portraits"):
            use()
    for command in (["export", str(tmp_path / "x")], ["run", "--editor", "copy-input"], ["score", str(tmp_path)]):
        rows = ["--rows", "2", "--size", "32"]
        assert main(["bench", *command, "--season", "toy", *rows]) != 0
        text = capsys.readouterr().err
        assert "sealed since" in text and "Traceback" not in text
    monkeypatch.setitem(SEASONS, "toy", opened("toy", toy_season, SECRET))
    rows = season_rows("toy", 2)
    assert fingerprint(rows, 16) == toy_season.sha256[16] and rows[0].id == "toy-00000"
    assert export(tmp_path / "y", "toy", 1, 32).is_dir()


def test_another_secret_or_other_pixels_do_not_open_a_season(toy_season, monkeypatch):
    with pytest.raises(BenchError, match="not the secret"):
        opened("toy", toy_season, SECRET + " ")
    other = Season(toy_season.date, {16: "0" * 64}, toy_season.secret_sha256)
    with pytest.raises(BenchError, match="at 16 px are not those"):
        opened("toy", other, SECRET)
    monkeypatch.setitem(SEASONS, "toy", Season(toy_season.date, toy_season.sha256, toy_season.secret_sha256, "guess"))
    with pytest.raises(BenchError, match="not the one that was sealed"):
        season_rows("toy", 1)


def test_two_runs_write_the_same_bytes(tmp_path):
    folder = save_targets(tmp_path)
    score_folder(folder, WANTED, workers=1)
    first = (folder / "scores.json").read_bytes()
    content = score_folder(folder, WANTED, workers=2)
    assert (folder / "scores.json").read_bytes() == first and content == json.loads(first)
    assert content["scores"]["all"]["success"][0] == content["scores"]["all"]["skill"][0] == 1
    assert str(tmp_path).encode() not in first


def test_missing_and_damaged_results_count_as_failed(tmp_path):
    folder = save_targets(tmp_path / "results", ROWS[:1])
    data = (folder / f"{ROWS[0].id}.png").read_bytes()
    (folder / f"{ROWS[1].id}.png").write_bytes(data[: len(data) // 2])
    (folder / f"{ROWS[2].id}.jpg").write_bytes(b"<script>")
    (folder / "other.png").write_bytes(data)
    content = score_folder(folder, WANTED, workers=1)
    assert [row["status"] for row in content["rows"]] == ["scored", "failed", "failed", "missing"]
    assert content["counts"] == {"scored": 1, "failed": 2, "missing": 1} and content["other_files"] == 1
    assert all(row["scores"] == FAILED for row in content["rows"][1:])
    assert content["scores"]["all"]["reached"][0] == content["scores"]["all"]["IoU"][0] == 0.25
    page = results_page(folder, content).read_text()
    assert "2 failed, 1 missing" in page and "<script" not in page


def test_what_is_no_file_is_no_result_and_stops_nothing(tmp_path):
    folder = save_targets(tmp_path / "results", ROWS[:1])
    os.mkfifo(folder / f"{ROWS[1].id}.png")  # opening it would wait for ever
    (folder / f"{ROWS[2].id}.png").symlink_to(f"{ROWS[2].id}.png")
    (folder / f"{ROWS[3].id}.png").mkdir()
    rows = score_folder(folder, WANTED, workers=1)["rows"]
    assert [row["status"] for row in rows] == ["scored", *["failed"] * 3]
    assert {row["reason"] for row in rows[1:]} == {"it is no file"}


@pytest.mark.parametrize(
    "season, rows", [("dev", 10**9), ("portraits", 2301), ("dev", True), ("dev", "5"), (["dev"], 5)]
)
def test_settings_name_what_a_season_does_not_have(season, rows):
    with pytest.raises(BenchError, match="rows|named with small letters"):
        settings(season, rows, 64)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1", "I;16", "CMYK", "LA"])
def test_pictures_of_every_mode_are_read(tmp_path, mode):
    file = tmp_path / ("x.jpg" if mode == "CMYK" else "x.png")
    grey = Image.new("L", (40, 30), 200)
    picture = Image.fromarray(np.full((30, 40), 200 * 256, np.uint16)) if mode == "I;16" else grey.convert(mode)
    picture.save(file)
    assert read_result(file).shape == (30, 40, 3) and abs(int(read_result(file)[0, 0, 0]) - 200) < 60


def test_transparency_is_laid_on_white(tmp_path):
    Image.new("RGBA", (20, 20), (255, 0, 0, 0)).save(tmp_path / "x.png")
    assert (read_result(tmp_path / "x.png") == 255).all()


def test_a_link_does_not_leave_the_folder(tmp_path):
    folder = save_targets(tmp_path / "results", ROWS[:1])
    Image.new("RGB", (32, 32)).save(tmp_path / "secret.png")
    (folder / f"{ROWS[1].id}.png").symlink_to(tmp_path / "secret.png")
    (folder / f"{ROWS[2].id}.png").symlink_to(f"{ROWS[0].id}.png")
    statuses = [row["status"] for row in score_folder(folder, WANTED, workers=1)["rows"]]
    assert statuses == ["scored", "failed", "scored", "missing"]


def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path, monkeypatch):
    save_targets(tmp_path, ROWS[:1], 64)
    monkeypatch.setattr("mmgen.benchmark.scene_scores.LARGEST", 1000)
    with pytest.raises(ValueError, match="64 × 64 pixels"):
        read_result(tmp_path / f"{ROWS[0].id}.png")


@pytest.mark.parametrize("size", [(16, 16), (200, 90), (512, 512)])
def test_results_of_other_sizes_are_judged(size):
    image = np.asarray(Image.fromarray(ROWS[0].pictures(512)[1]).resize(size))
    assert set(row_scores(ROWS[0], image, 256)) >= {"reached", "skill", "IoU", "shift"}


@pytest.mark.parametrize(
    "content, words",
    [
        ("no json", "no description"),
        ("[1]", "no description"),
        ('{"version": "1.0"}', "version 1.0"),
        ('{"version": "2.0", "season": "../x", "rows": 1, "size": 64, "track": "mask"}', "season is named"),
        ('{"version": "2.0", "season": "dev", "rows": -1, "size": 64, "track": "mask"}', "number of rows"),
        ('{"version": "2.0", "season": "dev", "rows": 1, "size": 9e9, "track": "mask"}', "size lies"),
        ('{"version": "2.0", "season": "dev", "rows": 1, "size": 64}', "no description"),
    ],
)
def test_damaged_settings_are_named(tmp_path, content, words):
    (tmp_path / "bench.json").write_text(content)
    with pytest.raises(BenchError, match=words):
        read_settings(tmp_path)
    assert main(["bench", "score", str(tmp_path)]) == 1


def test_results_of_another_benchmark_are_refused(tmp_path):
    folder = save_targets(tmp_path / "results")
    with pytest.raises(BenchError, match="has no bench.json"):
        score_folder(folder)
    with pytest.raises(BenchError, match="named after rows, such as other-00000.png, not 'dev-00000.png'"):
        score_folder(folder, settings("other", 4, 64))
    write_settings(folder, WANTED)
    with pytest.raises(BenchError, match="rows 4, not 3"):
        score_folder(folder, settings("dev", 3, 64))
    with pytest.raises(BenchError, match="no folder"):
        score_folder(tmp_path / "none", WANTED)


def test_scores_follow_their_definitions():
    source, target = (np.full((20, 20, 3), v, np.uint8) for v in (0, 0))
    target = target.copy()
    target[:10] = 255
    inside = (source != target).any(2)
    assert accuracies(target, target, inside) == {"preservation accuracy": 1, "edit accuracy": 1, "IoU": 1}
    assert accuracies(source, target, inside)["IoU"] == 0
    assert "IoU" not in accuracies(source, source, np.zeros((20, 20), bool))
    assert np.allclose(to_lab(np.array([[255, 255, 255], [0, 0, 0]], np.uint8)), [[100, 0, 0], [0, 0, 0]], atol=0.01)


class Fragile(BaseEditor):
    "Inverts; raises, or returns what is no image, on some instructions."

    name = "fragile"

    def __init__(self, trouble=None, on=()):
        self.trouble, self.on, self.calls = trouble, on, 0

    def edit(self, images, source, target, strength=None, instruction=None):
        self.calls += 1
        if any(text in self.on for text in instruction):
            if self.trouble == "raise":
                raise RuntimeError("out of memory")
            return {"nan": images * torch.nan, "shape": images[:, :1], "range": images * 9, "list": [1]}[self.trouble]
        return -images


@pytest.mark.parametrize("trouble", ["raise", "nan", "shape", "range", "list"])
def test_one_row_that_fails_stops_nothing(tmp_path, trouble):
    editor = Fragile(trouble, (ROWS[1].instructions[0],))
    run_editor(editor, tmp_path, rows=4, size=32, batch_size=3, say=lambda text: None)
    assert sorted(f.stem for f in tmp_path.glob("*.png")) == [ROWS[i].id for i in (0, 2, 3)]
    assert list(costs_of(tmp_path)["failures"]) == [ROWS[1].id] and costs_of(tmp_path)["seconds_per_edit"] > 0
    assert score_folder(tmp_path, workers=1)["counts"]["missing"] == 1
    calls, editor.on = editor.calls, ()
    run_editor(editor, tmp_path, rows=4, size=32, say=lambda text: None)  # goes on where it was
    assert editor.calls == calls + 1 and "failures" not in costs_of(tmp_path)


def test_processes_share_the_rows(tmp_path, monkeypatch):
    for rank in (1, 0):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        run_editor(CopyInput(), tmp_path, rows=3, size=32, say=lambda text: None)
    assert len(list(tmp_path.glob("*.png"))) == 3
    assert (tmp_path / "costs-0.jsonl").is_file() and (tmp_path / "costs-1.jsonl").is_file()


def test_turns_edit_the_result_of_the_turn_before():
    row = next(row for row in season_rows("dev", 15) if len(row.instructions) == 3)
    assert (edit_rows(Fragile(), [row], 32)[0] == 255 - row.pictures(32)[0]).mean() > 0.99  # inverted three times


def test_a_run_is_refused_where_it_cannot_be_right(tmp_path):
    small = Fragile()
    small.size = 64
    assert editor_size(small) == 64 and editor_size(CopyInput()) == 512 and editor_size(CopyInput(), 128) == 128
    with pytest.raises(BenchError, match="64 px, not of 128"):
        editor_size(small, 128)
    with pytest.raises(BenchError, match="take no masks"):
        run_editor(CopyInput(), tmp_path, rows=1, track="mask")
    run_editor(CopyInput(), tmp_path, rows=1, size=32, say=lambda text: None)
    with pytest.raises(BenchError, match="holds results of"):
        run_editor(Fragile(), tmp_path, rows=1, size=32)
    with pytest.raises(BenchError, match="rows 1"):
        run_editor(CopyInput(), tmp_path, rows=2, size=32)


def test_the_command_runs_a_class_of_another_module(tmp_path, monkeypatch, capsys):
    (tmp_path / "my_editor.py").write_text(
        "from mmgen.editing.editor import BaseEditor\n"
        "class MeanColor(BaseEditor):\n"
        "    name = 'mean-color'\n"
        "    def edit(self, images, source, target, strength=None):\n"
        "        return images.mean((2, 3), keepdim=True).expand_as(images).clone()\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    out = str(tmp_path / "out")
    words = ["bench", "run", "--editor", "my_editor:MeanColor", "--rows", "2", "--size", "32", "-o", out, "--json"]
    assert main(words) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["counts"]["scored"] == 2 and result["scores"]["all"]["success"][0] == 0
    assert main(["bench", "run", "--editor", "no-such", "--rows", "2"]) == 1


def test_own_edits_are_read_line_by_line(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    edits = tmp_path / "edits.txt"
    edits.write_text("# comment\nmake it red\nb.png: black hair => red hair\n")
    rows = read_edits(tmp_path, edits)
    assert [(r.file.name, r.source, r.target) for r in rows] == [
        ("a.png", "", "make it red"), ("b.png", "", "make it red"), ("b.png", "black hair", "red hair"),
    ]  # fmt: skip
    for text, words in (("", "holds no edit"), ("c.png: red", "holds no 'c.png'"), ("a.png:", "asks for nothing")):
        edits.write_text(text)
        with pytest.raises(BenchError, match=words):
            read_edits(tmp_path, edits)
    with pytest.raises(BenchError, match="no file of edits"):
        read_edits(tmp_path, tmp_path / "none")


def test_export_and_score_start_without_torch():
    modules = "mmgen.app.cli, mmgen.benchmark.export, mmgen.benchmark.scene_page, mmgen.benchmark.board"
    code = f"import sys, {modules}; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("file", sorted((ROOT / "leaderboard").glob("*.json")), ids=lambda f: f.stem)
def test_a_row_of_the_board_is_what_its_rows_say(file, tmp_path):
    known = read_entry(file)
    anchors = {"copy-input": 0, "the renderer": 1}
    if known["editor"] in anchors:  # scored again
        for row in season_rows(known["season"], 3):
            scores = row_scores(row, row.pictures(known["size"])[anchors[known["editor"]]], known["size"])
            stored = known["rows"][int(row.id.rpartition("-")[2])]
            assert {k: round(v, 5) for k, v in scores.items()} == stored["scores"], row.id
    board(file.parent, tmp_path)


def test_the_board_takes_no_better_means_than_its_rows(tmp_path):
    content = score_folder(save_targets(tmp_path / "r"), WANTED, workers=1)
    file = write_entry(tmp_path / "board", "x", entry(content, "<b>x</b>", "none"))
    page = board(tmp_path / "board", tmp_path / "page").read_text()
    assert "&lt;b&gt;x" in page and "<b>x" not in page
    assert all(f"<h3>By {field}</h3>" in page for field in ("kind", "level", "style"))
    text = file.read_text()
    for old, new in (
        ('"reached": [1.0', '"reached": [0.9'),
        ("dev-00001", "dev-00000"),
        ('"skill": 1.0', '"skill": 1e9'),
        ('"editor": "<b>x</b>"', '"editor": []'),
        ('"costs": {}', '"costs": {"seconds_per_edit": 1.0}'),
        ('"costs": {}', '"costs": NaN'),
    ):
        assert old in text
        file.write_text(text.replace(old, new, 1))
        with pytest.raises(BenchError, match="no row of the board"):
            read_entry(file)


def test_portraits_of_version_1_are_rows_too():
    rows = season_rows("portraits", 5)
    assert len({row.kind for row in rows}) == 5 and rows[0].instructions[0]
    for row in rows[::2]:
        judge, (source, target) = judge_of(row, 64), row.pictures(64)
        assert judge(target).reached and not judge(target).flips and not judge(source).reached
    row = rows[4]
    judge, face = judge_of(row, 64), row.edit.source  # hair length: the hair is where the request changes pixels
    assert row.kind == "hair length" and not judge(row.pictures(64)[0]).flips
    for other in (face, row.edit.target):
        wrong = render(change(other, "green hair"), 64)
        assert "hair_color" in [flip[1] for flip in judge(wrong).flips]
    with pytest.raises(ValueError, match="has 2300 rows"):
        season_rows("portraits", 9999)
