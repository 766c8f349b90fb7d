"""Products of two matrices, by the faster of torch's two libraries."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["LARGE", "affine", "fits_onednn", "product"]

#: Multiplications from which the start of a product in oneDNN, some 10 microseconds, is made up for.
LARGE = 1 << 22


def product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for a (n, m) and b (m, p).

    For single precision on the CPU, `torch.matmul` calls MKL, whose kernels for AVX-512 run on Intel's processors only.
    Those of oneDNN run on all: on a Zen 5, matrices of 128 x 784 and 784 x 784 took 0.65 ms instead of 1.45, and with
    AVX2 alone 1.25 instead of 1.45. With AVX2 they take a tenth more than MKL where `a` is a transposed matrix, as in
    the gradient of a weight. They have no gradient here, so a product that needs one is torch's.

    Examples
    --------
    >>> import torch
    >>> product(torch.ones(2, 3), torch.eye(3))
    tensor([[1., 1., 1.],
            [1., 1., 1.]])
    """
    if fits_onednn(a, b) and not (torch.is_grad_enabled() and (a.requires_grad or b.requires_grad)):
        return _multiplied(a, b.t(), None)
    return a @ b


def affine(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x weight^T + bias`` like `torch.nn.functional.linear`, with a gradient, by the library that `product` takes.

    Examples
    --------
    >>> import torch
    >>> affine(torch.ones(2, 3), torch.eye(3), torch.ones(3))
    tensor([[2., 2., 2.],
            [2., 2., 2.]])
    """
    if fits_onednn(x, weight.t()) and (bias is None or bias.dtype == weight.dtype):
        return _Affine.apply(x, weight, bias)
    return F.linear(x, weight, bias)


class _Affine(torch.autograd.Function):
    """``x weight^T + bias`` by oneDNN. The gradient consists of products that can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _multiplied(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # (n, in), (out, in); g is (n, out)
        for_x, for_weight, for_bias = ctx.needs_input_grad
        return (
            product(g, weight) if for_x else None,
            product(g.t(), x) if for_weight else None,
            g.sum(0) if for_bias else None,
        )


def _multiplied(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    # A private entry, which inductor's code for CPUs calls: x weight^T + bias for a weight of any strides.
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def fits_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether oneDNN can multiply these, and they are large enough for it."""
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] * b.numel() < LARGE:
        return False
    single = all(t.is_cpu and t.dtype == torch.float32 and t.layout == torch.strided for t in (a, b))
    if not (single and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    by_rows = a.is_contiguous()
    if not by_rows and torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    # Parts of wider matrices may fall back to loops, which took 300 times as long with AVX-512.
    return (by_rows or a.t().is_contiguous()) and (b.is_contiguous() or b.t().is_contiguous())
