"""Norms of the input-output Jacobian ([JR] sections III and IV)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._validation import check_integer, check_option
from ..derivatives.input_jacobian import OUTPUTS
from ..graph import Network
from .batch import Batch
from .output_gram import GRAM, LARGEST_PASSES, largest_eigenvalues, largest_limits
from .output_traces import TRACE_PASSES, trace_limits, traces
from .record import Measure, Measured

__all__ = ["MEASURES", "REDUCTIONS", "jacobian_frobenius", "jacobian_spectral", "reduce_samples", "reduced_traces"]

REDUCTIONS = ("max", "mean")


def reduce_samples(values: Tensor, reduction: str) -> float:
    """The largest or the mean of the samples' values."""
    return float(values.max() if reduction == "max" else values.mean())


def reduced_traces(network: Network, batch: Batch, metric: str, reduction: str, n_draws: int) -> Measured:
    """The mean or the largest trace of the samples' metrics; a largest one is exact, since estimates would bias it."""
    check_integer("n_draws", n_draws, 6)
    of_samples = traces(network, batch, metric, n_draws if reduction == "mean" else None)
    value, variances = reduce_samples(of_samples.values, reduction), of_samples.variances
    if variances is None:
        return Measured(value)
    info = {"method": "Hutch++", "draws": n_draws}
    return Measured(value, standard_error=float(variances.sum().sqrt()) / len(variances), info=info)


def jacobian_frobenius(network: Network, batch: Batch, *, output: str = "logits", n_draws: int = 8) -> Measured:
    r"""Mean over the data of the squared Frobenius norm of the input-output Jacobian.

    .. math:: \frac{1}{m} \sum_i \|J(x_i)\|_F^2

    Smaller values suggest better generalisation; 0 if the network is constant around every sample.

    Parameters
    ----------
    output : "logits" or "softmax", default="logits"
        The outputs whose Jacobian is taken; [JR] differentiates through the softmax.
    n_draws : int >= 6, default=8
        Number of vectors for each sample, above 100 outputs; the value is exact if `n_draws` is at least the
        number of outputs, or of inputs of a last linear layer that has fewer, and by a closed form.

    Returns
    -------
    Measured
        With the standard error of the random part if the value is an estimate.

    Notes
    -----
    The cost is one backward pass per class, or input of a narrower last layer, shared with `jacobian_spectral` and the
    pull-back measures. One hidden layer of h units has a closed form, which is taken where it is cheaper: a forward
    pass, h^2 multiplications per sample, and the products of both matrices with their transposes.

    Otherwise, above 100 classes the value is an unbiased estimate by Hutch++ for every sample: a quarter of `n_draws`
    vectors find the directions of large derivatives, on which a quarter give the exact value, and half of them, random
    signs, estimate the rest. Each is a backward pass, those of the first quarter also a forward pass; `pullback_trace`
    shares these. On four networks two standard errors covered 88 to 97 % of 100 seeds; below 12 samples, more signs are
    drawn for each.

    References
    ----------
    Meyer, Musco, Musco, Woodruff (2021), Hutch++: optimal stochastic trace estimation.
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, eq. 49.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> measure_capacity(net, torch.ones(1, 2), measures="jacobian_frobenius", loss="squared")
    {'jacobian_frobenius': 25.0}
    """
    check_option("output", output, OUTPUTS)
    return reduced_traces(network, batch, output, "mean", n_draws)


def jacobian_spectral(network: Network, batch: Batch, *, reduction: str = "max", output: str = "logits") -> Measured:
    r"""Largest singular value of the input-output Jacobian over the data.

    .. math:: \max_i \|J(x_i)\|_2

    Smaller values suggest better generalisation; 0 if the network is constant around every sample.

    Parameters
    ----------
    reduction : "max" or "mean", default="max"
        Reduction over the samples.
    output : "logits" or "softmax", default="logits"
        [JR] differentiates through the softmax (in its figure 4c the value falls with depth; on logits it rises).

    Returns
    -------
    Measured

    Notes
    -----
    The cost is one backward pass per class and an eigenvalue problem of size C per sample; above 80 outputs (and inputs
    of a last linear layer) it is 20 to 30 pairs of backward passes for Lanczos with a relative error of 1e-6,
    independent of C.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, theorem 3 and eq. 48.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> value = measure_capacity(net, torch.ones(1, 2), measures="jacobian_spectral", loss="squared")
    >>> round(value["jacobian_spectral"], 6)
    4.0
    """
    check_option("reduction", reduction, REDUCTIONS)
    check_option("output", output, OUTPUTS)
    return Measured(reduce_samples(largest_eigenvalues(network, batch, output).sqrt(), reduction))


_JACOBIAN: dict[str, Any] = {
    "family": "jacobian",
    "lower_is_better": True,
    "needs": frozenset({"data"}),
    "cost": "jacobian",
    "memory": GRAM,
    "invariances": frozenset({"permutation", "layer_rescaling", "node_rescaling"}),
}

MEASURES = (
    Measure(
        "jacobian_frobenius",
        jacobian_frobenius,
        source="[JR] eq. 49",
        unit="(logit / input)^2",
        passes=TRACE_PASSES,
        limits=lambda network, batch, **params: trace_limits(network, batch, params["output"], **params),
        **_JACOBIAN,
    ),
    Measure(
        "jacobian_spectral",
        jacobian_spectral,
        source="[JR] eq. 48",
        unit="logit / input",
        passes=LARGEST_PASSES,
        limits=lambda network, batch, **params: largest_limits(network, batch, params["output"]),
        **_JACOBIAN,
    ),
)
