"""Checkers of the package's form, as functions from source text to a list of complaints.

`test_structure.py` runs each over the package, and on a planted fault.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path

PACKAGE = "sklearn_capacity"
ROOT = Path(__file__).resolve().parents[1]

# Each layer imports its own kind and what stands below it, and never what is listed beside it.
LAYERS: dict[str, int] = {
    "_validation": 0,
    "linalg": 0,
    "storage": 0,
    "derivatives": 2,
    "layers": 1,
    "datasets": 1,
    "graph": 2,
    "architectures": 2,
    "penalties": 2,
    "theory": 2,
    "measures": 3,
    "training": 4,
    "estimators": 4,
    "scoring": 5,
    "model_selection": 5,
    "persistence": 5,
    "displays": 6,
}
ON_TOP = {"__init__", "__main__"}  # the package's face and its demo may import everything
NEVER: dict[int, tuple[str, ...]] = {
    0: ("sklearn", "skorch"),
    1: ("skorch",),
    2: ("skorch",),
    3: ("sklearn", "skorch"),
    4: (f"{PACKAGE}.measures",),
    5: (f"{PACKAGE}.estimators",),
    6: ("torch",),
}


def source_files(*folders: str) -> list[Path]:
    """All Python files of the given folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module_name(path: Path) -> str:
    """`sklearn_capacity/graph/__init__.py` -> `sklearn_capacity.graph.__init__`."""
    return ".".join(path.resolve().relative_to(ROOT).with_suffix("").parts)


def imported(tree: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything a module imports, also inside functions."""
    package = module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            stem = ".".join([*base, *(node.module.split(".") if node.module else [])])
            for alias in node.names:
                yield node.lineno, stem if alias.name == "*" else f"{stem}.{alias.name}"


def layer_of(module: str) -> str | None:
    """The part of the package a dotted name lies in; None outside the package."""
    parts = module.split(".")
    return (parts[1] if len(parts) > 1 else "__init__") if parts[0] == PACKAGE else None


def import_faults(source: str, module: str) -> list[str]:
    """Imports that go up, or to what the module's layer may never see."""
    mine = layer_of(module)
    if mine in ON_TOP:
        return []
    if mine not in LAYERS:
        return [f"{module}: `{mine}` has no layer; give it one in tests/structure.py"]
    rank = LAYERS[mine]
    faults = []
    for line, name in imported(ast.parse(source), module):
        theirs = layer_of(name)
        if theirs is not None and (theirs not in LAYERS or LAYERS[theirs] > rank):
            faults.append(f"{module}:{line}: `{mine}` (layer {rank}) imports {name} from above it")
        for banned in NEVER[rank]:
            if name == banned or name.startswith(banned + "."):
                faults.append(f"{module}:{line}: `{mine}` (layer {rank}) must never import {banned}: {name}")
    return faults


def star_faults(source: str, module: str) -> list[str]:
    """Star imports."""
    return [
        f"{module}:{node.lineno}: star import"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names)
    ]


def generator_faults(source: str, module: str) -> list[str]:
    """Random tensors drawn by a generator, all of which are on the CPU, on whatever the default device is."""
    return [
        f'{module}:{node.lineno}: `torch.{node.func.attr}` with a generator needs device="cpu"'
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value) == "torch"
        and {"generator"} <= {keyword.arg for keyword in node.keywords}
        and "'cpu'" not in {ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "device"}
    ]


def length_faults(source: str, module: str, *, file_limit: int = 400, function_limit: int = 60) -> list[str]:
    """Files too long to hold one idea, and functions too long for a screen (docstring and signature not counted)."""
    faults = []
    n_lines = len(source.splitlines())
    if n_lines > file_limit:
        faults.append(f"{module}: {n_lines} lines, more than {file_limit}")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            length = (node.end_lineno or first.lineno) - first.lineno + 1
            if length > function_limit:
                faults.append(f"{module}:{node.lineno}: `{node.name}` has {length} lines, more than {function_limit}")
    return faults


def stub_faults(source: str, module: str) -> list[str]:
    """Exceptions without a word, bodies that do nothing, and promises."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            call = node.exc
            name = call.func if isinstance(call, ast.Call) else call
            wordless = not (isinstance(call, ast.Call) and (call.args or call.keywords))
            if isinstance(name, ast.Name) and name.id in _BUILTIN_ERRORS and wordless:
                faults.append(f"{module}:{node.lineno}: {name.id} without a message")
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            faults.append(f"{module}:{node.lineno}: bare except")
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            empty = all(isinstance(s, ast.Pass) or _is_ellipsis(s) for s in body)
            if empty and (body or node.body) and not _may_be_empty(node):
                faults.append(f"{module}:{node.lineno}: `{node.name}` does nothing")
    return faults


_BUILTIN_ERRORS = {"ValueError", "TypeError", "RuntimeError", "NotImplementedError", "KeyError", "IndexError"}


def _is_ellipsis(statement: ast.stmt) -> bool:
    value = statement.value if isinstance(statement, ast.Expr) else None
    return isinstance(value, ast.Constant) and value.value is ...


def _may_be_empty(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """A hook with a docstring, an abstract method, an overload."""
    marks = {ast.unparse(d).split(".")[-1] for d in node.decorator_list}
    return bool(marks & {"abstractmethod", "overload"}) or ast.get_docstring(node) is not None


# Docstrings -----------------------------------------------------------------------------------------------------------

SECTION = re.compile(r"^(?P<title>[A-Z][A-Za-z ]+)\n-{3,}$", re.MULTILINE)


def sections(docstring: str) -> dict[str, str]:
    """Title -> text of the numpydoc sections of a docstring; the head stands under the empty title."""
    text = inspect.cleandoc(docstring)
    marks = list(SECTION.finditer(text))
    ends = [m.start() for m in marks[1:]] + [len(text)] if marks else []
    found = {"": text[: marks[0].start()] if marks else text}
    for mark, end in zip(marks, ends, strict=True):
        found[mark["title"]] = text[mark.end() : end]
    return found


def documented_parameters(section: str) -> list[str]:
    """Names in a Parameters section; `a, b : float` counts as two, `**kwargs` as none."""
    names: list[str] = []
    for line in section.splitlines():
        match = re.match(r"^(\*{0,2}\w+(?:, *\*{0,2}\w+)*)(?: :.*)?$", line)
        if match:
            names += [name.strip() for name in match[1].split(",") if not name.strip().startswith("*")]
    return names


def signature_parameters(function: Callable) -> list[str]:
    """Names of the parameters that a reader has to know about; what is handed on as `**kwargs` is not."""
    listed = inspect.signature(function).parameters.values()
    return [p.name for p in listed if p.name not in ("self", "cls") and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]


def own_docstring(thing: object) -> str:
    """A thing's docstring, if it is not its base class's."""
    return (vars(thing).get("__doc__") if inspect.isclass(thing) else thing.__doc__) or ""


def summary_faults(name: str, thing: object) -> list[str]:
    """Whether a docstring starts with one sentence, and documents no parameter that is not there."""
    found = sections(own_docstring(thing))
    summary, _, rest = found[""].strip().partition("\n")
    faults = []
    if not summary.endswith("."):
        faults.append(f"{name}: the first line must be one whole sentence, is {summary!r}")
    if rest and not rest.startswith("\n"):
        faults.append(f"{name}: a blank line must follow the summary")
    documented, expected = _documented_and_expected(thing, found)
    wrong = sorted(n for n in set(documented) if documented.count(n) != expected.count(n))
    return faults + ([f"{name}: documents the parameters {wrong} too often"] if wrong else [])


def docstring_faults(name: str, thing: object, extra: tuple[str, ...] = ()) -> list[str]:
    """What the docstring of a function or class of the public interface lacks."""
    faults = summary_faults(name, thing)
    found = sections(own_docstring(thing))
    documented, expected = _documented_and_expected(thing, found)
    if _is_result(thing):
        listed = documented_parameters(found.get("Attributes", ""))
        missing = [field for field in expected if field not in listed]
        return faults + ([f"{name}: no Attributes entry for {missing}"] if missing else [])
    missing = [parameter for parameter in expected if parameter not in documented]
    if missing:
        faults.append(f"{name}: no Parameters entry for {missing}")
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return faults  # whoever raises it has the examples
    if inspect.isfunction(thing) and _gives_something(thing) and not {"Returns", "Yields"} & set(found):
        faults.append(f"{name}: no Returns")
    if ">>>" not in found.get("Examples", ""):
        faults.append(f"{name}: no Examples that run")
    return faults + [f"{name}: no {title}" for title in extra if not found.get(title, "").strip()]


def _documented_and_expected(thing: object, found: dict[str, str]) -> tuple[list[str], list[str]]:
    documented = documented_parameters(found.get("Parameters", "") + found.get("Other Parameters", ""))
    if inspect.isclass(thing) and thing.__init__ is object.__init__:
        return documented, []
    return documented, signature_parameters(thing.__init__ if inspect.isclass(thing) else thing)


def _is_result(thing: object) -> bool:
    """A frozen record that functions return: its fields are attributes, and the functions have the examples."""
    frozen = dataclasses.is_dataclass(thing) and thing.__dataclass_params__.frozen
    return inspect.isclass(thing) and (frozen or hasattr(thing, "_fields"))


def _gives_something(function: Callable) -> bool:
    return inspect.signature(function).return_annotation not in (None, "None")
