"""The small networks on which every measure is checked."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ..process_state import keeps_random_numbers
from .measurement import Session

__all__ = ["Example", "examples"]


@dataclass(frozen=True)
class Example:
    """A small network in double precision with data, and its state before training."""

    name: str
    module: nn.Module
    X: Tensor
    y: Tensor
    initial_state: Mapping[str, Tensor] = field(default_factory=dict)

    def session(self, module: nn.Module | None = None) -> Session:
        """The network, or another one in its place, ready to be measured."""
        return Session(
            self.module if module is None else module, self.X, self.y, initial_state=self.initial_state or None
        )


def _drawn(module: nn.Module, seed: int) -> nn.Module:
    """The module with weights and statistics drawn from a seed, independent of torch's initialisation."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    module = module.to(device="cpu", dtype=torch.float64)
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64, device="cpu")
            positive = name.endswith("running_var") or (tensor.dim() == 1 and name.endswith("weight"))
            tensor.data.copy_(values.abs() + 0.5 if positive else values)
    return module


def _example(
    name: str, make: Callable[[], nn.Module], shape: Sequence[int], seed: int, *, regression: bool = False
) -> Example:
    with keeps_random_numbers():
        module, before = _drawn(make(), seed), _drawn(make(), seed + 1)
    generator = torch.Generator(device="cpu").manual_seed(seed + 2)
    X = torch.randn(40, *shape, generator=generator, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        outputs = module.eval()(X)
    decided = (outputs != 0).any(1)  # if all units are off, all classes tie
    y = outputs + 1.0 if regression else outputs.argmax(1)  # classes are separated, so that margins are positive
    return Example(name, module.train(), X[decided], y[decided], before.state_dict())


def _chain(n_outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, n_outputs, bias=False))


def _convolutional() -> nn.Module:
    layers = (nn.Conv2d(2, 3, 3, stride=2), nn.BatchNorm2d(3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(3, 3))


@functools.cache
def examples() -> tuple[Example, ...]:
    """The networks on which every measure is checked; the first two have one hidden layer of six rectifiers."""
    return (
        _example("a rectifier network without biases", lambda: _chain(3), (4,), 5),
        _example("a regression by a rectifier network", lambda: _chain(1), (4,), 6, regression=True),
        _example("a convolutional network with batch norm", _convolutional, (2, 7, 7), 7),
        _example("a tanh network", lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,), 8),
    )
