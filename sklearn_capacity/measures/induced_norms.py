"""Products of the layers' norms from one space to another ([FR] section 4.1)."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from .._validation import check_interval, shown
from ..graph import Network, Node
from ..linalg import induced_norm as operator_induced_norm
from .batch import Batch
from .layer_operators import as_operator, operator_norm, weight_layers
from .norms import PRODUCT, product_of
from .record import Measure, Measured

__all__ = ["MEASURES", "chain_norm", "check_exponents", "check_pair", "induced_norm"]


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


MEASURES = (
    Measure("induced_norm", induced_norm, source="[FR] 4.1", same_as="spectral_norm", **PRODUCT),
    Measure("chain_norm", chain_norm, source="[FR] 4.1", same_as="spectral_norm", **PRODUCT),
)
