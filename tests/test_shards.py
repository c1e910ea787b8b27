"Shards: the same bytes for the same rows, a checked manifest, reading by row group, and damage."

import io
import json
import multiprocessing
import os
import pickle
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mmgen.data import portraits
from mmgen.data.batches import Batches, local_order
from mmgen.data.caption_text import SourceError
from mmgen.data.images import ImageError
from mmgen.data.shard_columns import ShardImages, TagColumn
from mmgen.data.shards import ShardBusy, ShardError, Shards, ShardWriter, read_manifest, shard_schema, write_manifest
from mmgen.data.sources import ShardRows, content_sha256, load_source, to_arrays
from mmgen.training.feeding import feed


def stored(array, format="PNG"):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format)
    return {"bytes": file.getvalue(), "path": None}


def plain(which, side=16):
    "Rows whose picture is their number, and whose tags say it."
    pictures = [stored(np.full((side, side, 3), (n % 256, n // 256, 7), np.uint8)) for n in which]
    return {
        "image": pictures,
        "tags": [[f"number {n}", "solo"][: 1 + n % 2] for n in which],
        "id": [*which],
        "rating": ["general"] * len(which),
        "score": [-n for n in which],
        "width": [side] * len(which),
        "height": [side] * len(which),
    }


def write(folder, split="train", rows=None, **how):
    rows = plain(range(200)) if rows is None else rows
    with ShardWriter(folder, split, shard_schema(), **{"shard_bytes": 7_500, "group_rows": 16} | how) as writer:
        writer.add(rows)
    return writer.entries


def folder_of(folder, n=200, validation=40):
    splits = {"train": write(folder, rows=plain(range(n)))}
    if validation:
        splits["validation"] = write(folder, "validation", plain(range(900, 900 + validation)))
    write_manifest(folder, splits, shard_schema().names, {"size": 16}, {"kept": n})
    return folder


def portrait_shards(folder, train=96, validation=16, size=64, group_rows=16):
    "A folder as prepared data are, of portraits."
    splits = {}
    for split, n in (("train", train), ("validation", validation)):
        seeds = portraits.seeds(n, split)
        faces = [portraits.sample(seed) for seed in seeds]
        rows = {
            "image": [{"bytes": portraits.png(f, size), "path": None} for f in faces],
            "tags": [portraits.tags(f) for f in faces],
            "id": seeds,
            "rating": ["general"] * n,
            "score": [0] * n,
            "width": [size] * n,
            "height": [size] * n,
        }
        with ShardWriter(folder, split, shard_schema(), 100_000, group_rows) as writer:
            writer.add(rows)
        splits[split] = writer.entries
    write_manifest(folder, splits, shard_schema().names, {"size": size})
    return folder


@pytest.fixture
def folder(tmp_path):
    return folder_of(tmp_path / "shards")


def names(path):
    return sorted(p.name for p in path.iterdir())


def test_the_same_rows_are_the_same_bytes_however_they_come(tmp_path):
    whole = write(tmp_path / "a")
    for step in (1, 7, 64):
        with ShardWriter(tmp_path / f"b{step}", "train", shard_schema(), 7_500, 16) as writer:
            for at in range(0, 200, step):
                writer.add(plain(range(at, min(at + step, 200))))
        assert writer.entries == whole
    assert len(whole) > 2 and [e["rows"] % 16 for e in whole[:-1]] == [0] * (len(whole) - 1)
    assert all((tmp_path / "a" / e["file"]).stat().st_size == e["bytes"] >= 7_500 for e in whole[:-1])


def test_a_killed_writer_goes_on_to_the_same_bytes(tmp_path):
    whole = write(tmp_path / "a")

    class Kill(BaseException):
        pass

    with pytest.raises(Kill):
        with ShardWriter(tmp_path / "b", "train", shard_schema(), 7_500, 16) as writer:
            writer.add(plain(range(190)))
            raise Kill
    assert (
        names(tmp_path / "b") == [e["file"] for e in writer.entries] and writer.entries == whole[: len(writer.entries)]
    )
    (tmp_path / "b" / f".train-{len(writer.entries):05d}.parquet.tmp").write_bytes(
        b"half of a shard, left by a kill" * 1000
    )
    done = sum(e["rows"] for e in writer.entries)
    with ShardWriter(tmp_path / "b", "train", shard_schema(), 7_500, 16, first=len(writer.entries)) as rest:
        rest.add(plain(range(done, 200)))
    assert writer.entries + rest.entries == whole and names(tmp_path / "b") == [e["file"] for e in whole]


def test_two_writers_of_one_shard(tmp_path):
    with ShardWriter(tmp_path, "train", shard_schema(), group_rows=4) as one:
        one.add(plain(range(4)))
        with pytest.raises(ShardBusy, match="Another process is writing train-00000.parquet"):
            with ShardWriter(tmp_path, "train", shard_schema(), group_rows=4) as other:
                other.add(plain(range(4)))
    assert [e["rows"] for e in one.entries] == [4] and names(tmp_path) == ["train-00000.parquet"]
    assert pq.read_table(tmp_path / "train-00000.parquet").num_rows == 4


def test_rows_that_do_not_fit(tmp_path):
    with ShardWriter(tmp_path, "train", shard_schema()) as writer:
        with pytest.raises(ShardError, match="need the columns image, tags"):
            writer.add({"image": []})
        with pytest.raises(ShardError, match="do not fit the shards' columns"):
            writer.add(plain([1]) | {"score": ["high"]})
        with pytest.raises(ShardError, match="do not fit"):
            writer.add(plain([1, 2]) | {"id": [1]})
        with pytest.raises(ShardError, match="do not fit"):
            writer.add(plain([1]) | {"score": [2**40]})
    assert names(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path):
    class Full(ShardWriter):
        def _sink(self):
            super()._sink().close()
            return open("/dev/full", "ab", buffering=0)

    with pytest.raises(ShardError, match="train-00000.parquet cannot be written to .*No space left"):
        with Full(tmp_path, "train", shard_schema(), group_rows=16) as writer:
            writer.add(plain(range(64)))
    assert names(tmp_path) == []


def test_reading(folder):
    shards = Shards(folder)
    shards.verify()
    images, everything = (
        ShardImages(shards, 16),
        np.stack([np.full((16, 16, 3), (n, 0, 7), np.uint8) for n in range(200)]),
    )
    rng = np.random.default_rng(0)
    for rows in (rng.permutation(200), [3], [5, 5, 199], range(40, 60), slice(190, None)):
        assert np.array_equal(images[rows], everything[rows])
    assert (
        len(shards) == 200
        and sum(shards.groups) == 200
        and shards.column("score").to_pylist() == [-n for n in range(200)]
    )
    assert len(images.cache._state()[1]) <= 8  # open groups
    some = np.array([0, 15, 16, 100, 199])
    assert np.array_equal(ShardImages(shards, 16, some)[[4, 1]], everything[[199, 15]]) and ShardImages(
        shards, 16, some
    ).groups.tolist() == [2, 1, 1, 1]
    again = pickle.loads(pickle.dumps(images))
    assert np.array_equal(again[[7]], everything[[7]])
    for bad in ([3, 2], [-1], [200]):
        with pytest.raises(ShardError, match="must ascend"):
            ShardImages(shards, 16, np.array(bad))


def test_datasets_opens_them(folder, tmp_path):
    import datasets

    rows = datasets.Dataset.from_parquet(
        [str(folder / e["file"]) for e in Shards(folder).entries], cache_dir=str(tmp_path / "cache")
    )
    assert (
        rows.features["image"] == datasets.Image()
        and rows[150]["image"].getpixel((0, 0)) == (150, 0, 7)
        and rows[3]["tags"] == ["number 3", "solo"]
    )


def test_the_hubs_cache_holds_shards_as_links(folder, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    folder.rename(blobs)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(p for p in blobs.iterdir() if p.is_file())):
        kept = path.rename(blobs / f"{number:064x}")
        (snapshot / path.name).symlink_to(f"../../blobs/{kept.name}")
    Shards(snapshot).verify()
    assert load_source(str(snapshot), images=3)["id"]


def test_a_manifest_is_checked(folder):
    good = json.loads((folder / "manifest.json").read_text())
    entry = good["splits"]["train"]["shards"][0]
    one = lambda **change: good | {"splits": {"train": {"rows": entry["rows"], "shards": [entry | change]}}}
    (folder.parent / "secret.parquet").write_bytes((folder / entry["file"]).read_bytes())
    for manifest, said in [
        (good | {"kind": "mmgen latents"}, "has the kind 'mmgen latents'; the kind 'mmgen shards' is needed"),
        ([], "has the kind None"),
        (good | {"schema": 7}, "has the schema 7"),
        (good | {"splits": {"train": {}}}, "is incomplete"),
        (good | {"columns": None}, "is incomplete"),
        (one(rows=3), "contradicts itself"),
        (one(file="../secret.parquet"), "names the file '../secret.parquet', which is not inside"),
        (one(file=str(folder.parent / "secret.parquet")), "not inside"),
        (one(file="a/../../secret.parquet"), "not inside"),
        (one(file="..\\secret.parquet"), "not inside"),
    ]:
        (folder / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(ShardError, match=said):
            read_manifest(folder)
        with pytest.raises(ShardError, match=said) if manifest != [] else pytest.raises(SourceError):
            load_source(str(folder))
    (folder / "manifest.json").write_text('{"schema": 1, "ki')
    with pytest.raises(ShardError, match="cannot be read"):
        load_source(str(folder))
    (folder / "manifest.json").unlink()
    with pytest.raises(ShardError, match="has no manifest.json"):
        load_source(str(folder))


def test_damage(folder):
    shards = Shards(folder)
    path = folder / shards.entries[1]["file"]
    good = path.read_bytes()
    middle = good.index(b"IDAT") + 6
    for bad, said in [
        (good[:-1], f"has {len(good) - 1} bytes; the manifest says {len(good)}"),
        (good[:-8] + b"\0" * 8, "train-00001.parquet .* is damaged"),
        (good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :], "train-00001.parquet .* is damaged: .*CRC"),
    ]:
        path.write_bytes(bad)
        with pytest.raises(ShardError, match=said):
            ShardImages(Shards(folder), 16)[:]
    with pytest.raises(ShardError, match="is not what was written"):
        Shards(folder).verify()
    shutil.copy(folder / shards.entries[0]["file"], path)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["splits"]["train"]["shards"][1]["bytes"] = path.stat().st_size
    manifest["splits"]["train"]["shards"][1]["rows"] += 1
    manifest["splits"]["train"]["rows"] += 1
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="is not the one of the manifest"):
        Shards(folder)
    path.unlink()
    with pytest.raises(ShardError, match="train-00001.parquet is missing"):
        Shards(folder)
    with pytest.raises(ShardError, match="no rows of the split 'test'; there are train, validation"):
        Shards(folder, "test")


def test_a_damaged_image_is_named(tmp_path):
    rows = plain(range(40))
    rows["image"][33] = {"bytes": rows["image"][33]["bytes"][:60], "path": None}
    rows["image"][34] = {"bytes": None, "path": "elsewhere.png"}
    write_manifest(tmp_path, {"train": write(tmp_path, rows=rows)}, shard_schema().names)
    with pytest.raises(ImageError, match="^Row 33 of the split train, in train-0000.*damaged or truncated"):
        ShardImages(Shards(tmp_path), 16)[[33]]
    with pytest.raises(ImageError, match="Row 34 .*There is no image"):
        ShardImages(Shards(tmp_path), 16)[[34]]


def test_tags_are_numbers_into_a_vocabulary():
    rows = [["a", "b"], [], ["b"], ["c", "a"]]
    column = TagColumn(pa.chunked_array([rows[:2], rows[2:]]))
    assert (
        list(column) == rows
        and column[1:3] == rows[1:3]
        and column.numbers.dtype == np.int32
        and len(column.words) == 3
        and column[-1] == rows[-1]
    )
    assert list(TagColumn(pa.chunked_array([rows[:2], rows[2:]]), np.array([1, 3]))) == [[], ["c", "a"]]
    assert list(TagColumn(pa.chunked_array([["x y", None]]))) == ["x y", ""]


def test_a_folder_of_shards_is_a_source(folder):
    rows = load_source(str(folder))
    images, tags = to_arrays(rows, 16)
    assert isinstance(rows, ShardRows) and isinstance(images, np.ndarray) and images.shape == (200, 16, 16, 3)
    assert [t[0] for t in tags] == [f"number {n}" for n in range(200)] and (images[:, 0, 0, 0] == np.arange(200)).all()
    lazy, _ = to_arrays(rows, 16, limit=1000)
    assert not isinstance(lazy, np.ndarray) and np.array_equal(lazy[:], images) and lazy[[2]].shape == (1, 16, 16, 3)
    assert (
        content_sha256(lazy)
        == content_sha256(lazy, tags)
        != content_sha256(load_source(str(folder), images=20).images(16))
    )
    few, more = (load_source(str(folder), images=n, seed=3) for n in (20, 60))
    assert set(few["id"]) < set(more["id"]) != set(load_source(str(folder), images=60)["id"]) and few["id"] == sorted(
        few["id"]
    )
    assert load_source(str(folder), "validation", images=5)["tags"][0][0].startswith("number 9")
    with pytest.raises(ShardError, match="no rows of the split 'test'"):
        load_source(str(folder), "test")
    with pytest.raises(SourceError, match="no split 'tra'"):
        load_source(str(folder), "tra")


def test_another_programs_manifest_makes_no_shards(tmp_path):
    for n in range(20):
        Image.new("RGB", (8, 8)).save(tmp_path / f"{n:02}.png")
        (tmp_path / f"{n:02}.txt").write_text("night")
    (tmp_path / "manifest.json").write_text('{"name": "my pictures"}')
    assert len(load_source(str(tmp_path))) == 16


def test_the_order_reads_each_group_in_one_window():
    groups = np.array([16] * 20 + [5])
    order = local_order(groups, [1, 0], window=4)
    assert sorted(order) == list(range(325))
    starts = np.cumsum(groups) - groups
    of = np.searchsorted(starts, order, side="right") - 1
    where = [np.flatnonzero(of == g) for g in range(21)]
    assert all(w.max() - w.min() < 64 for w in where)  # within its window
    assert not np.array_equal(order, local_order(groups, [1, 1], window=4)) and np.array_equal(
        order, local_order(groups, [1, 0], window=4)
    )


def batches_of(folder, **how):
    rows = load_source(str(folder))
    return Batches({"image": rows.images(16), "tags": rows["tags"]}, 12, 5, **{"window": 3} | how)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def test_batches_of_shards_are_a_function_of_the_step(folder):
    data, later = batches_of(folder), batches_of(folder)
    seen = [data.batch(step) for step in range(40)]
    for step in (39, 0, 17, 16, 18):
        assert same(seen[step], later.batch(step))
    stream = torch.cat([b["index"] for b in seen]).tolist()
    assert sorted(stream[:200]) == sorted(stream[200:400]) == list(range(200)) and stream[:200] != stream[200:400]
    assert all(
        (b["image"][:, 0, 0, 0] == b["index"]).all()
        and [t[0] for t in b["tags"]] == [f"number {n}" for n in b["index"]]
        for b in seen
    )
    twice = Batches(data.columns, 24, 5, window=3)
    for step in range(10):  # two processes see the rows, and the positions, of one with the double batch
        both = twice.batch(step)
        for name in ("index", "position", "image"):
            assert torch.equal(both[name], torch.cat([seen[2 * step][name], seen[2 * step + 1][name]]))


def test_each_group_is_read_once_an_epoch(folder, monkeypatch):
    data, read = batches_of(folder), []
    cache, reading = data.columns["image"].cache, data.columns["image"].cache._read
    monkeypatch.setattr(cache, "_read", lambda group, files: read.append(group) or reading(group, files))
    for step in range(200 // 12):
        data.batch(step)
    cache._state()[3].shutdown()
    assert max(read.count(g) for g in read) <= 2 and len(read) <= 13 + 8  # those of the next epoch are read ahead
    assert len(cache._state()[1]) <= 14


@pytest.mark.parametrize("workers", [1, 2])
def test_worker_processes_give_the_same_batches(folder, workers):
    here, there = (
        feed(batches_of(folder, transform=lambda batch, rng: batch | {"r": rng.random()}), 7, 2, torch.device("cpu"), n)
        for n in (0, workers)
    )
    before = torch.get_rng_state()
    for _ in range(9):
        assert same(next(here), next(there))
    there.close()
    assert torch.equal(before, torch.get_rng_state())


def test_a_dataloader_takes_batches(folder):
    data = batches_of(folder)
    loader = DataLoader(
        data,
        batch_size=None,
        sampler=range(3, 9, 2),
        num_workers=2,
        multiprocessing_context=multiprocessing.get_context("fork"),
    )
    assert all(same(batch, data.batch(step)) for batch, step in zip(loader, range(3, 9, 2), strict=True))
