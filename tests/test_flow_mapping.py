"The prior over codes: what a new flow does, that it finds clusters, and that a seed decides"

import pytest
import torch

from mmgen.base.images import seed_everything
from mmgen.stylegan.generator import MappingNetwork
from mmgen.stylegan.latent_prior import LatentPrior, distil, fit_latent_prior, flow_pairs, normalise


@pytest.fixture(scope="module")
def clusters():
    "8 corners of a cube in 6 dimensions, 1,000 codes at them, and a flow that was fitted to those"
    seed_everything(0)
    corners = torch.randint(0, 2, (8, 6)).float() * 2 - 1
    codes = 3 + corners[torch.randint(8, (1_000,))] + 0.05 * torch.randn(1_000, 6)
    return 3 + corners, codes, fit_latent_prior(codes, 400, batch_size=128, width=96, blocks=2)


def test_a_new_flow_returns_its_normalised_input():
    z = 5 * torch.randn(4, 7)
    assert torch.allclose(LatentPrior(7, 16)(z), normalise(z), atol=1e-5)
    assert torch.allclose(normalise(z).square().mean(1), torch.ones(4), atol=1e-5)


def test_samples_lie_at_clusters_where_those_of_a_gaussian_lie_between(clusters):
    corners, codes, prior = clusters
    z = torch.randn(500, 6)
    gaussian = codes.mean(0) + z @ torch.linalg.cholesky(torch.cov(codes.T)).T
    distance = lambda w: torch.cdist(w, corners).min(1).values.median()
    assert distance(prior(z)) < distance(gaussian) / 2
    assert torch.allclose(prior(z).mean(0), codes.mean(0), atol=0.3)


def test_equal_seeds_give_equal_flows_and_pairs(clusters):
    _, codes, prior = clusters
    first, second = (fit_latent_prior(codes, 5, width=16, blocks=1, seed=3) for _ in range(2))
    z = torch.randn(4, 6)
    assert torch.equal(first(z), second(z))
    assert all(torch.equal(a, b) for a, b in zip(flow_pairs(prior, 8), flow_pairs(prior, 8)))


def test_distillation_gives_a_mapping_network_the_flow_and_its_mean(clusters):
    _, _, prior = clusters
    seed_everything(0)
    mapping = MappingNetwork(6, 6, 1, layers=3)
    assert distil(mapping, prior, pairs=1_000, steps=300) < 0.7  # 1: the mean for every z
    assert torch.equal(mapping.w_avg, prior.mean)
