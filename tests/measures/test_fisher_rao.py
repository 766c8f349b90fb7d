"""The Fisher-Rao norm: definition, lemma 2.1, theorem 3.1, invariance, losses and errors."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from unittest import mock

import pytest
import torch
from torch import nn

import reference_fisher as reference
from networks import CHAINS, NETWORKS
from pretend_device import pretend_device
from sklearn_capacity import NotDefinedError, UnsupportedLayerError, measure_capacity
from sklearn_capacity.derivatives.parameter_tangent import parameter_tangent
from sklearn_capacity.graph import Network
from sklearn_capacity.graph.activations import ACTIVATIONS
from sklearn_capacity.graph.functions import FUNCTIONS
from sklearn_capacity.measures import MEASURES, Batch, fisher_rao

CASES = ["mlp", "mlp_no_bias", "mlp_tanh", "mlp_batch_norm", "tied", "conv_batch_norm", "conv_max_pool", "residual"]


@functools.cache
def network(name):
    module, X, y = NETWORKS[name]()
    output = "one_logit" if name == "binary" else "logits"
    return Network(module, tuple(X.shape[1:]), output=output), X, y, reference.folded(name, module)


def norm(name, y=None, *, loss="cross_entropy", batch_size=None, **params):
    net, X, labels, _ = network(name)
    batch = Batch(net, X, labels if y is None else y, loss=loss, batch_size=batch_size)
    return MEASURES["fisher_rao_norm"](net, batch, **params).value


def targets(name):
    net, X, _, _ = network(name)
    generator = torch.Generator().manual_seed(2)
    return torch.randn(len(X), net.n_outputs, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("parameters", ["all", "weights"])
@pytest.mark.parametrize("distribution", ["empirical", "model"])
@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("name", ["mlp", "mlp_tanh", "conv_batch_norm", "tied"])
def test_is_the_quadratic_form_of_gradients_of_the_log_likelihood(name, loss, distribution, parameters):
    _, X, y, by_hand = network(name)
    y = y if loss == "cross_entropy" else targets(name)
    expected = reference.fisher_rao(by_hand, X, y, loss, distribution, parameters == "weights")
    value = norm(name, y, loss=loss, distribution=distribution, parameters=parameters)
    assert value == pytest.approx(math.sqrt(expected), rel=1e-10)


@pytest.mark.parametrize("name", [*CASES, "binary"])
def test_default_is_the_empirical_one_over_all_parameters(name):
    _, X, y, by_hand = network(name)
    expected = reference.fisher_rao(by_hand, X, y, "cross_entropy", "empirical", False)
    assert norm(name) == pytest.approx(math.sqrt(expected), rel=1e-10)
    assert norm(name, squared=True) == pytest.approx(expected, rel=1e-10)
    assert norm(name, batch_size=3) == pytest.approx(math.sqrt(expected), rel=1e-10)


def test_absolute_loss_of_one_output():
    _, X, _, by_hand = network("one_output")
    y = targets("one_output")
    expected = math.sqrt(reference.fisher_rao(by_hand, X, y, "absolute", "empirical", False))
    assert norm("one_output", y, loss="absolute") == pytest.approx(expected, rel=1e-10)
    # theorem 3.1 for this loss: the norm is the number of layers times the root mean square of f
    root = float((by_hand(X) ** 2).mean().sqrt())
    assert norm("one_output", y, loss="absolute", per_layer=True) == pytest.approx(root, rel=1e-12)


@pytest.mark.parametrize("name", CHAINS)
def test_theorem_3_1(name):
    """|theta|_fr^2 = d^2 E <dl/df, f>^2 for bias-free homogeneous chains, whatever the loss."""
    net, X, y, by_hand = network(name)
    d = len(net.graph.layers)
    f = by_hand(X).detach()
    t = targets(name)
    squared = float((((f - t) * f).sum(1) ** 2).mean())
    assert norm(name, t, loss="squared", squared=True) == pytest.approx(d**2 * squared, rel=1e-12)
    assert norm(name, t, loss="squared", per_layer=True) == pytest.approx(math.sqrt(squared), rel=1e-12)
    if f.shape[1] > 1:
        p = f.softmax(1)
        inner = (p * f).sum(1) - f.gather(1, y[:, None])[:, 0]
        assert norm(name, squared=True) == pytest.approx(d**2 * float((inner**2).mean()), rel=1e-12)


def test_theorem_3_1_fails_with_biases():
    net, X, y, by_hand = network("mlp")
    f = by_hand(X).detach()
    inner = (f.softmax(1) * f).sum(1) - f.gather(1, y[:, None])[:, 0]
    assert norm("mlp") != pytest.approx(len(net.graph.layers) * float((inner**2).mean().sqrt()), rel=0.01)


def test_model_distribution_needs_no_labels():
    module, X, y = NETWORKS["mlp"]()
    request = {"fr": ("fisher_rao_norm", {"distribution": "model"})}
    assert measure_capacity(module, X, None, request, loss="cross_entropy") == measure_capacity(module, X, y, request)


def test_frozen_parameters_take_no_part():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    X, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    net[0].requires_grad_(False)
    expected = reference.fisher_rao(net, X, y, "cross_entropy", "empirical", False)
    assert measure_capacity(net, X, y, "fisher_rao_norm")["fisher_rao_norm"] ** 2 == pytest.approx(expected, rel=1e-10)
    net[2].requires_grad_(False)
    with pytest.raises(NotDefinedError, match="needs trainable parameters, and all are frozen"):
        measure_capacity(net, X, y, "fisher_rao_norm")


@pytest.mark.parametrize("parameters", ["all", "weights"])
def test_networks_without_a_tangent_rule_take_two_reverse_sweeps(parameters):
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.head = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)

        def forward(self, x):
            return self.head(self.norm(self.first(x)).relu())

    net = Normed().double()
    X, y = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    expected = reference.fisher_rao(net, X, y, "cross_entropy", "empirical", parameters == "weights")
    request = {"fr": ("fisher_rao_norm", {"parameters": parameters})}
    assert measure_capacity(net, X, y, request, batch_size=4)["fr"] ** 2 == pytest.approx(expected, rel=1e-9)


class Tokens(nn.Module):
    """A table of tokens, which the last layer may read as well."""

    def __init__(self, padding, tied):
        super().__init__()
        self.table, self.hidden, self.last = nn.Embedding(7, 4, padding), nn.Linear(12, 4), nn.Linear(4, 7)
        nn.init.normal_(self.table.weight)  # the row of the padding, too
        if tied:
            self.last.weight = self.table.weight

    def forward(self, x):
        return self.last(torch.tanh(self.hidden(self.table(x.long()).flatten(1))))


@pytest.mark.parametrize("parameters", ["all", "weights"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("padding", [None, 0, 3])
def test_tables_of_tokens_take_one_sweep(padding, tied, parameters, monkeypatch):
    monkeypatch.setattr(fisher_rao, "AutogradJacobian", mock.Mock(side_effect=AssertionError))
    module = Tokens(padding, tied).double().eval()
    X = torch.randint(7, (9, 3), generator=torch.Generator().manual_seed(0)).double()
    y = torch.arange(9) % 7
    theta = dict(module.named_parameters())
    J = torch.autograd.functional.jacobian(
        lambda *values: torch.func.functional_call(module, dict(zip(theta, values, strict=True)), (X,)),
        tuple(p.detach() for p in theta.values()),
    )
    counted = [parameters == "all" or p.dim() == 2 for p in theta.values()]
    u = sum(
        counts * (j * p.detach()).flatten(2).sum(2) for j, p, counts in zip(J, theta.values(), counted, strict=True)
    )
    residual = module(X).detach().softmax(1) - torch.nn.functional.one_hot(y, 7)
    expected = (residual * u).sum(1).square().mean().sqrt().item()
    got = MEASURES["fisher_rao_norm"](
        network := Network(module, (3,), samples=X), Batch(network, X, y, loss="cross_entropy"), parameters=parameters
    )
    assert got.value == pytest.approx(expected, rel=1e-10)


class Attention(nn.Module):
    """Every kind of step whose tangent needs its value: products of signals, a softmax, a norm, smooth activations."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.last = nn.LayerNorm(6), nn.Linear(6, 18), nn.Linear(6, 4)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        attended = torch.softmax(q @ k.transpose(1, 2), -1) @ v
        return self.last(torch.tanh(attended).mul(torch.sigmoid(v)).mean(1))


def test_a_sweep_computes_each_value_once(monkeypatch):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        module, X = Attention().double(), torch.randn(9, 5, 6, dtype=torch.float64)
    net = Network(module, (5, 6))
    theta = {name: p.detach() for name, p in module.named_parameters()}
    f, u = torch.func.jvp(lambda point: torch.func.functional_call(module, point, (X,)), (theta,), (theta,))
    values, graph = [], net.graph
    for table in (FUNCTIONS, ACTIVATIONS):
        for kind, row in table.items():

            def counted(*args, kind=kind, value=row.value):
                values.append(kind)
                return value(*args)

            monkeypatch.setitem(table, kind, replace(row, value=counted))
    with torch.no_grad():
        got = parameter_tangent(graph, X)
    torch.testing.assert_close(got, (f.detach(), u.detach()), rtol=1e-10, atol=1e-12)
    kinds = [node.params["kind"] for node in graph.nodes if node.op in ("function", "activation")]
    assert {"matmul", "softmax", "product", "tanh", "sigmoid"} < set(kinds)
    assert sorted(values) == sorted(kinds)


def test_runs_on_an_accelerator():
    module, X, y = NETWORKS["conv_max_pool"]()
    expected = measure_capacity(module, X, y, "fisher_rao_norm")
    with pretend_device() as device:
        assert measure_capacity(module, X, y, "fisher_rao_norm", device=device.device) == pytest.approx(expected)


def test_refusals():
    module, X, y = NETWORKS["mlp"]()
    with pytest.raises(NotDefinedError, match="absolute loss is defined for one output, got 3"):
        measure_capacity(module, X, torch.zeros(7, 3, dtype=torch.float64), "fisher_rao_norm", loss="absolute")
    with pytest.raises(ValueError, match="`distribution` must be one of 'empirical', 'model', got 'true'"):
        measure_capacity(module, X, y, {"fr": ("fisher_rao_norm", {"distribution": "true"})})
    with pytest.raises(ValueError, match="`parameters` must be one of 'all', 'weights', got 'biases'"):
        measure_capacity(module, X, y, {"fr": ("fisher_rao_norm", {"parameters": "biases"})})
    with pytest.raises(NotDefinedError, match="needs labels"):
        measure_capacity(module, X, None, "fisher_rao_norm", loss="cross_entropy")


@pytest.mark.parametrize("through_graph", [True, False])
def test_weights_are_matrices_and_kernels_only(through_graph, monkeypatch):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)
            self.scale = nn.Parameter(torch.linspace(0.5, 2, 5))

        def forward(self, x):
            return self.last(self.first(x).relu() * self.scale)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, X = Scaled().double(), torch.randn(6, 4, dtype=torch.float64)
    y = torch.arange(6) % 3

    def tangent(*weights):  # along the two matrices alone
        point = {"first.weight": weights[0], "last.weight": weights[1]}
        return torch.func.functional_call(module, point, (X,))

    matrices = (module.first.weight.detach(), module.last.weight.detach())
    f, u = torch.func.jvp(tangent, matrices, matrices)
    p = f.softmax(1)
    expected = ((p - nn.functional.one_hot(y, 3)) * u).sum(1).square().mean().sqrt()
    if not through_graph:
        refusal = UnsupportedLayerError("no rule")
        monkeypatch.setattr(fisher_rao, "parameter_tangent", mock.Mock(side_effect=refusal))
    got = measure_capacity(module, X, y, {"n": ("fisher_rao_norm", {"parameters": "weights"})})["n"]
    assert got == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["mlp_tanh", "conv_batch_norm", "residual", "binary"])
def test_its_logits_serve_other_measures_in_double_precision(name):
    net, X, y, _ = network(name)
    expected = Batch(net, X, y, loss="cross_entropy").logits
    batch = Batch(net, X, y, loss="cross_entropy")
    MEASURES["fisher_rao_norm"](net, batch)
    with mock.patch.object(Network, "forward", side_effect=AssertionError):
        torch.testing.assert_close(batch.logits, expected, rtol=1e-12, atol=1e-12)


def test_in_single_precision_the_logits_are_the_modules():
    module, X, y = NETWORKS["conv_batch_norm"]()
    net, X = Network(module, tuple(X.shape[1:]), dtype=torch.float32), X.float()
    batch = Batch(net, X, y, loss="cross_entropy")
    MEASURES["fisher_rao_norm"](net, batch)
    with torch.no_grad():
        assert torch.equal(batch.logits, net.forward(batch.X).double())
