"UNets: parity with diffusers' classes, masks, cached context, checkpointing, layouts, bad configs."

import pytest
import torch
from diffusers import UNet2DConditionModel as Reference
from diffusers import UNet2DModel as ReferenceWithoutText

from mmgen.base.schema import WeightsError
from mmgen.ldm.published.unconditional import UNet2DModel
from mmgen.ldm.unet import ContextKV, UNet2DConditionModel
from mmgen.ldm.unet_blocks import timestep_embedding

CD, D, CU, U = "CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"
CONFIGS = {
    "two levels": dict(
        block_out_channels=(32, 64),
        down_block_types=(CD, CD),
        up_block_types=(CU, CU),
        norm_num_groups=8,
        attention_head_dim=4,
    ),
    "per level": dict(
        block_out_channels=(32, 64, 64),
        down_block_types=(CD, D, CD),
        up_block_types=(CU, U, CU),
        norm_num_groups=16,
        attention_head_dim=(2, 4, 8),
        layers_per_block=1,
        use_linear_projection=True,
        transformer_layers_per_block=(1, 2, 3),
    ),
    "uneven": dict(
        block_out_channels=(32, 48, 64),
        down_block_types=(D, CD, D),
        up_block_types=(U, CU, U),
        norm_num_groups=8,
        attention_head_dim=4,
        layers_per_block=(1, 2, 1),
        in_channels=9,
        flip_sin_to_cos=False,
        freq_shift=1,
    ),
    "SD layout": dict(
        block_out_channels=(16, 24, 32, 32),
        down_block_types=(CD, CD, CD, D),
        up_block_types=(U, CU, CU, CU),
        norm_num_groups=8,
        attention_head_dim=2,
        norm_eps=1e-6,
    ),
    "one level": dict(
        block_out_channels=(24,),
        down_block_types=(CD,),
        up_block_types=(CU,),
        norm_num_groups=4,
        attention_head_dim=3,
        use_linear_projection=True,
        transformer_layers_per_block=2,
        out_channels=2,
    ),
    "pooled text": dict(
        block_out_channels=(32, 64),
        down_block_types=(CD, D),
        up_block_types=(U, CU),
        norm_num_groups=8,
        attention_head_dim=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    ),
}
SMALL = CONFIGS["two levels"] | dict(cross_attention_dim=24, layers_per_block=1)


def inputs(channels=4, size=8, batch=3, tokens=7, dim=24, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, context = torch.randn(batch, channels, size, size, generator=g), torch.randn(batch, tokens, dim, generator=g)
    mask = (torch.arange(tokens)[None] < torch.tensor([4, tokens, 1])[:batch, None]).long()
    return x, torch.tensor([3, 500, 999])[:batch], context, mask


def pair(config, seed=0):
    torch.manual_seed(seed)
    theirs = Reference(sample_size=8, **config).eval()
    ours = UNet2DConditionModel.from_config(dict(theirs.config)).eval()
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


@pytest.mark.parametrize("name", CONFIGS)
def test_same_output_as_diffusers(name):
    ours, theirs = pair(CONFIGS[name] | dict(cross_attention_dim=24))
    x, t, context, mask = inputs(ours.config["in_channels"])
    with torch.no_grad():
        pooled = ours.add_embedding is not None  # diffusers' pooling also reads what is masked
        for kw in (*([] if pooled else [dict(t=t, mask=mask)]), dict(t=t, mask=None), dict(t=17, mask=None)):
            want = theirs(x, kw["t"], context, encoder_attention_mask=kw["mask"]).sample
            assert (ours(x, kw["t"], context, kw["mask"]) - want).abs().max() < 1e-5
            assert want.std() > 0.05


def test_same_gradients_as_diffusers():
    ours, theirs = pair(SMALL)
    x, t, context, _ = inputs()
    ours(x, t, context).square().mean().backward()
    theirs(x, t, context).sample.square().mean().backward()
    grads = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        assert (p.grad - grads[name].grad).abs().max() < 1e-5 * (1 + grads[name].grad.abs().max()), name


def test_size_that_is_no_multiple_of_the_downsampling():
    ours, theirs = pair(CONFIGS["SD layout"] | dict(cross_attention_dim=24))
    x, t, context, _ = inputs(size=10)
    with torch.no_grad():
        assert (ours(x, t, context) - theirs(x, t, context).sample).abs().max() < 1e-5


@pytest.mark.parametrize("name", ["two levels", "pooled text"])
def test_padding_changes_nothing(name):
    unet = pair(CONFIGS[name] | dict(cross_attention_dim=24, layers_per_block=1))[0]
    x, t, context, mask = inputs()
    padded, longer = torch.cat([context, torch.randn(3, 5, 24)], 1), torch.cat([mask, torch.zeros(3, 5).long()], 1)
    with torch.no_grad():
        want = unet(x, t, context, mask)
        assert torch.allclose(unet(x, t, padded, longer), want, atol=1e-6)
        assert unet.project_context(padded, longer).pairs[0][0].shape[1] == 7
        context[0, 4:] += 50
        assert torch.allclose(unet(x, t, context, mask), want, atol=1e-5)
        assert torch.isfinite(unet(x, t, context, torch.zeros_like(mask))).all()


def test_projected_context_is_the_same_and_is_used():
    unet = pair(SMALL)[0]
    x, t, context, mask = inputs()
    kv = unet.project_context(context, mask)
    with torch.no_grad():
        assert torch.allclose(unet(x, t, kv), unet(x, t, context, mask), atol=1e-6)
        zero = ContextKV([(k, torch.zeros_like(v)) for k, v in kv.pairs], kv.bias)
        assert not torch.allclose(unet(x, t, zero), unet(x, t, kv), atol=1e-3)


def test_checkpointing_gives_the_same_gradients():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SMALL, dropout=0.1)
    x, t, context, mask = inputs()
    grads = []
    for on in (False, True):
        unet.enable_gradient_checkpointing(on).zero_grad()
        torch.manual_seed(1)
        unet(x, t, context, mask).square().mean().backward()
        grads.append([p.grad.clone() for p in unet.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*grads)) and any(g.abs().max() > 1e-4 for g in grads[0])


def test_channels_last_float64_and_batch_of_one():
    unet = pair(SMALL)[0]
    x, t, context, _ = inputs()
    with torch.no_grad():
        want = unet(x, t, context)
        assert torch.allclose(unet(x[:1], t[:1], context[:1]), want[:1], atol=1e-5)
        assert torch.allclose(unet.double()(x.double(), t, context.double()).float(), want, atol=1e-5)
        x = x.to(memory_format=torch.channels_last)
        got = unet.float()(x, t, context)
        assert torch.allclose(got, want, atol=1e-5) and got.is_contiguous(memory_format=torch.channels_last)


def test_autocast_runs_in_bfloat16():
    unet = pair(SMALL)[0]
    x, t, context, _ = inputs()
    with torch.no_grad():
        want = unet(x, t, context)
        with torch.autocast("cpu", torch.bfloat16):
            got = unet(x, t, context)
    assert got.dtype == torch.bfloat16 and 1e-4 < (got.float() - want).abs().max() < 0.1


def test_folder_opens_in_diffusers_and_back(tmp_path):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**SMALL).eval()
    unet.save_pretrained(tmp_path / "unet")
    x, t, context, _ = inputs()
    with torch.no_grad():
        want = unet(x, t, context)
        assert (Reference.from_pretrained(tmp_path / "unet")(x, t, context).sample - want).abs().max() < 1e-5
        assert torch.equal(UNet2DConditionModel.load(tmp_path / "unet")(x, t, context), want)
    with pytest.raises(WeightsError, match="model.safetensors"):
        UNet2DConditionModel.load(tmp_path)


def test_the_field_that_stable_diffusion_2_1_has_changes_nothing():
    given = UNet2DConditionModel(**SMALL).config
    assert UNet2DConditionModel.from_config(given | {"upcast_attention": True}).config == given


def test_known_timestep_embedding():
    e = timestep_embedding(torch.tensor([0, 1]), 5)
    assert torch.allclose(e[0], torch.tensor([1.0, 1, 0, 0, 0])) and torch.isclose(e[1, 2], torch.tensor(1.0).sin())


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(act_fn="relu"), "act_fn='relu' is not supported"),
        (dict(addition_embed_type="image"), "addition_embed_type"),
        (dict(down_block_types=(CD,)), "need 2 of"),
        (dict(up_block_types=(CU, "Up")), "must be one of UpBlock2D"),
        (dict(attention_head_dim=(1, 2, 4)), "3 values for 2 levels"),
        (dict(norm_num_groups=7), "7 groups"),
        (dict(attention_head_dim=5), "5 heads"),
    ],
)
def test_bad_config(change, words):
    with pytest.raises(ValueError, match=words):
        UNet2DConditionModel.from_config(SMALL | change)


def test_bad_context():
    with pytest.raises(ValueError, match=r"needs \(B, T, 24\)"):
        pair(SMALL)[0](*inputs(dim=23)[:3])


def test_full_sd1_has_the_same_keys_and_shapes():
    with torch.device("meta"):
        theirs = Reference(cross_attention_dim=768)
        ours = UNet2DConditionModel.from_config(dict(theirs.config))
    shapes = lambda m: {k: tuple(v.shape) for k, v in m.state_dict().items()}
    assert shapes(ours) == shapes(theirs) and sum(p.numel() for p in ours.parameters()) == 859_520_964


@pytest.mark.slow
def test_full_sd1_has_the_same_output():
    ours, theirs = pair(dict(cross_attention_dim=768))
    x, t, context, _ = inputs(size=16, batch=1, tokens=77, dim=768)
    with torch.no_grad():
        assert (ours(x, t, context) - theirs(x, t, context).sample).abs().max() < 1e-5


WITHOUT_TEXT = {
    "added": dict(
        block_out_channels=(32, 64, 64),
        down_block_types=(D, "AttnDownBlock2D", D),
        up_block_types=(U, "AttnUpBlock2D", U),
        norm_num_groups=16,
        attention_head_dim=16,
        norm_eps=1e-6,
    ),
    "scaled": dict(
        block_out_channels=(32, 64, 96),
        down_block_types=("AttnDownBlock2D",) * 2 + ("ResnetDownsampleBlock2D",),
        up_block_types=("ResnetUpsampleBlock2D",) + ("AttnUpBlock2D",) * 2,
        norm_num_groups=8,
        attn_norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        downsample_type="resnet",
        upsample_type="resnet",
        layers_per_block=1,
        in_channels=4,
    ),
    "resampled": dict(
        block_out_channels=(32, 64),
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=None,
        flip_sin_to_cos=False,
        freq_shift=1,
    ),
}


@pytest.mark.parametrize("name", WITHOUT_TEXT)
def test_without_text_same_output_and_files_as_diffusers(name, tmp_path):
    torch.manual_seed(0)
    theirs = ReferenceWithoutText(sample_size=8, **WITHOUT_TEXT[name]).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    ours = UNet2DModel.load(tmp_path / "theirs")
    ours.save_pretrained(tmp_path / "ours")
    back = ReferenceWithoutText.from_pretrained(tmp_path / "ours")
    x, t, _, _ = inputs(ours.config["in_channels"])
    with torch.no_grad():
        want = theirs(x, t).sample
        assert want.std() > 0.05 and (ours(x, t) - want).abs().max() < 1e-5 and torch.equal(back(x, t).sample, want)


@pytest.mark.parametrize(
    "change, words",
    [
        (dict(upsample_type="resnet"), "do not agree"),
        (dict(downsample_type="resnet", upsample_type="resnet"), "do not agree"),
        (dict(resnet_time_scale_shift="scale_shift"), "attn_norm_num_groups=None is not supported"),
        (dict(resnet_time_scale_shift="spatial"), "spatial"),
        (dict(num_class_embeds=10), "num_class_embeds=10 is not supported"),
        (dict(down_block_types=("CrossAttnDownBlock2D",) * 3), "down_block_types"),
    ],
)
def test_bad_config_without_text(change, words):
    with pytest.raises(ValueError, match=words):
        UNet2DModel.from_config(WITHOUT_TEXT["added"] | change)
