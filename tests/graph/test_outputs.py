"""Modules that return probabilities, or their logarithms, are measured as the logits before."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_capacity import list_measures, measure_capacity
from sklearn_capacity.graph import Network

X = torch.randn(12, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Ended(nn.Module):
    """A perceptron without biases, for which every measure is defined, and functions of its logits."""

    def __init__(self, end=lambda z: z, n_outputs=3):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 6, bias=False), nn.Linear(6, n_outputs, bias=False)
        self.end = end
        self.double()

    def forward(self, x):
        return self.end(self.b(torch.relu(self.a(x))))


SOFTMAX = {
    "module": nn.Softmax(1),
    "function": lambda z: F.softmax(z, dim=-1),
    "keyword": lambda z: torch.softmax(input=z, dim=1),
    "method": lambda z: z.softmax(1),
}
LOG_SOFTMAX = {
    "module": nn.LogSoftmax(1),
    "function": lambda z: F.log_softmax(z, dim=-1),
    "method": lambda z: z.log_softmax(1),
}
Y = Ended()(X).argmax(1)  # separated, so that norms over margins are finite


def nll(module: nn.Module) -> NeuralNetClassifier:
    return NeuralNetClassifier(module, train_split=None, verbose=0).initialize()


@pytest.mark.parametrize("name", list_measures()["name"])
def test_every_measure_of_a_skorch_net_that_ends_in_a_softmax_is_that_of_its_logits(name):
    def value(model):
        try:
            return measure_capacity(model, X, Y, [name], loss="cross_entropy")
        except ValueError as error:
            return type(error)

    expected = value(Ended())
    assert value(nll(Ended(nn.Softmax(1)))) == expected
    assert value(Ended(nn.LogSoftmax(1))) == expected


@pytest.mark.parametrize("end", SOFTMAX)
def test_the_last_softmax_is_left_out(end):
    network = Network(Ended(SOFTMAX[end]), (4,), output="probabilities")
    assert torch.equal(network.forward(X), Ended()(X))
    assert [node.op for node in network.graph.nodes] == ["input", "linear", "activation", "linear"]


@pytest.mark.parametrize("end", LOG_SOFTMAX)
def test_the_last_log_softmax_is_left_out(end):
    network = Network(Ended(LOG_SOFTMAX[end]), (4,), output="log_probabilities")
    assert torch.equal(network.forward(X), Ended()(X))
    assert [node.op for node in network.graph.nodes] == ["input", "linear", "activation", "linear"]


def test_the_last_sigmoid_is_left_out():
    for end in (torch.sigmoid, nn.Sigmoid(), lambda z: z.sigmoid().squeeze(1)):
        network = Network(Ended(end, 1), (4,), output="one_probability")
        z = Ended(n_outputs=1)(X)
        torch.testing.assert_close(network.forward(X), torch.cat([-z / 2, z / 2], 1))
        assert "opaque" not in {node.op for node in network.graph.nodes}


def overwritten(z):
    p = z.softmax(1)
    return p.mul_(0.5)


@pytest.mark.parametrize(
    "end",
    [
        lambda z: z.softmax(0),
        lambda z: z.softmax(1).sqrt(),
        lambda z: z.softmax(1).clamp_min(1e-6),
        overwritten,
        lambda z: z.exp() / z.exp().sum(1, keepdim=True),
        lambda z: torch.cat([part.softmax(1) for part in z.split(5)]),
    ],
    ids=["over the samples", "followed by something", "bounded", "in place", "by hand", "in parts"],
)
def test_anything_else_is_taken_as_it_is(end):
    network = Network(Ended(end), (4,), output="probabilities")
    torch.testing.assert_close(network.forward(X), end(Ended()(X)).log())


def test_of_several_outputs_the_first_is_taken():
    network = Network(Ended(lambda z: (z.softmax(1), z)), (4,), output="probabilities")
    assert torch.equal(network.forward(X), Ended()(X))


def test_each_forward_pass_has_its_own_last_softmax():
    """An early exit: whether there is a second softmax depends on the data."""

    def end(z):
        p = z.softmax(1)
        return p if p.max() > 0.9 else (2 * z).softmax(1)

    network = Network(Ended(end), (4,), output="probabilities")
    for scale in (0.1, 100.0):
        expected = end(Ended()(scale * X))
        torch.testing.assert_close(network.forward(scale * X).softmax(1), expected)


def test_a_log_softmax_of_a_regression_is_part_of_its_function():
    """To add a number to all outputs is another regression."""
    module, targets = Ended(nn.LogSoftmax(1)), torch.zeros(12, 3)
    written_out = Ended(lambda z: z - z.logsumexp(1, keepdim=True))
    names = ["jacobian_frobenius", "fisher_rao_norm"]
    got = measure_capacity(module, X, targets, names, loss="squared")
    assert got == pytest.approx(measure_capacity(written_out, X, targets, names, loss="squared"), rel=1e-9)
    assert got != pytest.approx(measure_capacity(Ended(), X, targets, names, loss="squared"), rel=1e-3)


def test_a_softmax_inside_stays():
    module = Ended(lambda z: (3 * z.softmax(1)).softmax(1))
    network = Network(module, (4,), output="probabilities")
    torch.testing.assert_close(network.forward(X), 3 * Ended()(X).softmax(1))
    assert torch.equal(Network(Ended(lambda z: z.softmax(1)), (4,)).forward(X), Ended()(X).softmax(1))
