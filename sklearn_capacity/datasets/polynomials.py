"""The noisy polynomials of [GL] and the piecewise-linear curves of [FR]."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from sklearn_capacity._validation import as_list, check_boolean, check_integer, check_interval, check_seed, shown

__all__ = ["make_noisy_cubic", "make_noisy_quadratic", "make_piecewise_linear_curves"]


def make_noisy_quadratic(
    n_samples: int = 100,
    *,
    noise: float = 10.0,
    interval: tuple[float, float] = (-8.0, 8.0),
    return_clean: bool = False,
    random_state: Any = None,
) -> tuple[np.ndarray, ...]:
    r"""Draw noisy values of a quadratic function on a grid.

    .. math:: g(x) = 10 + 1.22 x^2 + \varepsilon, \qquad \varepsilon \sim N(0, \sigma^2)

    Parameters
    ----------
    n_samples : int, default=100
        Number of points of the even grid, including both ends.
    noise : float in [0, inf), default=10.0
        Standard deviation :math:`\sigma` (the paper's text prints N(0, 10), its figure 2 N(0, 10^2)).
    interval : (float, float), default=(-8, 8)
        Ends of the grid; the paper tests on (-2, 2).
    return_clean : bool, default=False
        Whether to also return the noise-free values, against which errors should be measured.
    random_state : int, RandomState instance or None, default=None
        Seed of the noise.

    Returns
    -------
    X : ndarray of shape (n_samples, 1)
        The grid.
    y : ndarray of shape (n_samples,)
        Noisy values.
    y_clean : ndarray of shape (n_samples,)
        Values without noise; only with `return_clean`.

    Raises
    ------
    ValueError
        If `noise` is negative, there are no samples, or the ends of the interval are not in order.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, section 4.1, g.

    Examples
    --------
    >>> from sklearn_capacity.datasets import make_noisy_quadratic
    >>> X, y, clean = make_noisy_quadratic(3, noise=0.0, interval=(-1, 1), return_clean=True)
    >>> X.ravel().tolist(), y.round(2).tolist()
    ([-1.0, 0.0, 1.0], [11.22, 10.0, 11.22])
    """
    X = _grid(n_samples, interval)
    return _noisy(X, 10 + 1.22 * X[:, 0] ** 2, noise, return_clean, random_state)


def make_noisy_cubic(
    n_samples: int = 100,
    *,
    noise: float = 10.0,
    switch: float = 0.0,
    interval: tuple[float, float] = (-8.0, 8.0),
    return_clean: bool = False,
    random_state: Any = None,
) -> tuple[np.ndarray, ...]:
    r"""Draw noisy values of a function that is cubic on the left and quadratic on the right.

    .. math:: h(x) = 10 + 1.22 x^2 + 1.22 (x + 4)^3 \, [x < s] + \varepsilon, \qquad \varepsilon \sim N(0, \sigma^2)

    Parameters
    ----------
    n_samples : int, default=100
        Number of points of the even grid, including both ends.
    noise : float in [0, inf), default=10.0
        Standard deviation :math:`\sigma`.
    switch : float, default=0.0
        The point s up to which the cubic term is added. At 0, as printed, h jumps by 78; at -4 it is smooth.
    interval : (float, float), default=(-8, 8)
        Ends of the grid.
    return_clean : bool, default=False
        Whether to also return the noise-free values, against which errors should be measured.
    random_state : int, RandomState instance or None, default=None
        Seed of the noise.

    Returns
    -------
    X : ndarray of shape (n_samples, 1)
        The grid.
    y : ndarray of shape (n_samples,)
        Noisy values.
    y_clean : ndarray of shape (n_samples,)
        Values without noise; only with `return_clean`.

    Raises
    ------
    ValueError
        If `noise` is negative, there are no samples, or the ends of the interval are not in order.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, section 4.1, h.

    Examples
    --------
    >>> from sklearn_capacity.datasets import make_noisy_cubic
    >>> X, y = make_noisy_cubic(3, noise=0.0, interval=(-4, 4))
    >>> y.round(2).tolist()
    [29.52, 10.0, 29.52]
    """
    X = _grid(n_samples, interval)
    x = X[:, 0]
    switch = check_interval("switch", switch)
    clean = 10 + 1.22 * x**2 + np.where(x < switch, 1.22 * (x + 4) ** 3, 0.0)
    return _noisy(X, clean, noise, return_clean, random_state)


def make_piecewise_linear_curves(
    n_samples: int = 1000,
    *,
    n_points: int = 100,
    n_pieces: int = 3,
    random_state: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Draw piecewise-linear curves and their changes of slope: an ill-conditioned linear problem.

    .. math:: x_t = \sum_{i=1}^{k} a_i [t - \theta_i]_+, \qquad y_j = \sum_{i: \theta_i = j} a_i, \qquad
        t = 1, \dots, n, \quad j = 0, \dots, n - 1

    with k distinct kinks :math:`\theta_i` drawn uniformly from 0, ..., n - 1 and changes of slope :math:`a_i`
    uniform on [-1, 1].

    Parameters
    ----------
    n_samples : int, default=1000
        Number of curves.
    n_points : int, default=100
        Number n of points of each curve, and length of each target.
    n_pieces : int, default=3
        Number k of kinks of each curve, at most `n_points`.
    random_state : int, RandomState instance or None, default=None
        Seed of kinks and slopes.

    Returns
    -------
    X : ndarray of shape (n_samples, n_points)
        The curves' values.
    y : ndarray of shape (n_samples, n_points)
        The change of slope at each point, with k nonzero values.

    Raises
    ------
    ValueError
        If a size is below 1, or there are more kinks than points.

    Notes
    -----
    y is a linear function of x, the second difference :math:`y_j = x_{j+1} - 2 x_j + x_{j-1}` with
    :math:`x_0 = x_{-1} = 0`, so a linear map fits exactly. But :math:`x = W y` with a matrix W whose condition number
    grows as n squared: gradient descent needs of the order of n^4 steps, natural gradient does not.

    References
    ----------
    T. Liang, T. Poggio, A. Rakhlin, J. Stokes. Fisher-Rao metric, geometry, and complexity of neural networks.
    AISTATS 2019, section 5 and figure 7; S. Shalev-Shwartz, O. Shamir, S. Shammah. Failures of gradient-based deep
    learning. ICML 2017, section 4.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_capacity.datasets import make_piecewise_linear_curves
    >>> X, y = make_piecewise_linear_curves(5, n_points=20, random_state=0)
    >>> padded = np.pad(X, ((0, 0), (2, 0)))
    >>> bool(np.allclose(padded[:, 2:] - 2 * padded[:, 1:-1] + padded[:, :-2], y))
    True
    """
    n_samples, n_points = check_integer("n_samples", n_samples), check_integer("n_points", n_points)
    n_pieces = check_integer("n_pieces", n_pieces, 1, n_points)
    rng = check_random_state(check_seed("random_state", random_state))
    kinks = np.argsort(rng.uniform(size=(n_samples, n_points)), axis=1)[:, :n_pieces]
    y = np.zeros((n_samples, n_points))
    np.put_along_axis(y, kinks, rng.uniform(-1.0, 1.0, size=(n_samples, n_pieces)), axis=1)
    return np.cumsum(np.cumsum(y, axis=1), axis=1), y  # summing twice inverts the second difference


def _grid(n_samples: int, interval: tuple[float, float]) -> np.ndarray:
    n_samples = check_integer("n_samples", n_samples)
    ends = [check_interval("interval", end) for end in as_list("interval", interval)]
    if len(ends) != 2:
        raise ValueError(f"`interval` must have two ends, got {shown(interval)}.")
    low, high = ends
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"`interval` must have finite ends in ascending order, got {shown(interval)}.")
    return np.linspace(low, high, n_samples).reshape(-1, 1)


def _noisy(
    X: np.ndarray, clean: np.ndarray, noise: float, return_clean: bool, random_state: Any
) -> tuple[np.ndarray, ...]:
    noise = check_interval("noise", noise, 0.0, float("inf"), closed="left")
    y = clean + noise * check_random_state(check_seed("random_state", random_state)).standard_normal(len(clean))
    return (X, y, clean) if check_boolean("return_clean", return_clean) else (X, y)
