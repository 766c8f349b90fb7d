"""A definition that was edited between two fits of one folder is never answered with the network of the first."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
import torch
from sklearn.base import clone

from sklearn_capacity import NetworkClassifier, NetworkRegressor
from sklearn_capacity.training import PenalizedNet
from sklearn_capacity.training.behaviour import Behaviour

X = np.random.default_rng(0).normal(size=(24, 4))
y = X[:, 0] * X[:, 1]

SOURCE = """
import enum, functools, types
import numpy as np, torch
from torch import nn
from skorch.callbacks import Callback

GLOBAL, LISTED, NAMED, ARRAY = 1.0, [1.0], {"k": 1.0}, np.ones(4)
PAIR = (1.0, 2.0)
class Kind(enum.Enum):
    LOW, HIGH = 1.0, 2.0
def helper(x): return x * 1.0
def deeper(x): return helper(x) + 0.0
def by_closure(k): return lambda x: x * k
def by_default(x, k=1.0): return x * k
scaled = by_closure(1.0)
partial = functools.partial(by_default, k=1.0)
tools = types.ModuleType("tools")
tools.factor, tools.f = 1.0, lambda x: x + 0.0
table = {"f": lambda x: x * 1.0}
initial = lambda w: nn.init.constant_(w, 0.1)

class Block(nn.Module):
    def __init__(self, k=1.0):
        super().__init__()
        self.k, self.layer = k, nn.Linear(4, 4)
    def forward(self, x): return torch.tanh(self.layer(x)) * self.k + 0.0 * x

class Mixin:
    def shift(self, x): return x + 0.0

class Net(Mixin, nn.Module):
    class Inner(nn.Module):
        def forward(self, x): return x * 1.0
    number, listed, named, array, tensor = 1.0, [1.0], {"k": [1.0]}, np.ones(4), torch.ones(4)
    function, part, kind, made, module = helper, functools.partial(by_default, k=1.0), Kind.LOW, Block, tools
    nested = {"a": {"b": (1.0, [1.0])}}
    static = staticmethod(lambda x: x + 0.0)
    @property
    def gain(self): return 1.0
    @classmethod
    def bias(cls): return 0.0
    def __init__(self, n_features, n_outputs):
        super().__init__()
        self.block, self.inner, self.head = self.made(), self.Inner(), nn.Linear(4, n_outputs)
        self.drop = nn.Dropout(0.1)
        self.register_buffer("steps", torch.zeros(()))
        initial(self.head.weight)
        self.plain = {"k": 1.0}
    def forward(self, x):
        x = self.drop(self.inner(self.block(x)))
        if self.training: self.steps += 1
        if self.steps > 3: x = x * 1.0 + late(x)
        if self.training: x = x + only_training(x)
        x = deeper(scaled(partial(self.shift(x)))) * GLOBAL * LISTED[0] * NAMED["k"] + 0.0 * torch.as_tensor(ARRAY)
        x = x * self.number * self.listed[0] * self.named["k"][0] * torch.as_tensor(self.array) * self.tensor
        x = self.part(x) * self.kind.value * self.module.factor * self.nested["a"]["b"][1][0] * self.gain
        x = self.module.f(self.static(x)) + self.bias() + by_default(x) * PAIR[0] + table["f"](x) * self.plain["k"]
        return self.head(x)
def late(x): return 0.0 * x
def only_training(x): return 0.0 * x
def factory(n_features, n_outputs): return Net(n_features, n_outputs)
def schedule(epoch): return 1.0 if epoch < 2 else 0.5
def augment(x, generator): return x + 0.0
class Sgd(torch.optim.SGD):
    def step(self, closure=None):
        return super().step(closure)
RATE = 1.0
class Slower(Callback):
    gain = [1.0]
    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2: net.optimizer_.param_groups[0]["lr"] *= slower() * RATE * self.gain[0]
def slower(): return 1.0
def finish(net): return net
def replaced(net):
    net.head.forward = lambda x: 1.5 * type(net.head).forward(net.head, x)
    return net
"""
#: what is replaced -> by what
EDITS = [
    ("tanh(self.layer(x))", "relu(self.layer(x))"),
    ("* self.k + 0.0 * x", "* self.k + 0.5 * x"),
    ("def __init__(self, k=1.0)", "def __init__(self, k=1.5)"),
    ("def helper(x): return x * 1.0", "def helper(x): return x * 1.5"),
    ("return helper(x) + 0.0", "return helper(x) + 0.5"),
    ("scaled = by_closure(1.0)", "scaled = by_closure(1.5)"),
    ("lambda x: x * k", "lambda x: x * k * 1.5"),
    ("partial = functools.partial(by_default, k=1.0)", "partial = functools.partial(by_default, k=1.5)"),
    ("def by_default(x, k=1.0): return x * k", "def by_default(x, k=1.5): return x * k"),
    ("tools.factor, tools.f = 1.0", "tools.factor, tools.f = 1.5"),
    ("tools.factor, tools.f = 1.0, lambda x: x + 0.0", "tools.factor, tools.f = 1.0, lambda x: x + 0.5"),
    ('table = {"f": lambda x: x * 1.0}', 'table = {"f": lambda x: x * 1.5}'),
    ("nn.init.constant_(w, 0.1)", "nn.init.constant_(w, 0.2)"),
    ("GLOBAL, LISTED, NAMED, ARRAY = 1.0", "GLOBAL, LISTED, NAMED, ARRAY = 1.5"),
    ("NAMED, ARRAY = 1.0, [1.0]", "NAMED, ARRAY = 1.0, [1.5]"),
    ('{"k": 1.0}, np', '{"k": 1.25}, np'),
    ("0.0 * torch.as_tensor(ARRAY)", "0.5 * torch.as_tensor(ARRAY)"),
    ("PAIR = (1.0", "PAIR = (1.5"),
    ("LOW, HIGH = 1.0", "LOW, HIGH = 1.5"),
    ("kind, made, module = helper, functools.partial(by_default, k=1.0), Kind.LOW",
     "kind, made, module = helper, functools.partial(by_default, k=1.0), Kind.HIGH"),
    ("module = helper, functools.partial(by_default, k=1.0)", "module = helper, functools.partial(by_default, k=1.5)"),
    ("def shift(self, x): return x + 0.0", "def shift(self, x): return x + 0.5"),
    ("def forward(self, x): return x * 1.0", "def forward(self, x): return x * 1.5"),
    ("array, tensor = 1.0", "array, tensor = 1.5"),
    ("tensor = 1.0, [1.0]", "tensor = 1.0, [1.5]"),
    ('{"k": [1.0]}', '{"k": [1.5]}'),
    ("np.ones(4), torch", "np.full(4, 1.5), torch"),
    ("np.ones(4), torch.ones(4)", "np.ones(4), torch.full((4,), 1.5)"),
    ("(1.0, [1.0])", "(1.0, [1.5])"),
    ("staticmethod(lambda x: x + 0.0)", "staticmethod(lambda x: x + 0.5)"),
    ("def gain(self): return 1.0", "def gain(self): return 1.5"),
    ("def bias(cls): return 0.0", "def bias(cls): return 0.5"),
    ("Dropout(0.1)", "Dropout(0.3)"),
    ('self.plain = {"k": 1.0}', 'self.plain = {"k": 1.5}'),
    ("def late(x): return 0.0 * x", "def late(x): return 0.5 * x"),
    ("self.steps > 3", "self.steps > 4"),
    ("x * 1.0 + late(x)", "x * 1.5 + late(x)"),
    ("def only_training(x): return 0.0 * x", "def only_training(x): return 0.5 * x"),
    ("return Net(n_features, n_outputs)", "return replaced(Net(n_features, n_outputs))"),
    ("return 1.0 if epoch < 2 else 0.5", "return 1.0 if epoch < 2 else 0.25"),
    ("generator): return x + 0.0", "generator): return x + 0.5"),
    ("        return super().step(closure)", "        super().step()\n        return super().step(closure)"),
    ("def slower(): return 1.0", "def slower(): return 0.5"),
    ("RATE = 1.0", "RATE = 0.5"),
    ("gain = [1.0]", "gain = [0.5]"),
    ("== 2: net.opt", "== 1: net.opt"),
]  # fmt: skip


def defined(source, name="definitions_of_a_user"):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(source, name, "exec"), vars(module))
    return module


def estimator(source, folder=None):
    module = defined(source)
    return NetworkRegressor(
        module=module.factory,
        learning_rate_schedule=module.schedule,
        augmentation=module.augment,
        optimizer=module.Sgd,
        callbacks=[module.Slower()],
        max_epochs=3,
        batch_size=12,
        random_state=0,
        checkpoint_dir=folder,
    )


@pytest.fixture
def trained(monkeypatch):
    """Epochs that are trained."""
    epochs, run = [], PenalizedNet.run_single_epoch

    def counted(self, iterator, training, *args, **kwargs):
        epochs.extend([1] * training)
        return run(self, iterator, training, *args, **kwargs)

    monkeypatch.setattr(PenalizedNet, "run_single_epoch", counted)
    yield epochs
    sys.modules.pop("definitions_of_a_user", None)


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A folder with the fit of the first definition, and what that predicts."""
    folder = tmp_path_factory.mktemp("fits")
    return folder, estimator(SOURCE, folder).fit(X, y).predict(X)


def test_the_same_text_is_the_same_definition(first, trained):
    folder, predicted = first
    np.testing.assert_array_equal(estimator(SOURCE, folder).fit(X, y).predict(X), predicted)
    np.testing.assert_array_equal(estimator(f"# a comment\n{SOURCE}\nprint", folder).fit(X, y).predict(X), predicted)
    assert trained == []


@pytest.mark.parametrize("edit", range(len(EDITS)))
def test_an_edited_definition_is_trained_anew(edit, first, trained):
    old, new = EDITS[edit]
    assert SOURCE.count(old) == 1
    folder, predicted = first
    edited = estimator(SOURCE.replace(old, new), folder).fit(X, y).predict(X)
    assert len(trained) == 3
    fresh = estimator(SOURCE.replace(old, new)).fit(X, y).predict(X)
    np.testing.assert_array_equal(edited, fresh)
    again = estimator(SOURCE.replace(old, new), folder).fit(X, y).predict(X)
    np.testing.assert_array_equal(again, fresh)
    assert len(trained) == 6  # none for the third
    if old not in ("self.steps > 3", "== 2: net.opt"):  # the factor there is 1
        assert not np.array_equal(fresh, predicted)


def test_definitions_that_no_code_shows_are_distinguished_by_their_values(tmp_path, trained):
    """Both definitions stay in the folder, each with its result."""

    class Scaled(torch.nn.Linear):
        def forward(self, x):  # the name is composed at run time, and nothing refers to the value
            return super().forward(x) * sys.modules["definitions_of_a_user"].__dict__["sca" + "le"]

    model = NetworkClassifier(module=lambda: Scaled(4, 2), max_epochs=2, random_state=0, checkpoint_dir=tmp_path)
    labels = y > 0
    results = {}
    for scale in (1.0, 3.0, 1.0, 3.0):
        defined(f"scale = {scale}")
        predicted = clone(model).fit(X, labels).predict_proba(X)
        np.testing.assert_array_equal(results.setdefault(scale, predicted), predicted)
    assert len(trained) == 4 and not np.array_equal(results[1.0], results[3.0])
    assert len(list(tmp_path.iterdir())) == 2


def test_rounding_errors_make_no_other_behaviour():
    behaviour = Behaviour([1.0, float("nan"), 0.0], [1e-4, 0.0, 1e-6])
    assert behaviour.equals([1.00005, float("nan"), 1e-7])
    for other in ([1.001, float("nan"), 0.0], [1.0, 0.0, 0.0], [1.0, float("nan")], [1.0, float("nan"), 1e-5]):
        assert not behaviour.equals(other)


def test_the_first_step_leaves_no_trace(tmp_path):
    """Not in the generators, and not in the result."""
    model = NetworkRegressor(
        (4,), augmentation=lambda x, generator: x + np.random.normal(), max_epochs=2, random_state=0, dropout=0.2
    )
    results = []
    for folder in (None, tmp_path):
        np.random.seed(0)
        results.append(clone(model).set_params(checkpoint_dir=folder).fit(X, y).predict(X))
    np.testing.assert_array_equal(*results)
