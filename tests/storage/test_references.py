"""Whatever a function's code refers to counts: each kind of definition is edited, and the fingerprint differs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch

from sklearn_capacity.storage import fingerprint

IMPORTS = """
import collections, contextlib, contextvars, copy, dataclasses, enum, fractions, functools, operator, sys, types, typing
import weakref
import numpy as np, torch
from torch import nn
"""
#: The class that a user would pass as `module`; no first step of a training reaches `late`.
NETWORK = """
class Net(nn.Module):
    def forward(self, x):
        return x + late(x) if self.steps > 3 else x
"""
#: definitions in which 0.5 becomes 0.7, or what is given becomes something else
DEFINITIONS = {
    "a decorator's argument": """
        def scaled(k):
            def decorator(f):
                @functools.wraps(f)
                def wrapper(x): return f(x) * k
                return wrapper
            return decorator
        @scaled(0.5)
        def late(x): return x
    """,
    "a function under a decorator of a library": "@torch.no_grad()\ndef late(x): return x * 0.5",
    "a function that a library transformed": "late = torch.vmap(lambda x: x * 0.5)",
    "a cached function": "@functools.lru_cache\ndef k(): return 0.5\ndef late(x): return x * k()",
    "a context manager": """
        @contextlib.contextmanager
        def manager(): yield 0.5
        def late(x):
            with manager() as k: return x * k
    """,
    "a function of the argument's type": """
        @functools.singledispatch
        def late(x): return x
        @late.register
        def _(x: torch.Tensor): return x * 0.5
    """,
    "a method of the argument's type": """
        class Holder:
            @functools.singledispatchmethod
            def scale(self, x): return x * 0.5
        def late(x): return Holder().scale(x)
    """,
    "a descriptor's code": """
        class Constant:
            def __get__(self, instance, owner): return 0.5
        class Holder:
            k = Constant()
        def late(x): return x * Holder.k
    """,
    "a descriptor's slot": """
        class Constant:
            __slots__ = ("k",)
            def __init__(self, k): self.k = k
            def __get__(self, instance, owner): return self.k
        class Holder:
            k = Constant(0.5)
        def late(x): return x * Holder.k
    """,
    "a cached property": """
        class Holder:
            @functools.cached_property
            def k(self): return 0.5
        def late(x): return x * Holder().k
    """,
    "a partial method": """
        class Holder:
            def scale(self, x, k): return x * k
            half = functools.partialmethod(scale, k=0.5)
        def late(x): return Holder().half(x)
    """,
    "a list in a closure": "def make():\n    ks = [0.5]\n    return lambda x: x * ks[0]\nlate = make()",
    "a default": "def late(x, k=(0.5,)): return x * k[0]",
    "a keyword's default": "def late(x, *, k={'a': 0.5}): return x * k['a']",
    "a function's attribute": "def late(x): return x * late.k\nlate.k = 0.5",
    "a table": "TABLE = {'k': [0.5]}\ndef late(x): return x * TABLE['k'][0]",
    "an array": "TABLE = np.array([0.5])\ndef late(x): return x * TABLE[0]",
    "a tensor": "TABLE = torch.tensor([0.5])\ndef late(x): return x * TABLE[0]",
    "a set": "TABLE = {0.5}\ndef late(x): return x * sum(TABLE)",
    "a deque": "TABLE = collections.deque([0.5])\ndef late(x): return x * TABLE[0]",
    "a table's default": "TABLE = collections.defaultdict(lambda: 0.5)\ndef late(x): return x * TABLE['k']",
    "a namespace": "CONFIG = types.SimpleNamespace(k=0.5)\ndef late(x): return x * CONFIG.k",
    "a read-only table": "TABLE = types.MappingProxyType({'k': 0.5})\ndef late(x): return x * TABLE['k']",
    "a field's default": "@dataclasses.dataclass\nclass C:\n    k: float = 0.5\ndef late(x): return x * C().k",
    "a field's factory": """
        @dataclasses.dataclass
        class Config:
            k: list = dataclasses.field(default_factory=lambda: [0.5])
        def late(x): return x * Config().k[0]
    """,
    "a configuration": """
        @dataclasses.dataclass(frozen=True)
        class Config: k: float
        CONFIG = Config(0.5)
        def late(x): return x * CONFIG.k
    """,
    "a configuration with slots": """
        @dataclasses.dataclass(slots=True)
        class Config: k: float
        CONFIG = Config(0.5)
        def late(x): return x * CONFIG.k
    """,
    "a named tuple": "Config = collections.namedtuple('Config', 'k')\nc = Config(0.5)\ndef late(x): return x * c.k",
    "a named tuple's default": "class C(typing.NamedTuple):\n    k: float = 0.5\ndef late(x): return x * C().k",
    "an enumeration": "class Kind(enum.Enum):\n    A = 0.5\ndef late(x): return x * Kind.A.value",
    "an enumeration's method": """
        class Kind(enum.Enum):
            A = 1.0
            def k(self): return 0.5
        def late(x): return x * Kind.A.k()
    """,
    "a caller of a method": "late = operator.methodcaller('mul', 0.5)",
    "an object that is called": """
        class Scale:
            def __init__(self, k): self.k = k
            def __call__(self, x): return x * self.k
        late = Scale(0.5)
    """,
    "the method of an object": """
        class Scale:
            def __init__(self, k): self.k = k
            def scale(self, x): return x * self.k
        late = Scale(0.5).scale
    """,
    "a lambda in a dict": "RULES = {'late': lambda x: x * 0.5}\ndef late(x): return RULES['late'](x)",
    "`__getattr__`": "class H:\n    def __getattr__(self, name): return 0.5\ndef late(x): return x * H().k",
    "`__getattribute__`": """
        class Holder:
            def __getattribute__(self, name): return 0.5
        holder = Holder()
        def late(x): return x * holder.k
    """,
    "`__init_subclass__`": """
        class Base:
            def __init_subclass__(cls, k=0.0): cls.k = k
        class Holder(Base, k=0.5): pass
        def late(x): return x * Holder.k
    """,
    "`__set_name__`": """
        class Setter:
            def __set_name__(self, owner, name): owner.other = 0.5
        class Holder: setter = Setter()
        def late(x): return x * Holder.other
    """,
    "a metaclass": """
        class Meta(type):
            @property
            def k(cls): return 0.5
        class Holder(metaclass=Meta): pass
        def late(x): return x * Holder.k
    """,
    "a backward pass": """
        class Identity(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x): return x * 1.0
            @staticmethod
            def backward(ctx, g): return g * 0.5
        def late(x): return Identity.apply(x)
    """,
    "a helper's constant": """
        K = 0.5
        def deep(x): return x * K
        def middle(x): return deep(x)
        def late(x): return middle(x)
    """,
    "a part of a module": """
        tools = types.ModuleType("tools")
        tools.inner = types.ModuleType("tools.inner")
        tools.inner.ks = [0.5]
        def late(x): return x * tools.inner.ks[0]
    """,
    "a module's `__getattr__`": """
        tools = types.ModuleType("tools")
        tools.__getattr__ = lambda name: 0.5
        def late(x): return x * tools.k
    """,
    "a local import": """
        helpers = sys.modules["helpers_of_a_user"] = types.ModuleType("helpers_of_a_user")
        helpers.k = 0.5
        def late(x):
            from helpers_of_a_user import k
            return x * k
    """,
    "a vectorised function": "scale = np.vectorize(lambda x: x * 0.5)\ndef late(x): return x * float(scale(1.0))",
    "an attribute of a list": "class Ks(list): pass\nKS = Ks()\nKS.k = 0.5\ndef late(x): return x * KS.k",
    "a network": """
        inner = nn.Linear(1, 1)
        nn.init.constant_(inner.weight, 0.5), nn.init.zeros_(inner.bias)
        def late(x): return inner(x)
    """,
    "a weak reference": "class H: k = 0.5\nheld = H()\nR = weakref.ref(held)\ndef late(x): return x * R().k",
    "a context variable": "K = contextvars.ContextVar('K', default=0.5)\ndef late(x): return x * K.get()",
    "a series": "import pandas\nT = pandas.Series([0.5])\ndef late(x): return x * T[0]",
    "a cell of a frame": "import pandas\nT = pandas.DataFrame({'a': [1.0, 0.5]})\ndef late(x): return x * T['a'].sum()",
    "a pattern": "import re\nR = re.compile('0.5')\ndef late(x): return x if R.match('0.7') else -x",
    "a layout of bytes": "import struct\nS = struct.Struct('x0.5'[:1] * int(10 * 0.5))\ndef late(x): return x * S.size",
    "a generator's seed": """
        import random
        G = random.Random(0.5)
        def late(x): return x * copy.deepcopy(G).random()
    """,
    "a generator of NumPy": """
        G = np.random.default_rng(int(10 * 0.5))
        def late(x): return x * copy.deepcopy(G).random()
    """,
    "a step of a pipeline": """
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import MinMaxScaler
        P = make_pipeline(MinMaxScaler((0.0, 0.5))).fit([[0.0], [1.0]])
        def late(x): return x * float(P.transform([[1.0]])[0, 0])
    """,
    "a proxy": "class H: k = 0.5\nheld = H()\nR = weakref.proxy(held)\ndef late(x): return x * R.k",
    "a weak dictionary": """
        class H: k = 0.5
        held = H()
        R = weakref.WeakValueDictionary(a=held)
        def late(x): return x * R['a'].k
    """,
    "a generic class": """
        T = typing.TypeVar("T")
        class Holder(typing.Generic[T]): k = 0.5
        Whole = Holder[int]
        def late(x): return x * Whole.k
    """,
}
OTHERS = {
    "another item": ("get = operator.itemgetter(0)\ndef late(x): return x * get((0.5, 0.7))", "getter(0)", "getter(1)"),
    "another function of torch": ("late = torch.sin", "sin", "cos"),
    "another fraction": (
        "K = fractions.Fraction(1, 2)\ndef late(x): return x * float(K)", "(1, 2)", "(1, 3)",
    ),
    "a shorter range": ("K = range(5)\ndef late(x): return x * len(K)", "range(5)", "range(4)"),
    "another number of an enumeration": (
        "class Kind(enum.IntEnum):\n    A = enum.auto()\n    B = enum.auto()\ndef late(x): return x * Kind.B",
        "    A = enum.auto()\n",
        "",
    ),
    "arguments in another order": (
        "def scale(a, b): return a * 0.5 + 0.0 * b\ndef late(x): return scale(x, 1.0)", "(a, b)", "(b, a)",
    ),
    "one of two equal objects": (
        "class K:\n    def __init__(self): self.k = 1.0\n"
        "A, B = K(), K()\nPAIR = [A, A]\ndef late(x): PAIR[0].k = 2.0; return x * (A.k + B.k + PAIR[1].k)",
        "[A, A]",
        "[A, B]",
    ),
}  # fmt: skip
EDITS = {name: (textwrap.dedent(text), "0.5", "0.7") for name, text in DEFINITIONS.items()} | OTHERS


def defined(text):
    """The module that a text defines."""
    module = sys.modules["definitions_of_a_user"] = types.ModuleType("definitions_of_a_user")
    exec(compile(f"{IMPORTS}\n{textwrap.dedent(text)}\n{NETWORK}", "definitions_of_a_user", "exec"), vars(module))
    return module


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    for name in ("definitions_of_a_user", "helpers_of_a_user"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_changes_the_fingerprint(edit):
    text, old, new = EDITS[edit]
    assert old in text
    first = defined(text)
    before = fingerprint(module=first.Net)
    first.late(torch.ones(1, 1))
    if edit != "one of two equal objects":  # that call changes one
        assert fingerprint(module=first.Net) == before
    assert fingerprint(module=defined(f"{text}\n# a comment").Net) == before
    assert fingerprint(module=defined(text.replace(old, new)).Net) != before


def hashes():
    """The fingerprints of all definitions."""
    return [fingerprint(module=defined(text).Net) for text, _, _ in EDITS.values()]


def test_fingerprints_are_the_same_in_another_process():
    tests = Path(__file__).parents[1]
    path = os.pathsep.join([str(tests.parent), str(tests), *sys.path])
    program = "from storage.test_references import hashes; print(*hashes())"
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "5"}
    printed = subprocess.run(
        [sys.executable, "-c", program], env=environment, cwd=tests, capture_output=True, text=True, check=True
    )
    assert printed.stdout.split() == hashes()


@pytest.mark.parametrize(
    ("package", "statement"),
    [
        ("absolute_of_a_user", "from absolute_of_a_user.inner.values import k"),
        ("relative_of_a_user", "from .inner.values import k"),
        ("nested_of_a_user", "from .inner import values; k = values.k"),
        ("dotted_of_a_user", "import dotted_of_a_user.inner.values; k = dotted_of_a_user.inner.values.k"),
    ],
)
def test_a_module_that_only_a_function_imports_counts(package, statement, tmp_path, monkeypatch):
    """Whether or not it has been imported before."""
    monkeypatch.syspath_prepend(str(tmp_path))
    inner = tmp_path / package / "inner"
    inner.mkdir(parents=True)
    (inner / "values.py").write_text("k = 0.5")
    (inner.parent / "__init__.py").write_text(f"def late(x):\n    {statement}\n    return x * k\n")
    late = __import__(package).late
    before = fingerprint(function=late)
    assert late(1.0) == 0.5
    assert fingerprint(function=late) == before
    sys.modules[f"{package}.inner.values"].k = 0.7
    assert fingerprint(function=late) != before


def test_a_large_graph_of_objects_is_hashed_once_each():
    """Not once per path to each of them, of which there are 2^40 here."""
    text = """
        class Part:
            def __init__(self, *parts): self.parts = parts
        part = Part()
        for _ in range(40): part = Part(part, part)
        part.parts[0].first = part
        def late(x): return x * len(part.parts)
    """
    assert fingerprint(module=defined(text).Net) == fingerprint(module=defined(text).Net)


def test_a_table_counts_as_it_first_was():
    """So a fit that is interrupted and resumed in one process may keep a log; one that is defined again counts."""
    module = defined("LOG = []\ndef late(x): LOG.append(x); return x")
    empty = fingerprint(module=module.Net)
    module.late(1.0)
    assert module.LOG == [1.0] and fingerprint(module=module.Net) == empty
    module.LOG = [1.0]
    assert fingerprint(module=module.Net) != empty


def test_a_function_of_a_library_that_is_a_method_counts_by_name():
    """Its object is the generator of the process, whose state is another one in each."""
    module = defined("from random import randint\ndef late(x): return x * randint(0, 9)")
    before = fingerprint(module=module.Net)
    module.late(1.0)
    again = defined("from random import randint\ndef late(x): return x * randint(0, 9)")
    assert fingerprint(module=again.Net) == before


def test_a_part_without_content_hides_no_other_part():
    text = "import threading\nHELD = {'lock': threading.Lock(), 'k': 0.5}\ndef late(x): return x * HELD['k']"
    before = fingerprint(module=defined(text).Net)
    assert fingerprint(module=defined(text).Net) == before
    assert fingerprint(module=defined(text.replace("0.5", "0.7")).Net) != before
