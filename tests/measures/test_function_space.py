"""Effective dimension and tangent kernel against dense Jacobians of the user's own module."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev

from networks import NETWORKS, make, measure_module
from sklearn_capacity import NotDefinedError, measure_capacity


def gradients(module, X):
    """Of every logit of every sample, (m, C, P)."""
    theta = {name: p.detach() for name, p in module.named_parameters()}
    result = jacrev(lambda t: functional_call(module, t, (X,)))(theta)
    return torch.cat([result[name].reshape(len(X), -1, p.numel()) for name, p in theta.items()], dim=2).numpy()


CASES = ["mlp", "mlp_tanh", "conv_strided_grouped", "tied", "conv_max_pool"]


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("case", CASES)
def test_effective_dimension_is_that_of_the_dense_matrix(case, loss):
    module, X, y = NETWORKS[case]()
    J = gradients(module, X)
    m, _, P = J.shape
    F = np.zeros((P, P))
    for rows, f in zip(J, module(X).detach().numpy(), strict=True):
        p = np.exp(f - f.max()) / np.exp(f - f.max()).sum()
        F += rows.T @ (np.eye(len(f)) if loss == "squared" else np.diag(p) - np.outer(p, p)) @ rows / m
    for n, gamma in ((100, 1.0), (5000, 0.3)):
        kappa = gamma * n / (2 * math.pi * math.log(n))
        _, log_det = np.linalg.slogdet(np.eye(P) + kappa * P / np.trace(F) * F)
        result = measure_module(module, X, "effective_dimension", n=n, gamma=gamma, **{"loss": loss})
        assert result.value == pytest.approx(log_det / math.log(kappa), rel=1e-6)
        assert result.value <= P


@pytest.mark.parametrize("case", CASES)
def test_alignment_and_decay_are_those_of_the_dense_kernel(case):
    module, X, y = NETWORKS[case]()
    J = gradients(module, X)
    m, C, P = J.shape
    A = J.reshape(m * C, P)
    K = A @ A.T
    targets = np.array([[(1.0 if k == label else 0.0) - 1 / C for k in range(C)] for label in y.tolist()]).ravel()
    labels = np.outer(targets, targets)
    expected = (K * labels).sum() / math.sqrt((K**2).sum() * (labels**2).sum())
    assert measure_module(module, X, "ntk_alignment", y=y).value == pytest.approx(expected, rel=1e-8)
    values = np.linalg.eigvalsh(K)[::-1]
    values = values[values > 1e-4 * values[0]]
    slope = np.polyfit(np.log(np.arange(1, len(values) + 1)), np.log(values), 1)[0]
    assert measure_module(module, X, "ntk_decay", y=y).value == pytest.approx(-slope, rel=1e-6)


def test_regression_targets():
    module, X, _ = NETWORKS["mlp_tanh"]()
    y = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    A = gradients(module, X).reshape(21, -1)
    K, t = A @ A.T, y.numpy().ravel()
    expected = t @ K @ t / (np.linalg.norm(K) * (t @ t))
    assert measure_capacity(module, X, y, "ntk_alignment")["ntk_alignment"] == pytest.approx(expected, rel=1e-8)


def test_a_thousand_classes():
    module, X, _ = make(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1000)), (3,))
    y = torch.arange(7) * 140
    A = gradients(module, X).transpose(1, 0, 2).reshape(7000, -1)
    targets = -np.full((1000, 7), 1e-3)
    targets[y.numpy(), np.arange(7)] += 1
    t = targets.ravel()
    expected = np.square(A.T @ t).sum() / (np.linalg.norm(A.T @ A) * (t @ t))
    assert measure_module(module, X, "ntk_alignment", y=y).value == pytest.approx(expected, rel=1e-8)


def test_what_is_refused():
    module, X, y = NETWORKS["mlp"]()
    with pytest.raises(NotDefinedError, match=r"above 1, got 0.573 for `gamma` = 1 and `n` = 7. Use a larger `n`"):
        measure_capacity(module, X, y, "effective_dimension")
    with pytest.raises(ValueError, match="`gamma` must lie in"):
        measure_capacity(module, X, y, {"d": ("effective_dimension", {"gamma": 2.0})})
    with pytest.raises(ValueError, match="`n` must be between 2 and"):
        measure_capacity(module, X, y, {"d": ("effective_dimension", {"n": 1})})
    with pytest.raises(ValueError, match="`floor` must lie in"):
        measure_capacity(module, X, y, {"d": ("ntk_decay", {"floor": 1.0})})
    with pytest.raises(NotDefinedError, match="needs two eigenvalues above 0.5 of the largest, and there are 1"):
        measure_capacity(nn.Linear(5, 1), X[:1], measures={"d": ("ntk_decay", {"floor": 0.5})})
    with pytest.raises(NotDefinedError, match="where the targets are zero"):
        measure_capacity(nn.Linear(5, 1), X, torch.zeros(7), "ntk_alignment")
