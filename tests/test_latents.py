"Latents as shards: the same rows, the scale, a job that is killed, several processes."

import json
import os
import time

import numpy as np
import pytest
import torch
import warm
from test_shards import folder_of, names

from mmgen.data.batches import Batches
from mmgen.data.latents import LatentColumn, write_latents
from mmgen.data.shards import ShardError, Shards
from mmgen.data.sources import load_source

CALLS = []


def encode(pixels):
    "Two channels of noise that depends on the picture alone, of different sizes."
    CALLS.append(len(pixels))
    x = torch.from_numpy(pixels[:, ::4, ::4, 0].astype(np.float32))
    return torch.stack([torch.sin(x), 10 + 5 * torch.cos(3 * x)], 1)


@pytest.fixture
def images(tmp_path):
    CALLS.clear()
    return load_source(str(folder_of(tmp_path / "shards"))).images(16)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_latents_are_those_of_the_rows_and_have_variance_one(images, tmp_path):
    shards = write_latents(images, encode, "w", tmp_path / "made", group_rows=16)
    exact = encode(images[:])
    for scale, over in (("channel", (0, 2, 3)), ("scalar", (0, 1, 2, 3))):
        column = LatentColumn(shards, scale)
        known = {name: shards.manifest["latents"][scale][name] for name in ("mean", "std")}  # as a checkpoint has them
        assert np.array_equal(LatentColumn(shards, known)[:], column[:])
        other = LatentColumn(shards, {"mean": known["mean"], "std": [2 * value for value in known["std"]]})
        assert np.allclose(2 * other[:], column[:], atol=1e-6)
        want = (exact - exact.mean(over, keepdim=True)) / exact.std(over, keepdim=True)
        assert column[:].dtype == np.float32 and np.abs(column[:] - want.numpy()).max() < 2e-3
        assert np.array_equal(column[[170, 3, 3]], column[:][[170, 3, 3]])
    facts = shards.manifest["latents"]
    assert facts["shape"] == [2, 4, 4] and np.allclose(facts["channel"]["std"], exact.std((0, 2, 3)), rtol=1e-4)
    assert np.isclose(facts["scale_factor"], 1 / exact.std().item(), rtol=1e-4) and np.allclose(
        facts["scalar"]["mean"], exact.mean(), rtol=1e-4
    )
    half = exact.half().float()
    assert (
        np.isclose(facts["rounding"], ((half - exact).square().mean().sqrt() / exact.std()).item(), rtol=1e-3)
        and facts["rounding"] < 5e-4
    )
    assert shards.column("row").to_pylist() == list(range(200)) and len(shards.entries) == len(
        Shards(tmp_path / "shards").entries
    )
    assert (
        shards.manifest["parameters"]["weights"] == "w" and len(shards.manifest["parameters"]["image_manifest"]) == 64
    )


def test_they_are_made_once_and_for_these_images_and_weights_only(images, tmp_path):
    first = write_latents(images, encode, "w", tmp_path / "made")
    n = len(CALLS)
    assert write_latents(images, encode, "w", tmp_path / "made").folder == first.folder and len(CALLS) == n
    some = load_source(str(tmp_path / "shards"), images=30).images(16)
    others = [write_latents(x, encode, w, tmp_path / "made") for x, w in ((images, "v"), (some, "w"))]
    assert (
        len({s.folder for s in (first, *others)}) == 3
        and len(others[1]) == 30
        and others[1].column("row").to_pylist() == some.rows.tolist()
    )
    assert np.array_equal(others[1].column("latent").to_numpy()[7], first.column("latent").to_numpy()[some.rows[7]])


def test_damaged_latents_are_made_again(images, tmp_path):
    shards = write_latents(images, encode, "w", tmp_path / "made", group_rows=16)
    good, n = contents(shards.folder), len(CALLS)
    (shards.folder / "train-00001.parquet").write_bytes(good["train-00001.parquet"][:-3])
    with pytest.warns(UserWarning, match="computed again: The shard train-00001.parquet"):
        write_latents(images, encode, "w", tmp_path / "made", group_rows=16)
    assert contents(shards.folder) == good and n < len(CALLS) < 2 * n


def test_values_beyond_float16(images, tmp_path):
    with pytest.raises(ShardError, match="rows 0 to 15 are not finite in float16: .* reach 1e\\+06"):
        write_latents(images, lambda x: torch.full((len(x), 1, 2, 2), 1e6), "w", tmp_path / "made", group_rows=16)
    assert not [p for p in (tmp_path / "made").rglob("*") if p.is_file()]


SCRIPT = """
import sys, time
sys.path[:0] = [{tests!r}]
import test_latents
from mmgen.data.latents import write_latents
from mmgen.data.sources import load_source
def slow(x):
    time.sleep({delay})
    return test_latents.encode(x)
write_latents(load_source({data!r}).images(16), slow, "w", {root!r}, group_rows=16)
print(sum(test_latents.CALLS))
"""


def start(tmp_path, root, delay, **more):
    code = SCRIPT.format(
        tests=os.path.dirname(__file__), data=str(tmp_path / "shards"), root=str(tmp_path / root), delay=delay
    )
    return warm.start("-c", code, env=os.environ | {"OMP_NUM_THREADS": "1"} | more, merge=False)


def test_a_killed_job_goes_on_to_the_same_bytes(images, tmp_path):
    whole = write_latents(images, encode, "w", tmp_path / "whole", group_rows=16).folder
    process = start(tmp_path, "cut", 0.15)
    end = time.monotonic() + 60
    while not list((tmp_path / "cut").glob("*/train-00001.parquet")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.02)
    process.kill()
    process.communicate()
    folder = next((tmp_path / "cut").iterdir())
    assert "manifest.json" not in names(folder)
    CALLS.clear()
    write_latents(images, encode, "w", tmp_path / "cut", group_rows=16)
    assert contents(folder) == contents(whole) and 0 < sum(CALLS) < 200


def test_processes_share_the_work_and_meet_in_the_folder(images, tmp_path):
    whole = write_latents(images, encode, "w", tmp_path / "whole", group_rows=16).folder
    both = [start(tmp_path, "both", 0.05, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    said = [int(p.communicate(timeout=100)[0]) for p in both]
    assert [p.returncode for p in both] == [0, 0] and sum(said) == 200 and min(said) > 0
    assert contents(next((tmp_path / "both").iterdir())) == contents(whole)


def test_in_batches(images, tmp_path):
    shards = write_latents(images, encode, "w", tmp_path / "made", group_rows=16)
    data = Batches({"latents": LatentColumn(shards), "row": np.arange(200)}, 10, 0, window=3)
    batch, exact = data.batch(33), LatentColumn(shards)[:]
    assert batch["latents"].dtype == torch.float32 and np.array_equal(batch["latents"], exact[batch["row"]])
    assert json.loads((shards.folder / "manifest.json").read_text())["kind"] == "mmgen latents"
    with pytest.raises(ShardError, match="kind 'mmgen latents'"):
        load_source(str(shards.folder))
