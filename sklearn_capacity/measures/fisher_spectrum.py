"""Eigenvalues of the Fisher information matrix ([MF] section 3)."""

from __future__ import annotations

import math
from typing import Any

from .._validation import check_interval
from ..derivatives.parameter_jacobian import parameter_jacobian
from ..graph import Network
from .batch import Batch
from .fisher_eigenvalues import fisher_eigenvalues, fisher_matrix, fisher_squares, retried
from .fisher_limits import fisher_bytes, largest_limits, square_limits, trace_limits
from .memory import Peak
from .record import Measure, Measured

__all__ = [
    "MEASURES",
    "critical_learning_rate",
    "fisher_max_eigenvalue",
    "fisher_mean_eigenvalue",
    "fisher_second_moment",
    "fisher_trace",
]


def fisher_trace(network: Network, batch: Batch, *, loss: str = "squared") -> Measured:
    r"""Trace of the Fisher information matrix: the mean squared length of the gradients of the logits.

    .. math:: \mathrm{tr}\, F = \frac{1}{T} \sum_{t=1}^T \sum_{k=1}^C \|\nabla_\theta f_k(t)\|^2

    Smaller (flatter) values suggest better generalisation. theta holds the trainable parameters after folding batch
    norm, each tied tensor once. For the softmax the sum is :math:`\mathrm{tr}\, J_t^T (\mathrm{diag}\, p - p p^T) J_t`.

    Parameters
    ----------
    loss : "squared" or "cross_entropy", default="squared"
        A Gaussian of unit variance around the logits ([MF] eq. 3), or the softmax: the Fisher matrix of the model's
        own distribution, regardless of the training loss. The default is the loss named in the call, if any.

    Returns
    -------
    Measured
        With one row per weight layer.

    Raises
    ------
    NotDefinedError
        If there are no trainable parameters, or the softmax has only one logit.

    Notes
    -----
    The cost is C backward passes; gradients are not formed for layers whose weight is used at few positions.

    References
    ----------
    Karakida, Akaho, Amari (2019), Universal statistics of Fisher information in deep neural networks, eq. 3.

    Examples
    --------
    A linear model of one output has the gradient x, so the trace is the mean of its squared length.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    >>> measure_capacity(nn.Linear(2, 1, bias=False), X, measures="fisher_trace")
    {'fisher_trace': 13.0}
    """
    fisher = fisher_matrix(network, batch, loss)
    traces = batch.once(("fisher_traces", loss), lambda: retried(fisher, fisher.traces))
    rows: dict[str, float] = {}
    for label, value in zip(fisher.jacobian.labels, traces, strict=True):
        rows[label] = rows.get(label, 0.0) + value
    per_layer = [{"layer": label, "value": value} for label, value in rows.items() if label]
    return Measured(sum(traces), per_layer=per_layer, info={"method": fisher.jacobian.method})


def fisher_mean_eigenvalue(network: Network, batch: Batch, *, loss: str = "squared") -> Measured:
    r"""Mean eigenvalue of the Fisher information matrix.

    .. math:: m_\lambda = \frac{1}{P} \sum_{i=1}^P \lambda_i = \mathrm{tr}\, F / P

    P is the number of trainable parameters after folding batch norm, with tied tensors counted once. Smaller values
    suggest better generalisation.

    Parameters
    ----------
    loss : "squared" or "cross_entropy", default="squared"
        As in `fisher_trace`.

    Notes
    -----
    The cost is C backward passes, shared with `fisher_trace`.

    References
    ----------
    Karakida, Akaho, Amari (2019), Universal statistics of Fisher information in deep neural networks, theorem 1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    >>> measure_capacity(nn.Linear(2, 1, bias=False), X, measures="fisher_mean_eigenvalue")
    {'fisher_mean_eigenvalue': 6.5}
    """
    trace = fisher_trace(network, batch, loss=loss)
    return Measured(trace.value / parameter_jacobian(network).size, info=trace.info)


def fisher_second_moment(network: Network, batch: Batch, *, loss: str = "squared") -> Measured:
    r"""Mean squared eigenvalue of the Fisher information matrix.

    .. math:: s_\lambda = \frac{1}{P} \sum_{i=1}^P \lambda_i^2 = \|F\|_F^2 / P

    P is the number of trainable parameters after folding batch norm, with tied tensors counted once. Smaller values
    suggest better generalisation.

    Parameters
    ----------
    loss : "squared" or "cross_entropy", default="squared"
        As in `fisher_trace`.

    Notes
    -----
    Exact: the squared entries of the dual matrix (C T by C T) are summed tile by tile, or those of F if F is smaller.
    With more than 100 classes, if the gradients do not fit into memory at once, they would have to be computed several
    times. Then tr F^2 is estimated by Hutch++, with its standard error, from 48 vectors and two products for each.

    References
    ----------
    Karakida, Akaho, Amari (2019), Universal statistics of Fisher information in deep neural networks, theorem 3.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X = torch.tensor([[2.0, 0.0], [0.0, 4.0]])  # F = diag(2, 8)
    >>> measure_capacity(nn.Linear(2, 1, bias=False), X, measures="fisher_second_moment")
    {'fisher_second_moment': 34.0}
    """
    value, error, info = fisher_squares(network, batch, loss)
    size = parameter_jacobian(network).size
    return Measured(value / size, standard_error=None if error is None else error / size, info=info)


def fisher_max_eigenvalue(network: Network, batch: Batch, *, loss: str = "squared") -> Measured:
    r"""Largest eigenvalue of the Fisher information matrix.

    .. math:: \lambda_{\max} = \max_v v^T F v / v^T v

    Smaller values suggest better generalisation: it is the curvature in the sharpest direction at a minimum of zero
    error.

    Parameters
    ----------
    loss : "squared" or "cross_entropy", default="squared"
        As in `fisher_trace`.

    Notes
    -----
    Lanczos iteration on the dual matrix, until the value is within a relative 1e-5 of the largest eigenvalue with
    probability 1 - 1e-6 over the random start vector, however close the next eigenvalues are. Each product is one
    backward and one tangent sweep; 8 to 16 products suffice if the first eigenvalues are well separated, and about 30
    otherwise. Where that takes longer than forming the dual matrix, as for wide layers and a few hundred samples, the
    products are with the matrix. The report shows their number and the error, which includes rounding in the precision
    of X. A matrix of at most 512 rows is diagonalised instead.

    References
    ----------
    Karakida, Akaho, Amari (2019), Universal statistics of Fisher information in deep neural networks, theorem 4.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X = torch.tensor([[2.0, 0.0], [0.0, 4.0]])  # F = diag(2, 8)
    >>> value = measure_capacity(nn.Linear(2, 1, bias=False), X, measures="fisher_max_eigenvalue")
    >>> round(value["fisher_max_eigenvalue"], 6)
    8.0
    """
    values, info = fisher_eigenvalues(network, batch, loss, 1)
    return Measured(float(values[0]), info=info)


def critical_learning_rate(network: Network, batch: Batch, *, momentum: float = 0.0, loss: str = "squared") -> Measured:
    r"""Learning rate above which gradient descent leaves a minimum with this Fisher matrix.

    .. math:: \eta_c = 2 (1 + \mu) / \lambda_{\max}

    for the training loss :math:`E = \frac{1}{2T} \sum_t \|y_t - f(x_t)\|^2` at zero error, where F is its Hessian.
    torch's ``MSELoss`` is :math:`\frac{1}{CT} \sum_t \|y_t - f(x_t)\|^2`, so its critical learning rate is C / 2 times
    this. With ``loss="cross_entropy"`` F is the Gauss-Newton approximation of the Hessian of the mean cross-entropy,
    without a factor. Larger (flatter) values suggest better generalisation; inf if no parameter affects the logits.

    Parameters
    ----------
    momentum : float in [0, 1), default=0.0
        Heavy-ball momentum mu.
    loss : "squared" or "cross_entropy", default="squared"
        As in `fisher_trace`.

    Notes
    -----
    The cost is that of `fisher_max_eigenvalue`, and is shared with it.

    References
    ----------
    Karakida, Akaho, Amari (2019), Universal statistics of Fisher information in deep neural networks, lemma 5.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X = torch.tensor([[2.0, 0.0], [0.0, 4.0]])  # F = diag(2, 8)
    >>> value = measure_capacity(nn.Linear(2, 1, bias=False), X, measures="critical_learning_rate")
    >>> round(value["critical_learning_rate"], 6)
    0.25
    """
    check_interval("momentum", momentum, 0, 1, closed="left")
    largest = fisher_max_eigenvalue(network, batch, loss=loss)
    value = 2 * (1 + momentum) / largest.value if largest.value > 0 else math.inf
    return Measured(value, info=largest.info)


_FISHER: dict[str, Any] = {
    "family": "fisher",
    "lower_is_better": True,
    "needs": frozenset({"data"}),
    "invariances": frozenset({"permutation"}),
    "memory": Peak(passes=2, more=fisher_bytes),
}
#: A product pulls a vector back to the parameters and pushes it on; of the dual's vectors a few.
_ITERATED = {**_FISHER, "memory": Peak(vectors=1, passes=4, outputs=8), "limits": largest_limits}

MEASURES = (
    Measure("fisher_trace", fisher_trace, source="[MF] eq. 3", cost="gradients", limits=trace_limits, **_FISHER),
    Measure(
        "fisher_mean_eigenvalue",
        fisher_mean_eigenvalue,
        source="[MF] theorem 1",
        cost="gradients",
        limits=trace_limits,
        **_FISHER,
    ),
    Measure(
        "fisher_second_moment",
        fisher_second_moment,
        source="[MF] theorem 3",
        cost="spectrum",
        passes=(60, "n_outputs"),
        limits=square_limits,
        **_FISHER,
    ),
    Measure("fisher_max_eigenvalue", fisher_max_eigenvalue, source="[MF] theorem 4", cost="spectrum", **_ITERATED),
    Measure(
        "critical_learning_rate",
        critical_learning_rate,
        source="[MF] lemma 5",
        cost="spectrum",
        **{**_ITERATED, "lower_is_better": False},
    ),
)
