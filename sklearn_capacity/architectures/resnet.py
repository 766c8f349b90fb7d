"""Residual networks in their form for CIFAR, plain and with the generalization layers of [GL]."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from sklearn_capacity._validation import check_integer, check_option
from sklearn_capacity.architectures.blocks import check_image, convolution, linear, normalization
from sklearn_capacity.layers import ConvGeneralizationDropout, ConvGeneralizationLayer, he_initialize
from sklearn_capacity.layers.initialization import scale_branches

__all__ = ["CifarResNet"]


class CifarResNet(nn.Module):
    r"""Residual network of 6n + 2 layers: three stages of n blocks, 16, 32 and 64 channels wide.

    .. math:: x^{(b+1)} = \mathrm{relu}(S x^{(b)} + F(x^{(b)})), \qquad
        F = \text{conv, batch norm, ReLU, conv, batch norm}

    after one 3x3 convolution, and before global average pooling and a linear layer.

    Parameters
    ----------
    input_shape : (int, int, int)
        Channels, height and width of an image of at least 4 x 4.
    n_outputs : int
        Number of logits.
    depth : int, default=20
        6n + 2, the number of layers on the longest path.
    width : int, default=16
        Channels of the first stage; doubled in each further stage.
    shortcut : {"pad", "projection"}, default="pad"
        S where the size changes. "pad": every second pixel, with zeros for the new channels (option A of the paper,
        without parameters, which gives the published counts). "projection": a 1x1 convolution (option B).
    generalization_layer : {"skip", "dropout"}, default=None
        "skip": one generalization layer replaces the entire second stage ([GL] figure 6). "dropout": a layer of two
        3x3 convolutions with dropout follows the last stage ([GL] table 1).
    layer_form : {"conv1x1", "conv3x3"}, default=None
        Form of that layer's convolutions. None: "conv1x1" for "skip" ("one FF layer"), "conv3x3" for "dropout" (the
        published counts need it).
    layer_depth : {1, 2}, default=None
        Number of convolutions in the layer with a skip; None: 1 for "conv1x1", 2 for "conv3x3".
    layer_dropout : float in [0, 1), default=0.5
        Probability of dropping a node of the layer with dropout (published: 0.5, 0.6, 0.75).
    nu : float in (0, inf), default=1.0
        Initial strength of the generalization layer's skip.
    batch_norm : bool, default=True
        Without it, convolutions have biases, and the initial weights of the last one of each branch are divided by the
        square root of the number of blocks, because He's initialisation alone would double the second moment per block.
    weight_norm : bool, default=False
        Whether filters and rows have unit norm.

    Raises
    ------
    ValueError
        If `depth` is not 6n + 2, the image is too small, or an option is unknown.

    Notes
    -----
    Numbers of trainable parameters for 10 classes and depth 20, 32, 44, 56, 110: 269,722, 464,154, 658,586, 853,018,
    1,727,962. Submodules: ``stem``, ``stage1`` to ``stage3``, ``generalization`` (nothing, or the layer with dropout),
    ``pool``, ``flatten``, ``head``.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun. Deep residual learning for image recognition. CVPR 2016, section 4.2;
    Generalization by design: learning in the manifold of distributions, figures 6 and 8, table 1.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.architectures import CifarResNet
    >>> network = CifarResNet((3, 32, 32), 10, depth=20)
    >>> sum(parameter.numel() for parameter in network.parameters())
    269722
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        n_outputs: int,
        *,
        depth: int = 20,
        width: int = 16,
        shortcut: str = "pad",
        generalization_layer: str | None = None,
        layer_form: str | None = None,
        layer_depth: int | None = None,
        layer_dropout: float = 0.5,
        nu: float = 1.0,
        batch_norm: bool = True,
        weight_norm: bool = False,
    ) -> None:
        super().__init__()
        channels, _, _ = check_image(input_shape, 4)
        n_blocks, width = _blocks_per_stage(depth), check_integer("width", width)
        check_option("shortcut", shortcut, ["pad", "projection"])
        check_option("generalization_layer", generalization_layer, [None, "skip", "dropout"])
        check_option("layer_form", layer_form, [None, "conv1x1", "conv3x3"])
        options = {"shortcut": shortcut, "batch_norm": batch_norm, "weight_norm": weight_norm}
        self.stem = nn.Sequential(
            convolution(channels, width, bias=not batch_norm, weight_norm=weight_norm),
            normalization(width, batch_norm),
            nn.ReLU(),
        )
        self.stage1 = _stage(width, width, 1, n_blocks, options)
        if generalization_layer == "skip":
            form = layer_form or "conv1x1"
            layer = ConvGeneralizationLayer(width, 2 * width, 2, form=form, depth=layer_depth, nu=nu)
            self.stage2 = nn.Sequential(layer, nn.ReLU())
        else:
            self.stage2 = _stage(width, 2 * width, 2, n_blocks, options)
        self.stage3 = _stage(2 * width, 4 * width, 2, n_blocks, options)
        self.generalization: nn.Module = nn.Identity()
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.head = linear(4 * width, check_integer("n_outputs", n_outputs), weight_norm=weight_norm)
        self._initialize(batch_norm)
        if generalization_layer == "dropout":  # last, so that one seed gives equal encoders with and without it
            self.generalization = ConvGeneralizationDropout(4 * width, layer_dropout, form=layer_form or "conv3x3")

    def _initialize(self, batch_norm: bool) -> None:
        skip = self.stage2[0] if isinstance(self.stage2[0], ConvGeneralizationLayer) else None
        for part in (self.stem, self.stage1, self.stage2, self.stage3, self.head):
            if skip is None or part is not self.stage2:  # that layer is already initialised
                he_initialize(part)
        if not batch_norm:
            scale_branches(block.conv2 for block in self.modules() if isinstance(block, _Block))

    def forward(self, input: Tensor) -> Tensor:
        """Return logits of shape (n_samples, n_outputs)."""
        features = self.stage3(self.stage2(self.stage1(self.stem(input))))
        return self.head(self.flatten(self.pool(self.generalization(features))))


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut over them."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, shortcut: str, batch_norm: bool, weight_norm: bool
    ) -> None:
        super().__init__()
        bias = not batch_norm
        self.conv1 = convolution(in_channels, out_channels, stride=stride, bias=bias, weight_norm=weight_norm)
        self.norm1 = normalization(out_channels, batch_norm)
        self.relu1 = nn.ReLU()
        self.conv2 = convolution(out_channels, out_channels, bias=bias, weight_norm=weight_norm)
        self.norm2 = normalization(out_channels, batch_norm)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            if shortcut == "pad":
                self.shortcut = _PadShortcut(out_channels - in_channels, stride)
            else:
                self.shortcut = nn.Sequential(
                    convolution(in_channels, out_channels, 1, stride, bias=bias, weight_norm=weight_norm),
                    normalization(out_channels, batch_norm),
                )

    def forward(self, input: Tensor) -> Tensor:
        hidden = self.relu1(self.norm1(self.conv1(input)))
        return self.relu2(self.norm2(self.conv2(hidden)) + self.shortcut(input))


class _PadShortcut(nn.Module):
    """Every stride-th pixel, and zeros for the new channels (option A)."""

    def __init__(self, n_new: int, stride: int) -> None:
        super().__init__()
        self.before, self.after, self.stride = n_new // 2, n_new - n_new // 2, stride

    def forward(self, input: Tensor) -> Tensor:
        return functional.pad(input[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))


def _stage(in_channels: int, out_channels: int, stride: int, n_blocks: int, options: dict) -> nn.Sequential:
    first = _Block(in_channels, out_channels, stride, **options)
    return nn.Sequential(first, *(_Block(out_channels, out_channels, 1, **options) for _ in range(n_blocks - 1)))


def _blocks_per_stage(depth: int) -> int:
    depth = check_integer("depth", depth, 8)
    if (depth - 2) % 6:
        raise ValueError(f"`depth` must be 6 n + 2 (20, 32, 44, 56, 110, ...), got {depth}.")
    return (depth - 2) // 6
