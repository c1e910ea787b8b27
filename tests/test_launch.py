"""Jobs from a shell: arguments, kill and resume, two processes, Ctrl-C under papermill."""

import inspect
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import warm
from safetensors.torch import load_file
from test_shards import portrait_shards

from mmgen.base.files import repo_root
from mmgen.jobs.launch import main
from mmgen.jobs.registry import JOBS, TRAINING

pytestmark = pytest.mark.notebooks


def environment(root):
    return os.environ | {"MMGEN_ROOT": str(root), "OMP_NUM_THREADS": "1"}


def start(root, *arguments, **more):
    job = ("-m", "mmgen.jobs.launch", *arguments, "device=cpu", "mixed_precision=no")
    return warm.start(*job, env=environment(root) | more, cwd=root)


def finish(process):
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 0, said[-3000:]
    return said


def wait_for(condition, process, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, "the run has ended or hangs"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["ldm", "--steps=5"], "no field '--steps'"),
        (["ldm", "steps"], "is not name=value"),
        (["ldm", "preset=smal"], "did you mean 'small'"),
        (["ldm", "steps=five"], "steps must be int, not str 'five'"),
        (["lmd"], "did you mean ldm"),
        ([], "must be a job"),
    ],
)
def test_the_command_explains_mistakes(arguments, said):
    with pytest.raises(SystemExit, match=said):
        main(arguments)


@pytest.mark.parametrize("job", JOBS)
def test_every_row_names_its_fit(job):
    row = JOBS[job]
    assert (row.fit is None) == (job == "edit")
    if row.fit:
        assert {"config", "run"} <= set(inspect.signature(row.load_fit()).parameters)
    assert row.trains == (job in TRAINING)


def test_a_killed_ldm_resumes_to_the_same_weights(tmp_path):
    job = ("ldm", "preset=smoke", "steps=60", "checkpoint_every=7", "optimizer=muon", "sample_every=20", "held_out=0")
    whole, cut = start(tmp_path, *job, "run_id=whole"), start(tmp_path, *job, "run_id=cut")
    checkpoints, moments = tmp_path / "reports" / "runs" / "cut" / "checkpoints", random.Random()
    wait_for(lambda: list(checkpoints.glob("checkpoint-*")), cut)
    time.sleep(moments.uniform(0, 0.8))
    cut.kill()
    cut.communicate()
    reached = max(int(p.name.split("-")[1]) for p in checkpoints.glob("checkpoint-*"))
    finish(whole)
    finish(start(tmp_path, *job, "run_id=cut", "resume_from=reports/runs/cut"))
    a, b = (
        load_file(tmp_path / "reports" / "runs" / name / "model" / "model.safetensors") for name in ("whole", "cut")
    )
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), f"killed after step {reached}"
    a, b = (json.loads((tmp_path / "reports" / "runs" / name / "run.json").read_text()) for name in ("whole", "cut"))
    assert a["status"] == b["status"] == "completed" and a["checkpoint"]["file"] == b["checkpoint"]["file"]
    assert len(b["resumed"]) == 1 and a["data"]["sha256"] == b["data"]["sha256"]


def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def start_two(root, *arguments):
    shared = {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port(),
        "ACCELERATE_USE_CPU": "1",
    }
    return [start(root, *arguments, **shared, RANK=rank, LOCAL_RANK=rank) for rank in "01"]


def curve(root, run_id, name="loss"):
    lines = (root / "reports" / "runs" / run_id / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines]


def weights(root, run_id):
    return load_file(root / "reports" / "runs" / run_id / "model" / "model.safetensors")


@pytest.mark.parametrize("job", ["ldm", "autoencoder"])
def test_two_processes_make_one_run(job, tmp_path):
    both = start_two(tmp_path, job, "preset=smoke", "run_id=both")
    said = [finish(process) for process in both]
    assert "step 6/6" in said[0] and "step 6/6" not in said[1]
    assert [p.name for p in (tmp_path / "reports" / "runs").iterdir()] == ["both"]
    record = json.loads((tmp_path / "reports" / "runs" / "both" / "run.json").read_text())
    assert record["status"] == "completed"
    facts = json.loads(
        next((tmp_path / "reports" / "runs" / "both" / "checkpoints").glob("*/checkpoint.json")).read_text()
    )
    assert facts["processes"] == 2 and facts["step"] == 6


@pytest.mark.slow
@pytest.mark.parametrize("left", ["metrics.jsonl", "checkpoints/checkpoint-20"])
def test_two_processes_that_were_killed_go_on_under_their_name(left, tmp_path):
    "Before the first checkpoint the same command starts anew; after it, and before it too, resume_from goes on."
    job, run = (
        ("autoencoder", "preset=smoke", "steps=40", "checkpoint_every=20", "run_id=both"),
        tmp_path / "reports" / "runs" / "both",
    )
    both = start_two(tmp_path, *job)
    wait_for(lambda: (run / left).exists(), both[0], 240)
    for process in both:
        process.kill()
    for process in both:
        process.communicate()
    for more in (
        ((), ("resume_from=reports/runs/both",)) if left == "metrics.jsonl" else (("resume_from=reports/runs/both",),)
    ):
        said = [finish(process) for process in start_two(tmp_path, *job, *more)]
        assert (
            json.loads((run / "run.json").read_text())["status"] == "completed"
            and (run / "autoencoder" / "model.safetensors").is_file()
        )
    assert "is of step 40" in said[0] if left == "metrics.jsonl" else "step 40/40" in said[0]


SHARDS = (
    "preset=smoke",
    "data=shards",
    "images=96",
    "held_out=0",
    "edit_tags=green hair",
    "sample_images=4",
    "edit_images=2",
    "log_every=1",
)


def launched(root, launcher, *arguments):
    "What two processes say that accelerate or torchrun starts, without a GPU."
    command = [
        str(Path(sys.executable).parent / launcher[0]),
        *launcher[1:],
        port(),
        "-m",
        "mmgen.jobs.launch",
        *arguments,
        "device=cpu",
        "mixed_precision=no",
    ]
    done = subprocess.run(command, env=environment(root), cwd=root, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


ACCELERATE = (
    "accelerate",
    "launch",
    "--multi_gpu",
    "--num_processes",
    "2",
    "--num_machines",
    "1",
    "--dynamo_backend",
    "no",
    "--mixed_precision",
    "no",
    "--main_process_port",
)  # --multi_gpu: by torchrun; with --cpu it would start one process, or MPI's


def test_accelerates_two_processes_do_what_one_does_with_the_double_batch(tmp_path):
    portrait_shards(tmp_path / "shards")
    job = ("ldm", *SHARDS, "steps=20", "caption_dropout=0.3", "sample_every=7", "optimizer=adamw", "lr=1e-3")
    said = launched(tmp_path, ACCELERATE, *job, "batch_size=6", "run_id=two")  # this makes the latents
    finish(start(tmp_path, *job, "batch_size=12", "run_id=one"))
    assert said.count("step 20/20") == 1 and sorted(p.name for p in (tmp_path / "reports" / "runs").iterdir()) == [
        "one",
        "two",
    ]
    for name, most in (("loss", 1e-5), ("grad_norm", 1e-4)):
        one, two = (curve(tmp_path, run, name) for run in ("one", "two"))
        assert len(one) == len(two) == 20 and max(abs(a / b - 1) for a, b in zip(one, two)) < most
        assert max(abs(a / b - 1) for a, b in zip(one, two[1:])) > 100 * most  # steps differ by far more than that
    a, b = weights(tmp_path, "one"), weights(tmp_path, "two")
    assert all((a[k].float() - b[k].float()).abs().max() < 2e-3 for k in a)
    facts = json.loads(
        next((tmp_path / "reports" / "runs" / "two" / "checkpoints").glob("checkpoint-20/checkpoint.json")).read_text()
    )
    assert facts["processes"] == 2


@pytest.mark.slow
def test_torchrun_too(tmp_path):
    portrait_shards(tmp_path / "shards", train=48)
    said = launched(
        tmp_path,
        ("torchrun", "--nproc-per-node", "2", "--master-port"),
        "ldm",
        *SHARDS,
        "images=48",
        "steps=3",
        "batch_size=4",
    )
    assert said.count("step 3/3") == 1 and len(list((tmp_path / "reports" / "runs").iterdir())) == 1


def test_a_job_on_shards_killed_in_mid_epoch_resumes_to_the_same_weights(tmp_path):
    portrait_shards(tmp_path / "shards")
    job = ("ldm", *SHARDS, "steps=40", "checkpoint_every=3", "batch_size=8")
    whole, cut = (
        start(tmp_path, *job, "run_id=whole"),
        start(tmp_path, *job, "run_id=cut"),
    )  # one of them makes the latents
    checkpoints = tmp_path / "reports" / "runs" / "cut" / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("checkpoint-*")), cut)
    cut.kill()
    cut.communicate()
    finish(whole)
    finish(start(tmp_path, *job, "run_id=cut", "resume_from=reports/runs/cut"))
    a, b = weights(tmp_path, "whole"), weights(tmp_path, "cut")
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    record = json.loads((tmp_path / "reports" / "runs" / "cut" / "run.json").read_text())
    assert (
        record["status"] == "completed"
        and record["data"]["rows"] == 96
        and 0 < record["data"]["latent_rounding"] < 5e-4
    )
    assert len(list((tmp_path / "data" / "cache").glob("latents-*/manifest.json"))) == 1


def test_ctrl_c_under_papermill_leaves_a_checkpoint_and_a_record(tmp_path):
    papermill = Path(sys.executable).parent / "papermill"
    run = tmp_path / "reports" / "runs" / "stopped"
    process = subprocess.Popen(
        [
            str(papermill),
            str(repo_root() / "nbs" / "train_ldm.ipynb"),
            str(tmp_path / "out.ipynb"),
            "--no-progress-bar",
            "-p",
            "preset",
            "smoke",
            "-p",
            "steps",
            "100000",
            "-p",
            "run_id",
            "stopped",
            "-p",
            "device",
            "cpu",
        ],
        env=environment(tmp_path),
        cwd=tmp_path,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # a shell in the background ignores it
    log = run / "metrics.jsonl"
    try:
        wait_for(lambda: log.exists() and log.read_text().count("\n") > 3, process)
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode != 0
    assert json.loads((run / "run.json").read_text())["status"] == "interrupted"
    last = max((run / "checkpoints").iterdir(), key=lambda p: int(p.name.split("-")[1]))
    assert (
        load_file(last / "model.safetensors")
        and int(last.name.split("-")[1]) >= json.loads(log.read_text().splitlines()[-1])["step"]
    )
