"""[GL] section 3 and appendix B: Bregman losses, the metrics that they give, and the bounds on the pull-back."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from networks import dense_chain
from sklearn_capacity import measure_capacity

rng = np.random.default_rng(0)


def divergence(phi, z, y):
    """d(z, y) = phi(z) - phi(y) - <z - y, grad phi(y)>, the gradient by autograd."""
    y = y.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(phi(y), y, create_graph=True)
    return phi(z) - phi(y) - (z - y) @ slope


def gradient(function, x):
    x = x.detach().clone().requires_grad_(True)
    return torch.autograd.grad(function(x), x)[0]


def half_square(x):
    return 0.5 * x @ x


def negative_entropy(mu):
    return (mu * mu.log()).sum()


def log_sum_exp(theta):
    return torch.logsumexp(theta, 0)


def simplex(n):
    return torch.from_numpy(rng.dirichlet(np.ones(n)))


def vector(n):
    return torch.from_numpy(rng.normal(size=n))


def test_the_losses_of_the_package_are_bregman_divergences():
    for _ in range(5):
        f, y, logits = vector(4), vector(4), vector(3)
        assert divergence(half_square, f, y).item() == pytest.approx(0.5 * float((f - y).square().sum()))
        for label in range(3):
            # d(e_y, p) of the negative entropy is -log p_y; a corner of the simplex as the limit from inside
            corner = torch.full((3,), 1e-12, dtype=torch.float64)
            corner[label] = 1 - 2e-12
            want = nn.functional.cross_entropy(logits[None], torch.tensor([label]))
            assert divergence(negative_entropy, corner, logits.softmax(0)).item() == pytest.approx(
                float(want), abs=1e-9
            )


def test_a_divergence_is_not_negative_and_has_its_gradient():
    for phi, draw in ((half_square, vector), (negative_entropy, simplex), (log_sum_exp, vector)):
        for _ in range(10):
            z, y = draw(4), draw(4)
            assert divergence(phi, z, y) >= -1e-15 and abs(divergence(phi, z, z)) < 1e-15
            got = gradient(lambda x, phi=phi, y=y: divergence(phi, x, y), z)  # eq. 24
            torch.testing.assert_close(got, gradient(phi, z) - gradient(phi, y))


def test_duality():
    """d_phi(z, y) = d_psi(grad phi(y), grad phi(z)), psi being conjugate; and Fenchel's inequality (32)."""
    for _ in range(5):
        z, y = vector(4), vector(4)  # half the square is its own conjugate
        torch.testing.assert_close(divergence(half_square, z, y), divergence(half_square, y, z))
        mu, nu = simplex(4), simplex(4)
        # On the simplex grad phi is log mu up to a constant, which log-sum-exp as psi does not see in the divergence.
        torch.testing.assert_close(divergence(negative_entropy, mu, nu), divergence(log_sum_exp, nu.log(), mu.log()))
        theta = vector(4)
        assert theta @ mu - log_sum_exp(theta) - negative_entropy(mu) <= 1e-15
        p = theta.softmax(0)
        assert abs(theta @ p - log_sum_exp(theta) - negative_entropy(p)) < 1e-14  # equality at mu = grad psi(theta)


PSI = {"cross_entropy": log_sum_exp, "squared": half_square}


@pytest.mark.parametrize("loss", PSI)
def test_the_metric_is_the_hessian_of_the_cumulant_function_pulled_back(loss):
    module, X = dense_chain(4, 6, 3, activation=nn.Tanh), torch.from_numpy(rng.normal(size=(5, 4)))
    eigenvalues, traces = [], []
    for x in X:
        J = torch.autograd.functional.jacobian(module, x)
        zeta = J.T @ torch.autograd.functional.hessian(PSI[loss], module(x).detach()) @ J
        eigenvalues.append(torch.linalg.eigvalsh(zeta)[-1].item())
        traces.append(torch.trace(zeta).item())
    got = measure_capacity(module, X, measures=["pullback_curvature", "pullback_trace"], loss=loss)
    assert got["pullback_curvature"] == pytest.approx(np.mean(eigenvalues))
    assert got["pullback_trace"] == pytest.approx(np.mean(traces))


def test_the_binomial_cumulant_function_is_log_one_plus_exp():
    """Its second derivative is p (1 - p), at most 1/4; the printed -log(theta) has another one (erratum 6)."""
    x, w = torch.linspace(-3, 3, 7, dtype=torch.float64), 1.7
    two = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        two.weight.copy_(torch.tensor([[-w / 2], [w / 2]]))  # the logits -theta / 2 and theta / 2
    for value in x:
        theta = (w * value).clone().requires_grad_(True)
        (mean,) = torch.autograd.grad(torch.log1p(theta.exp()), theta, create_graph=True)
        (metric,) = torch.autograd.grad(mean, theta)
        p = theta.sigmoid().item()
        assert mean.item() == pytest.approx(p) and metric.item() == pytest.approx(p * (1 - p)) and metric <= 0.25
        got = measure_capacity(two, value.reshape(1, 1), measures="pullback_curvature", loss="cross_entropy")
        assert got["pullback_curvature"] == pytest.approx(w**2 * metric.item())  # J = w
        if value > 0:
            assert abs(1 / theta.item() ** 2 - metric.item()) > 0.01


@pytest.mark.parametrize("n_classes", [2, 3, 10])
def test_sigma_psi_is_at_most_one_half_for_a_softmax_and_one_for_squares(n_classes):
    largest = 0.0
    for scale in (0.1, 1.0, 10.0):
        for _ in range(20):
            F = torch.autograd.functional.hessian(log_sum_exp, scale * vector(n_classes))
            largest = max(largest, torch.linalg.eigvalsh(F)[-1].item())
    assert largest <= 0.5
    equal = torch.full((n_classes,), -50.0, dtype=torch.float64)
    equal[:2] = 0  # two classes share all the probability
    F = torch.autograd.functional.hessian(log_sum_exp, equal)
    assert torch.linalg.eigvalsh(F)[-1].item() == pytest.approx(0.5)
    F = torch.autograd.functional.hessian(half_square, vector(n_classes))
    torch.testing.assert_close(F, torch.eye(n_classes, dtype=torch.float64))


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
@pytest.mark.parametrize("loss", PSI)
@pytest.mark.parametrize("seed", range(3))
def test_the_trace_bound(seed, loss, activation):
    """Eqs. 18 and 19: sigma_max <= tr(zeta) <= dim(F) sigma_psi prod tr(W^T W) tr(diag(c')^2) <= dim(F) C sigma_psi
    prod sigma_l^2, with C the product of the layers' dimensions; sigma_l a singular value (erratum 4)."""
    module, X = dense_chain(4, 6, 5, 3, seed=seed, activation=activation), torch.from_numpy(rng.normal(size=(6, 4)))
    weights = [layer.weight.detach() for layer in module if isinstance(layer, nn.Linear)]
    for x in X:
        row = measure_capacity(module, x[None], measures=["pullback_curvature", "pullback_trace"], loss=loss)
        slopes, h = [], x
        for layer in module:
            if isinstance(layer, activation):
                slopes.append(torch.diagonal(torch.autograd.functional.jacobian(layer, h)))
            h = layer(h).detach()
        F = torch.autograd.functional.hessian(PSI[loss], h)
        sigma_psi = torch.linalg.eigvalsh(F)[-1].item()
        by_traces = len(h) * sigma_psi
        by_traces *= math.prod(w.square().sum().item() for w in weights)
        by_traces *= math.prod(c.square().sum().item() for c in slopes)
        dimensions = math.prod(min(w.shape) for w in weights) * math.prod(len(c) for c in slopes)
        by_norms = len(h) * sigma_psi * dimensions
        by_norms *= math.prod(torch.linalg.matrix_norm(w, 2).item() ** 2 for w in weights)
        chain = [row["pullback_curvature"], row["pullback_trace"], by_traces, by_norms]
        assert all(a <= b * (1 + 1e-9) for a, b in zip(chain[:-1], chain[1:], strict=True))
        assert row["pullback_curvature"] >= row["pullback_trace"] / 4 - 1e-15  # eq. 18 on the left, dim 4


def test_the_relations_of_the_proof_need_positive_semidefinite_matrices_and_singular_values():
    """Errata: tr(A B) <= tr(A) tr(B) fails for symmetric A, B; and the largest eigenvalue of W bounds nothing."""
    for _ in range(20):
        A, B = (M @ M.T for M in rng.normal(size=(2, 4, 4)))
        assert np.trace(A @ B) <= np.trace(A) * np.trace(B)
    indefinite = np.diag([1.0, -1.0])
    assert np.trace(indefinite @ indefinite) > np.trace(indefinite) ** 2
    nilpotent = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        nilpotent.weight.copy_(torch.tensor([[0.0, 3.0], [0.0, 0.0]]))
    measures = ["pullback_curvature", "spectral_product_bound"]
    row = measure_capacity(nilpotent, torch.ones(1, 2).double(), measures=measures, loss="squared")
    assert np.abs(np.linalg.eigvals(nilpotent.weight.detach().numpy())).max() == 0
    assert row["pullback_curvature"] == pytest.approx(9) and row["spectral_product_bound"] == pytest.approx(9)
