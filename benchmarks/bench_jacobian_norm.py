"""The Jacobian's spectral norm per sample against vmap(jacrev), power iteration and the forward pass.

Times are CPU times of one thread: the medians of pairs of interleaved runs. Errors are against an SVD in float64.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from benchmarks.timing import measure_row
from sklearn_capacity.architectures import make_network
from sklearn_capacity.derivatives.input_jacobian import gram_product
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import Batch
from sklearn_capacity.measures.output_gram import largest_eigenvalues

#: Name -> (module, shape of a sample, samples): the sizes of the papers' networks.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "MLP": (lambda: make_network("mlp", (784,), 10, hidden_layer_sizes=(784, 784)), (784,), 128),
    "conv": (lambda: make_network("conv", (1, 28, 28), 10), (1, 28, 28), 128),
    "ResNet-20": (lambda: make_network("resnet20", (3, 32, 32), 10), (3, 32, 32), 64),
}


def ours(network: Network, X: Tensor) -> Tensor:
    """The computation of the measure, with a new batch each time, since a batch caches results."""
    return largest_eigenvalues(network, Batch(network, X), "logits").sqrt()


def dense(network: Network, X: Tensor) -> Tensor:
    """What a user would write: all Jacobians at once, then their singular values."""
    J = vmap(jacrev(lambda x: network.module(x[None])[0]))(X)
    return torch.linalg.svdvals(J.flatten(2))[:, 0].detach()


def power_iteration(network: Network, X: Tensor, steps: int = 50) -> Tensor:
    """The usual estimate, with products of the Jacobian and its transpose."""
    product = gram_product(network.forward, X)
    u = torch.randn(len(X), network.n_outputs, generator=torch.Generator().manual_seed(0))
    value = torch.zeros(len(X))
    for _ in range(steps):
        u = u / u.norm(dim=1, keepdim=True)
        image = product(u)
        value, u = (u * image).sum(1), image
    return value.clamp_min(0).sqrt()


def forward(network: Network, X: Tensor) -> Tensor:
    with torch.no_grad():
        return network.forward(X)


def truth(module: nn.Module, X: Tensor) -> Tensor:
    """Singular values in float64, per sample."""
    network64 = Network(module, tuple(X.shape[1:]), dtype=torch.float64)
    rows = [torch.autograd.functional.jacobian(lambda x: network64.forward(x[None])[0], x) for x in X.double()]
    return torch.stack([torch.linalg.svdvals(row.flatten(1))[0] for row in rows])


def error(values: Tensor, exact: Tensor) -> float:
    """The median of the relative errors, since a sample that rounding moves over a kink has another Jacobian."""
    return float(((values.double() - exact) / exact).abs().median())


def run() -> list[dict]:
    """Three rows per network; only the forward pass has a target."""
    rows = []
    for name, (build, shape, n) in NETWORKS.items():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = build().eval()
        X = torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))
        if X.dim() == 4:
            X = X.contiguous(memory_format=torch.channels_last)
        network = Network(module, shape)
        exact = truth(module, X[:8])
        peers = {"forward": (forward, 12.0, 5), "vmap(jacrev)": (dense, None, 3), "power": (power_iteration, None, 3)}
        for peer_name, (peer, target, repeats) in peers.items():
            note = f"error {error(ours(network, X[:8]), exact):.0e}"
            if peer is not forward:
                note += f", peer's {error(peer(network, X[:8]), exact):.0e}"
            rows.append(
                measure_row(
                    f"Jacobian spectral norm, {name} / {peer_name}",
                    lambda: ours(network, X),  # noqa: B023
                    lambda: peer(network, X),  # noqa: B023
                    target=target,
                    note=note,
                    repeats=repeats,
                )
            )
    return rows
