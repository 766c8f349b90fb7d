"""Ranks of the layers' weights from their singular values, and mean logarithms of their norms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from .._validation import NotDefinedError
from ..graph import Network, Node
from ..linalg import ConvOperator, DiagonalOperator, MatrixOperator
from .batch import Batch
from .layer_operators import (
    Operator,
    as_operator,
    check_view,
    kernel_matrix,
    layer_rows,
    layer_weight,
    left_out,
    norm_bytes,
    operator_norm,
    repetitions,
    weight_layers,
)
from .memory import Peak
from .pass_limits import NO_PASSES
from .record import Measure, Measured

__all__ = [
    "MEASURES",
    "SPECTRUM",
    "SPECTRUM_PASSES",
    "effective_rank",
    "log_norm",
    "log_spectral_norm",
    "singular_values",
    "stable_rank",
]

#: Largest shorter side of a convolution's operator that is expanded into a matrix.
DENSE_SIDE = 4096


def stable_rank(network: Network, batch: Batch, *, view: str = "kernel") -> Measured:
    r"""Mean over the layers of the squared Frobenius norm over the squared spectral norm.

    .. math:: \frac{1}{d} \sum_{l=1}^d \frac{\|W_l\|_F^2}{\|W_l\|_2^2}

    Between 1 and the rank for each layer, 0 for one of zeros. Smaller values suggest better generalisation. Biases are
    ignored; batch norm is folded, and one that no layer absorbs counts as a diagonal matrix.

    Parameters
    ----------
    view : "kernel" or "operator", default="kernel"
        Treat a convolution as its kernel, one row per output channel, or as the linear operator at its input size,
        where a linear layer that is applied at several positions is block diagonal.

    Returns
    -------
    Measured
        With one row per weight layer.

    Notes
    -----
    The cost is that of `frobenius_norm` and `spectral_norm`.

    References
    ----------
    Rudelson, Vershynin (2007), Sampling from large matrices. Martin, Mahoney (2021), Implicit self-regularization in
    deep neural networks.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[4.0, 0.0], [0.0, 2.0]]))
    >>> round(measure_capacity(net, measures="stable_rank")["stable_rank"], 6)  # 20 / 16
    1.25
    """

    def rank(operator: Operator, copies: int, norm: float) -> float:
        return copies * (operator.frobenius_norm() / norm) ** 2 if norm > 0 else 0.0

    layers = zip(_operators(network, view), _spectral_norms(network, view), strict=True)
    return _mean_of([rank(*entry, norm) for entry, norm in layers], network)


def effective_rank(network: Network, batch: Batch, *, view: str = "kernel") -> Measured:
    r"""Mean over the layers of the exponential of the entropy of their singular values.

    .. math:: \frac{1}{d} \sum_{l=1}^d \exp \Big( - \sum_i p_i \ln p_i \Big), \qquad p_i = s_i / \sum_j s_j

    Between 1 and the rank for each layer, 0 for one of zeros. Smaller values suggest better generalisation. Biases are
    ignored; batch norm is folded, and one that no layer absorbs counts as a diagonal matrix.

    Parameters
    ----------
    view : "kernel" or "operator", default="kernel"
        As in `stable_rank`.

    Returns
    -------
    Measured
        With one row per weight layer.

    Raises
    ------
    NotDefinedError
        With view="operator" for a convolution whose operator has more than 4096 rows and columns.

    Notes
    -----
    The cost is that of all singular values, which the measures of a call share.

    References
    ----------
    Roy, Vetterli (2007), The effective rank, definition 1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(3, 3, bias=False)
    >>> _ = net.weight.data.copy_(torch.diag(torch.tensor([2.0, 2.0, 0.0])))
    >>> round(measure_capacity(net, measures="effective_rank")["effective_rank"], 6)
    2.0
    """

    def rank(values: Tensor, copies: int) -> float:
        total = float(values.sum())
        return copies * math.exp(float(torch.special.entr(values / total).sum())) if total > 0 else 0.0

    pairs = zip(singular_values(network, view), _operators(network, view), strict=True)
    return _mean_of([rank(values, copies) for values, (_, copies) in pairs], network)


def log_norm(network: Network, batch: Batch, *, view: str = "kernel") -> Measured:
    r"""Mean over the layers of the decimal logarithm of the squared Frobenius norm.

    .. math:: \frac{1}{d} \sum_{l=1}^d \log_{10} \|W_l\|_F^2

    Smaller values suggest better generalisation; minus infinity if a layer is zero. Biases are ignored; batch norm is
    folded, and one that no layer absorbs counts as a diagonal matrix.

    Parameters
    ----------
    view : "kernel" or "operator", default="kernel"
        As in `stable_rank`.

    Returns
    -------
    Measured
        With one row per weight layer.

    Notes
    -----
    Uses the weights only.

    References
    ----------
    Martin, Peng, Mahoney (2021), Predicting trends in the quality of state-of-the-art neural networks without access to
    training or testing data, eq. 3.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[6.0, 0.0], [0.0, 8.0]]))
    >>> round(measure_capacity(net, measures="log_norm")["log_norm"], 6)
    2.0
    """
    norms = [op.frobenius_norm() * math.sqrt(copies) for op, copies in _operators(network, view)]
    return _mean_of([2 * _log10(norm) for norm in norms], network)


def log_spectral_norm(network: Network, batch: Batch, *, view: str = "kernel") -> Measured:
    r"""Mean over the layers of the decimal logarithm of the squared spectral norm.

    .. math:: \frac{1}{d} \sum_{l=1}^d \log_{10} \|W_l\|_2^2

    Smaller values suggest better generalisation; minus infinity if a layer is zero. Biases are ignored; batch norm is
    folded, and one that no layer absorbs counts as a diagonal matrix.

    Parameters
    ----------
    view : "kernel" or "operator", default="kernel"
        As in `stable_rank`.

    Returns
    -------
    Measured
        With one row per weight layer.

    Notes
    -----
    Uses the weights only.

    References
    ----------
    Martin, Peng, Mahoney (2021), Predicting trends in the quality of state-of-the-art neural networks without access to
    training or testing data, eq. 4.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[6.0, 0.0], [0.0, 10.0]]))
    >>> round(measure_capacity(net, measures="log_spectral_norm")["log_spectral_norm"], 6)
    2.0
    """
    return _mean_of([2 * _log10(norm) for norm in _spectral_norms(network, view)], network)


def _spectral_norms(network: Network, view: str) -> list[float]:
    """The spectral norm of one copy of every layer, which the measures of a call share."""

    def compute() -> list[float]:
        return [_norm_of(network, node, op, view) for node, op in zip(layers, operators, strict=True)]

    layers = weight_layers(network)
    operators = (operator for operator, _ in _operators(network, view))
    return network.once(("spectral_norms", check_view(view)), compute)


def _norm_of(network: Network, node: Node, operator: Operator, view: str) -> float:
    """That of the linear operator is shared with other families."""
    shared = view == "operator" or node.op == "linear"
    return (operator_norm(network, node) if shared else operator.norm_lower()).value


def _operators(network: Network, view: str) -> Iterator[tuple[Operator, int]]:
    """Each layer in the given view, and the number of its copies side by side."""
    check_view(view)
    layers = weight_layers(network, "The shape of the spectra")
    if view == "operator":
        return ((as_operator(network, node), repetitions(node)) for node in layers)
    return ((_kernel(network, node), 1) for node in layers)


def _kernel(network: Network, node: Node) -> Operator:
    """The weight as a matrix; a diagonal becomes a diagonal matrix."""
    if node.op == "diagonal":
        return DiagonalOperator(layer_weight(node).flatten())
    return as_operator(network, node) if node.op == "linear" else MatrixOperator(kernel_matrix(node))


def singular_values(network: Network, view: str) -> list[Tensor]:
    """All singular values of one copy of every layer, in descending order, on the CPU."""

    def compute() -> list[Tensor]:
        pairs = zip(weight_layers(network), _operators(network, view), strict=True)
        return [_values_of(operator, node).cpu() for node, (operator, _) in pairs]

    return network.once(("singular_values", check_view(view)), compute)


def _values_of(operator: Operator, node: Node) -> Tensor:
    if isinstance(operator, DiagonalOperator):
        return operator.diagonal.abs().flatten().sort(descending=True).values
    if isinstance(operator, MatrixOperator):
        return torch.linalg.svdvals(operator.weight)
    return torch.linalg.svdvals(_dense(operator, node))


def _dense_bytes(network: Network, batch: Batch, *, view: str = "kernel", **params: Any) -> float:
    if str(view) != "operator":  # the measure itself refuses a view of another kind
        return norm_bytes(network)
    sides = [(math.prod(node.params["input_shape"]), math.prod(node.shape)) for node in network.weight_layers.nodes]
    return 8.0 * 3 * max((a * b for a, b in sides if min(a, b) <= DENSE_SIDE), default=0)


def _dense(operator: ConvOperator, node: Node) -> Tensor:
    """The operator or its transpose as a matrix."""
    sides = math.prod(operator.input_shape), math.prod(operator.output_shape)
    if min(sides) > DENSE_SIDE:
        raise node.refuse(
            'The shape of the spectra with view="operator"',
            f"its operator is a matrix of {sides[1]} by {sides[0]}, but the shorter side may be at most {DENSE_SIDE}.",
            'Use view="kernel".',
        )
    product, shape = (
        (operator.forward, operator.input_shape) if sides[0] <= sides[1] else (operator.adjoint, operator.output_shape)
    )
    eye = torch.eye(min(sides), dtype=torch.float64, device=operator.weight.device)  # (shorter side, shorter side)
    return torch.cat([product(rows.reshape(-1, *shape)).flatten(1) for rows in eye.split(256)])


def _log10(value: float) -> float:
    return math.log10(value) if value > 0 else -math.inf


def _mean_of(values: Sequence[float], network: Network) -> Measured:
    layers = weight_layers(network)
    if not layers:
        raise NotDefinedError("The shape of the spectra needs a weight layer, but the network has none.")
    mean = math.fsum(values) / len(values)
    return Measured(mean, per_layer=layer_rows(layers, values), info=left_out(network))


#: A matrix, its factorisation, and where the operator is asked for its dense form.
SPECTRUM = Peak(layers=3, more=_dense_bytes)
#: The time of all singular values depends on the weights only: some thousand forward passes of one sample.
SPECTRUM_PASSES = (1000, "per_sample")

_SHAPE: dict[str, Any] = {
    "family": "spectral_shape",
    "lower_is_better": True,
    "needs": frozenset({"layers"}),
    "memory": SPECTRUM,
    "limits": NO_PASSES,
    "invariances": frozenset({"permutation", "layer_rescaling"}),
}

MEASURES = (
    Measure("stable_rank", stable_rank, source="Rudelson, Vershynin (2007)", **_SHAPE),
    Measure(
        "effective_rank",
        effective_rank,
        source="Roy, Vetterli (2007), def. 1",
        cost="spectrum",
        passes=SPECTRUM_PASSES,
        **_SHAPE,
    ),
    Measure("log_norm", log_norm, source="Martin et al. (2021), eq. 3", signed=True, **_SHAPE),
    Measure("log_spectral_norm", log_spectral_norm, source="Martin et al. (2021), eq. 4", signed=True, **_SHAPE),
)
