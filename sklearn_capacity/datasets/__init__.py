"""The data sets of the papers: made, loaded or fetched."""

from sklearn_capacity.datasets.images import fetch_cifar10, fetch_mnist, load_digit_images
from sklearn_capacity.datasets.labels import make_confusion_set, randomize_labels
from sklearn_capacity.datasets.polynomials import (
    make_noisy_cubic,
    make_noisy_quadratic,
    make_piecewise_linear_curves,
)

__all__ = [
    "fetch_cifar10",
    "fetch_mnist",
    "load_digit_images",
    "make_confusion_set",
    "make_noisy_cubic",
    "make_noisy_quadratic",
    "make_piecewise_linear_curves",
    "randomize_labels",
]
