"Shards of a dump's images: the same bytes after any kill, exact counts of damage, nothing mixed, nothing half-written."

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mmgen.base.files import FolderInUse, locked, sha256
from mmgen.danbooru import shards as image_shards
from mmgen.danbooru.images import dump_image, inventory
from mmgen.danbooru.shards import write_image_shards
from mmgen.danbooru.synthetic_dump import write_dump
from mmgen.data.shards import ShardError, Shards, read_manifest, shard_schema

OPTIONS = {"size": 32, "shard_bytes": 3e5, "progress": False}


@pytest.fixture(scope="module")
def dump(tmp_path_factory):
    "2400 small pictures; some are damaged, some are copies of others."
    root, rng = tmp_path_factory.mktemp("dump"), np.random.default_rng(0)
    for post in range(2400):
        path = root / "512px" / f"{post % 1000:04d}" / f"{post}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40), Image.Resampling.BICUBIC).save(path, quality=90)
    file = lambda post: root / "512px" / f"{post % 1000:04d}" / f"{post}.jpg"
    for post in range(7, 2400, 300):
        file(post).unlink()
    for post in range(11, 2400, 200):
        file(post).write_bytes(file(post).read_bytes()[:300])
    for post in range(13, 2400, 600):
        file(post).write_bytes(b"<html>busy</html>")
    for old, new in ((5, 1005), (960, 1300), (20, 1970)):
        file(new).write_bytes(file(old).read_bytes())
    return root


def selection(ids=range(2400)):
    ids = np.asarray(ids)
    split = np.where(ids % 1000 < 900, "train", np.where(ids % 1000 < 950, "validation", "test"))
    rows = len(ids)
    return pa.table(
        {
            "id": ids,
            "split": split.tolist(),
            "ext": ["jpg"] * rows,
            "rating": ["general"] * rows,
            "score": pa.array(ids % 50 - 10, pa.int32()),
            "width": pa.array([300] * rows, pa.int32()),
            "height": pa.array([300] * rows, pa.int32()),
            "tags": [[f"tag {i}", "1girl"] for i in ids.tolist()],
        }
    )


def content(folder):
    return {path.relative_to(folder).as_posix(): sha256(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def whole(dump, tmp_path_factory):
    "What an uninterrupted run writes: counts, files and their hashes."
    out = tmp_path_factory.mktemp("whole") / "shards"
    return write_image_shards(selection(), inventory(dump), dump, out, **OPTIONS), content(out), out


def test_counts_and_rows(dump, whole):
    counts, files, out = whole
    assert counts == {
        "posts": 2400,
        "images": 2400 - 8 - 12 - 4,
        "no file": 8,
        "damaged image": 12,
        "not an image": 4,
        "near-duplicate pairs": 3,
        "later copies": 3,
        "pairs across splits": {"test and train": 2},
    }
    manifest = read_manifest(out)
    assert (
        manifest["counts"] == counts
        and manifest["columns"] == shard_schema().names
        and manifest["parameters"]["size"] == 32
    )
    assert len(manifest["splits"]["train"]["shards"]) >= 3 and not [
        name for name in files if name.endswith(".tmp") or ".lock" in name
    ]
    bad = {int(post) for post in [*range(7, 2400, 300), *range(11, 2400, 200), *range(13, 2400, 600)]}
    posts = selection()
    for split in ("train", "validation", "test"):
        shards = Shards(out, split)
        shards.verify()
        kept = posts.filter(pa.compute.equal(posts["split"], split)).filter(
            pa.compute.invert(
                pa.compute.is_in(posts.filter(pa.compute.equal(posts["split"], split))["id"], pa.array(sorted(bad)))
            )
        )
        for name in ("id", "tags", "score", "rating", "width", "height"):
            assert shards.column(name).to_pylist() == kept[name].to_pylist()
        assert (shards.groups[:-1] > 0).all() and shards.groups.max() == min(256, len(kept))
    image = Shards(out, "train").column("image")[3].as_py()["bytes"]
    assert image == dump_image(dump / "512px" / "0003" / "3.jpg", 32).data
    lines = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert {line["id"] for line in lines} == bad and Counter(line["damage"] for line in lines) == {
        "no file": 8,
        "damaged image": 12,
        "not an image": 4,
    }
    assert (
        all(line["reason"].endswith(".") for line in lines)
        and lines[0]["id"] == 7
        and lines[1]["path"] == "512px/0011/11.jpg"
    )
    pairs = pq.read_table(out / "duplicates.parquet")
    assert list(zip(pairs["first"].to_pylist(), pairs["second"].to_pylist())) == [(5, 1005), (20, 1970), (960, 1300)]


def test_datasets_reads_the_folder(whole, tmp_path):
    from datasets import load_dataset

    found = load_dataset(str(whole[2]), cache_dir=str(tmp_path))
    assert {split: len(found[split]) for split in found} == {
        split: part["rows"] for split, part in read_manifest(whole[2])["splits"].items()
    }
    assert found["test"][0]["image"].size == (32, 32)


def test_workers_change_no_byte(dump, whole, tmp_path):
    for workers in (1, 5):
        write_image_shards(selection(), inventory(dump), dump, tmp_path / str(workers), workers=workers, **OPTIONS)
        assert content(tmp_path / str(workers)) == whole[1]


def test_a_finished_folder_is_left_as_it_is(dump, whole, monkeypatch):
    counts, files, out = whole
    monkeypatch.setattr(image_shards, "ShardWriter", None)
    assert write_image_shards(selection(), inventory(dump), dump, out, **OPTIONS) == counts and content(out) == files


CHILD = """
import sys, time
sys.path.insert(0, {tests!r})
from test_image_shards import *
from mmgen.danbooru import near_duplicates
delay = image_shards.dump_image
def slow(*args, **options):
    time.sleep(0.004)
    return delay(*args, **options)
image_shards.dump_image = slow
print("ready", flush=True)
write_image_shards(selection(), inventory({dump!r}), {dump!r}, {out!r}, drop_near={drop}, **OPTIONS)
"""


def child(dump, out, drop=False):
    code = CHILD.format(tests=os.path.dirname(__file__), dump=str(dump), out=str(out), drop=drop)
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def test_killed_again_and_again_it_ends_with_the_same_bytes(dump, whole, tmp_path):
    out, killed = tmp_path / "shards", 0
    for shards in (1, 2, 4):  # killed when so many are finished, in the middle of the next
        process = child(dump, out)
        while process.poll() is None and len(list((out / ".records").glob("*-?????.parquet"))) < shards:
            time.sleep(0.01)
        time.sleep(0.05)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed == 3 and not (out / "manifest.json").exists()
    calls, made = [], image_shards.dump_image
    image_shards.dump_image = lambda *args, **options: calls.append(1) or made(*args, **options)
    try:
        counts = write_image_shards(selection(), inventory(dump), dump, out, **OPTIONS)
    finally:
        image_shards.dump_image = made
    assert counts == whole[0] and content(out) == whole[1] and len(calls) < 1700  # the finished ones were kept


@pytest.mark.parametrize("loss", ["shard", "record", "flipped bit", "half a record", "last shard", "manifest"])
def test_what_is_lost_is_made_again(dump, whole, tmp_path, loss):
    import shutil

    out = tmp_path / "shards"
    shutil.copytree(whole[2], out)
    shard, record = out / "train-00001.parquet", out / ".records" / "train-00001.parquet"
    if loss == "shard":
        shard.unlink()
    elif loss == "record":
        record.unlink()
    elif loss == "half a record":
        record.write_bytes(record.read_bytes()[:200])
    elif loss == "flipped bit":
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
    elif loss == "last shard":
        sorted(out.glob("train-*"))[-1].unlink()
    else:
        (out / "manifest.json").unlink()
    (out / ".train-00009.parquet.tmp").write_bytes(b"left behind")
    assert write_image_shards(selection(), inventory(dump), dump, out, **OPTIONS) == whole[0]
    assert content(out) == whole[1]


def test_later_copies_can_go(dump, whole, tmp_path):
    out = tmp_path / "shards"
    counts = write_image_shards(selection(), inventory(dump), dump, out, drop_near=True, **OPTIONS)
    assert counts == whole[0] | {"images": whole[0]["images"] - 3, "dropped copies": 3}
    kept = {split: set(Shards(out, split).column("id").to_pylist()) for split in ("train", "validation", "test")}
    assert (
        {5, 20} <= kept["train"]
        and 960 in kept["test"]
        and not {1005, 1300, 1970} & (kept["train"] | kept["test"] | kept["validation"])
    )
    for split in kept:
        Shards(out, split).verify()
    files = content(out)
    assert (
        write_image_shards(selection(), inventory(dump), dump, out, drop_near=True, **OPTIONS) == counts
        and content(out) == files
    )
    again = tmp_path / "again"  # stopped between two shards that lose rows
    drop, calls = image_shards._without, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return drop(*args)

    image_shards._without = stopping
    try:
        with pytest.raises(KeyboardInterrupt):
            write_image_shards(selection(), inventory(dump), dump, again, drop_near=True, **OPTIONS)
    finally:
        image_shards._without = drop
    assert (
        write_image_shards(selection(), inventory(dump), dump, again, drop_near=True, **OPTIONS) == counts
        and content(again) == files
    )


def test_a_shard_of_copies_alone_goes(dump, tmp_path):
    posts = selection([5, 960, 1005])
    posts = posts.set_column(1, "split", pa.array(["train", "test", "validation"]))
    counts = write_image_shards(posts, inventory(dump), dump, tmp_path / "out", drop_near=True, **OPTIONS)
    assert (
        counts["images"] == 2
        and counts["dropped copies"] == 1
        and not (tmp_path / "out" / "validation-00000.parquet").exists()
    )
    assert write_image_shards(posts, inventory(dump), dump, tmp_path / "out", drop_near=True, **OPTIONS) == counts
    with pytest.raises(ShardError):
        Shards(tmp_path / "out", "validation")


def test_two_runs_at_once(dump, tmp_path):
    out = tmp_path / "shards"
    with locked(out), pytest.raises(FolderInUse, match="Another run"):
        write_image_shards(selection(), inventory(dump), dump, out, **OPTIONS)
    process = child(dump, out)
    while not (out / ".records" / "settings.json").exists() and process.poll() is None:
        time.sleep(0.01)
    with pytest.raises(FolderInUse, match="Another run"):
        write_image_shards(selection(), inventory(dump), dump, out, **OPTIONS)
    process.kill()
    process.wait()


def test_other_settings_are_refused(dump, whole, tmp_path):
    files, found = whole[1], inventory(dump)
    for options, sentence in (
        ({"size": 64}, "made with size 32, not 64"),
        ({"quality": 80}, "quality 95, not 80"),
        ({"fit": "pad"}, "fit crop"),
        ({"shard_bytes": 4e5}, "shard_bytes"),
        ({"drop_near": True}, "drop_near False"),
    ):
        with pytest.raises(ShardError, match=sentence):
            write_image_shards(selection(), found, dump, whole[2], **OPTIONS | options)
    for posts in (selection(range(2399)), selection().set_column(4, "score", pa.array(np.zeros(2400, np.int32)))):
        with pytest.raises(ShardError, match="other posts or files"):
            write_image_shards(posts, found, dump, whole[2], **OPTIONS)
    with pytest.raises(ShardError, match="other posts or files"):
        write_image_shards(selection(), found.files.slice(1), dump, whole[2], **OPTIONS)
    assert content(whole[2]) == files
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ShardError, match="something else"):
        write_image_shards(selection(), found, dump, tmp_path, **OPTIONS)
    assert content(tmp_path).keys() == {"manifest.json"}


def test_bad_arguments(dump, tmp_path):
    found, out = inventory(dump), tmp_path / "out"
    for options in (
        {"size": 1},
        {"fit": "squeeze"},
        {"format": "webp"},
        {"quality": 0},
        {"near": 11},
        {"shard_bytes": 0},
        {"near": None, "drop_near": True},
    ):
        with pytest.raises(ShardError):
            write_image_shards(selection(), found, dump, out, **OPTIONS | options)
    for posts, sentence in (
        (selection().drop_columns("tags"), "lacks tags"),
        (selection([]), "empty"),
        (selection([1, 1]), "twice"),
        (selection().set_column(1, "split", pa.array(["dev"] * 2400)), "'dev'"),
        (tmp_path / "none.parquet", "cannot be read"),
        (selection().set_column(0, "id", pa.array(["a"] * 2400)), "types"),
    ):
        with pytest.raises(ShardError, match=sentence):
            write_image_shards(posts, found, dump, out, **OPTIONS)
    with pytest.raises(ShardError, match="not a folder"):
        write_image_shards(selection(), found, tmp_path / "none", out, **OPTIONS)
    assert not out.exists()


def test_a_selection_in_a_file_and_posts_without_any_file(dump, tmp_path):
    pq.write_table(selection([7, 307, 907]), tmp_path / "selection.parquet")
    counts = write_image_shards(
        tmp_path / "selection.parquet", inventory(dump).files, dump, tmp_path / "out", **OPTIONS
    )
    assert (
        counts["images"] == 0
        and counts["no file"] == 3
        and read_manifest(tmp_path / "out")["splits"]["train"]["rows"] == 0
    )


def test_a_full_disk_is_one_sentence_and_a_rerun_continues(dump, whole, tmp_path):
    out = tmp_path / "shards"
    code = CHILD.format(tests=os.path.dirname(__file__), dump=str(dump), out=str(out), drop=False).replace(
        "time.sleep(0.004)", "pass"
    )
    code = code.replace(
        "write_image_shards(",
        "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\nwrite_image_shards(",
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (
        done.returncode == 1
        and "ShardError: The disk of" in done.stderr
        and "MB are still needed" in done.stderr.splitlines()[-1]
    ), done.stderr
    assert {name for name in content(out)} == {".records/settings.json"}
    assert (
        write_image_shards(selection(), inventory(dump), dump, out, **OPTIONS) == whole[0] and content(out) == whole[1]
    )


def test_no_room_is_said_before_anything_is_written(dump, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr(image_shards.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ShardError, match="MB more, and the disk of .* has 0.10 MB free"):
        write_image_shards(selection(), inventory(dump), dump, tmp_path / "out", **OPTIONS)
    assert {name for name in content(tmp_path / "out")} == {".records/settings.json"}


def test_a_disk_that_went_away_is_no_damage(dump, tmp_path, monkeypatch):
    import mmgen.data.images as pictures

    opened = pictures.Image.open

    def lost(source, **options):
        if str(source).endswith("1700.jpg"):
            raise OSError(5, "Input/output error")
        return opened(source, **options)

    found = inventory(dump)
    with monkeypatch.context() as patch:
        patch.setattr(pictures.Image, "open", lost)
        with pytest.raises(ShardError, match="1700.jpg cannot be read"):
            write_image_shards(selection(), found, dump, tmp_path / "out", **OPTIONS)
    assert not (tmp_path / "out" / "manifest.json").exists() and not list((tmp_path / "out").glob("*.tmp*"))


@pytest.mark.parametrize("form", ["2017", "2021"])
def test_the_damage_of_a_synthetic_dump_is_counted_exactly(tmp_path, form):
    damage = {"no file": 4, "damaged image": 5, "not an image": 6, "file without post": 3}
    made = write_dump(tmp_path / "dump", 160, form=form, seed=3, size=128, originals=False, damage=damage)
    found = inventory(tmp_path / "dump")
    ids = np.setdiff1d(
        np.union1d(found.files["id"].to_numpy(), made["ids"]["no file"]), made["ids"]["file without post"]
    )
    counts = write_image_shards(selection(ids), found, tmp_path / "dump", tmp_path / "out", size=48, progress=False)
    assert {name: counts[name] for name in image_shards.DAMAGE} == {name: damage[name] for name in image_shards.DAMAGE}
    lines = [json.loads(line) for line in (tmp_path / "out" / "bad.jsonl").read_text().splitlines()]
    for name in image_shards.DAMAGE:
        assert [line["id"] for line in lines if line["damage"] == name] == made["ids"][name]
    assert counts["images"] == len(ids) - 15
    image = Image.open(io.BytesIO(Shards(tmp_path / "out").column("image")[0].as_py()["bytes"]))
    assert image.size == (48, 48)
