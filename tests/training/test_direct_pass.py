"""A direct pass computes what the module does, writes into nobody's tensors, and leaves hooks to the module."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklearn_capacity.architectures import MLP, make_network
from sklearn_capacity.training import direct_pass
from sklearn_capacity.training.direct_pass import affine_side_by_side

rng = np.random.default_rng(0)
X = torch.from_numpy(rng.normal(size=(300, 6)))
images = X.reshape(300, 1, 2, 3)


class Kept(nn.Linear):
    """Remembers its output, which nobody may change."""

    def forward(self, x):
        self.output = super().forward(x)
        self.copy = self.output.clone()
        return self.output


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class Merged(nn.Module):
    """Views the rows as one, which samples side by side in memory do not allow."""

    def forward(self, x):
        return x.view(-1).view(x.shape)


STACKS = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 3)),
    "no bias": lambda: nn.Sequential(nn.Linear(6, 3, bias=False), nn.ReLU()),
    "activations": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Tanh(), nn.Linear(5, 5), nn.Sigmoid()),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 5), nn.Identity()), nn.ReLU(), nn.Linear(5, 3)),
    "MLP": lambda: MLP(6, 30, hidden_layer_sizes=(5, 4), dropout=0.5),
    "MLP of few outputs": lambda: MLP(6, 2, hidden_layer_sizes=(40,), activation="leaky_relu"),
    "batch norm": lambda: MLP(6, 3, hidden_layer_sizes=(5,), batch_norm=True, activation="tanh"),
    "row norm": lambda: MLP(6, 3, hidden_layer_sizes=(5,), weight_norm=True),
    "flattening in between": lambda: nn.Sequential(nn.Linear(6, 4), nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.ReLU()),
    "activation first": lambda: nn.Sequential(nn.ReLU(), nn.Linear(6, 3)),
    "residual": lambda: nn.Sequential(Residual(nn.Linear(6, 6), nn.ReLU()), nn.ReLU()),
    "layer that keeps its output": lambda: nn.Sequential(Kept(6, 3), nn.ReLU()),
    "rows merged by a view": lambda: nn.Sequential(nn.Linear(6, 4), nn.Identity(), Merged(), nn.Linear(4, 3)),
    "rows merged after an activation": lambda: nn.Sequential(nn.Linear(6, 4), nn.ReLU(), Merged(), nn.Linear(4, 3)),
    "no bias between": lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.GELU(), nn.Dropout(), nn.Linear(5, 3)),
    "one layer": lambda: nn.Linear(6, 3),
    "nothing": nn.Sequential,
}


def compared(module, x):
    """The direct pass of a module in eval mode, after a comparison with the module's own."""
    module = module.double().eval()
    with torch.no_grad():
        expected, before = module(x.clone()), x.clone()
        steps = direct_pass(module, x.dim())
        torch.testing.assert_close(steps(x if steps.keeps_input else x.clone()), expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(x, before)
    return steps


@pytest.mark.parametrize("name", STACKS)
def test_it_computes_what_the_module_does(name):
    torch.manual_seed(0)
    module = STACKS[name]()
    unsure = ("row norm", "activation first", "residual", "layer that keeps its output", "nothing")
    assert compared(module, X).keeps_input == (name not in unsure)
    if name == "layer that keeps its output":
        assert torch.equal(module[0].output, module[0].copy)


@pytest.mark.parametrize("name", ["conv", "resnet20", "mlp"])
def test_networks_of_images(name):
    torch.manual_seed(0)
    shape = (1, 16, 16)
    compared(make_network(name, shape, 3), torch.from_numpy(rng.normal(size=(4, *shape))))


def test_images_are_flattened_first():
    torch.manual_seed(0)
    module = MLP(6, 3)
    assert len(compared(module, images).functions) == 1 + len(compared(module, X).functions)
    assert compared(nn.Sequential(nn.Flatten(2), nn.Flatten(), nn.Linear(6, 3)), images).keeps_input


def test_the_width_is_that_of_known_layers():
    assert direct_pass(MLP(6, 3, hidden_layer_sizes=(9, 4), batch_norm=True, activation="gelu")).width == 9
    assert direct_pass(nn.Sequential(nn.Linear(6, 3), Residual())).width == 0
    assert direct_pass(nn.Sequential(nn.Conv2d(1, 9, 1), nn.Flatten(), nn.Linear(54, 3))).width == 0


def test_dropout_in_training_mode_stays():
    module = MLP(6, 3, dropout=0.9).double()
    with torch.no_grad():
        torch.manual_seed(0)
        expected = module(X)
        torch.manual_seed(0)
        torch.testing.assert_close(direct_pass(module)(X), expected)


FUNCTIONS = {"linear": (F, nn.ReLU), "relu": (F, nn.ReLU), "tanh": (torch, nn.Tanh), "sigmoid": (torch, nn.Sigmoid)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_of_torch_that_somebody_has_replaced_are_called(name, monkeypatch):
    home, activation = FUNCTIONS[name]
    original = getattr(home, name)
    module = nn.Sequential(nn.Linear(6, 5), activation(), nn.Linear(5, 3))
    unchanged = module.double()(X)
    monkeypatch.setattr(home, name, lambda *args, **options: 2 * original(*args, **options))
    compared(module, X)
    assert not torch.equal(module(X), unchanged)


def test_a_class_of_weights_that_defines_its_own_linear_map():
    class Doubled(nn.Parameter):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            result = super().__torch_function__(func, types, args, kwargs or {})
            return 2 * result.as_subclass(torch.Tensor) if func is F.linear else result

    module = nn.Linear(6, 3).double()
    module.weight = Doubled(module.weight.detach())
    compared(module, X)


def doubled(module, args, output):
    module.seen = output
    return 2 * output


@pytest.mark.parametrize("place", ["layer", "activation", "whole", "process"])
def test_hooks_are_called(place):
    torch.manual_seed(0)
    module = MLP(6, 3).double()
    target = {"layer": module[1], "activation": module[2], "whole": module}.get(place)
    register = nn.modules.module.register_module_forward_hook if target is None else target.register_forward_hook
    handle = register(doubled)
    try:
        compared(module, X)
    finally:
        handle.remove()
    if place == "layer":
        assert module[1].seen.min() < 0  # the rectifier behind it has not worked in place


@pytest.mark.parametrize("kind", [nn.Linear, nn.ReLU, nn.Flatten, nn.Sequential])
def test_a_forward_that_is_replaced_is_called(kind, monkeypatch):
    torch.manual_seed(0)
    module, forward = MLP(6, 3), kind.forward
    monkeypatch.setattr(kind, "forward", lambda *args: 2 * forward(*args))
    compared(module, images)
    monkeypatch.undo()
    module[1].forward = lambda x: torch.zeros(len(x), 100, dtype=x.dtype)
    compared(module, X)


@pytest.mark.parametrize("n", [1, 255, 256, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("has_bias", [True, False])
def test_products_of_samples_side_by_side(n, dtype, has_bias):
    x, weight, bias = (torch.from_numpy(rng.normal(size=shape)) for shape in ((n, 30), (5, 30), 5))
    result = affine_side_by_side(x.to(dtype), weight.to(dtype), bias.to(dtype) if has_bias else None)
    expected = np.einsum("ni,oi->no", x, weight) + (bias.numpy() if has_bias else 0)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 if dtype == torch.float32 else 1e-12)
