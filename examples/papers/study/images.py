"""Data sets of the studies: fetched, read from a file, or scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import joblib
import numpy as np
import torch
from torch.nn.functional import avg_pool2d

from sklearn_capacity.datasets import fetch_cifar10, fetch_mnist, load_digit_images

__all__ = ["Images", "load_images"]

FETCH = {"mnist": fetch_mnist, "cifar10": fetch_cifar10}
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}


class Images(NamedTuple):
    """Images between 0 and 1, float32 of shape (n, channels, height, width), and their classes."""

    X: np.ndarray
    y: np.ndarray

    def split(self, n_train: int, n_test: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Training images drawn by the seed, and the last `n_test` images, which no seed trains on."""
        n_pool = len(self.y) - n_test
        if n_train > n_pool:
            raise ValueError(f"{n_train} + {n_test} images are needed, got {len(self.y)}: use a smaller --scale.")
        drawn = np.random.default_rng(seed).permutation(n_pool)[:n_train]
        return self.X[drawn], self.y[drawn], self.X[n_pool:], self.y[n_pool:]

    def reduced(self, pixels: int) -> Images:
        """Means over squares, so that about so many pixels are left on each side."""
        side = max(1, self.X.shape[-1] // pixels)
        return Images(avg_pool2d(torch.as_tensor(self.X), side).numpy(), self.y)

    def standardized(self) -> Images:
        """The same images, each pixel minus its channel's mean over the data set, divided by its deviation."""
        mean, deviation = self.X.mean((0, 2, 3), keepdims=True), self.X.std((0, 2, 3), keepdims=True)
        return Images((self.X - mean) / deviation, self.y)


def load_images(name: str, source: str) -> tuple[Images, str]:
    """The images, and a label that names the data set and its content, so that other data is another cell.

    `source`: "fetch" (OpenML), "digits" (scikit-learn's, enlarged where color images are expected), or the path of an
    npz file with X, grey values or colors between 0 and 255, and y (classes 0, 1, ...), or of a folder with one such
    file whose name begins with that of the data set.
    """
    if source == "fetch":
        images = Images(*FETCH[name](return_X_y=True))
    elif source == "digits":
        X, y = load_digit_images(return_X_y=True)
        images = Images(X if name == "mnist" else X.repeat(3, 1).repeat(4, 2).repeat(4, 3), y)
    else:
        images = _read(name, Path(source))
    return images, f"{'digits' if source == 'digits' else name}-{joblib.hash(tuple(images))[:8]}"


def _read(name: str, path: Path) -> Images:
    if path.is_dir():
        files = sorted(path.glob(f"{name}*.npz"))
        if len(files) != 1:
            raise FileNotFoundError(f"The folder {path} must have one file {name}*.npz, got {len(files)}.")
        path = files[0]
    if not path.is_file():
        raise FileNotFoundError(f'--data must be "fetch", "digits" or the path of an npz file, got {path}.')
    with np.load(path) as file:
        if not {"X", "y"} <= set(file.files):
            raise ValueError(f"{path} must hold the arrays X and y, got {', '.join(file.files)}.")
        X, y = file["X"], file["y"]
    if X.size // len(X) != np.prod(SHAPES[name]):
        raise ValueError(f"{path} must hold images of shape {SHAPES[name]} for this study, got {X.shape[1:]}.")
    return Images(X.reshape(-1, *SHAPES[name]).astype(np.float32) / np.float32(255), y.astype(np.int64))
