"""Fitting an estimator against a bare PyTorch loop with the same dtype, optimiser, batches and threads."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.datasets import load_digits

from benchmarks.timing import measure_row
from sklearn_capacity import JacobianRegularizedClassifier, NetworkClassifier
from sklearn_capacity.architectures import make_network

EPOCHS, BATCH_SIZE = 30, 128


def bare_loop(X: np.ndarray, y: np.ndarray, strength: float = 0.0, epochs: int = EPOCHS, name: str = "mlp") -> None:
    """The loop that a careful user would write."""
    torch.manual_seed(0)
    module = make_network(name, X.shape[1] if X.ndim == 2 else X.shape[1:], 10).to(torch.float32)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01, fused=True)
    X_all, y_all = torch.as_tensor(X), torch.as_tensor(y)
    for _ in range(epochs):
        order = torch.randperm(len(X_all))
        for index in order.split(BATCH_SIZE):
            batch = X_all[index]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(module(batch), y_all[index])
            if strength:
                loss = loss + strength * double_backward(module, batch)
            loss.backward()
            optimizer.step()


def double_backward(module: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """The textbook penalty: one differentiated backward pass per class."""
    batch = batch.detach().requires_grad_(True)
    logits = module(batch)
    rows = [torch.autograd.grad(logits[:, k].sum(), batch, create_graph=True)[0] for k in range(logits.shape[1])]
    return sum(row.square().sum() for row in rows) / len(batch)


def run() -> list[dict]:
    """Rows for the plain and the penalised fit, and for one of a convolutional network."""
    X, y = load_digits(return_X_y=True)
    X = (X / 16).astype(np.float32)
    plain = NetworkClassifier(max_epochs=EPOCHS, batch_size=BATCH_SIZE, random_state=0)
    images = np.random.default_rng(0).normal(size=(640, 1, 28, 28)).astype(np.float32)
    conv = NetworkClassifier(module="conv", max_epochs=2, batch_size=BATCH_SIZE, random_state=0)
    penalized = JacobianRegularizedClassifier(max_epochs=10, batch_size=BATCH_SIZE, random_state=0)
    return [
        measure_row("fit, digits, MLP", lambda: plain.fit(X, y), lambda: bare_loop(X, y), target=1.2),
        measure_row(
            "fit, images of 28 x 28, conv net",
            lambda: conv.fit(images, y[:640]),
            lambda: bare_loop(images, y[:640], epochs=2, name="conv"),
            target=1.2,
            repeats=5,
        ),
        measure_row(
            "fit with Jacobian penalty, digits, MLP",
            lambda: penalized.fit(X, y),
            lambda: bare_loop(X, y, 0.01, 10),
            target=1.2,
            note="peer: a loop of double backward passes",
            repeats=3,
        ),
    ]
