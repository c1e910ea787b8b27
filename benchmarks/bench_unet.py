"""Training step of mmgen's UNet and loop against diffusers' UNet2DConditionModel + DDPMScheduler in a plain loop.

    python benchmarks/bench_unet.py [--batch 64] [--blocks 6] [--threads 2]

Same config, weights, latents, captions' states, mask and noise; float32; the two take turns in blocks within one run, and
the ratio is that of the medians. Both losses are compared first, so both do the same work. `processor` is the time of
the whole process on all cores: the number to read when the machine is shared. `--padding 0` fills all tokens of the caption.

Where the gain comes from, found on one core of an AMD EPYC with AVX-512, torch 2.15, batch 32:

* Linear layers. In diffusers' step 0.21 of 0.48 s are matrix products, which MKL runs at 75 to 100 GFLOP/s there, while
  oneDNN's convolutions reach 230. Expected 1.37 in all if they all ran as convolutions; measured 1.23 from this change.
  On an Intel processor MKL uses AVX-512 too, so expect less.
* One product for queries, keys and values; two for the halves of GEGLU: 1.01 to 1.04, within the noise.
* Fused AdamW: 1.01 (1.04 was expected).
* The plain memory layout, not channels_last: 1.04 to 1.10. The opposite was expected.
* No keys and values for tokens that are padding in the whole batch: 1.01 to 1.02 at 40 of 77 tokens.
* bfloat16 autocast, not part of the comparison: 1.1 more.
"""
import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers import UNet2DConditionModel as Reference

from mmgen.ldm.diffusion import diffusion_loss, make_schedule
from mmgen.ldm.unet import UNet2DConditionModel


def parse():
    p = argparse.ArgumentParser()
    p.add_argument("--batch", type=int, default=64)
    p.add_argument("--blocks", type=int, default=6, help="timed blocks for each of the two")
    p.add_argument("--steps", type=int, default=2, help="steps in a block")
    p.add_argument("--threads", type=int, default=torch.get_num_threads())
    p.add_argument("--channels", type=int, nargs="+", default=[96, 192])
    p.add_argument("--latent", type=int, nargs=2, default=[16, 8], help="channels and side")
    p.add_argument("--tokens", type=int, default=77)
    p.add_argument("--padding", type=int, default=37, help="tokens that are padding in the longest caption")
    p.add_argument("--width", type=int, default=256, help="of the caption's states")
    p.add_argument("--device", default="cpu")
    return p.parse_args()


def main():
    args = parse()
    torch.set_num_threads(args.threads)
    n, device, (channels, side) = len(args.channels), args.device, args.latent
    config = dict(in_channels=channels, out_channels=channels, block_out_channels=args.channels, layers_per_block=1,
                  down_block_types=["CrossAttnDownBlock2D"] * n, up_block_types=["CrossAttnUpBlock2D"] * n,
                  cross_attention_dim=args.width, attention_head_dim=4)
    torch.manual_seed(0)
    theirs = Reference(sample_size=side, **config).to(device)
    ours = UNet2DConditionModel.from_config(config).to(device)
    ours.load_state_dict(theirs.state_dict())
    scheduler, schedule = DDPMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012), make_schedule()
    x0, context = torch.randn(args.batch, channels, side, side), torch.randn(args.batch, args.tokens, args.width)
    longest = args.tokens - args.padding
    lengths = torch.randint(longest // 2, longest + 1, (args.batch, 1)) if args.padding else torch.tensor([[args.tokens]])
    lengths[0] = longest
    mask = (torch.arange(args.tokens)[None] < lengths).long().expand(args.batch, -1)
    x0, context, mask = x0.to(device), context.to(device), mask.to(device)
    plain, fused = torch.optim.AdamW(theirs.parameters(), 1e-4), torch.optim.AdamW(ours.parameters(), 1e-4, fused=True)

    def draw(): # times and noise, new for every step
        return torch.randint(0, 1000, (args.batch,), device=device), torch.randn_like(x0)

    def diffusers_loss(t, noise):
        return F.mse_loss(theirs(scheduler.add_noise(x0, noise, t), t, context, encoder_attention_mask=mask).sample, noise)

    def mmgen_loss(t, noise):
        return diffusion_loss(lambda x, s: ours(x, s, context, mask), x0, schedule, t=t, noise=noise)

    def block(loss, optimiser):
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(args.steps):
            loss(*draw()).backward()
            optimiser.step()
            optimiser.zero_grad()
        if device != "cpu": torch.cuda.synchronize()
        return (time.perf_counter() - wall) / args.steps, (time.process_time() - cpu) / args.steps

    t, noise = draw()
    losses = diffusers_loss(t, noise).item(), mmgen_loss(t, noise).item()
    assert abs(losses[0] - losses[1]) < 1e-5, losses
    rows = dict(diffusers=[], mmgen=[])
    for i in range(args.blocks + 1): # the first round warms up
        for name, pair in (("diffusers", (diffusers_loss, plain)), ("mmgen", (mmgen_loss, fused))):
            seconds = block(*pair)
            if i: rows[name].append(seconds)
    median = {k: [statistics.median(c) for c in zip(*v)] for k, v in rows.items()}
    print(f"{sum(p.numel() for p in ours.parameters()):,} parameters, batch {args.batch}, latents {channels}x{side}x{side}, "
          f"{args.tokens} tokens ({args.padding} padding), {args.threads} threads, torch {torch.__version__}, {device}")
    for name, (wall, cpu) in median.items(): print(f"{name:10s} {wall:.3f} s/step ({args.batch / wall:.1f} images/s), processor {cpu:.3f} s")
    pairs = [a[0] / b[0] for a, b in zip(*rows.values())]
    print(f"ratio {median['diffusers'][0] / median['mmgen'][0]:.2f} wall (blocks {min(pairs):.2f} to {max(pairs):.2f}), "
          f"{median['diffusers'][1] / median['mmgen'][1]:.2f} processor")


if __name__ == "__main__": main()
