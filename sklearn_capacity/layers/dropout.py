"""The generalization layer with dropout of [GL] section 3.2."""

from __future__ import annotations

from torch import Tensor, nn

from sklearn_capacity._validation import check_integer, check_interval, check_option
from sklearn_capacity.layers.initialization import he_initialize

__all__ = ["ConvGeneralizationDropout", "GeneralizationDropout"]


class GeneralizationDropout(nn.Module):
    r"""An extra layer of the same width whose nodes alone are dropped with probability p.

    .. math:: y = m \odot \mathrm{relu}(W_g x + b) / (1 - p), \qquad m_i \sim \mathrm{Bernoulli}(1 - p),

    while training, and :math:`y = \mathrm{relu}(W_g x + b)` in evaluation mode.

    Parameters
    ----------
    features : int
        Size of the last dimension of x and y.
    p : float in [0, 1), default=0.5
        Probability of dropping a node; [GL] table 1 has 0.5 to 0.75.

    Raises
    ------
    ValueError
        If `features` is below 1 or `p` is outside [0, 1).

    Notes
    -----
    It is trained like any other layer, without a schedule or a slower learning rate.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, section 3.2 and figure 5.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.layers import GeneralizationDropout
    >>> layer = GeneralizationDropout(4, p=0.75).eval()
    >>> x = torch.ones(2, 4)
    >>> bool(torch.equal(layer(x), torch.relu(layer.body(x))))
    True
    """

    def __init__(self, features: int, p: float = 0.5) -> None:
        super().__init__()
        features = check_integer("features", features)
        self.body = he_initialize(nn.Linear(features, features))
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(_check_probability(p))

    def forward(self, input: Tensor) -> Tensor:
        return self.dropout(self.activation(self.body(input)))


class ConvGeneralizationDropout(nn.Module):
    r"""The generalization layer with dropout for feature maps.

    .. math:: y = m \odot \mathrm{relu}(F(x)) / (1 - p)

    with F one 1x1 convolution ("conv1x1"), or two 3x3 convolutions with batch norm and a ReLU between them
    ("conv3x3"): the form that the published counts of layers and parameters need (58 and 0.93 M for ResNet-56).

    Parameters
    ----------
    channels : int
        Channels of x and y.
    p : float in [0, 1), default=0.5
        Probability of dropping a node of y, independently at each position and channel.
    stride : int, default=1
        Stride of the first convolution.
    form : {"conv1x1", "conv3x3"}, default="conv1x1"
        The convolutions in F.

    Raises
    ------
    ValueError
        If a size is below 1, the form is unknown, or `p` is outside [0, 1).

    References
    ----------
    Generalization by design: learning in the manifold of distributions, section 3.2 and table 1.

    Examples
    --------
    >>> from sklearn_capacity.layers import ConvGeneralizationDropout
    >>> layer = ConvGeneralizationDropout(64, p=0.6, form="conv3x3")
    >>> sum(parameter.numel() for parameter in layer.parameters())
    73984
    """

    def __init__(self, channels: int, p: float = 0.5, stride: int = 1, *, form: str = "conv1x1") -> None:
        super().__init__()
        channels, stride = check_integer("channels", channels), check_integer("stride", stride)
        check_option("form", form, ["conv1x1", "conv3x3"])
        if form == "conv1x1":
            layers: list[nn.Module] = [nn.Conv2d(channels, channels, 1, stride)]
        else:
            layers = [nn.Conv2d(channels, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
            layers += [nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)]
        self.body = he_initialize(nn.Sequential(*layers))
        self.activation = nn.ReLU()
        self.dropout = nn.Dropout(_check_probability(p))

    def forward(self, input: Tensor) -> Tensor:
        return self.dropout(self.activation(self.body(input)))


def _check_probability(p: float) -> float:
    return check_interval("p", p, 0.0, 1.0, closed="left", cure="At 1, no node would be left.")
