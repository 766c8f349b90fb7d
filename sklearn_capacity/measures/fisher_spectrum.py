"""Eigenvalues of the Fisher information matrix ([MF] section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from .._validation import NotDefinedError, check_integer, check_interval, check_option
from ..derivatives.fisher_matrix import LOSSES, FisherMatrix
from ..derivatives.parameter_jacobian import parameter_jacobian
from ..graph import Network
from ..linalg import block_lanczos, largest_eigenvalue
from ..linalg.trace_estimate import TraceEstimate, trace_estimate
from .batch import Batch, is_out_of_memory
from .memory import SKETCH, Peak
from .pass_limits import OWN, Parts
from .record import Measure, Measured

__all__ = [
    "MEASURES",
    "alignment_limits",
    "critical_learning_rate",
    "fisher_bytes",
    "fisher_eigenvalues",
    "fisher_matrix",
    "fisher_max_eigenvalue",
    "fisher_mean_eigenvalue",
    "fisher_second_moment",
    "fisher_trace",
    "retried",
    "spectrum_bytes",
    "spectrum_limits",
]

#: Largest size for which all eigenvalues are computed: 1.8 GB.
MATRIX_SIZE = 15_000
#: Number of matrices of that size during the computation.
MATRICES = 3
#: Up to this size, all eigenvalues cost less than a few products.
SMALL = 512
TOLERANCE = 1e-5
#: Number of products after which the Lanczos iteration stops, and how many it usually takes.
PRODUCTS, USUAL_PRODUCTS = 200, 20
#: Beyond so many classes sums that need all gradients more than once are estimated, from so many vectors.
MANY_CLASSES, PROBES = 100, 48

T = TypeVar("T")


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
    fisher = fisher_matrix(network, batch, loss)

    def sum_of_squares() -> tuple[float, float | None, dict[str, Any]]:
        if _matrix_products(fisher) < _dual_products(fisher) and _holds_matrix(fisher.jacobian.size, batch):
            return float(retried(fisher, fisher.matrix).square().sum()), None, {"method": "parameters"}
        if network.n_outputs > MANY_CLASSES and fisher.n_groups > 1:
            return _estimated_squares(fisher, batch)
        return retried(fisher, fisher.squared_norm), None, {"method": "dual tiles"}

    value, error, info = batch.once(("fisher_squares", loss), sum_of_squares)
    size = fisher.jacobian.size
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


def fisher_matrix(network: Network, batch: Batch, loss: str) -> FisherMatrix:
    """The Fisher matrix of a batch under a loss, with what this call has already computed of it."""
    if isinstance(loss, str) and loss in ("absolute", "hinge"):
        raise NotDefinedError(
            f'The Fisher information is defined under loss="squared" or "cross_entropy", got "{loss}". Give the '
            'measure its own loss: (name, {"loss": "squared"}).'
        )
    check_option("loss", loss, LOSSES)

    def build() -> FisherMatrix:
        jacobian = parameter_jacobian(network)
        if jacobian.size == 0:
            raise NotDefinedError("The Fisher information needs trainable parameters, and all are frozen.")
        if loss == "cross_entropy" and network.n_outputs < 2:
            raise NotDefinedError('The softmax Fisher information needs two logits or more, got 1. Use loss="squared".')

        def progress(steps: Iterable) -> Iterable:
            return tqdm(steps, desc="Fisher information", disable=not batch.verbose, leave=False)

        return FisherMatrix(
            jacobian,
            batch.X,
            network.n_outputs,
            loss,
            samples=batch.chunk_size,
            memory=batch.room,
            progress=progress,
        )

    return batch.once(("fisher", loss), build)


def fisher_eigenvalues(
    network: Network, batch: Batch, loss: str = "squared", n_largest: int | None = None
) -> tuple[Tensor, dict[str, Any]]:
    """Eigenvalues of the Fisher matrix, descending and clipped at 0, and how they were computed.

    Parameters
    ----------
    network : Network
    batch : Batch
    loss : "squared" or "cross_entropy", default="squared"
    n_largest : int, default=None
        None returns all min(C T, P) eigenvalues that may be nonzero.

    Returns
    -------
    values : Tensor of shape (min(C T, P) or n_largest,), float64, on the CPU
    info : dict
        "method": "dual matrix", "parameter matrix" (F itself), or for an iteration "Lanczos" or "block Lanczos" and
        "on the dual matrix" if that was formed, else "on the dual"; with "size", for an iteration "products" and
        "residual", and for a single eigenvalue "error".

    Raises
    ------
    ValueError
        If all eigenvalues are requested and the smaller of the two matrices is too large.
    """
    fisher = fisher_matrix(network, batch, loss)
    size = min(fisher.dual_size, fisher.jacobian.size)
    if n_largest is not None:
        n_largest = check_integer("n_largest", n_largest, 1, size)
    if n_largest is None or size <= SMALL or ("fisher_spectrum", loss) in batch.known:
        values, info = batch.once(("fisher_spectrum", loss), lambda: _all_eigenvalues(fisher, size, batch))
        return values[:n_largest], info
    return batch.once(("fisher_largest", loss, n_largest), lambda: _iterated(fisher, n_largest, batch))


def _estimated_squares(fisher: FisherMatrix, batch: Batch) -> tuple[float, float, dict[str, Any]]:
    """tr F^2, the trace of the square of the dual matrix, and its standard error."""

    def squared(vectors: Tensor) -> Tensor:  # (C T, k) both
        return torch.stack([fisher.product(fisher.product(vector)) for vector in vectors.T], dim=1)

    def estimate() -> TraceEstimate:
        room = min(SKETCH, batch.room / 2)
        options: dict[str, Any] = {"device": fisher.X.device, "precision": fisher.X.dtype, "memory": room}
        return trace_estimate(squared, fisher.dual_size, n_products=PROBES, generator=batch.generator(), **options)

    result = retried(fisher, estimate)
    return result.value, result.standard_error, {"method": "Hutch++ on the dual", "products": 2 * result.n_products}


def _holds_matrix(size: int, batch: Batch) -> bool:
    return size <= MATRIX_SIZE and MATRICES * 8 * size**2 <= batch.room


def _all_eigenvalues(fisher: FisherMatrix, size: int, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
    if size > MATRIX_SIZE:
        raise ValueError(
            f"`n_largest` must be given if both matrices have more than {MATRIX_SIZE} rows: outputs times samples are "
            f"{fisher.dual_size}, parameters {fisher.jacobian.size}. Or use fewer samples."
        )
    refusal = batch.budget.refusal(batch.held + MATRICES * 8.0 * size**2)
    if refusal is not None:
        raise NotDefinedError(f"The spectrum of a matrix of {size} rows {refusal}. Give `n_largest`, or fewer samples.")
    dual = _dual_products(fisher) + _eigenvalue_products(fisher.dual_size)
    direct = _matrix_products(fisher) + _eigenvalue_products(fisher.jacobian.size)
    method = "dual matrix" if dual <= direct and fisher.dual_size <= MATRIX_SIZE else "parameter matrix"
    matrix = retried(fisher, fisher.dual if method == "dual matrix" else fisher.matrix)
    if not bool(torch.isfinite(matrix.diagonal()).all()):
        raise NotDefinedError("The Fisher information is not finite. Check the weights and X for NaN and infinity.")
    values = torch.linalg.eigvalsh(matrix).flip(0)[:size].clamp_min(0).cpu()
    return values, {"method": method, "size": len(matrix)}


def _forms_dual(fisher: FisherMatrix, batch: Batch) -> bool:
    """Whether the dual itself is formed, since that costs less than products."""
    return fisher.dual_saves(USUAL_PRODUCTS) and _holds_matrix(fisher.dual_size, batch)


def _iterated(fisher: FisherMatrix, k: int, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
    """The largest eigenvalue by Lanczos, several by block Lanczos, as a linear output layer repeats them C times."""
    size = fisher.dual_size
    options: dict[str, Any] = {"tol": TOLERANCE, "device": fisher.X.device, "random_state": batch.random_state}
    product: Callable[[Tensor], Tensor] = fisher.product
    name = "dual"
    if _forms_dual(fisher, batch):
        product, name = retried(fisher, fisher.dual).mv, "dual matrix"
    if k == 1:
        memory = batch.room / 2
        one = {**options, "max_steps": PRODUCTS, "check_every": 1, "precision": fisher.X.dtype, "memory": memory}
        largest = retried(fisher, lambda: largest_eigenvalue(product, size, **one))
        info = {"products": largest.n_products, "residual": largest.residual, "error": largest.error}
        value = torch.tensor([max(largest.value, 0.0)], dtype=torch.float64, device="cpu")
        return value, {"method": f"Lanczos on the {name}", "size": size, **info}
    block = min(k, fisher.n_outputs) if fisher.n_outputs > 1 else 2
    several = retried(fisher, lambda: block_lanczos(product, size, k=k, block=block, **options))
    info = {"products": several.n_products, "residual": float(several.residuals.max())}
    return several.values.clamp_min(0), {"method": f"block Lanczos on the {name}", "size": size, **info}


def fisher_bytes(network: Network, batch: Batch, **params: Any) -> float:
    """What the gradients of one sample for one class take, twice, with their inner products."""
    numbers = parameter_jacobian(network).floats_at_work(1) + network.n_outputs
    return 2.0 * numbers * batch.X.element_size()


def spectrum_bytes(network: Network, batch: Batch, **params: Any) -> float:
    """Memory that all eigenvalues need: for the smaller of the two matrices and for the gradients in its entries."""
    size = min(network.n_outputs * batch.n_samples, parameter_jacobian(network).size)
    return fisher_bytes(network, batch) + (MATRICES * 8.0 * size**2 if size <= MATRIX_SIZE else 0.0)


def retried(fisher: FisherMatrix, compute: Callable[[], T]) -> T:
    """The result of `compute`; the number of samples at once is halved whenever memory runs out."""
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not fisher.halve():
                raise


def _dual_products(fisher: FisherMatrix) -> float:
    return fisher.dual_size**2 * fisher.jacobian.floats_per_sample(fisher.n_outputs) / fisher.n_outputs


def _matrix_products(fisher: FisherMatrix) -> float:
    return 2.0 * fisher.dual_size * fisher.jacobian.size**2


def _eigenvalue_products(size: int) -> float:
    return 4.0 * size**3 / 3 if size <= MATRIX_SIZE else math.inf


def _gradient_passes(network: Network) -> float:
    """Of the gradients of all outputs: a forward pass, and a backward pass with the weights for each."""
    return 1.0 + 2 * network.n_outputs


def _dual_passes(fisher: FisherMatrix, network: Network) -> float:
    """Of all tiles of the dual: the gradients are formed once for every group, each time fewer of them."""
    return _gradient_passes(network) * (fisher.n_groups + 1) / 2


def _product_passes(fisher: FisherMatrix) -> float:
    """Of a product with the dual: there and back with the weights, in reverse mode five, and what is not kept."""
    return 5.0 if fisher.keeps_points else 7.0


def spectrum_limits(network: Network, batch: Batch, *, loss: str = "squared", **params: Any) -> Parts:
    """The largest number of passes for all eigenvalues."""
    return {("fisher spectrum", loss): _dual_passes(fisher_matrix(network, batch, loss), network)}


def alignment_limits(network: Network, batch: Batch, **params: Any) -> Parts:
    """The largest number of passes for the squared entries of the dual and a product with it."""
    fisher = fisher_matrix(network, batch, "squared")
    return {"tangent kernel": _dual_passes(fisher, network) + 2 + _product_passes(fisher)}


def _trace_limits(network: Network, batch: Batch, *, loss: str, **params: Any) -> Parts:
    return {OWN: _gradient_passes(network)}


def _square_limits(network: Network, batch: Batch, *, loss: str, **params: Any) -> Parts:
    fisher = fisher_matrix(network, batch, loss)
    if network.n_outputs > MANY_CLASSES and fisher.n_groups > 1:
        estimate = 2 + 2 * PROBES * _product_passes(fisher)
        return {("fisher squares", loss): max(estimate, _gradient_passes(network))}
    return {("fisher squares", loss): _dual_passes(fisher, network)}


def _largest_limits(network: Network, batch: Batch, *, loss: str, **params: Any) -> Parts:
    fisher = fisher_matrix(network, batch, loss)
    size = min(fisher.dual_size, fisher.jacobian.size)
    if size <= SMALL:
        return spectrum_limits(network, batch, loss=loss)
    if _forms_dual(fisher, batch):
        return {("fisher largest", loss): _dual_passes(fisher, network)}
    return {("fisher largest", loss): 2 + PRODUCTS * _product_passes(fisher)}


_FISHER: dict[str, Any] = {
    "family": "fisher",
    "lower_is_better": True,
    "needs": frozenset({"data"}),
    "invariances": frozenset({"permutation"}),
    "memory": Peak(passes=2, more=fisher_bytes),
}
#: A product pulls a vector back to the parameters and pushes it on; of the dual's vectors a few.
_ITERATED = {**_FISHER, "memory": Peak(vectors=1, passes=4, outputs=8), "limits": _largest_limits}

MEASURES = (
    Measure("fisher_trace", fisher_trace, source="[MF] eq. 3", cost="gradients", limits=_trace_limits, **_FISHER),
    Measure(
        "fisher_mean_eigenvalue",
        fisher_mean_eigenvalue,
        source="[MF] theorem 1",
        cost="gradients",
        limits=_trace_limits,
        **_FISHER,
    ),
    Measure(
        "fisher_second_moment",
        fisher_second_moment,
        source="[MF] theorem 3",
        cost="spectrum",
        passes=(60, "n_outputs"),
        limits=_square_limits,
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
