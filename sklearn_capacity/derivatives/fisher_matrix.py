"""The Fisher matrix F = A A^T / T and its dual A^T A / T, which has outputs times samples rows ([MF] appendix D)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from ..graph.memory_layout import channels_last
from .parameter_jacobian import ParameterJacobian, Point
from .sample_gradients import Outer, Rows, SampleGradients

__all__ = ["LOSSES", "FisherMatrix", "cotangents"]

#: Rows of a tile: below it the matrix products are too small to be fast, beyond it the tile leaves the cache.
TILE_ROWS = 1024
#: Bytes of the gradients of one chunk of samples, and of all chunks held at once.
CHUNK_BYTES = 2**28
HELD_BYTES = 2**30
LOSSES = ("squared", "cross_entropy")


def cotangents(logits: Tensor, loss: str) -> Tensor:
    """Columns of B with B B^T the Fisher matrix of the loss at the output, (C, n, C), one per class and sample.

    The identity for the squared loss. For the softmax diag(p) - p p^T = B B^T with B = (diag(sqrt p) - p sqrt(p)^T):
    a factor in closed form, so no eigenvalue problem per sample and nothing to clip.
    """
    n, n_outputs = logits.shape
    eye = torch.eye(n_outputs, dtype=logits.dtype, device=logits.device)
    if loss == "squared":
        return eye[:, None, :].expand(-1, n, -1)
    p = logits.double().softmax(1).to(logits.dtype)
    return p.T.sqrt()[:, :, None] * (eye[:, None, :] - p)


class FisherMatrix:
    """The Fisher matrix of T samples, by products, by its dual or by itself.

    Parameters
    ----------
    jacobian : ParameterJacobian
    X : Tensor of shape (T, ...)
    n_outputs : int
    loss : "squared" or "cross_entropy"
    samples : int
        Samples at once in a forward pass.
    progress : callable, default=iter
        Wraps the iterable of the outermost loop.
    """

    def __init__(
        self,
        jacobian: ParameterJacobian,
        X: Tensor,
        n_outputs: int,
        loss: str,
        *,
        samples: int,
        progress: Callable[[Iterable], Iterable] = iter,
    ):
        self.jacobian = jacobian
        self.X = X
        self.n_outputs = n_outputs
        self.loss = loss
        self.progress = progress
        row = max(1, jacobian.floats_per_sample(n_outputs) * X.element_size())
        self.samples = samples
        self.chunk = max(1, min(samples, len(X), CHUNK_BYTES // row))
        self._points: list[Point] | None = None

    @property
    def dual_size(self) -> int:
        return self.n_outputs * len(self.X)

    def halve(self) -> bool:
        """Take half as many samples at once; False if it is one already."""
        self._points = None
        if self.samples == 1:
            return False
        self.samples, self.chunk = self.samples // 2, max(1, self.chunk // 2)
        return True

    # -- matrices ----------------------------------------------------------------------------------------------------

    def dual(self) -> Tensor:
        """A^T A / T of shape (C T, C T), float64; rows are classes, then samples."""
        n, k = len(self.X), self.n_outputs
        gram = torch.zeros((k, n, k, n), dtype=torch.float64, device=self.X.device)
        for rows, columns, tile in self._tiles():
            gram[(*rows, *columns)] = tile.double()
            gram[(*columns, *rows)] = tile.permute(2, 3, 0, 1).double()
        return gram.reshape(k * n, k * n).div_(n)

    def matrix(self) -> Tensor:
        """A A^T / T of shape (P, P), float64."""
        total = torch.zeros((self.jacobian.size,) * 2, dtype=torch.float64, device=self.X.device)
        for _, gradients in self._gradients(self._chunks()):
            rows = torch.cat([g.rows() for g in gradients], dim=2).flatten(0, 1).double()
            total.addmm_(rows.T, rows)
        return total.div_(len(self.X))

    def squared_norm(self) -> float:
        """Sum of the squared eigenvalues, tile by tile: no matrix is held."""
        total = 0.0
        for rows, columns, tile in self._tiles():
            total += (1 if rows == columns else 2) * float(tile.double().square().sum())
        return total / len(self.X) ** 2

    def traces(self) -> list[float]:
        """Sum of the eigenvalues by layer (as `jacobian.labels` has them): the squared lengths of the gradients."""
        sums = torch.zeros(len(self.jacobian.labels), dtype=torch.float64, device=self.X.device)
        for _, gradients in self._gradients(self._chunks()):
            sums += torch.stack([part.squared_norms().double().sum() for part in gradients])
        return (sums / len(self.X)).cpu().tolist()

    def _chunks(self) -> list[slice]:
        n = len(self.X)
        return [slice(i, min(i + self.chunk, n)) for i in range(0, n, self.chunk)]

    def _gradients(self, chunks: list[slice], *, inner: bool = False) -> Iterator[tuple[slice, SampleGradients]]:
        for chunk in chunks if inner else self.progress(chunks):
            point = self.jacobian.at(channels_last(self.X[chunk]))
            with torch.no_grad():
                gradients = point.gradients(cotangents(point.logits, self.loss))
            yield chunk, gradients

    def _tiles(self) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice], Tensor]]:
        """(classes, samples) of rows and columns with the tile between them, (k, n, l, m), in the upper triangle."""
        chunks = self._chunks()
        per_group = max(1, HELD_BYTES // CHUNK_BYTES - 1) if len(chunks) > 1 else 1
        for start in self.progress(range(0, len(chunks), per_group)):
            held = list(self._gradients(chunks[start : start + per_group], inner=True))
            for i, (a, left) in enumerate(held):
                for b, right in held[i:]:
                    yield from self._pair(a, left, b, right)
            for b, right in self._gradients(chunks[start + per_group :], inner=True):
                for a, left in held:
                    yield from self._pair(a, left, b, right)

    def _pair(
        self, a: slice, left: SampleGradients, b: slice, right: SampleGradients
    ) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice], Tensor]]:
        """Tiles between two chunks: a few classes at once, all layers inside a tile."""
        step = max(1, TILE_ROWS // max(a.stop - a.start, b.stop - b.start))
        classes = [slice(k, min(k + step, self.n_outputs)) for k in range(0, self.n_outputs, step)]
        shared = [_kernel(f, g) for f, g in zip(left, right, strict=True)]
        for i, k in enumerate(classes):
            for l in classes[i:] if a == b else classes:
                yield (k, a), (l, b), _tile(left, right, shared, k, l)

    # -- products ----------------------------------------------------------------------------------------------------

    def product(self, vector: Tensor) -> Tensor:
        """A^T A v / T for v of length C T, by one backward sweep and one tangent sweep."""
        vectors = vector.reshape(self.n_outputs, len(self.X), 1)
        sums: list[Tensor] | None = None
        for chunk, point in self._at():
            columns = cotangents(point.logits, self.loss)
            pulled = point.pull((columns * vectors[:, chunk].to(columns.dtype)).sum(0))
            sums = pulled if sums is None else [s + p for s, p in zip(sums, pulled, strict=True)]
        assert sums is not None
        out = torch.empty_like(vectors[..., 0])
        for chunk, point in self._at():
            moved = point.push(sums)
            out[:, chunk] = (cotangents(point.logits, self.loss) * moved).sum(2).to(out.dtype)
        return out.flatten() / len(self.X)

    def _at(self) -> Iterator[tuple[slice, Point]]:
        """Every chunk with its forward pass, kept for the next product where all of them fit."""
        n = len(self.X)
        chunks = [slice(i, min(i + self.samples, n)) for i in range(0, n, self.samples)]
        if self._points is not None:
            yield from zip(chunks, self._points, strict=True)
            return
        keep = n * self.jacobian.floats_per_point * self.X.element_size() <= HELD_BYTES
        points = []
        for chunk in chunks:
            point = self.jacobian.at(channels_last(self.X[chunk]))
            if keep:
                points.append(point)
            yield chunk, point
        if keep:
            self._points = points


def _kernel(f: Outer | Rows, g: Outer | Rows) -> Tensor | None:
    """Inner products of the right factors, which all classes share: (n, S, m, S)."""
    if isinstance(f, Outer) and isinstance(g, Outer):
        return torch.tensordot(f.right, g.right, dims=([2], [2]))
    return None


def _tile(left: SampleGradients, right: SampleGradients, shared: list[Tensor | None], k: slice, l: slice) -> Tensor:
    total: Tensor | None = None
    for f, g, kernel in zip(left, right, shared, strict=True):
        if isinstance(f, Outer) and isinstance(g, Outer) and kernel is not None:
            total = _add_outer(total, f.left[k], g.left[l], kernel)
            continue
        u, v = f.rows()[k], g.rows()[l]
        part = (u.flatten(0, 1) @ v.flatten(0, 1).T).reshape(*u.shape[:2], *v.shape[:2])
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _add_outer(total: Tensor | None, u: Tensor, v: Tensor, kernel: Tensor) -> Tensor:
    """Add sum over positions of (u . v) (right . right'), u being (k, n, S, a)."""
    shape = (*u.shape[:3], *v.shape[:3])
    inner = (u.flatten(0, 2) @ v.flatten(0, 2).T).reshape(shape)
    if math.prod(kernel.shape[1::2]) == 1:
        inner, kernel = inner[:, :, 0, :, :, 0], kernel[:, 0, :, 0]
        weights = kernel[None, :, None, :]
        return inner.mul_(weights) if total is None else total.addcmul_(inner, weights)
    part = (inner * kernel[None, :, :, None]).sum((2, 5))
    return part if total is None else total.add_(part)
