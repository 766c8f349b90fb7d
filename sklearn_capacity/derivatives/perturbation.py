"""Displacements of the weights: parameters as views of a flat buffer, random noise, ascent in a box or a ball."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

__all__ = ["BALLS", "FlatParameters", "ProjectedAscent", "ascend_in_ball", "displacements"]

BALLS = ("l2", "linf")


class FlatParameters:
    """A private copy of some tensors as views of one flat buffer, which can be displaced and restored.

    Noise, bounds and steps are then single operations on a vector, independent of the number of tensors.

    Parameters
    ----------
    tensors : sequence of Tensor
        All of one dtype on one device; copied and never modified.

    Attributes
    ----------
    center : Tensor of shape (P,)
        The original values.
    flat : Tensor of shape (P,)
        The current values.
    views : list of Tensor
        The same memory in the tensors' shapes; the order of entries in the buffer is an implementation detail.

    Examples
    --------
    >>> import torch
    >>> theta = FlatParameters([torch.ones(2, 2), torch.zeros(1)])
    >>> _ = theta.flat.add_(1.0)
    >>> theta.views[1]
    tensor([1.])
    >>> theta.restore()
    >>> theta.flat.tolist()
    [1.0, 1.0, 1.0, 1.0, 0.0]
    """

    def __init__(self, tensors: Sequence[Tensor]):
        self.shapes = [tensor.shape for tensor in tensors]
        self.center = torch.cat([_channels_last(tensor.detach()).reshape(-1) for tensor in tensors])  # (P,)
        self.flat = self.center.clone()
        self.views = self.split(self.flat)

    def __len__(self) -> int:
        return len(self.center)

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector as views in the shapes of the tensors."""
        pieces = vector.split([shape.numel() for shape in self.shapes])  # (numel,) each
        return [_shaped(piece, shape) for piece, shape in zip(pieces, self.shapes, strict=True)]

    def move(self, direction: Tensor, scale: Tensor | float, sign: int = 1) -> None:
        """Set the values to center + sign * scale * direction; `scale` is a number or one number per parameter."""
        if isinstance(scale, Tensor):
            torch.addcmul(self.center, direction, scale, value=sign, out=self.flat)
        else:
            torch.add(self.center, direction, alpha=sign * scale, out=self.flat)

    def restore(self) -> None:
        """Reset the values to the centre."""
        self.flat.copy_(self.center)


# Image kernels are channels-last in the buffer: convolutions then take 0.5 to 0.9 of the time.
def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.permute(0, 2, 3, 1) if tensor.dim() == 4 else tensor


def _shaped(piece: Tensor, shape: torch.Size) -> Tensor:
    if len(shape) == 4:
        n, c, *sides = shape
        return piece.view(n, *sides, c).permute(0, 3, 1, 2)
    return piece.view(shape)


def displacements(
    theta: FlatParameters,
    scale: Tensor | float,
    n_draws: int,
    generator: torch.Generator,
    *,
    antithetic: bool = False,
    uniform: bool = False,
) -> Generator[None, None, None]:
    """Displace the parameters by random noise, once per iteration; they are reset to the centre afterwards.

    Parameters
    ----------
    theta : FlatParameters
    scale : Tensor of shape (P,) or float
        Standard deviations of Gaussian noise, or half the widths of uniform noise.
    n_draws : int
        Number of displacements, even if `antithetic`.
    generator : torch.Generator
        On the CPU, so that a seed gives the same draws on all devices.
    antithetic : bool, default=False
        Follow every v by -v: this halves the random numbers, and the odd part of the function cancels exactly.
    uniform : bool, default=False
        Uniform instead of Gaussian noise.

    Yields
    ------
    None
        `theta.flat` holds the displaced values.
    """
    if isinstance(scale, Tensor):
        scale = scale.to(theta.center)
    # Always float32, so that the noise does not depend on the network's precision.
    drawn = torch.empty(len(theta), dtype=torch.float32, device="cpu")  # (P,)
    noise = drawn.to(theta.center)  # shares memory with `drawn` if it is float32 on the CPU
    try:
        for draw in range(n_draws):
            again = antithetic and draw % 2 == 1
            if not again:
                drawn.uniform_(-1, 1, generator=generator) if uniform else drawn.normal_(generator=generator)
                if noise is not drawn:
                    noise.copy_(drawn)
            theta.move(noise, scale, -1 if again else 1)
            yield
    finally:
        theta.restore()


class ProjectedAscent:
    """Gradient ascent with momentum inside a box around the centre.

    Parameters
    ----------
    theta : FlatParameters
        Modified in place; `leaves` are its views as tensors for differentiation.
    radius : Tensor of shape (P,)
        Half the side of the box in every direction.
    learning_rate : float
    momentum : float
    """

    def __init__(self, theta: FlatParameters, radius: Tensor, *, learning_rate: float, momentum: float):
        self.theta = theta
        self.low, self.high = theta.center - radius, theta.center + radius  # (P,) each
        self.learning_rate = learning_rate
        self.momentum = momentum
        self._velocity = torch.zeros_like(theta.center)  # (P,)
        self._velocities = theta.split(self._velocity)

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        """Take one step along the gradients and project onto the box."""
        self._velocity.mul_(self.momentum)
        torch._foreach_add_(self._velocities, list(gradients))
        self.theta.flat.add_(self._velocity, alpha=self.learning_rate)
        torch.clamp(self.theta.flat, self.low, self.high, out=self.theta.flat)


@torch.no_grad()
def ascend_in_ball(
    theta: FlatParameters,
    scale: Tensor | float,
    evaluate: Callable[[bool], tuple[float, Tensor | None]],
    *,
    radius: float,
    norm: str,
    steps: int,
    start: Tensor,
) -> list[float]:
    """Values of a function along a steepest ascent at center + scale u with ||u|| <= radius.

    A step goes along g / ||g||_2, or along sign g for the norm "linf", where g is the gradient with respect to u,
    followed by projection onto the ball. From the centre, the first step ends on the sphere: it is the step of
    sharpness-aware minimisation. A step without a rise is undone, and the next one has half its length; after a rise,
    the next one has twice its length.

    Parameters
    ----------
    theta : FlatParameters
        Modified in place; reset to the centre afterwards.
    scale : Tensor of shape (P,) or float
    evaluate : callable
        Value of the function at `theta.flat`, and its gradient there, (P,), if the argument is True.
    radius : float
    norm : "l2" or "linf"
    steps : int
    start : Tensor of shape (P,)
        Initial u, inside the ball.

    Returns
    -------
    list of float
        Values at the start and after each of the steps.
    """

    def at(u: Tensor, last: bool) -> tuple[float, Tensor]:
        theta.move(u, scale)
        value, gradient = evaluate(not last)
        return value, torch.zeros_like(u) if gradient is None else gradient * scale  # d/du = scale d/dtheta, (P,)

    u, length = start, radius
    try:
        value, gradient = at(u, False)
        values = [value]
        for step in range(1, steps + 1):
            there = _into_ball(u + length * _steepest(gradient, norm), radius, norm)  # (P,)
            risen, slope = at(there, step == steps)
            values.append(risen)
            if risen > value:
                u, value, gradient, length = there, risen, slope, min(2 * length, 4 * radius)
            else:
                length /= 2
    finally:
        theta.restore()
    return values


def _steepest(gradient: Tensor, norm: str) -> Tensor:
    """The direction of steepest ascent with length one; 0 if the gradient is 0."""
    if norm == "linf":
        return gradient.sign()
    length = torch.linalg.vector_norm(gradient)
    return torch.where(length > 0, gradient / length, torch.zeros_like(gradient))


def _into_ball(u: Tensor, radius: float, norm: str) -> Tensor:
    if norm == "linf":
        return u.clamp(-radius, radius)
    return u * (radius / torch.linalg.vector_norm(u)).clamp_max(1)
