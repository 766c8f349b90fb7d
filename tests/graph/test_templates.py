"""Graphs of one structure that are bound by a template, without a conversion of every operator."""

import gc
import importlib
import weakref

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sklearn_capacity.graph import binding, evaluate, named_tensors, trace
from sklearn_capacity.graph.fold import fold
from sklearn_capacity.graph.known_programs import Programs
from tests.graph.test_rebinding import MODULES
from tests.zoo import ZOO, build

TRACE = importlib.import_module("sklearn_capacity.graph.trace")  # `graph.trace` is the function


@pytest.fixture(autouse=True)
def no_programs(monkeypatch):
    monkeypatch.setattr(TRACE, "_PROGRAMS", Programs(most=100, largest_cost=2**20))


class _Constant(nn.Module):
    """Adds what is the same for all samples, computed from a buffer and from a parameter."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, 4)
        self.register_buffer("table", torch.randn(2, 4))

    def forward(self, x):
        rows = x.new_ones(x.shape[0], 4) * self.table[:1] + self.linear.bias.expand(x.shape[0], 4)
        return self.linear(x) + rows.abs() * self.table.sum()


class _Tied(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.a, self.b = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        if tied:
            self.b.weight = self.a.weight

    def forward(self, x):
        return self.b(torch.relu(self.a(x)))


KINDS = {
    **MODULES,
    "tied": lambda: _Tied(True),
    "constant rows": _Constant,
    "frozen": lambda: nn.Sequential(nn.Linear(5, 6).requires_grad_(False), nn.ReLU(), nn.Linear(6, 3)),
    "weight norm of a transpose": lambda: nn.Sequential(weight_norm(nn.Linear(5, 5), dim=1), nn.GELU()),
}


def _described(graph):
    return [
        (node.name, node.op, node.inputs, node.scope, node.module, node.shape, node.trainable, node.sources)
        for node in graph.nodes
    ]


def _made(make, seed):
    torch.manual_seed(seed)
    module = make().double()
    with torch.no_grad():
        for tensor in module.state_dict(keep_vars=True).values():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand_like(tensor) + 0.1)
    return module.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_from_a_template_is_that_of_its_own_conversion(kind):
    X = torch.randn(7, 5, dtype=torch.float64)
    for seed in range(4):
        module = _made(KINDS[kind], seed)
        program = trace(module, (5,))
        tensors = named_tensors(module)
        graph, fresh = program.bind(tensors, folded=False), fold(binding.Binder(program, tensors).graph(), norms=False)
        assert _described(graph) == _described(fresh)
        got, want = evaluate(graph, X), module(X)
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)
        parameters = [p for p in module.parameters() if p.requires_grad]
        gradients = [torch.autograd.grad(v.square().sum(), parameters, allow_unused=True) for v in (got, want)]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_a_network_of_the_zoo_with_other_weights(name):
    module, X, _ = build(name)
    try:
        for scale in (1.0, 0.5, 1.25, 0.75):
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(scale)
            program = trace(module, tuple(X.shape[1:]))
            tensors = named_tensors(module)
            with torch.no_grad():
                graph, fresh = (
                    program.bind(tensors, folded=False),
                    fold(binding.Binder(program, tensors).graph(), norms=False),
                )
                assert _described(graph) == _described(fresh)
                torch.testing.assert_close(evaluate(graph, X), module(X), rtol=1e-8, atol=1e-10)
    except ValueError:  # it cannot be traced
        with pytest.raises(ValueError, match="cannot be traced"):
            trace(module, tuple(X.shape[1:]))


def test_most_operators_are_converted_once_for_all_networks_of_a_structure(monkeypatch):
    converted, bind = [], binding.Binder.bind
    monkeypatch.setattr(binding.Binder, "bind", lambda self, op: converted.append(op.name) or bind(self, op))
    counts = []
    for seed in range(4):
        module = _made(MODULES["batch norms"], seed)
        program = trace(module, (5,))
        converted.clear()
        program.bind(named_tensors(module))
        counts.append(len(converted))
    assert counts == [6, 6 + 2, 2, 2]  # a program has a template from the second network on; it computes the norms


class _Masked(nn.Module):
    def __init__(self, mask):
        super().__init__()
        self.linear = nn.Linear(5, 6)
        self.register_buffer("mask", mask)

    def forward(self, x):
        q, k, v = self.linear(x).reshape(-1, 3, 2, 1).unbind(1)
        return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.mask).flatten(1)


def test_a_mask_that_leaves_keys_out_is_not_one_that_only_adds():
    added, left_out = torch.eye(2), torch.full((2, 2), -torch.inf).triu(1)
    for mask in (added, added, added, left_out, added):
        module = _Masked(mask)
        nodes = trace(module, (5,)).bind(named_tensors(module)).nodes
        (softmax,) = (node for node in nodes if node.params.get("kind") == "softmax")
        assert len(softmax.params["args"]) == 1 + (mask is left_out)
        assert all(node.bias is None or bool(node.bias.isfinite().all()) for node in nodes)


def test_other_kinds_of_tensors_have_their_own_template():
    module = _made(MODULES["plain"], 0)
    trace(module, (5,))
    program = trace(module, (5,))
    for _ in range(2):
        assert all(any(node.trainable) for node in program.bind(named_tensors(module)).layers)
        values = {name: tensor.detach() for name, tensor in named_tensors(module).items()}
        assert not any(any(node.trainable) for node in program.bind(values).layers)
        moved = {name: tensor.float() for name, tensor in values.items()}
        assert program.bind(moved).layers[0].weight is moved["0.weight"]


def test_a_template_keeps_no_weights():
    for kind in ("plain", "batch norms", "weight norm", "opaque", "clamped"):
        _made(KINDS[kind], 0)
        trace(_made(KINDS[kind], 1), (5,))
        module = _made(KINDS[kind], 2)
        program = trace(module, (5,))
        program.bind(named_tensors(module))
        references = [weakref.ref(tensor) for tensor in named_tensors(module).values()]
        del module
        gc.collect()
        assert not [reference for reference in references if reference() is not None]
