"""Kronecker factors: steps against dense Fisher matrices and curvlinops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_capacity.losses import CRITERIA
from sklearn_capacity.training import KFAC
from sklearn_capacity.training.kronecker import _residuals

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 6)), np.arange(40) % 3


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_kfac_step_of_a_linear_map_is_that_of_the_dense_kronecker_product(loss):
    """One layer: A is the second moment of (x, 1), B the mean Hessian in the outputs, both written out here."""
    torch.manual_seed(0)
    inputs = torch.randn(12, 4, dtype=torch.float64)
    target = torch.arange(12) % 3 if loss == "cross_entropy" else torch.randn(12, 3, dtype=torch.float64)
    layer, criterion = nn.Linear(4, 3).double(), CRITERIA[loss]()
    optimizer = KFAC(layer.parameters(), lr=0.3, damping=0.05, max_kl=None)
    optimizer.attach(layer, criterion)
    start = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().clone()
    outputs = layer(inputs)
    criterion(outputs, target).backward()
    gradient = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1)
    extended = torch.cat([inputs, torch.ones(12, 1, dtype=torch.float64)], dim=1)
    A = extended.T @ extended / 12
    if loss == "squared":
        B = 2 / 3 * torch.eye(3, dtype=torch.float64)  # the loss is the mean over the three outputs
    else:
        p = outputs.detach().softmax(1)
        B = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)
    F = torch.kron(B, A) + 0.05 * torch.eye(15, dtype=torch.float64)
    optimizer.observe(inputs, target)
    optimizer.step()
    moved = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
    torch.testing.assert_close(moved, start - 0.3 * torch.linalg.solve(F, gradient.flatten()).reshape(3, 5))


class PerPosition(nn.Module):
    """A linear map of each of four positions, then one of all."""

    def __init__(self):
        super().__init__()
        self.each, self.all = nn.Linear(2, 3), nn.Linear(12, 3)

    def forward(self, input):
        return self.all(self.each(input.unflatten(1, (4, 2))).tanh().flatten(1))


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    conv = nn.Conv2d(2, 4, (3, 2), stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 2, padding="same", dilation=2)
    frozen = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    for parameter in frozen[0].weight, frozen[2].bias:
        parameter.requires_grad_(False)
    return {
        "wide": (nn.Sequential(nn.Linear(40, 20), nn.ReLU(inplace=True), nn.Linear(20, 3)), (40,)),
        "convolutions": (nn.Sequential(*conv, nn.Flatten(), nn.Linear(3 * 6, 3, bias=False)), (2, 4, 5)),
        "positions": (PerPosition(), (8,)),
        "frozen": (frozen, (8,)),
    }


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(), nn.MSELoss(), nn.MSELoss(reduction="sum")],
    ids=["cross_entropy", "squared", "squared_sum"],
)
@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
@pytest.mark.parametrize("name", networks())
def test_kfac_steps_are_those_of_curvlinops(name, fisher, loss):
    """Its factors are accumulated differently, as full matrices, and inverted in their full eigenbases."""
    curvlinops = pytest.importorskip("curvlinops", reason="the reference of K-FAC's steps")
    torch.manual_seed(0)
    network, shape = networks()[name]
    network.double()
    inputs = torch.randn(7, *shape, dtype=torch.float64)
    target = torch.arange(7) % 3 if isinstance(loss, nn.CrossEntropyLoss) else torch.randn(7, 3, dtype=torch.float64)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    loss(network(inputs), target).backward()
    fisher_matrix = curvlinops.KFACLinearOperator(
        network, loss, trained, [(inputs, target)], fisher_type=fisher, separate_weight_and_bias=False
    )
    inverse = curvlinops.KFACInverseLinearOperator(fisher_matrix, damping=0.05, use_exact_damping=True)
    wanted = [p - 0.3 * step for p, step in zip(trained, inverse @ [p.grad for p in trained], strict=True)]
    optimizer = KFAC(trained, lr=0.3, damping=0.05, max_kl=None, fisher=fisher)
    optimizer.attach(network, loss)
    optimizer.observe(inputs, target)
    optimizer.step()
    for parameter, value in zip(trained, wanted, strict=True):
        torch.testing.assert_close(parameter, value)


def test_drawn_labels_have_the_exact_fisher_matrix_as_their_mean():
    """For few outputs and many samples of one input: the standard error of a second moment."""
    torch.manual_seed(0)
    z = torch.randn(1, 3, dtype=torch.float64).expand(20_000, 3)
    target = torch.zeros(20_000, 3, dtype=torch.float64)
    for loss in nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss():
        exact = _residuals(loss, z[:1], target[:1], "type-2", 0)  # (3, 1, 3)
        drawn = _residuals(loss, z, target, "mc", 0)[0]  # (20000, 3)
        products = drawn[:, :, None] * drawn[:, None, :]
        error = products.std(0) / len(z) ** 0.5 + 1e-12
        wanted = torch.einsum("kni,knj->ij", exact, exact)
        assert ((products.mean(0) - wanted) / error).abs().max() < 4
