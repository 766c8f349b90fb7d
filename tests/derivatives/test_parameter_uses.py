"""Whether a parameter is a weight depends on its use, not on its shape."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sklearn_capacity import measure_capacity
from sklearn_capacity.derivatives.parameter_uses import which_are_weights
from sklearn_capacity.derivatives.parameter_vector import parameter_vector
from sklearn_capacity.graph import Network


class Net(nn.Module):
    """Parameters by name, and a forward pass given as a function; what depends on the data has no graph."""

    def __init__(self, forward, data_dependent, **shapes):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape, generator=generator).double()))
        self.function, self.data_dependent = forward, data_dependent

    def forward(self, x):
        if self.data_dependent and bool((x > 1e9).any()):
            return x
        return self.function(self, x)


def image(net, x):
    x = F.conv2d(x, net.kernel, net.bias) * net.scale + net.shift
    return x.relu().flatten(1) @ net.matrix


def tokens(net, x):
    x = torch.cat([net.first_token.expand(len(x), -1, -1), x @ net.matrix.T], dim=1) + net.positions
    x = F.layer_norm(x, (4, 4), net.scale_of_norm, net.shift)
    return torch.einsum("ntd,dc->nc", x.tanh(), net.head) * net.scale


def vectors(net, x):
    x = torch.addmm(net.shift, x, net.matrix.T) * net.gates[0]
    return torch.stack([torch.mv(x, net.vector), x @ (net.mask * net.vector), (x * net.scale).sum(1)], dim=1)


CASES = {
    "image": (image, (2, 4, 4), {
        "kernel": (3, 2, 3, 3), "bias": (3,), "scale": (3, 1, 1), "shift": (1, 3, 2, 2), "matrix": (12, 3),
    }, {"kernel", "matrix"}),
    "tokens": (tokens, (3, 2), {
        "first_token": (1, 1, 4), "matrix": (4, 2), "positions": (4, 4), "scale_of_norm": (4, 4), "shift": (4, 4),
        "head": (4, 3), "scale": (1, 3),
    }, {"matrix", "head"}),
    "vectors": (vectors, (4,), {
        "shift": (1, 5), "matrix": (5, 4), "gates": (2, 5), "vector": (5,), "mask": (5,), "scale": (1, 5),
    }, {"matrix", "vector", "mask"}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_weights_are_what_multiplies_by_a_matrix(name):
    function, shape, shapes, weights = CASES[name]
    X = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1)).double()
    net = Net(function, True, **shapes)
    result = which_are_weights(parameter_vector(Network(net, shape)), X)
    assert {key for key, counts in zip(shapes, result, strict=True) if counts} == weights


@pytest.mark.parametrize("data_dependent", [True, False])
@pytest.mark.parametrize("name", ["image", "tokens"])
def test_the_norm_of_the_weights_is_the_same_with_and_without_a_graph(name, data_dependent):
    function, shape, shapes, weights = CASES[name]
    X = torch.randn(5, *shape, generator=torch.Generator().manual_seed(1)).double()
    y = torch.arange(5) % 3
    net = Net(function, data_dependent, **shapes)
    along = {key: parameter.detach() for key, parameter in net.named_parameters() if key in weights}
    f, u = torch.func.jvp(lambda point: torch.func.functional_call(net, point, (X,)), (along,), (along,))
    expected = ((f.softmax(1) - F.one_hot(y, 3)) * u).sum(1).square().mean().sqrt()
    got = measure_capacity(net, X, y, {"norm": ("fisher_rao_norm", {"parameters": "weights"})})["norm"]
    assert got == pytest.approx(expected.item(), rel=1e-10)


def test_recurrent_layers_have_weights_and_biases():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell, self.head = nn.LSTM(2, 3, batch_first=True), nn.Linear(3, 2)

        def forward(self, x):
            return self.head(self.cell(x)[0][:, -1])

    net = Recurrent().double()
    network = Network(net, (4, 2))
    vector = parameter_vector(network)
    result = which_are_weights(vector, torch.ones(2, 4, 2, dtype=torch.float64))
    assert result == [tensor.dim() > 1 for tensor in vector.tensors] and any(result)
