"""Hessian-vector products against dense second derivatives, and the two identities of the papers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call, hessian, jacrev

from networks import CHAINS, NETWORKS, Attention, make
from reference_hessian import by_differences, dense_hessian, flat_parameters
from sklearn_capacity.derivatives.loss_hessian import LossHessian
from sklearn_capacity.derivatives.parameter_vector import raw_parameter_vector
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import Batch
from sklearn_capacity.measures.hessian_estimates import loss_hessian


class Gated(nn.Module):
    """A product of two branches, whose second derivative is not that of a chain."""

    def __init__(self) -> None:
        super().__init__()
        self.value, self.gate, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(self.value(x) * self.gate(x).sigmoid())


def recurrent():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    return make(Recurrent, (4, 3))


CASES = {
    **NETWORKS,
    "gated": lambda: make(Gated, (4,)),
    "attention": lambda: make(Attention, (3, 4)),
    "recurrent": recurrent,
    "gelu": lambda: make(lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 3)), (4,)),
}


def derivatives(module, X, y, loss="cross_entropy", **options):
    network = Network(module, tuple(X.shape[1:]), output=options.pop("output", "logits"))
    return loss_hessian(network, Batch(network, X, y, loss=loss, **options))


@pytest.mark.parametrize("case", CASES)
def test_gradient_and_products_equal_dense_derivatives(case):
    module, X, y = CASES[case]()
    output = "one_logit" if case == "binary" else "logits"
    if case == "one_output":
        y = torch.zeros_like(y)  # the only class
    got = derivatives(module, X, y, output=output)
    expected = dense_hessian(module, X, y, one_logit=output == "one_logit")
    matrix = got.products(torch.eye(got.size, dtype=torch.float64))
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if by_differences(module) else {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(matrix, expected, **tolerance)
    torch.testing.assert_close(matrix, matrix.T, rtol=1e-9, atol=1e-11)
    names, theta = flat_parameters(module)
    logits = functional_call(module, theta, X)
    if output == "one_logit":
        logits = torch.cat([-logits / 2, logits / 2], 1)
    result = torch.autograd.grad(F.cross_entropy(logits, y), [theta[n] for n in names])
    torch.testing.assert_close(got.gradient(), torch.cat([g.flatten() for g in result]), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("loss", ["squared", "absolute"])
@pytest.mark.parametrize("case", ["mlp_tanh", "conv_batch_norm", "residual"])
def test_losses_of_regression(case, loss):
    module, X, _ = NETWORKS[case]()
    y = torch.randn(len(X), 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    got = derivatives(module, X, y, loss)
    expected = dense_hessian(module, X, y, loss)
    torch.testing.assert_close(got.products(torch.eye(got.size)), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 20])
def test_chunks_change_nothing(size):
    module, X, y = NETWORKS["residual"]()
    directions = torch.randn(2, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole, parts = derivatives(module, X, y), derivatives(module, X, y, batch_size=size)
    directions = directions[:, : whole.size].T
    for _ in range(2):  # the second time from the graph that is kept
        torch.testing.assert_close(parts.products(directions), whole.products(directions), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(parts.product(directions[:, 0]), whole.product(directions[:, 0]), rtol=1e-12, atol=1e-14)


def test_a_chunk_that_runs_out_of_memory_is_halved_and_counts_once():
    module, X, y = NETWORKS["mlp"]()
    expected = derivatives(module, X, y).products(torch.eye(79)[:, :3])
    network = Network(module, tuple(X.shape[1:]))
    vector, batch, sizes = raw_parameter_vector(network, "A test"), Batch(network, X, y, loss="cross_entropy"), []

    def loss(points, X, y):
        sizes.append(len(X))
        if len(X) > 2:
            raise torch.OutOfMemoryError("none left")
        return F.cross_entropy(vector.bind(points)(X), y, reduction="sum")

    got = LossHessian(loss, vector.tensors, lambda function: batch.map(function, y), len(X))
    torch.testing.assert_close(got.products(torch.eye(79)[:, :3]), expected, rtol=1e-12, atol=1e-14)
    assert sizes == [7, 3, 1, 1, 1, 1, 1, 1, 1]


def test_a_loss_that_no_parameter_moves_has_no_derivatives():
    module = nn.Sequential(nn.Linear(2, 3), nn.Threshold(1e9, 0.0)).double()
    module.register_parameter("unread", nn.Parameter(torch.ones(2, dtype=torch.float64)))
    got = derivatives(module, torch.randn(5, 2, dtype=torch.float64), torch.zeros(5, dtype=torch.long))
    assert got.size == 11
    assert not got.gradient().any() and not got.product(torch.ones(11)).any()


def test_linear_models_without_curvature():
    """Under the absolute loss the gradient is a step function of the weights: its derivative is 0."""
    module = nn.Linear(2, 1).double()
    got = derivatives(module, torch.randn(5, 2, dtype=torch.float64), torch.ones(5, 1, dtype=torch.float64), "absolute")
    assert got.gradient().any() and not got.product(torch.ones(3)).any()


@pytest.mark.parametrize("case", ["mlp_tanh", "mlp", "conv_no_bias"])
def test_hessian_is_the_fisher_matrix_less_the_residual_term(case):
    """[MF] eq. 4, for E = 1/(2T) sum ||y - f||^2, of which our squared loss is 2 / C times."""
    module, X, _ = NETWORKS[case]()
    n, n_outputs = len(X), 3
    y = torch.randn(n, n_outputs, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    names, theta = flat_parameters(module)

    def outputs(theta, x):
        return functional_call(module, theta, x[None])[0]

    fisher, residual = 0.0, 0.0
    for x, target in zip(X, y, strict=True):
        rows = jacrev(outputs)(theta, x)
        J = torch.cat([rows[name].reshape(n_outputs, -1) for name in names], 1)
        blocks = hessian(outputs)(theta, x)
        sizes = [theta[name].numel() for name in names]
        second = [[blocks[a][b].reshape(n_outputs, p, q) for b, q in zip(names, sizes, strict=True)]
                  for a, p in zip(names, sizes, strict=True)]  # fmt: skip
        curvature = torch.cat([torch.cat(row, 2) for row in second], 1)
        fisher = fisher + J.T @ J / n
        residual = residual + torch.einsum("k,kpq->pq", target - outputs(theta, x), curvature) / n
    got = derivatives(module, X, y, "squared").products(torch.eye(sum(sizes)))
    torch.testing.assert_close(got * n_outputs / 2, (fisher - residual).detach(), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("case", CHAINS)
def test_second_derivative_along_the_weights_of_a_homogeneous_chain(case):
    """theta^T H theta = L (L + 1) f for a chain of L + 1 bias-free layers ([FR] remark 2.2), and grad f . theta =
    (L + 1) f (lemma 2.1)."""
    module, X, _ = NETWORKS[case]()
    network = Network(module, tuple(X.shape[1:]))
    vector, batch = raw_parameter_vector(network, "A test"), Batch(network, X)
    theta = torch.cat([p.detach().flatten() for p in vector.tensors])
    total = LossHessian(lambda points, X: vector.bind(points)(X).sum(), vector.tensors, batch.map, 1)
    n_layers, f = len(vector.tensors), float(module(X).sum().detach())
    assert float(total.gradient() @ theta) == pytest.approx(n_layers * f, rel=1e-10)
    assert float(theta @ total.product(theta)) == pytest.approx((n_layers - 1) * n_layers * f, rel=1e-9)
