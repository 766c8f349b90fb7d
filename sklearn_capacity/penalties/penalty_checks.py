"""Checks of a user-defined penalty: its arguments, its value and its gradient."""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sklearn_capacity._validation import check_dense, check_instance, check_integer, shown, shown_with_kind
from sklearn_capacity.derivatives.modes import evaluating
from sklearn_capacity.penalties.evaluation import naming_function
from sklearn_capacity.penalties.shared_pass import forward_pass
from sklearn_capacity.process_state import keeps_random_numbers

__all__ = ["check_penalty", "check_value", "keywords_of"]

T = TypeVar("T")

#: Accepted relative error of a directional derivative.
TOLERANCE = 1e-4
#: Steps of the finite differences. The Jacobian jumps at kinks, for example of a rectifier; a smaller step misses them.
STEPS = (1e-6, 1e-7, 1e-8)

WITHOUT_GRADIENT = (
    "`penalty` must return a tensor with a gradient, got one that depends on no trained parameter of the network. "
    "Compute it from the module that it receives, without `detach`, `item` and `no_grad`."
)


#: Keywords that a penalty may accept besides the module and X.
OFFERED = frozenset({"sample_weight", "shared", "y", "criterion"})


def keywords_of(penalty: Callable[..., Any]) -> frozenset[str]:
    """Those of `OFFERED` that the penalty names; "sample_weight" also through ``**``."""
    signature = _signature(penalty)
    if signature is None:
        return frozenset()
    parameters = list(signature.parameters.values())
    module_and_batch = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)][:2]
    others = [p for p in parameters if p not in module_and_batch]
    named = {p.name for p in others if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    by_stars = {"sample_weight"} if any(p.kind is p.VAR_KEYWORD for p in parameters) else set()
    keywords = frozenset(OFFERED & named | by_stars)
    try:
        signature.bind(None, None, **dict.fromkeys(keywords))
    except TypeError as error:
        raise TypeError(
            "`penalty` must accept a module and a batch X, and may accept "
            f"{', '.join(f'`{name}`' for name in sorted(OFFERED))}; got one with the arguments {signature}: {error}. "
            "Bind other arguments with `functools.partial`."
        ) from None
    return keywords


def _signature(penalty: Callable[..., Any]) -> inspect.Signature | None:
    """That of a penalty, or None if it is written in C and has none."""
    function = penalty.forward if isinstance(penalty, nn.Module) else penalty  # a module's `__call__` accepts anything
    try:
        return inspect.signature(function)
    except ValueError:
        return None


def check_value(value: Any, *, read: bool) -> None:
    """Refuse values that cannot be minimised; with `read`, also non-finite ones, which synchronises a GPU."""
    if not isinstance(value, Tensor) or value.dim() or not value.is_floating_point():
        raise TypeError(
            f"`penalty` must return a real tensor of shape (), got {shown_with_kind(value)}. Compute it with torch "
            "from the module, and end with a sum or a mean."
        )
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError(WITHOUT_GRADIENT)
    if read and not value.isfinite():
        raise ValueError(f"`penalty` must return a finite number, got {value.item()}.")


def check_penalty(
    penalty: Callable[..., Tensor],
    module: nn.Module,
    X: Tensor,
    y: Tensor | None = None,
    *,
    criterion: nn.Module | None = None,
    random_state: int = 0,
) -> None:
    """Check that a network can be trained with a penalty.

    The penalty must return a finite real tensor of shape (), return the same value twice for one seed, and must not
    change the module or X. Its gradient must match its value: this is compared with finite differences in float64,
    along a random direction of each trained parameter. If the penalty accepts weights or a shared forward pass, weights
    of 1 and a shared pass must not change the value.

    Parameters
    ----------
    penalty : callable
        ``penalty(module, X, sample_weight=None)``, as for estimators.
    module : nn.Module
        A network of the kind that will be trained; a small one will do. A copy in float64 and in training mode is
        checked.
    X : Tensor of shape (n, ...)
    y : Tensor, default=None
        Targets, for a penalty that needs them.
    criterion : nn.Module, default=None
        The loss, for a penalty that needs it.
    random_state : int, default=0
        Seed of the directions, and of torch's default generator for the penalty.

    Raises
    ------
    TypeError or ValueError
        The message states what is wrong, and for which parameter.

    See Also
    --------
    forward_pass : Shares a forward pass between loss and penalty.

    Notes
    -----
    Some penalties deliberately treat a part of themselves as constant, as :func:`per_layer_penalty` does, and fail the
    last check.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.penalties import check_penalty
    >>> def squared_weights(module, X, sample_weight=None):
    ...     return sum(p.square().sum() for p in module.parameters())
    >>> module, X = torch.nn.Linear(3, 2), torch.randn(4, 3)
    >>> check_penalty(squared_weights, module, X)
    >>> check_penalty(lambda module, X: module(X.detach()).detach().sum(), module, X)
    Traceback (most recent call last):
        ...
    ValueError: `penalty` must return a tensor with a gradient, got one that depends on no trained parameter of the
    network. Compute it from the module that it receives, without `detach`, `item` and `no_grad`.
    """
    if not callable(penalty) or isinstance(penalty, type):
        raise TypeError(f"`penalty` must be a callable (module, X, sample_weight=None), got {shown(penalty)}.")
    check_instance("module", module, nn.Module, "a torch.nn.Module")
    check_dense("X", check_instance("X", X, Tensor, "a tensor of shape (n, ...)"))
    check_integer("random_state", random_state, 0, 2**63 - 1)
    with naming_function(module, X):
        y = y.double() if isinstance(y, Tensor) and y.is_floating_point() else y
        given = {name: value for name, value in (("y", y), ("criterion", criterion)) if value is not None}
        copied = copy.deepcopy(module).double()
        copied.train()
        _check_penalty(penalty, copied, X.detach().double(), given, random_state)


def _check_penalty(
    penalty: Callable[..., Tensor], module: nn.Module, X: Tensor, given: dict[str, Any], random_state: int
) -> None:
    takes = keywords_of(penalty)
    given = {name: value for name, value in given.items() if name in takes}
    _check_required(penalty, given)

    def seeded(function: Callable[..., T], *arguments: Any, **keywords: Any) -> T:
        with keeps_random_numbers(X.device):
            torch.manual_seed(random_state)
            return function(*arguments, **keywords)

    def evaluate(**keywords: Any) -> Tensor:
        return seeded(copy.deepcopy(penalty), module, X, **given, **keywords)  # a copy, since it may have state

    before = _contents(module, X)
    value = evaluate()
    check_value(value, read=True)
    _check_contents(before, _contents(module, X))
    _check_same(value, evaluate(), "one seed")
    if "sample_weight" in takes:
        ones = torch.ones(len(X), dtype=X.dtype, device=X.device)  # (n,)
        _check_same(value, evaluate(sample_weight=ones), "weights of 1 as without")
    if "shared" in takes:
        with evaluating(module):  # batch norm's statistics do not change
            shared = seeded(forward_pass, module, X)
        _check_same(value, evaluate(shared=shared), "a shared forward pass as without")
    _check_gradient(evaluate, module, value, random_state)


def _check_required(penalty: Callable[..., Any], given: Mapping[str, Any]) -> None:
    signature = _signature(penalty)
    parameters = {} if signature is None else signature.parameters
    for name in sorted(OFFERED - set(given)):
        if not _is_required(parameters.get(name)):
            continue
        if name in ("y", "criterion"):
            raise ValueError(f"`{name}` must be given, got None for a penalty that requires it: {signature}.")
        cure = f"Write `{name}=None`"
        raise ValueError(f"`penalty` must not require `{name}`, got one with the arguments {signature}. {cure}.")


def _is_required(parameter: inspect.Parameter | None) -> bool:
    return parameter is not None and parameter.default is parameter.empty


def _contents(module: nn.Module, X: Tensor) -> dict[str, Any]:
    tensors = {"X": X, **dict(itertools.chain(module.named_parameters(), module.named_buffers()))}
    modes = {f"{name}.training": part.training for name, part in module.named_modules()}
    return {name: t.detach().clone() for name, t in tensors.items()} | modes


def _check_contents(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        if not same:
            raise ValueError(
                f"`penalty` must not change the module or X, got one that changes `{name}`. Running "
                "statistics change if it calls the module in training mode: switch to eval mode for the call."
            )


def _check_same(value: Tensor, again: Tensor, what: str) -> None:
    if not torch.allclose(value, again, rtol=1e-9, atol=0):
        raise ValueError(f"`penalty` must return the same for {what}, got {value.item()} and {again.item()}.")


def _check_gradient(evaluate: Callable[[], Tensor], module: nn.Module, value: Tensor, random_state: int) -> None:
    """Compare <dR/dW, d> with (R(W + h d) - R(W - h d)) / 2h for a random d and each parameter W."""
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(value, [*trained.values()], allow_unused=True)
    if all(gradient is None for gradient in gradients):  # possibly computed from another module
        raise ValueError(WITHOUT_GRADIENT)
    generator = torch.Generator().manual_seed(random_state)
    for (name, parameter), gradient in zip(trained.items(), gradients, strict=True):
        # like the parameter
        drawn = torch.randn(parameter.shape, dtype=torch.float64, generator=generator, device="cpu")
        direction = drawn.to(parameter.device)
        exact = 0.0 if gradient is None else (gradient * direction).sum().item()
        difference = 0.0
        for step in STEPS:
            difference = _central_difference(evaluate, parameter, direction, step)
            rounding = 1e-14 * abs(value.item()) / step
            if abs(difference - exact) <= TOLERANCE * max(abs(exact), abs(difference)) + rounding:
                break
        else:
            raise ValueError(
                f"`penalty` must have a gradient that matches its value, got a derivative of {exact:.6g} along a "
                f"direction of `{name}`, while finite differences give {difference:.6g}. Look for `detach`, `.data` or "
                "`no_grad`."
            )


def _central_difference(evaluate: Callable[[], Tensor], parameter: Tensor, direction: Tensor, step: float) -> float:
    here = parameter.detach().clone()
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            parameter.copy_(here + sign * step * direction)
        values.append(evaluate().item())
    with torch.no_grad():
        parameter.copy_(here)
    return (values[0] - values[1]) / (2 * step)
