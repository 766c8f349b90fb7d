"""A forward pass without gradients that leaves out what `nn.Module.__call__` does for hooks, and reuses memory.

Calling the five modules of a small perceptron takes longer than its products; and of a larger one, the activations that
are written to new memory, page by page. The products are faster with the samples of a feature side by side in memory.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sklearn_capacity.process_state import has_process_hooks
from sklearn_capacity.training.plain_modules import ACTIVATIONS, is_unhooked, parts_in_turn

__all__ = ["DirectPass", "direct_pass"]

#: Modules whose outputs are new tensors, in which an activation may work in place.
_MAKERS = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d)

#: Modules that take samples side by side in memory as fast as one after the other. Others may call `view`, which fails.
_ANY_ORDER = (nn.Identity, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Softplus, *ACTIVATIONS)

_MANY = 256  # samples from which the order in memory matters


class DirectPass(NamedTuple):
    """A module's forward pass in its current mode, for calls without gradients; it holds until the module changes.

    Attributes
    ----------
    functions : tuple of callable
        Called in turn.
    keeps_input : bool
        Whether these cannot write to the samples.
    width : int
        Largest number of values per sample between two functions, if these are linear layers, batch norms and
        activations; else 0.
    """

    functions: tuple[Callable[[Tensor], Tensor], ...]
    keeps_input: bool = False
    width: int = 0

    def __call__(self, X: Tensor) -> Tensor:
        for function in self.functions:
            X = function(X)
        return X


def direct_pass(module: nn.Module, n_dims: int = 0) -> DirectPass:
    """The functions that a sequence of modules calls; those of other modules are the modules themselves.

    Parameters
    ----------
    module : nn.Module
    n_dims : int, default=0
        Number of dimensions of the samples' tensor: two need no flattening.

    Examples
    --------
    >>> import torch
    >>> module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> steps = direct_pass(module)
    >>> len(steps.functions), steps.keeps_input, steps.width
    (3, True, 3)
    >>> with torch.no_grad():
    ...     steps(torch.ones(4, 2)).shape
    torch.Size([4, 1])
    """
    if has_process_hooks():
        return DirectPass((module,))
    functions: list[Callable[[Tensor], Tensor]] = []
    width, is_plain = 0, True
    keeps_input: bool | None = None  # decided by the first function that is no view
    owns = False  # whether the last result is in new memory, which nobody else reads
    parts = parts_in_turn(module)
    kinds = [_plain_kind(part) for part in parts]
    for i, (part, kind) in enumerate(zip(parts, kinds, strict=True)):
        if kind is nn.Identity:
            continue
        if kind is nn.Flatten:
            if functions or n_dims != 2 or part.start_dim != 1:
                functions.append(functools.partial(torch.flatten, start_dim=part.start_dim, end_dim=part.end_dim))
            continue
        makes = kind in _MAKERS
        keeps_input = makes if keeps_input is None else keeps_input
        if kind is nn.Linear:
            function = affine_side_by_side if _takes_any_order(kinds[i + 1 :]) else F.linear
            functions.append(functools.partial(function, weight=part.weight, bias=part.bias))
            width = max(width, part.in_features, part.out_features)
        elif kind in ACTIVATIONS and owns:
            functions.append(ACTIVATIONS[kind].apply)
            makes = True
        else:
            functions.append(part)
            is_plain &= kind is nn.BatchNorm1d or type(part).__module__ == nn.ReLU.__module__
        owns = makes
    return DirectPass(tuple(functions), bool(keeps_input), width if is_plain else 0)


def _plain_kind(part: nn.Module) -> Any:
    """The module's class, if calling it is calling the `forward` of its class; else None."""
    defines_operators = isinstance(part, nn.Linear) and type(part.weight) is not nn.Parameter  # maybe `linear` only
    if defines_operators or not is_unhooked(part):
        return None
    return nn.Identity if type(part) is nn.Dropout and not part.training else type(part)


def _takes_any_order(kinds: list[Any]) -> bool:
    """Whether what comes before the next linear layer is as fast, and the same, for samples side by side in memory."""
    for kind in kinds:
        if kind is nn.Linear:
            return True
        if kind not in _ANY_ORDER:
            return False
    return True


def affine_side_by_side(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``x weight^T + bias``, of many samples with those of each output side by side in memory.

    BLAS computes several neighbours in memory at once. There are as many as it likes if these are samples, where ten
    outputs, or a hundred, fill its registers badly.

    Examples
    --------
    >>> import torch
    >>> y = affine_side_by_side(torch.ones(256, 3), torch.ones(2, 3), torch.zeros(2))
    >>> y[0], y.stride()
    (tensor([3., 3.]), (1, 256))
    """
    if x.dim() != 2 or len(x) < _MANY or not x.is_cpu:
        return F.linear(x, weight, bias)
    if bias is None:
        return torch.mm(weight, x.t()).t()
    return torch.addmm(bias[:, None], weight, x.t()).t()  # (n, n_outputs), column by column
