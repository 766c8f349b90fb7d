"""Networks that leave their dtype on the way: single precision in a double network, integers and complex numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from skorch import NeuralNetClassifier
from torch import nn

import reference_fisher as reference
from networks import make
from sklearn_capacity import NotDefinedError, fisher_spectrum, measure_capacity
from sklearn_capacity.derivatives.parameter_tangent import parameter_tangent
from sklearn_capacity.graph import Network, evaluate


class Net(nn.Module):
    """Linear-ReLU-linear with a change of its input and of its logits; `exact` omits the single precision."""

    def __init__(self, before, after, exact):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        self.register_buffer("counts", torch.tensor([1, 2, 3, 7]))
        self.before, self.after, self.exact = before, after, exact

    def forward(self, x):
        return self.after(self, self.last(F.relu(self.first(self.before(self, x)))))


def same(net, x):
    return x


def single(net, x):
    return x if net.exact else x.float()


def table(net, x):
    steps = torch.arange(4, dtype=torch.float64 if net.exact else torch.float32)
    return x * torch.exp(steps / 10)


def linspace(net, x):
    return x + torch.linspace(0, 1, 4, dtype=torch.float64 if net.exact else torch.float32)


def counts(net, x):
    return x / (net.counts.double() if net.exact else net.counts)


def both_ways(net, x):
    return x if net.exact else x.float().type_as(x)


def as_type(net, x):
    return x if net.exact else x.type(torch.FloatTensor).to(x)


CASES = {
    "logits": (same, single),
    "input": (single, same),
    "table": (table, same),
    "linspace": (linspace, same),
    "integer buffer": (counts, same),
    "there and back": (both_ways, both_ways),
    "type": (as_type, same),
}
NAMES = [
    "frobenius_norm",
    "l2_path_norm",
    "lipschitz_l2",
    "margin",
    "jacobian_spectral",
    "fisher_rao_norm",
    "fisher_trace",
]


@pytest.mark.parametrize("case", CASES)
def test_small_networks_that_use_single_precision_are_measured(case):
    module, X, y = make(lambda: Net(*CASES[case], exact=False), (4,))
    other, _, _ = make(lambda: Net(*CASES[case], exact=True), (4,))
    got = measure_capacity(module.float(), X.float(), y, NAMES)
    assert got == pytest.approx(measure_capacity(other, X, y, NAMES), rel=1e-5)


def test_a_graph_that_is_another_network_is_noticed_in_single_precision_too():
    class Noisy(Net):
        def forward(self, x):
            self.calls = getattr(self, "calls", 0) + 1
            return super().forward(x) * (1 + 0.1 * self.calls)

    module, X, y = make(lambda: Noisy(same, single, exact=False), (4,))
    with pytest.raises(NotDefinedError, match="relative error|two passes over the same samples differ"):
        measure_capacity(module.float(), X.float(), y, "frobenius_norm")


def test_comparisons_become_numbers():
    class Counts(Net):
        def forward(self, x):
            return super().forward(x) + (x > 0).double().mean(1, keepdim=True)

    module, X, _ = make(lambda: Counts(same, same, exact=True), (4,))
    torch.testing.assert_close(evaluate(Network(module, (4,)).graph, X), module(X))


class Fourier(nn.Module):
    """Complex numbers between real layers."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        z = torch.fft.rfft(self.first(x))
        z = z * torch.view_as_complex(torch.view_as_real(z).tanh().contiguous()).conj() * (1 + 2j)
        return self.last(
            torch.fft.irfft(z, n=6) + torch.view_as_real(z).flatten(1)[:, :6] * z.abs().sum(1, keepdim=True)
        )


def test_complex_numbers_inside_are_differentiated():
    module, X, y = make(Fourier, (4,))
    network = Network(module, (4,))
    f, u = parameter_tangent(network.graph, X)
    J = reference.jacobian(module, X)
    theta = torch.cat([p.detach().flatten() for p in module.parameters()])
    torch.testing.assert_close(f.detach(), module(X).detach())
    torch.testing.assert_close(u.detach(), J @ theta, rtol=1e-9, atol=1e-11)
    expected = torch.linalg.eigvalsh(reference.matrix(module, X, "squared")).flip(0)[:21].clamp_min(0)
    assert fisher_spectrum(module, X) == pytest.approx(expected.numpy(), rel=1e-8, abs=1e-10)
    by_hand = max(float(torch.linalg.matrix_norm(j, 2)) for j in _input_jacobians(module, X))
    assert measure_capacity(module, X, y, "jacobian_spectral")["jacobian_spectral"] == pytest.approx(by_hand, rel=1e-6)


def _input_jacobians(module, X):
    return [torch.autograd.functional.jacobian(lambda v: module(v[None])[0], x) for x in X]


def test_hardsigmoid_has_two_derivatives():
    """Beside an operator with parameters, whose tangents are taken by two reverse sweeps."""
    module, X, _ = make(
        lambda: nn.Sequential(nn.Linear(4, 6), nn.Hardsigmoid(), nn.LayerNorm(6), nn.Linear(6, 3)), (4,)
    )
    theta = torch.cat([p.detach().flatten() for p in module.parameters()])
    u = reference.jacobian(module, X) @ theta
    targets = torch.zeros(len(X), 3)
    value = measure_capacity(module, X, targets, {"m": ("fisher_rao_norm", {"distribution": "model"})})["m"]
    assert value == pytest.approx(float(u.square().sum(1).mean().sqrt()), rel=1e-9)


def test_multilabel_nets_are_refused_as_such():
    X, y = np.random.default_rng(0).normal(size=(9, 4)).astype("float32"), np.eye(3, dtype="float32")[np.arange(9) % 3]
    options = {"criterion": nn.BCEWithLogitsLoss, "max_epochs": 1, "verbose": 0, "train_split": None}
    net = NeuralNetClassifier(nn.Linear(4, 3), **options).fit(X, y)
    for names in ("margin", "spectral_norm"):
        with pytest.raises(NotDefinedError, match="3 outputs per sample under a binary criterion.*multilabel"):
            measure_capacity(net, X, measures=names)
