"""Draw networks from the Gaussian ensemble that mean-field theory describes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sklearn_capacity._validation import check_instance, check_integer, copied_module
from sklearn_capacity.theory._mean_field import per_layer

__all__ = ["draw_normal", "initialize_mean_field", "make_generator"]

WEIGHT_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMALISATIONS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)


def initialize_mean_field(
    module: nn.Module,
    sigma_w2: float | Sequence[float],
    sigma_b2: float | Sequence[float],
    random_state: int | np.random.RandomState | np.random.Generator | None = None,
) -> nn.Module:
    """Return a copy of the module with Gaussian weights: W ~ N(0, sigma_w2 / fan_in), b ~ N(0, sigma_b2).

    fan_in is the number of inputs of one unit: `in_features` of a Linear, in_channels / groups times the kernel size of
    a Conv. The module itself and all global random streams do not change.

    Parameters
    ----------
    module : nn.Module
        Its parameters must all belong to Linear and Conv layers; activations and pooling may be anywhere.
    sigma_w2 : float in (0, inf), or one per weight layer in the order of `module.modules()`
    sigma_b2 : float in [0, inf), or one per weight layer
        Must be 0 for a layer without a bias.
    random_state : int, numpy RandomState, numpy Generator or None, default=None
        An integer gives the same numbers on all devices (in float32 the rounded float64 ones). None: new numbers.

    Returns
    -------
    nn.Module
        A deep copy, on the same device and with the same dtype.

    Raises
    ------
    TypeError
        If there is a parameter outside Linear and Conv layers, a normalisation layer even without parameters (it
        rescales what the theory computes), or a parametrised or lazy layer, or if `module` is not a module.
    ValueError
        If a variance is outside its range, or `sigma_b2` is positive for a layer without a bias.

    Notes
    -----
    Parameters that several layers share are drawn once, with the first layer's variance. Max and average pooling are
    allowed, but the theory of `mean_field` does not include them.

    References
    ----------
    Karakida, Akaho, Amari 2019, eq. (2).

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.theory import initialize_mean_field
    >>> module = torch.nn.Sequential(torch.nn.Linear(400, 300), torch.nn.Tanh(), torch.nn.Linear(300, 1))
    >>> drawn = initialize_mean_field(module, 3.0, 0.64, random_state=0)
    >>> round(drawn[0].weight.var().item() * 400, 2)
    3.02
    """
    list(_weight_layers(module))  # all checks, before torch refuses to copy the module
    module = copied_module(module, "Initialize a new one.")
    layers = list(_weight_layers(module))
    if not layers:
        raise ValueError("`module` must hold a Linear or Conv layer, got none.")
    w2 = per_layer("sigma_w2", sigma_w2, len(layers), closed="neither")
    b2 = per_layer("sigma_b2", sigma_b2, len(layers), closed="left")
    generator = make_generator(random_state)
    drawn: set[int] = set()
    with torch.no_grad():
        for (name, layer), weight_variance, bias_variance in zip(layers, w2, b2, strict=True):
            if layer.bias is None and bias_variance > 0:
                raise ValueError(
                    f"`sigma_b2` must be 0 for layer {name!r}, which has no bias, got {bias_variance:g}. "
                    f"Give one value per weight layer, or build the layer with bias=True."
                )
            fan_in = layer.weight[0].numel()
            for parameter, variance in ((layer.weight, weight_variance / fan_in), (layer.bias, bias_variance)):
                if parameter is not None and id(parameter) not in drawn:
                    drawn.add(id(parameter))
                    parameter.copy_(draw_normal(parameter.shape, variance, generator))
    return module


def make_generator(random_state: Any) -> torch.Generator:
    """A private CPU generator from an integer, a numpy generator (one draw) or, for None, fresh entropy."""
    if random_state is None:
        random_state = np.random.default_rng()
    if isinstance(random_state, np.random.Generator):
        seed = int(random_state.integers(2**31))
    elif isinstance(random_state, np.random.RandomState):
        seed = int(random_state.randint(2**31 - 1))
    else:
        seed = check_integer("random_state", random_state, 0, 2**63 - 1)
    return torch.Generator(device="cpu").manual_seed(seed)


def draw_normal(shape: Sequence[int], variance: float, generator: torch.Generator) -> Tensor:
    """N(0, variance) in float64 on the CPU, so that the numbers do not depend on device or dtype."""
    values = torch.randn(tuple(shape), generator=generator, dtype=torch.float64, device="cpu")
    return values * float(variance) ** 0.5


def _weight_layers(module: nn.Module) -> Iterator[tuple[str, Any]]:
    """Linear and Conv layers by name; other layers with parameters are refused."""
    for name, layer in check_instance("module", module, nn.Module, "an nn.Module").named_modules():
        kind = type(layer).__name__
        if any(isinstance(part, nn.UninitializedParameter) for part in layer.parameters(recurse=False)):
            raise TypeError(f"`module` must have its shapes, but layer {name!r} is lazy. Run one forward pass first.")
        names = {part for part, _ in layer.named_parameters(recurse=False)}
        if isinstance(layer, WEIGHT_LAYERS):
            if not all(isinstance(part, nn.Parameter | None) for part in (layer.weight, layer.bias)):
                raise TypeError(
                    f"`module` must hold plain weights, but layer {name!r} is parametrised (weight norm, spectral "
                    f"norm, pruning). Build the network without it."
                )
            if names <= {"weight", "bias"}:
                yield name, layer
                continue
        if names or isinstance(layer, NORMALISATIONS):
            raise TypeError(
                f"`module` must have parameters in Linear and Conv layers only, but {name!r} is a {kind}. "
                f"Mean-field theory does not describe it; build the network without it."
            )
