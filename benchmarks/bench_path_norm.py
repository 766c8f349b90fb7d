"""The single pass of the path norm against a forward pass, and against a deep copy with overwritten weights.

The trace is not timed: it is computed once for all measures of a call.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.timing import measure_row
from sklearn_capacity.architectures import make_network
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import Batch
from sklearn_capacity.measures.paths import path_norm

NETWORKS = {"conv": (1, 28, 28), "resnet20": (3, 32, 32)}
BATCH = {"conv": 128, "resnet20": 64}


def network(name: str) -> nn.Module:
    """One of the papers' networks in eval mode; its batch norms keep their initial statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make_network(name, NETWORKS[name], 10).eval()


def overwritten_copy(module: nn.Module, ones: Tensor) -> float:
    """The usual public code: square the weights of a copy, drop the biases, propagate ones.

    Max pooling keeps one path per window, average pooling's 1/k is not squared, and float32 overflows in deep networks.
    """
    squared = copy.deepcopy(module)
    with torch.no_grad():
        for layer in squared.modules():
            if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                layer.weight.copy_(layer.weight**2 / (layer.running_var + layer.eps))
                layer.running_mean.zero_()
                layer.running_var.fill_(1 - layer.eps)
                layer.bias.zero_()
            elif isinstance(layer, nn.Linear | nn.Conv2d):
                layer.weight.square_()
                if layer.bias is not None:
                    layer.bias.zero_()
        return float(squared(ones).sum().sqrt())


def forward(module: nn.Module, X: Tensor) -> Tensor:
    """One pass without gradients."""
    with torch.no_grad():
        return module(X)


def uncached(network: Network) -> float:
    """Our path norm of a traced network that keeps nothing of earlier calls."""
    fresh = network.renewed()
    fresh.graph = network.graph
    return path_norm(fresh, Batch(fresh)).value


def run() -> list[dict]:
    """Rows per network: relative to a forward pass of a batch and of one sample, and to the deep copy."""
    rows = []
    for name, shape in NETWORKS.items():
        module = network(name)
        ones = torch.ones(1, *shape)
        ours = partial(uncached, Network(module, shape))
        value, peer = ours(), overwritten_copy(module, ones)
        rows += [
            measure_row(
                f"path norm, {name}: over one forward pass of {BATCH[name]} samples",
                ours,
                partial(forward, module, torch.ones(BATCH[name], *shape)),
                target=2.0,
                repeats=5,
            ),
            measure_row(
                f"path norm, {name}: over one forward pass of one sample",
                ours,
                partial(forward, module, ones),
                note="ours in float64, the forward pass in float32",
                repeats=21,
            ),
            measure_row(
                f"path norm, {name}: over a deep copy with weights overwritten",
                ours,
                partial(overwritten_copy, module, ones),
                target=1.0,
                note=f"the copy's number is {100 * (peer / value - 1):+.0f} % off: pooling",
                repeats=21,
            ),
        ]
    return rows
