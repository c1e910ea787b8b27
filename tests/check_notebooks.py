"""Fails when mmgen/ is not what the notebooks export, or when a notebook is not clean. Leaves the tree as it was."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WATCHED = ("mmgen", "nbs")


def files(root: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(root)): p.read_bytes()
        for folder in WATCHED
        for p in sorted((root / folder).rglob("*"))
        if p.suffix in (".py", ".ipynb") and p.name != "_modidx.py" and ".ipynb_checkpoints" not in p.parts
    }


def main() -> int:
    before = files(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "mmgen"
        copy.mkdir()
        for name in WATCHED:  # not data/, which may hold millions of images
            shutil.copytree(
                ROOT / name, copy / name, ignore=shutil.ignore_patterns("packaged", "__pycache__", ".ipynb_checkpoints")
            )
        for name in ("settings.ini", "pyproject.toml", "setup.py", "README.md"):
            shutil.copyfile(ROOT / name, copy / name)
        for command in ("nbdev_export", "nbdev_clean"):
            subprocess.run([str(Path(sys.executable).parent / command)], cwd=copy, check=True)
        after = files(copy)
    stale = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    if stale:
        print("These are not what the notebooks give; run `make export` and commit:", *stale, sep="\n  ")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())
