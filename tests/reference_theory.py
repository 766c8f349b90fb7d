"""Random networks in plain numpy: what mean-field theory predicts, simulated.

Nothing here comes from the package: forward and backward passes are written out, the Fisher matrix goes through its
dual Gram matrix, the Fisher-Rao value through the back-propagated gradient (the theory uses a forward recursion).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import erf


def _relu(u):
    return np.maximum(u, 0.0)


def _step(u):
    return (u > 0).astype(float)


FUNCTIONS = {
    "relu": (_relu, _step),
    "linear": (lambda u: u, np.ones_like),
    "tanh": (np.tanh, lambda u: 1 - np.tanh(u) ** 2),
    "erf": (erf, lambda u: 2 / np.sqrt(np.pi) * np.exp(-(u**2))),
    "leaky_relu": (lambda u: np.where(u > 0, u, 0.01 * u), lambda u: np.where(u > 0, 1.0, 0.01)),
    "sigmoid": (lambda u: 1 / (1 + np.exp(-u)), lambda u: np.exp(-u) / (1 + np.exp(-u)) ** 2),
}


@dataclass
class Draw:
    """One random network and its signals: h[l] of shape (T, M_l), delta[l][k] of shape (T, M_l), l = 1 .. L."""

    weights: list
    biases: list
    h: list
    delta: list

    @property
    def n_parameters(self):
        return sum(w.size for w in self.weights) + sum(b.size for b in self.biases)

    def dual(self):
        """F* = B^T B / T of shape (C T, C T): same non-zero eigenvalues as the Fisher matrix."""
        T, C = len(self.h[0]), len(self.delta[0])
        dual = np.zeros((C, T, C, T))
        for delta, h in zip(self.delta, self.h, strict=False):
            inputs = h @ h.T + 1.0  # the bias sees a constant 1
            for j in range(C):
                for k in range(C):
                    dual[j, :, k, :] += (delta[j] @ delta[k].T) * inputs
        return dual.reshape(C * T, C * T) / T

    def rows(self):
        """The gradients themselves, (C, T, P): slow, the check on `dual`."""
        T, C = len(self.h[0]), len(self.delta[0])
        rows = []
        for k in range(C):
            parts = []
            for delta, h in zip(self.delta, self.h, strict=False):
                parts += [np.einsum("ti,tj->tij", delta[k], h).reshape(T, -1), delta[k]]
            rows.append(np.concatenate(parts, axis=1))
        return np.stack(rows)

    def fisher_rao(self, biases=False):
        """theta^T F theta = mean over samples, sum over outputs, of (theta . gradient)^2."""
        total = 0.0
        for k in range(len(self.delta[0])):
            along = np.zeros(len(self.h[0]))
            for w, b, delta, h in zip(self.weights, self.biases, self.delta, self.h, strict=False):
                along += np.einsum("ti,ij,tj->t", delta[k], w, h, optimize=True)
                if biases:
                    along += delta[k] @ b
            total += np.mean(along**2)
        return total


def draw_network(rng, activations, w2, b2, sizes, X):
    """`activations`, `w2`, `b2`: one per weight layer; `sizes`: M_0 .. M_L."""
    weights, biases, h, u = [], [], [X], []
    for i, name in enumerate(activations):
        weights.append(rng.normal(0.0, np.sqrt(w2[i] / sizes[i]), (sizes[i + 1], sizes[i])))
        biases.append(rng.normal(0.0, np.sqrt(b2[i]), sizes[i + 1]))
        u.append(h[-1] @ weights[-1].T + biases[-1])
        h.append(FUNCTIONS[name][0](u[-1]))
    deltas = []
    for k in range(sizes[-1]):
        delta = np.zeros_like(u[-1])
        delta[:, k] = FUNCTIONS[activations[-1]][1](u[-1][:, k])
        chain = [delta]
        for i in reversed(range(len(weights) - 1)):
            chain.append((chain[-1] @ weights[i + 1]) * FUNCTIONS[activations[i]][1](u[i]))
        deltas.append(chain[::-1])
    return Draw(weights, biases, h, [[deltas[k][i] for k in range(sizes[-1])] for i in range(len(weights))])


def simulate(statistic, n_draws, seed, activations, w2, b2, sizes, n_samples, correlation=0.0):
    """Means and standard errors over `n_draws` networks and data sets of whatever `statistic(draw)` returns."""
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(n_draws):
        common = rng.standard_normal(sizes[0])
        independent = rng.standard_normal((n_samples, sizes[0]))
        X = np.sqrt(correlation) * common + np.sqrt(1 - correlation) * independent
        values.append(statistic(draw_network(rng, activations, w2, b2, sizes, X)))
    values = np.array(values)
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(n_draws)
