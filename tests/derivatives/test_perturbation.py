"""Weights that move: the flat buffer, random displacements, and which parameters of a network they are."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import networks
from sklearn_capacity import UnsupportedLayerError, measure_capacity
from sklearn_capacity.derivatives.parameter_groups import parameter_groups
from sklearn_capacity.derivatives.parameter_vector import parameter_vector
from sklearn_capacity.derivatives.perturbation import FlatParameters, displacements
from sklearn_capacity.graph import Network

# -- the flat buffer ---------------------------------------------------------------------------------------------------


def test_views_share_the_buffer_in_every_shape():
    tensors = [torch.randn(3, 2), torch.randn(4, 3, 2, 5), torch.randn(7), torch.randn(2, 3, 4)]
    theta = FlatParameters(tensors)
    assert len(theta) == 6 + 120 + 7 + 24
    assert all(torch.equal(a, b) for a, b in zip(theta.views, tensors, strict=True))
    assert all(v.untyped_storage().data_ptr() == theta.flat.untyped_storage().data_ptr() for v in theta.views)
    theta.flat.mul_(2)
    assert all(torch.equal(a, 2 * b) for a, b in zip(theta.views, tensors, strict=True))
    theta.restore()
    assert all(torch.equal(a, b) for a, b in zip(theta.views, tensors, strict=True))
    assert theta.views[1].is_contiguous(memory_format=torch.channels_last)


def test_antithetic_displacements_come_in_pairs_of_the_stated_deviation():
    theta = FlatParameters([torch.full((20_000,), 3.0, dtype=torch.float64)])
    scale = torch.linspace(0.5, 2.0, 20_000, dtype=torch.float64)
    seen = [theta.flat - 3.0 for _ in displacements(theta, scale, 4, torch.Generator().manual_seed(0), antithetic=True)]
    assert torch.allclose(seen[0], -seen[1]) and torch.allclose(seen[2], -seen[3])
    assert not torch.allclose(seen[0].abs(), seen[2].abs())
    standard = torch.cat([seen[0], seen[2]]) / torch.cat([scale, scale])
    n = len(standard)
    assert abs(standard.mean()) < 4 / math.sqrt(n) and abs(standard.std() - 1) < 4 / math.sqrt(2 * n)
    assert torch.equal(theta.flat, theta.center)
    single = [theta.flat - 3.0 for _ in displacements(theta, 0.5, 3, torch.Generator().manual_seed(0))]
    assert all(abs(s.std() - 0.5) < 4 * 0.5 / math.sqrt(2 * 20_000) for s in single)
    assert not torch.allclose(single[0], -single[1])


def test_a_loop_that_breaks_off_leaves_the_centre():
    theta = FlatParameters([torch.ones(5)])
    draws = displacements(theta, 0.1, 10, torch.Generator().manual_seed(0))
    next(draws)
    assert not torch.equal(theta.flat, theta.center)
    draws.close()
    assert torch.equal(theta.flat, theta.center)


# -- which parameters move ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["mlp", "conv_batch_norm", "residual_preactivation", "tied", "weight_norm"])
def test_the_vector_is_that_of_the_graph_and_binds_to_the_network(case):
    module, X, _ = networks.NETWORKS[case]()
    network = Network(module, tuple(X.shape[1:]))
    vector = parameter_vector(network)
    groups = parameter_groups(network.graph)
    assert all(torch.equal(t.flatten(), g.values) for t, g in zip(vector.tensors, groups, strict=True))
    assert torch.allclose(vector.bind(vector.tensors)(X), module(X))


def test_one_logit_moves_as_one():
    module, X, _ = networks.NETWORKS["binary"]()
    vector = parameter_vector(Network(module, (5,), output="one_logit"))
    assert [t.shape for t in vector.tensors] == [p.shape for p in module.parameters()]
    moved = [t + 0.1 for t in vector.tensors]
    logit = nn.functional.linear(nn.functional.linear(X, *moved[:2]).relu(), *moved[2:])
    assert torch.allclose(vector.bind(moved)(X), torch.cat([-logit, logit], dim=1) / 2)


class _Autoencoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))

    def forward(self, x):
        return nn.functional.linear(nn.functional.linear(x, self.weight).relu(), self.weight.T)


def test_a_transposed_tie_moves_as_one():
    module, X = _Autoencoder(), torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vector = parameter_vector(Network(module, (4,)))
    assert [t.shape for t in vector.tensors] == [(3, 4)]
    moved = vector.tensors[0] + 0.3
    assert torch.allclose(vector.bind([moved])(X), (X @ moved.T).relu() @ moved)


class _Sliced(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))

    def forward(self, x):
        return nn.functional.linear(nn.functional.linear(x, self.weight).relu(), self.weight[:2])


def test_a_part_of_a_parameter_moves_with_the_whole():
    module, X = _Sliced(), torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    vector = parameter_vector(Network(module, (4,)))  # by the raw parameters: the graph would move them apart
    assert [t.shape for t in vector.tensors] == [(4, 4)]
    moved = vector.tensors[0] + 0.3
    assert torch.allclose(vector.bind([moved])(X), (X @ moved.T).relu() @ moved[:2].T)


def test_raw_parameters_where_the_graph_has_no_rule():
    module, X, y = networks.make(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)), (4,)
    )
    vector = parameter_vector(Network(module, (4,)))
    assert sum(t.numel() for t in vector.tensors) == sum(p.numel() for p in module.parameters())
    assert torch.allclose(vector.bind(vector.tensors)(X), module(X))


def test_raw_parameters_that_nothing_reads_are_left_out():
    module, _, _ = networks.make(lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6)), (4,))
    expected = [p.shape for p in module.parameters()]
    module[0].spare = nn.Linear(9, 9).double()
    assert [t.shape for t in parameter_vector(Network(module, (4,))).tensors] == expected


class _Branching(nn.Sequential):
    """Has no graph: what it computes depends on the data, if only on whether they are finite."""

    def forward(self, x):
        return super().forward(x) if x.isfinite().all() else x


@pytest.mark.parametrize(
    "last",
    [
        lambda: nn.BatchNorm1d(6),
        lambda: parametrizations.weight_norm(nn.Linear(6, 6)),
        lambda: old_weight_norm(nn.Linear(6, 6)),
        lambda: old_spectral_norm(nn.Linear(6, 6)),
        lambda: prune.random_unstructured(nn.Linear(6, 6), "weight", 0.5),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_refusals_name_the_layer(last):
    module, X, y = networks.make(lambda: _Branching(nn.Linear(4, 6), nn.Tanh(), last()), (4,))
    with pytest.raises(UnsupportedLayerError, match="cannot be traced.*Without a graph, layer `2` cannot be folded"):
        measure_capacity(module, X, y % 2, "expected_sharpness")


def test_nothing_trained_is_nothing_to_move():
    _, X, y = networks.mlp()
    with pytest.raises(UnsupportedLayerError, match="The network has no trainable parameters that could vary"):
        measure_capacity(nn.Identity(), X, y % 2, "max_sharpness")
