"""What the `paper` preset costs from a dump to a trained model: measured costs of one image, times the paper's counts.

    python benchmarks/cost_sheet.py [--device cuda] [--price 0.1] [--posts 100000] [--images 400] [--batch 2]

Each stage of section 4.3 runs for a few images or steps, with random weights where the real ones need a download (they cost the same), and its
time per image is multiplied: 300 000 images; 246 803 steps of 24 for the autoencoder, 500 000 of 8 for the UNet. The batch measured is smaller
where the memory is; a larger one is seldom slower per image. Money is hours times `--price`, dollars an hour of the whole machine: 0.1 is a
small server of two cores, 3.3 a rented H100. The metadata's cost is measured on `--posts` synthetic posts and counted for the 2.9 million of
Danbooru2017, as every post is read to choose among them.
"""
import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import lpips
import numpy as np
import torch
from record import record
from torch import nn

from mmgen.clip import CLIP, build_clip, train_tokenizer
from mmgen.core import pick_device
from mmgen.data.loading import Batches
from mmgen.ldm.autoencoder import AutoencoderKL
from mmgen.ldm.autoencoder_training import AutoencoderTask
from mmgen.ldm.pipeline import make_process
from mmgen.ldm.train import LDMTask, build_unet, encode_all
from mmgen.presets import config_for
from mmgen.runs import Run
from mmgen.training import train

POSTS, CAPTION = 2_900_000, "1girl, green hair, smile, " * 12  # of Danbooru2017; about 77 tokens


class LPIPSWithoutWeights(nn.Module):
    "LPIPS with VGG16, random: the same work as the trained one, which is a download."
    def __init__(self):
        super().__init__()
        self.net = lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).eval().requires_grad_(False)

    def forward(self, x, y): return self.net(x, y).flatten()


def clock(device, function):
    start = time.perf_counter()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, result


def per_image(task, columns, config, batch, device, warm=2, steps=4):
    "Seconds of a training step in mmgen's loop, per image, after the first steps."
    with tempfile.TemporaryDirectory() as folder, Run("cost", config, root=folder) as run:
        loop = config.loop | {"steps": warm + steps, "batch_size": batch, "log_every": 1, "checkpoint_every": 10**9, "sample_every": 0, "device": str(device)}
        task.optimizers_made = train(task, Batches(columns, batch, 0), run, **loop)
        lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return batch / float(np.median([line["images_per_second"] for line in lines[warm:]])) / batch


if __name__ == "__main__":
    pass
