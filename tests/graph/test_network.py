"""The graph of a network: traced, folded, checked; refused by name where it has no rule."""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from networks import NETWORKS, Blend
from sklearn_capacity import UnsupportedLayerError, measure_capacity
from sklearn_capacity.derivatives.parameter_groups import parameter_groups
from sklearn_capacity.derivatives.parameter_jacobian import parameter_jacobian
from sklearn_capacity.derivatives.parameter_tangent import parameter_tangent
from sklearn_capacity.graph import Network, activation_of, evaluate, named_tensors, trace
from sklearn_capacity.penalties import frobenius_penalty


def network_of(module, X, **options):
    return Network(module, tuple(X.shape[1:]), dtype=X.dtype, **options)


@pytest.mark.parametrize("case", NETWORKS)
def test_folded_graph_is_the_module(case):
    module, X, _ = NETWORKS[case]()
    net = network_of(module, X)
    norms = [node for node in net.graph.nodes if node.params.get("kind") == "batch_norm"]
    assert not any(_beside_linear(net.graph, node) for node in norms)
    torch.testing.assert_close(evaluate(net.graph, X), net.forward(X), rtol=1e-10, atol=1e-10)


def _beside_linear(graph, node):
    """Whether an unfolded batch norm follows a linear map that nothing else reads."""
    before = graph[node.inputs[0]]
    return before.op in ("linear", "conv") and len(graph.consumers()[before.name]) == 1


@pytest.mark.parametrize("case", NETWORKS)
def test_tangent_is_the_derivative_along_theta(case):
    """u = d/dt f(theta + t theta) at 0, by central differences of the folded graph's own tensors."""
    module, X, _ = NETWORKS[case]()
    graph = network_of(module, X).graph
    f, u = parameter_tangent(graph, X)
    step = 1e-5

    def scaled(t):
        import dataclasses

        nodes = []
        for node in graph.nodes:
            weight = None if node.weight is None else node.weight * (1 + t * node.trainable[0])
            bias = None if node.bias is None else node.bias * (1 + t * node.trainable[1])
            nodes.append(dataclasses.replace(node, weight=weight, bias=bias))
        return evaluate(dataclasses.replace(graph, nodes=tuple(nodes)), X)

    torch.testing.assert_close(f, evaluate(graph, X))
    torch.testing.assert_close(u, (scaled(step) - scaled(-step)) / (2 * step), rtol=1e-6, atol=1e-6)


def test_binding_is_differentiable_in_the_raw_parameters():
    module, X, _ = NETWORKS["conv_batch_norm"]()
    program = trace(module, tuple(X.shape[1:]), dtype=X.dtype)
    loss = evaluate(program.bind(named_tensors(module)), X).square().sum()
    got = torch.autograd.grad(loss, list(module.parameters()))
    expected = torch.autograd.grad(module(X).square().sum(), list(module.parameters()))
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


class Awkward(nn.Module):
    """What eager code does: in-place operators, control flow on shapes, functional calls, len()."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.down = nn.Conv2d(2, 4, 1, stride=2)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        n = len(x)
        h = F.relu_(self.conv(x))
        h = F.avg_pool2d(h, 2)
        if h.shape[-1] > 2:
            h += self.down(x)
        h = F.adaptive_avg_pool2d(h, 1).view(n, -1)
        return self.fc(F.dropout(h, 0.5, self.training))


def test_eager_code_is_traced():
    module = Awkward().double()
    X = torch.randn(5, 2, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    net = network_of(module, X)
    assert [layer.label for layer in net.graph.layers] == ["conv", "down", "fc"]
    torch.testing.assert_close(evaluate(net.graph, X), copy.deepcopy(module).eval()(X))


class Remembers(nn.Module):
    """Stores an activation, as hooks and notebooks do; such a tensor cannot be deep-copied."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        self.last = self.fc(x)
        return self.last


def test_a_stored_activation_is_left_alone():
    module, X = Remembers(), torch.ones(2, 3)
    kept = module(X)
    assert measure_capacity(module, X, torch.tensor([0, 1]), "spectral_norm")["spectral_norm"] > 0
    assert module.last is kept and module.training


class DependsOnData(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else -self.fc(x)


def test_control_flow_on_data_is_refused_for_the_graph_only():
    module, X, y = DependsOnData(), torch.ones(2, 3), torch.tensor([0, 1])
    with pytest.raises(UnsupportedLayerError, match="`DependsOnData` cannot be traced"):
        measure_capacity(module, X, y, "path_norm")
    names = ["margin", "jacobian_frobenius", "fisher_rao_norm", "frobenius_norm"]
    values = measure_capacity(module, X, y, names)
    assert all(v == v for v in values.values())


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 3)

    def forward(self, x):
        return self.fc(self.norm(x + self.attention(x, x, x, need_weights=False)[0]).mean(1))


def test_attention_is_refused_by_name_and_measured_where_it_can_be():
    X = torch.randn(6, 5, 8, generator=torch.Generator().manual_seed(0))
    module, y = Attention(), torch.arange(6) % 3
    with pytest.raises(UnsupportedLayerError, match="A path norm is not defined for the operator"):
        measure_capacity(module, X, y, "path_norm")
    values = measure_capacity(module, X, y, ["margin", "jacobian_spectral", "fisher_rao_norm"])
    assert all(v == v for v in values.values())


class Heads(nn.Module):
    """Attention over separate heads, for which torch takes a fused kernel; no operator has parameters of its own."""

    def __init__(self):
        super().__init__()
        self.maps, self.last = nn.ModuleList(nn.Linear(8, 8) for _ in range(3)), nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = (one(x).unflatten(-1, (2, 4)).transpose(1, 2) for one in self.maps)
        return self.last(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).mean(1))


class LaidOutByTheKernel(Heads):
    """Views the rows of all samples at once, which the strides of the fused kernel's output admit and no others."""

    def forward(self, x):
        q, k, v = (one(x).unflatten(-1, (2, 4)).transpose(1, 2) for one in self.maps)
        rows = F.scaled_dot_product_attention(q, k, v).permute(0, 2, 1, 3).view(-1, 8)
        return self.last(rows.view(x.shape[0], -1, 8).mean(1))


def test_views_of_attention_do_not_hang_on_the_kernel():
    X = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0))
    value = measure_capacity(LaidOutByTheKernel(), X, torch.arange(4) % 3, "fisher_rao_norm")["fisher_rao_norm"]
    assert 0 < value < math.inf


def test_the_tangent_goes_through_fused_attention():
    X = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = Heads().double()
    f, u = parameter_tangent(network_of(module, X).graph, X)
    step = 1e-5
    ends = []
    for sign in (1, -1):
        with torch.no_grad():
            ends.append(functional_call(module, {n: (1 + sign * step) * p for n, p in module.named_parameters()}, (X,)))
    torch.testing.assert_close(f.detach(), module(X).detach())
    torch.testing.assert_close(u.detach(), (ends[0] - ends[1]) / (2 * step), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("measure", ["frobenius_norm", "margin", "jacobian_spectral"])
def test_batch_statistics_in_eval_mode_are_refused(measure):
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2))
    with pytest.raises(UnsupportedLayerError, match="track_running_stats=True"):
        measure_capacity(module, torch.randn(4, 3), torch.tensor([0, 1, 0, 1]), measure)
    with pytest.raises(UnsupportedLayerError, match="track_running_stats=True"):
        trace(module.eval(), (3,)).bind(named_tensors(module))


def test_a_module_that_draws_numbers_in_eval_mode_is_noticed():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, x):
            return self.fc(x) + torch.randn(2)

    module = Noisy()
    before = torch.get_rng_state()
    for measure in ("frobenius_norm", "margin"):
        with pytest.raises(UnsupportedLayerError, match="random numbers in eval mode"):
            measure_capacity(module, torch.ones(2, 3), torch.tensor([0, 1]), measure)
    assert torch.equal(torch.get_rng_state(), before)


def test_eight_threads_trace_at_once():
    module, X, y = NETWORKS["residual"]()
    names = ["spectral_norm", "l2_path_norm", "fisher_rao_norm"]
    expected = measure_capacity(module, X, y, names)
    results, errors = [], []

    def work():
        try:
            results.append(measure_capacity(module, X, y, names))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and results == [expected] * 8


def test_one_logit_is_the_two_logit_net():
    one = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1), nn.Flatten(0)).double()
    X = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    net = network_of(one, X, output="one_logit")
    z = one(X).detach()
    torch.testing.assert_close(net.forward(X).detach(), torch.stack([-z / 2, z / 2], 1))
    torch.testing.assert_close(evaluate(net.graph, X).detach(), torch.stack([-z / 2, z / 2], 1))
    last = net.graph.layers[-1]
    torch.testing.assert_close(last.weight, torch.cat([-one[2].weight / 2, one[2].weight / 2]))
    assert len(net.graph.layers) == 2 and net.parameter_count == sum(p.numel() for p in one.parameters())


def test_frozen_parameters_are_no_part_of_theta():
    module, X, _ = NETWORKS["mlp"]()
    whole = sum(g.size for g in parameter_groups(network_of(module, X).graph))
    next(module.parameters()).requires_grad_(False)
    frozen = next(module.parameters()).numel()
    assert sum(g.size for g in parameter_groups(network_of(module, X).graph)) == whole - frozen


ACTIVATED = [
    *(nn.ReLU(), nn.LeakyReLU(0.3), nn.RReLU(), nn.ReLU6(), nn.Hardtanh(-0.5, 0.25), nn.Tanh(), nn.Sigmoid()),
    *(nn.Softplus(2.0), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.ELU(), nn.ELU(1.7), nn.SELU(), nn.CELU(0.4)),
    *(nn.Hardsigmoid(), nn.Hardswish(), nn.Mish(), nn.LogSigmoid()),
]


@pytest.mark.parametrize("activation", ACTIVATED, ids=repr)
def test_activations_have_their_values_and_slopes(activation):
    module = nn.Sequential(nn.Linear(3, 4), activation).double().eval()
    X = 3 * torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    graph = network_of(module, X).graph
    torch.testing.assert_close(evaluate(graph, X), module(X), rtol=1e-12, atol=1e-14)
    rule, args = activation_of(graph[graph.output])
    z = module[0](X).detach().requires_grad_(True)
    (slope,) = torch.autograd.grad(activation(z).sum(), z)
    torch.testing.assert_close(rule.derivative(z.detach(), *args), slope, rtol=1e-6, atol=1e-14)  # CELU's is single
    assert float(rule.derivative(z.detach(), *args).abs().max()) <= rule.lipschitz(*args)


class Doubled(nn.Parameter):
    """A weight that doubles linear maps."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        result = super().__torch_function__(func, types, args, kwargs or {})
        return 2 * result.as_subclass(torch.Tensor) if func is F.linear else result


def test_weights_that_define_operators_are_measured_as_they_are_or_refused():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    X = torch.randn(6, 5, dtype=torch.float64)
    plain = frobenius_penalty(module, X).detach()  # of the same module, before
    module[0].weight, module[0].bias = Doubled(module[0].weight.detach()), None
    slopes = torch.autograd.functional.jacobian(lambda x: module(x).sum(0), X)
    expected = slopes.square().sum() / 6
    assert abs(expected / plain - 1) > 0.1
    torch.testing.assert_close(frobenius_penalty(module, X).detach(), expected)
    value = measure_capacity(module, X, measures="jacobian_frobenius", loss="squared")["jacobian_frobenius"]
    assert value == pytest.approx(float(expected), rel=1e-12)
    with pytest.raises(UnsupportedLayerError, match=r"`0\.weight` is a Doubled, whose operators may differ"):
        measure_capacity(module, X, measures="path_norm", loss="squared")


@pytest.mark.parametrize(
    "name", "expected_sharpness hessian_trace relative_flatness fisher_rao_norm kl_divergence steps_to_loss".split()
)
def test_values_in_the_place_of_weights_that_define_operators_are_refused(name):
    module = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    module[2].weight = Doubled(module[2].weight.detach())
    X = torch.ones(6, 5, dtype=torch.float64)
    with pytest.raises(UnsupportedLayerError, match=r"`2\.weight` is a Doubled, .*, so no other values can take"):
        measure_capacity(module, X, torch.arange(6) % 3, name, initial_state=module.state_dict())


def test_networks_that_overwrite_their_input_are_traced_and_leave_the_data_alone():
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = X.clone()
    network = Network(module, (4,))
    logits = network.forward(X)
    assert torch.equal(X, before) and torch.equal(logits, module[1](before.relu()))
    assert torch.allclose(evaluate(network.graph, X), logits)
    assert torch.autograd.functional.jacobian(network.forward, X).shape == (5, 2, 5, 4)  # also where X is a leaf


class ShiftsItsInput(nn.Module):
    """Writes into what it is given, and has an operator that only the raw parameters cover."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 5), Blend(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x.sub_(1.0))).relu())


@pytest.mark.parametrize("name, params", [("expected_sharpness", {"n_draws": 4}), ("max_sharpness", {"steps": 3})])
def test_moved_weights_leave_the_data_alone_too(name, params):
    generator = torch.Generator().manual_seed(0)
    module = ShiftsItsInput().double()
    X = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    before, y = X.clone(), torch.arange(9) % 3
    measured = measure_capacity(module, X, y, {"m": (name, params)})["m"]
    assert torch.equal(X, before)
    honest = nn.Sequential(copy.deepcopy(module.first), copy.deepcopy(module.norm), nn.ReLU(), module.last)
    assert measured == pytest.approx(measure_capacity(honest, X - 1, y, {"m": (name, params)})["m"], rel=1e-9)


def test_products_with_the_jacobian_leave_the_data_alone_too():
    module = ShiftsItsInput().double()
    X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before = X.clone()
    jacobian = parameter_jacobian(network_of(module, X))
    assert jacobian.method == "autograd"
    point, direction = jacobian.at(X), [torch.ones(size, dtype=X.dtype) for size in jacobian.sizes]
    assert torch.equal(point.push(direction), point.push(direction)) and torch.equal(X, before)
