"""The training regime of [GL] 4.1.1 as pure functions of the epoch."""

from __future__ import annotations

import numbers

from sklearn_capacity._validation import check_integer, check_interval

__all__ = ["nu_schedule", "slow_learning_factor", "slow_start"]


def nu_schedule(
    epoch: int, max_epochs: int, start: float = 1.0, end: float = 0.1, decay_fraction: float = 0.8
) -> float:
    r"""Strength of the skip in an epoch: linear from `start` to `end`, then constant.

    .. math:: \nu(t) = s + (e - s) \min(1, t / (q T)), \qquad t = 0, 1, \dots

    with s `start`, e `end`, q `decay_fraction`, T `max_epochs`.

    Parameters
    ----------
    epoch : int
        Number of completed epochs: 0 in the first epoch. After `max_epochs` the value stays at `end`.
    max_epochs : int
        Number of epochs of the entire training.
    start, end : float in (0, inf), default=1.0 and 0.1
        Initial and final strength.
    decay_fraction : float in [0, 1], default=0.8
        Share of training after which `end` is reached ([GL] figure 7: 0.5); with 0, nu is always `end`.

    Returns
    -------
    float
        nu for this epoch.

    Raises
    ------
    ValueError
        If a value is outside its range.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, section 4.1.1.

    Examples
    --------
    >>> from sklearn_capacity.layers import nu_schedule
    >>> [round(nu_schedule(epoch, 10), 3) for epoch in (0, 4, 8, 9)]
    [1.0, 0.55, 0.1, 0.1]
    """
    epoch, max_epochs = check_integer("epoch", epoch, 0), check_integer("max_epochs", max_epochs)
    start = check_interval("start", start, 0.0, float("inf"), closed="neither")
    end = check_interval("end", end, 0.0, float("inf"), closed="neither", cure="0 would cut the network.")
    check_interval("max_epochs", max_epochs, closed="neither")  # some integers are beyond floats
    length = check_interval("decay_fraction", decay_fraction, 0.0, 1.0) * max_epochs
    if epoch >= length:
        return end
    return start + (end - start) * epoch / length


def slow_start(slow_after: int | float, max_epochs: int) -> int:
    """Return the epoch from which the generalization layer's weights learn slowly.

    Parameters
    ----------
    slow_after : int or float
        An int is a number of epochs (0: from the start); a float in [0, 1] is a fraction of `max_epochs`, rounded to
        the nearest epoch. So 1 means after one epoch, and 1.0 means never.
    max_epochs : int
        Number of epochs of the entire training.

    Returns
    -------
    int
        Epochs to be done at the full rate.

    Raises
    ------
    TypeError
        If `slow_after` is not a number.
    ValueError
        If it is negative, or a fraction above 1.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, section 4.1.1 (20 epochs).

    Examples
    --------
    >>> from sklearn_capacity.layers import slow_start
    >>> slow_start(20, 300), slow_start(0.1, 300)
    (20, 30)
    """
    max_epochs = check_integer("max_epochs", max_epochs)
    if isinstance(slow_after, numbers.Integral):
        return check_integer("slow_after", slow_after, 0)
    cure = "A float is a fraction of the epochs; pass an int for a number of epochs."
    return round(check_interval("slow_after", slow_after, 0.0, 1.0, cure=cure) * max_epochs)


def slow_learning_factor(epoch: int, max_epochs: int, slow_after: int | float = 20, slow_factor: float = 0.1) -> float:
    """Return the factor of the learning rate for the generalization layer's own weights in an epoch.

    Parameters
    ----------
    epoch : int
        Number of completed epochs: 0 in the first epoch.
    max_epochs : int
        Number of epochs of the entire training.
    slow_after : int or float, default=20
        Start of the slow phase; see `slow_start`.
    slow_factor : float in [0, inf), default=0.1
        The factor from then on; 0 freezes the weights.

    Returns
    -------
    float
        1 before the slow phase, `slow_factor` during it.

    Raises
    ------
    ValueError
        If a value is outside its range.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, section 4.1.1.

    Examples
    --------
    >>> from sklearn_capacity.layers import slow_learning_factor
    >>> [slow_learning_factor(epoch, 100) for epoch in (0, 19, 20, 99)]
    [1.0, 1.0, 0.1, 0.1]
    """
    epoch = check_integer("epoch", epoch, 0)
    slow_factor = check_interval("slow_factor", slow_factor, 0.0, float("inf"), closed="left")
    return slow_factor if epoch >= slow_start(slow_after, max_epochs) else 1.0
