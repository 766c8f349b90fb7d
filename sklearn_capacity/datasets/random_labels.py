"""Random labels, for part of the data or for a separate confusion set."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from sklearn.utils import check_random_state

from sklearn_capacity._validation import check_integer, check_interval, check_seed, plain_array, shown

__all__ = ["make_confusion_set", "randomize_labels"]


def randomize_labels(y: Any, fraction: float, random_state: Any = None) -> np.ndarray:
    """Replace a fraction of the labels by labels drawn uniformly from all classes.

    A drawn label may be the true one, as in the experiments of [FR] and [EG]: with C classes a share of
    ``fraction * (1 - 1 / C)`` is wrong on average.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels of any type.
    fraction : float in [0, 1]
        Share of samples whose label is drawn, rounded to an integer number of samples.
    random_state : int, RandomState instance or None, default=None
        Seed of both draws.

    Returns
    -------
    ndarray of shape (n_samples,)
        A copy with the same dtype.

    Raises
    ------
    ValueError
        If `fraction` is outside [0, 1], or `y` is not one-dimensional, empty or without some labels.

    References
    ----------
    C. Zhang et al. Understanding deep learning requires rethinking generalization. ICLR 2017; Liang et al.,
    AISTATS 2019, section 5.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_capacity.datasets import randomize_labels
    >>> y = np.repeat(["cat", "dog"], 50)
    >>> int((randomize_labels(y, 0.2, random_state=0) != y).sum()) <= 20
    True
    """
    labels, classes = _labels_and_classes(y)
    n_random = round(check_interval("fraction", fraction, 0.0, 1.0) * len(labels))
    rng = check_random_state(check_seed("random_state", random_state))
    chosen = rng.permutation(len(labels))[:n_random]
    labels[chosen] = rng.choice(classes, size=n_random)
    return labels


def _labels_and_classes(y: Any) -> tuple[np.ndarray, np.ndarray]:
    """A copy of the labels, and the different ones in order."""
    labels = np.array(plain_array("y", y))
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"`y` must have shape (n_samples,) with at least one sample, got shape {labels.shape}.")
    missing = pd.isna(labels)
    if missing.any():
        raise ValueError(f"`y` must hold a label for each sample, got {labels[missing][0]!r}.")
    try:
        return labels, np.unique(labels)
    except TypeError as error:
        raise TypeError(f"`y` must hold labels of one kind, since classes are ordered: {error}.") from error


def make_confusion_set(
    X: Any, y: Any, n_train: int, n_confusion: int, *, random_state: Any = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draw a training set, and a confusion set of other samples with random labels, to train on their union.

    A network that fits the union has zero error on the training set. So each size of the confusion set gives another
    global minimum of the training loss; the larger the size, the worse it generalises.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        Samples.
    y : array-like of shape (n_samples,)
        Their labels.
    n_train : int
        Number of samples in the training set ([EG]: 10,000), which keep their labels.
    n_confusion : int
        Number of samples in the confusion set; their labels are drawn uniformly from all classes of `y`.
    random_state : int, RandomState instance or None, default=None
        Seed. For a given integer, the training set does not depend on `n_confusion`, and a smaller confusion set is
        part of a larger one.

    Returns
    -------
    X_union : ndarray of shape (n_train + n_confusion, ...)
        The training samples, then the confusion samples.
    y_union : ndarray of shape (n_train + n_confusion,)
        Labels of both.
    in_train : ndarray of bool of shape (n_train + n_confusion,)
        Mask of the samples in the training set, on which to compute measures.

    Raises
    ------
    ValueError
        If X and y differ in length, a label is missing, or the two sets together need more samples than there are.

    References
    ----------
    B. Neyshabur, S. Bhojanapalli, D. McAllester, N. Srebro. Exploring generalization in deep learning. NeurIPS 2017,
    section 3 ("different global minima") and figure 3.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_capacity.datasets import make_confusion_set
    >>> X, y = np.arange(20.0).reshape(10, 2), np.arange(10) % 2
    >>> X_union, y_union, in_train = make_confusion_set(X, y, 6, 3, random_state=0)
    >>> X_union.shape, int(in_train.sum())
    ((9, 2), 6)
    """
    X, (labels, classes) = np.asarray(plain_array("X", X)), _labels_and_classes(y)
    if X.shape[:1] != labels.shape:
        raise ValueError(f"`X` and `y` must have one label for each sample, got shapes {X.shape} and {labels.shape}.")
    n_train, n_confusion = check_integer("n_train", n_train), check_integer("n_confusion", n_confusion, 0)
    if (both := n_train + n_confusion) > (n := len(labels)):
        raise ValueError(f"`n_train` + `n_confusion` must be at most {n}, the number of samples, got {shown(both)}.")
    rng = check_random_state(check_seed("random_state", random_state))
    order = rng.permutation(len(labels))
    drawn = rng.choice(classes, size=len(labels))  # for all, so that the sets of different sizes are nested
    order = order[: n_train + n_confusion]
    in_train = np.arange(len(order)) < n_train
    # draws belong to positions in the order, not to samples
    return X[order], np.where(in_train, labels[order], drawn[: len(order)]), in_train
