"""Batches of shards per second against decoding and collating alone, memory over an epoch, and the same for latents.

    python benchmarks/bench_loader.py

The images are portraits of 256 px on random backgrounds, as JPEG; the limit is Pillow with the same threads on bytes
that lie in memory, in the order of an epoch and with the same number of rows in a batch. Both are measured in turn,
for 16 batches each, and the medians are compared, because another program may disturb some. The limit of latents is
pyarrow reading the file in order, with the same arithmetic. After half an epoch the windows of row groups are in
memory; memory must not grow after that.
"""

import argparse
import io
import os
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pyarrow.parquet as pq
import torch
from PIL import Image
from record import record

from mmgen.data import portraits
from mmgen.data.batches import Batches
from mmgen.data.images import open_image
from mmgen.data.latents import LatentColumn, write_latents
from mmgen.data.shards import ShardWriter, shard_schema, write_manifest
from mmgen.data.sources import load_source
from mmgen.training.feeding import feed


def pictures(n, size):
    "JPEG files of about 25 kB"
    rng = np.random.default_rng(0)
    for seed in portraits.seeds(n):
        face = portraits.render(portraits.sample(seed), size)
        ground = np.asarray(
            Image.fromarray(rng.integers(0, 255, (size // 8, size // 8, 3), dtype=np.uint8)).resize(
                (size, size), Image.Resampling.BICUBIC
            )
        )
        file = io.BytesIO()
        Image.fromarray(np.where(face > 250, ground, face)).save(file, "JPEG", quality=90)
        yield file.getvalue()


def write(folder, n, size, distinct):
    files = list(pictures(distinct, size))
    with ShardWriter(folder, "train", shard_schema(), 100e6) as writer:
        for at in range(0, n, 256):
            k = min(256, n - at)
            writer.add(
                {
                    "image": [{"bytes": files[(at + i) % distinct], "path": None} for i in range(k)],
                    "tags": [["solo", "smile"]] * k,
                    "id": range(at, at + k),
                    "rating": ["general"] * k,
                    "score": [0] * k,
                    "width": [size] * k,
                    "height": [size] * k,
                }
            )
    write_manifest(folder, {"train": writer.entries}, shard_schema().names)
    return files, sum(entry["bytes"] for entry in writer.entries)


def ours(data, size, out):
    open_image(data, size, out=out)


def bare(data, size, out):
    out[:] = np.asarray(Image.open(io.BytesIO(data)))


def limit(files, ids, size, pool, read=ours):
    "Decode and collate: what no loader can avoid; `bare`: without a look at EXIF, modes and sizes"
    out = np.empty((len(ids), size, size, 3), np.uint8)

    def some(start):
        for k in range(start, min(start + 4, len(ids))):
            read(files[ids[k] % len(files)], size, out[k])

    list(pool.map(some, range(0, len(ids), 4)))
    return torch.from_numpy(out)


def images(folder, n, size, distinct, batch_size, workers):
    files, size_on_disk = write(folder, n, size, distinct)
    rows = load_source(folder)
    data = Batches({"image": rows.images(size), "tags": rows["tags"]}, batch_size, 0)
    steps, part = n // batch_size, 16
    stream = feed(data, 0, 1, torch.device("cpu"), workers)
    process, loader, alone, pillow, memory = psutil.Process(), [], [], [], []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        next(stream), limit(files, data.ids(0), size, pool)
        for at in range(1, steps - part, part):
            start = time.perf_counter()
            for _ in range(part):
                next(stream)
            middle = time.perf_counter()
            for step in range(at, at + part):
                limit(files, data.ids(step), size, pool)
            alone.append(time.perf_counter() - middle)
            loader.append(middle - start)
            middle = time.perf_counter()
            for step in range(at, at + part):
                limit(files, data.ids(step), size, pool, bare)
            pillow.append(time.perf_counter() - middle)
            memory.append(sum(p.memory_info().rss for p in (process, *process.children(recursive=True))) / 2**20)
    stream.close()
    warm, count, (loader, alone) = memory[len(memory) // 2], part * batch_size, map(statistics.median, (loader, alone))
    record(
        "loader",
        {
            "what": f"batches of images of {size} px",
            "n": n,
            "bytes a file": round(size_on_disk / n),
            "batch": batch_size,
            "workers": workers,
            "images per second": round(count / loader),
            "limit": round(count / alone),
            "share of the limit": round(alone / loader, 3),
            "Pillow without checks": round(count / statistics.median(pillow)),
            "MiB after a half": round(warm),
            "MiB at the end": round(memory[-1]),
            "cores": os.cpu_count(),
        },
    )


def latents(folder, n, batch_size):
    rng, shape = np.random.default_rng(0), (4, 32, 32)
    values = rng.normal(size=(256, *shape)).astype(np.float32)
    start = time.perf_counter()
    shards = write_latents(
        load_source(folder).images(256), lambda x: torch.from_numpy(values[: len(x)]), "none", f"{folder}/latents"
    )
    took = time.perf_counter() - start
    column = LatentColumn(shards)
    data = Batches({"latents": column}, batch_size, 0)
    file = pq.ParquetFile(shards.folder / shards.entries[0]["file"], page_checksum_verification=True)
    loader, alone, steps, process, memory = [], [], n // batch_size, psutil.Process(), []
    data.batch(0)
    for step in range(1, steps - 16, 16):
        start = time.perf_counter()
        for k in range(16):
            data.batch(step + k)
        middle = time.perf_counter()
        for at in range(0, 16 * batch_size, 256):  # the file's own order
            group = (step * batch_size + at) // 256 % file.num_row_groups
            read = np.asarray(
                file.read_row_group(group, columns=["latent"], use_threads=False).column(0).combine_chunks().values
            ).reshape(-1, *shape)
            for some in np.split(read, range(batch_size, len(read), batch_size)):
                torch.from_numpy((some.astype(np.float32) - column.mean) / column.std)
        alone.append(time.perf_counter() - middle)
        loader.append(middle - start)
        memory.append(process.memory_info().rss / 2**20)
    count, loader, alone = 16 * batch_size, statistics.median(loader), statistics.median(alone)
    record(
        "loader",
        {
            "what": "batches of latents 4 × 32 × 32",
            "n": n,
            "batch": batch_size,
            "latents per second": round(count / loader),
            "limit": round(count / alone),
            "share of the limit": round(alone / loader, 3),
            "MiB after a half": round(memory[len(memory) // 2]),
            "MiB at the end": round(memory[-1]),
            "images read and latents written per second": round(n / took),
            "cores": os.cpu_count(),
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--n", type=int, default=20_000)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--distinct", type=int, default=2_000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--workers", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        images(folder, given.n, given.size, given.distinct, given.batch, given.workers)
        latents(folder, given.n, given.batch)
