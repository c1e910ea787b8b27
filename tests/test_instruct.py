"Instructions: the difference of two captions, pairs, the model that is trained on them, and what it is measured by."

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import mmgen
from mmgen.app.export import export_model
from mmgen.app.targets import target_of
from mmgen.base.images import to_float
from mmgen.base.run_page import read_log
from mmgen.base.runs import Run, load_run
from mmgen.base.schema import WeightsError
from mmgen.base.weights import load_state, packaged, resolve
from mmgen.benchmark.counterfactuals import counterfactuals, to_dataset
from mmgen.data.caption_text import SourceError
from mmgen.data.captions import caption
from mmgen.data.edited_captions import instruction_between
from mmgen.data.edits import edits
from mmgen.data.pairs import edited_face, load_pairs
from mmgen.data.portraits import is_held_out, render, sample, tags
from mmgen.editing.protocol import EditError
from mmgen.jobs.registry import config_for
from mmgen.ldm.diffusion import noise_like, start
from mmgen.ldm.editors.instruct import InstructEditor, InstructPix2Pix, random_instruct
from mmgen.ldm.editors.instruct_start import Start, for_start, open_model
from mmgen.ldm.editors.instruct_train import InstructTask, fit
from mmgen.ldm.pipeline import LatentDiffusion, random_pipeline
from mmgen.ldm.published.diffusers_open import random_diffusers
from mmgen.metrics.oracle import Oracle, score_editor


@pytest.mark.parametrize(
    "source, target, instruction",
    [
        ("blue hair, smile", "green hair, smile", "green hair, no blue hair"),
        ("glasses, eyewear, smile", "smile", "no glasses, no eyewear"),
        ("smile", "smile", ""),
        ("", "green hair", "green hair"),
        ("a, b", "b,a ", ""),
        ("", "", ""),
    ],
)
def test_an_instruction_is_the_difference_of_two_captions(source, target, instruction):
    assert instruction_between(source, target) == instruction


def test_pairs_are_training_faces_with_their_exact_answers():
    images, edited, there, back, *_ = load_pairs("portraits", 30)
    assert images.shape == edited.shape == (30, 64, 64, 3)
    for i in (0, 7, 29):
        assert (images[i] == render(sample(i))).all() and (edited[i] == render(edited_face(i))).all()
        assert (
            there[i] == instruction_between(caption(tags(sample(i))), caption(tags(edited_face(i))))
            and there[i] != back[i]
        )


def test_edits_never_lead_to_a_combination_that_is_held_out():
    assert not any(is_held_out(edited_face(seed)) for seed in range(500) if not is_held_out(sample(seed)))


def test_pairs_of_ones_own(tmp_path):
    rows = to_dataset(counterfactuals(6))
    rows.to_parquet(tmp_path / "pairs.parquet")
    images, edited, prompts, back, *_ = load_pairs(str(tmp_path / "pairs.parquet"), 4, 32)
    assert images.shape == edited.shape == (4, 32, 32, 3) and back is None and set(prompts) <= set(rows["edit_prompt"])
    rows.remove_columns(["edit_prompt", "edited_image"]).to_parquet(tmp_path / "few.parquet")
    with pytest.raises(SourceError, match="lacks the columns edit_prompt, edited_image"):
        load_pairs(str(tmp_path / "few.parquet"), 4)
    with pytest.raises(SourceError, match="cannot be opened as a set of pairs"):
        load_pairs(str(tmp_path / "none.parquet"), 4)


def test_the_start_from_a_diffusion_model_ignores_the_source_at_first():
    start_config = config_for("instruct", init_from="ldm-portraits")
    unet = Start(start_config, torch.device("cpu")).unet
    start = LatentDiffusion.load("ldm-portraits", "cpu")
    x, other, t = torch.randn(2, 32, 8, 8), torch.randn(2, 32, 8, 8), torch.full((2,), 300.0)
    states, mask = start.context(["green hair", "smile"])
    assert torch.allclose(unet(torch.cat([x, other], 1), t, states, mask), start.unet(x, t, states, mask), atol=1e-5)


def test_a_dropped_instruction_asks_for_the_source(monkeypatch):
    model, seen = random_instruct(), {}
    monkeypatch.setattr(
        "mmgen.ldm.editors.instruct_train.diffusion_loss",
        lambda network, x0, *rest, **drawn: seen.update(x0=x0) or x0.sum(),
    )
    states, mask = model.context(["green hair", "smile"])
    batch = {
        "source": torch.randn(2, 4, 8, 8),
        "target": torch.randn(2, 4, 8, 8),
        "states": states,
        "length": mask.sum(1),
    }
    for dropout, expected in ((1.0, "source"), (0.0, "target")):
        InstructTask(model.unet, model.text_encoder, model.process, caption_dropout=dropout).loss(batch, 0, "main")
        assert torch.equal(seen["x0"], batch[expected])


def test_a_diffusion_model_is_no_instruct_model_and_the_other_way_round():
    with pytest.raises(EditError, match="instruct-pix2pix needs a InstructPix2Pix, not a LatentDiffusion"):
        InstructEditor(random_pipeline())
    p = random_pipeline()
    with pytest.raises(ValueError, match="This model is no InstructPix2Pix: its UNet reads 4 channels"):
        InstructPix2Pix(p.autoencoder, p.text_encoder, p.unet)
    if "instruct-portraits" in packaged():
        with pytest.raises(ValueError, match="instruct-portraits is an InstructPix2Pix: its UNet reads"):
            LatentDiffusion.load("instruct-portraits", "cpu")


def test_a_run_leaves_a_model_that_edits_the_same_and_a_resumed_one_ends_the_same(tmp_path):
    few = {"images": 64, "held_out": 0, "checkpoint_every": 2}
    with Run("instruct", config := config_for("instruct", "smoke", **few), tmp_path, "whole") as run:
        whole = fit(config, run)["pipeline"]
    images = torch.rand(2, 3, 64, 64) * 2 - 1
    again = InstructPix2Pix.load(run.path / "model", "cpu")
    edit = lambda p: InstructEditor(p, steps=2).edit(images, ["blue hair", ""], ["green hair", "smile"])
    assert (edit(whole) - edit(again)).abs().max() < 0.02  # saved in float16
    with Run("instruct", config_for("instruct", "smoke", **few), tmp_path, "halves") as run:
        with pytest.raises(KeyboardInterrupt):
            steps = []
            interrupted = lambda *given, **named: (
                steps.append(0) or (_ for _ in ()).throw(KeyboardInterrupt) if len(steps) == 3 else steps.append(0)
            )
            run.log = interrupted
            fit(config_for("instruct", "smoke", log_every=1, **few), run)
    config = config_for("instruct", "smoke", resume_from=str(run.path), **few)
    with Run("instruct", config, tmp_path, "halves", resume=True) as run:
        fit(config, run)
    first, second = (load_state(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "halves"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.skipif("instruct-portraits" not in packaged(), reason="instruct-portraits is not packaged")
@pytest.mark.parametrize(
    "kind, reached, skill",
    [("hair color", 0.97, 0.92), ("eye color", 0.9, 0.6), ("glasses on", 0.95, 0.6), ("glasses off", 0.95, 0.6)],
)
def test_the_packaged_model_does_what_exact_pairs_can_teach(kind, reached, skill):
    scores, _ = score_editor(
        Oracle.load(device="cpu"), mmgen.editor("instruct-pix2pix", device="cpu"), edits(kind, 24, "test"), None
    )
    assert scores["reached"] >= reached and scores["skill"] >= skill and scores["kept"] >= 0.97, scores


# own pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    "A folder of 24 pairs in which squares turn green."
    folder = tmp_path_factory.mktemp("own") / "pairs"
    for i in range(24):
        for name, colour in (("before", (120, 0, 8 * i)), ("after", (0, 160, 8 * i))):
            (folder / name).mkdir(parents=True, exist_ok=True)
            image = Image.new("RGB", (64, 64), (240, 240, 8 * i))
            image.paste(colour, (8, 8, 40, 48))
            image.save(folder / name / f"{i:02}.png")
        (folder / "after" / f"{i:02}.txt").write_text("make it green")
    return folder


def train(root, run_id, resume=False, **fields):
    fields = {"steps": 4, "batch_size": 4, "sampler_steps": 2, "checkpoint_every": 2, "device": "cpu"} | fields
    with Run("instruct", config := config_for("instruct", "smoke", **fields), root, run_id, resume=resume) as run:
        fit(config, run)
    return run.path


def test_a_training_on_own_pairs_shows_its_edits_as_it_goes(tmp_path, pairs, capsys):
    path = train(tmp_path, "own", data=str(pairs), init_from="auto", tensorboard=True, sample_every=2)
    told = capsys.readouterr().out
    assert "starts from instruct-portraits" in told and "22 for training, 2 held out (seed 0)" in told
    assert f"{pairs}: 24 pairs (sources in before/, targets in after/, instructions in after/)" in told
    log, record = read_log(path), load_run(path)
    for name in ("skill", "skill of training pairs", "held-out loss"):
        assert [step for step, _ in log[name]] == [0, 2, 4]
        assert f"{name} " in told
    assert [f["file"] for f in record["figures"]] == ["sample-0.jpg", "sample-2.jpg", "sample-4.jpg", "edits.jpg"]
    assert record["data"]["layout"].startswith("sources in before/") and len(record["data"]["held_out"]) == 2
    assert "held-out pairs" in record["figures"][0]["about"] and record["starts_from"] == "instruct-portraits"
    page = (path / "index.html").read_text()
    assert "skill of training pairs" in page and "sample-2.jpg: held-out pairs" in page
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(path / "tensorboard")).Reload()
    assert len(events.Images("sample")) == 3 and [e.step for e in events.Scalars("skill")] == [0, 2, 4]
    (skill,) = [m for m in record["metrics"] if m["name"] == "skill"]
    assert skill["n"] == 2 and skill["low"] <= skill["value"] <= skill["high"]
    first, model = (InstructPix2Pix.load(name, "cpu") for name in ("instruct-portraits", path / "model"))
    assert torch.allclose(model.mean, first.mean) and model.unet.config == first.unet.config
    assert not torch.equal(model.unet.conv_in.weight, first.unet.conv_in.weight)


def test_a_resumed_training_on_own_pairs_ends_the_same(tmp_path, pairs):
    fields = {"data": str(pairs), "init_from": "instruct-portraits", "sample_every": 1}
    train(tmp_path, "halves", **fields | {"steps": 2}, lr_schedule="constant")
    whole = train(tmp_path, "constant", **fields, lr_schedule="constant")
    halves = train(tmp_path, "halves", True, **fields, resume_from=str(tmp_path / "halves"), lr_schedule="constant")
    first, second = (load_state(path / "model" / "model.safetensors") for path in (whole, halves))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert read_log(whole)["skill"] == read_log(halves)["skill"]


def test_a_few_pairs_are_learned_from_random_weights(tmp_path, pairs):
    path = train(tmp_path, "random", data=str(pairs), held_out=0, size=32)
    assert "skill" not in read_log(path) and not load_run(path)["figures"]
    assert InstructPix2Pix.load(path / "model", "cpu").size == 32


def test_a_low_rank_change_trains_few_parameters_and_is_merged(tmp_path, pairs):
    fields = {"data": str(pairs), "init_from": "instruct-portraits", "sample_every": 2, "lora_rank": 2}
    train(tmp_path, "halves", **fields | {"steps": 2}, lr_schedule="constant")
    path = train(tmp_path, "halves", True, **fields, resume_from=str(tmp_path / "halves"), lr_schedule="constant")
    whole = train(tmp_path, "whole", **fields, lr_schedule="constant")
    first, second, start = (
        load_state(folder / "model.safetensors")
        for folder in (path / "model", whole / "model", resolve("instruct-portraits"))
    )
    assert first.keys() == start.keys() and all(torch.equal(first[name], second[name]) for name in first)
    changed = {name for name in start if not torch.allclose(first[name], start[name], atol=1e-3)}
    assert changed and all(name.startswith("conv_in") or ".to_" in name for name in changed), changed
    counts = load_run(whole)["parameters"]
    assert counts["trained"] < counts["unet"] / 5


def test_a_model_of_own_pairs_reads_an_instruction_in_any_words(monkeypatch):
    model, seen = random_instruct(), []
    model.tags = ["make it green"]  # of its training
    editor = InstructEditor(model, steps=2)
    picture = np.full((48, 40, 3), 200, np.uint8)
    monkeypatch.setattr(model, "follow", lambda z, texts, *rest: seen.append(texts) or z)
    mmgen.edit(picture, "Paint it blue", editor=editor, check=False)
    assert target_of(editor, "smile", "Paint it blue").instruction == "Paint it blue"
    assert seen == [["Paint it blue"], [""]] or seen == [[""], ["Paint it blue"]], seen
    assert target_of(editor, "smile", "", "a caption").instruction == ""
    model.tags = ["green hair"]
    assert target_of(editor, "smile", "make the hair green").instruction == ""


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    "A very small Stable Diffusion 1.x with random weights, as diffusers writes it."
    folder = tmp_path_factory.mktemp("sd") / "sd"
    pipe = random_diffusers()
    pipe.register_modules(
        scheduler=diffusers.DDIMScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
        )
    )
    pipe.save_pretrained(folder)
    return folder


def test_stable_diffusion_learns_from_pairs_and_opens_in_diffusers(tmp_path, pairs, stable_diffusion, capsys):
    fields = {"data": str(pairs), "init_from": str(stable_diffusion), "size": 32, "steps": 3, "lr": 0.001}
    path = train(tmp_path, "sd", **fields, batch_size=2)
    assert "32 px, batch 2, lr 0.001, adamw" in capsys.readouterr().out
    ours = open_model(path, "cpu")[0]
    assert isinstance(ours, InstructPix2Pix) and ours.unscaled and ours.unet.config["in_channels"] == 8
    assert ours.unet.conv_in.weight[:, 4:].abs().max() > 0, "the zeros of the start are trained"
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(path / "model")
    pipe.set_progress_bar_config(disable=True)
    x = to_float(np.asarray(Image.open(pairs / "before/00.png").resize((32, 32))))
    z = ours.encode(x)
    noise = noise_like(z, torch.Generator().manual_seed(3))
    theirs = pipe(
        "make it green",
        image=x / 2 + 0.5,
        latents=start(ours.process, torch.zeros_like(z), noise, 1.0, 4),
        num_inference_steps=4,
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        output_type="np",
    ).images[0]
    made = ours.decode(ours.follow(z, ["make it green"], 7.5, 1.5, 4, "ddim", seed=3))
    mine = (made[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).numpy()
    assert theirs.std() > 0.01 and abs(mine - theirs).max() <= 2 / 255
    again = open_model(export_model(path, tmp_path / "export"), "cpu")[0]
    assert all(torch.equal(a, b) for a, b in zip(ours.unet.parameters(), again.unet.parameters()))
    edited = InstructEditor(again, steps=2).edit(x, [""], ["make it green"], instruction=["make it green"])
    assert edited.shape == x.shape and edited.isfinite().all()


def test_a_start_from_stable_diffusion_ignores_the_source_at_first(stable_diffusion):
    config = config_for("instruct", data="pairs", init_from=str(stable_diffusion), batch_size=3)
    begin = Start(config, torch.device("cpu"))
    model = open_model(stable_diffusion, "cpu")[0]
    settings = for_start(config, begin)
    assert (settings.lr, settings.optimizer, settings.batch_size) == (5e-5, "adamw", 3) and settings.size == model.size
    x, t, texts = torch.randn(2, 8, 8, 8), torch.full((2,), 300.0), model.context(["green hair", "smile"])
    with torch.no_grad():
        assert torch.allclose(begin.unet(x, t, *texts), model.unet(x[:, :4], t, *texts), atol=1e-5)


def test_a_start_that_is_no_model_is_one_sentence(tmp_path, pairs):
    with pytest.raises(WeightsError, match="clip-portraits"):
        train(tmp_path, "a", data=str(pairs), init_from="clip-portraits")
    with pytest.raises(SourceError, match="no pairs|pairs need"):
        train(tmp_path, "b", data=str(pairs / "before"))
