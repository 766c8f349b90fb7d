"""Kronecker factors of a network's Fisher matrix, layer by layer, and the damped inverse of their product."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from sklearn_capacity._validation import DivergenceError
from sklearn_capacity.derivatives.modes import evaluating

__all__ = ["FISHERS", "LOSSES", "LayerFactors", "damped_solve", "kronecker_factors", "trained_layers"]

FISHERS = ("type-2", "mc", "empirical")
LOSSES = (nn.MSELoss, nn.CrossEntropyLoss, nn.BCEWithLogitsLoss)
_CHUNK = 2**14  # number of rows that are converted to float64 at once


class LayerFactors(NamedTuple):
    """Eigenvalues and eigenvectors of A (inputs) and of B (gradients at the outputs).

    With fewer samples than features, only the eigenvectors of nonzero eigenvalues.
    """

    input_values: Tensor  # (p,)
    input_vectors: Tensor  # (d_in, p)
    output_values: Tensor  # (q,)
    output_vectors: Tensor  # (d_out, q)


class SecondMoment:
    """The sum of r r^T over rows r that arrive in parts; stored as rows while these are smaller than the matrix."""

    def __init__(self) -> None:
        self.n_rows = 0
        self.rows: list[Tensor] = []
        self.matrix: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        """Add rows of shape (m, d)."""
        width = rows.shape[1]
        self.n_rows += len(rows)
        self.rows.append(rows)
        if self.n_rows < width and self.matrix is None:
            return
        if self.matrix is None:
            self.matrix = torch.zeros(width, width, dtype=torch.float64, device=rows.device)
        for part in self.rows:
            for chunk in part.split(_CHUNK):
                wide = chunk.double()
                self.matrix.addmm_(wide.T, wide)
        self.rows = []

    def eigenbasis(self, count: int, layer: str) -> tuple[Tensor, Tensor]:
        """Eigenvalues of the sum divided by `count`, and their eigenvectors, in float64.

        The rows of one batch rarely span all directions, and rounding of zero eigenvalues in single precision can keep
        LAPACK from converging. With few rows, the eigenvectors are the singular vectors of the rows.
        """
        source = torch.cat(self.rows).double() if self.matrix is None else self.matrix  # (m, d) or (d, d)
        if not source.isfinite().all():
            raise DivergenceError(
                f"Training diverged: the curvature of layer {layer!r} in `optimizer` 'kfac' is not finite. "
                "Lower `learning_rate` or scale the data."
            )
        if self.matrix is not None:
            values, vectors = torch.linalg.eigh(source)
            return values.clamp_min(0.0) / count, vectors
        basis, triangle = torch.linalg.qr(source.T)  # (d, m), (m, m): takes half the time of an SVD of the rows
        vectors, singular, _ = torch.linalg.svd(triangle)
        return singular.square() / count, basis @ vectors


def trained_layers(module: nn.Module, parameters: set[int]) -> Iterator[tuple[str, nn.Module, list[str]]]:
    """Name and layer, and those of "weight" and "bias" that are among the parameters (given by ids)."""
    for name, layer in module.named_modules():
        trained = [key for key, tensor in layer.named_parameters(recurse=False) if id(tensor) in parameters]
        if trained:
            yield name, layer, trained


def kronecker_factors(
    module: nn.Module, criterion: nn.Module, X: Tensor, y: Tensor, *, parameters: set[int], fisher: str, seed: int
) -> dict[str, LayerFactors]:
    """The factors of each layer by name, from one batch and in eval mode.

    If a layer is applied to a sample at several positions or called several times, each position counts as a sample for
    A, and the moments of their gradients are summed for B ("expand" in Eschenhagen et al., 2023).
    """
    layers = list(trained_layers(module, parameters))
    inputs = {name: SecondMoment() for name, _, _ in layers}
    outputs = {name: SecondMoment() for name, _, _ in layers}
    probes: list[tuple[str, nn.Module, Tensor]] = []

    def probe(layer: nn.Module, args: tuple[Any, ...], output: Tensor, *, name: str, trained: list[str]) -> Tensor:
        """Record the layer's inputs, and add zeros to its outputs for differentiation."""
        inputs[name].add(_input_rows(layer, args[0].detach(), trained))
        zeros = torch.zeros_like(output, requires_grad=True)
        probes.append((name, layer, zeros))
        return output + zeros

    with torch.enable_grad(), evaluating(module), ExitStack() as stack:
        for name, layer, trained in layers:
            handle = layer.register_forward_hook(partial(probe, name=name, trained=trained))
            stack.callback(handle.remove)
        prediction = module(X)
    residuals = _residuals(criterion, prediction.detach(), y, fisher, seed)  # (columns, n, C)
    for column, residual in enumerate(residuals):
        gradients = torch.autograd.grad(
            prediction, [zeros for _, _, zeros in probes], residual, retain_graph=column < len(residuals) - 1
        )
        for (name, layer, _), gradient in zip(probes, gradients, strict=True):
            outputs[name].add(_output_rows(layer, gradient))
    factors = {}
    for name in inputs:
        bases = *inputs[name].eigenbasis(inputs[name].n_rows, name), *outputs[name].eigenbasis(len(X), name)
        factors[name] = LayerFactors(*(tensor.to(prediction.dtype).contiguous() for tensor in bases))
    return factors


def _input_rows(layer: nn.Module, input: Tensor, trained: list[str]) -> Tensor:
    """The inputs of the trained weights, with a 1 for the bias: (n * places, d_in)."""
    if isinstance(layer, nn.Conv2d):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        padded = functional.pad(input, layer._reversed_padding_repeated_twice, mode=mode)
        patches = functional.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)  # (n, d_in, places)
        rows = patches.transpose(1, 2).flatten(0, 1)  # (n * places, d_in)
    else:
        rows = input.flatten(0, -2)  # (n * places, d_in)
    ones = rows.new_ones(len(rows), 1)
    return torch.cat([rows if name == "weight" else ones for name in trained], dim=1)


def _output_rows(layer: nn.Module, gradient: Tensor) -> Tensor:
    """(n * places, d_out)."""
    if isinstance(layer, nn.Conv2d):
        gradient = gradient.movedim(1, -1)  # (n, height, width, d_out)
    return gradient.flatten(0, -2)


def _residuals(criterion: nn.Module, z: Tensor, y: Tensor, fisher: str, seed: int) -> Tensor:
    """Vectors r of shape (columns, n, C): the outputs' Fisher matrix is the sum of r r^T, averaged over samples.

    For "type-2" they are the columns of a square root of the loss's Hessian, for "mc" the gradient for a drawn label,
    and for "empirical" the gradient for the given label. A loss that is a mean over C outputs has 1 / C of the Hessian
    of the sum; cross-entropy is a single term.
    """
    n, n_outputs = z.shape
    generator = torch.Generator("cpu").manual_seed(seed)  # the same labels on every device
    if isinstance(criterion, nn.CrossEntropyLoss):
        p, n_terms = z.softmax(1), 1
        if fisher == "type-2":  # H = diag(p) - p p^T = S S^T with S = diag(sqrt p) - p sqrt(p)^T
            r = (torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]).movedim(2, 0)
        else:
            label = y if fisher == "empirical" else p.cpu().multinomial(1, generator=generator).squeeze(1).to(z.device)
            r = (p - functional.one_hot(label, n_outputs))[None]
    elif isinstance(criterion, nn.MSELoss):
        n_terms = n_outputs
        if fisher == "type-2":  # H = 2 I
            r = torch.eye(n_outputs, dtype=z.dtype, device=z.device)[:, None, :].expand(-1, n, -1) * 2**0.5
        elif fisher == "empirical":
            r = 2 * (z - y)[None]
        else:  # y = z + Gaussian noise of variance 1/2
            r = 2**0.5 * torch.randn(1, n, n_outputs, dtype=z.dtype, device="cpu", generator=generator).to(z.device)
    else:
        p, n_terms = z.sigmoid(), n_outputs
        if fisher == "type-2":  # H = diag(p (1 - p))
            r = torch.diag_embed((p * (1 - p)).sqrt()).movedim(2, 0)
        else:
            r = (p - (y if fisher == "empirical" else p.cpu().bernoulli(generator=generator).to(z.device)))[None]
    return r * n**0.5 if criterion.reduction == "sum" else r * n_terms**-0.5


def damped_solve(factors: LayerFactors, gradient: Tensor, damping: float) -> Tensor:
    r"""(A \otimes B + damping I)^{-1} times a gradient of shape (d_out, d_in).

    The inverse has eigenvalues 1 / (a b + damping) on the span of the eigenvectors, and 1 / damping off it.
    """
    a, V, b, U = factors
    curvature = torch.outer(b, a)  # (q, p)
    core = U.T @ gradient @ V  # (q, p)
    if V.shape[0] == V.shape[1] and U.shape[0] == U.shape[1]:
        return U @ (core / (curvature + damping)) @ V.T
    # 1 / (ab + d) = 1 / d - ab / (d (ab + d))
    return (gradient - U @ (core * curvature / (curvature + damping)) @ V.T) / damping
