"""Image shards per second on all cores, against JPEG decoding and resizing alone in Pillow.

    python benchmarks/bench_shards.py [files]

Two kinds of 512-pixel files: the flat drawings of a synthetic dump (some 25 kB each), and the same with grain (some
110 kB, the mean of Danbooru's 512px folder). The limit reads the same files with as many threads, and knows
beforehand where the bars are. It is measured with Pillow's resize (Lanczos, as `open_image`), in threads and in
processes, and with the faster one of torch that dump_image uses. What an image costs beyond that limit, each part
alone on one core, follows: the search for bars, the encoder, the hash.
"""

import io
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from record import record

from mmgen.base.images import psnr, to_float
from mmgen.danbooru.images import _encoded, _fitted, content_box, dump_image, inventory
from mmgen.danbooru.near_duplicates import signature
from mmgen.danbooru.shards import write_image_shards
from mmgen.data import portraits
from mmgen.data.images import read_image

SIZE, SIDE = 256, 512
CORES = os.cpu_count()


def originals(n, seed=0):
    "Widths and heights, one in four square."
    rng = np.random.default_rng(seed)
    return [
        (900, 900) if kind == 0 else (900, round(900 * a)) if kind == 1 else (round(900 * a), 900)
        for kind, a in zip(rng.choice(4, n, p=[0.25, 0.15, 0.3, 0.3]), rng.uniform(0.6, 0.95, n))
    ]


def make(folder, sizes, grain, seed=0):
    "A dump of letterboxed pictures: a hundred portraits, each cut to the shape of its post."
    rng = np.random.default_rng(seed)
    faces = [Image.fromarray(portraits.render(portraits.sample(i), SIDE)) for i in range(100)]
    for post, (w, h) in enumerate(sizes):
        w, h = round(w * SIDE / 900), round(h * SIDE / 900)
        picture = faces[post % 100].crop(((SIDE - w) // 2, (SIDE - h) // 2, (SIDE - w) // 2 + w, (SIDE - h) // 2 + h))
        if grain:
            noise = Image.fromarray(
                rng.normal(128, grain, (h // 2 + 1, w // 2 + 1, 3)).clip(0, 255).astype(np.uint8)
            ).resize((w, h), Image.Resampling.BICUBIC)
            picture = Image.fromarray(
                (np.asarray(picture).astype(np.int16) + np.asarray(noise) - 128).clip(0, 255).astype(np.uint8)
            )
        square = Image.new("RGB", (SIDE, SIDE))
        square.paste(picture, ((SIDE - w) // 2, (SIDE - h) // 2))
        path = Path(folder) / "512px" / f"{post % 1000:04d}" / f"{post}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        square.save(path, "JPEG", quality=93)


def centre(box):
    side = min(box[2] - box[0], box[3] - box[1])
    x, y = (box[0] + box[2] - side) / 2, (box[1] + box[3] - side) / 2
    return x, y, x + side, y + side


def decode(part):
    "The limit: decode, cut, resize."
    for path, box in part:
        Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.LANCZOS, box=box)


def decode_torch(part):
    "The same with torch's resize for bytes, which dump_image uses."
    for path, box in part:
        pixels = torch.from_numpy(np.array(Image.open(path).crop([round(at) for at in box]))).permute(2, 0, 1)[None]
        torch.nn.functional.interpolate(pixels, (SIZE, SIZE), mode="bicubic", antialias=True)


def prepare(part):
    "Ours without the writing."
    for path, original in part:
        dump_image(path, SIZE, original=original)


def parts(paths, sizes, rounds):
    "Milliseconds of one core for each part of dump_image, one after the other over all files."

    def each(part, *columns):
        "What the part makes of each row, and its least time."
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            outputs = [part(*row) for row in zip(*columns)]
            times.append(time.perf_counter() - start)
        return outputs, round(1e3 * min(times) / len(outputs), 2)

    images, decoded = each(lambda path: read_image(path, least=2 * SIZE + 1), paths)
    boxes, barred = each(content_box, images, sizes)
    squares, resized = each(lambda image, box: _fitted(image, box, SIZE, "crop"), images, boxes)
    return {
        "decode": decoded,
        "bars": barred,
        "cut and resize": resized,
        "encode": each(lambda image: _encoded(image, "jpeg", {"quality": 95, "subsampling": 0}), squares)[1],
        "hash": each(signature, squares)[1],
    }


def rate(work, n):
    start = time.perf_counter()
    work()
    return n / (time.perf_counter() - start)


def pooled(pool, function, jobs):
    return lambda: list(pool.map(function, [jobs[at : at + 16] for at in range(0, len(jobs), 16)]))


def draft_quality(n=20):
    """PSNR of 2000-pixel originals decoded at a reduced size, as dump_image does, against the full decode.

    In dB: mean, least.
    """
    values = []
    for seed in range(n):
        file = io.BytesIO()
        Image.fromarray(portraits.render(portraits.sample(seed), 2000)).save(file, "JPEG", quality=92)
        full = Image.open(io.BytesIO(file.getvalue())).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        ours = Image.open(io.BytesIO(dump_image(file.getvalue(), SIZE, trim=False, format="png").data))
        values.append(psnr(to_float(np.asarray(full)), to_float(np.asarray(ours))).item())
    return round(float(np.mean(values)), 1), round(min(values), 1)


def main(n=2000, rounds=5):
    torch.set_num_threads(1)
    for kind, grain in (("flat drawings", 0), ("with grain", 34)):
        with (
            tempfile.TemporaryDirectory() as tmp,
            ThreadPoolExecutor(CORES) as threads,
            ProcessPoolExecutor(CORES) as processes,
        ):
            dump, sizes = Path(tmp) / "dump", originals(n)
            make(dump, sizes, grain)
            files = inventory(dump)
            paths = [str(dump / path) for path in files.files["path"].to_pylist()]
            boxes = [centre(content_box(Image.open(path).convert("RGB"), size)) for path, size in zip(paths, sizes)]
            posts = pa.table(
                {
                    "id": range(n),
                    "split": ["train"] * n,
                    "rating": ["general"] * n,
                    "score": [0] * n,
                    "width": [w for w, _ in sizes],
                    "height": [h for _, h in sizes],
                    "tags": [["1girl", "solo"]] * n,
                }
            )
            shards = lambda turn: (
                lambda: write_image_shards(
                    posts, files, dump, Path(tmp) / f"out{turn}", size=SIZE, near=None, shard_bytes=30e6, progress=False
                )
            )
            rates = {
                name: []
                for name in ("decode + resize", "decode + torch's resize", "in processes", "dump_image", "shards")
            }
            for turn in range(rounds):
                for name, work in (
                    ("decode + resize", pooled(threads, decode, list(zip(paths, boxes)))),
                    ("decode + torch's resize", pooled(threads, decode_torch, list(zip(paths, boxes)))),
                    ("in processes", pooled(processes, decode, list(zip(paths, boxes)))),
                    ("dump_image", pooled(threads, prepare, list(zip(paths, sizes)))),
                    ("shards", shards(turn)),
                ):
                    rates[name].append(rate(work, n))
            rates = {name: round(float(np.median(values))) for name, values in rates.items()}
            size = sum(file.stat().st_size for file in (Path(tmp) / "out0").glob("*.parquet")) / n
            record(
                "dump",
                {
                    "what": "image shards",
                    "kind": kind,
                    "files": n,
                    "bytes a file": round(np.mean(files.files["bytes"].to_numpy())),
                    "bytes stored": round(size),
                    "cores": CORES,
                    **{f"{name}, images/s": value for name, value in rates.items()},
                    "of the limit": round(rates["shards"] / rates["decode + resize"], 3),
                    "of the limit with torch's resize": round(rates["shards"] / rates["decode + torch's resize"], 3),
                    "ms of a core for": parts(paths[:300], sizes[:300], rounds),
                },
            )
    mean, least = draft_quality()
    record(
        "dump",
        {"what": "JPEG of 2000 pixels decoded at a reduced size", "PSNR to the full decode, dB": mean, "least": least},
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
