"""Quality of inversions, and of edits that start from them.

    python benchmarks/inversion.py
    python benchmarks/inversion.py --generator FOLDER --encoder FOLDER --mapper FOLDER --ways "encoder, W"

Rows in reports/inversion.jsonl.

Test portraits: reconstruction (PSNR, perceptual distance, share of attributes that the oracle still recognises) and,
for the same way to invert, hair-colour edits by the text-conditioned mapper, decoded plainly, so that errors of the
inversion remain visible. Seconds per image include the encoder. A search of 1 000 steps is slow: it runs on
`--searched` images only.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from record import record

from mmgen.base.images import to_float
from mmgen.data.edits import edits
from mmgen.data.portraits import render, sample, seeds
from mmgen.metrics.oracle import Oracle, score_editor
from mmgen.styleclip.mapper import LatentMapper, Mapper
from mmgen.stylegan.encoder_train import reconstruction_scores
from mmgen.stylegan.inversion import Inverter, project
from mmgen.stylegan.open import open_encoder, open_generator


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--generator", default="stylegan2-portraits")
    ask.add_argument("--encoder", default="encoder-portraits")
    ask.add_argument("--mapper", default="mapper-portraits", help="trained for that generator")
    ask.add_argument("-n", type=int, default=500)
    ask.add_argument("--searched", type=int, default=32)
    ask.add_argument(
        "--edits", type=int, default=100, help="hair-colour edits for each way; as many as --searched for the long ones"
    )
    ask.add_argument("--ways", nargs="*", help="some of them; all unless given")
    given = ask.parse_args()
    generator, encoder = open_generator(given.generator), open_encoder(given.encoder)
    oracle, mapper = Oracle.load(device="cpu"), Mapper.load(given.mapper)
    other = "" if given.generator == ask.get_default("generator") else f" ({Path(given.generator).name})"
    ways = {"encoder, W": lambda x: encoder(x, 0), "encoder": encoder}
    for steps in (10, 50):
        ways[f"encoder, then {steps} steps"] = Inverter(generator, encoder, steps)
    for space in ("w", "w+"):
        ways[f"1000 steps in {space.upper()}"] = lambda x, space=space: project(generator, x, space, 1000).codes
    for name, invert in ways.items():
        if given.ways and name not in given.ways:
            continue
        long = name.startswith("1000")
        faces = [sample(seed) for seed in seeds(given.searched if long else given.n, "test")]
        images = to_float(np.stack([render(face) for face in faces]))
        began = time.perf_counter()
        with torch.no_grad():
            reconstructions = torch.cat([generator.synthesis(invert(x)).clamp(-1, 1) for x in images.split(32)])
        seconds = (time.perf_counter() - began) / len(images)
        scores = reconstruction_scores(images, reconstructions, faces, oracle)
        editor = LatentMapper(mapper, generator=generator, encoder=encoder, decoding="plain")
        editor.encode = invert
        rows = edits("hair color", given.searched if long else given.edits, "test")
        edited, _ = score_editor(oracle, editor, rows)
        record(
            "inversion",
            {"way": name + other, "n": len(images)}
            | {k: round(v, 4) for k, v in scores.items()}
            | {"seconds per image": round(seconds, 4)}
            | {"edits": len(rows)}
            | {f"edits {k}": round(edited[k], 4) for k in ("reached", "kept", "skill")},
        )


if __name__ == "__main__":
    main()
