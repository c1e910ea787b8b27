"Models of ours in other programs: diffusers' pipelines, one file, onnxruntime; and back again, bit for bit."

import json

import diffusers
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_diffusers import img2img
from transformers import CLIPTokenizer

from mmgen.app.cli import main
from mmgen.app.export import export_model, open_model, push, save_decoder_onnx, save_mapper_onnx
from mmgen.base.images import to_float
from mmgen.base.runs import Run
from mmgen.base.weights import save_weights
from mmgen.clip.model import CLIP, TextEncoder, build_clip, train_tokenizer
from mmgen.data import portraits
from mmgen.jobs.registry import config_for
from mmgen.ldm import train
from mmgen.ldm.autoencoder import AutoencoderKL
from mmgen.ldm.diffusion import noise_like
from mmgen.ldm.editors import instruct_train as instruct_training
from mmgen.ldm.open import open_pipeline
from mmgen.ldm.pipeline import LatentDiffusion, make_process, random_unet
from mmgen.ldm.published.diffusers_folder import ExportError, save_diffusers, scheduler_config
from mmgen.ldm.published.model_noise import process_of
from mmgen.ldm.published.single_file import save_single_file
from mmgen.ldm.published.stable_diffusion import stable_diffusion
from mmgen.styleclip.mapper import Mapper


def model(prediction="eps", mean=0.0, std=2.5, **options):
    "What the preset `paper` would train, small."
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["green hair, blue eyes"], 520)
    clip = build_clip(tokenizer, 32, 8, 16, 77, 16, 1, 2, 16, 1, 2)
    autoencoder = AutoencoderKL(block_out_channels=(16, 16), norm_num_groups=4)
    unet = random_unet()
    for network in (autoencoder, unet):
        for p in network.requires_grad_(False).parameters():
            p.add_(0.1 * torch.randn_like(p))
    process = {
        "prediction": prediction,
        "noise_schedule": "scaled_linear",
        "timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
    }
    return LatentDiffusion(
        autoencoder,
        TextEncoder(clip.text_model, tokenizer, "cpu"),
        unet,
        mean,
        std,
        32,
        process,
        "cpu",
        **{"masked": False} | options,
    )


@pytest.mark.parametrize(
    "prediction, mean, std", [("eps", 0.0, 2.5), ("v", 0.0, 1.3), ("eps", [0.3, -1.0, 0.0, 2.0], [0.5, 1.0, 2.0, 3.0])]
)
def test_diffusers_img2img_makes_the_same_picture(tmp_path, prediction, mean, std):
    ours = model(prediction, mean, std)
    save_diffusers(ours, tmp_path / "out", card="# mine", run={"run_id": "x"})
    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(tmp_path / "out")
    pipe.set_progress_bar_config(disable=True)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    z = ours.encode(x)
    assert torch.allclose(pipe.vae.encode(x).latent_dist.mode() * pipe.vae.config.scaling_factor, z, atol=1e-5)
    theirs = img2img(pipe, z, "green hair", 0.6, 10, 4.0)
    image = ours.decode(ours.renoise(z, ["green hair"], 0.6, 6, 4.0, "ddim", seed=3))[0].permute(1, 2, 0)
    image = (image / 2 + 0.5).clamp(0, 1).numpy()
    assert image.std() > 0.01 and abs(image - theirs).max() <= 2 / 255
    assert (tmp_path / "out" / "README.md").read_text() == "# mine\n" and json.loads(
        (tmp_path / "out" / "run.json").read_text()
    ) == {"run_id": "x"}


def test_there_and_back_is_bit_identical(tmp_path):
    ours = model()
    back = open_pipeline(save_diffusers(ours, tmp_path / "out"), "cpu")
    for a, b in (
        (ours.unet, back.unet),
        (ours.autoencoder, back.autoencoder),
        (ours.text_encoder.model, back.text_encoder.model),
    ):
        assert a.state_dict().keys() == b.state_dict().keys() and all(
            torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items()
        )
    assert (
        back.size == ours.size
        and back.process_config == ours.process_config
        and not back.masked
        and torch.allclose(back.std, ours.std)
    )
    again = save_diffusers(back, tmp_path / "again")
    for file in (tmp_path / "out").rglob("*.safetensors"):
        assert file.read_bytes() == (again / file.relative_to(tmp_path / "out")).read_bytes()


@pytest.mark.parametrize(
    "change, said", [({"masked": True}, "caption's padding"), ({"prediction": "x0"}, "predicts 'x0'")]
)
def test_what_diffusers_cannot_run_is_said_and_nothing_is_written(tmp_path, change, said):
    ours = model(**change) if "masked" in change else model()
    if "prediction" in change:
        ours.process_config = {"prediction": "x0"}
    with pytest.raises(ExportError, match=f"diffusers cannot run this model: .*{said}"):
        save_diffusers(ours, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_overwrites_and_leaves_nothing_half_written(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ExportError, match="not an empty folder"):
        save_diffusers(model(), tmp_path / "out")
    monkeypatch.setattr(
        AutoencoderKL, "save_pretrained", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError):
        save_diffusers(model(), tmp_path / "new")
    assert (
        sorted(p.name for p in tmp_path.iterdir()) == ["out"] and (tmp_path / "out" / "mine.txt").read_text() == "keep"
    )


def test_onnx_of_decoder_and_mappers(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    ours = model(mean=[0.3, -1.0, 0.0, 2.0], std=[0.5, 1.0, 2.0, 3.0])
    z = torch.randn(3, 4, 16, 16)
    session = runtime.InferenceSession(str(save_decoder_onnx(ours, tmp_path / "decoder.onnx")))
    assert json.loads(session.get_modelmeta().custom_metadata_map["mmgen"])["size"] == 32
    with torch.no_grad():
        assert np.abs(session.run(None, {"latents": z.numpy()})[0] - ours.decode(z).numpy()).max() < 1e-4
    for condition in (0, 8):
        mapper = Mapper(16, 10, condition=condition)
        for p in mapper.parameters():
            p.data.normal_()
        codes, texts = torch.randn(5, 10, 16), torch.randn(5, 2, 8)
        given = {"codes": codes} | ({"texts": texts} if condition else {})
        session = runtime.InferenceSession(str(save_mapper_onnx(mapper, tmp_path / f"mapper{condition}.onnx")))
        with torch.no_grad():
            wanted = mapper(*given.values()).numpy()
        assert np.allclose(
            session.run(None, {k: v.numpy() for k, v in given.items()})[0],
            wanted,
            rtol=1e-4,
            atol=1e-4 * abs(wanted).max(),
        )


def test_the_hub_gets_what_it_is_given_and_only_then(tmp_path, monkeypatch):
    import huggingface_hub

    calls = []

    class Api:
        def create_repo(self, *a, **k):
            calls.append((a, k))

        def upload_folder(self, **k):
            calls.append(k)
            return "https://hub/me/model"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    with pytest.raises(ExportError, match="has no card"):
        push(tmp_path, "me/model")
    assert calls == []
    (tmp_path / "README.md").write_text("# mine")
    assert push(tmp_path, "me/model") == "https://hub/me/model" and calls[0] == (
        ("me/model",),
        {"private": True, "exist_ok": True},
    )


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "cosine"])
def test_the_scheduler_of_an_export_has_the_noise_levels_of_the_model(tmp_path, name):
    ours = model()
    ours = LatentDiffusion(
        ours.autoencoder,
        ours.text_encoder,
        ours.unet,
        0.0,
        2.5,
        32,
        ours.process_config | {"noise_schedule": name},
        "cpu",
        masked=False,
    )
    pipe = diffusers.DiffusionPipeline.from_pretrained(save_diffusers(ours, tmp_path / "out"))
    assert torch.allclose(pipe.scheduler.alphas_cumprod, ours.process.alphas_cumprod.float(), rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"spacing": "leading", "offset": 1},
        {"spacing": "linspace", "offset": 0},
        {"clip": 0.9},
        {"prediction": "v", "zero_snr": True},
    ],
    ids=str,
)
def test_a_scheduler_that_was_opened_is_exported_as_it_was(options):
    process = {
        "prediction": "eps",
        "noise_schedule": "scaled_linear",
        "timesteps": 1000,
        "beta_start": 0.00085,
        "beta_end": 0.012,
    } | options
    fields = scheduler_config(process)
    assert process_of(fields, "model") == process
    theirs = diffusers.DDIMScheduler.from_config(fields)
    theirs.set_timesteps(10)
    assert theirs.timesteps.tolist() == make_process(**process).levels(10).tolist()


def clip_tokenizer():
    "49,408 words, some of them with CLIP's ids; the rest are never met."
    letters = train_tokenizer(["a"], 514).get_vocab()
    known = {"of</w>": 539, "cat</w>": 2368, "photo</w>": 1125, "ca": 3000, "ph": 3001, "pho": 3002, "phot": 3003}
    known |= {word: i for word, i in letters.items() if i < 512} | {"<|startoftext|>": 49406, "<|endoftext|>": 49407}
    known["a</w>"] = 320
    taken = set(known.values())
    vocabulary = known | {f"none{i}": i for i in range(49408) if i not in taken}
    merges = [("o", "f</w>"), ("c", "a"), ("ca", "t</w>"), ("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>")]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "The jobs themselves, at the size of `smoke`, with the fields that make a model exportable."
    root = tmp_path_factory.mktemp("trained")
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("MMGEN_ROOT", str(root))
    torch.manual_seed(0)
    tokenizer = clip_tokenizer()
    assert tokenizer("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
    CLIP(build_clip(tokenizer, 32, 8, 16, 77, 64, 1, 1, 16, 1, 2), tokenizer, "cpu").save(
        root / "clip", "# c", half=False
    )
    autoencoder = AutoencoderKL(block_out_channels=(32, 32), norm_num_groups=32)
    for p in autoencoder.requires_grad_(False).parameters():
        p.add_(0.1 * torch.randn_like(p))
    save_weights(root / "vae", autoencoder.state_dict(), autoencoder.config, "# a", half=False)
    fields = dict(
        autoencoder=str(root / "vae"),
        text_encoder=str(root / "clip"),
        size=32,
        images=16,
        steps=3,
        max_seconds=None,
        masked=False,
        unet_channels="32,32",
        norm_groups=32,
        attention_heads=8,
        device="cpu",
        mixed_precision="no",
        held_out=0,
        sample_images=1,
        edit_images=1,
        checkpoint_every=3,
        sample_every=0,
    )
    runs = {}
    for name, job, changes in (
        ("eps", "ldm", {"prediction": "eps", "pooled_text": False, "latent_scale": "scalar"}),
        ("v", "ldm", {"prediction": "v", "pooled_text": False}),
        ("flow", "ldm", {"prediction": "flow"}),
        ("instruct eps", "instruct", {"prediction": "eps"}),
        ("instruct flow", "instruct", {"prediction": "flow"}),
    ):
        config = config_for(
            job,
            "smoke",
            run_id=name.replace(" ", "-"),
            sampler="euler",
            **{k: v for k, v in fields.items() if job == "ldm" or k != "sample_images"},
            **changes,
        )
        with Run(job, config) as run:
            (train if job == "ldm" else instruct_training).fit(config, run)
        runs[name] = run.path
    yield runs
    monkeypatch.undo()


def picture(latents, ours):
    return (ours.decode(latents)[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).numpy()


def portrait(size):
    return to_float(portraits.render(portraits.sample(3), size)[None])


@pytest.mark.parametrize("name", ["eps", "v", "flow"])
def test_what_the_job_trains_makes_the_same_picture_in_diffusers(tmp_path, trained, name):
    folder = export_model(trained[name], tmp_path / "out")
    ours, pipe = open_model(trained[name], "cpu")[0], diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    assert (
        not ours.masked
        and "# Latent diffusion" in (folder / "README.md").read_text()
        and (folder / "run.json").is_file()
    )
    z = ours.encode(portrait(32))
    theirs = img2img(pipe, z, "green hair", 0.6, 10, 4.0)
    mine = picture(ours.renoise(z, ["green hair"], 0.6 if name != "flow" else 0.5994, 6, 4.0, "ddim", seed=3), ours)
    assert mine.std() > 0.01 and abs(mine - theirs).max() <= 2 / 255
    other = ours.renoise(z, ["smile"], 0.6, 6, 4.0, "ddim", seed=3)
    assert abs(picture(other, ours) - mine).max() > 2 / 255  # the check can fail: another caption is seen


def test_a_flow_model_runs_in_a_loop_with_flow_match_euler(tmp_path, trained):
    ours = open_model(trained["flow"], "cpu")[0]
    pipe = diffusers.DiffusionPipeline.from_pretrained(export_model(trained["flow"], tmp_path / "out"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=pipe.scheduler.config.flow_shift)
    z, generator = ours.encode(portrait(32)), torch.Generator().manual_seed(3)
    states, empty = pipe.encode_prompt("green hair", "cpu", 1, True)
    scheduler.set_timesteps(sigmas=np.linspace(0.6, 0, 7)[:-1])
    with torch.no_grad():
        x = scheduler.scale_noise(z, scheduler.timesteps[:1], noise_like(z, generator))
        for t in scheduler.timesteps:
            without, with_text = pipe.unet(torch.cat([x, x]), t, torch.cat([empty, states]), return_dict=False)[
                0
            ].chunk(2)
            x = scheduler.step(without + 4.0 * (with_text - without), t, x, return_dict=False)[0]
        image = pipe.vae.decode(x / pipe.vae.config.scaling_factor, return_dict=False)[0]
    mine = ours.decode(ours.renoise(z, ["green hair"], 0.6, 6, 4.0, "euler", seed=3))
    assert mine.std() > 0.01 and torch.allclose(image, mine, atol=1e-3 * mine.abs().max())


@pytest.mark.parametrize("name", ["instruct eps", "instruct flow"])
def test_an_instruct_model_makes_the_same_picture_in_diffusers(tmp_path, trained, name):
    ours = open_model(trained[name], "cpu")[0]
    pipe = diffusers.StableDiffusionInstructPix2PixPipeline.from_pretrained(
        export_model(trained[name], tmp_path / "out")
    )
    pipe.set_progress_bar_config(disable=True)
    x = portrait(32)
    noise = noise_like(ours.encode(x), torch.Generator().manual_seed(3))
    start = ours.process.coefficients(ours.process.levels(1)[0], noise)[1] if "eps" in name else 0.9997
    theirs = pipe(
        "green hair",
        image=x / 2 + 0.5,
        latents=noise * start,
        num_inference_steps=5,
        guidance_scale=2.0,
        image_guidance_scale=1.5,
        output_type="np",
    ).images[0]
    mine = picture(ours.follow(ours.encode(x), ["green hair"], 2.0, 1.5, 5, seed=3), ours)
    assert mine.std() > 0.01 and abs(mine - theirs).max() <= 2 / 255


@pytest.mark.parametrize("name", ["eps", "v"])
def test_one_file_opens_again_here_and_in_diffusers(tmp_path, trained, name):
    ours, file = open_model(trained[name], "cpu")[0], tmp_path / "model.safetensors"
    assert main(["export", str(trained[name]), "-o", str(file)]) == 0
    with safe_open(file, "pt") as opened:
        keys, about = set(opened.keys()), opened.metadata()
    starts = {
        "model.diffusion_model.input_blocks.0.0.weight",
        "first_stage_model.decoder.conv_in.weight",
        "cond_stage_model.transformer.text_model.final_layer_norm.weight",
    }
    assert (
        starts <= keys
        and about["modelspec.prediction_type"] == {"eps": "epsilon", "v": "v"}[name]
        and ("v_pred" in keys) == (name == "v")
    )
    tokenizer = tmp_path / "words"
    ours.text_encoder.tokenizer.save_pretrained(tokenizer)
    back = stable_diffusion(file, size=32, tokenizer=tokenizer, device="cpu")
    ours.process = back.process  # the original's times: leading spacing, offset 1
    z = ours.encode(portrait(32))
    mine = picture(ours.renoise(z, ["a cat"], 0.6, 6, 4.0, "ddim", seed=3), ours)
    again = picture(back.renoise(back.encode(portrait(32)), ["a cat"], 0.6, 6, 4.0, "ddim", seed=3), back)
    assert mine.std() > 0.01 and abs(mine - again).max() < 1e-3
    folder = save_diffusers(back, tmp_path / "folder")  # the configuration that a file lacks
    pipe = diffusers.StableDiffusionImg2ImgPipeline.from_single_file(
        str(file), config=str(folder), local_files_only=True, safety_checker=None
    )
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        "a cat",
        image=z.clone(),
        strength=0.6,
        num_inference_steps=10,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(3),
        output_type="np",
    ).images[0]
    assert abs(mine - theirs).max() <= 2 / 255


def test_one_file_of_what_its_readers_would_build_otherwise_is_refused(tmp_path, trained):
    out = tmp_path / "model.safetensors"
    for name, said in (("flow", "predicts flow"), ("instruct eps", "InstructPix2Pix")):
        with pytest.raises(ExportError, match=said):
            export_model(trained[name], out)
    ours = model()
    for change, said in (
        (lambda: None, "attention_head_dim of its unet is 2, and readers take 8"),
        (lambda: None, "tokenizer is not CLIP's"),
        (lambda: ours.process_config.update(beta_end=0.02), "beta_end of its noise is 0.02"),
    ):
        change()
        with pytest.raises(ExportError, match=said):
            save_single_file(ours, out)
    ours.process_config["clip"] = 1.0
    with pytest.raises(ExportError, match="its predictions are clipped"):
        save_single_file(ours, out)
    (tmp_path / "mine.safetensors").write_text("mine")
    with pytest.raises(ExportError, match="exists"):
        export_model(trained["eps"], tmp_path / "mine.safetensors")
    assert [p.name for p in tmp_path.iterdir()] == ["mine.safetensors"] and (
        tmp_path / "mine.safetensors"
    ).read_text() == "mine"


def test_a_folder_is_readable_by_old_versions_of_transformers(tmp_path):
    folder = save_diffusers(model(), tmp_path / "out")
    assert all(name.startswith("text_model.") for name in load_file(folder / "text_encoder" / "model.safetensors"))
    vocabulary, merges = (
        folder / "tokenizer" / "vocab.json",
        (folder / "tokenizer" / "merges.txt").read_text().splitlines(),
    )
    assert (
        json.loads(vocabulary.read_text()) == model().text_encoder.tokenizer.get_vocab()
        and merges[0] == "#version: 0.2"
        and len(merges[1].split(" ")) == 2
    )


def test_export_says_in_a_sentence_what_it_cannot_write(tmp_path, capsys):
    for name, said in (
        ("ldm-portraits", "caption's padding"),
        ("instruct-portraits", "patch_size above 1"),
        ("clip-portraits", "not a latent diffusion model"),
        ("none", "There are no weights 'none'"),
    ):
        assert main(["export", name, "-o", str(tmp_path / "out")]) == 1
        said_here = capsys.readouterr().err
        assert said in said_here and "unexpected error" not in said_here, said_here
    assert list(tmp_path.iterdir()) == []


def test_training_with_visible_padding_shows_it():
    "The states that a batch holds are all 77; those that the sampler shows are the same."
    clip = CLIP.load("clip-portraits", "cpu")
    from mmgen.ldm.precompute import read_all

    states, lengths = read_all(clip, ["green hair", "smile, glasses"], masked=False)
    assert (
        states.shape[1] == 77
        and lengths.tolist() == [77, 77]
        and torch.allclose(states.float(), clip.states(["green hair", "smile, glasses"]), atol=2e-2)
    )
    for batch in ({"states": states, "length": lengths}, {"caption": ["green hair", "smile, glasses"]}):
        task = train.LDMTask(torch.nn.Linear(1, 1), clip, None, caption_dropout=0.0, masked=False)
        seen, mask, _ = task.context(batch, torch.device("cpu"))
        assert (
            mask.all()
            and seen.shape == (2, 77, 128)
            and torch.allclose(seen, clip.states(["green hair", "smile, glasses"]), atol=2e-2)
        )
