"""Capacity in the space of functions: effective dimension, and the neural tangent kernel against the labels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .._validation import NotDefinedError, check_integer, check_interval
from ..graph import Network
from .batch import Batch
from .fisher_eigenvalues import fisher_eigenvalues, fisher_matrix, retried
from .fisher_limits import alignment_limits, fisher_bytes, spectrum_bytes, spectrum_limits
from .losses import targets
from .memory import Peak
from .record import Measure, Measured

__all__ = ["MEASURES", "effective_dimension", "ntk_alignment", "ntk_decay"]

LARGEST_SAMPLE = 10**15


def effective_dimension(
    network: Network, batch: Batch, *, gamma: float = 1.0, n: int | None = None, loss: str = "squared"
) -> Measured:
    r"""Number of parameters that a sample of a given size can distinguish, from the Fisher information at the weights.

    .. math::
        d = \frac{2 \ln \sqrt{\det (I + \kappa \hat F)}}{\ln \kappa}, \qquad
        \kappa = \frac{\gamma n}{2 \pi \ln n}, \qquad \hat F = P F / \mathrm{tr}\, F

    for the Fisher matrix F of `fisher_trace` and P folded trainable parameters: the local effective dimension. Between
    0 and P at large n. Smaller values suggest better generalisation.

    Parameters
    ----------
    gamma : float in (0, 1], default=1
    n : int from 2 to 10^15, default=None
        Size of the sample; None uses that of X. Compare networks at the same n.
    loss : "squared" or "cross_entropy", default="squared"
        As in `fisher_trace`.

    Returns
    -------
    Measured
        With kappa in `info`.

    Raises
    ------
    NotDefinedError
        If kappa is not above 1, or F is zero.
    ValueError
        If the dual matrix (outputs times samples) and F are both too large, as for `fisher_spectrum`.

    Notes
    -----
    The cost is that of all eigenvalues of the Fisher matrix or of its dual, whichever is less; shared with `ntk_decay`.

    References
    ----------
    Abbas, Sutter, Figalli, Woerner (2021), Effective dimension of machine learning models, eq. 2.

    Examples
    --------
    Two directions, in which the Fisher matrix is the same: its scaled form is the identity.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net, X = nn.Linear(2, 1, bias=False), torch.eye(2)
    >>> request = {"d": ("effective_dimension", {"n": 10**9})}
    >>> round(measure_capacity(net, X, measures=request)["d"], 6)
    2.0
    """
    check_interval("gamma", gamma, 0, 1, closed="right")
    fisher = fisher_matrix(network, batch, loss)
    n = batch.n_samples if n is None else check_integer("n", n, 2, LARGEST_SAMPLE)
    kappa = gamma * n / (2 * math.pi * math.log(n)) if n > 1 else 0.0
    if kappa <= 1:
        raise NotDefinedError(
            f"The effective dimension needs kappa = gamma n / (2 pi ln n) above 1, got {kappa:.3g} for "
            f"`gamma` = {gamma:g} and `n` = {n}. Use a larger `n`, or more samples."
        )
    values, info = fisher_eigenvalues(network, batch, loss)
    total = float(values.sum())
    if total == 0:
        raise NotDefinedError("The effective dimension needs a Fisher matrix that is not zero.")
    scaled = values * (fisher.jacobian.size / total)
    return Measured(float((kappa * scaled).log1p().sum()) / math.log(kappa), info={**info, "kappa": kappa})


def ntk_alignment(network: Network, batch: Batch) -> Measured:
    r"""Cosine between the neural tangent kernel and the kernel of the labels.

    .. math:: \frac{\langle K, y y^\top \rangle_F}{\|K\|_F \, \|y y^\top\|_F} =
        \frac{y^\top K y}{\|K\|_F \, \|y\|_2^2}

    K holds the inner products of the gradients of all C logits of all m samples in the folded trainable parameters, and
    y is one vector of length C m: the indicators of the true class minus their mean 1 / C over the classes, or the
    targets of a regression. Between 0 and 1. Larger (few, and the right, directions learn the labels) suggests better
    generalisation.

    Returns
    -------
    Measured

    Raises
    ------
    NotDefinedError
        If there are no trainable parameters, or kernel or labels are zero.

    Notes
    -----
    One backward and one tangent sweep for K y, and the squared entries of K tile by tile, as `fisher_second_moment`;
    no matrix of that size is stored.

    References
    ----------
    Cristianini, Shawe-Taylor, Elisseeff, Kandola (2001), On kernel-target alignment; Jacot, Gabriel, Hongler (2018),
    Neural tangent kernel; Baratin et al. (2021), Implicit regularization via neural feature alignment.

    Examples
    --------
    The kernel of a linear model is x x', which for one feature is that of the targets here.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X = torch.tensor([[1.0], [-2.0]])
    >>> value = measure_capacity(nn.Linear(1, 1, bias=False), X, 3 * X[:, 0], "ntk_alignment")["ntk_alignment"]
    >>> round(value, 6)
    1.0
    """
    y = _target_vector(network, batch)  # (C m,)
    fisher = fisher_matrix(network, batch, "squared")
    length = float(y.square().sum())
    norm = math.sqrt(batch.once(("ntk_squares",), lambda: retried(fisher, fisher.squared_norm)))
    if not (length > 0 and norm > 0):
        zero = "targets are" if length == 0 else "kernel is"
        raise NotDefinedError(f"The alignment of the tangent kernel is not defined where the {zero} zero.")
    along = float(y @ retried(fisher, lambda: fisher.product(y)).double())
    return Measured(along / (norm * length))


def _target_vector(network: Network, batch: Batch) -> Tensor:
    """The vector y with classes first, then samples, like the rows of the dual matrix."""
    y = targets(batch)
    if not y.is_floating_point():
        y = F.one_hot(y, network.n_outputs).double() - 1 / network.n_outputs  # (n, C)
    return y.double().reshape(batch.n_samples, -1).T.flatten()  # (C n,)


def ntk_decay(network: Network, batch: Batch, *, floor: float = 1e-4) -> Measured:
    r"""Decay exponent of the eigenvalues of the neural tangent kernel.

    .. math:: - \frac{\sum_k (\ln k - \overline{\ln k}) (\ln \lambda_k - \overline{\ln \lambda})}
        {\sum_k (\ln k - \overline{\ln k})^2}

    The exponent b of the power law :math:`\lambda_k \propto k^{-b}` that fits best, by least squares on logarithms,
    over the descending eigenvalues down to a fraction of the largest. 0 if all are equal. Larger (few directions carry
    the function) suggests better generalisation.

    Parameters
    ----------
    floor : float in (0, 1), default=1e-4
        Eigenvalues below this fraction of the largest are ignored, since they may be rounding in single precision.

    Returns
    -------
    Measured
        With the number of eigenvalues in `info`.

    Raises
    ------
    NotDefinedError
        If there are no trainable parameters, or fewer than two eigenvalues are left.
    ValueError
        If the dual matrix (outputs times samples) and F are both too large, as for `fisher_spectrum`.

    Notes
    -----
    All eigenvalues of the Fisher matrix of the squared loss, whose dual is the kernel over m; shared with
    `effective_dimension`.

    References
    ----------
    Jacot, Gabriel, Hongler (2018), Neural tangent kernel; Bordelon, Canatar, Pehlevan (2020), Spectrum dependent
    learning curves in kernel regression and wide neural networks.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X = torch.diag(torch.tensor([1.0, 0.5, 1 / 3]))  # the squares are 1, 1/4, 1/9
    >>> round(measure_capacity(nn.Linear(3, 1, bias=False), X, measures="ntk_decay")["ntk_decay"], 4)
    2.0
    """
    check_interval("floor", floor, 0, 1, closed="neither")
    values, info = fisher_eigenvalues(network, batch, "squared")
    kept = values[values > floor * values[:1]].numpy() if len(values) else np.array([])
    if len(kept) < 2:
        raise NotDefinedError(
            f"The decay of the tangent kernel needs two eigenvalues above {floor:g} of the largest, and there are "
            f"{len(kept)}. Lower `floor`, or take more samples."
        )
    slope = np.polynomial.polynomial.polyfit(np.log(np.arange(1, len(kept) + 1)), np.log(kept), 1)[1]
    return Measured(max(0.0, -float(slope)), info={**info, "eigenvalues": len(kept)})


_SPACE: dict[str, Any] = {
    "family": "function_space",
    "cost": "spectrum",
    "invariances": frozenset({"permutation"}),
}
_SPECTRUM = Peak(passes=2, more=spectrum_bytes)

MEASURES = (
    Measure(
        "effective_dimension",
        effective_dimension,
        source="Abbas et al. (2021), eq. 2",
        needs=frozenset({"data"}),
        unit="parameters",
        memory=_SPECTRUM,
        limits=spectrum_limits,
        **_SPACE,
    ),
    Measure(
        "ntk_alignment",
        ntk_alignment,
        lower_is_better=False,
        source="Cristianini et al. (2001)",
        needs=frozenset({"data", "labels", "loss"}),
        memory=Peak(vectors=1, passes=4, outputs=8, more=fisher_bytes),
        limits=alignment_limits,
        **_SPACE,
    ),
    Measure(
        "ntk_decay",
        ntk_decay,
        lower_is_better=False,
        source="Jacot et al. (2018)",
        needs=frozenset({"data"}),
        memory=_SPECTRUM,
        limits=spectrum_limits,
        **_SPACE,
    ),
)
