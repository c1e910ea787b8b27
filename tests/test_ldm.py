"""Precomputed latents and captions, caption dropout, the training job, and a pipeline that is saved and opened."""

import json
import shutil
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image

from mmgen.base.images import to_float, to_uint8
from mmgen.base.runs import Run
from mmgen.base.schema import WeightsError
from mmgen.base.weights import package, save_weights
from mmgen.clip.model import CLIP
from mmgen.data import portraits
from mmgen.data.captions import CutWarning, caption
from mmgen.editing.protocol import EditError
from mmgen.editing.registry import editor, options_of
from mmgen.jobs.registry import config_for
from mmgen.ldm.autoencoder import AutoencoderKL
from mmgen.ldm.config import LDMConfig
from mmgen.ldm.pipeline import PRECISIONS, LatentDiffusion, make_process, random_pipeline, sampler
from mmgen.ldm.precompute import encode_all, read_all
from mmgen.ldm.train import LDMTask, fit, held_out_loss, train_pipeline

CAPTIONS = ["green hair, smile", "", "brown hair, blue eyes, glasses, round eyewear, eyewear, long hair", "smile"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def clip():
    return CLIP.load("clip-portraits", "cpu")


@pytest.fixture(autouse=True)
def own_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))


def smoke(**changes):
    return config_for("ldm", "smoke", device="cpu", mixed_precision="no", edit_images=2, **changes)


def test_latents_that_are_encoded_once_are_the_encoders():
    model = AutoencoderKL.load("autoencoder-portraits", "cpu")
    images = np.stack([portraits.render(portraits.sample(seed)) for seed in range(5)])
    with torch.no_grad():
        want = model.encode(to_float(images)).mode()
    assert torch.allclose(encode_all(model, images, CPU, batch_size=2), want, atol=1e-4)


def test_states_that_are_read_once_are_the_text_encoders(clip):
    states, lengths = read_all(clip, CAPTIONS, batch_size=2)
    assert states.dtype == torch.float16 and states.shape[1] == lengths.max()
    for text, found, length in zip(CAPTIONS, states, lengths):
        assert torch.allclose(found[:length].float(), clip.states([text])[0, :length], atol=2e-2)


@pytest.mark.parametrize("stored", [True, False])
def test_caption_dropout_puts_the_empty_caption(clip, stored):
    states, lengths = read_all(clip, CAPTIONS)
    batch = {"latents": torch.zeros(4, 32, 8, 8)} | (
        {"states": states, "length": lengths} if stored else {"caption": CAPTIONS}
    )
    empty, n = read_all(clip, [""])
    unet = torch.nn.Linear(1, 1)
    for dropout in (0.0, 1.0):
        context, mask, gone = LDMTask(unet, clip, make_process(), caption_dropout=dropout).context(
            batch, batch["latents"].device
        )
        assert gone.tolist() == [dropout == 1] * 4
        assert mask.sum(1).tolist() == (lengths.tolist() if dropout == 0 else [int(n)] * 4)
        want = states[0, : lengths[0]] if dropout == 0 else empty[0, :n]
        assert torch.allclose(context[0, : len(want)], want.float(), atol=2e-2)


def test_samplers_have_names():
    with pytest.raises(ValueError, match="There is no sampler 'eular'; choose from"):
        sampler("eular")


@pytest.mark.parametrize("scale, numbers", [("channel", 32), ("scalar", 1)])
def test_latents_have_variance_one_and_the_model_knows_their_scale(tmp_path, scale, numbers):
    with Run("ldm", smoke(), root=tmp_path) as run:
        pipeline = train_pipeline(smoke(latent_scale=scale), run, CPU)
    assert pipeline.std.numel() == pipeline.mean.numel() == numbers and len(run.record["data"]["latent_std"]) == numbers
    images = np.stack([portraits.render(portraits.sample(seed)) for seed in portraits.seeds(64, "train")])
    z = pipeline.encode(to_float(images))
    assert abs(z.mean()) < 0.01 and abs(z.std() - 1) < 0.02
    assert torch.allclose(pipeline.decode(z), pipeline.autoencoder.decode(z * pipeline.std + pipeline.mean), atol=1e-5)


def test_a_saved_model_draws_and_edits_the_same(tmp_path):
    with Run("ldm", smoke(), root=tmp_path) as run:
        done = fit(smoke(), run)
    pipeline, again = done["pipeline"], LatentDiffusion.load(run.path / "model", "cpu")
    a, b = (p.sample(CAPTIONS, steps=2, seed=3) for p in (pipeline, again))
    assert a.shape == (4, 3, 64, 64) and (a - b).abs().mean() < 0.01  # weights are kept in float16
    assert run.record["parameters"]["unet"] == sum(p.numel() for p in again.unet.parameters())
    assert {f["file"] for f in run.record["figures"]} >= {"samples.jpg", "edits.jpg"}
    assert json.loads((run.path / "model" / "run.json").read_text()) == json.loads((run.path / "run.json").read_text())

    config = json.loads((run.path / "model" / "config.json").read_text())
    del config["unet"]
    (run.path / "model" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="lacks unet"):
        LatentDiffusion.load(run.path / "model", "cpu")
    with pytest.raises(ValueError, match="has no config.json"):
        LatentDiffusion.load(tmp_path, "cpu")


def test_a_run_starts_from_a_given_unet(tmp_path):
    with Run("ldm", smoke(), root=tmp_path, run_id="first") as run:
        first = fit(smoke(), run)["pipeline"]
    with Run("ldm", smoke(), root=tmp_path, run_id="second") as run:
        second = train_pipeline(
            smoke(init_from=str(tmp_path / "first" / "model"), steps=1, lr=0.0, weight_decay=0.0), run, CPU
        )
    for (name, p), q in zip(first.unet.state_dict().items(), second.unet.state_dict().values()):
        assert torch.allclose(p, q, atol=2e-3), name
    with pytest.raises(WeightsError, match="does not fit UNet2DConditionModel"):
        with Run("ldm", smoke(), root=tmp_path, run_id="third") as run:
            train_pipeline(smoke(init_from=str(tmp_path / "first" / "model"), unet_channels="32,64"), run, CPU)


@pytest.mark.parametrize("root", [".", "elsewhere"])  # the networks lie in the repository, or have absolute names
def test_a_packaged_model_brings_its_networks_along_and_refuses_others(tmp_path, monkeypatch, root):
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path / root))
    p = random_pipeline()
    for name, network in (("ae", p.autoencoder), ("other", random_pipeline(1).autoencoder)):
        save_weights(tmp_path / name, network.state_dict(), network.config, "")
    p.text_encoder.save(tmp_path / "clip", "card")
    with Run("ldm", root=tmp_path, run_id="run") as run:
        p.save(run.path / "model", str(tmp_path / "ae"), str(tmp_path / "clip"), "card", run.record)
    with pytest.raises(
        WeightsError,
        match="model was trained with another autoencoder .* than other .*, and makes no images with this one",
    ):
        LatentDiffusion.load(run.path / "model", "cpu", autoencoder=tmp_path / "other")
    folder = package(run.path, "model", "mine", tmp_path / "weights")
    for name in ("ae", "clip"):
        shutil.rmtree(tmp_path / name)
    assert (
        LatentDiffusion.load(folder, "cpu").sample(["smile"], 2) - p.sample(["smile"], 2)
    ).abs().mean() < 0.01  # float16


def test_networks_that_do_not_belong_together_are_refused(clip):
    p = random_pipeline()
    with pytest.raises(ValueError, match="do not belong together"):
        LatentDiffusion(AutoencoderKL.load("autoencoder-portraits", "cpu"), p.text_encoder, p.unet)
    with pytest.raises(ValueError, match="do not belong together"):
        LatentDiffusion(p.autoencoder, clip, p.unet)


def test_pictures_on_the_way_are_of_validation_captions(tmp_path, monkeypatch):
    asked = []
    sample = LatentDiffusion.sample
    monkeypatch.setattr(
        LatentDiffusion,
        "sample",
        lambda self, captions, *rest: asked.append((captions, rest)) or sample(self, captions, *rest),
    )
    with Run("ldm", smoke(sample_every=3), root=tmp_path) as run:
        train_pipeline(smoke(sample_every=3), run, CPU)
    want = [caption(portraits.tags(portraits.sample(seed))) for seed in portraits.seeds(16, "validation")]
    assert len(asked) == 2 and asked[0] == asked[1] and asked[0][0] == want
    assert {f["file"] for f in run.record["figures"]} == {"sample-3.jpg", "sample-6.jpg"}


def test_captions_that_are_cut_are_counted_and_said_once(tmp_path, capsys, recwarn):
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(20):
        Image.fromarray(np.full((64, 64, 3), 10 * k, np.uint8)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(
            "night, " + ", ".join(f"a very long word number {n}" for n in range(30 if k < 10 else 2))
        )
    config = smoke(data=str(folder), edit_tags="night", caption_fixed="night", held_out=0, sample_every=0)
    with Run("ldm", config, root=tmp_path) as run:
        pipeline = train_pipeline(config, run, CPU)
    beyond = run.record["beyond_the_limit"]
    assert beyond["captions"] == 16 and 7 <= beyond["cut"] <= 10 and beyond["longest"] > 77
    assert capsys.readouterr().out.count("longer than the 77 tokens") == 1 and not [
        w for w in recwarn if w.category is CutWarning
    ]
    assert pipeline.tags[0] == "night" and len(run.record["data"]["sha256"]) == 64


def test_a_changed_picture_is_encoded_again(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    for k in range(4):
        Image.fromarray(np.full((64, 64, 3), 60 * k, np.uint8)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text("night")
    counted = []
    monkeypatch.setattr("mmgen.ldm.precompute.encode_all", lambda *given: counted.append(1) or encode_all(*given))
    hashes = []
    for name in ("a", "b", "c"):
        if name == "c":
            for k in range(4):
                Image.fromarray(np.full((64, 64, 3), 60 * k + 30, np.uint8)).save(folder / f"{k}.png")
        config = smoke(data=str(folder), edit_tags="night", steps=1, sample_every=0)
        with Run("ldm", config, root=tmp_path, run_id=name) as run:
            train_pipeline(config, run, CPU)
        hashes.append(run.record["data"]["sha256"])
    assert len(counted) == 2 and hashes[0] == hashes[1] != hashes[2]


def test_a_model_finds_its_frozen_networks_after_a_move(tmp_path, monkeypatch):
    made = random_pipeline()
    lay = lambda folder: (
        save_weights(folder / "vae", made.autoencoder.state_dict(), made.autoencoder.config, ""),
        made.text_encoder.save(folder / "clip", ""),
    )
    vae, text = lay(tmp_path / "reports" / "runs")
    model = made.save(tmp_path / "reports" / "runs" / "ldm", vae, text, "")
    assert str(tmp_path) not in (model / "config.json").read_text()
    same = lambda again: torch.allclose(again.sample(["smile"], 2), made.sample(["smile"], 2), atol=0.02)
    assert same(
        LatentDiffusion.load("reports/runs/ldm", "cpu")
    )  # from the repository's folder, not the working directory's

    away = tmp_path / "away"
    (tmp_path / "reports" / "runs" / "ldm").rename(away)
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path / "nowhere"))
    with pytest.raises(
        WeightsError,
        match=r"away needs its autoencoder, \./reports/runs/vae, which was not found: "
        r".*LatentDiffusion.load\(\.\.\., autoencoder=\.\.\.\)",
    ):
        LatentDiffusion.load(away, "cpu")
    assert same(LatentDiffusion.load(away, "cpu", vae, text))
    lay(away)
    config = json.loads((away / "config.json").read_text())
    (away / "config.json").write_text(json.dumps(config | {"autoencoder": "vae", "text_encoder": "clip"}))
    assert same(LatentDiffusion.load(away, "cpu"))  # the names lead there from the model's own folder


def test_encoding_all_images_takes_the_memory_of_a_batch():
    code = """
        import resource
        from types import SimpleNamespace
        import numpy as np, torch
        from mmgen.ldm.precompute import encode_all

        class Halves(torch.nn.Module):
            def encode(self, x): return SimpleNamespace(mode=lambda: torch.nn.functional.avg_pool2d(x, 8))

        images = np.arange(12_000 * 64 * 64 * 3, dtype=np.uint8).reshape(-1, 64, 64, 3)
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        encode_all(Halves(), images[:256], torch.device("cpu"))
        before = peak()
        found = encode_all(Halves(), images, torch.device("cpu"))
        parts = np.split(images[:320], 10)
        one_by_one = torch.cat([encode_all(Halves(), part, torch.device("cpu"), 32) for part in parts])
        assert torch.equal(found[:320], one_by_one) and found.shape == (12_000, 3, 8, 8)
        print((peak() - before) / (4 * images.size))"""
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert child.returncode == 0 and float(child.stdout) < 0.2, (
        child.stdout + child.stderr
    )  # of what all images take as float32


def test_no_network_is_given_more_than_a_batch_of_floats(monkeypatch):
    from mmgen.metrics import features, oracle

    images, sizes = np.random.default_rng(0).integers(0, 256, (70, 64, 64, 3), np.uint8), []
    for module in (features, oracle):
        monkeypatch.setattr(module, "to_float", lambda x: sizes.append(len(x)) or to_float(x))
    judge = oracle.Oracle.load("oracle-portraits", "cpu")
    assert torch.equal(judge.predict(images, 16), judge.predict(to_float(images), 16))
    few = features.Extractor("sums", lambda x: x.flatten(2).sum(2), "0")
    assert torch.equal(
        features.extract(few, images, batch_size=16).values,
        features.extract(few, to_float(images), batch_size=16).values,
    )
    assert sizes == 2 * [16, 16, 16, 16, 6]


def test_the_held_out_loss_is_a_function_of_the_network():
    pipeline = random_pipeline()
    clip, side = pipeline.text_encoder, pipeline.size // pipeline.autoencoder.factor
    states, lengths = read_all(clip, CAPTIONS)
    columns = {
        "latents": torch.randn(
            4, pipeline.unet.config["in_channels"], side, side, generator=torch.Generator().manual_seed(0)
        ),
        "states": states,
        "length": lengths,
    }
    unets = [random_pipeline(seed).unet for seed in (0, 1)]
    task = LDMTask(unets[0], clip, make_process(), caption_dropout=1.0)
    before = torch.get_rng_state()
    first, again, other = (held_out_loss(task, unet, columns) for unet in (unets[0], unets[0], unets[1]))
    assert first == again != other and torch.equal(before, torch.get_rng_state())
    assert task.model is unets[0] and task.caption_dropout == 1.0
    shuffled = {name: column.flip(0) if name != "latents" else column for name, column in columns.items()}
    assert held_out_loss(task, unets[0], shuffled) != first, "captions are read, whatever the dropout of the training"


def test_a_folder_whose_held_out_images_fill_no_row_is_judged_and_shown_in_line(tmp_path):
    (tmp_path / "mine").mkdir()
    for seed in range(200):
        Image.fromarray(portraits.render(portraits.sample(seed), 64)).save(tmp_path / "mine" / f"{seed}.png")
        (tmp_path / "mine" / f"{seed}.txt").write_text(
            ", ".join(["cat", "black" if seed % 3 else "white", f"number {seed}"])
        )
    config = smoke(data=str(tmp_path / "mine"), sample_images=32, edit_tags=LDMConfig.edit_tags)
    with Run("ldm", config, root=tmp_path) as run:
        result = fit(config, run)
    n = len(result["held out"])
    assert 8 < n < 16 and n == len(result["samples"])
    sheet = np.asarray(Image.open(run.path / "samples.jpg")).astype(int)
    assert sheet.shape[0] == 4 * 64 and sheet[-64:, -64:].mean() > 245
    left = sheet.shape[1] - 8 * 64
    for row, images in (
        (0, result["held out"][:8]),
        (1, result["samples"][:8]),
        (2, result["held out"][8:]),
        (3, result["samples"][8:]),
    ):
        for i, image in enumerate(to_uint8(images).numpy()):
            shown = sheet[64 * row : 64 * row + 64, left + 64 * i : left + 64 * i + 64]
            assert np.abs(shown - image).mean() < 12, f"row {row}, image {i}"
    names = {m["name"] for m in run.record["metrics"]}
    assert {
        "held-out loss",
        "CLIP score of samples",
        "CLIP score of held-out images",
        "CLIP score of edits",
        "directional CLIP similarity of edits",
    } <= names
    assert next(f["about"] for f in run.record["figures"] if f["file"] == "edits.jpg").endswith("white"), (
        "a tag of the data, not green hair"
    )


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_near_float32_and_stays_inside_the_networks(precision):
    pipeline, images = random_pipeline(), to_float(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    exact = pipeline.sample(["green hair", "smile"], steps=3), pipeline.decode(pipeline.encode(images))
    half = random_pipeline().to_precision(precision)
    found = half.sample(["green hair", "smile"], steps=3), half.decode(half.encode(images))
    assert {p.dtype for net in (half.unet, half.autoencoder) for p in net.parameters()} == {PRECISIONS[precision]}
    for a, b in zip(exact, found):
        assert b.dtype == torch.float32 and 0 < (a - b).abs().max() < 0.1
    assert half.encode(images).dtype == torch.float32 and half.to_precision("float32") is half
    with pytest.raises(ValueError, match="precision must be one of float32, bf16, fp16, not 'half'"):
        half.to_precision("half")


def test_every_diffusion_editor_edits_in_half_precision_and_others_say_that_they_do_not():
    images, source, target = to_float(np.stack([portraits.render(portraits.sample(3))])), ["brown hair"], ["green hair"]
    for name in (
        "sdedit",
        "ddim-inversion",
        "edit-friendly-ddpm",
        "prompt-to-prompt",
        "flowedit",
        "instruct-pix2pix",
        "reconstruction",
    ):
        few = {"steps": 3} if "steps" in options_of(name) else {}
        exact, half = (editor(name, "cpu", kind, **few).edit(images, source, target) for kind in (None, "bf16"))
        assert half.dtype == torch.float32 and 0 < (exact - half).abs().mean() < 0.1
    with pytest.raises(EditError, match="styleclip-mapper computes in float32 only, not in bf16"):
        editor("styleclip-mapper", "cpu", "bf16")
