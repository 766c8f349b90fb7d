"""Values that are the same for every sample: class tokens, masks, zeros of the input's size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from .layouts import ROWS, Sizes
from .nodes import Place
from .rules.call import Draft, Ref, Weight
from .rules.rows import PERMUTATIONS, VIEWS
from .rules.shapes import zero_rows

__all__ = ["constant_rows", "keeps_parameters", "without_content"]

#: Operators that read the sizes alone of an argument, with its name.
_LIKE = {
    **dict.fromkeys(("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like"), "self"),
    "expand_as": "other",
}

#: Operators whose results are views, in which a parameter's number may stand several times.
_VIEWS = VIEWS | PERMUTATIONS | {"expand", "expand_as", "slice", "select"}
#: Operators that make a new tensor, with each number of one parameter at most once.
_COPIES = frozenset("repeat add sub neg clone contiguous to _to_copy alias detach".split())


def constant_rows(source: Ref, source_sizes: Sizes, row: Weight) -> Draft:
    """The draft of a node with the row (1, ...) for every sample; `source` is the network's input."""
    shape = tuple(row.tensor.shape[1:])
    if not row.tensor.is_floating_point():
        return _opaque_rows(source, source_sizes, row.tensor)
    rows = zero_rows(source, shape, row.tensor.device)
    return Draft("diagonal", (rows,), None, row, {"kind": "constant", "dim": None}, shape)


def _opaque_rows(source: Ref, source_sizes: Sizes, row: Tensor) -> Draft:
    """Rows of truth values or whole numbers, which no rule reads."""
    leaves, spec = tree_flatten(((Place(0),), {}))
    params = {
        "target": "expand",
        "function": functools.partial(_for_each, row),
        "leaves": leaves,
        "spec": spec,
        "trained": False,
        "is_tensor": True,
        "for_one": (source_sizes.for_one,),
        "layouts": (ROWS,),
        "result_for_one": tuple(row.shape),
        "result_layout": ROWS,
        "stack_trace": None,
    }
    return Draft("opaque", (source,), params=params, shape=tuple(row.shape[1:]))


def _for_each(row: Tensor, x: Tensor) -> Tensor:
    return row.expand(len(x), *row.shape[1:])


def without_content(
    name: str,
    arguments: Mapping[str, Any],
    whole_number: Callable[[Ref], int | None],
    sizes_of: Callable[[Ref], Sizes | None],
    dtype_of: Callable[[Ref], torch.dtype],
    device: torch.device,
) -> dict[str, Any] | None:
    """The arguments of an operator for two samples, if it reads no more of the network's input than sizes, else None.

    Parameters
    ----------
    name : str
        Of the operator, without its overload.
    arguments : dict of name to value
    whole_number : callable(Ref) -> int or None
        The value of a whole number for two samples.
    sizes_of : callable(Ref) -> Sizes or None
    dtype_of : callable(Ref) -> torch.dtype
    device : torch.device
    """
    given: dict[str, Any] = {}
    for key, value in arguments.items():
        if isinstance(value, Ref):
            sizes = sizes_of(value)
            if _LIKE.get(name) != key or sizes is None:
                return None
            given[key] = torch.zeros(sizes.for_two, dtype=dtype_of(value), device=device)
        elif isinstance(value, list | tuple) and any(isinstance(part, Ref) for part in value):
            numbers = [whole_number(part) if isinstance(part, Ref) else part for part in value]
            if None in numbers:  # tensors, as those of `cat`
                return None
            given[key] = numbers
        else:
            given[key] = value
    return given


def keeps_parameters(name: str, weights: Sequence[Weight], result: Tensor) -> bool:
    """Whether each number of the result is one of a parameter's, up to its sign and an added constant.

    Anything else would be another parametrisation of the network: a layer on a constant, a sum of two parameters, or a
    copy of a number in several places.

    Parameters
    ----------
    name : str
        Of the operator, without its overload.
    weights : sequence of Weight
        What it reads, for one sample.
    result : Tensor
        For one sample.
    """
    trained = [weight for weight in weights if weight.trainable]
    if not trained or name in ("cat", "stack"):
        sources = [source for weight in trained for source in weight.sources]
        return len(set(sources)) == len(sources) and not any(_repeats(weight.tensor) for weight in trained)
    if len(trained) > 1:
        return False
    (weight,) = trained
    once = result.numel() == weight.tensor.numel() and not _repeats(weight.tensor)
    return name in _VIEWS or (name in _COPIES and once)


def _repeats(tensor: Tensor) -> bool:
    return any(step == 0 and n > 1 for step, n in zip(tensor.stride(), tensor.shape, strict=True))
