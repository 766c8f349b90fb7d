"""Properties of a model beyond single numbers: sharpness against divergence, and the interaction of its layers."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from .._validation import check_integer, check_numbers
from ..measures.hidden_margins import layer_margins
from ..measures.interaction import DELTAS
from ..measures.interaction import interaction_conditions as _conditions
from ..measures.margins import sample_margins as margins_of_samples
from ..process_state import computing, keeps_modes
from .measurement import Session
from .requests import parse_measures

__all__ = ["bicriteria_curve", "hidden_margins", "interaction_conditions", "sample_margins"]


@keeps_modes
def bicriteria_curve(
    model: Any,
    X: Any,
    y: Any,
    alphas: Sequence[float],
    *,
    n_draws: int = 1000,
    random_state: Any = None,
    loss: str | None = None,
    classes: Any = None,
    max_samples: int | None = None,
    batch_size: int | None = None,
    device: Any = None,
    verbose: int = 0,
) -> np.ndarray:
    """Compute expected sharpness and Kullback-Leibler divergence for several strengths of noise on the weights.

    Of two networks, the one with the lower curve generalises better: its loss rises less at the same divergence.

    Parameters
    ----------
    model : estimator, skorch net, nn.Module, or a Pipeline, target transformer or fitted search around one
        As in `measure_capacity`.
    X : array-like or Tensor of shape (n_samples, ...)
        Training data.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
    alphas : sequence of float > 0
        Scales of the noise: its standard deviation is alpha (10 abs(w) + 1) for a weight w.
    n_draws : int >= 2, default=1000
        Number of draws of the noise; all alphas share the draws, so that the curve is smooth.
    random_state : int, RandomState or None, default=None
        Seed of the noise. With None, every call uses a new seed.
    loss : "cross_entropy", "hinge", "squared", "absolute" or None, default=None
        As in `measure_capacity`.
    classes, max_samples, batch_size, device
        As in `measure_capacity`.
    verbose : int, default=0
        1 shows the progress.

    Returns
    -------
    ndarray of shape (n_alphas, 2)
        Expected sharpness and divergence, in the order of `alphas`.

    Raises
    ------
    ValueError
        If an alpha is not positive, or the model cannot be measured.

    See Also
    --------
    displays.BicriteriaDisplay : Draws the curves of several models.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, figures 2-4.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn_capacity import bicriteria_curve
    >>> X, y = load_digits(return_X_y=True)
    >>> model = LogisticRegression(max_iter=300).fit(X / 16, y)
    >>> curve = bicriteria_curve(model, X / 16, y, [1e-3, 1e-2], n_draws=20, random_state=0)
    >>> bool(curve[0, 0] < curve[1, 0]), bool(curve[0, 1] > curve[1, 1])
    (True, True)
    """
    strengths = [alphas] if isinstance(alphas, numbers.Real) else alphas
    strengths = check_numbers("alphas", strengths, 0, math.inf, closed="neither")
    check_integer("n_draws", n_draws, 2)
    session = Session(
        model,
        X,
        y,
        loss=loss,
        classes=classes,
        max_samples=max_samples,
        batch_size=batch_size,
        device=device,
        random_state=_seed(random_state),
        verbose=verbose,
    )
    points = []
    for alpha in strengths:
        noise = {"alpha": alpha}
        entries = {"sharpness": ("expected_sharpness", {**noise, "n_draws": n_draws}), "kl": ("kl_divergence", noise)}
        requests, _ = parse_measures(entries)
        points.append([session.run(request).value for request in requests])
    return np.array(points)


def _seed(random_state: Any) -> int:
    if random_state is None:  # not from numpy's global generator, which must not change
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    return check_integer("random_state", random_state, 0)


@keeps_modes
def interaction_conditions(
    model: Any,
    X: Any,
    *,
    deltas: Sequence[float] = DELTAS,
    max_samples: int | None = None,
    batch_size: int | None = None,
    device: Any = None,
) -> pd.DataFrame:
    r"""Compute the constants of three conditions under which a rectifier network has small expected sharpness.

    For the network :math:`f(x) = W_d D_{d-1} W_{d-1} \cdots D_1 W_1 x` with the states D_i(x) of its units, D_d = I,
    :math:`P_{a:b} = D_b W_b \cdots D_a W_a`, x = W_0 of unit norm and D_0 = I:

    - C1, layers (a, c, b): the largest :math:`\mu` with :math:`\|P_{a:b}\|_F \ge \mu \|P_{c+1:b}\|_F \|P_{a:c}\|_F /
      \sqrt{h_c}`. Larger is better: the layers do not cancel each other.
    - C2, layer (k,): the smallest C with (fraction of units whose pre-activation is at most :math:`\delta` in absolute
      value) <= C :math:`\delta` over the grid. Smaller is better: few units are about to switch. Hidden layers only.
    - C3, layer (i,): the smallest C with :math:`\sqrt{h_i} \max_j \|W_{i,j}\|_2 \le C \|D_i W_i\|_F`. Smaller is
      better: no unit is far larger than the others.

    Parameters
    ----------
    model : estimator, skorch net, nn.Module, or a Pipeline, target transformer or fitted search around one
        A chain of fully connected layers without biases, with a rectifier between them.
    X : array-like or Tensor of shape (n_samples, ...)
        The function scales samples to unit norm.
    deltas : sequence of float > 0, default=0.001 to 1
        Grid of C2.
    max_samples, batch_size, device
        As in `measure_capacity`.

    Returns
    -------
    DataFrame
        Columns ``condition`` ("C1", "C2" or "C3"), ``layers`` (tuple), ``sample`` (position in X) and ``value``. C1
        covers all 0 <= a <= c < b <= d; the paper prints a < c, but its lemma 1 also needs c = a.

    Raises
    ------
    UnsupportedLayerError
        For any other network; the message names the layer.

    Notes
    -----
    The cost is d^2 / 2 products of weight matrices per sample.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, section 4 and
    appendix D. The paper prints C2 without the absolute value, which would make it infinite.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import interaction_conditions
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> for layer in (net[0], net[2]):
    ...     _ = layer.weight.data.fill_(1.0)
    >>> table = interaction_conditions(net, torch.tensor([[3.0, 4.0]]))
    >>> table[table.condition == "C3"].value.round(6).tolist()
    [1.0, 1.0]
    """
    session = Session(model, X, max_samples=max_samples, batch_size=batch_size, device=device)
    return _conditions(session.network, session.batch, deltas=deltas)


@keeps_modes
def sample_margins(model: Any, X: Any, y: Any, classes: Any = None) -> np.ndarray:
    """The margins f_y - max_{k != y} f_k of all samples, shape (n,), for any model that can be measured."""
    session = Session(model, X, y, classes=classes)
    return margins_of_samples(session.batch).copy()


@keeps_modes
def hidden_margins(model: Any, X: Any, y: Any, classes: Any = None) -> dict[str, np.ndarray]:
    """Margins at the input and in the hidden layers, (n,) for each weight layer, as `hidden_margin` has them."""
    session = Session(model, X, y, classes=classes)
    with computing(), torch.inference_mode(False):
        return {label: values.copy() for label, values in layer_margins(session.network, session.batch).items()}
