"""Jacobian penalties: functions of a module and a batch that are added to a training loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sklearn_capacity.penalties.jacobian import frobenius_penalty, projection_penalty

__all__ = ["PENALTIES", "Penalty", "frobenius_penalty", "projection_penalty"]


@dataclass(frozen=True)
class Penalty:
    """A penalty function and the options that it takes besides ``output`` and ``sample_weight``.

    ``random`` says that it draws numbers, from the CPU generator that it gets as ``generator``;
    ``options`` are the names of estimator parameters that are handed on.
    """

    function: Callable[..., Tensor]
    random: bool = False
    options: tuple[str, ...] = ()


PENALTIES = {
    "frobenius": Penalty(frobenius_penalty),
    "projection": Penalty(projection_penalty, random=True, options=("n_projections",)),
}
