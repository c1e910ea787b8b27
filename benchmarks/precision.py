"""Time of edits and samples: both captions in one call of the UNet against two, precisions, and linear layers as
convolutions.

All variants take turns within one run and are compared as ratios; seconds are CPU time of the process on the CPU.

    python benchmarks/precision.py joint | precision | linear [--blocks 5] [--device cuda]

Rows in reports/precision.jsonl.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from record import record

import mmgen.ldm.editors.ddim_inversion as inversion
import mmgen.ldm.pipeline as pipelines
from mmgen.data.edits import as_batch, edits
from mmgen.editing.registry import editor
from mmgen.ldm.editors import flowedit
from mmgen.ldm.samplers import together
from mmgen.metrics.oracle import Oracle, score_editor


def seconds(call, device):
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    call()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - start


def compare(variants: dict, blocks: int, device: str) -> dict:
    "Median seconds of each variant; they take turns, so that what else the machine does hits all of them."
    for call in variants.values():
        call()
    found = {name: [] for name in variants}
    for _ in range(blocks):
        for name, call in variants.items():
            found[name].append(seconds(call, device))
    return {name: statistics.median(values) for name, values in found.items()}


def joint(a):
    def run(method, given, most):
        def call():
            chosen = lambda first, second: together(first, second, most)
            for module in (pipelines, inversion, flowedit):
                module.together = chosen
            method.edit(*given)

        return call

    for name in ("sdedit", "ddim-inversion", "flowedit"):
        for n in (1, 2, 4, 8, 16):
            method, given = editor(name, a.device), as_batch(edits("hair color", n))[:3]
            times = compare({"one": run(method, given, 10**6), "two": run(method, given, 0)}, a.blocks, a.device)
            yield {
                "what": "both captions in one call",
                "editor": name,
                "images": n,
                "ratio": times["two"] / times["one"],
                "seconds": times,
            }


def convolution(layer, x):
    "A linear layer on tokens (B, N, in) as a 1×1 convolution on a `channels_last` image: another library computes it."
    if x.ndim != 3 or min(x.shape[:2]) == 1:
        return F.linear(x, layer.weight, layer.bias)
    image = x.contiguous()[:, :, None].permute(0, 3, 1, 2)
    return F.conv2d(image, layer.weight[:, :, None, None], layer.bias).permute(0, 2, 3, 1).flatten(1, 2)


def linear(a):
    plain = torch.nn.Linear.forward

    def run(call, convolve):
        def done():
            torch.nn.Linear.forward = convolution if convolve else plain
            call()

        return done

    for n in (1, 8):
        method, given = editor("sdedit", a.device), as_batch(edits("hair color", n))[:3]
        call = lambda: method.edit(*given)
        times = compare({"convolution": run(call, True), "product": run(call, False)}, a.blocks, a.device)
        yield {
            "what": "linear layers",
            "work": f"{n} edits",
            "ratio": times["product"] / times["convolution"],
            "seconds": times,
        }
    unet = method.pipeline.unet.requires_grad_(True)
    states, mask = method.pipeline.context(["green hair, smile"] * 64)
    z = torch.randn(64, unet.config["in_channels"], 8, 8)

    def step():
        unet(z, torch.full((64,), 500.0), states, mask).square().mean().backward()

    times = compare({"convolution": run(step, True), "product": run(step, False)}, a.blocks, a.device)
    yield {
        "what": "linear layers",
        "work": "training step of 64",
        "ratio": times["product"] / times["convolution"],
        "seconds": times,
    }


def precision(a):
    oracle = Oracle.load("oracle-portraits", "cpu")
    rows = [
        edit
        for kind in ("hair color", "glasses on", "eye color", "hair length")
        for edit in edits(kind, a.edits // 4, "test")
    ]
    given = as_batch(rows[:8])[:3]
    for name in ("sdedit", "flowedit", "instruct-pix2pix"):
        method = {
            kind: editor(name, a.device, precision=kind)
            for kind in ("float32", "bf16", *(["fp16"] if a.device != "cpu" else []))
        }
        times = compare({kind: lambda one=one: one.edit(*given) for kind, one in method.items()}, a.blocks, a.device)
        for kind, one in method.items():
            scores, _ = score_editor(oracle, one, rows)
            yield {
                "what": "precision",
                "editor": name,
                "precision": kind,
                "ratio": times["float32"] / times[kind],
                **{key: scores[key] for key in ("n", "reached", "kept", "skill")},
                "seconds": times[kind],
            }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("joint", "linear", "precision"))
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--edits", type=int, default=100, help="that the oracle judges, for each precision")
    a = parser.parse_args()
    for row in globals()[a.what](a):
        record("precision", row if a.device == "cpu" else row | {"device": a.device})


if __name__ == "__main__":
    main()
