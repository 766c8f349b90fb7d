"""Neyshabur et al.: the capacity (C / gamma)^n of Lipschitz functions, K-robustness, and lemmas 2 and 3."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from networks import dense_chain
from sklearn_capacity import interaction_conditions, measure_capacity
from sklearn_capacity.theory import manifold_covering_number, robustness_bound_from_covering

DELTA = 0.05


# ---- K-robustness ----------------------------------------------------------------------------------------------------


def ramp_loss(module, X, y, gamma):
    """1 where the margin is negative, 0 from gamma on, linear in between: of slope 2 / gamma in the largest logit."""
    f = module(X).detach()
    others = f.scatter(1, y[:, None], -math.inf).amax(1)
    return (1 - (f.gather(1, y[:, None])[:, 0] - others) / gamma).clamp(0, 1)


def cells_per_side(constant, gamma, epsilon):
    """The unit cube's cells have a side below epsilon gamma / (2 C): the loss moves by epsilon in each at most."""
    return math.ceil(2 * constant / (gamma * epsilon))


@pytest.mark.parametrize("seed", range(3))
def test_a_network_is_k_robust_with_k_of_the_order_of_its_capacity(seed):
    """Eq. 3: x, z in one cell have losses that differ by epsilon at most, for K = ceil(2 C / (gamma epsilon))^n."""
    n, gamma, epsilon = 2, 0.7, 0.5
    module, rng = dense_chain(n, 8, 6, 3, seed=seed), np.random.default_rng(seed)
    constant = measure_capacity(module, torch.zeros(1, n).double(), measures="lipschitz_linf")["lipschitz_linf"]
    side = cells_per_side(constant, gamma, epsilon)
    largest = 0.0
    for _ in range(300):
        corner = rng.integers(side, size=n) / side
        cell = torch.from_numpy(corner + rng.uniform(size=(20, n)) / side)
        for label in range(3):
            losses = ramp_loss(module, cell, torch.full((20,), label), gamma)
            largest = max(largest, (losses.max() - losses.min()).item())
    assert 0 < largest <= epsilon


def test_cells_that_are_too_large_are_not_robust():
    """For a linear map the count is right to a factor: cells of 2 epsilon break the condition."""
    module = nn.Linear(1, 2, bias=False).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[3.0], [-3.0]]))
    constant = measure_capacity(module, torch.zeros(1, 1).double(), measures="lipschitz_linf")["lipschitz_linf"]
    assert constant == pytest.approx(3)
    gamma, epsilon, label = 6.0, 0.25, torch.tensor([0, 0])
    for factor, robust in ((1, True), (2, False)):
        cell = torch.tensor([[0.0], [factor / cells_per_side(constant, gamma, epsilon)]]).double()
        losses = ramp_loss(module, cell, label, gamma)
        assert ((losses[0] - losses[1]).abs().item() <= epsilon + 1e-12) is robust


@pytest.mark.parametrize("n", [1, 3, 8])
def test_the_capacity_is_c_over_gamma_to_the_power_n(n):
    """The covering number of an n-dimensional domain at the radius gamma / C; the bound takes its root over m."""
    for constant, gamma in itertools.product((1.0, 5.0, 40.0), (0.5, 2.0)):
        number = manifold_covering_number(gamma / constant, n, 1.0)
        assert number == pytest.approx((constant / gamma) ** n)
        cells = cells_per_side(constant, gamma, 1.0) ** n  # cubes in place of balls: 2^n as many, and rounded up
        assert 2**n * number * (1 - 1e-9) <= cells <= (2 * constant / gamma + 1) ** n
        bound = robustness_bound_from_covering(number, 10**6, DELTA)
        assert bound**2 == pytest.approx((2 * number * math.log(2) + 2 * math.log(1 / DELTA)) / 10**6)


def test_the_capacity_grows_with_depth_as_the_product_of_the_norms_to_the_power_n():
    """Section 2.3: the bound by (prod |W_i|_2 / gamma)^n is exponential in the inputs and in the depth."""
    n, logs = 4, []
    for depth in (2, 4, 8):
        module = dense_chain(n, *[n] * (depth - 1), 2, bias=False)
        with torch.no_grad():
            for weight in module.parameters():
                weight.mul_(2 / torch.linalg.matrix_norm(weight, 2))
        X = torch.zeros(1, n).double()
        norm = measure_capacity(module, X, measures=["spectral_norm", "lipschitz_l2"])
        assert norm["spectral_norm"] == pytest.approx(2**depth) and norm["lipschitz_l2"] == pytest.approx(2**depth)
        logs.append(math.log(manifold_covering_number(0.5 / norm["lipschitz_l2"], n, 1.0)))
    assert logs == pytest.approx([n * math.log(2 ** (depth + 1)) for depth in (2, 4, 8)])


# ---- lemma 3 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shapes", [(3, 4, 5, 2), (1, 6, 1, 6), (5, 2, 2, 5)])
def test_lemma_3_by_simulation(shapes):
    """E |A nu B|_F <= sigma |A|_F |B|_F for nu of variance sigma^2: the mean of the square is the right side's."""
    rng, sigma = np.random.default_rng(0), 0.3
    n1, n2, n3, n4 = shapes
    A, B = rng.normal(size=(n1, n2)), rng.normal(size=(n3, n4))
    bound = sigma * np.linalg.norm(A) * np.linalg.norm(B)
    # vec(A nu B) = (B^T kron A) vec(nu), so that E |A nu B|^2 = sigma^2 |B^T kron A|_F^2, without a draw
    assert sigma * np.linalg.norm(np.kron(B.T, A)) == pytest.approx(bound)
    norms = np.array([np.linalg.norm(A @ rng.normal(0, sigma, size=(n2, n3)) @ B) for _ in range(4000)])
    error = norms.std() / math.sqrt(len(norms))
    assert norms.mean() <= bound + 4 * error
    squares = norms**2
    assert squares.mean() == pytest.approx(bound**2, abs=4 * squares.std() / math.sqrt(len(squares)))


# ---- lemma 2 ---------------------------------------------------------------------------------------------------------

#: What the O() of lemma 2 hides, for all networks, noises and layers below; 1 in the first layer.
HIDDEN_CONSTANT = 4.0


class Perturbed:
    """A rectifier chain at one input of norm 1, and what Gaussian noise on its weights does to it."""

    def __init__(self, module, x, sigma):
        self.W = [layer.weight.detach().numpy() for layer in module if isinstance(layer, nn.Linear)]
        self.x, self.sigma, self.d = x, sigma, len(self.W)
        self.h = max(len(w) for w in self.W)
        self.active, self.f = [], [x]  # activation patterns, and outputs f^k
        for k, weight in enumerate(self.W):
            z = weight @ self.f[-1]
            self.active.append(z > 0 if k < self.d - 1 else np.ones(len(z), dtype=bool))
            self.f.append(self.active[-1] * z)

    def draw(self, rng):
        """Flips in each hidden layer, and |Err_k|: the difference that the changed activations make up to layer k."""
        flips, errors, new, old = [], [], self.x, self.x
        for k, weight in enumerate(self.W):
            noisy = weight + rng.normal(0, self.sigma, size=weight.shape)
            z = noisy @ new
            active = z > 0 if k < self.d - 1 else self.active[k]
            new, old = active * z, self.active[k] * (noisy @ old)
            flips.append(int((active != self.active[k]).sum()))
            errors.append(np.linalg.norm(new - old))
        return flips, errors


@pytest.mark.parametrize("widths", [(6, 60, 50, 40, 3), (10, 200, 200, 4)])
@pytest.mark.parametrize("sigma", [1e-3, 1e-2])
def test_lemma_2_by_simulation(widths, sigma):
    """With probability 1 - delta the activations that noise flips, and what they change, are bounded by C1 to C3."""
    rng = np.random.default_rng(0)
    module, total = dense_chain(*widths, bias=False), 0
    for sample in range(3):
        x = rng.normal(size=widths[0])
        x /= np.linalg.norm(x)
        net = Perturbed(module, x, sigma)
        c_delta = 2 * math.sqrt(math.log(net.d * net.h / DELTA))
        # C2 counts units near 0 at the thresholds that the proof uses, sigma C_delta |f^{k-1}|, and above
        thresholds = [sigma * c_delta * np.linalg.norm(f) * factor for f in net.f[:-1] for factor in (1, 3, 10)]
        table = interaction_conditions(module, torch.from_numpy(x[None]), deltas=thresholds)
        constants = {name: rows["value"] for name, rows in table.groupby("condition")}
        mu, c2, c3 = min(1.0, constants["C1"].min()), constants["C2"].max(), constants["C3"].max()
        draws = [net.draw(rng) for _ in range(200)]
        bounds = [c2 * len(w) * c_delta * sigma * np.linalg.norm(f) for w, f in zip(net.W, net.f[:-1], strict=True)]
        for k in range(net.d - 1):
            allowed = bounds[k] * (1.0 if k == 0 else HIDDEN_CONSTANT)
            assert np.mean([flips[k] > allowed for flips, _ in draws]) <= DELTA, (sample, k)
        gammas = [
            sigma * math.sqrt(w.shape[0] * w.shape[1]) / (mu**2 * np.linalg.norm(a[:, None] * w))
            for w, a in zip(net.W, net.active, strict=True)
        ]
        for k in range(1, net.d + 1):
            product = math.prod(1 + g * c2 * c3 for g in gammas[:k])
            product *= math.prod(1 + g * c_delta * c2 for g in gammas[:k]) - 1
            error = np.mean([errors[k - 1] for _, errors in draws])
            assert error <= HIDDEN_CONSTANT * product * np.linalg.norm(net.f[k]), (sample, k)
        total += sum(sum(flips) for flips, _ in draws)
    assert total > 0  # there were some
