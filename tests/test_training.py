"The training loop: resume after every kind of end, guards, checkpoints, several processes."

import errno
import json
import math
import os
import random
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import warm
from safetensors.torch import load_file
from torch import nn

from mmgen.training import checkpoints as ck
from mmgen.training.checkpoints import CheckpointError, checkpoints, find_checkpoint, read_checkpoint
from mmgen.training.guards import TrainingDiverged, progress_line, wants_bar
from mmgen.training.loop import Task, lr_factor, make_accelerator, scaled_lr, train, update_ema
from mmgen.training.optimizers import build

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = dict(
    steps=40,
    batch_size=8,
    lr=0.02,
    seed=3,
    warmup=5,
    schedule="cosine",
    weight_decay=0.01,
    ema_decay=0.99,
    log_every=20,
    checkpoint_every=10,
    device="cpu",
)


class FakeRun:
    def __init__(self, path):
        self.path, self.lines, self.figures = Path(path), [], {}

    def log(self, step, **values):
        self.lines.append({"step": step, **values})

    def figure(self, name, picture):
        self.figures[name] = picture


class Points:
    "Rows of y = 2 x0 - x1; a batch is a function of its step."

    def __init__(self, rows=8):
        self.rows = rows

    def __len__(self):
        return 1000

    def batch(self, step):
        x = torch.randn(self.rows, 2, generator=torch.Generator().manual_seed(step))
        return {"x": x, "y": 2 * x[:, :1] - x[:, 1:], "index": torch.arange(self.rows) + self.rows * step}


class Noisy(Task):
    "Dropout and three kinds of random numbers; two optimisers, of which the second skips steps."

    def __init__(self, pause=0.0, width=16):
        torch.manual_seed(0)
        self.pause = pause
        net = nn.Sequential(nn.Linear(2, width), nn.Dropout(0.2), nn.BatchNorm1d(width), nn.Linear(width, 1))
        self.model = nn.ModuleDict({"a": net, "b": nn.Linear(1, 1)})

    def optimizers(self, lr, weight_decay):
        return {
            "a": torch.optim.AdamW(self.model["a"].parameters(), lr, weight_decay=weight_decay),
            "b": torch.optim.SGD(self.model["b"].parameters(), lr / 2, momentum=0.9),
        }

    def loss(self, batch, step, which):
        time.sleep(self.pause)
        if which == "b" and step % 3:
            return None, {}
        x = batch["x"] + 0.1 * torch.randn_like(batch["x"]) + 0.1 * random.random() + 0.1 * float(np.random.randn())
        out = self.model["a"](x)
        if which == "b":
            out = self.model["b"](out.detach())
        return (out - batch["y"]).square().mean(), {"size": out.detach().abs().mean()}

    def sample(self, step):
        return torch.rand(2, 3, 4, 4) * 2 - 1  # draws: must not disturb the training


class Plain(Task):
    "Linear least squares without random numbers; `at` maps a step to what the loss is multiplied with."

    def __init__(self, at=None, out=1):
        torch.manual_seed(0)
        self.model, self.at = nn.Linear(2, out), at or {}

    def loss(self, batch, step, which):
        factor = self.at.get(step, 1.0)
        if callable(factor):
            factor = factor()
        return factor * ((self.model(batch["x"]) - batch["y"]).square().mean() + 0.1), {}


def weights(result):
    return {n: load_file(result.checkpoint / f"{n}.safetensors") for n in ("model", "ema")}


def assert_same(a, b):
    for name in a:
        assert a[name].keys() == b[name].keys()
        for k in a[name]:
            assert torch.equal(a[name][k], b[name][k]), (name, k)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_learns_and_logs(tmp_path, capsys):
    run = FakeRun(tmp_path)
    settings = {**SETTINGS, "steps": 400, "lr": 0.05, "log_every": 100, "weight_decay": 0.0}
    result = train(Plain(), Points(), run, **settings)
    assert result.step == 400 and result.checkpoint.name == "checkpoint-400"
    assert torch.allclose(result.ema.weight, torch.tensor([[2.0, -1.0]]), atol=0.02)
    assert [line["step"] for line in run.lines] == [100, 200, 300, 400]
    assert run.lines[-1]["loss"] < 0.15 < run.lines[0]["loss"] and run.lines[-1]["images_per_second"] > 0
    out = capsys.readouterr().out.splitlines()
    assert len(out) == 4 and out[0].startswith("step 100/400  loss ")
    assert [p.name for p in checkpoints(tmp_path)] == ["checkpoint-390", "checkpoint-400"]


def test_lr_factor():
    assert lr_factor(0, 0, warmup=10) == 0.1 and lr_factor(9, 0, warmup=10) == 1
    assert lr_factor(7, 1.5, schedule="linear") == 0
    assert math.isclose(lr_factor(50, 0.5, schedule="cosine"), 0.5)
    with pytest.raises(ValueError, match="known: constant, linear, cosine"):
        lr_factor(0, 0, schedule="cosin")


def test_learning_rate_scales_with_the_batch_of_all_processes(tmp_path):
    assert scaled_lr(5.6e-5, 8, 28) == pytest.approx(1.6e-5) and scaled_lr(0.5, 8, 0) == 0.5
    given = []

    class Asked(Plain):
        def optimizers(self, lr, weight_decay):
            given.append(lr)
            return super().optimizers(lr, weight_decay)

    train(Asked(), Points(), FakeRun(tmp_path), **{**SETTINGS, "steps": 1, "lr": 0.1, "batch_size": 8, "lr_batch": 16})
    assert given == [0.05]


def test_ema_warm_up():
    a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    for n, d in ((0, 0.1), (90, 0.91), (10**6, 0.999)):
        nn.init.constant_(a.weight, 1.0), nn.init.constant_(b.weight, 0.0)
        update_ema(a, b, n, 0.999)
        assert math.isclose(a.weight.item(), d, rel_tol=1e-5)


def test_resume_equals_uninterrupted(tmp_path):
    whole = train(Noisy(), Points(), FakeRun(tmp_path / "a"), **SETTINGS)
    train(Noisy(), Points(), FakeRun(tmp_path / "b"), **{**SETTINGS, "sample_every": 7})
    c = tmp_path / "b" / "checkpoints" / "checkpoint-30"
    assert c.is_dir()
    resumed = train(Noisy(), Points(), FakeRun(tmp_path / "c"), **SETTINGS, resume_from=c)
    assert_same(weights(whole), weights(resumed))
    other = train(Noisy(), Points(), FakeRun(tmp_path / "d"), **{**SETTINGS, "seed": 4})
    assert not torch.equal(weights(other)["model"]["a.0.weight"], weights(whole)["model"]["a.0.weight"])
    with pytest.warns(UserWarning, match="seed 3 then, 4 now"):
        train(Noisy(), Points(), FakeRun(tmp_path / "e"), **{**SETTINGS, "seed": 4}, resume_from=c)


def test_learning_rate_after_resume_follows_the_new_call(tmp_path):
    train(Plain(), Points(), FakeRun(tmp_path / "a"), **{**SETTINGS, "schedule": "constant"})
    run = FakeRun(tmp_path / "b")
    settings = {**SETTINGS, "schedule": "constant", "steps": 60, "lr": 0.5}
    train(Plain(), Points(), run, **settings, resume_from=tmp_path / "a")
    assert [line["lr"] for line in run.lines] == [0.5] and run.lines[0]["step"] == 60


def _child(folder, resume):
    code = f"""
import sys, torch; sys.path.insert(0, {str(ROOT / "tests")!r}); torch.set_num_threads(1)
import test_training as t
from mmgen.training.loop import is_main
print("ready", flush=True)
run, settings = t.FakeRun({str(folder)!r}), {{**t.SETTINGS, "steps": 300}}
t.train(t.Noisy(pause=0.004), t.Points(), run, **settings, resume_from={resume!r})
"""
    return warm.start("-c", code, merge=False)


def test_kill_9_at_random_moments(tmp_path):
    "Killed twice at random moments, resumed each time: the same weights bit for bit as without."
    whole = train(Noisy(), Points(), FakeRun(tmp_path / "whole"), **{**SETTINGS, "steps": 300})
    cut, rng, steps = tmp_path / "cut", random.Random(), []
    for _ in range(2):
        child = _child(cut, str(cut) if steps else None)
        assert child.stdout.readline() == "ready\n", child.stdout.read()
        before, end = len(steps) and steps[-1], time.monotonic() + 60
        while not (found := checkpoints(cut)) or int(found[-1].name[11:]) <= before:
            assert child.poll() is None and time.monotonic() < end, child.poll()
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.15))
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert child.returncode == -signal.SIGKILL
        steps.append(int(checkpoints(cut)[-1].name[11:]))
    assert 0 < steps[0] < steps[1] < 300, steps
    resumed = train(Noisy(), Points(), FakeRun(cut), **{**SETTINGS, "steps": 300}, resume_from=cut)
    assert resumed.step == 300
    assert_same(weights(whole), weights(resumed))
    assert not list((cut / "checkpoints").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_writes_a_checkpoint_and_is_raised(tmp_path, number):
    press = Plain(at={13: lambda: signal.raise_signal(number) or 1.0})
    before = signal.getsignal(number)
    with pytest.raises(KeyboardInterrupt, match="after step 14.*checkpoint-14"):
        train(press, Points(), FakeRun(tmp_path / "cut"), **SETTINGS)
    assert signal.getsignal(number) is before
    resumed = train(Plain(), Points(), FakeRun(tmp_path / "cut"), **SETTINGS, resume_from=tmp_path / "cut")
    assert_same(weights(train(Plain(), Points(), FakeRun(tmp_path / "whole"), **SETTINGS)), weights(resumed))


@pytest.mark.parametrize(
    "factor, what", [(math.nan, "loss is nan"), (math.inf, "loss is inf"), (1e6, "100 times its median")]
)
def test_divergence_names_step_batch_and_checkpoint(tmp_path, factor, what):
    with pytest.raises(TrainingDiverged, match=what) as e:
        train(Plain(at={25: factor}), Points(), FakeRun(tmp_path), **SETTINGS)
    assert e.value.step == 25 and e.value.ids == list(range(200, 208)) and e.value.checkpoint.name == "checkpoint-20"
    assert "step 25" in str(e.value) and "[200, 201," in str(e.value) and "checkpoint-20" in str(e.value)
    good = read_checkpoint(e.value.checkpoint)[1]
    assert all(v.isfinite().all() for tensors in good.values() for v in tensors.values())


def test_broken_gradient_is_found_before_a_checkpoint(tmp_path):
    class Broken(Plain):
        def loss(self, batch, step, which):
            loss, _ = super().loss(batch, step, which)
            if step == 9:
                loss = loss + (self.model.weight * 0).sum().sqrt()  # finite, with an infinite slope
            return loss, {}

    with pytest.raises(TrainingDiverged, match="grad_norm is nan.*none yet"):
        train(Broken(), Points(), FakeRun(tmp_path), **SETTINGS)


def test_disk_full(tmp_path, monkeypatch):
    def full(path, content, real=ck.atomic_write):
        if "checkpoint-30" in str(path) and path.name == "state.pt":
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, content)

    monkeypatch.setattr(ck, "atomic_write", full)
    with pytest.raises(CheckpointError, match="step 30 could not be written.*No space left.*checkpoint-20"):
        train(Plain(), Points(), FakeRun(tmp_path), **SETTINGS)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["checkpoint-10", "checkpoint-20"]
    read_checkpoint(tmp_path)


def test_a_resume_with_another_batch_reads_on_where_it_stopped(tmp_path):
    class Seen(Points):
        def __init__(self, rows):
            self.rows, self.steps = rows, []

        def batch(self, step):
            self.steps.append(step)
            return super().batch(step)

    train(Plain(), Seen(8), FakeRun(tmp_path), **{**SETTINGS, "steps": 10})  # rows 0 to 79
    data = Seen(4)
    with pytest.warns(UserWarning, match="will not equal an uninterrupted one: batch_size 8 then, 4 now"):
        train(Plain(), data, FakeRun(tmp_path), **{**SETTINGS, "steps": 13, "batch_size": 4}, resume_from=tmp_path)
    assert data.steps == [20, 21, 22]
    again = Seen(8)
    with pytest.warns(UserWarning, match="will not equal"):
        train(Plain(), again, FakeRun(tmp_path), **{**SETTINGS, "steps": 15}, resume_from=tmp_path)
    assert again.steps == [11, 12]  # 92 rows were read; half of batch 11 comes again, nothing is left out


def test_killed_anywhere_in_a_save_the_last_checkpoint_can_be_read(tmp_path):
    "A run that went back from 200 to 100 saves 150: killed before each renaming and each removal."

    def save(folder, step):
        return ck.save_checkpoint(folder, {"step": step}, {"model": {"w": torch.full((9,), float(step))}}, {})

    found = []
    for moment in range(40):
        folder = tmp_path / str(moment)
        save(folder, 100), save(folder, 200)
        child = os.fork()
        if not child:
            left = iter(range(moment))

            def deadly(real):
                return lambda *a, **k: (
                    real(*a, **k) if next(left, None) is not None else os.kill(os.getpid(), signal.SIGKILL)
                )

            os.replace, os.unlink, os.rmdir, shutil.rmtree = map(
                deadly, (os.replace, os.unlink, os.rmdir, shutil.rmtree)
            )
            save(folder, 150)
            os._exit(0)
        ended = os.waitpid(child, 0)[1]
        facts, tensors, _ = read_checkpoint(find_checkpoint(folder))
        assert (tensors["model"]["w"] == facts["step"]).all() and (
            facts["step"] == 150 or not (folder / "checkpoint-150").exists()
        )
        found.append(facts["step"])
        if not ended:
            break
        assert [p.name for p in (save(folder, 160), *folder.iterdir()) if p.name.startswith(".")] == []
    assert not ended and found[0] == 200 and found[-1] == 150 and 100 in found


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_bad_checkpoints(tmp_path):
    train(Plain(), Points(), FakeRun(tmp_path), **SETTINGS)
    last = find_checkpoint(tmp_path)

    def go(task=None, source=last):
        train(task or Plain(), Points(), FakeRun(tmp_path / "other"), **SETTINGS, resume_from=source)

    shapes = r"2 tensors of another shape \(weight: \(1, 2\) there, \(3, 2\) here"
    with pytest.raises(CheckpointError, match=r"\(model\) is of another architecture: " + shapes):
        go(Plain(out=3))
    with pytest.raises(CheckpointError, match="2 tensors unknown"):
        go(Noisy())
    with pytest.raises(CheckpointError, match="is not a checkpoint and has none"):
        go(source=tmp_path / "nothing")

    whole = (last / "state.pt").read_bytes()
    (last / "state.pt").write_bytes(whole[:100])
    with pytest.raises(CheckpointError, match="state.pt is truncated.*Another checkpoint: .*checkpoint-30"):
        go()

    torch.save({"optimizers": Evil(tmp_path / "ran")}, last / "state.pt")  # with a hash that fits
    facts = json.loads((last / "checkpoint.json").read_text())
    facts["files"]["state.pt"] = {"bytes": (last / "state.pt").stat().st_size, "sha256": ck.sha256(last / "state.pt")}
    (last / "checkpoint.json").write_text(json.dumps(facts))
    with pytest.raises(CheckpointError, match="cannot be used: Weights only load failed"):
        go()
    assert not (tmp_path / "ran").exists()

    (last / "checkpoint.json").write_text("{")
    with pytest.raises(CheckpointError, match="cannot be used"):
        go()


DAMAGE = {
    "no checkpoint.json's step": lambda c, f: f.pop("step"),
    "a step of words": lambda c, f: f.update(step="40"),
    "a negative step": lambda c, f: f.update(step=-1),
    "no seconds": lambda c, f: f.pop("seconds"),
    "no files": lambda c, f: f.pop("files"),
    "seconds of words": lambda c, f: f.update(seconds="long"),
    "no seen": lambda c, f: f.update(seen=None),
    "files as a list": lambda c, f: f.update(files=["state.pt"]),
    "an empty entry": lambda c, f: f["files"].update({"state.pt": {}}),
    "an entry that is a number": lambda c, f: f["files"].update({"state.pt": 3}),
    "must_match as a list": lambda c, f: f.update(must_match=[1]),
    "no model": lambda c, f: (c / "model.safetensors").unlink(),
    "no average": lambda c, f: (c / "ema.safetensors").unlink(),
    "no state": lambda c, f: (c / "state.pt").unlink(),
    "no learned": lambda c, f: (c / "learned.json").unlink(),
    "an empty model": lambda c, f: (c / "model.safetensors").write_bytes(b""),
    "an empty state": lambda c, f: (c / "state.pt").write_bytes(b""),
    "another learned": lambda c, f: (c / "learned.json").write_text('{"tags": ["b"]}'),
    "model not in the files": lambda c, f: f["files"].pop("model.safetensors"),
    "state not in the files": lambda c, f: f["files"].pop("state.pt"),
}
STATES = {
    "a list": [1],
    "nothing": {},
    "no optimizers": ("optimizers",),
    "no generators": ("rng",),
    "no scaler": ("scaler",),
    "generators of words": {"rng": ["x"]},
    "optimizers of words": {"optimizers": "x"},
    "an optimizer of words": {"optimizers": {"main": "x"}},
    "an optimizer without groups": {"optimizers": {"main": {"state": {}, "param_groups": []}}},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "A run of 4 steps with what it learned."
    task, folder = Plain(), tmp_path_factory.mktemp("finished")
    task.learned, task.must_match = {"tags": ["a"]}, {"encoder": "1f", "widths": (1, 2)}
    train(task, Points(), FakeRun(folder), **{**SETTINGS, "steps": 4, "checkpoint_every": 2})
    return folder


@pytest.mark.parametrize("kind", [*DAMAGE, *STATES])
def test_a_damaged_checkpoint_is_refused_in_a_sentence_that_names_another(kind, finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    last = find_checkpoint(tmp_path / "run")
    facts = json.loads((last / "checkpoint.json").read_text())
    if kind in DAMAGE:
        DAMAGE[kind](last, facts)
    else:
        state, change = torch.load(last / "state.pt", weights_only=True), STATES[kind]
        if isinstance(change, tuple):
            state = {k: v for k, v in state.items() if k not in change}
        else:
            state = {**state, **change} if change and isinstance(change, dict) else change
        torch.save(state, last / "state.pt")
        facts["files"]["state.pt"] = {
            "bytes": (last / "state.pt").stat().st_size,
            "sha256": ck.sha256(last / "state.pt"),
        }
    (last / "checkpoint.json").write_text(json.dumps(facts))
    task = Plain()
    task.must_match = {"encoder": "1f"}
    with pytest.raises(CheckpointError) as e:
        ck.learned(last)
        train(task, Points(), FakeRun(tmp_path / "other"), **SETTINGS, resume_from=tmp_path / "run")
    said = str(e.value)
    assert "checkpoint-4" in said and "\n" not in said and len(said) < 600 and said.endswith("."), said
    assert (
        "Another checkpoint: " in said
        and "checkpoint-2" in said
        or "another architecture" in said
        or "different optimisers" in said
    ), said


def test_a_checkpoint_without_its_facts_counts_for_nothing(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    (find_checkpoint(tmp_path / "run") / "checkpoint.json").unlink()
    assert find_checkpoint(tmp_path / "run").name == "checkpoint-2"


def test_what_was_learned_is_in_the_checkpoint_and_what_must_match_is_compared(finished, tmp_path):
    assert ck.learned(finished) == {"tags": ["a"]} and ck.learned(None) == {}

    def go(must_match):
        task = Plain()
        task.must_match = must_match
        return train(task, Points(), FakeRun(tmp_path), **SETTINGS, resume_from=finished)

    with pytest.raises(
        CheckpointError,
        match="checkpoint-4 belongs to another training: encoder 1f then, 2f now; "
        "widths .1, 2. then, .1, 3. now[.] Resume",
    ):
        go({"encoder": "2f", "widths": (1, 3)})
    assert go({"encoder": "1f", "widths": [1, 2], "new": 3}).step == 40


class Built(Plain):
    def __init__(self, kind):
        super().__init__()
        self.model, self.kind = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)), kind

    def optimizers(self, lr, weight_decay):
        if self.kind == "adam":
            return {"main": torch.optim.Adam(self.model.parameters(), lr)}
        return build(self.kind, self.model, lr, weight_decay)


@pytest.mark.parametrize("then", ["muon", "adamw", "adam"])
def test_another_optimizer_is_refused_in_a_sentence(then, tmp_path):
    train(Built(then), Points(), FakeRun(tmp_path), **{**SETTINGS, "steps": 2})
    for now in {"muon", "adamw", "adam"} - {then}:
        with pytest.raises(
            CheckpointError,
            match=f"was trained with optimizer={then}, not {now}; resume it with optimizer={then}, "
            "or start a new run[.]$",
        ):
            train(Built(now), Points(), FakeRun(tmp_path / "b"), **SETTINGS, resume_from=tmp_path)


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_weight_decay_after_resume_follows_the_new_call(kind, tmp_path):
    train(Built(kind), Points(), FakeRun(tmp_path), **{**SETTINGS, "steps": 2, "weight_decay": 0.1})
    task, made = Built(kind), {}
    task.optimizers = lambda lr, weight_decay: made.update(Built.optimizers(task, lr, weight_decay)) or made
    train(task, Points(), FakeRun(tmp_path / "b"), **{**SETTINGS, "weight_decay": 0.3}, resume_from=tmp_path)
    groups = [part.param_groups[0] for part in made["main"].parts] if kind == "muon" else made["main"].param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]


def test_a_run_that_ended_before_its_first_checkpoint_starts_anew(tmp_path, capsys):
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(CheckpointError, match="is not a checkpoint and has none"):
        train(Plain(), Points(), FakeRun(run), **SETTINGS, resume_from=run)
    for name, text in ((".lock", ""), ("run.json", '{"checkpoint": null}')):
        (run / name).write_text(text)
        result = train(Plain(), Points(), FakeRun(tmp_path / name), **{**SETTINGS, "steps": 2}, resume_from=run)
        assert (
            result.step == 2
            and "run ended before its first checkpoint: the training starts again." in capsys.readouterr().out
        )
    for text in ('{"checkpoint": {"file": "checkpoint-40"}}', "{"):  # it had one, which somebody has removed
        (run / "run.json").write_text(text)
        with pytest.raises(CheckpointError, match="is not a checkpoint and has none"):
            train(Plain(), Points(), FakeRun(run), **SETTINGS, resume_from=run)


def test_a_run_that_has_done_its_steps_says_so(finished, tmp_path, capsys):
    for steps in (4, 3):
        result = train(Plain(), Points(), FakeRun(tmp_path), **{**SETTINGS, "steps": steps}, resume_from=finished)
        assert (
            result.step == 4
            and f"of step 4 at 0 s, and steps is {steps}: nothing is left to train." in capsys.readouterr().out
        )
    train(Plain(), Points(), FakeRun(tmp_path), **{**SETTINGS, "max_seconds": 1e-6}, resume_from=finished)
    assert "and max_seconds is 1e-06: nothing is left" in capsys.readouterr().out


def test_stale_and_later_checkpoints_go(tmp_path):
    train(Plain(), Points(), FakeRun(tmp_path), **SETTINGS)
    left = tmp_path / "checkpoints" / ".checkpoint-39"  # of a process that died while writing
    left.mkdir()
    settings = {**SETTINGS, "steps": 35}
    train(Plain(), Points(), FakeRun(tmp_path), **settings, resume_from=tmp_path / "checkpoints" / "checkpoint-30")
    assert sorted(p.name for p in left.parent.iterdir()) == ["checkpoint-30", "checkpoint-35"]


def test_time_limit(tmp_path, capsys):
    run, task = FakeRun(tmp_path), Plain(at={k: lambda: time.sleep(0.01) or 1.0 for k in range(10**4)})
    settings = {**SETTINGS, "steps": 10**4, "max_seconds": 0.5, "schedule": "linear", "checkpoint_every": 0}
    settings["log_every"] = 5
    result = train(task, Points(), run, **settings)
    assert capsys.readouterr().out.splitlines()[-1].endswith(" done, 0:00 left")
    assert 10 < result.step <= 50 and 0.5 <= result.seconds < 2 and run.lines[-1]["lr"] < 0.1 * SETTINGS["lr"]
    again = train(task, Points(), FakeRun(tmp_path / "b"), **settings, resume_from=tmp_path)
    assert again.step == result.step  # the limit counts over resumes


def test_no_time_is_left_after_the_end():
    assert progress_line(7, 9, {"loss": 0.5}, 48, 48 / 28) == "step 7/9  loss 0.5  0:48 done, 0:00 left"


def test_bfloat16_after_float32(tmp_path):
    seen = []

    class Look(Plain):
        def loss(self, batch, step, which):
            seen.append(self.model(batch["x"]).dtype)
            return super().loss(batch, step, which)

    for precision in ("no", "bf16"):
        settings = {**SETTINGS, "steps": 2, "mixed_precision": precision}
        train(Look(), Points(), FakeRun(tmp_path / precision), **settings)
    assert seen == [torch.float32] * 2 + [torch.bfloat16] * 2


@pytest.mark.parametrize("fast", [True, False])
def test_auto_precision_follows_the_processor(fast, monkeypatch):
    monkeypatch.setattr("mmgen.training.loop.fast_bf16", lambda device: fast)
    assert make_accelerator("cpu", "auto").mixed_precision == ("bf16" if fast else "no")


def test_tensorboard_and_samples(tmp_path):
    run = FakeRun(tmp_path)
    train(Noisy(), Points(), run, **SETTINGS, tensorboard=True, sample_every=25)
    assert list(run.figures) == ["sample-25", "sample-40"] and run.figures["sample-25"].shape == (4, 10, 3)
    assert list((tmp_path / "tensorboard").glob("events*"))


def test_bar_or_lines(monkeypatch):
    monkeypatch.delenv("JPY_SESSION_NAME", raising=False)
    monkeypatch.setattr(sys, "stderr", open(os.devnull, "w"))
    assert not wants_bar()
    monkeypatch.setenv("JPY_SESSION_NAME", "x.ipynb")
    assert wants_bar()


def test_two_processes_share_gradients(tmp_path):
    "Two processes with 8 rows each walk the way of one process with those 16 rows; only the first writes."

    class Joined(Points):
        def batch(self, step):
            a, b = Points.batch(self, 2 * step), Points.batch(self, 2 * step + 1)
            return {k: torch.cat([a[k], b[k]]) for k in a}

    settings = {**SETTINGS, "steps": 12, "checkpoint_every": 6}
    train(Plain(), Joined(), FakeRun(tmp_path / "one"), **settings)
    code = f"""
import sys, torch; sys.path.insert(0, {str(ROOT / "tests")!r}); torch.set_num_threads(1)
import test_training as t
from mmgen.training.loop import is_main
make = lambda name: t.FakeRun({str(tmp_path)!r} + name) if is_main() else None
t.train(t.Plain(), t.Points(), make("/two"), **{settings!r})
t.train(t.Noisy(), t.Points(), make("/gan"), **{settings!r})
again = {str(tmp_path)!r} + "/gan/checkpoints/checkpoint-6"
t.train(t.Noisy(), t.Points(), make("/again"), **{settings!r}, resume_from=again)
torch.distributed.barrier()
torch.distributed.destroy_process_group()
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {
        **os.environ,
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "1",
    }

    processes = [warm.start("-c", code, env={**env, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    for p in processes:
        out, _ = p.communicate(timeout=120)
        assert p.returncode == 0, out
    a, b = (load_file(find_checkpoint(tmp_path / name) / "model.safetensors") for name in ("one", "two"))
    for k in a:
        assert torch.allclose(a[k], b[k], atol=1e-6), k
    a, b = (load_file(find_checkpoint(tmp_path / name) / "model.safetensors") for name in ("gan", "again"))
    for k in a:
        assert torch.equal(a[k], b[k]), k
