"""What the board compares with: source and exact answer as they are and through the packaged autoencoder.

    python benchmarks/scene_anchors.py [--season dev] [--rows 60] [--size 256] [--board]

The autoencoder's reconstruction of the exact answer is the most that an Editor can reach in its latents with plain
decoding. Prints the scores, without --board also those of two exact answers with an error; with --board writes
leaderboard/SEASON-NAME.json for copy, renderer, autoencoder-source and autoencoder-target.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image

from mmgen.base.files import repo_root
from mmgen.base.images import to_float, to_uint8
from mmgen.benchmark.board import entry, write_entry
from mmgen.benchmark.export import settings
from mmgen.benchmark.registration import moved
from mmgen.benchmark.scene_scores import score_folder
from mmgen.benchmark.seasons import season_rows
from mmgen.ldm.editors.sdedit import Reconstruction


@torch.no_grad()
def reconstructed(image, editor):
    "The image, encoded and decoded at its own size"
    return to_uint8(editor.decode(editor.encode(to_float(image[None]).to(editor.device))).clamp(-1, 1).cpu())[0].numpy()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--season", default="dev")
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--board", action="store_true")
    a = parser.parse_args()
    rows = season_rows(a.season, a.rows)
    editor = Reconstruction()
    anchors = {"copy-input": lambda s, t: s, "the renderer": lambda s, t: t}
    anchors["autoencoder, source"] = lambda s, t: reconstructed(s, editor)
    anchors["autoencoder, exact answer"] = lambda s, t: reconstructed(t, editor)
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
            label = dict(zip(anchors, ("copy", "renderer", "autoencoder-source", "autoencoder-target")))[name]
            write_entry(repo_root() / "leaderboard", f"{a.season}-{label}", entry(content, name, command))


if __name__ == "__main__":
    main()
