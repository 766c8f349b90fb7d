"""Sokolic et al.: average Jacobians (theorem 3, corollary 2, theorem 6), batch normalisation (theorem 5), the rank."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from networks import dense_chain
from sklearn_capacity import measure_capacity
from sklearn_capacity.derivatives.input_jacobian import jacobian_products
from sklearn_capacity.penalties import frobenius_penalty, spectral_penalty

WIDTHS = (4, 7, 6, 3)


def jacobians(module, X):
    """(n, C, D), by the package."""
    return torch.stack(list(jacobian_products(module, X)), dim=1).detach()


def vectors(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def kinks(module, x, step):
    """Where on the segment x + t step a rectifier of the network switches: all t in (0, 1), exactly, layer by layer."""
    ends = [0.0, 1.0]
    for depth in range(1, len(module), 2):
        part = module[:depth]
        result = []
        for a, b in zip(ends[:-1], ends[1:], strict=True):  # the pre-activations are linear in between
            za, zb = (part(x + t * step).detach() for t in (a, b))
            crossing = (a + (b - a) * za / (za - zb))[(za * zb < 0)]
            result += crossing.tolist()
        ends = sorted([*ends, *result])
    return ends


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_theorem_3_the_average_jacobian_carries_one_point_into_the_other(seed, activation):
    module = dense_chain(*WIDTHS, activation=activation, seed=seed)
    x, other = 3 * vectors(2, 4, seed=seed)
    if activation is nn.ReLU:  # constant between two kinks: the integral is a sum
        ends = kinks(module, x, other - x)
        middles = torch.tensor([(a + b) / 2 for a, b in zip(ends[:-1], ends[1:], strict=True)], dtype=torch.float64)
        weights = torch.tensor(ends, dtype=torch.float64).diff()
        assert len(weights) > 2
    else:
        nodes, weights = np.polynomial.legendre.leggauss(40)
        middles, weights = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(weights / 2)
    J = jacobians(module, x + middles[:, None] * (other - x))
    average = torch.einsum("t,tcd->cd", weights, J)  # eq. 23
    difference = (module(other) - module(x)).detach()
    torch.testing.assert_close(average @ (other - x), difference, rtol=1e-9, atol=1e-10)  # eqs. 21 and 22
    largest = torch.linalg.matrix_norm(J, 2).max()  # on the segment, which lies in the convex hull
    assert torch.linalg.matrix_norm(average, 2) <= largest * (1 + 1e-12)  # eq. 59
    assert difference.norm() <= largest * (other - x).norm() * (1 + 1e-9)  # corollary 2


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_corollary_2_over_a_convex_hull(activation):
    """Distances grow by the largest Jacobian of the hull at most, and that by the composed constant at most."""
    module, X = dense_chain(*WIDTHS, activation=activation), vectors(12, 4)
    pairs = [(i, j) for i in range(12) for j in range(i)]
    t = torch.linspace(0, 1, 401, dtype=torch.float64)
    hull = torch.cat([X[i] + t[:, None] * (X[j] - X[i]) for i, j in pairs])
    largest = torch.linalg.matrix_norm(jacobians(module, hull), 2).max().item()
    f = module(X).detach()
    growth = max(((f[i] - f[j]).norm() / (X[i] - X[j]).norm()).item() for i, j in pairs)
    composed = measure_capacity(module, X, measures="lipschitz_l2")["lipschitz_l2"]
    assert growth <= largest * (1 + 1e-9) <= composed * (1 + 2e-9)
    assert growth > 0.2 * largest


def test_corollary_2_is_tight_for_a_linear_map_along_its_first_singular_vector():
    module = dense_chain(*WIDTHS, activation=nn.Identity)
    J = jacobians(module, torch.zeros(1, 4).double())[0]
    v = torch.linalg.svd(J).Vh[0]
    growth = (module(v) - module(torch.zeros(4).double())).norm().item()
    assert growth == pytest.approx(torch.linalg.matrix_norm(J, 2).item())


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU])
def test_theorem_6_on_a_circle(activation):
    """Geodesics of a circle of radius r in the inputs: |f(x') - f(x)| <= sup |J(c(t))| r angle."""
    radius = 2.0
    plane = torch.linalg.qr(vectors(4, 2)).Q  # an orthonormal pair
    module = dense_chain(*WIDTHS, activation=activation)

    def on_circle(angles):
        return radius * torch.stack([angles.cos(), angles.sin()], dim=1) @ plane.T

    tightest = math.inf
    for start in range(8):
        for angle in (0.01, 0.5, 1.5, 3.0):
            t = start + torch.linspace(0, angle, 801, dtype=torch.float64)
            c = on_circle(t)
            steps = (c[1:] - c[:-1]).norm(dim=1).sum().item()
            assert steps == pytest.approx(radius * angle, rel=1e-4)  # the length of the curve
            largest = torch.linalg.matrix_norm(jacobians(module, c), 2).max().item()
            moved = (module(c[-1]) - module(c[0])).norm().item()
            assert moved <= largest * radius * angle * (1 + 1e-6)
            tightest = min(tightest, largest * radius * angle / max(moved, 1e-300))
    assert tightest < 10


class UncenteredBatchNorm(nn.Module):
    """Eq. 46: z -> relu(N W z), N = diag(sum_i W z_i z_i^T W^T)^{-1/2} over the batch (the last layer: N W z)."""

    def __init__(self, weights):
        super().__init__()
        self.weights = [w.clone() for w in weights]

    def normalisers(self, Z):
        result = []
        for weight in self.weights:
            pre = Z @ weight.T
            result.append(pre.square().sum(0).rsqrt())
            Z = (pre * result[-1]).relu()
        return result

    def forward(self, Z):
        normalisers = self.normalisers(Z)
        for weight, normaliser in zip(self.weights[:-1], normalisers[:-1], strict=True):
            Z = ((Z @ weight.T) * normaliser).relu()
        return (Z @ self.weights[-1].T) * normalisers[-1]


@pytest.mark.parametrize("seed", range(3))
def test_theorem_5_batch_normalisation_has_row_normalised_weights(seed):
    """The network equals one with unit rows, whose normalisers are the diagonal parts of the next layers' weights."""
    weights, Z = [vectors(6, 4, seed=seed), vectors(5, 6, seed=seed + 9), vectors(3, 5, seed=seed + 17)], vectors(20, 4)
    original = UncenteredBatchNorm(weights)
    unit = [w / w.norm(dim=1, keepdim=True) for w in weights]  # diag(W W^T)^{-1/2} W (erratum 3)
    normalised = UncenteredBatchNorm([*unit[:-1], weights[-1]])
    torch.testing.assert_close(original(Z), normalised(Z))
    # N goes through the rectifier into the next layer: W_{l+1} N(W^N_l), whose rows are normalised again.
    h, last = Z, torch.ones(4, dtype=torch.float64)
    for weight, normaliser in zip(unit[:-1], normalised.normalisers(Z)[:-1], strict=True):
        matrix = weight * last
        rows = matrix.norm(dim=1, keepdim=True)
        h, last = (h @ (matrix / rows).T).relu(), normaliser * rows[:, 0]
    final = (weights[-1] * last) * normalised.normalisers(Z)[-1][:, None]  # N({z}, W_L) W_L, of any norm
    torch.testing.assert_close(h @ final.T, original(Z))
    assert not torch.allclose(final.norm(dim=1), torch.ones(3).double(), rtol=1e-2)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_norms_of_a_jacobian_differ_by_its_rank_at_most(rank):
    """|J|_F^2 / rank(J) <= |J|_2^2 <= |J|_F^2, with a bottleneck of `rank` units."""
    module, X = dense_chain(4, rank, 6, 3, activation=nn.Tanh), vectors(15, 4)
    J = jacobians(module, X)
    assert torch.linalg.matrix_rank(J).max() == min(rank, 3)
    for x in X:
        spectral, frobenius = (penalty(module, x[None]).item() for penalty in (spectral_penalty, frobenius_penalty))
        assert frobenius / rank * (1 - 1e-9) <= spectral <= frobenius * (1 + 1e-9)
    if rank == 1:  # both are equalities
        torch.testing.assert_close(spectral_penalty(module, X), frobenius_penalty(module, X))


def test_the_rank_is_attained_by_an_isometry():
    linear = nn.Linear(5, 3, bias=False).double()
    with torch.no_grad():
        linear.weight.copy_(torch.linalg.qr(vectors(5, 3)).Q.T)
    X = vectors(2, 5)
    torch.testing.assert_close(frobenius_penalty(linear, X) / 3, spectral_penalty(linear, X))
