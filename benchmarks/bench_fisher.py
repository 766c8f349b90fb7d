"""The Fisher-Rao norm, the dual Fisher matrix and its largest eigenvalue against forward passes and public packages.

All use the same network and samples; agreement of the results is checked before timing.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.timing import measure_row
from sklearn_capacity import CapacityWarning
from sklearn_capacity.architectures import make_network
from sklearn_capacity.derivatives.fisher_matrix import FisherMatrix
from sklearn_capacity.graph import Network
from sklearn_capacity.linalg import largest_eigenvalue
from sklearn_capacity.measures import MEASURES, Batch
from sklearn_capacity.measures.fisher_eigenvalues import fisher_matrix

Shape = tuple[int, ...]


def perceptron() -> nn.Sequential:
    """784-784-784-10."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(784, 784), nn.ReLU(), nn.Linear(784, 784), nn.ReLU(), nn.Linear(784, 10))


def convolutional() -> nn.Sequential:
    """32-5-5 twice with max pooling, for 28x28."""
    torch.manual_seed(0)
    block = lambda c: (nn.Conv2d(c, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))  # noqa: E731
    return nn.Sequential(*block(1), *block(32), nn.Flatten(), nn.Linear(32 * 49, 10))


def resnet20() -> nn.Module:
    torch.manual_seed(0)
    return make_network("resnet20", (3, 32, 32), 10).eval()


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Shape, int, float]] = {
    "MLP": (perceptron, (784,), 128, 1.6),
    "conv": (convolutional, (1, 28, 28), 128, 1.6),
    "ResNet-20": (resnet20, (3, 32, 32), 64, 2.5),
}


def samples(shape: Shape, n: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, *shape, generator=generator), torch.arange(n) % 10


def fisher_rao(network: Network, X: Tensor, y: Tensor, distribution: str = "empirical") -> float:
    batch = Batch(network, X, y, loss="cross_entropy")
    return MEASURES["fisher_rao_norm"](network, batch, distribution=distribution).value


def per_sample(net: nn.Module, X: Tensor, y: Tensor) -> float:
    """The same from gradients of single samples by vmap(grad)."""
    theta = {name: p.detach() for name, p in net.named_parameters()}

    def loss(point: dict, x: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, point, (x[None],)), label[None])

    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(theta, X, y)
    inner = sum((gradients[name].flatten(1) * p.flatten()).sum(1) for name, p in theta.items())
    return math.sqrt(float((inner**2).mean()))


def backpack_norm(net: nn.Module, X: Tensor, y: Tensor) -> Callable[[], float]:
    """The same from BackPACK's gradients of single samples."""
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    net, criterion = extend(net), extend(nn.CrossEntropyLoss(reduction="sum"))

    def norm() -> float:
        net.zero_grad()
        with backpack(BatchGrad()):
            criterion(net(X), y).backward()
        inner = sum((p.grad_batch.flatten(1) * p.detach().flatten()).sum(1) for p in net.parameters())
        return math.sqrt(float((inner**2).mean()))

    return norm


def fisher_rao_rows() -> list[dict]:
    rows = []
    for name, (build, shape, n, target) in NETWORKS.items():
        net = build()
        network, (X, y) = Network(net, shape), samples(shape, n)
        ours = lambda: fisher_rao(network, X, y)  # noqa: B023, E731
        model = fisher_rao(network, X, y, "model")
        laid_out = X.contiguous(memory_format=torch.channels_last) if X.dim() == 4 else X

        @torch.no_grad()
        def forward(X: Tensor = laid_out, net: nn.Module = net) -> Tensor:
            return net(X)

        note = f"{n} samples; peer: one forward pass, channels last; model distribution {model:.4g}"
        assert network.graph.layers  # traced before timing, as happens once per call
        rows.append(measure_row(f"Fisher-Rao norm, {name}", ours, forward, target=target, note=note))
    return rows


def fisher_rao_peers() -> list[dict]:
    net, (X, y) = perceptron(), samples((784,), 128)
    network = Network(net, (784,))
    value = fisher_rao(network, X, y)
    rows = []
    peers = {"vmap(grad)": lambda: per_sample(net, X, y), "BackPACK": backpack_norm(perceptron(), X, y)}
    for peer, function in peers.items():
        assert abs(function() - value) < 1e-3 * value, peer
        note = f"peer: {peer}, 128 samples"
        ours = lambda: fisher_rao(network, X, y)  # noqa: E731
        rows.append(measure_row(f"Fisher-Rao norm, MLP, {peer}", ours, function, target=0.05, note=note, repeats=3))
    return rows


def fresh(network: Network, X: Tensor) -> FisherMatrix:
    """A new Fisher matrix without cached results."""
    return fisher_matrix(network, Batch(network, X, None), "squared")


def gram_rows() -> list[dict]:
    from nngeometry.gram import GramMatrix

    rows = []
    for name, build, shape, n in (("MLP", perceptron, (784,), 200), ("conv", convolutional, (1, 28, 28), 32)):
        net, (X, y) = build(), samples(shape, n)
        network = Network(net, shape)
        loader = DataLoader(TensorDataset(X, y), batch_size=n)

        def theirs(net: nn.Module = net, loader: DataLoader = loader) -> Tensor:
            return GramMatrix(net, loader, function=lambda *d: net(d[0])).data

        ours = lambda: fresh(network, X).dual()  # noqa: B023, E731
        expected = theirs().double().flatten(2).flatten(0, 1)
        assert torch.allclose(ours() * n, expected, rtol=1e-3, atol=1e-3 * float(expected.max())), name
        note = f"{n} samples, 10 outputs; peer: nngeometry's Gram matrix"
        rows.append(measure_row(f"dual Fisher matrix, {name}", ours, theirs, target=1 / 3, note=note, repeats=3))
    return rows


def eigenvalue_rows() -> list[dict]:
    """Where the dual matrix is formed, where it is not, and the number of products without it."""
    rows = []
    for n, how in ((200, "Lanczos on the dual matrix"), (500, "Lanczos on the dual")):
        net, (X, _) = perceptron(), samples((784,), n)
        network = Network(net, (784,))
        theirs, products = arpack(net, X)

        def ours(network: Network = network, X: Tensor = X):
            return MEASURES["fisher_max_eigenvalue"](network, Batch(network, X, None))

        result, value = ours(), theirs()
        assert abs(result.value - value) < 1e-4 * value, (result.value, value)
        assert result.info["method"] == how, result.info
        note = f"{how}; peer: ARPACK on curvlinops' GGN, {products[-1]} products"
        title = f"largest Fisher eigenvalue, MLP, {n} samples"
        rows.append(measure_row(title, ours, theirs, target=1.0, note=note, repeats=3))
    count = {"kernel": "products at tolerance 1e-5, MLP", "ours": math.nan, "peer": math.nan}
    note = (
        f"the ratio is their number; {products_to_find(fresh(network, X), value)} find the value, the others bound it; "
        f"ARPACK, without a bound: {products[-1]}"
    )
    return [*rows, count | {"ratio": float(result.info["products"]), "target": 16.0, "note": note}]


def arpack(net: nn.Module, X: Tensor) -> tuple[Callable[[], float], list[int]]:
    """The largest eigenvalue by scipy on curvlinops' products, and how many of these each call took."""
    from curvlinops import GGNLinearOperator

    # F is the Gauss-Newton matrix of (1/2T) sum |f - y|^2, half of the summed squared error over T
    data = [(X, torch.zeros(len(X), 10))]
    linear = GGNLinearOperator(net, nn.MSELoss(reduction="sum"), list(net.parameters()), data).to_scipy()
    counts: list[int] = []

    def counted(v: np.ndarray) -> np.ndarray:
        counts[-1] += 1
        return linear @ v.astype(np.float32)

    wrapped = LinearOperator(linear.shape, matvec=counted, dtype=np.float32)
    start = np.random.default_rng(0).normal(size=linear.shape[0]).astype(np.float32)

    def value() -> float:
        counts.append(0)
        return float(eigsh(wrapped, k=1, tol=1e-5, v0=start, return_eigenvectors=False)[0]) / (2 * len(X))

    return value, counts


def products_to_find(fisher: FisherMatrix, value: float, tolerance: float = 1e-5) -> int:
    """Number of products after which Lanczos is at a known eigenvalue."""
    for steps in itertools.count(1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CapacityWarning)
            found = largest_eigenvalue(fisher.product, fisher.dual_size, max_steps=steps, check_every=1).value
        if abs(found - value) < tolerance * value:
            return steps


def run() -> list[dict]:
    """All rows."""
    return [*fisher_rao_rows(), *fisher_rao_peers(), *gram_rows(), *eigenvalue_rows()]
