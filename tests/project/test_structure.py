"""The form of the package: import directions, sizes, docstrings. Each checker is tried on a planted fault first."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import os
import pkgutil
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import sklearn_capacity
import structure
from structure import PACKAGE, ROOT, source_files

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


def public_things():
    return [pytest.param(*pair, id=pair[0]) for pair in things(PACKAGE + part for part in FOR_USERS)]


# Over the package -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=id_of)
def test_no_import_is_hidden(path):
    assert structure.detour_faults(path.read_text(), id_of(path)) == []


@pytest.mark.parametrize("path", ALL_FILES, ids=id_of)
def test_functions_are_short(path):
    assert structure.length_faults(path.read_text(), id_of(path)) == []


@pytest.mark.parametrize(
    "package", [path.parent for path in PACKAGE_FILES if path.name == "__init__.py"][1:], ids=id_of
)
def test_every_package_describes_its_files(package):
    assert structure.unmentioned_files(package) == []


def test_all_lists_every_name_that_others_import():
    assert structure.unlisted_names(ROOT) == []


def test_long_files_are_named():
    """A remark for whoever runs the tests; what belongs together may stay together."""
    remarks = [remark for path in ALL_FILES if (remark := structure.file_length(path))]
    if remarks:
        warnings.warn("One idea a file? " + "; ".join(remarks), stacklevel=1)
    assert len(remarks) < len(ALL_FILES) / 20


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=id_of)
def test_random_numbers_come_from_the_cpu(path):
    """Under ``torch.set_default_device("cuda")`` too."""
    assert structure.generator_faults(path.read_text(), id_of(path)) == []


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=id_of)
def test_new_tensors_have_a_device(path):
    assert structure.placement_faults(path.read_text(), id_of(path)) == []


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=id_of)
def test_nothing_is_a_stub(path):
    assert structure.stub_faults(path.read_text(), id_of(path)) == []


@pytest.mark.parametrize("module", MODULES)
def test_all_names_exist(module):
    namespace = importlib.import_module(module)
    names = getattr(namespace, "__all__", [])
    assert len(set(names)) == len(names)
    assert [name for name in names if not hasattr(namespace, name)] == []


@pytest.mark.parametrize(("name", "thing"), public_things())
def test_public_docstrings_are_complete(name, thing):
    assert structure.docstring_faults(name, thing) + structure.record_faults(name, thing) == []


# Where tests are ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PACKAGE_FILES, ids=id_of)
def test_every_file_has_tests_where_one_looks_for_them(path):
    module = path.relative_to(ROOT / PACKAGE)
    assert path.name == "__init__.py" or structure.file_of_tests(module) is not None


def test_the_table_of_tests_holds_nothing_superfluous():
    for name, file in structure.TESTED_IN.items():
        place = ROOT / PACKAGE / name
        assert place.is_dir() or place.with_suffix(".py").exists(), name
        assert (ROOT / "tests" / f"{file}.py").exists(), file
    assert structure.file_of_tests(Path("unknown/thing.py")) is None


# Import directions, by import-linter ----------------------------------------------------------------------------------


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """Run the contracts of pyproject.toml over the package in a folder."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()"]
    command += ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_imports_go_one_way():
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("module", "source", "contract"),
    [
        ("linalg/lanczos", "from sklearn.utils import check_array", "neither scikit-learn nor skorch"),
        ("graph/trace", "import skorch", "Only training and what stands on it know skorch"),
        ("graph/trace", "def f():\n    from skorch.callbacks import Callback", "Only training"),
        ("penalties/frobenius", "from sklearn_capacity.measures import Measure", "down only"),
        ("graph/trace", "from ..measures.record import Measure", "down only"),
        ("graph/nodes", "from ..derivatives import modes", "down only"),  # inside what was one rank
        ("training/net", "from ..estimators import NetworkClassifier", "down only"),
        ("scoring/scorer", "from ..model_selection import capacity_table", "down only"),
        ("layers/dropout", "from ..linalg import lanczos", "down only"),
        ("measures/norms", "from sklearn.metrics import accuracy_score", "neither scikit-learn nor skorch"),
        ("estimators/_base", "from .. import measures", "Training does not measure"),
        ("scoring/scorer", "import sklearn_capacity.estimators._base", "they know no estimator"),
        ("displays/margin", "import torch.nn", "Displays draw arrays"),
        ("graph/trace", "from .. import NetworkClassifier", "imports the package's face"),
        ("graph/trace", "import sklearn_capacity", "imports the package's face"),
        ("utils", "import os", "down only"),  # a part without a layer
    ],
)
def test_import_contracts_see_planted_faults(module, source, contract, tmp_path):
    shutil.copytree(ROOT / PACKAGE, tmp_path / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / PACKAGE / f"{module}.py").open("a") as file:
        file.write(f"\n{source}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    broken = [line for line in done.stdout.splitlines() if "BROKEN" in line or "layer" in line]
    assert any(contract in line for line in broken), done.stdout


# Over planted faults: a checker that finds nothing anywhere is worth nothing ------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        "import importlib\nm = importlib.import_module('sklearn_capacity.estimators')",
        "from importlib import import_module as get\nm = __import__('skorch')",
        "import sys\nm = sys.modules['skorch']",
    ],
)
def test_detour_check_sees_planted_fault(source):
    (fault,) = structure.detour_faults(source, "m")
    assert "hides an import" in fault


def test_a_file_that_its_package_does_not_name_is_seen(tmp_path):
    (tmp_path / "__init__.py").write_text('"""One package: `named` is all."""')
    for name in ("named", "forgotten"):
        (tmp_path / f"{name}.py").touch()
    assert structure.unmentioned_files(tmp_path) == ["forgotten"]


def test_length_check_sees_planted_faults(tmp_path):
    body = "\n".join("    x = 1" for _ in range(61))
    assert "61 lines, more than 60" in structure.length_faults(f"def f():\n{body}\n", "m")[0]
    documented = 'def f():\n    """One.\n' + "\n" * 80 + '    """\n    return 1\n'
    assert structure.length_faults(documented, "m") == []
    longest = max(ALL_FILES, key=lambda path: len(path.read_text().splitlines()))
    n_lines = len(longest.read_text().splitlines())
    assert f"{n_lines} lines" in structure.file_length(longest, n_lines - 1)
    assert structure.file_length(longest, n_lines) is None


def test_all_check_sees_planted_fault(tmp_path):
    package = tmp_path / PACKAGE
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "inner" / "__init__.py").write_text('from .one import first\n\n__all__ = ["first"]\n')
    (package / "inner" / "one.py").write_text('__all__ = ["first"]\nfirst, second = 1, 2\n')
    (package / "two.py").write_text("from .inner import first, one\nfrom sklearn_capacity.inner.one import second\n")
    assert structure.unlisted_names(tmp_path) == [f"{PACKAGE}/two.py:2: {PACKAGE}.inner.one.__all__ lacks second"]


def test_generator_check_sees_planted_faults():
    for call in ("torch.randperm(3, generator=g)", "torch.rand(3, generator=self.g, device=device)"):
        (fault,) = structure.generator_faults(f"x = {call}.to(device)", "m")
        assert 'needs device="cpu"' in fault
    assert structure.generator_faults('torch.rand(3, generator=g, device="cpu"); crop(X, generator=g)', "m") == []


def test_placement_check_sees_planted_faults():
    assert structure.placement_faults("x = torch.arange(3).to(device)", "m") == ["m:1: `torch.arange` needs a device"]
    assert structure.placement_faults("torch.ones(3, device=X.device); torch.eye(3, **like); np.ones(3)", "m") == []


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("def f():\n    raise NotImplementedError", "without a message"),
        ("def f():\n    raise ValueError()", "without a message"),
        ("def f():\n    pass", "does nothing"),
        ("def f():\n    ...", "does nothing"),
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
        p + q.

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


_BROKEN = [
    ("Sum of two numbers.", "Sum of two numbers", "SS03"),
    ("Sum of two numbers.", "Sum of two numbers.\nIndeed.", "SS06"),
    ("p, q : float", "p : float", "PR01"),
    ("p, q : float", "p, q, r : float", "PR02"),
    ("Notes\n-----", "Remarks\n-------", "GL06"),
    ("Returns\n", "Results\n", "RT01"),
    (">>> _complete(1.0)\n2.0", "", "EX01"),
]


def broken_variants():
    variants = []
    for old, new, code in _BROKEN:

        def broken(p: float, q: int = 1) -> float:
            return p + q

        text = inspect.cleandoc(_complete.__doc__)
        assert old in text
        broken.__doc__ = text.replace(old, new)
        variants.append((broken, code))
    return variants


@pytest.mark.parametrize("number", range(len(_BROKEN)), ids=[code for _, _, code in _BROKEN])
def test_docstring_check_sees_planted_fault(number, monkeypatch):
    broken, code = broken_variants()[number]
    monkeypatch.setattr(sys.modules[__name__], "_broken", broken, raising=False)
    faults = structure.docstring_faults(f"{__name__}._broken", broken)
    assert any(code in fault for fault in faults), faults


def test_docstring_check_passes_complete_docstrings():
    assert structure.docstring_faults(f"{__name__}._complete", _complete) == []
    assert structure.docstring_faults(f"{__name__}._Complete", _Complete) == []


@dataclasses.dataclass(frozen=True)
class _Record:
    """A value with its error.

    Attributes
    ----------
    value : float
    error : float
    """

    value: float
    error: float = 0.0


def test_docstring_check_wants_the_attributes_of_records():
    assert structure.docstring_faults(f"{__name__}._Record", _Record) == []
    assert structure.record_faults("r", _Record) == []

    @dataclasses.dataclass(frozen=True)
    class Broken(_Record):
        __doc__ = _Record.__doc__
        steps: int = 0

    assert structure.record_faults("r", Broken) == ["r: no Attributes entry for `steps`"]


def test_importing_the_package_loads_nothing_that_only_some_need():
    code = "import sys, sklearn_capacity; print({'sympy', 'matplotlib', 'dask', 'curvlinops'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
