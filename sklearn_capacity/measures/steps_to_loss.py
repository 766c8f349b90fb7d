"""The number of gradient descent steps to a given training loss."""

from __future__ import annotations

import math
from typing import Any

import torch
from tqdm import tqdm

from .._validation import check_integer, check_interval, check_option, warn
from ..derivatives.parameter_vector import raw_parameter_vector
from ..graph import Network
from .batch import Batch
from .battery_distances import check_initial_state
from .losses import mean_loss
from .memory import Peak
from .moved_weights import MovedWeights
from .pass_limits import UNSHARED, Parts, share_of
from .record import Measure, Measured

__all__ = ["MEASURES", "steps_to_loss"]


def steps_to_loss(
    network: Network,
    batch: Batch,
    *,
    threshold: float = 0.1,
    start: str = "initial",
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    batch_size: int = 64,
    check_every: int = 10,
    max_steps: int = 5000,
) -> Measured:
    r"""Steps of stochastic gradient descent until the training loss is below a threshold.

    .. math:: \min \{ t : L(w_t) \le \theta \}

    L is the mean loss over all the data and :math:`w_t` the trainable parameters of the module, not folded, after t
    steps from the weights before training, or from the trained ones (the remaining steps). Smaller (a loss that is
    easily learned) suggests better generalisation. 0 if the start is below the threshold, and infinite, with a
    warning, if `max_steps` are not enough.

    Parameters
    ----------
    threshold : float > 0, default=0.1
    start : "initial" or "trained", default="initial"
    learning_rate : float > 0, default=0.01
    momentum : float in [0, 1), default=0.9
        Settings of this descent, independent of how the network was trained.
    batch_size : int >= 1, default=64
        Number of samples per step, drawn without replacement.
    check_every : int >= 1, default=10
        Number of steps between two evaluations of the loss on all the data; the result is a multiple of it.
    max_steps : int >= 1, default=5000

    Returns
    -------
    Measured
        With the final loss in `info`.

    Raises
    ------
    NotDefinedError
        If there are no trainable parameters; with start="initial" if the weights before training are unknown.

    Warns
    -----
    CapacityWarning
        If the threshold was not reached.

    Notes
    -----
    The cost is one forward and backward pass over a mini-batch per step, and one forward pass over all data per check.
    Dropout is off, and batch norm keeps its current statistics.

    References
    ----------
    Jiang, Neyshabur, Mobahi, Krishnan, Bengio (2020), Fantastic generalization measures and where to find them,
    appendix C.

    Examples
    --------
    The squared loss w^2 of one sample decreases by the factor (1 - 2 * 0.25)^2 in every step.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 1, bias=False)
    >>> _ = net.weight.data.fill_(1.0)
    >>> descent = {"start": "trained", "learning_rate": 0.25, "momentum": 0.0, "check_every": 1}
    >>> request = {"steps": ("steps_to_loss", descent)}
    >>> measure_capacity(net, torch.ones(1, 1), torch.zeros(1), request)  # 1, 1/4, 1/16
    {'steps': 2.0}
    """
    check_interval("threshold", threshold, 0, math.inf, closed="neither")
    check_option("start", start, ("initial", "trained"))
    check_interval("learning_rate", learning_rate, 0, math.inf, closed="neither")
    check_interval("momentum", momentum, 0, 1, closed="left")
    for name, value in (("batch_size", batch_size), ("check_every", check_every), ("max_steps", max_steps)):
        check_integer(name, value)
    vector = raw_parameter_vector(network, "A number of steps")
    weights = MovedWeights(network, batch, vector, batch_size=batch_size)
    if start == "initial":
        check_initial_state(network)
        for view, before in zip(weights.theta.views, vector.initial(), strict=True):
            view.copy_(before)
    samples, velocity = weights.samples(batch.generator()), torch.zeros_like(weights.theta.flat)  # velocity: (P,)
    steps, loss = 0, float(mean_loss(batch, weights.forward))
    with tqdm(desc="steps to a loss", total=max_steps, disable=not batch.verbose, leave=False) as bar:
        while loss > threshold and math.isfinite(loss) and steps < max_steps:
            for _ in range(min(check_every, max_steps - steps)):
                velocity.mul_(momentum)
                torch._foreach_add_(weights.theta.split(velocity), weights.gradients(next(samples)))
                weights.theta.flat.sub_(velocity, alpha=learning_rate)
                steps += 1
                bar.update()
            loss = float(mean_loss(batch, weights.forward))
    if loss <= threshold:
        return Measured(float(steps), info={"loss": loss})
    warn(
        f"The loss is {loss:.4g} after {steps} steps and not {threshold:g}. Take another `learning_rate`, or more "
        "`max_steps`."
    )
    return Measured(math.inf, info={"loss": loss, "steps": steps})


def _limits(
    network: Network, batch: Batch, *, batch_size: int, check_every: int, max_steps: int, **params: Any
) -> Parts:
    return {UNSHARED: 1 + 3 * max_steps * share_of(batch, batch_size) + math.ceil(max_steps / check_every)}


MEASURES = (
    Measure(
        "steps_to_loss",
        steps_to_loss,
        family="battery",
        source="Jiang et al. (2020), appendix C",
        needs=frozenset({"data", "labels", "loss"}),
        cost="ascent",
        unit="steps",
        invariances=frozenset({"permutation"}),
        stochastic=True,
        memory=Peak(vectors=4, passes=2),
        limits=_limits,
    ),
)
