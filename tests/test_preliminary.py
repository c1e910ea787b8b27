"The paper's preliminary experiments: distance of styles, a missing foreign model, the record and its report."

import re
import shutil

import numpy as np
import pytest
import torch

from mmgen.base.files import repo_root
from mmgen.base.images import sheet
from mmgen.base.runs import Run, RunError
from mmgen.base.schema import WeightsError
from mmgen.benchmark.pictures import edit_columns
from mmgen.clip.model import CLIP
from mmgen.data.edits import as_batch
from mmgen.data.portraits import PortraitError, render, tags
from mmgen.jobs.launch import parse_job
from mmgen.jobs.registry import config_for
from mmgen.metrics.features import Extractor
from mmgen.paper_figures import figures as experiment
from mmgen.paper_figures.domains import (
    STYLES,
    drawn_as,
    exact_scores,
    reading,
    reconstruction,
    style_distances,
    style_edits,
    style_images,
)
from mmgen.paper_figures.figures import COMMANDS, load_models, methods, preliminary
from mmgen.report.figures_page import read_record, text, write_report
from mmgen.report.figures_tables import cell, order, pick


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    "A smoke run with few steps, in a folder like the repository's."
    root = tmp_path_factory.mktemp("root")
    patch = pytest.MonkeyPatch()
    patch.setenv("MMGEN_ROOT", str(root))
    config = config_for("preliminary", "smoke", device="cpu", run_id="made")
    steps = {"latent optimisation": ":steps=1", "SDEdit, plain": ":steps=2", "SDEdit, paired": ":steps=2"}
    few = lambda config: [m._replace(spec=m.spec + steps.get(m.label, "")) for m in methods(config)]
    patch.setattr(experiment, "methods", few)
    with Run("preliminary", config, run_id="made") as made:
        preliminary(config, made)
    patch.undo()
    return made.path


def test_distances_have_known_answers():
    two = Extractor("two means", lambda x: torch.stack([x.mean((1, 2, 3)), x[:, 0].mean((1, 2))], 1), "hash")
    rng = np.random.default_rng(0)
    images = rng.integers(100, 156, (40, 8, 8, 3)).astype(np.uint8)
    found = style_distances(two, {"a": images, "b": images, "brighter": images + 50})
    assert list(found) == [("a", "b"), ("a", "brighter"), ("b", "brighter")] and all(
        score.n == 40 for score in found.values()
    )
    assert abs(found["a", "b"].value) < 1e-9 and found["a", "brighter"].value == pytest.approx(
        2 * (50 / 127.5) ** 2, rel=1e-4
    )  # each mean moves so


def test_an_image_is_drawn_as_its_nearest_neighbour():
    mean = Extractor("mean", lambda x: x.mean((2, 3)), "hash")
    grey = lambda *levels: np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels])
    assert drawn_as(
        mean, grey(10, 200, 130), {"dark": grey(0, 20), "light": grey(255), "middle": grey(128)}
    ).tolist() == ["dark", "light", "middle"]


def test_an_autoencoder_that_adds_a_constant_has_its_psnr():
    class Shift(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return x + 0.2, None

    images = np.full((6, 8, 8, 3), 100, np.uint8)
    assert reconstruction(Shift(), images).value == pytest.approx(20 * np.log10(2 / 0.2), abs=1e-3)


def test_a_clip_reads_its_own_style_and_constant_attributes_are_left_out():
    clip, found = CLIP.load("clip-portraits", "cpu"), {}
    for style in STYLES:
        found[style] = {score.name: (score, about) for score, about in reading(clip, *style_images(style, 40), ways=16)}
    score, about = found["adventurer"]["names hair color"]
    assert score.value == score.low == score.high == 1 and score.n == 40 and 0 < about["chance"] < 0.5
    assert found["adventurer"]["caption found among 16"][0].n == 32  # whole groups of 16
    assert {name for name in found["lorelei"] if name.startswith("names")} == {"names glasses", "names hair length"}


@pytest.mark.parametrize(
    "style, kind",
    [
        ("mixture", "hair color"),
        ("mixture", "glasses on"),
        ("lorelei", "glasses off"),
        ("lorelei", "hair length"),
        ("adventurer", "hair color"),
    ],
)
def test_style_edits_make_one_wish_true_and_show_it(style, kind):
    rows = style_edits(style, kind, 6)
    assert rows == style_edits(style, kind, 8)[:6] and len({row.seed for row in rows}) == 6
    for row in rows:
        wish, before, after = row.tag.removeprefix("no "), tags(row.source), tags(row.target)
        assert (wish in before, wish in after) == ((True, False) if row.tag.startswith("no ") else (False, True))
        assert (render(row.source) != render(row.target)).any(-1).mean() > 0.01
        assert [name for name, _ in row.source.parts + row.source.colors if row.source[name] != row.target[name]]


@pytest.mark.parametrize(
    "style, kind, said",
    [
        ("lorelei", "hair color", "The style 'lorelei' has no edits of the kind 'hair color'"),
        ("mixture", "hair length", "The style 'mixture' has no edits of the kind"),
        ("lorelei", "hats", "There is no kind of edits 'hats'; choose from hair color"),
        ("manga", "glasses on", "There is no portrait style 'manga'"),
    ],
)
def test_edits_that_a_style_cannot_show(style, kind, said):
    with pytest.raises(PortraitError, match=said):
        style_edits(style, kind, 1)


def test_exact_scores_of_known_edits():
    source, _, _, exact = as_batch(style_edits("mixture", "hair color", 4))
    assert (exact_scores(source, exact, source)["skill"] == 0).all()
    assert all((values == 1).all() for values in exact_scores(source, exact, exact).values())
    assert (exact_scores(source, exact, 0.5 * source + 0.5 * exact)["skill"] - 0.75).abs().max() < 1e-5


def test_wishes_are_the_first_faces_that_can_show_them():
    some = edit_columns("adventurer", ["green hair", "blue eyes", "blue eyes", "glasses"])
    assert [wish.seed for wish in some] == sorted({wish.seed for wish in some})
    for wish in some:
        assert wish.tag not in tags(wish.face) and wish.tag in tags(wish.exact)
    assert edit_columns("lorelei", ["blue eyes"])[0].exact is None and "closed eyes" not in tags(
        edit_columns("lorelei", ["blue eyes"])[0].face
    )


def test_a_sheet_has_every_image_in_its_place():
    red, blue = (np.full((1, 64, 64, 3), color, np.uint8) for color in ((255, 0, 0), (0, 0, 255)))
    page = sheet({"one": np.concatenate([red, blue]), "two": np.concatenate([blue, red])}, ["a", "b\nc"], cell=10)
    left = page.shape[1] - 20
    assert page.shape[0] == 34 + 20 and left > 12
    assert [tuple(page[34 + y, left + x]) for y, x in ((5, 5), (5, 15), (15, 5), (15, 15))] == [
        (255, 0, 0),
        (0, 0, 255),
        (0, 0, 255),
        (255, 0, 0),
    ]
    assert (page[:, :left] != 255).any() and (page[:34] != 255).any()  # the labels


def test_a_missing_foreign_model_names_the_commands_that_make_it(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    config = config_for("preliminary", device="cpu")
    with pytest.raises(
        WeightsError, match="The foreign model reports/runs/mixture-ldm/model cannot be loaded"
    ) as caught:
        load_models(config, "cpu")
    assert str(caught.value).endswith(COMMANDS)
    jobs = [parse_job(line.split()[3:]) for line in COMMANDS.split("\n")]
    assert [job.job for job in jobs] == ["autoencoder", "clip", "ldm"] and {job.data for job in jobs} == {
        "portraits:mixture"
    }
    made = {
        f"reports/runs/{job.run_id}/{folder}" for job, folder in zip(jobs, ("autoencoder", "clip-portraits", "model"))
    }
    assert made == {jobs[2].autoencoder, jobs[2].text_encoder, config.foreign}  # what one makes, the next one finds


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"foreign": "a,b"}, "without comma and colon"),
        ({"images": 0}, "images must be 1 or more"),
        ({"model": "a:b"}, "model must be a name"),
    ],
)
def test_settings_that_cannot_be_meant(changes, said):
    with pytest.raises(ValueError, match=said):
        config_for("preliminary", **changes)


def test_the_record_has_every_number_with_its_count(run):
    record, scores, pictures = read_record(run)
    rows = scores["rows"]
    assert {row["table"] for row in rows} == {
        "distance",
        "reconstruction",
        "reading",
        "exact",
        "known words",
        "benchmark",
        "drawn as",
    } and all(row["n"] > 0 and "low" in row for row in rows)
    assert (
        len([row for row in rows if row["table"] == "distance"]) == 4
        and len([row for row in rows if row["table"] == "reconstruction"]) == 6
    )
    assert (
        {what["file"] for what in pictures}
        == {"figure_6.jpg", "figure_7.jpg", "figure_8.jpg", "home.jpg"}
        == {entry["file"] for entry in record["figures"]}
    )
    assert all(entry["bytes"] < 150_000 for entry in record["figures"])
    same = [
        pick(rows, table="benchmark", method="SDEdit, plain", model=model, kind="all", name="skill")["value"]
        for model in ("own", "foreign")
    ]
    assert same[0] == same[1]  # smoke: one model plays both parts
    assert (
        pick(rows, table="benchmark", method="SDEdit, plain", model="own", kind="eye color", name="reached")["known"]
        == 1
    )
    assert scores["models"]["own"]["data"] == "portraits"


def test_the_same_record_makes_the_same_report(run, tmp_path):
    first, second = (write_report(run, tmp_path / name) for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()
    assert (tmp_path / "one" / "figures" / "preliminary.jpg").read_bytes() == (
        tmp_path / "two" / "figures" / "preliminary.jpg"
    ).read_bytes()
    words = first.read_text("utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", words):
        assert (first.parent / link).is_file(), link
    assert (
        len(re.findall(r"^!\[", words, re.M)) == 5
        and "nan" not in words
        and "None" not in words
        and str(tmp_path) not in words
    )


def test_the_report_says_what_the_numbers_say(run):
    record, scores, pictures = read_record(run)
    change = lambda method, low, high: [
        row.update(value=(low + high) / 2, low=low, high=high)
        for row in scores["rows"]
        if row["table"] == "benchmark" and row["kind"] == "all" and row["name"] == "reached" and row["method"] in method
    ]
    styleclip = ("latent optimisation", "mapper", "global directions")
    for mine, theirs, said in (
        ((0.9, 0.95), (0.1, 0.2), "the opposite of the paper's; "),
        ((0.1, 0.2), (0.9, 0.95), "the paper's order holds"),
        ((0.1, 0.5), (0.4, 0.9), "neither is ahead in edits reached; "),
    ):
        change(("SDEdit, plain",), *mine), change(styleclip, *theirs)
        assert said in text(record, scores, pictures)
    assert "No caption of the foreign model's training" not in text(record, scores, pictures)
    for row in scores["rows"]:
        row.update(known=0.0) if row.get("kind") == "eye color" and row["table"] == "benchmark" else None
    assert "No caption of the foreign model's training named the edits of: eye color." in text(record, scores, pictures)
    assert (
        cell({"value": 0.5, "low": "nan", "high": "nan"}, 100) == "50.0"
        and order({"low": 1, "high": 2}, {"low": 2, "high": 3}) == 0
    )


@pytest.mark.parametrize(
    "file, old, new, said",
    [
        (
            "scores.json",
            '"table": "distance"',
            '"table": "nearness"',
            "scores.json has the SHA-256 .* was changed by hand",
        ),
        ("pictures.json", "blue eyes", "red eyes", "pictures.json has the SHA-256"),
        ("run.json", '"name": "PSNR"', '"name": "PSNR!"', "run.json was changed after the run wrote it"),
        ("run.json", '"status": "completed"', '"status": "failed"', "run.json was changed after the run wrote it"),
    ],
)
def test_a_record_that_was_edited_by_hand_makes_no_report(run, tmp_path, file, old, new, said):
    shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("parts"))
    edited = (tmp_path / run.name / file).read_text("utf-8").replace(old, new, 1)
    assert edited != (run / file).read_text("utf-8")
    (tmp_path / run.name / file).write_text(edited, "utf-8")
    with pytest.raises(RunError, match=said):
        write_report(tmp_path / run.name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_picture_that_is_missing_makes_no_report(run, tmp_path):
    shutil.copytree(run, tmp_path / run.name, ignore=shutil.ignore_patterns("parts"))
    (tmp_path / run.name / "home.jpg").unlink()
    with pytest.raises(RunError, match="home.jpg is missing"):
        read_record(tmp_path / run.name)


def test_the_committed_report_is_that_of_the_committed_record(tmp_path):
    reports = repo_root() / "reports"
    if not (reports / "preliminary.md").is_file():
        pytest.skip("there is no report here")
    shutil.copytree(
        reports / "runs" / "preliminary", tmp_path / "runs" / "preliminary", ignore=shutil.ignore_patterns("parts")
    )
    assert (
        write_report(tmp_path / "runs" / "preliminary", tmp_path).read_bytes()
        == (reports / "preliminary.md").read_bytes()
    )
    assert (tmp_path / "figures" / "preliminary.jpg").read_bytes() == (
        reports / "figures" / "preliminary.jpg"
    ).read_bytes()
