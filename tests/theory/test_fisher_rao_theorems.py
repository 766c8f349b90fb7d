"""Liang et al.: stationary points (corollaries 2.1 and 2.2), balls inside the Fisher-Rao ball, theorem 4.1."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from networks import dense_chain
from sklearn_capacity import measure_capacity


def scaled(module, factor):
    """The same network with its function multiplied, by equal shares of the layers."""
    weights = list(module.parameters())
    with torch.no_grad():
        for weight in weights:
            weight.mul_(factor ** (1 / len(weights)))
    return module


def drawn(n, p, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, p)))


# ---- stationary points -----------------------------------------------------------------------------------------------


def hinge_slope(module, X, y):
    """<theta, grad L> and the gradient's norm for L = mean max(0, 1 - y f)."""
    parameters = list(module.parameters())
    f = module(X)[:, 0]
    gradients = torch.autograd.grad((1 - y * f).clamp_min(0).mean(), parameters)
    inner = sum((g * p).sum() for g, p in zip(gradients, parameters, strict=True))
    return inner.item(), torch.cat([g.flatten() for g in gradients]).norm().item(), (y * f).detach()


@pytest.mark.parametrize("seed", range(5))
def test_corollary_2_1_a_separating_stationary_point_has_large_margins(seed):
    """<theta, grad L> = -(L + 1) mean(y f 1{y f < 1}), which is 0 only if no separated sample has a margin below 1."""
    module, X = dense_chain(4, 9, 7, 1, bias=False, seed=seed), drawn(30, 4, seed)
    y = torch.sign(module(X)[:, 0]).detach()  # it separates the data
    keep = y != 0
    X, y = X[keep], y[keep]
    smallest = (y * module(X)[:, 0]).detach().min().item()
    for target in (0.2, 0.9):
        inner, length, margins = hinge_slope(scaled(module, target / smallest), X, y)
        smallest = target
        assert margins.min() == pytest.approx(target)
        assert inner == pytest.approx(-3 * (margins * (margins < 1)).mean().item())
        assert inner < 0 < length  # not stationary
    inner, length, margins = hinge_slope(scaled(module, 1.01 / smallest), X, y)
    assert margins.min() > 1 and inner == length == 0


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_corollary_2_2_stationary_points_of_deep_linear_networks(depth):
    """<theta, grad L> = (L + 1) <w, X^T X w - X^T Y> / N everywhere, and both are 0 where the gradient is."""
    module, X = dense_chain(*[4] * depth, 1, bias=False, activation=nn.Identity), drawn(20, 4)
    y = X @ torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64) + drawn(20, 1, 1)[:, 0]

    def parts():
        weights = list(module.parameters())
        w = weights[0]
        for weight in weights[1:]:
            w = weight @ w  # (1, p) at the end
        gradients = torch.autograd.grad((0.5 * (module(X)[:, 0] - y) ** 2).mean(), weights)
        inner = sum((g * p).sum() for g, p in zip(gradients, weights, strict=True)).item()
        w = w[0].detach()
        return inner, (w @ (X.T @ X @ w - X.T @ y)).item() / len(X), max(g.abs().max().item() for g in gradients)

    inner, form, _ = parts()
    assert inner == pytest.approx(depth * form) and abs(form) > 1e-3
    optimizer = torch.optim.LBFGS(module.parameters(), max_iter=500, tolerance_grad=1e-12, tolerance_change=0)

    def closure():
        optimizer.zero_grad()
        loss = (0.5 * (module(X)[:, 0] - y) ** 2).mean()
        loss.backward()
        return loss

    for _ in range(5):
        optimizer.step(closure)
    _, form, largest = parts()
    assert largest < 1e-6 and abs(form) < 1e-5
    with torch.no_grad():
        list(module.parameters())[-1].zero_()
        list(module.parameters())[0].zero_()
    _, form, largest = parts()
    if depth > 1:  # stationary, and far from the optimum: the corollary does not claim that it is one
        assert form == largest == 0 and (X.T @ y).norm() > 1


# ---- balls (remarks 4.1 to 4.3) --------------------------------------------------------------------------------------


def fisher_rao(module, X):
    """|theta|_fr / (L + 1) under the absolute loss, which is the root of E f^2 (theorem 3.1)."""
    norm = measure_capacity(module, X, torch.zeros(len(X), 1), "fisher_rao_norm", loss="absolute")["fisher_rao_norm"]
    return norm / sum(1 for _ in module.parameters())


def spectral_radius(X, widths):
    return 1 / math.sqrt((X**2).sum(1).mean()), ("spectral_norm", {})


def group_radius(p, q):
    """1 / r = (k^[1/p* - 1/q]_+)^L max |x|_p*, with k the largest hidden width and L hidden layers."""

    def radius(X, widths):
        p_star = p / (p - 1) if p > 1 else math.inf
        exponent = max(0.0, 1 / p_star - 1 / q)
        lengths = torch.linalg.vector_norm(X, p_star, dim=1)
        return 1 / (max(widths[1:-1]) ** (exponent * (len(widths) - 2)) * lengths.max()), (
            "group_norm",
            {"p": p, "q": q},
        )

    return radius


def path_radius(X, widths):
    return 1 / X.abs().max(), ("path_norm", {"p": 1})


RADII = {
    "4.1": spectral_radius,
    "4.2 p=2 q=2": group_radius(2, 2),
    "4.2 p=2 q=4": group_radius(2, 4),
    "4.2 p=1 q=3": group_radius(1, 3),
    "4.2 p=3 q=1": group_radius(3, 1),
    "4.3": path_radius,
}


@pytest.mark.parametrize("remark", RADII)
def test_balls_of_the_radii_of_remarks_4_1_to_4_3_lie_in_the_unit_fisher_rao_ball(remark):
    for seed in range(6):
        widths = [(4, 8, 1), (5, 6, 9, 1), (3, 4, 4, 4, 1)][seed % 3]
        module, X = dense_chain(*widths, bias=False, seed=seed), drawn(25, widths[0], seed)
        radius, (name, options) = RADII[remark](X, widths)
        norm = measure_capacity(module, X, measures={"norm": (name, options)})["norm"]
        scaled(module, float(radius) / norm)
        again = measure_capacity(module, X, measures={"norm": (name, options)})["norm"]
        assert again == pytest.approx(float(radius), rel=1e-6)
        assert 0 < fisher_rao(module, X) <= 1 + 1e-9


@pytest.mark.parametrize("remark", ["4.1", "4.2 p=2 q=2", "4.3"])
def test_no_larger_radius_would_do(remark):
    """One path of positive weights along one input: the norm of the network is its function's."""
    X = torch.tensor([[1.7, 0.0]], dtype=torch.float64)
    module = dense_chain(2, 3, 3, 1, bias=False)
    with torch.no_grad():
        for weight in module.parameters():
            weight.zero_()
            weight[0, 0] = 1.3
    radius, (name, options) = RADII[remark](X, (2, 3, 3, 1))
    norm = measure_capacity(module, X, measures={"norm": (name, options)})["norm"]
    if remark.startswith("4.2"):
        assert norm == pytest.approx(1.3**3)
    assert fisher_rao(scaled(module, float(radius) / norm), X) == pytest.approx(1)


# ---- theorem 4.1 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("p", "n"), [(3, 40), (10, 200)])
def test_theorem_4_1_by_simulation(p, n):
    """The Rademacher average of the Fisher-Rao ball of linear networks is at most gamma sqrt(p / N)."""
    rng, gamma = np.random.default_rng(0), 0.7
    root = rng.normal(size=(p, p))  # of the Gram matrix E x x^T = root root^T, of full rank
    gram = root @ root.T
    averages = []
    for _ in range(2000):
        X, signs = rng.normal(size=(n, p)) @ root.T, rng.choice([-1.0, 1.0], size=n)
        v = X.T @ signs / n  # the average of signs * f is <w, v>, its largest value that with w ~ gram^{-1} v
        averages.append(gamma * math.sqrt(v @ np.linalg.solve(gram, v)))
    mean, error = np.mean(averages), np.std(averages) / math.sqrt(len(averages))
    bound = gamma * math.sqrt(p / n)
    assert mean < bound + 4 * error  # an inequality by Jensen, and nearly an equality for many dimensions
    assert mean > 0.85 * bound

    w = gamma * np.linalg.solve(gram, v) / math.sqrt(v @ np.linalg.solve(gram, v))
    module = dense_chain(p, p, 1, bias=False, activation=nn.Identity)
    first, last = module.parameters()
    inner = np.linalg.solve(first.detach().numpy().T, w)  # such that last @ first = w
    with torch.no_grad():
        last.copy_(torch.from_numpy(inner[None]))
    population = torch.from_numpy(math.sqrt(p) * root.T.copy())  # rows whose mean of x x^T is the Gram matrix
    assert fisher_rao(module, population) == pytest.approx(gamma)  # the supremum is attained in the ball
    f = module(torch.from_numpy(X))[:, 0].detach().numpy()
    assert signs @ f / n == pytest.approx(averages[-1])
    for seed in range(20):  # and nothing else in the ball exceeds it
        other = dense_chain(p, p, 1, bias=False, activation=nn.Identity, seed=seed)
        scaled(other, gamma / fisher_rao(other, population))
        assert signs @ other(torch.from_numpy(X))[:, 0].detach().numpy() / n <= averages[-1] * (1 + 1e-9)
