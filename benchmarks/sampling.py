"""FD (EfficientNet-Lite0) and seconds against network evaluations, for every sampler: `python benchmarks/sampling.py`.

Real images are held-out portraits; generated ones follow the captions of other held-out portraits. Ours is a flow model,
so DDPM, DPM-Solver++ and UniPC run on its equivalent noise schedule.
"""
import argparse
import json
import time

import numpy as np
import torch

from mmgen.core import to_float
from mmgen.data import portraits
from mmgen.data.captions import caption
from mmgen.efficientnet import EfficientNetLite0
from mmgen.ldm.pipeline import LatentDiffusion
from mmgen.metrics.frechet import features, frechet_distance, statistics

PLANS = {"euler": (4, 6, 8, 12, 20, 50, 250), "heun": (3, 5, 7, 13), "dpmsolver++": (6, 8, 12, 20), "unipc": (6, 8, 12, 20),
         "ddim": (12, 50), }
EVALUATIONS = {"heun": lambda steps: 2 * steps - 1}


def images_of(seeds):
    return to_float(np.stack([portraits.render(portraits.sample(seed)) for seed in seeds]))


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("-n", type=int, default=5000, help="images of each kind")
    ask.add_argument("--model", default="ldm-portraits")
    ask.add_argument("--guidance", type=float, default=1.5)
    ask.add_argument("--pixels", type=int, default=64, help="side that EfficientNet sees")
    given = ask.parse_args()
    pipeline, net = LatentDiffusion.load(given.model), EfficientNetLite0()
    extract = lambda x: net(x, given.pixels)
    seeds = portraits.seeds(2 * given.n, "test")
    real = statistics(features(extract, images_of(seeds[:given.n])))
    texts = [caption(portraits.tags(portraits.sample(seed))) for seed in seeds[given.n:]]
    floor = frechet_distance(real, statistics(features(extract, images_of(seeds[given.n:]))))
    print(f"real against real: {floor:.2f} (n = {given.n}, {given.pixels} px)", flush=True)
    for method, plans in PLANS.items():
        for steps in plans:
            start = time.perf_counter()
            made = torch.cat([pipeline.sample(texts[at:at + 100], steps, given.guidance, method, at) for at in range(0, given.n, 100)])
            seconds = time.perf_counter() - start
            distance = frechet_distance(real, statistics(features(extract, made)))
            print(json.dumps({"sampler": method, "steps": steps, "evaluations": EVALUATIONS.get(method, int)(steps),
                              "FD (EfficientNet-Lite0)": round(distance, 3), "n": given.n, "seconds per image": round(seconds / given.n, 5)}), flush=True)


if __name__ == "__main__":
    main()
