"Inversion and the StyleCLIP Editors: known answers, what belongs together, and every mistake in one sentence"

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mmgen.base.images import seed_everything
from mmgen.clip.model import CLIP
from mmgen.data.batches import Batches
from mmgen.editing.protocol import EditError, Editor
from mmgen.jobs.registry import config_for
from mmgen.styleclip.clip_loss import KINDS, CLIPLoss
from mmgen.styleclip.directions import Directions, GlobalDirections, flat_styles, render_styles
from mmgen.styleclip.directions_train import movable, regression, relevance
from mmgen.styleclip.mapper import LatentMapper, Mapper
from mmgen.styleclip.mapper_train import MapperTask, edits_to
from mmgen.styleclip.optimization import PENALTIES, LatentOptimization
from mmgen.stylegan.editor import Inversion, TagMeans, tag_means
from mmgen.stylegan.encoder import Encoder, level_slices
from mmgen.stylegan.generator import Generator
from mmgen.stylegan.inversion import Inverter, project, sample_w, search, w_axes
from mmgen.stylegan.task import StyleGAN2Task
from mmgen.stylegan.train import build_models, fit_mapping
from mmgen.training.checkpoints import CheckpointError
from mmgen.training.guards import TrainingDiverged
from mmgen.training.loop import train
from mmgen.training.optimizers import build

SMALL = dict(size=32, z_dim=16, w_dim=16, channel_base=256, channel_max=24, mapping_layers=2)
TEXTS, TARGETS = ["brown hair, smile", "black hair", ""], ["green hair, smile", "green hair, glasses", "green hair"]


def generator(seed=0, **changes):
    seed_everything(seed)
    return Generator(**SMALL | changes).eval().requires_grad_(False)


def encoder(size=32, w_dim=16):
    seed_everything(1)
    return Encoder(size, w_dim, 128, 16, 16, 16).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def clip():
    return CLIP.load("clip-portraits", "cpu")


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def random_mapper(g, condition=0, **options):
    seed_everything(2)
    mapper = Mapper(g.w_dim, g.num_ws, hidden=16, condition=condition, scale=1.0, generator=g.fingerprint(), **options)
    for p in mapper.parameters():
        p.data.normal_(0, 0.3)
    return mapper.eval().requires_grad_(False)


def random_directions(g, width=128):
    seed_everything(3)
    channels = movable(g)
    return Directions(len(channels), width, g.fingerprint()).fill(
        channels, torch.randn(len(channels), width), torch.ones(len(channels))
    )


def editors(clip):
    g, e = generator(), encoder()
    width = clip.model.config.projection_dim
    make = {
        "inversion": lambda **o: Inversion(g, e, clip, "cpu", **o),
        "optimization": lambda **o: LatentOptimization(
            g, e, clip, "cpu", steps=2, identity="none", clip_loss="global", **o
        ),
        "mapper, one prompt": lambda **o: LatentMapper(random_mapper(g, prompt="green hair"), g, e, clip, "cpu", **o),
        "mapper": lambda **o: LatentMapper(random_mapper(g, width), g, e, clip, "cpu", **o),
        "directions": lambda **o: GlobalDirections(random_directions(g, width), g, e, clip, "cpu", beta=0.0, **o),
    }
    return make


NAMES = ["inversion", "optimization", "mapper, one prompt", "mapper", "directions"]


@pytest.mark.parametrize("name", NAMES)
def test_every_editor_keeps_the_seam(name, clip, images):
    make = editors(clip)[name]
    for decoding in ("plain", "residual"):
        editor = make(decoding=decoding, batch_size=2)
        assert isinstance(editor, Editor) and editor.size == 32
        edited = editor.edit(images, TEXTS, TARGETS, 0.5)
        assert edited.shape == images.shape and edited.isfinite().all() and edited.abs().max() <= 1
        assert torch.equal(edited, editor.edit(images, TEXTS, TARGETS, 0.5))
        reconstruction = editor.edit(images, TEXTS, TARGETS, 0.0)
        expected = (
            images if decoding == "residual" else editor.generator.synthesis(editor.inverter(images)).clamp(-1, 1)
        )
        assert torch.allclose(reconstruction, expected, atol=1e-4)
        if name != "inversion":
            assert not torch.allclose(edited, reconstruction, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "change, message",
    [
        (dict(target=TARGETS[:2]), "target must be a list of 3 captions"),
        (dict(source="brown hair"), "source must be a list of 3"),
        (dict(images=torch.zeros(3, 3, 64, 64)), "works on 32×32 images; got 64×64"),
        (dict(strength=2.0), "strength must lie in 0..1"),
    ],
)
def test_every_editor_refuses_the_same_mistakes(name, change, message, clip, images):
    editor = editors(clip)[name]()
    with pytest.raises(EditError, match=message):
        editor.edit(**dict(images=images, source=TEXTS, target=TARGETS, strength=0.5) | change)


def test_what_does_not_belong_together_is_refused(clip):
    g, e, other = generator(), encoder(), generator(seed=9)
    width = clip.model.config.projection_dim
    assert g.fingerprint() != other.fingerprint()
    with pytest.raises(ValueError, match="64 px, 10 layers and w of 16; the generator has 32 px"):
        Inversion(g, encoder(64), None, "cpu")
    with pytest.raises(
        EditError,
        match=f"the mapper was made for the generator {other.fingerprint()}, this generator is {g.fingerprint()}",
    ):
        LatentMapper(random_mapper(other, width), g, e, clip, "cpu")
    with pytest.raises(
        ValueError,
        match=f"encoder was trained for the generator {other.fingerprint()}, this generator is {g.fingerprint()}",
    ):
        Inversion(g, Encoder(32, 16, 128, 16, 16, 16, generator=other.fingerprint()), None, "cpu")
    with pytest.raises(
        EditError, match=f"the mapper was made for the clip 0123456789abcdef, this clip is {clip.fingerprint()}"
    ):
        LatentMapper(random_mapper(g, width, clip="0123456789abcdef"), g, e, clip, "cpu")
    with pytest.raises(EditError, match="the table of directions was made for the generator"):
        GlobalDirections(random_directions(other, width), g, e, clip, "cpu")
    with pytest.raises(EditError, match="reads text embeddings of 7 numbers, this CLIP has"):
        LatentMapper(random_mapper(g, 7), g, e, clip, "cpu")
    with pytest.raises(EditError, match="codes of 10 layers of 16 numbers, the generator.s codes have 8 layers of 16"):
        LatentMapper(Mapper(16, 10), g, e, clip, "cpu")
    with pytest.raises(EditError, match="directions are of a CLIP with embeddings of 7 numbers"):
        GlobalDirections(random_directions(g, 7), g, e, clip, "cpu")
    with pytest.raises(EditError, match="every template must hold {}"):
        GlobalDirections(random_directions(g, width), g, e, clip, "cpu", templates=("a portrait",))
    with pytest.raises(ValueError, match=r"W\+ codes of 8 layers"):
        g.synthesis(torch.zeros(1, 9, 16))
    with pytest.raises(ValueError, match=r"W\+ codes of 8 layers.*got \(1, 9, 16\)"):
        random_mapper(g)(torch.zeros(1, 9, 16))
    with pytest.raises(ValueError, match="must be some of coarse, medium, fine, not broad"):
        Mapper(16, 8, levels=("broad",))
    with pytest.raises(ValueError, match="brings no image of 32 px to the 50 px of this CLIP"):
        CLIPLoss(SimpleNamespace(size=50, images=clip.images), original=True).embed(torch.zeros(1, 3, 32, 32))


def test_a_mapper_of_one_prompt_takes_no_other(clip, images):
    editor = editors(clip)["mapper, one prompt"]()
    with pytest.raises(EditError, match="trained for 'green hair' alone, and the target caption is 'red hair'"):
        editor.edit(images, TEXTS, ["green hair", "red hair", "green hair"])


def test_levels_without_a_mapper_stay():
    g = generator()
    change = random_mapper(g, levels=("medium",))(torch.randn(2, g.num_ws, 16))
    moved = [name for name, layers in level_slices(g.num_ws).items() if change[:, layers].abs().max() > 0]
    assert moved == ["medium"]


def test_a_mapper_learns_the_difference_of_two_kinds_of_codes(clip):
    "Codes are their texts times a matrix: then a text direction means one change, and the pairs teach it"
    g, random = generator(), torch.Generator().manual_seed(0)
    E = clip.model.config.projection_dim
    texts = F.normalize(torch.randn(12, E, generator=random), dim=-1)[torch.arange(240) % 12]
    codes = (texts @ torch.randn(E, 16, generator=random))[:, None] + 0.01 * torch.randn(
        240, g.num_ws, 16, generator=random
    )
    config = config_for("mapper", "smoke", candidates=3).settled
    mapper = Mapper(16, g.num_ws, hidden=64, layers=2, condition=E, scale=1.0)
    mapper.standardise(codes, texts)
    task = MapperTask(config, mapper, g, clip, codes, texts)
    rows = task.partners(torch.arange(20))
    assert ((texts[rows] - texts[:20]).norm(dim=1) > 1e-3).all(), "a partner has another text"
    optimizer = torch.optim.Adam(mapper.parameters(), 3e-3)
    seed_everything(0)
    for step in range(300):
        loss, _ = task.loss({"index": torch.randint(0, 240, (64,))}, step, "main")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    now, wanted = torch.arange(60), task.partners(torch.arange(60))
    with torch.no_grad():
        error = codes[now] + mapper(codes[now], torch.stack([texts[now], texts[wanted]], 1)) - codes[wanted]
    assert error.square().mean() < 0.05 * (codes[now] - codes[wanted]).square().mean()


class Colours:
    "A CLIP that sees the mean colour"

    model = SimpleNamespace(config=SimpleNamespace(projection_dim=3))

    def images(self, x):
        return x.mean((2, 3))

    def fingerprint(self):
        return "0123456789abcdef"


def test_relevance_is_what_clip_sees_when_a_channel_moves():
    g = generator()
    with torch.no_grad():
        for block in g.synthesis.blocks():
            block.torgb.weight[1:].zero_()  # only red
    result = relevance(g, Colours(), images=8, reach=2.0, samples=50)
    assert result.relevance.shape == (len(movable(g)), 3)
    moved = result.relevance.norm(dim=1) > 0.5
    assert moved.any() and result.relevance[moved, 0].abs().mean() > 0.7
    styles = flat_styles(g, g.mapping(torch.randn(50, 16, generator=torch.Generator().manual_seed(0))))
    assert torch.allclose(result.std, styles.std(0)[movable(g)], rtol=1e-4)
    channel = int(result.relevance[:, 0].abs().argmax())
    up, down = styles[:8].clone(), styles[:8].clone()
    for pushed, sign in ((up, 1), (down, -1)):
        c = movable(g)[channel]
        pushed[:, c] = styles[:, c].mean() + sign * 2 * styles[:, c].std()
    red = (render_styles(g, up) - render_styles(g, down)).clamp(-2, 2)[:, 0].mean()
    assert red * result.relevance[channel, 0] > 0


def test_whitening_makes_relevances_spread_alike():
    result = Directions(400, 8)
    common = torch.tensor([5.0, 0, 0, 0, 0, 0, 0, 0])
    result.fill(
        torch.arange(400),
        F.normalize(torch.randn(400, 8, generator=torch.Generator().manual_seed(0)) + common, dim=-1),
        torch.ones(400),
    )
    spread = lambda rows: torch.linalg.eigvalsh(rows.T @ rows / len(rows))
    white = result.relevance @ result.whitening(1e-6)
    assert spread(result.relevance)[-1] > 20 * spread(result.relevance)[0] and torch.allclose(
        spread(white), torch.ones(8), atol=0.01
    )
    step = result.move(result.relevance[7:8], 0.0, result.whitening(0.01))[0]
    assert step.argmax() == 7, "a channel answers its own direction best, common part or not"


def test_a_regression_finds_the_slopes_of_styles_on_embeddings():
    g = generator()
    table = regression(g, Colours(), samples=400, ridge=1e-4)
    z = torch.randn(400, 16, generator=torch.Generator().manual_seed(0))
    styles = flat_styles(g, g.mapping(z))
    seen = render_styles(g, styles).clamp(-1, 1).mean((2, 3))
    s, e = (x - x.mean(0) for x in (styles, seen))
    exact = torch.linalg.lstsq(e, s).solution.T
    assert table.config["kind"] == "regression" and len(table.channels) == styles.shape[1]
    assert torch.allclose(table.slopes, exact, atol=0.02 * exact.abs().max().item())
    step = torch.tensor([[0.1, 0.0, 0.0], [0.2, 0.0, 0.0]])
    assert torch.allclose(2 * table.move(step)[0], table.move(step)[1]), "a longer direction is a longer step"
    flat = regression(g, Colours(), samples=400, ridge=100.0)
    assert flat.slopes.norm() < 0.1 * table.slopes.norm()
    with pytest.raises(ValueError, match="kind must be one of regression, pushes, not 'magic'"):
        Directions(4, 3, kind="magic")


@pytest.mark.parametrize("kind", KINDS)
def test_equal_texts_and_no_change_cost_nothing_but_globally(kind):
    clip = SimpleNamespace(
        images=lambda x: F.normalize(x.mean((2, 3)), dim=-1),
        text=lambda texts: F.normalize(
            torch.stack([torch.tensor([t.count("r") + 0.1, t.count("g") + 0.1, 0.1]) for t in texts]), dim=-1
        ),
    )
    loss = CLIPLoss(clip, kind)
    image = torch.tensor([0.5, 0.1, 0.3])[None, :, None, None].expand(1, 3, 8, 8)
    away = loss(image, loss.goal(["r"], ["g"]), image)
    toward = loss(image + 0.2 * torch.tensor([1.0, -1.0, 0.0])[None, :, None, None], loss.goal(["r"], ["g"]), image)
    assert toward < away
    same = loss(image, loss.goal(["r"], ["r"]), image)
    assert torch.allclose(same, torch.zeros(1), atol=1e-5) == (kind == "shifted")


def test_the_dials_of_global_directions():
    rows = torch.tensor([[1.0, 0, 0], [0.5, 0.5, 0], [0, 0, 1], [-1, 0, 0]])
    result = Directions(4, 3).fill(torch.arange(4), rows, torch.tensor([1.0, 2.0, 3.0, 4.0]))
    red = torch.tensor([[2.0, 0.0, 0.0]])
    assert torch.allclose(result.move(red, 0.0), torch.tensor([[1.0, 2**0.5, 0.0, -4.0]]))
    assert torch.allclose(result.move(red, 0.8), torch.tensor([[1.0, 0.0, 0.0, -4.0]]))
    assert torch.equal(result.move(torch.tensor([[0.0, 0.5, 0.5]]), 0.99), torch.zeros(1, 4))


def test_alpha_and_strength_scale_the_step(clip, images):
    make, move = (
        editors(clip)["directions"],
        lambda w, s: w.change(w.encode(images), TEXTS, TARGETS, s) - w.encode(images),
    )
    a, b, c = move(make(alpha=4.0), 0.25), move(make(alpha=2.0), 0.5), move(make(alpha=4.0), 0.5)
    assert torch.allclose(a, b, atol=1e-5) and torch.allclose(2 * a, c, atol=1e-5) and a.abs().max() > 0


@pytest.mark.parametrize("penalty", PENALTIES)
def test_optimisation_comes_nearer_to_the_text_and_strength_frees_it(penalty, clip, images):
    g, e = generator(), encoder()
    editor = LatentOptimization(
        g, e, clip, "cpu", steps=15, identity="none", penalty=penalty, weight=0.2, clip_loss="global", decoding="plain"
    )
    codes = editor.encode(images)
    goal = editor.loss.goal(TARGETS)
    away = lambda ws: editor.loss(g.synthesis(ws), goal).mean().item()
    gentle, hard = (editor.change(codes, TEXTS, TARGETS, s) for s in (0.05, 0.95))
    assert away(hard) < away(codes) - 1e-3
    assert (gentle - codes).square().sum() < (hard - codes).square().sum()
    with pytest.raises(EditError, match="penalty must be one of mean, sum, norm, not 'l1'"):
        LatentOptimization(g, e, clip, "cpu", identity="none", penalty="l1")


def test_nan_in_a_search_returns_the_last_finite_code_and_says_so():
    def objective(code, step):
        loss = (code - 1).square().flatten(1).sum(1)
        return torch.cat([loss[:1], loss[1:] * (float("nan") if step > 5 else 1.0)])

    with pytest.warns(
        UserWarning,
        match=r"loss of image 1 \(step 6 of 20\), or its gradient, stopped being a number .*best finite code is",
    ):
        result = search(torch.zeros(2, 1, 4), objective, 20, 0.1)
    assert result.codes.isfinite().all() and result.losses.isfinite().all()
    alone = search(torch.zeros(1, 1, 4), lambda code, step: (code - 1).square().flatten(1).sum(1), 20, 0.1)
    assert torch.allclose(result.codes[0], alone.codes[0]), "the other image goes on as if alone"
    assert 0 < result.codes[1].mean() < result.codes[0].mean()


def test_a_gradient_that_is_no_number_is_said_too():
    objective = lambda code, step: (
        (code - code.detach()).square().flatten(1).sum(1).sqrt()
    )  # 0, with the gradient 0 / 0
    with pytest.warns(UserWarning, match=r"image 0 \(step 0 of 5\), or its gradient"):
        result = search(torch.ones(1, 1, 4), objective, 5, 0.1)
    assert torch.equal(result.codes, torch.ones(1, 1, 4))


def test_a_generators_own_image_is_found_again():
    g = generator()
    with torch.no_grad():
        goal = g.synthesis(g.mapping(torch.randn(2, 16))).clamp(-1, 1)
    error = lambda codes: (g.synthesis(codes) - goal).square().mean().item()
    spaces = {space: project(g, goal, space, 120, perceptual=0.0, noise=0.0) for space in ("w", "w+")}
    start = project(g, goal, "w", 0, perceptual=0.0)
    assert error(spaces["w"].codes) < 0.2 * error(start.codes) and error(spaces["w+"].codes) < 0.2 * error(start.codes)
    assert torch.equal(spaces["w"].codes[:, 0], spaces["w"].codes[:, -1])
    assert spaces["w"].history[-1] < spaces["w"].history[0]
    with pytest.raises(ValueError, match="space must be w or w"):
        project(g, goal, "z")
    with pytest.raises(ValueError, match=r"start must be W\+ codes \(2, 8, 16\); got \(2, 5, 16\)"):
        project(g, goal, start=torch.zeros(2, 5, 16))


def test_the_axes_of_w_whiten_it():
    g = generator()
    ws = sample_w(g, 4000, seed=1)
    axes = w_axes(g, 4000, seed=1)
    assert torch.allclose(axes.T @ axes, torch.cov(ws.T), atol=1e-3 * torch.cov(ws.T).abs().max().item())


def test_a_search_after_the_encoder_comes_nearer(images):
    g, e = generator(), encoder()
    error = lambda inverter: (inverter.decode(inverter(images)) - images).square().mean().item()
    assert error(Inverter(g, e, 10, device="cpu")) < error(Inverter(g, e, 0, device="cpu"))


def test_tag_means_are_differences_of_means(clip, images):
    codes = torch.randn(6, 8, 16, generator=torch.Generator().manual_seed(0))
    tags = [["red hair"], ["red hair", "smile"], ["smile"], [], [], []]
    means = tag_means(codes, tags)
    assert torch.allclose(means["smile"], codes[1:3].mean(0) - codes.mean(0), atol=1e-6)
    editor = TagMeans(means, generator=generator(), encoder=encoder(), device="cpu")
    moved = editor.change(codes[:1], ["red hair"], ["smile"], 0.5) - codes[:1]
    assert torch.allclose(moved[0], means["smile"] - means["red hair"], atol=1e-6)


def test_the_mapping_learns_the_gaussian_of_the_codes():
    g = Generator(**SMALL)
    random = torch.Generator().manual_seed(0)
    codes = torch.randn(4000, 16, generator=random) @ torch.randn(16, 16, generator=random) + 3
    assert fit_mapping(g, codes, steps=600) < 0.2
    with torch.no_grad():
        drawn = g.mapping(torch.randn(4000, 16, generator=random))[:, 0]
    assert (drawn.mean(0) - codes.mean(0)).norm() < 0.15 * codes.std(0).norm()
    assert torch.allclose(g.mapping.w_avg, codes.mean(0))


@pytest.mark.parametrize("preset", ["small", "paper"])
def test_a_mappers_presets_lower_its_loss(preset):
    "A learning rate that is right for other layers let the paper's preset diverge"
    config = config_for("mapper", preset, prompt="green hair").settled
    seed_everything(0)
    mapper, codes, goal = (
        Mapper(64, 10, hidden=64, layers=config.layers, scale=config.scale),
        torch.randn(64, 10, 64),
        torch.randn(1, 10, 64),
    )
    optimizer = build(config.optimizer, mapper, config.lr)["main"]
    losses = []
    for _ in range(300):
        losses.append((mapper(codes) - 0.1 * goal).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0] and max(losses) < 1.1 * losses[0]


def test_nothing_is_learned_of_a_direction_where_nothing_is_wished(clip):
    g = generator()
    mapper, codes, texts = random_mapper(g), torch.randn(4, 8, 16), F.normalize(torch.randn(4, 128), dim=-1)
    config = config_for(
        "mapper", "smoke", prompt="green hair", clip_loss="directional", l2_weight=0.0, identity_weight=0.0
    ).settled
    task = MapperTask(config, mapper.requires_grad_(True), g, clip, codes, texts, texts.clone())
    task.loss({"index": torch.arange(4)}, 0, "main")[0].backward()
    assert all(p.grad is None or not p.grad.any() for p in mapper.parameters())


def test_exact_edits_come_first_among_the_pairs(clip):
    g, texts = generator(), F.normalize(torch.randn(8, 128), dim=-1)
    codes = [torch.randn(8, 8, 16) for _ in range(2)]
    config = config_for("mapper", "smoke", exact_share=0.5).settled
    task = MapperTask(config, random_mapper(g, 128), g, clip, codes[0], texts, texts.flip(0), codes[1])
    rows = torch.tensor([5, 1, 2, 3])
    goal, partners = task.pairs(rows)
    assert torch.equal(goal[:2], texts.flip(0)[[5, 1]]) and torch.equal(partners[:2], codes[1][[5, 1]])
    near = [next(i for i in range(8) if torch.equal(codes[0][i], code)) for code in partners[2:]]
    assert torch.equal(goal[2:], texts[near]) and near[0] != 2 and near[1] != 3


def test_wishes_for_one_tag():
    cases = edits_to("green hair", 5, "test")
    assert len(cases) == 5 and all(edit.tag == "green hair" and edit.source != edit.target for edit in cases)
    assert edits_to("a cat", 5) == []


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(prompt="green hair", pair_weight=1.0), "pair_weight is for a mapper of many prompts"),
        (dict(clip_weight=0.0, pair_weight=0.0), "nothing to learn from"),
        (dict(clip_loss="local"), "must be one of global, directional, shifted"),
        (dict(exact_share=2.0), "exact_share is a share of the pairs of portraits, 0 to 1"),
        (
            dict(exact_share=0.5, data="data/cats"),
            "exact_share is a share of the pairs of portraits.*not 0.5 for the data",
        ),
    ],
)
def test_a_mappers_configuration_is_checked(given, message):
    with pytest.raises(ValueError, match=message):
        config_for("mapper", "small", **given)


# --- training ---


def run_stylegan(folder, steps=8, resume_from=None, **changes):
    config = config_for("stylegan2", "smoke", augment="ada", ada_target=0.0, ada_images=200, batch_size=4, **changes)
    models = build_models(config)
    task = StyleGAN2Task(config, models["generator"])
    task.held_out = torch.zeros(2, 3, 16, 16)
    pixels = np.random.default_rng(0).integers(0, 255, (16, 16, 16, 3), dtype=np.uint8)
    run = SimpleNamespace(path=folder, log=lambda *a, **k: None, figure=lambda *a, **k: None)
    loop = config.loop | dict(
        steps=steps, resume_from=resume_from, checkpoint_every=4, sample_every=0, log_every=8, device="cpu"
    )
    train(task, Batches({"image": pixels}, 4, 0), run, **loop, explode=0.0)
    return task


def test_a_resumed_gan_equals_an_uninterrupted_one_with_its_augmentation(tmp_path):
    whole = run_stylegan(tmp_path / "whole")
    p = float(whole.model["augment"].p)
    assert p > 0, "ADA has moved"
    resumed = run_stylegan(tmp_path / "again", resume_from=tmp_path / "whole" / "checkpoints" / "checkpoint-4")
    assert float(resumed.model["augment"].p) == p
    for a, b in ((whole.model, resumed.model), (whole.ema, resumed.ema)):
        b = b.state_dict()
        assert all(torch.equal(value, b[name]) for name, value in a.state_dict().items())


def test_a_truncated_checkpoint_of_a_gan_is_refused(tmp_path):
    run_stylegan(tmp_path / "whole")
    folder = tmp_path / "whole" / "checkpoints" / "checkpoint-8"
    for name in ("model.safetensors", "state.pt"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(CheckpointError, match=f"{name} is truncated.*Another checkpoint: .*checkpoint-4"):
            run_stylegan(tmp_path / "again", resume_from=folder)
        (folder / name).write_bytes(data)


def test_a_gan_ends_where_its_loss_is_no_number(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(TrainingDiverged):
            run_stylegan(tmp_path, lr=1e30)


def test_a_run_that_would_go_on_with_another_generator_is_refused(tmp_path, clip):
    pixels = {"row": list(range(8))}

    def run_mapper(g, folder, resume_from=None):
        task = MapperTask(
            config_for("mapper", "smoke").settled,
            random_mapper(g, 128).requires_grad_(True),
            g,
            clip,
            torch.randn(8, 8, 16),
            torch.randn(8, 128),
        )
        run = SimpleNamespace(path=folder, log=lambda *a, **k: None, figure=lambda *a, **k: None)
        loop = config_for("mapper", "smoke").loop | dict(
            steps=4, batch_size=4, lr=1e-3, resume_from=resume_from, checkpoint_every=2, log_every=8, device="cpu"
        )
        train(task, Batches(pixels, 4, 0), run, **loop)

    run_mapper(generator(), tmp_path / "whole")
    with pytest.raises(CheckpointError, match="belongs to another training: generator .* then, .* now"):
        run_mapper(generator(seed=9), tmp_path / "again", tmp_path / "whole" / "checkpoints" / "checkpoint-2")
