"""Fréchet distance, density and coverage of samples of both families.

    python benchmarks/generated.py

Rows in reports/generated.jsonl.

n images of each kind against n held-out portraits, in features of EfficientNet-Lite0 and of the oracle: other real
portraits (the lower bound), reconstructions of them by the diffusion model's autoencoder and by StyleGAN's encoder
and generator, samples of the generator, and samples of the diffusion model for those portraits' captions (12 Euler
steps, no guidance). Density is the fidelity of the images, coverage their diversity (Naeem et al. 2020).
An uncurated grid of the generator's samples is reports/figures/samples.jpg.
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
from mmgen.metrics.coverage import balls
from mmgen.metrics.features import features
from mmgen.metrics.frechet import frechet_distance, statistics
from mmgen.metrics.oracle import Oracle
from mmgen.stylegan.encoder import Encoder
from mmgen.stylegan.generator import Generator
from mmgen.stylegan.task import reconstruct


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("-n", type=int, default=5_000)
    ask.add_argument("--truncation", type=float, nargs="*", default=[1.0, 0.7])
    ask.add_argument("--only", nargs="*", help="names of rows, such as 'StyleGAN2, ψ = 1'; all unless given")
    given = ask.parse_args()
    judges = {"EfficientNet-Lite0": EfficientNetLite0(), "oracle": Oracle.load(device="cpu").features}
    seeds = portraits.seeds(2 * given.n, "test")
    draw = lambda some: to_float(np.stack([portraits.render(portraits.sample(seed)) for seed in some]))
    real, others = draw(seeds[: given.n]), draw(seeds[given.n :])
    real_features = {name: features(judge, real) for name, judge in judges.items()}
    real_statistics = {name: statistics(x) for name, x in real_features.items()}

    def measures(images):
        "Fréchet distance, density and coverage against the held-out portraits, for each extractor."
        values = {}
        for name, judge in judges.items():
            x = features(judge, images)
            density, coverage = balls(real_features[name].double().cpu(), x.double().cpu()).flatten().tolist()
            values[f"FD ({name})"] = round(frechet_distance(real_statistics[name], statistics(x)), 2)
            values |= {f"density ({name})": round(density, 4), f"coverage ({name})": round(coverage, 4)}
        return values

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
    if unknown := set(given.only or ()) - set(ways):
        raise SystemExit(f"There is no row {', '.join(unknown)}; there are {'; '.join(ways)}.")
    for name, make in ways.items():
        if given.only and name not in given.only:
            continue
        began = time.perf_counter()
        images = make()
        seconds = (time.perf_counter() - began) / given.n
        record(
            "generated",
            {"images": name, "n": given.n}
            | measures(images)
            | ({} if name.startswith("other") else {"seconds per image": round(seconds, 4)}),
        )
        if name == "StyleGAN2, ψ = 1":
            Image.fromarray(image_grid(images[:64], 16)).save(repo_root() / "reports/figures/samples.jpg", quality=88)


if __name__ == "__main__":
    main()
