"""Images as (n, channels, height, width) arrays between 0 and 1."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import Bunch

from sklearn_capacity._validation import check_boolean, check_option

__all__ = ["fetch_cifar10", "fetch_mnist", "load_digit_images"]


def load_digit_images(*, return_X_y: bool = False) -> Any:
    """Load scikit-learn's 1,797 real handwritten digits as images.

    Parameters
    ----------
    return_X_y : bool, default=False
        Return the two arrays instead of a Bunch.

    Returns
    -------
    Bunch or (X, y)
        ``data`` or X: float32 array of shape (1797, 1, 8, 8), the stored 0, ..., 16 divided by 16;
        ``target`` or y: int64 array of the digits; ``target_names`` and ``DESCR`` in the Bunch.

    References
    ----------
    E. Alpaydin, C. Kaynak. Optical recognition of handwritten digits. UCI machine learning repository, 1998.

    Examples
    --------
    >>> from sklearn_capacity.datasets import load_digit_images
    >>> X, y = load_digit_images(return_X_y=True)
    >>> X.shape, X.dtype.name, float(X.max())
    ((1797, 1, 8, 8), 'float32', 1.0)
    """
    from sklearn.datasets import load_digits  # takes a tenth of the time of importing this package

    check_boolean("return_X_y", return_X_y)
    digits = load_digits()
    X = (digits.images[:, np.newaxis] / 16.0).astype(np.float32)
    y = digits.target.astype(np.int64)
    return _images(X, y, [str(name) for name in digits.target_names], digits.DESCR, return_X_y)


def fetch_mnist(*, subset: str = "all", return_X_y: bool = False, data_home: Any = None) -> Any:
    """Fetch the 70,000 MNIST digits from OpenML, or from the cache.

    Parameters
    ----------
    subset : {"all", "train", "test"}, default="all"
        The first 60,000 images are the training set, the last 10,000 the test set.
    return_X_y : bool, default=False
        Return the two arrays instead of a Bunch.
    data_home : str or path-like, default=None
        Folder of the cache; None: scikit-learn's.

    Returns
    -------
    Bunch or (X, y)
        ``data`` or X: float32 array of shape (n, 1, 28, 28), grey values divided by 255; ``target`` or y: int64
        array of the digits; ``target_names`` and ``DESCR`` in the Bunch.

    Raises
    ------
    ConnectionError
        If the data is not in the cache and OpenML cannot be reached.
    ValueError
        If `subset` is unknown.

    References
    ----------
    Y. LeCun, C. Cortes, C. Burges. The MNIST database of handwritten digits. OpenML data set 554.

    Examples
    --------
    >>> from sklearn_capacity.datasets import fetch_mnist
    >>> X, y = fetch_mnist(subset="train", return_X_y=True)  # doctest: +SKIP
    >>> X.shape  # doctest: +SKIP
    (60000, 1, 28, 28)
    """
    check_option("subset", subset, ["all", "train", "test"])
    check_boolean("return_X_y", return_X_y)
    data = _fetch("fetch_mnist", 554, data_home)
    part = {"all": slice(None), "train": slice(60000), "test": slice(60000, None)}[subset]
    X = np.asarray(data.data)[part].reshape(-1, 1, 28, 28)
    y = np.asarray(data.target)[part].astype(np.int64)
    return _images(_unit(X), y, [str(digit) for digit in range(10)], data.DESCR, return_X_y)


def fetch_cifar10(*, return_X_y: bool = False, data_home: Any = None) -> Any:
    """Fetch the 60,000 CIFAR-10 images from OpenML, or from the cache.

    Parameters
    ----------
    return_X_y : bool, default=False
        Return the two arrays instead of a Bunch.
    data_home : str or path-like, default=None
        Folder of the cache; None: scikit-learn's.

    Returns
    -------
    Bunch or (X, y)
        ``data`` or X: float32 array of shape (60000, 3, 32, 32), red, green, blue, divided by 255; ``target`` or y:
        int64 array of classes 0, ..., 9; ``target_names`` and ``DESCR`` in the Bunch.

    Raises
    ------
    ConnectionError
        If the data is not in the cache and OpenML cannot be reached.

    Notes
    -----
    OpenML does not separate training and test images: split them yourself.

    References
    ----------
    A. Krizhevsky. Learning multiple layers of features from tiny images. 2009. OpenML data set 40927.

    Examples
    --------
    >>> from sklearn_capacity.datasets import fetch_cifar10
    >>> fetch_cifar10().data.shape  # doctest: +SKIP
    (60000, 3, 32, 32)
    """
    check_boolean("return_X_y", return_X_y)
    data = _fetch("fetch_cifar10", 40927, data_home)
    X = np.asarray(data.data).reshape(-1, 3, 32, 32)
    y = np.asarray(data.target).astype(np.int64)
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    return _images(_unit(X), y, names, data.DESCR, return_X_y)


def _fetch(function: str, data_id: int, data_home: Any) -> Bunch:
    from sklearn.datasets import fetch_openml

    try:
        return fetch_openml(data_id=data_id, as_frame=False, parser="auto", data_home=data_home)
    except OSError as error:  # URLError, timeouts and refused connections are all of this kind
        raise ConnectionError(
            f"`{function}` could not reach OpenML (data set {data_id}): {error}. Call it once with network access, or "
            "pass as `data_home` the folder of an earlier call."
        ) from error


def _unit(X: np.ndarray) -> np.ndarray:
    return np.asarray(X, dtype=np.float32) / np.float32(255.0)


def _images(X: np.ndarray, y: np.ndarray, names: list[str], description: str, return_X_y: bool) -> Any:
    if return_X_y:
        return X, y
    return Bunch(data=X, target=y, target_names=names, DESCR=description)
