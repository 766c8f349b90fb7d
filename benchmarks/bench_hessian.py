"""Hessian-vector products and measures based on them, against curvlinops, a plain double backward and forward passes.

All use the same network, samples and vectors. Agreement of the products is checked in float64 before timing: in
float32, rounding may change the sign of a rectifier's input near 0, which changes a product by its contribution.
"""

from __future__ import annotations

from collections.abc import Callable

import curvlinops
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.bench_fisher import NETWORKS, samples
from benchmarks.timing import measure_row
from sklearn_capacity.derivatives.loss_hessian import LossHessian
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch
from sklearn_capacity.measures.hessian_estimates import loss_hessian

#: as many as an iteration for the largest eigenvalue needs, all with one gradient
PRODUCTS = 10
SAMPLES = 32


def ours(module: nn.Module, X: Tensor, y: Tensor, batch_size: int) -> LossHessian:
    """The operator behind the measures; a smaller batch size than the data computes the gradient every time."""
    network = Network(module, tuple(X.shape[1:]))
    return loss_hessian(network, Batch(network, X, y, loss="cross_entropy", batch_size=batch_size))


def plain_product(module: nn.Module, X: Tensor, y: Tensor) -> Callable[[Tensor], Tensor]:
    """What a user would write: loss, gradient and its derivative, from scratch for every vector."""
    parameters = list(module.parameters())
    sizes = [p.numel() for p in parameters]

    def product(vector: Tensor) -> Tensor:
        gradients = torch.autograd.grad(F.cross_entropy(module(X), y), parameters, create_graph=True)
        pieces = [v.view_as(p) for v, p in zip(vector.split(sizes), parameters, strict=True)]
        result = torch.autograd.grad(gradients, parameters, pieces, materialize_grads=True)
        return torch.cat([h.flatten() for h in result])

    return product


def peer(module: nn.Module, X: Tensor, y: Tensor) -> curvlinops.HessianLinearOperator:
    parameters = list(module.parameters())
    return curvlinops.HessianLinearOperator(
        module, nn.CrossEntropyLoss(), parameters, [(X, y)], check_deterministic=False
    )


def check(module: nn.Module, shape: tuple[int, ...], n: int) -> None:
    """Raise if any two products differ."""
    X, y = samples(shape, n)
    X, vector = X.double(), torch.randn(sum(p.numel() for p in module.parameters()), dtype=torch.float64)
    expected = plain_product(module, X, y)(vector)
    for product in (ours(module, X, y, n).product, ours(module, X, y, n // 2).product, peer(module, X, y).__matmul__):
        error = float((product(vector) - expected).norm() / expected.norm())
        assert error < 1e-10, f"relative difference {error:.1e}"


def run() -> list[dict]:
    """Rows for every network: ten products, in one chunk and in two, and the largest eigenvalue."""
    rows = []
    n = SAMPLES
    for name, (build, shape, _, _) in NETWORKS.items():
        check(build().eval().double(), shape, n)
        module, (X, y) = build().eval(), samples(shape, n)
        vectors = torch.randn(PRODUCTS, sum(p.numel() for p in module.parameters()))
        other, plain = peer(module, X, y), plain_product(module, X, y)

        def products(times: Callable[[Tensor], Tensor], vectors: Tensor = vectors) -> Callable[[], None]:
            return lambda: [times(vector) for vector in vectors] and None

        def kept(module: nn.Module = module, X: Tensor = X, y: Tensor = y, vectors: Tensor = vectors) -> None:
            operator = ours(module, X, y, len(X))
            for vector in vectors:
                operator.product(vector)

        def forwards(module: nn.Module = module, X: Tensor = X) -> None:
            with torch.no_grad():
                for _ in range(PRODUCTS):
                    module(X)

        halves = ours(module, X, y, n // 2).product
        title = f"{PRODUCTS} Hessian products, {name}"
        rows.append(measure_row(title, kept, products(other.__matmul__), target=1.0, note="curvlinops", repeats=3))
        rows.append(measure_row(title, kept, products(plain), note="double backward", repeats=3))
        rows.append(measure_row(title, kept, forwards, note="forward passes", repeats=3))
        title = f"{PRODUCTS} Hessian products in two chunks, {name}"
        rows.append(measure_row(title, products(halves), products(other.__matmul__), note="curvlinops", repeats=3))
        network = Network(module, shape)
        for measure, params, note in (
            ("hessian_max_eigenvalue", {}, "forward pass: the ratio is the cost in forwards"),
            ("hessian_trace", {"n_products": 30}, "forward pass: the ratio is the cost in forwards"),
        ):

            def value(network: Network = network, X: Tensor = X, y: Tensor = y, measure=measure, params=params) -> None:
                MEASURES[measure](network, Batch(network, X, y, loss="cross_entropy"), **params)

            def one(module: nn.Module = module, X: Tensor = X) -> None:
                with torch.no_grad():
                    module(X)

            rows.append(measure_row(f"{measure}, {name}", value, one, note=note, repeats=1))
    return rows
