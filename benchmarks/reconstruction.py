"""Reconstruction of held-out portraits by the autoencoder.

    python benchmarks/reconstruction.py

PSNR, attributes that the oracle reads on originals and reconstructions, and the share of a change of one option that
the reconstruction preserves. The images are rounded to 8 bits, as they would be stored.
"""

import argparse
from pathlib import Path

import numpy as np
from record import record

from mmgen.base.files import sha256
from mmgen.base.images import psnr, to_float, to_uint8
from mmgen.base.weights import resolve
from mmgen.data import portraits
from mmgen.data.edits import neighbour
from mmgen.ldm.autoencoder import AutoencoderKL, reconstruct
from mmgen.metrics.oracle import Oracle, accuracy, classes, labels
from mmgen.training.losses import edit_gain


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--model", default="autoencoder-portraits")
    ask.add_argument("--split", default="validation")
    ask.add_argument("-n", type=int, default=500)
    given = ask.parse_args()
    oracle, faces = (
        Oracle.load(device="cpu"),
        [portraits.sample(seed) for seed in portraits.seeds(given.n, given.split)],
    )
    images = to_float(np.stack([portraits.render(face) for face in faces]))
    model = AutoencoderKL.load(given.model)
    outputs = to_float(to_uint8(reconstruct(model, images)))
    decibels, truth, names = psnr(images, outputs), labels(faces), list(classes())
    about = {
        "model": Path(given.model).name,
        "sha256": sha256(resolve(given.model) / "model.safetensors")[:12],
        "split": given.split,
    }
    record(
        "reconstruction",
        about | {"n": given.n, "PSNR": round(decibels.mean().item(), 2), "sd": round(decibels.std().item(), 2)},
    )
    before, after = (accuracy(oracle.predict(x), truth, names) for x in (images, outputs))
    for name in names:
        record(
            "reconstruction",
            about | {"attribute": name, "originals": round(before[name], 4), "reconstructions": round(after[name], 4)},
        )
    near = [neighbour(seed) for seed in portraits.seeds(given.n, given.split)]
    changed = to_float(np.stack([portraits.render(face) for face in near]))
    gain, visible = edit_gain(images, changed, outputs, to_float(to_uint8(reconstruct(model, changed))))
    option = np.array([next(k for k, v in (*a.parts, *a.colors) if b[k] != v) for a, b in zip(faces, near)])
    gain, visible = gain.numpy(), visible.numpy()
    for name in ("all", *sorted(set(option))):
        gains = np.sort(gain[visible & ((option == name) | (name == "all"))])
        record(
            "reconstruction",
            about
            | {
                "changed option": name,
                "pairs": len(gains),
                "edit gain": round(float(gains.mean()), 3),
                "of the worst tenth": round(float(gains[: max(1, len(gains) // 10)].mean()), 3),
            },
        )


if __name__ == "__main__":
    main()
