"""The table of element-wise functions against autograd."""

import numpy as np
import pytest
import torch

from sklearn_capacity.graph import ACTIVATIONS

#: Arguments besides the defaults.
ARGUMENTS = {
    "relu": [()],
    "leaky_relu": [(), (0.3,), (-0.5,)],
    "tanh": [()],
    "sigmoid": [()],
    "silu": [()],
    "softplus": [(), (2.5, 100.0), (1.0, 1.0), (2.0, 0.0)],
    "gelu": [(), ("tanh",)],
    "elu": [(), (0.7, 1.3, 0.4), (1.6732632423543772, 1.0507009873554805, 1.0)],
}
CASES = [(kind, arguments) for kind, choices in ARGUMENTS.items() for arguments in choices]


def _gradient(function, z):
    z = z.detach().requires_grad_(True)
    y = function(z)
    return torch.autograd.grad(y.sum(), z)[0] if y.requires_grad else torch.zeros_like(z)


def _points():
    ends = torch.tensor([1e-9, -1e-9, 30.0, -30.0], dtype=torch.float64)
    return torch.cat([torch.linspace(-9, 9, 73, dtype=torch.float64), ends])


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_derivatives_are_those_of_autograd(kind, arguments):
    row, z = ACTIVATIONS[kind], _points()
    derivative = row.derivative(z, *arguments)
    torch.testing.assert_close(derivative, _gradient(lambda z: row.value(z, *arguments), z), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(row.slope(z, row.value(z, *arguments), *arguments), derivative, rtol=1e-9, atol=1e-12)
    if not row.piecewise_linear:
        by_autograd = _gradient(lambda z: row.derivative(z, *arguments), z)
        torch.testing.assert_close(row.curvature(z, *arguments), by_autograd, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", sorted(name for name, row in ACTIVATIONS.items() if row.second_derivative))
def test_second_derivatives_in_closed_form_are_differences_of_the_first(kind):
    row, h = ACTIVATIONS[kind], 1e-5
    for arguments in ARGUMENTS[kind]:
        z = _points()[:73] + 0.1  # no kink among them
        differences = (row.derivative(z + h, *arguments) - row.derivative(z - h, *arguments)) / (2 * h)
        torch.testing.assert_close(row.curvature(z, *arguments), differences, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("kind", "arguments"), CASES)
def test_derivatives_are_finite_in_single_precision(kind, arguments):
    row = ACTIVATIONS[kind]
    z = torch.tensor([0.0, 20.0, 90.0, 200.0, 1e10, 1e20, 1e30])
    z = torch.cat([-z, z])
    for result in (row.derivative(z, *arguments), row.slope(z, row.value(z, *arguments), *arguments)):
        assert bool(result.isfinite().all())
    if not row.piecewise_linear:
        assert bool(row.curvature(z, *arguments).isfinite().all())


def test_sinc_has_its_derivatives_near_zero():
    row = ACTIVATIONS["sinc"]
    z = torch.tensor([0.0, 1e-30, -1e-8, 1e-4, 0.099, -0.1, 0.101], dtype=torch.float64)
    nodes, weights = (torch.from_numpy(part) for part in np.polynomial.legendre.leggauss(30))
    t = (nodes + 1) / 2 * np.pi  # sinc(z) is the mean of cos(t z) over t from 0 to pi
    angles = z[:, None] * t
    slope = (-t * angles.sin()) @ weights / 2
    curvature = (-(t**2) * angles.cos()) @ weights / 2
    torch.testing.assert_close(row.derivative(z), slope, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(row.curvature(z), curvature, rtol=1e-11, atol=1e-14)
