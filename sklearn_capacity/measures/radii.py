"""Radii around the samples in which the prediction does not change: two certified ones and two estimates ([JR] thm 4).

The score is o = (f_y - max f_k) / sqrt(2): f_y - f_k is a linear functional of norm sqrt(2), so within a distance of
o / s, s the Lipschitz constant, no logit overtakes that of the label.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..derivatives.double_backward import twice_differentiable
from ..graph import Network
from .batch import Batch
from .lipschitz import log_lipschitz
from .margins import margins_of
from .output_gram import jacobian_rows, logits_function, piece_size

__all__ = ["CERTIFIED", "METHODS", "sample_radii"]

Logits = Callable[[Tensor], Tensor]
METHODS = ("spectral", "frobenius", "jacobian", "hull")
# Steps of ascent, over the radius, and where each ends: its share of the way from o / S to the radius so far.
STEPS = ((1.0, 0.5), (0.5, 0.75), (0.25, 0.5), (0.125, 0.25))
CERTIFIED = ("spectral", "frobenius")


def sample_radii(network: Network, batch: Batch, method: str, n_draws: int) -> tuple[Tensor, dict[str, Any]]:
    """The radius of every sample, (n,), float64, and how it was computed; 0 where the sample is misclassified."""
    scores = (margins_of(batch.logits, batch.classes) / math.sqrt(2)).clamp_min(0)
    info: dict[str, Any] = {"method": method, "certified": method in CERTIFIED}
    if method == "jacobian":
        return _ball_radii(network, batch, scores, n_draws), info
    if method == "hull":
        log_slope = math.log(slope) if (slope := _hull_slope(network, batch, n_draws)) > 0 else -math.inf
    else:
        log_slope = log_lipschitz(network, "l2" if method == "spectral" else "frobenius")
    # exp(log o - log s) stands where s itself would overflow; log 0 = -inf gives the radius 0.
    radii = torch.where(scores > 0, (scores.log() - log_slope).exp(), torch.zeros_like(scores))
    return radii, {**info, "log_slope": log_slope}


def _ball_radii(network: Network, batch: Batch, scores: Tensor, n_draws: int) -> Tensor:
    r"""The fixed points gamma = o / (largest slope found within gamma).

    S(r), the largest \|J\|_2 among the points found within r, grows with r, so sup {r : r S(r) <= o} is the least of
    max(d, o / \|J(z)\|) over the points z found, d being their distance: each point is looked at once and forgotten.
    """
    search = _BallSearch(network, batch, scores)
    generator = batch.generator()
    reach = search.reach()
    for sign in (0.75, -0.75):
        search.look_at(search.X + _scaled(search.direction, reach) * sign)
    for draw in _progress(range(n_draws), batch, "radii"):
        noise = torch.randn(search.X.shape, generator=generator, dtype=search.X.dtype, device="cpu").to(search.X.device)
        share = torch.rand(len(noise), generator=generator, dtype=torch.float64, device="cpu").to(search.X.device)
        search.look_at(search.X + _scaled(noise, share * search.reach()))
        search.climb(noise, *STEPS[draw % len(STEPS)])
    return search.radii


class _BallSearch:
    """For every sample the radius so far, and the steepest point known inside it."""

    def __init__(self, network: Network, batch: Batch, scores: Tensor):
        self.function, self.n_outputs = logits_function(network, batch), network.n_outputs
        self.batch, self.scores = batch, scores
        self.X = self.best = batch.X
        # Where the network is flat at the sample any radius may do: look no further than the data reach.
        self.horizon = float((self.X - self.X.mean(0)).flatten(1).norm(dim=1).max().double()) or 1.0
        self.steepest, self.direction = self._slopes(self.X)
        self.at = torch.zeros_like(self.steepest)
        self.radii = self._allowed(self.at, self.steepest)

    def reach(self) -> Tensor:
        return self.radii.clamp(max=self.horizon)

    def _allowed(self, distances: Tensor, slopes: Tensor) -> Tensor:
        """The radius that points at these distances leave; 0 for misclassified samples."""
        allowed = torch.maximum(distances, self.scores / slopes)
        return torch.where(self.scores > 0, allowed, torch.zeros_like(allowed))

    def look_at(self, points: Tensor) -> None:
        slopes, _ = self._slopes(points)
        distances = _lengths(points - self.X)
        self.radii = torch.minimum(self.radii, self._allowed(distances, slopes))
        # A steepest point that the shrunken ball has lost makes way for any that lies inside.
        better = (distances <= self.radii) & ((slopes > self.steepest) | (self.at > self.radii))
        self.steepest = torch.where(better, slopes, self.steepest)
        self.at = torch.where(better, distances, self.at)
        self.best = torch.where(better.reshape(-1, *(1,) * (points.dim() - 1)), points, self.best)

    def climb(self, noise: Tensor, step: float, share: float) -> None:
        """One step up from the steepest points, at random where the slope is locally constant.

        The fixed point lies between o over the largest slope known and the radius so far, so there the step ends.
        """
        parts = self.batch.map(lambda _, some: _slope_gradient(self.function, some, self.n_outputs), self.best)
        gradient = torch.cat(parts)
        flat = _lengths(gradient) == 0
        direction = torch.where(flat.reshape(-1, *(1,) * (noise.dim() - 1)), noise, gradient)
        reach = self.reach()
        offset = self.best + _scaled(direction, step * reach) - self.X
        least = torch.minimum(self._allowed(torch.zeros_like(self.at), self.steepest), reach)
        self.look_at(self.X + _scaled(offset, least + share * (reach - least)))

    def _slopes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        parts = self.batch.map(lambda _, some: _top_singular(self.function, some, self.n_outputs), points)
        slopes, directions, _ = (torch.cat(part) for part in zip(*parts, strict=True))
        return slopes, directions


def _hull_slope(network: Network, batch: Batch, n_draws: int) -> float:
    """The largest slope at the samples and at random convex combinations of two or four of them."""
    X, generator, function = batch.X, batch.generator(), logits_function(network, batch)

    def points() -> Iterator[Tensor]:
        yield X
        for draw in _progress(range(n_draws), batch, "convex hull"):
            corners = 2 if draw % 2 == 0 else 4
            weights = -torch.rand(corners, len(X), generator=generator, dtype=torch.float64, device="cpu").neg().log1p()
            weights = (weights / weights.sum(0)).to(X)  # uniform on the simplex
            total = torch.zeros_like(X)
            for weight in weights:
                order = torch.randperm(len(X), generator=generator, device="cpu").to(X.device)
                total = total + weight.reshape(-1, *(1,) * (X.dim() - 1)) * X[order]
            yield total

    def slope(_: Tensor, some: Tensor) -> float:
        return float(_top_singular(function, some, network.n_outputs)[0].max())

    return max(max(batch.map(slope, candidates)) for candidates in points())


def _top_singular(function: Logits, points: Tensor, n_outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    """||J||_2 in float64, (n,), with its singular vectors at the input, (n, ...), and at the output, (n, C)."""
    parts = []
    for piece in points.split(piece_size(points, n_outputs)):
        rows = jacobian_rows(function, piece).double()
        values, vectors = torch.linalg.eigh((rows @ rows.transpose(1, 2)).cpu())
        slope, out = values[:, -1].clamp_min(0).sqrt().to(points.device), vectors[:, :, -1].to(points.device)
        parts.append((slope, (out[:, None, :] @ rows).reshape(piece.shape).to(piece.dtype), out.to(piece.dtype)))
    slopes, inner, outer = (torch.cat(part) for part in zip(*parts, strict=True))
    return slopes, inner, outer


def _slope_gradient(function: Logits, points: Tensor, n_outputs: int) -> Tensor:
    """A multiple of the gradient of ||J(x)||_2 = u^T J v with u and v held; 0 for piecewise linear networks."""
    _, inner, outer = _top_singular(function, points, n_outputs)
    with twice_differentiable():
        x = points.detach().requires_grad_(True)
        (pulled,) = torch.autograd.grad(function(x), x, outer, create_graph=True)
        if not pulled.requires_grad:
            return torch.zeros_like(points)
        (gradient,) = torch.autograd.grad(pulled, x, inner, allow_unused=True)
    return torch.zeros_like(points) if gradient is None else gradient


def _lengths(offsets: Tensor) -> Tensor:
    return offsets.flatten(1).double().norm(dim=1)


def _scaled(directions: Tensor, lengths: Tensor) -> Tensor:
    """Vectors along `directions`, of the lengths given; 0 along a zero direction."""
    own = _lengths(directions)
    factor = torch.where(own > 0, lengths / own, torch.zeros_like(own))
    return directions * factor.reshape(-1, *(1,) * (directions.dim() - 1)).to(directions.dtype)


def _progress(steps: range, batch: Batch, what: str) -> Any:
    return tqdm(steps, desc=what, disable=not batch.verbose)
