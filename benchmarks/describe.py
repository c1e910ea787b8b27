"""How completely CLIP describes a portrait with tags.

    python benchmarks/describe.py

`describe_image` knows which tags exclude each other, because it searches over the parts of a face; `choose_tags` has
a list of tags and nothing else. Rows in reports/describe.jsonl.
"""

import argparse
import time

import numpy as np
from record import record

from mmgen.clip.model import CLIP
from mmgen.clip.zero_shot import choose_tags, describe_image
from mmgen.data import portraits


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--model", default="clip-portraits")
    ask.add_argument("--split", default="validation")
    ask.add_argument("-n", type=int, default=100)
    given = ask.parse_args()
    clip, faces = (
        CLIP.load(given.model, "cpu"),
        [portraits.sample(seed) for seed in portraits.seeds(given.n, given.split)],
    )
    tags = [tag for tag in portraits.vocabulary() if not tag.startswith("no ")]
    for name, read in (
        ("describe_image", lambda image: describe_image(clip, image)),
        ("describe_image, all texts", lambda image: describe_image(clip, image, shortlist=1_000)),
        ("choose_tags", lambda image: choose_tags(clip, image, tags)),
    ):
        start, rows = time.perf_counter(), []
        for face in faces:
            described, true = set(read(portraits.render(face, clip.size)).split(", ")), set(portraits.tags(face))
            rows.append((len(described & true) / len(true), len(described & true) / len(described)))
        recall, precision = np.mean(rows, 0)
        record(
            "describe",
            {
                "how": name,
                "split": given.split,
                "n": given.n,
                "tags found": round(recall, 3),
                "of what is said true": round(precision, 3),
                "seconds per image": round((time.perf_counter() - start) / given.n, 3),
            },
        )


if __name__ == "__main__":
    main()
