"""How well a prior over W samples the codes: `python benchmarks/latent_prior.py`, rows in reports/latent_prior.jsonl.

A flow is fitted to the w of rendered training portraits (packaged encoder), then distilled into a fresh mapping
network. The w of each way go through the packaged, unchanged synthesis network; n images are compared with n test
portraits. *Codes*: Fréchet distance in W to the w of those portraits, over their variance. *Own neighbours*: share of
samples whose nearest neighbour among 1,000 samples and 1,000 codes is a sample (0.5: alike). The flow is written to
--out (safetensors, with a model card), a grid of the first 16 images of each way to reports/figures/latent_prior.jpg.
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
from mmgen.base.weights import model_card, save_weights
from mmgen.data import portraits
from mmgen.metrics.features import features
from mmgen.metrics.frechet import frechet_distance, statistics
from mmgen.metrics.oracle import Oracle
from mmgen.stylegan.encoder import Encoder
from mmgen.stylegan.generator import Generator, MappingNetwork
from mmgen.stylegan.latent_prior import distil, fit_latent_prior
from mmgen.stylegan.train import encode


def rendered(n: int, split: str) -> np.ndarray:  # uint8 (n, 64, 64, 3)
    return np.stack([portraits.render(portraits.sample(seed)) for seed in portraits.seeds(n, split)])


def own_neighbours(w: torch.Tensor, codes: torch.Tensor) -> float:  # (1000, w_dim) each
    "Share of w whose nearest neighbour is another w"
    distances = torch.cdist(w, torch.cat([w, codes])).fill_diagonal_(torch.inf)
    return (distances.argmin(1) < len(w)).float().mean().item()


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("-n", type=int, default=5_000, help="samples of each way, and as many test portraits")
    ask.add_argument("--codes", type=int, default=30_000, help="training portraits that are encoded")
    ask.add_argument("--steps", type=int, default=2_500, help="of the flow's training")
    ask.add_argument("--mapping-layers", type=int, default=8, help="of the mapping network that is distilled; 0: none")
    ask.add_argument("--judges", nargs="*", default=["oracle", "EfficientNet-Lite0"])
    ask.add_argument("--out", default=repo_root() / "data/cache/latent-prior", help="folder for the flow's weights")
    given = ask.parse_args()
    generator, encoder = Generator.load(), Encoder.load()
    judges = {
        f"FD ({name})": Oracle.load(device="cpu").features if name == "oracle" else EfficientNetLite0()
        for name in given.judges
    }
    real = rendered(given.n, "test")
    wanted = {name: statistics(features(judge, to_float(real))) for name, judge in judges.items()}
    codes = encode(encoder, rendered(given.codes, "train"))[:, 0]
    real_codes = encode(encoder, real)[:, 0]
    began = time.perf_counter()
    prior = fit_latent_prior(codes, given.steps)
    seconds = round(time.perf_counter() - began, 1)
    card = model_card(
        "Prior over the codes of encoder-portraits",
        prior.config,
        description=f"z to w of the generator {generator.fingerprint()}, by flow matching.",
        data=f"w of {given.codes} portraits (Adventurer by Lisa Wischofsky, CC BY 4.0)",
    )
    save_weights(given.out, prior.state_dict(), prior.config, card)

    z = torch.randn(given.n, generator.z_dim, generator=torch.Generator().manual_seed(0))
    flow = torch.cat([prior(part) for part in z.split(1_000)])
    ways = {
        "encoder": real_codes,
        "packaged mapping network": generator.mapping(z)[:, 0].detach(),
        "flow": flow,
        "flow, ψ = 0.7": prior.mean.lerp(flow, 0.7),
    }
    if given.mapping_layers:
        mapping = MappingNetwork(generator.z_dim, generator.w_dim, generator.num_ws, given.mapping_layers)
        lost = distil(mapping, prior)
        ways[f"flow, distilled into {given.mapping_layers} layers"] = mapping(z)[:, 0].detach()
    grids = []
    for name, w in ways.items():
        with torch.no_grad():
            parts = [generator.synthesis(part[:, None].expand(-1, generator.num_ws, -1)) for part in w.split(64)]
        images = torch.cat(parts).clamp(-1, 1)
        grids.append(images[:16])
        spread = frechet_distance(statistics(w), statistics(real_codes)) / real_codes.var(0).sum().item()
        record(
            "latent_prior",
            {"w from": name, "n": given.n}
            | {
                key: round(frechet_distance(wanted[key], statistics(features(judge, images))), 2)
                for key, judge in judges.items()
            }
            | {"codes": round(spread, 4)}
            | ({} if name == "encoder" else {"own neighbours": round(own_neighbours(w[:1_000], real_codes[:1_000]), 3)})
            | ({"seconds of training": seconds} if name == "flow" else {})
            | ({"variance lost": round(lost, 3)} if "distilled" in name else {}),
        )
    Image.fromarray(image_grid(torch.cat(grids), 16)).save(repo_root() / "reports/figures/latent_prior.jpg", quality=88)


if __name__ == "__main__":
    main()
