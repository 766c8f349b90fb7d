"""The networks of the papers, by class and by name.

`registry` maps names to classes (`make_network`). The classes, one paper per file: `mlp`; `plain_convnets` (conv net,
VGG, All-CNN-C); `resnet` (CIFAR form); `preactivation` (pre-activation and wide ResNets); `residual_mlp`. `blocks`
contains the common parts of the residual ones, `row_norm` the row-normalised weights of [JR]. Read `mlp` first.

Data flow: name, input_shape, n_outputs -> make_network -> nn.Module that returns logits.
"""

from sklearn_capacity.architectures.mlp import MLP
from sklearn_capacity.architectures.plain_convnets import VGG, AllConvNet, ConvNet
from sklearn_capacity.architectures.preactivation import PreactResNet, WideResNet
from sklearn_capacity.architectures.registry import ARCHITECTURES, make_network
from sklearn_capacity.architectures.residual_mlp import ResidualMLP
from sklearn_capacity.architectures.resnet import CifarResNet

__all__ = [
    "ARCHITECTURES",
    "MLP",
    "VGG",
    "AllConvNet",
    "CifarResNet",
    "ConvNet",
    "PreactResNet",
    "ResidualMLP",
    "WideResNet",
    "make_network",
]
