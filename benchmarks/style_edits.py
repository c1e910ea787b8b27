"""Edits of held-out portraits by the StyleCLIP methods and SDEdit.

`python benchmarks/style_edits.py --split validation` for the dials, `--split test` for the report; rows in
reports/style_edits.jsonl. The oracle judges n edits of each kind (`--kinds`) or of one prompt (`--tags`, for which a
mapper of one prompt may be given: `--mapper mapper-green-hair`). Seconds per edit are of the whole batch, inversion
included; `after inversion` is the median for one image whose code is known. `--figure` records nothing and draws four
of each kind to reports/figures/style_edits.jpg: sources, a row for each method, exact answers.
"""

import argparse
import itertools
import statistics
import time
from types import SimpleNamespace

import torch
from PIL import Image
from record import number, record

from mmgen.base.files import repo_root
from mmgen.base.images import image_grid
from mmgen.data.edits import KINDS, as_batch, edits
from mmgen.editing.registry import editor, options_of
from mmgen.metrics.oracle import Oracle, score_editor
from mmgen.styleclip.mapper_train import edits_to

METHODS = ("inversion", "styleclip-optimization", "styleclip-mapper", "styleclip-directions", "sdedit")


@torch.no_grad()
def after_inversion(which, some, strength, times=7):
    "Median milliseconds of change and decoding of one image; the fewer of them the longer they take"
    images, source, target, _ = as_batch(some[:1])
    codes, spent = which.encode(images.to(which.device)), []
    while len(spent) < times and (len(spent) < 3 or sum(spent) < 20):
        began = time.perf_counter()
        edited = which.change(codes, source, target, which.strength if strength is None else strength)
        which.decode(edited if which.decoding == "plain" else torch.cat([which.reference(codes, source, 0.5), edited]))
        spent.append(time.perf_counter() - began)
    return round(1000 * statistics.median(spent[1:]), 1)


def timed(which):
    "The Editor, and a list that gets the seconds of each of its edits"
    seconds = []

    def edit(*given):
        began = time.perf_counter()
        made = which.edit(*given)
        seconds.append(time.perf_counter() - began)
        return made

    return SimpleNamespace(edit=edit), seconds


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--methods", nargs="*", default=list(METHODS))
    ask.add_argument("--split", default="validation")
    ask.add_argument("-n", type=int, default=200)
    ask.add_argument("--kinds", nargs="*", default=[])
    ask.add_argument("--tags", nargs="*", default=[])
    ask.add_argument("--mapper", default="mapper-portraits")
    ask.add_argument("--generator", default="stylegan2-portraits")
    ask.add_argument("--encoder", default="encoder-portraits")
    ask.add_argument("--strength", type=float, nargs="*", default=[None], help="the Editor's own unless given")
    ask.add_argument("--decoding", nargs="*", default=["residual"])
    ask.add_argument("--option", nargs="*", default=[], help="of the Editors, such as alpha=5 beta=0.1")
    ask.add_argument("--figure", action="store_true")
    given = ask.parse_args()
    if given.figure:
        given.n = 4
    oracle = Oracle.load(device="cpu")
    extra = {name: number(value) for name, _, value in (option.partition("=") for option in given.option)}
    wishes = {kind: edits(kind, given.n, given.split) for kind in given.kinds or ([] if given.tags else KINDS)}
    wishes |= {tag: edits_to(tag, given.n, given.split) for tag in given.tags}
    rows = []
    for method, decoding in itertools.product(given.methods, given.decoding):
        options = {"decoding": "paired" if method == "sdedit" else decoding} | extra
        if method != "sdedit":
            options |= {"generator": given.generator, "encoder": given.encoder}
        if method == "styleclip-mapper":
            options["model"] = given.mapper
        options = {name: value for name, value in options.items() if name in options_of(method)}
        which = editor(method, **options)
        shown = {k: v for k, v in options.items() if k in extra or k == "decoding"} | (
            {"mapper": given.mapper} if "mapper" in method else {}
        )
        for (wish, some), strength in itertools.product(wishes.items(), given.strength):
            watched, spent = timed(which)
            scores, made = score_editor(oracle, watched, some, strength)
            seconds = spent[0] / len(some)
            rows.append(made)
            if given.figure:
                continue
            record(
                "style_edits",
                {
                    "editor": method,
                    "wish": wish,
                    "split": given.split,
                    "strength": which.strength if strength is None else strength,
                }
                | shown
                | {k: round(v, 4) for k, v in scores.items()}
                | {
                    "seconds per edit": round(seconds, 4),
                    "milliseconds after inversion": after_inversion(which, some, strength),
                },
            )
    if given.figure:
        shown = [as_batch(some) for some in wishes.values()]
        rows = [*(images for images, *_ in shown), *rows, *(exact for *_, exact in shown)]
        Image.fromarray(image_grid(torch.cat(rows), 4 * len(wishes))).save(
            repo_root() / "reports/figures/style_edits.jpg", quality=90
        )


if __name__ == "__main__":
    main()
