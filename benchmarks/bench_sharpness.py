"""Sharpness per draw and per ascent step against the unavoidable work: forward passes, noise, plain steps."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.timing import measure_row
from sklearn_capacity.architectures import make_network
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch

#: Enough draws that the forward pass and the copies at the start hardly count, as with the defaults of 1000 draws and
#: 2000 steps; a step of the perceptron is short and mostly limited by memory.
DRAWS, CLASSES = 24, 10
STEPS = {"MLP 784-784-784-10": 60, "conv 32-5-5 x2": 20, "ResNet-20": 20}


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """The three networks of the targets, with a batch of data."""
    torch.manual_seed(0)
    return {
        "MLP 784-784-784-10": (make_network("mlp", (784,), CLASSES, hidden_layer_sizes=(784, 784)), _data(128, 784)),
        "conv 32-5-5 x2": (make_network("conv", (1, 28, 28), CLASSES), _data(128, 1, 28, 28)),
        "ResNet-20": (make_network("resnet20", (3, 32, 32), CLASSES), _data(64, 3, 32, 32)),
    }


def _data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def draws(module: nn.Module, X: Tensor) -> Callable[[], None]:
    """Forward passes, each with a fresh normal vector added to the weights."""
    module = copy.deepcopy(module).eval()
    theta = torch.cat([p.detach().flatten() for p in module.parameters()])
    noise, moved = torch.empty_like(theta), torch.empty_like(theta)

    @torch.no_grad()
    def run() -> None:
        for _ in range(DRAWS):
            torch.add(theta, noise.normal_(), alpha=1e-3, out=moved)
            module(X)

    return run


def user_draws(module: nn.Module, X: Tensor, y: Tensor) -> Callable[[], None]:
    """What a user would write: a copy of the model whose parameters are overwritten one by one."""
    module = copy.deepcopy(module).eval()
    start = [p.detach().clone() for p in module.parameters()]

    @torch.no_grad()
    def run() -> None:
        for _ in range(DRAWS):
            for p, w in zip(module.parameters(), start, strict=True):
                p.copy_(w + torch.randn_like(w) * 1e-3 * (10 * w.abs() + 1))
            nn.functional.cross_entropy(module(X), y)

    return run


def plain_steps(module: nn.Module, X: Tensor, y: Tensor, steps: int) -> Callable[[], None]:
    """Stochastic gradient ascent with momentum and without a box, by torch's optimiser."""
    module = copy.deepcopy(module).eval()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0, momentum=0.9, maximize=True)

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(X), y).backward()
            optimizer.step()

    return run


def user_steps(module: nn.Module, X: Tensor, y: Tensor, steps: int, alpha: float = 5e-4) -> Callable[[], None]:
    """The same with a box, projected parameter by parameter."""
    module = copy.deepcopy(module).eval()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-3, momentum=0.9, maximize=True)
    start = [p.detach().clone() for p in module.parameters()]

    def run() -> None:
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(X), y).backward()
            optimizer.step()
            with torch.no_grad():
                for p, w in zip(module.parameters(), start, strict=True):
                    bound = alpha * (w.abs() + 1)
                    p.copy_(w + (p - w).maximum(-bound).minimum(bound))

    return run


def run() -> list[dict]:
    """Rows for every network: the part that cannot be avoided, and what a user would write."""
    rows = []
    for name, (module, X) in networks().items():
        y = torch.arange(len(X)) % CLASSES
        network = Network(module, tuple(X.shape[1:]))
        few, steps = (X[:64], y[:64]), STEPS[name]

        def expected(network: Network = network, X: Tensor = X, y: Tensor = y) -> None:
            batch = Batch(network, X, y, loss="cross_entropy")
            MEASURES["expected_sharpness"](network, batch, n_draws=DRAWS)

        def largest(network: Network = network, few: tuple[Tensor, Tensor] = few, steps: int = steps) -> None:
            batch = Batch(network, *few, loss="cross_entropy")
            MEASURES["max_sharpness"](network, batch, steps=steps, check_every=steps)

        expected(), largest()  # traced once, not timed
        title = f"expected sharpness, {name}"
        rows.append(measure_row(title, expected, draws(module, X), target=1.2, note="forward + noise", repeats=5))
        rows.append(measure_row(title, expected, user_draws(module, X, y), note="tensor by tensor", repeats=3))
        title = f"max sharpness, {name}"
        rows.append(measure_row(title, largest, plain_steps(module, *few, steps), target=1.2, note="no box", repeats=5))
        rows.append(measure_row(title, largest, user_steps(module, *few, steps), note="tensor by tensor", repeats=3))
    return rows
