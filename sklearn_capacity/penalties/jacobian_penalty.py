"""Penalties by name, in the form for a training loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_capacity._validation import check_option
from sklearn_capacity.derivatives.input_jacobian import OUTPUTS
from sklearn_capacity.penalties.frobenius import frobenius_penalty, projection_penalty
from sklearn_capacity.penalties.per_layer import per_layer_penalty
from sklearn_capacity.penalties.shared_pass import SharedPass, forward_pass
from sklearn_capacity.penalties.spectral import spectral_penalty

__all__ = ["PENALTIES", "JacobianPenalty", "Penalty"]


@dataclass(frozen=True)
class Penalty:
    """A penalty function and the options that it takes besides ``output`` and ``sample_weight``.

    ``random`` states that it draws random numbers, from a CPU generator that is passed as ``generator``;
    ``options`` are the names of estimator parameters that are passed on.
    """

    function: Callable[..., Tensor]
    random: bool = False
    options: tuple[str, ...] = ()


PENALTIES = {
    "frobenius": Penalty(frobenius_penalty),
    "projection": Penalty(projection_penalty, random=True, options=("n_projections",)),
    "spectral": Penalty(spectral_penalty),
    "per_layer": Penalty(per_layer_penalty, random=True),
}


class JacobianPenalty:
    """A Jacobian penalty for a training loop that can share the loss's forward pass.

    Parameters
    ----------
    norm : {"frobenius", "projection", "spectral", "per_layer"}, default="frobenius"
        Name of the penalty function.
    output : {"logits", "softmax"}, default="logits"
        The outputs that are differentiated with respect to the input.
    generator : torch.Generator on the CPU, default=None
        For the random norms; None creates one generator, on construction, with torch's default seed.
    **options
        Further options of the penalty function: ``n_projections``, or ``precision`` of the exact norm.

    Raises
    ------
    ValueError
        If `norm` or `output` is not one of those listed.

    Examples
    --------
    A training step:

    >>> import torch
    >>> from sklearn_capacity.penalties import JacobianPenalty
    >>> module, X, y = torch.nn.Linear(4, 3), torch.randn(10, 4), torch.arange(10) % 3
    >>> penalty = JacobianPenalty("projection", n_projections=2)
    >>> shared = penalty.forward(module, X)
    >>> loss = torch.nn.functional.cross_entropy(shared.logits, y) + 0.1 * penalty(module, X, shared=shared)
    >>> loss.backward()
    """

    def __init__(
        self,
        norm: str = "frobenius",
        *,
        output: str = "logits",
        generator: torch.Generator | None = None,
        **options: Any,
    ) -> None:
        self.norm = check_option("norm", norm, PENALTIES)
        self.options = {"output": check_option("output", output, OUTPUTS), **options}
        if PENALTIES[norm].random:
            self.options["generator"] = torch.Generator() if generator is None else generator

    def __call__(
        self, module: nn.Module, X: Tensor, sample_weight: Tensor | None = None, shared: SharedPass | None = None
    ) -> Tensor:
        """The penalty at a batch, (); `shared` is the result of `forward` for it."""
        function = PENALTIES[self.norm].function
        return function(module, X, sample_weight=sample_weight, shared=shared, **self.options)

    def forward(self, module: nn.Module, X: Tensor) -> SharedPass:
        """A forward pass for the loss that the penalty can reuse, see :func:`forward_pass`."""
        return forward_pass(module, X)
