"""One random case: choices that a number decides, and the rules that every call has to keep."""

from __future__ import annotations

import contextlib
import io
import math
import random
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: how a call refuses its input
REFUSALS: tuple[type[Exception], ...] = (ValueError, TypeError)
RANDOM_NUMBERS = "torch's random numbers"


class Fault(AssertionError):
    """A call broke a rule."""


class Case:
    """A source of choices that remembers them.

    Parameters
    ----------
    seed, number : int
        Together they decide every choice.
    """

    def __init__(self, seed: int, number: int) -> None:
        self.random = random.Random(f"{seed}/{number}")
        self.choices: list[str] = []
        self.may_change: tuple[str, ...] = ()
        self.refusals = REFUSALS
        self.shortest = 10  # characters of a refusal with a message
        self.messages: list[str] = []
        self.refused = 0
        self.answered = 0

    def pick(self, values: Iterable[Any], name: str = "") -> Any:
        """One of the values; a mapping's are shown by their names."""
        values = list(values.items()) if isinstance(values, dict) else [(None, value) for value in values]
        key, value = self.random.choice(values)
        if name:
            self.choices.append(f"{name}={shown(value) if key is None else key}")
        return value

    def happens(self, probability: float) -> bool:
        """Whether something happens."""
        return self.random.random() < probability

    def call(self, name: str, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """The answer, or None where the call was refused.

        Raises
        ------
        Fault
            If the call raises anything but a refusal, or refuses without a message, or changes the process.
        """
        before = _process()
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                answer = function(*args, **kwargs)
        except self.refusals as error:
            self.refused += 1
            answer = None
            self.messages.append(str(error))
            if len(str(error)) < self.shortest:
                raise Fault(f"{name}: {error!r} has no message") from error
        except Exception as error:
            raise Fault(f"{name}: {type(error).__name__}: {str(error)[:300]}") from error
        else:
            self.answered += 1
        after = _process()
        changed = [key for key in before if before[key] != after[key] and key not in self.may_change]
        if changed:
            raise Fault(f"{name}: changed {', '.join(changed)}")
        return answer


def shown(value: Any) -> str:
    """A value in a few characters."""
    try:
        text = repr(value)
    except Exception:  # an incomplete module has no `repr`
        text = f"<{type(value).__name__}>"
    return text if len(text) < 60 else f"<{type(value).__name__} {text[:40]}...>"


def _process() -> dict[str, Any]:
    """Settings that belong to the user."""
    return {
        RANDOM_NUMBERS: torch.random.get_rng_state().numpy().tobytes(),
        "the default dtype": torch.get_default_dtype(),
        "the gradient mode": torch.is_grad_enabled(),
        "deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "oneDNN": torch.backends.mkldnn.enabled,  # type: ignore[attr-defined]
        "threads": torch.get_num_threads(),
        "warning filters": len(warnings.filters),
        "nn.Module": nn.Module.__call__,
    }


def state_of(module: Any) -> Any:
    """All that a module's user would see changed."""
    if not isinstance(module, nn.Module) or any(map(nn.parameter.is_lazy, module.parameters())):
        return None
    tensors = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    return (
        [(name, _content(tensor), tensor.requires_grad, tensor.grad is None) for name, tensor in tensors],
        [
            (name, part.training, *(len(getattr(part, hook, ())) for hook in hooks))
            for name, part in module.named_modules()
        ],
    )


def _content(tensor: Tensor) -> Any:
    if nn.parameter.is_lazy(tensor) or tensor.is_meta:
        return str(tensor.device)
    return tensor.detach().reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else tuple(tensor.shape)


def check_finite(name: str, answer: Any, *, infinite: bool = False) -> None:
    """Raise a fault if numbers of an answer are nan, or infinite."""
    if isinstance(answer, dict):
        for key, value in answer.items():
            check_finite(f"{name}[{key!r}]", value, infinite=infinite)
    elif isinstance(answer, Tensor):
        check_finite(name, answer.detach().double().numpy(), infinite=infinite)
    elif isinstance(answer, np.ndarray) and answer.dtype.kind in "fc":
        if np.isnan(answer).any() or not (infinite or np.isfinite(answer).all()):
            raise Fault(f"{name}: a silent nan or infinity")
    elif isinstance(answer, float) and (math.isnan(answer) or not (infinite or math.isfinite(answer))):
        raise Fault(f"{name}: a silent {answer}")
