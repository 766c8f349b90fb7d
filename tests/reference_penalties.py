"""Jacobian penalties the slow way: one sample and one output at a time; and nets for them with every kind of layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from sklearn_capacity.architectures import CifarResNet, PreactResNet
from sklearn_capacity.architectures.mlp import RowNormalizedLinear
from sklearn_capacity.penalties.module_graph import graph_of

__all__ = [
    "CASES",
    "FALLBACKS",
    "Widened",
    "assert_same",
    "built",
    "chained",
    "dense_jacobian",
    "gradients",
    "mean_squared_jacobian",
    "mean_squared_norm",
    "per_layer",
]


def dense_jacobian(module: nn.Module, x: Tensor, output: str) -> Tensor:
    """J(x) of shape (C, D) of one sample, differentiable with respect to the parameters."""

    def function(flat: Tensor) -> Tensor:
        logits = module(flat.reshape(1, *x.shape))[0]
        return logits.exp() / logits.exp().sum() if output == "softmax" else logits

    return torch.autograd.functional.jacobian(function, x.flatten(), create_graph=True)


def mean_squared_jacobian(module: nn.Module, X: Tensor, output: str = "logits") -> Tensor:
    """Mean over the samples of tr(J^T J), the module in the mode it is in."""
    return sum(torch.trace(J.T @ J) for J in (dense_jacobian(module, x, output) for x in X)) / len(X)


def mean_squared_norm(module: nn.Module, X: Tensor, output: str = "logits") -> Tensor:
    """Mean over the samples of the largest singular value of J, squared."""
    return sum(torch.linalg.svdvals(dense_jacobian(module, x, output))[0] ** 2 for x in X) / len(X)


def per_layer(module: nn.Module, x: Tensor, index: int, output: str = "logits") -> Tensor:
    """[JR] eq. 52 for one sample and one output, g detached, every layer's map written out as a matrix."""
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    layers = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d, nn.ConvTranspose2d))]
    handles = [layer.register_forward_hook(lambda m, a, y: calls.append((m, a[0], y))) for layer in layers]
    logits = module(x[None])[0]
    for handle in handles:
        handle.remove()
    value = (logits.exp() / logits.exp().sum() if output == "softmax" else logits)[index]
    total = torch.zeros((), dtype=x.dtype)
    for layer, a, y in calls:
        g = torch.autograd.grad(value, y, retain_graph=True)[0].flatten().detach()
        matrix = torch.autograd.functional.jacobian(layer, a.detach(), create_graph=True)
        total = total + (g @ matrix.reshape(len(g), -1)).square().sum()
    return total


def gradients(value, module):
    """The gradient with respect to all parameters as one vector; 0 for parameters without influence."""
    parameters = list(module.parameters())
    result = torch.autograd.grad(value, parameters, allow_unused=True, retain_graph=True)
    filled = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, result, strict=True)]
    return torch.cat([g.flatten() for g in filled])


def assert_same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11 * float(want.abs().max()))


def chained(module, X) -> bool:
    return graph_of(module, X) is not None


# ---- networks ---------------------------------------------------------------------------------------------------


class _Tied(nn.Module):
    """One linear map used twice, and once more transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.inner(torch.relu(self.inner(x))))
        return self.head(torch.relu(h @ self.inner.weight))


class Widened(nn.Module):
    """A grey image that a shift makes three channels of, and one feature that a scale makes five of."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.head = nn.Conv2d(3, 4, 3), nn.Linear(16, 1), nn.Linear(5, 3)
        self.register_buffer("mean", torch.tensor([0.1, 0.2, -0.3]).reshape(1, 3, 1, 1))
        self.scale = nn.Parameter(torch.tensor([1.0, -2.0, 0.5, 0.3, 1.5]))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.conv(x - self.mean)).flatten(1)
        return self.head(torch.relu(self.one(h) * self.scale))


class _Branches(nn.Module):
    """Sums, differences, joined and sliced features, trained and fixed scales, a transposed image."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(2, 4, 1)
        self.scale, self.head = nn.Parameter(torch.tensor(0.7)), nn.Linear(24, 3)
        self.register_buffer("nu", torch.tensor(0.3))

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.relu(self.a(x)), nn.functional.leaky_relu(self.b(x), 0.2)
        joined = torch.cat([a - self.nu * b, b.transpose(2, 3) * self.scale], dim=1)
        return self.head(joined[:, 1:7, ::2, ::2].mean(3).flatten(1))


class _Normalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(5, 6), nn.LayerNorm(6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.norm(self.first(x))))


class _Sorting(nn.Module):
    """The slope of a sorted signal is a permutation, which another sample may not share."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)).sort(1).values)


class _Angles(nn.Module):
    """The angle of two numbers has no rule in the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.second(torch.atan2(h, 1 + h.roll(1, 1).square()))


class _Branching(nn.Module):
    """Control flow that depends on the data, which no trace can show."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        return self.second(h if bool((h.detach() > -1).all()) else -h)


def _pooled(*layers: nn.Module, features: int, channels: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, channels, 3, padding=1), *layers, nn.Flatten(), nn.Linear(features, 3))


def _weight_norm() -> nn.Module:
    first = parametrizations.weight_norm(nn.Linear(5, 6))
    return nn.Sequential(first, nn.ReLU(), RowNormalizedLinear(6, 6), nn.ReLU(), nn.Linear(6, 3))


def _grouped() -> nn.Module:
    first = nn.Conv2d(2, 4, 3, stride=2, padding=(1, 2), groups=2)
    return nn.Sequential(first, nn.ReLU(), nn.Conv2d(4, 6, 2, dilation=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))


def _one_channel() -> nn.Module:
    first = nn.Conv2d(1, 3, 3, stride=(2, 1), padding=(1, 0))
    return nn.Sequential(first, nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3 * 1 * 2, 3))


def _one_dimensional() -> nn.Module:
    layers = nn.Conv1d(2, 4, 3), nn.ReLU(), nn.MaxPool1d(2), nn.ConvTranspose1d(4, 3, 3, stride=2, padding=1)
    return nn.Sequential(*layers, nn.Hardtanh(), nn.Flatten(), nn.Linear(9, 3))


def _unfolded() -> nn.Module:
    """Batch norm between a rectifier and a padded convolution folds into neither."""
    layers = nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2), nn.Conv2d(2, 3, 3, padding=1), nn.ReLU6()
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(3 * 36, 3))


def _mlp(activation: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(nn.Linear(5, 7), activation, nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3))


def _conv() -> nn.Module:
    conv = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)
    return nn.Sequential(*conv, nn.ReLU(), nn.Flatten(), nn.Linear(48, 3), nn.Dropout())


Case = tuple[Callable[[], nn.Module], tuple[int, ...]]

#: name -> (network, shape of one sample); every one has a chain.
CASES: dict[str, Case] = {
    "mlp": (_mlp(nn.ReLU()), (5,)),
    "sorting": (_Sorting, (5,)),
    "leaky": (_mlp(nn.LeakyReLU(0.1)), (5,)),
    "tanh": (_mlp(nn.Tanh()), (5,)),
    "softplus": (_mlp(nn.Softplus(2.0)), (5,)),
    "gelu": (_mlp(nn.GELU()), (5,)),
    "silu": (_mlp(nn.SiLU()), (5,)),
    "elu": (_mlp(nn.ELU()), (5,)),
    "conv_batch_norm": (_conv, (2, 6, 6)),
    "strided_grouped": (_grouped, (2, 7, 7)),
    "one_channel": (_one_channel, (1, 6, 6)),
    "one_dimensional": (_one_dimensional, (2, 6)),
    "unfolded_batch_norm": (_unfolded, (2, 6, 6)),
    "max_pool": (lambda: _pooled(nn.ReLU(), nn.MaxPool2d(2), features=36), (2, 7, 7)),
    "max_pool_first": (lambda: _pooled(nn.MaxPool2d(2), nn.ReLU(), features=36), (2, 6, 6)),
    "max_pool_overlapping": (lambda: _pooled(nn.ReLU(), nn.MaxPool2d(3, 2, 1), features=36), (2, 6, 6)),
    "max_pool_ceil": (lambda: _pooled(nn.MaxPool2d(3, ceil_mode=True), features=36), (2, 7, 7)),
    "avg_pool": (lambda: _pooled(nn.ReLU(), nn.AvgPool2d(3, 2, 1), features=36), (2, 6, 6)),
    "global_pool": (lambda: _pooled(nn.ReLU(), nn.AdaptiveAvgPool2d(1), features=4), (2, 6, 6)),
    "uneven_pool": (lambda: _pooled(nn.ReLU(), nn.AdaptiveAvgPool2d(4), features=64), (2, 6, 6)),
    "reflected": (lambda: nn.Sequential(nn.ReflectionPad2d(1), _pooled(nn.ReLU(), features=256)), (2, 6, 6)),
    "circular": (
        lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"), nn.ReLU(), _pooled(features=144)),
        (2, 6, 6),
    ),
    "weight_norm": (_weight_norm, (5,)),
    "tied": (_Tied, (5,)),
    "branches": (_Branches, (2, 8, 8)),
    "widened": (Widened, (1, 4, 4)),
    "residual": (lambda: CifarResNet((3, 8, 8), 3, depth=8, width=2), (3, 8, 8)),
    "preactivation": (lambda: PreactResNet((3, 8, 8), 3, channels=(2, 4), n_blocks=1), (3, 8, 8)),
    "normalised": (_Normalised, (5,)),
}

#: Networks without a chain.
FALLBACKS: dict[str, Case] = {"angles": (_Angles, (5,)), "branching": (_Branching, (5,))}


def built(name: str, n_samples: int = 4, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network in training mode, float64, batch norms as after training; and samples."""
    make, shape = (CASES | FALLBACKS)[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = make().double()
        for layer in module.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                assert layer.running_mean is not None and layer.running_var is not None
                nn.init.normal_(layer.running_mean, std=0.3)
                nn.init.uniform_(layer.running_var, 0.5, 1.5)
                nn.init.uniform_(layer.weight, 0.5, 1.5)
                nn.init.normal_(layer.bias, std=0.3)
        return module.train(), torch.randn(n_samples, *shape, dtype=torch.float64)
