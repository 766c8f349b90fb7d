"""The chain and the loop against dense Jacobians, on every kind of layer; what a training loop relies on."""

from __future__ import annotations

import copy
import gc
import weakref
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from reference_penalties import CASES, FALLBACKS, built, mean_squared_jacobian, mean_squared_norm, per_layer
from sklearn_capacity import JacobianRegularizedClassifier
from sklearn_capacity.graph import Network, chain
from sklearn_capacity.graph.chain import jacobian_rows
from sklearn_capacity.penalties import (
    PENALTIES,
    JacobianPenalty,
    _joint,
    _tapes,
    frobenius_penalty,
    per_layer_penalty,
    projection_penalty,
    spectral_penalty,
)
from sklearn_capacity.penalties.jacobian import squared_products

ALL = CASES | FALLBACKS
# a second use of a matrix, or a layer of one dimension, is nothing that the reference sees as a layer
LAYERED = sorted(ALL.keys() - {"tied", "one_dimensional"})


def gradients(value, module):
    """The gradient with respect to all parameters as one vector; 0 where there is no influence."""
    parameters = list(module.parameters())
    found = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]
    return torch.cat([g.flatten() for g in filled])


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11 * float(want.abs().max()))


def chained(module, X) -> bool:
    return _tapes.graph_of(module, X) is not None


@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("name", ALL)
def test_exact_penalties_and_their_gradients_equal_dense_jacobians(name, output):
    module, X = built(name)
    state = copy.deepcopy(module.state_dict())
    pairs = [(frobenius_penalty, mean_squared_jacobian), (spectral_penalty, mean_squared_norm)]
    for penalty, reference in pairs:
        value = penalty(module.train(), X, output=output)
        expected = reference(module.eval(), X, output)
        assert_same(value.detach(), expected.detach())
        assert_same(gradients(value, module), gradients(expected, module))
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[key])
    assert chained(module, X) == (name in CASES)


@pytest.mark.parametrize("name", ["conv_batch_norm", "residual", "tanh", "max_pool_overlapping", "normalised"])
def test_projections_average_to_the_exact_penalty(name):
    """Over an orthonormal basis, one direction at a time: the estimate is unbiased without luck."""
    module, X = built(name)
    basis, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    terms = [squared_products(module, X, lambda values, v=v: v.expand(1, *values.shape)) for v in basis]
    total, exact = 3 * torch.stack(terms).mean(), frobenius_penalty(module, X)
    assert_same(total.detach(), exact.detach())
    assert_same(gradients(total, module), gradients(exact, module))
    drawn = projection_penalty(module, X, n_projections=3, generator=torch.Generator().manual_seed(1))
    assert_same(gradients(drawn, module), gradients(exact, module))


@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("name", LAYERED)
def test_per_layer_penalty_is_equation_52_for_one_of_the_outputs(name, output):
    module, X = built(name, 1)
    references = [per_layer(module.eval(), X[0], index, output) for index in range(3)]
    found = set()
    for seed in range(8):
        value = per_layer_penalty(module.train(), X, output=output, generator=torch.Generator().manual_seed(seed))
        index = min(range(3), key=lambda k: abs(value.item() - references[k].item()))
        assert_same(value.detach(), references[index].detach())
        assert_same(gradients(value, module), gradients(references[index], module))
        found.add(index)
    assert found == {0, 1, 2}


@pytest.mark.parametrize("name", ["conv_batch_norm", "preactivation", "normalised"])
def test_per_layer_penalty_weighs_its_samples(name):
    module, X = built(name)
    weights = torch.tensor([0.0, 2.0, 1.0, 0.5], dtype=torch.float64)
    indices = torch.randint(3, (4, 1), generator=torch.Generator().manual_seed(5)).flatten().tolist()
    value = per_layer_penalty(module, X, sample_weight=weights, generator=torch.Generator().manual_seed(5))
    terms = [per_layer(module.eval(), x, index) for x, index in zip(X, indices, strict=True)]
    expected = (weights * torch.stack(terms)).mean()
    assert_same(value.detach(), expected.detach())
    assert_same(gradients(value, module), gradients(expected, module))


def test_per_layer_penalty_of_a_matrix_is_2_g_g_w():
    """[JR] below eq. 52, by matrices, for two layers."""
    module, X = built("mlp")
    module = module[:3]  # linear, rectifier, linear: 6 outputs
    first, _, second = module
    index = torch.randint(6, (4, 1), generator=torch.Generator().manual_seed(0)).flatten()
    per_layer_penalty(module, X, generator=torch.Generator().manual_seed(0)).backward()
    g = second.weight[index] * (first(X) > 0)
    torch.testing.assert_close(first.weight.grad, 2 / 4 * g.T @ g @ first.weight)
    v = torch.eye(6, dtype=torch.float64)[index]
    torch.testing.assert_close(second.weight.grad, 2 / 4 * v.T @ v @ second.weight)


SHARED = ["mlp", "tanh", "max_pool", "one_channel", "residual", "tied", "weight_norm", "conv_batch_norm"]


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("norm", PENALTIES)
@pytest.mark.parametrize("output", ["logits", "softmax"])
def test_sharing_the_forward_pass_changes_nothing(name, norm, output, joint, monkeypatch):
    monkeypatch.setattr(_joint, "WIDE", 0 if joint else 1 << 30)
    module, X = built(name, 6)
    module.train(name != "residual")
    y = torch.arange(6) % 3
    results = []
    for share in (False, True):
        penalty = JacobianPenalty(norm, output=output, generator=torch.Generator().manual_seed(2))
        shared = penalty.forward(module, X) if share else None
        if name == "conv_batch_norm":  # batch norm and dropout differ in training; the draw of dropout must not
            assert shared is None
            torch.manual_seed(0)
        elif share:
            assert shared is not None
        logits = module(X) if shared is None else shared
        loss = nn.functional.cross_entropy(logits, y) + 0.3 * penalty(module, X)
        results.append((loss.detach(), gradients(loss, module)))
        if name == "conv_batch_norm":  # the module's own pass has moved the running statistics
            module, X = built(name, 6)
    assert_same(results[1][0], results[0][0])
    assert_same(results[1][1], results[0][1])


def test_a_shared_pass_is_used_for_the_same_batch_and_weights_only():
    module, X = built("mlp")
    penalty = JacobianPenalty()
    fresh = frobenius_penalty(copy.deepcopy(module), X[:2]).item()
    penalty.forward(module, X)
    assert penalty(module, X[:2]).item() == fresh  # another batch
    penalty.forward(module, X)
    with torch.no_grad():
        module[0].weight.mul_(2)
    assert_same(penalty(module, X).detach(), mean_squared_jacobian(module, X).detach())


def test_a_shared_pass_is_not_used_for_data_or_logits_that_changed_in_place():
    module, X = built("tanh")
    penalty = JacobianPenalty(output="softmax")
    penalty.forward(module, X)
    X.add_(1)
    assert penalty(module, X).item() == penalty(copy.deepcopy(module), X).item()
    penalty.forward(module, X).mul_(3)  # as by a criterion that works in place
    assert penalty(module, X).item() == penalty(copy.deepcopy(module), X).item()


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_keep_the_module_s_own_forward_pass(register):
    module, X = built("mlp")
    penalty = JacobianPenalty()
    assert penalty.forward(module, X) is not None
    handle = getattr(module[2], register)(lambda *args: None)
    assert penalty.forward(module, X) is None
    handle.remove()
    assert penalty.forward(module, X) is not None
    handle = getattr(nn.modules.module, register.replace("register_", "register_module_"))(lambda *args: None)
    assert penalty.forward(module, X) is None  # it listens to all modules
    handle.remove()
    with torch.no_grad():
        assert penalty.forward(module, X) is None
    assert penalty.forward(module, X.requires_grad_(True)) is None  # somebody wants the loss's gradient at the data


@pytest.mark.parametrize("norm", PENALTIES)
@pytest.mark.parametrize("name", ["mlp", "max_pool", "conv_batch_norm", "normalised"])
def test_autocast_is_for_the_loss_alone(name, norm):
    module, X = built(name)
    module, X = module.float(), X.float()
    results = []
    for mixed in (False, True):
        penalty = JacobianPenalty(norm, generator=torch.Generator().manual_seed(2))
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            if mixed:
                assert penalty.forward(module, X) is None
            value = penalty(module, X)
        assert value.dtype == torch.float32
        results.append(torch.cat([value.detach()[None], gradients(value, module)]))
    assert torch.equal(*results)


def test_a_module_is_traced_once_and_forgotten_with_it(monkeypatch):
    module, X = built("residual")
    traces = []
    original = _tapes.trace
    monkeypatch.setattr(_tapes, "trace", lambda *args, **kwargs: traces.append(1) or original(*args, **kwargs))
    optimizer = torch.optim.SGD(module.parameters(), 0.01)
    for step in range(4):
        value = frobenius_penalty(module, X[: 4 - step])  # the last batch of an epoch is smaller
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        expected = mean_squared_jacobian(copy.deepcopy(module).eval(), X)
        assert_same(frobenius_penalty(module, X).detach(), expected.detach())
    assert len(traces) == 1
    number, gone = id(module), weakref.ref(module)
    assert number in _tapes._TRACED
    del module, optimizer, value
    gc.collect()
    assert gone() is None and number not in _tapes._TRACED


def test_a_changed_attribute_is_traced_again():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.factor = nn.Linear(5, 3).double(), 1.0

        def forward(self, x):
            return self.factor * self.linear(x)

    module, (_, X) = Scaled(), built("mlp")
    before = frobenius_penalty(module, X).item()
    for factor in range(2, _tapes.MANY_TRACES + 5):  # in the end the loop takes over
        module.factor = float(factor)
        assert frobenius_penalty(module, X).item() == pytest.approx(factor**2 * before, rel=1e-12)
    assert not chained(module, X)


class _Scaled(nn.Module):
    """A factor that is a tensor but no buffer, one in a list, and notes of the forward pass."""

    def __init__(self, module):
        super().__init__()
        self.module, self.factor, self.factors, self.calls, self.seen = module, torch.tensor(2.0), [1.0], 0, None

    def forward(self, x):
        self.calls, self.seen = self.calls + 1, x.detach().clone()
        return self.module(x) * self.factor * self.factors[0]


def test_what_the_forward_pass_reads_is_traced_again_and_what_it_notes_down_is_not(monkeypatch):
    module, X = built("mlp")
    scaled = _Scaled(module)
    traces = []
    original = _tapes.trace
    monkeypatch.setattr(_tapes, "trace", lambda *args, **kwargs: traces.append(1) or original(*args, **kwargs))

    def check(factor):
        for _ in range(3):
            want = factor**2 * mean_squared_jacobian(module, X).detach()
            assert_same(frobenius_penalty(scaled, X).detach(), want)
            scaled(X)  # the note changes

    check(2.0)
    assert len(traces) == 2  # once to see that the notes do not matter
    scaled.factor.mul_(2)
    check(4.0)
    scaled.factor = torch.tensor(1.0)
    check(1.0)
    scaled.factors[0] = 3.0
    check(3.0)
    assert len(traces) == 5 and chained(scaled, X)


def test_the_modes_of_the_submodules_decide_about_the_shared_pass():
    module = nn.Sequential(nn.Linear(5, 4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    X = torch.randn(6, 5, dtype=torch.float64)
    penalty = JacobianPenalty()
    module.train()
    module[1].eval()
    assert penalty.forward(module, X) is not None
    module[1].train()
    assert penalty.forward(module, X) is None
    assert penalty.forward(module.eval(), X) is not None


def test_frozen_parameters_and_no_grad():
    module, X = built("residual")
    parameters = list(module.parameters())
    parameters[0].requires_grad_(False)
    frobenius_penalty(module, X).backward()
    assert parameters[0].grad is None and parameters[-2].grad.abs().max() > 0
    for parameter in parameters:
        parameter.requires_grad_(False)
    assert not frobenius_penalty(module, X).requires_grad
    module, X = built("tanh")
    expected = mean_squared_jacobian(module, X).detach()
    with torch.no_grad():
        assert not spectral_penalty(module, X, output="softmax").requires_grad
        assert_same(frobenius_penalty(module, X), expected)


def test_gradients_are_handed_on_once_unless_the_graph_is_kept():
    module, X = built("mlp")
    value = 2 * frobenius_penalty(module, X)
    parameter = module[0].weight
    first, second = (torch.autograd.grad(value, parameter, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    value = frobenius_penalty(module, X)
    torch.testing.assert_close(2 * torch.autograd.grad(value, parameter)[0], first)
    with pytest.raises(RuntimeError, match="asked for a second time.*retain_graph=True"):
        torch.autograd.grad(value, parameter)


def test_a_gradient_in_closed_form_is_not_differentiated_again():
    module, X = built("mlp")
    with pytest.raises(RuntimeError, match="cannot be differentiated again.*lambda X: module"):
        torch.autograd.grad(frobenius_penalty(module, X), module[0].weight, create_graph=True)
    (once,) = torch.autograd.grad(frobenius_penalty(lambda X: module(X), X), module[0].weight, create_graph=True)
    (expected,) = torch.autograd.grad(mean_squared_jacobian(module, X), module[0].weight, create_graph=True)
    twice = [gradients(first.square().sum(), module) for first in (once, expected)]
    assert_same(*twice)


@pytest.mark.parametrize("n", [1, 40])  # few rows are kept, of many only their product
@pytest.mark.parametrize("norm", ["projection", "frobenius", "per_layer"])
def test_gradients_joined_to_the_loss_s_own(norm, n, monkeypatch):
    """Of loss and penalty apart, again where the graph is kept, and together."""
    monkeypatch.setattr(_joint, "WIDE", 0)
    module, X = built("mlp", n)
    weights = [p for p in module.parameters() if p.dim() == 2]
    random = {} if norm == "frobenius" else {"generator": torch.Generator().manual_seed(2)}
    loss, value = module(X).square().sum(), PENALTIES[norm].function(module, X, **random)
    want = [torch.autograd.grad(loss, weights), torch.autograd.grad(value, weights)]

    penalty = JacobianPenalty(norm, generator=torch.Generator().manual_seed(2))
    loss = penalty.forward(module, X).square().sum()
    value = penalty(module, X)
    for _ in range(2):
        for part, expected in zip((loss, value), want, strict=True):
            for got, a in zip(torch.autograd.grad(part, weights, retain_graph=True), expected, strict=True):
                assert_same(got, a)
    for got, a, b in zip(torch.autograd.grad(loss + 3 * value, weights), *want, strict=True):
        assert_same(got, a + 3 * b)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(value, weights)


@pytest.mark.parametrize("used", [False, True])
def test_a_shared_pass_goes_with_its_loss(used, monkeypatch):
    """Without a cycle that only the collector of garbage could break."""
    monkeypatch.setattr(_joint, "WIDE", 0)
    module, X = built("mlp")
    penalty = JacobianPenalty()
    gc.collect()
    gc.disable()
    try:
        loss = penalty.forward(module, X).sum()
        joints = _tapes._TRACED[id(module)].waiting.batch.joints
        layers = [weakref.ref(joint) for joint, _ in joints.values()]
        del joints
        loss = loss + penalty(module, X if used else X[:2])
        assert len(layers) == 3 and all(layer() is not None for layer in layers)
        del loss
        assert all(layer() is None for layer in layers)
    finally:
        gc.enable()


def test_many_small_stacks_equal_one(monkeypatch):
    module, X = built("max_pool", 5)
    values = {}
    for size in (1, 3000, 1 << 30):
        monkeypatch.setattr("sklearn_capacity.graph.chain.STACK_BYTES", size)
        for penalty in (frobenius_penalty, spectral_penalty, per_layer_penalty):
            value = penalty(module, X, output="softmax")
            result = torch.cat([value.detach()[None], gradients(value, module)])
            assert_same(result, values.setdefault(penalty, result))


def test_stacks_fill_the_cache_of_a_cpu_and_a_share_of_a_gpu_s_memory(monkeypatch):
    graph = Network(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), (8,)).graph
    cpu = SimpleNamespace(device=torch.device("cpu"), element_size=lambda: 4)
    gpu = SimpleNamespace(device=torch.device("cuda", 1), element_size=lambda: 4)
    monkeypatch.setattr(chain, "STACK_BYTES", 100 * 32 * 4)
    assert chain.stacks(graph, 10, cpu) == (10, 10) and chain.stacks(graph, 150, cpu) == (75, 1)
    memory = {torch.device("cuda", 1): SimpleNamespace(total_memory=16 * 500 * (8 + 32 + 32 + 4) * 4)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", memory.__getitem__)
    assert chain.stacks(graph, 50, gpu) == (50, 10) and chain.stacks(graph, 600, gpu) == (300, 1)
    memory[torch.device("cuda", 1)].total_memory = 1
    assert chain.stacks(graph, 600, gpu) == (1, 1)


@pytest.mark.parametrize("name", ["residual", "max_pool", "tanh"])
def test_rows_are_the_jacobian(name):
    module, X = built(name)
    module.eval()
    graph = Network(module, tuple(X.shape[1:])).graph
    dense = torch.stack([torch.autograd.functional.jacobian(lambda x: module(x[None])[0], x).flatten(1) for x in X])
    torch.testing.assert_close(jacobian_rows(graph, X), dense, rtol=1e-10, atol=1e-12)
    V = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("knc,ncd->nkd", V, dense)
    torch.testing.assert_close(jacobian_rows(graph, X, V), expected, rtol=1e-10, atol=1e-12)
    expected = torch.einsum("kc,ncd->nkd", V[:, 0], dense)
    torch.testing.assert_close(jacobian_rows(graph, X, V[:, 0]), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["mlp", "residual", "one_channel", "gelu"])
def test_single_precision_agrees_with_double(name):
    module, X = built(name)
    for penalty in (frobenius_penalty, spectral_penalty):
        exact = gradients(penalty(module.double(), X), module)
        single = gradients(penalty(module.float(), X.float()), module)
        torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


def test_bad_requests_raise():
    with pytest.raises(ValueError, match="a sum over linear and convolutional layers, and the function has none"):
        per_layer_penalty(torch.sin, torch.randn(3, 2))
    with pytest.raises(ValueError, match="`norm` must be one of .*Did you mean 'frobenius'"):
        JacobianPenalty("frobenious")


@pytest.mark.parametrize("norm", PENALTIES)
def test_two_fits_give_equal_bits_and_a_penalty_lowers_itself(norm):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 12)).astype("float32"), np.arange(60) % 3
    options = {"jacobian_norm": norm, "max_epochs": 15, "batch_size": 20, "random_state": 0, "batch_norm": True}
    fits = [JacobianRegularizedClassifier((16,), jacobian_penalty=s, **options).fit(X, y) for s in (0.3, 0.3, 0.0)]
    modules = [fit.net_.module_ for fit in fits]
    states = [list(module.state_dict().values()) for module in modules]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    strong, none = (frobenius_penalty(modules[i], torch.as_tensor(X)).item() for i in (0, 2))
    assert strong < 0.8 * none


@pytest.mark.parametrize("norm", PENALTIES)
@pytest.mark.parametrize("name", FALLBACKS)
def test_modules_without_a_graph_can_be_fitted(name, norm):
    X, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) % 3
    model = JacobianRegularizedClassifier(module=FALLBACKS[name][0], jacobian_norm=norm, max_epochs=2, random_state=0)
    assert np.isfinite(model.fit(X, y).predict_proba(X)).all()
