"""The networks of the papers, by class and by name."""

from sklearn_capacity.architectures.chains import VGG, AllConvNet, ConvNet
from sklearn_capacity.architectures.mlp import MLP
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
