"""Muon: orthogonal updates, the same learning rate as AdamW, a state that survives a checkpoint."""

import copy

import pytest
import torch
from torch import nn

from mmgen.training.optimizers import Muon, build, orthogonalise


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(2, 8), nn.SiLU(), nn.Flatten(), nn.Linear(128, 4))


def step(net, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    loss = net(torch.randn(16, 3, 4, 4, generator=generator)).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("shape", [(8, 8), (4, 64), (64, 4)])
def test_orthogonalise_agrees_with_the_singular_vectors(shape, bf16):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    found = orthogonalise(matrix, bf16=bf16)
    values = torch.linalg.svdvals(found)
    assert 0.6 < values.min() and values.max() < 1.3
    assert torch.nn.functional.cosine_similarity(found.flatten(), (u @ v).flatten(), dim=0) > 0.97


def test_the_update_has_the_size_of_adamw():
    weight = nn.Parameter(torch.zeros(64, 96))
    weight.grad = torch.randn(64, 96, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=1.0).step()
    assert 0.1 < weight.square().mean().sqrt() < 0.4  # AdamW's updates have a root mean square of 0.2 … 0.4


def test_vectors_are_refused():
    with pytest.raises(ValueError, match="matrices and convolutions"):
        Muon([nn.Parameter(torch.zeros(3))])
    with pytest.raises(ValueError, match="choose adamw or muon"):
        build("sgd", network(), 1e-3)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_parameter_moves_and_a_restored_state_goes_on_alike(name):
    net = network()
    before = copy.deepcopy(net.state_dict())
    optimizer = build(name, net, 1e-2, outer=("0.",))["main"]
    for seed in range(3):
        step(net, optimizer, seed)
    assert all(not torch.equal(before[k], v) for k, v in net.state_dict().items())

    other = network()
    other.load_state_dict(net.state_dict())
    again = build(name, other, 1e-2, outer=("0.",))["main"]
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(3, 6):
        step(net, optimizer, seed)
        step(other, again, seed)
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), other.parameters()))


def test_a_state_of_adamw_is_refused_by_muon():
    net = network()
    with pytest.raises(ValueError, match="Muon with AdamW"):
        build("muon", net, 1e-3)["main"].load_state_dict(build("adamw", net, 1e-3)["main"].state_dict())
