"""Values that are the same for every sample: their parameters are those of the module, each counted once."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reference_fisher
from networks import make
from sklearn_capacity import measure_capacity
from sklearn_capacity.graph import Network
from sklearn_capacity.graph.constants import keeps_parameters
from sklearn_capacity.graph.nodes import Weight
from zoo import Of


def weight(tensor, *sources):
    return Weight(tensor, bool(sources), frozenset(sources))


#: A network of samples (4, 3) with parameters that meet no sample before they are added or joined.
TOKENS = {
    "one for all samples": lambda m, x: torch.cat([m.a.expand(x.shape[0], 1, 3), x], 1),
    "repeated in a sample": lambda m, x: torch.cat([m.a.expand(x.shape[0], 2, 3), x], 1),
    "copied in a sample": lambda m, x: torch.cat([m.a.repeat(x.shape[0], 2, 1), x], 1),
    "of two parameters": lambda m, x: torch.cat([m.a.expand(x.shape[0], 1, 3) + m.b, x], 1),
    "twice one parameter": lambda m, x: torch.cat([m.a.expand(x.shape[0], 1, 3), m.a.expand(x.shape[0], 1, 3), x], 1),
    "joined": lambda m, x: torch.cat([torch.cat([m.a, m.b], 1).expand(x.shape[0], -1, -1), x], 1),
    "of a layer": lambda m, x: torch.cat([m.first(m.a.expand(x.shape[0], -1, -1)), x], 1),
    "of a table": lambda m, x: x + m.table(torch.arange(4).expand(x.shape[0], -1)),
    "one row of a table": lambda m, x: x + m.table(torch.zeros(x.shape[0], 4, dtype=torch.long)),
    "rows of a table in any order": lambda m, x: x + m.table(torch.tensor([2, 0, 0, 5]).expand(x.shape[0], -1)),
    "scaled": lambda m, x: x + 3 * m.a.expand(x.shape[0], -1, -1),
}


@pytest.mark.parametrize("name", TOKENS)
def test_the_fisher_information_is_that_of_the_modules_own_parameters(name):
    def forward(m, x):
        return m.last(m.first(TOKENS[name](m, x)).tanh().sum(1))

    layers = {"first": nn.Linear(3, 3), "last": nn.Linear(3, 2), "table": nn.Embedding(6, 3)}
    module, X, _ = make(lambda: Of(forward, **layers, a=(1, 1, 3), b=(1, 1, 3)), (4, 3), classes=2)
    expected = float(reference_fisher.matrix(module, X, "squared").trace())
    assert measure_capacity(module, X, measures="fisher_trace")["fisher_trace"] == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(Network(module, (4, 3)).forward(X), module(X))


def test_what_counts_a_number_twice_is_no_constant():
    a, b = torch.randn(1, 1, 3), torch.randn(1, 1, 3)
    assert keeps_parameters("expand", [weight(a, "a")], a.expand(1, 5, 3))
    assert keeps_parameters("cat", [weight(a, "a"), weight(b, "b")], torch.cat([a, b], 1))
    assert not keeps_parameters("cat", [weight(a, "a"), weight(a, "a")], torch.cat([a, a], 1))
    assert not keeps_parameters("repeat", [weight(a, "a")], a.repeat(1, 2, 1))
    assert not keeps_parameters("add", [weight(a, "a"), weight(b, "b")], a + b)
    assert not keeps_parameters("contiguous", [weight(a.expand(1, 2, 3), "a")], a.expand(1, 2, 3).contiguous())
    assert not keeps_parameters("linear", [weight(a, "a")], a)
    assert keeps_parameters("linear", [weight(a)], a)
