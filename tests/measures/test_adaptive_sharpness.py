"""Adaptive sharpness against grids over the whole ball, SAM's step by hand, and exact quadratics."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from networks import NETWORKS, make
from reference_hessian import dense_hessian
from sklearn_capacity import CapacityWarning, NotDefinedError
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch

LOSSES = {"cross_entropy": F.cross_entropy, "squared": F.mse_loss, "absolute": F.l1_loss}


def sharpness(module, X, y, *, loss="cross_entropy", seed=0, chunk=None, **params):
    network = Network(module, tuple(X.shape[1:]))
    batch = Batch(network, X, y, loss=loss, random_state=seed, batch_size=chunk)
    return MEASURES["adaptive_sharpness"](network, batch, **params)


def tiny():
    """Three weights without biases: tanh(w x), then two outputs."""
    layers = lambda: (nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 2, bias=False))  # noqa: E731
    module, X, _ = make(lambda: nn.Sequential(*layers()), (1,), seed=1)
    return module, X, (X[:, 0] > 0).long()


def ball(norm, rho, n=41):
    """A grid over the unit ball of three dimensions, its boundary included, times rho; (points, 3)."""
    if norm == "linf":
        axis = torch.linspace(-1, 1, n, dtype=torch.float64)
        return rho * torch.cartesian_prod(axis, axis, axis)
    height = torch.linspace(-1, 1, 161, dtype=torch.float64)
    angle = torch.linspace(0, 2 * math.pi, 161, dtype=torch.float64)
    h, a = torch.cartesian_prod(height, angle).T
    side = (1 - h**2).sqrt()
    sphere = torch.stack([h, side * a.cos(), side * a.sin()], 1)
    return torch.cat([radius * rho * sphere for radius in (0.25, 0.5, 0.75, 1.0)])


def largest_rise_on_grid(module, X, y, loss, points, adaptive):
    w = torch.cat([p.detach().flatten() for p in module.parameters()])
    weights = w + points * (w.abs() if adaptive else 1)  # (points, 3)
    hidden = (weights[:, :1] * X[:, 0]).tanh()  # (points, n)
    logits = hidden[:, :, None] * weights[:, None, 1:]  # (points, n, 2)
    at_w = LOSSES[loss](module(X), y).detach()
    if loss == "cross_entropy":
        values = F.cross_entropy(logits.movedim(2, 1), y.expand(len(points), -1), reduction="none").mean(1)
    else:
        values = LOSSES[loss](logits, y.expand_as(logits), reduction="none").mean((1, 2))
    return float(values.max() - at_w)


@pytest.mark.parametrize(
    ("loss", "norm", "adaptive", "rho"),
    list(itertools.product(LOSSES, ("l2", "linf"), (True, False), (0.1, 0.7))),
)
def test_the_whole_ball_holds_no_larger_rise(loss, norm, adaptive, rho):
    module, X, y = tiny()
    if loss != "cross_entropy":
        y = torch.randn(len(X), 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = largest_rise_on_grid(module, X, y, loss, ball(norm, rho), adaptive)
    result = sharpness(module, X, y, loss=loss, norm=norm, adaptive=adaptive, rho=rho, steps=60, n_restarts=4)
    assert result.value >= expected * (1 - 1e-6)  # no point of the grid rises higher
    assert result.value <= expected * 1.01 + 1e-9  # and the value is met within the ball, near one of its points


@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("case", ["mlp", "conv_batch_norm", "residual"])
def test_one_step_is_that_of_sam(case, norm, adaptive):
    module, X, y = NETWORKS[case]()
    theta = {name: p.detach().requires_grad_(True) for name, p in module.named_parameters()}
    loss = F.cross_entropy(functional_call(module, theta, X), y)
    slopes = torch.autograd.grad(loss, list(theta.values()))
    scaled = [g * (p.abs() if adaptive else 1) for g, p in zip(slopes, theta.values(), strict=True)]
    length = math.sqrt(sum(float(g.detach().square().sum()) for g in scaled))
    moved = {}
    for (name, p), g in zip(theta.items(), scaled, strict=True):
        step = g.sign() if norm == "linf" else g / length
        moved[name] = p + 0.03 * (p.abs() if adaptive else 1) * step
    expected = float(F.cross_entropy(functional_call(module, moved, X), y) - loss)
    for chunk in (None, 2):
        result = sharpness(module, X, y, norm=norm, adaptive=adaptive, rho=0.03, steps=1, chunk=chunk)
        assert result.value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("m", [1, 2, 3, 7, 50])
def test_m_sharpness_is_the_mean_over_batches(m):
    module, X, y = NETWORKS["mlp"]()
    parts = [slice(i, i + m) for i in range(0, 7, m)]
    rises = [len(X[part]) * sharpness(module, X[part], y[part], rho=0.1).value for part in parts]
    assert sharpness(module, X, y, rho=0.1, m=m).value == pytest.approx(sum(rises) / 7, rel=1e-9)


def quadratic():
    """A linear model at its exact minimum, where the gradient vanishes."""
    module, X, _ = make(lambda: nn.Linear(4, 2, bias=False), (4,), seed=4)
    return module, X, module(X).detach()


def test_at_an_exact_minimum_the_largest_eigenvalue_decides():
    module, X, y = quadratic()
    H = dense_hessian(module, X, y, "squared")
    w = module.weight.detach().flatten()
    for adaptive, scale in ((False, torch.ones_like(w)), (True, w.abs())):
        largest = float(torch.linalg.eigvalsh(scale[:, None] * H * scale)[-1])
        result = sharpness(module, X, y, loss="squared", adaptive=adaptive, rho=0.2, steps=200)
        assert result.value == pytest.approx(0.2**2 * largest / 2, rel=1e-4)


def test_average_rise_of_a_quadratic():
    module, X, y = quadratic()
    curvature = float(dense_hessian(module, X, y, "squared").diag() @ module.weight.detach().flatten().square())
    for norm, variance in (("l2", 1.0), ("linf", 1 / 3)):
        for seed in range(5):
            options = {"norm": norm, "rho": 0.2, "average": True, "n_draws": 400, "seed": seed}
            result = sharpness(module, X, y, loss="squared", **options)
            exact = variance * 0.2**2 * curvature / 2
            assert abs(result.value - exact) < 4 * result.standard_error < exact


def test_rescaled_units_are_as_sharp():
    module, X, y = NETWORKS["mlp_no_bias"]()
    factors = torch.tensor([3.0, 0.5, 1.0, 2.0, 0.25, 1.5], dtype=torch.float64)
    before = {adaptive: sharpness(module, X, y, adaptive=adaptive).value for adaptive in (True, False)}
    with torch.no_grad():
        module[0].weight *= factors[:, None]
        module[2].weight /= factors
    assert sharpness(module, X, y).value == pytest.approx(before[True], rel=1e-9)
    assert sharpness(module, X, y, adaptive=False).value != pytest.approx(before[False], rel=1e-2)


def test_weights_of_zero_do_not_move():
    module, X, y = NETWORKS["mlp"]()
    for p in module.parameters():
        p.data.zero_()
    with pytest.warns(CapacityWarning, match="No step of the ascent raised the loss"):
        assert sharpness(module, X, y).value == 0.0
    assert sharpness(module, X, y, steps=1).value == 0.0


def test_more_steps_and_restarts_find_no_less():
    module, X, y = NETWORKS["residual"]()
    values = [sharpness(module, X, y, rho=0.2, steps=steps).value for steps in (2, 5, 20)]
    values.append(sharpness(module, X, y, rho=0.2, steps=20, n_restarts=3).value)
    assert values == sorted(values)
    with torch.no_grad():
        w = [p.clone() for p in module.parameters()]
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), w, strict=True))


def test_a_loss_that_overflows_within_the_ball_is_refused():
    module, X, y = NETWORKS["mlp_no_bias"]()
    with pytest.raises(NotDefinedError, match=r"The loss is (inf|nan) within the ball of radius 1e\+200"):
        sharpness(module, X, y, rho=1e200)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"rho": 0.0}, ValueError, r"`rho` must lie in \(0, inf\), got 0"),
        ({"norm": "l1"}, ValueError, "`norm` must be one of 'l2', 'linf', got 'l1'"),
        ({"steps": 0}, ValueError, "`steps` must be at least 1, got 0"),
        ({"n_restarts": 1.5}, TypeError, "`n_restarts` must be an integer, got 1.5"),
        ({"m": 0}, ValueError, "`m` must be at least 1, got 0"),
        ({"n_draws": 1}, ValueError, "`n_draws` must be at least 2, got 1"),
    ],
)
def test_parameters_out_of_range(params, error, message):
    with pytest.raises(error, match=message):
        sharpness(*NETWORKS["mlp"](), **params)
