"""The `paper` preset builds the networks of section 4.3 and CLIP ViT-L/14, and trains each for two random steps.

Slow, and the UNet needs 17 GB: `make test-slow`, or `pytest -m slow tests/test_paper_preset.py -s`, which prints the
parameter counts.
"""

import inspect
import json
import shutil

import numpy as np
import pytest
import torch

from mmgen.base.runs import Run
from mmgen.clip.model import CLIP, build_clip, train_tokenizer
from mmgen.clip.train import ClaimBatches, CLIPTask
from mmgen.data.batches import Batches
from mmgen.jobs.registry import config_for
from mmgen.ldm.autoencoder import AutoencoderKL
from mmgen.ldm.autoencoder_train import AutoencoderTask
from mmgen.ldm.pipeline import make_process
from mmgen.ldm.train import LDMTask, build_unet
from mmgen.ldm.unet_blocks import Level
from mmgen.metrics.oracle import Oracle, classes
from mmgen.metrics.oracle_train import OracleTask
from mmgen.stylegan.encoder import Encoder
from mmgen.stylegan.encoder_train import EncoderTask
from mmgen.stylegan.task import StyleGAN2Task
from mmgen.stylegan.train import build_models
from mmgen.training.loop import train

pytestmark = pytest.mark.slow


def two_steps(task, data, config, root, batch_size=1):
    "Trains as the preset says, but two steps of a small batch."
    settings = config.loop | {
        "steps": 2,
        "batch_size": batch_size,
        "log_every": 1,
        "checkpoint_every": 0,
        "sample_every": 0,
        "device": "cpu",
    }
    with Run("paper", config, root=root) as run:
        assert train(task, data, run, **settings).step == 2
    shutil.rmtree(run.path / "checkpoints")  # gigabytes
    lines = (run.path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2 and "NaN" not in "".join(lines)
    return run


def count(name, model, **what):
    number = sum(p.numel() for p in model.parameters())
    print(f"{name}: {number:,} parameters", *(f"{key} {value}" for key, value in what.items()), sep=", ")
    return number


def pixels(n, size):
    return np.random.default_rng(0).integers(0, 255, (n, size, size, 3), dtype=np.uint8)


def test_autoencoder(tmp_path):
    config = config_for(
        "autoencoder", "paper", perceptual="efficientnet", disc_start=0
    )  # LPIPS needs a download; the GAN from the first step
    task = AutoencoderTask(AutoencoderKL.from_config(config.model_config), **config.loss_config)
    assert (
        count("autoencoder", task.model.autoencoder, f=config.factor, latent=f"{config.latent_channels}×32×32")
        == 83_653_863
    )
    assert count("its discriminator", task.model.discriminator) == 2_765_633 and config.factor == 8
    run = two_steps(task, Batches({"image": pixels(2, 256)}, 1, 0), config, tmp_path)
    assert "hinge" in (run.path / "metrics.jsonl").read_text()


def test_unet(tmp_path):
    config = config_for("ldm", "paper")
    tokenizer = train_tokenizer(["green hair"], 520)
    clip = CLIP(build_clip(tokenizer, 32, 8, 32, 77, 768, 1, 12, 32, 1, 2), tokenizer, "cpu")  # ViT-L/14's text width
    unet = build_unet(config, 4, clip.width, 32)
    assert config.gradient_checkpointing and all(m.checkpointing for m in unet.modules() if isinstance(m, Level))
    assert count("UNet", unet, latents="4×32×32", text="77×768") == 859_520_964
    process = make_process(
        config.prediction, config.noise_schedule, config.timesteps, config.beta_start, config.beta_end
    )
    task = LDMTask(unet, clip, process, config.prediction, config.caption_dropout, config.optimizer)
    columns = {
        "latents": np.random.default_rng(0).normal(size=(2, 4, 32, 32)).astype(np.float32),
        "caption": ["green hair", "smile"],
    }
    two_steps(task, Batches(columns, 1, 0), config, tmp_path)


def test_clip(tmp_path):
    config = config_for("clip", "paper")
    shape = inspect.signature(build_clip).parameters.keys() - {"tokenizer"}
    tokenizer = train_tokenizer(["green hair", "smile"], 520)
    model = build_clip(tokenizer, **{name: getattr(config, name) for name in shape})
    model.text_model.embeddings.token_embedding = torch.nn.Embedding(
        config.vocabulary, config.text_width
    )  # ours has 520 words, ViT-L/14's 49 408
    assert count("CLIP", model) == 427_616_513
    assert (
        count("its text tower", model.text_model) == 123_060_480
        and count("its image tower", model.vision_model) == 303_179_776
    )
    data = ClaimBatches(pixels(2, config.size), [["green hair"], ["smile"]], tokenizer, 2, 0)
    two_steps(CLIPTask(model, optimizer=config.optimizer), data, config, tmp_path, 2)


def test_oracle(tmp_path):
    config = config_for("oracle", "paper")
    oracle = Oracle(classes(), config.width, config.size)
    assert count("oracle", oracle) > 1e7
    labels = torch.zeros(2, len(classes()), dtype=torch.long)
    two_steps(
        OracleTask(oracle, config.optimizer),
        Batches({"image": pixels(2, config.size), "labels": labels}, 2, 0),
        config,
        tmp_path,
        2,
    )


def test_stylegan2_and_its_encoder(tmp_path):
    config = config_for("stylegan2", "paper")
    task = StyleGAN2Task(config, build_models(config)["generator"])
    assert (
        count("generator", task.model["generator"], W=f"{task.model['generator'].num_ws}×{config.w_dim}") == 24_767_458
    )
    assert count("discriminator", task.model["discriminator"]) == 24_001_089
    run = two_steps(task, Batches({"image": pixels(4, 256)}, 2, 0), config, tmp_path, 2)
    assert {"r1", "path"} <= set(json.loads((run.path / "metrics.jsonl").read_text().splitlines()[0]))
    config = config_for("encoder", "paper", perceptual="efficientnet")  # LPIPS needs a download
    encoder = Encoder(config.size, 512, config.encoder_base, config.encoder_max)
    assert count("encoder", encoder) == 20_950_848
    two_steps(
        EncoderTask(config, encoder, task.model["generator"]),
        Batches({"image": pixels(4, 256)}, 2, 0),
        config,
        tmp_path,
        2,
    )
