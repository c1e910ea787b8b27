"Diffusion: parity with diffusers' schedulers, Gaussian data with known answers, partial starts, guidance, bad input."

import itertools

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, FlowMatchEulerDiscreteScheduler

from mmgen.ldm.diffusion import (
    FlowMatching,
    Schedule,
    diffusion_loss,
    from_x0_eps,
    make_schedule,
    q_sample,
    start,
    to_x0_eps,
)
from mmgen.ldm.samplers import DiffusersSampler, Guided, ddim, ddpm, euler, heun
from mmgen.ldm.unet import UNet2DConditionModel

NAMES = dict(linear="linear", scaled_linear="scaled_linear", cosine="squaredcos_cap_v2")
TYPES = dict(eps="epsilon", v="v_prediction", x0="sample")
M, C = 0.5, 0.3


def reference(cls, name, prediction="eps", **kw):
    betas = dict(linear=(1e-4, 0.02), scaled_linear=(0.00085, 0.012), cosine=(1e-4, 0.02))[name]
    return cls(
        beta_schedule=NAMES[name],
        beta_start=betas[0],
        beta_end=betas[1],
        prediction_type=TYPES[prediction],
        clip_sample=False,
        **kw,
    )


def network(x, t):  # stands for a trained network: any smooth function of x and t
    return torch.tanh(1.3 * x + t.reshape(-1, 1, 1, 1) / 1000) + 0.2 * x.roll(1, -1)


def gaussian(process, prediction="eps"):  # the perfect network for data N(M, C²)
    def model(x, t):
        a, b = process.coefficients(t / process.T if isinstance(process, FlowMatching) else t, x)
        gain = (x - a * M) / (a * a * C * C + b * b)
        return from_x0_eps(M + a * C * C * gain, b * gain, a, b, prediction)

    return model


def exact(process, x, strength=1.0):  # where the deterministic path from x ends
    a, b = process.coefficients(process.levels(1, strength)[0], x)
    return M + C * (x - a * M) / (a * a * C * C + b * b).sqrt()


def noise(seed=0, shape=(2, 3, 4, 4)):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", NAMES)
def test_schedules_and_q_sample_equal_diffusers(name):
    ours, theirs = make_schedule(name), reference(DDPMScheduler, name)
    assert torch.allclose(ours.alphas_cumprod.float(), theirs.alphas_cumprod, rtol=2e-4, atol=1e-6)
    x0, w, t = noise(), noise(1), torch.tensor([0, 777])
    assert torch.allclose(q_sample(ours, x0, t, w), theirs.add_noise(x0, w, t), atol=1e-5)
    a, b = ours.coefficients(t, x0)
    assert torch.allclose(from_x0_eps(x0, w, a, b, "v"), theirs.get_velocity(x0, w, t), atol=1e-5)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("steps", [10, 50, 1000])
def test_levels_equal_diffusers(spacing, steps):
    theirs = DDIMScheduler(timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    assert make_schedule("linear").levels(steps, spacing=spacing).tolist() == theirs.timesteps.tolist()


def run(scheduler, x, steps, **kw):
    "diffusers' loop; every intermediate x"
    scheduler.set_timesteps(steps)
    out = []
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, **kw).prev_sample
        out.append(x)
    return out


def watched(sampler, x, *args, **kw):
    "our loop; every intermediate x, seen by the network"
    seen = []

    def spy(x, t):
        seen.append(x)
        return network(x, t)

    return seen, sampler(spy, x, *args, **kw)


# at its last level the cosine schedule has no signal left, and x₀ from ε is a division by 5e-9
@pytest.mark.parametrize(
    "name, prediction, spacing",
    [
        case
        for case in itertools.product(NAMES, TYPES, ("trailing", "leading"))
        if case != ("cosine", "eps", "trailing")
    ],
)
def test_ddim_equals_diffusers_at_every_step(name, prediction, spacing):
    theirs = reference(DDIMScheduler, name, prediction, timestep_spacing=spacing)
    seen, out = watched(ddim, noise(), 20, Schedule(theirs.betas), prediction, spacing=spacing)
    for i, (ours, want) in enumerate(zip(seen[1:] + [out], run(theirs, noise(), 20), strict=True)):
        assert (ours - want).abs().max() < 1e-5 * max(1, want.abs().max()), i


def test_ddim_with_noise_equals_diffusers():
    g = lambda: torch.Generator().manual_seed(3)
    want = run(
        reference(DDIMScheduler, "scaled_linear", timestep_spacing="trailing"), noise(), 20, eta=0.7, generator=g()
    )
    seen, out = watched(ddim, noise(), 20, make_schedule(), eta=0.7, generator=g())
    # diffusers draws noise (times 0) at the last step too, which changes nothing before it
    for ours, theirs in zip(seen[1:] + [out], want, strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("steps", [20, 1000])
def test_ddpm_equals_diffusers_at_every_step(name, steps):
    prediction = "v" if name == "cosine" else "eps"
    theirs = reference(DDPMScheduler, name, prediction, timestep_spacing="trailing")
    want = run(theirs, noise(), steps, generator=torch.Generator().manual_seed(3))
    schedule = Schedule(theirs.betas)  # in float32, which matters where β is 0.999
    seen, out = watched(ddpm, noise(), steps, schedule, prediction, torch.Generator().manual_seed(3))
    for i, (ours, ref) in enumerate(zip(seen[1:] + [out], want, strict=True)):
        tolerance = 1e-5 if steps == 20 or i < 20 else 2e-3  # a thousand steps add up rounding
        assert (ours - ref).abs().max() < tolerance * max(1, ref.abs().max()), i


@pytest.mark.parametrize("process", [make_schedule("linear"), FlowMatching(shift=3)])
def test_ddpm_is_ddim_with_all_its_noise(process):
    g = lambda: torch.Generator().manual_seed(3)
    ours = ddpm(gaussian(process, "v"), noise(), 20, process, "v", g())
    assert (ddim(gaussian(process, "v"), noise(), 20, process, "v", g(), eta=1) - ours).abs().max() < 1e-4


def test_euler_equals_diffusers_flow_matching():
    flow, scheduler = FlowMatching(), FlowMatchEulerDiscreteScheduler()
    levels = flow.levels(12, 0.8)
    scheduler.set_timesteps(sigmas=levels.tolist())
    x = noise()
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    ours = euler(network, noise(), 12, flow, "flow", strength=0.8)
    assert (ours - x).abs().max() < 1e-5
    assert (ddim(network, noise(), 12, flow, "flow", strength=0.8) - x).abs().max() < 1e-5
    adapter = DiffusersSampler("FlowMatchEulerDiscreteScheduler")
    assert (adapter(network, noise(), 12, flow, "flow", strength=0.8) - x).abs().max() < 1e-5


@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_the_adapter_runs_diffusers_flow_matching_heun(strength):
    flow = FlowMatching(shift=2)
    adapter = DiffusersSampler("FlowMatchHeunDiscreteScheduler")
    seen, out = watched(adapter, noise(), 6, flow, "flow", strength=strength)
    want, ours = watched(heun, noise(), 6, flow, "flow", strength=strength)
    assert len(seen) == len(want) == 11 and (out - ours).abs().max() < 1e-5


def test_adapter_equals_our_ddim_from_a_partial_level():
    for strength, steps in ((1.0, 10), (0.4, 10), (0.37, 12), (0.004, 10)):
        ours = ddim(network, noise(), steps, make_schedule(), strength=strength)
        theirs = DiffusersSampler("DDIMScheduler")(network, noise(), steps, make_schedule(), strength=strength)
        assert (theirs - ours).abs().max() < 1e-4


@pytest.mark.parametrize("process", [make_schedule("linear"), make_schedule("cosine"), FlowMatching(shift=2)])
@pytest.mark.parametrize("prediction", ["eps", "v", "flow", "x0"])
def test_all_predictions_are_one_network(process, prediction):
    x0, w, t = noise().double(), noise(1).double(), torch.tensor([0.1, 0.9]).double()
    if isinstance(process, Schedule):
        t = (t * 1000).long()
    a, b = process.coefficients(t, x0)
    back = to_x0_eps(from_x0_eps(x0, w, a, b, prediction), a * x0 + b * w, a, b, prediction)
    assert torch.allclose(back[0], x0, atol=1e-6) and torch.allclose(back[1], w, atol=1e-6)
    want = ddim(gaussian(process, "v"), noise(2), 20, process, "v", strength=0.9)
    assert torch.allclose(
        ddim(gaussian(process, prediction), noise(2), 20, process, prediction, strength=0.9), want, atol=2e-3
    )


def test_samples_of_gaussian_data():
    x, g = noise(shape=(20_000, 1)), torch.Generator().manual_seed(1)
    linear, flow = make_schedule("linear"), FlowMatching()
    for out in (
        ddpm(gaussian(linear), x, 250, linear, generator=g),
        ddpm(gaussian(flow, "flow"), x, 250, flow, "flow", g),
        ddim(gaussian(linear), x, 250, linear),
        ddim(gaussian(linear), x, 250, linear, generator=g, eta=1),
        euler(gaussian(flow, "flow"), x, 100, flow, "flow"),
        heun(gaussian(flow, "flow"), x, 30, flow, "flow"),
        ddim(gaussian(flow, "flow"), x, 250, flow, "flow", generator=g, eta=1),
    ):
        assert abs(out.mean() - M) < 0.01 and abs(out.std() - C) < 0.015


@pytest.mark.parametrize("process", [make_schedule("linear"), FlowMatching()])
@pytest.mark.parametrize("strength", [1.0, 0.6])
def test_order_of_euler_and_heun(process, strength):
    x = torch.linspace(-2, 2, 21)[:, None].double()
    error = lambda f, n: (
        (f(gaussian(process, "flow"), x, n, process, "flow", strength=strength) - exact(process, x, strength))
        .abs()
        .max()
    )
    assert error(euler, 500) < 0.02 and error(heun, 125) < error(euler, 250) / 2
    if isinstance(process, FlowMatching):
        assert 1.8 < error(euler, 50) / error(euler, 100) < 2.2 and 3.5 < error(heun, 50) / error(heun, 100) < 5


@pytest.mark.parametrize(
    "name", ["DPMSolverMultistep", "DPMSolverSinglestep", "UniPCMultistep", "HeunDiscrete", "EulerDiscrete", "DDIM"]
)
@pytest.mark.parametrize("process", [make_schedule("linear"), make_schedule("scaled_linear"), FlowMatching(shift=2)])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_adapter_finds_the_exact_answer(name, process, strength):
    x, prediction = (
        torch.linspace(-1.5, 1.5, 21)[:, None, None, None],
        "eps" if isinstance(process, Schedule) else "flow",
    )
    sampler = DiffusersSampler(name + "Scheduler")
    error = [
        (
            sampler(gaussian(process, prediction), x, n, process, prediction, strength=strength)
            - exact(process, x, strength)
        )
        .abs()
        .max()
        for n in (10, 100)
    ]
    assert error[1] < 0.035 and error[1] < max(error[0], 0.01)


@pytest.mark.parametrize("steps", [8, 50])
def test_adapter_passes_options(steps):  # Karras' levels end near the data: a better end of the path in few steps
    x, s = torch.linspace(-1.5, 1.5, 21)[:, None, None, None], make_schedule()
    error = [
        (DiffusersSampler("DPMSolverMultistepScheduler", use_karras_sigmas=k)(gaussian(s), x, steps, s) - exact(s, x))
        .abs()
        .max()
        for k in (True, False)
    ]
    assert error[0] < 0.02 and error[0] < error[1] / 5


def test_strength_starts_where_the_sampler_begins():
    x0, w = noise(), noise(1)
    for process, level in ((make_schedule(), 599), (FlowMatching(), 600), (FlowMatching(shift=3), 1000 * 1.8 / 2.2)):
        for f in (ddim, heun):
            seen = []
            f(lambda x, t: seen.append(t.unique().item()) or torch.zeros_like(x), x0, 4, process, "x0", strength=0.6)
            assert seen[0] == pytest.approx(level)
        a, b = process.coefficients(process.levels(1, 0.6)[0], x0)
        assert torch.allclose(start(process, x0, w, 0.6), a * x0 + b * w)
        assert torch.equal(start(process, x0, w, 0.0), x0)
        for f in (ddim, euler, heun, DiffusersSampler("UniPCMultistepScheduler")):
            assert torch.equal(f(network, x0, 5, process, "flow", strength=0.0), x0)


def test_number_of_evaluations():
    for f, calls in (
        (ddpm, 7),
        (ddim, 7),
        (euler, 7),
        (heun, 13),
        (DiffusersSampler("DPMSolverMultistepScheduler"), 7),
        (DiffusersSampler("HeunDiscreteScheduler"), 13),
    ):
        n = []
        f(lambda x, t: n.append(1) or torch.zeros_like(x), noise(), 7, make_schedule(), strength=0.5)
        assert len(n) == calls


def test_loss_is_the_error_of_the_right_target():
    x0, w, t = noise(), noise(1), torch.tensor([100, 700])
    s, flow = make_schedule(), FlowMatching()
    assert diffusion_loss(lambda x, t: w, x0, s, t=t, noise=w) == 0
    assert diffusion_loss(lambda x, t: w - x0, x0, flow, "flow", t=t / 1000, noise=w) == 0
    assert torch.isclose(diffusion_loss(lambda x, t: w + 2, x0, s, t=t, noise=w), torch.tensor(4.0))
    perfect = diffusion_loss(gaussian(s), M + C * noise(shape=(5000, 1)), s, generator=torch.Generator().manual_seed(0))
    assert perfect < diffusion_loss(
        lambda x, t: 0.9 * gaussian(s)(x, t),
        M + C * noise(shape=(5000, 1)),
        s,
        generator=torch.Generator().manual_seed(0),
    )


def test_draws_are_seeded_and_distributed():
    flow, s = FlowMatching(mean=0.5, std=1.2), make_schedule()
    g = lambda: torch.Generator().manual_seed(0)
    assert torch.equal(flow.draw_t(5, g()), flow.draw_t(5, g())) and torch.equal(s.draw_t(5, g()), s.draw_t(5, g()))
    logit = torch.logit(flow.draw_t(50_000, g()))
    assert abs(logit.mean() - 0.5) < 0.02 and abs(logit.std() - 1.2) < 0.02
    t = s.draw_t(50_000, g())
    assert t.min() == 0 and t.max() == 999 and abs(t.float().mean() - 499.5) < 5


def test_guidance():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(16,),
        down_block_types=("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",),
        cross_attention_dim=8,
        norm_num_groups=4,
        attention_head_dim=2,
    ).eval()
    x, t, text, empty = noise(shape=(2, 4, 4, 4)), torch.tensor([5, 5]), noise(1, (2, 6, 8)), noise(2, (1, 6, 8))
    mask, empty_mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 1, 0]]), torch.tensor([[1, 1, 0, 0, 0, 0]])
    with torch.no_grad():
        c, u = unet(x, t, text, mask), unet(x, t, empty.expand(2, -1, -1), empty_mask.expand(2, -1))
        assert torch.allclose(Guided(unet, text, empty, 3.0, mask, empty_mask)(x, t), u + 3 * (c - u), atol=1e-5)
        assert torch.allclose(Guided(unet, text, mask=mask)(x, t), c, atol=1e-5)
        assert torch.allclose(Guided(unet, text, empty, 0.0, mask, empty_mask)(x, t), u, atol=1e-5)
    with pytest.raises(ValueError, match="empty caption"):
        Guided(unet, text, scale=2.0)
    out = ddim(Guided(unet, text, empty, 2.0), x, 3, make_schedule())
    assert out.shape == x.shape and torch.isfinite(out).all() and not out.requires_grad


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: make_schedule("quadratic"), "needs one of linear, scaled_linear, cosine"),
        (lambda: Schedule(torch.tensor([0.1, 1.5])), "between 0 and 1"),
        (lambda: make_schedule().levels(5, 1.2), "strength=1.2"),
        (lambda: FlowMatching().levels(5, -0.1), "strength=-0.1"),
        (lambda: make_schedule().levels(5, spacing="even"), "spacing='even'"),
        (lambda: ddim(network, noise(), 5, make_schedule(), "noise"), "prediction='noise'"),
        (
            lambda: DiffusersSampler("FastScheduler")(network, noise(), 5, make_schedule()),
            "no scheduler 'FastScheduler'",
        ),
        (
            lambda: DiffusersSampler("FlowMatchEulerDiscreteScheduler")(network, noise(), 5, make_schedule()),
            "needs a FlowMatching",
        ),
    ],
)
def test_bad_input(call, words):
    with pytest.raises(ValueError, match=words):
        call()
