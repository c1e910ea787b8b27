"""How well do metrics of edits rank exact answers with planted errors in grades?

    python benchmarks/metric_ranking.py [--images scenes] [--rows 104] [--size 128] [--clip NAME]

Images are scenes of the season dev, or portraits of version 1, whose style and tags the packaged CLIP knows; with a
CLIP that is named, the metrics of texts are measured on scenes too. Rows in reports/metric_ranking.jsonl.
"""

import argparse
import time
from functools import partial
from itertools import count, islice

import numpy as np
import torch
from record import record

from mmgen.base.images import to_float
from mmgen.benchmark.metric_ranking import measure, ranking, set_ranking
from mmgen.benchmark.planted_errors import KINDS
from mmgen.benchmark.scene_edits import scene_edit
from mmgen.benchmark.seasons import season_rows
from mmgen.metrics.features import extractor, features
from mmgen.metrics.pairs import pair_metric, ssim


def rows_of(images, n):
    "The rows, as many others for the reference of the Fréchet distance, and the source of each row"
    if images == "portraits":  # its rows are ordered by kind
        rows = season_rows("portraits", 2300)[:: 2300 // (2 * n)]
        rows, others = rows[0 : 2 * n : 2], rows[1 : 2 * n : 2]
        return rows, others, [row.edit.seed for row in rows]
    fitting = (row for row in (scene_edit("dev", number) for number in count()) if row.kind in KINDS)
    rows = list(islice(fitting, 2 * n))
    return rows[:n], rows[n:], [row.id for row in rows[:n]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", choices=("scenes", "portraits"), default="scenes")
    parser.add_argument("--rows", type=int, default=104)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--clip", help="name or folder of a CLIP (default: the packaged one, for portraits only)")
    a = parser.parse_args()
    start = time.process_time()
    rows, others, sources = rows_of(a.images, a.rows)
    network = extractor("efficientnet", "cpu")
    clip = extractor("clip", "cpu", a.clip) if a.clip or a.images == "portraits" else None
    pairs = [pair_metric(name, "cpu") for name in ("psnr", "ssim", "perceptual")]
    pairs[1] = pairs[1]._replace(function=partial(ssim, dtype=torch.float32))  # most of the time otherwise
    table = measure(rows, a.size, pairs, network, clip, lambda text: print(text, flush=True))
    targets = to_float(np.stack([row.pictures(a.size)[1] for row in others]))
    reference = features(network.network, targets, 16).numpy()
    for error, found in table.items():
        of = [sources[index] for index in found.pop("rows")]
        about = {"images": a.images, "size": a.size, "error": error, "n": len(of)}
        sets = set_ranking(found.pop(network.name), reference, of)
        for name, values in found.items():
            record("metric_ranking", about | {"metric": name} | ranking(values, of))
        sets["source"] = sets["source"][:1]
        record("metric_ranking", about | {"metric": f"FD ({network.name})"} | sets)
    print(f"{time.process_time() - start:.0f} CPU seconds")


if __name__ == "__main__":
    main()
