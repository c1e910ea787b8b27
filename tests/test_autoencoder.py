"Autoencoder room: parity with diffusers, phases, folding, loss and task."

import json
import math
import urllib.error
from pathlib import Path

import diffusers
import pytest
import torch
import torch.nn.functional as F
import warm
from PIL import Image
from safetensors.torch import save_file

from mmgen.backbones.perceptual import perceptual_distance
from mmgen.base.images import psnr, to_float
from mmgen.base.runs import load_run
from mmgen.base.schema import WeightsError
from mmgen.base.weights import save_weights
from mmgen.jobs.registry import config_for, parameters_cell
from mmgen.ldm.autoencoder import AutoencoderKL, Posterior, reconstruct
from mmgen.ldm.autoencoder_loss import adaptive_weight
from mmgen.ldm.autoencoder_train import AutoencoderTask, scaling_factor_of
from mmgen.ldm.blocks import Upsample2D
from mmgen.training.loop import train

CONFIGS = [
    dict(block_out_channels=(8,), norm_num_groups=4),
    dict(block_out_channels=(8, 16), norm_num_groups=8, layers_per_block=2, latent_channels=3),
    dict(block_out_channels=(16, 8, 24), norm_num_groups=4, latent_channels=16, use_quant_conv=False),
    dict(block_out_channels=(8, 8, 16), norm_num_groups=2, use_quant_conv=False, use_post_quant_conv=False),
    dict(block_out_channels=(32, 64), layers_per_block=2, mid_block_add_attention=False, in_channels=5, out_channels=2),
    dict(
        block_out_channels=(8, 8, 16),
        norm_num_groups=4,
        layers_per_block=2,  # attention in levels, as in kl-f16 and kl-f32
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
    ),
]


def theirs(config, seed):
    "diffusers' model with random weights of visible size, biases and norms included."
    torch.manual_seed(seed)
    levels = len(config["block_out_channels"])
    plain = dict(down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels)
    model = diffusers.AutoencoderKL(**plain | config).eval()
    for p in model.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
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
    with torch.no_grad():
        assert torch.allclose(model.decode(z), other.decode(z).sample, atol=1e-5)


def with_old_names(state):
    "A state dict as diffusers wrote it before May 2023."
    for now, before in {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}.items():
        state = {key.replace(f".{now}.", f".{before}."): value for key, value in state.items()}
    return state


@pytest.mark.parametrize("safe", [True, False])
def test_the_names_of_published_autoencoders(tmp_path, safe):
    torch.manual_seed(0)
    theirs = diffusers.AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        norm_num_groups=4,
    ).eval()
    theirs.save_pretrained(tmp_path, safe_serialization=safe)
    file = tmp_path / f"diffusion_pytorch_model.{'safetensors' if safe else 'bin'}"
    state = with_old_names(theirs.state_dict())
    assert "decoder.mid_block.attentions.0.query.weight" in state and len(state) == len(theirs.state_dict())
    save_file(state, file) if safe else torch.save(state, file)
    x = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.allclose(
            AutoencoderKL.load(tmp_path)(x)[0],
            diffusers.AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False)(x).sample,
            atol=1e-5,
        )


def test_phased_upsampling_equals_plain_with_gradients():
    torch.manual_seed(0)
    up, x = Upsample2D(8).double(), torch.randn(2, 8, 5, 3, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, 8, 10, 6, dtype=torch.float64)
    inputs = [x, up.conv.weight, up.conv.bias]
    phased, plain = up(x), up.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    assert torch.allclose(phased, plain, atol=1e-12)
    grads = [torch.autograd.grad(out, inputs, cotangent) for out in (phased, plain)]
    for a, b in zip(*grads):
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


@pytest.mark.parametrize(
    "bad, words",
    [
        (dict(block_out_channels=(8, 12), norm_num_groups=8), "norm_num_groups=8"),
        (dict(block_out_channels=(8,), norm_num_groups=8, patch_size=2), "needs 12"),
        (
            dict(block_out_channels=(8,), norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D",)),
            "down_block_types",
        ),
        (dict(block_out_channels=(8,), norm_num_groups=8, act_fn="relu"), "act_fn"),
        (dict(block_out_channel=(8,)), "block_out_channel"),
    ],
)
def test_wrong_config_is_named(bad, words):
    with pytest.raises(ValueError, match=words):
        AutoencoderKL.from_config(bad)


def test_wrong_image_size_is_named():
    with pytest.raises(ValueError, match="multiples of 2, not 7×8"):
        AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4).encode(torch.zeros(1, 3, 7, 8))


def tiny_task(**options):
    "Task on a 4-channel toy autoencoder; 8 images of 16 px."
    torch.manual_seed(0)
    model = AutoencoderKL(block_out_channels=(8, 16), norm_num_groups=4)
    defaults = dict(perceptual="none", disc_features=8, disc_layers=2, disc_start=2)
    task = AutoencoderTask(model, **defaults | options)
    batch = {"image": torch.randint(0, 256, (8, 16, 16, 3), dtype=torch.uint8)}
    return task, batch


def test_pairs_count_twice_and_add_the_lost_edits():
    task, batch = tiny_task(disc_weight=0.0, edit_weight=0.3, reduction="mean")
    other = tiny_task(disc_weight=0.0, reduction="mean")[0]
    batch["changed"] = batch["image"].clone()
    batch["changed"][1:, 3:6, 3:6] = 255 - batch["changed"][1:, 3:6, 3:6]
    x = task.images(batch)
    assert x.shape == (16, 3, 16, 16) and torch.equal(x[:8], task.images({"image": batch["image"]}))
    seeded = lambda t: (torch.manual_seed(1), t.loss(batch, 0))[1]
    (with_term, parts), (without, _) = seeded(task), seeded(other)
    torch.manual_seed(1)
    y = task.model.autoencoder(x, sample=True)[0]
    lost = [
        (1 - ((y[8 + i] - y[i]) * (x[8 + i] - x[i])).sum() / (x[8 + i] - x[i]).square().sum()) ** 2 for i in range(1, 8)
    ]
    assert parts["lost_edits"].item() == pytest.approx(sum(lost).item() / 7, rel=0.02)  # the first pair shows no change
    assert (with_term - without).item() == pytest.approx(0.3 * parts["lost_edits"].item(), rel=1e-4)


def test_edit_weight_needs_edits_that_can_be_drawn(tmp_path, monkeypatch):
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    folder = tmp_path / "mine"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (64, 64), (i, 0, 0)).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text("red, square")
    notebook = Path(__file__).resolve().parent.parent / "nbs" / "train_autoencoder.ipynb"
    parameters = ("-r", "preset", "smoke", "-p", "edit_weight", "0.1", "-r", "data", folder)
    done = warm.run("papermill", notebook, tmp_path / "out.ipynb", "--no-progress-bar", *parameters)
    assert done.returncode == 1 and "edit_weight needs data 'portraits'" in done.stderr


def gradients(module):
    return [p.grad for p in module.parameters()]


def test_reconstruction_and_kl_sum_to_the_written_formula():
    task, batch = tiny_task(disc_weight=0.0, kl_weight=0.01, l2_weight=0.3, logvar_init=0.7)
    x = to_float(batch["image"])
    torch.manual_seed(5)
    loss, parts = task.loss(batch, 0)
    torch.manual_seed(5)
    posterior = task.model.autoencoder.encode(x)
    y = task.model.autoencoder.decode(posterior.sample())
    error = (x - y).abs() + 0.3 * (x - y) ** 2
    want = (error / math.exp(0.7) + 0.7).sum() / 8 + 0.01 * posterior.kl().sum() / 8
    assert torch.allclose(loss, want, rtol=1e-5)
    assert parts["psnr"].item() == pytest.approx(psnr(x, y).mean().item(), rel=1e-5)


def test_mean_reduction_is_the_sum_divided_by_values():
    losses = []
    for reduction in ("sum", "mean"):
        task, batch = tiny_task(reduction=reduction)
        torch.manual_seed(1)
        losses.append(task.loss(batch, 5)[0])
    assert torch.allclose(losses[0] / (3 * 16 * 16), losses[1], rtol=1e-4)


def test_discriminator_waits_for_its_start():
    task, batch = tiny_task(disc_start=2)
    before = task.loss(batch, 1)[1]
    assert task.loss(batch, 1, "discriminator") == (None, {}) and "adversarial" not in before
    after = task.loss(batch, 2)[1]
    loss, parts = task.loss(batch, 2, "discriminator")
    assert 0 < after["weight"] <= 1e4
    assert loss.item() == pytest.approx(parts["hinge"].item()) and loss > 0


def test_each_loss_reaches_only_its_own_network():
    task, batch = tiny_task()
    task.loss(batch, 2)[0].backward()
    assert all(g is not None for g in gradients(task.model.autoencoder))
    assert all(g is None for g in gradients(task.model.discriminator))
    task.model.zero_grad(set_to_none=True)
    task.loss(batch, 2, "discriminator")[0].backward()
    assert all(g is None for g in gradients(task.model.autoencoder))
    assert all(g is not None for g in gradients(task.model.discriminator))


def test_adversarial_gradient_has_half_the_norm_at_the_last_layer():
    "With disc_weight 0.5 the adversarial gradient at conv_out is half as long as the reconstruction's."
    task, batch = tiny_task(kl_weight=0.0)
    weight = task.model.autoencoder.decoder.conv_out.weight
    grads = []
    for step in (0, 2):
        torch.manual_seed(1)
        grads.append(torch.autograd.grad(task.loss(batch, step)[0], weight)[0])
    ratio = (grads[1] - grads[0]).norm() / grads[0].norm()
    assert ratio.item() == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("kind", ["fixed", "learned"])
def test_logvar_switch(kind):
    task, batch = tiny_task(logvar=kind)
    optimizer = task.optimizers(lr=0.01)["autoencoder"]
    task.loss(batch, 0)[0].backward()
    optimizer.step()
    assert (task.model.logvar.item() != 0) == (kind == "learned")


@pytest.mark.parametrize(
    "kind, cls, betas", [("adam", torch.optim.Adam, (0.5, 0.9)), ("adamw", torch.optim.AdamW, (0.9, 0.99))]
)
def test_optimizers_cover_each_network_once(kind, cls, betas):
    task, _ = tiny_task(optimizer=kind)
    optimizers = task.optimizers(lr=1e-3, weight_decay=0.1)
    assert list(optimizers) == ["autoencoder", "discriminator"]
    for name, optimizer in optimizers.items():
        assert type(optimizer) is cls and optimizer.defaults["betas"] == betas
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in getattr(task.model, name).parameters()}
    assert list(tiny_task(disc_weight=0.0)[0].optimizers(1e-3)) == ["autoencoder"]
    assert task.ema_modules() is task.model.autoencoder


def test_discriminator_without_cached_reconstruction():
    "After a resume the discriminator's turn may come with a batch that it has not seen."
    task, batch = tiny_task()
    task.loss(batch, 2)
    other = {"image": batch["image"].flip(0)}
    torch.manual_seed(2)
    got = task.loss(other, 3, "discriminator")[1]
    fresh = tiny_task()[0]
    torch.manual_seed(2)
    fresh.model.load_state_dict(task.model.state_dict())
    want = fresh.loss(other, 3, "discriminator")[1]
    assert got["hinge"].item() == pytest.approx(want["hinge"].item(), rel=1e-4)


def test_adaptive_weight_known_answers():
    w = torch.ones(4, requires_grad=True)
    assert adaptive_weight(6 * w.sum(), 3 * w.sum(), w).item() == pytest.approx(12 / 6.0001)
    assert adaptive_weight(0 * w.sum(), 3 * w.sum(), w).item() == 0
    assert adaptive_weight(6 * w.sum(), 0 * w.sum(), w).item() == 1e4


def test_efficientnet_distance():
    distance = perceptual_distance("efficientnet")
    torch.manual_seed(0)
    x = F.interpolate(torch.rand(2, 3, 8, 8) * 2 - 1, size=64)
    noise = torch.randn_like(x)
    d = [distance(x, x + s * noise) for s in (0.0, 0.05, 0.2)]
    assert d[0].abs().max() < 1e-6 and (d[1] > 0).all() and (d[2] > d[1]).all() and (d[2] < 4).all()
    y = (x + 0.05 * noise).requires_grad_()
    distance.train()(x, y).sum().backward()
    assert y.grad.abs().sum() > 0 and all(p.grad is None for p in distance.parameters())
    task, batch = tiny_task(perceptual="efficientnet")
    assert not any("perceptual" in key for key in task.model.state_dict())
    assert task.loss(batch, 0)[1]["perceptual"] > 0


def test_lpips_out_of_reach_is_one_clear_sentence(monkeypatch):
    def refuse(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchvision.models.vgg.WeightsEnum.get_state_dict", refuse, raising=False)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    with pytest.raises(RuntimeError, match="VGG16 weights.*efficientnet"):
        perceptual_distance("lpips")


def test_lpips_measures_and_is_not_trained(monkeypatch):
    "With random weights in VGG16, whose own may not be downloadable; the per-channel weights are those of lpips."
    from torchvision.models import vgg16

    torch.manual_seed(0)
    monkeypatch.setattr(
        "torchvision.models.vgg.WeightsEnum.get_state_dict", lambda *args, **kwargs: vgg16().state_dict()
    )
    distance = perceptual_distance("lpips")
    x = torch.rand(2, 3, 32, 32) * 2 - 1
    y = (x + 0.3 * torch.randn_like(x)).requires_grad_()
    d = distance(x, y)
    assert d.shape == (2,) and (d > 0).all() and distance(x, x).abs().max() < 1e-6
    d.sum().backward()
    assert y.grad.abs().sum() > 0 and all(p.grad is None and not p.requires_grad for p in distance.parameters())


def test_unknown_switches_are_named():
    with pytest.raises(ValueError, match="perceptual must be one of lpips, efficientnet, none, not 'vgg'"):
        perceptual_distance("vgg")
    for option in (dict(logvar="free"), dict(optimizer="sgd"), dict(reduction="max")):
        with pytest.raises(ValueError, match=f"{next(iter(option))} must be"):
            tiny_task(**option)


def test_reconstruct():
    task, batch = tiny_task()
    model = task.model.autoencoder
    out = reconstruct(model, batch["image"], batch_size=3)
    with torch.no_grad():
        want = model(to_float(batch["image"]))[0].clamp(-1, 1)
    assert out.shape == (8, 3, 16, 16) and torch.allclose(out, want, atol=1e-5)


class Record:
    "The part of mmgen.base.runs.Run that the loop uses."

    def __init__(self, path):
        self.path, self.rows, self.figures = path, [], []

    def log(self, step, **values):
        self.rows.append(values)

    def figure(self, name, picture):
        self.figures.append((name, picture.shape))


class Rows:
    "Eight images; batches of four, a function of the step."

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def batch(self, step):
        return {"image": self.images[(torch.arange(4) + 4 * step) % 8]}


def test_trains_in_the_loop_and_resumes_exactly(tmp_path):
    options = dict(batch_size=4, lr=1e-3, seed=3, log_every=1, checkpoint_every=3, device="cpu")
    ends = []
    for name in ("whole", "parts"):
        run = Record(tmp_path / name)
        for steps in (5,) if name == "whole" else (3, 5):
            task, batch = tiny_task(reduction="mean", disc_start=2, samples=torch.zeros(2, 3, 16, 16))
            resume = run.path if run.rows else None
            rows = Rows(batch["image"])
            result = train(task, rows, run, steps=steps, sample_every=5, resume_from=resume, **options)
        ends.append(task.model.state_dict() | {f"ema.{k}": v for k, v in result.ema.state_dict().items()})
    assert "hinge" not in run.rows[1] and "hinge" in run.rows[2]
    assert run.figures[-1][0] == "sample-5" and result.step == 5
    for key, value in ends[0].items():
        assert torch.equal(value, ends[1][key]), key


@pytest.mark.parametrize("preset", ["smoke", "small", "gpu"])
def test_task_from_a_preset(preset):
    config = config_for("autoencoder", preset, perceptual="none", learn_logvar=True, l2_weight=0.25)
    task = AutoencoderTask(AutoencoderKL.from_config(config.model_config), **config.loss_config)
    assert task.model.autoencoder.factor == config.factor and task.l2_weight == 0.25
    assert task.model.logvar.requires_grad and task.perceptual is None and task.reduction == config.reduction
    assert (task.model.discriminator is not None) == (config.adversarial_weight > 0)


def test_paper_preset_is_the_released_size():
    "autoencoder_kl_32x32x4 has 83.65 M parameters (as stabilityai/sd-vae-ft-mse has)."
    config = config_for("autoencoder", "paper").model_config
    with torch.device("meta"):
        model = AutoencoderKL.from_config(config)
    assert sum(p.numel() for p in model.parameters()) == 83_653_863


def test_scaling_factor():
    task, batch = tiny_task()
    model = task.model.autoencoder
    z = torch.cat([model.encode(to_float(batch["image"])).sample() for _ in range(20)])
    assert scaling_factor_of(model, batch["image"], batch_size=3) == pytest.approx(1 / z.std().item(), rel=0.05)


def test_muon_changes_the_autoencoder_and_leaves_a_fixed_logvar():
    task, batch = tiny_task(optimizer="muon", disc_start=0)
    before = {k: v.clone() for k, v in task.model.named_parameters()}
    for name, optimizer in task.optimizers(lr=1e-3).items():
        task.loss(batch, 0, name)[0].backward()
        optimizer.step()
    changed = {k for k, v in task.model.named_parameters() if not torch.equal(v, before[k])}
    assert "logvar" not in changed
    assert not {k for k in before.keys() - changed if k.startswith("autoencoder.")}


def test_load_gives_the_saved_model_and_refuses_another(tmp_path):
    torch.manual_seed(0)
    model = AutoencoderKL(12, 12, block_out_channels=(8, 16), norm_num_groups=4, patch_size=2)
    config = model.config | {"scaling_factor": 0.7}
    save_weights(tmp_path / "a", model.state_dict(), config, "# card", half=False)
    same, x = AutoencoderKL.load(tmp_path / "a"), torch.randn(1, 3, 16, 16)
    assert same.config == config and not same.training
    assert torch.equal(same(x)[0], model(x)[0].detach())
    save_weights(tmp_path / "b", model.state_dict(), model.config | {"latent_channels": 8}, "# card")
    with pytest.raises(WeightsError, match="another architecture"):
        AutoencoderKL.load(tmp_path / "b")
    with pytest.raises(WeightsError, match="config.json"):
        AutoencoderKL.load(tmp_path)


def test_notebook_smoke(tmp_path, monkeypatch):
    "train_autoencoder through papermill: weights that load, a complete record, both pictures."
    monkeypatch.setenv("MMGEN_ROOT", str(tmp_path))
    notebook = Path(__file__).resolve().parent.parent / "nbs" / "train_autoencoder.ipynb"
    parameters = ("-r", "preset", "smoke", "-r", "run_id", "ae", "-p", "edit_weight", "0.1")
    done = warm.run("papermill", notebook, tmp_path / "out.ipynb", "--no-progress-bar", *parameters)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "reports" / "runs" / "ae"
    record = load_run(folder)
    assert record["status"] == "completed" and [m["name"] for m in record["metrics"]] == ["PSNR", "edit gain"]
    assert record["metrics"][0]["n"] == 8
    assert load_run(folder / "autoencoder" / "run.json")["status"] == "completed"
    assert AutoencoderKL.load(folder / "autoencoder").factor == 8
    assert (folder / "autoencoder" / "README.md").is_file() and (folder / "reconstructions.jpg").is_file()


def test_notebook_parameters_are_the_configs():
    path = Path(__file__).resolve().parent.parent / "nbs" / "train_autoencoder.ipynb"
    cells = [c for c in json.loads(path.read_text())["cells"] if "parameters" in c["metadata"].get("tags", [])]
    assert len(cells) == 1 and "".join(cells[0]["source"]).strip() == parameters_cell("autoencoder").strip()
