"""Whatever the code of one living module reads may change between two steps."""

from __future__ import annotations

import functools
import gc
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from reference_penalties import chained
from sklearn_capacity.penalties import forward_pass, frobenius_penalty, module_graph
from sklearn_capacity.penalties.surroundings import Surroundings

FACTOR = 1.0
TABLE = {"factors": [1.0, 1.0]}
WEIGHT = torch.ones(3, dtype=torch.float64)
OBJECT = types.SimpleNamespace(inner=types.SimpleNamespace(factor=1.0))
LOG: list[int] = []


class Constants:
    factor = 1.0


def scaled(x):
    return FACTOR * x


def mean_square(module, X):
    """The penalty by the definition, from the module as it is now."""
    with torch.no_grad():
        jacobian = torch.autograd.functional.jacobian(lambda x: module(x).sum(0), X)
    return jacobian.square().sum() / len(X)


def network(forward, **attributes):
    """A module of a new class."""

    class Net(nn.Module):
        factor = 1.0

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(5, 3).double()
            for name, value in attributes.items():
                setattr(self, name, value)

        def block(self, x):
            return self.linear(x)

        @property
        def slope(self):
            return type(self).factor

    Net.forward = forward
    torch.manual_seed(0)
    return Net()


def plain(self, x):
    return self.block(x)


def twice(self, x):
    return 2 * self.block(x)


def a_method(patch):
    module = network(plain)
    return module, lambda: setattr(type(module), "forward", twice)


def a_method_of_one_object(patch):
    module = network(plain)
    return module, lambda: setattr(module, "forward", types.MethodType(twice, module))


def another_method(patch):
    module = network(plain)
    return module, lambda: setattr(type(module), "block", lambda self, x: 3 * self.linear(x))


def code(patch):
    def forward(self, x):
        return self.block(x)

    return network(forward), lambda: setattr(forward, "__code__", twice.__code__)


def defaults(patch):
    def forward(self, x, factor=1.0):
        return factor * self.linear(x)

    return network(forward), lambda: setattr(forward, "__defaults__", (2.0,))


def a_closure(patch):
    factor = 1.0

    def change():
        nonlocal factor
        factor = 2.0

    return network(lambda self, x: factor * self.linear(x)), change


def a_global(patch):
    return network(lambda self, x: FACTOR * self.linear(x)), lambda: patch.setitem(globals(), "FACTOR", 2.0)


def a_global_of_a_helper(patch):
    return network(lambda self, x: scaled(self.linear(x))), lambda: patch.setitem(globals(), "FACTOR", 2.0)


def a_global_of_an_attribute(patch):
    module = network(lambda self, x: self.acts[0](self.linear(x)), acts=[functools.partial(scaled)])
    return module, lambda: patch.setitem(globals(), "FACTOR", 2.0)


def a_helper(patch):
    module = network(lambda self, x: scaled(self.linear(x)))
    return module, lambda: patch.setitem(globals(), "scaled", lambda x: 3 * x)


def an_entry_of_a_table(patch):
    return network(lambda self, x: TABLE["factors"][1] * self.linear(x)), lambda: patch.setitem(
        TABLE, "factors", [1.0, 2.0]
    )


def a_tensor_in_place(patch):
    return network(lambda self, x: WEIGHT * self.linear(x)), lambda: WEIGHT.mul_(1.5)


def an_array_in_place(patch):
    array = np.ones(3)

    def change():
        array[:] = 2

    return network(lambda self, x: float(array[1]) * self.linear(x)), change


def a_global_class(patch):
    return network(lambda self, x: Constants.factor * self.linear(x)), lambda: patch.setattr(Constants, "factor", 2.0)


def a_global_object(patch):
    module = network(lambda self, x: OBJECT.inner.factor * self.linear(x))
    return module, lambda: patch.setattr(OBJECT.inner, "factor", 2.0)


def an_object_of_the_module(patch):
    settings = types.SimpleNamespace(factor=1.0)
    module = network(lambda self, x: self.settings.factor * self.linear(x), settings=settings)
    return module, lambda: setattr(settings, "factor", 2.0)


def an_attribute_of_the_class(patch):
    module = network(lambda self, x: self.slope * self.linear(x))
    return module, lambda: setattr(type(module), "factor", 2.0)


def a_layer_outside_of_the_submodules(patch):
    layer = nn.Linear(3, 3).double()

    def change():
        with torch.no_grad():
            layer.weight.mul_(2)

    return network(lambda self, x: self.layers[0](self.linear(x)), layers=[layer]), change


def a_hook(patch):
    module = network(plain)
    return module, lambda: module.linear.register_forward_hook(lambda layer, inputs, output: 2 * output)


def another_hook(patch):
    module = network(plain)
    handle = module.linear.register_forward_hook(lambda layer, inputs, output: 2 * output)

    def change():
        handle.remove()
        module.linear.register_forward_pre_hook(lambda layer, inputs: (3 * inputs[0],))

    return module, change


def what_a_hook_reads(patch):
    module = network(plain)
    module.linear.register_forward_hook(lambda layer, inputs, output: FACTOR * output)
    return module, lambda: patch.setitem(globals(), "FACTOR", 2.0)


def a_hook_of_all_modules(patch):
    def change():
        hooks = {1: lambda layer, inputs, output: 2 * output if isinstance(layer, nn.Linear) else None}
        patch.setattr(nn.modules.module, "_global_forward_hooks", hooks)

    return network(plain), change


def a_function_of_torch(patch):
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    return module, lambda: patch.setattr(functional, "relu", lambda x, inplace=False: x.tanh())


def a_layer_of_torch(patch):
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    return module, lambda: patch.setattr(nn.ReLU, "forward", lambda self, x: x.sigmoid())


CHANGES = [
    *(a_method, a_method_of_one_object, another_method, code, defaults, a_closure, a_global, a_global_of_a_helper),
    *(a_global_of_an_attribute, a_helper, an_entry_of_a_table, a_tensor_in_place, an_array_in_place),
    *(
        a_global_class,
        a_global_object,
        an_object_of_the_module,
        an_attribute_of_the_class,
        a_layer_outside_of_the_submodules,
        a_hook,
        another_hook,
    ),
    *(what_a_hook_reads, a_hook_of_all_modules, a_function_of_torch, a_layer_of_torch),
]


@pytest.mark.parametrize("kind", CHANGES, ids=lambda kind: kind.__name__)
def test_a_changed_forward_pass_is_traced_again(kind, monkeypatch):
    module, change = kind(monkeypatch)
    X = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before = [frobenius_penalty(module, X).detach() for _ in range(2)][0]
    torch.testing.assert_close(before, mean_square(module, X))
    shared = forward_pass(module, X)
    change()
    expected = mean_square(module, X)
    assert abs(expected / before - 1) > 0.1
    torch.testing.assert_close(frobenius_penalty(module, X, shared=shared).detach(), expected)
    torch.testing.assert_close(forward_pass(module, X).logits, module(X))
    monkeypatch.undo()
    torch.testing.assert_close(frobenius_penalty(module, X).detach(), mean_square(module, X))


def test_a_setting_that_had_no_effect_at_first_may_have_one_later():
    module = network(lambda self, x: (3 if self.epoch >= 2 else 1) * self.linear(x), epoch=0)
    X = torch.randn(4, 5, dtype=torch.float64)
    for epoch in range(4):
        module.epoch = epoch
        torch.testing.assert_close(frobenius_penalty(module, X).detach(), mean_square(module, X))


def test_a_module_that_seldom_changes_keeps_its_graph(monkeypatch):
    monkeypatch.setattr(module_graph, "USES_PER_TRACE", 3)
    module = network(lambda self, x: self.scale * self.linear(x), scale=1.0)
    X = torch.randn(2, 5, dtype=torch.float64)
    for epoch in range(module_graph.MANY_TRACES + 3):
        module.scale = float(epoch)
        for _ in range(3):
            assert chained(module, X)


def test_notes_outside_of_the_module_do_not_matter(monkeypatch):
    traces = []
    original = module_graph.trace
    monkeypatch.setattr(module_graph, "trace", lambda *args, **kwargs: traces.append(1) or original(*args, **kwargs))

    def forward(self, x):
        LOG.append(len(x))
        return self.linear(x)

    module, X = network(forward), torch.randn(4, 5, dtype=torch.float64)
    for _ in range(6):
        frobenius_penalty(module, X)
        module(X)
    assert len(traces) <= 3 and chained(module, X)
    LOG.clear()


def test_what_only_other_methods_use_does_not_matter(monkeypatch):
    traces = []
    original = module_graph.trace
    monkeypatch.setattr(module_graph, "trace", lambda *args, **kwargs: traces.append(1) or original(*args, **kwargs))
    module, X = network(plain, history=types.SimpleNamespace(losses=[])), torch.randn(4, 5, dtype=torch.float64)
    type(module).training_step = lambda self: self.history.losses.append(frobenius_penalty(self, X).item())
    for _ in range(6):
        module.training_step()
    assert len(traces) <= 2 and chained(module, X)


@pytest.mark.parametrize("where", ["forward", "hook"])
def test_code_that_refers_to_its_module_does_not_keep_it_alive(where):
    module, X = network(plain), torch.randn(4, 5, dtype=torch.float64)
    if where == "forward":
        module.forward = lambda x, module=module: module.linear(x)
    else:
        module.register_forward_hook(lambda layer, inputs, output, module=module: module.factor * output)
    assert frobenius_penalty(module, X) > 0
    reference = weakref.ref(module)
    del module
    gc.collect()
    assert reference() is None


def test_code_of_libraries_is_read_no_further_than_its_names():
    parts = module_graph.parts_of(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True))
    places = Surroundings(parts).state()
    functions = {getattr(value, "__name__", "") for values in places["<libraries>", "values"] for value in values}
    assert {"multi_head_attention_forward", "layer_norm"} <= functions and len(functions) < 200
