"""Products of layer norms ([EG] section 2.2, [FR] section 4.1)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np

from .._validation import check_interval, shown, warn
from ..graph import Network, Node
from ..linalg import induced_norm as operator_induced_norm
from ..linalg.entry_norms import stable_norm
from .batch import Batch
from .layer_operators import (
    LazyRows,
    as_operator,
    check_view,
    identity,
    kernel_matrix,
    layer_rows,
    left_out,
    norm_bytes,
    operator_norm,
    operator_norm_upper,
    repetitions,
    weight_layers,
)
from .memory import Peak
from .pass_limits import NO_PASSES
from .record import Measure, Measured, logarithm

__all__ = [
    "MEASURES",
    "chain_norm",
    "check_exponents",
    "check_pair",
    "frobenius_norm",
    "group_norm",
    "induced_norm",
    "l1_inf_norm",
    "layer_group_norm",
    "product_of",
    "spectral_norm",
    "warn_of_zeros",
]


def frobenius_norm(network: Network, batch: Batch, *, view: str = "kernel") -> Measured:
    r"""Product over the layers of the Frobenius norms of their weights.

    .. math:: \prod_{l=1}^d \|W_l\|_F

    Smaller values suggest better generalisation. 0 if a layer is zero. Biases are ignored; batch norm is folded.

    Parameters
    ----------
    view : "kernel" or "operator", default="kernel"
        Treat a convolution as its kernel, or as the linear operator at its input size, where every position counts.

    Returns
    -------
    Measured
        With one row per weight layer.

    Warns
    -----
    CapacityWarning
        If the weights of a layer are zero, which makes the product zero.

    Notes
    -----
    Uses the weights only. On branching networks the product over all layers is descriptive and not a bound.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, section 2.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> round(measure_capacity(net, measures="frobenius_norm")["frobenius_norm"], 6)
    5.0
    """
    return group_norm(network, batch, p=2.0, q=2.0, view=view)


def group_norm(network: Network, batch: Batch, *, p: float = 2.0, q: float = 2.0, view: str = "kernel") -> Measured:
    r"""Product over the layers of the l_q norm over units of the l_p norms of their incoming weights.

    .. math:: \prod_{l=1}^d \Big( \sum_i \big( \sum_j |W_l[i,j]|^p \big)^{q/p} \Big)^{1/q}

    Smaller values suggest better generalisation. 0 if a layer is zero. Biases are ignored; batch norm is folded.

    Parameters
    ----------
    p, q : float in (0, inf], default=2
        inf is the maximum.
    view : "kernel" or "operator", default="kernel"
        Treat a convolution as its kernel with one unit per channel, or as the linear operator at its input size with
        one unit per channel and position.

    Returns
    -------
    Measured
        With one row per weight layer.

    Notes
    -----
    Uses the weights only. On branching networks the product over all layers is descriptive and not a bound.

    References
    ----------
    Neyshabur, Tomioka, Srebro (2015), Norm-based capacity control in neural networks. Liang, Poggio, Rakhlin, Stokes
    (2019), Fisher-Rao metric, geometry, and complexity of neural networks, section 4.1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 4.0], [0.0, 5.0]]))
    >>> value = measure_capacity(net, measures={"sum of lengths": ("group_norm", {"p": 2, "q": 1})})
    >>> round(value["sum of lengths"], 6)
    10.0
    """
    p, q = check_interval("p", p, 0, closed="right"), check_interval("q", q, 0, closed="right")
    check_view(view)
    layers = weight_layers(network)
    return product_of(network, layers, [layer_group_norm(network, node, p, q, view) for node in layers])


def layer_group_norm(network: Network, node: Node, p: float, q: float, view: str) -> float:
    """One factor of `group_norm`, which the measures of a call share."""

    def compute() -> float:
        # (units,)
        units = stable_norm(kernel_matrix(node), p) if view == "kernel" else as_operator(network, node).row_norms(p)
        value = float(stable_norm(units.flatten(), q))
        return value * repetitions(node) ** (1 / q) if view == "operator" else value

    return network.once(("layer_group_norm", *identity(node), float(p), float(q), view), compute)


def l1_inf_norm(network: Network, batch: Batch, *, view: str = "kernel") -> Measured:
    r"""Product over the layers of the largest l1 norm of one unit's incoming weights.

    .. math:: \prod_{l=1}^d \max_i \sum_j |W_l[i,j]|

    Smaller values suggest better generalisation. 0 if a layer is zero. Biases are ignored; batch norm is folded.

    Parameters
    ----------
    view : "kernel" or "operator", default="kernel"
        Treat a convolution as its kernel, or as the linear operator at its input size. The results differ only if the
        kernel always extends over the border, or if reflecting or circular padding adds weights up.

    Returns
    -------
    Measured
        With one row per weight layer.

    Notes
    -----
    Uses the weights only. On branching networks the product over all layers is descriptive and not a bound.

    References
    ----------
    Bartlett, Mendelson (2002), Rademacher and Gaussian complexities. Neyshabur et al. (2017), Exploring generalization
    in deep learning, section 2.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -4.0], [0.0, 5.0]]))
    >>> round(measure_capacity(net, measures="l1_inf_norm")["l1_inf_norm"], 6)
    7.0
    """
    return group_norm(network, batch, p=1.0, q=math.inf, view=view)


def spectral_norm(network: Network, batch: Batch) -> Measured:
    r"""Product over the layers of the largest singular values of their weights.

    .. math:: \prod_{l=1}^d \|W_l\|_2

    Convolutions are treated as linear operators at their input size. Smaller values suggest better generalisation.
    Biases are ignored; batch norm is folded.

    Returns
    -------
    Measured
        With one row per layer: the value, a proven upper bound, the relative residual and the number of steps. The
        upper bounds are computed when the rows are read.

    Notes
    -----
    Uses the weights only: exact eigenvalues of the Gram matrix if a side is at most 192. For larger matrices and for
    convolutions, Lanczos from below with a relative error of 1e-7 (with probability 1 - 1e-6), mostly in 50 to 200
    products of the operator with one sample and as many of its adjoint. Certified quantities use the upper bounds. On
    branching networks the product over all layers is descriptive and not a bound.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, section 2.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> round(measure_capacity(net, measures="spectral_norm")["spectral_norm"], 6)
    4.0
    """
    layers = weight_layers(network)
    norms = [operator_norm(network, node) for node in layers]

    def rows() -> list[dict]:
        ends = [(node, norm, operator_norm_upper(network, node)) for node, norm in zip(layers, norms, strict=True)]
        return [
            {"layer": node.label, "value": norm.value, "upper": upper, "residual": norm.residual, "steps": norm.steps}
            for node, norm, upper in ends
        ]

    product = product_of(network, layers, [norm.value for norm in norms])
    info = {"residual": max((norm.residual for norm in norms), default=0.0), **product.info}
    return replace(product, per_layer=LazyRows(rows), info=info)


def induced_norm(network: Network, batch: Batch, *, p: float = 2.0, q: float = 2.0) -> Measured:
    r"""Product over the layers of the norms of their operators from l_p to l_q.

    .. math:: \prod_{l=1}^d \max_v \|W_l v\|_q / \|v\|_p

    Convolutions are treated as linear operators at their input size. Smaller values suggest better generalisation.
    Biases are ignored; batch norm is folded.

    Parameters
    ----------
    p, q : float in [1, inf], default=2
        p = 1 (the largest l_q norm of a unit's outgoing weights), q = inf (the largest l_{p*} norm of its incoming
        weights, 1/p + 1/p* = 1), or p = q = 2.

    Returns
    -------
    Measured
        With one row per weight layer.

    Raises
    ------
    ValueError
        For any other pair, since its norm cannot be computed exactly.

    Notes
    -----
    Uses the weights only. On branching networks the product over all layers is descriptive and not a bound.

    References
    ----------
    Liang, Poggio, Rakhlin, Stokes (2019), Fisher-Rao metric, geometry, and complexity of neural networks, section 4.1.

    Examples
    --------
    >>> import math, torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, -4.0], [0.0, 5.0]]))
    >>> value = measure_capacity(net, measures={"rows": ("induced_norm", {"p": math.inf, "q": math.inf})})
    >>> round(value["rows"], 6)
    7.0
    """
    p, q = check_pair(p, q, "`p` and `q`")
    layers = weight_layers(network)
    return product_of(network, layers, [_induced_norm(network, node, p, q) for node in layers])


def chain_norm(network: Network, batch: Batch, *, exponents: Sequence[float] | None = None) -> Measured:
    r"""Product over the layers of the norms of their operators, each with its own exponents.

    .. math:: \prod_{l=1}^d \|W_l\|_{p_{l-1} \to p_l}

    Convolutions are treated as linear operators at their input size. Smaller values suggest better generalisation.
    Biases are ignored; batch norm is folded.

    Parameters
    ----------
    exponents : sequence of d + 1 floats in [1, inf], default=None
        p_0 .. p_d: each pair of neighbours as in `induced_norm`. None stands for all 2, the spectral norm.

    Returns
    -------
    Measured
        With one row per weight layer.

    Raises
    ------
    ValueError
        If there are not d + 1 exponents, or for a pair whose norm cannot be computed exactly.

    Notes
    -----
    Uses the weights only. On branching networks the product over all layers is descriptive and not a bound.

    References
    ----------
    Liang, Poggio, Rakhlin, Stokes (2019), Fisher-Rao metric, geometry, and complexity of neural networks, section 4.1.

    Examples
    --------
    >>> import math, torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, -4.0], [0.0, 5.0]]))
    >>> _ = net[2].weight.data.copy_(torch.tensor([[1.0, 2.0]]))
    >>> value = measure_capacity(net, measures={"chain": ("chain_norm", {"exponents": [1, 1, math.inf]})})
    >>> round(value["chain"], 6)  # 9 times 2
    18.0
    """
    layers = weight_layers(network)
    chain = check_exponents(exponents, len(layers))
    values = [_induced_norm(network, node, *pair) for node, pair in zip(layers, pairwise(chain), strict=True)]
    return product_of(network, layers, values)


def check_pair(p: float, q: float, name: str) -> tuple[float, float]:
    """Both as floats if the norm from l_p to l_q can be computed exactly."""
    p, q = check_interval("p", p, 1), check_interval("q", q, 1)
    if p == 1 or math.isinf(q) or p == q == 2:
        return p, q
    raise ValueError(
        f"{name} must be a pair whose norm can be computed exactly, got {p:g} and {q:g}. "
        "Use 1 and any, any and inf, or 2 and 2."
    )


def check_exponents(exponents: Sequence[float] | None, n_layers: int) -> list[float]:
    """The d + 1 exponents of a chain, checked pair by pair."""
    if exponents is None:
        return [2.0] * (n_layers + 1)
    if isinstance(exponents, str | numbers.Number) or not hasattr(exponents, "__len__") or np.ndim(exponents) != 1:
        raise TypeError(f"`exponents` must be a sequence of {n_layers + 1} numbers, got {shown(exponents)}.")
    if len(exponents) != n_layers + 1:
        raise ValueError(
            f"`exponents` must hold {n_layers + 1} numbers for {n_layers} weight layers, got {len(exponents)}."
        )
    chain = [check_interval("exponents", p, 1) for p in exponents]
    for index in range(n_layers):
        check_pair(chain[index], chain[index + 1], f"`exponents` {index} and {index + 1}")
    return chain


def _induced_norm(network: Network, node: Node, p: float, q: float) -> float:
    """Norm of one layer. Repetitions do not change it: it is a maximum over rows, columns or blocks."""
    if p == q == 2:
        return operator_norm(network, node).value
    return operator_induced_norm(as_operator(network, node), p, q)


def product_of(network: Network, layers: Sequence[Node], values: Sequence[float]) -> Measured:
    """The product of the layers' values, through their logarithms, so that no depth overflows.

    A layer of zeros makes it 0 whatever the others are: a warning, once for all products of a call, names it.
    """
    rows = layer_rows(layers, values)
    warn_of_zeros(network, rows)
    return Measured.from_log(_log_product(values), per_layer=rows, info=left_out(network))


def warn_of_zeros(network: Network, rows: Sequence[Mapping[str, Any]]) -> None:
    """Warn of layers whose norm is 0, by their names."""
    zero = [f"`{row['layer']}`" for row in rows if row["value"] == 0]
    if zero:
        listed = ", ".join(zero[:3]) + (f" and {len(zero) - 3} more" if len(zero) > 3 else "")
        message = (
            f"The weights of {len(zero)} of {len(rows)} layers are zero ({listed}), such as gains that a network "
            "starts from: products over all layers are 0, whatever the other layers are. `capacity_report(..., "
            "per_layer=True)` shows each."
        )
        network.once(("zeros", *zero), lambda: warn(message))


def _log_product(values: Sequence[float]) -> float:
    logs = [logarithm(value) for value in values]
    return -math.inf if -math.inf in logs else math.fsum(logs)


_PRODUCT: dict[str, Any] = {
    "family": "norm",
    "lower_is_better": True,
    "needs": frozenset({"layers"}),
    "invariances": frozenset({"permutation", "layer_rescaling"}),
    "memory": Peak(layers=3, more=norm_bytes),
    "limits": NO_PASSES,
}

MEASURES = (
    Measure("frobenius_norm", frobenius_norm, source="[EG] 2.2, [FR] 4.1", **_PRODUCT),
    Measure("spectral_norm", spectral_norm, source="[EG] 2.2, [FR] 4.1", **_PRODUCT),
    Measure("l1_inf_norm", l1_inf_norm, source="[EG] 2.2", **_PRODUCT),
    Measure("group_norm", group_norm, source="[EG] 2.2, [FR] 4.1", same_as="frobenius_norm", **_PRODUCT),
    Measure("induced_norm", induced_norm, source="[FR] 4.1", same_as="spectral_norm", **_PRODUCT),
    Measure("chain_norm", chain_norm, source="[FR] 4.1", same_as="spectral_norm", **_PRODUCT),
)
