"""Fully connected networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from torch import Tensor, nn

from sklearn_capacity._validation import as_list, check_boolean, check_integer, check_interval, check_option

__all__ = ["ACTIVATIONS", "MLP", "RowNormalizedLinear", "check_layer_sizes", "initialize_linear"]

#: name -> (module class, gain of He's initialisation: weights have standard deviation gain / sqrt(fan_in))
ACTIVATIONS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "relu": (nn.ReLU, math.sqrt(2.0)),
    "leaky_relu": (nn.LeakyReLU, math.sqrt(2.0)),
    "tanh": (nn.Tanh, 1.0),
    "sigmoid": (nn.Sigmoid, 1.0),
    "softplus": (nn.Softplus, 1.0),
    "gelu": (nn.GELU, math.sqrt(2.0)),
    "silu": (nn.SiLU, math.sqrt(2.0)),
    "identity": (nn.Identity, 1.0),
}


class RowNormalizedLinear(nn.Linear):
    r"""Linear map whose weight rows have unit length.

    .. math:: y = \operatorname{diag}(W W^T)^{-1/2} W x + b

    A subclass instead of a ``torch.nn.utils.parametrize`` parametrisation, which could not be pickled.
    ``weight`` is the raw W.

    References
    ----------
    Sokolic et al. 2017, eq. 45, with W W^T instead of the printed W^T W.

    Examples
    --------
    >>> import torch
    >>> layer = RowNormalizedLinear(2, 1, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> layer.effective_weight.detach()
    tensor([[0.6000, 0.8000]])
    """

    @property
    def effective_weight(self) -> Tensor:
        """The weight that the forward pass applies."""
        return nn.functional.normalize(self.weight, dim=1)

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.effective_weight, self.bias)


def initialize_linear(layer: nn.Linear, gain: float) -> nn.Linear:
    """He's initialisation in place: weights N(0, gain^2 / fan_in), biases 0."""
    nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class MLP(nn.Sequential):
    """Fully connected network that returns logits.

    Each hidden layer is Linear, [BatchNorm1d], activation, [Dropout]; the last one is only Linear.

    Parameters
    ----------
    n_features : int
        Length of a flattened sample.
    n_outputs : int
    hidden_layer_sizes : int or sequence of int, default=(100,)
        Empty for a linear model.
    activation : str or callable, default="relu"
        One of "relu", "leaky_relu", "tanh", "sigmoid", "softplus", "gelu", "silu", "identity", or
        any callable that returns a module when called without arguments.
    bias : bool, default=True
    batch_norm : bool, default=False
    weight_norm : bool, default=False
        Rows of every weight matrix are kept at unit length, see :class:`RowNormalizedLinear`.
    dropout : float in [0, 1), default=0.0
        Probability of dropping a hidden unit.

    Notes
    -----
    Weights are initialised as in He et al. (2015), biases with 0.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.architectures.mlp import MLP
    >>> MLP(4, 3, (10, 5))(torch.zeros(2, 4)).shape
    torch.Size([2, 3])
    """

    def __init__(
        self,
        n_features: int,
        n_outputs: int,
        hidden_layer_sizes: int | Sequence[int] = (100,),
        activation: str | Callable[[], nn.Module] = "relu",
        bias: bool = True,
        batch_norm: bool = False,
        weight_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        if not callable(activation):
            check_option("activation", activation, ACTIVATIONS)
        make_activation, gain = (activation, 1.0) if callable(activation) else ACTIVATIONS[activation]
        dropout = check_interval("dropout", dropout, 0, 1, closed="left")
        bias, batch_norm = check_boolean("bias", bias), check_boolean("batch_norm", batch_norm)
        linear = RowNormalizedLinear if check_boolean("weight_norm", weight_norm) else nn.Linear
        sizes = [check_integer("n_features", n_features), *check_layer_sizes(hidden_layer_sizes)]
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in zip(sizes[:-1], sizes[1:], strict=True):
            layers.append(initialize_linear(linear(width_in, width_out, bias=bias), gain))
            if batch_norm:
                layers.append(nn.BatchNorm1d(width_out))
            layers.append(make_activation())
            if dropout:
                layers.append(nn.Dropout(dropout))
        layers.append(initialize_linear(linear(sizes[-1], check_integer("n_outputs", n_outputs), bias=bias), 1.0))
        super().__init__(*layers)


def check_layer_sizes(hidden_layer_sizes: int | Sequence[int]) -> tuple[int, ...]:
    """The widths of the hidden layers as a tuple; raises an error that names a wrong one."""
    many = hasattr(hidden_layer_sizes, "__iter__") and not isinstance(hidden_layer_sizes, str | bytes)
    sizes = as_list("hidden_layer_sizes", hidden_layer_sizes) if many else [hidden_layer_sizes]
    cure = "Give the width of each hidden layer, such as (100,)."
    return tuple(check_integer("hidden_layer_sizes", size, cure=cure) for size in sizes)
