"""The penalties of a training objective: each is called with the keywords that it accepts, and its value is checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sklearn_capacity._validation import shown
from sklearn_capacity.penalties import SharedPass
from sklearn_capacity.penalties.penalty_checks import check_value, keywords_of

__all__ = ["PenaltyTerm", "penalty_terms"]


@dataclass(eq=False)
class PenaltyTerm:
    """One summand ``strength * penalty(module, X)`` of the objective.

    Attributes
    ----------
    key : str
        Its name in a step and, prefixed by ``train_``, in the history: "penalty", "penalty_2", ...
    penalty : callable
    strength : float
    keywords : frozenset of str
        Those of "sample_weight", "shared", "y" and "criterion" that the penalty accepts.
    """

    key: str
    penalty: Callable[..., Tensor]
    strength: float
    keywords: frozenset[str]
    _is_checked: bool = field(default=False, init=False)

    @property
    def takes_shared_pass(self) -> bool:
        """Whether the penalty can reuse the loss's forward pass."""
        return "shared" in self.keywords

    @property
    def generators(self) -> list[torch.Generator]:
        """The generators among the penalty's attributes or the arguments of a ``functools.partial``."""
        held = {**getattr(self.penalty, "__dict__", {}), **getattr(self.penalty, "keywords", {})}
        held |= getattr(self.penalty, "options", {})
        return [value for value in held.values() if isinstance(value, torch.Generator)]

    def value(self, shared: SharedPass, **offered: Any) -> Tensor:
        """The penalty at the module and batch of a forward pass, (); `offered` are its optional keywords."""
        X, version = shared.X, shared.X._version
        offered["shared"] = shared
        value = self.penalty(shared.module, X, **{name: offered[name] for name in self.keywords})
        if X._version != version:
            raise ValueError("`penalty` must not change X, got one that changes it in place. Let it work on a copy.")
        check_value(value, read=not self._is_checked)  # read only once, since this synchronises a GPU
        self._is_checked = True
        return value


def penalty_terms(pairs: Iterable[tuple[Any, float]]) -> list[PenaltyTerm]:
    """Terms of (penalty, strength) pairs, except those of strength 0 or without a penalty, which still count."""
    pairs = list(pairs)
    for penalty, _ in pairs:
        if penalty is not None and not callable(penalty):
            raise TypeError(f"`penalty` must be a function of the module and X, or None, got {shown(penalty)}.")
    return [
        PenaltyTerm(f"penalty_{number}" if number > 1 else "penalty", penalty, strength, keywords_of(penalty))
        for number, (penalty, strength) in enumerate(pairs, start=1)
        if penalty is not None and strength
    ]
