"""Kills training jobs at chosen and random moments, resumes them, and compares with an undisturbed run.

    python tests/kills.py FOLDER clip,identity 100 0     kills of these jobs, seed

A server imports everything once and forks each run, so that a run takes as long as its work. Prints one JSON object.
"""

import contextlib
import importlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
from pathlib import Path

STEPS = {
    "steps": 5,
    "checkpoint_every": 2,
    "log_every": 1,
    "device": "cpu",
    "mixed_precision": "no",
}  # checkpoints 2, 4 and 5
JOBS = {
    "clip": {"images": 32, "held_out": 16, "batch_size": 8},
    "identity": {"images": 16, "held_out": 4, "batch_size": 4},
    "oracle": {"images": 16, "held_out": 4, "batch_size": 4},
    "autoencoder": {"images": 32, "held_out": 4, "batch_size": 2},
    "stylegan2": {"images": 32, "held_out": 8, "batch_size": 4},
    "encoder": {"images": 16, "held_out": 1, "batch_size": 2},
    "mapper": {"images": 32, "held_out": 1},
    "ldm": {"images": 32, "held_out": 0, "sample_images": 2},
    "instruct": {"images": 32, "held_out": 0},
}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def cut(real, args, path):
    "Half of the file is written."
    real(*args)
    os.truncate(path, os.path.getsize(path) // 2)


def watch(folder, at, how, events):
    "Counts what is written below a folder; kills this process before, after or in the middle of number `at`."
    import torch

    import mmgen.base.weights
    import mmgen.training.checkpoints

    count = itertools.count()

    def wrap(owner, name, where):
        real = getattr(owner, name)

        def called(*args, **kwargs):
            path = str(where(args))
            if not path.startswith(str(folder)):
                return real(*args, **kwargs)
            events.append(f"{name} {Path(path).relative_to(folder)}")
            now = next(count) == at
            if now and how == "middle" and name in ("save_file", "save", "write_bytes"):
                cut(real, args, path)
            elif now and how != "before":
                real(*args, **kwargs)
            if now:
                die()
            return real(*args, **kwargs)

        setattr(owner, name, called)

    for owner, name, where in [
        (os, "replace", lambda a: a[1]),
        (os, "mkdir", lambda a: a[0]),
        (os, "fsync", lambda a: os.readlink(f"/proc/self/fd/{a[0]}")),
        (os, "unlink", lambda a: a[0]),
        (os, "rmdir", lambda a: a[0]),
        (shutil, "rmtree", lambda a: a[0]),
        (Path, "write_bytes", lambda a: a[0]),
        (mmgen.training.checkpoints, "save_file", lambda a: a[1]),
        (mmgen.base.weights, "save_file", lambda a: a[1]),
        (torch, "save", lambda a: a[1]),
    ]:
        wrap(owner, name, where)


def start(config, root, at=None, how="", limit=None):
    "A run in a process of its own; its number."
    pid = os.fork()
    if pid:
        return pid
    code, folder, events = 1, root / "reports" / "runs" / config.run_id, []
    with open(root / "said.txt", "w") as said, contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            from mmgen.jobs.launch import launch

            if limit:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            watch(folder, at, how, events)
            launch(config)
            (root / "events.json").write_text(json.dumps([events, sorted(sys.modules)]))
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=said)
    os._exit(code)


def finish(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def results(folder):
    "What a run has left: the bytes of its weights, its curve, and what should not be there."
    last = max((folder / "checkpoints").glob("checkpoint-*"), key=lambda p: int(p.name[11:]), default=folder)
    weights = {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted([*folder.glob("*/model.safetensors"), *last.glob("*.safetensors")])
    }
    log = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    curve = [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]
    return {
        "weights": weights,
        "curve": curve,
        "hidden": [str(p.relative_to(folder)) for p in folder.rglob(".*")],
        "status": json.loads((folder / "run.json").read_text())["status"],
    }


POINTS = {  # what must be among the kills: name of the moment, its event, which of these, how
    "after the record": ("replace run.json", 0, "after"),
    "before the first checkpoint": ("mkdir checkpoints/.checkpoint-2", 0, "before"),
    "in a checkpoint's weights": ("save_file checkpoints/.checkpoint-2", 0, "middle"),
    "in the next one's": ("save_file checkpoints/.checkpoint-4", 1, "middle"),
    "in a checkpoint's state": ("save checkpoints/.checkpoint-2", 0, "middle"),
    "before its facts": ("replace checkpoints/.checkpoint-4/checkpoint.json", 0, "before"),
    "before its name": ("replace checkpoints/checkpoint-4", 0, "before"),
    "between rename and prune": ("replace checkpoints/checkpoint-5", 0, "after"),
    "in the prune": ("replace checkpoints/.checkpoint-2-", 0, "after"),
    "in the weights": ("save_file */", 0, "middle"),
    "before the weights' name": ("replace */model.safetensors", 0, "before"),
    "before the end": ("replace run.json", -1, "before"),
}


def find(events, event, number):
    "The number of an event; * stands for a folder of weights."
    name, _, path = event.partition(" ")
    folder = path.startswith("*/")
    found = [
        i
        for i, (kind, _, where) in enumerate(e.partition(" ") for e in events)
        if kind == name
        and (
            not where.startswith("checkpoints") and "/" in where and where.endswith(path[2:] or "rs")
            if folder
            else where.startswith(path)
        )
    ]
    return found[number] if found else None


def main(root, jobs, kills, seed):
    root, rng = Path(root).resolve(), random.Random(seed)
    root.mkdir(parents=True, exist_ok=True)
    os.environ |= {"MMGEN_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    from mmgen.jobs.registry import JOBS as TABLE
    from mmgen.jobs.registry import config_for

    for job in jobs:
        TABLE[job].load_fit()
    report = {"kills": 0, "dead ends": [], "other bytes": [], "other curve": [], "leftovers": []}
    for job, share in zip(jobs, [kills // len(jobs) + (i < kills % len(jobs)) for i in range(len(jobs))]):
        make = lambda name, **more: config_for(job, "smoke", run_id=name, **STEPS, **JOBS[job], **more)
        runs = root / "reports" / "runs"
        assert finish(start(make("first"), root)) == 0, (root / "said.txt").read_text()  # makes portraits and latents
        for module in json.loads((root / "events.json").read_text())[1]:
            with contextlib.suppress(Exception):
                importlib.import_module(module)
        begun = time.monotonic()
        assert finish(start(make("whole"), root)) == 0, (root / "said.txt").read_text()
        seconds, whole = time.monotonic() - begun, results(runs / "whole")
        events = json.loads((root / "events.json").read_text())[0]
        sizes = sorted(len(data) for data in whole["weights"].values())
        plans = [
            (moment, {"at": find(events, event, number), "how": how}) for moment, (event, number, how) in POINTS.items()
        ]
        plans += [
            (f"files of at most {limit} bytes", {"limit": limit}) for limit in (sizes[0] // 2, sizes[-1] * 3 // 2)
        ]
        plans = [(moment, plan) for moment, plan in plans if plan.get("at") is not None or "limit" in plan]
        rng.shuffle(plans)
        while len(plans) < share:
            at, how = rng.randrange(len(events)), rng.choice(("before", "middle", "after"))
            plans.append(
                (f"{how} event {at}, {events[at]}", {"at": at, "how": how})
                if rng.random() < 0.6
                else (f"after {rng.uniform(0, seconds):.3f} s", {})
            )
        for number, (moment, plan) in enumerate(plans[:share]):
            name = f"cut-{number}"
            what, back = f"{job}, {moment}", f"reports/runs/{name}"
            pid = start(make(name), root, **plan)
            if not plan:
                time.sleep(float(moment.split()[1]))
                os.kill(pid, signal.SIGKILL)
            ended = finish(pid)
            report["kills"] += 1
            said = (root / "said.txt").read_text()
            if ended > 0 and "limit" not in plan:
                report["dead ends"].append(f"{what}: {said.splitlines()[-1]}")
            if rng.random() < 0.2:  # another kill on the way
                pid = start(make(name, resume_from=back), root)
                time.sleep(rng.uniform(0, seconds))
                os.kill(pid, signal.SIGKILL)
                finish(pid)
                report["kills"] += 1
                what += ", and again"
            ended = (
                json.loads((runs / name / "run.json").read_text())["status"] == "completed"
                if (runs / name / "run.json").exists()
                else False
            )
            ways = [{}, {"resume_from": back}] if rng.random() < 0.5 and not ended else [{"resume_from": back}]
            for way in ways:
                code, said = finish(start(make(name, **way), root)), (root / "said.txt").read_text()
                if code == 0 or "resume it" not in said:
                    break
            if code:
                report["dead ends"].append(
                    f"{what}, {'resumed' if way else 'the same command'}: {said.splitlines()[-1][:300]}"
                )
            else:
                found = results(runs / name)
                if found["weights"] != whole["weights"] or found["status"] != "completed":
                    report["other bytes"].append(what)
                if found["curve"] != whole["curve"]:
                    report["other curve"].append(what)
                if found["hidden"]:
                    report["leftovers"].append(f"{what}: {', '.join(found['hidden'])}")
            shutil.rmtree(runs / name, ignore_errors=True)
        print(f"{job}: {report['kills']} kills so far, {seconds:.1f} s a run", file=sys.stderr, flush=True)
        shutil.rmtree(runs / "whole")
        shutil.rmtree(runs / "first")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2].split(","), int(sys.argv[3]), int(sys.argv[4]))
