"""The first values that a fit computes, as a few numbers that distinguish different definitions of one fit."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..process_state import surely

__all__ = ["Behaviour", "first_step", "global_generators"]

_STEP = 0.02  # relative; a line search multiplies rounding errors


class Behaviour:
    """Numbers with the tolerances within which they may vary between processors and numbers of threads.

    Parameters
    ----------
    values, tolerances : sequence of float
    """

    def __init__(self, values: Sequence[float], tolerances: Sequence[float]) -> None:
        self.values = np.asarray(values, float)
        self.tolerances = np.nan_to_num(np.asarray(tolerances, float))

    def equals(self, other: Sequence[float]) -> bool:
        """Whether the other numbers come from the same computation."""
        values = np.asarray(other, float)
        if values.shape != self.values.shape:
            return False
        return bool(np.isclose(values, self.values, rtol=0, atol=self.tolerances, equal_nan=True).all())


def first_step(net: Any, data: Any, factors: Sequence[float] = ()) -> Behaviour:
    """State, output, loss, gradients and step length of a new net on its first batch; the net must not be used again.

    Parameters
    ----------
    net : PenalizedNet
        Initialised, with the generators of its iterator and penalties.
    data : TensorData
    factors : sequence of float
        Factors of the learning rate per epoch.
    """
    numbers: list[tuple[float, float]] = [(factor, 1e-9 * abs(factor)) for factor in factors]
    module = net.module_
    numbers += [pair for tensor in module.state_dict().values() for pair in _numbers(tensor)]
    net.begin_training()
    batch = next(iter(net.get_iterator(data, training=True)))
    net._set_training(False)
    with torch.no_grad():
        numbers += _numbers(net.infer(batch[0].clone()))  # a module may work in place
    net._zero_grad_optimizer()
    step = net.train_step_single(batch)
    for key in sorted(step):
        if isinstance(step[key], Tensor):
            numbers += _numbers(step[key].detach())
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    length = torch.stack([_norm(g) for g in gradients]).norm().item() if gradients else 0.0
    # a gradient may be pure rounding error, so each is compared with the length of all
    numbers += [pair for gradient in gradients for pair in _numbers(gradient, length)]
    before = [p.detach().clone() for p in module.parameters()]
    net.train_step(batch)
    moved = [_norm(p.detach() - old) for p, old in zip(module.parameters(), before, strict=True)]
    update = torch.stack(moved).norm().item() if moved else 0.0
    numbers.append((update, _STEP * update))
    return Behaviour(*zip(*numbers, strict=True))


def _norm(tensor: Tensor) -> Tensor:
    return tensor.double().norm()


def _numbers(tensor: Tensor, scale: float | None = None) -> list[tuple[float, float]]:
    """Length of a tensor, and its component in a fixed direction, which distinguishes its entries."""
    eps = torch.finfo(tensor.dtype).eps if tensor.is_floating_point() else 0.0
    flat = tensor.detach().reshape(-1).double()  # (numel,)
    # (numel,)
    direction = torch.arange(len(flat), dtype=torch.float64, device="cpu").to(flat.device).cos()
    length = flat.norm().item()
    tolerance = eps**0.5 * (length if scale is None else scale)
    return [(length, tolerance), ((flat @ direction).item(), tolerance)]


@contextmanager
def global_generators() -> Iterator[None]:
    """Restore numpy's and Python's global generators, from which a user's augmentation may draw."""
    numpy_state, python_state = np.random.get_state(), random.getstate()  # noqa: NPY002

    def restore() -> None:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)

    try:
        yield
    finally:
        surely(restore)
