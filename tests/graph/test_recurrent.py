"""Recurrent layers as their steps: the same function, and bounds and path norms that loops over dense matrices give."""

from __future__ import annotations

import functools
import operator
import re

import numpy as np
import pytest
import torch
from torch import nn

from measuring import values_of
from sklearn_capacity import UnsupportedLayerError, measure_capacity
from sklearn_capacity.graph import Network, evaluate
from sklearn_capacity.measures.layer_operators import graph_layers
from sklearn_capacity.penalties import frobenius_penalty
from zoo import Of

STEPS = 4


def _last(m, x):
    return m.head(m.r(x)[0][:, -1])


def _cells(m, x):
    h = x.new_zeros(x.shape[0], 3)
    for t in range(STEPS):
        h = m.r(x[:, t], h)
    return m.head(h)


def _lstm_cells(m, x):
    h = c = x.new_zeros(x.shape[0], 3)
    for t in range(STEPS):
        h, c = m.r(x[:, t], (h, c))
    return m.head(torch.cat([h, c], 1))


def _from_trained_state(m, x):
    return m.head(m.r(x, m.h.expand(-1, x.shape[0], -1).contiguous())[0].sum(1))


def _decoder(m, x):
    return m.head(m.r(x, m.a(x)[1])[0][:, -1])


def _shorter(m, x):
    return m.head(m.r(x)[0][:, 1:3].flatten(1))


NETWORKS = {
    "lstm": (_last, lambda: nn.LSTM(2, 3, batch_first=True), 3, {}),
    "lstm without biases": (_last, lambda: nn.LSTM(2, 3, batch_first=True, bias=False), 3, {}),
    "lstm cell state": (lambda m, x: m.head(m.r(x)[1][1][0]), lambda: nn.LSTM(2, 3, batch_first=True), 3, {}),
    "lstm projected": (_last, lambda: nn.LSTM(2, 3, 2, batch_first=True, proj_size=1), 1, {}),
    "lstm, time first": (
        lambda m, x: m.head(m.r(x.transpose(0, 1))[0][-1]),
        lambda: nn.LSTM(2, 3, 2, bidirectional=True),
        6,
        {},
    ),
    "gru": (_last, lambda: nn.GRU(2, 3, batch_first=True), 3, {}),
    "gru, both directions": (
        lambda m, x: m.head(m.r(x)[1].transpose(0, 1).flatten(1)),
        lambda: nn.GRU(2, 3, 2, batch_first=True, bidirectional=True),
        12,
        {},
    ),
    "gru of several steps": (_shorter, lambda: nn.GRU(2, 3, batch_first=True), 6, {}),
    "gru after gru": (
        _decoder,
        lambda: nn.GRU(2, 3, batch_first=True),
        3,
        {"a": lambda: nn.GRU(2, 3, batch_first=True)},
    ),
    "tanh": (_last, lambda: nn.RNN(2, 3, batch_first=True), 3, {}),
    "relu from a trained state": (
        _from_trained_state,
        lambda: nn.RNN(2, 3, batch_first=True, nonlinearity="relu"),
        3,
        {"h": lambda: (1, 1, 3)},
    ),
    "gru cells": (_cells, lambda: nn.GRUCell(2, 3), 3, {}),
    "relu cells": (_cells, lambda: nn.RNNCell(2, 3, nonlinearity="relu"), 3, {}),
    "lstm cells": (_lstm_cells, lambda: nn.LSTMCell(2, 3), 6, {}),
}


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    forward, layer, width, more = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        parts = {key: build() for key, build in more.items()}
        module = Of(forward, r=layer(), head=nn.Linear(width, 3), **parts).double().eval()
        return module, torch.randn(6, STEPS, 2, dtype=torch.float64)


@functools.cache
def exports_states() -> bool:
    """Whether this torch exports the final states of an LSTM with their shape; older releases add an axis."""
    module, X = network("lstm cell state")
    program = torch.export.export(module, (X,), strict=False)
    return all(node.meta["val"].dim() == 3 for node in program.graph.nodes if node.target is operator.getitem)


def traced_network(name: str) -> tuple[nn.Module, torch.Tensor]:
    if name == "lstm cell state" and not exports_states():
        pytest.skip("this torch exports the states of an LSTM with an axis too many; the refusal has a test")
    return network(name)


def test_states_of_an_lstm_are_right_or_refused():
    module, X = network("lstm cell state")
    if exports_states():
        assert torch.allclose(evaluate(Network(module, (STEPS, 2)).graph, X), module(X), rtol=1e-10)
    else:
        with pytest.raises(UnsupportedLayerError, match="final states of an LSTM .* torch 2.13"):
            Network(module, (STEPS, 2)).graph  # noqa: B018


@pytest.mark.parametrize("name", NETWORKS)
def test_steps_are_the_same_function(name):
    module, X = traced_network(name)
    net = Network(module, (STEPS, 2))
    graph = net.unrolled_graph
    assert {node.op for node in graph.nodes if not node.is_size} <= {
        "input", "linear", "activation", "function", "add", "cat", "slice", "view", "permute", "pick", "pad",
        "diagonal", "reduce",
    }  # fmt: skip
    assert torch.allclose(evaluate(graph, X), module(X), rtol=1e-10)
    assert len(net.graph.nodes) < len(graph.nodes)


@pytest.mark.parametrize("name", NETWORKS)
def test_bounds_hold_for_every_input(name):
    module, X = traced_network(name)
    values = values_of(module, X, torch.arange(6) % 3, names=["lipschitz_l2", "lipschitz_linf"])
    far = torch.cat([X * scale for scale in (0.01, 1.0, 10.0)])
    jacobians = [torch.autograd.functional.jacobian(lambda x: module(x[None])[0], x).flatten(1) for x in far]
    J = torch.stack(jacobians)  # (n, 3, inputs)
    assert float(torch.linalg.matrix_norm(J, 2).max()) <= values["lipschitz_l2"] < np.inf
    assert float(J.abs().sum(-1).max()) <= values["lipschitz_linf"] < np.inf


def _dense(module: nn.Module) -> list[np.ndarray]:
    return [w.detach().numpy() for w in (module.r.weight_ih_l0, module.r.weight_hh_l0, module.head.weight)]


@pytest.mark.parametrize("kind", ["tanh", "relu"])
def test_bound_of_a_plain_layer_is_a_sum_over_its_steps(kind):
    module, X = network("tanh")
    module.r = nn.RNN(2, 3, batch_first=True, nonlinearity=kind).double()
    W, U, V = _dense(module)
    for name, norm in (("lipschitz_l2", 2), ("lipschitz_linf", np.inf)):
        w, u, v = (np.linalg.norm(matrix, norm) for matrix in (W, U, V))
        bound = 0.0
        for _ in range(STEPS):
            bound = w + u * bound
        assert measure_capacity(module, X, measures=name)[name] == pytest.approx(v * bound, rel=1e-6)


def test_bound_of_a_gated_layer_is_that_of_the_recursion():
    module, X = network("lstm")
    W, U, V = _dense(module)
    w, u, v = (np.linalg.norm(matrix, np.inf) for matrix in (W, U, V))
    hidden = cell = size = 0.0  # how much h and c move, and how large c can be
    for _ in range(STEPS):
        gates = w + u * hidden
        # c' = f c + i g with |f|, |i|, |g| <= 1, where a sigmoid's slope is at most 1/4
        cell = cell + size * gates / 4 + gates + gates / 4
        size = size + 1
        hidden = cell + gates / 4  # o tanh(c')
    assert measure_capacity(module, X, measures="lipschitz_linf")["lipschitz_linf"] == pytest.approx(v * hidden)


def test_path_norms_of_a_rectifier_layer_count_every_path():
    module, X = network("relu from a trained state")
    W, U, V = _dense(module)
    for p in (1.0, 2.0):
        w, u, v = (np.abs(matrix) ** p for matrix in (W, U, V))
        total = np.zeros(3)
        for start in range(STEPS):
            at_step = w.sum(1)
            for _ in range(start, STEPS):
                total += at_step  # the head reads the sum of all later states
                at_step = u @ at_step
        expected = float((v @ total).sum() ** (1 / p))
        name = f"l{p:.0f}_path_norm"
        assert measure_capacity(module, X, measures=name)[name] == pytest.approx(expected, rel=1e-10)


def test_what_is_not_defined_names_the_layer():
    for name, called, layer in (("tanh", "tanh", "r (RNN)"), ("gru", "sigmoid", "r (GRU)")):
        module, X = network(name)
        with pytest.raises(UnsupportedLayerError, match=rf"operator `{called}` in layer `{re.escape(layer)}`"):
            measure_capacity(module, X, measures="l2_path_norm")


def test_a_matrix_is_one_row_with_the_name_of_its_parameter():
    module, X = network("lstm")
    net = Network(module, (STEPS, 2))
    assert [node.label for node in graph_layers(net, "")] == ["r.weight_ih_l0", "r.weight_hh_l0", "head"]


def test_a_recurrent_layer_is_a_hidden_layer():
    module, X = network("gru")
    y = torch.arange(6) % 3
    values = values_of(module, X, y, names=["hidden_margin_median", "davies_bouldin"])
    states = module.r(X)[0][:, -1].detach().numpy()
    centers = np.stack([states[y == k].mean(0) for k in range(3)])
    spread = [np.linalg.norm(states[y == k] - centers[k], axis=1).mean() for k in range(3)]
    ratios = [
        max((spread[a] + spread[b]) / np.linalg.norm(centers[a] - centers[b]) for b in range(3) if b != a)
        for a in range(3)
    ]
    assert values["davies_bouldin"] == pytest.approx(np.mean(ratios))


@pytest.mark.parametrize("batch_first", [True, False])
def test_states_for_a_fixed_number_of_samples_are_never_read_by_others(batch_first):
    """`len(x)` is a number in a trace; torch's operator in single precision would write outside of the states."""

    def forward(m, x):
        steps = x.reshape(len(x), STEPS, 2)
        return m.head(m.r(steps)[0][:, -1] if batch_first else m.r(steps.transpose(0, 1))[0][-1])

    torch.manual_seed(0)
    module = Of(forward, r=nn.LSTM(2, 3, batch_first=batch_first), head=nn.Linear(3, 3)).eval()
    with pytest.raises(UnsupportedLayerError, match=r"states are for 2 samples, its input has 3"):
        Network(module, (2 * STEPS,)).graph  # noqa: B018
    X = torch.randn(12, 2 * STEPS)
    slopes = torch.autograd.functional.jacobian(lambda x: module(x).sum(0), X)
    torch.testing.assert_close(frobenius_penalty(module, X), slopes.square().sum() / 12)


def test_steps_along_the_samples_are_refused():
    module = Of(lambda m, x: m.head(m.r(x)[0][:, -1]), r=nn.GRU(2, 3), head=nn.Linear(3, 3))  # time is the first axis
    with pytest.raises(UnsupportedLayerError, match="mixes its samples"):
        measure_capacity(module, torch.randn(6, STEPS, 2), measures="lipschitz_l2")
