"""Fitting with SAM against a loop by hand with the same batches, and against SGD: two gradients a step, so twice.

On the digits a step takes 0.4 ms, of which Python and torch's calls are the larger part; on the wide perceptron the
gradients dominate.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.datasets import load_digits

from benchmarks.timing import measure_row
from sklearn_capacity import NetworkClassifier
from sklearn_capacity.architectures import make_network

BATCH_SIZE, RATE, RHO = 128, 0.1, 0.05


class Task(NamedTuple):
    """Data, and the widths of a perceptron for them."""

    name: str
    X: np.ndarray
    y: np.ndarray
    widths: tuple[int, ...]
    epochs: int


def tasks() -> list[Task]:
    """A narrow and a wide perceptron."""
    X, y = load_digits(return_X_y=True)
    noise = np.random.default_rng(0).normal(size=(1024, 784)).astype(np.float32)
    return [
        Task("digits, MLP", (X / 16).astype(np.float32), y, (100,), 30),
        Task("noise, MLP 784-784-784-10", noise, np.arange(1024) % 10, (784, 784), 3),
    ]


def bare_loop(task: Task, adaptive: bool) -> None:
    """SAM as its paper writes it, with the list operations that a careful user would take."""
    torch.manual_seed(0)
    module = make_network("mlp", task.X.shape[1:], 10, hidden_layer_sizes=task.widths).to(torch.float32)
    weights = list(module.parameters())
    optimizer = torch.optim.SGD(weights, lr=RATE, momentum=0.9)
    X_all, y_all = torch.as_tensor(task.X), torch.as_tensor(task.y)
    for _ in range(task.epochs):
        for index in torch.randperm(len(X_all)).split(BATCH_SIZE):
            batch, labels = X_all[index], y_all[index]
            first = torch.autograd.grad(torch.nn.functional.cross_entropy(module(batch), labels), weights)
            with torch.no_grad():
                scales = [w.abs() for w in weights] if adaptive else [torch.ones_like(w) for w in weights]
                moves = [g * t for g, t in zip(first, scales, strict=True)]  # t g, of length ||t g||
                length = torch.stack([move.norm() for move in moves]).norm() + 1e-12
                moves = [RHO * t * move / length for t, move in zip(scales, moves, strict=True)]
                torch._foreach_add_(weights, moves)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(module(batch), labels).backward()
            with torch.no_grad():
                torch._foreach_sub_(weights, moves)
            optimizer.step()


def rows_of(task: Task, adaptive: bool) -> list[dict]:
    """SAM beside the loop and beside SGD."""
    common: dict[str, Any] = {"max_epochs": task.epochs, "batch_size": BATCH_SIZE, "learning_rate": RATE}
    common |= {"hidden_layer_sizes": task.widths, "random_state": 0}
    params = {"rho": RHO, "adaptive": adaptive}
    plain = NetworkClassifier(optimizer="sgd", **common)
    model = NetworkClassifier(optimizer="sam", optimizer_params=params, **common)

    def ours() -> None:
        model.fit(task.X, task.y)

    def loop() -> None:
        bare_loop(task, adaptive)

    def sgd() -> None:
        plain.fit(task.X, task.y)

    name = "adaptive SAM" if adaptive else "SAM"
    return [
        measure_row(f"fit with {name}, {task.name}", ours, loop, target=1.2, note="peer: a loop by hand"),
        measure_row(f"fit with {name} beside SGD, {task.name}", ours, sgd, target=2.2, note="two gradients"),
    ]


def run() -> list[dict]:
    """Rows for SAM and adaptive SAM on both tasks."""
    return [row for task in tasks() for adaptive in (False, True) for row in rows_of(task, adaptive)]
