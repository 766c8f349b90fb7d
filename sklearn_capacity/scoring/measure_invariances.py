"""A check of the invariances of a measure: those that it declares hold, and the others do not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from .._validation import NotDefinedError
from .example_networks import examples
from .requests import Request

__all__ = ["ROUNDING", "check_invariances", "close"]

#: Accepted relative difference between the same arithmetic in another order.
ROUNDING = 1e-9


def close(a: float, b: float, tolerance: float) -> bool:
    """Whether two values differ relatively by at most the tolerance, or hardly at all."""
    return a == b or abs(a - b) <= max(tolerance * abs(b), 1e-12 * bool(tolerance))


def check_invariances(requests: Sequence[Request]) -> None:
    """Raise if a measure lacks a declared invariance, or has one that it does not declare."""
    tried = set()
    for example in examples()[:2]:
        changed = {change: example.session(function(example.module)) for change, function in CHANGES.items()}
        session = example.session()
        for request in requests:
            if request.measure.stochastic or request.label in tried:
                continue
            try:
                before = session.measured(request).value
            except NotDefinedError:
                continue
            if math.isinf(before):  # the measure is uninformative here
                continue
            tried.add(request.label)
            for change, other in changed.items():
                _check_invariance(request, change, before, other.measured(request).value, example.name)
    for request in requests:
        if request.measure.invariances and request.label not in tried and not request.measure.stochastic:
            raise ValueError(
                f"`{request.label}` must be defined and finite for {examples()[0].name} or {examples()[1].name}, where "
                "declared invariances are checked."
            )


def _check_invariance(request: Request, change: str, before: float, after: float, example: str) -> None:
    same, declared = close(after, before, ROUNDING), change in request.measure.invariances
    if declared and not same:
        raise ValueError(
            f"`{request.label}` must not change under its declared invariance {change!r}, got {before:.9g} "
            f"before and {after:.9g} after."
        )
    if same and not declared:
        raise ValueError(
            f"`{request.label}` must declare the invariance {change!r}, which it has: {before:.9g} before and after "
            f"this change of the weights of {example}."
        )


def _rescaled(module: nn.Module, order: Sequence[int], factors: Sequence[float]) -> nn.Module:
    """The same function: hidden units permuted, incoming weights scaled up and outgoing weights scaled down."""
    changed: Any = copy.deepcopy(module)
    scale = torch.tensor(factors, dtype=torch.float64, device="cpu")
    changed[0].weight.data = module[0].weight.data[list(order)] * scale[:, None]  # type: ignore[index]
    changed[2].weight.data = module[2].weight.data[:, list(order)] / scale  # type: ignore[index]
    return changed


#: Changes of weights that preserve the function of a rectifier network with one hidden layer of six units; so large
#: that a coarse measure, such as a share of small weights, does not seem to be invariant.
CHANGES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "permutation": lambda module: _rescaled(module, [3, 0, 5, 1, 4, 2], [1.0] * 6),
    "layer_rescaling": lambda module: _rescaled(module, range(6), [128.0] * 6),
    "node_rescaling": lambda module: _rescaled(module, range(6), [128.0, 0.5, 1.0, 0.01, 0.25, 20.0]),
}
