"""Architectures by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import prod
from types import MappingProxyType
from typing import Any

import numpy as np
from torch import nn

from sklearn_capacity._validation import as_list, check_integer, check_option, closest
from sklearn_capacity.architectures.mlp import MLP
from sklearn_capacity.architectures.plain_convnets import VGG, AllConvNet, ConvNet
from sklearn_capacity.architectures.preactivation import PreactResNet, WideResNet
from sklearn_capacity.architectures.residual_mlp import ResidualMLP
from sklearn_capacity.architectures.resnet import CifarResNet

__all__ = ["ARCHITECTURES", "make_network"]

#: name -> (class, parameters that the name fixes and that `params` may still override)
ARCHITECTURES: MappingProxyType[str, tuple[Callable[..., nn.Module], dict[str, Any]]] = MappingProxyType(
    {
        "mlp": (MLP, {}),
        "conv": (ConvNet, {}),
        "all_cnn_c": (AllConvNet, {}),
        "vgg": (VGG, {}),
        "resnet20": (CifarResNet, {"depth": 20}),
        "resnet32": (CifarResNet, {"depth": 32}),
        "resnet44": (CifarResNet, {"depth": 44}),
        "resnet56": (CifarResNet, {"depth": 56}),
        "resnet110": (CifarResNet, {"depth": 110}),
        "resnet20_gl": (CifarResNet, {"depth": 20, "generalization_layer": "skip"}),
        "resnet56_gl": (CifarResNet, {"depth": 56, "generalization_layer": "skip"}),
        "resnet20_gld": (CifarResNet, {"depth": 20, "generalization_layer": "dropout", "layer_dropout": 0.75}),
        "resnet56_gld": (CifarResNet, {"depth": 56, "generalization_layer": "dropout", "layer_dropout": 0.6}),
        "preact_resnet18": (PreactResNet, {}),
        "wrn_22_5": (WideResNet, {"depth": 22, "widen": 5}),
        "residual_mlp": (ResidualMLP, {}),
        "residual_mlp_gl": (ResidualMLP, {"n_hidden_layers": 91, "generalization_blocks": (-3, -2, -1)}),
    }
)


def make_network(name: str, input_shape: Sequence[int] | int, n_outputs: int, **params: Any) -> nn.Module:
    """Build a newly initialised network of the papers that returns logits.

    Parameters
    ----------
    name : str
        One of `ARCHITECTURES`: "mlp", "conv", "all_cnn_c", "vgg", "resnet20", "resnet32", "resnet44", "resnet56",
        "resnet110", "resnet20_gl", "resnet56_gl", "resnet20_gld", "resnet56_gld", "preact_resnet18", "wrn_22_5",
        "residual_mlp", "residual_mlp_gl".
    input_shape : sequence of int, or int
        Shape of one sample: (channels, height, width) for convolutional networks.
    n_outputs : int
        Number of logits, or of outputs of a regression.
    **params
        Parameters of the architecture's class, such as `batch_norm` and `weight_norm`.

    Returns
    -------
    torch.nn.Module
        The network in training mode, on the CPU, with He's initialisation from torch's global generator.

    Raises
    ------
    ValueError
        If the name is unknown, a value is outside its range, or the image is too small.
    TypeError
        If the architecture does not have a parameter.

    References
    ----------
    The docstring of each class names its paper.

    Examples
    --------
    >>> from sklearn_capacity.architectures import make_network
    >>> network = make_network("resnet20", (1, 8, 8), 10)
    >>> type(network).__name__
    'CifarResNet'
    """
    check_option("name", name, ARCHITECTURES)
    shape = (input_shape,) if isinstance(input_shape, int | np.integer) else tuple(as_list("input_shape", input_shape))
    shape = tuple(check_integer("input_shape", size) for size in shape)
    n_outputs = check_integer("n_outputs", n_outputs)
    factory, fixed = ARCHITECTURES[name]
    known = list(inspect.signature(factory).parameters)
    for parameter in params:
        if parameter not in known[2:]:
            hint = closest(parameter, known[2:]) or f"It has: {', '.join(known[2:])}."
            raise TypeError(f"`{parameter}` is not a parameter of the architecture {name!r}. {hint}")
    # an MLP needs the length of a flattened sample, all others need its shape
    first = prod(shape) if known[0] == "n_features" else shape
    return factory(first, n_outputs, **{**fixed, **params})
