"""Mean-field statistics of the Fisher information matrix of random networks (Karakida et al. 2018)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sklearn_capacity._validation import check_integer, check_interval, check_option, plain_array, shown, warn
from sklearn_capacity.theory._integrals import (
    CLOSED_FORMS,
    QUADRATURE_PAIRS,
    ActivationIntegrals,
    Array,
    ErfIntegrals,
    Pair,
    QuadratureIntegrals,
    RectifierIntegrals,
    Rule,
    check_derivative,
    equidistant_rule,
    hermite_rule,
)
from sklearn_capacity.theory._statistics import MeanField

__all__ = ["ACTIVATIONS", "OUTPUTS", "mean_field", "per_layer"]

ACTIVATIONS = (*CLOSED_FORMS, *QUADRATURE_PAIRS)
OUTPUTS = ("activated", "linear", "sigmoid")
REFINEMENTS = (400, 800, 1600)  # equally spaced nodes per dimension, used if Gauss-Hermite misses the tolerance
Spec = str | Pair


def mean_field(
    activation: str | Pair | Sequence[Spec],
    sigma_w2: float | Sequence[float],
    sigma_b2: float | Sequence[float],
    depth: int,
    width: int,
    n_outputs: int = 1,
    width_ratios: Sequence[float] | None = None,
    output: str = "activated",
    *,
    input_correlation: float = 0.0,
    negative_slope: float = 0.01,
    n_nodes: int = 200,
    tolerance: float = 1e-6,
) -> MeanField:
    """Compute mean-field statistics of the Fisher information matrix of a wide random fully-connected network.

    With W^l ~ N(0, sigma_w^2 / M_{l-1}), b^l ~ N(0, sigma_b^2), inputs with E x_i^2 = 1, and D the standard normal
    average: q^l = sigma_w^2 q_hat^{l-1} + sigma_b^2, q_hat^l = D phi(sqrt(q^l) u)^2, q_hat^0 = 1 (forward) and
    q_tilde^L = D phi'(sqrt(q^L) u)^2, q_tilde^l = sigma_w^2 q_tilde^{l+1} D phi'(sqrt(q^l) u)^2 (backward), likewise
    for two samples. All the statistics follow from these four sequences.

    Parameters
    ----------
    activation : {"relu", "linear", "erf", "tanh", "leaky_relu", "sigmoid"}, (function, derivative) or list of these
        A pair contains numpy functions that work element by element, non-decreasing. A list has one entry per layer:
        `depth` entries if `output` is "activated", the `depth` - 1 hidden layers otherwise.
    sigma_w2 : float in (0, inf), or a sequence of length `depth`
        Variance of a weight times its layer's number of inputs.
    sigma_b2 : float in [0, inf), or a sequence of length `depth`
        Variance of a bias.
    depth : int, at least 2
        Number L of weight layers.
    width : int, at least 1
        Scale M of the widths; layer l has alpha_l M units.
    n_outputs : int, default=1
        Number C of outputs, which does not grow with M.
    width_ratios : sequence of `depth` floats in (0, inf), default=None
        alpha_0 (the input) .. alpha_{L-1}; None means ones.
    output : {"activated", "linear", "sigmoid"}, default="activated"
        The function after the last weight layer; "activated" is the network's activation, as in the paper.
    input_correlation : float in [0, 1], default=0.0
        Mean q_hat_st^0 of x_s . x_t / M_0 over pairs of samples. The paper assumes 0; for normalised MNIST digits it is
        about 0.3.
    negative_slope : float in [0, inf), default=0.01
        Slope of "leaky_relu" for negative inputs.
    n_nodes : even int in [4, 200], default=200
        Number of Gauss-Hermite nodes per dimension, for "tanh", "sigmoid" and pairs. All others have closed forms.
    tolerance : float in (0, inf), default=1e-6
        The results with `n_nodes` and with half as many nodes must agree to this relative accuracy. If they do not,
        400, 800 and 1600 equally spaced nodes are tried in turn, which a steep activation needs.

    Returns
    -------
    MeanField
        An immutable object whose attributes and methods correspond to the theorems.

    Raises
    ------
    ValueError, TypeError
        If a parameter is outside its range, a derivative does not match its function, or a variance overflows.

    Warns
    -----
    CapacityWarning
        If the quadrature misses `tolerance`, for a function with kinks, or one so steep that the nodes miss its rise.
        The achieved error is in the message and in `quadrature_error`.

    Notes
    -----
    The theorems hold for M >> 1 and T >> 1. At finite width the mean eigenvalue is off by O((1 + C) / M), since
    alpha M^2 counts neither the biases nor the last layer. They treat backward and forward signals as independent.

    Theorem 7, the expectation of theta^T F theta, is false as printed: it drops cross-layer terms of the same order.
    `fisher_rao` is the corrected value. Let v be the derivative of the pre-activation u along theta; (u, v) is
    Gaussian with q = E u^2, B = E u v, A = E v^2; layer 1 has A = B = sigma_w^2, and then
    B' = sigma_w^2 E[phi (phi + phi' v)], A' = sigma_w^2 E[(phi + phi' v)^2] (plus sigma_b^2 each if the biases are in
    theta). The value is C A for linear outputs and C E[(phi' v)^2] otherwise. For a linear network without biases it
    is L^2 E f^2 per output, as homogeneity demands (Liang et al., lemma 2.1); the printed form has L for L^2.

    Cost: `depth` 2-D integrals, that is, microseconds for closed forms, otherwise about 5 ms per layer with 200 nodes
    and 0.3 s with 1600.

    References
    ----------
    R. Karakida, S. Akaho, S. Amari, "Universal statistics of Fisher information in deep neural networks: mean field
    approach", 2019, theorems 1, 3, 4, 6, 7, corollary 2, eqs. (7)-(17); (C.12) without its factor a.

    Examples
    --------
    >>> from sklearn_capacity.theory import mean_field
    >>> theory = mean_field("linear", 1.0, 0.5, depth=3, width=1000)
    >>> theory.q_hat.tolist(), theory.q_hat_st.tolist()
    ([1.0, 1.5, 2.0, 2.5], [0.0, 0.5, 1.0, 1.5])
    >>> theory.K1, theory.second_moment_bounds
    (2.25, (1.125, 10.125))
    >>> round(theory.critical_learning_rate(momentum=0.9), 6)
    0.002533
    >>> linear = mean_field("linear", 1.0, 0.0, depth=3, width=1000)
    >>> linear.fisher_rao, linear.fisher_rao_theorem7
    (9.0, 3.0)
    """
    depth = check_integer("depth", depth, 2, cure="`depth` counts the weight layers; theorem 1 needs a hidden layer.")
    width = check_integer("width", width)
    n_outputs = check_integer("n_outputs", n_outputs)
    check_interval("n_outputs", n_outputs, closed="neither")  # some integers are beyond floats
    w2 = per_layer("sigma_w2", sigma_w2, depth, closed="neither")
    b2 = per_layer("sigma_b2", sigma_b2, depth, closed="left")
    ratios = per_layer("width_ratios", 1.0 if width_ratios is None else width_ratios, depth, closed="neither")
    rho = check_interval("input_correlation", input_correlation, 0.0, 1.0)
    specs = _layer_activations(activation, depth, check_option("output", output, OUTPUTS))
    slope = check_interval("negative_slope", negative_slope, 0.0, closed="left")
    n_nodes = check_integer("n_nodes", n_nodes, 4, 200)
    if n_nodes % 2:
        raise ValueError(f"`n_nodes` must be even, got {n_nodes}. An odd rule has a node on the kink at 0.")
    tolerance = check_interval("tolerance", tolerance, 0.0, closed="neither")

    results, error = _converged(specs, n_nodes, tolerance, slope, (w2, b2, rho))
    if error > tolerance:
        warn(
            f"The quadrature of the activation is accurate only to {error:.1g}, but `tolerance` is {tolerance:g}. "
            f"Use a smoother activation, smaller variances or a closed form.",
        )
    values = {name: value * n_outputs if name.startswith("fisher") else value for name, value in results.items()}
    return MeanField(depth, width, n_outputs, ratios, w2, b2, quadrature_error=error, **values)


def per_layer(name: str, value: Any, n_layers: int, *, closed: str) -> Array:
    """One finite number per layer from a number or a sequence, each in (0, inf) or [0, inf)."""
    value = plain_array(name, value)
    if np.ndim(value) == 0:
        return np.full(n_layers, check_interval(name, value, 0.0, closed=closed))
    if np.shape(value) != (n_layers,):
        raise ValueError(
            f"`{name}` must be a number or a sequence of {n_layers} numbers, one per weight layer, "
            f"got shape {np.shape(value)}."
        )
    return np.array([check_interval(f"{name}[{i}]", entry, 0.0, closed=closed) for i, entry in enumerate(value)])


def _layer_activations(activation: Any, depth: int, output: str) -> list[Spec]:
    n_activations = depth if output == "activated" else depth - 1
    if isinstance(activation, str) or _is_pair(activation):
        specs = [_check_activation("activation", activation)] * n_activations
    elif isinstance(activation, list | tuple):
        if len(activation) != n_activations:
            raise ValueError(
                f"`activation` must have {n_activations} entries for depth {depth} and output {output!r}, "
                f"got {len(activation)}. Only output='activated' has an entry for the last layer."
            )
        specs = [_check_activation(f"activation[{i}]", entry) for i, entry in enumerate(activation)]
    else:
        specs = [_check_activation("activation", activation)]
    return specs if output == "activated" else [*specs, output]


def _check_activation(name: str, spec: Any) -> Spec:
    if _is_pair(spec):
        check_derivative(spec)
        return spec
    if isinstance(spec, str):
        return check_option(name, spec, ACTIVATIONS)
    raise TypeError(
        f"`{name}` must be one of {', '.join(map(repr, ACTIVATIONS))} or a tuple (function, derivative), "
        f"got {shown(spec)}."
    )


def _is_pair(spec: Any) -> bool:
    return isinstance(spec, tuple) and len(spec) == 2 and all(callable(part) for part in spec)


def _converged(
    specs: list[Spec], n_nodes: int, tolerance: float, slope: float, ensemble: tuple[Array, Array, float]
) -> tuple[dict[str, Any], float]:
    """Order parameters from the first rule that agrees with the previous one, and their difference."""
    coarse, fine = hermite_rule(2 * (n_nodes // 4)), hermite_rule(n_nodes)
    results = _order_parameters([_integrals(spec, coarse, coarse, slope) for spec in specs], *ensemble)
    if all(spec in CLOSED_FORMS for spec in specs):
        return results, 0.0
    error = float("inf")
    for line, plane in [(fine, fine), *((equidistant_rule(n * n // 16), equidistant_rule(n)) for n in REFINEMENTS)]:
        previous = results
        results = _order_parameters([_integrals(spec, line, plane, slope) for spec in specs], *ensemble)
        error = _relative_change(results, previous)
        if error <= tolerance:
            break
    return results, error


def _integrals(spec: Spec, line: Rule, plane: Rule, negative_slope: float) -> ActivationIntegrals:
    if spec == "erf":
        return ErfIntegrals()
    if spec in CLOSED_FORMS:
        return RectifierIntegrals({"relu": 0.0, "linear": 1.0, "leaky_relu": negative_slope}[str(spec)])
    function, derivative = QUADRATURE_PAIRS[spec] if isinstance(spec, str) else spec
    return QuadratureIntegrals(function, derivative, line, plane)


def _order_parameters(layers: list[ActivationIntegrals], w2: Array, b2: Array, rho: float) -> dict[str, Any]:
    """Eqs. (7), (8), (10), (11), and the Fisher-Rao recursion for one output."""
    depth = len(layers)
    q, q_st = np.empty(depth), np.empty(depth)  # (L,): layers 1 .. L
    q_hat, q_hat_st = np.ones(depth + 1), np.full(depth + 1, rho)  # (L + 1,): from the input, layer 0, on
    with np.errstate(over="ignore", invalid="ignore"):
        for i, phi in enumerate(layers):
            q[i], q_st[i] = w2[i] * q_hat[i] + b2[i], w2[i] * q_hat_st[i] + b2[i]
            if not np.isfinite(q[i]):
                raise ValueError(f"`sigma_w2`, `sigma_b2` must keep the activations finite: layer {i + 1} overflows.")
            q_hat[i + 1], q_hat_st[i + 1] = phi.square(q[i]), phi.product(q[i], q_st[i])
        q_tilde, q_tilde_st = np.ones(depth), np.ones(depth)  # (L,): layers 1 .. L
        for i in reversed(range(depth)):
            later = (w2[i + 1] * q_tilde[i + 1], w2[i + 1] * q_tilde_st[i + 1]) if i + 1 < depth else (1.0, 1.0)
            q_tilde[i] = later[0] * layers[i].slope_square(q[i])
            q_tilde_st[i] = later[1] * layers[i].slope_product(q[i], q_st[i])
        rao = _fisher_rao(layers, q, w2, np.zeros(depth))
        rao_with_biases = _fisher_rao(layers, q, w2, b2)
    if not np.isfinite([*q_tilde, rao, rao_with_biases]).all():
        raise ValueError("`sigma_w2` and `depth` must keep the back-propagated signals finite: they overflow.")
    arrays = {"q_hat": q_hat, "q_hat_st": q_hat_st, "q_tilde": q_tilde, "q_tilde_st": q_tilde_st}
    return {**arrays, "fisher_rao": rao, "fisher_rao_with_biases": rao_with_biases}


def _fisher_rao(layers: list[ActivationIntegrals], q: Array, w2: Array, b2: Array) -> float:
    """E (theta . grad f)^2 of one output; `b2` is zero if theta excludes the biases.

    The pre-activations u_{l+1} = W phi(u_l) + b have the derivatives v_{l+1} = W (phi(u_l) + phi'(u_l) v_l) + b along
    theta, with v_1 = u_1. The recursion is that of A = E v^2 and B = E u v, for jointly Gaussian u and v.
    """
    A = B = w2[0] + b2[0]
    for i, phi in enumerate(layers):
        r = B / q[i]  # v = r u + an independent part of variance A - r B
        mixed = r * phi.tangent_mean(q[i])  # E phi phi' v
        moved = r * r * phi.tangent_square(q[i]) + (A - r * B) * phi.slope_square(q[i])  # E (phi' v)^2
        if i + 1 < len(layers):
            square = phi.square(q[i])
            A = w2[i + 1] * (square + 2 * mixed + moved) + b2[i + 1]
            B = w2[i + 1] * (square + mixed) + b2[i + 1]
    return float(moved)


def _relative_change(fine: dict[str, Any], coarse: dict[str, Any]) -> float:
    """Largest difference between two rules; a two-sample average is compared with its one-sample bound."""
    changes = []
    for name, value in fine.items():
        scale = np.abs(fine[name.removesuffix("_st")])
        # an exact 0 means that every node missed the rise of the function
        change = np.abs(value - coarse[name]) / np.where(scale > 0, scale, 1.0)
        changes.append(float(np.max(np.where(scale > 0, change, np.inf))))
    return max(changes)
