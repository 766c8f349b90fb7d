"""`python -m benchmarks.agreement`: our values beside those of public packages, in `docs/results/agreement.csv`.

Each row computes one number with this package and with a peer, in double precision on the same network and samples.
A peer that is not installed is left out with a message. The tests compute the rows of those that always are.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian, jacrev, vmap

from sklearn_capacity import capacity_report, measure_capacity

TABLE = Path(__file__).parents[1] / "docs" / "results" / "agreement.csv"
COLUMNS = ("measure", "peer", "perceptron", "convolutions")


class Case(NamedTuple):
    """A network with data, both in double precision."""

    name: str
    module: nn.Module
    X: Tensor
    y: Tensor


class Comparison(NamedTuple):
    """One number, ours and a peer's."""

    measure: str
    network: str
    peer: str
    version: str
    ours: float
    theirs: float

    @property
    def digits(self) -> float:
        """Decimal digits in which the two agree, at most 16."""
        difference = abs(self.ours - self.theirs) / abs(self.theirs)
        return min(16.0, -math.log10(difference)) if difference > 0 else 16.0


def perceptron() -> Case:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    return Case("perceptron", module, torch.randn(30, 8, dtype=torch.float64), torch.arange(30) % 3)


def convolution() -> Case:
    torch.manual_seed(1)
    module = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1), nn.ReLU(), nn.Flatten(),
        nn.Linear(32, 3),
    ).double()  # fmt: skip
    return Case("convolutions", module, torch.randn(12, 2, 8, 8, dtype=torch.float64), torch.arange(12) % 3)


def measured(case: Case, name: str, **params: object) -> float:
    return measure_capacity(case.module, case.X, case.y, {"value": (name, params)}, random_state=0)["value"]


def jacobians(case: Case) -> Tensor:
    """All input-output Jacobians, of shape (n_samples, n_outputs, n_inputs)."""
    return vmap(jacrev(lambda x: case.module(x[None])[0]))(case.X).flatten(2).detach()


def dense_hessian(case: Case) -> Tensor:
    """The Hessian of the mean cross-entropy, of shape (n_parameters, n_parameters)."""
    named = dict(case.module.named_parameters())
    sizes = [p.numel() for p in named.values()]

    def loss(flat: Tensor) -> Tensor:
        parts = (v.view_as(p) for v, p in zip(flat.split(sizes), named.values(), strict=True))
        return F.cross_entropy(functional_call(case.module, dict(zip(named, parts, strict=True)), (case.X,)), case.y)

    return hessian(loss)(torch.cat([p.detach().flatten() for p in named.values()])).detach()


def torch_rows(case: Case) -> Iterator[tuple[str, float, float]]:
    """Jacobians and Hessians by `torch.func`."""
    J = jacobians(case)
    yield "jacobian_frobenius", measured(case, "jacobian_frobenius"), float(J.square().sum((1, 2)).mean())
    yield "jacobian_spectral", measured(case, "jacobian_spectral"), float(torch.linalg.svdvals(J)[:, 0].max())
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(case))
    yield "hessian_max_eigenvalue", measured(case, "hessian_max_eigenvalue"), float(eigenvalues[-1])
    yield "hessian_min_eigenvalue", measured(case, "hessian_min_eigenvalue"), float(eigenvalues[0])
    yield "hessian_trace", measured(case, "hessian_trace"), float(eigenvalues.sum())


def scipy_rows(case: Case) -> Iterator[tuple[str, float, float]]:
    """Spectral norms of all layers by ARPACK, on each layer and its adjoint as autograd gives it."""
    from scipy.sparse.linalg import LinearOperator, svds

    norms, inputs = [], case.X[:1]
    for layer in case.module:
        outputs = layer(inputs)
        if isinstance(layer, nn.Linear | nn.Conv2d):
            norms.append(
                float(svds(linear_operator(layer, inputs, LinearOperator), k=1, return_singular_vectors=False)[0])
            )
        inputs = outputs.detach()
    yield "spectral_norm", measured(case, "spectral_norm"), math.prod(norms)


def linear_operator(layer: nn.Module, inputs: Tensor, kind: Callable) -> object:
    """A layer without its bias, for scipy."""
    x = torch.zeros_like(inputs, requires_grad=True)
    offset = layer(x)

    def forward(v: np.ndarray) -> np.ndarray:
        return (layer(torch.as_tensor(v).reshape(x.shape)) - offset).detach().numpy().ravel()

    def adjoint(u: np.ndarray) -> np.ndarray:
        return torch.autograd.grad(layer(x), x, torch.as_tensor(u).reshape(offset.shape))[0].numpy().ravel()

    return kind((offset.numel(), x.numel()), matvec=forward, rmatvec=adjoint, dtype=np.float64)


def curvlinops_rows(case: Case) -> Iterator[tuple[str, float, float]]:
    """Eigenvalues of dense matrices, which curvlinops multiplies together column by column."""
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    parameters = list(case.module.parameters())
    identity = torch.eye(sum(p.numel() for p in parameters), dtype=torch.float64)

    def eigenvalues(kind: Callable) -> Tensor:
        matrix = kind(case.module, nn.CrossEntropyLoss(), parameters, [(case.X, case.y)]) @ identity
        return torch.linalg.eigvalsh((matrix + matrix.T) / 2)

    curvature, fisher = eigenvalues(HessianLinearOperator), eigenvalues(GGNLinearOperator)
    yield "hessian_max_eigenvalue", measured(case, "hessian_max_eigenvalue"), float(curvature[-1])
    yield "fisher_max_eigenvalue", measured(case, "fisher_max_eigenvalue", loss="cross_entropy"), float(fisher[-1])
    yield "fisher_trace", measured(case, "fisher_trace", loss="cross_entropy"), float(fisher.sum())


def backpack_rows(case: Case) -> Iterator[tuple[str, float, float]]:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    net, criterion = extend(case.module), extend(nn.CrossEntropyLoss(reduction="sum"))
    with backpack(BatchGrad()):
        criterion(net(case.X), case.y).backward()
    parts = [(p.grad_batch.flatten(1) * p.detach().flatten()).sum(1) for p in net.parameters()]
    yield "fisher_rao_norm", measured(case, "fisher_rao_norm"), math.sqrt(float(sum(parts).square().mean()))


def nngeometry_rows(case: Case) -> Iterator[tuple[str, float, float]]:
    """Trace and largest eigenvalue of the Gram matrix, which are those of the Fisher matrix for the squared error."""
    from nngeometry.gram import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(case.X, case.y), batch_size=len(case.X))
    gram = GramMatrix(case.module, loader, function=lambda *d: case.module(d[0])).data.flatten(2).flatten(0, 1)
    eigenvalues = torch.linalg.eigvalsh(gram) / len(case.X)
    yield "fisher_trace", measured(case, "fisher_trace"), float(eigenvalues.sum())
    yield "fisher_max_eigenvalue", measured(case, "fisher_max_eigenvalue"), float(eigenvalues[-1])


def weightwatcher_rows(case: Case) -> Iterator[tuple[str, float, float]]:
    """Its averages over layers are those of the rows by layer here."""
    import weightwatcher

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(120, 80), nn.ReLU(), nn.Linear(80, 60), nn.ReLU(), nn.Linear(60, 60))
    details = weightwatcher.WeightWatcher(model=net).analyze(min_evals=0)
    for name, column in {
        "stable_rank": "stable_rank",
        "power_law_alpha": "alpha",
        "log_alpha_norm": "log_alpha_norm",
    }.items():
        rows = capacity_report(net, measures=name, per_layer=True).query("layer != ''")
        yield name, float(rows["value"].mean()), float(details[column].mean())


#: Package -> its rows, and the networks it can handle.
PEERS: dict[str, tuple[Callable[[Case], Iterator[tuple[str, float, float]]], tuple[Callable[[], Case], ...]]] = {
    "torch": (torch_rows, (perceptron, convolution)),
    "scipy": (scipy_rows, (perceptron, convolution)),
    "curvlinops-for-pytorch": (curvlinops_rows, (perceptron, convolution)),
    "backpack-for-pytorch": (backpack_rows, (perceptron, convolution)),
    "nngeometry": (nngeometry_rows, (perceptron, convolution)),
    "weightwatcher": (weightwatcher_rows, (perceptron,)),
}


def comparisons(peer: str) -> list[Comparison]:
    """All rows of a peer; raises ImportError if it is not installed."""
    rows, cases = PEERS[peer]
    return [
        Comparison(measure, case.name, peer, version(peer).partition("+")[0], ours, theirs)
        for case in (build() for build in cases)
        for measure, ours, theirs in rows(case)
    ]


def main() -> None:
    """Compute what can be computed, print it and write the table."""
    digits: dict[tuple[str, str], dict[str, str]] = {}
    for peer in PEERS:
        try:
            compared = comparisons(peer)
        except ImportError:
            print(f"{peer} is not installed: its rows are left out")
            continue
        for row in compared:
            print(f"{row.measure:24s} {row.network:13s} {row.peer:24s} {row.ours:.12g} {row.theirs:.12g}")
            line = digits.setdefault((row.measure, f"{row.peer} {row.version}"), dict.fromkeys(COLUMNS[2:], ""))
            line[row.network] = f"{row.digits:.0f}"
    with TABLE.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [COLUMNS, *([*key, *line.values()] for key, line in digits.items())]
        )


if __name__ == "__main__":
    main()
