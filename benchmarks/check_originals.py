"""Outputs of the original code against mmgen's with the same weights, at small size.

CompVis' UNets, autoencoders and text encoder, OpenCLIP's text tower, StyleGAN2, e4e.

    pip install --no-deps --target originals stable-diffusion-sdkit==2.1.5 open-clip-torch==3.3.0 einops ftfy wcwidth
    git clone https://github.com/NVlabs/stylegan2-ada-pytorch originals/ada
    git clone https://github.com/omertov/encoder4editing originals/e4e  # its StyleGAN2 is the form of StyleCLIP
    git clone https://github.com/CompVis/latent-diffusion originals/latent-diffusion
    # the text encoder of txt2img, which the package leaves out:
    cp originals/latent-diffusion/ldm/modules/x_transformer.py originals/ldm/modules/
    PYTHONPATH=originals:originals/ada:originals/e4e python benchmarks/check_originals.py \\
        [ada tensorflow e4e stable_diffusion openclip latent_diffusion]

The originals are installed beside, not into, the environment, as their requirements are of other years. Each row is
the largest difference of one output; `reports/formats.jsonl` keeps them. The tests have the same layouts written by
rules of their own (tests/test_pretrained.py).
"""

import pickle
import sys
import tempfile
import types
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from record import record
from torch import nn

from mmgen.backbones.arcface import ArcFace
from mmgen.base.pickle_arrays import Plain
from mmgen.clip.model import train_tokenizer
from mmgen.ldm.published.stable_diffusion import autoencoder_of, text_encoder_of, unet_of
from mmgen.ldm.published.unconditional import unconditional_unet_of
from mmgen.stylegan.open import open_generator
from mmgen.stylegan.published import e4e_of, generator_of


def stub(name, **content):
    "A module that the originals import and these parts of them never use."
    module = types.ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module


def randomised(model):
    for p in model.parameters():
        p.data.add_(0.05 * torch.randn_like(p))
    return model.eval().requires_grad_(False)


def check(what, layout, ours, theirs):
    difference = (ours - theirs).abs().max().item()
    record(
        "formats",
        {
            "what": what,
            "layout": layout,
            "largest difference": difference,
            "largest value": round(theirs.abs().max().item(), 3),
        },
    )
    assert difference < 1e-4, what


def check_ada():
    "A pickle that the authors' code wrote: classes with their source, read without running it."
    from training.networks import Generator as Original

    original = Original(
        32, 0, 32, 64, 3, mapping_kwargs={"num_layers": 4}, synthesis_kwargs={"channel_base": 1024, "channel_max": 48}
    )
    randomised(original)
    original.mapping.w_avg.normal_()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.pkl"
        path.write_bytes(pickle.dumps({"G": original, "D": None, "G_ema": original, "training_set_kwargs": {}}))
        ours = open_generator(path)
    z = torch.randn(2, 32)
    check(
        "StyleGAN2",
        "stylegan2-ada-pytorch, .pkl",
        ours(z, 0.7, "const"),
        original(z, None, truncation_psi=0.7, noise_mode="const"),
    )


def check_tensorflow():
    "Random variables of a TensorFlow network, converted by the authors' code and by ours."
    from dnnlib import EasyDict
    from legacy import convert_tf_generator

    rng = np.random.default_rng(0)
    random = lambda *shape: rng.standard_normal(shape, dtype=np.float32)
    widths, width = {4: 32, 8: 32, 16: 16, 32: 8}, 32
    mapping = [
        (f"Dense{i}/{kind}", random(*shape))
        for i in range(3)
        for kind, shape in (("weight", (width, width)), ("bias", (width,)))
    ]
    synthesis, before, number = [("4x4/Const/const", random(1, 32, 4, 4))], 32, 0
    for size, outs in widths.items():
        for name, ins in (("Conv", 32),) if size == 4 else (("Conv0_up", before), ("Conv1", outs)):
            layer = {
                "weight": (3, 3, ins, outs),
                "mod_weight": (width, ins),
                "mod_bias": (ins,),
                "noise_strength": (),
                "bias": (outs,),
            }
            synthesis += [(f"{size}x{size}/{name}/{kind}", random(*shape)) for kind, shape in layer.items()] + [
                (f"noise{number}", random(1, 1, size, size))
            ]
            number += 1
        rgb = {"weight": (1, 1, outs, 3), "mod_weight": (width, outs), "mod_bias": (outs,), "bias": (3,)}
        synthesis += [(f"{size}x{size}/ToRGB/{kind}", random(*shape)) for kind, shape in rgb.items()]
        before = outs
    part = lambda variables, **components: dict(
        version=4,
        variables=variables,
        components=components,
        static_kwargs=EasyDict(
            latent_size=width, dlatent_size=width, resolution=32, mapping_layers=3, fmap_base=128, fmap_max=32
        ),
    )
    parts = part([("dlatent_avg", random(width))], mapping=part(mapping), synthesis=part(synthesis))
    theirs = convert_tf_generator(EasyDict(parts, components={k: EasyDict(v) for k, v in parts["components"].items()}))
    plain = lambda parts: _plain(parts | {"components": {k: plain(v) for k, v in parts["components"].items()}})
    z = torch.randn(2, width)
    check(
        "StyleGAN2",
        "TensorFlow, .pkl",
        generator_of(plain(parts))(z, 0.7, "const"),
        theirs.eval()(z, None, truncation_psi=0.7, noise_mode="const").detach(),
    )


def _plain(state):
    network = Plain()
    network.state = state
    return network


def upfirdn2d(x, kernel, up=1, down=1, pad=(0, 0)):
    "What e4e's compiled operator does: zeros between, pad, filter (mirrored), take every down-th."
    b, c, h, w = x.shape
    grown = x.new_zeros(b, c, h * up, w * up)
    grown[:, :, ::up, ::up] = x
    padded = F.pad(grown, (pad[0], pad[1], pad[0], pad[1]))
    return F.conv2d(padded.flatten(0, 1)[:, None], kernel.flip(0, 1)[None, None]).unflatten(0, (b, c))[
        :, :, 0, ::down, ::down
    ]


class FusedLeakyReLU(nn.Module):
    "Likewise: bias, leaky ReLU of slope 0.2, times the root of 2."

    def __init__(self, channels):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        return fused_leaky_relu(x, self.bias)


def fused_leaky_relu(x, bias):
    return F.leaky_relu(x + bias.reshape(1, -1, *[1] * (x.ndim - 2)), 0.2) * 2**0.5


def check_e4e():
    "The generator of StyleCLIP and e4e (its two CUDA operators by their definition), the encoder, ArcFace."
    stub("models.stylegan2.op", FusedLeakyReLU=FusedLeakyReLU, fused_leaky_relu=fused_leaky_relu, upfirdn2d=upfirdn2d)
    from models.encoders.model_irse import Backbone
    from models.encoders.psp_encoders import Encoder4Editing
    from models.stylegan2.model import Generator as Original

    original = randomised(Original(64, 512, 4, channel_multiplier=1))
    average = torch.randn(512)
    ours = generator_of({"g_ema": original.state_dict(), "latent_avg": average})
    z = torch.randn(1, 512)
    theirs, _ = original([z], truncation=0.7, truncation_latent=average[None], randomize_noise=False)
    check("StyleGAN2", "StyleCLIP and e4e, .pt", ours(z, 0.7, "const"), theirs)
    encoder = Encoder4Editing(50, "ir_se", types.SimpleNamespace(stylegan_size=64)).eval().requires_grad_(False)
    x = torch.rand(1, 3, 256, 256) * 2 - 1
    outputs = {
        "state_dict": {f"encoder.{k}": v for k, v in encoder.state_dict().items()},
        "latent_avg": average.repeat(10, 1),
    }
    check("e4e", ".pt", e4e_of(outputs)(x), encoder(x) + average)
    face, mine = randomised(Backbone(112, 50, "ir_se", affine=True)), ArcFace().eval()
    mine.load_state_dict(face.state_dict())
    crop = F.adaptive_avg_pool2d(x[:, :, 35:223, 32:220], 112)
    check("ArcFace IR-SE50", "model_ir_se50.pth", mine(x), face(crop))


def stub_compvis():
    stub("pytorch_lightning", LightningModule=nn.Module)
    stub("omegaconf", listconfig=types.SimpleNamespace(ListConfig=tuple), ListConfig=tuple)
    stub("omegaconf.listconfig", ListConfig=tuple)


def check_stable_diffusion():
    "The UNets of versions 1 and 2, and the kl autoencoders."
    stub_compvis()
    from ldm.models.autoencoder import AutoencoderKL as OriginalAutoencoder
    from ldm.modules.diffusionmodules.openaimodel import UNetModel

    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    for version, options, text in (
        (1, {"num_heads": 8}, 16),
        (2, {"num_head_channels": 64, "use_linear_in_transformer": True}, 24),
    ):
        unet = randomised(
            UNetModel(
                32,
                4,
                64,
                4,
                2,
                [1, 2, 4],
                channel_mult=[1, 2, 4],
                use_spatial_transformer=True,
                transformer_depth=1,
                context_dim=text,
                use_checkpoint=False,
                legacy=False,
                **options,
            )
        )
        context = torch.randn(2, 7, text)
        state = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
        check(
            f"UNet of Stable Diffusion {version}",
            "CompVis, one file",
            unet_of(state)(x, t, context),
            unet(x, t, context=context),
        )
    for name, mult, latent, attends in (
        ("kl-f4", [1, 2, 4], 3, []),
        ("kl-f8", [1, 2, 4, 4], 4, []),
        ("kl-f16", [1, 1, 2, 2, 4], 16, [4]),
        ("kl-f32", [1, 1, 2, 2, 4, 4], 64, [4, 2]),
    ):
        config = dict(
            double_z=True,
            z_channels=latent,
            resolution=64,
            in_channels=3,
            out_ch=3,
            ch=32,
            ch_mult=mult,
            num_res_blocks=2,
            attn_resolutions=attends,
            dropout=0.0,
        )
        model = randomised(OriginalAutoencoder(config, {"target": "torch.nn.Identity"}, latent))
        image = torch.randn(1, 3, 64, 64)
        ours = autoencoder_of(model.state_dict())
        z = model.encode(image).mode()
        check(f"{name}, encoder", "CompVis, autoencoder alone", ours.encode(image).mode(), z)
        check(f"{name}, decoder", "CompVis, autoencoder alone", ours.decode(z), model.decode(z))


def check_openclip():
    "The text tower of version 2."
    stub("timm"), stub("timm.layers", trunc_normal_=None, to_2tuple=None)
    from open_clip.transformer import TextTransformer

    tokenizer = train_tokenizer(["green hair, blue eyes"], 520)
    tower = randomised(
        TextTransformer(context_length=77, vocab_size=len(tokenizer), width=1024, heads=16, layers=3, output_dim=32)
    )
    words = tokenizer("green hair").input_ids
    ids = torch.tensor([words + [0] * (77 - len(words))])  # as open_clip.tokenize fills up
    hidden = tower.token_embedding(ids) + tower.positional_embedding
    for block in tower.transformer.resblocks[:-1]:
        hidden = block(hidden, attn_mask=tower.attn_mask)
    state = {f"cond_stage_model.model.{k}": v for k, v in tower.state_dict().items()}
    check(
        "text tower of Stable Diffusion 2",
        "OpenCLIP, one file",
        text_encoder_of(state, tokenizer, "cpu").states(["green hair"]),
        tower.ln_final(hidden),
    )


def check_latent_diffusion():
    "The text encoder of txt2img (inside BERTEmbedder) and the UNets without text, one also from its running average."
    stub_compvis()
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    from ldm.modules.x_transformer import Encoder, TransformerWrapper

    tokenizer = train_tokenizer(["green hair, blue eyes"], 520)
    encoder = randomised(
        TransformerWrapper(num_tokens=len(tokenizer), max_seq_len=77, attn_layers=Encoder(dim=80, depth=3))
    )
    ids = tokenizer(["green hair"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    state = {f"cond_stage_model.transformer.{k}": v for k, v in encoder.state_dict().items()}
    check(
        "text encoder of txt2img",
        "CompVis, one file",
        text_encoder_of(state, tokenizer, "cpu").states(["green hair"]),
        encoder(ids, return_embeddings=True),
    )
    x, t = torch.randn(2, 4, 16, 16), torch.tensor([3, 700])
    for name, options in (
        ("lsun_churches", {"num_heads": 8, "use_scale_shift_norm": True, "resblock_updown": True}),
        ("lsun_beds, ffhq and celeba", {"num_head_channels": 32}),
    ):
        unet = randomised(
            UNetModel(32, 4, 64, 4, 2, [1, 2] if "num_heads" in options else [2, 4], channel_mult=[1, 2, 3], **options)
        )
        state = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
        averaged = {"model_ema." + k.removeprefix("model.").replace(".", ""): v for k, v in state.items()}
        if "num_heads" in options:
            state = {k: torch.zeros_like(v) for k, v in state.items()} | averaged
        check(f"UNet of {name}", "CompVis, one file", unconditional_unet_of(state)(x, t), unet(x, t))


if __name__ == "__main__":
    for name in sys.argv[1:] or ("ada", "tensorflow", "e4e", "stable_diffusion", "openclip", "latent_diffusion"):
        torch.manual_seed(0)
        globals()[f"check_{name}"]()
