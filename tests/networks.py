"""Small seeded networks that many tests share: each function gives (module, X, y), float64, in eval mode.

Batch norms have statistics, scales and shifts as after training; biases are not zero. Every output has 3 classes unless
the name says otherwise, and there are 7 samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch, Measured

__all__ = [
    "CHAINS",
    "NETWORKS",
    "RECTIFIERS",
    "Attention",
    "Blend",
    "Case",
    "Exported",
    "dense_chain",
    "make",
    "measure",
    "measure_again",
    "measure_module",
    "prepared",
]

Case = tuple[nn.Module, Tensor, Tensor]
SAMPLES, CLASSES = 7, 3
NETWORKS: dict[str, Callable[[], Case]] = {}
#: Names of networks whose activations are all positively homogeneous.
RECTIFIERS: list[str] = []
#: Names of bias-free chains of linear maps and positively homogeneous activations, without pooling.
CHAINS: list[str] = []


class Exported(nn.Sequential):
    """A stack whose trace is an export, since recordings do not know its last call; which changes nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).roll(0, 1)


def make(
    build: Callable[[], nn.Module], input_shape: tuple[int, ...], *, seed: int = 0, classes: int = CLASSES
) -> Case:
    """Module, samples and labels, all drawn from one seed; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build().double().eval()
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                assert layer.running_mean is not None and layer.running_var is not None
                nn.init.normal_(layer.running_mean, std=0.5)
                nn.init.uniform_(layer.running_var, 0.5, 2.0)
                if layer.affine:
                    nn.init.uniform_(layer.weight, 0.5, 1.5)
                    nn.init.normal_(layer.bias, std=0.3)
        X = torch.randn(SAMPLES, *input_shape, dtype=torch.float64)
        y = torch.arange(SAMPLES) % classes
    return module, X, y


def dense_chain(*widths: int, activation: type[nn.Module] = nn.ReLU, bias: bool = True, seed: int = 0) -> nn.Module:
    """Linear layers with an activation between them, float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for a, b in itertools.pairwise(widths):
            layers += [nn.Linear(a, b, bias=bias), activation()]
        return nn.Sequential(*layers[:-1]).double()


class Attention(nn.Module):
    """A transformer layer over positions of four features, whose fused kernels have no second derivative."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def network(*, rectifier: bool = True, chain: bool = False) -> Callable[[Callable[[], Case]], Callable[[], Case]]:
    """Enter a function into the tables."""

    def register(function: Callable[[], Case]) -> Callable[[], Case]:
        NETWORKS[function.__name__] = function
        if rectifier:
            RECTIFIERS.append(function.__name__)
        if chain:
            CHAINS.append(function.__name__)
        return function

    return register


@cache
def prepared(name: str) -> tuple[Network, Batch]:
    """Network and batch of one of the networks, traced once for all tests."""
    module, X, y = NETWORKS[name]()
    network = Network(module, tuple(X.shape[1:]), output="one_logit" if name == "binary" else "logits")
    return network, Batch(network, X, y, loss="cross_entropy")


def measure(name: str, measure_name: str, **params: object) -> Measured:
    """One measure of one of the networks."""
    return MEASURES[measure_name](*prepared(name), **params)


def measure_module(module: nn.Module, X: Tensor, measure_name: str, *, y: Tensor | None = None, **params) -> Measured:
    """One measure of a module: under cross-entropy if there are labels, else under the absolute loss."""
    network = Network(module, tuple(X.shape[1:]))
    loss = "absolute" if y is None or y.is_floating_point() else "cross_entropy"
    return MEASURES[measure_name](network, Batch(network, X, y, loss=loss), **params)


def measure_again(network: Network, module: nn.Module, name: str, X: Tensor | None = None, **params) -> float:
    """A measure, under the absolute loss, of a traced network with the weights of `module`, which has its structure."""
    network.module.load_state_dict(module.state_dict())
    other = network.renewed()
    return MEASURES[name](other, Batch(other, X, loss="absolute"), **params).value


# -- perceptrons -------------------------------------------------------------------------------------------------------


@network()
def mlp() -> Case:
    """Biased ReLU perceptron 5-6-4-3."""
    return make(lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), (5,))


@network(chain=True)
def mlp_no_bias() -> Case:
    """The same without biases."""
    linear = lambda a, b: nn.Linear(a, b, bias=False)  # noqa: E731
    return make(lambda: nn.Sequential(linear(5, 6), nn.ReLU(), linear(6, 4), nn.ReLU(), linear(4, 3)), (5,))


@network(chain=True)
def one_output() -> Case:
    """Bias-free rectifier chain with one output, a leaky ReLU, and two linear maps without an activation between."""
    linear = lambda a, b: nn.Linear(a, b, bias=False)  # noqa: E731
    layers = lambda: (linear(4, 6), nn.ReLU(), linear(6, 5), linear(5, 4), nn.LeakyReLU(0.2), linear(4, 1))  # noqa: E731
    return make(lambda: nn.Sequential(*layers()), (4,), classes=2)


@network(rectifier=False)
def mlp_tanh() -> Case:
    """Biased tanh perceptron 5-6-3."""
    return make(lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), (5,))


@network()
def mlp_batch_norm() -> Case:
    """Perceptron with batch norm before the activation and a last batch norm that folds forwards."""
    return make(
        lambda: nn.Sequential(
            nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6), nn.ReLU(), nn.BatchNorm1d(6), nn.Linear(6, 3)
        ),
        (5,),
    )


@network()
def binary() -> Case:
    """One logit: the two-class model [-z/2, z/2] when its output is declared."""
    return make(lambda: nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 1)), (5,), classes=2)


@network()
def tied() -> Case:
    """One square matrix used twice, with a bias of its own at each use."""
    return make(_Tied, (4,))


class Blend(nn.Module):
    """An operator with parameters that has no rule in the graph."""

    def __init__(self, features: int):
        super().__init__()
        self.weight = nn.Parameter(1 + torch.rand(features))

    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, -1) + torch.atan2(x, self.weight)


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu())


@network()
def weight_norm() -> Case:
    """Weight-normalised hidden layer: the effective weight is g v / |v|."""
    return make(lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 6)), nn.ReLU(), nn.Linear(6, 3)), (5,))


@network()
def tokens() -> Case:
    """Linear layers applied at every position of a sequence, then the mean over positions."""
    return make(_Tokens, (4, 3))


class _Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(3, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.first(x).relu()).relu().mean(1))


# -- convolutions ------------------------------------------------------------------------------------------------------


@network()
def conv_batch_norm() -> Case:
    """Convolution, batch norm, ReLU, global average pooling."""
    return make(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4, 3),
        ),
        (2, 5, 5),
    )


@network()
def conv_strided_grouped() -> Case:
    """Strides, groups, dilation and an even kernel."""
    return make(
        lambda: nn.Sequential(
            nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
            nn.ReLU(),
            nn.Conv2d(6, 4, 2, dilation=2, padding=1),
            nn.ReLU(inplace=True),
            nn.Flatten(),
            nn.Linear(36, 3),
        ),
        (4, 6, 5),
    )


@network(chain=True)
def conv_no_bias() -> Case:
    """Bias-free convolutional chain without pooling."""
    return make(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(3, 2, 3, stride=2, bias=False),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
            nn.Linear(8, 3, bias=False),
        ),
        (2, 5, 5),
    )


@network()
def conv_1d() -> Case:
    """One-dimensional convolution with overlapping max pooling."""
    return make(
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.MaxPool1d(3, 2, 1), nn.Flatten(), nn.Linear(12, 3)
        ),
        (2, 8),
    )


@network()
def conv_avg_pool() -> Case:
    """Padded average pooling with ceil mode, its padding not counted."""
    return make(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3),
            nn.ReLU(),
            nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
            nn.Flatten(),
            nn.Linear(27, 3),
        ),
        (2, 6, 6),
    )


@network()
def conv_max_pool() -> Case:
    """Overlapping, padded max pooling, then a dilated one."""
    return make(
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            nn.Conv2d(3, 3, 2, padding=1),
            nn.MaxPool2d(2, 1, dilation=2),
            nn.Flatten(),
            nn.Linear(12, 3),
        ),
        (2, 6, 6),
    )


@network()
def conv_reflect() -> Case:
    """Padding by reflection, then by wrapping, then by repetition."""
    return make(
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=2, padding_mode="reflect"),
            nn.ReLU(),
            nn.Conv2d(3, 2, 3, padding=1, padding_mode="circular"),
            nn.ReLU(),
            nn.Conv2d(2, 2, 3, stride=2, padding=1, padding_mode="replicate"),
            nn.Flatten(),
            nn.Linear(18, 3),
        ),
        (1, 4, 4),
    )


@network()
def conv_transposed() -> Case:
    """Transposed convolution with stride, groups and output padding."""
    return make(
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, output_padding=1, groups=2),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64, 3),
        ),
        (2, 4, 4),
    )


# -- branches ----------------------------------------------------------------------------------------------------------


@network()
def residual() -> Case:
    """A post-activation block with a strided 1x1 shortcut and one with the identity."""
    return make(_Residual, (2, 5, 5))


class _Block(nn.Module):
    def __init__(self, c_in: int, c_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        out += self.shortcut(x)
        return out.relu()


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(_Block(2, 3, 2), _Block(3, 3, 1))
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(x).mean((2, 3)))


@network()
def residual_preactivation() -> Case:
    """Pre-activation blocks: batch norms that no linear map can absorb stay as diagonal layers."""
    return make(_PreactResidual, (2, 4, 4))


class _PreactResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3, 3, padding=1, bias=False)
        self.bn1, self.conv1 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.last, self.head = nn.BatchNorm2d(3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv2(self.bn2(self.conv1(self.bn1(x).relu())).relu())
        return self.head(self.last(x).relu().mean((2, 3)))


@network()
def concatenated() -> Case:
    """Two branches, one of them scaled and subtracted from a third, joined along the channels."""
    return make(_Concatenated, (2, 4, 4))


class _Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 1)
        self.head = nn.Linear(4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x).relu(), self.right(x).relu()
        joined = torch.cat([left - 0.5 * right, right], dim=1)
        return self.head(torch.nn.functional.avg_pool2d(joined, 2).flatten(1))
