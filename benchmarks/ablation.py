"""Objective and optimiser at equal wall time, three seeds each.

    python benchmarks/ablation.py --seconds 120

Trains the `small` UNet for the same number of seconds with each combination and reports the oracle's accuracy on
samples drawn from held-out captions (accuracy over all attributes) and the FD (oracle) to held-out portraits; rows in
reports/ablation.jsonl.
"""

import argparse
import itertools
import tempfile

import numpy as np
import torch
from record import record

from mmgen.base.images import pick_device, to_float
from mmgen.base.runs import Run
from mmgen.data import portraits
from mmgen.data.captions import caption
from mmgen.jobs.registry import config_for
from mmgen.ldm.train import train_pipeline
from mmgen.metrics.features import features
from mmgen.metrics.frechet import frechet_distance, statistics
from mmgen.metrics.oracle import Oracle, accuracy, classes, labels

RATES = {"adamw": 1e-3, "muon": 3e-3}
SAMPLER = {"flow": "euler", "eps": "ddim", "v": "ddim"}


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--seconds", type=float, default=120)
    ask.add_argument("--seeds", type=int, default=3)
    ask.add_argument("--images", type=int, default=12_000)
    ask.add_argument("-n", type=int, default=500, help="samples that are judged")
    given = ask.parse_args()
    oracle = Oracle.load(device="cpu")
    faces = [portraits.sample(seed) for seed in portraits.seeds(given.n, "validation")]
    real = statistics(features(oracle.features, to_float(np.stack([portraits.render(face) for face in faces]))))
    texts, truth = [caption(portraits.tags(face)) for face in faces], labels(faces)
    for prediction, optimizer in itertools.product(("flow", "v", "eps"), ("adamw", "muon")):
        rows = []
        for seed in range(given.seeds):
            config = config_for(
                "ldm",
                "small",
                prediction=prediction,
                optimizer=optimizer,
                lr=RATES[optimizer],
                seed=seed,
                images=given.images,
                max_seconds=given.seconds,
                steps=1_000_000,
                log_every=1_000_000,
                sample_every=0,
            )
            with tempfile.TemporaryDirectory() as folder, Run("ablation", config, root=folder) as run:
                pipeline = train_pipeline(config, run, pick_device(config.device))
                samples = torch.cat(
                    [
                        pipeline.sample(texts[at : at + 100], 25, 2.0, SAMPLER[prediction], at)
                        for at in range(0, given.n, 100)
                    ]
                )
                right = np.nanmean(list(accuracy(oracle.predict(samples), truth, list(classes())).values()))
                rows.append(
                    (
                        right,
                        frechet_distance(real, statistics(features(oracle.features, samples))),
                        run.record["training"]["steps"],
                    )
                )
        table, spread = np.mean(rows, 0), np.std(rows, 0, ddof=1)
        record(
            "ablation",
            {
                "prediction": prediction,
                "optimizer": optimizer,
                "seconds": given.seconds,
                "seeds": given.seeds,
                "n": given.n,
                "attributes right": round(table[0], 4),
                "sd": round(spread[0], 4),
                "FD (oracle)": round(table[1], 1),
                "sd of FD": round(spread[1], 1),
                "steps": int(table[2]),
            },
        )


if __name__ == "__main__":
    main()
