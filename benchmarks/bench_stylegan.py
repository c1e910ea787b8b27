"""Training speed of StyleGAN2: mmgen's loop against a plain one with the same networks, losses and regularisers.

    python benchmarks/bench_stylegan.py [--batch 16] [--blocks 3] [--steps 16] [--threads 2]

Both follow the preset `small`: non-saturating loss, R1 every 16 steps and path length every 4, Adam, the running
average. The plain loop makes the weights of each image and convolves in groups, as published implementations do;
keeps the default memory layout; uses torch's default Adam, and generates the images for D again. Ours scales the
input by the style and the output by the demodulation, so that all images share one convolution; channels_last; fused
Adam; and, where that is fast, bfloat16. The images of both generators are compared first. All take turns in blocks
within one run; a ratio is that of the median blocks. `processor` is the time of the whole process on all cores: the
number to read when the machine is shared.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault(
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192"
)  # loops of one process must not push each other's kernels out

import torch
import torch.nn.functional as F
from record import in_turns, record

import mmgen.stylegan.generator as rooms
from mmgen.base.images import fast_bf16, seed_everything, to_float
from mmgen.data.batches import Batches
from mmgen.stylegan.config import StyleGAN2Config
from mmgen.stylegan.discriminator import Discriminator
from mmgen.stylegan.layers import blur
from mmgen.stylegan.losses import discriminator_loss, generator_loss, path_lengths, path_penalty, r1_penalty
from mmgen.stylegan.task import StyleGAN2Task
from mmgen.stylegan.train import build_models
from mmgen.training.loop import train

OURS = rooms.modulated_conv2d


def grouped(x, weight, style, demodulate=True, up=None):
    "Karras et al. 2020, eq. 1 and 3, as a convolution in groups: the weights of each image"
    n, (outs, ins, k, _) = len(x), weight.shape
    w = weight[None] * style[:, None, :, None, None]
    if demodulate:
        w = w * (w.square().sum((2, 3, 4), keepdim=True) + 1e-8).rsqrt()
    x = x.reshape(1, n * ins, *x.shape[2:])
    if up is None:
        return F.conv2d(x, w.reshape(n * outs, ins, k, k), padding=k // 2, groups=n).unflatten(1, (n, outs))[0]
    y = F.conv_transpose2d(x, w.transpose(1, 2).reshape(n * ins, outs, k, k), stride=2, groups=n).unflatten(
        1, (n, outs)
    )[0]
    return blur(y, up, 1, gain=4.0)


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("--batch", type=int, default=16)
    ask.add_argument("--blocks", type=int, default=3)
    ask.add_argument("--steps", type=int, default=16, help="steps in a block, a multiple of 16")
    ask.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = ask.parse_args()
    torch.set_num_threads(given.threads)
    config = StyleGAN2Config(batch_size=given.batch)
    seed_everything(0)
    data = Batches(
        {"image": torch.randint(0, 256, (512, config.size, config.size, 3), dtype=torch.uint8).numpy()}, given.batch, 0
    )
    start = build_models(config)["generator"]
    z = torch.randn(4, config.z_dim)
    with torch.no_grad():
        a = start(z, noise="const")
        rooms.modulated_conv2d = grouped
        b = start(z, noise="const")
    assert torch.allclose(a, b, atol=1e-4), (a - b).abs().max()

    g, d = copy.deepcopy(start), Discriminator(config.size, config.channel_base, config.channel_max)
    average, mean = copy.deepcopy(g), torch.zeros([])
    adam_g, adam_d = (torch.optim.Adam(m.parameters(), config.lr, betas=(0.0, 0.99)) for m in (g, d))
    state = {"step": 0}

    def codes(n):
        ws, other = g.mapping(torch.randn(n, config.z_dim)), g.mapping(torch.randn(n, config.z_dim))
        g.mapping.track(ws)
        cut = int(torch.randint(1, g.num_ws, [])) if torch.rand([]) < config.style_mixing else g.num_ws
        return torch.cat([ws[:, :cut], other[:, cut:]], 1)

    def plain_loop():
        rooms.modulated_conv2d = grouped
        began = time.perf_counter()
        for _ in range(given.steps):
            step = state["step"]
            real = to_float(data.batch(step)["image"]).contiguous()
            d.requires_grad_(False)
            loss = generator_loss(d(g.synthesis(codes(given.batch), "random")))
            if step % config.path_every == 0:
                ws = codes(given.batch // 2)
                loss = loss + config.path_weight * config.path_every * path_penalty(
                    path_lengths(g.synthesis(ws, "random"), ws), mean
                )
            loss.backward()
            adam_g.step()
            adam_g.zero_grad()
            d.requires_grad_(True)
            with torch.no_grad():
                fake = g.synthesis(codes(given.batch), "random")
            loss = discriminator_loss(d(real), d(fake))
            if step % config.r1_every == 0:
                real.requires_grad_(True)
                loss = loss + config.r1_gamma / 2 * config.r1_every * r1_penalty(d(real), real).mean()
            loss.backward()
            adam_d.step()
            adam_d.zero_grad()
            with torch.no_grad():
                for p, q in zip(average.parameters(), g.parameters()):
                    p.lerp_(q, 1 - config.ema_decay)
            state["step"] += 1
        return time.perf_counter() - began

    def our_loop(network, precision):
        rooms.modulated_conv2d = OURS
        task = StyleGAN2Task(config, network)
        with tempfile.TemporaryDirectory() as folder:
            run = SimpleNamespace(path=Path(folder), log=lambda step, **values: None)
            options = config.loop | {
                "steps": given.steps,
                "max_seconds": None,
                "mixed_precision": precision,
                "sample_every": 0,
                "checkpoint_every": 0,
                "log_every": given.steps,
            }
            return train(task, data, run, **options, explode=0.0).seconds

    precisions = ["no", "bf16"] if fast_bf16(torch.device("cpu")) else ["no"]
    loops = {("plain", "no"): plain_loop} | {
        ("mmgen", p): lambda p=p, m=copy.deepcopy(start): our_loop(m, p) for p in precisions
    }
    rows = in_turns(loops, given.blocks, given.steps)
    median = {key: [statistics.median(column) for column in zip(*columns)] for key, columns in rows.items()}
    for (who, precision), (wall, processor) in median.items():
        record(
            "speed",
            {
                "what": "StyleGAN2 training step",
                "loop": who,
                "precision": {"no": "float32"}.get(precision, precision),
                "size": config.size,
                "batch": given.batch,
                "blocks": given.blocks,
                "images per second": round(given.batch / wall, 1),
                "seconds per step": round(wall, 4),
                "processor seconds per step": round(processor, 4),
                "ratio to plain": round(median["plain", "no"][0] / wall, 3),
                "ratio in each block": [
                    round(a[0] / b[0], 2) for a, b in zip(rows["plain", "no"], rows[who, precision])
                ],
            },
        )


if __name__ == "__main__":
    main()
