"""Gaussian integrals of an activation and its derivative: closed forms or quadrature."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

Array = NDArray[np.float64]
Rule = tuple[Array, Array]
Pair = tuple[Callable[[Array], Array], Callable[[Array], Array]]

__all__ = [
    "CLOSED_FORMS",
    "QUADRATURE_PAIRS",
    "ActivationIntegrals",
    "Array",
    "ErfIntegrals",
    "Pair",
    "QuadratureIntegrals",
    "RectifierIntegrals",
    "Rule",
    "check_derivative",
    "equidistant_rule",
    "hermite_rule",
]


class ActivationIntegrals(ABC):
    """Averages over u, u' ~ N(0, a) with covariance b of an activation phi.

    The first two and the last two are 1-D integrals of eqs. (7)-(8) and of the Fisher-Rao recursion,
    the middle two the 2-D integrals I_phi and I_phi' of eqs. (10)-(11).
    """

    @abstractmethod
    def square(self, a: float) -> float:
        """E phi(u)^2."""

    @abstractmethod
    def slope_square(self, a: float) -> float:
        """E phi'(u)^2."""

    @abstractmethod
    def product(self, a: float, b: float) -> float:
        """I_phi[a, b] = E phi(u) phi(u')."""

    @abstractmethod
    def slope_product(self, a: float, b: float) -> float:
        """I_phi'[a, b] = E phi'(u) phi'(u')."""

    @abstractmethod
    def tangent_mean(self, a: float) -> float:
        """E u phi(u) phi'(u)."""

    @abstractmethod
    def tangent_square(self, a: float) -> float:
        """E (u phi'(u))^2."""


@dataclass(frozen=True)
class RectifierIntegrals(ActivationIntegrals):
    """phi(x) = x for x > 0 and slope * x otherwise: relu (0), leaky relu, linear (1)."""

    slope: float

    def slope_square(self, a: float) -> float:
        return (1 + self.slope**2) / 2

    def square(self, a: float) -> float:  # homogeneity: phi(u) = u phi'(u)
        return a * self.slope_square(a)

    tangent_mean = square
    tangent_square = square

    def product(self, a: float, b: float) -> float:
        # phi = slope x + (1 - slope) relu(x), E u relu(u') = b / 2, and (C.11) for relu itself
        c = _cosine(a, b)
        relu = a / (2 * np.pi) * (np.sqrt(1 - c * c) + c * np.pi / 2 + c * np.arcsin(c))
        return float(self.slope * b + (1 - self.slope) ** 2 * relu)

    def slope_product(self, a: float, b: float) -> float:
        # (C.12) prints a superfluous factor a: a product of two derivatives of relu is dimensionless
        relu = (np.pi / 2 + np.arcsin(_cosine(a, b))) / (2 * np.pi)
        return float(self.slope + (1 - self.slope) ** 2 * relu)


@dataclass(frozen=True)
class ErfIntegrals(ActivationIntegrals):
    """phi(x) = erf(x): (C.3), (C.4), (C.7), (C.8), with arcsin instead of arctan (no overflow)."""

    def square(self, a: float) -> float:
        return self.product(a, a)

    def slope_square(self, a: float) -> float:
        return self.slope_product(a, a)

    def product(self, a: float, b: float) -> float:
        return float(2 / np.pi * np.arcsin(2 * b / (1 + 2 * a)))

    def slope_product(self, a: float, b: float) -> float:
        return float(4 / np.pi / np.sqrt(1 + 2 * (a - b)) / np.sqrt(1 + 2 * (a + b)))

    def tangent_mean(self, a: float) -> float:
        return float(4 * a / (np.pi * (1 + 2 * a) * np.sqrt(1 + 4 * a)))  # a d/da E phi^2, by parts

    def tangent_square(self, a: float) -> float:
        return float(4 * a / (np.pi * (1 + 4 * a) ** 1.5))


@dataclass(frozen=True)
class QuadratureIntegrals(ActivationIntegrals):
    """Any activation, with quadrature rules (nodes, weights) for the standard normal average.

    `line` is for the 1-D integrals and may be much finer than `plane`, which is for each dimension of the 2-D ones.
    """

    function: Callable[[Array], Array]
    derivative: Callable[[Array], Array]
    line: Rule
    plane: Rule

    def square(self, a: float) -> float:
        return self._mean(a, lambda u, phi, slope: phi**2)

    def slope_square(self, a: float) -> float:
        return self._mean(a, lambda u, phi, slope: slope**2)

    def tangent_mean(self, a: float) -> float:
        return self._mean(a, lambda u, phi, slope: u * phi * slope)

    def tangent_square(self, a: float) -> float:
        return self._mean(a, lambda u, phi, slope: (u * slope) ** 2)

    def product(self, a: float, b: float) -> float:
        return self._pair_mean(self.function, "function", a, b)

    def slope_product(self, a: float, b: float) -> float:
        return self._pair_mean(self.derivative, "derivative", a, b)

    def _mean(self, a: float, integrand: Callable[[Array, Array, Array], Array]) -> float:
        nodes, weights = self.line
        u = np.sqrt(a) * nodes
        phi = evaluate(self.function, u, "function")
        return float(weights @ integrand(u, phi, evaluate(self.derivative, u, "derivative")))

    def _pair_mean(self, function: Callable[[Array], Array], label: str, a: float, b: float) -> float:
        nodes, weights = self.plane
        c = _cosine(a, b)
        # v = c u + sqrt(1 - c^2) w with independent u and w: (nodes of u, nodes of w)
        other = np.sqrt(a) * (c * nodes[:, None] + np.sqrt(1 - c * c) * nodes[None, :])
        inner = evaluate(function, other, label) @ weights  # the mean of phi(v) for each u, (nodes,)
        return float(weights @ (evaluate(function, np.sqrt(a) * nodes, label) * inner))


@functools.lru_cache(maxsize=8)
def hermite_rule(n_nodes: int) -> Rule:
    """Gauss-Hermite nodes and weights; an even number, so that no node falls on a kink at zero."""
    return _normalised(*np.polynomial.hermite_e.hermegauss(n_nodes))


@functools.lru_cache(maxsize=8)
def equidistant_rule(n_nodes: int) -> Rule:
    """Equally spaced nodes, an even number.

    For a Gaussian average, the error decreases as exp(-2 pi d / spacing), with d the distance of the nearest pole; for
    a steep tanh, 200 of these nodes are as good as thousands of Gauss-Hermite nodes.
    """
    nodes = np.linspace(-10.0, 10.0, n_nodes + 1)[:-1] + 10.0 / n_nodes
    return _normalised(nodes, np.exp(-nodes * nodes / 2))


def _normalised(nodes: NDArray[Any], weights: NDArray[Any]) -> Rule:
    weights = weights / weights.sum()
    nodes.flags.writeable = weights.flags.writeable = False  # cached and therefore shared
    return nodes, weights


def evaluate(function: Callable[[Array], Array], u: Array, label: str) -> Array:
    """The user's function at u, checked to map an array to a finite array of the same shape."""
    try:
        values = np.asarray(function(u), dtype=np.float64)
    except TypeError as error:  # for example the functions of `math`, which accept one number
        raise TypeError(
            f"`activation` must contain functions that work element by element, but its {label} accepts no array "
            f"({error}). Use numpy functions."
        ) from error
    if values.shape == ():  # a constant derivative may be returned as a number
        values = np.full_like(u, float(values))
    if values.shape != u.shape:
        raise ValueError(
            f"`activation` must contain functions that work element by element, but its {label} maps shape {u.shape} "
            f"to {values.shape}. Use numpy functions."
        )
    if not np.isfinite(values).all():
        worst = u[~np.isfinite(values)].flat[0]
        raise ValueError(
            f"`activation` must contain functions with finite values, but its {label} is not finite at {worst:g}. "
            "Write it so that it does not overflow."
        )
    return values


def check_derivative(pair: Pair) -> None:
    """Raise unless the second function integrates to the first (kinks allowed, jumps not)."""
    x = np.linspace(-8.0, 8.0, 16001)
    phi, slope = evaluate(pair[0], x, "function"), evaluate(pair[1], x, "derivative")
    # The trapezoidal rule up to every point, like x.
    integral = np.concatenate([[0.0], np.cumsum((slope[1:] + slope[:-1]) / 2 * np.diff(x))])
    gap = np.abs(phi - phi[0] - integral)
    if np.ptp(phi) == 0:
        raise ValueError("`activation` must not be constant: the output would not depend on the input.")
    if gap.max() > 1e-2 * max(float(np.ptp(phi)), float(np.ptp(integral))):
        raise ValueError(
            f"`activation` must be (function, derivative), but the integral of the second differs from the first by "
            f"{gap.max():g} at {x[gap.argmax()]:g}. Pass the function's derivative; a function with a jump has none."
        )


def _cosine(a: float, b: float) -> float:
    return min(1.0, max(-1.0, b / a))  # rounding may make b larger than a


def _tanh_slope(x: Array) -> Array:
    with np.errstate(over="ignore"):  # cosh overflows to inf, where the slope is 0
        return 1 / np.cosh(x) ** 2


def _expit_slope(x: Array) -> Array:
    return expit(x) * expit(-x)


CLOSED_FORMS = ("relu", "linear", "erf", "leaky_relu")
QUADRATURE_PAIRS: dict[str, Pair] = {"tanh": (np.tanh, _tanh_slope), "sigmoid": (expit, _expit_slope)}
