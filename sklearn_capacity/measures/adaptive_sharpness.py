"""The rise of the loss in a ball around the weights, whose axes may be scaled by the weights' magnitudes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .._validation import check_integer, check_interval, check_option, warn
from ..derivatives.parameter_vector import raw_parameter_vector
from ..derivatives.perturbation import BALLS, FlatParameters, ascend_in_ball, displacements
from ..graph import Network
from ..losses import sample_losses
from .batch import Batch
from .losses import targets
from .memory import Peak
from .pass_limits import UNSHARED, Parts
from .record import Measure, Measured, NotDefinedError
from .sharpness import check_tolerance, finite_loss, mean_rise

__all__ = ["MEASURES", "adaptive_sharpness"]


def adaptive_sharpness(
    network: Network,
    batch: Batch,
    *,
    rho: float = 0.05,
    norm: str = "l2",
    adaptive: bool = True,
    steps: int = 20,
    n_restarts: int = 1,
    m: int | None = None,
    average: bool = False,
    n_draws: int = 100,
    tolerance: float | None = None,
) -> Measured:
    r"""Largest rise of the loss found in a ball around the weights, scaled by their magnitudes.

    .. math:: \max_{\|T_w^{-1} v\|_p \le \rho} L(w + v) - L(w), \qquad T_w = \mathrm{diag}(|w|)

    L is the mean loss over all the data (cross-entropy or hinge; squared or absolute error, averaged over the outputs
    as in training) and w holds all trainable parameters of the module itself: batch norm is **not** folded, a tied
    tensor counts once, and a weight of 0 does not move. Smaller values suggest better generalisation. The value is
    invariant under rescaling of rectifier layers or units against each other, since the ball scales with the weights;
    with ``adaptive=False`` it is not. Steepest ascent searches for the maximum, so the value is a lower bound of it.

    Parameters
    ----------
    rho : float > 0, default=0.05
        Radius of the ball.
    norm : "l2" or "linf", default="l2"
        p = 2 or infinity.
    adaptive : bool, default=True
        If False, T_w is the identity, and the ball is that of sharpness-aware minimisation (SAM).
    steps : int >= 1, default=20
        Number of ascent steps. A single step is that of SAM: the rise at ``w + rho T_w u``, with u the gradient in the
        ball's coordinates, normalised to length one (or its signs, for "linf"). The result may then be negative.
    n_restarts : int >= 1, default=1
        Number of ascents, of which the best counts: the first from w, the others from random points on the sphere.
    m : int >= 1, default=None
        Samples per batch: the result is the mean over consecutive batches, weighted by their sizes, of the largest rise
        of each batch's loss (m-sharpness). None treats all samples as one batch.
    average : bool, default=False
        Return the mean rise over random v instead of the largest: Gaussian with standard deviations :math:`\rho |w_i|`
        for "l2", uniform in the ball for "linf". `steps`, `n_restarts` and `m` are then ignored.
    n_draws : int >= 2, default=100
        Number of draws of v with `average`, in pairs v, -v; an odd number is rounded up. With a `tolerance`, the
        largest number.
    tolerance : float > 0, default=None
        With `average`, stop drawing once the standard error is at most this, which is looked at every 32 draws.

    Returns
    -------
    Measured
        With the standard error over the pairs if `average` is true.

    Raises
    ------
    NotDefinedError
        If there are no trainable parameters, or the loss is not finite at w or within the ball.

    Warns
    -----
    CapacityWarning
        If none of several steps raised the loss; the value is then 0.

    Notes
    -----
    The cost is one forward and one backward pass over all the data per step, or one forward pass per draw with
    `average`.

    References
    ----------
    Kwon, Kim, Park, Choi (2021), ASAM, definition 2; Foret, Kleiner, Mobahi, Neyshabur (2021), Sharpness-aware
    minimization; Andriushchenko, Croce, Mueller, Hein, Flammarion (2023), A modern look at the relationship between
    sharpness and generalization, eqs. 1-3.

    Examples
    --------
    The model f = w x with absolute loss at w = 2, x = 1, y = 0: the worst w is 2 + rho 2, and the loss at w is 2.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 1, bias=False)
    >>> _ = net.weight.data.fill_(2.0)
    >>> ball = {"s": ("adaptive_sharpness", {"rho": 0.25})}
    >>> round(measure_capacity(net, torch.ones(4, 1), torch.zeros(4), ball, loss="absolute")["s"], 6)
    0.5
    """
    check_interval("rho", rho, 0, math.inf, closed="neither")
    check_option("norm", norm, BALLS)
    check_integer("steps", steps)
    check_integer("n_restarts", n_restarts)
    n_pairs = (check_integer("n_draws", n_draws, 2) + 1) // 2
    check_tolerance(tolerance)
    m = batch.n_samples if m is None else check_integer("m", m)
    ball = _Ball(network, batch, rho, norm, adaptive)
    if average:
        draws = displacements(
            ball.theta, rho * ball.scale, 2 * n_pairs, batch.generator(), antithetic=True, uniform=norm == "linf"
        )
        return mean_rise(batch, ball.vector.bind(ball.theta.views), ball.loss, draws, n_pairs, tolerance)
    generator = batch.generator()
    n_batches = math.ceil(batch.n_samples / m)
    with tqdm(total=n_batches, desc="adaptive sharpness", disable=not batch.verbose, leave=False) as bar:
        total = 0.0
        for part in ball.batches(m):
            total += part.n_samples * ball.largest_rise(part, steps, n_restarts, generator)
            bar.update()
    value = total / batch.n_samples
    if value <= 0 and steps > 1:
        warn(
            f"No step of the ascent raised the loss above {ball.loss:.6g}: a sharpness of 0 means that no rise was "
            "found, not that there is none. Try another `rho`, more `steps`, or more `n_restarts`.",
        )
    return Measured(value, info={"loss": ball.loss, "batches": n_batches, "steps": steps})


class _Ball:
    """The weights of one network within a ball around them."""

    def __init__(self, network: Network, batch: Batch, rho: float, norm: str, adaptive: bool):
        self.network, self.batch, self.rho, self.norm = network, batch, rho, norm
        self.vector = raw_parameter_vector(network, "The adaptive sharpness")
        self.theta = FlatParameters(self.vector.tensors)
        center = self.theta.center
        self.scale = center.abs() if adaptive else torch.ones_like(center)  # the diagonal of T_w, (P,)
        self.leaves = [view.detach().requires_grad_(True) for view in self.theta.views]
        self.forward = self.vector.bind(self.leaves)
        self.loss = finite_loss(batch, self.forward)

    def batches(self, m: int) -> Iterator[Batch]:
        """Consecutive samples, m at a time."""
        X, y, size = self.batch.X, targets(self.batch), self.batch.chunk_size
        for start in range(0, len(X), m):
            stop = start + m
            loss, budget = self.batch.loss, self.batch.budget
            yield Batch(self.network, X[start:stop], y[start:stop], loss=loss, batch_size=size, budget=budget)

    def largest_rise(self, part: Batch, steps: int, n_restarts: int, generator: torch.Generator) -> float:
        """The best of several ascents; adds one from a random point if none of several steps raises the loss."""
        start, best = torch.zeros_like(self.theta.center), -math.inf  # (P,), like all points of the ball
        evaluate = self._evaluation(part)
        at_center, _ = evaluate(False)
        for restart in range(n_restarts + 1):
            if restart == n_restarts and (best > 0 or steps == 1):
                break
            values = ascend_in_ball(
                self.theta, self.scale, evaluate, radius=self.rho, norm=self.norm, steps=steps, start=start
            )
            best = max(best, max(values[1:]) - at_center)
            start = self._random_point(generator)
        return best if steps == 1 else max(best, 0.0)

    def _random_point(self, generator: torch.Generator) -> Tensor:
        """A random point on the sphere, in the ball's coordinates."""
        drawn = torch.randn(len(self.theta), generator=generator, dtype=torch.float32, device="cpu")
        u = drawn.to(self.theta.center)  # (P,)
        return self.rho * (u.sign() if self.norm == "linf" else u / torch.linalg.vector_norm(u))

    def _evaluation(self, part: Batch) -> Callable[[bool], tuple[float, Tensor | None]]:
        """Mean loss over some samples at the current weights, and its gradient as a flat vector like the weights."""

        def evaluate(with_gradient: bool) -> tuple[float, Tensor | None]:
            gradient = torch.zeros_like(self.theta.center)  # (P,); `views` share its memory
            views = self.theta.split(gradient)

            def on_chunk(X: Tensor, y: Tensor) -> Tensor:
                with torch.set_grad_enabled(with_gradient):
                    total = sample_losses(self.forward(X).double(), y, self.batch.loss).sum() / part.n_samples
                if with_gradient and total.requires_grad:
                    gradients = torch.autograd.grad(total, self.leaves, allow_unused=True, materialize_grads=True)
                    torch._foreach_add_(views, list(gradients))
                return total.detach()

            loss = float(torch.stack(part.map(on_chunk, part.y)).sum())
            if not math.isfinite(loss):
                raise NotDefinedError(
                    f"The loss is {loss} within the ball of radius {self.rho:g} around the weights. Use a smaller "
                    "`rho`."
                )
            return loss, gradient if with_gradient else None

        return evaluate


def _limits(
    network: Network, batch: Batch, *, steps: int, n_restarts: int, average: bool, n_draws: int, **params: Any
) -> Parts:
    """An ascent takes three passes for each step and one more; another follows where several have not risen."""
    if average:
        return {UNSHARED: n_draws + 2}
    return {UNSHARED: 2 + (n_restarts + (steps > 1)) * (3 * steps + 1)}


MEASURES = (
    Measure(
        "adaptive_sharpness",
        adaptive_sharpness,
        family="sharpness",
        lower_is_better=True,
        source="Kwon et al. (2021)",
        needs=frozenset({"data", "labels", "loss"}),
        cost="ascent",
        passes=(4, "steps", "n_restarts"),
        limits=_limits,
        unit="loss",
        invariances=frozenset({"permutation", "layer_rescaling", "node_rescaling"}),
        stochastic=True,
        signed=True,
        memory=Peak(vectors=6, passes=2),
    ),
)
