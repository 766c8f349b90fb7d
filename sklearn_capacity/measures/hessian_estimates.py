"""The Hessian of a batch's loss: its eigenvalues, trace and density, from the matrix or by iterations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .._validation import all_finite
from ..derivatives.loss_hessian import LossHessian
from ..derivatives.parameter_vector import raw_parameter_vector
from ..graph import Network
from ..linalg import largest_eigenvalue
from ..linalg.lanczos import lanczos_quadrature
from ..linalg.trace_estimate import trace_estimate
from ..losses import sample_losses
from .batch import Batch
from .losses import targets
from .memory import SKETCH
from .record import NotDefinedError

__all__ = [
    "SMALL",
    "estimated_trace",
    "extreme_eigenvalue",
    "finite",
    "hessian_quadrature",
    "layer_hessians",
    "layer_of",
    "loss_hessian",
]

#: Up to this many parameters, the full matrix costs little more than an iteration.
SMALL = 300
#: The same as `SKETCH` for Lanczos, which with more parameters keeps fewer vectors rather than take several times the
#: memory of a training step.
BASIS = 2**26


def loss_hessian(
    network: Network, batch: Batch, purpose: str = "The Hessian of the loss", layer: str | None = None
) -> LossHessian:
    """Derivatives of a batch's mean loss with respect to the trainable parameters, or to those of one layer."""
    vector = raw_parameter_vector(network, purpose)
    chosen = [layer is None or layer_of(name) == layer for name in vector.names]
    fixed = [tensor.detach() for tensor in vector.tensors]
    y = targets(batch)

    def loss(points: list[Tensor], X: Tensor, y: Tensor) -> Tensor:
        moving = iter(points)
        forward = vector.bind([next(moving) if moves else p for p, moves in zip(fixed, chosen, strict=True)])
        return sample_losses(forward(X).double(), y, batch.loss).sum()

    moved = [p for p, moves in zip(fixed, chosen, strict=True) if moves]
    return LossHessian(loss, moved, lambda function: batch.map(function, y), batch.n_samples)


def layer_hessians(network: Network, batch: Batch) -> Iterator[tuple[str, LossHessian]]:
    """Every layer with trainable parameters, in the module's order, and the Hessian restricted to them."""
    names = raw_parameter_vector(network, "The Hessian of the loss").names
    for layer in dict.fromkeys(map(layer_of, names)):
        yield layer, loss_hessian(network, batch, layer=layer)


def layer_of(name: str) -> str:
    """The submodule of a parameter; for a parametrised weight, the module that owns the weight."""
    return name.split(".parametrizations.")[0] if ".parametrizations." in name else name.rpartition(".")[0] or name


def extreme_eigenvalue(
    hessian: LossHessian, batch: Batch, *, sign: int, tol: float, max_products: int
) -> dict[str, Any]:
    """The largest (sign 1) or smallest (sign -1) eigenvalue, as "value", and how it was computed."""
    if hessian.size <= SMALL:
        values = torch.linalg.eigvalsh(_matrix(hessian, batch))
        return {"value": float(values[-1 if sign > 0 else 0]), "method": "matrix", "size": hessian.size}
    with _progress(batch, max_products) as bar:
        largest = largest_eigenvalue(
            _counted(lambda v: sign * hessian.product(v), bar),
            hessian.size,
            tol=tol,
            max_steps=max_products,
            check_every=1,
            device=hessian.device,
            random_state=batch.random_state,
            precision=hessian.dtype,
            memory=min(BASIS, batch.room / 4),
        )
    info = {"products": largest.n_products, "residual": largest.residual, "error": largest.error * largest.scale}
    return {"value": sign * largest.value, "method": "Lanczos", "size": hessian.size, **info}


def estimated_trace(hessian: LossHessian, batch: Batch, n_products: int, generator: torch.Generator) -> dict[str, Any]:
    """The trace, as "value", its standard error if it is an estimate, and how it was computed."""
    size = hessian.size
    if size <= n_products:
        value = float(_matrix(hessian, batch).trace())
        return {"value": value, "standard_error": None, "method": "matrix", "size": size, "products": size}
    with _progress(batch, n_products) as bar:
        estimate = trace_estimate(
            _counted(hessian.products, bar),
            size,
            n_products=n_products,
            generator=generator,
            device=hessian.device,
            precision=hessian.dtype,
            memory=min(SKETCH, batch.room / 2),
        )
    value = float(finite(torch.tensor(estimate.value, device="cpu"), "Hessian"))
    info = {"method": "Hutch++", "size": size, "products": estimate.n_products}
    return {"value": value, "standard_error": estimate.standard_error, **info}


def hessian_quadrature(network: Network, batch: Batch, n_draws: int, n_steps: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of the spectral density, (n_draws, steps) in float64 on the CPU; (1, P) for small networks.

    Computed by stochastic Lanczos quadrature with start vectors of random signs.
    """
    hessian = loss_hessian(network, batch)
    if hessian.size <= SMALL:
        nodes = torch.linalg.eigvalsh(_matrix(hessian, batch))[None]  # (1, P)
        return nodes, torch.full_like(nodes, 1 / hessian.size)
    generator, draws = batch.generator(), []
    with _progress(batch, n_draws * n_steps) as bar:
        for _ in range(n_draws):
            signs = torch.randint(0, 2, (hessian.size,), generator=generator, device="cpu").double().mul_(2).sub_(1)
            product = _counted(hessian.product, bar)
            draws.append(lanczos_quadrature(product, hessian.size, n_steps=n_steps, start=signs, device=hessian.device))
    nodes, weights = (torch.stack(parts) for parts in zip(*draws, strict=True))  # (n_draws, steps) each
    return nodes, weights


def _matrix(hessian: LossHessian, batch: Batch) -> Tensor:
    """The full Hessian, (P, P), exactly symmetric, on the CPU."""
    with _progress(batch, hessian.size) as bar:
        eye = torch.eye(hessian.size, dtype=torch.float64, device=hessian.device)  # (P, P)
        matrix = _counted(hessian.products, bar)(eye).cpu()
    return finite((matrix + matrix.T) / 2, "Hessian")


def finite(numbers: Tensor, what: str) -> Tensor:
    """The numbers; raises if one is not finite."""
    if not all_finite(numbers):
        raise NotDefinedError(
            f"The {what} of the loss is not finite: the weights or X are too large, or training has diverged."
        )
    return numbers


def _progress(batch: Batch, total: int) -> tqdm:
    return tqdm(desc="Hessian", total=total, unit="product", disable=not batch.verbose, leave=False)


def _counted(product: Callable[[Tensor], Tensor], bar: tqdm) -> Callable[[Tensor], Tensor]:
    def run(vectors: Tensor) -> Tensor:
        image = product(vectors)
        bar.update(1 if vectors.dim() == 1 else vectors.shape[1])
        return image

    return run
