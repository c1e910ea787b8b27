"StyleGAN2: layers against their definitions, regularisers against finite differences, training"

import math

import pytest
import torch
import torch.nn.functional as F

from mmgen.base.images import seed_everything
from mmgen.jobs.registry import config_for
from mmgen.stylegan.augment import ADA, diff_augment
from mmgen.stylegan.discriminator import Discriminator, minibatch_std
from mmgen.stylegan.encoder import Encoder, level_slices
from mmgen.stylegan.generator import Generator
from mmgen.stylegan.layers import EqualLinear, adain, binomial_filter, down_conv, modulated_conv2d, up_conv, upsample
from mmgen.stylegan.losses import discriminator_loss, generator_loss, path_lengths, path_penalty, r1_penalty
from mmgen.stylegan.task import StyleGAN2Task
from mmgen.stylegan.train import build_models

SMALL = dict(size=32, z_dim=16, w_dim=16, channel_base=256, channel_max=24, mapping_layers=2)


def loop_modulated(x, weight, style, demodulate):
    "Karras et al. 2020, eq. 1 and 3, one image and one output channel at a time"
    images = []
    for image, s in zip(x, style):
        rows = []
        for kernel in weight:
            w = kernel * s[:, None, None]
            if demodulate:
                w = w / math.sqrt(float((w * w).sum()) + 1e-8)
            rows.append(F.conv2d(image[None], w[None], padding=weight.shape[-1] // 2)[0, 0])
        images.append(torch.stack(rows))
    return torch.stack(images)


@pytest.mark.parametrize("demodulate", [True, False])
def test_modulated_convolution_equals_the_definition_in_float64(demodulate):
    seed_everything(0)
    x, weight, style = (torch.randn(*s, dtype=torch.float64) for s in ((3, 5, 8, 8), (4, 5, 3, 3), (3, 5)))
    assert torch.allclose(
        modulated_conv2d(x, weight, style, demodulate), loop_modulated(x, weight, style, demodulate), atol=1e-10
    )


def test_upsampled_convolution_is_a_convolution_of_the_upsampled_image():
    seed_everything(0)
    x, weight, taps = torch.randn(2, 3, 8, 8), torch.randn(4, 3, 3, 3), binomial_filter()
    stuffed = torch.zeros(2, 3, 16, 16)
    stuffed[:, :, ::2, ::2] = x  # zeros between the pixels, then the kernel, then the filter
    inner = F.conv2d(F.pad(stuffed, (2, 1, 2, 1)), weight.flip(2, 3))
    want = F.conv2d(F.pad(inner, (1, 1, 1, 1)), (taps * 4).expand(4, 1, 4, 4), groups=4)
    got = up_conv(x, weight, taps)
    assert got.shape == (2, 4, 16, 16)
    assert torch.allclose(got[:, :, 3:-3, 3:-3], want[:, :, 3:13, 3:13], atol=1e-4)


def test_resampling_keeps_a_constant_image():
    taps = binomial_filter()
    flat = torch.ones(1, 2, 8, 8)
    assert torch.allclose(upsample(flat, taps)[..., 2:-2, 2:-2], torch.ones(1, 2, 12, 12))
    mean = torch.zeros(2, 2, 1, 1)
    mean[0, 0] = mean[1, 1] = 1
    assert torch.allclose(down_conv(flat, mean, taps)[..., 1:-1, 1:-1], torch.ones(1, 2, 2, 2))


def test_equalised_learning_rate_scales_at_run_time():
    seed_everything(0)
    layer = EqualLinear(400, 300, lr=0.01)
    x = torch.randn(1000, 400)
    assert 95 < layer.weight.std() < 105  # stored at 1 / lr
    assert 0.95 < layer(x).std() < 1.05  # used at 1 / √ins
    before = layer(x).detach()
    torch.optim.SGD([layer.bias], lr=1.0).step(lambda: None)
    layer.bias.data += 1.0  # a step of one on the parameter is 0.01 on the output
    assert torch.allclose(layer(x) - before, torch.tensor(0.01), atol=1e-5)


def test_adain_sets_mean_and_deviation():
    seed_everything(0)
    x, style = torch.randn(2, 3, 16, 16) * 5 + 2, torch.randn(2, 6)
    y = adain(x, style)
    assert torch.allclose(y.mean((2, 3)), style[:, 3:], atol=1e-4)
    assert torch.allclose(y.std((2, 3), correction=0), style[:, :3].abs(), atol=1e-3)


@pytest.mark.parametrize("normalisation", ["demodulation", "adain"])
def test_same_seed_gives_the_same_weights_and_images(normalisation):
    images = []
    for _ in range(2):
        seed_everything(3)
        images.append(Generator(**SMALL, normalisation=normalisation).sample(3, seed=5))
    assert torch.equal(*images)
    assert not torch.equal(images[0], Generator(**SMALL, normalisation=normalisation).sample(3, seed=5))


def finite_difference(function, at, direction, step=1e-5):
    return (function(at + step * direction) - function(at - step * direction)) / (2 * step)


def gradient_agrees(penalty, weight):
    "Whether the gradient of a penalty in a weight has the slope of a random direction."
    (gradient,) = torch.autograd.grad(penalty(), weight)
    direction = torch.randn_like(weight)

    def at(value):
        weight.data.copy_(value)
        return penalty().detach()

    start = weight.data.clone()
    return math.isclose(
        finite_difference(at, start, direction).item(), (gradient * direction).sum().item(), rel_tol=1e-4
    )


def test_r1_is_the_squared_gradient():
    seed_everything(0)
    critic = Discriminator(16, 64, 8).double()
    x = torch.randn(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    score = lambda image: critic(image).squeeze()
    (gradient,) = torch.autograd.grad(score(x), x)
    direction = torch.randn_like(x)
    assert math.isclose(
        finite_difference(score, x.detach(), direction).item(), (gradient * direction).sum().item(), rel_tol=1e-5
    )
    assert math.isclose(r1_penalty(score(x)[None], x).item(), gradient.square().sum().item(), rel_tol=1e-9)


def test_the_gradient_of_r1_in_the_weights_equals_finite_differences():
    seed_everything(0)
    critic = Discriminator(16, 64, 8).double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    weight = critic.b16.conv0.weight
    penalty = lambda: r1_penalty(critic(x), x).mean()
    assert gradient_agrees(penalty, weight)


def test_path_length_equals_the_jacobian():
    seed_everything(0)
    generator = Generator(16, 8, 8, 64, 8, 1).double()
    generator.synthesis.requires_grad_(False)
    ws = torch.randn(1, generator.num_ws, 8, dtype=torch.float64, requires_grad=True)
    draw = lambda codes: generator.synthesis(codes, "none")
    noise = torch.randn(1, 3, 16, 16, dtype=torch.float64)
    columns = []
    for i in range(ws.numel()):
        direction = torch.zeros(ws.numel(), dtype=torch.float64)
        direction[i] = 1
        columns.append((finite_difference(draw, ws.detach(), direction.view_as(ws)) * noise).sum() / 16)
    want = torch.stack(columns).view_as(ws).square().sum(2).mean(1).sqrt()
    assert torch.allclose(path_lengths(draw(ws), ws, noise), want, rtol=1e-3)


def test_the_gradient_of_path_length_in_the_weights_equals_finite_differences():
    seed_everything(0)
    generator = Generator(16, 8, 8, 64, 8, 1).double()
    ws, noise = (
        torch.randn(2, generator.num_ws, 8, dtype=torch.float64, requires_grad=True),
        torch.randn(2, 3, 16, 16, dtype=torch.float64),
    )
    weight = generator.synthesis.b8.conv1.weight
    penalty = lambda: path_penalty(
        path_lengths(generator.synthesis(ws, "none"), ws, noise), torch.zeros([], dtype=torch.float64), decay=0.0
    )
    assert gradient_agrees(penalty, weight)


def test_the_losses_fall_as_each_side_wins():
    low, high = torch.full((4, 1), -8.0), torch.full((4, 1), 8.0)
    assert generator_loss(high) < 1e-3 < generator_loss(low)
    assert discriminator_loss(high, low) < 1e-3 < discriminator_loss(low, high)
    assert math.isclose(discriminator_loss(low * 0, low * 0).item(), 2 * math.log(2), rel_tol=1e-6)


def test_minibatch_std_sees_a_collapsed_generator():
    x = torch.randn(1, 4, 4, 4).repeat(4, 1, 1, 1)
    assert minibatch_std(x)[:, -1].max() < 1e-3 < 0.3 < minibatch_std(torch.randn(4, 4, 4, 4))[:, -1].min()


def test_ada_rises_with_certainty_and_falls_without():
    ada = ADA(target=0.6, images=400, every=2)
    for _ in range(4):
        ada.adapt(torch.ones(10, 1))
    assert math.isclose(ada.p.item(), 2 * 20 / 400, rel_tol=1e-5)
    for _ in range(2):
        ada.adapt(-torch.ones(10, 1))
    assert math.isclose(ada.p.item(), 20 / 400, rel_tol=1e-5)
    other = ADA(target=0.6, images=400, every=2)
    other.load_state_dict(ada.state_dict())  # a checkpoint holds it
    assert other.p == ada.p
    several = ADA(target=0.6, images=400, every=2)
    for _ in range(4):
        several.adapt(torch.ones(10, 64))  # as many images, 64 logits each
    assert math.isclose(several.p.item(), 2 * 20 / 400, rel_tol=1e-5)


def always():
    ada = ADA()
    ada.p.fill_(1.0)
    return ada


@pytest.mark.parametrize("augment", [diff_augment, always()])
def test_augmentations_let_gradients_through(augment):
    seed_everything(0)
    x = torch.rand(4, 3, 16, 16, requires_grad=True)
    assert not torch.allclose(augment(x), x, atol=0.1)
    augment(x).square().sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().sum() > 0


def test_levels_are_cut_in_proportion():
    for n in range(6, 19):
        parts = level_slices(n)
        assert [i for part in parts.values() for i in range(n)[part]] == list(range(n)) and all(
            range(n)[p] for p in parts.values()
        )
    assert level_slices(18) == {"coarse": slice(0, 4), "medium": slice(4, 8), "fine": slice(8, 18)}


@pytest.mark.parametrize("size", [16, 64, 128])
def test_encoder_and_generator_agree_at_any_size(size):
    generator, encoder = Generator(size, 8, 8, 256, 8, 1), Encoder(size, 8, 256, 8)
    encoder.fits(generator)
    for delta in encoder.deltas:
        torch.nn.init.normal_(delta.weight)
    codes = encoder(torch.ones(1, 3, size, size))
    assert (codes[:, 1:] != codes[:, :1]).any(2).all(), "every layer has an offset of its own"
    assert codes.shape == (1, generator.num_ws, 8) and generator.synthesis(codes).shape == (1, 3, size, size)


def test_wrong_sizes_are_refused_in_a_sentence():
    generator = Generator(**SMALL)
    with pytest.raises(ValueError, match="64 px, 10 layers and w of 16; the generator has 32 px"):
        Encoder(64, 16).fits(generator)
    with pytest.raises(ValueError, match=r"W\+ codes of 8 layers"):
        generator.synthesis(torch.zeros(1, 7, 16))
    with pytest.raises(ValueError, match=r"\(B, 3, 64, 64\); got \(1, 3, 32, 32\)"):
        Encoder(64, 16)(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match="power of two from 16 to 1024, not 48"):
        Generator(48)
    with pytest.raises(ValueError, match="noise must be random, const or none, not 'nonsense'"):
        generator(torch.zeros(1, 16), noise="nonsense")
    with pytest.raises(ValueError, match="both 0"):
        config_for("stylegan2", "smoke", adversarial_weight=0.0)


def test_every_term_reaches_the_networks_it_should():
    config = config_for("stylegan2", "smoke", reconstruction_weight=1.0, perceptual="none", augment="none")
    models = build_models(config)
    task = StyleGAN2Task(config, models["generator"], models["encoder"])
    optimizers = task.optimizers(config.lr, 0.0)
    batch = {"image": torch.randint(0, 256, (4, 16, 16, 3), dtype=torch.uint8)}
    trained = {name: [p for g in o.param_groups for p in g["params"]] for name, o in optimizers.items()}
    for network in optimizers:
        for name, params in trained.items():
            for p in params:
                p.requires_grad_(name == network)
        loss, _ = task.loss(batch, 0, network)
        loss.backward()
    silent = [
        name
        for name, p in task.model.named_parameters()
        if p.grad is None and "deltas" not in name and "lateral" not in name and "features" not in name
    ]
    assert not silent, silent
