"""The penalties of a training objective, each called with what it takes and checked for what it returns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_capacity.penalties import SharedPass

__all__ = ["PenaltyTerm", "penalty_terms"]


@dataclass(eq=False)
class PenaltyTerm:
    """One summand ``strength * penalty(module, X)`` of the objective.

    Attributes
    ----------
    key : str
        Its name in a step and, after ``train_``, in the history: "penalty", and "penalty_2", ... for further ones.
    penalty : callable
    strength : float
    keywords : frozenset of str
        Those of "sample_weight" and "shared" that the penalty takes.
    """

    key: str
    penalty: Callable[..., Tensor]
    strength: float
    keywords: frozenset[str]
    _is_checked: bool = field(default=False, init=False)

    @property
    def takes_shared_pass(self) -> bool:
        """Whether the penalty can use the loss's forward pass again."""
        return "shared" in self.keywords

    @property
    def generators(self) -> list[torch.Generator]:
        """What the penalty draws from: generators among its attributes, or the arguments of a ``functools.partial``."""
        held = {**getattr(self.penalty, "__dict__", {}), **getattr(self.penalty, "keywords", {})}
        held |= getattr(self.penalty, "options", {})
        return [value for value in held.values() if isinstance(value, torch.Generator)]

    def value(self, shared: SharedPass, sample_weight: Tensor | None) -> Tensor:
        """The penalty at the module and batch of a forward pass, ()."""
        X, version = shared.X, shared.X._version
        offered = {"sample_weight": sample_weight, "shared": shared}
        value = self.penalty(shared.module, X, **{name: offered[name] for name in self.keywords})
        if X._version != version:
            raise ValueError(
                "`penalty` must leave X as it is, got one that changes it in place. Let it work on a copy."
            )
        self._check(value)
        return value

    def _check(self, value: Any) -> None:
        """Refuse what cannot be minimised. The number itself is read once a fit: that makes a GPU wait."""
        if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
            raise TypeError(
                f"`penalty` must return a real tensor of shape (), got {_described(value)}. Compute it by torch from "
                "the module, and end in a sum or a mean."
            )
        if torch.is_grad_enabled() and not value.requires_grad:
            raise ValueError(
                "`penalty` must return a tensor with a gradient, got one that depends on no trained parameter of the "
                "network. Compute it from the module that it is given, without `detach`, `item` and `no_grad`."
            )
        if not self._is_checked:
            if not value.isfinite():
                raise ValueError(f"`penalty` must return a finite number, got {value.item()} for the first batch.")
            self._is_checked = True


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return f"{value!r} of type {type(value).__name__}"


def penalty_terms(pairs: Iterable[tuple[Any, float]]) -> list[PenaltyTerm]:
    """Terms of (penalty, strength); those without a penalty or of strength 0 are left out, and keep their number."""
    return [
        PenaltyTerm(f"penalty_{number}" if number > 1 else "penalty", penalty, strength, _keywords(penalty))
        for number, (penalty, strength) in enumerate(pairs, start=1)
        if penalty is not None and strength
    ]


def _keywords(penalty: Callable[..., Any]) -> frozenset[str]:
    """What the penalty takes besides the module and X: "shared" if it is named, "sample_weight" also by ``**``."""
    function = penalty.forward if isinstance(penalty, nn.Module) else penalty  # a module's call takes anything
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # written in C, and without a signature
        return frozenset()
    named = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    by_stars = {"sample_weight"} if any(p.kind is p.VAR_KEYWORD for p in parameters) else set()
    return frozenset({"sample_weight", "shared"} & named | by_stars)
