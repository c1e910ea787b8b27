"""Is the judge of scenes right where the truth is known, and how fast are rows and judgements?

Exact answers have to be reached without flips, unedited sources must not be reached, also after JPEG, blur, a shift,
a zoom, noise, a colour cast and a reduction. Seconds are CPU time of one process.

    python benchmarks/scene_judge.py [--rows 130] [--size 512]

Rows in reports/scene_judge.jsonl.
"""

import argparse
import io
import time

import numpy as np
from PIL import Image, ImageFilter
from record import record

from mmgen.benchmark.registration import moved
from mmgen.benchmark.scene_edits import scene_edit
from mmgen.benchmark.scene_judge import SceneJudge
from mmgen.data.scenes import render_scene


def jpeg(image, quality):
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=quality)
    return np.asarray(Image.open(data))


def noisy(image, sigma):
    noise = np.random.default_rng(0).normal(0, sigma, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


PLANTED = {
    "none": lambda x: x,
    "JPEG, quality 50": lambda x: jpeg(x, 50),
    "blur, radius 2 px": lambda x: np.asarray(Image.fromarray(x).filter(ImageFilter.GaussianBlur(2))),
    "shift by 2 px": lambda x: moved(x, 2, -2),
    "zoom by 2 %": lambda x: moved(x, 0, 0, 1.02),
    "noise, σ = 10": lambda x: noisy(x, 10),
    "colour cast of 12": lambda x: np.clip(x.astype(int) + [12, 0, -12], 0, 255).astype(np.uint8),
    "half the size": lambda x: np.asarray(Image.fromarray(x).resize([len(x) // 2] * 2, Image.Resampling.LANCZOS)),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=130)
    parser.add_argument("--size", type=int, default=512)
    a = parser.parse_args()
    for n in range(15):
        scene_edit("warm", n)  # styles are read once
    start = time.process_time()
    rows = [scene_edit("dev", n) for n in range(a.rows)]
    building = time.process_time() - start
    start = time.process_time()
    targets = [render_scene(row.target, a.size) for row in rows]
    drawing = time.process_time() - start
    sources = [render_scene(row.source, a.size) for row in rows]
    start = time.process_time()
    judges = [SceneJudge(row) for row in rows]
    preparing = time.process_time() - start
    for name, plant in PLANTED.items():
        start = time.process_time()
        verdicts = [judge(plant(image)) for judge, image in zip(judges, targets)]
        seconds = time.process_time() - start
        copies = [
            judge(plant(x)).reached
            for judge, x, row in zip(judges, sources, rows)
            if row.kind not in ("nothing", "back")
        ]
        flips, asked = sum(len(v.flips) for v in verdicts), sum(v.asked for v in verdicts)
        numbers = {
            "reached": float(np.mean([v.reached for v in verdicts])),
            "flips": flips / asked,
            "sources_reached": float(np.mean(copies)),
            "attributes": asked,
        }
        about = {"planted": name, "rows": a.rows, "size": a.size}
        record("scene_judge", about | numbers | {"seconds_per_judgement": seconds / a.rows})
    times = {"build": building, "render": drawing, "prepare": preparing}
    times = {f"{name}_seconds_per_row": seconds / a.rows for name, seconds in times.items()}
    record("scene_judge", {"rows": a.rows, "size": a.size} | times)


if __name__ == "__main__":
    main()
