"""Slow float64 references for margins, Jacobians and Lipschitz constants: loops over samples, dense matrices, SVD."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "adversary",
    "composed_lipschitz",
    "curvature",
    "dense",
    "jacobian",
    "margins",
    "max_pool_overlap",
    "norm_l2",
    "norm_linf",
    "sampled_slopes",
    "softmax",
]


def dense(linear_map: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> np.ndarray:
    """The matrix of an affine map without its shift, column by column."""
    zero = linear_map(torch.zeros(1, *shape, dtype=torch.float64))
    n = math.prod(shape)
    columns = [
        (linear_map(torch.eye(n, dtype=torch.float64)[i].reshape(1, *shape)) - zero).detach().flatten().numpy()
        for i in range(n)
    ]
    return np.stack(columns, axis=1)


def norm_l2(matrix: np.ndarray) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False)[0])


def norm_linf(matrix: np.ndarray) -> float:
    return max(float(np.abs(row).sum()) for row in matrix)


def jacobian(module: nn.Module, x: Tensor) -> np.ndarray:
    """J of one sample, (C, D)."""
    J = torch.autograd.functional.jacobian(lambda z: module(z[None])[0], x)
    return J.reshape(J.shape[0], -1).numpy()


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


def margins(module: nn.Module, X: Tensor, y: Tensor) -> list[float]:
    out = []
    for x, label in zip(X, y.tolist(), strict=True):
        f = module(x[None])[0].detach().numpy()
        out.append(f[label] - max(f[k] for k in range(len(f)) if k != label))
    return out


def curvature(module: nn.Module, x: Tensor, loss: str) -> np.ndarray:
    """Eigenvalues of the full D x D matrix J^T F J, ascending."""
    J = jacobian(module, x)
    F = np.eye(len(J))
    if loss == "cross_entropy":
        p = softmax(module(x[None])[0].detach().numpy())
        F = np.diag(p) - np.outer(p, p)
    return np.linalg.eigvalsh(J.T @ F @ J)


def max_pool_overlap(module: nn.Module, shape: tuple[int, ...]) -> int:
    """The number of windows that contain a pixel, by pooling one image per pixel, with a spike there."""
    count = 0
    for i in range(math.prod(shape)):
        spike = torch.zeros(math.prod(shape), dtype=torch.float64)
        spike[i] = 1.0
        count = max(count, int(module(spike.reshape(1, *shape)).sum()))
    return count


def composed_lipschitz(modules: nn.Sequential, shape: tuple[int, ...], norm: Callable[[np.ndarray], float]) -> float:
    """Product over the modules of a chain: dense matrices, spikes through max pooling, slopes scanned on a grid."""
    fine = torch.logspace(-6, -3, 100, dtype=torch.float64)  # some are steepest as they come to 0
    grid = torch.cat([torch.linspace(-40, 40, 800_001, dtype=torch.float64), fine, -fine]).unique()
    # The last bit of a value, 1e-16, over a shorter step than this is an error of the slope.
    grid = grid[grid.diff(prepend=torch.full((1,), -torch.inf, dtype=torch.float64)) > 5e-8]
    total = 1.0
    x = torch.zeros(1, *shape, dtype=torch.float64)
    for module in modules:
        if isinstance(module, nn.MaxPool1d | nn.MaxPool2d):
            total *= math.sqrt(max_pool_overlap(module, tuple(x.shape[1:]))) if norm is norm_l2 else 1.0
        elif not list(module.parameters()) and not isinstance(module, nn.AvgPool2d | nn.AdaptiveAvgPool2d | nn.Flatten):
            total *= float((module(grid.clone()).diff() / grid.diff()).abs().max())
        else:
            total *= norm(dense(module, tuple(x.shape[1:])))
        x = module(x)
    return total


def sampled_slopes(module: nn.Module, X: Tensor, order: float, n_pairs: int = 200) -> float:
    """The largest slope over pairs far and near, and along the direction that each sample's Jacobian stretches most."""
    generator = torch.Generator().manual_seed(1)
    flat = X.flatten(1)
    best = 0.0
    for i in range(n_pairs):
        x = flat[i % len(flat)] * (1 + i % 4)
        if i % 3 == 0:
            J = jacobian(module, x.reshape(X.shape[1:]))
            step = torch.as_tensor(np.linalg.svd(J)[2][0]) if order == 2 else torch.as_tensor(np.sign(J[0]))
        else:
            step = torch.randn(flat.shape[1], generator=generator, dtype=torch.float64)
        z = x + step * 10.0 ** (i % 5 - 3)
        pair = torch.stack([x, z]).reshape(2, *X.shape[1:])
        f = module(pair).detach().flatten(1)
        best = max(best, float(torch.linalg.vector_norm(f[1] - f[0], order) / torch.linalg.vector_norm(z - x, order)))
    return best


def adversary(module: nn.Module, x: Tensor, label: int, radius: float, steps: int = 60) -> float:
    """The smallest margin found in the Euclidean ball by gradient descent on it, from the centre and random points."""
    generator = torch.Generator().manual_seed(2)
    best = math.inf
    for start in range(4):
        offset = torch.randn(x.shape, generator=generator, dtype=torch.float64) * (start > 0)
        offset = radius * offset / offset.norm().clamp_min(1e-30)
        for step in range(steps):
            z = (x + offset).detach().requires_grad_(True)
            f = module(z[None])[0]
            others = torch.cat([f[:label], f[label + 1 :]])
            margin = f[label] - others.max()
            best = min(best, float(margin.detach()))
            (gradient,) = torch.autograd.grad(margin, z)
            if float(gradient.norm()) == 0:
                break
            offset = offset - radius * 0.5 ** (step // 20) * gradient / gradient.norm()
            offset = offset * min(1.0, radius / float(offset.norm().clamp_min(1e-30)))
    return best
