"""Slow references in float64 by another route than the package's: dense matrices from autograd, loops, enumeration.

Every leaf of a network is turned into the matrix it is at the input it really sees: the Jacobian of that module alone.
How the leaves hang together is written down by hand, per network of `networks.py`; nothing of the package is used.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "LAYERS",
    "enumerated_paths",
    "gradients",
    "group",
    "induced",
    "input_jacobians",
    "jacobian",
    "kernels",
    "leaf_matrices",
    "lp",
    "matrices",
    "path_sum",
    "windows",
]

#: The weight layers of each network: the submodules that make up one, a batch norm with its neighbour.
LAYERS: dict[str, list[list[str]]] = {
    "mlp": [["0"], ["2"], ["4"]],
    "mlp_no_bias": [["0"], ["2"], ["4"]],
    "one_output": [["0"], ["2"], ["3"], ["5"]],
    "mlp_tanh": [["0"], ["2"]],
    "mlp_batch_norm": [["0", "1"], ["3", "4"]],
    "binary": [["0"], ["2"]],
    "tied": [["first"], ["second"], ["head"]],
    "weight_norm": [["0"], ["2"]],
    "tokens": [["first"], ["second"], ["head"]],
    "conv_batch_norm": [["0", "1"], ["5"]],
    "conv_strided_grouped": [["0"], ["2"], ["5"]],
    "conv_no_bias": [["0"], ["2"], ["5"]],
    "conv_1d": [["0"], ["4"]],
    "conv_avg_pool": [["0"], ["4"]],
    "conv_max_pool": [["0"], ["3"], ["6"]],
    "conv_reflect": [["0"], ["2"], ["4"], ["6"]],
    "conv_transposed": [["0"], ["2", "3"], ["6"]],
    "residual": [
        ["blocks.0.conv1", "blocks.0.bn1"],
        ["blocks.0.conv2", "blocks.0.bn2"],
        ["blocks.0.shortcut.0", "blocks.0.shortcut.1"],
        ["blocks.1.conv1", "blocks.1.bn1"],
        ["blocks.1.conv2", "blocks.1.bn2"],
        ["head"],
    ],
    "residual_preactivation": [["stem"], ["bn1"], ["conv1", "bn2"], ["conv2"], ["last"], ["head"]],
    "concatenated": [["left"], ["right"], ["head"]],
}


ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Tanh)


def leaf_matrices(module: nn.Module, x: Tensor) -> dict[str, np.ndarray]:
    """The matrix of every leaf but activations, at the input it gets for the sample x; max pooling as its windows."""
    inputs: dict[str, Tensor] = {}
    hooks = []
    for name, leaf in module.named_modules():
        is_leaf = not list(leaf.children()) or hasattr(leaf, "parametrizations")
        if is_leaf and "parametrizations" not in name and not isinstance(leaf, ACTIVATIONS):
            hooks.append(leaf.register_forward_pre_hook(lambda _, args, name=name: inputs.update({name: args[0]})))
    with torch.no_grad():
        module(x[None])
    for hook in hooks:
        hook.remove()
    return {name: _matrix(module.get_submodule(name), value) for name, value in inputs.items()}


def _matrix(leaf: nn.Module, value: Tensor) -> np.ndarray:
    return windows(leaf, value) if "MaxPool" in type(leaf).__name__ else jacobian(leaf, value)


def jacobian(leaf: nn.Module, value: Tensor) -> np.ndarray:
    """d leaf / d input as a matrix (outputs, inputs)."""
    full = torch.autograd.functional.jacobian(lambda v: leaf(v.clone()), value)
    return full.reshape(-1, value.numel()).detach().numpy()


def input_jacobians(module: nn.Module, X: Tensor) -> Tensor:
    """The Jacobian of a module at every sample, by autograd, (n, C, ...)."""
    return torch.stack([torch.autograd.functional.jacobian(lambda v: module(v[None])[0], x) for x in X])


def along_parameters(module: nn.Module, X: Tensor, theta: dict[str, Tensor]) -> Tensor:
    """The derivative of the logits along theta, row by row of the Jacobian."""
    logits, pulled = torch.func.vjp(lambda at: torch.func.functional_call(module, at, (X,)), theta)
    rows = []
    for unit in torch.eye(logits.numel(), dtype=X.dtype):
        (gradient,) = pulled(unit.reshape(logits.shape))
        rows.append(sum((gradient[key] * p).sum() for key, p in theta.items()))
    return torch.stack(rows).reshape(logits.shape)


def gradients(value: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The derivatives of a number, with zeros for tensors that it does not depend on."""
    return torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True)


def windows(pool: nn.Module, value: Tensor) -> np.ndarray:
    """Which inputs each output of a max pooling reads: a huge value at an input appears in all outputs that read it."""
    columns = []
    for i in range(value.numel()):
        spike = torch.zeros_like(value)
        spike.view(-1)[i] = 1.0
        columns.append(pool(spike).reshape(-1))
    return torch.stack(columns, dim=1).numpy()


def matrices(name: str, module: nn.Module, X: Tensor) -> list[np.ndarray]:
    """The operators W_1 .. W_d of a network, a batch norm joined to its neighbour."""
    leaves = leaf_matrices(module, X[0])
    products = []
    for names in LAYERS[name]:
        product = leaves[names[0]]
        for other in names[1:]:
            product = leaves[other] @ product
        products.append(product)
    return products


def kernels(name: str, module: nn.Module) -> list[np.ndarray]:
    """The kernels of the layers as matrices with one row per output channel."""
    result = []
    for names in LAYERS[name]:
        rows, scales = None, []
        for leaf in map(module.get_submodule, names):
            if isinstance(leaf, nn.modules.batchnorm._BatchNorm):
                scale = leaf.weight / (leaf.running_var + leaf.eps).sqrt()
                scales.append(scale.detach().numpy())
            else:
                before, scales = scales, []
                rows = _rows(leaf)
                if before:  # a batch norm in front of a linear layer scales its columns
                    rows = rows * before[0]
        if rows is None:
            rows = scales.pop()[:, None]
        result.append(rows * scales[0][:, None] if scales else rows)
    return result


def _rows(leaf: nn.Module) -> np.ndarray:
    weight = leaf.weight.detach().numpy()
    if not isinstance(leaf, nn.ConvTranspose2d):
        return weight.reshape(len(weight), -1)
    rows = []
    per_group, c_in = weight.shape[1], weight.shape[0] // leaf.groups
    for g, o in itertools.product(range(leaf.groups), range(per_group)):
        rows.append(weight[g * c_in : (g + 1) * c_in, o].reshape(-1))
    return np.stack(rows)


# -- norms of one matrix -----------------------------------------------------------------------------------------------


def lp(values: Sequence[float], p: float) -> float:
    """The l_p norm by its definition."""
    values = [abs(float(v)) for v in values]
    return max(values) if math.isinf(p) else sum(v**p for v in values) ** (1 / p)


def group(matrix: np.ndarray, p: float, q: float) -> float:
    """l_q over rows of l_p over their entries."""
    return lp([lp(row, p) for row in matrix], q)


def induced(matrix: np.ndarray, p: float, q: float) -> float:
    """max ||A v||_q / ||v||_p over vectors that attain it: unit vectors, sign patterns, a singular vector."""
    if p == q == 2:
        return float(np.linalg.svd(matrix, compute_uv=False)[0])
    if p == 1:
        candidates = list(np.eye(matrix.shape[1]))
    else:  # q = inf: Hoelder's inequality is tight at sign(a) |a|^{p* - 1} for one of the rows a
        dual = 1.0 if math.isinf(p) else p / (p - 1)
        candidates = [np.sign(row) * np.abs(row) ** (dual - 1) for row in matrix]
    return max(lp(matrix @ v, q) / lp(v, p) for v in candidates if v.any())


# -- paths -------------------------------------------------------------------------------------------------------------


def path_sum(name: str, module: nn.Module, X: Tensor, p: float) -> float:
    """Sum over all paths of the products of |w|^p, from the leaves' matrices and wiring written by hand."""
    leaves = {key: np.abs(matrix) ** p for key, matrix in leaf_matrices(module, X[0]).items()}
    return float(WIRING.get(name, _in_sequence)(leaves, np.ones(X[0].numel()), p).sum())


def enumerated_paths(chain: Sequence[np.ndarray], p: float) -> float:
    """Sum over all tuples of one unit per layer, for a chain of matrices."""
    sizes = [chain[0].shape[1], *(matrix.shape[0] for matrix in chain)]
    total = 0.0
    for path in itertools.product(*map(range, sizes)):
        total += math.prod(abs(W[path[t + 1], path[t]]) ** p for t, W in enumerate(chain))
    return total


def _in_sequence(m: dict[str, np.ndarray], v: np.ndarray, p: float) -> np.ndarray:
    for key in sorted(m, key=int):
        v = m[key] @ v
    return v


def _tied(m: dict[str, np.ndarray], v: np.ndarray, p: float) -> np.ndarray:
    return m["head"] @ (m["second"] @ (m["first"] @ v))


def _tokens(m: dict[str, np.ndarray], v: np.ndarray, p: float) -> np.ndarray:
    hidden = (m["second"] @ (m["first"] @ v)).reshape(4, 4)  # positions, features
    return m["head"] @ (hidden.sum(0) * (1 / 4) ** p)


def _residual(m: dict[str, np.ndarray], v: np.ndarray, p: float) -> np.ndarray:
    for block in ("blocks.0", "blocks.1"):
        branch = m[f"{block}.bn2"] @ (m[f"{block}.conv2"] @ (m[f"{block}.bn1"] @ (m[f"{block}.conv1"] @ v)))
        if f"{block}.shortcut.0" in m:
            v = m[f"{block}.shortcut.1"] @ (m[f"{block}.shortcut.0"] @ v)
        v = branch + v
    return m["head"] @ (v.reshape(3, 9).sum(1) * (1 / 9) ** p)


def _residual_preactivation(m: dict[str, np.ndarray], v: np.ndarray, p: float) -> np.ndarray:
    v = m["stem"] @ v
    v = v + m["conv2"] @ (m["bn2"] @ (m["conv1"] @ (m["bn1"] @ v)))
    return m["head"] @ ((m["last"] @ v).reshape(3, 16).sum(1) * (1 / 16) ** p)


def _concatenated(m: dict[str, np.ndarray], v: np.ndarray, p: float) -> np.ndarray:
    left, right = m["left"] @ v, m["right"] @ v
    joined = np.concatenate([left + 0.5**p * right, right]).reshape(4, 4, 4)
    pooled = [
        joined[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].sum() * (1 / 4) ** p
        for c, i, j in itertools.product(range(4), range(2), range(2))
    ]
    return m["head"] @ np.array(pooled)


WIRING = {
    "tied": _tied,
    "tokens": _tokens,
    "residual": _residual,
    "residual_preactivation": _residual_preactivation,
    "concatenated": _concatenated,
}
