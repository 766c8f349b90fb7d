"""Path norms: sums over all input-output paths in one pass ([EG] section 2.2, [FR] section 4.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .._validation import check_interval
from ..graph import LINEAR_RULES, Network, Node, activation_of, apply_linear, channels_last, operator_of
from ..graph.evaluate import along_axes
from ..graph.functions import function_of
from ..graph.nodes import WEIGHT_OPS, interpret
from ..linalg import adaptive_average_pool, power_product
from .batch import Batch
from .layer_operators import graph_layers, refuse_unknown
from .memory import Peak
from .pass_limits import ONE_SAMPLE
from .record import Measure, Measured, logarithm

__all__ = ["MEASURES", "Paths", "path_norm", "path_rules"]

#: Non-negative sums over paths, divided by exp of the running logarithm of their scale.
Paths = tuple[Tensor, float]
PURPOSE = "A path norm"


def path_norm(network: Network, batch: Batch, *, p: float = 2.0) -> Measured:
    r"""Norm of the vector of all input-output path weights.

    .. math:: \Big( \sum_{\text{paths}} \prod_{e \in \text{path}} |w_e|^p \Big)^{1/p}

    Layers are treated as linear operators at their input size. Invariant under node-wise rescaling of rectifier
    networks. Smaller values suggest better generalisation. Biases are ignored; batch norm is folded. Max pooling counts
    every path through its window; the 1/k of average pooling is an edge weight.

    Parameters
    ----------
    p : float, 0 < p < inf, default=2

    Raises
    ------
    UnsupportedLayerError
        For an activation that is not positively homogeneous (tanh, sigmoid, GELU, ...) or an operator without a rule.

    Notes
    -----
    The cost is one forward pass of an all-ones sample in float64, with a running logarithm of the scale.

    References
    ----------
    Neyshabur, Tomioka, Srebro (2015), Norm-based capacity control in neural networks; Neyshabur, Bhojanapalli,
    McAllester, Srebro (2017), Exploring generalization in deep learning, section 2.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, -2.0], [3.0, 0.0]]))
    >>> _ = net[2].weight.data.copy_(torch.tensor([[1.0, -1.0]]))
    >>> round(measure_capacity(net, measures="l1_path_norm")["l1_path_norm"], 6)  # 1 + 2 + 3
    6.0
    """
    p = check_interval("p", p, 0, math.inf, closed="neither")

    def log_norm() -> float:
        graph_layers(network, PURPOSE)  # all finite
        rules = path_rules(network, p, PURPOSE)
        refuse_unknown(network.unrolled_graph, rules, PURPOSE)
        ones = torch.ones(1, *network.input_shape, dtype=torch.float64, device=network.device)  # (1, *input_shape)
        with torch.no_grad():
            total, log_scale = interpret(network.unrolled_graph, rules, (ones, 0.0), purpose=PURPOSE)
        return (logarithm(float(total.sum())) + log_scale) / p

    return Measured.from_log(network.once(("log_path_norm", p), log_norm))


def path_rules(
    network: Network, p: float, purpose: str, dtype: torch.dtype = torch.float64
) -> dict[str, Callable[..., Paths]]:
    """What every operator does to sums over paths, in a precision."""

    def affine(node: Node, paths: Paths) -> Paths:
        values, log_scale = paths
        if node.weight is None:  # a shift is only a bias, which may have more entries than its input
            return values.expand(len(values), *node.shape), log_scale
        # Divided by its largest entry, so that powers of weights do not overflow.
        top = max(abs(float(end)) for end in node.weight.aminmax()) or 1.0
        weight = node.weight.detach().to(dtype, copy=True).div_(top)
        if node.op == "conv" and node.params["padding_mode"] != "zeros":
            shape = network.unrolled_graph[node.inputs[0]].shape
            operator = operator_of(node, weight, shape)
            values = power_product(operator, p, values.double()).to(dtype)  # type: ignore[arg-type]
        else:
            weight = channels_last(weight.square_() if p == 2 else weight.abs_().pow_(p))
            values = apply_linear(node, values, weight, None)
        return _scaled(values, log_scale + p * math.log(top))

    def reduce(node: Node, paths: Paths) -> Paths:
        factor = node.params["factor"]
        return _scaled(LINEAR_RULES["reduce"](node, paths[0]) * (abs(factor) ** p / factor), paths[1])

    def add(node: Node, *both: Paths) -> Paths:
        values, log_scale = _aligned(both)
        first, second = (value * abs(sign) ** p for value, sign in zip(values, node.params["signs"], strict=True))
        return _scaled(first + second, log_scale)

    def cat(node: Node, *parts: Paths) -> Paths:
        values, log_scale = _aligned(parts)
        return torch.cat(values, dim=node.params["dim"]), log_scale

    def separable(node: Node, paths: Paths) -> Paths:
        axes = [None if axis is None else axis.abs() ** p for axis in node.params["axes"]]
        return _scaled(along_axes(axes, paths[0]), paths[1])

    def center(node: Node, paths: Paths) -> Paths:
        return _scaled(_centred_power(node, paths[0], p), paths[1])

    def avg_pool(node: Node, paths: Paths) -> Paths:
        return _scaled(_average_power(node, paths[0], p), paths[1])

    return {
        **dict.fromkeys(WEIGHT_OPS, affine),
        **{op: _selection(op) for op in ("view", "permute", "slice", "pick", "pad")},
        "activation": _activation,
        "reduce": reduce,
        "add": add,
        "cat": cat,
        "avg_pool": avg_pool,
        "center": center,
        "separable": separable,
        "function": _refusal(purpose),
        "max_pool": lambda node, paths: _scaled(_window_sums(node, paths[0]), paths[1]),
    }


def _scaled(values: Tensor, log_scale: float) -> Paths:
    """Divide by the largest entry, so that deep networks do not overflow."""
    top = float(values.max())
    return (values / top, log_scale + math.log(top)) if top > 0 else (values, log_scale)


def _aligned(parts: tuple[Paths, ...]) -> tuple[list[Tensor], float]:
    """Values of several branches on a common scale; a branch that is negligible on that scale becomes 0."""
    common = max((log_scale for values, log_scale in parts if bool(values.any())), default=0.0)
    # A branch without paths, such as a trained token, has no scale: it is 0 on every one.
    return [values * math.exp(min(log_scale - common, 0.0)) for values, log_scale in parts], common


def _selection(op: str) -> Callable[[Node, Paths], Paths]:
    """Rule for operators that only move, copy or drop entries: every edge has weight 1."""
    return lambda node, paths: (LINEAR_RULES[op](node, paths[0]), paths[1])


def _activation(node: Node, paths: Paths) -> Paths:
    if not activation_of(node)[0].homogeneous:
        raise node.refuse(PURPOSE, "it is not positively homogeneous, so paths do not multiply.", "Use ReLU.")
    return paths


def _refusal(purpose: str) -> Callable[..., Paths]:
    """Rule for functions along which paths do not multiply."""

    def refuse(node: Node, *paths: Paths) -> Paths:
        raise node.refuse(purpose, function_of(node)[0].why)

    return refuse


def _centred_power(node: Node, values: Tensor, p: float) -> Tensor:
    """The centring matrix has 1 - 1 / k on its diagonal and -1 / k beside it."""
    dims = node.params["dims"]
    size = math.prod(values.shape[d] for d in dims)
    others = values.sum(dims, keepdim=True) - values
    return values * (1 - 1 / size) ** p + others / size**p


# -- pooling ----------------------------------------------------------------------------------------------------------


def _images(node: Node, values: Tensor) -> Tensor:
    """Values as (images, 1, *sizes); all axes before the pooled ones count as images."""
    return values.reshape(-1, 1, *values.shape[values.dim() - node.params["nd"] :])


def _window_sums(node: Node, values: Tensor) -> Tensor:
    """Sum over every window of a pooling node; padding counts as 0."""
    q = node.params
    if "adaptive" in q:
        return _adaptive_sums(node, values, lambda axis: (axis > 0).to(axis.dtype))
    images = _ceil_padded(node, _images(node, values))
    if q["nd"] == 2 and q.get("dilation", (1, 1)) == (1, 1):  # several times faster than a convolution
        sums = F.avg_pool2d(images, q["kernel"], q["stride"], divisor_override=1)
    else:
        kernel = torch.ones(1, 1, *q["kernel"], dtype=values.dtype, device=values.device)  # (1, 1, *kernel)
        conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[q["nd"]]
        sums = conv(images, kernel, None, q["stride"], 0, q.get("dilation", 1))
    return sums.reshape(len(values), *node.shape)


def _ceil_padded(node: Node, images: Tensor) -> Tensor:
    """Pad the images with zeros up to the end of the last window of every axis, or crop them to it."""
    q = node.params
    flat: list[int] = []
    for i in reversed(range(q["nd"])):
        outputs = node.shape[len(node.shape) - q["nd"] + i]
        dilation = q["dilation"][i] if "dilation" in q else 1
        reach = (outputs - 1) * q["stride"][i] + (q["kernel"][i] - 1) * dilation + 1
        before = q["padding"][i]
        flat += [before, reach - before - images.shape[2 + i]]
    return F.pad(images, flat)


def _average_power(node: Node, values: Tensor, p: float) -> Tensor:
    """Sum over the window of (1 / k)^p times the value, where k is the divisor of that window."""
    if "adaptive" in node.params:  # windows of unequal size
        return _adaptive_sums(node, values, lambda axis: axis.pow(p))
    ones = torch.ones_like(values)
    divisor = _window_sums(node, ones) / LINEAR_RULES["avg_pool"](node, ones)
    return _window_sums(node, values) / divisor**p


def _adaptive_sums(node: Node, values: Tensor, weigh: Callable[[Tensor], Tensor]) -> Tensor:
    """Sums over windows of unequal size, with weights derived from those of an average."""
    pool = adaptive_average_pool((1, *values.shape[-node.params["nd"] :]), node.params["adaptive"])
    return along_axes([weigh(axis) for axis in pool.axes], values)


_COMMON: dict[str, Any] = {
    "family": "norm",
    "lower_is_better": True,
    "source": "[EG] 2.2, [FR] 4.1",
    "needs": frozenset({"homogeneous"}),
    "invariances": frozenset({"permutation", "layer_rescaling", "node_rescaling"}),
    "memory": Peak(layers=4),
    "limits": ONE_SAMPLE,
}

MEASURES = (
    Measure("path_norm", path_norm, same_as="l2_path_norm", **_COMMON),
    Measure("l1_path_norm", path_norm, fixed={"p": 1.0}, description="Sum of all absolute path weights.", **_COMMON),
    Measure(
        "l2_path_norm",
        path_norm,
        fixed={"p": 2.0},
        description="Euclidean norm of the vector of all path weights.",
        **_COMMON,
    ),
)
