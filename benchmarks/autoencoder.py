"""Latent channels, widths, patch size, batch and optimiser of the autoencoder at equal wall time on one thread.

    python benchmarks/autoencoder.py --seconds 240

A row per variant, in reports/autoencoder.jsonl: PSNR of 500 held-out portraits, and the share of attributes that the
oracle reads correctly on the reconstructions.
"""

import argparse
import tempfile

import numpy as np
import torch
from record import record

from mmgen.base.images import psnr, to_float
from mmgen.base.runs import Run
from mmgen.data import portraits
from mmgen.data.batches import Batches
from mmgen.data.sources import load_source, to_arrays
from mmgen.jobs.registry import config_for
from mmgen.ldm.autoencoder import AutoencoderKL, reconstruct
from mmgen.ldm.autoencoder_train import AutoencoderTask
from mmgen.metrics.oracle import Oracle, accuracy, classes, labels
from mmgen.training.loop import train

VARIANTS = [
    dict(),
    dict(latent_channels=16),
    dict(latent_channels=4),
    dict(optimizer="adamw", lr=1e-3),
    dict(l4_weight=0.0, perceptual="none"),
    dict(block_out_channels="48,96,128"),
    dict(patch_size=4, block_out_channels="128,192"),
    dict(patch_size=1, block_out_channels="32,64,96,128"),
]


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--seconds", type=float, default=300)
    ask.add_argument("--only", type=int, nargs="*", help="numbers of the variants, from 0")
    given = ask.parse_args()
    torch.set_num_threads(1)
    base = config_for("autoencoder", "small")
    images, _ = to_arrays(load_source("portraits", "train", base.size, base.images), base.size)
    held_out = to_float(to_arrays(load_source("portraits", "validation", base.size, 500), base.size)[0])
    oracle = Oracle.load(device="cpu")
    truth = labels([portraits.sample(seed) for seed in portraits.seeds(500, "validation")])
    for number in given.only if given.only is not None else range(len(VARIANTS)):
        config = config_for(
            "autoencoder",
            "small",
            max_seconds=given.seconds,
            checkpoint_every=1_000_000,
            log_every=1_000_000,
            device="cpu",
            **VARIANTS[number],
        )
        torch.manual_seed(config.seed)
        task = AutoencoderTask(AutoencoderKL.from_config(config.model_config), **config.loss_config)
        with tempfile.TemporaryDirectory() as root, Run("ae", config, root=root) as run:
            done = train(
                task,
                Batches({"image": images}, config.batch_size, config.seed),
                run,
                **config.loop | {"ema_decay": 0.99, "checkpoint_every": 0, "sample_every": 0},
            )
        side, outputs = config.size // config.factor, reconstruct(done.ema, held_out)
        read = accuracy(oracle.predict(outputs), truth, list(classes()))
        record(
            "autoencoder",
            VARIANTS[number]
            | {
                "latent": f"{side}×{side}×{config.latent_channels}",
                "parameters": sum(p.numel() for p in done.ema.parameters()),
                "images/s": round(done.step * config.batch_size / done.seconds, 1),
                "steps": done.step,
                "seconds": given.seconds,
                "PSNR": round(psnr(held_out, outputs).mean().item(), 2),
                "eye colour": round(read["eyes_color"], 3),
                "all attributes": round(float(np.mean(list(read.values()))), 3),
            },
        )


if __name__ == "__main__":
    main()
