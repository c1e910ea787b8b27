"""What the board compares with: the unedited source, the exact answers, and exact answers with graded errors.

    python benchmarks/scene_anchors.py [--season dev] [--rows 60] [--size 256] [--board]

Prints the scores; with --board writes leaderboard/SEASON-copy.json and leaderboard/SEASON-renderer.json.
"""

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from mmgen.base.files import repo_root
from mmgen.benchmark.board import entry, write_entry
from mmgen.benchmark.export import settings
from mmgen.benchmark.registration import moved
from mmgen.benchmark.scene_scores import score_folder
from mmgen.benchmark.seasons import season_rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--season", default="dev")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--board", action="store_true")
    a = parser.parse_args()
    rows = season_rows(a.season, a.rows)
    anchors = {"copy-input": lambda s, t: s, "the renderer": lambda s, t: t}
    if not a.board:
        anchors["exact, shifted by 2 %"] = lambda s, t: moved(t, a.size / 50, 0)
        anchors["exact, half the size"] = lambda s, t: t[::2, ::2]
    for name, make in anchors.items():
        with tempfile.TemporaryDirectory() as folder:
            for row in rows:
                Image.fromarray(make(*row.pictures(a.size))).save(Path(folder) / f"{row.id}.png")
            content = score_folder(folder, settings(a.season, a.rows, a.size), workers=1)
        means = {k: v[0] for k, v in content["scores"]["all"].items()}
        print(
            name, {k: round(means[k], 3) for k in ("success", "reached", "flips", "skill", "skill, registered", "IoU")}
        )
        if a.board:
            command = f"python benchmarks/scene_anchors.py --season {a.season} --rows {a.rows} --size {a.size} --board"
            label = {"copy-input": "copy", "the renderer": "renderer"}[name]
            write_entry(repo_root() / "leaderboard", f"{a.season}-{label}", entry(content, name, command))


if __name__ == "__main__":
    main()
