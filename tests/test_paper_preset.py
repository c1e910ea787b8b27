"""The `paper` preset builds the networks of section 4.3 and trains them for two steps on random data."""
import numpy as np
import pytest

from mmgen.clip import CLIP, build_clip, train_tokenizer
from mmgen.data.loading import Batches
from mmgen.ldm.autoencoder import AutoencoderKL
from mmgen.ldm.autoencoder_loss import AutoencoderTask
from mmgen.ldm.pipeline import make_process
from mmgen.ldm.train import LDMTask
from mmgen.ldm.unet import UNet2DConditionModel
from mmgen.presets import config_for
from mmgen.runs import Run
from mmgen.training import train

pytestmark = pytest.mark.slow


def two_steps(task, columns, config, root):
    with Run("paper", config, root=root) as run:
        done = train(task, Batches(columns, 1, 0), run, steps=2, batch_size=1, lr=config.scaled_lr, seed=0, warmup=config.warmup,
                     ema_decay=0.0, grad_clip=config.grad_clip, log_every=1, device="cpu")
    return done.step


def test_autoencoder(tmp_path):
    config = config_for("autoencoder", "paper", perceptual="efficientnet")  # the preset's LPIPS needs a download
    model = AutoencoderKL.from_config(config.model_config)
    count = sum(p.numel() for p in model.parameters())
    print(f"autoencoder: {count:,} parameters, f = {model.factor}, latent {config.latent_channels}×32×32")
    assert count == 83_653_863 and model.factor == 8
    pixels = np.random.default_rng(0).integers(0, 255, (2, 256, 256, 3), dtype=np.uint8)
    assert two_steps(AutoencoderTask(model, **config.loss_config), {"image": pixels}, config, tmp_path) == 2


def test_unet(tmp_path):
    config = config_for("ldm", "paper")
    tokenizer = train_tokenizer(["green hair"], 520)
    clip = CLIP(build_clip(tokenizer, 32, 8, 32, 77, 768, 1, 12, 32, 1, 2), tokenizer, "cpu")  # ViT-L/14's text width
    unet = UNet2DConditionModel.from_config(config.unet_config(4, clip.width, 32)).enable_gradient_checkpointing()
    count = sum(p.numel() for p in unet.parameters())
    print(f"UNet: {count:,} parameters, latents 4×32×32, text states 77×768")
    assert count == 859_520_964
    process = make_process(config.prediction, config.noise_schedule, config.timesteps, config.beta_start, config.beta_end)
    task = LDMTask(unet, clip, process, config.prediction, config.caption_dropout, config.optimizer)
    columns = {"latents": np.random.default_rng(0).normal(size=(2, 4, 32, 32)).astype(np.float32), "caption": ["green hair", "smile"]}
    assert two_steps(task, columns, config, tmp_path) == 2
