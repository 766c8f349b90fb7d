"""Training losses over learning rates and networks, with the critical rate predicted by theory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from sklearn_capacity._validation import check_boolean, check_integer, check_interval, check_option, float_array, shown
from sklearn_capacity.theory._initialize import draw_normal
from sklearn_capacity.theory._inputs import as_samples, input_correlation, normalize_samples
from sklearn_capacity.theory._mean_field import OUTPUTS, mean_field

__all__ = ["LearningRateMap", "learning_rate_map"]

FUNCTIONS = {
    "relu": torch.relu,
    "linear": lambda u: u,
    "erf": torch.erf,
    "tanh": torch.tanh,
    "leaky_relu": lambda u: torch.nn.functional.leaky_relu(u, 0.01),  # mean_field's default slope
    "sigmoid": torch.sigmoid,
}
VARIED = ("width", "depth", "sigma_w2", "sigma_b2")
CHUNK = 4_000_000  # number of entries in the largest tensor of one batch of networks


@dataclass(frozen=True, eq=False)
class LearningRateMap:
    """Losses after training, over a grid of learning rates and networks.

    Attributes
    ----------
    vary : str
        The parameter in `values`: "width", "depth", "sigma_w2" or "sigma_b2".
    values : ndarray of shape (n_values,)
    learning_rates : ndarray of shape (n_rates,)
    losses : ndarray of shape (n_values, n_rates, n_trials)
        E over all samples after the last step; inf for a diverged run.
    critical_learning_rates : ndarray of shape (n_values,)
        eta_c* of theorem 6.
    momentum : float
    curves : ndarray of shape (n_values, n_rates, n_trials, n_steps), or None
        E over the batch of each step, before that step; nan or inf where it overflowed.
    """

    vary: str
    values: NDArray[np.float64]
    learning_rates: NDArray[np.float64]
    losses: NDArray[np.float64]
    critical_learning_rates: NDArray[np.float64]
    momentum: float
    curves: NDArray[np.float64] | None = None

    @property
    def mean_losses(self) -> NDArray[np.float64]:
        """Mean over the trials, shape (n_values, n_rates); inf if any trial diverged."""
        return self.losses.mean(axis=2)

    @property
    def diverged(self) -> NDArray[np.float64]:
        """Fraction of the trials that diverged, shape (n_values, n_rates)."""
        return np.isinf(self.losses).mean(axis=2)


@dataclass(frozen=True)
class _Descent:
    """How every network is trained: eq. (14), on all samples at once or on mini-batches."""

    momentum: float
    n_steps: int
    batch_size: int

    def batches(self, X: Tensor, y: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Samples and targets of each step; without replacement, in a new order each epoch."""
        if self.batch_size >= len(X):
            yield from itertools.repeat((X, y), self.n_steps)
            return
        generator = torch.Generator(device="cpu").manual_seed(seed)
        orders = (torch.randperm(len(X), generator=generator, device="cpu").to(X.device) for _ in itertools.count())
        indices = itertools.chain.from_iterable(order.split(self.batch_size) for order in orders)
        for chosen in itertools.islice(indices, self.n_steps):
            yield X[chosen], y[chosen]


@dataclass(frozen=True)
class _Ensemble:
    """One row of the map: the networks that are drawn for it."""

    activation: str
    output: str
    depth: int
    width: int
    sigma_w2: float
    sigma_b2: float

    def sizes(self, n_features: int, n_outputs: int) -> list[int]:
        return [n_features, *[self.width] * (self.depth - 1), n_outputs]


def learning_rate_map(
    X: Any,
    y: Any,
    learning_rates: Sequence[float],
    values: Sequence[float],
    *,
    vary: str = "width",
    activation: str = "tanh",
    sigma_w2: float = 3.0,
    sigma_b2: float = 0.64,
    depth: int = 4,
    width: int = 100,
    output: str = "linear",
    momentum: float = 0.9,
    batch_size: int | None = None,
    n_steps: int | None = 100,
    n_trials: int = 5,
    divergence_loss: float = 1000.0,
    correlated_inputs: bool = False,
    random_state: int = 0,
    device: str | torch.device = "cpu",
    verbose: int = 0,
) -> LearningRateMap:
    """Train random networks at many learning rates to see which diverge (Karakida et al., figure 2).

    Gradient descent with momentum on E = (1 / 2T) sum_t ||y_t - f(x_t)||^2, from weights drawn by eq. (2):
    theta_{t+1} = theta_t - eta grad E + mu (theta_t - theta_{t-1}). The gradient is that of all samples or of a batch.
    All rates of one trial start from the same weights and see the same batches.

    Parameters
    ----------
    X : array-like of shape (n_samples, ...)
        Each sample is scaled to mean 0 and variance 1 over its features, as the theory assumes.
    y : array-like of shape (n_samples,) or (n_samples, n_outputs)
        Targets; one-hot rows for classes.
    learning_rates : increasing sequence of floats in (0, inf)
    values : increasing sequence
        Values of the parameter named by `vary`, which replace its keyword argument.
    vary : {"width", "depth", "sigma_w2", "sigma_b2"}, default="width"
    activation : {"relu", "linear", "erf", "tanh", "leaky_relu", "sigmoid"}, default="tanh"
    sigma_w2, sigma_b2, depth, width, output
        As in `mean_field`; the input's width ratio is n_features / width.
    momentum : float in [0, 1), default=0.9
    batch_size : int, default=None
        Samples per step, drawn without replacement, in a new order each epoch; None is all samples.
    n_steps : int or None, default=100
        None is one epoch: n_samples / batch_size steps, rounded up.
    n_trials : int, default=5
        Number of draws of the initial weights per cell.
    divergence_loss : float in (0, inf), default=1000.0
        A run counts as diverged if its final loss is above this value or its loss was ever not finite.
    correlated_inputs : bool, default=False
        Whether to compute the critical rate with `input_correlation(X)` instead of the paper's 0.
    random_state : int, default=0
    device : str or torch.device, default="cpu"
        Device of the training. Training is in float32 for X in float32, and otherwise in float64.
    verbose : int, default=0
        1 shows a progress bar.

    Returns
    -------
    LearningRateMap
        Losses over the grid, and the critical learning rates.

    Raises
    ------
    ValueError, TypeError
        If a parameter is outside its range, or X and y do not match.

    Notes
    -----
    The cost is len(values) * len(learning_rates) * n_trials * n_steps training steps, in batches of networks. Bounded
    outputs ("activated" tanh, "sigmoid") cannot diverge: their map shows high losses instead.

    According to theorem 6, a rate above the line cannot converge to a minimum that still has the variances of the
    initial weights. The loss then grows at first, but need not explode: with up to about 4 times the critical rate,
    rectifier networks may find a flatter minimum or end at the constant predictor.

    References
    ----------
    Karakida, Akaho, Amari 2019, theorem 6, eq. (14), figures 2 (batches of 500, one epoch), G.1 (sigmoid
    outputs) and G.2 (batches of 20).

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_capacity.theory import learning_rate_map
    >>> rng = np.random.default_rng(0)
    >>> X, y = rng.standard_normal((50, 20)), rng.standard_normal((50, 2))
    >>> result = learning_rate_map(X, y, [1e-3, 1.0], [50], depth=3, n_steps=50, n_trials=2)
    >>> result.diverged.tolist(), bool(1e-3 < result.critical_learning_rates[0] < 1.0)
    ([[0.0, 1.0]], True)
    """
    check_option("vary", vary, VARIED)
    check_option("activation", activation, FUNCTIONS)
    check_option("output", output, OUTPUTS)
    momentum = check_interval("momentum", momentum, 0.0, 1.0, closed="left")
    n_trials = check_integer("n_trials", n_trials)
    divergence_loss = check_interval("divergence_loss", divergence_loss, 0.0, closed="neither")
    seed = check_integer("random_state", random_state, 0)
    rates = _increasing("learning_rates", learning_rates)
    grid = _increasing("values", values, zero=vary == "sigma_b2")
    inputs, targets = _check_data(X, y)
    size = len(inputs)
    if batch_size is not None:
        size = min(size, check_integer("batch_size", batch_size, high=math.inf))
    steps = math.ceil(len(inputs) / size) if n_steps is None else check_integer("n_steps", n_steps)
    descent = _Descent(momentum, steps, size)
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f'`device` must be a device of torch such as "cpu", got {shown(device)}.') from error
    rho = input_correlation(inputs) if check_boolean("correlated_inputs", correlated_inputs) else 0.0
    base: dict[str, Any] = {"depth": depth, "width": width, "sigma_w2": sigma_w2, "sigma_b2": sigma_b2}
    rows = [_Ensemble(activation, output, **{**base, vary: _as_given(vary, value)}) for value in grid]
    critical = np.array([_critical_rate(row, inputs.shape[1], targets.shape[1], momentum, rho) for row in rows])

    data = torch.as_tensor(inputs, device=device), torch.as_tensor(targets, device=device)
    losses = np.empty((len(grid), len(rates), n_trials))  # (n_values, n_rates, n_trials)
    curves = np.empty((*losses.shape, steps))  # (n_values, n_rates, n_trials, n_steps)
    with tqdm(total=losses.size, desc="learning rate map", unit="net", disable=not verbose) as progress:
        for i, row in enumerate(rows):
            cells, curves[i] = _row_losses(row, data, rates, descent, n_trials, (seed, i), progress)
            losses[i] = np.where(cells <= divergence_loss, cells, np.inf)
    return LearningRateMap(vary, grid, rates, losses, critical, momentum, curves)


def _row_losses(
    row: _Ensemble,
    data: tuple[Tensor, Tensor],
    rates: NDArray[np.float64],
    descent: _Descent,
    n_trials: int,
    seed: tuple[int, int],
    progress: tqdm,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Final losses (n_rates, n_trials), nan or inf for a run that overflowed, and (n_rates, n_trials, n_steps)."""
    X, y = data
    sizes = row.sizes(X.shape[1], y.shape[1])
    n_weights = sum(out * (into + 1) for into, out in itertools.pairwise(sizes))
    chunk = max(1, CHUNK // max(n_weights, descent.batch_size * max(sizes)))
    losses = np.empty((len(rates), n_trials))
    curves = np.empty((len(rates), n_trials, descent.n_steps))
    for trial in range(n_trials):
        draw = np.random.SeedSequence([*seed, trial])
        start = [layer.to(X) for layer in _draw_network(row, sizes, draw)]
        for first in range(0, len(rates), chunk):
            part = slice(first, first + chunk)
            # One network per rate, trained side by side: a leading axis of all tensors.
            eta = torch.as_tensor(rates[part], dtype=X.dtype, device=X.device)[:, None, None]  # (n_networks, 1, 1)
            parameters = [layer.expand(len(eta), *layer.shape) for layer in start]  # (n_networks, *layer)
            batches = descent.batches(X, y, int(draw.generate_state(2)[1]))
            parameters, curve = _descend(row, parameters, batches, eta, descent.momentum)
            final = _mean_losses(row, parameters, X, y, descent.batch_size)
            losses[part, trial] = final.masked_fill(~curve.isfinite().all(1), float("inf")).cpu().numpy()
            curves[part, trial] = curve.cpu().numpy()
            progress.update(len(eta))
    return losses, curves


def _draw_network(row: _Ensemble, sizes: list[int], seed: np.random.SeedSequence) -> list[Tensor]:
    """Weight (out, in) and bias (1, out) of each layer, eq. (2)."""
    generator = torch.Generator(device="cpu").manual_seed(int(seed.generate_state(1)[0]))
    parameters = []
    for into, out in itertools.pairwise(sizes):
        parameters.append(draw_normal((out, into), row.sigma_w2 / into, generator))
        parameters.append(draw_normal((1, out), row.sigma_b2, generator))
    return parameters


def _descend(
    row: _Ensemble,
    parameters: list[Tensor],
    batches: Iterable[tuple[Tensor, Tensor]],
    eta: Tensor,
    momentum: float,
) -> tuple[list[Tensor], Tensor]:
    """Parameters of a batch of networks after gradient descent, eq. (14), and their losses (n_networks, n_steps)."""
    velocity = [torch.zeros_like(parameter) for parameter in parameters]
    curve = []
    for X, y in batches:
        leaves = [parameter.detach().requires_grad_(True) for parameter in parameters]
        with torch.enable_grad():
            loss = _losses(row, leaves, X, y)
            gradients = torch.autograd.grad(loss.sum(), leaves)  # the networks are independent
        curve.append(loss.detach())
        velocity = [momentum * v - eta * g for v, g in zip(velocity, gradients, strict=True)]
        parameters = [p.detach() + v for p, v in zip(parameters, velocity, strict=True)]
    return parameters, torch.stack(curve, dim=1)


def _mean_losses(row: _Ensemble, parameters: list[Tensor], X: Tensor, y: Tensor, size: int) -> Tensor:
    """E over all samples, in pieces of `size`, shape (n_networks,)."""
    with torch.no_grad():
        pieces = zip(X.split(size), y.split(size), strict=True)
        return torch.stack([_losses(row, parameters, *piece) * len(piece[0]) for piece in pieces]).sum(0) / len(X)


def _losses(row: _Ensemble, parameters: list[Tensor], X: Tensor, y: Tensor) -> Tensor:
    """E of each network of the batch, shape (n_networks,)."""
    hidden = FUNCTIONS[row.activation]
    last = hidden if row.output == "activated" else FUNCTIONS[row.output]
    h = X.expand(len(parameters[0]), *X.shape)  # (n_networks, n, features), then (n_networks, n, units)
    for i in range(0, len(parameters), 2):
        u = torch.baddbmm(parameters[i + 1], h, parameters[i].transpose(1, 2))
        h = last(u) if i + 2 == len(parameters) else hidden(u)
    return (h - y).square().sum(dim=(1, 2), dtype=torch.float64) / (2 * len(X))


def _critical_rate(row: _Ensemble, n_features: int, n_outputs: int, momentum: float, rho: float) -> float:
    width = check_integer("width", row.width)
    depth = check_integer("depth", row.depth, 2)
    theory = mean_field(
        row.activation,
        row.sigma_w2,
        row.sigma_b2,
        depth,
        width,
        n_outputs,
        [n_features / width, *[1.0] * (depth - 1)],
        row.output,
        input_correlation=rho,
    )
    return theory.critical_learning_rate(momentum)


def _increasing(name: str, values: Any, zero: bool = False) -> NDArray[np.float64]:
    array = float_array(name, values)
    if array.ndim != 1 or array.size == 0 or not np.isfinite(array).all():
        raise ValueError(f"`{name}` must be a non-empty sequence of finite numbers, got {shown(values)}.")
    if (np.diff(array) <= 0).any() or array[0] < 0 or (array[0] == 0 and not zero):
        raise ValueError(f"`{name}` must be positive and increasing, got {shown(values)}. Sort them.")
    return array


def _as_given(vary: str, value: float) -> float | int:
    if vary in ("width", "depth"):
        if value != int(value):
            raise ValueError(f"`values` must be integers if `vary` is {vary!r}, got {value:g}.")
        return int(value)
    return float(value)


def _check_data(X: Any, y: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    inputs = normalize_samples(as_samples(X))
    targets = float_array("y", y).astype(inputs.dtype)
    targets = targets[:, None] if targets.ndim == 1 else targets
    if targets.ndim != 2 or targets.shape[1] == 0 or len(targets) != len(inputs):
        raise ValueError(f"`y` must have shape ({len(inputs)},) or ({len(inputs)}, n_outputs), got {np.shape(y)}.")
    if not np.isfinite(targets).all():
        raise ValueError("`y` must be finite, got NaN or infinity.")
    return inputs, targets
