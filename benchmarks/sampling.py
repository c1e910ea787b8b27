"""FD (EfficientNet-Lite0) and seconds against network evaluations, for every sampler.

    python benchmarks/sampling.py

Real images are held-out portraits; generated ones follow the captions of other held-out portraits. The packaged model
is a flow: on it Euler's method is DDIM, and DPM-Solver++ and UniPC run on the equivalent noise schedule. 5 000 images
with 1 000 evaluations take hours on a CPU, so each row is written to `--out` when it is done, a row that is there
already is not computed again, and a run that was stopped goes on at the next 100 images. Seconds are of the median
batch.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch

from mmgen.backbones.efficientnet import EfficientNetLite0
from mmgen.base.files import atomic_write, sha256
from mmgen.base.images import to_float
from mmgen.base.weights import resolve
from mmgen.data import portraits
from mmgen.data.captions import caption
from mmgen.ldm.open import open_pipeline
from mmgen.metrics.features import features
from mmgen.metrics.frechet import frechet_distance, statistics

PLANS = [
    ("euler", 4),
    ("euler", 6),
    ("euler", 8),
    ("euler", 12),
    ("heun", 3),
    ("heun", 5),
    ("heun", 7),
    ("dpmsolver++", 6),
    ("dpmsolver++", 8),
    ("dpmsolver++", 12),
    ("unipc", 6),
    ("unipc", 8),
    ("unipc", 12),
    ("euler", 20),
    ("heun", 13),
    ("dpmsolver++", 20),
    ("unipc", 20),
    ("euler", 50),
    ("ddpm", 50),
    ("euler", 250),
    ("ddpm", 250),
    ("ddpm", 1000),
]


def evaluations(method, steps):
    return 2 * steps - 1 if method == "heun" else steps


def images_of(seeds):
    return to_float(np.stack([portraits.render(portraits.sample(seed)) for seed in seeds]))


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("-n", type=int, default=5000, help="images of each kind")
    ask.add_argument("--model", default="ldm-portraits")
    ask.add_argument("--guidance", type=float, default=1.0)
    ask.add_argument("--pixels", type=int, default=64, help="side that EfficientNet sees")
    ask.add_argument("--samplers", nargs="*", help="only these")
    ask.add_argument("--most", type=int, default=1000, help="plans with more evaluations are left out")
    ask.add_argument("--out", type=Path, default=Path("reports/sampling.jsonl"))
    given = ask.parse_args()
    pipeline, net = open_pipeline(given.model), EfficientNetLite0()
    setting = {
        "n": given.n,
        "guidance": given.guidance,
        "pixels": given.pixels,
        "model": given.model,
        "sha256": sha256(resolve(given.model) / "model.safetensors")[:12],
    }
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    done = {(row["sampler"], row["steps"]) for row in rows if {k: row[k] for k in setting} == setting}
    extract = lambda x: net(x, given.pixels)
    seeds = portraits.seeds(2 * given.n, "test")
    real = statistics(features(extract, images_of(seeds[: given.n])))
    texts = [caption(portraits.tags(portraits.sample(seed))) for seed in seeds[given.n :]]

    def write(row):
        given.out.parent.mkdir(parents=True, exist_ok=True)
        with given.out.open("a") as file:
            file.write(json.dumps(row | setting) + "\n")
        print(json.dumps(row), flush=True)

    def distance(samples):
        return round(frechet_distance(real, statistics(features(extract, samples))), 3)

    if ("none", 0) not in done:
        row = {"sampler": "none", "steps": 0, "evaluations": 0, "images": "other portraits"}
        write(row | {"FD (EfficientNet-Lite0)": distance(images_of(seeds[given.n :]))})
        z = torch.cat(
            [
                pipeline.decode(pipeline.encode(images_of(seeds[at : at + 100])))
                for at in range(given.n, 2 * given.n, 100)
            ]
        )
        row = {"sampler": "none", "steps": 0, "evaluations": 0, "images": "their reconstructions"}
        write(row | {"FD (EfficientNet-Lite0)": distance(z.clamp(-1, 1))})
    for method, steps in PLANS:
        if (
            (method, steps) in done
            or evaluations(method, steps) > given.most
            or method not in (given.samplers or [method])
        ):
            continue
        part = given.out.with_name(
            f"{method}-{steps}-{setting['sha256']}-n{given.n}-g{given.guidance}-{given.pixels}px.npz"
        )
        kept = dict(np.load(part)) if part.exists() else {}
        read, seconds = list(kept.get("features", [])), list(kept.get("seconds", []))
        for at in range(100 * len(read), given.n, 100):
            start = time.perf_counter()
            samples = pipeline.sample(texts[at : at + 100], steps, given.guidance, method, at)
            seconds.append((time.perf_counter() - start) / len(samples))
            read.append(features(extract, samples).numpy())
            atomic_write(part, lambda file: np.savez(file, features=read, seconds=seconds))
        write(
            {
                "sampler": method,
                "steps": steps,
                "evaluations": evaluations(method, steps),
                "images": "samples",
                "FD (EfficientNet-Lite0)": round(
                    frechet_distance(real, statistics(torch.from_numpy(np.concatenate(read)))), 3
                ),
                "seconds per image": round(float(np.median(seconds)), 5),
                "threads": torch.get_num_threads(),
                "device": str(pipeline.device),
            }
        )
        part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
