"""The rise of the loss when the weights are perturbed, at worst and on average ([EG] section 2.4)."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from .._validation import check_integer, check_interval, check_option, shown, warn
from ..derivatives.parameter_vector import parameter_vector
from ..derivatives.perturbation import FlatParameters, ProjectedAscent, displacements
from ..graph import Network
from .batch import Batch
from .losses import mean_loss
from .memory import Peak
from .moved_weights import MovedWeights
from .pass_limits import UNSHARED, Parts, share_of
from .record import Measure, Measured, NotDefinedError

__all__ = [
    "MEASURES",
    "NOISES",
    "check_tolerance",
    "expected_sharpness",
    "finite_loss",
    "max_sharpness",
    "mean_rise",
    "noise_scale",
]

NOISES = ("magnitude", "spherical")
#: With a tolerance: pairs of draws between two looks at the standard error, checks of the loss that an ascent may
#: pass without a rise, and the fewest restarts whose spread counts.
PAIRS_PER_LOOK, PATIENCE, FEWEST_RESTARTS = 16, 5, 3


def noise_scale(weights: Tensor, alpha: float, noise: str, sigma: float | None) -> Tensor | float:
    """Standard deviation of the noise on every parameter: alpha (10 abs(w) + 1) ([EG] appendix A), or sigma."""
    check_option("noise", noise, NOISES)
    if noise == "spherical":
        if sigma is None:
            raise ValueError('`sigma` must be a number with noise="spherical", got None.')
        return check_interval("sigma", sigma, 0, math.inf, closed="neither")
    if sigma is not None:
        raise ValueError(
            f'`sigma` must be None with noise="magnitude", got {shown(sigma)}. Set `alpha`, or noise="spherical".'
        )
    check_interval("alpha", alpha, 0, math.inf, closed="neither")
    return weights.abs().mul_(10).add_(1).mul_(alpha)


def expected_sharpness(
    network: Network,
    batch: Batch,
    *,
    alpha: float = 1e-3,
    n_draws: int = 1000,
    noise: str = "magnitude",
    sigma: float | None = None,
    tolerance: float | None = None,
) -> Measured:
    r"""Mean rise of the loss under Gaussian noise on the weights.

    .. math:: E_v [L(w + v)] - L(w), \qquad v_i \sim N(0, s_i^2)

    L is the mean loss over all the data (cross-entropy or hinge; squared or absolute error, averaged over the outputs
    as in training) and w holds the trainable parameters after folding batch norm, including biases. Smaller values
    suggest better generalisation, but only in combination with `kl_divergence` at the same noise: `bicriteria_curve`
    gives both. The value may be negative.

    Parameters
    ----------
    alpha : float > 0, default=1e-3
        Scale of the magnitude noise.
    n_draws : int >= 2, default=1000
        Number of draws of the noise, in antithetic pairs v, -v; an odd number is rounded up. With a `tolerance`, the
        largest number.
    noise : "magnitude" or "spherical", default="magnitude"
        s_i = alpha (10 abs(w_i) + 1), or s_i = sigma for every parameter.
    sigma : float > 0, default=None
        Standard deviation of the spherical noise.
    tolerance : float > 0, default=None
        Stop drawing once the standard error is at most this, which is looked at every 32 draws.

    Returns
    -------
    Measured
        With the standard error over the pairs (None for a single pair); the number of draws is in `info`.

    Raises
    ------
    NotDefinedError
        If the loss of the network is not finite.

    Notes
    -----
    The cost is one forward pass over all the data per draw. The estimate is unbiased; the pairs cancel terms that are
    odd in v, so for small noise the spread comes from the curvature alone.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, eq. 7 and appendix A.

    Examples
    --------
    The model f = w x with squared loss at w = 0, x = 1, y = 0: E v^2 = sigma^2 = 0.01.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 1, bias=False)
    >>> _ = net.weight.data.zero_()
    >>> noise = {"noise": "spherical", "sigma": 0.1, "n_draws": 4000}
    >>> sharpness = {"s": ("expected_sharpness", noise)}
    >>> s = measure_capacity(net, torch.ones(1, 1), torch.zeros(1), sharpness)["s"]
    >>> round(s, 3)
    0.01
    """
    n_pairs = (check_integer("n_draws", n_draws, 2) + 1) // 2
    check_tolerance(tolerance)
    vector = parameter_vector(network)
    theta = FlatParameters(vector.tensors)
    scale = noise_scale(theta.center, alpha, noise, sigma)
    forward = vector.bind(theta.views)
    start = finite_loss(batch, forward)
    draws = displacements(theta, scale, 2 * n_pairs, batch.generator(), antithetic=True)
    return mean_rise(batch, forward, start, draws, n_pairs, tolerance)


def check_tolerance(tolerance: float | None) -> None:
    """Raise unless it is None or a number above 0."""
    if tolerance is not None:
        check_interval("tolerance", tolerance, 0, math.inf, closed="neither")


@torch.no_grad()
def mean_rise(
    batch: Batch,
    forward: Callable[[Tensor], Tensor],
    start: float,
    draws: Generator[None, None, None],
    n_pairs: int,
    tolerance: float | None = None,
) -> Measured:
    """Mean over draws of the weights, in pairs v, -v, of the rise of the loss above its initial value.

    With a tolerance, the draws end once the standard error is at most that.
    """
    losses: list[Tensor] = []  # () each
    with closing(draws):  # the weights are reset even if draws are left
        for _ in _counted(draws, batch, 2 * n_pairs):
            losses.append(mean_loss(batch, forward))
            if tolerance is not None and len(losses) % (2 * PAIRS_PER_LOOK) == 0:
                if float(_standard_error(_of_pairs(losses))) <= tolerance:
                    break
    rises = _of_pairs(losses) - start  # (pairs,)
    error = float(_standard_error(rises)) if len(rises) > 1 else None
    return Measured(float(rises.mean()), standard_error=error, info={"loss": start, "draws": len(losses)})


def _counted(draws: Iterator[None], batch: Batch, total: int) -> tqdm:
    return tqdm(draws, desc="expected sharpness", total=total, unit="draw", disable=not batch.verbose, leave=False)


def _of_pairs(losses: Sequence[Tensor]) -> Tensor:
    """The mean loss of each pair v, -v: (pairs,)."""
    return torch.stack(list(losses)).reshape(-1, 2).mean(1)


def _standard_error(values: Tensor) -> Tensor:
    """That of the mean of independent values (n,)."""
    return values.std() / math.sqrt(len(values))


def finite_loss(batch: Batch, forward: Callable[[Tensor], Tensor]) -> float:
    """The loss at the current weights, if it is finite."""
    loss = float(mean_loss(batch, forward))
    if not math.isfinite(loss):
        raise NotDefinedError(f"Sharpness is not defined for a network whose loss is {loss}. Has training diverged?")
    return loss


def max_sharpness(
    network: Network,
    batch: Batch,
    *,
    alpha: float = 5e-4,
    steps: int = 2000,
    batch_size: int = 64,
    learning_rate: float = 0.01,
    momentum: float = 0.9,
    check_every: int = 50,
    n_restarts: int = 1,
    normalize: bool = True,
    tolerance: float | None = None,
) -> Measured:
    r"""Largest rise of the loss found in a box around the weights.

    .. math:: \frac{\max_{|v_i| \le \alpha (|w_i| + 1)} L(w + v) - L(w)}{1 + L(w)}

    L is the mean loss over all the data and w holds the trainable parameters after folding batch norm, as in
    `expected_sharpness`. Projected stochastic gradient ascent from w searches for the maximum, so the value is a lower
    bound of it, and never negative. Smaller values suggest better generalisation, but the value depends on the scale of
    the weights and does not control capacity alone.

    Parameters
    ----------
    alpha : float > 0, default=5e-4
    steps : int >= 1, default=2000
        Number of ascent steps.
    batch_size : int >= 1, default=64
        Samples per step, drawn without replacement.
    learning_rate : float > 0, default=0.01
    momentum : float in [0, 1), default=0.9
    check_every : int >= 1, default=50
        Number of steps between two evaluations of the loss on all the data, of which the largest counts.
    n_restarts : int >= 1, default=1
        Number of ascents with different batches, of which the best counts.
    normalize : bool, default=True
        Divide by 1 + L(w), as in Keskar et al.; [EG] omits the divisor.
    tolerance : float > 0, default=None
        Stop early, in the unit of the value: an ascent, once five checks in a row have not raised its result by more
        than this; the restarts, once the standard deviation over three or more is at most this.

    Returns
    -------
    Measured
        With the standard deviation over the restarts as standard error, if there is more than one; the numbers of steps
        and restarts are in `info`.

    Raises
    ------
    NotDefinedError
        If the loss of the network is not finite.

    Warns
    -----
    CapacityWarning
        If the loss never rose; the value is then 0.

    Notes
    -----
    The cost is one forward and backward pass over a mini-batch per step, and one forward pass over all data per check.

    References
    ----------
    Keskar et al. (2017), On large-batch training for deep learning, metric 2.1; Neyshabur et al. (2017), Exploring
    generalization in deep learning, eq. 4 and appendix A.

    Examples
    --------
    The model f = w x with absolute loss at w = 1, x = 1, y = 0: the worst w is 1 + alpha (1 + 1), and the loss at w is
    1.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 1, bias=False)
    >>> _ = net.weight.data.fill_(1.0)
    >>> box = {"alpha": 0.1, "steps": 50, "normalize": False}
    >>> value = measure_capacity(
    ...     net, torch.ones(4, 1), torch.zeros(4), {"s": ("max_sharpness", box)}, loss="absolute"
    ... )["s"]
    >>> round(value, 6)
    0.2
    """
    check_interval("alpha", alpha, 0, math.inf, closed="neither")
    check_interval("learning_rate", learning_rate, 0, math.inf, closed="neither")
    check_interval("momentum", momentum, 0, 1, closed="left")
    for name, value in (("steps", steps), ("batch_size", batch_size), ("check_every", check_every)):
        check_integer(name, value)
    check_integer("n_restarts", n_restarts)
    check_tolerance(tolerance)
    search = _Search(network, batch, alpha=alpha, batch_size=batch_size)
    factor = 1 / (1 + search.start) if normalize else 1.0
    least = 0.0 if tolerance is None else tolerance / factor  # the tolerance in units of the loss
    generator = batch.generator()
    ascents: list[_Ascent] = []
    with tqdm(total=steps * n_restarts, desc="max sharpness", disable=not batch.verbose, leave=False) as bar:
        while len(ascents) < n_restarts and not _settled([a.loss for a in ascents], least):
            ascents.append(search.ascend(generator, steps, check_every, learning_rate, momentum, bar, least))
    rises = [ascent.loss - search.start for ascent in ascents]
    best = max(range(len(rises)), key=lambda i: rises[i])
    if rises[best] <= 0:
        warn(
            f"No step of the ascent raised the loss above {search.start:.6g}: a sharpness of 0 means that no rise was "
            "found, not that there is none. Try a larger `learning_rate`, or more `steps`.",
        )
    chosen = ascents[best]
    return Measured(
        rises[best] * factor,
        standard_error=_spread(rises) * factor if len(rises) > 1 else None,
        info={"loss": search.start, "steps": chosen.steps, "best_step": chosen.best_step, "restarts": len(ascents)},
    )


def _settled(losses: Sequence[float], least: float) -> bool:
    """Whether the restarts vary so little that further ones may be left out; never without a tolerance."""
    return least > 0 and len(losses) >= FEWEST_RESTARTS and _spread(losses) <= least


def _spread(values: Sequence[float]) -> float:
    """The standard deviation, which is NaN if a value is infinite."""
    return float(torch.tensor(values, dtype=torch.float64, device="cpu").std())


class _Ascent(NamedTuple):
    """The largest loss in one ascent, its step, and the number of steps."""

    loss: float
    best_step: int
    steps: int


class _Search(MovedWeights):
    """Gradient ascent from the weights of a network."""

    def __init__(self, network: Network, batch: Batch, *, alpha: float, batch_size: int):
        super().__init__(network, batch, parameter_vector(network), batch_size=batch_size)
        self.radius = self.theta.center.abs().add_(1).mul_(alpha)
        self.start = finite_loss(batch, self.forward)

    def ascend(
        self,
        generator: torch.Generator,
        steps: int,
        check_every: int,
        learning_rate: float,
        momentum: float,
        bar: tqdm,
        least: float,
    ) -> _Ascent:
        """One ascent of some steps, which ends early if it has stopped rising by more than `least` (if above 0)."""
        best, risen, idle = (self.start, 0), self.start, 0
        ascent = ProjectedAscent(self.theta, self.radius, learning_rate=learning_rate, momentum=momentum)
        samples = self.samples(generator)
        try:
            for step in range(1, steps + 1):
                ascent.step(self.gradients(next(samples)))
                bar.update()
                if step % check_every == 0 or step == steps:
                    loss = float(mean_loss(self.batch, self.forward))
                    if loss > best[0]:
                        best = loss, step
                    risen, idle = (loss, 0) if loss > risen + least else (risen, idle + 1)
                    if least > 0 and idle == PATIENCE:
                        break
        finally:
            self.theta.restore()
        return _Ascent(*best, step)


def _limits(
    network: Network, batch: Batch, *, steps: int, batch_size: int, check_every: int, n_restarts: int, **params: Any
) -> Parts:
    return {UNSHARED: 1 + n_restarts * (3 * steps * share_of(batch, batch_size) + math.ceil(steps / check_every))}


_SHARPNESS: dict[str, Any] = {
    "family": "sharpness",
    "lower_is_better": True,
    "needs": frozenset({"data", "labels", "loss"}),
    "invariances": frozenset({"permutation"}),
    "stochastic": True,
    "memory": Peak(vectors=5, passes=2),
}

MEASURES = (
    Measure(
        "max_sharpness",
        max_sharpness,
        source="[EG] eq. 4",
        cost="ascent",
        passes=(1, "steps", "n_restarts"),
        limits=_limits,
        **_SHARPNESS,
    ),
    Measure(
        "expected_sharpness",
        expected_sharpness,
        source="[EG] eq. 7",
        cost="draws",
        passes=(1, "n_draws"),
        limits=lambda network, batch, **params: {UNSHARED: params["n_draws"] + 2},
        unit="loss",
        signed=True,
        **_SHARPNESS,
    ),
)
