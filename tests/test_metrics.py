"""Metrics: known answers, agreement with scipy, torchmetrics and transformers, intervals, NaN, the cache, weights that
are not there."""

import hashlib
import io
import warnings

import lpips
import numpy as np
import pytest
import torch
from PIL import Image
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from transformers import CLIPConfig, CLIPModel

from mmgen.base.images import psnr, to_float, to_uint8
from mmgen.base.runs import Run
from mmgen.base.schema import WeightsError
from mmgen.clip.model import CLIP
from mmgen.data.edits import as_batch, edits
from mmgen.metrics import features as rooms
from mmgen.metrics import pairs
from mmgen.metrics.clip_score import clip_score, directional_similarity
from mmgen.metrics.coverage import balls, density_coverage
from mmgen.metrics.features import Extractor, Features, as_images, extract, extractor
from mmgen.metrics.frechet import distance, fd, frechet_distance, statistics
from mmgen.metrics.intervals import MetricWarning, halves, score
from mmgen.metrics.kernel import kd, mmd2
from mmgen.metrics.pairs import pair_score, ssim

pytestmark = pytest.mark.filterwarnings("ignore::mmgen.metrics.intervals.MetricWarning")


def normal(n, d=4, seed=0, shift=0.0, **about):
    values = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift
    return Features(values, about.pop("name", "numbers"), about.pop("hash", "0"), **about)


def pictures(n, size=16, seed=0):
    return 2 * torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) - 1


class Pooled(torch.nn.Module):
    "A feature module for torchmetrics, 12 numbers of an image."

    num_features = 12

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1)


pooled = Extractor("pooled", Pooled(), "0")


# what is an image, features, cache


def test_rows_that_are_no_images_have_no_features_and_wrong_shapes_are_refused():
    x = pictures(5)
    x[1, 0, 0, 0], x[2], x[3, 2] = torch.nan, 200, torch.inf
    assert as_images(x)[1].tolist() == [True, False, False, False, True]
    assert extract(pooled, x).values.isfinite().all(1).tolist() == [True, False, False, False, True]
    for wrong in (
        torch.zeros(2, 3, 8),
        torch.zeros(2, 4, 8, 8),
        torch.zeros(2, 3, 8, 8, dtype=torch.int64),
        torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
    ):
        with pytest.raises(ValueError, match=r"\(N, H, W, 3\)|\(B, H, W, 3\)"):
            extract(pooled, wrong)
    with pytest.raises(ValueError, match="5 images and 4 sources"):
        extract(pooled, x, range(4))


@pytest.mark.parametrize("name", ["efficientnet", "oracle", "clip"])
def test_features_do_not_depend_on_the_batch(name):
    judge, images = extractor(name, "cpu"), as_batch(edits("hair color", 5))[0]
    images[2] = torch.nan
    found = extract(judge, images, batch_size=2)
    assert torch.allclose(found.values, extract(judge, images).values, atol=1e-4, equal_nan=True)
    assert found.values.isnan().any(1).tolist() == [i == 2 for i in range(5)] and (found.name, found.hash) == (
        judge.name,
        judge.hash,
    )


def counting(hash="0", dies_at=None):
    seen = []

    def network(x):
        if len(seen) == dies_at:
            raise KeyboardInterrupt
        seen.append(len(x))
        return Pooled()(x)

    return Extractor("pooled", network, hash), seen


def test_a_killed_run_goes_on_from_the_cache(tmp_path):
    images, (dying, before) = pictures(10), counting(dies_at=2)
    with pytest.raises(KeyboardInterrupt):
        extract(dying, images, cache=tmp_path, chunk=4)
    whole, after = counting()
    found = extract(whole, images, cache=tmp_path, chunk=4)
    assert before == [4, 4] and after == [2]
    assert torch.equal(found.values, extract(pooled, images).values)
    assert all(file.suffix == ".safetensors" for file in tmp_path.iterdir()), "a temporary file was left"


def test_the_cache_knows_the_extractor_and_the_pixels(tmp_path):
    images = to_uint8(pictures(8))
    extract(counting()[0], images, cache=tmp_path, chunk=4)
    other, seen = counting(hash="1")
    extract(other, images, cache=tmp_path, chunk=4)
    assert seen == [4, 4]
    images[5, 0, 0, 0] ^= 1
    again, seen = counting()
    found = extract(again, images, cache=tmp_path, chunk=4)
    assert seen == [4] and torch.equal(found.values, extract(pooled, images).values)


def test_a_damaged_file_of_the_cache_is_made_again(tmp_path):
    images, (judge, seen) = pictures(4), counting()
    extract(judge, images, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.warns(UserWarning, match="damaged"):
        found = extract(judge, images, cache=tmp_path)
    assert seen == [4, 4] and torch.equal(found.values, extract(pooled, images).values)


# weights of others


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    "An empty folder in place of torch's hub."
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def published(state, folder):
    "Saves a state dict as if it had been published; the address."
    buffer = io.BytesIO()
    torch.save(state, buffer)
    url = f"https://example.org/net-{hashlib.sha256(buffer.getvalue()).hexdigest()[:8]}.pth"
    (folder / url.rsplit("/", 1)[1]).write_bytes(buffer.getvalue())
    return url


def test_weights_that_are_not_there_say_which_column_goes_missing_and_where_they_are(checkpoints):
    for build, column in (
        (lambda: extractor("inception", "cpu"), "FID and KID"),
        (lambda: pairs.pair_metric("lpips-alex", "cpu"), r"LPIPS \(alex\)"),
    ):
        with pytest.raises(WeightsError, match=f"{column} will be missing.*curl.*https://"):
            build()
    for url in (rooms.INCEPTION, pairs.BACKBONES["vgg"]):
        (checkpoints / url.rsplit("/", 1)[1]).write_bytes(b"other weights")
    for build in (lambda: extractor("inception", "cpu"), lambda: pair_score("lpips-vgg", pictures(2), pictures(2))):
        with pytest.raises(WeightsError, match="does not begin with"):
            build()


def test_inception_is_torch_fidelitys_and_its_distances_are_called_fid(checkpoints, monkeypatch):
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import NoTrainInceptionV3

    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    with monkeypatch.context() as patched:
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        theirs = NoTrainInceptionV3("inception-v3-compat", ["2048"], empty, antialias=False)
    monkeypatch.setattr(rooms, "INCEPTION", published(theirs.state_dict(), checkpoints))
    judge, images = extractor("inception", "cpu"), to_uint8(pictures(2, 32))
    assert torch.allclose(extract(judge, images).values, theirs(images.permute(0, 3, 1, 2)), atol=1e-5, rtol=1e-4)
    a, b = (normal(9, name=judge.name, seed=seed) for seed in (0, 1))
    assert (fd(a, b).name, kd(a, b).name, fd(a._replace(name="oracle"), b).name) == ("FID", "KID", "FD (oracle)")


def test_lpips_agrees_with_torchmetrics_and_is_0_of_an_image_and_itself(checkpoints, monkeypatch):
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    theirs, own = (
        _NoTrainLpips(net="squeeze", pnet_rand=True),
        lpips.LPIPS(net="squeeze", pnet_rand=True, verbose=False).net,
    )
    state = {
        "features." + name.split(".", 1)[1]: value
        for name, value in zip(own.state_dict(), theirs.net.state_dict().values(), strict=True)
    }
    monkeypatch.setitem(pairs.BACKBONES, "squeeze", published(state, checkpoints))
    x, y = pictures(6, 64), pictures(6, 64, 1)
    found = pair_score("lpips-squeeze", x, y, device="cpu", batch_size=4)
    assert found.name == "LPIPS (squeeze)" and found.value > 0
    assert torch.allclose(torch.tensor(found.rows), theirs(x, y).flatten().double(), atol=1e-4)
    assert pair_score("lpips-squeeze", x, x, device="cpu").value == pytest.approx(0, abs=1e-10)


# figures and intervals


def test_the_interval_is_clustered_seeded_and_near_the_known_one():
    x, of = np.random.default_rng(1).normal(size=300), np.random.default_rng(2).permutation(np.arange(300).repeat(3))
    found = score("x", x[of], of)
    assert found.value == pytest.approx(x.mean()) and (found.n, found.sources) == (900, 300)
    assert found.high - found.low == pytest.approx(2 * 1.96 * x.std() / 300**0.5, rel=0.1)
    assert found == score("x", x[of], of) != score("x", x[of], of, seed=1)
    assert score("x", x, statistic=np.median).value == np.median(x)


def test_a_mean_has_the_interval_of_any_statistic_that_is_the_mean():
    x, of = (
        np.random.default_rng(1).normal(size=90),
        np.random.default_rng(2).integers(25, size=90),
    )  # sources of unequal size
    x[3] = np.nan
    with pytest.warns(MetricWarning):
        fast, slow = score("x", x, of, draws=300), score("x", x, of, lambda rows: np.mean(rows), draws=300)
    assert (fast.low, fast.high) == pytest.approx((slow.low, slow.high)) and fast.high - fast.low > 0.1


def test_failed_rows_are_counted_named_and_in_no_mean():
    with pytest.warns(MetricWarning, match="2 of 4 rows"):
        found = score("x", [1.0, np.nan, 3.0, np.inf])
    assert (found.value, found.n, found.failed) == (2.0, 2, 2) and "2 failed" in str(found)
    none = score("x", [np.nan] * 3)
    assert np.isnan([none.value, none.low, none.high]).all() and (none.n, none.failed) == (0, 3)
    with pytest.raises(ValueError, match="at least one row"):
        score("x", [])


def test_one_source_has_no_interval():
    found = score("x", [1.0, 2.0], ["a", "a"])
    assert found.value == 1.5 and np.isnan(found.low)


def test_half_samples_have_half_of_the_sources_and_whole_sources():
    a, b = halves(np.array(["s1", "s1", "s2", "s3", "s4", "r"]), np.array(["s1", "s2", "s3", "s4", "m1", "m2"]), 20, 0)
    assert a[0].all() and b[0].all() and (a[1:, 0] == a[1:, 1]).all()
    assert (a[1:, [0, 2, 3, 4]] == b[1:, :4]).all() and (b[1:, :4].sum(1) == 2).all() and (b[1:, 4:].sum(1) == 1).all()


@pytest.mark.parametrize(
    "metric, real, made",
    [
        (fd, dict(), dict(shift=0.5)),
        (kd, dict(), dict(shift=0.5)),
        (lambda *sets: density_coverage(*sets)[1], dict(), dict(shift=0.7)),
    ],
)
def test_intervals_of_sets_are_as_wide_as_other_images_scatter(metric, real, made):
    many = [metric(normal(150, seed=2 * i, **real), normal(120, seed=2 * i + 1, **made)) for i in range(40)]
    scatter, width = np.std([s.value for s in many], ddof=1), np.mean([s.high - s.low for s in many]) / (2 * 1.96)
    assert 0.65 < width / scatter < 1.6, (width, scatter)
    assert (many[0].n, many[0].reference, many[0].sources) == (120, 150, 270)


def test_a_run_keeps_a_figure(tmp_path):
    found = fd(normal(30), normal(40, seed=1))
    with Run("judged", root=tmp_path) as run:
        run.metric(**found.record())
    (kept,) = run.record["metrics"]
    assert (
        kept["name"] == "FD (numbers)"
        and (kept["n"], kept["reference"], kept["extractor"]) == (40, 30, "0")
        and kept["low"] < kept["value"] < kept["high"]
    )


# distances of sets


def test_fd_has_known_answers_and_is_the_same_by_both_ways():
    a = normal(500)
    assert fd(a, a).value == pytest.approx(0, abs=1e-9)
    assert fd(a, a._replace(values=a.values + 3)).value == pytest.approx(4 * 9, rel=1e-5)
    for n, m, d in ((300, 200, 12), (9, 14, 40), (30, 700, 100)):
        x, y = normal(n, d).values.double(), normal(m, d, 1, 0.3).values.double() * 1.5
        (m1, c1), (m2, c2) = statistics(x), statistics(y)
        assert distance(x, y) == pytest.approx(frechet_distance((m1, c1), (m2, c2)), rel=1e-5)
        assert distance(x, y) == pytest.approx(
            ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real), rel=1e-4
        )


def test_fewer_images_than_features_warn_and_name_both():
    with pytest.warns(MetricWarning, match="10 and 30 images in 16 dimensions.*biased upward"):
        assert np.isfinite(fd(normal(10, 16), normal(30, 16, 1)).value)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fd(normal(17, 16), normal(30, 16, 1))
    with pytest.raises(ValueError, match="at least 2 images in each set; there are 1 and 30"):
        fd(normal(1, 16), normal(30, 16, 1))


def test_failed_rows_of_sets_are_counted_and_left_out():
    a, b = normal(60), normal(50, seed=1, shift=0.2)
    broken = b._replace(values=torch.cat([b.values, torch.full((2, 4), torch.nan)]))
    for metric in (fd, kd, lambda *sets: density_coverage(*sets)[0]):
        with pytest.warns(MetricWarning, match="2 of 112 rows"):
            found = metric(a, broken)
        assert found.failed == 2 and found.n == 50 and found.value == pytest.approx(metric(a, b).value, rel=1e-12)


def test_sets_of_two_extractors_are_refused():
    for metric in (fd, kd, density_coverage):
        with pytest.raises(ValueError, match="different extractors"):
            metric(normal(20), normal(20, hash="1"))


def test_kd_agrees_with_torchmetrics():
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = pictures(50), pictures(50, seed=1).abs()
    metric = KernelInceptionDistance(feature=Pooled(), subsets=1, subset_size=50, normalize=True)
    metric.update(a, real=True)
    metric.update(b, real=False)
    assert kd(extract(pooled, a), extract(pooled, b)).value == pytest.approx(float(metric.compute()[0]), rel=1e-4)


def test_kd_of_one_distribution_is_around_0_and_of_a_set_and_itself_below():
    found = [kd(normal(40, seed=2 * i), normal(60, seed=2 * i + 1), draws=0).value for i in range(100)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 10
    x = normal(40).values.double()
    assert (
        mmd2(x, x, lambda x, y: x @ y.T).item() < 0 == round(mmd2(x, x, lambda x, y: x @ y.T, unbiased=False).item(), 9)
    )


@pytest.mark.parametrize("k", [1, 3])
def test_density_and_coverage_are_the_definition(k):
    x, y = normal(40).values.double(), normal(30, seed=1, shift=0.5).values.double()
    radius = np.sort(np.linalg.norm(x[:, None] - x[None], axis=-1), 1)[:, k]
    inside = np.linalg.norm(x[:, None] - y[None], axis=-1) < radius[:, None]
    expected = [inside.sum() / (k * 30), inside.any(1).mean()]
    assert balls(x, y, k).flatten().tolist() == pytest.approx(expected) == balls(x, y, k, rows=7).flatten().tolist()


def test_density_and_coverage_of_point_sets():
    line = lambda *at: torch.tensor(at).double()[:, None]
    assert balls(line(0, 1, 2, 3), line(0, 1, 2, 3), 2).flatten()[1] == 1
    assert balls(line(0, 1, 2, 3), line(100, 200), 2).flatten().tolist() == [0, 0]
    assert balls(line(0, 1, 2, 3), line(1.5, 1.5, 1.5, 1.5), 1).flatten().tolist() == [
        2,
        0.5,
    ]  # all in the balls around 1 and 2
    twice = torch.randn(1, 1280, generator=torch.Generator().manual_seed(0)).double().repeat(4, 1)
    assert balls(twice, twice, 1).flatten().tolist() == [0, 0]  # balls of radius 0 hold nothing, whatever rounding says


# pairs, texts, the oracle


def test_psnr_and_ssim_agree_with_torchmetrics_and_scipy():
    from torchmetrics.functional.image import peak_signal_noise_ratio

    x = pictures(3, 24)
    y = (x + 0.2 * pictures(3, 24, 1)).clamp(-1, 1)
    assert torch.allclose(
        psnr(x, y), peak_signal_noise_ratio(y, x, data_range=2.0, reduction="none", dim=(1, 2, 3)), atol=1e-4
    )
    a, b = ((v.numpy().astype(np.float64) + 1) / 2 for v in (x, y))
    blur = lambda v: gaussian_filter(v, (0, 0, 1.5, 1.5), truncate=3.5, mode="mirror")
    ma, mb = blur(a), blur(b)
    va, vb, cov = blur(a * a) - ma**2, blur(b * b) - mb**2, blur(a * b) - ma * mb
    expected = ((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))).mean((1, 2, 3))
    assert ssim(x, y).tolist() == pytest.approx(expected, abs=1e-4)
    assert ssim(x[:1], y[:1]).shape == (1,)


@pytest.mark.parametrize("name", ["psnr", "ssim", "perceptual"])
def test_pairs_do_not_depend_on_the_batch_and_keep_a_number_for_each_row(name):
    x, y = pictures(5, 32), pictures(5, 32, 1)
    y[3] = torch.nan
    found, other = (pair_score(name, x, y, device="cpu", batch_size=size) for size in (2, 100))
    assert found.rows == pytest.approx(other.rows, rel=1e-4, nan_ok=True) and np.isnan(found.rows).tolist() == [
        i == 3 for i in range(5)
    ]
    assert (found.n, found.failed) == (4, 1)
    with pytest.raises(ValueError, match="pairs of one shape"):
        pair_score(name, x, y[:4], device="cpu")


def test_perceptual_distance_is_0_of_an_image_and_itself_and_not_called_lpips():
    found = pair_score("perceptual", pictures(2, 32), pictures(2, 32), device="cpu")
    assert (
        found.value == pytest.approx(0, abs=1e-10)
        and found.name == "perceptual distance (EfficientNet-Lite0)"
        and found.extractor
    )


def test_clip_score_is_transformers_cosine_and_directions_have_known_answers():
    clip, judge = CLIP.load(device="cpu"), extractor("clip", "cpu")
    images, source, target, exact = as_batch(edits("hair color", 6))
    ids, mask = clip.tokenize(source)
    theirs = CLIPModel(CLIPConfig.from_dict(clip.model.config.to_dict())).eval()
    theirs.load_state_dict(clip.model.state_dict())
    with torch.no_grad():
        logits = theirs(input_ids=ids, attention_mask=mask, pixel_values=clip.preprocess(images)).logits_per_image
    found = clip_score(judge, images, source, batch_size=4)
    assert found.rows == pytest.approx((100 * logits.diag() / clip.model.logit_scale.exp()).tolist(), abs=1e-3)
    assert found.extractor == clip.fingerprint()
    there = directional_similarity(judge, images, exact, source, target)
    back = directional_similarity(judge, exact, images, source, target)
    assert there.rows == pytest.approx(-back.rows, abs=1e-4) and there.value > 0
    assert directional_similarity(judge, images, images.clone(), source, target, batch_size=4).rows.tolist() == [0] * 6
    assert directional_similarity(judge, images, exact, source, source).failed == 6


def test_clip_scores_refuse_what_does_not_fit():
    judge, images = extractor("clip", "cpu"), pictures(3)
    with pytest.raises(ValueError, match="list of 3 texts"):
        clip_score(judge, images, "hair")
    with pytest.raises(ValueError, match="needs a CLIP"):
        clip_score(pooled, images, ["a"] * 3)
    with pytest.raises(ValueError, match="as many images"):
        directional_similarity(judge, images, images[:2], ["a"] * 3, ["b"] * 3)


def as_files(folder, pictures):
    files = []
    for i, picture in enumerate(pictures):
        files.append(folder / f"{i}.png")
        Image.fromarray(picture).save(files[-1])
    return files


def test_sets_of_files_pictures_and_arrays_are_one_set(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 255, (4, 16, 12, 3), dtype=np.uint8)
    files = as_files(tmp_path, pictures)
    judge = Extractor("means", lambda x: x.mean((2, 3)), "0")
    known = extract(judge, pictures).values
    for same in (
        files,
        [str(file) for file in files],
        [Image.open(file) for file in files],
        list(pictures),
        list(to_float(pictures)),
        tuple(files),
    ):
        assert torch.equal(extract(judge, same).values, known)
        assert pair_score("psnr", pictures, same, draws=0).value > 100


@pytest.mark.parametrize(
    "use",
    [
        lambda x: extract(Extractor("means", lambda x: x.mean((2, 3)), "0"), x),
        lambda x: pair_score("psnr", x, x),
        lambda x: clip_score(
            Extractor("a CLIP", lambda x: x.mean((2, 3)), "0", lambda texts: torch.ones(len(texts), 3)),
            x,
            ["a"] * len(x),
        ),
    ],
)
def test_what_is_no_set_of_images_is_said_in_one_sentence(use, tmp_path):
    small, large = np.zeros((8, 8, 3), np.uint8), np.zeros((16, 8, 3), np.uint8)
    files = as_files(tmp_path, [small, large])
    for wrong, said in (
        (files, r"one size: image 1 \(1.png\) has 8 × 16 pixels, image 0 \(0.png\) has 8 × 8"),
        ([small, large], "image 1 has 8 × 16 pixels"),
        (str(files[0]), "needs a set of images, not str"),
        ([object()], "image 0 is no file"),
        ([small, np.zeros(3)], "image 1 is no file"),
        ([tmp_path / "none.png"], "none.png does not exist"),
    ):
        with pytest.raises(ValueError, match=said):
            use(wrong)


@pytest.mark.parametrize(
    "n, bad, said",
    [
        (6, [2], r"1 of 6 rows .*\(row 2, counted from 0\)"),
        (2, [1], r"\(row 1, .* fewer than two rows left there is no interval"),
        (9, [*range(7)], r"7 of 9 rows .*\(row 0, row 1, row 2, row 3, row 4, …, counted"),
    ],
)
def test_a_row_that_gives_no_number_is_named(n, bad, said):
    x = torch.zeros(n, 3, 16, 16)
    y = x.clone()
    y[bad, 0, 0, 0] = torch.nan
    with pytest.warns(MetricWarning, match=said):
        found = pair_score("psnr", x, y)
    assert found.failed == len(bad) and np.isnan(found.low) == (n - len(bad) < 2)


def test_an_image_of_a_set_that_is_none_is_named():
    values = torch.randn(8, 2)
    real, made = (Features(x.clone(), "means", "0") for x in (values, values))
    made.values[3] = torch.nan
    with pytest.warns(MetricWarning, match="generated image 3, counted from 0"):
        kd(real, made)
