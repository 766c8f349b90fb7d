"""Checkers of the package's form that no public tool has, as functions from source text to a list of complaints.

Import directions are import-linter's (pyproject.toml), docstrings numpydoc's and ruff's. `test_structure.py` runs each
checker over the package, and on a planted fault.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
from pathlib import Path

PACKAGE = "sklearn_capacity"
ROOT = Path(__file__).resolve().parents[1]

# What numpydoc may say of a public docstring: a See Also section and a text below the summary are there where they
# help. Parameters that another docstring describes ("As in `fit`") have neither type nor text. A variant's parameters
# stand before those that all estimators share. A summary is the noun of its quantity, which may be a plural. A text may
# begin with a symbol (alpha_0, k, float32), which has no capital.
ALLOWED = {"SA01", "ES01", "PR04", "PR07", "PR03", "SS05", "PR08", "RT04"}
# The fields of a record that functions return are attributes, and the functions have the examples.
ALLOWED_IN_RECORDS = {"PR01", "EX01"}


def source_files(*folders: str) -> list[Path]:
    """All Python files of the given folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def detour_faults(source: str, module: str) -> list[str]:
    """Imports that a reader of import statements does not see: by `importlib`, `__import__` or `sys.modules`."""
    hidden = {"__import__", "importlib.import_module", "import_module", "sys.modules"}
    return [
        f"{module}:{node.lineno}: {ast.unparse(node)} hides an import"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node) in hidden
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


def file_length(path: Path, limit: int = 400) -> str | None:
    """A remark on a file that is too long to hold one idea: a habit, not a wall."""
    n_lines = len(path.read_text().splitlines())
    return f"{path.relative_to(ROOT)}: {n_lines} lines, more than {limit}" if n_lines > limit else None


def length_faults(source: str, module: str, *, limit: int = 60) -> list[str]:
    """Functions too long for a screen; docstring and signature are not counted."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
            length = (node.end_lineno or first.lineno) - first.lineno + 1
            if length > limit:
                faults.append(f"{module}:{node.lineno}: `{node.name}` has {length} lines, more than {limit}")
    return faults


def stub_faults(source: str, module: str) -> list[str]:
    """Exceptions without a message, and bodies that do nothing."""
    faults = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            call = node.exc
            name = call.func if isinstance(call, ast.Call) else call
            wordless = not (isinstance(call, ast.Call) and (call.args or call.keywords))
            if isinstance(name, ast.Name) and name.id in _BUILTIN_ERRORS and wordless:
                faults.append(f"{module}:{node.lineno}: {name.id} without a message")
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


def docstring_faults(name: str, thing: object) -> list[str]:
    """What numpydoc finds wrong with the docstring of a public function or class.

    Parameters
    ----------
    name : str
        The dotted name under which it can be imported.
    thing : object
        What that name stands for.
    """
    from numpydoc.validate import validate  # loads Sphinx

    allowed = ALLOWED | (ALLOWED_IN_RECORDS if _is_record(thing) else set())
    return [f"{name}: {code} {text}" for code, text in validate(name)["errors"] if code not in allowed]


def record_faults(name: str, thing: object) -> list[str]:
    """Fields of a record that its Attributes section does not name."""
    from numpydoc.docscrape import ClassDoc

    if not _is_record(thing):
        return []
    listed = {part.strip() for entry in ClassDoc(thing)["Attributes"] for part in entry.name.split(",")}
    return [f"{name}: no Attributes entry for `{p}`" for p in inspect.signature(thing).parameters if p not in listed]


def _is_record(thing: object) -> bool:
    frozen = dataclasses.is_dataclass(thing) and thing.__dataclass_params__.frozen
    return inspect.isclass(thing) and (frozen or hasattr(thing, "_fields"))
