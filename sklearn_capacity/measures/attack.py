"""Distances to misclassified points: upper ends of the classification margin at the input ([JR] definition 2)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from tqdm import tqdm

from ..graph import Network
from .batch import Batch
from .margins import margins_of
from .output_gram import jacobian_rows, logits_function, piece_size

__all__ = ["attack_radii", "over"]

Logits = Callable[[Tensor], Tensor]

STEPS = 8  # towards the boundary
OVERSHOOT = 1.02  # of these steps, since a step to the linear boundary stops short of it
REFINEMENTS = 6  # of a point on the boundary
HALVINGS = 20  # of the interval between a correct and a wrong point


def attack_radii(network: Network, batch: Batch, n_draws: int) -> Tensor:
    """The distance from every sample to the closest misclassified point found, (n,), float64; inf where none was.

    The first search starts at the samples, the others at random points in a ball around them. Steps to the nearest
    boundary of the linearised network (Moosavi-Dezfooli, Fawzi and Frossard 2016) lead to a wrong class; from there,
    projections of the sample on the tangent of the boundary lead to closer points (Croce and Hein 2020).
    """
    search = _Search(network, batch)
    generator, X = batch.generator(), batch.X
    horizon = (X - X.mean(0)).flatten(1).double().norm(dim=1).max()
    for draw in tqdm(range(n_draws), desc="attack", disable=not batch.verbose):
        # In float64, whose draws do not depend on the processor.
        noise = torch.randn(X.shape, generator=generator, dtype=torch.float64, device="cpu").to(X)  # (n, ...)
        lengths = torch.where(search.radii.isfinite(), search.radii, horizon) * (draw > 0)  # (n,)
        norms = noise.flatten(1).double().norm(dim=1).clamp_min(torch.finfo(torch.float64).tiny)  # (n,)
        search.descend(X + noise * over(lengths / norms, noise).to(noise))
    return search.radii


class _Search:
    """The closest misclassified points so far; a point counts only where the network itself misclassifies it."""

    def __init__(self, network: Network, batch: Batch):
        self.network, self.batch, self.function = network, batch, logits_function(network, batch)
        misclassified = self.wrong(batch.X)  # (n,)
        self.radii = torch.full_like(misclassified, torch.inf, dtype=torch.float64).masked_fill(misclassified, 0.0)

    def wrong(self, points: Tensor) -> Tensor:
        """Whether the network misclassifies these points, (n,)."""

        def margins(_: Tensor, some: Tensor, classes: Tensor) -> Tensor:
            return margins_of(self.network.forward(some), classes)

        with torch.no_grad():
            return self.batch.cat(margins, points, self.batch.classes) < 0

    def descend(self, points: Tensor) -> None:
        """Step from these points across the boundary, then along it towards the samples."""
        wrong = self.wrong(points)
        for _ in range(STEPS):
            if bool(wrong.all()):
                break
            stepped = points + OVERSHOOT * self._to_boundary(points, points)
            points = torch.where(over(wrong, points), points, stepped)
            wrong = self.wrong(points)
        points = self._between(self.batch.X, points, wrong)
        for _ in range(REFINEMENTS):
            closer = self.batch.X + self._to_boundary(points, self.batch.X)
            crossed = over(self.wrong(closer), closer)
            # From the sample to its projection, if that is wrong, else from the projection to the point.
            inner, outer = torch.where(crossed, self.batch.X, closer), torch.where(crossed, closer, points)
            points = self._between(inner, outer, wrong)

    def _to_boundary(self, points: Tensor, origins: Tensor) -> Tensor:
        """The shortest steps from the origins to a boundary of the network that is linearised at the points."""

        def steps(_: Tensor, some: Tensor, base: Tensor, classes: Tensor) -> Tensor:
            size = piece_size(some, self.network.n_outputs)
            pieces = zip(some.split(size), base.split(size), classes.split(size), strict=True)
            return torch.cat([_linear_steps(self.function, *piece) for piece in pieces])

        return self.batch.cat(steps, points, origins, self.batch.classes)

    def _between(self, correct: Tensor, wrong: Tensor, known: Tensor) -> Tensor:
        """Misclassified points next to the boundary, between correct and wrong points, where these are `known`."""
        for _ in range(HALVINGS):
            middle = (correct + wrong) / 2
            crossed = over(self.wrong(middle), middle)
            wrong, correct = torch.where(crossed, middle, wrong), torch.where(crossed, correct, middle)
        distances = (wrong - self.batch.X).flatten(1).double().norm(dim=1)  # (n,)
        self.radii = torch.where(known, torch.minimum(self.radii, distances), self.radii)
        return wrong


def _linear_steps(function: Logits, points: Tensor, origins: Tensor, classes: Tensor) -> Tensor:
    """Steps onto the nearest plane where the linear approximation of f_y - f_j is 0; 0 where it is constant."""
    rows = jacobian_rows(function, points).double()  # (n, C, D)
    with torch.no_grad():
        logits = function(points).double()
    everyone = torch.arange(len(points), device=points.device)
    slopes = rows[everyone, classes][:, None] - rows  # of f_y - f_j, (n, C, D)
    margins = logits.gather(1, classes[:, None]) - logits  # (n, C)
    # At the origins instead of the points: m + s . (origin - point), (n, C).
    margins = margins + (slopes @ (origins - points).flatten(1).double()[:, :, None])[:, :, 0]
    lengths = slopes.norm(dim=2)  # (n, C)
    # From x to the plane m + s . (z - x) = 0 along -s: m / |s|, (n, C). That of the label itself is inf, as s = 0.
    distances = torch.where(lengths > 0, margins.clamp_min(0) / lengths, torch.inf)
    nearest = distances.argmin(1)  # (n,)
    factors = (distances / lengths)[everyone, nearest].nan_to_num(0.0, 0.0)  # m / |s|^2, (n,)
    steps = -factors[:, None] * slopes[everyone, nearest]  # (n, D)
    return steps.reshape(points.shape).to(points.dtype)


def over(factors: Tensor, samples: Tensor) -> Tensor:
    """One number per sample, reshaped to broadcast over tensors like `samples`."""
    return factors.reshape(-1, *(1,) * (samples.dim() - 1))
