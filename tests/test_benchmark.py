"The counterfactual benchmark: fixed rows, scores with known answers, an evaluation that survives kills and broken Editors."
import json

import numpy as np
import pytest
import torch

from mmgen.benchmark import evaluation
from mmgen.benchmark.counterfactuals import change_mask, counterfactuals, from_to, instruction, to_dataset
from mmgen.benchmark.evaluation import Part, evaluate, load_part, parts, table
from mmgen.benchmark.scores import pixel_accuracy, to_lab
from mmgen.core import to_uint8
from mmgen.data.edits import as_batch
from mmgen.editing import CopyInput, EditError
from mmgen.presets import config_for
from mmgen.runs import Run


@pytest.fixture(scope="module")
def rows():
    return counterfactuals(20)


def test_first_rows_are_those_of_the_whole(rows):
    assert counterfactuals(5) == rows[:5] and len({row.kind for row in rows[:5]}) == 5
    with pytest.raises(ValueError, match="has 2300 rows; 2301 were asked for"): counterfactuals(2301)


def test_masks_are_where_pixels_differ(rows):
    source, _, _, exact = as_batch(rows)
    a, b = to_uint8(source).numpy(), to_uint8(exact).numpy()
    assert np.array_equal(change_mask(source, exact).numpy(), (a.astype(int) - b != 0).any(-1))


def test_a_dataset_for_instruct_pix2pix(rows, tmp_path):
    dataset = to_dataset(rows)
    dataset.to_parquet(tmp_path / "rows.parquet")
    from datasets import load_dataset
    again = load_dataset("parquet", data_files=str(tmp_path / "rows.parquet"), cache_dir=str(tmp_path / "cache"))["train"]
    assert {"input_image", "edit_prompt", "edited_image"} <= set(again.column_names)
    one = again[7]
    assert one["edit_prompt"] == instruction(rows[7]) and (one["from"], one["to"]) == from_to(rows[7]) and one["edit_tag"] == rows[7].tag
    assert np.array_equal(np.asarray(one["edited_image"]), to_uint8(as_batch(rows[7:8])[3])[0].numpy())


def test_pixel_accuracy_against_loops():
    torch.manual_seed(0)
    source, exact = (torch.randint(0, 2, (2, 3, 5, 5)) * 0.25 for _ in range(2))
    made = (exact + 0.05 * torch.randn(exact.shape)).clamp(-1, 1)
    found = pixel_accuracy(source, exact, made)
    for i in range(2):
        a, b, c = (to_uint8(x[i:i + 1])[0] for x in (source, exact, made))
        sums = np.zeros(3)
        for tolerance in range(11):
            edit = kept = edits = keeps = 0
            for y in range(5):
                for x in range(5):
                    right = (to_lab(c[y, x]) - to_lab(b[y, x])).square().sum().sqrt() <= tolerance
                    if (a[y, x] == b[y, x]).all(): keeps, kept = keeps + 1, kept + int(right)
                    else: edits, edit = edits + 1, edit + int(right)
            sums += edit / edits, kept / keeps, edit / (edits + keeps - kept)
        assert np.allclose(sums / 11, [found[name][i] for name in ("edit accuracy", "preservation accuracy", "IoU")], atol=1e-6)


class Half(CopyInput):
    "Returns NaN in one row, and nothing usable for batches with a certain face."
    strength = 0.5
    calls = 0

    def edit(self, images, source, target, strength=None):
        Half.calls += 1
        if Half.calls == 3: raise RuntimeError("out of memory")
        made = images.clone()
        made[0] = torch.nan
        return made


@pytest.fixture
def config(monkeypatch):
    real = evaluation.editor
    monkeypatch.setattr(evaluation, "editor", lambda name, device=None, **options: Half() if name == "reconstruction" else real(name, device=device, **options))
    return config_for("evaluate", "smoke", device="cpu")


def test_a_broken_editor_fails_alone_and_a_killed_run_goes_on(config, tmp_path):
    Half.calls = 0
    with Run("evaluate", config, root=tmp_path, run_id="one") as run: found = evaluate(config, run)
    of = lambda found, editor, task="edit": next(row for row in found if (row["editor"], row["task"], row["kind"]) == (editor, task, "all"))
    broken, copied = of(found, "reconstruction"), of(found, "copy-input")
    assert (broken["n"], broken["failed"]) == (8, 2) and (copied["n"], copied["failed"]) == (10, 0)
    nothing = of(found, "reconstruction", "nothing")
    assert nothing["failed"] == 5 and "out of memory" in nothing["error"]
    assert json.loads((run.path / "scores.json").read_text()) == json.loads(json.dumps(found).replace("NaN", '"nan"'))

    some = [part for part in sum(parts(config).values(), []) if part.spec == "copy-input"]
    before, kept = some[1].file(run.path / "parts").read_bytes(), some[0].file(run.path / "parts").stat().st_mtime_ns
    some[1].file(run.path / "parts").unlink()
    with Run("evaluate", config, root=tmp_path, run_id="one", resume=True) as again: evaluate(config, again)
    assert some[0].file(run.path / "parts").stat().st_mtime_ns == kept
    lost, made = load_part(some[1].file(run.path / "parts")), evaluation.load_part(some[0].file(run.path / "parts"))
    assert len(before) == len(some[1].file(run.path / "parts").read_bytes()) and set(lost[0]) == set(made[0])
    same = lambda rows: [{k: v for k, v in row.items() if k != "scores"} | {n: s for n, s in row["scores"].items() if n != "seconds"} for row in rows if row["editor"] == "copy-input"]
    assert same(table(config, run.path / "parts")) == same(found)


def test_two_workers_give_what_one_gives(tmp_path):
    one, two = (config_for("evaluate", "smoke", device="cpu", editors="copy-input,inversion", workers=workers) for workers in (1, 2))
    for config, folder in ((one, tmp_path / "one"), (two, tmp_path / "two")): evaluation.run_parts(config, folder, say=lambda line: None)
    for part in sum(parts(one).values(), []):
        a, b = (load_part(part.file(tmp_path / name))[0] for name in ("one", "two"))
        assert all(np.allclose(a[name], b[name], atol=1e-4) for name in a if name not in ("seconds", "image"))


def test_an_unknown_editor_is_an_error_before_anything_is_computed():
    with pytest.raises(EditError, match="did you mean 'sdedit'"): parts(config_for("evaluate", "smoke", editors="sdedti"))
    assert Part("sdedit:steps=2", "edit", None, 0, 5).file != Part("sdedit:steps=3", "edit", None, 0, 5).file
