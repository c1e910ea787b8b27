"""Executes the notebooks as nbdev_test does, fails if a cell fails, and lists committed outputs that are stale.

`python tests/check_outputs.py [--strict] [--write] [NOTEBOOK ...]`: all notebooks, or those given; --strict fails on
stale outputs too, --write stores the new ones.

A text output is compared word by word. Whatever matches VARIES (durations, memory, addresses, paths, versions) is not
compared; of a figure only the presence is. Numbers may differ by 2 % or by one unit in the last digit. Without --strict
other differences are no failure, because a short training ends elsewhere on another processor. A cell whose text
differs in each run starts with the comment `# output varies`.
"""

import argparse
import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SKIP = {"notest", "slow", "gpu"}  # as tst_flags of settings.ini
NUMBER = re.compile(r"(?<![\w.])[-+−]?\d+(?:[ ,]\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?")
VARIES = [
    r"0x[0-9a-f]+",  # addresses
    r"[-+−]?\d[\d. ,]*\s?(?:ms|µs|us|s|min|h|seconds|minutes|it/s|images/s|img/s|MiB|GiB|MB|GB|kB|KiB|rows/s|fps)\b",
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?Z?)?|\b\d\d:\d\d:\d\d\b",  # dates and times
    r"\b\d{8}-\d{6}(?:-[0-9a-f]{4})?\b",  # names of runs
    r"(?:/[\w.+-]+){2,}/?|\btmp\w{8}\b",  # paths
    r"images_per_second [\d.e+]+",
    r"\"\w*seconds\": [\d.e-]+|\w*seconds=[\d.e-]+",
    r"\b[0-9a-f]{12,64}\b",  # hashes of files that hold times or paths
    r"\b\d+\.\d+\.\d+(?:\+\w+)?\b",  # versions
]
VARIES = re.compile("|".join(VARIES))


def texts_of(cell: dict) -> list[str]:
    "The text outputs of a cell; consecutive streams are one, and an image is its kind."
    texts, stream = [], None
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            if output["name"] == "stderr":
                continue
            if stream is None:
                texts.append("")
            texts[-1] += "".join(output["text"])
            stream = output["name"]
            continue
        stream, data = None, output.get("data", {})
        kind = next((k for k in data if k.startswith("image/") or "widget" in k), None)
        kind = kind or next((k for k in ("text/markdown", "text/html", "text/plain") if k in data), None)
        if kind:
            text = "".join(data[kind]) if kind.startswith("text/") else "image"
            texts.append("image" if text.startswith("<svg") else text)
    return [text.strip() for text in texts if text.strip()]


def difference(old: str, new: str) -> str:
    "In what two texts differ beside what may vary and the rounding of numbers: words, numbers, or nothing."
    old, new = (VARIES.sub("…", text) for text in (old, new))
    if [w.split() for w in NUMBER.split(old)] != [w.split() for w in NUMBER.split(new)]:
        return "words"
    return "" if all(close(a, b) for a, b in zip(NUMBER.findall(old), NUMBER.findall(new))) else "numbers"


def close(a: str, b: str) -> bool:
    "Whether two written numbers differ by 2 %, by a unit of the last digit, or are both integers and equal."
    x, y = (float(n.replace("−", "-").replace(",", "").replace(" ", "")) for n in (a, b))
    if all(re.fullmatch(r"[-+−]?[\d ,]+", n) for n in (a, b)):
        return x == y
    digits = len(a.split("e")[0].partition(".")[2])
    unit = 10.0**-digits * (10.0 ** int(a.split("e")[1]) if "e" in a else 1)
    return abs(x - y) <= max(0.02 * abs(x), 1.5 * unit)


def stale(old: dict, new: dict) -> list[str]:
    "What differs between the committed and the fresh outputs of a notebook."
    differences = []
    for at, (before, after) in enumerate(zip(old["cells"], new["cells"])):
        if before["cell_type"] != "code" or "".join(before["source"]).startswith("# output varies"):
            continue
        a, b = texts_of(before), texts_of(after)
        kinds = {"words"} if len(a) != len(b) else {difference(*pair) for pair in zip(a, b)} - {""}
        if kinds:
            kind = "words" if "words" in kinds else "numbers"
            differences.append(f"cell {at}, {kind}:\n    committed: {shorten(a)}\n    now:       {shorten(b)}")
    return differences


def shorten(texts: list[str]) -> str:
    text = " | ".join(" ".join(text.split()) for text in texts)
    return text if len(text) < 400 else text[:200] + " … " + text[-190:]


def notebooks() -> list[Path]:
    files = (p for p in sorted((ROOT / "nbs").rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts)
    return [p for p in files if not skips(json.loads(p.read_text("utf-8"))["cells"])]


def skips(cells: list[dict]) -> bool:
    "Whether nbdev_test skips a notebook."
    return any(c["cell_type"] == "raw" and "skip_exec: true" in "".join(c["source"]) for c in cells)


def execute(file: Path) -> tuple[dict, str]:
    "The notebook with fresh outputs, and the traceback of the cell that failed."
    from execnb.nbio import read_nb
    from execnb.shell import CaptureShell
    from nbdev.process import extract_directives

    nb = read_nb(file)
    for cell in nb.cells:
        cell.directives = extract_directives(cell, remove=False) if cell.cell_type == "code" else {}

    def skipped(cell):
        evaluated = cell.directives.get("eval:", [""])[0].lower() != "false"
        return cell.cell_type == "code" and (SKIP & cell.directives.keys() or not evaluated)

    shell = CaptureShell(file, mpl_format="png")
    os.chdir(file.parent)
    try:
        for cell in nb.cells:
            if cell.cell_type == "code" and not skipped(cell):
                cell.outputs = []
        shell.run_all(nb, exc_stop=True, preproc=skipped)
    except BaseException:
        return {}, shell.prettytb(fname=file)
    return json.loads(json.dumps({"cells": [dict(c) for c in nb.cells]}, default=lambda o: dict(o))), ""


def check(file: Path) -> tuple[Path, float, list[str]]:
    start = time.time()
    new, failure = execute(file)
    return file, time.time() - start, [failure] if failure else stale(json.loads(file.read_text("utf-8")), new)


def write(file: Path) -> None:
    "Executes a notebook as Jupyter does and stores its outputs, without what nbdev_clean removes."
    import nbformat
    from nbclient import NotebookClient

    nb = nbformat.read(file, as_version=4)
    resources = {"metadata": {"path": str(file.parent)}}
    NotebookClient(nb, timeout=1200, kernel_name="python3", resources=resources, coalesce_streams=True).execute()
    nb.metadata.pop("widgets", None)  # the state of progress bars
    for output in (output for cell in nb.cells for output in cell.get("outputs", [])):
        if "image/jpeg" in output.get("data", {}):
            output["data"].pop("image/png", None)  # IPython stores a PIL image in both formats
    nbformat.write(nb, file)
    subprocess.run([str(Path(sys.executable).parent / "nbdev_clean"), "--fname", str(file)], check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--write", action="store_true", help="store the outputs instead of comparing them")
    parser.add_argument("--strict", action="store_true", help="stale outputs fail too")
    parser.add_argument("--workers", type=int, default=min(4, os.cpu_count() or 1), help="processes")
    parser.add_argument("notebooks", nargs="*", type=lambda name: Path(name).resolve())
    given = parser.parse_args()
    files = given.notebooks or notebooks()
    os.environ |= {"IN_TEST": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
    sys.path.insert(0, str(ROOT))
    if given.write:
        for file in files:
            write(file)
        return 0
    failed, took = [], []
    # each notebook in a fresh process that inherits the imports that take long
    context = multiprocessing.get_context("forkserver")
    modules = "torch torch._dynamo scipy.linalg transformers datasets diffusers execnb.shell nbdev.process"
    context.set_forkserver_preload(modules.split())  # torch._dynamo: the first optimizer imports it
    # not multiprocessing.Pool: its daemonic processes may not have children, and some notebooks start workers
    with ProcessPoolExecutor(given.workers, mp_context=context, max_tasks_per_child=1) as pool:
        for job in as_completed([pool.submit(check, file) for file in files]):
            file, seconds, differences = job.result()
            took.append((seconds, file))
            if differences and (given.strict or not differences[0].startswith("cell ")):
                failed.append(file)
            if differences:
                print(f"{file.relative_to(ROOT)}:", *differences, sep="\n  ", flush=True)
    for seconds, file in sorted(took)[-5:]:
        print(f"{seconds:6.1f} s  {file.relative_to(ROOT)}")
    print("Stale outputs are stored anew by: python tests/check_outputs.py --write NOTEBOOK ...")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
