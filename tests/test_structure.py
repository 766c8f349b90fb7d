"""The form of the package: import directions, sizes, docstrings. Each checker is tried on a planted fault first."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import sklearn_capacity
import structure
from structure import LAYERS, PACKAGE, ROOT, module_name, source_files

PACKAGE_FILES = source_files(PACKAGE)
ALL_FILES = source_files(PACKAGE, "tests", "benchmarks", "examples", "docs", ".ci")
PARTS = [info.name for info in pkgutil.iter_modules(sklearn_capacity.__path__)]
MODULES = [PACKAGE] + [f"{PACKAGE}.{part}" for part in PARTS if not part.startswith("_")]
# What users import; the other parts are read by those who change the package.
FOR_USERS = ("", ".architectures", ".datasets", ".displays", ".layers", ".model_selection", ".theory")


def things(modules) -> list[tuple[str, object]]:
    """Every function and class in the `__all__` of some modules, once, with its dotted name."""
    seen: dict[int, tuple[str, object]] = {}
    for module in modules:
        namespace = importlib.import_module(module)
        for name in getattr(namespace, "__all__", ()):
            thing = getattr(namespace, name)
            if inspect.isclass(thing) or inspect.isfunction(thing):
                seen.setdefault(id(thing), (f"{module}.{name}", thing))
    return sorted(seen.values(), key=lambda pair: pair[0])


def id_of(path) -> str:
    return str(path.relative_to(ROOT))


# Over the package -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=id_of)
def test_imports_go_one_way(path):
    assert structure.import_faults(path.read_text(), module_name(path)) == []


@pytest.mark.parametrize("path", ALL_FILES, ids=id_of)
def test_files_and_functions_are_short(path):
    assert structure.length_faults(path.read_text(), id_of(path)) == []


@pytest.mark.parametrize("path", ALL_FILES, ids=id_of)
def test_no_star_imports(path):
    assert structure.star_faults(path.read_text(), id_of(path)) == []


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=id_of)
def test_random_numbers_come_from_the_cpu(path):
    """Under ``torch.set_default_device("cuda")`` too."""
    assert structure.generator_faults(path.read_text(), id_of(path)) == []


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=id_of)
def test_nothing_is_a_stub(path):
    assert structure.stub_faults(path.read_text(), id_of(path)) == []


@pytest.mark.parametrize("module", MODULES)
def test_all_names_exist(module):
    namespace = importlib.import_module(module)
    names = getattr(namespace, "__all__", [])
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(namespace, name)] == []


@pytest.mark.parametrize(("name", "thing"), [pytest.param(*pair, id=pair[0]) for pair in things(MODULES)])
def test_everything_exported_says_what_it_is(name, thing):
    assert structure.summary_faults(name, thing) == []


@pytest.mark.parametrize(
    ("name", "thing"), [pytest.param(*pair, id=pair[0]) for pair in things(PACKAGE + part for part in FOR_USERS)]
)
def test_public_docstrings_are_complete(name, thing):
    assert structure.docstring_faults(name, thing) == []


def test_every_layer_exists():
    assert set(PARTS) - structure.ON_TOP - set(LAYERS) == set()


# Over planted faults: a checker that finds nothing anywhere is worth nothing ------------------------------------------


@pytest.mark.parametrize(
    ("module", "source", "complaint"),
    [
        ("linalg.lanczos", "from sklearn.utils import check_array", "never import sklearn"),
        ("derivatives.fisher_matrix", "import skorch", "never import skorch"),
        ("derivatives.fisher_matrix", "def f():\n    from skorch.callbacks import Callback", "never import skorch"),
        ("penalties.jacobian", "from sklearn_capacity.measures import path_norm", "from above"),
        ("graph.trace", "from ..measures._record import Measure", "from above"),
        ("measures.margins", "from sklearn.metrics import accuracy_score", "never import sklearn"),
        ("measures.__init__", "from ..scoring import CapacityScorer", "from above"),
        ("estimators.classifier", "from ..measures import norms", "never import sklearn_capacity.measures"),
        ("estimators.classifier", "from .. import measures", "never import sklearn_capacity.measures"),
        ("scoring.scorer", "import sklearn_capacity.estimators.classifier", "never import sklearn_capacity.estimators"),
        ("displays.paths", "import torch.nn", "never import torch"),
        ("graph.trace", "from .. import NetworkClassifier", "from above"),
        ("graph.trace", "import sklearn_capacity", "from above"),
        ("utils", "import os", "no layer"),
    ],
)
def test_import_check_sees_planted_fault(module, source, complaint):
    (fault,) = structure.import_faults(source, f"{PACKAGE}.{module}")
    assert complaint in fault


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("measures.norms", "import torch\nfrom ..graph import Network\nfrom ._record import Measure"),
        ("graph.__init__", "from .trace import trace\nfrom .._validation import closest"),
        ("scoring.scorer", "from sklearn.base import BaseEstimator\nfrom ..measures import families"),
        ("__main__", "from sklearn_capacity import CapacityScorer\nimport torch, sklearn"),
        ("graph.trace", "import torchsketch, sklearnish"),
    ],
)
def test_import_check_lets_good_imports_pass(module, source):
    assert structure.import_faults(source, f"{PACKAGE}.{module}") == []


def test_length_check_sees_planted_faults():
    body = "\n".join("    x = 1" for _ in range(61))
    assert "61 lines, more than 60" in structure.length_faults(f"def f():\n{body}\n", "m")[0]
    documented = 'def f():\n    """One.\n' + "\n" * 80 + '    """\n    return 1\n'
    assert structure.length_faults(documented, "m") == []
    assert "401 lines" in structure.length_faults("x = 1\n" * 401, "m")[0]
    assert structure.length_faults("x = 1\n" * 400, "m") == []


def test_generator_check_sees_planted_faults():
    for call in ("torch.randperm(3, generator=g)", "torch.rand(3, generator=self.g, device=device)"):
        (fault,) = structure.generator_faults(f"x = {call}.to(device)", "m")
        assert 'needs device="cpu"' in fault
    assert structure.generator_faults('torch.rand(3, generator=g, device="cpu"); crop(X, generator=g)', "m") == []


def test_star_check_sees_planted_fault():
    assert structure.star_faults("from torch import *", "m") == ["m:1: star import"]


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f():\n    raise NotImplementedError", "without a message"),
        ("def f():\n    raise ValueError()", "without a message"),
        ("def f():\n    pass", "does nothing"),
        ("def f():\n    ...", "does nothing"),
        ("try:\n    x = 1\nexcept:\n    x = 2", "bare except"),
    ],
)
def test_stub_check_sees_planted_fault(source, complaint):
    (fault,) = structure.stub_faults(source, "m")
    assert complaint in fault


def _complete(p: float, q: int = 1) -> float:
    """Sum of two numbers.

    Parameters
    ----------
    p, q : float

    Returns
    -------
    float

    Notes
    -----
    One addition.

    Examples
    --------
    >>> _complete(1.0)
    2.0
    """
    return p + q


class _Complete:
    """A thing with one number.

    Parameters
    ----------
    size : int, default=1

    Examples
    --------
    >>> _Complete().size
    1
    """

    def __init__(self, size: int = 1):
        self.size = size


def test_docstring_check_passes_complete_docstrings():
    assert structure.docstring_faults("f", _complete, ("Notes",)) == []
    assert structure.docstring_faults("c", _Complete) == []


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("Sum of two numbers.", "Sum of two numbers", "one whole sentence"),
        ("Sum of two numbers.", "Sum of two numbers.\nIndeed.", "blank line"),
        ("p, q : float", "p : float", "no Parameters entry for ['q']"),
        ("p, q : float", "p, q, r : float", "parameters ['r'] too often"),
        ("p, q : float", "p, q, q : float", "parameters ['q'] too often"),
        ("Parameters\n", "Arguments\n", "no Parameters entry for"),
        ("Returns\n", "Results\n", "no Returns"),
        (">>> ", "", "no Examples"),
        ("One addition.\n", "\n", "no Notes"),
    ],
)
def test_docstring_check_sees_planted_fault(old, new, complaint):
    def broken(p: float, q: int = 1) -> float:
        return p + q

    text = inspect.cleandoc(_complete.__doc__)
    assert old in text
    broken.__doc__ = text.replace(old, new)
    (fault,) = structure.docstring_faults("broken", broken, ("Notes",))
    assert complaint in fault


@dataclasses.dataclass(frozen=True)
class _Result:
    """A value with its error.

    Attributes
    ----------
    value : float
    error : float
    """

    value: float
    error: float = 0.0


def test_docstring_check_wants_the_attributes_of_results():
    assert structure.docstring_faults("r", _Result) == []

    @dataclasses.dataclass(frozen=True)
    class Broken(_Result):
        __doc__ = _Result.__doc__
        steps: int = 0

    assert structure.docstring_faults("r", Broken) == ["r: no Attributes entry for ['steps']"]


def test_docstring_check_wants_a_sentence_of_errors():
    class Wrong(ValueError):
        """Something is wrong."""

    assert structure.docstring_faults("e", Wrong) == []
    Wrong.__doc__ = "something"
    assert len(structure.docstring_faults("e", Wrong)) == 1


def test_docstring_check_does_not_take_a_base_class_for_an_answer():
    class Child(_Complete):
        pass

    assert structure.docstring_faults("child", Child) == [
        "child: the first line must be one whole sentence, is ''",
        "child: no Parameters entry for ['size']",
        "child: no Examples that run",
    ]


def test_importing_the_package_loads_nothing_that_only_some_need():
    code = "import sys, sklearn_capacity; print({'sympy', 'matplotlib', 'dask', 'curvlinops'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
