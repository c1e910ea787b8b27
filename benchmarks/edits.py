"""What SDEdit does to held-out portraits: `python benchmarks/edits.py --split validation` chooses the dials,
`python benchmarks/edits.py --split test --strength 0.75` reports them, in reports/edits.jsonl. The oracle judges; n edits of each kind. With
`--captions clip` the tags of the source are what CLIP sees, as for a picture of one's own.
"""
import argparse
import itertools
import statistics
import time
from pathlib import Path

from record import record

from mmgen.data.edits import KINDS, as_batch, edits
from mmgen.data.portraits import render
from mmgen.editing import CopyInput
from mmgen.files import sha256
from mmgen.ldm.editing import Reconstruction, SDEdit
from mmgen.ldm.pipeline import LatentDiffusion
from mmgen.metrics.oracle import Oracle, score_editor
from mmgen.panel import wanted_caption
from mmgen.weights import resolve
from mmgen.zero_shot import describe_image


def one_image(pipeline):
    "Median seconds of an edit of a single portrait, with the Editor's defaults, after a warm-up."
    images, source, target, _ = as_batch(edits("hair color", 1))
    editor, seconds = SDEdit(pipeline), []
    for _ in range(11):
        start = time.perf_counter()
        editor.edit(images, source, target)
        seconds.append(time.perf_counter() - start)
    return round(statistics.median(seconds[1:]), 3)


def captions(how, pipeline, some):
    "(source captions, wanted captions) as CLIP and a user's wish give them; None for the exact ones"
    if how == "exact": return None
    seen = [describe_image(pipeline.text_encoder, render(edit.source)) for edit in some]
    return seen, [wanted_caption(source, edit.tag) for source, edit in zip(seen, some)]


def rounded(scores):
    return {name: round(value, 4) for name, value in scores.items()}


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
    ask.add_argument("--captions", default="exact", choices=["exact", "clip"])
    given = ask.parse_args()
    oracle, pipeline = Oracle.load(device="cpu"), LatentDiffusion.load(given.model)
    about = {"model": Path(given.model).name, "sha256": sha256(resolve(given.model) / "model.safetensors")[:12], "split": given.split}
    record("edits", about | {"seconds for one image": one_image(pipeline)})
    for kind in given.kinds:
        some = edits(kind, given.n, given.split)
        said = captions(given.captions, pipeline, some)
        for baseline in (CopyInput(), Reconstruction(pipeline)):
            record("edits", about | {"kind": kind, "editor": baseline.name} | rounded(score_editor(oracle, baseline, some)[0]))
        for strength, guidance, steps, decoding in itertools.product(given.strength, given.guidance, given.steps, given.decoding):
            start = time.perf_counter()
            which = SDEdit(pipeline, decoding=decoding, guidance=guidance, steps=steps)
            scores, _ = score_editor(oracle, which, some, strength, captions=said)
            seconds = round((time.perf_counter() - start) / given.n, 3)
            record("edits", about | {"kind": kind, "editor": "sdedit", "strength": strength, "guidance": guidance, "steps": steps,
                                     "decoding": decoding, "captions": given.captions} | rounded(scores) | {"seconds per edit": seconds})


if __name__ == "__main__":
    main()
