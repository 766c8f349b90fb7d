"""Equal networks are exported once, and a network that differs in anything that an export fixes is exported anew."""

from __future__ import annotations

import copy
import functools
import gc
import importlib
import os
import random
import sys
import time
import types
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from sklearn_capacity import measure_capacity
from sklearn_capacity.graph import Network, UnsupportedLayerError, evaluate
from sklearn_capacity.graph.known_programs import Programs, structure_of
from sklearn_capacity.penalties import frobenius_penalty
from sklearn_capacity.storage import complete_fingerprint
from tests.training.test_behaviour import EDITS, SOURCE, defined

FINGERPRINT = importlib.import_module("sklearn_capacity.storage.fingerprint")  # and so is `storage.fingerprint`
TRACE = importlib.import_module("sklearn_capacity.graph.trace")  # `graph.trace` is the function
LISTED, NAMED, ARRAY, TENSOR, NUMBER = [1.0], {"k": [1.0]}, np.ones(3), torch.ones(3), 1.0


class Config:
    def __init__(self):
        self.scale = 1.0

    def doubled(self):
        return 2 * self.scale


CONFIG = Config()


def from_globals(x):
    constants = torch.as_tensor(ARRAY, dtype=x.dtype) * TENSOR
    return x * LISTED[0] * NAMED["k"][0] * NUMBER * CONFIG.doubled() * constants


class Written(nn.Module):
    """A user's network with settings of many kinds."""

    of_class = [1.0]

    def __init__(self, function=None):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        self.register_buffer("shift", torch.zeros(3))
        self.setting, self.settings, self.constant, self.function = 1.0, {"k": [1.0]}, torch.ones(3), function

    def forward(self, x):
        x = self.second(torch.relu(self.first(x)) * self.setting) * self.settings["k"][0]
        x = x * self.constant * self.of_class[0] + self.shift
        return x if self.function is None else self.function(x)


def closure():
    factor = 1.0

    def change():
        nonlocal factor
        factor = 2.0

    return lambda x: x * factor, change


def graph_and_module_agree(module: nn.Module) -> None:
    X = torch.randn(6, 4)
    with torch.no_grad():
        torch.testing.assert_close(evaluate(Network(module, (4,)).graph, X), module.eval()(X))


class Initialised(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.ones_(module.weight)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


@pytest.fixture
def exports(monkeypatch):
    """The modules that are exported; none is recorded."""
    calls, export = [], torch.export.export
    monkeypatch.setattr(TRACE, "recorded_twice", lambda *_: None)
    monkeypatch.setattr(
        torch.export, "export", lambda module, *args, **kw: calls.append(module) or export(module, *args, **kw)
    )
    monkeypatch.setattr(TRACE, "_PROGRAMS", Programs(most=100, largest_cost=2**20))
    return calls


def test_equal_modules_are_exported_once(exports):
    for seed in range(3):
        torch.manual_seed(seed)
        module = Written()
        nn.init.normal_(module.shift)
        graph_and_module_agree(module)
        frobenius_penalty(module, torch.randn(5, 4)).backward()
    # In training mode this network is the same function, which takes no second export: the penalty's check compares.
    assert len(exports) <= 2
    assert Network(Written(), (4,), dtype=torch.float64).graph.layers
    assert len(exports) <= 3


def test_a_module_that_initialises_its_parts_is_exported_once(exports):
    """`self.modules()` in `__init__`, as torchvision's networks have, is not `sys.modules`."""
    for _ in range(2):
        graph_and_module_agree(Initialised())
    assert len(exports) == 1


@pytest.fixture
def recordings(monkeypatch):
    """The known modules whose calls are recorded."""
    calls, record = [], TRACE.recorded
    monkeypatch.setattr(TRACE, "recorded", lambda *args: calls.append(args) or record(*args))
    monkeypatch.setattr(TRACE, "_PROGRAMS", Programs(most=100, largest_cost=2**20))
    return calls


def stack(activation=nn.ReLU):
    return nn.Sequential(nn.Linear(4, 5), activation(), nn.Linear(5, 3))


def test_equal_stacks_of_known_layers_are_recorded_once(recordings):
    for seed in range(3):
        torch.manual_seed(seed)
        graph_and_module_agree(stack())
        frobenius_penalty(stack(), torch.randn(5, 4)).backward()
    assert len(recordings) == 1
    for other in (stack(nn.Tanh), stack(lambda: nn.LeakyReLU(0.3)), stack().double(), stack(nn.Identity)):
        graph_and_module_agree(other.float())
        frobenius_penalty(other, torch.randn(5, 4)).backward()


@pytest.mark.parametrize(
    ("home", "name", "other"),
    [
        (torch.nn.functional, "relu", torch.nn.functional.silu),
        (torch.nn.functional, "relu", torch.nn.functional.elu),
        (torch.nn.functional, "relu", lambda x, inplace=False: 2 * x),
        (nn.ReLU, "forward", nn.Tanh.forward),
        (nn.ReLU, "forward", lambda self, x: x.sigmoid()),
    ],
)
def test_a_replaced_function_is_seen_in_stacks_of_known_layers(recordings, monkeypatch, home, name, other):
    def penalty():
        torch.manual_seed(0)
        return frobenius_penalty(stack(), torch.randn(5, 4))

    graph_and_module_agree(stack())
    before = penalty()
    with monkeypatch.context() as patch:
        patch.setattr(home, name, other)
        graph_and_module_agree(stack())
        torch.manual_seed(0)
        module, X = stack(), torch.randn(5, 4)
        jacobian = torch.func.vmap(torch.func.jacrev(module))(X)
        torch.testing.assert_close(penalty(), jacobian.square().sum() / len(X))
        assert penalty() != before
    torch.testing.assert_close(penalty(), before)


def test_a_program_that_did_not_fit_a_known_module_is_compared_again(recordings, monkeypatch):
    """Only agreement is remembered."""
    compared, wrong = [], importlib.import_module("sklearn_capacity.penalties.module_graph")
    monkeypatch.setattr(wrong, "evaluate", lambda graph, X: compared.append(graph) or torch.zeros(len(X), 3))
    for _ in range(2):
        assert frobenius_penalty(stack(), torch.randn(5, 4)) > 0  # by the loop over autograd
    assert len(compared) == 3  # the second time with the program at hand and with a new one
    monkeypatch.setattr(wrong, "evaluate", lambda graph, X: compared.append(graph) or evaluate(graph, X))
    for _ in range(3):
        frobenius_penalty(stack(), torch.randn(5, 4))
    assert len(compared) == 4


class Recurrent(nn.Module):
    """Whose layer keeps its parameters in a list, too."""

    def __init__(self, kind, constant=None):
        super().__init__()
        self.layer, self.head, self.constants = kind(4, 5, batch_first=True), nn.Linear(5, 3), [constant]

    def forward(self, x):
        x = self.head(self.layer(x)[0][:, -1])
        return x if self.constants[0] is None else x * self.constants[0]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_of_equal_structure_are_exported_once(kind, exports):
    X = torch.randn(6, 7, 4)
    for constant in (None, None, torch.ones(3), torch.ones(3), 2 * torch.ones(3)):
        module = Recurrent(kind, constant)
        with torch.no_grad():
            torch.testing.assert_close(evaluate(Network(module, (7, 4)).graph, X), module.eval()(X))
    assert len(exports) == 3  # a tensor that is no parameter counts by its values


def test_a_structure_keeps_no_layer_alive():
    """A parametrised layer has a class of its own, which refers to it."""
    module = nn.Sequential(weight_norm(nn.Linear(4, 3)))
    structure_of(module, (4,), torch.float32, training=False)
    bias = weakref.ref(module[0].bias)
    del module
    gc.collect()
    assert bias() is None


class Named(nn.Module):
    """Has a submodule with the name of a global."""

    def __init__(self):
        super().__init__()
        self.NUMBER = nn.Linear(4, 3)

    def forward(self, x):
        return torch.relu(self.NUMBER(x))


def test_an_attribute_is_not_the_global_of_its_name(exports, globals_restored):
    for number in (1.0, 2.0):
        globals()["NUMBER"] = number
        graph_and_module_agree(Named())
    assert len(exports) == 1


CHANGES = {
    "a listed global": lambda module: LISTED.__setitem__(0, 2.0),
    "a global dict": lambda module: NAMED["k"].__setitem__(0, 2.0),
    "a global array": lambda module: ARRAY.__imul__(2.0),
    "a global tensor": lambda module: TENSOR.mul_(2.0),
    "a global name": lambda module: globals().__setitem__("NUMBER", 2.0),
    "a global object": lambda module: setattr(CONFIG, "scale", 2.0),
    "a setting": lambda module: setattr(module, "setting", 2.0),
    "a setting in a container": lambda module: module.settings["k"].__setitem__(0, 2.0),
    "a constant in place": lambda module: module.constant.mul_(2.0),
    "a list of the class": lambda module: Written.of_class.__setitem__(0, 2.0),
    "a hook": lambda module: module.first.register_forward_hook(lambda _, args, output: 2 * output),
    "a hook before": lambda module: module.first.register_forward_pre_hook(lambda _, args: (2 * args[0],)),
    "a submodule": lambda module: setattr(module, "first", nn.Sequential(nn.Linear(4, 5), nn.Tanh())),
    "a method of a submodule": lambda module: setattr(module.first, "forward", lambda x: torch.cat([x, x[:, :1]], 1)),
    "an added parametrisation": lambda module: nn.utils.parametrizations.spectral_norm(module.eval().first),
    "a shape": lambda module: (setattr(module, "first", nn.Linear(4, 7)), setattr(module, "second", nn.Linear(7, 3))),
    "another bias": lambda module: setattr(module, "second", nn.Linear(5, 3, bias=False)),
}


@pytest.fixture
def globals_restored():
    yield
    LISTED[0] = NAMED["k"][0] = CONFIG.scale = Written.of_class[0] = globals()["NUMBER"] = 1.0
    ARRAY.fill(1.0)
    TENSOR.fill_(1.0)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_are_seen(change, exports, globals_restored):
    module = Written(from_globals)
    graph_and_module_agree(module)
    before = structure_of(module, (4,), torch.float32, training=False)
    change(module)
    assert structure_of(module, (4,), torch.float32, training=False) != before
    graph_and_module_agree(module)
    assert len(exports) == 2


def test_a_changed_closure_is_seen(exports):
    function, change = closure()
    module = Written(function)
    graph_and_module_agree(module)
    change()
    graph_and_module_agree(module)
    assert len(exports) == 2


@pytest.mark.parametrize("edit", range([old for old, _ in EDITS].index("return Net(n_features, n_outputs)") + 1))
def test_edited_definitions_differ(edit):
    old, new = EDITS[edit]
    structures = []
    for source in (SOURCE, SOURCE.replace(old, new), SOURCE):
        module = defined(source).factory(4, 1)
        structures.append(structure_of(module, (4,), torch.float32, training=False))
    sys.modules.pop("definitions_of_a_user", None)
    first, edited, again = structures
    assert first is not None and first == again
    assert edited != first


def reads_environment(x):
    return x * float(os.environ.get("NO_SUCH_NAME", 1))


def draws(x):
    return x * random.random()


def reads_clock(x):
    return x * time.time()


def imports(x):
    from os import environ

    return x * float(environ.get("NO_SUCH_NAME", 1))


def imports_inside(x):
    def scale():
        import os.path

        return len(os.path.curdir)

    return x * scale()


def draws_from_numpy(x):
    return x * np.random.rand()


def opens(x):
    with open(os.devnull) as file:
        return x + len(file.read())


@pytest.mark.parametrize(
    "function", [reads_environment, draws, reads_clock, imports, imports_inside, draws_from_numpy, opens]
)
def test_what_may_read_anything_has_no_structure(function):
    assert structure_of(Written(function), (4,), torch.float32, training=False) is None
    assert structure_of(Written(lambda x: function(x)), (4,), torch.float32, training=False) is None


def test_ties_count():
    class Two(nn.Module):
        def __init__(self, tied):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            if tied:
                self.b.weight = self.a.weight

        def forward(self, x):
            return self.b(self.a(x))

    first, second = (structure_of(Two(tied), (4,), torch.float32, training=False) for tied in (False, True))
    assert None not in (first, second) and first != second
    assert [len({node.sources for node in Network(Two(tied), (4,)).graph.layers}) for tied in (False, True)] == [2, 2]


def test_a_program_that_does_not_fit_is_replaced(exports, monkeypatch):
    """Whatever a structure misses, the comparison with the module sees."""
    monkeypatch.setattr(TRACE, "structure_of", lambda *args, **kwargs: "the same for all")
    graph_and_module_agree(Written())
    other = Written(torch.tanh)
    graph_and_module_agree(other)
    assert len(exports) == 2
    X = torch.randn(5, 4)
    third = Written(torch.sigmoid)
    value = frobenius_penalty(third, X)
    rows = torch.func.vmap(torch.func.jacrev(lambda x: third(x[None])[0]))(X)
    torch.testing.assert_close(value, rows.square().sum() / len(X))


class DependsOnData(Written):
    of_class = [1.0]

    def forward(self, x):
        return super().forward(x) * self.of_class[0] if x.sum() > 0 else x[:, :3]


def test_a_refusal_is_exported_once(exports):
    for _ in range(2):
        with pytest.raises(UnsupportedLayerError, match="`DependsOnData` cannot be traced"):
            _ = Network(DependsOnData(), (4,)).graph
    assert len(exports) == 1
    DependsOnData.of_class.append(0.0)
    with pytest.raises(UnsupportedLayerError, match="`DependsOnData` cannot be traced"):
        _ = Network(DependsOnData(), (4,)).graph
    assert len(exports) == 2


def test_a_lack_of_memory_is_no_refusal_for_ever(monkeypatch):
    class Alone(Written):
        pass

    def full(*args, **kwargs):
        raise MemoryError

    with monkeypatch.context() as patch, pytest.raises(UnsupportedLayerError, match="MemoryError"):
        patch.setattr(torch.export, "export", full)
        _ = Network(Alone(), (4,)).graph
    graph_and_module_agree(Alone())


def test_equal_modules_in_many_threads(exports):
    def work(seed: int) -> None:
        module = Written()
        for _ in range(3):
            graph_and_module_agree(module)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert len(exports) <= 4


def test_programs_are_bounded():
    programs = Programs(most=3, largest_cost=10)
    for key in "abc":
        programs.keep(key, key.upper(), 1)
    assert programs.get("a") == "A"
    programs.keep("d", "D", 10)
    assert [programs.get(key) for key in "abcd"] == ["A", None, "C", "D"]
    programs.keep("e", "E", 11)
    assert len(programs) == 3 and programs.get("e") is None
    programs.forget("a")
    programs.forget("a")
    assert programs.get("a") is None


PACKAGE = """
import contextvars, functools, os, random, types
import torch
from torch import nn
from torch.nn import functional as F
from . import steps

SCALE, ACTIVATIONS, NAMES = 1.0, {"relu": torch.relu}, []

def grouped(function):
    @functools.wraps(function)
    def wrapper(*args):
        return function(*args)
    return wrapper

def shifted(x, by=0.0, *, times=1.0):
    return (x + steps.OFFSET + by) * times

class Scales:
    of_class = 1.0

    @property
    def property(self):
        return 1.0

    @classmethod
    def of_all(cls):
        return cls.of_class

    def of_object(self):
        return 1.0

SCALES, CONTEXT = Scales(), contextvars.ContextVar("scale", default=1.0)

def scaled(x):
    from . import steps
    from .steps import FACTOR

    x = x * Scales.of_all() * SCALES.of_object() * SCALES.property * CONTEXT.get() * FACTOR * steps.OTHER
    return F.softsign(x) * float(os.environ.get("SCALE_OF_BLOCKS", 1)) * getattr(SCALES, "named", 1.0) * steps.DYNAMIC

def steep(x):
    return x + Scales.of_class * 1e-5 * torch.tanh(1e6 * x)

class Block(nn.Module):
    gain = 1.0

    def __init__(self, k=1.0):
        super().__init__()
        self.layer, self.k, self.kinds = nn.Linear(4, 4), k, types.SimpleNamespace(k=k)
        NAMES.append(os.environ.get("NO_SUCH_NAME", random.random()))

    @grouped
    def forward(self, x):
        return self.extra(ACTIVATIONS["relu"](self.layer(x)) * self.k * SCALE * self.gain)

    def extra(self, x):
        return scaled(shifted(x))

    def unused(self, x):
        return random.random() * x
"""

STEPS = """
import blocks_of_a_package as blocks

OFFSET, steps, FACTOR, OTHER, HIDDEN = 0.0, blocks, 1.0, 1.0, 1.0

def __getattr__(name):
    if name == "DYNAMIC":
        return HIDDEN
    raise AttributeError(name)
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package, whose constructors read what a forward pass does not."""
    folder = tmp_path / "site-packages" / "blocks_of_a_package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(str(folder.parent))
    yield importlib.import_module("blocks_of_a_package")
    for name in ("blocks_of_a_package", "blocks_of_a_package.steps"):
        sys.modules.pop(name)


def test_networks_of_packages_are_exported_once(exports, package):
    for _ in range(2):
        graph_and_module_agree(nn.Sequential(package.Block(), nn.Linear(4, 3)))
    assert len(exports) == 1

    class Using(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.last = package.Block(), nn.Linear(4, 3)

        def forward(self, x):
            return self.last(package.shifted(self.block(x)))

    for _ in range(2):
        graph_and_module_agree(Using())
    assert len(exports) == 2


PACKAGE_CHANGES = {
    "a setting": lambda package, block: setattr(block, "k", 2.0),
    "a global": lambda package, block: setattr(package, "SCALE", 2.0),
    "a table": lambda package, block: package.ACTIVATIONS.update(relu=torch.tanh),
    "a function of a user in a table": lambda package, block: package.ACTIVATIONS.update(relu=lambda x: LISTED[0] * x),
    "a global that a function of the package reads": lambda package, block: setattr(package.steps, "OFFSET", 1.0),
    "a replaced function": lambda package, block: setattr(package, "shifted", lambda x: x + 1.0),
    "the code of a function": lambda package, block: setattr(package.shifted, "__code__", (lambda x: x + 1.0).__code__),
    "a default value": lambda package, block: setattr(package.shifted, "__defaults__", (1.0,)),
    "a default value by name": lambda package, block: package.shifted.__kwdefaults__.update(times=2.0),
    "what a closure holds": lambda package, block: setattr(
        package.Block.forward.__closure__[0], "cell_contents", lambda block, x: block.layer(x)
    ),
    "an attribute of a function": lambda package, block: setattr(package.shifted, "gain", 2.0),
    "the version": lambda package, block: setattr(package, "__version__", "2"),
    "a replaced method": lambda package, block: setattr(package.Block, "extra", lambda self, x: x + 1.0),
    "a replaced forward pass": lambda package, block: setattr(package.Block, "forward", lambda self, x: self.layer(x)),
    "an attribute of the class": lambda package, block: setattr(package.Block, "gain", 2.0),
    "an attribute of the object": lambda package, block: setattr(block, "gain", 2.0),
    "an attribute of a class that is no module": lambda package, block: setattr(package.Scales, "of_class", 2.0),
    "a method of an object's class": lambda package, block: setattr(package.Scales, "of_object", lambda scales: 2.0),
    "a property": lambda package, block: setattr(package.Scales, "property", property(lambda scales: 2.0)),
    "what only a text names": lambda package, block: setattr(package.Scales, "named", 2.0),
    "what is imported inside": lambda package, block: setattr(package.steps, "FACTOR", 2.0),
    "a global of a module that is imported inside": lambda package, block: setattr(package.steps, "OTHER", 2.0),
    "what a module computes": lambda package, block: setattr(package.steps, "HIDDEN", 2.0),
    "a hook": lambda package, block: block.register_forward_hook(lambda _, args, output: 2 * output),
}


@pytest.mark.parametrize("change", PACKAGE_CHANGES.values(), ids=PACKAGE_CHANGES)
def test_changes_in_a_package_are_seen(change, exports, package):
    module = nn.Sequential(package.Block(), nn.Linear(4, 3))
    graph_and_module_agree(module)
    before = structure_of(module, (4,), torch.float32, training=False)
    change(package, module[0])
    assert structure_of(module, (4,), torch.float32, training=False) not in (None, before)
    graph_and_module_agree(module)
    assert len(exports) == 2


def test_functions_of_packages_are_read_once(package, monkeypatch):
    module, read = nn.Sequential(package.Block(), nn.Linear(4, 3)), []
    names_in = FINGERPRINT.names_in
    monkeypatch.setattr(FINGERPRINT, "names_in", lambda function: read.append(function) or names_in(function))
    before = structure_of(module, (4,), torch.float32, training=False)
    assert package.shifted in read
    read.clear()
    assert structure_of(copy.deepcopy(module), (4,), torch.float32, training=False) == before
    assert package.shifted not in read
    package.steps.OTHER = 2.0  # another name of the module in which it looks for its own
    assert structure_of(module, (4,), torch.float32, training=False) != before
    assert package.shifted in read


def test_what_another_thread_changes_while_it_is_read_is_not_remembered(package, monkeypatch):
    read = FINGERPRINT.all_named_in

    def then_changed(function):
        found = read(function)
        package.steps.OFFSET = 2.0
        return found

    monkeypatch.setattr(FINGERPRINT, "all_named_in", then_changed)
    of_both = complete_fingerprint(code=[package.shifted])  # the first that refers to the module
    monkeypatch.setattr(FINGERPRINT, "all_named_in", read)
    of_new = complete_fingerprint(code=[package.shifted])
    package.steps.OFFSET = 0.0
    assert complete_fingerprint(code=[package.shifted]) != of_new
    assert of_new == of_both


def test_what_another_thread_undoes_after_a_walk_is_not_remembered(package, monkeypatch):
    read, first = FINGERPRINT.all_named_in, package.steps.OFFSET

    def changed(function):
        package.steps.OFFSET = 2.0
        return read(function)

    module = nn.Sequential(package.Block(), nn.Linear(4, 3))
    before = structure_of(module, (4,), torch.float32, training=False)
    package.shifted.__defaults__ = (float("0"),)
    monkeypatch.setattr(FINGERPRINT, "all_named_in", changed)
    structure_of(module, (4,), torch.float32, training=False)
    assert package.steps.OFFSET == 2.0
    monkeypatch.setattr(FINGERPRINT, "all_named_in", read)
    package.steps.OFFSET = first
    assert structure_of(module, (4,), torch.float32, training=False) == before


def test_a_users_function_in_a_packages_closure_is_not_kept_alive(package):
    def function(block, x):
        return block.layer(x)

    alive = weakref.ref(function)
    module = nn.Sequential(package.Block())
    module[0].forward = types.MethodType(package.grouped(function), module[0])
    assert structure_of(module, (4,), torch.float32, training=False) is not None
    del module, function
    gc.collect()
    assert alive() is None


class Multiplied:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, x):
        return self.scale * x


REPLACED = {
    "the environment": lambda patch, scale: patch.setenv("SCALE_OF_BLOCKS", str(scale)),
    "a function of torch": lambda patch, scale: patch.setattr(nn.functional, "softsign", lambda x: scale * x.tanh()),
    "one that a layer of torch calls": lambda patch, scale: patch.setattr(
        nn.functional, "linear", functools.wraps(nn.functional.softsign)(lambda x, w, b: scale * (x @ w.t() + b))
    ),
    "a method of a layer of torch": lambda patch, scale: patch.setattr(
        nn.Linear, "forward", lambda self, x: scale * (x @ self.weight.t() + self.bias)
    ),
    "another function of torch": lambda patch, scale: patch.setattr(
        nn.functional, "softsign", torch.tanh if scale == 2.0 else torch.sigmoid
    ),
    "a partial function": lambda patch, scale: patch.setattr(
        nn.functional, "softsign", functools.partial(torch.mul, other=scale)
    ),
    "an object": lambda patch, scale: patch.setattr(nn.functional, "softsign", Multiplied(scale)),
    "a method of tensors": lambda patch, scale: patch.setattr(
        torch.Tensor, "__mul__", lambda x, y: torch.mul(x, y) + scale
    ),
}


@pytest.mark.parametrize("replace", REPLACED.values(), ids=REPLACED)
@pytest.mark.parametrize("users", [False, True])
def test_what_others_replace_is_seen(replace, users, package, monkeypatch):
    module = Softsigned() if users else nn.Sequential(package.Block(), nn.Linear(4, 3))
    structures = [structure_of(module, (4,), torch.float32, training=False)]
    for scale in (2.0, 3.0):  # equal code with other values in its closure
        replace(monkeypatch, scale)
        structures.append(structure_of(module, (4,), torch.float32, training=False))
    assert None not in structures
    assert len(set(structures)) == (1 if users and replace is REPLACED["the environment"] else 3)


class Softsigned(nn.Linear):
    def __init__(self):
        super().__init__(4, 4)

    def forward(self, x):
        return nn.functional.softsign(super().forward(x) * 2.0)


def test_a_module_in_a_closure_is_read_by_its_names(package):
    module = Written(lambda x: x * package.Scales.of_class)
    before = structure_of(module, (4,), torch.float32, training=False)
    package.Scales.of_class = 2.0
    assert structure_of(module, (4,), torch.float32, training=False) not in (None, before)
    clock = time
    assert structure_of(Written(lambda x: x * clock.time()), (4,), torch.float32, training=False) is None


def test_a_context_variable_is_seen(package):
    module = nn.Sequential(package.Block(), nn.Linear(4, 3))
    before = structure_of(module, (4,), torch.float32, training=False)
    token = package.CONTEXT.set(2.0)
    assert structure_of(module, (4,), torch.float32, training=False) not in (None, before)
    package.CONTEXT.reset(token)
    assert structure_of(module, (4,), torch.float32, training=False) == before


def test_a_changed_lipschitz_constant_is_seen_where_the_outputs_hardly_change(package):
    """The comparison with the module at a few samples would not see it."""
    values = []
    package.scaled = package.steep
    for package.Scales.of_class in (1.0, 2.0):
        torch.manual_seed(0)
        module = nn.Sequential(package.Block(), nn.Linear(4, 3))
        values.append(measure_capacity(module, torch.zeros(1, 4), measures="lipschitz_l2")["lipschitz_l2"])
    assert values[1] > 1.5 * values[0]


def test_a_users_function_in_a_package_is_followed(package, globals_restored):
    module = nn.Sequential(package.Block(), nn.Linear(4, 3))
    package.ACTIVATIONS["relu"] = from_globals
    before = structure_of(module, (4,), torch.float32, training=False)
    LISTED[0] = 2.0
    assert structure_of(module, (4,), torch.float32, training=False) not in (None, before)
    package.ACTIVATIONS["relu"] = draws
    assert structure_of(module, (4,), torch.float32, training=False) is None
