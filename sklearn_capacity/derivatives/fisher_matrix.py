"""The Fisher matrix F = A A^T / T and its dual A^T A / T, which has outputs times samples rows ([MF] appendix D)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from ..graph.memory_layout import channels_last
from .parameter_jacobian import ParameterJacobian, Point
from .sample_gradients import Outer, Rows, SampleGradients

__all__ = ["LOSSES", "FisherMatrix", "cotangents", "factor_product", "transposed_factor_product"]

#: Rows of a tile: smaller products are slow, larger tiles do not fit into the cache.
TILE_ROWS = 1024
#: Bytes of the gradients of one chunk of samples, and of all chunks in memory at once, if memory allows.
CHUNK_BYTES = 2**28
HELD_BYTES = 2**30
#: What a multiplication in a product of the dual matrix with a vector, which reads a new number for each, and in the
#: gradients and their inner products takes, in the time of one in the sweeps of `FisherMatrix.product`.
READING, FORMING = 24, 1.25
LOSSES = ("squared", "cross_entropy")

#: A range of classes and one of samples.
Block = tuple[slice, slice]


def cotangents(logits: Tensor, loss: str, classes: slice = slice(None)) -> Tensor:
    """Columns of B, where B B^T is the Fisher matrix of the loss at the output: (K, n, C), one per class and sample.

    K of the C classes are selected. B is the identity for the squared loss. For the softmax, diag(p) - p p^T = B B^T
    with B = (diag(sqrt p) - p sqrt(p)^T): a closed form, without an eigenvalue problem per sample or clipping.
    """
    n, n_outputs = logits.shape
    index = torch.arange(n_outputs, device=logits.device)[classes]  # (K,)
    eye = F.one_hot(index, n_outputs).to(logits.dtype)  # (K, C)
    if loss == "squared":
        return eye[:, None, :].expand(-1, n, -1)
    p = logits.double().softmax(1).to(logits.dtype)  # (n, C)
    return p.T[classes].sqrt()[:, :, None] * (eye[:, None, :] - p)  # column k of B: sqrt(p_k) (e_k - p), (K, n, C)


def factor_product(p: Tensor, scale: Tensor, v: Tensor) -> Tensor:
    """B v = (diag(s) - p s^T) v for probabilities p, a scale s and vectors v, all of shape (n, C)."""
    scaled = scale * v  # (n, C)
    return scaled - p * scaled.sum(1, keepdim=True)


def transposed_factor_product(p: Tensor, scale: Tensor, w: Tensor) -> Tensor:
    """B^T w for the same B, (n, C)."""
    return scale * (w - (p * w).sum(1, keepdim=True))


class FisherMatrix:
    """The Fisher matrix of T samples: its products, its dual, or the matrix itself.

    Parameters
    ----------
    jacobian : ParameterJacobian
    X : Tensor of shape (T, ...)
    n_outputs : int
    loss : "squared" or "cross_entropy"
    samples : int
        Number of samples in a forward pass.
    memory : float, default=inf
        Number of bytes that may be used.
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
        memory: float = math.inf,
        progress: Callable[[Iterable], Iterable] = iter,
    ):
        self.jacobian = jacobian
        self.X = X
        self.n_outputs = n_outputs
        self.loss = loss
        self.progress = progress
        self.samples = samples
        #: Bytes of the gradients of one chunk of samples, and of all chunks held at once.
        self.chunk_bytes, self.held_bytes = int(min(CHUNK_BYTES, memory / 4)), int(min(HELD_BYTES, memory / 2))
        self.chunk = max(1, min(samples, len(X), self.chunk_bytes // self._bytes_at_work(n_outputs)))
        #: Classes at once: all of them, unless the gradients of a single sample are too large.
        self.classes = n_outputs
        if self._bytes_at_work(n_outputs) > self.chunk_bytes:
            shared = self._bytes_at_work(0)
            per_class = max(1, self._bytes_at_work(1) - shared)
            self.classes = min(n_outputs, max(1, (self.chunk_bytes - shared) // per_class))
        self._points: list[Point] | None = None

    @property
    def dual_size(self) -> int:
        return self.n_outputs * len(self.X)

    def _bytes_at_work(self, n_classes: int) -> int:
        """Bytes of one sample's gradients and cotangents for this many classes."""
        floats = self.jacobian.floats_at_work(n_classes) + n_classes * self.n_outputs
        return max(1, floats * self.X.element_size())

    def halve(self) -> bool:
        """Halve the number of samples at once, else of classes; False if both are already 1."""
        self._points = None
        if self.samples > 1:
            self.samples, self.chunk = self.samples // 2, max(1, self.chunk // 2)
            return True
        self.classes, halved = max(1, self.classes // 2), self.classes > 1
        return halved

    # -- matrices ----------------------------------------------------------------------------------------------------

    def dual(self) -> Tensor:
        """A^T A / T of shape (C T, C T), float64; rows are classes, then samples."""
        n, k = len(self.X), self.n_outputs
        gram = torch.zeros((k, n, k, n), dtype=torch.float64, device=self.X.device)  # one axis per class and sample
        for rows, columns, tile in self._tiles():
            gram[(*rows, *columns)] = tile.double()
            gram[(*columns, *rows)] = tile.permute(2, 3, 0, 1).double()
        return gram.reshape(k * n, k * n).div_(n)

    def dual_saves(self, n_products: int) -> bool:
        """Whether this many products take longer than forming the dual matrix and multiplying by that.

        A product uses every parameter at least four times for each sample: for the gradient, the cotangent before it,
        and both tangents. A convolution uses its weights more often; that its dual is never formed is right, since
        gradients of single samples, with sums over all positions, take it longer than products.
        """
        entries = float(self.dual_size) ** 2
        gradients = float(self.dual_size) * self.jacobian.size
        inner = entries / 2 * self.jacobian.floats_per_sample(self.n_outputs) / self.n_outputs
        iteration = 4.0 * n_products * len(self.X) * self.jacobian.size
        return self.n_groups == 1 and FORMING * (gradients + inner) + READING * n_products * entries < iteration

    def matrix(self) -> Tensor:
        """A A^T / T of shape (P, P), float64."""
        total = torch.zeros((self.jacobian.size,) * 2, dtype=torch.float64, device=self.X.device)  # (P, P)
        for _, gradients in self._gradients(self._blocks()):
            rows = torch.cat([g.rows() for g in gradients], dim=2).flatten(0, 1).double()  # (K n, P)
            total.addmm_(rows.T, rows)
        return total.div_(len(self.X))

    def squared_norm(self) -> float:
        """Sum of the squared eigenvalues, tile by tile, without storing the matrix."""
        total = 0.0
        for rows, columns, tile in self._tiles():
            total += (1 if rows == columns else 2) * float(tile.double().square().sum())
        return total / len(self.X) ** 2

    def traces(self) -> list[float]:
        """Sum of the eigenvalues per layer, ordered as `jacobian.labels`: the squared lengths of the gradients."""
        sums = torch.zeros(len(self.jacobian.labels), dtype=torch.float64, device=self.X.device)  # (labels,)
        for (classes, _), point in self._points_of(self.progress(self._blocks())):
            with torch.no_grad():
                sums += point.squared_norms(cotangents(point.logits, self.loss, classes))
        return (sums / len(self.X)).cpu().tolist()

    def _blocks(self) -> list[Block]:
        """All pairs of a range of classes and a range of samples whose gradients are in memory together."""
        chunks = _ranges(0, len(self.X), self.chunk)
        return [(classes, chunk) for chunk in chunks for classes in _ranges(0, self.n_outputs, self.classes)]

    @property
    def keeps_points(self) -> bool:
        """Whether the forward passes of all samples are kept between products."""
        return len(self.X) * self.jacobian.floats_per_point * self.X.element_size() <= self.held_bytes

    @property
    def _per_group(self) -> int:
        """Blocks whose gradients are held while those of all later ones are formed again."""
        return max(1, self.held_bytes // max(1, self.chunk_bytes) - 1)

    @property
    def n_groups(self) -> int:
        """How often gradients are formed for the tiles of the dual matrix, at most."""
        return math.ceil(len(self._blocks()) / self._per_group)

    def _points_of(self, blocks: Iterable[Block]) -> Iterator[tuple[Block, Point]]:
        """Each block with the forward pass of its samples; blocks of the same samples share it."""
        at: slice | None = None
        for block in blocks:
            if block[1] != at:
                at = block[1]
                point = self.jacobian.at(channels_last(self.X[at]))
            yield block, point

    def _gradients(self, blocks: list[Block], *, inner: bool = False) -> Iterator[tuple[Block, SampleGradients]]:
        for block, point in self._points_of(blocks if inner else self.progress(blocks)):
            with torch.no_grad():
                gradients = point.gradients(cotangents(point.logits, self.loss, block[0]))
            yield block, gradients

    def _tiles(self) -> Iterator[tuple[Block, Block, Tensor]]:
        """Blocks of rows and of columns with their tile, (k, n, l, m), in the upper triangle."""
        blocks, per_group = self._blocks(), self._per_group
        for start in self.progress(range(0, len(blocks), per_group)):
            held = list(self._gradients(blocks[start : start + per_group], inner=True))
            for i, (a, left) in enumerate(held):
                for b, right in held[i:]:
                    yield from _pair(a, left, b, right)
            for b, right in self._gradients(blocks[start + per_group :], inner=True):
                for a, left in held:
                    yield from _pair(a, left, b, right)

    # -- products ----------------------------------------------------------------------------------------------------

    def product(self, vector: Tensor) -> Tensor:
        """A^T A v / T for v of length C T, by one backward sweep and one tangent sweep."""
        vectors = vector.reshape(self.n_outputs, len(self.X)).T  # (T, C)
        sums: list[Tensor] | None = None
        for chunk, point in self._at():
            # One vector per group of parameters: sum_i J_i^T B_i v_i.
            pulled = point.pull(self._factor(factor_product, point.logits, vectors[chunk]).to(point.logits.dtype))
            sums = pulled if sums is None else [s + p for s, p in zip(sums, pulled, strict=True)]
        assert sums is not None
        out = torch.empty_like(vectors)  # (T, C)
        for chunk, point in self._at():
            moved = point.push(sums).to(out.dtype)  # (chunk, C)
            out[chunk] = self._factor(transposed_factor_product, point.logits, moved)
        return out.T.flatten() / len(self.X)

    def _factor(self, product: Callable[..., Tensor], logits: Tensor, vectors: Tensor) -> Tensor:
        """B or its transpose times one vector per sample, (n, C); the identity for the squared loss."""
        if self.loss == "squared":
            return vectors
        p = logits.double().softmax(1)  # (n, C)
        return product(p, p.sqrt(), vectors)

    def _at(self) -> Iterator[tuple[slice, Point]]:
        """Every chunk with its forward pass, cached for the next product if all fit into memory."""
        n = len(self.X)
        chunks = _ranges(0, n, self.samples)
        if self._points is not None:
            yield from zip(chunks, self._points, strict=True)
            return
        keep = self.keeps_points
        points = []
        for chunk in chunks:
            point = self.jacobian.at(channels_last(self.X[chunk]))
            if keep:
                points.append(point)
            yield chunk, point
        if keep:
            self._points = points


def _ranges(start: int, stop: int, step: int) -> list[slice]:
    return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]


def _pair(a: Block, left: SampleGradients, b: Block, right: SampleGradients) -> Iterator[tuple[Block, Block, Tensor]]:
    """Tiles between two blocks: a few classes at once, summed over all layers."""
    step = max(1, TILE_ROWS // max(a[1].stop - a[1].start, b[1].stop - b[1].start))
    shared = [_kernel(f, g) for f, g in zip(left, right, strict=True)]
    for k in _ranges(a[0].start, a[0].stop, step):
        for l in _ranges(k.start if a == b else b[0].start, b[0].stop, step):
            rows, columns = _within(k, a), _within(l, b)
            yield (k, a[1]), (l, b[1]), _tile(left, right, shared, rows, columns)


def _within(classes: slice, block: Block) -> slice:
    """The position of classes among those of a block."""
    return slice(classes.start - block[0].start, classes.stop - block[0].start)


def _kernel(f: Outer | Rows, g: Outer | Rows) -> Tensor | None:
    """Inner products of the right factors, which all classes share: (n, S, m, S')."""
    if isinstance(f, Outer) and isinstance(g, Outer):
        return torch.tensordot(f.right, g.right, dims=([2], [2]))
    return None


def _tile(left: SampleGradients, right: SampleGradients, shared: list[Tensor | None], k: slice, l: slice) -> Tensor:
    """Inner products of the gradients of classes k on the left and l on the right, (k, n, l, m), over all layers."""
    total: Tensor | None = None
    for f, g, kernel in zip(left, right, shared, strict=True):
        if isinstance(f, Outer) and isinstance(g, Outer) and kernel is not None:
            total = _add_outer(total, f.left[k], g.left[l], kernel)
            continue
        u, v = f.rows()[k], g.rows()[l]  # (k, n, p), (l, m, p)
        part = (u.flatten(0, 1) @ v.flatten(0, 1).T).reshape(*u.shape[:2], *v.shape[:2])  # (k, n, l, m)
        total = part if total is None else total.add_(part)
    assert total is not None
    return total


def _add_outer(total: Tensor | None, u: Tensor, v: Tensor, kernel: Tensor) -> Tensor:
    """Add sum over positions of (u . v) (right . right'), with u of shape (k, n, S, a)."""
    shape = (*u.shape[:3], *v.shape[:3])
    inner = (u.flatten(0, 2) @ v.flatten(0, 2).T).reshape(shape)  # (k, n, S, l, m, S'): u . v
    if math.prod(kernel.shape[1::2]) == 1:
        # One position: the product is written in place, without a second tensor of the tile's size.
        inner, kernel = inner[:, :, 0, :, :, 0], kernel[:, 0, :, 0]
        weights = kernel[None, :, None, :]  # (1, n, 1, m)
        return inner.mul_(weights) if total is None else total.addcmul_(inner, weights)
    part = (inner * kernel[None, :, :, None]).sum((2, 5))  # (k, n, l, m)
    return part if total is None else total.add_(part)
