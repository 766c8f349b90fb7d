"""The loss of one batch as a function of the parameters, for optimisers that evaluate it more than once per step."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sklearn_capacity.training.sam import SAM
from sklearn_capacity.training.unobserved_step import unobserved_step

__all__ = ["Objective", "begins_with_closure", "calls_closure_once", "step_with_gradients"]


def calls_closure_once(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step starts with its only evaluation, as in torch (except LBFGS) and in this package (except SAM)."""
    return begins_with_closure(optimizer) and not isinstance(optimizer, (torch.optim.LBFGS, SAM))


def begins_with_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step uses no gradients but those of its closure, and calls that first."""
    return type(optimizer).step.__module__.startswith(("torch.optim.", "sklearn_capacity."))


class Objective:
    """The loss of a batch; calling it computes the gradients.

    Every call evaluates the same function: dropout masks and random projections are drawn identically, and changes of
    the module's buffers by a forward pass are applied once per batch. The first call updates running statistics, and
    later calls start from the updated ones, so a penalty that uses them sees the same values.

    Parameters
    ----------
    evaluate : callable
        Clears the gradients, computes them, and returns the loss.
    module : nn.Module
    generators : iterable of torch.Generator
        Generators that an evaluation may draw from, besides torch's default ones.
    """

    def __init__(
        self, evaluate: Callable[[], Tensor], module: nn.Module, generators: Iterable[torch.Generator]
    ) -> None:
        self.evaluate = evaluate
        self.module = module
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
        self._cuda = device if device.type == "cuda" else None
        every = {id(g): g for g in (torch.random.default_generator, *generators)}
        self._states = [(generator, generator.get_state()) for generator in every.values()]
        self._cuda_state = None if self._cuda is None else torch.cuda.get_rng_state(self._cuda)
        places = [name.rpartition(".") for name, _ in module.named_buffers()]
        self._buffers = [(module.get_submodule(owner), key) for owner, _, key in places]
        owners = dict.fromkeys(owner for owner, _ in self._buffers)
        self._norms = [m for m in owners if isinstance(m, _NormBase) and m.track_running_stats]
        self._before = self._copies()
        self._after: list[Tensor] | None = None

    def __call__(self) -> Tensor:
        with torch.enable_grad():  # some optimisers call it within `no_grad`
            if self._after is None:
                loss = self.evaluate()
                self._after = self._copies()
                return loss
            for generator, state in self._states:
                generator.set_state(state)
            if self._cuda is not None and self._cuda_state is not None:
                torch.cuda.set_rng_state(self._cuda_state, self._cuda)
            held = zip(self._buffers, self._before, self._after, strict=True)
            self._set_buffers([after if owner in self._norms else before for (owner, _), before, after in held])
            with _held_statistics(self._norms):
                loss = self.evaluate()
            self._set_buffers(self._after)
            return loss

    def _copies(self) -> list[Tensor]:
        return [getattr(owner, key).clone() for owner, key in self._buffers]

    def _set_buffers(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for (owner, key), value in zip(self._buffers, values, strict=True):
                getattr(owner, key).copy_(value)


@contextmanager
def _held_statistics(norms: list[_NormBase]) -> Iterator[None]:
    """Within the context, forward passes in training mode do not change running statistics."""
    momenta = [norm.momentum for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0  # the weight of the batch's statistics
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def step_with_gradients(optimizer: torch.optim.Optimizer, objective: Objective) -> None:
    """One step of an optimiser that may need gradients beforehand, as after ``loss.backward()``, a closure, or both.

    torch does not specify which of them a step reads first. So the gradients are set, and the closure computes them
    again, except in its first call if the parameters have not changed.
    """
    if begins_with_closure(optimizer):
        unobserved_step(optimizer)(objective)
        return
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    loss: Tensor | None = objective()
    point = [p.detach().clone() for p in parameters]
    gradients = [None if p.grad is None else p.grad.clone() for p in parameters]

    def closure() -> Tensor:
        nonlocal loss
        first, loss = loss, None
        if first is None or not all(torch.equal(p, old) for p, old in zip(parameters, point, strict=True)):
            return objective()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        return first

    takes_closure = bool(inspect.signature(optimizer.step).parameters)
    try:
        optimizer.step(closure) if takes_closure else optimizer.step()  # type: ignore[arg-type]
    except NotImplementedError as error:
        raise ValueError(
            f"`optimizer` {type(optimizer).__name__} has no usable `step`: {error} Use one whose `step` accepts a "
            "closure."
        ) from error
