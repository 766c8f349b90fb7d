"""Penalties refuse what they cannot be evaluated for, and name it."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_capacity.penalties import (
    check_penalty,
    fisher_rao_penalty,
    forward_pass,
    frobenius_penalty,
    gradient_norm_penalty,
    module_graph,
    per_layer_penalty,
    projection_penalty,
    spectral_norm_penalty,
    spectral_penalty,
)

PENALTIES = [frobenius_penalty, projection_penalty, spectral_penalty, per_layer_penalty]
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(
    ("batch", "weights", "message"),
    [
        (np.ones((5, 4)), None, "`X` must be a tensor of shape"),
        (torch.ones(5), None, r"`X` must be a dense real tensor of shape \(n, ...\).*\(5,\)"),
        (torch.ones(5, 4, dtype=torch.long), None, "`X` must be .* torch.int64"),
        (torch.ones(5, 4, dtype=torch.complex64), None, "`X` must be .* torch.complex64"),
        (X.to_sparse(), None, "`X` must be .* torch.sparse_coo"),
        (X[:, :3], None, r"`Linear` cannot be evaluated .*\(5, 3\).*RuntimeError"),
        (X.double(), None, "`Linear` cannot be evaluated .* torch.float64"),
        (X, [1.0] * 5, "`sample_weight` must be None or a tensor"),
        (X, torch.ones(4), r"`sample_weight` must have shape \(5,\), got \(4,\)"),
        (torch.nested.nested_tensor([torch.ones(4)] * 5), None, "`X` must be .* shape nested, torch.float32"),
        (X, torch.nested.nested_tensor([torch.ones(1)] * 5), r"`sample_weight` must have shape \(5,\), got nested"),
        (X, torch.ones(5, 4), r"`sample_weight` must have shape \(5,\), got \(5, 4\)"),
    ],
)
def test_a_batch_that_cannot_be_evaluated(penalty, batch, weights, message):
    with pytest.raises((TypeError, ValueError), match=message):
        penalty(nn.Linear(4, 3), batch, sample_weight=weights)


def test_a_module_that_fails_is_named():
    with pytest.raises(ValueError, match="`Linear` cannot be evaluated or differentiated at `X` of shape"):
        forward_pass(nn.Linear(3, 2), X)
    with pytest.raises(ValueError, match="`Module` cannot be evaluated .*forward"):
        forward_pass(nn.Module(), X)
    with pytest.raises(TypeError, match="`X` must be a tensor"):
        forward_pass(nn.Linear(4, 2), X.tolist())


@pytest.mark.parametrize(
    "penalty", [frobenius_penalty, gradient_norm_penalty, fisher_rao_penalty, spectral_norm_penalty]
)
def test_arguments_have_the_documented_names(penalty):
    first, second, *third = list(inspect.signature(penalty).parameters)[:3]
    module, y = nn.Linear(4, 3), torch.arange(5) % 3
    targets = {"y": y} if third == ["y"] else {}
    by_position = penalty(module, X, **targets)
    torch.testing.assert_close(penalty(**{second: X, first: module}, **targets), by_position)
    torch.testing.assert_close(penalty(module, **{second: X}, **targets), by_position)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'X'"):
        penalty(module, **targets)
    with pytest.raises(TypeError, match=f"`{first}` must be a module or a function of `X`, got 3"):
        penalty(3, X, **targets)


class Shifted(nn.Module):
    """Exported, and not recorded."""

    def __init__(self):
        super().__init__()
        self.linear, self.shift = nn.Linear(4, 3), torch.linspace(0, 1, 4)

    def forward(self, x):
        return self.linear(torch.tanh(x - self.shift))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_inference_mode_changes_no_value_and_no_later_one(penalty):
    """As in the validation steps of some training loops."""
    torch.manual_seed(0)
    module, other = Shifted(), Shifted()
    with torch.inference_mode():
        inside = [penalty(module, x, sample_weight=x[:, 0].abs()) for x in (X, X.clone())]
    assert module_graph.graph_of(other, X) is not None  # not the error of a trace inside
    assert penalty(module, X, sample_weight=X[:, 0].abs()).requires_grad
    if penalty in (frobenius_penalty, spectral_penalty):
        outside = penalty(module, X, sample_weight=X[:, 0].abs())
        assert all(torch.equal(value, outside) for value in inside)


@pytest.mark.parametrize("layout", [torch.strided, torch.jagged])
def test_nested_tensors_are_refused(layout):
    nested = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=layout)
    with pytest.raises(ValueError, match="`X` must be a tensor of shape .*, got a nested one"):
        forward_pass(nn.Linear(4, 2), nested)
    with pytest.raises(ValueError, match="`y` must have one target per sample, 5 in all, got shape nested"):
        gradient_norm_penalty(nn.Linear(4, 2), X, nested)


class Branching(nn.Linear):
    """Without a graph."""

    def forward(self, X):
        return super().forward(X) if X.shape[0] and X.isnan().any() else super().forward(X).tanh()


NETWORKS = {
    "linear": lambda: nn.Linear(4, 3),
    "one hidden layer": lambda: nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)),
    "two hidden layers": lambda: nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Softplus(), nn.Linear(8, 3)
    ),
    "no graph": lambda: Branching(4, 3),
}
Y = torch.tensor([0, 1, 2, 0, 1])
KEPT, DROPPED = [1, 3, 4], [0, 2]
WEIGHTED = {
    "frobenius": lambda module, X, y, w: frobenius_penalty(module, X, sample_weight=w),
    "softmax": lambda module, X, y, w: frobenius_penalty(module, X, output="softmax", sample_weight=w),
    "projection": lambda module, X, y, w: projection_penalty(module, X, n_projections=3, sample_weight=w),
    "spectral": lambda module, X, y, w: spectral_penalty(module, X, sample_weight=w),
    "per layer": lambda module, X, y, w: per_layer_penalty(module, X, sample_weight=w),
    "fisher_rao": lambda module, X, y, w: fisher_rao_penalty(module, X, sample_weight=w),
    "empirical": lambda module, X, y, w: fisher_rao_penalty(module, X, y, distribution="empirical", sample_weight=w),
    "gradient_norm": lambda module, X, y, w: gradient_norm_penalty(module, X, y=y, sample_weight=w),
}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind)
        for name in WEIGHTED
        for kind in NETWORKS
        if kind != "no graph" or name not in ("fisher_rao", "empirical")
    ],
)
@pytest.mark.parametrize("spoilt", [torch.nan, torch.inf, 1e38])
def test_a_sample_of_weight_0_is_left_out(name, kind, spoilt):
    torch.manual_seed(0)
    module, penalty, batch = NETWORKS[kind](), WEIGHTED[name], X.clone()
    batch[DROPPED] = spoilt
    weights = torch.tensor([0.0, 2.0, 0.0, 0.5, 1.0])
    value = penalty(module, batch, Y, weights)
    expected = penalty(module, X[KEPT], Y[KEPT], 3 / 5 * weights[KEPT])
    assert value > 0
    torch.testing.assert_close(value, expected)
    parameters = [p for p in module.parameters() if p.dim() == 2]
    gradients = (torch.autograd.grad(result, parameters) for result in (value, expected))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("name", WEIGHTED)
def test_without_any_weight_a_penalty_is_0(name):
    module = NETWORKS["one hidden layer"]()
    with torch.no_grad():
        module[0].weight *= 1e25  # squares overflow
    value = WEIGHTED[name](module, X, Y, torch.zeros(5))
    value.backward()
    assert value == 0 and all(p.grad is None for p in module.parameters())


def test_weights_that_are_learned_have_a_derivative():
    module, weights = NETWORKS["no graph"](), torch.tensor([0.0, 1.0, 1.0, 0.0, 2.0], requires_grad=True)
    frobenius_penalty(lambda X: module(X), X, sample_weight=weights).backward()
    each = torch.stack([frobenius_penalty(module, x[None]).detach() for x in X]) / 5
    torch.testing.assert_close(weights.grad, each)


def test_the_pass_of_another_batch_is_refused_also_with_zeros_among_the_weights():
    module, weights = NETWORKS["linear"](), torch.tensor([0.0, 1.0, 1.0, 0.0, 2.0])
    shared = forward_pass(module, X)
    value = frobenius_penalty(module, X, sample_weight=weights, shared=shared)
    torch.testing.assert_close(value, frobenius_penalty(module, X, sample_weight=weights))
    with pytest.raises(ValueError, match="`shared` must be a forward pass of the penalty's `X`"):
        frobenius_penalty(module, X.clone(), sample_weight=weights, shared=shared)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, nn.Linear(4, 2), X), "`penalty` must be a callable"),
        ((frobenius_penalty, frobenius_penalty, X), "`module` must be a torch.nn.Module"),
        ((frobenius_penalty, nn.Linear(4, 2), X.numpy()), "`X` must be a tensor"),
    ],
)
def test_check_penalty_refuses_other_kinds(arguments, message):
    with pytest.raises(TypeError, match=message):
        check_penalty(*arguments)
