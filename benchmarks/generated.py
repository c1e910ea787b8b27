"""Fréchet distances of samples of both families.

    python benchmarks/generated.py

Rows in reports/generated.jsonl.

n images of each kind against n held-out portraits, in features of EfficientNet-Lite0 and of the oracle: other real
portraits (the lower bound), reconstructions of them by the diffusion model's autoencoder and by StyleGAN's encoder
and generator, samples of the generator, and samples of the diffusion model for those portraits' captions (12 Euler
steps, no guidance). An uncurated grid of the generator's samples is reports/figures/samples.jpg.
"""

import argparse
import time

import numpy as np
import torch
from PIL import Image
from record import record

from mmgen.backbones.efficientnet import EfficientNetLite0
from mmgen.base.files import repo_root
from mmgen.base.images import image_grid, to_float
from mmgen.data import portraits
from mmgen.data.captions import caption
from mmgen.ldm.pipeline import LatentDiffusion
from mmgen.metrics.features import features
from mmgen.metrics.frechet import frechet_distance, statistics
from mmgen.metrics.oracle import Oracle
from mmgen.stylegan.encoder import Encoder
from mmgen.stylegan.generator import Generator
from mmgen.stylegan.train import reconstruct


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("-n", type=int, default=5_000)
    ask.add_argument("--truncation", type=float, nargs="*", default=[1.0, 0.7])
    given = ask.parse_args()
    judges = {"FD (EfficientNet-Lite0)": EfficientNetLite0(), "FD (oracle)": Oracle.load(device="cpu").features}
    seeds = portraits.seeds(2 * given.n, "test")
    draw = lambda some: to_float(np.stack([portraits.render(portraits.sample(seed)) for seed in some]))
    real, others = draw(seeds[: given.n]), draw(seeds[given.n :])
    wanted = {name: statistics(features(judge, real)) for name, judge in judges.items()}
    generator, encoder, pipeline = Generator.load(), Encoder.load(), LatentDiffusion.load("ldm-portraits")
    models = {"generator": generator, "encoder": encoder}

    def diffused():
        texts = [caption(portraits.tags(portraits.sample(seed))) for seed in seeds[given.n :]]
        return torch.cat([pipeline.sample(texts[at : at + 100], 12, 1.0, "euler", at) for at in range(0, given.n, 100)])

    ways = {
        "other portraits": lambda: others,
        "their reconstructions, autoencoder": lambda: torch.cat(
            [pipeline.decode(pipeline.encode(x)).clamp(-1, 1) for x in others.split(100)]
        ),
        "their reconstructions, encoder and StyleGAN2": lambda: reconstruct(models, others, None),
    }
    ways |= {f"StyleGAN2, ψ = {psi:g}": lambda psi=psi: generator.sample(given.n, 0, psi) for psi in given.truncation}
    ways["latent diffusion, 12 Euler steps"] = diffused
    for name, make in ways.items():
        began = time.perf_counter()
        made = make()
        seconds = (time.perf_counter() - began) / given.n
        record(
            "generated",
            {"images": name, "n": given.n}
            | {
                measure: round(frechet_distance(wanted[measure], statistics(features(judge, made))), 2)
                for measure, judge in judges.items()
            }
            | ({} if name.startswith("other") else {"seconds per image": round(seconds, 4)}),
        )
        if name == "StyleGAN2, ψ = 1":
            Image.fromarray(image_grid(made[:64], 16)).save(repo_root() / "reports/figures/samples.jpg", quality=88)


if __name__ == "__main__":
    main()
