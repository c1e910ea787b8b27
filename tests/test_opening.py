"What a published file is, and opening it right or not at all; small random weights, beside diffusers."

import gzip
import json
import shutil
from types import SimpleNamespace

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_pretrained import padded, randomised, text_tower, to_compvis_unet, to_compvis_vae, to_openclip, unet, vae
from tiny_diffusers import img2img

import mmgen
from mmgen.app.workbench import Workbench, build_editor
from mmgen.base.schema import WeightsError
from mmgen.base.weights import load_state
from mmgen.clip.model import VOCABULARY, clip_tokenizer, train_tokenizer
from mmgen.editing.config import EditConfig
from mmgen.editing.protocol import EditError
from mmgen.ldm.diffusion import start
from mmgen.ldm.editors.instruct import InstructPix2Pix
from mmgen.ldm.open import open_pipeline
from mmgen.ldm.pipeline import LatentDiffusion, make_process, random_pipeline
from mmgen.ldm.published.model_noise import process_of
from mmgen.ldm.published.stable_diffusion import stable_diffusion, text_encoder_of, unet_of
from mmgen.ldm.samplers import ddim

DDIM = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
}


def whole(state):
    return {name: value.detach().contiguous().clone() for name, value in state.items()}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["green hair, blue eyes", "a photo of a face"], 520)


def pipeline(tokenizer, tower, network, scheduler, cls=diffusers.StableDiffusionImg2ImgPipeline):
    return cls(
        vae(scaling_factor=0.18215), tower, tokenizer, network, scheduler, None, None, requires_safety_checker=False
    )


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    "Stable Diffusion 2.x that predicts v: a folder, one file without a tokenizer, and the tokenizer of 1.x beside it."
    root, words = (
        tmp_path_factory.mktemp("second"),
        train_tokenizer(["green hair, blue eyes", "a photo of a face"], 520),
    )
    words.save_pretrained(root / "tokenizer")
    tower = text_tower(words, 1024, 1, "gelu")
    tower.config.num_attention_heads = 16
    for layer in tower.encoder.layers:
        layer.self_attn.num_heads, layer.self_attn.head_dim, layer.self_attn.scale = 16, 64, 64**-0.5
    words.pad_token = words.convert_ids_to_tokens(0)
    network = randomised(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(64, 64, 64),
            layers_per_block=2,
            cross_attention_dim=1024,
            use_linear_projection=True,
            attention_head_dim=[1, 1, 1],
            down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
        )
    )
    pipe = pipeline(
        words, tower, network, diffusers.DDIMScheduler(**DDIM | {"_class_name": None}, prediction_type="v_prediction")
    )
    pipe.save_pretrained(root / "folder")
    single = whole(
        to_compvis_unet(network.state_dict()) | to_compvis_vae(pipe.vae.state_dict()) | to_openclip(tower, 0.5)
    )
    save_file(single, root / "plain.safetensors")
    return root, pipe, single


@pytest.fixture(scope="module")
def first(tmp_path_factory, tokenizer):
    "Stable Diffusion 1.x as a folder and in one file."
    root = tmp_path_factory.mktemp("first")
    pipe = pipeline(tokenizer, text_tower(tokenizer), unet(), diffusers.DDIMScheduler(**DDIM | {"_class_name": None}))
    pipe.save_pretrained(root / "folder")
    single = to_compvis_unet(pipe.unet.state_dict()) | to_compvis_vae(pipe.vae.state_dict())
    single |= {f"cond_stage_model.transformer.text_model.{k}": v for k, v in pipe.text_encoder.state_dict().items()}
    save_file(whole(single), root / "sd.safetensors")
    return root, pipe, whole(single)


def picture_of_both(ours, pipe, caption="green hair"):
    "img2img by mmgen and by diffusers, each with its own tokenizer, uint8 range."
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    z = ours.encode(x)
    theirs = img2img(pipe, z, caption, 0.5, 20, 5.0)
    image = ours.decode(ours.renoise(z, [caption], 0.5, 10, 5.0, "ddim", seed=3))
    return 255 * ((image[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)).numpy(), 255 * theirs


# what a UNet of 2.x predicts, and padding


@pytest.mark.parametrize("form", ["folder", "plain.safetensors"])
def test_stable_diffusion_2_draws_what_diffusers_draws(second, form):
    root, pipe, _ = second
    ours = stable_diffusion(
        root / form, None if form == "folder" else "v_prediction", 32, None if form == "folder" else root / "tokenizer"
    )
    mine, theirs = picture_of_both(ours, pipe)
    assert theirs.std() > 5 and abs(mine - theirs).max() < 1


def test_each_kind_of_text_tower_pads_as_it_was_trained(second, first, tokenizer):
    root, pipe, single = second
    padding = clip_tokenizer(root / "folder" / "tokenizer")
    for name, state, tower, pad in (
        ("openclip", single, pipe.text_encoder, 0),
        ("openai", first[2], first[1].text_encoder, tokenizer.eos_token_id),
    ):
        with torch.no_grad():
            wanted = tower(input_ids=padded(tokenizer(["green hair", "a face"]).input_ids, pad)).last_hidden_state
        for words in (tokenizer, padding):  # whichever of the two tokenizers is at hand
            found = text_encoder_of(state, words, "cpu").states(["green hair", "a face"])
            assert (found - wanted).abs().max() < 1e-4, name
        other = tower(
            input_ids=padded(tokenizer(["green hair", "a face"]).input_ids, tokenizer.eos_token_id - pad)
        ).last_hidden_state
        assert (other - wanted).abs().max() > 0.01  # padding is seen


YAML = "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    {}linear_start: 0.00085\n"


@pytest.mark.parametrize(
    "notes, marks, beside, given, process",
    [
        ({"modelspec.prediction_type": "v"}, (), None, None, "v"),
        ({"modelspec.prediction_type": "epsilon"}, (), None, None, "eps"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, (), None, None, "v"),
        ({"modelspec.architecture": "stable-diffusion-v2-512"}, (), None, None, "eps"),
        ({}, ("v_pred",), None, None, "v"),
        ({}, ("v_pred", "ztsnr"), None, None, "v, zero"),
        ({}, ("ztsnr",), None, None, "v, zero"),
        ({}, (), 'parameterization: "v"\n    ', None, "v"),
        ({}, (), "", None, "eps"),
        ({}, (), None, "v_prediction", "v"),
        ({}, (), None, "epsilon", "eps"),
        ({"modelspec.prediction_type": "v"}, (), None, "epsilon", "eps"),
        ({}, (), None, None, 'does not specify what its UNet predicts: give prediction_type="epsilon"'),
        ({"modelspec.prediction_type": "x0"}, (), None, None, "predicts 'x0'"),
        ({}, ("ztsnr",), None, "epsilon", "marker ztsnr: no data is left"),
        ({}, (), None, "noise", "prediction_type must be epsilon or v_prediction, not 'noise'"),
    ],
)
def test_what_a_file_predicts_is_read_or_asked_for(second, tmp_path, notes, marks, beside, given, process):
    root, _, single = second
    save_file(single | {mark: torch.zeros(0) for mark in marks}, tmp_path / "mine.safetensors", notes)
    if beside is not None:
        (tmp_path / "mine.yaml").write_text(YAML.format(beside))
    open_it = lambda: open_pipeline(
        tmp_path / "mine.safetensors", "cpu", tokenizer=root / "tokenizer", prediction_type=given
    )
    if process not in ("v", "eps", "v, zero"):
        with pytest.raises(WeightsError, match=process):
            open_it()
        return
    model = open_it()
    assert model.prediction == process.split(",")[0] and model.size == (768 if model.prediction == "v" else 512)
    assert (model.process.alphas_cumprod[-1] == 0) == (process == "v, zero") and model.process.spacing == (
        "trailing" if "zero" in process else "leading"
    )


def test_a_file_of_1_predicts_noise_unless_it_says_otherwise(first, tmp_path):
    _, pipe, single = first
    for marks, prediction in (((), "eps"), (("v_pred",), "v")):
        save_file(single | {mark: torch.zeros(0) for mark in marks}, tmp_path / "mine.safetensors")
        pipe.tokenizer.save_pretrained(tmp_path / "words")
        assert (
            open_pipeline(tmp_path / "mine.safetensors", "cpu", tokenizer=tmp_path / "words").prediction == prediction
        )


def test_the_options_reach_a_model_from_everywhere(second, first):
    root, _, _ = second
    options = {
        "model": str(root / "plain.safetensors"),
        "tokenizer": str(root / "tokenizer"),
        "prediction_type": "v_prediction",
    }
    for which in (
        mmgen.editor("sdedit", "cpu", **options),
        mmgen.editor("prompt-to-prompt", "cpu", **options),
        build_editor(EditConfig(device="cpu", **options)),
    ):
        assert which.pipeline.prediction == "v"
    bench = Workbench("cpu", **options)
    assert (
        bench.editor("sdedit").pipeline is bench.editor("flowedit").pipeline
        and bench.editor("sdedit").pipeline.prediction == "v"
    )
    with pytest.raises(ValueError, match="prediction_type must be one of epsilon, v_prediction, not 'v'"):
        EditConfig(prediction_type="v")
    with pytest.raises(EditError, match="sdedit: an open model takes no tokenizer"):
        mmgen.editor("sdedit", "cpu", model=random_pipeline(), tokenizer="x")
    with pytest.raises(EditError, match="styleclip-mapper has no tokenizer"):
        mmgen.editor("styleclip-mapper", "cpu", tokenizer="x")
    if "ldm-portraits" in mmgen.base.weights.packaged():
        with pytest.raises(WeightsError, match="ldm-portraits is a model of mmgen; prediction_type belongs to"):
            mmgen.editor("sdedit", "cpu", prediction_type="epsilon")


# schedulers


FIELDS = {
    "as it is": {},
    "absent spacing": {"_class_name": "PNDMScheduler"},
    "trailing": {"timestep_spacing": "trailing"},
    "linspace": {"timestep_spacing": "linspace"},
    "offset 0": {"steps_offset": 0},
    "linear": {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
    "cosine": {"beta_schedule": "squaredcos_cap_v2"},
    "clip": {"clip_sample": True, "clip_sample_range": 0.7},
    "zero SNR": {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    "v": {"prediction_type": "v_prediction"},
}


@pytest.mark.parametrize("name", FIELDS)
def test_fields_of_a_scheduler_are_honoured(name):
    fields = DDIM | FIELDS[name]
    scheduler = diffusers.DDIMScheduler.from_config({k: v for k, v in fields.items() if k != "_class_name"})
    process = process_of(fields, "mine")
    schedule, x = make_process(**process), torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    network = lambda x, t: torch.tanh(2 * x + t.reshape(-1, 1, 1, 1) / 1000)
    wanted = x.clone()
    scheduler.set_timesteps(20)
    assert schedule.levels(20).tolist() == scheduler.timesteps.tolist() and torch.allclose(
        schedule.alphas_cumprod.float(), scheduler.alphas_cumprod, atol=1e-5
    )
    if name == "linspace":
        return  # their DDIM steps by T // 20 all the same
    for t in scheduler.timesteps:
        wanted = scheduler.step(network(wanted, t[None]), t, wanted).prev_sample
    assert torch.allclose(ddim(network, x, 20, schedule, process["prediction"]), wanted, atol=2e-3)


def test_a_changed_field_changes_the_picture(first, tmp_path):
    root, pipe, _ = first
    for change in ({}, {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}):
        folder = shutil.copytree(root / "folder", tmp_path / str(len(change)))
        (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(DDIM | change))
        both = diffusers.StableDiffusionImg2ImgPipeline(
            **pipe.components | {"scheduler": diffusers.DDIMScheduler.from_config(DDIM | change)},
            requires_safety_checker=False,
        )
        mine, theirs = picture_of_both(stable_diffusion(folder, size=32), both)
        assert theirs.std() > 5 and abs(mine - theirs).max() < 1, change


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"thresholding": True}, "thresholding=True"),
        ({"trained_betas": [0.1]}, "trained_betas"),
        ({"beta_schedule": "sigmoid"}, "beta_schedule='sigmoid'"),
        ({"timestep_spacing": "log"}, "timestep_spacing='log'"),
        ({"prediction_type": "sample"}, "predicts 'sample'"),
        ({"prediction_type": "flow_prediction"}, "predicts 'flow_prediction'"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: no data is left"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "use_dynamic_shifting"),
    ],
)
def test_fields_of_a_scheduler_that_cannot_be_honoured_are_named(fields, words):
    with pytest.raises(WeightsError, match=f"mine.*{words}"):
        process_of(DDIM | fields, "mine")


def test_flow_matching_and_zero_snr_with_every_sampler():
    flow = process_of(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}, "mine"
    )
    assert flow == {"prediction": "flow", "timesteps": 1000, "shift": 3.0}
    solver = {
        "_class_name": "DPMSolverMultistepScheduler",
        "use_flow_sigmas": True,
        "prediction_type": "flow_prediction",
    }
    assert process_of(solver | {"flow_shift": 3.0}, "mine") == flow
    p = random_pipeline()
    clean = process_of(DDIM | FIELDS["zero SNR"], "mine")
    for spacing in ("leading", "trailing"):
        model = LatentDiffusion(
            p.autoencoder, p.text_encoder, p.unet, size=32, process=clean | {"spacing": spacing}, device="cpu"
        )
        for method in ("ddpm", "ddim", "euler", "heun", "dpmsolver++", "unipc"):
            assert model.sample(["smile"], 4, 2.0, method).isfinite().all(), method
        for name in ("ddim-inversion", "edit-friendly-ddpm", "flowedit"):
            made = mmgen.editor(name, "cpu", model=model, steps=3).edit(
                torch.zeros(1, 3, 32, 32), ["smile"], ["green hair"], 1.0
            )
            assert made.isfinite().all(), name


# tokenizers, autoencoders and folders


def test_a_tokenizer_comes_from_a_folder_or_a_file(first, tokenizer, tmp_path, monkeypatch):
    root, pipe, _ = first
    inner = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in inner["merges"]]
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "vocab.json").write_text(json.dumps(inner["vocab"]))
    (tmp_path / "old" / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]))
    (tmp_path / VOCABULARY).write_bytes(gzip.compress("\n".join(["version", *pairs]).encode(), mtime=0))
    ids = padded(tokenizer(["green hair!"]).input_ids, tokenizer.eos_token_id)
    places = [
        root / "folder",
        root / "folder" / "tokenizer",
        root / "folder" / "tokenizer" / "tokenizer.json",
        tmp_path / "old",
        tmp_path / "old" / "merges.txt",
        tmp_path / VOCABULARY,
    ]
    for place in places:
        model = open_pipeline(root / "sd.safetensors", "cpu", tokenizer=place)
        assert torch.equal(model.text_encoder.tokenize(["green hair!"])[0], ids), place
    here = lambda name: SimpleNamespace(origin=str(tmp_path / "__init__.py")) if name == "clip" else None
    monkeypatch.setattr("importlib.util.find_spec", here)
    assert torch.equal(
        open_pipeline(root / "sd.safetensors", "cpu").text_encoder.tokenize(["green hair!"])[0], ids
    )  # of an installed package


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        gzip.compress(b"a\nb c d\n", mtime=0),
        gzip.compress(b"\xff\xfe", mtime=0),
        gzip.compress(b"x" * 500, mtime=0)[:-8],
    ],
)
def test_a_file_that_is_no_vocabulary_is_one_sentence(first, tmp_path, content):
    (tmp_path / VOCABULARY).write_bytes(content)
    with pytest.raises(
        WeightsError,
        match="sd.safetensors needs CLIP's tokenizer .*give tokenizer=.* is not bpe_simple_vocab_16e6.txt.gz",
    ):
        open_pipeline(first[0] / "sd.safetensors", "cpu", tokenizer=tmp_path / VOCABULARY)


def test_without_a_tokenizer_the_option_is_named(first, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        WeightsError,
        match="needs CLIP's tokenizer .*give tokenizer=, the folder "
        ".*bpe_simple_vocab_16e6.txt.gz of the package open_clip",
    ):
        mmgen.editor("sdedit", "cpu", model=str(first[0] / "sd.safetensors"))


def test_given_parts_take_the_place_of_the_models_own(first, tmp_path):
    root, pipe, single = first
    words, other = root / "folder" / "tokenizer", randomised(vae(scaling_factor=0.5), 7)
    other.save_pretrained(tmp_path / "vae")
    save_file(whole(to_compvis_vae(other.state_dict(), prefix="")), tmp_path / "vae.safetensors")
    tower = randomised(text_tower(pipe.tokenizer), 8)
    tower.save_pretrained(tmp_path / "tower")
    for without, names in (("autoencoder", "first_stage_model."), ("text_encoder", "cond_stage_model.")):
        save_file({k: v for k, v in single.items() if not k.startswith(names)}, tmp_path / f"no-{without}.safetensors")
        with pytest.raises(WeightsError, match=f"holds no {without.replace('_', ' ')}; give one: {without}="):
            open_pipeline(tmp_path / f"no-{without}.safetensors", tokenizer=words)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        wanted = other.encode(x).latent_dist.mean
    for model in (root / "folder", root / "sd.safetensors", tmp_path / "no-autoencoder.safetensors"):
        for part, scale in ((tmp_path / "vae", 0.5), (tmp_path / "vae.safetensors", 0.18215)):
            found = mmgen.editor(
                "sdedit", "cpu", model=str(model), tokenizer=str(words), autoencoder=str(part)
            ).pipeline
            assert torch.allclose(found.encode(x), wanted * scale, atol=1e-4)
    with torch.no_grad():
        wanted = tower(
            input_ids=padded(pipe.tokenizer(["a face"]).input_ids, pipe.tokenizer.eos_token_id)
        ).last_hidden_state
    for model in (root / "folder", root / "sd.safetensors", tmp_path / "no-text_encoder.safetensors"):
        found = open_pipeline(model, "cpu", tokenizer=words, text_encoder=tmp_path / "tower")
        assert torch.allclose(found.text_encoder.states(["a face"]), wanted, atol=1e-4)


def test_an_autoencoder_of_another_architecture_is_one_sentence(first, tmp_path):
    root, *_ = first
    xl, wide = vae(scaling_factor=0.13025), vae(latent_channels=16, scaling_factor=0.3611)
    xl.save_pretrained(tmp_path / "xl"), wide.save_pretrained(tmp_path / "wide")
    notes = {"format": "pt", "modelspec.architecture": "stable-diffusion-xl-v1-base/vae"}
    save_file(whole(xl.state_dict()), tmp_path / "xl.safetensors", notes)
    save_file(whole({"quantize.embedding.weight": ONE, "encoder.conv_in.weight": ONE}), tmp_path / "vq.safetensors")
    for part, words in (
        ("xl", "xl is the autoencoder of Stable Diffusion XL"),
        ("xl.safetensors", "xl.safetensors is the autoencoder of Stable Diffusion XL"),
        ("wide", "16 channels of the autoencoder's latents: they do not belong together"),
        ("vq.safetensors", "vq.safetensors holds a VQ autoencoder"),
    ):
        with pytest.raises(ValueError, match=words):
            mmgen.editor("sdedit", "cpu", model=str(root / "folder"), autoencoder=str(tmp_path / part))


def sharded(part, name, ending="safetensors", index="index"):
    state = load_file(part / f"{name}.safetensors")
    names, half = sorted(state), len(state) // 2
    files = {f"{name}-0000{i + 1}-of-00002.safetensors": some for i, some in enumerate((names[:half], names[half:]))}
    for file, some in files.items():
        save_file({key: state[key] for key in some}, part / file)
    (part / f"{name}.safetensors.{index}.json").write_text(
        json.dumps({"metadata": {}, "weight_map": {key: file for file, some in files.items() for key in some}})
    )
    (part / f"{name}.safetensors").unlink()


PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


@pytest.mark.parametrize("form", ["fp16", "non_ema", "shards", "fp16 shards", "fp16 bin", "fp16 and non_ema"])
def test_folders_in_every_layout_of_their_weights(first, tmp_path, form):
    root, pipe, _ = first
    folder = shutil.copytree(root / "folder", tmp_path / "folder")
    for part, name in PARTS.items():
        file = folder / part / f"{name}.safetensors"
        if "shards" in form:
            sharded(folder / part, name, index="index.fp16" if "fp16" in form else "index")
        elif "bin" in form:
            torch.save(load_file(file), folder / part / f"{'pytorch_model' if name == 'model' else name}.fp16.bin")
            file.unlink()
        else:
            if "and" in form:
                save_file({k: v + 1 for k, v in load_file(file).items()}, file.with_name(f"{name}.non_ema.safetensors"))
            file.rename(file.with_name(f"{name}.{form.split()[0]}.safetensors"))
    for part, network in (("unet", pipe.unet), ("vae", pipe.vae), ("text_encoder", pipe.text_encoder)):
        found = load_state(folder / part)
        assert all(torch.equal(found[k.replace("text_model.", "")], v) for k, v in network.state_dict().items())
    if form == "fp16 shards":
        assert open_pipeline(folder, "cpu").prediction == "eps"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda index: index["weight_map"].update(x="../secret.safetensors"), "does not name the files"),
        (lambda index: index.pop("weight_map"), "does not name the files"),
        (
            lambda index: index["weight_map"].update(x="model-3.safetensors"),
            "lacks model-3.safetensors, one of the 3 files",
        ),
    ],
)
def test_a_broken_index_is_one_sentence(first, tmp_path, change, words):
    folder = shutil.copytree(first[0] / "folder" / "text_encoder", tmp_path / "text_encoder")
    sharded(folder, "model")
    change(index := json.loads((folder / "model.safetensors.index.json").read_text()))
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(WeightsError, match=words):
        load_state(folder)


def test_text_encoders_without_text_model_in_their_names(first, tmp_path):
    "NovelAI's weights and the merges that were made of them"
    root, pipe, single = first
    old = {k.replace("transformer.text_model.", "transformer."): v for k, v in single.items()} | {
        "cond_stage_model.transformer.embeddings.position_ids": torch.arange(77)[None]
    }
    torch.save({"state_dict": old}, tmp_path / "animefull.ckpt")
    words = root / "folder" / "tokenizer"
    found, wanted = (
        open_pipeline(file, "cpu", tokenizer=words).text_encoder.states(["a face"])
        for file in (tmp_path / "animefull.ckpt", root / "sd.safetensors")
    )
    assert torch.equal(found, wanted)


# what a file is


ONE = torch.zeros(4, 4)
KINDS = {
    "kohya": ({"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": ONE}, "holds a LoRA, .*give it as lora="),
    "peft": ({"unet.mid_block.attentions.0.to_q.lora_A.weight": ONE}, "a LoRA"),
    "2022": ({"mid_block.attentions.0.processor.to_q_lora.down.weight": ONE}, "a LoRA"),
    "loha": ({"lora_te_text_model_encoder_layers_0_mlp_fc1.hada_w1_a": ONE}, "a LoRA"),
    "word": ({"emb_params": torch.zeros(3, 768)}, "a textual inversion.*give it as embedding="),
    "named word": ({"my-cat": torch.zeros(1024)}, "a textual inversion"),
    "XL's word": ({"clip_g": torch.zeros(1, 1280), "clip_l": torch.zeros(1, 768)}, "a textual inversion"),
    "controlnet": ({"control_model.input_blocks.0.0.weight": ONE}, "a ControlNet"),
    "diffusers' controlnet": (
        {"controlnet_cond_embedding.conv_in.weight": ONE, "conv_in.weight": torch.zeros(4, 4, 3, 3)},
        "a ControlNet",
    ),
    "animatediff": ({"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": ONE}, "AnimateDiff"),
    "flux": ({"double_blocks.0.img_attn.qkv.weight": ONE}, "holds Flux; diffusers' FluxImg2Img"),
    "comfy's flux": ({"model.diffusion_model.double_blocks.0.img_attn.qkv.weight": ONE}, "holds Flux"),
    "diffusers' flux": (
        {"single_transformer_blocks.0.attn.to_q.weight": ONE, "transformer_blocks.0.attn.add_q_proj.weight": ONE},
        "holds Flux",
    ),
    "sd3": ({"model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": ONE}, "holds Stable Diffusion 3"),
    "diffusers' sd3": ({"transformer_blocks.0.attn.add_q_proj.weight": ONE}, "holds Stable Diffusion 3"),
    "sdxl": (
        {"conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight": ONE},
        "holds Stable Diffusion XL; diffusers' StableDiffusionXL",
    ),
    "stylegan": ({"synthesis.b4.const": ONE}, "a generator of StyleGAN2.*generator="),
    "vae": ({"decoder.up.0.block.0.conv1.weight": ONE}, "an autoencoder alone, no UNet; give it as autoencoder="),
    "diffusers' vae": ({"encoder.down_blocks.0.resnets.0.conv1.weight": ONE}, "an autoencoder alone"),
    "text": ({"text_model.embeddings.token_embedding.weight": ONE}, "a text encoder alone"),
    "inpainting": (
        {
            "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3),
            "model.diffusion_model.out.2.weight": torch.zeros(4, 8, 3, 3),
        },
        "of inpainting: it reads 9 channels.*StableDiffusionInpaintPipeline",
    ),
    "depth": (
        {
            "model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 5, 3, 3),
            "model.diffusion_model.out.2.weight": torch.zeros(4, 8, 3, 3),
        },
        "of depth: .*StableDiffusionDepth2ImgPipeline",
    ),
    "upscaler": (
        {
            "conv_in.weight": torch.zeros(8, 7, 3, 3),
            "conv_out.weight": torch.zeros(4, 8, 3, 3),
            "model.diffusion_model.label_emb.0.0.weight": ONE,
        },
        "of upscaling: .*StableDiffusionUpscalePipeline",
    ),
    "odd": (
        {"conv_in.weight": torch.zeros(8, 6, 3, 3), "conv_out.weight": torch.zeros(4, 8, 3, 3)},
        "reads 6 channels and predicts 4",
    ),
    "instruct": (
        {"conv_in.weight": torch.zeros(8, 8, 3, 3), "conv_out.weight": torch.zeros(4, 8, 3, 3)},
        "is an InstructPix2Pix.*instruct-pix2pix edits with it",
    ),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("ending", ["safetensors", "ckpt"])
def test_a_file_of_another_kind_says_what_it_is(tmp_path, name, ending):
    state, words = KINDS[name]
    file = tmp_path / f"mine.{ending}"
    state = whole(state)
    save_file(state, file) if ending == "safetensors" else torch.save({"state_dict": state}, file)
    with pytest.raises(WeightsError, match=f"mine.{ending} .*{words}"):
        mmgen.editor("sdedit", "cpu", model=str(file))


def test_other_files_and_folders_say_what_they_are(first, tmp_path):
    (tmp_path / "flux.gguf").write_bytes(b"GGUF" + bytes(60))
    torch.save(
        {"string_to_token": {"*": 265}, "string_to_param": {"*": torch.zeros(2, 768)}, "name": "cat"},
        tmp_path / "cat.pt",
    )
    (tmp_path / "inpaint").mkdir()
    index = json.loads((first[0] / "folder" / "model_index.json").read_text())
    for file, words in (
        ("flux.gguf", "flux.gguf was not opened: it is GGUF"),
        ("cat.pt", "cat.pt is a textual inversion"),
    ):
        with pytest.raises(WeightsError, match=words):
            mmgen.editor("sdedit", "cpu", model=str(tmp_path / file))
    for kind in ("StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline"):
        (tmp_path / "inpaint" / "model_index.json").write_text(json.dumps({"_class_name": kind}))
        with pytest.raises(
            WeightsError, match=f"is a {kind}, which diffusers opens; Stable Diffusion 1.x and 2.x are opened"
        ):
            open_pipeline(tmp_path / "inpaint")
    folder = shutil.copytree(first[0] / "folder", tmp_path / "nine")
    fields = json.loads((folder / "unet" / "config.json").read_text())
    for channels, words in ((9, "of inpainting"), (5, "of depth"), (7, "of upscaling"), (8, "is an InstructPix2Pix")):
        (folder / "unet" / "config.json").write_text(json.dumps(fields | {"in_channels": channels}))
        with pytest.raises(WeightsError, match=f"nine .*{words}"):
            open_pipeline(folder)
    for part in ("unet", "vae", "text_encoder"):
        with pytest.raises(WeightsError, match="but one part of one"):
            open_pipeline(first[0] / "folder" / part)
    assert index["_class_name"] == "StableDiffusionImg2ImgPipeline"


# InstructPix2Pix


def test_plain_models_are_refused_by_the_instruct_editor_at_once(first):
    root = first[0]
    for model in (root / "folder", root / "sd.safetensors"):
        with pytest.raises(
            WeightsError,
            match=f"{model.name} is no InstructPix2Pix: its UNet reads 4 channels, .*sdedit and the inversions",
        ):
            mmgen.editor("instruct-pix2pix", "cpu", model=str(model))
    if "ldm-portraits" in mmgen.base.weights.packaged():
        with pytest.raises(WeightsError, match="ldm-portraits is no InstructPix2Pix"):
            mmgen.editor("instruct-pix2pix", "cpu", model="ldm-portraits")


@pytest.fixture(scope="module")
def brooks(tmp_path_factory, tokenizer):
    "Published InstructPix2Pix: the folder of diffusers, and the original's file with an average beside the weights."
    root = tmp_path_factory.mktemp("instruct")
    network = randomised(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            in_channels=8,
            block_out_channels=(32, 32, 64),
            layers_per_block=2,
            cross_attention_dim=16,
            attention_head_dim=8,
            down_block_types=("CrossAttnDownBlock2D",) * 2 + ("DownBlock2D",),
            up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 2,
        ),
        4,
    )
    pipe = pipeline(
        tokenizer,
        text_tower(tokenizer),
        network,
        diffusers.DDIMScheduler(**DDIM | {"_class_name": None}),
        diffusers.StableDiffusionInstructPix2PixPipeline,
    )
    pipe.save_pretrained(root / "folder")
    single = to_compvis_unet(network.state_dict())
    averages = {"model_ema." + k.removeprefix("model.").replace(".", ""): v for k, v in single.items()}
    single = {k: v + 0.1 for k, v in single.items()} | averages | to_compvis_vae(pipe.vae.state_dict())
    single |= {f"cond_stage_model.transformer.text_model.{k}": v for k, v in pipe.text_encoder.state_dict().items()}
    torch.save({"state_dict": single}, root / "instruct.ckpt")
    return root, pipe


@pytest.mark.parametrize("form", ["folder", "instruct.ckpt"])
def test_published_instruct_weights_edit_as_in_diffusers(brooks, form):
    root, pipe = brooks
    ours = open_pipeline(
        root / form, "cpu", tokenizer=None if form == "folder" else root / "folder", cls=InstructPix2Pix
    )
    x = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2)) * 2 - 1
    z, steps = ours.encode(x), 5
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    begin = start(ours.process, torch.zeros_like(z), noise, 1.0, steps)
    pipe.vae_scale_factor = 4  # of a small autoencoder
    theirs = pipe(
        "make her hair green",
        image=x / 2 + 0.5,
        num_inference_steps=steps,
        guidance_scale=7.5,
        image_guidance_scale=1.5,
        latents=begin,
        output_type="np",
    ).images[0]
    made = ours.decode(ours.follow(z, ["make her hair green"], 7.5, 1.5, steps, "ddim", seed=3))
    mine = (made[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1).numpy()
    assert theirs.std() > 0.02 and 255 * abs(mine - theirs).max() < 1
    scaled = InstructPix2Pix(
        ours.autoencoder, ours.text_encoder, ours.unet, 0.0, 1 / 0.18215, 32, ours.process_config, "cpu", masked=False
    )
    assert (
        ours.decode(scaled.follow(z, ["make her hair green"], 7.5, 1.5, steps, "ddim", seed=3)) - made
    ).abs().max() > 0.02  # it matters which latents are read


def test_the_instruct_editor_takes_published_weights(brooks):
    root, _ = brooks
    which = mmgen.editor("instruct-pix2pix", "cpu", model=str(root / "folder"), steps=2)
    assert which.guidance * which.strength == 7.5 and which.image_guidance == 1.5 and which.size == 32
    for source in ("", "blue hair"):
        assert which.instruction(source, "make her hair green") == "make her hair green"
    assert which.instruction("blue hair, smile", "green hair, smile") == "green hair, no blue hair"
    assert which.edit(torch.zeros(1, 3, 32, 32), [""], ["make her hair green"]).isfinite().all()
    with pytest.raises(WeightsError, match="folder is an InstructPix2Pix: .*instruct-pix2pix edits with it"):
        mmgen.editor("sdedit", "cpu", model=str(root / "folder"))
    with pytest.raises(EditError, match="sdedit needs a LatentDiffusion, not a InstructPix2Pix"):
        mmgen.editor("sdedit", model=which.pipeline)
    with pytest.raises(ValueError, match="are not saved"):
        which.pipeline.save("x", "a", "b", "c")
    assert unet_of(load_state(root / "folder" / "unet")).config["in_channels"] == 8
