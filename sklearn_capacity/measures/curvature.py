"""The Fisher metric of the outputs pulled back to the inputs ([GL] section 3)."""

from __future__ import annotations

import math
from typing import Any

from .._validation import NotDefinedError, check_option
from ..graph import Network
from .batch import Batch
from .jacobians import REDUCTIONS, reduce_samples, reduced_traces
from .layer_operators import certificate_bytes
from .lipschitz import CERTIFICATE, log_lipschitz
from .memory import Peak
from .output_gram import GRAM, LARGEST_PASSES, fisher_norm, largest_eigenvalues, largest_limits
from .output_traces import TRACE_PASSES, trace_limits
from .pass_limits import LOGITS
from .record import Measure, Measured

__all__ = ["MEASURES", "pullback_curvature", "pullback_trace", "spectral_product_bound"]


def pullback_curvature(network: Network, batch: Batch, *, reduction: str = "mean") -> Measured:
    r"""Largest eigenvalue of the output's Fisher metric pulled back to the input.

    .. math:: \lambda_{\max}(\zeta(x)), \quad \zeta(x) = J(x)^\top F_\psi(f(x)) \, J(x)

    :math:`F_\psi` is the Fisher matrix of the loss at the output: diag p - p p^T for the cross-entropy with
    p = softmax(f), the identity for the squared and the absolute loss. Smaller values (a flatter metric around the
    data) suggest better generalisation; 0 where the output does not change.

    Parameters
    ----------
    reduction : "mean" or "max", default="mean"
        Reduction over the samples.

    Returns
    -------
    Measured

    Notes
    -----
    Labels are ignored. The value is computed from the C x C matrix B^T J J^T B with F = B B^T: one backward pass per
    class, shared with the Jacobian measures; above 80 outputs by Lanczos, as in `jacobian_spectral`.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, eqs. 9-13.

    Examples
    --------
    For equal probabilities, diag p - p p^T has the eigenvalue 1/2 for the difference of two logits.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> X = torch.zeros(1, 1)
    >>> round(measure_capacity(net, X, measures="pullback_curvature", loss="cross_entropy")["pullback_curvature"], 12)
    1.0
    """
    check_option("reduction", reduction, REDUCTIONS)
    return Measured(reduce_samples(largest_eigenvalues(network, batch, _metric(batch)), reduction))


def pullback_trace(network: Network, batch: Batch, *, reduction: str = "mean", n_draws: int = 8) -> Measured:
    r"""Trace of the output's Fisher metric pulled back to the input.

    .. math:: \mathrm{tr}(\zeta(x)), \quad \zeta(x) = J(x)^\top F_\psi(f(x)) \, J(x)

    Uses the Fisher matrix of `pullback_curvature` and bounds that measure from above. Smaller values suggest better
    generalisation; 0 where the output does not change.

    Parameters
    ----------
    reduction : "mean" or "max", default="mean"
        Reduction over the samples.
    n_draws : int >= 6, default=8
        Number of vectors for each sample, above 100 outputs, as in `jacobian_frobenius`. The largest trace is
        exact for any number.

    Returns
    -------
    Measured
        With the standard error of the random part if the value is an estimate.

    Notes
    -----
    Labels are ignored. The cost is one backward pass per class, shared with the Jacobian measures; above 100 outputs it
    is `n_draws` for an estimate of the mean.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, eqs. 9-13.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> measure_capacity(net, torch.ones(1, 2), measures="pullback_trace", loss="squared")
    {'pullback_trace': 25.0}
    """
    check_option("reduction", reduction, REDUCTIONS)
    return reduced_traces(network, batch, _metric(batch), reduction, n_draws)


def spectral_product_bound(network: Network, batch: Batch, *, reduction: str = "mean") -> Measured:
    r"""Upper bound of the pull-back curvature by the network's Lipschitz constant.

    .. math:: \sigma_\psi(x) \, L^2 \ge \lambda_{\max}(\zeta(x))

    :math:`\sigma_\psi(x)` is the largest eigenvalue of the output's Fisher matrix and L is `lipschitz_l2`. The value is
    never below `pullback_curvature` with the same reduction. Smaller values suggest better generalisation.

    Parameters
    ----------
    reduction : "mean" or "max", default="mean"
        Reduction over the samples.

    Returns
    -------
    Measured

    Raises
    ------
    UnsupportedLayerError
        For an operator without a finite or known Lipschitz constant, such as attention on unbounded signals.

    Notes
    -----
    The cost is one forward pass and the operator norms. The paper's corollary refers to the largest eigenvalues of the
    weights; its proof needs singular values, and then its constant is 1.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, corollary 3.0.1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> bound = measure_capacity(net, torch.ones(1, 2), measures="spectral_product_bound", loss="squared")
    >>> round(bound["spectral_product_bound"], 6)
    16.0
    """
    check_option("reduction", reduction, REDUCTIONS)
    log_squared = 2 * log_lipschitz(network, "l2")
    if _metric(batch) == "logits":
        return Measured.from_log(log_squared)
    sigma = reduce_samples(fisher_norm(batch.logits), reduction)
    return Measured.from_log(math.log(sigma) + log_squared if sigma > 0 else -math.inf)


def _metric(batch: Batch) -> str:
    """The name in `output_gram` of the Fisher matrix of the loss at the output."""
    if batch.loss is None:
        raise NotDefinedError('The pull-back metric needs a loss: pass loss="cross_entropy" or loss="squared".')
    if batch.loss == "hinge":
        raise NotDefinedError(
            'The pull-back metric needs a loss with a likelihood, got "hinge". Pass loss="cross_entropy" or "squared".'
        )
    return "fisher" if batch.loss == "cross_entropy" else "logits"


_PULLBACK: dict[str, Any] = {
    "family": "jacobian",
    "lower_is_better": True,
    "needs": frozenset({"data", "loss"}),
    "unit": "1 / input^2",
}
_FUNCTION = frozenset({"permutation", "layer_rescaling", "node_rescaling"})

MEASURES = (
    Measure(
        "pullback_curvature",
        pullback_curvature,
        source="[GL] eqs. 9-13",
        cost="jacobian",
        passes=LARGEST_PASSES,
        invariances=_FUNCTION,
        memory=GRAM,
        limits=lambda network, batch, **params: largest_limits(network, batch, _metric(batch)),
        **_PULLBACK,
    ),
    Measure(
        "pullback_trace",
        pullback_trace,
        source="[GL] eqs. 9-13",
        cost="jacobian",
        passes=TRACE_PASSES,
        invariances=_FUNCTION,
        memory=GRAM,
        limits=lambda network, batch, **params: trace_limits(network, batch, _metric(batch), **params),
        **_PULLBACK,
    ),
    Measure(
        "spectral_product_bound",
        spectral_product_bound,
        source="[GL] corollary 3.0.1",
        cost="spectrum",
        passes=CERTIFICATE,
        invariances=frozenset({"permutation", "layer_rescaling"}),
        memory=Peak(layers=3, outputs=4, more=certificate_bytes),
        limits=LOGITS,
        **_PULLBACK,
    ),
)
