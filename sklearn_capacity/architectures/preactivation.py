"""Residual networks with the activation first: ResNet-18 with identity connections, wide ResNets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor, nn

from sklearn_capacity._validation import as_list, check_integer, check_interval, check_option, shown
from sklearn_capacity.architectures.blocks import check_image, convolution, linear, normalization
from sklearn_capacity.layers import he_initialize
from sklearn_capacity.layers.initialization import scale_branches

__all__ = ["PreactResNet", "WideResNet"]


class _PreactNetwork(nn.Module):
    """A stem, stages of pre-activation blocks, and a linear head on the mean over the positions."""

    def __init__(
        self,
        stem: nn.Module,
        in_channels: int,
        widths: Sequence[int],
        n_blocks: int | Sequence[int],
        n_outputs: int,
        **options: Any,
    ) -> None:
        super().__init__()
        self.stem, self.stages = stem, _stages(in_channels, widths, n_blocks, options)
        self.norm, self.relu = normalization(widths[-1], options["batch_norm"]), nn.ReLU()
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.head = linear(widths[-1], check_integer("n_outputs", n_outputs), weight_norm=options["weight_norm"])
        _initialize(self, options["batch_norm"])

    def forward(self, input: Tensor) -> Tensor:
        """Return logits of shape (n_samples, n_outputs)."""
        features = self.relu(self.norm(self.stages(self.stem(input))))
        return self.head(self.flatten(self.pool(features)))


class PreactResNet(_PreactNetwork):
    r"""Residual network with identity connections: batch norm and ReLU come before each convolution.

    .. math:: x^{(b+1)} = S x^{(b)} + F(x^{(b)}), \qquad F = \text{batch norm, ReLU, conv, batch norm, ReLU, conv};

    S is the identity, or a 1x1 convolution of the block's first ReLU if the size changes.

    Parameters
    ----------
    input_shape : (int, int, int)
        Channels, height and width of an image of at least 8 x 8 (32 x 32 with the stem "imagenet").
    n_outputs : int
        Number of logits.
    channels : sequence of int, default=(64, 128, 256, 512)
        Channels of each stage; every stage except the first halves the size.
    n_blocks : int or sequence of int, default=2
        Number of blocks of each stage: 2 gives 18 layers.
    stem : {"auto", "small", "imagenet"}, default="auto"
        First layer: a 3x3 convolution, or 7x7 with stride 2 and 3x3 max pooling with stride 2. "auto" uses
        "imagenet" from 64 pixels on ([JR] figure 5 has 128).
    dropout : float in [0, 1), default=0.0
        Dropout between the two convolutions of a block.
    batch_norm : bool, default=True
        Without it, convolutions have biases, and the initial weights of the last one of each branch are divided by the
        square root of the number of blocks.
    weight_norm : bool, default=False
        Whether filters and rows have unit norm.

    Raises
    ------
    ValueError
        If the image is too small, or the stem is unknown.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun. Identity mappings in deep residual networks. ECCV 2016; [JR] section VI-C2.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.architectures import PreactResNet
    >>> PreactResNet((3, 16, 16), 10, channels=(4, 8), n_blocks=1)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        n_outputs: int,
        *,
        channels: Sequence[int] = (64, 128, 256, 512),
        n_blocks: int | Sequence[int] = 2,
        stem: str = "auto",
        dropout: float = 0.0,
        batch_norm: bool = True,
        weight_norm: bool = False,
    ) -> None:
        stem = _resolve_stem(stem, input_shape)
        widths = [check_integer("channels", width) for width in as_list("channels", channels)]
        smallest = 2 ** (len(widths) - 1) * (4 if stem == "imagenet" else 1)
        in_channels, _, _ = check_image(input_shape, smallest)
        check_integer("len(channels)", len(widths))
        super().__init__(
            _stem(stem, in_channels, widths[0], weight_norm),
            widths[0],
            widths,
            n_blocks,
            n_outputs,
            dropout=dropout,
            batch_norm=batch_norm,
            weight_norm=weight_norm,
        )


class WideResNet(_PreactNetwork):
    """Wide residual network of depth 6n + 4: three stages, 16, 32 and 64 times `widen` channels.

    Parameters
    ----------
    input_shape : (int, int, int)
        Channels, height and width of an image of at least 4 x 4.
    n_outputs : int
        Number of logits.
    depth : int, default=22
        6n + 4, the number of convolutions including those of the shortcuts.
    widen : int, default=5
        Width factor.
    dropout : float in [0, 1), default=0.0
        Dropout between the two convolutions of a block.
    batch_norm, weight_norm : bool, default=True and False
        As in `PreactResNet`.

    Raises
    ------
    ValueError
        If `depth` is not 6n + 4, or the image is too small.

    References
    ----------
    S. Zagoruyko, N. Komodakis. Wide residual networks. BMVC 2016; [JR] table IV (22 layers of width 5).

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.architectures import WideResNet
    >>> WideResNet((3, 8, 8), 10, depth=10, widen=1)(torch.zeros(2, 3, 8, 8)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        n_outputs: int,
        *,
        depth: int = 22,
        widen: int = 5,
        dropout: float = 0.0,
        batch_norm: bool = True,
        weight_norm: bool = False,
    ) -> None:
        depth, widen = check_integer("depth", depth, 10), check_integer("widen", widen)
        if (depth - 4) % 6:
            raise ValueError(f"`depth` must be 6 n + 4 (10, 16, 22, 28, ...), got {depth}.")
        in_channels, _, _ = check_image(input_shape, 4)
        stem, widths = _stem("small", in_channels, 16, weight_norm), [16 * widen, 32 * widen, 64 * widen]
        super().__init__(
            stem,
            16,
            widths,
            (depth - 4) // 6,
            n_outputs,
            dropout=dropout,
            batch_norm=batch_norm,
            weight_norm=weight_norm,
        )


class _PreactBlock(nn.Module):
    """Batch norm, ReLU, 3x3 convolution, twice, and a shortcut over them."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dropout: float, batch_norm: bool, weight_norm: bool
    ) -> None:
        super().__init__()
        bias = not batch_norm
        self.norm1, self.relu1 = normalization(in_channels, batch_norm), nn.ReLU()
        self.conv1 = convolution(in_channels, out_channels, stride=stride, bias=bias, weight_norm=weight_norm)
        self.norm2, self.relu2 = normalization(out_channels, batch_norm), nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = convolution(out_channels, out_channels, bias=bias, weight_norm=weight_norm)
        changes = in_channels != out_channels or stride != 1
        self.projection = (
            convolution(in_channels, out_channels, 1, stride, weight_norm=weight_norm) if changes else None
        )

    def forward(self, input: Tensor) -> Tensor:
        active = self.relu1(self.norm1(input))
        branch = self.conv2(self.dropout(self.relu2(self.norm2(self.conv1(active)))))
        return branch + (input if self.projection is None else self.projection(active))


def _stages(in_channels: int, widths: Sequence[int], n_blocks: int | Sequence[int], options: dict) -> nn.Sequential:
    check_interval("dropout", options["dropout"], 0.0, 1.0, closed="left")
    counts = [n_blocks] * len(widths) if isinstance(n_blocks, int | np.integer) else as_list("n_blocks", n_blocks)
    if len(counts) != len(widths):
        raise ValueError(
            f"`n_blocks` must be one number or one for each of the {len(widths)} stages, got {shown(n_blocks)}."
        )
    stages = []
    for index, (width, count) in enumerate(zip(widths, counts, strict=True)):
        blocks = []
        for block in range(check_integer("n_blocks", count)):
            stride = 2 if block == 0 and index > 0 else 1
            blocks.append(_PreactBlock(in_channels, width, stride, **options))
            in_channels = width
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages)


def _resolve_stem(stem: str, input_shape: Sequence[int]) -> str:
    check_option("stem", stem, ["auto", "small", "imagenet"])
    if stem == "auto":
        return "imagenet" if min(check_image(input_shape, 1)[1:]) >= 64 else "small"
    return stem


def _stem(stem: str, in_channels: int, width: int, weight_norm: bool) -> nn.Module:
    """The first convolution; the first block's own batch norm and ReLU follow it."""
    if stem == "small":
        return convolution(in_channels, width, bias=False, weight_norm=weight_norm)
    return nn.Sequential(
        convolution(in_channels, width, 7, 2, bias=False, weight_norm=weight_norm), nn.MaxPool2d(3, 2, 1)
    )


def _initialize(network: nn.Module, batch_norm: bool) -> None:
    he_initialize(network)
    if not batch_norm:
        scale_branches(block.conv2 for block in network.modules() if isinstance(block, _PreactBlock))
