"""Starts of GAN training compared at equal wall time.

    OMP_NUM_THREADS=1 python benchmarks/gan_starts.py --seconds 300

On pixels: the published objective without and with the two augmentations, a projected discriminator, and the start as
an autoencoder. On the latents of the packaged autoencoder: the published objective, and the `small` preset. Equal wall
time for the training loop; Fréchet distances to validation portraits, in reports/gan_starts.jsonl.
"""

import argparse
import tempfile
from dataclasses import replace

from record import record

from mmgen.base.runs import Run
from mmgen.jobs.registry import config_for
from mmgen.stylegan.config import StyleGAN2Config
from mmgen.stylegan.train import fit

PROJECTED = dict(discriminator="projected", r1_gamma=0.0, path_weight=0.0, noise=False)
AUTOENCODER = dict(
    adversarial_weight=0.0,
    reconstruction_weight=1.0,
    optimizer="muon",
    lr=3e-3,
    lr_schedule="cosine",
    warmup=100,
    grad_clip=1.0,
    batch_size=8,
    edit_weight=0.5,
    latent_noise=0.1,
    noise=False,
    ema_decay=0.999,
    mixed_precision="auto",
)
STARTS = {
    "published": {},
    "published, DiffAugment": dict(augment="diffaugment"),
    "published, ADA": dict(augment="ada"),
    "projected": PROJECTED,
    "projected, DiffAugment": PROJECTED | dict(augment="diffaugment"),
    "autoencoder": AUTOENCODER,
    "latents, published": dict(autoencoder="autoencoder-portraits", convs=3, noise=False),
    "latents, autoencoder": None,  # the preset
}


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--seconds", type=float, default=300)
    ask.add_argument("--images", type=int, default=40_000)
    ask.add_argument("-n", type=int, default=1_000, help="validation portraits, and as many samples")
    ask.add_argument("--starts", nargs="*", default=list(STARTS), choices=list(STARTS))
    given = ask.parse_args()
    for name in given.starts:
        config = replace(
            config_for("stylegan2", "small") if STARTS[name] is None else StyleGAN2Config(**STARTS[name]),
            images=given.images,
            held_out=given.n,
            max_seconds=given.seconds,
            log_every=1_000_000,
            sample_every=0,
            checkpoint_every=1_000_000,
        )
        with tempfile.TemporaryDirectory() as folder, Run("stylegan2", config, root=folder) as run:
            fit(config, run)
            row = {
                "start": name,
                "seconds": given.seconds,
                "n": given.n,
                "images seen": run.record["training"]["images"],
            }
            record("gan_starts", row | {m["name"]: round(m["value"], 2) for m in run.record["metrics"]})


if __name__ == "__main__":
    main()
