"""The generalization layer of [GL] section 3.1: slow weights, bridged by a skip of strength nu."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sklearn_capacity._validation import check_instance, check_integer, check_interval, check_option
from sklearn_capacity.layers.initialization import he_initialize

__all__ = [
    "ConvGeneralizationLayer",
    "GeneralizationLayer",
    "GeneralizationWrap",
    "SkipLayer",
    "check_nu",
    "conv_body",
    "conv_shortcut",
    "generalization_layers",
    "generalization_parameters",
    "linear_body",
    "linear_shortcut",
    "set_nu",
]


class SkipLayer(nn.Module):
    """Base of the generalization layers with a skip: nu, and weights that learn slowly.

    Parameters
    ----------
    body : torch.nn.Module
        The layer's own weights, which learn slowly.
    shortcut : torch.nn.Module
        The map S of the skip: identity or a projection.
    nu : float in (0, inf)
        Strength of the skip.

    Notes
    -----
    ``nu`` is a buffer: it moves to devices with the module, is saved with it, and is read on the device. Change it in
    place with `set_nu`, so that traced and compiled modules use the new value.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, section 3.1.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.layers import GeneralizationLayer
    >>> layer = GeneralizationLayer(3)
    >>> layer.set_nu(0.5)
    >>> float(layer.nu)
    0.5
    """

    nu: Tensor

    def __init__(self, body: nn.Module, shortcut: nn.Module, nu: float = 1.0) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.register_buffer("nu", torch.tensor(check_nu(nu), dtype=torch.get_default_dtype(), device="cpu"))

    def set_nu(self, nu: float) -> None:
        """Set the strength of the skip, which must be positive."""
        with torch.no_grad():
            self.nu.fill_(check_nu(nu))

    def slow_parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the layer's own weights W_g (not the skip's, not those of a wrapped layer)."""
        return self.body.parameters()

    def forward(self, input: Tensor) -> Tensor:
        return self.body(input) + self.nu * self.shortcut(input)

    def extra_repr(self) -> str:
        return "" if self.nu.is_meta else f"nu={float(self.nu):g}"


class GeneralizationLayer(SkipLayer):
    r"""Slowly learning linear layers with a skip of strength nu over them (block form).

    .. math:: y = F(x) + \nu S(x), \qquad F(x) = W x + b \text{ or } W_2\,\mathrm{relu}(W_1 x + b_1) + b_2,

    where S is the identity, or a bias-free linear projection if the sizes differ.

    Parameters
    ----------
    in_features : int
        Size of the last dimension of x.
    out_features : int, default=None
        Size of the last dimension of y; None: `in_features`.
    depth : {1, 2}, default=1
        Number of linear layers in F; [GL] figure 7 has two.
    nu : float in (0, inf), default=1.0
        Strength of the skip. [GL] lowers it from 1 to 0.1 during training. Zero is refused, since it would cut the
        network in two once W is small.

    Raises
    ------
    ValueError
        If a size is below 1, the depth is not 1 or 2, or nu is not positive.

    Notes
    -----
    Small weights in this layer keep the product of spectral norms along all paths through it small ([GL] corollary
    3.0.1); meanwhile, the skip carries the gradient. In [GL] the weights of F learn with 0.1 x the learning rate from
    epoch 20 on: `slow_parameters` returns them for the optimiser, `nu_schedule` returns nu.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, section 3.1 and figure 7.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.layers import GeneralizationLayer
    >>> layer = GeneralizationLayer(4, nu=0.5)
    >>> for parameter in layer.slow_parameters():
    ...     _ = torch.nn.init.zeros_(parameter)
    >>> layer(torch.ones(1, 4)).tolist()
    [[0.5, 0.5, 0.5, 0.5]]
    """

    def __init__(self, in_features: int, out_features: int | None = None, depth: int = 1, nu: float = 1.0) -> None:
        in_features = check_integer("in_features", in_features)
        out_features = in_features if out_features is None else check_integer("out_features", out_features)
        super().__init__(linear_body(in_features, out_features, depth), linear_shortcut(in_features, out_features), nu)


class ConvGeneralizationLayer(SkipLayer):
    r"""The generalization layer for feature maps: it can replace a stage, including its stride and change of channels.

    .. math:: y = F(x) + \nu S(x)

    with F of 1x1 convolutions ("conv1x1": the linear layer at each position), or of 3x3 convolutions with batch norm
    ("conv3x3"), and S the identity, or a bias-free 1x1 convolution where channels or size change.

    Parameters
    ----------
    in_channels : int
        Channels of x.
    out_channels : int, default=None
        Channels of y; None: `in_channels`.
    stride : int, default=1
        Stride of the first convolution and of the skip: y is ceil(height / stride) x ceil(width / stride).
    form : {"conv1x1", "conv3x3"}, default="conv1x1"
        The convolutions in F.
    depth : {1, 2}, default=None
        Number of convolutions, with a ReLU between two. None: 1 for "conv1x1", 2 for "conv3x3".
    nu : float in (0, inf), default=1.0
        Strength of the skip; see `GeneralizationLayer`.

    Raises
    ------
    ValueError
        If a size is below 1, the form or depth is unknown, or nu is not positive.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, section 3.1 and figure 6, where one such
    layer replaces the entire second stage of a ResNet.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.layers import ConvGeneralizationLayer
    >>> ConvGeneralizationLayer(16, 32, stride=2)(torch.zeros(1, 16, 8, 8)).shape
    torch.Size([1, 32, 4, 4])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        stride: int = 1,
        *,
        form: str = "conv1x1",
        depth: int | None = None,
        nu: float = 1.0,
    ) -> None:
        in_channels = check_integer("in_channels", in_channels)
        out_channels = in_channels if out_channels is None else check_integer("out_channels", out_channels)
        stride = check_integer("stride", stride)
        check_option("form", form, ["conv1x1", "conv3x3"])
        depth = (1 if form == "conv1x1" else 2) if depth is None else depth
        body = conv_body(in_channels, out_channels, stride, form, depth)
        super().__init__(body, conv_shortcut(in_channels, out_channels, (stride, stride)), nu)


class GeneralizationWrap(SkipLayer):
    r"""New slow weights before an existing layer, and a skip over both (figure 3).

    .. math:: x^{(l+1)} = W_l\, \phi(W_g x^{(l)}) + \nu S x^{(l)}

    Parameters
    ----------
    layer : torch.nn.Module
        The existing layer l, which learns at the network's usual rate.
    body : torch.nn.Module
        The new weights W_g, which map the layer's input space to itself.
    shortcut : torch.nn.Module
        The map S from the layer's input to its output.
    activation : {"relu", "identity"}, default="relu"
        :math:`\phi` on the new nodes. Figure 7 ("FFL-ReLU-FFL with a shortcut, as described in section 3") has ReLU.
    nu : float in (0, inf), default=1.0
        Strength of the skip.

    Raises
    ------
    ValueError
        If the activation is unknown, or nu is not positive.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, figure 3.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity.layers import GeneralizationWrap
    >>> wrap = GeneralizationWrap(nn.Linear(3, 3), nn.Linear(3, 3), nn.Identity(), nu=0.5)
    >>> x = torch.ones(1, 3)
    >>> expected = wrap.layer(torch.relu(wrap.body(x))) + 0.5 * x
    >>> bool(torch.allclose(wrap(x), expected))
    True
    """

    def __init__(
        self, layer: nn.Module, body: nn.Module, shortcut: nn.Module, activation: str = "relu", nu: float = 1.0
    ) -> None:
        super().__init__(body, shortcut, nu)
        check_option("activation", activation, ["relu", "identity"])
        self.activation = nn.ReLU() if activation == "relu" else nn.Identity()
        self.layer = layer

    def forward(self, input: Tensor) -> Tensor:
        return self.layer(self.activation(self.body(input))) + self.nu * self.shortcut(input)


def generalization_layers(module: nn.Module) -> Iterator[SkipLayer]:
    """Iterate over the generalization layers with a skip inside a module.

    Parameters
    ----------
    module : torch.nn.Module
        Searched with all its submodules.

    Returns
    -------
    iterator of SkipLayer
        Each once, in order of registration. [GL]'s dropout layers are not included: they are trained like any layer.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_capacity.layers import GeneralizationLayer, generalization_layers
    >>> len(list(generalization_layers(nn.Sequential(GeneralizationLayer(2), nn.ReLU()))))
    1
    """
    check_instance("module", module, nn.Module, "an nn.Module")
    return (layer for layer in module.modules() if isinstance(layer, SkipLayer))


def generalization_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    """Iterate over the weights W_g of all generalization layers: those that learn slowly.

    Parameters
    ----------
    module : torch.nn.Module
        Searched with all its submodules.

    Yields
    ------
    torch.nn.Parameter
        Each once, even if layers share weights or are nested.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_capacity.layers import GeneralizationLayer, generalization_parameters
    >>> network = nn.Sequential(nn.Linear(2, 3), GeneralizationLayer(3), nn.Linear(3, 1))
    >>> [tuple(parameter.shape) for parameter in generalization_parameters(network)]
    [(3, 3), (3,)]
    """
    seen: set[int] = set()
    for layer in generalization_layers(module):
        for parameter in layer.slow_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield parameter


def set_nu(module: nn.Module, nu: float) -> int:
    """Set the strength of every generalization layer's skip inside a module.

    Parameters
    ----------
    module : torch.nn.Module
        Searched with all its submodules.
    nu : float in (0, inf)
        The new strength.

    Returns
    -------
    int
        Number of layers that were changed.

    Raises
    ------
    ValueError
        If `nu` is not positive.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_capacity.layers import GeneralizationLayer, set_nu
    >>> set_nu(nn.Sequential(GeneralizationLayer(2), GeneralizationLayer(2)), 0.1)
    2
    """
    layers = list(generalization_layers(module))
    for layer in layers:
        layer.set_nu(nu)
    return len(layers)


def linear_body(in_features: int, out_features: int, depth: int) -> nn.Sequential:
    """Return F of a generalization layer on vectors: `depth` linear layers, ReLU between two."""
    check_option("depth", depth, [1, 2])
    layers: list[nn.Module] = [nn.Linear(in_features, out_features)]
    if depth == 2:
        layers += [nn.ReLU(), nn.Linear(out_features, out_features)]
    return he_initialize(nn.Sequential(*layers))


def conv_body(in_channels: int, out_channels: int, stride: int, form: str, depth: int) -> nn.Sequential:
    """Return F of a generalization layer on feature maps; 3x3 convolutions are batch normalised."""
    check_option("depth", depth, [1, 2])
    layers: list[nn.Module] = []
    for index in range(depth):
        channels, step = (in_channels, stride) if index == 0 else (out_channels, 1)
        if index:
            layers.append(nn.ReLU())
        if form == "conv1x1":
            layers.append(nn.Conv2d(channels, out_channels, 1, step))
        else:
            layers += [nn.Conv2d(channels, out_channels, 3, step, 1, bias=False), nn.BatchNorm2d(out_channels)]
    return he_initialize(nn.Sequential(*layers))


def linear_shortcut(in_features: int, out_features: int) -> nn.Module:
    """Return S on vectors: the identity, or a bias-free projection that preserves the second moment."""
    if in_features == out_features:
        return nn.Identity()
    projection = nn.Linear(in_features, out_features, bias=False)
    nn.init.kaiming_normal_(projection.weight, nonlinearity="linear")
    return projection


def conv_shortcut(in_channels: int, out_channels: int, stride: tuple[int, int]) -> nn.Module:
    """Return S on feature maps: the identity, or a bias-free 1x1 convolution with the stride."""
    if in_channels == out_channels and stride == (1, 1):
        return nn.Identity()
    projection = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    nn.init.kaiming_normal_(projection.weight, nonlinearity="linear")
    return projection


def check_nu(nu: float, name: str = "nu") -> float:
    """Return a strength of the skip as a float; raise if it is 0 or infinite in single precision."""
    cure = "A skip of strength 0 would cut the network; [GL] ends at 0.1."
    nu = check_interval(name, nu, 0.0, float("inf"), closed="neither", cure=cure)
    limits = torch.finfo(torch.float32)
    return check_interval(name, nu, limits.tiny, limits.max)
