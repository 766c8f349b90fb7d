"""What the studies of [FR] have in common: images, training by SGD or natural gradient, and the norms compared."""

from __future__ import annotations

import numpy as np

from sklearn_capacity import NetworkClassifier, measure_capacity
from sklearn_capacity.datasets import randomize_labels

OPTIMIZERS = {"sgd": "C3", "kfac": "C0"}  # the paper's colors
NAMES = {"sgd": "gradient descent", "kfac": "natural gradient"}
NORMS = {
    "fisher_rao": "fisher_rao_norm",
    "fisher_rao_model": ("fisher_rao_norm", {"distribution": "model"}),
    "spectral": "spectral_norm",
    "l2_path": "l2_path_norm",
    "frobenius": "frobenius_norm",
}


def draw_sample(data, n_train: int, n_test: int, pixels: int, fraction: float, seed: int):
    """Training and test images with a share of random labels in both, averaged down to `pixels` x `pixels`."""
    X, y, X_test, y_test = data.split(n_train, n_test, seed)
    y, y_test = (randomize_labels(part, fraction, random_state=seed) for part in (y, y_test))
    return reduced(X, pixels), y, reduced(X_test, pixels), y_test


def reduced(X: np.ndarray, pixels: int) -> np.ndarray:
    """Means over squares of each channel, scaled to about [-2, 2]; shape (n, channels * pixels * pixels)."""
    n, channels, size, _ = X.shape
    step = size // pixels
    means = X.reshape(n, channels, pixels, step, pixels, step).mean((3, 5))
    return ((means - 0.5) / 0.25).reshape(n, -1)


def train(X: np.ndarray, y: np.ndarray, optimizer: str, hidden_layer_sizes, max_epochs: int, device, seed: int):
    """Section 5: no biases, batches of 50, the same learning rate and momentum for both optimisers."""
    return NetworkClassifier(
        hidden_layer_sizes,
        bias=False,
        optimizer=optimizer,
        optimizer_params={"momentum": 0.9},
        learning_rate=0.01,
        learning_rate_schedule="cosine",
        batch_size=50,
        max_epochs=max_epochs,
        device=device,
        random_state=seed,
    ).fit(X, y)


def errors_and_norms(model, X, y, X_test, y_test, norms=NORMS) -> dict[str, float]:
    errors = {"train_error": 1 - model.score(X, y), "test_error": 1 - model.score(X_test, y_test)}
    return {**errors, **measure_capacity(model, X, y, dict(norms))}
