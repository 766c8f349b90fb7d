"""Sharpness, divergences and interaction conditions once more: numpy, float64, loops, written from the paper."""

from __future__ import annotations

import math

import numpy as np
from torch import nn


def layers_of(module: nn.Sequential) -> list[tuple[np.ndarray, np.ndarray]]:
    """Weights and biases (zero where there is none) of a perceptron's linear layers."""
    result = []
    for layer in module:
        if isinstance(layer, nn.Linear):
            weight = layer.weight.detach().numpy().astype(np.float64)
            bias = np.zeros(len(weight)) if layer.bias is None else layer.bias.detach().numpy().astype(np.float64)
            result.append((weight, bias))
    return result


def perceptron(layers: list[tuple[np.ndarray, np.ndarray]], X: np.ndarray, activation=None) -> np.ndarray:
    """Outputs (n, C)."""
    activation = activation or (lambda z: np.maximum(z, 0))
    for i, (weight, bias) in enumerate(layers):
        X = X @ weight.T + bias
        if i < len(layers) - 1:
            X = activation(X)
    return X


def mean_loss(outputs: np.ndarray, y: np.ndarray, loss: str) -> float:
    """One sample at a time, but for cross-entropy, which thousands of draws ask for."""
    if loss == "cross_entropy":
        exponentials = np.exp(outputs - outputs.max(axis=1, keepdims=True))
        return float(np.mean([-math.log(e[int(t)] / e.sum()) for e, t in zip(exponentials, y, strict=True)]))
    total = 0.0
    for f, target in zip(outputs, y, strict=True):
        if loss == "squared":
            total += sum((a - b) ** 2 for a, b in zip(f, np.atleast_1d(target), strict=True)) / len(f)
        else:
            total += sum(abs(a - b) for a, b in zip(f, np.atleast_1d(target), strict=True)) / len(f)
    return total / len(outputs)


def sharpness_by_draws(
    layers: list[tuple[np.ndarray, np.ndarray]],
    X: np.ndarray,
    y: np.ndarray,
    deviation,
    *,
    loss: str = "cross_entropy",
    n_draws: int = 6000,
    seed: int = 0,
    activation=None,
) -> tuple[float, float]:
    """Mean rise of the loss over independent draws, and its standard error; deviation(w) is that of the noise."""
    rng = np.random.default_rng(seed)
    start = mean_loss(perceptron(layers, X, activation), y, loss)
    rises = []
    for _ in range(n_draws):
        moved = [tuple(w + deviation(w) * rng.standard_normal(w.shape) for w in layer) for layer in layers]
        rises.append(mean_loss(perceptron(moved, X, activation), y, loss) - start)
    return float(np.mean(rises)), float(np.std(rises, ddof=1) / math.sqrt(n_draws))


def kl(q: float, p: float) -> float:
    """Of two coins."""
    return sum(a * math.log(a / b) for a, b in ((q, p), (1 - q, 1 - p)) if a > 0)


class Interaction:
    """Conditions C1-C3 for one sample, with the diagonal matrices D_i written out."""

    def __init__(self, weights: list[np.ndarray], x: np.ndarray):
        x = x / np.sqrt((x**2).sum())
        self.d = len(weights)
        self.W = [x[:, None], *weights]
        self.D = [np.eye(len(x))]
        self.z = [x]
        h = x
        for i, weight in enumerate(weights, start=1):
            z = weight @ h
            self.z.append(z)
            self.D.append(np.diag((z > 0).astype(float)) if i < self.d else np.eye(len(z)))
            h = self.D[-1] @ z
        self.output = h
        self.widths = [len(z) for z in self.z]

    def product(self, a: int, b: int) -> np.ndarray:
        """D_b W_b ... D_a W_a; the identity if b = a - 1."""
        out = np.eye(self.W[a].shape[1] if a <= self.d else self.widths[-1])
        for i in range(a, b + 1):
            out = self.D[i] @ self.W[i] @ out
        return out

    def norm(self, a: int, b: int) -> float:
        return math.sqrt((self.product(a, b) ** 2).sum())

    def c1(self, a: int, c: int, b: int) -> float:
        return math.sqrt(self.widths[c]) * self.norm(a, b) / (self.norm(c + 1, b) * self.norm(a, c))

    def c2(self, k: int, deltas) -> float:
        return max(np.mean([abs(z) <= delta for z in self.z[k]]) / delta for delta in deltas)

    def c3(self, i: int) -> float:
        largest = max(math.sqrt(sum(w**2 for w in row)) for row in self.W[i])
        return largest * math.sqrt(self.widths[i]) / self.norm(i, i)

    def triples(self):
        return [(a, c, b) for a in range(self.d + 1) for c in range(a, self.d) for b in range(c + 1, self.d + 1)]

    def mu(self) -> float:
        return min(1.0, *(self.c1(*t) for t in self.triples()))

    def gamma(self, i: int, sigma: float) -> float:
        """With the norm of D_i W_i, as in the lemmas."""
        return sigma * math.sqrt(self.widths[i] * self.widths[i - 1]) / (self.mu() ** 2 * self.norm(i, i))

    def estimate(self, sigma: float, delta: float, deltas) -> float:
        """The bracket of theorem 1 times the norm of the output."""
        c2 = max(self.c2(k, deltas) for k in range(1, self.d))
        c3 = max(self.c3(i) for i in range(1, self.d + 1))
        c_delta = 2 * math.sqrt(math.log(self.d * max(self.widths[1:]) / delta))
        gammas = [self.gamma(i, sigma) for i in range(1, self.d + 1)]
        linear = math.prod(1 + g for g in gammas) - 1
        switched = math.prod(1 + g * c2 * c3 for g in gammas) * (math.prod(1 + g * c_delta * c2 for g in gammas) - 1)
        return (linear + switched) * math.sqrt((self.output**2).sum())
