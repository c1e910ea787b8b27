"""Jobs that are killed, resumed with other data or other networks: no dead ends, the same weights, the same meaning."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import warm
from safetensors.torch import load_file, save_file

from mmgen.base.weights import packaged, read_config
from mmgen.clip.model import CLIP
from mmgen.clip.train import tokenizer_files, tokenizer_of
from mmgen.jobs.launch import launch
from mmgen.jobs.registry import config_for
from mmgen.training.checkpoints import CheckpointError, learned

FEW = {"device": "cpu", "mixed_precision": "no", "log_every": 1, "checkpoint_every": 100}


def job(name, run_id, **more):
    return config_for(name, "smoke", run_id=run_id, **{**FEW, **more})


def folder(root, run_id):
    return root / "reports" / "runs" / run_id


def losses(root, run_id):
    return [json.loads(line)["loss"] for line in (folder(root, run_id) / "metrics.jsonl").read_text().splitlines()]


def other(name, where):
    "A copy of packaged weights, of which one weight has changed a little."
    where.mkdir(parents=True)
    for file in packaged()[name].iterdir():
        (where / file.name).write_bytes(file.read_bytes())
    state = load_file(where / "model.safetensors")
    largest = max(state, key=lambda key: state[key].numel())
    state[largest] = state[largest] * 1.01
    save_file(state, where / "model.safetensors", metadata={"format": "pt"})
    return str(where)


# --- data that changed ---


def test_a_tokenizer_goes_through_a_checkpoint():
    tokenizer = CLIP.load("clip-portraits", "cpu").tokenizer
    texts = ["green hair, smile", "a man's hat", "", "GRÜN 1.5 (x)", "no glasses " * 40]
    ids = lambda t: t(texts, truncation=True, max_length=77)["input_ids"]
    again = tokenizer_of(json.loads(json.dumps(tokenizer_files(tokenizer))))
    assert ids(again) == ids(tokenizer) and again.get_vocab() == tokenizer.get_vocab()
    assert again.pad_token_id == tokenizer.pad_token_id


def test_clip_that_is_resumed_with_one_picture_more_keeps_its_words(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    how = {"images": 16, "held_out": 8, "lr_schedule": "constant", "steps": 80, "lr": 2e-2}
    launch(job("clip", "first", **how))
    back = str(folder(tmp_path, "first"))
    with pytest.warns(
        UserWarning, match="will not equal an uninterrupted one: rows 16 then, 17 now; data .* then, .* now"
    ):
        launch(job("clip", "second", **how | {"images": 17, "steps": 84}, resume_from=back))
    launch(job("clip", "fresh", **how | {"images": 17, "steps": 1}))  # what the new data would have taught
    words = {
        name: CLIP.load(folder(tmp_path, name) / "clip-portraits", "cpu").tokenizer.get_vocab()
        for name in ("first", "second", "fresh")
    }
    assert words["first"] == words["second"] and words["first"] != words["fresh"]
    before, after = losses(tmp_path, "first"), losses(tmp_path, "second")
    assert before[0] > 3 and max(before[-6:]) < 2 and len(after) == 4
    assert max(after) < 2  # with the words of "fresh" the first one is above 3


def test_clip_without_its_tokenizer_is_not_resumed(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    monkeypatch.setattr("mmgen.clip.train.tokenizer_files", lambda tokenizer: {})
    launch(job("clip", "old", images=16, held_out=8, steps=1))
    file = folder(tmp_path, "old") / "checkpoints" / "checkpoint-1" / "checkpoint.json"
    facts = json.loads(file.read_text())
    facts["files"].pop("learned.json")  # as of earlier versions
    file.write_text(json.dumps(facts))
    with pytest.raises(
        CheckpointError, match="checkpoint-1 has no tokenizer; a new one would give other ids: start a new run[.]"
    ):
        launch(job("clip", "new", images=16, held_out=8, steps=2, resume_from=str(folder(tmp_path, "old"))))


LDM = {"images": 24, "held_out": 0, "sample_every": 0, "sample_images": 2, "edit_images": 1, "steps": 2}


pytestmark = pytest.mark.filterwarnings("ignore::mmgen.data.captions.CutWarning")


@pytest.fixture(scope="module")
def ldm(tmp_path_factory):
    "A root with a short run of an LDM."
    root = tmp_path_factory.mktemp("ldm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMGEN_ROOT", str(root))
        launch(job("ldm", "first", **LDM))
    return root


@pytest.mark.parametrize("scale, n", [("channel", 32), ("scalar", 1)])
def test_an_ldm_that_is_resumed_with_other_data_keeps_its_scale(ldm, scale, n, monkeypatch):
    monkeypatch.setenv("MMGEN_ROOT", str(ldm))
    whole, how = "first" if scale == "channel" else "scalar", LDM | {"latent_scale": scale}
    if whole != "first":
        launch(job("ldm", whole, **how))
    with pytest.warns(UserWarning, match="rows 24 then, 20 now; data .* then, .* now"):
        launch(job("ldm", f"{whole}-2", **how | {"images": 20, "steps": 3}, resume_from=str(folder(ldm, whole))))
    first, second = (read_config(folder(ldm, name) / "model") for name in (whole, f"{whole}-2"))
    assert len(first["latent_mean"]) == n
    assert all(first[name] == second[name] for name in ("latent_mean", "latent_std"))
    known = learned(folder(ldm, whole))
    assert known == {"mean": first["latent_mean"], "std": first["latent_std"], "tags": first["tags"]}
    assert second["tags"][: len(first["tags"])] == first["tags"]


# --- other networks ---


@pytest.mark.parametrize(
    "change, said",
    [
        (
            {"text_encoder": "clip-portraits"},
            "text_encoder [0-9a-f]{16} then, [0-9a-f]{16} now[.] Resume it with the earlier values",
        ),
        ({"autoencoder": "autoencoder-portraits"}, "autoencoder [0-9a-f]{16} then"),
        ({"prediction": "eps"}, "prediction flow then, eps now"),
        ({"attention_heads": 4}, "attention_heads 2 then, 4 now"),
        ({"norm_groups": 4}, "norm_groups 8 then, 4 now"),
        ({"latent_scale": "scalar"}, "latent_scale channel then, scalar now"),
        ({"masked": False}, "masked True then, False now"),
        ({"timesteps": 500}, "timesteps 1000 then, 500 now"),
    ],
)
def test_an_ldm_is_not_resumed_with_other_networks(ldm, change, said, monkeypatch):
    monkeypatch.setenv("MMGEN_ROOT", str(ldm))
    for field in {"text_encoder", "autoencoder"} & change.keys():
        change = {field: other(change[field], ldm / "other" / field)}
    record = (folder(ldm, "first") / "run.json").read_bytes()
    config = replace(job("ldm", "first", **LDM | {"steps": 3}, resume_from="reports/runs/first"), **change)
    with pytest.raises(CheckpointError, match=f"checkpoint-2 belongs to another training: .*{said}"):
        launch(config)
    assert (folder(ldm, "first") / "run.json").read_bytes() == record  # it is complete still


@pytest.fixture(scope="module")
def mapper(tmp_path_factory):
    "A root with a short run of a mapper."
    root = tmp_path_factory.mktemp("mapper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MMGEN_ROOT", str(root))
        launch(job("mapper", "first", images=24, held_out=1, steps=1))
    return root


@pytest.mark.parametrize("field, name", [("encoder", "encoder-portraits"), ("clip", "clip-portraits")])
def test_a_mapper_is_not_resumed_with_other_networks(mapper, field, name, monkeypatch):
    monkeypatch.setenv("MMGEN_ROOT", str(mapper))
    place = Path(other(name, mapper / "other" / field))
    if field == "clip":  # a CLIP is known by its projections
        state = load_file(place / "model.safetensors")
        save_file(
            state | {"text_projection.weight": state["text_projection.weight"] * 1.1},
            place / "model.safetensors",
            metadata={"format": "pt"},
        )
    with pytest.raises(CheckpointError, match=f"belongs to another training: {field} [0-9a-f]* then"):
        launch(
            job(
                "mapper",
                "second",
                images=24,
                held_out=1,
                steps=2,
                resume_from="reports/runs/first",
                **{field: str(place)},
            )
        )


def test_a_mapper_keeps_its_statistics_and_adds_tags(mapper, monkeypatch):
    monkeypatch.setenv("MMGEN_ROOT", str(mapper))
    with pytest.warns(UserWarning, match="rows 24 then, 20 now"):
        launch(job("mapper", "third", images=20, held_out=1, steps=2, resume_from="reports/runs/first"))
    first, third = (load_file(folder(mapper, name) / "mapper" / "model.safetensors") for name in ("first", "third"))
    assert all(torch.equal(first[k], third[k]) for k in ("mean", "std", "text_mean", "text_whitening"))
    first, third = (read_config(folder(mapper, name) / "mapper")["tags"] for name in ("first", "third"))
    assert third[: len(first)] == first == learned(folder(mapper, "first"))["tags"]


# --- kills ---


def kill(root, jobs, kills, seed):
    done = warm.run("-m", "kills", root, jobs, kills, seed, timeout=7200)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report.pop("kills") >= kills
    assert not any(report.values()), json.dumps(report, indent=1)


def test_killed_jobs_go_on_and_end_the_same(tmp_path):
    kill(tmp_path, "oracle", 9, 0)  # nine of the forced moments


@pytest.mark.slow
def test_a_hundred_kills_of_all_jobs(tmp_path):
    kill(tmp_path, "clip,oracle,identity,mapper,autoencoder,instruct,ldm,stylegan2,encoder", 100, 1)
