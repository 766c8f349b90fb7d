"""The displacement of the weights at which the loss has risen by a given amount, at random and at worst."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from .._validation import check_interval, check_option
from ..derivatives.parameter_vector import ParameterVector, parameter_vector
from ..derivatives.perturbation import FlatParameters, ascend_in_ball, displacements
from ..graph import Network
from ..losses import is_classification, sample_losses
from .batch import Batch
from .losses import mean_error, mean_loss, targets
from .record import NotDefinedError
from .sharpness import finite_loss

__all__ = ["CRITERIA", "MOST_EVALUATIONS", "Scale", "check_search", "noise_scale_of_rise", "worst_scale_of_rise"]

CRITERIA = ("error", "loss")
#: The range of scales to search.
SMALLEST, LARGEST = 1e-9, 1e6
#: Relative width of the last interval of the search.
TOLERANCE = 1e-3
#: How often a search asks for a rise: at the first scale, while it halves or doubles it, and while it bisects.
MOST_EVALUATIONS = (
    3
    + max(math.ceil(math.log2(0.1 / SMALLEST)), math.ceil(math.log2(LARGEST / 0.1)))
    + math.ceil(math.log2(math.log(2) / math.log1p(TOLERANCE)))
)
#: Relative step for the slope that converts the spread of the rise to that of the scale.
SLOPE_STEP = 0.05


@dataclass(frozen=True)
class Scale:
    """The scale at which a loss has risen by the requested amount.

    Attributes
    ----------
    value : float
    standard_error : float or None
    evaluations : int
        Number of scales that were tried.
    """

    value: float
    standard_error: float | None
    evaluations: int


def noise_scale_of_rise(
    network: Network,
    batch: Batch,
    *,
    rise: float,
    magnitude: bool,
    epsilon: float,
    n_draws: int,
    criterion: str | None,
) -> Scale:
    r"""The largest sigma at which Gaussian noise on the weights raises the mean loss by at most `rise`.

    Standard deviations are sigma, or with `magnitude` :math:`\sqrt{\sigma^2 w_i^2 + \epsilon^2}`. All sigmas use the
    same draws. They are independent: in pairs u, -u both would be equal at a minimum.
    """
    criterion = criterion_of(batch, criterion)
    weights = _Weights(network, batch, criterion)
    start = float(weights.mean_over_data())

    def rises(sigma: float) -> Tensor:
        """The rise of the loss for every draw, (n_draws,)."""
        scale = weights.scales(sigma, magnitude, epsilon, squared=True)
        draws = displacements(weights.theta, scale, n_draws, batch.generator())
        with torch.no_grad():
            return torch.stack([weights.mean_over_data() for _ in draws]) - start  # (n_draws,)

    with tqdm(desc="PAC-Bayes sigma", unit="sigma", disable=not batch.verbose, leave=False) as bar:
        search = _Search(lambda sigma: float(rises(sigma).mean()), rise, bar, f"the {criterion}")
        sigma = search.run()
    at = rises(sigma)
    spread = float(at.std()) / math.sqrt(n_draws)
    low, high = (float(rises(sigma * (1 + sign * SLOPE_STEP)).mean()) for sign in (-1, 1))
    width = 2 * SLOPE_STEP * sigma
    slope = (high - low) / width if math.isfinite(high) else 2 * (float(at.mean()) - low) / width
    error = spread / slope if slope > 0 else math.inf if spread else 0.0
    return Scale(sigma, error, search.evaluations + 3)


def worst_scale_of_rise(
    network: Network,
    batch: Batch,
    *,
    rise: float,
    magnitude: bool,
    epsilon: float,
    steps: int,
    criterion: str | None,
) -> Scale:
    r"""The largest alpha at which no step of an ascent inside a box raises a loss by more than `rise`.

    The box is :math:`|u_i| \le \alpha`, or with `magnitude` :math:`|u_i| \le \alpha |w_i| + \epsilon`. The ascent
    follows the training loss, whichever loss is evaluated; an ascent from w without any rise is followed by one from a
    random corner.
    """
    criterion = criterion_of(batch, criterion)
    weights = _Weights(network, batch, criterion)
    start = float(weights.mean_over_data())
    zero = torch.zeros_like(weights.theta.center)  # (P,)
    drawn = torch.randn(len(zero), generator=batch.generator(), dtype=torch.float32, device="cpu")
    corner = drawn.sign().to(zero)

    def largest_rise(alpha: float) -> float:
        rise = from_start(alpha, zero)
        return rise if rise > 0 else max(0.0, from_start(alpha, corner))  # where the gradient at w is 0

    def from_start(alpha: float, u: Tensor) -> float:
        seen: list[float] = []

        def evaluate(with_gradient: bool) -> tuple[float, Tensor | None]:
            loss, value, gradient = weights.evaluate(with_gradient)
            seen.append(value)
            return loss, gradient

        scale = weights.scales(alpha, magnitude, epsilon, squared=False)
        ascend_in_ball(weights.theta, scale, evaluate, radius=1.0, norm="linf", steps=steps, start=u)
        return max(seen) - start

    with tqdm(desc="sharpness alpha", unit="alpha", disable=not batch.verbose, leave=False) as bar:
        search = _Search(largest_rise, rise, bar, f"the {criterion}")
        return Scale(search.run(), None, search.evaluations)


def check_search(rise: float, epsilon: float, criterion: str | None) -> None:
    """Raise if a parameter that both searches have is out of range."""
    check_interval("rise", rise, 0, math.inf, closed="neither")
    check_interval("epsilon", epsilon, 0, math.inf, closed="neither")
    if criterion is not None:
        check_option("criterion", criterion, CRITERIA)


def criterion_of(batch: Batch, criterion: str | None) -> str:
    """The loss whose rise is searched: the error rate for classification, unless another is named."""
    return criterion or ("error" if is_classification(batch.loss) else "loss")


class _Weights:
    """The folded parameters of a network, and its mean loss and error at their current values."""

    def __init__(self, network: Network, batch: Batch, criterion: str):
        self.batch, self.criterion = batch, criterion
        vector: ParameterVector = parameter_vector(network)
        self.theta = FlatParameters(vector.tensors)
        self.leaves = [view.detach().requires_grad_(True) for view in self.theta.views]
        self.forward = vector.bind(self.leaves)
        finite_loss(batch, self.forward)

    def scales(self, scale: float, magnitude: bool, epsilon: float, *, squared: bool) -> Tensor | float:
        """Standard deviations per parameter (squared terms add up), or half the sides of a box."""
        if not magnitude:
            return scale
        sizes = self.theta.center.abs() * scale
        return (sizes.square() + epsilon**2).sqrt() if squared else sizes + epsilon

    def mean_over_data(self) -> Tensor:
        """The mean of the criterion, on the device; infinite if it is NaN."""
        mean = mean_error if self.criterion == "error" else mean_loss
        return mean(self.batch, self.forward).nan_to_num(nan=math.inf, posinf=math.inf)

    def evaluate(self, with_gradient: bool) -> tuple[float, float, Tensor | None]:
        """Mean loss, mean of the criterion, and the gradient of the loss as a flat vector like the weights."""
        gradient = torch.zeros_like(self.theta.center)  # (P,); `views` share its memory
        views = self.theta.split(gradient)
        y, loss, n = targets(self.batch), self.batch.loss, self.batch.n_samples

        def on_chunk(X: Tensor, y: Tensor) -> Tensor:
            with torch.set_grad_enabled(with_gradient):
                logits = self.forward(X).double()
                total = sample_losses(logits, y, loss).sum() / n
            if with_gradient and total.requires_grad:
                gradients = torch.autograd.grad(total, self.leaves, allow_unused=True, materialize_grads=True)
                torch._foreach_add_(views, list(gradients))
            wrong = (logits.argmax(1) != y).double().sum() / n if self.criterion == "error" else total
            return torch.stack([total.detach(), wrong.detach()])

        both = [float(number) for number in torch.stack(self.batch.map(on_chunk, y)).sum(0)]
        value = both[1] if math.isfinite(both[0]) else math.inf
        return both[0], value, gradient if with_gradient else None


class _Search:
    """The scale at which a rise passes its target, by doubling, halving and then bisection of the logarithm."""

    def __init__(self, rise_at: Callable[[float], float], target: float, bar: tqdm, what: str):
        self.rise_at, self.target, self.bar, self.what = rise_at, target, bar, what
        self.evaluations = 0

    def run(self) -> float:
        """The lower end of the last interval: the rise is at most the target there."""
        low, high = self._interval()
        while high / low > 1 + TOLERANCE:
            middle = math.sqrt(low * high)
            low, high = (low, middle) if self._beyond(middle) else (middle, high)
        return low

    def _interval(self) -> tuple[float, float]:
        scale = 0.1
        if self._beyond(scale):
            while self._beyond(scale / 2):
                scale /= 2
                if scale < SMALLEST:
                    raise NotDefinedError(
                        f"Every noise on the weights raises {self.what} by more than {self.target:g}, also that of "
                        f"the scale {SMALLEST:g}. Use a larger `rise`, or a smaller `epsilon`."
                    )
            return scale / 2, scale
        while not self._beyond(2 * scale):
            scale *= 2
            if scale > LARGEST:
                raise NotDefinedError(
                    f"No noise on the weights up to the scale {LARGEST:g} raises {self.what} by {self.target:g}. Take "
                    'a smaller `rise`, or criterion="loss".'
                )
        return scale, 2 * scale

    def _beyond(self, scale: float) -> bool:
        self.evaluations += 1
        self.bar.update()
        return not self.rise_at(scale) <= self.target
