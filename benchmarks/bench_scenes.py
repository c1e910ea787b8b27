"""How fast are rows drawn and judged? Without and with DiceBear's check of each drawing, in one run.

    python benchmarks/bench_scenes.py [--rows 30] [--sizes 128 1024] [--scored 48]

Seconds are CPU time of one process; a folder of results is judged by two. Rows in reports/scene_speed.jsonl.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from dicebear import Avatar
from PIL import Image
from record import record

from mmgen.benchmark.export import settings
from mmgen.benchmark.scene_scores import score_folder
from mmgen.benchmark.seasons import season_rows
from mmgen.data import characters, scenes


def forget():
    for cache in (characters.svg, scenes.layer, scenes._background):
        cache.cache_clear()


def seconds(action):
    forget()
    start = time.process_time()
    action()
    return time.process_time() - start


def checked_svg(character):
    "The drawing with DiceBear's own check of the options, as a user of the package gets it"
    style, options = characters._style(character.style), {"seed": "mmgen"}
    for part, variant in character.parts:
        if variant is not None:
            options[f"{part}Variant"] = variant
    return Avatar(style, options).to_string()


def scored(rows, size):
    "CPU seconds and memory of `bench score` on noisy exact answers, and whether two runs write the same bytes"
    wanted, rng = settings("dev", len(rows), size), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        for row in rows:
            image = row.pictures(size)[1]
            noisy = np.clip(image + rng.normal(0, 10, image.shape), 0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(Path(folder) / f"{row.id}.png", compress_level=1)
        outs, start = [Path(folder) / name for name in "ab"], time.perf_counter()
        score_folder(folder, wanted, outs[0], workers=2)
        wall, children = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        mine = resource.getrusage(resource.RUSAGE_SELF)
        cpu = seconds(lambda: score_folder(folder, wanted, outs[1], workers=1))
        same = outs[0].joinpath("scores.json").read_bytes() == outs[1].joinpath("scores.json").read_bytes()
    mib = (mine.ru_maxrss + 2 * children.ru_maxrss) / 1024
    return {"cpu_seconds_per_row": cpu / len(rows), "wall_seconds_of_two": wall, "mib_at_most": mib, "same_bytes": same}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 1024])
    parser.add_argument("--scored", type=int, default=48)
    a = parser.parse_args()
    season_rows("warm", 15)
    rows = season_rows("dev", a.rows)
    people = [place.character for row in rows for scene in row.scenes for place in scene.people]
    plain, checked = (seconds(lambda f=f: [f(p) for p in people]) for f in (characters.svg.__wrapped__, checked_svg))
    per_drawing = {"seconds_per_drawing": plain / len(people), "with_check": checked / len(people)}
    record("scene_speed", {"rows": a.rows} | per_drawing | {"ratio": checked / plain})
    for size in a.sizes:
        whole = seconds(
            lambda size=size: [scenes.render_svg(scenes.scene_svg(s), size) for r in rows for s in r.scenes]
        )
        layers = seconds(lambda size=size: [scenes.render_scene(s, size) for row in rows for s in row.scenes])
        about = {"rows": a.rows, "size": size, "seconds_per_row": layers / a.rows, "as_one_svg": whole / a.rows}
        record("scene_speed", about | {"ratio": whole / layers, "rows_per_second_on_two_cores": 2 * a.rows / layers})
    result = scored(season_rows("dev", a.scored), 512)
    result["minutes_of_1000_on_two_cores"] = 1000 * result["cpu_seconds_per_row"] / 120
    record("scene_speed", {"rows": a.scored, "size": 512} | result)


if __name__ == "__main__":
    main()
