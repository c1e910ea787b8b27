"""Seconds of edits and samples: both captions in one call of the UNet against two, precisions, and linear layers as convolutions.

All variants take turns within one run and are compared as ratios; seconds are CPU time of the process on the CPU.
    python benchmarks/precision.py joint | precision | linear [--blocks 5] [--device cuda]
"""
import argparse
import json
import statistics
import time

import torch

import mmgen.ldm.attention as attention
import mmgen.ldm.inversion as inversion
import mmgen.ldm.pipeline as pipelines
from mmgen.data.edits import as_batch, edits
from mmgen.ldm import flowedit
from mmgen.ldm.samplers import together
from mmgen.registry import editor


def seconds(call, device):
    clock = time.process_time if device == "cpu" else time.perf_counter
    start = clock()
    call()
    if device != "cpu": torch.cuda.synchronize()
    return clock() - start


def compare(variants: dict, blocks: int, device: str) -> dict:
    "Median seconds of each variant; they take turns, so that what else the machine does hits all of them."
    for call in variants.values(): call()
    found = {name: [] for name in variants}
    for _ in range(blocks):
        for name, call in variants.items(): found[name].append(seconds(call, device))
    return {name: statistics.median(values) for name, values in found.items()}


def joint(a):
    def run(which, given, most):
        def call():
            chosen = lambda first, second: together(first, second, most)
            for module in (pipelines, inversion, flowedit): module.together = chosen
            which.edit(*given)
        return call
    for name in ("sdedit", "ddim-inversion", "flowedit"):
        for n in (1, 2, 4, 8, 16):
            which, given = editor(name, a.device), as_batch(edits("hair color", n))[:3]
            times = compare({"one": run(which, given, 10**6), "two": run(which, given, 0)}, a.blocks, a.device)
            yield {"what": "both captions in one call", "editor": name, "images": n, "ratio": times["two"] / times["one"], "seconds": times}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("joint",))
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    for row in globals()[a.what](a): print(json.dumps({**row, "device": a.device, "threads": torch.get_num_threads()}), flush=True)


if __name__ == "__main__":
    main()
