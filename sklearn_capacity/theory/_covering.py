"""Covering numbers of data models, and the generalisation bound of algorithmic robustness that they enter."""

from __future__ import annotations

import math

from sklearn_capacity._validation import check_integer, check_interval

__all__ = [
    "gaussian_mixture_covering_number",
    "manifold_covering_number",
    "robustness_bound_from_covering",
    "sparse_covering_number",
]


def gaussian_mixture_covering_number(radius: float, n_components: int, rank: int) -> float:
    r"""Covering number of a Gaussian mixture with covariances of low rank, as [JR] states it.

    .. math:: N(\rho) = L \, (1 + 2 / \rho)^k

    The unit of length is that of the mixture: each component lies in a ball of radius 1 of a k-dimensional subspace.

    Parameters
    ----------
    radius : float > 0
        Radius rho of the Euclidean balls. A classifier with margin gamma needs rho = gamma / 2.
    n_components : int >= 1
        Number of Gaussians L.
    rank : int >= 0
        Largest rank k of their covariances.

    Returns
    -------
    float
        May be inf.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, section II-B.

    Examples
    --------
    >>> from sklearn_capacity.theory import gaussian_mixture_covering_number
    >>> gaussian_mixture_covering_number(0.5, n_components=10, rank=2)
    250.0
    """
    n_components = check_integer("n_components", n_components, 1)
    return n_components * _unit_ball(radius, check_integer("rank", rank, 0))


def sparse_covering_number(radius: float, n_atoms: int, sparsity: int) -> float:
    r"""Covering number of the signals that are sparse in a dictionary, as [JR] states it.

    .. math:: N(\rho) = \binom{L}{k} \, (1 + 2 / \rho)^k

    The unit of length is that of the signals: those with one support lie in a ball of radius 1.

    Parameters
    ----------
    radius : float > 0
        Radius rho of the Euclidean balls. A classifier with margin gamma needs rho = gamma / 2.
    n_atoms : int >= 1
        Size L of the dictionary.
    sparsity : int, 0 <= sparsity <= n_atoms
        Number k of atoms in a signal.

    Returns
    -------
    float
        May be inf.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, section II-B.

    Examples
    --------
    >>> from sklearn_capacity.theory import sparse_covering_number
    >>> sparse_covering_number(2.0, n_atoms=4, sparsity=2)  # 6 supports
    24.0
    """
    n_atoms = check_integer("n_atoms", n_atoms, 1)
    sparsity = check_integer("sparsity", sparsity, 0, n_atoms)
    balls = _unit_ball(radius, sparsity)
    supports = math.comb(n_atoms, sparsity)  # an integer of any size
    return supports * balls if supports.bit_length() < 1024 else math.inf


def manifold_covering_number(radius: float, dim: int, constant: float) -> float:
    r"""Covering number of a regular manifold.

    .. math:: N(\rho) = (C_M / \rho)^k

    Parameters
    ----------
    radius : float > 0
        Radius rho of the Euclidean balls. A classifier with margin gamma needs rho = gamma / 2.
    dim : int >= 0
        Dimension k of the manifold.
    constant : float > 0
        Its constant C_M, a length. The expression stands for a number of balls where it is at least 1, so where
        rho <= C_M.

    Returns
    -------
    float
        May be inf.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, section II-B.

    Examples
    --------
    >>> from sklearn_capacity.theory import manifold_covering_number
    >>> manifold_covering_number(0.5, dim=3, constant=2.0)
    64.0
    """
    radius = check_interval("radius", radius, 0, closed="neither")
    constant = check_interval("constant", constant, 0, closed="neither")
    return _power(constant / radius, check_integer("dim", dim, 0))


def robustness_bound_from_covering(covering_number: float, m: int, delta: float = 0.05, n_classes: int = 1) -> float:
    r"""Bound of the generalisation error of a robust classifier under the 0-1 loss.

    .. math:: \sqrt{\frac{2 K \log 2 + 2 \log(1 / \delta)}{m}}

    K = n_classes * covering_number cells, and no training sample shares a cell with a point that is classified
    differently: every one has a margin gamma, and the covering number is that of the inputs at radius gamma / 2. The
    bound holds with probability at least 1 - delta over the training set; above 1 it says nothing.

    Parameters
    ----------
    covering_number : float >= 0
        Of the input space, or of the space of samples if `n_classes` is 1; may be inf.
    m : int >= 1
        Training samples.
    delta : float in (0, 1), default=0.05
    n_classes : int >= 1, default=1
        Labels, which multiply the covering number of the inputs.

    Returns
    -------
    float
        The bound, with probability at least 1 - `delta`.

    References
    ----------
    Xu, Mannor (2012), Robustness and generalization, theorem 3; Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large
    margin deep neural networks, theorems 1 and 2.

    Examples
    --------
    >>> from sklearn_capacity.theory import robustness_bound_from_covering
    >>> round(robustness_bound_from_covering(100, 10_000), 4)
    0.1203
    """
    covering_number = check_interval("covering_number", covering_number, 0)
    m, n_classes = check_integer("m", m, 1), check_integer("n_classes", n_classes, 1)
    delta = check_interval("delta", delta, 0, 1, closed="neither")
    return math.sqrt((2 * n_classes * covering_number * math.log(2) + 2 * math.log(1 / delta)) / m)


def _unit_ball(radius: float, dim: int) -> float:
    """Balls of `radius` that cover the unit ball of a space of `dim` dimensions."""
    return _power(1 + 2 / check_interval("radius", radius, 0, closed="neither"), dim)


def _power(base: float, exponent: int) -> float:
    """base**exponent, inf beyond the largest float."""
    try:
        return base**exponent
    except OverflowError:
        return math.inf
