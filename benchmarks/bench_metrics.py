"""Speed of FD, KD and LPIPS: mmgen against torchmetrics, with the same networks and images.

    python benchmarks/bench_metrics.py [-n 5000] [--blocks 3] [--batch 64] [--their-batch 4] [--threads 2]

n portraits, and n portraits that differ from them in one option. FD and KD use EfficientNet-Lite0: torchmetrics'
FrechetInceptionDistance and KernelInceptionDistance take it as their feature module and share its features by
FeatureShare, so that they too run the network once; KernelInceptionDistance takes all images as its one subset, which
is what ours computes. `--their-batch` is the batch that it feeds the network: 4 is the fastest on a CPU, where 64
take three times as long (metrics.features). LPIPS is AlexNet's; where its trained weights are not on disk the
backbone is random, the same in both, which costs as much and is not called LPIPS. No intervals and no cache. The
values must agree to 1e-4 of themselves, or to 1e-6, for torchmetrics sums the KD in float32. Both take turns in
blocks; a ratio is that of the median blocks. "From images" is the features and the metric: the cost of this metric
alone.
"""

import argparse
import math
import statistics
import time
import warnings

import lpips
import torch
from record import record
from torchmetrics.functional.image import lpips as torchmetrics_lpips
from torchmetrics.image import FrechetInceptionDistance, KernelInceptionDistance, LearnedPerceptualImagePatchSimilarity
from torchmetrics.wrappers import FeatureShare

from mmgen.backbones.efficientnet import EfficientNetLite0
from mmgen.base.images import pick_device, to_float
from mmgen.base.schema import WeightsError
from mmgen.data.edits import neighbour, neighbours
from mmgen.data.portraits import sample, seeds
from mmgen.metrics.features import extract, extractor
from mmgen.metrics.frechet import fd
from mmgen.metrics.kernel import kd
from mmgen.metrics.pairs import PairMetric, pair_metric, pair_score

warnings.simplefilter("ignore")


def perceptual(device):
    "(name, torchmetrics' metric, our measure) with one backbone."
    try:
        ours = pair_metric("lpips-alex", device)
        return ours.name, LearnedPerceptualImagePatchSimilarity("alex").to(device), ours
    except WeightsError:
        trained = torchmetrics_lpips._get_tv_model_features
        torchmetrics_lpips._get_tv_model_features = lambda net, pretrained=False: trained(net, False)
        torch.manual_seed(0)
        theirs = LearnedPerceptualImagePatchSimilarity("alex").to(device)
        net = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).to(
            device, memory_format=torch.channels_last
        )  # as `pair_metric` does
        net.net.load_state_dict(theirs.net.net.state_dict())
        name = "as LPIPS (alex), random backbone"
        return name, theirs, PairMetric(name, lambda x, y: net(x, y).flatten(), device)


def clock(work):
    "(result, wall seconds, seconds of all cores)"
    before = time.perf_counter(), time.process_time()
    results = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return results, time.perf_counter() - before[0], time.process_time() - before[1]


def main():
    ask = argparse.ArgumentParser()
    ask.add_argument("-n", type=int, default=5_000)
    ask.add_argument("--blocks", type=int, default=3)
    ask.add_argument("--batch", type=int, default=64)
    ask.add_argument("--their-batch", type=int, default=4)
    ask.add_argument("--threads", type=int, default=torch.get_num_threads())
    ask.add_argument("--device", default="cpu")
    args = ask.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    device, faces = pick_device(args.device), seeds(args.n, "test")
    real, changed = (to_float(neighbours(faces, make=make)) for make in (sample, neighbour))
    judge, network = extractor("efficientnet", device), EfficientNetLite0().to(device)
    name, their_lpips, our_lpips = perceptual(device)
    kept = {}

    def their_features():
        kept["theirs"] = FeatureShare(
            [
                FrechetInceptionDistance(feature=network, normalize=True, input_img_size=(3, 64, 64)),
                KernelInceptionDistance(feature=network, subsets=1, subset_size=args.n, normalize=True),
            ]
        ).to(device)
        for images, is_real in ((real, True), (changed, False)):
            for part in images.split(args.their_batch):
                kept["theirs"].update(part.to(device), real=is_real)

    def our_features():
        kept["ours"] = [extract(judge, images, batch_size=args.batch) for images in (real, changed)]

    def their_pairs():
        their_lpips.reset()
        for x, y in zip(real.split(args.batch), changed.split(args.batch)):
            their_lpips.update(x.to(device), y.to(device))
        return their_lpips.compute().item()

    work = {
        "features": (their_features, our_features),
        "FD (EfficientNet-Lite0)": (
            lambda: kept["theirs"]["FrechetInceptionDistance"].compute().item(),
            lambda: fd(*kept["ours"], draws=0).value,
        ),
        "KD (EfficientNet-Lite0)": (
            lambda: kept["theirs"]["KernelInceptionDistance"].compute()[0].item(),
            lambda: kd(*kept["ours"], draws=0).value,
        ),
        name: (their_pairs, lambda: pair_score(our_lpips, real, changed, batch_size=args.batch, draws=0).value),
    }
    seconds, values = {what: ([], []) for what in work}, {}
    for block in range(args.blocks):
        for what, both in work.items():
            results = [None, None]
            for side in (0, 1) if block % 2 == 0 else (1, 0):
                results[side], *spent = clock(both[side])
                seconds[what][side].append(spent)
            values[what] = results
    for what, (theirs, ours) in values.items():
        assert theirs is None or math.isclose(ours, theirs, rel_tol=1e-4, abs_tol=1e-6), (what, theirs, ours)
    median = {
        what: [[statistics.median(column) for column in zip(*side)] for side in both] for what, both in seconds.items()
    }
    total = lambda *parts: [[sum(median[part][side][i] for part in parts) for i in (0, 1)] for side in (0, 1)]
    median |= {
        f"{part}, from images": total("features", part) for part in work if part.endswith("(EfficientNet-Lite0)")
    } | {"all": total(*work)}
    for what, (theirs, ours) in median.items():
        record(
            "speed",
            {
                "what": "metric",
                "metric": what,
                "n": args.n,
                "batch": args.batch,
                "batch of torchmetrics' features": args.their_batch,
                "blocks": args.blocks,
                "seconds, torchmetrics": round(theirs[0], 3),
                "seconds, mmgen": round(ours[0], 3),
                "processor seconds, torchmetrics": round(theirs[1], 3),
                "processor seconds, mmgen": round(ours[1], 3),
                "ratio to torchmetrics": round(theirs[0] / ours[0], 3),
                **(
                    {"value, torchmetrics": values[what][0], "value, mmgen": values[what][1]}
                    if values.get(what, [None])[0] is not None
                    else {}
                ),
                **(
                    {"ratio in each block": [round(a[0] / b[0], 2) for a, b in zip(*seconds[what])]}
                    if what in seconds
                    else {}
                ),
                **({"device": args.device} if device.type != "cpu" else {}),
            },
        )


if __name__ == "__main__":
    main()
