"""mmgen.base.runs: the record is complete and readable whatever ends the run."""

import dataclasses
import errno
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from mmgen.base import runs
from mmgen.base.files import repo_root, sha256
from mmgen.base.run_page import chart
from mmgen.base.runs import Run, RunError, load_run, load_runs, to_json


@dataclasses.dataclass(frozen=True)
class Config:
    seed: int = 5
    lr: float = 1e-3
    limit: float = math.inf


def record(run):
    return json.loads((run.path / "run.json").read_text())


def test_the_record_holds_what_a_number_depends_on(tmp_path):
    with Run("ldm", Config(), root=tmp_path) as run:
        early = record(run)
        assert early["status"] == "running" and early["end"] is None
        time.sleep(0.05)
    done = record(run)
    assert re.fullmatch(r"ldm-\d{8}-\d{6}-[0-9a-f]{4}", run.run_id) and run.path == tmp_path / run.run_id
    assert done["schema"] == 1 and done["name"] == "ldm" and done["status"] == "completed" and done["error"] is None
    assert done["config"] == {"seed": 5, "lr": 1e-3, "limit": "inf"} and done["seed"] == 5
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", done["start"]) and done["start"] <= done["end"]
    assert 0.05 <= done["wall_seconds"] < 60 and done["peak_memory_mib"]["rss"] > 50
    assert done["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    assert done["hardware"]["cores"] >= 1 and done["hardware"]["cpu"] and set(done["git"]) == {"sha", "dirty"}
    assert all("/" not in a for a in done["argv"])


def test_the_default_root_is_in_the_repository(monkeypatch, tmp_path):
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    with Run("x") as run:
        pass
    assert run.path.parent == tmp_path / "reports" / "runs"
    assert [r["run_id"] for r in load_runs()] == [run.run_id]


def test_metrics_are_replaced_by_name_and_extras(tmp_path):
    with Run("x", root=tmp_path) as run:
        run.metric("PSNR", 30.0, n=10)
        run.metric("PSNR", torch.tensor(31.5), n=500)
        run.metric("kept", 0.9, n=200, strength=0.5)
        run.metric("kept", np.float32(0.5), n=200, strength=0.7)
        run.metric("FD", float("nan"))
        assert record(run)["metrics"][0] == {"name": "PSNR", "value": 31.5, "n": 500}  # on disk at once
    assert [(m["name"], m["value"], m.get("strength")) for m in record(run)["metrics"]] == [
        ("PSNR", 31.5, None),
        ("kept", 0.9, 0.5),
        ("kept", 0.5, 0.7),
        ("FD", "nan", None),
    ]


def test_log_lines(tmp_path):
    with Run("x", root=tmp_path) as run:
        run.log(1, loss=0.5, lr=1e-3)
        run.log(2, loss=float("nan"), grad=float("inf"))
        lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and lines[0]["seconds"] <= lines[1]["seconds"]
    assert lines[0]["loss"] == 0.5 and lines[1]["loss"] == "nan" and lines[1]["grad"] == "inf"


def test_figures_and_artifacts_are_recorded_with_their_hash(tmp_path):
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(1, 1))
    drawing.subplots().plot([1, 2])
    with Run("x", root=tmp_path / "runs") as run:
        run.figure("grid", np.full((8, 8, 3), 200, np.uint8))
        run.figure("plot", drawing)
        run.figure("pil", Image.new("RGBA", (4, 4)))
        run.figure("grid", np.zeros((8, 8, 3), np.uint8))  # made again: one entry
        (run.path / "samples").mkdir()
        (run.path / "samples" / "a.txt").write_text("abc")
        run.artifact(run.path / "samples" / "a.txt")
        (tmp_path / "outside.bin").write_bytes(b"12345")
        run.artifact(tmp_path / "outside.bin")
    done = record(run)
    assert sorted(f["file"] for f in done["figures"]) == ["grid.jpg", "pil.jpg", "plot.jpg"]
    assert all(f["sha256"] == sha256(run.path / f["file"]) for f in done["figures"])
    assert np.asarray(Image.open(run.path / "grid.jpg")).max() < 10
    assert [(a["file"], a["bytes"]) for a in done["artifacts"]] == [("samples/a.txt", 3), ("outside.bin", 5)]


def test_notes_merge_and_guard_the_records_own_keys(tmp_path):
    with Run("x", root=tmp_path) as run:
        run.note(parameters={"unet": 10}, data={"manifest_sha256": "ab"})
        run.note(parameters={"autoencoder": 20}, remark="first try")
        with pytest.raises(RunError, match="'status' is written by the run itself"):
            run.note(status="completed")
    done = record(run)
    assert done["parameters"] == {"unet": 10, "autoencoder": 20} and done["data"] == {"manifest_sha256": "ab"}
    assert done["remark"] == "first try"


def test_checkpoint_hash_depends_on_names_and_contents(tmp_path):
    with Run("x", root=tmp_path) as run:
        folder = run.path / "checkpoints" / "checkpoint-3"
        folder.mkdir(parents=True)
        (folder / "a").write_text("1")
        run.checkpoint(folder)
        first = record(run)["checkpoint"]
        (folder / "a").rename(folder / "b")
        run.checkpoint(folder)
        second = record(run)["checkpoint"]
        run.checkpoint(folder / "b")
    assert first["file"] == "checkpoint-3" and first["bytes"] == 1 and first["sha256"] != second["sha256"]
    assert record(run)["checkpoint"]["sha256"] == sha256(folder / "b")


def test_a_failure_is_recorded_and_raised_without_absolute_paths(tmp_path):
    with pytest.raises(OSError):
        with Run("x", {"data": str(repo_root() / "data" / "mine")}, root=tmp_path) as run:
            raise OSError(f"cannot read {repo_root()}/data/a.parquet or {Path.home()}/b")
    done = record(run)
    assert done["status"] == "failed" and done["end"]
    assert done["error"] == "OSError: cannot read ./data/a.parquet or ~/b"
    assert done["config"]["data"] == "./data/mine"


def test_ctrl_c_is_recorded_and_raised(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        with Run("x", root=tmp_path) as run:
            raise KeyboardInterrupt
    assert record(run)["status"] == "interrupted"


def test_a_full_disk_does_not_hide_the_error(tmp_path, monkeypatch):
    import mmgen.base.runs

    def full(*args):
        raise OSError(28, "No space left on device")

    with pytest.raises(RuntimeError, match="the real one"):
        with Run("x", root=tmp_path):
            monkeypatch.setattr(mmgen.base.runs, "atomic_write", full)
            raise RuntimeError("the real one")
    with pytest.raises(OSError, match="No space left"):
        monkeypatch.undo()
        with Run("x", root=tmp_path):
            monkeypatch.setattr(mmgen.base.runs, "atomic_write", full)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_a_real_process_ends_the_run(number, tmp_path):
    code = (
        "import signal, time, sys; from mmgen.base.runs import Run\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "with Run('x', root=sys.argv[1], run_id='r') as run:\n    print('on', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=repo_root(),
        text=True,
    )
    assert process.stdout.readline() == "on\n"
    process.send_signal(number)
    assert process.wait(30) != 0
    assert load_run(tmp_path / "r")["status"] == "interrupted"


def test_a_taken_folder_is_refused_or_resumed(tmp_path):
    with Run("x", root=tmp_path, run_id="r") as run:
        run.note(parameters={"unet": 1})
        run.metric("PSNR", 1.0)
        run.log(1, loss=1.0)
    before = record(run)
    with open(run.path / "metrics.jsonl", "a") as f:
        f.write('{"step": 2, "sec')  # what a kill leaves
    before["status"], before["wall_seconds"] = "running", 100.0
    (run.path / "run.json").write_text(json.dumps(before))
    with pytest.raises(RunError, match="Run 'r' exists already; choose another run_id, or resume it"):
        with Run("x", root=tmp_path, run_id="r"):
            pass
    with Run("x", root=tmp_path, run_id="r", resume=True) as again:
        again.log(2, loss=0.5)
    done = record(again)
    assert done["parameters"] == {"unet": 1} and done["metrics"][0]["value"] == 1.0 and done["start"] == before["start"]
    assert done["status"] == "completed" and done["wall_seconds"] > 100 and done["resumed"][0]["status"] == "running"
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2] and lines[1]["seconds"] > 100
    with Run("x", root=tmp_path, run_id="new", resume=True) as fresh:
        pass  # nothing there yet: an ordinary start
    assert record(fresh)["status"] == "completed"


def test_a_run_that_is_going_on_is_neither_begun_again_nor_resumed(tmp_path):
    code = (
        "import multiprocessing, sys, time; from mmgen.base.runs import Run\n"
        "with Run('x', root=sys.argv[1], run_id='r') as run:\n"
        "    run.metric('PSNR', 1.0)\n"
        "    worker = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,)); worker.start()\n"
        "    print(worker.pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=repo_root(), text=True
    )
    worker = int(process.stdout.readline())
    before = (tmp_path / "r" / "run.json").read_bytes()
    for resume in (False, True):
        with pytest.raises(RunError, match="Run 'r' is running in another process; wait until it ends"):
            with Run("x", root=tmp_path, run_id="r", resume=resume):
                pass
    assert (tmp_path / "r" / "run.json").read_bytes() == before
    process.kill()
    process.wait()
    try:  # the worker lives on, and does not hold what its parent held
        with Run("x", root=tmp_path, run_id="r", resume=True) as again:
            pass
    finally:
        os.kill(worker, signal.SIGKILL)
    assert record(again)["resumed"][0]["status"] == "running" and {p.name for p in again.path.iterdir()} == {
        "run.json",
        "index.html",
    }


def test_a_disk_without_locks_is_no_hindrance(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", none)
    with Run("x", root=tmp_path, run_id="r"):
        pass
    assert load_run(tmp_path / "r")["status"] == "completed"


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_ended_before_a_checkpoint_or_result_does_not_keep_its_name(resume, tmp_path):
    def leave(*names):
        for name in names:
            (tmp_path / "r" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "r" / name).write_text("x")

    picture = np.zeros((8, 8, 3), np.uint8)
    for say in (
        lambda run: None,
        lambda run: run.log(1, loss=1.0),
        lambda run: run.figure("sample-3", picture),
        lambda run: leave(
            "tensorboard/events.1",
            "checkpoints/.checkpoint-4/.model-0123abcd.tmp.safetensors",
            ".run-0123abcd.tmp.json",
        ),
    ):
        with pytest.raises(ValueError, match="a typo"), Run("x", Config(), tmp_path, "r", resume=resume) as run:
            say(run)
            raise ValueError("a typo")
    with Run("x", Config(), tmp_path, "r", resume=resume) as run:
        assert {p.name for p in run.path.iterdir()} == {".lock", "run.json"} and "resumed" not in record(run)


@pytest.mark.parametrize(
    "say",
    [
        lambda run: run.metric("PSNR", 1.0),
        lambda run: (run.path / "notes.txt").write_text("mine"),
        lambda run: (run.path / "checkpoints" / "checkpoint-4").mkdir(parents=True),
        lambda run: (run.path / "parts").mkdir(),
    ],
)
def test_a_run_that_has_something_to_lose_keeps_its_name(say, tmp_path):
    with pytest.raises(ValueError, match="a typo"), Run("x", {"resume_from": None}, tmp_path, "r") as run:
        say(run)
        raise ValueError("a typo")
    before = sorted(run.path.rglob("*"))
    with (
        pytest.raises(RunError, match="or resume it: resume_from=.*/r[.]$"),
        Run("x", {"resume_from": None}, tmp_path, "r"),
    ):
        pass
    assert sorted(run.path.rglob("*")) == before
    with Run("x", {"resume_from": "r"}, tmp_path, "r", resume=True) as again:
        pass
    assert record(again)["resumed"][0]["status"] == "failed"


def test_a_job_that_cannot_be_resumed_starts_anew_until_it_completes(tmp_path):
    config = {"run_id": "r"}  # as of directions and edit
    with pytest.raises(ValueError), Run("x", config, tmp_path, "r") as run:
        run.metric("channels", 3)
        raise ValueError
    with Run("x", config, tmp_path, "r") as run:
        assert record(run)["metrics"] == []
    with (
        pytest.raises(RunError, match="Run 'r' exists already; choose another run_id[.]$"),
        Run("x", config, tmp_path, "r"),
    ):
        pass


def test_a_completed_run_stays_so_where_its_resume_is_refused(tmp_path):
    with Run("x", root=tmp_path, run_id="r") as run:
        run.metric("PSNR", 1.0)
    before = (run.path / "run.json").read_bytes()
    with (
        pytest.raises(RunError, match="is of x, not y; choose another"),
        Run("y", root=tmp_path, run_id="r", resume=True),
    ):
        pass
    with pytest.raises(ValueError, match="other"), Run("x", root=tmp_path, run_id="r", resume=True) as again:
        again.note(data={"rows": 3})
        raise ValueError("other weights")
    assert (run.path / "run.json").read_bytes() == before
    with pytest.raises(ValueError), Run("x", root=tmp_path, run_id="r", resume=True) as again:
        again.log(1, loss=1.0)
        raise ValueError
    assert record(again)["status"] == "failed"


def test_steps_that_are_done_again_are_logged_once(tmp_path):
    with Run("x", root=tmp_path, run_id="r") as run:
        for step in (2, 4, 6):
            run.log(step, loss=step)
        run.metric("PSNR", 1.0)
    with Run("x", root=tmp_path, run_id="r", resume=True) as run:  # from a checkpoint of step 3
        for step in (4, 4, 6):
            run.log(step, loss=-step)
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(2, 2), (4, -4), (4, -4), (6, -6)]


@pytest.mark.parametrize("bad", ["../x", "a/b", ".hidden", "", "a\\b"])
def test_names_that_are_no_folder(bad, tmp_path):
    with pytest.raises(RunError, match="cannot name a folder"):
        Run(bad, root=tmp_path)
    if bad:
        with pytest.raises(RunError, match="cannot name a folder"):
            Run("x", root=tmp_path, run_id=bad)


def test_peak_memory_sees_a_passing_peak(tmp_path):
    code = f"""
import json, time
import numpy as np
from mmgen.base.runs import Run
with Run("x", root={str(tmp_path)!r}) as run:
    print(json.loads((run.path/"run.json").read_text())["peak_memory_mib"]["rss"])
    block = np.ones(200 * 2**20 // 8)
    time.sleep(1.2)
    del block
print(json.loads((run.path/"run.json").read_text())["peak_memory_mib"]["rss"])
"""  # in a process of its own: memory that earlier tests used and gave back would hide the peak
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    start, peak = map(int, done.stdout.split())
    assert peak > start + 150


def test_load_runs_filters_and_sorts(tmp_path):
    for n, (name, start, status) in enumerate(
        [
            ("b", "2026-01-02T00:00:00Z", "completed"),
            ("a", "2026-01-01T00:00:00Z", "failed"),
            ("a", "2026-01-03T00:00:00Z", "completed"),
        ]
    ):
        with Run(name, root=tmp_path, run_id=f"r{n}") as run:
            pass
        (run.path / "run.json").write_text(json.dumps(record(run) | {"start": start, "status": status}))
    (tmp_path / "empty").mkdir()
    assert [r["run_id"] for r in load_runs(tmp_path)] == ["r1", "r0", "r2"]
    assert [r["run_id"] for r in load_runs(tmp_path, name="a")] == ["r1", "r2"]
    assert [r["run_id"] for r in load_runs(tmp_path, status="completed", name="a")] == ["r2"]
    assert load_runs(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    "text, says",
    [
        ("{", "r/run.json is not a run record"),
        ("[]", "holds a list"),
        ('{"schema": 2}', "has schema 2; .* reads schema 1"),
        ('{"schema": 1, "name": 3}', "'name' must be a str, not 3"),
        ("\x80", "r/run.json"),
    ],
)
def test_malformed_records_are_named(text, says, tmp_path):
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunError, match=says):
        load_run(tmp_path / "r")
    with pytest.raises(RunError, match=says):
        load_runs(tmp_path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(RunError, match="gone/run.json cannot be read: No such file"):
        load_run(tmp_path / "gone")


def test_to_json():
    assert to_json({1: (np.int64(2), Path("/a/b.txt"), {3}), "x": [float("-inf"), None, True]}) == {
        "1": [2, "b.txt", [3]],
        "x": ["-inf", None, True],
    }


class Links(HTMLParser):
    "What a page loads or points at."

    def __init__(self, text):
        super().__init__()
        self.found, self.tags = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.found += [value for name, value in attributes if name in ("src", "href")]


def test_a_run_leaves_one_page_with_all_that_it_shows(tmp_path):
    with Run("ldm", Config(), root=tmp_path, run_id="one <&>") as run:
        for step in range(1, 1000):
            run.log(step, loss=1 / step, accuracy="nan" if step == 7 else 0.5)
        for step in (100, 1000):
            run.log(step, **{"held-out loss": 2 / step})
        for step in range(20):
            run.figure(f"sample-{step}", np.zeros((8, 8, 3), np.uint8))
        run.figure("edits", np.zeros((8, 8, 3), np.uint8), "green <hair>")
        run.metric("PSNR", 31.25, n=8, unit="dB", low=30.0, high=32.5)
        assert "running" in (run.path / "index.html").read_text(), "the page shows a run while it trains"
    page = (run.path / "index.html").read_text()
    links = Links(page)
    assert len(links.found) == 7 and all(link.startswith("data:image/jpeg;base64,") for link in links.found), (
        "the page needs no other file"
    )
    assert links.tags.count("svg") == 2 and links.tags.count("polyline") == 3 and "script" not in links.tags
    assert (
        "one &lt;&amp;&gt;" in page
        and "edits.jpg: green &lt;hair&gt;" in page
        and "31.25 dB" in page
        and "[30, 32.5] · n 8" in page
    )
    assert (
        page.index("edits.jpg") < page.index("sample-0.jpg") < page.index("sample-19.jpg")
        and "sample-1.jpg" not in page
    )
    assert record(run)["figures"][-1]["about"] == "green <hair>" and "index.html" not in json.dumps(record(run))


def test_a_failed_run_has_its_reason_on_the_page_and_an_empty_one_has_no_page(tmp_path):
    with pytest.raises(ValueError), Run("ldm", root=tmp_path, run_id="failed") as run:
        run.log(1, loss=0.5)
        raise ValueError("no <weights>")
    assert "ValueError: no &lt;weights&gt;" in (run.path / "index.html").read_text()
    with pytest.raises(ValueError), Run("ldm", root=tmp_path, run_id="empty"):
        raise ValueError("nothing done")
    assert not (tmp_path / "empty" / "index.html").exists()


@pytest.mark.parametrize(
    "values", [[3.0], [0.0, 0.0], [1e-9, 5e4], [-2.0, 7.0], [1e12, 1.0000001e12], [0.1] * 500, [-1e-300, 1e-300]]
)
def test_any_finite_values_make_a_chart(values):
    drawn = ElementTree.fromstring(
        chart("loss & <more>", {"loss": list(enumerate(values)), "held-out": [(0, values[0])]})
    )
    lines = [element.get("points") for element in drawn.iter() if element.tag.endswith("polyline")]
    places = [float(number) for line in lines for number in re.split("[ ,]", line)]
    assert len(lines) == 2 and all(math.isfinite(place) and -1 <= place <= 341 for place in places)


def test_tensorboard_gets_the_pictures(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    picture = np.full((8, 8, 3), 200, np.uint8)
    with Run("ldm", {"tensorboard": True}, root=tmp_path) as run:
        for name in ("sample-500", "sample-1000", "edits"):
            run.figure(name, picture)
    events = accumulator.EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    assert [image.step for image in events.Images("sample")] == [500, 1000] and [
        image.step for image in events.Images("edits")
    ] == [0]
    assert abs(int(np.asarray(Image.open(BytesIO(events.Images("edits")[0].encoded_image_string)))[0, 0, 0]) - 200) < 4
    with Run("ldm", {"tensorboard": False}, root=tmp_path) as run:
        run.figure("edits", picture)
    assert not (run.path / "tensorboard").exists()


@pytest.mark.parametrize("values", [[1e16] * 3, [1e300, 1e300], [-1.7e308, 1.7e308], [3.0]])
def test_large_constants_have_a_page(tmp_path, values):
    with Run("x", root=tmp_path, run_id="r") as run:
        for step, value in enumerate(values):
            run.log(step, loss=value)
    page = (run.path / "index.html").read_text("utf-8")
    assert ("<svg" in page) == (abs(values[0]) < 1e300)


def test_a_page_that_cannot_be_written_does_not_hide_what_ended_the_run(tmp_path, monkeypatch):
    def fail(path):
        raise ZeroDivisionError("a chart")

    monkeypatch.setattr(runs, "write_page", fail)
    with (
        pytest.warns(UserWarning, match="The page of run r was not written .a chart."),
        pytest.raises(ValueError, match="diverged"),
    ):
        with Run("x", root=tmp_path, run_id="r") as run:
            run.metric("PSNR", 1.0)
            raise ValueError("diverged")
    assert record(run)["status"] == "failed"
