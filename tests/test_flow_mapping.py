"The mapping network by flow matching: what a new one does, that it finds clusters, and that a seed decides"

import pytest
import torch

from mmgen.base.images import seed_everything
from mmgen.stylegan.flow_mapping import FlowMapping, fit_flow, normalise


def fitted(codes, steps, seed=0, **options):
    seed_everything(1)
    mapping = FlowMapping(codes.shape[1], **options)
    fit_flow(mapping, codes, steps, batch_size=128, seed=seed)
    return mapping.requires_grad_(False)


@pytest.fixture(scope="module")
def clusters():
    "8 corners of a cube in 6 dimensions, 1,000 codes at them, and a flow that was fitted to those"
    seed_everything(0)
    corners = torch.randint(0, 2, (8, 6)).float() * 2 - 1
    codes = 3 + corners[torch.randint(8, (1_000,))] + 0.05 * torch.randn(1_000, 6)
    return 3 + corners, codes, fitted(codes, 400, num_ws=3, width=96, blocks=2)


def test_a_new_flow_returns_its_normalised_input():
    z = 5 * torch.randn(4, 7)
    assert torch.allclose(FlowMapping(7, width=16)(z)[:, 0], normalise(z), atol=1e-5)
    assert torch.allclose(normalise(z).square().mean(1), torch.ones(4), atol=1e-5)


def test_samples_lie_at_clusters_where_those_of_a_gaussian_lie_between(clusters):
    corners, codes, mapping = clusters
    z = torch.randn(500, 6)
    gaussian = codes.mean(0) + z @ torch.linalg.cholesky(torch.cov(codes.T)).T
    distance = lambda w: torch.cdist(w, corners).min(1).values.median()
    ws = mapping(z)
    assert ws.shape == (500, 3, 6) and distance(ws[:, 0]) < distance(gaussian) / 2
    assert torch.allclose(ws[:, 2].mean(0), codes.mean(0), atol=0.3)


def test_truncation_pulls_the_coarse_layers_towards_the_mean_of_the_codes(clusters):
    _, codes, mapping = clusters
    z = torch.randn(5, 6)
    ws, half = mapping(z), mapping(z, truncation=0.5, cutoff=2)
    assert torch.allclose(half[:, :2], codes.mean(0).lerp(ws[:, :2], 0.5), atol=1e-5)
    assert torch.equal(half[:, 2:], ws[:, 2:])


def test_equal_seeds_give_equal_flows(clusters):
    _, codes, _ = clusters
    first, second = (fitted(codes, 5, seed=3, width=16, blocks=1) for _ in range(2))
    assert torch.equal(first(torch.ones(4, 6)), second(torch.ones(4, 6)))
