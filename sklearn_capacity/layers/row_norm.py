"""Linear maps whose rows have unit norm: the weight normalisation of [JR]."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["RowNormalizedConv2d", "RowNormalizedLinear", "normalize_rows"]


def normalize_rows(weight: Tensor) -> Tensor:
    r"""Divide each row of a weight (each filter of a kernel) by its Euclidean norm.

    .. math:: \hat W = \mathrm{diag}(W W^T)^{-1/2}\, W

    Parameters
    ----------
    weight : Tensor of shape (n_outputs, ...)
        A row is everything that feeds one output: for a convolution a whole filter.

    Returns
    -------
    Tensor of the same shape
        Rows of norm one; a row of zeros stays zero.

    References
    ----------
    J. Sokolic, R. Giryes, G. Sapiro, M. Rodrigues. Robust large margin deep neural networks. IEEE TSP 2017,
    equation 45 (printed there without the transpose).

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.layers import normalize_rows
    >>> normalize_rows(torch.tensor([[3.0, 4.0], [0.0, 2.0]])).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 1.0]]
    """
    norm = weight.flatten(1).norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)
    return weight / norm.reshape(-1, *(1,) * (weight.dim() - 1))


class RowNormalizedLinear(nn.Linear):
    """A linear layer whose effective weight has rows of unit norm.

    .. math:: y = \\mathrm{diag}(W W^T)^{-1/2} W x + b

    Parameters
    ----------
    in_features, out_features : int
        Sizes of x and y.
    bias : bool, default=True
        Whether there is a b.

    Notes
    -----
    Plain weight normalisation has a learned gain for each row; this one has none, as in [JR]. It is a module of
    its own rather than ``torch.nn.utils.parametrize``, because parametrised modules cannot be pickled.

    References
    ----------
    J. Sokolic, R. Giryes, G. Sapiro, M. Rodrigues. Robust large margin deep neural networks. IEEE TSP 2017, section IV.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.layers import RowNormalizedLinear
    >>> layer = RowNormalizedLinear(3, 2, bias=False)
    >>> rows = layer(torch.eye(3)).T
    >>> bool(torch.allclose(rows.norm(dim=1), torch.ones(2)))
    True
    """

    @property
    def effective_weight(self) -> Tensor:
        """The weight that the forward pass applies."""
        return normalize_rows(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.effective_weight, self.bias)


class RowNormalizedConv2d(nn.Conv2d):
    """A convolution whose filters have unit norm; takes the parameters of ``torch.nn.Conv2d``.

    .. math:: y_c = (k_c / \\|k_c\\|_2) * x + b_c

    Parameters
    ----------
    *args, **kwargs
        Those of ``torch.nn.Conv2d``.

    References
    ----------
    J. Sokolic, R. Giryes, G. Sapiro, M. Rodrigues. Robust large margin deep neural networks. IEEE TSP 2017, section IV.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.layers import RowNormalizedConv2d
    >>> layer = RowNormalizedConv2d(1, 4, 3)
    >>> bool(torch.allclose(layer.effective_weight.flatten(1).norm(dim=1), torch.ones(4)))
    True
    """

    @property
    def effective_weight(self) -> Tensor:
        """The weight that the forward pass applies."""
        return normalize_rows(self.weight)

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.effective_weight, self.bias)
