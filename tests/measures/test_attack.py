"""The attack on the input margin against boundaries whose distance is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from networks import NETWORKS
from sklearn_capacity import measure_capacity
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import Batch
from sklearn_capacity.measures.radii import sample_radii


def test_attack_is_exact_for_linear_models_of_many_classes():
    """The distance to the nearest of the planes f_y = f_j, one search from the sample."""
    rng = np.random.default_rng(0)
    module = nn.Linear(5, 4).double()
    X = torch.as_tensor(rng.normal(size=(30, 5)))
    y = module(X).argmax(1)
    logits, W = module(X).detach().numpy(), module.weight.detach().numpy()
    distances = [
        min((row[c] - row[j]) / np.linalg.norm(W[c] - W[j]) for j in range(4) if j != c)
        for row, c in zip(logits, y.tolist(), strict=True)
    ]
    for q in (0, 50, 100):
        request = {"r": ("input_margin_bound", {"method": "attack", "n_draws": 1, "percentile": q})}
        got = measure_capacity(module, X, y, request)["r"]
        assert np.percentile(distances, q) <= got * (1 + 1e-12) <= np.percentile(distances, q) * (1 + 1e-4)


class Rings(nn.Module):
    """Class 1 between two circles around the origin, so that the margin is known and the boundary is curved."""

    def forward(self, x):
        r = x.norm(dim=1, keepdim=True)
        return torch.cat([(r - 1) * (r - 2), torch.zeros_like(r)], 1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_attack_finds_the_nearest_point_of_a_curved_boundary(dtype):
    rng = np.random.default_rng(0)
    X = torch.as_tensor(rng.normal(size=(40, 3)), dtype=dtype)
    r, module = X.norm(dim=1), Rings()
    y = module(X).argmax(1)
    expected = torch.minimum((r - 1).abs(), (r - 2).abs()).numpy()
    net = Network(module, (3,))
    got = sample_radii(net, Batch(net, X, y, loss="cross_entropy"), "attack", 10)[0].numpy()
    assert (expected * (1 - 1e-5) <= got).all() and (got <= expected * (1 + 1e-3) + 1e-5).all()


def test_the_points_of_an_attack_are_misclassified():
    """What lies farther than the boundary of a sphere has the class of the outside, whatever the Jacobians say."""

    class Sphere(nn.Module):
        def forward(self, x):
            r = x.norm(dim=1, keepdim=True)
            return torch.cat([torch.where(r < 1, 1 + 0.01 * r, -1.0), torch.zeros_like(r)], 1)  # its slope misleads

    X = torch.tensor([[0.5, 0.0], [0.0, 0.9], [2.0, 0.0]])
    net = Network(Sphere(), (2,))
    got = sample_radii(net, Batch(net, X, torch.tensor([0, 0, 0]), loss="cross_entropy"), "attack", 20)[0]
    assert got[0] >= 0.5 and got[1] >= 0.1 and got[2] == 0


def test_an_attack_repeats_for_a_seed_and_more_searches_find_no_farther_points():
    module, X, _ = NETWORKS["mlp"]()
    y = module(X).argmax(1)
    few, more = ({"r": ("input_margin_bound", {"method": "attack", "n_draws": n, "percentile": 50})} for n in (1, 4))
    assert measure_capacity(module, X, y, more)["r"] <= measure_capacity(module, X, y, few)["r"]
    assert measure_capacity(module, X, y, more) == measure_capacity(module, X, y, more)
    split = measure_capacity(module, X, y, more, batch_size=3)["r"]
    assert split == pytest.approx(measure_capacity(module, X, y, more)["r"], rel=1e-3)


def test_an_attack_proves_no_bound():
    module, X, _ = NETWORKS["mlp"]()
    params = {"method": "attack", "manifold_dim": 1, "manifold_constant": 1.0}
    with pytest.raises(
        ValueError, match="`method` must be one of 'spectral', 'frobenius', 'jacobian', 'hull', got 'attack'"
    ):
        measure_capacity(module, X, module(X).argmax(1), {"b": ("robustness_bound", params)})
