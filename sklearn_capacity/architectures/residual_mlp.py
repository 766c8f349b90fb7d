"""The deep, narrow residual MLPs of [GL]."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from torch import Tensor, nn

from sklearn_capacity._validation import as_list, check_boolean, check_integer, check_interval
from sklearn_capacity.architectures.blocks import linear
from sklearn_capacity.layers import SkipLayer, he_initialize
from sklearn_capacity.layers.initialization import scale_branches

__all__ = ["ResidualMLP"]


class ResidualMLP(nn.Sequential):
    r"""Hidden layers of equal width with ReLU, and a skip over every k of them.

    .. math:: x^{(b+1)} = \mathrm{relu}(\nu_b x^{(b)} + F_b(x^{(b)})), \qquad
        F_b = W_k\, \mathrm{relu}(W_{k-1} \cdots \mathrm{relu}(W_1 x))

    with :math:`\nu_b = 1`, or scheduled if the block is a generalization layer.

    Parameters
    ----------
    input_shape : sequence of int
        Shape of a sample, which is flattened.
    n_outputs : int
        Outputs of the last linear layer.
    n_hidden_layers : int, default=119
        Number of hidden layers, including the one after the input map.
    width : int, default=17
        Number of units of each.
    skip : int, default=2
        k, the number of layers under a skip ([GL] figure 2: 2, figure 4: 7). Remaining hidden layers (6 for k = 7) come
        last and have no skip.
    generalization_blocks : sequence of int, default=()
        Indices of the blocks that are generalization layers; negative ones count from the end. [GL] figure 7 has three
        at an unspecified place: "residual_mlp_gl" uses the last three.
    nu : float in (0, inf), default=1.0
        Initial strength of their skips.
    branch_scale : float in (0, inf), default=None
        Factor of the initial last weights of each branch. None: one over the square root of the number of skips; with 1
        (He's initialisation), 59 skips without batch norm give outputs of the order of 2^29.
    dropout : float in [0, 1), default=0.0
        Dropout after each block's ReLU.
    batch_norm : bool, default=False
        Batch norm before each ReLU.
    weight_norm : bool, default=False
        Whether rows have unit norm. `branch_scale` then has no effect, since the rows are normalised afterwards.

    Raises
    ------
    ValueError
        If a size is below 1, a skip is longer than the network, or a block does not exist.

    Notes
    -----
    With one input and one output, 119 hidden layers of 17 have 36,160 parameters, as published. The 90 hidden layers of
    figure 7 under 45 skips follow a separate input map: 91 hidden layers as counted here, with 27,592 parameters.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, figures 2, 4 and 7.

    Examples
    --------
    >>> from sklearn_capacity.architectures import ResidualMLP
    >>> network = ResidualMLP((1,), 1)
    >>> sum(parameter.numel() for parameter in network.parameters())
    36160
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        n_outputs: int,
        *,
        n_hidden_layers: int = 119,
        width: int = 17,
        skip: int = 2,
        generalization_blocks: Sequence[int] = (),
        nu: float = 1.0,
        branch_scale: float | None = None,
        dropout: float = 0.0,
        batch_norm: bool = False,
        weight_norm: bool = False,
    ) -> None:
        n_layers = check_integer("n_hidden_layers", n_hidden_layers, 2) - 1
        width, skip = check_integer("width", width), check_integer("skip", skip, 1, n_layers)
        dropout = check_interval("dropout", dropout, 0.0, 1.0, closed="left")
        n_blocks, n_left = divmod(n_layers, skip)
        slow = {
            check_integer("generalization_blocks", block, -n_blocks, n_blocks - 1) % n_blocks
            for block in as_list("generalization_blocks", generalization_blocks)
        }
        batch_norm, weight_norm = check_boolean("batch_norm", batch_norm), check_boolean("weight_norm", weight_norm)
        options = {"batch_norm": batch_norm, "weight_norm": weight_norm}
        n_features = prod(check_integer("input_shape", size) for size in as_list("input_shape", input_shape))
        layers: list[nn.Module] = [nn.Flatten(), *_hidden(n_features, width, **options), nn.ReLU()]
        for block in range(n_blocks):
            body = _branch(width, skip, **options)
            layers.append(SkipLayer(body, nn.Identity(), nu) if block in slow else _Block(body))
            layers += [nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        for _ in range(n_left):
            layers += [*_hidden(width, width, **options), nn.ReLU()]
        layers.append(linear(width, check_integer("n_outputs", n_outputs), weight_norm=weight_norm))
        super().__init__(*layers)
        he_initialize(self)
        if not batch_norm and not weight_norm:
            _scale(self, branch_scale)


class _Block(nn.Module):
    """An identity over a branch."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, input: Tensor) -> Tensor:
        return self.body(input) + input


def _hidden(n_in: int, n_out: int, *, batch_norm: bool, weight_norm: bool) -> list[nn.Module]:
    return [linear(n_in, n_out, weight_norm=weight_norm), *([nn.BatchNorm1d(n_out)] if batch_norm else [])]


def _branch(width: int, skip: int, *, batch_norm: bool, weight_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(skip):
        layers += [nn.ReLU()] if index else []
        layers += _hidden(width, width, batch_norm=batch_norm, weight_norm=weight_norm)
    return nn.Sequential(*layers)


def _scale(network: nn.Module, branch_scale: float | None) -> None:
    last = [
        [layer for layer in block.body.modules() if isinstance(layer, nn.Linear)][-1]
        for block in network.children()
        if isinstance(block, (_Block, SkipLayer))
    ]
    if branch_scale is None:
        scale_branches(last)
        return
    factor = check_interval("branch_scale", branch_scale, 0.0, float("inf"), closed="neither")
    for layer in last:
        layer.weight.data.mul_(factor)
