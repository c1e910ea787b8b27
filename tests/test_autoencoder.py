"Autoencoder room: parity with diffusers, phases, folding, loss and task."
import diffusers
import pytest
import torch
import torch.nn.functional as F

from mmgen.ldm.autoencoder import AutoencoderKL, Posterior, Upsample2D

CONFIGS = [
    dict(block_out_channels=(8,), norm_num_groups=4),
    dict(block_out_channels=(8, 16), norm_num_groups=8, layers_per_block=2, latent_channels=3),
    dict(block_out_channels=(16, 8, 24), norm_num_groups=4, latent_channels=16, use_quant_conv=False),
    dict(block_out_channels=(8, 8, 16), norm_num_groups=2, use_quant_conv=False, use_post_quant_conv=False),
    dict(block_out_channels=(32, 64), layers_per_block=2, mid_block_add_attention=False, in_channels=5, out_channels=2),
]


def theirs(config, seed):
    "diffusers' model with random weights of visible size, biases and norms included."
    torch.manual_seed(seed)
    levels = len(config["block_out_channels"])
    model = diffusers.AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * levels,
                                    up_block_types=("UpDecoderBlock2D",) * levels, **config).eval()
    for p in model.parameters(): p.data.add_(0.1 * torch.randn_like(p))
    return model


@pytest.mark.parametrize("config", CONFIGS)
def test_parity_with_diffusers(config):
    reference = theirs(config, seed=len(str(config)))
    model = AutoencoderKL.from_config(dict(reference.config)).eval()
    model.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, config.get("in_channels", 3), 24, 32)
    with torch.no_grad():
        ours, want = model.encode(x), reference.encode(x).latent_dist
        assert torch.allclose(ours.mean, want.mean, atol=1e-5, rtol=1e-5)
        assert torch.allclose(ours.logvar, want.logvar, atol=1e-5, rtol=1e-5)
        assert torch.allclose(ours.kl(), want.kl(), rtol=1e-5)
        y = reference.decode(want.mean).sample
        assert (model.decode(want.mean) - y).abs().max() <= 1e-5 * y.abs().max().clamp(min=1)
        last = model.to(memory_format=torch.channels_last)
        assert (last.decode(want.mean) - y).abs().max() <= 1e-5 * y.abs().max().clamp(min=1)


def test_save_pretrained_opens_in_diffusers(tmp_path):
    torch.manual_seed(0)
    model = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4, scaling_factor=0.7).eval()
    model.save_pretrained(tmp_path)
    other = diffusers.AutoencoderKL.from_pretrained(tmp_path).eval()
    z = torch.randn(1, 4, 8, 8)
    assert other.config.scaling_factor == 0.7
    with torch.no_grad(): assert torch.allclose(model.decode(z), other.decode(z).sample, atol=1e-5)


def test_phased_upsampling_equals_plain_with_gradients():
    torch.manual_seed(0)
    up, x = Upsample2D(8).double(), torch.randn(2, 8, 5, 3, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, 8, 10, 6, dtype=torch.float64)
    inputs = [x, up.conv.weight, up.conv.bias]
    phased, plain = up(x), up.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert torch.allclose(phased, plain, atol=1e-12)
    for a, b in zip(torch.autograd.grad(phased, inputs, cotangent), torch.autograd.grad(plain, inputs, cotangent)):
        assert torch.allclose(a, b, atol=1e-12)


def test_patch_size_is_folding_around_the_same_network():
    torch.manual_seed(0)
    config = dict(in_channels=12, out_channels=12, block_out_channels=(8, 16), norm_num_groups=4)
    folded, plain = AutoencoderKL(patch_size=2, **config), AutoencoderKL(**config)
    plain.load_state_dict(folded.state_dict())
    x = torch.randn(1, 3, 16, 24)
    posterior = folded.encode(x)
    assert folded.factor == 4 and posterior.mean.shape == (1, 4, 4, 6)
    assert torch.equal(posterior.mean, plain.encode(F.pixel_unshuffle(x, 2)).mean)
    out = folded.decode(posterior.mean)
    assert out.shape == x.shape
    assert torch.equal(F.pixel_unshuffle(out, 2), plain.decode(posterior.mean))


def test_posterior_sample_and_kl():
    mean, logvar = torch.full((1, 2, 64, 64), 0.5), torch.full((1, 2, 64, 64), -50.0)
    assert torch.allclose(Posterior(mean, logvar).sample(), mean, atol=1e-5)
    a = Posterior(mean, logvar * 0).sample(torch.Generator().manual_seed(3))
    assert torch.equal(a, Posterior(mean, logvar * 0).sample(torch.Generator().manual_seed(3)))
    assert abs(a.std() - 1) < 0.03
    assert torch.allclose(Posterior(mean, logvar * 0).kl(), torch.tensor([0.5 * 0.25 * 2 * 64 * 64]))


@pytest.mark.parametrize("bad, words", [
    (dict(block_out_channels=(8, 12), norm_num_groups=8), "norm_num_groups=8"),
    (dict(block_out_channels=(8,), norm_num_groups=8, patch_size=2), "needs 12"),
    (dict(block_out_channels=(8,), norm_num_groups=8, down_block_types=("AttnDownEncoderBlock2D",)), "down_block_types"),
    (dict(block_out_channels=(8,), norm_num_groups=8, act_fn="relu"), "act_fn"),
    (dict(block_out_channel=(8,)), "block_out_channel"),
])
def test_wrong_config_is_named(bad, words):
    with pytest.raises(ValueError, match=words): AutoencoderKL.from_config(bad)


def test_wrong_image_size_is_named():
    with pytest.raises(ValueError, match="multiples of 2, not 7×8"):
        AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4).encode(torch.zeros(1, 3, 7, 8))
