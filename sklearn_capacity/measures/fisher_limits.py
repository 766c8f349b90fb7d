"""Limits of the memory and of the passes that the eigenvalues of the Fisher matrix take."""

from __future__ import annotations

from typing import Any

from ..derivatives.fisher_matrix import FisherMatrix
from ..derivatives.parameter_jacobian import parameter_jacobian
from ..graph import Network
from .batch import Batch
from .fisher_eigenvalues import (
    MATRIX_SIZE,
    PROBES,
    PRODUCTS,
    dense_bytes,
    estimates_squares,
    fisher_matrix,
    forms_dual,
    has_few_eigenvalues,
)
from .pass_limits import UNSHARED, Parts

__all__ = [
    "alignment_limits",
    "fisher_bytes",
    "largest_limits",
    "spectrum_bytes",
    "spectrum_limits",
    "square_limits",
    "trace_limits",
]


def fisher_bytes(network: Network, batch: Batch, **params: Any) -> float:
    """What the gradients of one sample for one class take, twice, with their inner products."""
    numbers = parameter_jacobian(network).floats_at_work(1) + network.n_outputs
    return 2.0 * numbers * batch.X.element_size()


def spectrum_bytes(network: Network, batch: Batch, **params: Any) -> float:
    """Memory that all eigenvalues need: for the smaller of the two matrices and for the gradients in its entries."""
    size = min(network.n_outputs * batch.n_samples, parameter_jacobian(network).size)
    return fisher_bytes(network, batch) + (dense_bytes(size) if size <= MATRIX_SIZE else 0.0)


def trace_limits(network: Network, batch: Batch, *, loss: str, **params: Any) -> Parts:
    """The largest number of passes for the trace."""
    return {UNSHARED: _gradient_passes(network)}


def square_limits(network: Network, batch: Batch, *, loss: str, **params: Any) -> Parts:
    """The largest number of passes for the squared entries."""
    fisher = fisher_matrix(network, batch, loss)
    if estimates_squares(fisher):
        estimate = 2 + 2 * PROBES * _product_passes(fisher)
        return {("fisher squares", loss): max(estimate, _gradient_passes(network))}
    return {("fisher squares", loss): _dual_passes(fisher, network)}


def largest_limits(network: Network, batch: Batch, *, loss: str, **params: Any) -> Parts:
    """The largest number of passes for the largest eigenvalue."""
    fisher = fisher_matrix(network, batch, loss)
    if has_few_eigenvalues(fisher):
        return spectrum_limits(network, batch, loss=loss)
    if forms_dual(fisher, batch):
        return {("fisher largest", loss): _dual_passes(fisher, network)}
    return {("fisher largest", loss): 2 + PRODUCTS * _product_passes(fisher)}


def spectrum_limits(network: Network, batch: Batch, *, loss: str = "squared", **params: Any) -> Parts:
    """The largest number of passes for all eigenvalues."""
    return {("fisher spectrum", loss): _dual_passes(fisher_matrix(network, batch, loss), network)}


def alignment_limits(network: Network, batch: Batch, **params: Any) -> Parts:
    """The largest number of passes for the squared entries of the dual and a product with it."""
    fisher = fisher_matrix(network, batch, "squared")
    return {"tangent kernel": _dual_passes(fisher, network) + 2 + _product_passes(fisher)}


def _gradient_passes(network: Network) -> float:
    """Of the gradients of all outputs: a forward pass, and a backward pass with the weights for each."""
    return 1.0 + 2 * network.n_outputs


def _dual_passes(fisher: FisherMatrix, network: Network) -> float:
    """Of all tiles of the dual: the gradients are formed once for every group, each time fewer of them."""
    return _gradient_passes(network) * (fisher.n_groups + 1) / 2


def _product_passes(fisher: FisherMatrix) -> float:
    """Of a product with the dual: there and back with the weights, in reverse mode five, and what is not kept."""
    return 5.0 if fisher.keeps_points else 7.0
