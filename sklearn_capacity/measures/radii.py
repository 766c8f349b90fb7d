"""Radii around samples within which the prediction does not change: certified, estimated, or attacked ([JR] theorem 4).

The score is o = (f_y - max f_k) / sqrt(2): f_y - f_k is a linear functional of norm sqrt(2), so within a distance of
o / s, s the Lipschitz constant, no logit overtakes that of the label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ..derivatives.double_backward import twice_differentiable
from ..graph import Network
from .attack import attack_radii, over
from .batch import Batch
from .layer_operators import certificate_bytes
from .lipschitz import log_lipschitz
from .margins import margins_of
from .output_gram import jacobian_rows, output_function, piece_size
from .record import NotDefinedError, logarithm

__all__ = ["CERTIFIED", "ESTIMATED", "METHODS", "radii_bytes", "sample_radii"]

Logits = Callable[[Tensor], Tensor]
CERTIFIED = ("spectral", "frobenius")
ESTIMATED = ("jacobian", "hull")
METHODS = (*CERTIFIED, *ESTIMATED, "attack")
# Ascent steps relative to the radius, and each step's end: a fraction of the way from the expected to the current
# radius.
STEPS = ((1.0, 0.0), (1.0, 0.5), (0.5, 0.0), (0.5, 0.25), (0.25, 0.0), (0.25, 0.5))
# Below this relative change of the slope across the ball, the step is random.
FLAT = 1e-3
# Half the order of the Schatten norm whose gradient replaces that of the largest singular value.
ORDER = 64
# Singular values that contribute less than this share to the gradient are left out.
NEGLIGIBLE = 1e-12


def sample_radii(
    network: Network, batch: Batch, method: str, n_draws: int, output: str = "logits"
) -> tuple[Tensor, dict[str, Any]]:
    """The radius of every sample, (n,), float64, and how it was computed; 0 where the sample is misclassified."""
    if method == "attack":  # on the classes, which logits and softmax share
        return attack_radii(network, batch, n_draws), {"method": method, "certified": False}
    outputs = batch.logits.softmax(1) if output == "softmax" else batch.logits
    scores = (margins_of(outputs, batch.classes) / math.sqrt(2)).clamp_min(0)
    info: dict[str, Any] = {"method": method, "certified": method in CERTIFIED}
    if method in CERTIFIED:
        log_slope = log_lipschitz(network, "l2" if method == "spectral" else "frobenius")
        if output == "softmax":  # the spectral norm of diag(z) - z z^T is at most 1/2
            log_slope += math.log(0.5)
    else:
        function = output_function(network, batch, output)
        if method == "jacobian":
            return _ball_radii(function, network.n_outputs, batch, scores, n_draws), info
        log_slope = logarithm(_hull_slope(function, network.n_outputs, batch, n_draws))
    # exp(log o - log s) is finite where s itself would overflow; log 0 = -inf gives the radius 0.
    radii = torch.where(scores > 0, (scores.log() - log_slope).exp(), torch.zeros_like(scores))
    return radii, {**info, "log_slope": log_slope}


def radii_bytes(network: Network, batch: Batch, *, method: Any = "spectral", **params: Any) -> float:
    """What the operator norms take, or the Jacobian of one sample, its singular vectors, and the points of all."""
    if str(method) in ("spectral", "frobenius"):  # the measure itself refuses one of another kind
        return certificate_bytes(network)
    n_outputs, size = network.n_outputs, math.prod(network.input_shape)
    return 8.0 * (3 * n_outputs * size + 4 * n_outputs**2 + 8 * batch.n_samples * size)


def _ball_radii(function: Logits, n_outputs: int, batch: Batch, scores: Tensor, n_draws: int) -> Tensor:
    r"""The fixed points gamma = o / (largest slope found within gamma).

    S(r), the largest \|J\|_2 among the points found within r, grows with r, so sup {r : r S(r) <= o} is the smallest
    max(d, o / \|J(z)\|) over the points z found, with d their distance: each point is evaluated once and not stored.
    """
    search = _BallSearch(function, n_outputs, batch, scores)
    generator = batch.generator()
    for draw in _progress(range(n_draws), batch, "radii"):
        # In float64, whose draws do not depend on the processor.
        noise = torch.randn(batch.X.shape, generator=generator, dtype=torch.float64, device="cpu").to(batch.X)
        # (n,)
        share = torch.rand(len(noise), generator=generator, dtype=torch.float64, device="cpu").to(batch.X.device)
        search.look_at(_scaled(noise, share * search.reach()))
        search.climb(noise, *STEPS[draw % len(STEPS)])
    return search.radii


class _BallSearch:
    """For every sample, the current radius and the point that determines it.

    A change in the last bits of the Jacobians changes the points and the radius equally little: every step is a
    continuous function of the previous point, and of two equally good points (as within one linear region) the earlier
    one stays.
    """

    def __init__(self, function: Logits, n_outputs: int, batch: Batch, scores: Tensor):
        self.function, self.n_outputs = function, n_outputs
        self.batch, self.scores = batch, scores
        # If the network is flat at a sample, any radius may be valid: search no further than the extent of the data.
        self.horizon = float(_lengths(batch.X - batch.X.mean(0)).max()) or 1.0
        self.gain = math.sqrt(torch.finfo(batch.X.dtype).eps)
        self.offsets = torch.zeros_like(batch.X)  # (n, ...): the points to climb from, relative to the samples
        self.slopes = self._slopes(batch.X)  # ||J||_2 at these points, (n,)
        self.radii = self._allowed(torch.zeros_like(self.slopes), self.slopes)  # (n,)
        # Merit of the point to climb from: the radius that it allows times the radius that its slope allows.
        self.merits = self.radii * self.scores / self.slopes

    def reach(self) -> Tensor:
        return self.radii.clamp(max=self.horizon)

    def _allowed(self, distances: Tensor, slopes: Tensor) -> Tensor:
        """The radius that points at these distances allow; 0 for misclassified samples."""
        allowed = torch.maximum(distances, self.scores / slopes)  # (n,)
        return torch.where(self.scores > 0, allowed, torch.zeros_like(allowed))

    def look_at(self, offsets: Tensor) -> None:
        """Take the points at these offsets from the samples into account."""
        slopes = self._slopes(self.batch.X + offsets)
        radii = self._allowed(_lengths(offsets), slopes)
        merits = radii * self.scores / slopes
        better = merits < self.merits * (1 - self.gain)  # (n,)
        self.merits = torch.where(better, merits, self.merits)
        self.radii = torch.minimum(self.radii, radii)
        self.slopes = torch.where(better, slopes, self.slopes)
        self.offsets = torch.where(over(better, offsets), offsets, self.offsets)

    def climb(self, noise: Tensor, step: float, share: float) -> None:
        """Take one ascent step on the slope from the best points, or a random step where the slope is locally constant.

        The fixed point is between o over the largest known slope and the current radius, so the step ends there.
        """
        reach = self.reach()
        parts = self.batch.map(
            lambda X, offsets: _log_slope_gradient(self.function, X + offsets, self.n_outputs), self.offsets
        )
        # The relative change of the slope across the ball; zero where there is no second derivative.
        change = torch.cat(parts).nan_to_num(0.0, 0.0, 0.0) * over(reach, noise).to(noise.dtype)
        direction = change + _scaled(noise, torch.full_like(reach, FLAT))  # (n, ...)
        offsets = self.offsets + _scaled(direction, step * reach)
        least = self._crossing(change, offsets, reach)
        self.look_at(_scaled(offsets, least + share * (reach - least)))

    def _crossing(self, change: Tensor, offsets: Tensor, reach: Tensor) -> Tensor:
        """The crossing of r S(r) with o towards these offsets, by one Newton step in log r from the reach."""
        end = _scaled(offsets, torch.ones_like(reach))  # unit vectors, (n, ...)
        growth = _dots(change, end)  # d log S / d log r at the reach, (n,)
        log_slopes = self.slopes.log() + growth - _dots(change, self.offsets) / reach  # (n,), extrapolated to the reach
        excess = (reach.log() + log_slopes - self.scores.log()).clamp_min(0)
        return torch.where(self.scores > 0, reach * (-excess / (1 + growth.clamp_min(0))).exp(), 0.0)

    def _slopes(self, points: Tensor) -> Tensor:
        return self.batch.cat(lambda _, some: _spectral_norms(self.function, some, self.n_outputs), points)


def _hull_slope(function: Logits, n_outputs: int, batch: Batch, n_draws: int) -> float:
    """The largest slope at the samples and at random convex combinations of two or four of them."""
    X, generator = batch.X, batch.generator()

    def points() -> Iterator[Tensor]:
        yield X
        for draw in _progress(range(n_draws), batch, "convex hull"):
            corners = 2 if draw % 2 == 0 else 4
            # Exponential variables, (corners, n): divided by their sum, they are uniform on the simplex.
            weights = -torch.rand(corners, len(X), generator=generator, dtype=torch.float64, device="cpu").neg().log1p()
            weights = (weights / weights.sum(0)).to(X)
            total = torch.zeros_like(X)  # (n, ...)
            for weight in weights:
                order = torch.randperm(len(X), generator=generator, device="cpu").to(X.device)  # (n,)
                total = total + over(weight, X) * X[order]
            yield total

    def slope(_: Tensor, some: Tensor) -> float:
        return float(_spectral_norms(function, some, n_outputs).max())

    return max(max(batch.map(slope, candidates)) for candidates in points())


def _spectral_norms(function: Logits, points: Tensor, n_outputs: int) -> Tensor:
    """||J||_2 of every point, (n,), float64."""
    pieces = points.split(piece_size(points, n_outputs))
    return torch.cat([_left_singular(jacobian_rows(function, piece).double())[0][:, -1].sqrt() for piece in pieces])


def _log_slope_gradient(function: Logits, points: Tensor, n_outputs: int) -> Tensor:
    r"""Gradient of log \|J(x)\| in the Schatten norm of order 2 p, (n, ...); 0 for piecewise linear networks.

    Unlike \|J\|_2, to which it is close, it is smooth where singular values coincide: it weights the gradients of
    u_i^T J v_i, with the singular vectors fixed, by s_i^{2 p - 1}.
    """
    return torch.cat([_piece_gradient(function, piece) for piece in points.split(piece_size(points, n_outputs))])


def _piece_gradient(function: Logits, points: Tensor) -> Tensor:
    """The sum over i of (s_i / s_1)^{2 p - 2} grad (u_i^T J v_i) s_i / s_1^2, over that of (s_i / s_1)^{2 p}."""
    rows = jacobian_rows(function, points).double()  # (n, C, D)
    squares, outer = _left_singular(rows)  # s_i^2, (n, C), and u_i as columns, (n, C, C)
    ratios = (squares / squares[:, -1:]).nan_to_num(0.0)  # for a zero Jacobian
    weights = ratios ** (ORDER - 1)  # (n, C)
    weights = torch.where(weights > NEGLIGIBLE, weights, 0.0)
    # (n, 1)
    scale = (squares[:, -1:] * (ratios**ORDER).sum(1, keepdim=True)).clamp_min(torch.finfo(squares.dtype).tiny)
    weights = weights / scale
    with twice_differentiable():
        x = points.detach().requires_grad_(True)
        logits, total = function(x), x.new_zeros(())
        for k in range(1, 1 + int((weights > 0).sum(1).max())):
            u = outer[:, :, -k]  # (n, C)
            # weight times J^T u = s v, like a sample
            v = ((weights[:, -k, None] * u)[:, None, :] @ rows).reshape(x.shape)
            # J(x)^T u, whose product with v is u^T J(x) v
            (pulled,) = torch.autograd.grad(logits, x, u.to(x), create_graph=True)
            total = total + (pulled * v.to(x)).sum()
        if not total.requires_grad:
            return torch.zeros_like(points)
        (gradient,) = torch.autograd.grad(total, x, allow_unused=True)
    return torch.zeros_like(points) if gradient is None else gradient


def _left_singular(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values of J, ascending, (n, C), and the left singular vectors, (n, C, C), of J (n, C, D)."""
    gram = rows @ rows.transpose(1, 2)  # J J^T, (n, C, C)
    if not bool(gram.isfinite().all()):
        raise NotDefinedError("The Jacobian is not finite. Check the weights and X for NaN and infinity.")
    # Many small symmetric problems: a GPU solves them one after the other.
    squares, vectors = torch.linalg.eigh(gram.cpu())
    return squares.clamp_min(0).to(rows.device), vectors.to(rows.device)


def _lengths(offsets: Tensor) -> Tensor:
    """Euclidean norm of each sample's tensor, (n,), float64."""
    return offsets.flatten(1).double().norm(dim=1)


def _dots(some: Tensor, others: Tensor) -> Tensor:
    """Inner product of each sample's two tensors, (n,), float64."""
    return (some * others).flatten(1).double().sum(1)


def _scaled(directions: Tensor, lengths: Tensor) -> Tensor:
    """Vectors along `directions` with the given lengths; 0 along a zero direction."""
    norms = _lengths(directions)
    factors = torch.where(norms > 0, lengths / norms, 0.0)
    return directions * over(factors, directions).to(directions.dtype)


def _progress(steps: range, batch: Batch, what: str) -> Any:
    return tqdm(steps, desc=what, disable=not batch.verbose)
