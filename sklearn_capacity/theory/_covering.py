"""Covering numbers of data models, and the generalisation bound from algorithmic robustness that uses them."""

from __future__ import annotations

import math

from sklearn_capacity._validation import check_integer, check_interval

__all__ = [
    "gaussian_mixture_covering_number",
    "manifold_covering_number",
    "robustness_bound_from_covering",
    "sparse_covering_number",
]

#: The largest number of samples, classes or components.
LARGEST = 2**63 - 1


def gaussian_mixture_covering_number(radius: float, n_components: int, rank: int) -> float:
    r"""Covering number of a Gaussian mixture with low-rank covariances, as stated in [JR].

    .. math:: N(\rho) = L \, (1 + 2 / \rho)^k

    The unit of length is that of the mixture: each component is in a ball of radius 1 of a k-dimensional subspace.

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
        The covering number; may be inf.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, section II-B.

    Examples
    --------
    >>> from sklearn_capacity.theory import gaussian_mixture_covering_number
    >>> gaussian_mixture_covering_number(0.5, n_components=10, rank=2)
    250.0
    """
    n_components = _count("n_components", n_components)
    return n_components * _unit_ball(radius, check_integer("rank", rank, 0))


def sparse_covering_number(radius: float, n_atoms: int, sparsity: int) -> float:
    r"""Covering number of signals that are sparse in a dictionary, as stated in [JR].

    .. math:: N(\rho) = \binom{L}{k} \, (1 + 2 / \rho)^k

    The unit of length is that of the signals: those with the same support are in a ball of radius 1.

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
        The covering number; may be inf.

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
        Constant C_M of the manifold, a length. The expression is a number of balls only if it is at least 1, that is,
        if rho <= C_M.

    Returns
    -------
    float
        The covering number; may be inf.

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
    r"""Bound on the generalisation error of a robust classifier for the 0-1 loss.

    .. math:: \sqrt{\frac{2 K \log 2 + 2 \log(1 / \delta)}{m}}

    Here K = n_classes * covering_number is the number of cells, and no training sample shares a cell with a point that
    is classified differently: every sample has a margin gamma, and the covering number is that of the inputs at radius
    gamma / 2. The bound holds with probability at least 1 - delta over the training set; values above 1 are vacuous.

    Parameters
    ----------
    covering_number : float >= 0
        Covering number of the input space, or of the space of samples if `n_classes` is 1; may be inf.
    m : int >= 1
        Number of training samples.
    delta : float in (0, 1), default=0.05
    n_classes : int >= 1, default=1
        Number of labels, which multiplies the covering number of the inputs.

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
    m, n_classes = _count("m", m), _count("n_classes", n_classes)
    delta = check_interval("delta", delta, 0, 1, closed="neither")
    return math.sqrt((2 * n_classes * covering_number * math.log(2) + 2 * math.log(1 / delta)) / m)


def _count(name: str, value: int) -> int:
    """A number of things, at least one."""
    return check_integer(name, check_integer(name, value, high=math.inf), high=LARGEST)


def _unit_ball(radius: float, dim: int) -> float:
    """Number of balls of `radius` that cover the unit ball in `dim` dimensions."""
    return _power(1 + 2 / check_interval("radius", radius, 0, closed="neither"), dim)


def _power(base: float, exponent: int) -> float:
    """base**exponent, or inf above the largest float."""
    try:
        return base**exponent
    except OverflowError:
        return math.inf
