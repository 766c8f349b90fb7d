"""Conversion of modules' outputs to logits."""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .fold import HEAD
from .nodes import UnsupportedLayerError

__all__ = ["Wrapper", "as_logits", "first_output", "normalizing_call"]

#: kind of output -> torch's functions that compute it from logits
_ENDINGS: dict[str, frozenset[Callable[..., Any]]] = {
    "probabilities": frozenset({torch.softmax, Tensor.softmax, F.softmax, torch.special.softmax}),
    "one_probability": frozenset({torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit}),
    "log_probabilities": frozenset({torch.log_softmax, Tensor.log_softmax, F.log_softmax, torch.special.log_softmax}),
}
#: kind of output -> its conversion to logits
_INVERSES: dict[str, Callable[[Tensor], Tensor]] = {
    "probabilities": lambda p: _log(p),
    "one_probability": lambda p: _log(p) - _log(1 - p),
    "log_probabilities": lambda log_p: log_p,
}


def as_logits(module: nn.Module, output: str) -> nn.Module:
    """A module that returns two or more logits, from one with an output of a kind that `Network` lists."""
    if output in _ENDINGS:
        module = _BeforeEnding(module, output)
    return _TwoLogits(module) if output in ("one_logit", "one_probability") else module


def first_output(returned: Any) -> Any:
    """The first of several outputs."""
    return returned[0] if isinstance(returned, tuple | list) else returned


def normalizing_call(module: nn.Module, x: Tensor) -> tuple[Any, str | None]:
    """The module's output at x, and the key of `_ENDINGS` whose function computed it, if any."""
    with _LastCall(frozenset().union(*_ENDINGS.values())) as last:
        returned = first_output(module(x))
    if last.argument_of(returned) is None:
        return returned, None
    return returned, next(output for output, functions in _ENDINGS.items() if last.function in functions)


class Wrapper(nn.Module):
    """A wrapper around the user's module, which is its attribute `module`; in the mode of this module."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.training = module.training
        self.module = module


class _TwoLogits(Wrapper):
    """The one-logit model z as the two-logit model [-z/2, z/2]; [0, z] would have other margins and Jacobians."""

    def __init__(self, module: nn.Module):
        super().__init__(module)
        # without initial values, since drawing them would advance the user's random numbers
        self.add_module(HEAD, nn.utils.skip_init(nn.Linear, 1, 2, bias=False))
        head = getattr(self, HEAD)
        with torch.no_grad():
            head.weight.copy_(torch.tensor([[-0.5], [0.5]], device=head.weight.device))
        head.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        z = self.module(x)
        if math.prod(z.shape[1:]) != 1:
            raise UnsupportedLayerError(
                f"The network returns {math.prod(z.shape[1:])} outputs per sample under a binary criterion: it is a "
                "multilabel classifier, but measures are defined for one class per sample. Measure a module that "
                "returns one of the outputs."
            )
        return getattr(self, HEAD)(z.reshape(x.shape[0], 1))


class _BeforeEnding(Wrapper):
    """The input of a module's final softmax, log-softmax or sigmoid; without one, the inverse of its output.

    Logits that differ by a constant per sample are the same model, and the input is more often a graph of layers.
    """

    def __init__(self, module: nn.Module, output: str):
        super().__init__(module)
        self.output = output

    def forward(self, x: Tensor) -> Any:
        with _LastCall(_ENDINGS[self.output]) as last:
            returned = first_output(self.module(x))
        logits = last.argument_of(returned)
        return _INVERSES[self.output](returned) if logits is None else logits


class _LastCall(TorchFunctionMode):
    """Records the last call of the given functions over the values of each sample."""

    def __init__(self, functions: frozenset[Callable[..., Any]]):
        super().__init__()
        self.functions = functions
        self.function: Callable[..., Any] | None = None
        self.argument: Tensor | None = None
        self.result: Any = None
        self.version = 0

    def __enter__(self) -> Self:
        self.depth = torch._C._len_torch_function_stack()
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, Exception):
            super().__exit__(kind, error, trace)
            return
        # While torch handles a call, it sets this mode aside. An interrupt there may lose the mode, or return it only
        # when the generator that holds it is freed, with the frames that refer to it.
        traceback.clear_frames(trace)
        while torch._C._len_torch_function_stack() > self.depth:
            torch._C._pop_torch_function_stack()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func not in self.functions:
            return result
        dim = kwargs.get("dim", args[1] if len(args) > 1 else None)  # None for a sigmoid or a single axis
        if dim in (None, -1, result.dim() - 1):
            self.function, self.argument, self.result = func, args[0] if args else kwargs["input"], result
            self.version = result._version
        return result

    def argument_of(self, returned: Any) -> Tensor | None:
        """The last call's argument, if its result is returned unchanged or only reshaped."""
        if self.argument is None or not isinstance(returned, Tensor) or self.result._version != self.version:
            return None
        if returned is self.result:
            return self.argument
        whole = returned._base is self.result and returned.numel() == self.result.numel()
        return self.argument.reshape(returned.shape) if whole else None


def _log(probabilities: Tensor) -> Tensor:
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()
