"""The inversions, prompt-to-prompt and FlowEdit: what they return where the answer is known, and what they refuse."""

import random

import pytest
import torch
from diffusers import DDIMInverseScheduler

from mmgen.clip.model import train_tokenizer
from mmgen.editing.protocol import EditError
from mmgen.editing.registry import editor
from mmgen.ldm.attention import attend
from mmgen.ldm.diffusion import FlowMatching, from_x0_eps, make_schedule
from mmgen.ldm.editors.ddim_inversion import DDIMInversion, ddim_invert, two_branches
from mmgen.ldm.editors.edit_friendly_ddpm import ddpm_invert, ddpm_replay
from mmgen.ldm.editors.flowedit import flow_edit
from mmgen.ldm.editors.instruct import InstructEditor, random_instruct
from mmgen.ldm.editors.prompt_to_prompt import (
    PromptToPrompt,
    SharedMaps,
    align,
    aligned,
    attention_map,
    token_names,
    token_words,
)
from mmgen.ldm.editors.sdedit import Reconstruction
from mmgen.ldm.pipeline import random_pipeline
from mmgen.ldm.samplers import ddim

PIPELINES = {prediction: random_pipeline(prediction=prediction) for prediction in ("flow", "eps", "v")}
PROCESSES = {"flow": FlowMatching(3.0), "eps": make_schedule("linear"), "v": make_schedule("cosine")}
NAMES = ("ddim-inversion", "edit-friendly-ddpm", "prompt-to-prompt", "flowedit")
IMAGES = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
SOURCE, TARGET = ["green hair, smile", "smile, glasses", ""], ["red hair, smile", "glasses", "smile"]


def make(name, prediction="flow", **options):
    return editor(name, model=PIPELINES[prediction], **{"steps": 3} | options)


def gaussian(process, prediction, m=0.5, c=0.3):  # the perfect network for data N(m, c²)
    def model(x, t):
        a, b = process.coefficients(t / process.T if isinstance(process, FlowMatching) else t, x)
        gain = (x - a * m) / (a * a * c * c + b * b)
        return from_x0_eps(m + a * c * c * gain, b * gain, a, b, prediction)

    return model


def network(x, t):  # stands for a trained network: any smooth function of x and t
    return torch.tanh(1.3 * x + t.reshape(-1, 1, 1, 1) / 1000) + 0.2 * x.roll(1, -1)


@pytest.mark.parametrize(
    "name, options",
    [
        *((name, {}) for name in ("sdedit", *NAMES)),
        ("flowedit", {"averages": 2}),
        ("ddim-inversion", {"iterations": 2}),
    ],
)
def test_an_editor_tells_how_often_it_asks_the_network(name, options):
    for decoding in type(make(name)).decodings:
        which, asked = make(name, decoding=decoding, **options), []
        hook = which.pipeline.unet.register_forward_hook(lambda *_: asked.append(1))
        which.edit(IMAGES, SOURCE, TARGET, 1.0)
        hook.remove()
        assert len(asked) == round(which.passes * 3) and which.steps == 3


@pytest.mark.parametrize("name", NAMES)
def test_strength_zero_is_the_reconstruction(name):
    plain = make(name, decoding="plain").edit(IMAGES, SOURCE, TARGET, 0.0)
    assert torch.equal(plain, Reconstruction(PIPELINES["flow"]).edit(IMAGES, SOURCE, TARGET))
    assert torch.allclose(make(name, decoding="residual").edit(IMAGES, SOURCE, TARGET, 0.0), IMAGES, atol=1e-5)


@pytest.mark.parametrize("prediction", PIPELINES)
@pytest.mark.parametrize("name", NAMES)
def test_equal_captions_give_the_source_back(name, prediction):
    options = {"correction": "both"} if name in ("ddim-inversion", "prompt-to-prompt") else {}
    which = make(name, prediction, guidance=3.0, **options)
    z = which.encode(IMAGES)
    assert torch.allclose(which.change(z, SOURCE, SOURCE, 0.7), z, atol=1e-4)
    assert not torch.allclose(which.change(z, SOURCE, TARGET, 0.7), z, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_an_edit_does_not_depend_on_its_neighbours(name):
    together = make(name).edit(IMAGES, SOURCE, TARGET, 0.7)
    alone = torch.cat(
        [make(name).edit(IMAGES[i : i + 1], SOURCE[i : i + 1], TARGET[i : i + 1], 0.7) for i in (0, 1, 2)]
    )
    backwards = make(name, batch_size=2).edit(IMAGES.flip(0), SOURCE[::-1], TARGET[::-1], 0.7).flip(0)
    assert torch.allclose(together, alone, atol=1e-4) and torch.allclose(together, backwards, atol=1e-4)


@pytest.mark.parametrize(
    "name, dials",
    [
        ("ddim-inversion", (0.9, 2.0, "paired")),
        ("prompt-to-prompt", (0.9, 2.0, "paired")),
        ("edit-friendly-ddpm", (0.6, 1.5, "residual")),
        ("flowedit", (0.6, 1.5, "residual")),
    ],
)
def test_the_default_dials_are_those_of_the_sweep(name, dials):
    which, (strength, guidance, decoding) = make(name), dials
    assert (which.strength, which.guidance, which.decoding) == dials
    assert torch.equal(
        which.edit(IMAGES, SOURCE, TARGET),
        make(name, guidance=guidance, decoding=decoding).edit(IMAGES, SOURCE, TARGET, strength),
    )


@pytest.mark.parametrize(
    "name, options, said",
    [
        ("ddim-inversion", {"correction": "target"}, "correction must be one of none, source, both, not 'target'"),
        ("ddim-inversion", {"iterations": 0}, "iterations must be 1 or more, not 0"),
        ("ddim-inversion", {"seed": 1}, "has no seed"),
        ("prompt-to-prompt", {"share": 1.5}, "share is a share of the steps, from 0 to 1, not 1.5"),
        ("prompt-to-prompt", {"correction": "target"}, "prompt-to-prompt: correction must be"),
        ("edit-friendly-ddpm", {"decoding": "paired"}, "decoding must be one of residual, plain"),
        ("flowedit", {"averages": 0}, "averages must be 1 or more"),
    ],
)
def test_bad_options_get_one_sentence(name, options, said):
    with pytest.raises(EditError, match=said):
        make(name, **options)


# DDIM inversion


def test_the_inversion_equals_diffusers():
    steps, schedule, x = (
        10,
        make_schedule("linear"),
        torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)),
    )
    theirs = DDIMInverseScheduler(beta_start=1e-4, beta_end=0.02, clip_sample=False, timestep_spacing="trailing")
    theirs.set_timesteps(steps)
    ours = ddim_invert(network, x, steps, schedule)
    assert theirs.timesteps.tolist() == schedule.levels(steps).flip(0).tolist() and len(ours) == steps + 1
    for t, wanted in zip(theirs.timesteps, reversed(ours[:-1])):
        x = theirs.step(network(x, t.expand(2)), t, x).prev_sample
        assert torch.allclose(wanted, x, atol=1e-3)


@pytest.mark.parametrize("prediction", PROCESSES)
def test_the_inversion_finds_the_noise_of_gaussian_data_and_the_way_back(prediction):
    process, x0 = PROCESSES[prediction], torch.linspace(-0.4, 1.4, 31)[:, None]
    net, errors = gaussian(process, prediction), []
    a, b = process.coefficients(process.levels(1, 0.9)[0], x0)
    exact = a * 0.5 + (x0 - 0.5) / 0.3 * (a * a * 0.09 + b * b).sqrt()
    for steps in (20, 40, 80):
        x = ddim_invert(net, x0, steps, process, prediction, 0.9)[0]
        errors.append(
            (
                (x - exact).abs().max().item(),
                (ddim(net, x, steps, process, prediction, strength=0.9) - x0).abs().max().item(),
            )
        )
    assert all(fine < 0.65 * coarse for before, after in zip(errors, errors[1:]) for coarse, fine in zip(before, after))


def test_the_fixed_point_is_the_exact_inverse_of_the_sampler():
    process, x0 = PROCESSES["flow"], torch.randn(2, 3, 4, 4)
    back = lambda n: ddim(network, ddim_invert(network, x0, 8, process, "flow", iterations=n)[0], 8, process, "flow")
    first, fifth, last = ((back(n) - x0).abs().max().item() for n in (1, 5, 40))
    assert last < 1e-4 < fifth < first
    with pytest.raises(ValueError, match="does not tell which noise to add"):
        ddim_invert(network, x0, 8, process, "x0")


@pytest.mark.parametrize("prediction", PIPELINES)
def test_a_corrected_source_branch_is_exact_whatever_the_network(prediction):
    p, z = PIPELINES[prediction], PIPELINES[prediction].encode(IMAGES)
    way = ddim_invert(p.denoiser(SOURCE, 1.0), z, 3, p.process, p.prediction, 0.7)
    models = [(p.denoiser(SOURCE, 5.0), p.denoiser(TARGET, 5.0))] * 3
    ends = {
        c: two_branches(models, way, p.process, p.prediction, 0.7, correction=c) for c in ("none", "source", "both")
    }
    assert (
        torch.equal(ends["source"][0], z)
        and torch.equal(ends["both"][0], z)
        and not torch.allclose(ends["none"][0], z, atol=1e-3)
    )
    assert torch.equal(ends["none"][1], ends["source"][1])  # the target's branch is left alone
    assert not torch.allclose(ends["both"][1], ends["none"][1], atol=1e-3)


def test_paired_decoding_subtracts_the_source_branch():
    assert torch.allclose(
        make("ddim-inversion", correction="none", guidance=4.0, decoding="paired").edit(IMAGES, SOURCE, SOURCE, 0.7),
        IMAGES,
        atol=1e-4,
    )
    corrected = [
        make("ddim-inversion", correction="source", decoding=d).edit(IMAGES, SOURCE, TARGET, 0.7)
        for d in ("paired", "residual")
    ]
    assert torch.equal(*corrected)


# Edit-friendly DDPM


@pytest.mark.parametrize("prediction", PROCESSES)
def test_the_noises_lead_back_exactly_and_those_of_another_image_do_not(prediction):
    process, x0 = PROCESSES[prediction], torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    x, noises = ddpm_invert(network, x0, 10, process, prediction, torch.Generator().manual_seed(0))
    assert len(noises) == 10 and torch.allclose(ddpm_replay(network, x, noises, process, prediction), x0, atol=1e-4)
    assert not torch.allclose(
        ddpm_replay(network, x, [noise.flip(0) for noise in noises], process, prediction), x0, atol=1e-2
    )


def test_the_noises_are_stronger_than_ddpms_and_neighbours_are_anticorrelated():
    process = FlowMatching()
    _, noises = ddpm_invert(
        lambda x, t: torch.zeros_like(x), torch.zeros(1, 100_000), 10, process, "x0", torch.Generator().manual_seed(0)
    )
    a, b = 0.5, 0.5  # at the sixth of ten levels; the next one is (0.6, 0.4)
    assert abs(noises[5].var().item() - (0.4**2 + (a * 0.4**2 / (0.6 * b)) ** 2)) < 0.005
    assert max(torch.corrcoef(torch.cat(pair))[0, 1] for pair in zip(noises[:-1], noises[1:-1])) < -0.05


# Prompt-to-prompt


def test_tokens_find_their_tags():
    tokenizer = train_tokenizer(["green hair, smile, red"] * 4, 560)
    clip = type("", (), {"tokenizer": tokenizer, "length": 77})
    assert token_names("Red hair,  smile", tokenizer) == [
        ("start", -1),
        ("red hair", 0),
        ("red hair", 1),
        ("red hair", 2),
        ("smile", 0),
        ("end", -1),
    ]
    assert (
        token_names("", tokenizer) == [("start", -1), ("end", -1)] and len(token_names("smile, " * 50, tokenizer)) == 77
    )
    assert aligned(
        ["red hair, smile", "smile, red hair, smile"], ["smile, red hair", "green hair, smile"], clip
    ).tolist() == [[0, 4, -1, 1, 2, 5], [0, -1, 4, -1, 6, 7]]


def test_words_are_aligned_in_order():
    def longest(a, b):  # by its definition
        if not a or not b:
            return 0
        return 1 + longest(a[1:], b[1:]) if a[0] == b[0] else max(longest(a[1:], b), longest(a, b[1:]))

    assert (
        align(list("ABCBDAB"), list("BDCABA")) and len(align(list("ABCBDAB"), list("BDCABA"))) == 4
    )  # Cormen et al., figure 15.8
    rng = random.Random(0)
    for _ in range(60):
        a, b = (rng.choices(range(4), k=rng.randrange(8)) for _ in range(2))
        pairs = align(a, b)
        assert len(pairs) == longest(a, b) and all(a[i] == b[j] for i, j in pairs)
        assert all(i < k and j < m for (i, j), (k, m) in zip(pairs, pairs[1:]))


def test_all_words_of_a_sentence_but_the_changed_one_are_shared():
    words = "a photo of cat dog sitting on bench"
    tokenizer = train_tokenizer([words] * 4, 600)
    clip = type("", (), {"tokenizer": tokenizer, "length": 77})
    assert len(tokenizer.tokenize(words)) == len(words.split())
    before, after = "a photo of a cat sitting on a bench", "A photo of a dog sitting on a bench"
    assert aligned([before], [after], clip).tolist() == [
        [0, 1, 2, 3, 4, -1, 6, 7, 8, 9, 10]
    ]  # as the original's refinement
    assert aligned([before], ["a photo of a cat on a bench"], clip).tolist() == [[0, 1, 2, 3, 4, 5, 7, 8, 9, 10]]
    assert aligned([before], [f"{before}, dog"], clip).tolist() == [[*range(10), -1, -1, 10]]
    assert token_words("dog, cats", tokenizer)[:3] == [None, ("dog", 0), None]


def test_maps_of_partners_come_from_the_source_and_the_rest_is_left_alone():
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(4, 2, n, 8, generator=g) for n in (6, 3, 3))
    bias = torch.tensor([0.0, 0.0, -10000.0])[None, None, None].expand(4, 1, 1, 3)
    maps = SharedMaps(torch.tensor([[2, -1, 0], [0, 1, 2]]))
    assert torch.equal(maps.keep(q, k, v, bias), attend(q, k, v, bias))
    out, source, own = maps.use(-q, k, v, bias), attention_map(q, k, bias), attention_map(-q, k, bias)
    assert torch.allclose(out[:2], attend(-q, k, v, bias)[:2])  # the half without caption
    assert torch.allclose(
        out[2], torch.stack([source[2, ..., 2], own[2, ..., 1], source[2, ..., 0]], -1) @ v[2], atol=1e-5
    )
    assert torch.allclose(out[3], attend(q, k, v, bias)[3], atol=1e-5)


def test_share_zero_is_the_inversion_and_more_is_not():
    z = PIPELINES["flow"].encode(IMAGES)
    plain = DDIMInversion(PIPELINES["flow"], steps=4, correction="source").change(z, SOURCE, TARGET, 0.7)
    shared = [
        PromptToPrompt(PIPELINES["flow"], steps=4, correction="source", share=s).change(z, SOURCE, TARGET, 0.7)
        for s in (0.0, 0.1, 0.5, 1.0)
    ]
    assert torch.equal(plain, shared[0]) and torch.equal(plain, shared[1])  # a tenth of four steps is none
    assert not torch.allclose(plain, shared[2], atol=1e-4) and not torch.allclose(shared[2], shared[3], atol=1e-4)
    unguided = [
        PromptToPrompt(PIPELINES["flow"], steps=4, guidance=1.0, share=s).change(z, SOURCE, TARGET, 0.7)
        for s in (0.0, 1.0)
    ]
    assert not torch.allclose(*unguided, atol=1e-4)


def test_no_network_is_altered():
    pipeline, x, t = PIPELINES["flow"], torch.randn(1, 4, 16, 16), torch.tensor([500.0])
    before = pipeline.denoiser(["smile"])(x, t)
    make("prompt-to-prompt").edit(IMAGES, SOURCE, TARGET, 0.7)
    assert torch.equal(pipeline.denoiser(["smile"])(x, t), before)


# FlowEdit


@pytest.mark.parametrize("prediction", PROCESSES)
def test_flowedit_moves_one_gaussian_onto_another(prediction):
    process, x = PROCESSES[prediction], torch.linspace(-0.5, 1.5, 9)[:, None]
    networks = gaussian(process, prediction, 0.5), gaussian(process, prediction, 0.8)
    for steps, averages in ((2, 1), (10, 3)):
        moved = flow_edit(*networks, x, steps, process, prediction, torch.Generator().manual_seed(0), averages=averages)
        assert torch.allclose(moved, x + 0.3, atol=5e-3)
    less = flow_edit(*networks, x, 10, process, prediction, torch.Generator().manual_seed(0), strength=0.5) - x
    assert (less > 0).all() and (less < 0.3).all()


def test_flowedits_seed_is_its_noise():
    z = PIPELINES["flow"].encode(IMAGES)
    first, again, other = (make("flowedit", seed=seed).change(z, SOURCE, TARGET, 0.7) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.allclose(first, other, atol=1e-4)


@pytest.mark.parametrize("name", ["sdedit", *NAMES, "instruct-pix2pix"])
def test_both_captions_in_one_call_give_what_two_calls_give(name, monkeypatch):
    from mmgen.ldm import pipeline, samplers
    from mmgen.ldm.editors import ddim_inversion as inversion
    from mmgen.ldm.editors import flowedit

    which, found, calls = (
        (InstructEditor(random_instruct(), steps=3) if name == "instruct-pix2pix" else make(name)),
        [],
        [],
    )
    which.pipeline.unet.register_forward_hook(lambda *_: calls.append(1))
    for most in (32, 0):
        for module in (pipeline, inversion, flowedit):
            monkeypatch.setattr(module, "together", lambda first, second: samplers.together(first, second, most))
        found.append(which.edit(IMAGES, SOURCE, TARGET, 0.8))
        calls.append(0)
    one, two = (len(part) for part in "".join(map(str, calls)).split("0")[:2])
    assert torch.allclose(*found, atol=1e-5) and not torch.allclose(found[0], IMAGES, atol=1e-3)
    assert one < two or name in ("edit-friendly-ddpm", "instruct-pix2pix")  # these go on alone
