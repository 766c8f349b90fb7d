"""The data sets of the papers: generated, loaded or fetched.

`polynomials` generates regression problems, `random_labels` randomises labels and builds confusion sets, `images` loads
scikit-learn's digits and fetches MNIST and CIFAR-10.

Data flow: random_state -> arrays X, y.
"""

from sklearn_capacity.datasets.images import fetch_cifar10, fetch_mnist, load_digit_images
from sklearn_capacity.datasets.polynomials import (
    make_noisy_cubic,
    make_noisy_quadratic,
    make_piecewise_linear_curves,
)
from sklearn_capacity.datasets.random_labels import make_confusion_set, randomize_labels

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
