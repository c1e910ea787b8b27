"""The Fréchet distance against closed forms, scipy and torchmetrics."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from mmgen.metrics.features import features
from mmgen.metrics.frechet import frechet_distance, statistics


def sets(n=400, d=16):
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(d, d, generator=generator)
    return torch.randn(n, d, generator=generator), torch.randn(n, d, generator=generator) @ mix + 0.5


def test_known_answers():
    a, b = sets()
    assert frechet_distance(statistics(a), statistics(a)) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(statistics(a), statistics(a + 3)) == pytest.approx(9 * a.shape[1], rel=1e-5)
    assert frechet_distance(statistics(a), statistics(b)) == pytest.approx(
        frechet_distance(statistics(b), statistics(a))
    )
    one, two = (np.zeros(2), np.diag([1.0, 4.0])), (np.array([1.0, 0.0]), np.diag([9.0, 1.0]))
    assert frechet_distance(one, two) == pytest.approx(1 + (1 - 3) ** 2 + (2 - 1) ** 2)


def test_agrees_with_scipy():
    (m1, c1), (m2, c2) = (statistics(x) for x in sets())
    expected = ((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert frechet_distance((m1, c1), (m2, c2)) == pytest.approx(expected, rel=1e-6)


def test_agrees_with_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = (
        torch.randint(0, 255, (60, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(i))
        for i in (0, 1)
    )

    class Pooled(torch.nn.Module):
        num_features = 12

        def forward(self, x):
            return torch.nn.functional.adaptive_avg_pool2d(x.float(), 2).flatten(1)

    metric = FrechetInceptionDistance(feature=Pooled(), normalize=False, input_img_size=(3, 8, 8)).set_dtype(
        torch.float64
    )
    metric.update(a, real=True)
    metric.update(b, real=False)
    own = lambda x: statistics(Pooled()(x))
    assert frechet_distance(own(a), own(b)) == pytest.approx(float(metric.compute()), rel=1e-4)


def test_more_features_than_images_still_gives_a_finite_number_and_one_image_is_refused():
    a, b = sets(10, 16)
    assert np.isfinite(frechet_distance(statistics(a), statistics(b)))
    with pytest.raises(ValueError, match="at least 2 images"):
        statistics(a[:1])


def test_batches_do_not_matter():
    x = torch.rand(7, 3, 4, 4)
    pooled = lambda x: x.mean((2, 3))
    assert torch.allclose(features(pooled, x, 2), features(pooled, x, 100))
