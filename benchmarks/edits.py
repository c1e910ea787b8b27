"""Edits of held-out portraits by the diffusion Editors.

`python benchmarks/edits.py --split validation` chooses SDEdit's dials, `python benchmarks/edits.py --split test
--strength 0.75` reports them, in reports/edits.jsonl; `--editors ddim-inversion flowedit` measures others, `--option
correction=source iterations=2` sets their options. The oracle judges; n edits of each kind. With `--captions clip`
CLIP writes the source captions, as for images without tags.
"""

import argparse
import itertools
import statistics
import time
from pathlib import Path

from record import number, record

from mmgen.app.targets import wanted_caption
from mmgen.base.files import sha256
from mmgen.base.weights import resolve
from mmgen.clip.zero_shot import describe_image
from mmgen.data.edits import KINDS, as_batch, edits
from mmgen.data.portraits import render
from mmgen.editing.editor import CopyInput
from mmgen.editing.registry import editor, editor_class, options_of
from mmgen.ldm.editors.sdedit import Reconstruction
from mmgen.ldm.open import open_pipeline
from mmgen.metrics.oracle import Oracle, score_editor


def one_image(method):
    "Median seconds of an edit of a single portrait, after a warm-up."
    images, source, target, _ = as_batch(edits("hair color", 1))
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        method.edit(images, source, target)
        seconds.append(time.perf_counter() - start)
    return round(statistics.median(seconds[1:]), 3)


def captions(how, pipeline, rows):
    "(source captions, wanted captions) as CLIP and a user's wish give them; None for the exact ones"
    if how == "exact":
        return None
    described = [describe_image(pipeline.text_encoder, render(edit.source)) for edit in rows]
    return described, [wanted_caption(source, edit.tag) for source, edit in zip(described, rows)]


def rounded(scores):
    return {name: round(value, 4) for name, value in scores.items()}


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--editors", nargs="*", default=["sdedit"])
    ask.add_argument("--model", default="ldm-portraits")
    ask.add_argument("--split", default="validation")
    ask.add_argument("-n", type=int, default=200)
    ask.add_argument("--kinds", nargs="*", default=list(KINDS))
    ask.add_argument("--strength", type=float, nargs="*", default=[0.5, 0.6, 0.75, 0.9])
    ask.add_argument("--guidance", type=float, nargs="*", default=[2.0])
    ask.add_argument("--steps", type=int, nargs="*", default=[12])
    ask.add_argument(
        "--decoding",
        nargs="*",
        default=[None],
        choices=["paired", "residual", "plain"],
        help="the Editor's own unless given",
    )
    ask.add_argument("--option", nargs="*", default=[], help="of the Editors, such as correction=source iterations=2")
    ask.add_argument("--captions", default="exact", choices=["exact", "clip"])
    given = ask.parse_args()
    extra = {name: number(value) for name, _, value in (option.partition("=") for option in given.option)}
    own = {name: {k: v for k, v in extra.items() if k in options_of(name)} for name in given.editors}
    for strange in extra.keys() - set().union(*own.values()):
        ask.error(f"none of these editors has an option {strange}")
    oracle, pipeline = Oracle.load(device="cpu"), open_pipeline(given.model)
    about = {
        "model": Path(given.model).name,
        "sha256": sha256(resolve(given.model) / "model.safetensors")[:12],
        "split": given.split,
    }
    for name in given.editors:
        record(
            "edits",
            about
            | {"editor": name}
            | own[name]
            | {"seconds for one image": one_image(editor(name, model=pipeline, **own[name]))},
        )
    for kind in given.kinds:
        rows = edits(kind, given.n, given.split)
        texts = captions(given.captions, pipeline, rows)
        for baseline in (CopyInput(), Reconstruction(pipeline)):
            record(
                "edits",
                about | {"kind": kind, "editor": baseline.name} | rounded(score_editor(oracle, baseline, rows)[0]),
            )
        for name, strength, guidance, steps, decoding in itertools.product(
            given.editors, given.strength, given.guidance, given.steps, given.decoding
        ):
            if decoding not in (None, *editor_class(name).decodings):
                continue
            start = time.perf_counter()
            method = editor(name, model=pipeline, decoding=decoding, guidance=guidance, steps=steps, **own[name])
            scores, _ = score_editor(oracle, method, rows, strength, captions=texts)
            seconds = round((time.perf_counter() - start) / given.n, 3)
            record(
                "edits",
                about
                | {
                    "kind": kind,
                    "editor": name,
                    "strength": strength,
                    "guidance": guidance,
                    "steps": steps,
                    "decoding": method.decoding,
                    "captions": given.captions,
                }
                | own[name]
                | rounded(scores)
                | {"seconds per edit": seconds},
            )


if __name__ == "__main__":
    main()
