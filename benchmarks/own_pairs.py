"""An instruction editor from a folder of 200 pairs in an unseen drawing style: `python benchmarks/own_pairs.py`,
rows in reports/own_pairs.jsonl.

The renderer writes before/, after/ and .txt instructions of people in a style that no packaged model was trained on:
one change of hair colour, clothes colour or glasses a pair. `mmgen train instruct --data FOLDER` then runs for
--minutes on one thread. A row is an evaluation during the training: skill, 1 - squared error of the edit / squared
error of a copy, mean over held-out and over training pairs, and seconds since the start of the run, evaluations
included. The last row of a run is measured after it on 100 further pairs that were not in the folder, with the skill
that the frozen autoencoder allows: paired decoding of the exact answers' latents.
"""

import argparse
import json
import random
import tempfile
from pathlib import Path

import torch
from PIL import Image
from record import record

from mmgen.base.runs import Run
from mmgen.data.characters import CharacterError, attributes, render, sample, styles, values, visible, with_value
from mmgen.data.pairs import load_pairs
from mmgen.jobs.registry import config_for
from mmgen.ldm.editors.instruct import InstructEditor
from mmgen.ldm.editors.instruct_train import exact_latents, fit
from mmgen.metrics.bootstrap import score
from mmgen.metrics.pair_progress import edit_pairs, skills

CHANGED = ("hair color", "hair color", "clothes color", "glasses")


def pair(seed, style):
    "A person, the same person after one change, and the instruction."
    rng, options = random.Random(f"own pairs {seed}"), values(style)
    while True:
        person = sample(rng.randrange(2**40), style)
        attribute = rng.choice([name for name in CHANGED if name in options])
        now = attributes(person)[attribute]
        if now is None:
            continue
        value = rng.choice([name for name in options[attribute] if name != now])
        try:
            changed = with_value(person, attribute, value)
        except CharacterError:
            continue
        if attributes(changed)[attribute] != value or not visible(person, changed):
            continue
        if attribute.endswith("color"):
            return person, changed, f"make the {attribute.removesuffix(' color')} {value}"
        if value == "none":
            return person, changed, f"take off the {attribute}"
        return person, changed, f"put on {value}" if now == "none" else f"change the {attribute} to {value}"


def write(folder, style, seeds, size):
    "A folder of pairs."
    for name in ("before", "after"):
        (folder / name).mkdir(parents=True)
    for seed in seeds:
        before, after, text = pair(seed, style)
        Image.fromarray(render(before, size)).save(folder / "before" / f"{seed:04}.png")
        Image.fromarray(render(after, size)).save(folder / "after" / f"{seed:04}.png")
        (folder / "after" / f"{seed:04}.txt").write_text(text + "\n")


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--style", default="avataaars", choices=styles())
    ask.add_argument("-n", type=int, default=200, help="pairs")
    ask.add_argument("--minutes", type=float, default=14, help="time limit of the training")
    ask.add_argument("--batch-size", type=int, default=16)
    ask.add_argument("--sample-every", type=int, default=100, help="steps")
    ask.add_argument("--init-from", default="auto", help="auto: the packaged model; random: random weights")
    ask.add_argument("--lora-rank", type=int, default=0, help="0: all weights are trained")
    given = ask.parse_args()
    torch.set_num_threads(1)
    about = {"style": given.style, "pairs": given.n, "start": given.init_from, "batch": given.batch_size}
    about["lora rank"] = given.lora_rank
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write(folder / "pairs", given.style, range(given.n), 128)
        write(folder / "further", given.style, range(given.n, given.n + 100), 128)
        settings = {"data": str(folder / "pairs"), "device": "cpu", "batch_size": given.batch_size, "log_every": 50}
        settings |= {"max_seconds": 60 * given.minutes, "sample_every": given.sample_every}
        settings["lora_rank"] = given.lora_rank
        if given.init_from == "random":  # the packaged model's shape
            settings |= {"init_from": "", "unet_channels": "64,80", "norm_groups": 16}
        elif given.init_from != "auto":
            settings["init_from"] = given.init_from
        config = config_for("instruct", "small", **settings)
        with Run("instruct", config, folder, "run") as run:
            model = fit(config, run)["pipeline"]
        for line in map(json.loads, (run.path / "metrics.jsonl").read_text().splitlines()):
            if "skill" in line:
                names = ("step", "seconds", "skill", "skill of training pairs", "held-out loss")
                record("own_pairs", about | {name: round(line[name], 3) for name in names})
        further = load_pairs(str(folder / "further"), 100, config.size or 64)
        mean = score("skill", skills(further, edit_pairs(InstructEditor(model), further, config.edit_strength)))
        row = about | {"step": run.record["training"]["steps"], "seconds": round(run.record["wall_seconds"])}
        row |= {"skill, further pairs": round(mean.value, 3), "low": round(mean.low, 3), "high": round(mean.high, 3)}
        limit = sum(exact_latents(model, further)) / len(further.names)
        record("own_pairs", row | {"with exact latents": round(limit, 3), "n": mean.n})


if __name__ == "__main__":
    main()
