"""Edits made at the model's size and returned at the image's: `python benchmarks/lift.py`, rows in reports/lift.jsonl.

Validation portraits drawn at --size pixels are edited at 64 px by --editors, with exact source captions and with
captions by the packaged CLIP, and lifted by each method. Skill is 1 - squared error of the result / squared error of
the source, both against the exact answer, at 64 px before the lift and at --size after it; median over the edits of a
kind. `exact` stands for an Editor that is always right. `identical` is the share of the pixels that the exact answer
leaves alone which the result leaves alone, bit for bit. The last row is the time of one lift to 2,048 px.
"""

import argparse
import time

import torch
from record import record

import mmgen
from mmgen.base.images import to_uint8
from mmgen.clip.zero_shot import describe_image
from mmgen.data.edited_captions import edited_caption
from mmgen.data.edits import KINDS, as_batch, edits
from mmgen.editing.lift import METHODS, View, lift


def skills(source, answer, result):  # (N, 3, H, W) each -> (N,)
    error = lambda x: (x - answer).square().flatten(1).sum(1)
    return 1 - error(result) / error(source)


def measured(row, large, answer, small, small_answer, result):
    view = View.of(*large.shape[:-3:-1])
    before = skills(small, small_answer, result).median().item()
    row["skill at 64 px"] = round(before, 3)
    untouched = (large == answer).all(1)
    for method in METHODS:
        lifted = torch.stack([lift(*some, view, method) for some in zip(large, small, result)])
        row[f"skill, {method}"] = round(skills(large, answer, lifted).median().item(), 3)
        if method == "affine":
            same = (lifted == large).all(1) & untouched
            row["identical"] = round((same.sum() / untouched.sum()).item(), 3)
            row["ratio"] = round(row["skill, affine"] / before, 3) if before > 0 else None
    record("lift", row)


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("-n", type=int, default=20, help="edits of each kind; 0: the time alone")
    ask.add_argument("--size", type=int, default=512)
    ask.add_argument("--editors", nargs="*", default=["sdedit", "flowedit", "flowedit:focus=True", "instruct-pix2pix"])
    given = ask.parse_args()
    opened = {name: mmgen.editor(name) for name in given.editors if given.n}
    clip = mmgen.editor("reconstruction").captioner
    for kind in KINDS if given.n else ():
        rows = edits(kind, given.n)
        small, sources, targets, small_answer = as_batch(rows)
        large, _, _, answer = as_batch(rows, given.size)
        read = [describe_image(clip, x) for x in to_uint8(small).numpy()]
        captions = {
            "exact": (sources, targets),
            "clip": (read, [edited_caption(text, edit.tag) for text, edit in zip(read, rows)]),
        }
        about = {"kind": kind, "n": len(rows), "size": given.size}
        images = large, answer, small, small_answer
        measured(about | {"editor": "exact answer", "captions": "–"}, *images, small_answer)
        for name, editor in opened.items():
            for captioned, texts in captions.items():
                result = editor.edit(small, *texts).cpu().clamp(-1, 1)
                measured(about | {"editor": name, "captions": captioned}, *images, result)
    image, edit = torch.rand(3, 2048, 2048) * 2 - 1, as_batch(edits("hair length", 1))
    seconds = []
    for _ in range(5):
        start = time.process_time()
        lift(image, edit[0][0], edit[3][0], View.of(2048, 2048))
        seconds.append(time.process_time() - start)
    record("lift", {"kind": "time", "size": 2048, "CPU seconds": round(min(seconds), 3)})


if __name__ == "__main__":
    main()
