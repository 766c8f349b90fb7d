"""Products of layer norms ([EG] section 2.2, [FR] section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._validation import check_interval, warn
from ..graph import Network, Node
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
    "PRODUCT",
    "frobenius_norm",
    "group_norm",
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


#: What the records of products over the layers have in common.
PRODUCT: dict[str, Any] = {
    "family": "norm",
    "lower_is_better": True,
    "needs": frozenset({"layers"}),
    "invariances": frozenset({"permutation", "layer_rescaling"}),
    "memory": Peak(layers=3, more=norm_bytes),
    "limits": NO_PASSES,
}

MEASURES = (
    Measure("frobenius_norm", frobenius_norm, source="[EG] 2.2, [FR] 4.1", **PRODUCT),
    Measure("spectral_norm", spectral_norm, source="[EG] 2.2, [FR] 4.1", **PRODUCT),
    Measure("l1_inf_norm", l1_inf_norm, source="[EG] 2.2", **PRODUCT),
    Measure("group_norm", group_norm, source="[EG] 2.2, [FR] 4.1", same_as="frobenius_norm", **PRODUCT),
)
