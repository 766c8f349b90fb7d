"""Fitting with SAM against a loop by hand with the same batches, and against SGD: two gradients a step, so twice."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from benchmarks.timing import measure_row
from sklearn_capacity import NetworkClassifier
from sklearn_capacity.architectures import make_network

EPOCHS, BATCH_SIZE, RATE, RHO = 30, 128, 0.1, 0.05


def bare_loop(X: np.ndarray, y: np.ndarray, adaptive: bool) -> None:
    """SAM as its paper writes it, with the list operations that a careful user would take."""
    torch.manual_seed(0)
    module = make_network("mlp", X.shape[1:], 10).to(torch.float32)
    weights = list(module.parameters())
    optimizer = torch.optim.SGD(weights, lr=RATE, momentum=0.9)
    X_all, y_all = torch.as_tensor(X), torch.as_tensor(y)
    for _ in range(EPOCHS):
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


def run() -> list[dict]:
    """Rows for SAM and adaptive SAM, and for the cost of SAM in fits by SGD."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    common = {"max_epochs": EPOCHS, "batch_size": BATCH_SIZE, "learning_rate": RATE, "random_state": 0}
    plain = NetworkClassifier(optimizer="sgd", **common)
    rows = []
    for adaptive in (False, True):
        params = {"rho": RHO, "adaptive": adaptive}
        model = NetworkClassifier(optimizer="sam", optimizer_params=params, **common)
        name = "adaptive SAM" if adaptive else "SAM"
        rows.append(
            measure_row(
                f"fit with {name}, digits, MLP",
                lambda model=model: model.fit(X, y),
                lambda adaptive=adaptive: bare_loop(X, y, adaptive),
                target=1.2,
                note="peer: a loop by hand",
                repeats=5,
            )
        )
        rows.append(
            measure_row(
                f"fit with {name} beside SGD, digits, MLP",
                lambda model=model: model.fit(X, y),
                lambda: plain.fit(X, y),
                target=2.2,
                note="two gradients a step",
                repeats=5,
            )
        )
    return rows
