"""Convolutional chains: the small net of [JR] table II, All-CNN-C, and the VGG of [EG]."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from sklearn_capacity._validation import as_list, check_integer, check_interval
from sklearn_capacity.architectures.blocks import activated_convolution, check_image, convolution, linear
from sklearn_capacity.layers import he_initialize

__all__ = ["AllConvNet", "ConvNet", "VGG"]


class ConvNet(nn.Sequential):
    """Convolutions with ReLU and 2 x 2 max pooling, then a linear layer: the network of [JR] table II.

    (32, 5, 5)-conv, (2, 2)-max-pool, (32, 5, 5)-conv, (2, 2)-max-pool, linear.

    Parameters
    ----------
    input_shape : (int, int, int)
        Channels, height and width of an image; at least 2 pixels for each halving of the size.
    n_outputs : int
        Number of logits.
    channels : sequence of int, default=(32, 32)
        Number of filters of each convolution.
    kernel_size : int, default=5
        Height and width of the filters.
    padding : int, default=None
        Number of zeros on each side. None: ``kernel_size // 2``, which keeps the size. The paper gives no value; with
        0, a 28 x 28 image ends as 4 x 4.
    batch_norm : bool, default=False
        Batch norm before each ReLU.
    weight_norm : bool, default=False
        Whether filters and rows have unit norm.

    Raises
    ------
    ValueError
        If the image is too small.

    References
    ----------
    J. Sokolic, R. Giryes, G. Sapiro, M. Rodrigues. Robust large margin deep neural networks. IEEE TSP 2017, table II.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.architectures import ConvNet
    >>> ConvNet((1, 28, 28), 10)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        n_outputs: int,
        *,
        channels: Sequence[int] = (32, 32),
        kernel_size: int = 5,
        padding: int | None = None,
        batch_norm: bool = False,
        weight_norm: bool = False,
    ) -> None:
        n_outputs, kernel_size = check_integer("n_outputs", n_outputs), check_integer("kernel_size", kernel_size)
        padding = kernel_size // 2 if padding is None else check_integer("padding", padding, 0)
        shrink = kernel_size - 1 - 2 * padding
        smallest, channels = 1, as_list("channels", channels)
        for _ in channels:
            smallest = max(2 * smallest + shrink, kernel_size - 2 * padding)
        width, *size = check_image(input_shape, smallest)
        layers: list[nn.Module] = []
        for filters in channels:
            filters = check_integer("channels", filters)
            layers += activated_convolution(
                width, filters, kernel_size, padding=padding, batch_norm=batch_norm, weight_norm=weight_norm
            )
            layers.append(nn.MaxPool2d(2))
            width, size = filters, [(side - shrink) // 2 for side in size]
        layers += [nn.Flatten(), linear(width * size[0] * size[1], n_outputs, weight_norm=weight_norm)]
        super().__init__(*layers)
        he_initialize(self)


class AllConvNet(nn.Sequential):
    """All-CNN-C: nine convolutions, two of them with a stride instead of pooling, then the mean over the image.

    3x3 with 96 filters (3 times, the third with stride 2), 192 (3 times, the third with stride 2), 192, then 1x1 with
    192 and `n_outputs`, and global average pooling.

    Parameters
    ----------
    input_shape : (int, int, int)
        Channels, height and width of an image of at least 4 x 4.
    n_outputs : int
        Number of logits.
    width : int, default=96
        Number of filters of the first three convolutions; the others have twice as many.
    dropout : float in [0, 1), default=0.0
        Dropout after each convolution with a stride; the input's rate is 0.4 times this (published: 0.5 and 0.2).
    batch_norm : bool, default=True
        Batch norm before each ReLU, as in [JR] table III; the original has none.
    weight_norm : bool, default=False
        Whether filters have unit norm.

    Raises
    ------
    ValueError
        If the image is too small or `dropout` is outside [0, 1).

    Notes
    -----
    Every 3x3 convolution is padded by one, so that small images are possible (the original's seventh is not padded and
    averages over 6 x 6 instead of 8 x 8). The last convolution computes the logits, without batch norm and ReLU: logits
    that cannot be negative would distort the margins.

    References
    ----------
    J. Springenberg, A. Dosovitskiy, T. Brox, M. Riedmiller. Striving for simplicity: the all convolutional net. ICLR
    2015 workshop, table 1; [JR] section VI-B2.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.architectures import AllConvNet
    >>> AllConvNet((3, 16, 16), 10, width=8)(torch.zeros(2, 3, 16, 16)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        n_outputs: int,
        *,
        width: int = 96,
        dropout: float = 0.0,
        batch_norm: bool = True,
        weight_norm: bool = False,
    ) -> None:
        channels, _, _ = check_image(input_shape, 4)
        n_outputs, width = check_integer("n_outputs", n_outputs), check_integer("width", width)
        dropout = check_interval("dropout", dropout, 0.0, 1.0, closed="left")
        plan = [(width, 3, 1), (width, 3, 1), (width, 3, 2)]
        plan += [(2 * width, 3, 1), (2 * width, 3, 1), (2 * width, 3, 2), (2 * width, 3, 1), (2 * width, 1, 1)]
        layers: list[nn.Module] = [nn.Dropout(0.4 * dropout)] if dropout else []
        for filters, kernel_size, stride in plan:
            layers += activated_convolution(
                channels, filters, kernel_size, stride, batch_norm=batch_norm, weight_norm=weight_norm
            )
            if dropout and stride == 2:
                layers.append(nn.Dropout(dropout))
            channels = filters
        layers.append(convolution(channels, n_outputs, 1, bias=True, weight_norm=weight_norm))
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        super().__init__(*layers)
        he_initialize(self)


class VGG(nn.Sequential):
    """The VGG of [EG] appendix A: four stacks of two convolutions, a hidden layer of 512, a linear layer.

    A stack is twice (3x3 convolution, batch norm, ReLU), then 2 x 2 max pooling and dropout.

    Parameters
    ----------
    input_shape : (int, int, int)
        Channels, height and width of an image of at least 16 x 16.
    n_outputs : int
        Number of logits.
    channels : sequence of int, default=(64, 128, 256, 512)
        Number of filters of each stack.
    hidden_size : int, default=512
        Number of units of the fully connected layer.
    dropout : float in [0, 1), default=0.3
        Dropout after each stack; the paper gives no value.
    batch_norm : bool, default=True
        Batch norm before each ReLU of a convolution.
    weight_norm : bool, default=False
        Whether filters and rows have unit norm.

    Raises
    ------
    ValueError
        If the image is too small or `dropout` is outside [0, 1).

    Notes
    -----
    The paper's 4 x 4 average pooling does not fit the 2 x 2 pixels that remain of 32 x 32 after four poolings: it is
    interpreted as global average pooling.

    References
    ----------
    B. Neyshabur, S. Bhojanapalli, D. McAllester, N. Srebro. Exploring generalization in deep learning. NeurIPS 2017,
    appendix A.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.architectures import VGG
    >>> VGG((3, 32, 32), 10, channels=(4, 4, 8, 8))(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        n_outputs: int,
        *,
        channels: Sequence[int] = (64, 128, 256, 512),
        hidden_size: int = 512,
        dropout: float = 0.3,
        batch_norm: bool = True,
        weight_norm: bool = False,
    ) -> None:
        channels = as_list("channels", channels)
        width, _, _ = check_image(input_shape, 2 ** len(channels))
        dropout = check_interval("dropout", dropout, 0.0, 1.0, closed="left")
        n_outputs, hidden_size = check_integer("n_outputs", n_outputs), check_integer("hidden_size", hidden_size)
        layers: list[nn.Module] = []
        for filters in channels:
            filters = check_integer("channels", filters)
            for _ in range(2):
                layers += activated_convolution(width, filters, batch_norm=batch_norm, weight_norm=weight_norm)
                width = filters
            layers += [nn.MaxPool2d(2), *([nn.Dropout(dropout)] if dropout else [])]
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        layers += [linear(width, hidden_size, weight_norm=weight_norm), nn.ReLU()]
        layers.append(linear(hidden_size, n_outputs, weight_norm=weight_norm))
        super().__init__(*layers)
        he_initialize(self)
