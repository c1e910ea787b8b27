"""Feature statistics of a generator with AdaIN and with demodulation.

    OMP_NUM_THREADS=1 python benchmarks/adain.py --seconds 240

Two generators that differ in their normalisation alone (eq. 5 against Karras et al. 2020, figure 2) are trained
alike, as autoencoders, for the same time. AdaIN divides each feature map by its own deviation, so a network can only
keep the strength of a feature with a small spot of very large values that dominates the statistics: the droplet. It
is measured as the largest norm of a feature vector in a layer over the median norm in that layer, the mean over
images. Rows in reports/adain.jsonl, pictures in reports/figures/adain.jpg: samples, then the norms at the layer with
the strongest spot.
"""

import argparse
import tempfile

import torch
from gan_starts import AUTOENCODER
from PIL import Image
from record import record

from mmgen.base.files import repo_root
from mmgen.base.images import image_grid
from mmgen.base.runs import Run
from mmgen.jobs.registry import config_for
from mmgen.stylegan.train import fit


@torch.no_grad()
def norms(generator, z):
    "Images, and name → (B, H, W): the norm of each feature vector that a layer gives"
    feature_norms, hooks = {}, []
    for side, block in zip(generator.synthesis.sizes, generator.synthesis.blocks()):
        for name in block.layers:
            hooks.append(
                getattr(block, name).register_forward_hook(
                    lambda layer, given, out, name=f"b{side}.{name}": feature_norms.__setitem__(
                        name, out.float().norm(dim=1)
                    )
                )
            )
    images = generator(z, noise="const").clamp(-1, 1)
    for hook in hooks:
        hook.remove()
    return images, feature_norms


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--seconds", type=float, default=240)
    ask.add_argument("--images", type=int, default=10_000)
    given = ask.parse_args()
    rows = []
    for normalisation in ("adain", "demodulation"):
        config = config_for(
            "stylegan2",
            "small",
            images=given.images,
            held_out=500,
            max_seconds=given.seconds,
            normalisation=normalisation,
            log_every=1_000_000,
            sample_every=0,
            checkpoint_every=1_000_000,
            mapping_steps=2000,
            **AUTOENCODER,
        )
        with tempfile.TemporaryDirectory() as folder, Run("stylegan2", config, root=folder) as run:
            generator = fit(config, run)["generator"]
            images, feature_norms = norms(
                generator, torch.randn(64, config.z_dim, generator=torch.Generator().manual_seed(0))
            )
            spots = {
                name: (v.flatten(1).amax(1) / v.flatten(1).median(1).values).mean().item()
                for name, v in feature_norms.items()
            }
            worst = max(spots, key=spots.get)
            record(
                "adain",
                {"normalisation": normalisation, "seconds": given.seconds, "steps": run.record["training"]["steps"]}
                | {m["name"]: round(m["value"], 2) for m in run.record["metrics"]}
                | {
                    "largest norm over median": round(spots[worst], 1),
                    "layer": worst,
                    "mean over layers": round(sum(spots.values()) / len(spots), 1),
                },
            )
            norm_map = torch.nn.functional.interpolate(
                feature_norms[worst][:8, None], images.shape[-2:], mode="nearest"
            )
            norm_map = norm_map / norm_map.amax((1, 2, 3), keepdim=True) * 2 - 1
            rows += [images[:8], norm_map.expand(-1, 3, -1, -1)]
    path = repo_root() / "reports" / "figures" / "adain.jpg"
    Image.fromarray(image_grid(torch.cat(rows), 8)).save(path, quality=90)


if __name__ == "__main__":
    main()
