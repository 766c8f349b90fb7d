"""The Fisher matrix of a batch, its eigenvalues and their squares, by whichever method takes the least work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from .._validation import NotDefinedError, check_integer, check_option
from ..derivatives.fisher_matrix import LOSSES, FisherMatrix
from ..derivatives.parameter_jacobian import parameter_jacobian
from ..graph import Network
from ..linalg import block_lanczos, largest_eigenvalue
from ..linalg.trace_estimate import TraceEstimate, trace_estimate
from .batch import Batch, is_out_of_memory
from .memory import SKETCH

__all__ = [
    "MATRIX_SIZE",
    "PROBES",
    "PRODUCTS",
    "dense_bytes",
    "estimates_squares",
    "fisher_eigenvalues",
    "fisher_matrix",
    "fisher_squares",
    "forms_dual",
    "has_few_eigenvalues",
    "retried",
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


def retried(fisher: FisherMatrix, compute: Callable[[], T]) -> T:
    """The result of `compute`; the number of samples at once is halved whenever memory runs out."""
    while True:
        try:
            return compute()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or not fisher.halve():
                raise


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
    size = n_eigenvalues(fisher)
    if n_largest is not None:
        n_largest = check_integer("n_largest", n_largest, 1, size)
    if n_largest is None or has_few_eigenvalues(fisher) or ("fisher_spectrum", loss) in batch.known:
        values, info = batch.once(("fisher_spectrum", loss), lambda: _all_eigenvalues(fisher, batch))
        return values[:n_largest], info
    return batch.once(("fisher_largest", loss, n_largest), lambda: _iterated(fisher, n_largest, batch))


def _all_eigenvalues(fisher: FisherMatrix, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
    size = n_eigenvalues(fisher)
    if size > MATRIX_SIZE:
        raise ValueError(
            f"`n_largest` must be given if both matrices have more than {MATRIX_SIZE} rows: outputs times samples are "
            f"{fisher.dual_size}, parameters {fisher.jacobian.size}. Or use fewer samples."
        )
    refusal = batch.budget.refusal(batch.held + dense_bytes(size))
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


def _iterated(fisher: FisherMatrix, k: int, batch: Batch) -> tuple[Tensor, dict[str, Any]]:
    """The largest eigenvalue by Lanczos, several by block Lanczos, as a linear output layer repeats them C times."""
    size = fisher.dual_size
    options: dict[str, Any] = {"tol": TOLERANCE, "device": fisher.X.device, "random_state": batch.random_state}
    product: Callable[[Tensor], Tensor] = fisher.product
    name = "dual"
    if forms_dual(fisher, batch):
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


def fisher_squares(network: Network, batch: Batch, loss: str) -> tuple[float, float | None, dict[str, Any]]:
    """tr F^2, its standard error if it is estimated, and how it was computed."""
    fisher = fisher_matrix(network, batch, loss)

    def compute() -> tuple[float, float | None, dict[str, Any]]:
        if _matrix_products(fisher) < _dual_products(fisher) and _holds_matrix(fisher.jacobian.size, batch):
            return float(retried(fisher, fisher.matrix).square().sum()), None, {"method": "parameters"}
        if estimates_squares(fisher):
            return _estimated_squares(fisher, batch)
        return retried(fisher, fisher.squared_norm), None, {"method": "dual tiles"}

    return batch.once(("fisher_squares", loss), compute)


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


def n_eigenvalues(fisher: FisherMatrix) -> int:
    """The number of eigenvalues that may be nonzero, min(C T, P)."""
    return min(fisher.dual_size, fisher.jacobian.size)


def has_few_eigenvalues(fisher: FisherMatrix) -> bool:
    """Whether all eigenvalues are computed even where only some are needed."""
    return n_eigenvalues(fisher) <= SMALL


def estimates_squares(fisher: FisherMatrix) -> bool:
    """Whether the sum of squares of the dual is estimated, since it needs the gradients of many classes repeatedly."""
    return fisher.n_outputs > MANY_CLASSES and fisher.n_groups > 1


def dense_bytes(size: int) -> float:
    """Memory for the eigenvalues of a matrix of this size."""
    return MATRICES * 8.0 * size**2


def forms_dual(fisher: FisherMatrix, batch: Batch) -> bool:
    """Whether the dual itself is formed, since that costs less than products."""
    return fisher.dual_saves(USUAL_PRODUCTS) and _holds_matrix(fisher.dual_size, batch)


def _holds_matrix(size: int, batch: Batch) -> bool:
    return size <= MATRIX_SIZE and dense_bytes(size) <= batch.room


def _dual_products(fisher: FisherMatrix) -> float:
    return fisher.dual_size**2 * fisher.jacobian.floats_per_sample(fisher.n_outputs) / fisher.n_outputs


def _matrix_products(fisher: FisherMatrix) -> float:
    return 2.0 * fisher.dual_size * fisher.jacobian.size**2


def _eigenvalue_products(size: int) -> float:
    return 4.0 * size**3 / 3 if size <= MATRIX_SIZE else math.inf
