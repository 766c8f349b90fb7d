"""Flatness measures of Jiang et al. (2020): the displacement of the weights for a given rise of the error rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._validation import check_integer, check_interval, check_option
from ..derivatives.parameter_vector import parameter_vector
from ..graph import Network
from .batch import Batch
from .battery_distances import check_initial_state
from .memory import Peak
from .pass_limits import Parts
from .record import Measure, Measured
from .rise_search import MOST_EVALUATIONS, Scale, check_search, noise_scale_of_rise, worst_scale_of_rise

__all__ = ["MEASURES", "pacbayes", "sharpness_bound"]

FORMS = ("flatness", "init", "orig")


def pacbayes(
    network: Network,
    batch: Batch,
    *,
    form: str = "flatness",
    magnitude: bool = False,
    rise: float = 0.1,
    n_draws: int = 100,
    epsilon: float = 1e-3,
    criterion: str | None = None,
) -> Measured:
    r"""Flatness from the largest Gaussian noise on the weights that the error rate tolerates, or the bound with it.

    .. math::
        \sigma = \max \{ s : E_u L(w + u) - L(w) \le r \}, \qquad u_i \sim N(0, s^2) \text{ or }
        N(0, s^2 w_i^2 + \epsilon^2) \text{ (mag)}

        1 / \sigma^2 \quad \text{(flatness)}

        \|v\|^2 / (4 \sigma^2) + \ln (m / \sigma) + 10 \quad \text{(init, orig)}

        \frac14 \sum_{i=1}^P \ln \frac{\epsilon^2 + (\sigma^2 + 1) \|v\|^2 / P}{\epsilon^2 + \sigma^2 (w_i - w_i^0)^2}
        + \ln (m / \sigma) + 10 \quad \text{(mag, init and orig)}

    for m samples and the P trainable parameters w after folding batch norm, with biases. v is their difference from the
    weights :math:`w^0` before training (init), or w itself (orig). L is the error rate; for regression, or with
    ``criterion="loss"``, the loss. Smaller values suggest better generalisation. The published code passes a variance
    to a function of a standard deviation, so its sigma is the root of this one.

    Parameters
    ----------
    form : "flatness", "init" or "orig", default="flatness"
    magnitude : bool, default=False
        Noise in proportion to the weights.
    rise : float > 0, default=0.1
        r.
    n_draws : int >= 2, default=100
        Number of independent draws of u, the same ones for all s.
    epsilon : float > 0, default=0.001
        With `magnitude`.
    criterion : "error" or "loss", default=None
        None takes the error rate for classification and the loss for regression.

    Returns
    -------
    Measured
        With the standard error from the spread over the draws, and sigma in `info`.

    Raises
    ------
    NotDefinedError
        If no noise raises L this far, or all noise does; if the weights before training are needed but unknown (also
        for orig with `magnitude`).

    Notes
    -----
    Some 20 values of s are tried, each with one forward pass over all the data per draw; all measures of a call share
    them.

    References
    ----------
    Jiang, Neyshabur, Mobahi, Krishnan, Bengio (2020), Fantastic generalization measures and where to find them,
    appendix C, eqs. 48, 49, 53, 56, 57 and 61; Dziugaite et al. (2020), In search of robust measures of generalization.

    Examples
    --------
    The squared loss of f = w x at its minimum rises by s^2 x^2, which is 0.1 for s^2 = 0.1 / 4.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 1, bias=False)
    >>> request = {"flatness": ("pacbayes_flatness", {"n_draws": 4000})}
    >>> X = torch.tensor([[2.0]])
    >>> value = measure_capacity(net, X, net(X).detach()[:, 0], request)["flatness"]
    >>> abs(value - 40) < 4
    True
    """
    check_option("form", form, FORMS)
    check_search(rise, epsilon, criterion)
    check_integer("n_draws", n_draws, 2)
    options: dict[str, Any] = {
        "rise": rise,
        "magnitude": magnitude,
        "epsilon": epsilon,
        "n_draws": n_draws,
        "criterion": criterion,
    }
    point = _Point(network, batch, form, magnitude)
    key = ("pacbayes_sigma", *options.values())
    scale = batch.once(key, lambda: noise_scale_of_rise(network, batch, **options))

    def bound(sigma: float) -> float:
        if form == "flatness":
            return sigma**-2
        penalty = point.magnitude_term(sigma, epsilon, 1.0) if magnitude else point.squared / (4 * sigma**2)
        return penalty + math.log(batch.n_samples / sigma) + 10

    return _at(scale, bound, "sigma")


def sharpness_bound(
    network: Network,
    batch: Batch,
    *,
    form: str = "flatness",
    magnitude: bool = False,
    rise: float = 0.1,
    steps: int = 20,
    epsilon: float = 1e-3,
    delta: float = 1.0,
    criterion: str | None = None,
) -> Measured:
    r"""Flatness from the largest box around the weights that the error rate tolerates, or the bound with it.

    .. math::
        \alpha = \max \{ a : \max_u L(w + u) - L(w) \le r \}, \qquad |u_i| \le a \text{ or } a |w_i| + \epsilon
        \text{ (mag)}

        1 / \alpha^2 \quad \text{(flatness)}

        \|v\|^2 \ln (2 P) / (4 \alpha^2) + \ln (m / \alpha) + 10 \quad \text{(init, orig)}

        \frac14 \sum_{i=1}^P \ln \frac{\epsilon^2 + (\alpha^2 + 4 \ln (2 P / \delta)) \|v\|^2 / P}{\epsilon^2 +
        \alpha^2 (w_i - w_i^0)^2} + \ln (m / \alpha) + 10 \quad \text{(mag, init and orig)}

    with the notation of `pacbayes`. Steepest ascent on the training loss from w searches for the maximum over u, so it
    is a lower bound and alpha an upper one. Smaller values suggest better generalisation.

    Parameters
    ----------
    form : "flatness", "init" or "orig", default="flatness"
    magnitude : bool, default=False
        A box in proportion to the weights.
    rise : float > 0, default=0.1
        r.
    steps : int >= 1, default=20
        Number of steps of each ascent; its largest L counts.
    epsilon : float > 0, default=0.001
        With `magnitude`.
    delta : float in (0, 1], default=1
        With `magnitude`; 1 omits it, as in the bound without magnitudes.
    criterion : "error" or "loss", default=None
        None takes the error rate for classification and the loss for regression.

    Returns
    -------
    Measured
        With alpha in `info`.

    Raises
    ------
    NotDefinedError
        If no box raises L this far, or all do; if the weights before training are needed but unknown (also for
        orig with `magnitude`).

    Notes
    -----
    Some 20 values of a are tried, each with a forward and a backward pass over all the data per step; all measures of a
    call share them.

    References
    ----------
    Jiang, Neyshabur, Mobahi, Krishnan, Bengio (2020), Fantastic generalization measures and where to find them,
    appendix C, eqs. 50, 51, 54, 59, 60 and 62.

    Examples
    --------
    The squared loss of f = w x at its minimum rises by (a x)^2 at most, which is 0.1 for a^2 = 0.1 / 4.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 1, bias=False)
    >>> X = torch.tensor([[2.0]])
    >>> value = measure_capacity(net, X, net(X).detach()[:, 0], "sharpness_flatness")["sharpness_flatness"]
    >>> abs(value - 40) < 0.1
    True
    """
    check_option("form", form, FORMS)
    check_interval("delta", delta, 0, 1, closed="right")
    check_search(rise, epsilon, criterion)
    check_integer("steps", steps)
    options: dict[str, Any] = {
        "rise": rise,
        "magnitude": magnitude,
        "epsilon": epsilon,
        "steps": steps,
        "criterion": criterion,
    }
    point = _Point(network, batch, form, magnitude)
    key = ("sharpness_alpha", *options.values())
    scale = batch.once(key, lambda: worst_scale_of_rise(network, batch, **options))

    def bound(alpha: float) -> float:
        if form == "flatness":
            return alpha**-2
        if magnitude:
            penalty = point.magnitude_term(alpha, epsilon, 4 * math.log(2 * point.size / delta))
        else:
            penalty = point.squared * math.log(2 * point.size) / (4 * alpha**2)
        return penalty + math.log(batch.n_samples / alpha) + 10

    return _at(scale, bound, "alpha")


class _Point:
    """The parameter vector and the quantities of the bounds."""

    def __init__(self, network: Network, batch: Batch, form: str, magnitude: bool):
        vector = parameter_vector(network)
        self.size = sum(tensor.numel() for tensor in vector.tensors)
        self.change: Tensor | None = None
        if form == "init" or (form == "orig" and magnitude):
            check_initial_state(network)
            self.change = _flat(vector.tensors) - _flat(vector.initial())  # (P,)
        length = self.change if form == "init" and self.change is not None else _flat(vector.tensors)
        self.squared = float(length.square().sum())

    def magnitude_term(self, scale: float, epsilon: float, extra: float) -> float:
        assert self.change is not None
        log_top = math.log(epsilon**2 + (scale**2 + extra) * self.squared / self.size)
        return (self.size * log_top - float((epsilon**2 + scale**2 * self.change.square()).log().sum())) / 4


def _flat(tensors: Any) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def _at(scale: Scale, bound: Callable[[float], float], name: str) -> Measured:
    """The bound at a scale, with the standard error that follows from the scale's."""
    value, step = bound(scale.value), 1e-4 * scale.value
    error = None
    if scale.standard_error is not None:
        slope = (bound(scale.value + step) - bound(scale.value - step)) / (2 * step)
        error = abs(slope) * scale.standard_error if scale.standard_error else 0.0
    return Measured(value, standard_error=error, info={name: scale.value, "tried": scale.evaluations})


def _record(name: str, equation: int, function: Any, description: str, form: str, magnitude: bool) -> Measure:
    needs = {"data", "labels", "loss"}
    from_start = form == "init" or (form == "orig" and magnitude)
    fixed: dict[str, Any] = {"form": form, "magnitude": magnitude}
    if not magnitude:  # a constant that the formula lacks is not offered as a parameter
        fixed |= {"epsilon": 1e-3} if function is pacbayes else {"epsilon": 1e-3, "delta": 1.0}
    elif form == "flatness" and function is sharpness_bound:
        fixed["delta"] = 1.0
    return Measure(
        name,
        function,
        family="battery",
        source=f"Jiang et al. (2020), eq. {equation}",
        needs=frozenset(needs | {"initial_state"} if from_start else needs),
        cost="draws" if function is pacbayes else "ascent",
        invariances=frozenset() if from_start else frozenset({"permutation"}),
        stochastic=True,
        signed=form != "flatness",
        fixed=fixed,
        description=description,
        memory=Peak(vectors=6, passes=2),
        limits=_noise_limits if function is pacbayes else _ascent_limits,
    )


def _noise_limits(network: Network, batch: Batch, *, n_draws: int, magnitude: bool, **params: Any) -> Parts:
    chosen = (magnitude, *(params.get(name) for name in ("rise", "epsilon", "criterion")))
    return {("sigma", n_draws, *chosen): 2 + n_draws * (MOST_EVALUATIONS + 3)}


def _ascent_limits(network: Network, batch: Batch, *, steps: int, magnitude: bool, **params: Any) -> Parts:
    """Two ascents for each box, the second where the first has not risen."""
    chosen = (magnitude, *(params.get(name) for name in ("rise", "epsilon", "criterion")))
    return {("alpha", steps, *chosen): 2 + 2 * (3 * steps + 1) * MOST_EVALUATIONS}


def _records() -> list[Measure]:
    records = []
    families = (
        ("pacbayes", pacbayes, "Gaussian noise", (53, 48, 49, 61, 56, 57)),
        ("sharpness", sharpness_bound, "a move", (54, 50, 51, 62, 59, 60)),
    )
    words = {
        "flatness": "One over the squared scale at which {} of the weights raises the error rate by 0.1",
        "init": "Bound from {} of the weights that raises the error rate by 0.1, around those before training",
        "orig": "Bound from {} of the weights that raises the error rate by 0.1, around zero",
    }
    for short, function, what, equations in families:
        numbers = iter(equations)
        for magnitude in (False, True):
            for form in FORMS:
                text = words[form].format(f"{what} by magnitude" if magnitude else what) + "."
                name = f"{short}_{'mag_' * magnitude}{form}"
                records.append(_record(name, next(numbers), function, text, form, magnitude))
    return records


MEASURES = tuple(_records())
