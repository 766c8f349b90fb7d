"""Sizes of a network, and its distance from the initialisation, from the module's own tensors."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import reference
from networks import NETWORKS, make, measure, measure_module, prepared
from sklearn_capacity import NetworkClassifier, measure_capacity
from sklearn_capacity.graph import Network, UnsupportedLayerError
from sklearn_capacity.measures import MEASURES, Batch, NotDefinedError

# Sizes ----------------------------------------------------------------------------------------------------------------


def test_sizes_of_a_perceptron():
    module, X, _ = NETWORKS["mlp"]()
    theta = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert measure("mlp", "parameter_norm").value == pytest.approx(float(theta.norm()), rel=1e-12)
    assert measure("mlp", "vc_dimension").value == 3 * len(theta)
    module[0].weight.requires_grad_(False)  # frozen: no parameter
    assert measure_module(module, X, "parameter_norm").value == pytest.approx(float(theta[30:].norm()), rel=1e-12)
    assert measure_module(module, X, "vc_dimension").value == 3 * len(theta[30:])


def test_an_empty_parameter_adds_nothing():
    module = nn.Linear(4, 3)
    expected = measure_module(module, torch.randn(5, 4), "parameter_norm").value
    module.nothing = nn.Parameter(torch.zeros(0))
    assert measure_module(module, torch.randn(5, 4), "parameter_norm").value == expected


@pytest.mark.parametrize("name", ["conv_batch_norm", "mlp_batch_norm", "residual", "residual_preactivation"])
def test_parameter_norm_folds_batch_norm(name):
    module, X, _ = NETWORKS[name]()
    squared = sum(float(np.square(W).sum()) for W in reference.kernels(name, module))
    biases = {node.name: node.bias.detach() for node in prepared(name)[0].graph.nodes if node.bias is not None}
    squared += sum(float((bias**2).sum()) for bias in biases.values())
    assert measure(name, "parameter_norm").value == pytest.approx(math.sqrt(squared), rel=1e-12)
    # What batch norm 1 folds to, by hand: the shift of the first layer.
    if name == "conv_batch_norm":
        norm = module[1]
        shift = norm.bias - norm.running_mean * norm.weight / (norm.running_var + norm.eps).sqrt()
        assert torch.allclose(next(iter(biases.values())), shift)
        assert measure(name, "vc_dimension").value == 2 * (72 + 4 + 12 + 3)


def test_tied_tensors_count_once_and_their_biases_all():
    module, _, _ = NETWORKS["tied"]()
    theta = torch.cat([p.detach().flatten() for p in module.parameters()])  # torch lists the tied matrix once
    assert len(theta) == 16 + 2 * 4 + 15
    assert measure("tied", "parameter_norm").value == pytest.approx(float(theta.norm()), rel=1e-12)
    assert measure("tied", "vc_dimension").value == 3 * len(theta)


class _Sliced(nn.Module):
    """Two slices of one parameter and a matrix, then the matrix transposed."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.parts = nn.Parameter(torch.randn(4, 4, generator=generator))
        self.tied = nn.Parameter(torch.randn(4, 4, generator=generator))

    def forward(self, x):
        both = [nn.functional.linear(x, part) for part in self.parts.chunk(2)]
        hidden = nn.functional.linear(torch.cat(both, 1).relu(), self.tied)
        return nn.functional.linear(hidden.relu(), self.tied.t())


def test_slices_of_a_parameter_are_distinguished_and_a_transpose_is_not():
    module, X = _Sliced().double(), torch.ones(2, 4, dtype=torch.float64)
    expected = math.hypot(float(module.parts.detach().norm()), float(module.tied.detach().norm()))
    assert measure_module(module, X, "parameter_norm").value == pytest.approx(expected, rel=1e-12)
    assert measure_module(module, X, "vc_dimension").value == 4 * 32


class _Overlapping(_Sliced):
    """The first three rows of one parameter, then the last three; so the middle two are read twice."""

    def forward(self, x):
        hidden = nn.functional.linear(x, self.parts[:3]).relu()
        return nn.functional.linear(hidden, self.parts[1:, :3])


def test_what_two_slices_share_counts_once_and_what_none_reads_too():
    module, X = _Overlapping().double(), torch.ones(2, 4, dtype=torch.float64)
    expected = math.hypot(float(module.parts.detach().norm()), float(module.tied.detach().norm()))
    assert measure_module(module, X, "parameter_norm").value == pytest.approx(expected, rel=1e-12)
    assert measure_module(module, X, "vc_dimension").value == 2 * 32


class _Unused(nn.Module):
    """A layer that the output does not depend on, a frozen one, and two that share one matrix."""

    def __init__(self, *, norm: bool = False) -> None:
        super().__init__()
        self.first, self.other, self.fixed = nn.Linear(4, 5), nn.Linear(6, 2), nn.Linear(5, 5).requires_grad_(False)
        self.norm = nn.BatchNorm1d(5) if norm else nn.Identity()
        self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 3)
        self.last_but_one = nn.Linear(5, 5)
        self.last_but_one.weight = self.second.weight

    def forward(self, x):
        hidden = torch.sigmoid(self.fixed(self.norm(self.first(x))))
        return self.last(self.last_but_one(hidden * self.second(hidden)))


def test_the_three_sizes_are_of_one_set_of_parameters():
    module, X, _ = make(_Unused, (4,))
    theta = torch.cat([p.detach().flatten() for p in module.parameters() if p.requires_grad])  # a tied one once
    assert measure_module(module, X, "parameter_count").value == len(theta)
    assert measure_module(module, X, "vc_dimension").value == 5 * len(theta)
    assert measure_module(module, X, "parameter_norm").value == pytest.approx(float(theta.norm()), rel=1e-12)


def test_unused_parameters_count_beside_a_folded_batch_norm():
    module, X, _ = make(lambda: _Unused(norm=True), (4,))
    with torch.no_grad():
        fused = nn.utils.fusion.fuse_linear_bn_eval(module.first, module.norm)
    plain = _Unused().double()
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if not k.startswith("norm")})
    plain.first = fused
    for name in ("parameter_norm", "vc_dimension"):
        assert measure_module(module, X, name).value == pytest.approx(measure_module(plain, X, name).value, rel=1e-12)


def test_a_model_of_one_logit_has_the_parameters_of_one():
    """And not those of the two-logit net by which it is measured, whose rows are tied."""
    X = np.random.default_rng(0).normal(size=(40, 4))
    model = LogisticRegression().fit(X, X[:, 0] > 0.3)
    theta = np.append(model.coef_, model.intercept_)
    spherical = ("kl_divergence", {"noise": "spherical", "sigma": 1.0})
    wanted = {"vc": "vc_dimension", "norm": "parameter_norm", "kl": spherical}
    values = measure_capacity(model, measures=wanted)
    assert values["vc"] == 5
    assert values["norm"] == pytest.approx(float(np.linalg.norm(theta)), rel=1e-12)
    assert values["norm"] ** 2 / 2 == pytest.approx(values["kl"], rel=1e-9)


def test_parameter_norm_takes_the_effective_weight():
    module, _, _ = NETWORKS["weight_norm"]()
    tensors = [module[0].weight, module[0].bias, module[2].weight, module[2].bias]
    expected = math.sqrt(sum(float((t.detach() ** 2).sum()) for t in tensors))
    assert measure("weight_norm", "parameter_norm").value == pytest.approx(expected, rel=1e-12)


# Distance from the initialisation -------------------------------------------------------------------------------------


def moved(name: str) -> tuple[Network, nn.Module, nn.Module]:
    """A network with an initial state of other parameters and statistics, and the modules of both."""
    after, _, _ = NETWORKS[name]()
    before = copy.deepcopy(after)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in {**dict(before.named_parameters()), **dict(before.named_buffers())}.values():
            if tensor.is_floating_point():
                tensor.add_(0.1 * torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype))
    network = copy.copy(prepared(name)[0])
    network.initial_state = before.state_dict()
    return network, after, before


def leaves_with_matrices(module: nn.Module) -> dict[str, nn.Module]:
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d)
    leaves, seen = {}, set()
    for key, leaf in module.named_modules():
        if isinstance(leaf, kinds) and id(leaf.weight) not in seen:
            seen.add(id(leaf.weight))
            leaves[key] = leaf
    return leaves


@pytest.mark.parametrize("name", NETWORKS)
def test_distance_sums_raw_matrices(name):
    network, module, before = moved(name)
    batch = Batch(network)
    leaves = leaves_with_matrices(module)
    changes = {key: (leaf.weight - before.get_submodule(key).weight).detach() for key, leaf in leaves.items()}
    measured = MEASURES["distance_from_initialization"](network, batch)
    assert measured.value == pytest.approx(sum(float(change.norm()) for change in changes.values()), rel=1e-12)
    assert {row["layer"] for row in measured.per_layer} == set(changes)
    X = NETWORKS[name]()[1]
    with torch.no_grad():  # the operator of the difference, from the leaf's own Jacobian
        for key, leaf in leaves.items():
            _overwrite(leaf, changes[key])
    tops = [np.linalg.svd(reference.leaf_matrices(module, X[0])[key], compute_uv=False)[0] for key in changes]
    spectral = MEASURES["distance_from_initialization"](network, batch, norm="spectral")
    assert spectral.value == pytest.approx(float(sum(tops)), rel=1e-8)


def _overwrite(leaf: nn.Module, weight: torch.Tensor) -> None:
    if torch.nn.utils.parametrize.is_parametrized(leaf):
        torch.nn.utils.parametrize.remove_parametrizations(leaf, "weight")
    leaf.weight.copy_(weight.detach())


@pytest.mark.filterwarnings("ignore:No value of")  # of two small layers
def test_distance_of_a_fitted_estimator():
    X = np.random.default_rng(0).normal(size=(40, 4))
    model = NetworkClassifier((5,), batch_norm=True, max_epochs=2, random_state=0).fit(X, (X[:, 0] > 0).astype(int))
    now, before = model.module_.state_dict(), model.initial_state_
    by_hand = sum(float((now[k] - before[k]).norm()) for k in now if now[k].dim() == 2)
    assert by_hand > 0
    name = "distance_from_initialization"
    assert measure_capacity(model, X, measures=name)[name] == pytest.approx(by_hand, rel=1e-5)
    assert measure_capacity(model.module_, X, measures="all", loss="squared").keys().isdisjoint({name})


def test_distance_needs_a_matching_initial_state():
    module, X, _ = NETWORKS["mlp"]()
    with pytest.raises(NotDefinedError, match="needs the weights before training: pass .* `initial_state`"):
        measure_capacity(module, X, measures="distance_from_initialization")
    network = Network(module, (5,))
    with pytest.raises(UnsupportedLayerError, match="The weights before training are not known for this model"):
        MEASURES["distance_from_initialization"](network, Batch(network))
    other = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 3)).state_dict()
    network = Network(module, (5,), initial_state=other)
    with pytest.raises(UnsupportedLayerError, match=r"belong to another module: `0.weight` has shape \(7, 5\)"):
        MEASURES["distance_from_initialization"](network, Batch(network))
    network = Network(module, (5,), initial_state={})
    with pytest.raises(UnsupportedLayerError, match="belong to another module: `0.weight` is missing"):
        MEASURES["distance_from_initialization"](network, Batch(network))


def test_distance_is_taken_of_matrices_in_any_operator():
    def build() -> nn.Module:
        return nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)

    module, X, _ = make(build, (5, 4))
    before = copy.deepcopy(module)
    expected = 0.0
    for parameter in module.parameters():
        parameter.data += 0.5
        expected += 0.5 * math.sqrt(parameter.numel()) if parameter.dim() > 1 else 0.0
    network = Network(module, (5, 4), initial_state=before.state_dict())
    batch = Batch(network, X)
    assert MEASURES["distance_from_initialization"](network, batch).value == pytest.approx(expected)
    assert MEASURES["distance_from_initialization"](network, batch, norm="spectral").value == pytest.approx(expected)


def test_distance_lets_layer_norm_pass():
    build = lambda: nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4), nn.Linear(4, 3))  # noqa: E731
    module, _, _ = make(build, (5,))
    before = copy.deepcopy(module)
    module[0].weight.data[0, 0] += 3.0
    module[1].weight.data += 1.0
    network = Network(module, (5,), initial_state=before.state_dict())
    assert MEASURES["distance_from_initialization"](network, Batch(network)).value == pytest.approx(3.0)
