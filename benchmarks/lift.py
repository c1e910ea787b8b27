"""Edits made at the model's size and returned at the image's: `python benchmarks/lift.py`, rows in reports/lift.jsonl.

Validation portraits drawn at --size pixels are edited at 64 px by --editors and lifted by each method. Skill is
1 - squared error of the result / squared error of the source, both against the exact answer, at 64 px before the lift
and at --size after it; mean over the edits of a kind. `exact` stands for an Editor that is always right. The last row
is the time of one lift to 2,048 px.
"""

import argparse
import time

import torch
from record import record

import mmgen
from mmgen.data.edits import KINDS, as_batch, edits
from mmgen.editing.lift import METHODS, View, lift


def skills(source, answer, result):  # (N, 3, H, W) each -> (N,)
    error = lambda x: (x - answer).square().flatten(1).sum(1)
    return 1 - error(result) / error(source)


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("-n", type=int, default=20, help="edits of each kind")
    ask.add_argument("--size", type=int, default=512)
    ask.add_argument("--editors", nargs="*", default=["sdedit", "flowedit", "instruct-pix2pix"])
    given = ask.parse_args()
    view = View.of(given.size, given.size)
    opened = {name: mmgen.editor(name) for name in given.editors}
    for kind in KINDS:
        rows = edits(kind, given.n)
        small, sources, targets, small_answer = as_batch(rows)
        large, _, _, answer = as_batch(rows, given.size)
        results = {"exact": small_answer} | {
            name: editor.edit(small, sources, targets).cpu().clamp(-1, 1) for name, editor in opened.items()
        }
        for name, result in results.items():
            row = {"kind": kind, "editor": name, "n": len(rows), "size": given.size}
            row["skill at 64 px"] = round(skills(small, small_answer, result).mean().item(), 3)
            for method in METHODS:
                lifted = torch.stack([lift(*some, view, method) for some in zip(large, small, result)])
                row[f"skill, {method}"] = round(skills(large, answer, lifted).mean().item(), 3)
                if method == "affine":
                    row["pixels kept"] = round((lifted == large).all(1).float().mean().item(), 3)
            record("lift", row)
    image = torch.rand(3, 2048, 2048) * 2 - 1
    lift(image, small[0], small_answer[0], View.of(2048, 2048))
    start = time.perf_counter()
    lift(image, small[0], small_answer[0], View.of(2048, 2048))
    record("lift", {"kind": "time", "size": 2048, "seconds": round(time.perf_counter() - start, 2)})


if __name__ == "__main__":
    main()
