"Instructions: the difference of two captions, pairs, the model that is trained on them, and what it is measured by."

import pytest
import torch

import mmgen
from mmgen.base.runs import Run
from mmgen.base.weights import load_state, packaged
from mmgen.benchmark.counterfactuals import counterfactuals, to_dataset
from mmgen.data.caption_text import SourceError
from mmgen.data.captions import caption
from mmgen.data.edited_captions import instruction_between
from mmgen.data.edits import edits
from mmgen.data.pairs import edited_face, load_pairs
from mmgen.data.portraits import is_held_out, render, sample, tags
from mmgen.editing.protocol import EditError
from mmgen.jobs.registry import config_for
from mmgen.ldm.editors.instruct import InstructEditor, InstructPix2Pix, random_instruct
from mmgen.ldm.editors.instruct_start import Start
from mmgen.ldm.editors.instruct_train import InstructTask, fit
from mmgen.ldm.pipeline import LatentDiffusion, random_pipeline
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
        Oracle.load(device="cpu"), mmgen.editor("instruct-pix2pix", device="cpu"), edits(kind, 60, "test"), None
    )
    assert scores["reached"] >= reached and scores["skill"] >= skill and scores["kept"] >= 0.97, scores
