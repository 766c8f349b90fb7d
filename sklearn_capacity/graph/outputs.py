"""What modules return, as logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .fold import HEAD
from .random_states import random_states, restore_random_states

__all__ = ["LogProbabilities", "Wrapper", "as_logits"]

#: What a module returns -> torch's functions that return it from logits, and one of them with its dimension.
_ENDINGS: dict[str, tuple[frozenset[Callable[..., Any]], Callable[[Tensor], Tensor]]] = {
    "probabilities": (
        frozenset({torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax}),
        lambda z: z.softmax(-1),
    ),
    "one_probability": (
        frozenset({torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit}),
        torch.sigmoid,
    ),
    "logits": (
        frozenset({torch.log_softmax, Tensor.log_softmax, F.log_softmax, torch.special.log_softmax}),
        lambda z: z.log_softmax(-1),
    ),
}


def as_logits(module: nn.Module, output: str, X: Tensor) -> nn.Module:
    """A module that returns two logits or more.

    Logits that differ by a constant per sample are the same model. So what makes probabilities, or their logarithms, at
    the end of a module is left out where it can be; what remains is a graph of layers more often.

    Parameters
    ----------
    module : nn.Module
        In eval mode.
    output : "logits", "one_logit", "probabilities" or "one_probability"
        What the module returns.
    X : Tensor of shape (n, ...)
        Samples to try it on.
    """
    if last := _last_call(module, output, X):
        module = _WithoutEnding(module, output, last)
    elif output == "probabilities":
        module = LogProbabilities(module)
    elif output == "one_probability":
        module = _LogOdds(module)
    return _TwoLogits(module).to(X) if output in ("one_logit", "one_probability") else module


class Wrapper(nn.Module):
    """A module around the user's, which it holds as `module`."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module


class _TwoLogits(Wrapper):
    """The one-logit model z as the two-logit model [-z/2, z/2]; [0, z] would have other margins and Jacobians."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        self.add_module(HEAD, nn.Linear(1, 2, bias=False))
        head = getattr(self, HEAD)
        with torch.no_grad():
            head.weight.copy_(torch.tensor([[-0.5], [0.5]], device=head.weight.device))
        head.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, HEAD)(self.module(x).reshape(x.shape[0], 1))


class LogProbabilities(Wrapper):
    """Logarithms of the probabilities that a module returns, as logits."""

    def forward(self, x: Tensor) -> Tensor:
        return _log(self.module(x))


class _LogOdds(Wrapper):
    """The logit z = log p - log(1 - p) of the one probability that a module returns."""

    def forward(self, x: Tensor) -> Tensor:
        p = self.module(x)
        return _log(p) - _log(1 - p)


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


class _WithoutEnding(Wrapper):
    """A module without the call that makes probabilities, or their logarithms, of its logits: the last of `n_calls`."""

    def __init__(self, module: nn.Module, output: str, n_calls: int):
        super().__init__(module)
        self.output, self.n_calls = output, n_calls

    def forward(self, x: Tensor) -> Any:
        with _Calls(self.output, leave_out=self.n_calls):
            return self.module(x)


class _Calls(TorchFunctionMode):
    """Counts the calls of the functions that return such outputs, and leaves one of them out."""

    def __init__(self, output: str, leave_out: int = 0):
        super().__init__()
        self.functions, _ = _ENDINGS[output]
        self.leave_out, self.count = leave_out, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func not in self.functions:
            return func(*args, **kwargs)
        self.count += 1
        if self.count != self.leave_out:
            return func(*args, **kwargs)
        return args[0] if args else kwargs["input"]


@torch.no_grad()
def _last_call(module: nn.Module, output: str, X: Tensor) -> int:
    """How often such functions are called if one is the last step, judged by the outputs without it; else 0."""
    if output not in _ENDINGS:
        return 0
    states = random_states(X.device)
    try:
        with _Calls(output) as calls:
            returned = module(X.clone())
        drew = not all(map(torch.equal, states, random_states(X.device)))  # or another thread did
        if drew and not torch.equal(returned, module(X.clone())):
            restore_random_states(X.device, states)
            return 0
        if not calls.count:
            return 0
        _, function = _ENDINGS[output]
        logits = _WithoutEnding(module, output, calls.count)(X.clone())
        return calls.count * torch.allclose(function(logits), returned, rtol=1e-4, atol=1e-6)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # what is wrong with the forward pass is told where the module is used
        return 0
