"""Path norms: sums over all input-output paths in one pass ([EG] section 2.1, [FR] section 3.3)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._validation import check_interval
from ..graph import LINEAR_RULES, Network, Node, activation_of, apply_linear
from ..graph.nodes import interpret
from .batch import Batch
from .record import Measure, Measured

__all__ = ["MEASURES", "path_norm"]

#: Non-negative sums over paths, divided by exp of the running logarithm of their scale.
Paths = tuple[Tensor, float]


def path_norm(network: Network, batch: Batch, *, p: float = 2.0) -> Measured:
    r"""Norm of the vector of all input-output path weights.

    .. math:: \Big( \sum_{\text{paths}} \prod_{e \in \text{path}} |w_e|^p \Big)^{1/p}

    Invariant under node-wise rescaling of rectifier networks. Smaller goes with better generalisation. Biases take no
    part; batch norm is folded. Max pooling counts every path of its window, average pooling's 1/k is a weight of the
    path.

    Parameters
    ----------
    p : float, 0 < p < inf, default=2

    Raises
    ------
    UnsupportedLayerError
        For an activation that is not positively homogeneous (tanh, sigmoid, GELU, ...) or an operator without a rule.

    Notes
    -----
    One forward pass of one all-ones sample in float64 with a running logarithm of the scale.

    References
    ----------
    Neyshabur, Tomioka, Srebro (2015), Norm-based capacity control; Neyshabur et al. (2017), section 2.1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    >>> _ = net[2].weight.data.copy_(torch.tensor([[1.0, -1.0]]))
    >>> measure_capacity(net, measures="l1_path_norm")["l1_path_norm"]  # 1 + 2 + 3
    6.0
    """
    p = check_interval("p", p, 0, math.inf, closed="neither")
    ones = torch.ones(1, *network.input_shape, dtype=torch.float64, device=network.device)
    with torch.no_grad():
        total, log_scale = interpret(network.graph, _rules(p), (ones, 0.0), purpose="A path norm")
    log_sum = math.log(s) + log_scale if (s := float(total.sum())) > 0 else -math.inf
    return Measured.from_log(log_sum / p)


def _rules(p: float) -> dict[str, Callable[..., Paths]]:
    def power(weight: Tensor | None) -> Tensor | None:
        return None if weight is None else weight.double().abs().pow(p)

    def affine(node: Node, paths: Paths) -> Paths:
        return _scaled(apply_linear(node, paths[0], power(node.weight), None), paths[1])

    def reduce(node: Node, paths: Paths) -> Paths:
        kept = LINEAR_RULES["reduce"](node, paths[0]) / node.params["factor"]
        return _scaled(kept * abs(node.params["factor"]) ** p, paths[1])

    def add(node: Node, *both: Paths) -> Paths:
        values, log_scale = _aligned(both)
        signs = node.params["signs"]
        return _scaled(sum(v * abs(s) ** p for v, s in zip(values, signs, strict=True)), log_scale)  # type: ignore[arg-type]

    def cat(node: Node, *parts: Paths) -> Paths:
        values, log_scale = _aligned(parts)
        return torch.cat(values, dim=node.params["dim"]), log_scale

    def avg_pool(node: Node, paths: Paths) -> Paths:
        return _scaled(_avg_pool_power(node, paths[0], p), paths[1])

    return {
        "linear": affine,
        "conv": affine,
        "conv_transpose": affine,
        "diagonal": affine,
        "activation": _activation,
        "reduce": reduce,
        "add": add,
        "cat": cat,
        "avg_pool": avg_pool,
        "max_pool": _sum_pool,
        **{op: _selection(op) for op in ("view", "permute", "slice", "pad")},
    }


def _scaled(values: Tensor, log_scale: float) -> Paths:
    """Divide by the largest entry, so that no depth overflows."""
    top = float(values.max()) if values.numel() else 0.0
    return (values / top, log_scale + math.log(top)) if top > 0 else (values, log_scale)


def _aligned(parts: tuple[Paths, ...]) -> tuple[list[Tensor], float]:
    common = max(log_scale for _, log_scale in parts)
    return [values * math.exp(log_scale - common) for values, log_scale in parts], common


def _selection(op: str) -> Callable[[Node, Paths], Paths]:
    return lambda node, paths: (LINEAR_RULES[op](node, paths[0]), paths[1])


def _activation(node: Node, paths: Paths) -> Paths:
    if not activation_of(node)[0].homogeneous:
        raise node.refuse("A path norm", "it is not positively homogeneous, so paths do not multiply.", "Use ReLU.")
    return paths


def _sum_pool(node: Node, paths: Paths) -> Paths:
    return _scaled(_window_sums(node, paths[0]), paths[1])


def _window_sums(node: Node, values: Tensor) -> Tensor:
    q = node.params
    channels = values.shape[1]
    kernel = torch.ones(channels, 1, *q["kernel"], dtype=values.dtype, device=values.device)
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[q["nd"]]
    dilation = q.get("dilation", (1,) * q["nd"])
    return conv(_ceil_padded(node, values), kernel, None, q["stride"], 0, dilation, channels)


def _ceil_padded(node: Node, values: Tensor) -> Tensor:
    """Zeros around the input up to what the last window of every axis reaches."""
    q = node.params
    flat: list[int] = []
    for i in reversed(range(q["nd"])):
        dilation = q["dilation"][i] if "dilation" in q else 1
        reach = (node.shape[1 + i] - 1) * q["stride"][i] + (q["kernel"][i] - 1) * dilation + 1
        before = q["padding"][i]
        flat += [before, reach - before - values.shape[2 + i]]
    return F.pad(values, flat)


def _avg_pool_power(node: Node, values: Tensor, p: float) -> Tensor:
    """Sum over the window of (1 / k)^p times the value, k being what that window is divided by."""
    if "adaptive" in node.params:
        return _adaptive_power(node, values, p)
    ones = torch.ones_like(values[:, :1])
    divisor = _window_sums(node, ones) / LINEAR_RULES["avg_pool"](node, ones)
    return _window_sums(node, values) / divisor**p


def _adaptive_power(node: Node, values: Tensor, p: float) -> Tensor:
    """Windows of adaptive pooling differ by one in size; each axis is averaged by its own matrix."""
    for axis, size in enumerate(node.params["adaptive"]):
        dim = values.dim() - node.params["nd"] + axis
        n = values.shape[dim]
        eye = torch.eye(n, dtype=values.dtype, device=values.device)[None]
        matrix = F.adaptive_avg_pool1d(eye, size)[0].pow(p)  # (n, size)
        values = torch.tensordot(values, matrix, dims=([dim], [0])).movedim(-1, dim)
    return values


_COMMON: dict[str, Any] = {
    "family": "norm",
    "lower_is_better": True,
    "source": "[EG] 2.1, [FR] 3.3",
    "needs": frozenset({"graph"}),
    "invariances": frozenset({"permutation", "layer_rescaling", "node_rescaling"}),
}

MEASURES = (
    Measure("path_norm", path_norm, **_COMMON),
    Measure("l1_path_norm", path_norm, fixed={"p": 1.0}, description="Sum of all absolute path weights.", **_COMMON),
    Measure(
        "l2_path_norm",
        path_norm,
        fixed={"p": 2.0},
        description="Euclidean norm of the vector of all path weights.",
        **_COMMON,
    ),
)
