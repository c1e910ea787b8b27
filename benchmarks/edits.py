"""What SDEdit does to held-out portraits: `python benchmarks/edits.py --split validation` chooses the dials,
`python benchmarks/edits.py --split test --strength 0.75` reports them. The oracle judges; n edits of each kind.
"""
import argparse
import itertools
import json
import statistics
import time

import torch

from mmgen.data.edits import KINDS, as_batch, edits
from mmgen.editing import CopyInput
from mmgen.ldm.editing import Reconstruction, SDEdit
from mmgen.ldm.pipeline import LatentDiffusion
from mmgen.metrics.oracle import Oracle, score_editor


def one_image(pipeline):
    "Median seconds of an edit of a single portrait, with the Editor's defaults, after a warm-up."
    images, source, target, _ = as_batch(edits("hair color", 1))
    editor, seconds = SDEdit(pipeline), []
    for _ in range(11):
        start = time.perf_counter()
        editor.edit(images, source, target)
        seconds.append(time.perf_counter() - start)
    return round(statistics.median(seconds[1:]), 3)


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--model", default="ldm-portraits")
    ask.add_argument("--split", default="validation")
    ask.add_argument("-n", type=int, default=200)
    ask.add_argument("--kinds", nargs="*", default=list(KINDS))
    ask.add_argument("--strength", type=float, nargs="*", default=[0.5, 0.6, 0.75, 0.9])
    ask.add_argument("--guidance", type=float, nargs="*", default=[2.0])
    ask.add_argument("--steps", type=int, nargs="*", default=[12])
    ask.add_argument("--decoding", nargs="*", default=["paired"], choices=SDEdit.decodings)
    given = ask.parse_args()
    oracle, pipeline = Oracle.load(device="cpu"), LatentDiffusion.load(given.model)
    print(json.dumps({"seconds for one image": one_image(pipeline), "threads": torch.get_num_threads()}), flush=True)
    for kind in given.kinds:
        some = edits(kind, given.n, given.split)
        for baseline in (CopyInput(), Reconstruction(pipeline)):
            print(json.dumps({"kind": kind, "editor": baseline.name} | score_editor(oracle, baseline, some)[0]), flush=True)
        for strength, guidance, steps, decoding in itertools.product(given.strength, given.guidance, given.steps, given.decoding):
            start = time.perf_counter()
            which = SDEdit(pipeline, decoding=decoding, guidance=guidance, steps=steps)
            scores, _ = score_editor(oracle, which, some, strength)
            scores = {name: round(value, 4) for name, value in scores.items()}
            print(json.dumps({"kind": kind, "editor": "sdedit", "strength": strength, "guidance": guidance, "steps": steps,
                              "decoding": decoding} | scores
                             | {"seconds per edit": round((time.perf_counter() - start) / given.n, 3)}), flush=True)


if __name__ == "__main__":
    main()
