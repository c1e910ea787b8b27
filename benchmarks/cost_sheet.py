"""Cost of the `paper` preset from a dump to trained models: measured cost of one image times the paper's counts.

    python benchmarks/cost_sheet.py [--device cuda] [--price 0.1] [--posts 200000] [--images 600] [--batch 2]

Each stage of section 4.2 and 4.3 runs for a few images or steps, with random weights where the real ones need a
download (they cost the same), and its time for one image is multiplied: 2.9 million posts of metadata (all of
Danbooru2017, as every post is read to choose among them), 300 000 images, 246 803 steps of 24 images for the
autoencoder, 500 000 of 8 for the UNet. Training runs in mmgen's own loop; the batch measured is smaller than the
preset's where memory is, and a larger one is seldom slower per image. The autoencoder's perceptual loss is LPIPS with
random weights: the same VGG16. Money is hours times `--price`, dollars an hour of the whole machine: 0.1 is the order
of a rented server of two cores; for an H100 give 3.3.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import lpips
import numpy as np
import torch
from record import record
from torch import nn

from mmgen.base.images import pick_device
from mmgen.base.runs import Run
from mmgen.clip.model import TextEncoder, train_tokenizer
from mmgen.data.batches import Batches
from mmgen.jobs.registry import config_for
from mmgen.ldm.autoencoder import AutoencoderKL
from mmgen.ldm.autoencoder_train import AutoencoderTask
from mmgen.ldm.pipeline import make_process
from mmgen.ldm.precompute import encode_all
from mmgen.ldm.train import LDMTask, build_unet
from mmgen.training.loop import train

POSTS, IMAGES, TAGS = 2_900_000, 300_000, 37  # of Danbooru2017; of the paper; of an image, on average


class LPIPSWithoutWeights(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).eval().requires_grad_(False)

    def forward(self, x, y):
        return self.net(x, y).flatten()


def timed(function):
    start = time.perf_counter()
    result = function()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def seconds_per_image(task, columns, config, batch, device, warm=2, steps=4):
    "Of a training step in mmgen's loop, the median after the first steps."
    with tempfile.TemporaryDirectory() as folder, Run("cost", config, root=folder) as run:
        loop = config.loop | {
            "steps": warm + steps,
            "batch_size": batch,
            "log_every": 1,
            "checkpoint_every": 0,
            "sample_every": 0,
            "device": str(device),
        }
        train(task, Batches(columns, batch, 0), run, **loop)
        lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return 1 / float(np.median([line["images_per_second"] for line in lines[warm:]]))


def text_encoder(device):
    "The text tower of CLIP ViT-L/14, with a small vocabulary: a larger one costs nothing more."
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = train_tokenizer(["green hair, smile"], 520)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return TextEncoder(CLIPTextModel(config), tokenizer, device)


def autoencoder(args, device):
    "(stage, seconds an image, images, bytes an image that stay) of the autoencoder and the latents."
    rng, config = np.random.default_rng(0), config_for("autoencoder", "paper", perceptual="none", disc_start=0)
    task = AutoencoderTask(AutoencoderKL.from_config(config.model_config), **config.loss_config)
    task.perceptual, task.perceptual_weight = (
        LPIPSWithoutWeights(),
        config_for("autoencoder", "paper").perceptual_weight,
    )
    pixels = rng.integers(0, 255, (8 * args.batch, 256, 256, 3), dtype=np.uint8)
    step = seconds_per_image(task, {"image": pixels}, config, args.batch, device, 1, 3)
    yield "train the autoencoder", step, config.steps * config.batch_size, 0
    network = task.model.autoencoder.eval().requires_grad_(False)
    del task
    seconds, _ = timed(lambda: encode_all(network, pixels, device, args.batch))
    yield "latents", seconds / len(pixels), IMAGES, 4 * 32 * 32 * 2


def unet(args, device):
    "The same of the UNet."
    rng, config = np.random.default_rng(0), config_for("ldm", "paper")
    clip = text_encoder(device)
    process = make_process(
        config.prediction, config.noise_schedule, config.timesteps, config.beta_start, config.beta_end
    )
    task = LDMTask(
        build_unet(config, 4, clip.width, 32),
        clip,
        process,
        config.prediction,
        config.caption_dropout,
        config.optimizer,
    )
    columns = {"latents": rng.normal(size=(16, 4, 32, 32)).astype(np.float32), "caption": ["green hair, " * TAGS] * 16}
    yield (
        "train the UNet, captions read each time",
        seconds_per_image(task, columns, config, args.batch, device, 1, 3),
        config.steps * config.batch_size,
        0,
    )


def data(args):
    "The same of metadata and images, on the CPU: a synthetic dump, prepared."
    from mmgen.danbooru.images import inventory
    from mmgen.danbooru.posts import write_posts
    from mmgen.danbooru.shards import write_image_shards
    from mmgen.danbooru.subset import select
    from mmgen.danbooru.synthetic_dump import write_dump

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_dump(root / "many", args.posts, images=False)
        seconds, _ = timed(lambda: write_posts(root / "many", root / "table"))
        yield "metadata to Parquet", seconds / args.posts, POSTS, 0
        seconds, _ = timed(lambda: select(root / "table" / "posts", root / "table", min_tag_count=100))
        yield "choice of posts", seconds / args.posts, POSTS, 0
        write_dump(root / "few", 2 * args.images, originals=False)
        write_posts(root / "few", root / "few-table")
        files = inventory(root / "few")
        select(root / "few-table" / "posts", root / "few-table", files=files.files)
        seconds, counts = timed(
            lambda: write_image_shards(
                root / "few-table" / "selection.parquet", files, root / "few", root / "set", progress=False
            )
        )
        size = sum(f.stat().st_size for f in (root / "set").glob("*-*.parquet"))
        yield "images of 512 px to shards of 256", seconds / counts["images"], IMAGES, size / counts["images"]


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--device", default="cpu")
    p.add_argument("--price", type=float, default=0.1, help="dollars an hour of the whole machine")
    p.add_argument("--posts", type=int, default=200_000)
    p.add_argument("--images", type=int, default=600)
    p.add_argument("--batch", type=int, default=2)
    p.add_argument("--only", default="data,autoencoder,unet")
    args = p.parse_args()
    device, total = pick_device(args.device), 0.0
    parts = {
        "data": lambda: data(args),
        "autoencoder": lambda: autoencoder(args, device),
        "unet": lambda: unet(args, device),
    }
    for part in args.only.split(","):
        for stage, each, count, size in parts[part]():
            hours = each * count / 3600
            total += hours
            record(
                "cost_sheet",
                {
                    "stage": stage,
                    "milliseconds each": round(1000 * each, 4),
                    "count": count,
                    "hours": round(hours, 2),
                    "GB": round(size * count / 1e9, 2),
                    "dollars": round(hours * args.price, 2),
                    "dollars an hour": args.price,
                    "batch": args.batch,
                    "device": str(device),
                },
            )
    print(f"{total:,.0f} hours, {total * args.price:,.0f} dollars")


if __name__ == "__main__":
    main()
