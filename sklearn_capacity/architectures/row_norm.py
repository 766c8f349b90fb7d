"""Convolutions whose filters have unit norm: the weight normalisation of [JR] for images."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["RowNormalizedConv2d"]


class RowNormalizedConv2d(nn.Conv2d):
    r"""Convolution whose filters have unit norm.

    .. math:: y_c = \frac{k_c}{\|k_c\|_2} * x + b_c

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of x and y.
    kernel_size : int
        Height and width of the filters.
    stride : int, default=1
        Stride of the convolution.
    padding : int, default=0
        Number of zeros on each side.
    bias : bool, default=True
        Whether there is a bias b.

    Notes
    -----
    A filter is a row of the kernel reshaped to (out_channels, in_channels * height * width). There is no learned gain.
    ``weight`` is the raw kernel, ``effective_weight`` the normalised one. Like `RowNormalizedLinear`, this is a
    subclass instead of a parametrisation, which could not be pickled.

    References
    ----------
    J. Sokolic, R. Giryes, G. Sapiro, M. Rodrigues. Robust large margin deep neural networks. IEEE TSP 2017,
    equation 45, with W W^T instead of the printed W^T W.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.architectures.row_norm import RowNormalizedConv2d
    >>> layer = RowNormalizedConv2d(1, 4, 3)
    >>> bool(torch.allclose(layer.effective_weight.flatten(1).norm(dim=1), torch.ones(4)))
    True
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, bias=bias)

    @property
    def effective_weight(self) -> Tensor:
        """The kernel used in the forward pass."""
        return nn.functional.normalize(self.weight.flatten(1), dim=1).reshape(self.weight.shape)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of a batch of images with the normalised filters."""
        return self._conv_forward(input, self.effective_weight, self.bias)
