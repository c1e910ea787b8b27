"""Rows of measurements: printed, and kept in reports/<name>.jsonl with command and hardware."""

import json
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

import torch

from mmgen.base.files import repo_root
from mmgen.base.images import fast_bf16
from mmgen.base.provenance import git_state, hardware

STATE, HERE = git_state(repo_root()), hardware()
VECTORS = torch.backends.cpu.get_cpu_capability() + (", bf16" if fast_bf16(torch.device("cpu")) else "")
if STATE["dirty"]:  # rows of an earlier benchmark change no result
    changed = subprocess.run(
        ["git", "--no-optional-locks", "status", "--porcelain", "--", ".", ":!reports"],
        cwd=repo_root(),
        capture_output=True,
        text=True,
    ).stdout
    STATE["dirty"] = bool(changed.strip())


def record(name, row):
    where = (
        {"device": str(row["device"])}
        if "device" in row
        else {"cpu": f"{HERE['cpu']}, {VECTORS}", "threads": torch.get_num_threads()}
    )
    about = {
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        **where,
        "torch": torch.__version__,
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d}",
        "commit": (STATE["sha"] or "")[:12],
        "dirty": STATE["dirty"],
    }
    path = repo_root() / "reports" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row | about, ensure_ascii=False) + "\n")
    print(json.dumps(row, ensure_ascii=False), flush=True)


def number(text):
    "An option's value: none, a number or a word"
    return (
        None
        if text == "none"
        else int(text)
        if text.isdigit()
        else float(text)
        if text.replace(".", "").isdigit()
        else text
    )


def in_turns(loops, blocks, steps):
    "Runs each loop once a block, after a block that warms up: key → [(wall, processor) seconds per step]."
    rows = {key: [] for key in loops}
    for block in range(blocks + 1):
        for key, loop in loops.items():
            before = time.process_time()
            seconds = loop() / steps, (time.process_time() - before) / steps
            if block:
                rows[key].append(seconds)
    return rows
