"""Outputs of the original code against ours with the same weights: CompVis' UNet and autoencoders, OpenCLIP's text tower, at small size.

    pip install --no-deps --target originals stable-diffusion-sdkit==2.1.5 open-clip-torch==3.3.0 einops ftfy wcwidth
    PYTHONPATH=originals python benchmarks/check_originals.py

The originals are installed beside, not into, the environment, as their requirements are of other years. Each row is the largest difference of one
output; `reports/formats.jsonl` keeps them. The tests have the same layouts written by rules of their own (tests/test_pretrained.py).
"""
import sys
import types

import torch
from record import record
from torch import nn

from mmgen.clip import train_tokenizer
from mmgen.ldm.pretrained import autoencoder_of, text_encoder_of, unet_of


def stub(name, **content):
    "A module that the originals import and these parts of them never use."
    module = types.ModuleType(name)
    module.__dict__.update(content)
    sys.modules[name] = module


def randomised(model):
    for p in model.parameters(): p.data.add_(0.05 * torch.randn_like(p))
    return model.eval().requires_grad_(False)


def check(what, layout, ours, theirs):
    difference = (ours - theirs).abs().max().item()
    record("formats", {"what": what, "layout": layout, "largest difference": difference, "largest value": round(theirs.abs().max().item(), 3)})
    assert difference < 1e-4, what


def main():
    torch.manual_seed(0)
    stub("pytorch_lightning", LightningModule=nn.Module)
    stub("omegaconf", listconfig=types.SimpleNamespace(ListConfig=tuple), ListConfig=tuple)
    stub("omegaconf.listconfig", ListConfig=tuple)
    from ldm.models.autoencoder import AutoencoderKL as OriginalAutoencoder
    from ldm.modules.diffusionmodules.openaimodel import UNetModel
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([3, 700])
    for version, options, text in ((1, {"num_heads": 8}, 16), (2, {"num_head_channels": 64, "use_linear_in_transformer": True}, 24)):
        unet = randomised(UNetModel(32, 4, 64, 4, 2, [1, 2, 4], channel_mult=[1, 2, 4], use_spatial_transformer=True, transformer_depth=1, context_dim=text, use_checkpoint=False,
                                    legacy=False, **options))
        context = torch.randn(2, 7, text)
        state = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
        check(f"UNet of Stable Diffusion {version}", "CompVis, one file", unet_of(state)(x, t, context), unet(x, t, context=context))
    for name, mult, latent, attends in (("kl-f4", [1, 2, 4], 3, []), ("kl-f8", [1, 2, 4, 4], 4, []), ("kl-f16", [1, 1, 2, 2, 4], 16, [4]), ("kl-f32", [1, 1, 2, 2, 4, 4], 64, [4, 2])):
        config = dict(double_z=True, z_channels=latent, resolution=64, in_channels=3, out_ch=3, ch=32, ch_mult=mult, num_res_blocks=2, attn_resolutions=attends, dropout=0.0)
        model = randomised(OriginalAutoencoder(config, {"target": "torch.nn.Identity"}, latent))
        image = torch.randn(1, 3, 64, 64)
        ours = autoencoder_of(model.state_dict())
        z = model.encode(image).mode()
        check(f"{name}, encoder", "CompVis, autoencoder alone", ours.encode(image).mode(), z)
        check(f"{name}, decoder", "CompVis, autoencoder alone", ours.decode(z), model.decode(z))
    stub("timm"), stub("timm.layers", trunc_normal_=None, to_2tuple=None)
    from open_clip.transformer import TextTransformer
    tokenizer = train_tokenizer(["green hair, blue eyes"], 520)
    tower = randomised(TextTransformer(context_length=77, vocab_size=len(tokenizer), width=1024, heads=16, layers=3, output_dim=32))
    ids = tokenizer(["green hair"], padding="max_length", max_length=77, return_tensors="pt").input_ids
    hidden = tower.token_embedding(ids) + tower.positional_embedding
    for block in tower.transformer.resblocks[:-1]: hidden = block(hidden, attn_mask=tower.attn_mask)
    state = {f"cond_stage_model.model.{k}": v for k, v in tower.state_dict().items()}
    check("text tower of Stable Diffusion 2", "OpenCLIP, one file", text_encoder_of(state, tokenizer, "cpu").states(["green hair"]), tower.ln_final(hidden))


if __name__ == "__main__":
    main()
