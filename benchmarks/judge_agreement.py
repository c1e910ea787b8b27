"""Do the judge without weights and the oracle of version 1 agree on edits of portraits?

    python benchmarks/judge_agreement.py RESULTS...

RESULTS are folders of `mmgen bench run --season portraits --size 64`. Rows in reports/judge_agreement.jsonl.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from record import record

from mmgen.benchmark.export import read_settings
from mmgen.benchmark.scene_scores import read_result
from mmgen.benchmark.seasons import judge_of, season_rows
from mmgen.metrics.oracle import Oracle, labels


def main():
    oracle, total = Oracle.load(device="cpu"), []
    names = list(oracle.config["attributes"])
    for folder in map(Path, sys.argv[1:]):
        wanted = read_settings(folder)
        rows = [r for r in season_rows(wanted["season"], wanted["rows"]) if (folder / f"{r.id}.png").is_file()]
        results = [read_result(folder / f"{row.id}.png") for row in rows]
        predicted = oracle.predict(torch.from_numpy(np.stack(results)))
        truth = labels([row.edit.target for row in rows])
        named = torch.tensor([names.index(row.edit.attribute) for row in rows])
        right = (predicted == truth)[torch.arange(len(rows)), named].tolist()
        verdicts = [judge_of(row, wanted["size"])(image) for row, image in zip(rows, results)]
        same = [v.reached == r for v, r in zip(verdicts, right)]
        total += same
        numbers = {
            "agreement": np.mean(same),
            "oracle": np.mean(right),
            "judge": np.mean([v.reached for v in verdicts]),
        }
        record(
            "judge_agreement", {"editor": folder.name, "rows": len(rows)} | {k: float(v) for k, v in numbers.items()}
        )
    record("judge_agreement", {"editor": "all", "rows": len(total), "agreement": float(np.mean(total))})


if __name__ == "__main__":
    main()
