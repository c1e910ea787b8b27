"""Perceptual path length of the packaged generator (Karras et al. 2020, section 3.2).

    python benchmarks/smoothness.py

How much the image changes along straight lines in W between samples, in W between the codes of real portraits, and in
Z, by torchmetrics with the perceptual distance on EfficientNet-Lite0: a smaller length is a smoother space. The
constant is not that of LPIPS, so only rows of this table compare. Rows in reports/smoothness.jsonl.
"""

import argparse

import numpy as np
import torch
from record import record
from torch import nn
from torchmetrics.functional.image import perceptual_path_length

from mmgen.backbones.perceptual import EfficientNetDistance
from mmgen.base.images import seed_everything, to_float
from mmgen.data import portraits
from mmgen.stylegan.encoder import Encoder
from mmgen.stylegan.generator import Generator


class Space(nn.Module):
    "A latent space as torchmetrics wants one: `sample` gives codes, a call the images of codes in [0, 255]."

    def __init__(self, sample, decode):
        super().__init__()
        self.sample, self.decode = sample, decode

    def forward(self, codes):
        return (self.decode(codes).clamp(-1, 1) + 1) * 127.5


@torch.inference_mode()
def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("-n", type=int, default=1_000, help="pairs of codes")
    ask.add_argument("--epsilon", type=float, default=1e-2, help="step along the line")
    given = ask.parse_args()
    generator, encoder = Generator.load(), Encoder.load()
    normal = lambda n: torch.randn(n, generator.z_dim)
    seeds = iter(portraits.seeds(2 * given.n, "test"))

    def real(n):
        images = to_float(np.stack([portraits.render(portraits.sample(next(seeds))) for _ in range(n)]))
        return torch.cat([encoder(part)[:, 0] for part in images.split(64)])

    synthesis = lambda w: generator.synthesis(w[:, None].expand(-1, generator.num_ws, -1))
    mapped = lambda n: torch.cat([generator.mapping(z)[:, 0] for z in normal(n).split(64)])
    spaces = {
        "W, between samples": Space(mapped, synthesis),
        "W, between real portraits": Space(real, synthesis),
        "Z": Space(normal, lambda z: generator(z, noise="const")),
    }
    for name, space in spaces.items():
        seed_everything(0)
        mean, sd, lengths = perceptual_path_length(
            space, given.n, epsilon=given.epsilon, resize=None, sim_net=EfficientNetDistance()
        )
        record(
            "smoothness",
            {
                "space": name,
                "path length": round(mean.item(), 3),
                "sd": round(sd.item(), 3),
                "median": round(lengths.median().item(), 3),
                "epsilon": given.epsilon,
                "n": given.n,
            },
        )


if __name__ == "__main__":
    main()
