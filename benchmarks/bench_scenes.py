"""How fast are rows drawn and judged? Without and with DiceBear's check of each drawing, in one run.

    python benchmarks/bench_scenes.py [--rows 30] [--sizes 128 1024]

Seconds are CPU time of one process. Rows in reports/scene_speed.jsonl.
"""

import argparse
import time

from dicebear import Avatar
from record import record

from mmgen.benchmark.seasons import judge_of, season_rows
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


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=30)
    parser.add_argument("--sizes", type=int, nargs="+", default=[128, 1024])
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
    judged = seconds(lambda: [judge_of(row)(row.pictures(512)[1]) for row in rows[:15]]) / 15
    record("scene_speed", {"rows": 15, "size": 512, "judge_seconds_per_row": judged})


if __name__ == "__main__":
    main()
