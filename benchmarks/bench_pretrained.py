"""Stable Diffusion 1.x at full size, mmgen's networks against diffusers'; and the waiting time for the first edit.

    python benchmarks/bench_pretrained.py [--parts unet,vae,edit,demo] [--blocks 3] [--threads 2]

UNet (860 million numbers) and autoencoder (84 million) have random weights, the same in both; only speed, memory and
equality are read here. Names and shapes are compared key for key, then outputs, in float32, at batch 1: the UNet on
latents of 64 x 64 with 77 tokens, the autoencoder on 512 pixels, there and back. Both take turns in blocks in one
process, sharing their weights. Memory is the peak of a process of its own for each, which opens the network, runs it
once and holds nothing else; what the process had before is subtracted.

`edit` is `mmgen edit` in a new process, from the shell's start to its end, for each family's default; `demo` is a new
process that builds the page and then makes its first edit, which runs both families. The machine's file cache is
warm. `processor` is the time on all cores, the number to read when the machine is shared: two threads that wait for
each other stretch the seconds there.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = Path(__file__).resolve()
CONFIGS = {
    "unet": dict(
        sample_size=64,
        in_channels=4,
        out_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    ),
    "vae": dict(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        norm_num_groups=32,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    ),
}


def classes(part, who):
    "The class of a network; the other library is not even imported where memory is measured."
    if who == "diffusers":
        from diffusers import AutoencoderKL, UNet2DConditionModel
    else:
        from mmgen.ldm.autoencoder import AutoencoderKL
        from mmgen.ldm.unet import UNet2DConditionModel
    return UNet2DConditionModel if part == "unet" else AutoencoderKL


def build(part, who):
    import torch

    torch.manual_seed(0)
    return classes(part, who)(**CONFIGS[part]).eval().requires_grad_(False)


def step(part, who, network):
    "One call of the network, as an edit makes it: (output of the UNet) or (latents' mean, image)."
    import torch

    random = torch.Generator().manual_seed(1)
    draw = lambda *shape: torch.randn(shape, generator=random)
    with torch.no_grad():
        if part == "unet":
            out = network(draw(1, 4, 64, 64), torch.tensor([500]), draw(1, 77, 768))
            return [out.sample if who == "diffusers" else out]
        x = torch.rand((1, 3, 512, 512), generator=random) * 2 - 1
        if who == "diffusers":
            z = network.encode(x).latent_dist.mean
            return [z, network.decode(z).sample]
        z = network.encode(x).mode()
        return [z, network.decode(z)]


def memory(part, who):
    "Peak MiB above what the process had before the network; printed."
    import torch

    classes(part, who)
    torch.set_num_threads(int(os.environ["THREADS"]))
    torch.randn(8, 8) @ torch.randn(8, 8)
    state = lambda key: (
        int(
            next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key)).split()[1]
        )
        / 2**10
    )
    before = state("VmRSS")  # not getrusage, whose peak a process inherits from the one that started it
    opened = build(part, who)
    held = state("VmRSS") - before
    step(part, who, opened)
    print(json.dumps({"held": round(held), "peak": round(state("VmHWM") - before)}))


def child(*arguments, threads=2):
    "What this program says when it runs as a new process."
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *arguments],
        env=os.environ | {"THREADS": str(threads), "OMP_NUM_THREADS": str(threads)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def network(part, args, record):
    ours, theirs = build(part, "mmgen"), build(part, "diffusers")
    a, b = ({k: tuple(v.shape) for k, v in one.state_dict().items()} for one in (ours, theirs))
    assert a == b, sorted(a.items() ^ b.items())[:6]
    theirs.load_state_dict(ours.state_dict(), assign=True)
    both, results = {"mmgen": ours, "diffusers": theirs}, {}
    seconds, processor = ({who: [] for who in both} for _ in range(2))
    for block in range(args.blocks + 1):  # the first warms up
        for who in (both, dict(reversed(both.items())))[block % 2]:
            start, before = time.perf_counter(), time.process_time()
            results[who] = step(part, who, both[who])
            if block:
                seconds[who].append(time.perf_counter() - start), processor[who].append(time.process_time() - before)
    difference = max((x - y).abs().max().item() for x, y in zip(results["mmgen"], results["diffusers"]))
    scale = min(x.std().item() for x in results["diffusers"])
    assert difference < 1e-4, difference
    median = {who: statistics.median(times) for who, times in seconds.items()}
    count = sum(p.numel() for p in ours.parameters())
    del ours, theirs, both
    taken = {who: child("--memory", part, who, threads=args.threads) for who in median}
    record(
        "speed",
        {
            "what": "Stable Diffusion 1.x, full size",
            "network": part,
            "parameters": count,
            "keys": len(a),
            "keys that match": len(a.items() & b.items()),
            "precision": "float32",
            "batch": 1,
            "largest difference": float(f"{difference:.2g}"),
            "standard deviation": round(scale, 3),
            "blocks": args.blocks,
            **{f"seconds, {who}": round(value, 2) for who, value in median.items()},
            **{f"processor seconds, {who}": round(statistics.median(times), 2) for who, times in processor.items()},
            "ratio to diffusers": round(median["diffusers"] / median["mmgen"], 3),
            "ratio in each block": [round(t / o, 2) for o, t in zip(seconds["mmgen"], seconds["diffusers"])],
            **{f"{what} MiB, {who}": value for who, both in taken.items() for what, value in both.items()},
        },
    )


def first_edit(args, record):
    from PIL import Image

    from mmgen.data import portraits

    with tempfile.TemporaryDirectory() as folder:
        Image.fromarray(portraits.render(portraits.sample(200_000_000), 256)).save(Path(folder) / "me.png")
        for name in ("sdedit", "styleclip-mapper"):
            command = [
                str(Path(sys.executable).parent / "mmgen"),
                "edit",
                str(Path(folder) / "me.png"),
                "green hair",
                "-o",
                str(Path(folder) / "out.png"),
                "--editor",
                name,
                "--device",
                "cpu",
                "--json",
            ]
            seconds, used = [], lambda: sum(resource.getrusage(resource.RUSAGE_CHILDREN)[:2])
            before = used()
            for _ in range(args.blocks):
                start = time.perf_counter()
                about = json.loads(
                    subprocess.run(
                        command,
                        env=os.environ | {"OMP_NUM_THREADS": str(args.threads)},
                        capture_output=True,
                        text=True,
                        check=True,
                    ).stdout
                )
                seconds.append(time.perf_counter() - start)
            record(
                "speed",
                {
                    "what": "mmgen edit, cold start",
                    "editor": name,
                    "size": about["size"][0],
                    "blocks": args.blocks,
                    "seconds": round(statistics.median(seconds), 2),
                    "seconds in each block": [round(s, 2) for s in seconds],
                    "processor seconds": round((used() - before) / args.blocks, 2),
                    "of them the edit": about["edit_seconds"],
                },
            )


def page():
    "A new demo page and its first edits; printed."
    import torch

    torch.set_num_threads(int(os.environ["THREADS"]))
    start = time.perf_counter()
    from mmgen.app.demo import build_demo, examples

    made = build_demo("cpu")
    ready = time.perf_counter()
    picture, source, prompt, seed = examples(1)[0]
    edit, times, used = next(one.fn for one in made.fns.values() if one.name == "edit"), [], []
    for _ in range(2):
        began, before = time.perf_counter(), time.process_time()
        assert all(
            image is not None
            for image in edit(picture, source, prompt, seed, "sdedit", 0.75, "styleclip-mapper", 0.5)[:2]
        )
        times.append(time.perf_counter() - began), used.append(time.process_time() - before)
    print(json.dumps({"load": ready - start, "first": times[0], "second": times[1], "processor": used[0]}))


def demo(args, record):
    results = [child("--page", threads=args.threads) for _ in range(args.blocks)]
    median = {key: round(statistics.median(one[key] for one in results), 2) for key in results[0]}
    record(
        "speed",
        {
            "what": "mmgen demo",
            "blocks": args.blocks,
            "seconds to load": median["load"],
            "seconds of the first edit, both families": median["first"],
            "processor seconds of the first": median["processor"],
            "seconds of the second": median["second"],
            "first edit in each block": [round(one["first"], 2) for one in results],
        },
    )


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--parts", default="unet,vae,edit,demo")
    p.add_argument("--blocks", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    p.add_argument("--page", action="store_true", help=argparse.SUPPRESS)
    args = p.parse_args()
    if args.memory:
        return memory(*args.memory)
    if args.page:
        return page()
    import torch
    from record import record

    torch.set_num_threads(args.threads)
    for part in args.parts.split(","):
        if part in CONFIGS:
            network(part, args, record)
        else:
            {"edit": first_edit, "demo": demo}[part](args, record)


if __name__ == "__main__":
    main()
