"""Published weights, small and random but of the exact layout.

Stable Diffusion and txt2img in folders and single files, kl autoencoders, text towers, UNets without text.
"""

import json
import re
import shutil

import diffusers
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from safetensors.torch import load_file, save_file
from test_autoencoder import with_old_names
from tiny_diffusers import img2img
from transformers import BertTokenizer, CLIPTextConfig, CLIPTextModel

import mmgen
from mmgen.base.schema import WeightsError
from mmgen.base.weights import load_state
from mmgen.clip.model import train_tokenizer
from mmgen.ldm.diffusion import start
from mmgen.ldm.open import open_pipeline
from mmgen.ldm.published.diffusers_folder import ExportError, save_diffusers
from mmgen.ldm.published.names import part_of, rename_autoencoder, rename_unet
from mmgen.ldm.published.stable_diffusion import autoencoder_of, stable_diffusion, text_encoder_of, unet_of
from mmgen.ldm.published.unconditional import unconditional, unconditional_unet_of


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(["green hair, blue eyes", "a photo of a face"], 520)


def randomised(model, seed=0):
    torch.manual_seed(seed)
    for p in model.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    return model.eval()


def unet(width=32, version=1):
    second = (
        {"use_linear_projection": True, "attention_head_dim": [1, 1, 1]} if version == 2 else {"attention_head_dim": 8}
    )
    if version == 2:
        width = 64
    return randomised(
        diffusers.UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(width, width, 2 * width) if version == 1 else (64, 64, 64),
            layers_per_block=2,
            cross_attention_dim=16 if version == 1 else 24,
            down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            **second,
        )
    )


def vae(**options):
    return randomised(
        diffusers.AutoencoderKL(
            **dict(
                block_out_channels=(32, 32, 64),
                layers_per_block=2,
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                scaling_factor=0.3,
            )
            | options
        )
    )


def text_tower(tokenizer, width=16, layers=2, act="quick_gelu"):
    return randomised(
        CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=width,
                intermediate_size=4 * width,
                num_hidden_layers=layers,
                num_attention_heads=1,
                hidden_act=act,
                eos_token_id=tokenizer.eos_token_id,
                bos_token_id=tokenizer.bos_token_id,
            )
        )
    )


def to_compvis_unet(state, layers=2, levels=3):
    "diffusers' names → CompVis' input_blocks, middle_block and output_blocks, numbered as in openaimodel.py."
    out = {}
    inner = {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "time_emb_proj": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "conv_shortcut": "skip_connection",
    }
    resnet = lambda rest: re.sub(r"^\w+", lambda m: inner[m[0]], rest)
    fixed = {
        "conv_in": "input_blocks.0.0",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
    }
    attends = {int(m[1]) for k in state if (m := re.match(r"up_blocks\.(\d)\.attentions", k))}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] in ("down_blocks", "up_blocks"):
            i, kind, j, rest = int(parts[1]), parts[2], int(parts[3]), ".".join(parts[4:])
            down = parts[0] == "down_blocks"
            number = i * (layers + 1) + j + 1 if down else i * (layers + 1) + j
            way = "input_blocks" if down else "output_blocks"
            if kind == "resnets":
                new = f"{way}.{number}.0.{resnet(rest)}"
            elif kind == "attentions":
                new = f"{way}.{number}.1.{rest}"
            elif down:
                new = f"{way}.{(i + 1) * (layers + 1)}.0." + (f"op.{parts[-1]}" if parts[4] == "conv" else resnet(rest))
            else:
                new = f"{way}.{(i + 1) * (layers + 1) - 1}.{2 if i in attends else 1}." + (
                    rest if parts[4] == "conv" else resnet(rest)
                )
        elif parts[0] == "mid_block":
            rest = ".".join(parts[3:])
            new = (
                f"middle_block.1.{rest}"
                if parts[1] == "attentions"
                else f"middle_block.{2 * int(parts[2])}.{resnet(rest)}"
            )
        else:
            name = next(k for k in fixed if key.startswith(k + "."))
            new = fixed[name] + key[len(name) :]
        out[f"model.diffusion_model.{new}"] = value
    assert len(out) == len(state)
    return out


def to_compvis_vae(state, levels=3, prefix="first_stage_model."):
    out = {}
    for key, value in state.items():
        new = re.sub(r"encoder\.down_blocks\.", "encoder.down.", key)
        new = re.sub(r"decoder\.up_blocks\.(\d)", lambda m: f"decoder.up.{levels - 1 - int(m[1])}", new)
        if "mid_block" in new:
            new = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", new).replace(
                "mid_block.attentions.0", "mid.attn_1"
            )
        new = (
            new.replace(".resnets.", ".block.")
            .replace(".attentions.", ".attn.")
            .replace("conv_norm_out", "norm_out")
            .replace("conv_shortcut", "nin_shortcut")
        )
        new = new.replace("downsamplers.0", "downsample").replace("upsamplers.0", "upsample")
        if ".attn" in new:
            for ours, original in (
                (".group_norm.", ".norm."),
                (".to_q.", ".q."),
                (".to_k.", ".k."),
                (".to_v.", ".v."),
                (".to_out.0.", ".proj_out."),
            ):
                new = new.replace(ours, original)
            if value.ndim == 2:
                value = value[:, :, None, None]
        out[prefix + new] = value
    assert len(out) == len(state)
    return out


def to_openclip(tower, extra_layer):
    "transformers' names → open_clip's (one matrix for q, k and v), with a last layer that SD 2 does not use."
    state = {k: v for k, v in tower.state_dict().items() if not k.endswith("position_ids")}
    layers = tower.config.num_hidden_layers
    for k, v in {k: v for k, v in state.items() if f"layers.{layers - 1}." in k}.items():
        state[k.replace(f"layers.{layers - 1}.", f"layers.{layers}.")] = v + extra_layer
    out, names = (
        {},
        {
            "embeddings.token_embedding.weight": "token_embedding.weight",
            "embeddings.position_embedding.weight": "positional_embedding",
            "final_layer_norm.weight": "ln_final.weight",
            "final_layer_norm.bias": "ln_final.bias",
        },
    )
    for i in range(layers + 1):
        for kind in ("weight", "bias"):
            at = f"encoder.layers.{i}"
            out[f"transformer.resblocks.{i}.attn.in_proj_{kind}"] = torch.cat(
                [state.pop(f"{at}.self_attn.{q}_proj.{kind}") for q in "qkv"]
            )
            for theirs, ours in (
                ("attn.out_proj", "self_attn.out_proj"),
                ("ln_1", "layer_norm1"),
                ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"),
                ("mlp.c_proj", "mlp.fc2"),
            ):
                out[f"transformer.resblocks.{i}.{theirs}.{kind}"] = state.pop(f"{at}.{ours}.{kind}")
    out |= {names[k]: v for k, v in state.items()}
    return {f"cond_stage_model.model.{k}": v for k, v in out.items()} | {
        "cond_stage_model.model.text_projection": torch.zeros(2, 2),
        "cond_stage_model.model.logit_scale": torch.ones(()),
    }


@pytest.mark.parametrize("version", [1, 2])
def test_a_unet_in_both_layouts_gives_the_output_of_diffusers(version):
    reference = unet(version=version)
    x, t, text = (
        torch.randn(2, 4, 8, 8),
        torch.tensor([3, 700]),
        torch.randn(2, 7, reference.config.cross_attention_dim),
    )
    with torch.no_grad():
        wanted = reference(x, t, text).sample
    single = to_compvis_unet(reference.state_dict())
    converted = convert_ldm_unet_checkpoint(dict(single), {"layers_per_block": 2})
    assert rename_unet(part_of(single, "unet")).keys() == converted.keys() == reference.state_dict().keys()
    for state in (
        reference.state_dict(),
        single,
        {k.removeprefix("model.diffusion_model."): v for k, v in single.items()},
    ):
        with torch.no_grad():
            assert torch.allclose(unet_of(state)(x, t, text), wanted, atol=1e-4)


KL = {
    "kl-f4": dict(),
    "kl-f8": dict(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ),
    "kl-f16": dict(
        block_out_channels=(32, 32, 32, 64, 64),
        latent_channels=16,
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",),
        up_block_types=("AttnUpDecoderBlock2D",) + ("UpDecoderBlock2D",) * 4,
    ),
    "kl-f32": dict(
        block_out_channels=(32, 32, 32, 32, 64, 64),
        latent_channels=64,
        down_block_types=("DownEncoderBlock2D",) * 4 + ("AttnDownEncoderBlock2D",) * 2,
        up_block_types=("AttnUpDecoderBlock2D",) * 2 + ("UpDecoderBlock2D",) * 4,
    ),
}


@pytest.mark.parametrize("name", KL)
def test_autoencoders_of_latent_diffusion(name):
    reference = vae(**KL[name])
    levels = len(reference.config.block_out_channels)
    alone = to_compvis_vae(reference.state_dict(), levels, "") | {
        "loss.logvar": torch.zeros(()),
        "loss.discriminator.main.0.weight": torch.zeros(1),
    }
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        wanted = reference.encode(x).latent_dist.mean
        image = reference.decode(wanted).sample
    if "16" not in name and "32" not in name:
        config = {way: reference.config[way] for way in ("down_block_types", "up_block_types")}
        assert (
            rename_autoencoder(part_of(alone, "autoencoder")).keys()
            == convert_ldm_vae_checkpoint(to_compvis_vae(reference.state_dict(), levels), config).keys()
        )
    for state in (reference.state_dict(), alone, to_compvis_vae(reference.state_dict(), levels)):
        model = autoencoder_of(state)
        with torch.no_grad():
            assert (
                model.factor == int(name[4:])
                and torch.allclose(model.encode(x).mode(), wanted, atol=1e-4)
                and torch.allclose(model.decode(wanted), image, atol=1e-4)
            )


def padded(rows, pad, length=77):
    "Token ids filled up by hand, so that no tokenizer is shared with what is tested."
    return torch.tensor([row + [pad] * (length - len(row)) for row in rows])


def test_text_towers_of_both_versions(tokenizer):
    first, second = text_tower(tokenizer), text_tower(tokenizer, 1024, 1, "gelu")
    old = {f"cond_stage_model.transformer.text_model.{k}": v for k, v in first.state_dict().items()} | {
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]
    }
    for tower, state in ((first, old), (second, to_openclip(second, 0.5))):
        ids = padded(tokenizer(["green hair", "a face"]).input_ids, 0 if tower is second else tokenizer.eos_token_id)
        if tower is second:
            tower.config.num_attention_heads = 16
        encoder = text_encoder_of(state, tokenizer, "cpu")
        reference = CLIPTextModel(
            CLIPTextConfig(**{**tower.config.to_dict(), "num_attention_heads": max(1, tower.config.hidden_size // 64)})
        ).eval()
        reference.load_state_dict(tower.state_dict())
        with torch.no_grad():
            assert torch.allclose(
                encoder.states(["green hair", "a face"]), reference(input_ids=ids).last_hidden_state, atol=1e-4
            )


@pytest.fixture(scope="module")
def sd(tmp_path_factory, tokenizer):
    "A folder that diffusers wrote, and the same weights in one file."
    root = tmp_path_factory.mktemp("sd")
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
    )
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        vae(scaling_factor=0.18215),
        text_tower(tokenizer),
        tokenizer,
        unet(),
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(root / "folder")
    single = to_compvis_unet(pipe.unet.state_dict()) | to_compvis_vae(pipe.vae.state_dict())
    single |= {f"cond_stage_model.transformer.text_model.{k}": v for k, v in pipe.text_encoder.state_dict().items()}
    single = {k: v.contiguous().clone() for k, v in single.items()}
    save_file(single, root / "sd.safetensors")
    torch.save(
        {"state_dict": single | {"model_ema.decay": torch.tensor(0.5)}, "global_step": 5, "callbacks": {}},
        root / "sd.ckpt",
    )
    tokenizer.save_pretrained(root / "tokenizer")
    as_in_2022(root / "folder", root / "2022")
    return root, pipe


def as_in_2022(folder, old):
    "A folder as before May 2023: pickles, old names of attention layers, a list of positions, no scale of the latents."
    shutil.copytree(folder, old)
    for part, name in (
        ("unet", "diffusion_pytorch_model"),
        ("vae", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
    ):
        state = load_file(old / part / f"{name}.safetensors")
        if part == "vae":
            state = with_old_names(state)
        if part == "text_encoder":
            state["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        torch.save(state, old / part / ("pytorch_model.bin" if part == "text_encoder" else f"{name}.bin"))
        (old / part / f"{name}.safetensors").unlink()
    for part, change in (("unet", {"upcast_attention": True}), ("vae", {"scaling_factor": None})):
        config = json.loads((old / part / "config.json").read_text()) | change
        (old / part / "config.json").write_text(
            json.dumps({key: value for key, value in config.items() if value is not None})
        )


@pytest.mark.parametrize("form", ["folder", "sd.safetensors", "2022"])
def test_img2img_of_diffusers_and_ours_make_the_same_picture(sd, form):
    root, pipe = sd
    ours = stable_diffusion(root / form, tokenizer=root / "tokenizer", size=32)
    assert ours.process_config["prediction"] == "eps" and not ours.masked
    of_a_file = (
        dict(timestep_spacing="leading", steps_offset=1) if form.endswith("safetensors") else {}
    )  # as the original code samples
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        **pipe.components | {"scheduler": diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **of_a_file)},
        requires_safety_checker=False,
    )
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    z = ours.encode(x)
    theirs = img2img(pipe, z, "green hair", 0.5, 20, 5.0)
    image = ours.decode(ours.renoise(z, ["green hair"], 0.5, 10, 5.0, "ddim", seed=3))
    image = ((image[0].permute(1, 2, 0) / 2 + 0.5).clamp(0, 1)).numpy()
    assert image.std() > 0.02 and abs(image - theirs).max() <= 2 / 255


def test_every_diffusion_editor_takes_it(sd):
    root, _ = sd
    x = torch.rand(1, 3, 64, 64) * 2 - 1
    for name in ("reconstruction", "sdedit", "ddim-inversion", "edit-friendly-ddpm", "prompt-to-prompt", "flowedit"):
        model = open_pipeline(root / "folder")
        model.size = 64
        options = {} if name == "reconstruction" else {"steps": 3}
        editor = mmgen.editor(name, "cpu", model=model, **options)
        out = editor.edit(x, ["a face"], ["green hair"])
        assert out.shape == x.shape and out.isfinite().all(), name


def test_a_ckpt_with_trainer_state_opens_too(sd):
    root, pipe = sd
    model = stable_diffusion(root / "sd.ckpt", tokenizer=root / "tokenizer", prediction_type="v_prediction")
    assert model.process_config["prediction"] == "v" and model.size == 768
    assert all(torch.equal(v, pipe.unet.state_dict()[k]) for k, v in model.unet.state_dict().items())


def test_half_precision_comes_as_float32_and_8_bits_are_refused(sd, tmp_path):
    _, pipe = sd
    state = {k: v.half() for k, v in to_compvis_unet(pipe.unet.state_dict()).items()}
    save_file({k: v.contiguous().clone() for k, v in state.items()}, tmp_path / "half.safetensors")
    assert unet_of(load_state(tmp_path / "half.safetensors")).conv_in.weight.dtype == torch.float32
    with pytest.raises(WeightsError, match="without floating-point numbers, such as 8-bit weights"):
        unet_of({k: (v * 100).to(torch.int8) for k, v in state.items()}, "q")
    save_file({k: v.to(torch.float8_e4m3fn).contiguous().clone() for k, v in state.items()}, tmp_path / "q.safetensors")
    with pytest.raises(WeightsError, match="q.safetensors has weights of 8 bits or fewer"):
        load_state(tmp_path / "q.safetensors")


def test_what_does_not_fit_is_named(sd, tmp_path, tokenizer):
    root, pipe = sd
    whole = to_compvis_unet(pipe.unet.state_dict())
    lacking = {k: v for k, v in whole.items() if "middle_block.0.in_layers" not in k}
    with pytest.raises(
        WeightsError, match=r"mine does not fit UNet2DConditionModel.*4 missing \(mid_block.resnets.0.norm1.weight"
    ):
        unet_of(lacking, "mine")
    with pytest.raises(WeightsError, match="1 unexpected .*extra"):
        unet_of(whole | {"model.diffusion_model.input_blocks.1.0.in_layers.0.extra": torch.zeros(1)}, "mine")
    with pytest.raises(WeightsError, match="mine holds an autoencoder alone, no UNet; give it as autoencoder="):
        unet_of(to_compvis_vae(pipe.vae.state_dict()), "mine")
    with pytest.raises(WeightsError, match="holds no UNet of latent diffusion"):
        unet_of({"layer.weight": torch.zeros(1)}, "mine")
    with pytest.raises(WeightsError, match="holds no autoencoder"):
        autoencoder_of(whole, "mine")
    with pytest.raises(WeightsError, match="VQ autoencoder"):
        autoencoder_of({"first_stage_model.quantize.embedding.weight": torch.zeros(1)}, "vq-f4.ckpt")
    with pytest.raises(WeightsError, match="needs CLIP's tokenizer"):
        stable_diffusion(root / "sd.safetensors", tokenizer=tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(WeightsError, match="is a StableDiffusionXLPipeline"):
        stable_diffusion(tmp_path)
    (tmp_path / "renamed.pt").write_bytes((root / "sd.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="renamed.pt"):
        stable_diffusion(tmp_path / "renamed.pt")


@pytest.fixture(scope="module")
def txt2img(tmp_path_factory):
    "diffusers' pipeline of latent diffusion, as a folder and as the original file."
    root = tmp_path_factory.mktemp("txt2img")
    (root / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "green", "hair", "a", "face", ","])
    )
    words = BertTokenizer.from_pretrained(root)
    bert = randomised(
        LDMBertModel(
            LDMBertConfig(vocab_size=12, d_model=16, encoder_layers=3, encoder_attention_heads=2, encoder_ffn_dim=64)
        )
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )
    pipe = diffusers.LDMTextToImagePipeline(vae(scaling_factor=0.18215), bert, words, unet(), scheduler)
    pipe.save_pretrained(root / "folder")
    single, names = (
        to_compvis_unet(pipe.unet.state_dict()) | to_compvis_vae(pipe.vqvae.state_dict()),
        {
            "self_attn_layer_norm": "0.0",
            "final_layer_norm": "1.0",
            "fc1": "1.1.net.0.0",
            "fc2": "1.1.net.2",
            "self_attn": "0.1",
        },
    )
    fixed = {
        "model.embed_tokens": "token_emb",
        "model.embed_positions": "pos_emb.emb",
        "model.layer_norm": "norm",
        "to_logits": "to_logits",
    }
    for key, value in bert.state_dict().items():
        if m := re.match(r"model\.layers\.(\d)\.(\w+)\.(.+)", key):
            odd, rest = names[m[2]].split(".", 1)
            name = re.sub(r"^(q|k|v|out)_proj", r"to_\1", m[3])
            new = f"attn_layers.layers.{2 * int(m[1]) + int(odd)}.{rest}.{name}"
        else:
            new = fixed[key.rsplit(".", 1)[0]] + "." + key.rsplit(".", 1)[1]
        single[f"cond_stage_model.transformer.{new}"] = value
    torch.save({"state_dict": single}, root / "txt2img.ckpt")
    return root, pipe


@pytest.mark.parametrize("form", ["folder", "txt2img.ckpt"])
def test_txt2img_draws_what_diffusers_draws(txt2img, form):
    root, pipe = txt2img
    ours = stable_diffusion(root / form, size=32, tokenizer=root if form.endswith("ckpt") else None)
    if form.endswith("ckpt"):
        pipe.scheduler = diffusers.DDIMScheduler.from_config(
            pipe.scheduler.config, timestep_spacing="leading"
        )  # as the original code samples
    z = start(
        ours.process,
        torch.zeros(1, 4, 8, 8),
        torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)),
        1.0,
        4,
    )
    theirs = pipe(
        "green hair, a face", 64, 64, num_inference_steps=4, guidance_scale=3.0, latents=z, output_type="np"
    ).images[0]  # 64: for autoencoders of factor 8
    image = ours.sample(["green hair, a face"], 4, 3.0, "ddim", seed=3)[0].permute(1, 2, 0) / 2 + 0.5
    assert theirs.std() > 0.02 and abs(image.numpy() - theirs).max() < 1e-3
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    for name in ("sdedit", "prompt-to-prompt"):
        assert (
            mmgen.editor(name, "cpu", model=ours, steps=2).edit(x, ["a face"], ["a face, green hair"]).isfinite().all()
        )
    with pytest.raises(ExportError, match="no text tower of CLIP's"):
        save_diffusers(ours, root / "out")


def test_txt2img_needs_its_tokenizer_and_a_kl_autoencoder(txt2img, tmp_path):
    root, _ = txt2img
    for empty in (tmp_path, tmp_path / "none"):
        with pytest.raises(WeightsError, match="needs BERT's tokenizer .vocab.txt"):
            stable_diffusion(root / "txt2img.ckpt", tokenizer=empty)
    index = json.loads((root / "folder" / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"vqvae": ["diffusers", "VQModel"]}))
    with pytest.raises(WeightsError, match="has a VQ autoencoder"):
        stable_diffusion(tmp_path)


def without_text(kind):
    "A UNet of diffusers, and its weights as CompVis wrote them: q, k and v of each head in turn, in one matrix."
    types = {
        "churches": dict(
            block_out_channels=(64, 64, 64),
            down_block_types=("AttnDownBlock2D",) * 2 + ("ResnetDownsampleBlock2D",),
            up_block_types=("ResnetUpsampleBlock2D",) + ("AttnUpBlock2D",) * 2,
            attn_norm_num_groups=32,
            resnet_time_scale_shift="scale_shift",
            downsample_type="resnet",
            upsample_type="resnet",
            attention_head_dim=8,
        ),
        "beds": dict(
            block_out_channels=(32, 64, 64),
            down_block_types=("DownBlock2D",) + ("AttnDownBlock2D",) * 2,
            up_block_types=("AttnUpBlock2D",) * 2 + ("UpBlock2D",),
            attention_head_dim=32,
        ),
    }[kind]
    model = randomised(diffusers.UNet2DModel(sample_size=8, in_channels=4, out_channels=4, **types))
    state, channels = {}, types["attention_head_dim"]
    for key, value in model.state_dict().items():
        if "to_q" in key:
            each = [model.state_dict()[key.replace("to_q", f"to_{name}")].split(channels) for name in "qkv"]
            state[key.replace("to_q", "qkv")] = torch.cat([part for head in zip(*each) for part in head])
        elif "to_k" not in key and "to_v" not in key:
            state[key.replace("group_norm", "norm").replace("to_out.0", "proj_out")] = value
    state = {k: v[..., None] if re.search(r"(qkv|proj_out)\.weight", k) else v for k, v in state.items()}
    return model, to_compvis_unet(state)


@pytest.mark.parametrize("kind", ["churches", "beds"])
def test_a_unet_without_text_gives_the_output_of_diffusers(kind):
    reference, state = without_text(kind)
    averaged = {k: torch.zeros_like(v) for k, v in state.items()} | {
        "model_ema." + k.removeprefix("model.").replace(".", ""): v for k, v in state.items()
    }
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    with torch.no_grad():
        wanted = reference(x, t).sample
        for each in (state, averaged, reference.state_dict()):
            assert torch.allclose(unconditional_unet_of(each)(x, t), wanted, atol=1e-4)
        assert not torch.allclose(
            unconditional_unet_of(state, heads=2 if kind == "churches" else 1)(x, t), wanted, atol=1e-3
        )


def test_a_model_without_text_samples_and_edits_nothing(tmp_path):
    reference, state = without_text("churches")
    decoder, betas = vae(), torch.linspace(0.0015**0.5, 0.0155**0.5, 1000) ** 2
    whole = state | to_compvis_vae(decoder.state_dict()) | {"betas": betas, "scale_factor": torch.tensor(0.4)}
    torch.save(whole, file := tmp_path / "churches.ckpt")
    model = unconditional(file, 32)
    x = start(
        model.process, torch.zeros(2, 4, 8, 8), torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), 1.0
    )
    scheduler = diffusers.DDIMScheduler(trained_betas=betas, clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(reference(x, t).sample, t, x).prev_sample
        assert torch.allclose(model.sample(2, 4, seed=1), decoder.decode(x / 0.4).sample.clamp(-1, 1), atol=1e-3)
    with pytest.raises(ValueError, match="trained without captions"):
        mmgen.editor("sdedit", "cpu", model=model).edit(torch.zeros(1, 3, 32, 32), [""], ["green hair"])
    with pytest.raises(WeightsError, match="churches.ckpt holds a UNet that reads no text"):
        open_pipeline(file)
    with pytest.raises(WeightsError, match="reads 7 channels and predicts 4"):
        unconditional_unet_of(state | {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(64, 7, 3, 3)})
    with pytest.raises(WeightsError, match="holds no UNet without text"):
        unconditional_unet_of(to_compvis_unet(unet().state_dict()))
    with pytest.raises(ValueError, match="64 channels cannot be split in 7 heads"):
        unconditional_unet_of(state, heads=7)
    for change, words in (
        ({"first_stage_model.quantize.embedding.weight": torch.zeros(1)}, "VQ autoencoder"),
        ({"betas": betas**2}, "noise schedule of mine.ckpt is unknown"),
    ):
        torch.save(whole | change, tmp_path / "mine.ckpt")
        with pytest.raises(WeightsError, match=words):
            unconditional(tmp_path / "mine.ckpt")


@pytest.mark.parametrize("every", [23, pytest.param(7, marks=pytest.mark.slow)])
def test_weights_that_tell_no_configuration_are_one_sentence(sd, tokenizer, every):
    _, pipe = sd
    reads_no_text = without_text("beds")[1]
    whole = {
        "unet": (unet_of, to_compvis_unet(pipe.unet.state_dict())),
        "plain": (unconditional_unet_of, reads_no_text),
        "vae": (autoencoder_of, to_compvis_vae(pipe.vae.state_dict())),
        "text": (
            lambda state, where: text_encoder_of(state, tokenizer, "cpu", where),
            dict(pipe.text_encoder.state_dict()),
        ),
    }
    for open_it, state in whole.values():
        for key in list(state)[::every]:
            for broken in (
                {k: v for k, v in state.items() if k != key},
                state | {key: torch.zeros(())},
                state | {key: torch.zeros(3, 5)},
            ):
                with pytest.raises(WeightsError, match="mine"):
                    open_it(broken, "mine")
    for key in ("model.diffusion_model.label_emb.0.0.weight", "add_embedding.linear_1.weight"):
        with pytest.raises(WeightsError, match="mine holds (the UNet of )?Stable Diffusion XL"):
            unet_of(whole["unet"][1] | {key: torch.zeros(1)}, "mine")


@pytest.mark.parametrize(
    "file, content, words",
    [
        ("model_index.json", "[]", "folder/model_index.json holds a list"),
        ("scheduler/scheduler_config.json", "null", "scheduler_config.json holds a NoneType"),
        ("scheduler/scheduler_config.json", "{}", "lacks beta_schedule, num_train_timesteps, beta_start"),
        ("scheduler/scheduler_config.json", None, "scheduler_config.json cannot be read"),
        (
            "scheduler/scheduler_config.json",
            {"prediction_type": "sample"},
            "predicts 'sample'; those that predict epsilon or v_prediction",
        ),
        ("vae/config.json", "<html>", "vae/config.json cannot be read as JSON"),
        ("unet/config.json", "3", "unet/config.json holds a int"),
        ("text_encoder/config.json", None, "text_encoder/config.json cannot be read"),
        ("tokenizer", None, "folder lacks the folder tokenizer"),
        ("tokenizer/tokenizer.json", "{", "tokenizer.json cannot be read as JSON"),
    ],
)
def test_a_folder_with_a_broken_file_is_one_sentence(sd, tmp_path, file, content, words):
    folder = shutil.copytree(sd[0] / "folder", tmp_path / "folder")
    if content is None:
        shutil.rmtree(folder / file) if (folder / file).is_dir() else (folder / file).unlink()
    elif isinstance(content, dict):
        (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | content))
    else:
        (folder / file).write_text(content)
    with pytest.raises(WeightsError, match=words):
        open_pipeline(folder)
