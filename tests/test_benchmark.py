"The counterfactual benchmark: fixed rows, known scores, kills and broken Editors."

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from mmgen.base.files import sha256
from mmgen.base.images import to_uint8
from mmgen.base.runs import Run, RunError, to_json
from mmgen.base.settings import split_list
from mmgen.benchmark import workers
from mmgen.benchmark.config import EvaluateConfig
from mmgen.benchmark.counterfactuals import change_mask, counterfactuals, from_to, instruction, to_dataset
from mmgen.benchmark.parts import Part, load_part, part_key, parts
from mmgen.benchmark.pictures import failures
from mmgen.benchmark.run import evaluate
from mmgen.benchmark.scores import Judges, pixel_accuracy, to_lab
from mmgen.benchmark.tables import flipped, outcomes, set_figures, table
from mmgen.benchmark.workers import ask, run_parts
from mmgen.data import portraits
from mmgen.data.edits import as_batch
from mmgen.editing.editor import CopyInput, check_edit
from mmgen.editing.names import parse_editor
from mmgen.editing.protocol import EditError
from mmgen.editing.registry import EDITORS, editor
from mmgen.jobs.registry import config_for
from mmgen.metrics.clip_score import clip_score, directional_similarity
from mmgen.metrics.features import extractor
from mmgen.metrics.intervals import MetricWarning
from mmgen.metrics.oracle import labels


@pytest.fixture(scope="module")
def rows():
    return counterfactuals(20)


def test_first_rows_are_those_of_the_whole(rows):
    assert counterfactuals(5) == rows[:5] and len({row.kind for row in rows[:5]}) == 5
    assert counterfactuals(2004) == counterfactuals()[:2004]
    with pytest.raises(ValueError, match="has 2300 rows; 2301 were asked for"):
        counterfactuals(2301)


def test_masks_are_where_pixels_differ(rows):
    source, _, _, exact = as_batch(rows)
    a, b = to_uint8(source).numpy(), to_uint8(exact).numpy()
    assert np.array_equal(change_mask(source, exact).numpy(), (a.astype(int) - b != 0).any(-1))


def test_a_dataset_for_instruct_pix2pix(rows, tmp_path):
    dataset = to_dataset(rows)
    dataset.to_parquet(tmp_path / "rows.parquet")
    from datasets import load_dataset

    again = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))[
        "train"
    ]
    assert {"input_image", "edit_prompt", "edited_image"} <= set(again.column_names)
    one = again[7]
    assert (
        one["edit_prompt"] == instruction(rows[7])
        and (one["from"], one["to"]) == from_to(rows[7])
        and one["edit_tag"] == rows[7].tag
    )
    assert np.array_equal(np.asarray(one["edited_image"]), to_uint8(as_batch(rows[7:8])[3])[0].numpy())


def test_pixel_accuracy_against_loops():
    torch.manual_seed(0)
    source, exact = (torch.randint(0, 2, (2, 3, 5, 5)) * 0.25 for _ in range(2))
    made = (exact + 0.05 * torch.randn(exact.shape)).clamp(-1, 1)
    found = pixel_accuracy(source, exact, made)
    for i in range(2):
        a, b, c = (to_uint8(x[i : i + 1])[0] for x in (source, exact, made))
        sums = np.zeros(3)
        for tolerance in range(11):
            edit = kept = edits = keeps = 0
            for y in range(5):
                for x in range(5):
                    right = (to_lab(c[y, x]) - to_lab(b[y, x])).square().sum().sqrt() <= tolerance
                    if (a[y, x] == b[y, x]).all():
                        keeps, kept = keeps + 1, kept + int(right)
                    else:
                        edits, edit = edits + 1, edit + int(right)
            sums += edit / edits, kept / keeps, edit / (edits + keeps - kept)
        assert np.allclose(
            sums / 11, [found[name][i] for name in ("edit accuracy", "preservation accuracy", "IoU")], atol=1e-6
        )


@pytest.fixture(scope="module")
def judges():
    return Judges("cpu", clip="clip-portraits")


# judges


def test_clip_scores_are_those_of_the_metrics(judges, rows):
    source, before, after, exact = as_batch(rows[:6])
    found, clip = judges.scores(rows[:6], source, exact, exact), extractor("clip", "cpu")
    assert np.allclose(found["CLIP score"], clip_score(clip, exact, after, draws=0).rows, atol=1e-3)
    assert np.allclose(
        found["CLIP direction"], directional_similarity(clip, source, exact, before, after, draws=0).rows, atol=1e-4
    )
    assert judges.about["CLIP (clip-portraits)"] == clip.hash


def test_weights_that_are_not_there_say_which_columns_go_missing_and_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    clip, lpips = Judges("cpu", clip="clip-nobody").notes
    assert (
        clip.startswith(
            "The columns CLIP score and CLIP direction will be missing (There are no weights 'clip-nobody')"
        )
        and "nbs/train_clip.ipynb" in clip
    )
    assert lpips.startswith("The column LPIPS (alex) will be missing") and "curl -L" in lpips and "alexnet-owt" in lpips
    assert len(Judges("cpu", clip=None).notes) == 1


# tables


def sets(n, m, shift=0.0):
    g = torch.Generator().manual_seed(0)
    exact, made = (torch.randn(k, 256, generator=g) + by for k, by in ((n, 0.0), (m, shift)))
    return {"features of EfficientNet-Lite0": made.numpy(), "features of oracle": made.numpy().copy()}, {
        "features of exact": exact,
        "oracle of exact": exact,
    }


def test_distances_of_sets_of_unequal_size():
    rows = counterfactuals(700)
    near, far = (set_figures(*sets(700, 300, shift), rows, "hash")[0] for shift in (0.0, 0.5))
    assert set(near) == {"FD (EfficientNet-Lite0)", "KD (EfficientNet-Lite0)", "FD (oracle)"}
    assert all(low < value < high and far[name][0] > high for name, (value, low, high) in near.items())
    assert abs(near["KD (EfficientNet-Lite0)"][0]) < 0.01


def test_too_few_images_for_a_frechet_distance_are_a_note_and_a_failed_row_is_not():
    rows = counterfactuals(400)
    made, known = sets(400, 257)
    assert set_figures(made, known, rows, "hash")[1] == []
    made["features of oracle"][0] = np.nan
    found, notes = set_figures(made, known, rows, "hash")
    assert "FD (EfficientNet-Lite0)" in found and "FD (oracle)" not in found
    assert len(notes) == 1 and notes[0].startswith("Left out: FD (oracle) of 400 and 256 images in 256 dimensions")
    made["features of oracle"][:] = np.nan
    assert "needs at least 2 images in each set; there are 400 and 0" in set_figures(made, known, rows, "hash")[1][0]


def test_flipped_attributes_are_counted(rows):
    before, wanted = labels([row.source for row in rows]), labels([row.target for row in rows])
    counts = [int(((b == w) & (w != -100)).sum()) for b, w in zip(before, wanted)]
    shares = np.array([3 / n for n in counts])
    shares[4] = np.nan
    assert flipped(rows, shares) == [3, 3, 3, 3, None] + [3] * 15


# evaluation


class Half(CopyInput):
    "Returns NaN in one row and too bright an image in the next, and nothing usable for batches with a certain face."

    strength = 0.5
    calls = 0

    def edit(self, images, source, target, strength=None):
        Half.calls += 1
        if Half.calls == 3:
            raise RuntimeError("out of memory")
        made = images.clone()
        made[0] = torch.nan
        images.fill_(0.0)  # what is judged is not what an Editor may spoil
        if len(made) > 1:
            made[1] *= 1.5
        return made


class Strange(CopyInput):
    def __init__(self, result):
        self.result = result

    def edit(self, images, source, target, strength=None):
        return self.result(images)


@pytest.mark.parametrize(
    "result, said",
    [
        (lambda x: x[:, :, :32], r"returned the shape \(3, 3, 32, 64\), not \(3, 3, 64, 64\)"),
        (lambda x: x[:2], r"returned the shape \(2, 3, 64, 64\)"),
        (lambda x: None, "returned NoneType, not a tensor of images"),
        (lambda x: to_uint8(x), r"returned the shape \(3, 64, 64, 3\)"),
        (lambda x: x * torch.nan, "has NaN or infinite values"),
        (lambda x: x + torch.inf, "has NaN or infinite values"),
        (lambda x: 127.5 * (x + 1), r"values up to ±255, outside \[-1, 1\]"),
    ],
)
def test_what_is_no_image_is_a_failed_row_with_its_reason(judges, rows, result, said):
    found, failed = ask(Strange(result), judges, rows[:3])
    assert sorted(failed) == [0, 1, 2] and all(
        np.isnan(found[name]).all() for name in ("reached", "skill", "CLIP score", "seconds")
    )
    with pytest.raises(ValueError, match=said):
        raise ValueError(failed[2])


@pytest.fixture
def config(monkeypatch):
    real = workers.build_editor
    monkeypatch.setattr(
        workers,
        "build_editor",
        lambda name, device=None, **options: (
            Half() if name == "reconstruction" else real(name, device=device, **options)
        ),
    )
    return config_for("evaluate", "smoke", device="cpu", clip="clip-portraits")


def of(found, editor, task="edit"):
    return next(row for row in found if (row["editor"], row["task"], row["kind"]) == (editor, task, "all"))


def test_a_broken_editor_fails_alone_and_a_killed_run_goes_on(config, tmp_path):
    Half.calls = 0
    with Run("evaluate", config, root=tmp_path, run_id="one") as run:
        found = evaluate(config, run)
    broken, copied = of(found, "reconstruction"), of(found, "copy-input")
    assert (broken["n"], broken["failed"]) == (6, 4) and (copied["n"], copied["failed"]) == (10, 0)
    assert broken["error"] == "the result has NaN or infinite values." and broken["scores"]["skill"] == copied[
        "scores"
    ]["skill"] == [0, 0, 0]
    nothing = of(found, "reconstruction", "nothing")
    assert nothing["failed"] == 5 and "out of memory" in nothing["error"]
    assert json.loads((run.path / "scores.json").read_text()) == to_json(found)

    some = [part for part in sum(parts(config).values(), []) if part.spec == "copy-input"]
    before, kept = some[1].file(run.path / "parts").read_bytes(), some[0].file(run.path / "parts").stat().st_mtime_ns
    some[1].file(run.path / "parts").unlink()
    with Run("evaluate", config, root=tmp_path, run_id="one", resume=True) as again:
        evaluate(config, again)
    assert some[0].file(run.path / "parts").stat().st_mtime_ns == kept
    lost, made = (load_part(some[i].file(run.path / "parts"))[0] for i in (1, 0))
    assert len(before) == len(some[1].file(run.path / "parts").read_bytes()) and set(lost) == set(made)
    same = lambda rows: [
        {k: v for k, v in row.items() if k not in ("scores", "memory_mib")}
        | {n: s for n, s in row["scores"].items() if "seconds" not in n}
        for row in rows
        if row["editor"] == "copy-input"
    ]
    assert to_json(same(table(config, run.path / "parts"))) == to_json(same(found))


def test_a_run_keeps_what_a_report_needs(config, tmp_path):
    Half.calls = 10
    config = dataclasses.replace(config, clip="clip-nobody")
    with (
        Run("evaluate", config, root=tmp_path, run_id="one") as run,
        pytest.warns(MetricWarning, match="CLIP score and CLIP direction will be missing"),
    ):
        found = evaluate(config, run)
    record = json.loads((run.path / "run.json").read_text())
    assert (
        any("CLIP direction will be missing" in note for note in record["notes"])
        and "CLIP score" not in of(found, "copy-input")["scores"]
    )
    assert {"oracle", "identity", "EfficientNet-Lite0"} <= set(record["judges"])
    assert {one["file"]: one["sha256"] for one in record["artifacts"]} == {
        name: sha256(run.path / name)
        for name in ("scores.json", "rows.json", "first.jpg", "failures.jpg", "pictures.json")
    }
    each = json.loads((run.path / "rows.json").read_text())["editors"]
    assert each["copy-input"]["reached"] == [0] * 10 and each["reconstruction"]["reached"] == [None, None, 0, 0, 0] * 2
    assert each["reconstruction"]["skill"][5] is None and "±1.5" in each["reconstruction"]["failed"]["6"]
    pictures = json.loads((run.path / "pictures.json").read_text())
    rows = counterfactuals(10)
    assert pictures["first"] == {
        "file": "first.jpg",
        "rows": ["source", "exact", "copy-input", "reconstruction"],
        "columns": [row.tag for row in rows],
    }
    assert [Image.open(run.path / f"{name}.jpg").size[1] for name in ("first", "failures")] == [
        34 + 4 * 64,
        34 + 2 * 64,
    ]
    assert [one["row"] for one in pictures["failures"]["editors"]["reconstruction"]] == [2, 3, 4]
    assert pictures["failures"]["editors"]["copy-input"][1] == {
        "row": 1,
        "kind": rows[1].kind,
        "tag": rows[1].tag,
        "seed": rows[1].seed,
        "reached": False,
        "flips": 0,
    }
    memory = next(metric for metric in record["metrics"] if metric["name"] == "memory")
    assert 200 < memory["value"] < 5000 and all(
        value > 0 for value in of(found, "copy-input")["scores"]["seconds, one"]
    )


def test_an_editor_without_failures_has_blank_tiles(tmp_path, monkeypatch):
    exact = torch.cat([as_batch(counterfactuals(10))[3][i : i + 5] for i in (0, 5)])

    class Perfect(CopyInput):
        def edit(self, images, source, target, strength=None):
            found = {text: x for text, x in zip(workers.prompts_of(counterfactuals(10))[1], exact)}
            return torch.stack([found[text] for text in target])

    monkeypatch.setattr(workers, "build_editor", lambda name, device=None, **options: Perfect())
    config = config_for("evaluate", "smoke", device="cpu", clip="none", editors="copy-input")
    run_parts(config, tmp_path, say=lambda line: None)
    tiles, columns, about = failures(config, tmp_path)
    assert about == {"editors": {"copy-input": []}} and columns == 9 and len(tiles) == 9 and (tiles == 255).all()
    assert outcomes(config, tmp_path)["editors"]["copy-input"]["reached"] == [1] * 10


def test_parts_that_something_else_made_are_made_again_and_never_mixed(tmp_path):
    config = config_for("evaluate", "smoke", device="cpu", clip="none", editors="reconstruction")
    files = lambda config: [part.file(tmp_path) for part in parts(config)["reconstruction"]]
    run_parts(config, tmp_path, say=lambda line: None)
    keys = {part_key(file) for file in files(config)}
    assert len(keys) == 1
    english = dataclasses.replace(config, prompts="english")
    workers.work(parts(english)["reconstruction"][:1], tmp_path, english)  # a kill after the first part
    with pytest.raises(RunError, match="come from different weights, dials or judges"):
        table(english, tmp_path)
    run_parts(english, tmp_path, say=lambda line: None)
    assert len({part_key(file) for file in files(english)}) == 1 and not keys & {
        part_key(file) for file in files(english)
    }
    edits = lambda config: {file for file in files(config) if file.name.startswith("edit")}
    assert not edits(config) & edits(dataclasses.replace(config, chunk=4))
    files(english)[0].write_bytes(b"cut short")
    run_parts(english, tmp_path, say=lambda line: None)
    assert len({part_key(file) for file in files(english)}) == 1


def test_two_workers_give_what_one_gives(tmp_path):
    one, two = (
        config_for("evaluate", "smoke", device="cpu", editors="copy-input,inversion", workers=workers, clip="none")
        for workers in (1, 2)
    )
    for config, folder in ((one, tmp_path / "one"), (two, tmp_path / "two")):
        run_parts(config, folder, say=lambda line: None)
    for part in sum(parts(one).values(), []):
        a, b = (load_part(part.file(tmp_path / name))[0] for name in ("one", "two"))
        assert set(a) == set(b) and all(
            np.allclose(a[name], b[name], atol=1e-3)
            for name in a
            if name not in ("seconds", "seconds, one", "memory", "image")
        )


def test_an_unknown_editor_is_an_error_before_anything_is_computed():
    with pytest.raises(EditError, match="did you mean 'sdedit'"):
        parts(config_for("evaluate", "smoke", editors="sdedti"))
    assert Part("sdedit:steps=2", "edit", None, 0, 5).file != Part("sdedit:steps=3", "edit", None, 0, 5).file


def test_other_strengths_get_fewer_rows_and_none_twice():
    plan = parts(
        EvaluateConfig(
            editors="styleclip-directions,reconstruction", strengths="0.25,0.5", rows=100, sweep_rows=60, loops=10
        )
    )
    count = lambda spec: {
        (task, strength): sum(p.stop - p.start for p in plan[spec] if (p.task, p.strength) == (task, strength))
        for _, task, strength, *_ in plan[spec]
    }
    assert count("styleclip-directions") == {
        ("edit", None): 100,
        ("edit", 0.25): 60,
        ("nothing", None): 10,
        ("back", None): 10,
        ("alone", None): 6,
    }  # its own is 0.5
    assert count("reconstruction") == {
        ("edit", None): 100,
        ("nothing", None): 10,
        ("back", None): 10,
        ("alone", None): 6,
    }


def test_every_editor_is_in_the_default_evaluation():
    assert {parse_editor(spec)[0] for spec in split_list(EvaluateConfig().editors, str)} == set(EDITORS)


QUICK = {
    "styleclip-optimization": {"steps": 2},
    "sdedit": {"steps": 2},
    "ddim-inversion": {"steps": 2},
    "edit-friendly-ddpm": {"steps": 2},
    "prompt-to-prompt": {"steps": 2},
    "flowedit": {"steps": 2},
}


@pytest.mark.parametrize("name", EDITORS)
def test_every_editor_takes_english(judges, rows, name):
    found, failed = ask(editor(name, device="cpu", **QUICK.get(name, {})), judges, rows[:5], prompts="english")
    assert not failed and np.isfinite(found["skill"]).all()


class Large(CopyInput):
    "An Editor of larger images, that refuses others as published models do"

    strength, size = 0.5, 160

    def edit(self, images, source, target, strength=None):
        check_edit(images, source, target, strength, self.size)
        return images.clone()


def test_an_editor_is_judged_at_its_own_size(tmp_path, monkeypatch):
    real = workers.build_editor
    monkeypatch.setattr(
        workers,
        "build_editor",
        lambda name, device=None, **options: (
            Large() if name == "reconstruction" else real(name, device=device, **options)
        ),
    )
    config = config_for("evaluate", "smoke", device="cpu", clip="none", rows=5, slow_rows=5, loops=1)
    with Run("evaluate", config, root=tmp_path, run_id="one") as run:
        found = evaluate(config, run)
    large, small = of(found, "reconstruction"), of(found, "copy-input")
    assert large["failed"] == small["failed"] == 0 and large["scores"]["skill"] == small["scores"]["skill"] == [0, 0, 0]
    images = load_part(
        next(part for part in parts(config)["reconstruction"] if part.task == "edit").file(run.path / "parts")
    )[0]["image"]
    assert images.shape == (5, 160, 160, 3) and np.array_equal(
        images[0], portraits.render(counterfactuals(1)[0].source, 160)
    )
    assert Image.open(run.path / "first.jpg").size[1] == 34 + 4 * 64


def test_an_editor_that_cannot_edit_is_named_and_ends_the_run(tmp_path, monkeypatch, capsys):
    real = workers.build_editor

    def broken(name, device=None, **options):
        if name == "reconstruction":
            raise EditError("there are no weights.")
        return real(name, device=device, **options)

    monkeypatch.setattr(workers, "build_editor", broken)
    config = config_for("evaluate", "smoke", device="cpu", clip="none", rows=5, slow_rows=5, loops=1)
    with pytest.raises(EditError, match=r"No edit succeeded with reconstruction \(EditError: there are no weights\)"):
        with Run("evaluate", config, root=tmp_path, run_id="one") as run:
            evaluate(config, run)
    assert "reconstruction: 5 of 5 edits failed: EditError: there are no weights." in capsys.readouterr().out
    record = json.loads((run.path / "run.json").read_text())
    assert record["status"] == "failed" and record["failed_editors"] == {
        "reconstruction": "EditError: there are no weights."
    }
    assert {"scores.json", "rows.json", "first.jpg"} <= {one["file"] for one in record["artifacts"]} and any(
        m["editor"] == "copy-input" for m in record["metrics"]
    )
    assert "there are no weights" in (run.path / "index.html").read_text()
