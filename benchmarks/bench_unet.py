"""Training speed: mmgen's UNet in mmgen's loop against diffusers' UNet2DConditionModel + DDPMScheduler in a plain loop.

    python benchmarks/bench_unet.py [--channels 96,192 --attention 0,1] [--batch 64] [--blocks 4] [--threads 2]

Both have the network of the preset `small` with the same weights, and read the same batches of latents and captions'
states; AdamW, ε-prediction, in float32 and, where that is fast (there `small` uses it), under bfloat16 autocast. The
plain loop is add_noise, network, mse_loss, backward, step. Ours is `mmgen.training.loop.train` with `LDMTask`, so it
also drops captions, clips gradients, averages weights, watches the loss and follows the schedule. All take turns in
blocks within one run; a ratio is that of the median blocks of one precision. Both losses are compared first, so both
do the same work. The last row, Muon, is what `small` trains with; it is in no ratio. `processor` is the time of the
whole process on all cores: the number to read when the machine is shared.

Where the gain comes from. In bfloat16 (torch 2.15, AMD EPYC with AVX-512 BF16, two cores, batch 64): torch's gradient
of attention in bfloat16 took 56 of 164 ms a step, and 8 ms in float32; computed so, the step takes 111 ms. In
float32, found on one core, batch 32, a UNet of 96,192 channels with attention at both levels and captions of width
256, for the step alone:

* Linear layers. In diffusers' step 0.21 of 0.48 s are matrix products, which MKL runs at 75 to 100 GFLOP/s there,
  while oneDNN's convolutions reach 230. Expected 1.37 in all if they all ran as convolutions; measured 1.23 from this
  change. On an Intel processor MKL uses AVX-512 too, so expect less.
* One product for queries, keys and values; two for the halves of GEGLU: 1.01 to 1.04, within the noise.
* Fused AdamW: 1.01 (1.04 was expected).
* The plain memory layout, not channels_last: 1.04 to 1.10. The opposite was expected.
* No keys and values for tokens that are padding in the whole batch: 1.01 to 1.02 at 40 of 77 tokens.
"""

import argparse
import copy
import os
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

# five loops in one process: their compiled kernels must not push each other out of oneDNN's cache
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "8192")

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers import UNet2DConditionModel as Reference
from record import in_turns, record

from mmgen.base.images import fast_bf16, pick_device, seed_everything
from mmgen.clip.model import CLIP
from mmgen.data import portraits
from mmgen.data.batches import Batches
from mmgen.data.captions import caption
from mmgen.jobs.registry import config_for
from mmgen.ldm.diffusion import diffusion_loss, make_schedule
from mmgen.ldm.precompute import read_all
from mmgen.ldm.train import LDMTask, build_unet
from mmgen.training.loop import train


def parse():
    p = argparse.ArgumentParser()
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--blocks", type=int, default=4, help="timed blocks for each")
    p.add_argument("--steps", type=int, default=40, help="steps in a block")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--device", default="cpu")
    p.add_argument("--channels", default=None, help="of the UNet's levels instead of small's, for example 96,192")
    p.add_argument("--attention", default=None, help="levels with attention instead of small's, for example 0,1")
    return p.parse_args()


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    device, schedule = pick_device(args.device), make_schedule("scaled_linear", 1000, 0.00085, 0.012)
    scheduler = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    clip = CLIP.load("clip-portraits", args.device)
    states, lengths = read_all(clip, [caption(portraits.tags(portraits.sample(seed))) for seed in range(1000)])
    seed_everything(0)
    data = Batches(
        {"latents": torch.randn(1000, 32, 8, 8).numpy(), "states": states.numpy(), "length": lengths.numpy()},
        args.batch,
        0,
    )
    config = config_for("ldm", "small", unet_channels=args.channels, attention_levels=args.attention)
    theirs = Reference(**config.unet_config(32, clip.width, 8)).to(device)
    ours = build_unet(config, 32, clip.width, 8).to(device)
    ours.load_state_dict(theirs.state_dict())
    plain = torch.optim.AdamW(theirs.parameters(), 1e-4)
    precisions = ["no", "bf16"] if fast_bf16(device) else ["no"]
    state = {"step": 0}

    def draw():
        return torch.randint(0, 1000, (args.batch,), device=device), torch.randn(args.batch, 32, 8, 8, device=device)

    def their_loss(batch, t, noise):
        x0, context = batch["latents"], batch["states"].float()
        mask = torch.arange(context.shape[1], device=device)[None] < batch["length"][:, None]
        return F.mse_loss(
            theirs(scheduler.add_noise(x0, noise, t), t, context, encoder_attention_mask=mask).sample, noise
        )

    def plain_loop(precision):
        start = time.perf_counter()
        for _ in range(args.steps):
            batch = {k: v.to(device) for k, v in data.batch(state["step"]).items()}
            with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                loss = their_loss(batch, *draw())
            loss.backward()
            plain.step()
            plain.zero_grad()
            state["step"] += 1
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def our_loop(network, optimizer, precision):
        task = LDMTask(network, clip, schedule, "eps", 0.1, optimizer)
        with tempfile.TemporaryDirectory() as folder:
            run = SimpleNamespace(path=Path(folder), log=lambda step, **values: None)
            done = train(
                task,
                data,
                run,
                steps=args.steps,
                batch_size=args.batch,
                lr=1e-4,
                seed=0,
                schedule="constant",
                log_every=args.steps,
                mixed_precision=precision,
                device=args.device,
            )
        return done.seconds

    t, noise = draw()
    batch = {k: v.to(device) for k, v in data.batch(0).items()}
    batch["length"][:] = states.shape[1]  # no padding: diffusers' pooled text reads that too, ours does not
    context, mask = LDMTask(ours, clip, schedule, "eps", 0.0).context(batch)
    losses = (
        their_loss(batch, t, noise).item(),
        diffusion_loss(
            lambda x, s: ours(x, s, context, mask), batch["latents"], schedule, "eps", t=t, noise=noise
        ).item(),
    )
    assert abs(losses[0] - losses[1]) < 1e-5, losses

    copies = {name: copy.deepcopy(ours) for name in (*precisions, "muon")}
    loops = {}
    for precision in precisions:
        loops["diffusers", precision] = lambda precision=precision: plain_loop(precision)
        loops["mmgen", precision] = lambda precision=precision: our_loop(copies[precision], "adamw", precision)
    loops["mmgen, muon", precisions[-1]] = lambda: our_loop(copies["muon"], "muon", precisions[-1])
    rows = in_turns(loops, args.blocks, args.steps)
    median = {key: [statistics.median(column) for column in zip(*columns)] for key, columns in rows.items()}
    for (who, precision), (wall, processor) in median.items():
        record(
            "speed",
            {
                "what": "training step",
                "loop": who,
                "precision": {"no": "float32"}.get(precision, precision),
                "channels": config.unet_channels,
                "attention": config.attention_levels,
                "parameters": sum(p.numel() for p in ours.parameters()),
                "batch": args.batch,
                "blocks": args.blocks,
                "seconds per step": round(wall, 4),
                "processor seconds per step": round(processor, 4),
                "ratio to diffusers": round(median["diffusers", precision][0] / wall, 3),
                "ratio in each block": [
                    round(a[0] / b[0], 2) for a, b in zip(rows["diffusers", precision], rows[who, precision])
                ],
                **({"device": args.device} if device.type != "cpu" else {}),
            },
        )


if __name__ == "__main__":
    main()
