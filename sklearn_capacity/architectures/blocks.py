"""Building blocks of the convolutional architectures, and the check of their input's shape."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from sklearn_capacity._validation import as_list, check_boolean, check_integer, shown
from sklearn_capacity.architectures.mlp import RowNormalizedLinear
from sklearn_capacity.architectures.row_norm import RowNormalizedConv2d

__all__ = ["activated_convolution", "check_image", "convolution", "linear", "normalization"]


def convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int | None = None,
    *,
    bias: bool = False,
    weight_norm: bool = False,
) -> nn.Conv2d:
    """Return a convolution that keeps the size (at stride 1), optionally with filters of unit norm."""
    padding = kernel_size // 2 if padding is None else padding
    kind = RowNormalizedConv2d if weight_norm else nn.Conv2d
    return kind(in_channels, out_channels, kernel_size, stride, padding, bias=bias)


def linear(in_features: int, out_features: int, *, weight_norm: bool = False) -> nn.Linear:
    """Return a linear layer, optionally with rows of unit norm."""
    return (RowNormalizedLinear if weight_norm else nn.Linear)(in_features, out_features)


def normalization(channels: int, batch_norm: bool) -> nn.Module:
    """Return batch norm over channels, or nothing."""
    return nn.BatchNorm2d(channels) if batch_norm else nn.Identity()


def activated_convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int | None = None,
    *,
    batch_norm: bool = True,
    weight_norm: bool = False,
) -> list[nn.Module]:
    """Return convolution, batch norm (or a bias instead) and ReLU as a list of layers."""
    batch_norm, weight_norm = check_boolean("batch_norm", batch_norm), check_boolean("weight_norm", weight_norm)
    conv = convolution(
        in_channels, out_channels, kernel_size, stride, padding, bias=not batch_norm, weight_norm=weight_norm
    )
    return [conv, *([nn.BatchNorm2d(out_channels)] if batch_norm else []), nn.ReLU()]


def check_image(input_shape: Sequence[int] | Any, smallest: int) -> tuple[int, int, int]:
    """Return (channels, height, width); raise if it is not an image's shape or too small for the network."""
    shape = tuple(as_list("input_shape", input_shape))
    if len(shape) != 3:
        raise ValueError(
            f"`input_shape` must be (channels, height, width) for this architecture, got {shown(shape)}. "
            "For vectors use 'mlp' or 'residual_mlp'."
        )
    channels, height, width = (check_integer("input_shape", size) for size in shape)
    if min(height, width) < smallest:
        raise ValueError(
            f"`input_shape` must have a height and a width of at least {smallest} for this architecture, got {shape}. "
            "Use one with less pooling, or enlarge the images."
        )
    return channels, height, width
