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

# Complaints of numpydoc that do not count for a public docstring: a See Also section and a text below the summary are
# there where they help. Parameters that another docstring describes ("As in `fit`") have neither type nor text. A
# variant's parameters precede those that all estimators share. A summary is the noun of its quantity, which may be a
# plural. A text may begin with a symbol (alpha_0, k, float32), which has no capital.
ALLOWED = {"SA01", "ES01", "PR04", "PR07", "PR03", "SS05", "PR08", "RT04"}
# The fields of a record that functions return are attributes, and the functions have the examples.
ALLOWED_IN_RECORDS = {"PR01", "EX01"}
# What looks up modules by name: those that a user's code imports, to hash them.
FOLLOWS_IMPORTS = {"sklearn_capacity/storage/origins.py", "sklearn_capacity/storage/references.py"}


def source_files(*folders: str) -> list[Path]:
    """All Python files of the given folders of the repository."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def detour_faults(source: str, module: str) -> list[str]:
    """Imports that a reader of import statements does not see: by `importlib`, `__import__` or `sys.modules`."""
    if module in FOLLOWS_IMPORTS:
        return []
    hidden = {"__import__", "importlib.import_module", "import_module", "sys.modules"}
    return [
        f"{module}:{node.lineno}: {ast.unparse(node)} hides an import"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, (ast.Name, ast.Attribute)) and ast.unparse(node) in hidden
    ]


def torch_calls(source: str) -> list[tuple[ast.Call, str]]:
    """The calls of functions of ``torch`` itself, with their names."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    named = [(call, call.func) for call in calls if isinstance(call.func, ast.Attribute)]
    return [(call, function.attr) for call, function in named if ast.unparse(function.value) == "torch"]


def generator_faults(source: str, module: str) -> list[str]:
    """Random tensors drawn by a generator, all of which are on the CPU, on whatever the default device is."""
    return [
        f'{module}:{node.lineno}: `torch.{name}` with a generator needs device="cpu"'
        for node, name in torch_calls(source)
        if {"generator"} <= {keyword.arg for keyword in node.keywords}
        and "'cpu'" not in {ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "device"}
    ]


CONSTRUCTORS = {"arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "tensor", "zeros"}


def placement_faults(source: str, module: str) -> list[str]:
    """New tensors that would be on whatever the default device is."""
    return [
        f"{module}:{node.lineno}: `torch.{name}` needs a device"
        for node, name in torch_calls(source)
        if name in CONSTRUCTORS
        and {"device", None}.isdisjoint(keyword.arg for keyword in node.keywords)  # or keywords in a dict
    ]


def file_length(path: Path, limit: int = 400) -> str | None:
    """A remark on a file that is too long to hold one idea: a habit, not a wall."""
    n_lines = len(path.read_text().splitlines())
    return f"{path.relative_to(ROOT)}: {n_lines} lines, more than {limit}" if n_lines > limit else None


def unmentioned_files(package: Path) -> list[str]:
    """Files and packages inside a package that the docstring of its `__init__` does not name in backticks."""
    described = ast.get_docstring(ast.parse((package / "__init__.py").read_text())) or ""
    inside = [p.stem for p in package.glob("*.py")] + [p.parent.name for p in package.glob("*/__init__.py")]
    return sorted(name for name in inside if not name.startswith("__") and f"`{name}`" not in described)


def unlisted_names(folder: Path, package: str = PACKAGE) -> list[str]:
    """Names that a file of the package imports from another one whose `__all__` does not list them."""
    trees = {path: ast.parse(path.read_text()) for path in sorted((folder / package).rglob("*.py"))}
    modules = {_dotted(path.relative_to(folder)): tree for path, tree in trees.items()}
    listed = {module: set(_listed(tree)) for module, tree in modules.items()}
    faults = []
    for path, tree in trees.items():
        for node in ast.walk(tree):
            if not isinstance(node, ast.ImportFrom):
                continue
            parents = path.relative_to(folder).parts[: -node.level] if node.level else ()
            source = ".".join([*parents, *([node.module] if node.module else [])])
            names = [alias.name for alias in node.names if f"{source}.{alias.name}" not in modules]
            missing = [name for name in names if name not in listed.get(source, names)]
            faults += [f"{path.relative_to(folder)}:{node.lineno}: {source}.__all__ lacks {name}" for name in missing]
    return faults


def _dotted(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _listed(tree: ast.Module) -> list[str]:
    """The strings in the lists that are assigned or added to `__all__`."""
    assignments = [node for node in tree.body if isinstance(node, ast.Assign | ast.AugAssign)]
    lists = [
        a for a in assignments if "__all__" in ast.unparse(a.targets[0] if isinstance(a, ast.Assign) else a.target)
    ]
    return [c.value for a in lists for c in ast.walk(a.value) if isinstance(c, ast.Constant)]


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
        What that name means.
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


# Where tests are ------------------------------------------------------------------------------------------------------

# The test of `a/b.py` is `tests/a/test_b.py`. Where several files are tested as one, or a file through those that use
# it, it is named here; a package's name covers those of its files that have no entry.
TESTED_IN = {
    "__main__": "command_line/test_command_line",
    "command_line": "command_line/test_command_line",
    "_validation": "scoring/test_wrong_kinds",
    "_version": "project/test_packaging",
    "architectures": "architectures/test_architectures",
    "datasets": "datasets/test_datasets",
    "derivatives": "derivatives/test_parameter_jacobian",
    "derivatives/input_jacobian": "penalties/test_jacobian_penalty",
    "derivatives/input_sweeps": "penalties/test_sweep_gradients",
    "derivatives/modes": "penalties/test_jacobian_penalty",
    "derivatives/output_fisher": "measures/test_fisher_rao",
    "derivatives/parameter_vector": "derivatives/test_perturbation",
    "derivatives/sweep_rules": "penalties/test_sweep_gradients",
    "derivatives/tape": "penalties/test_sweep_gradients",
    "displays": "displays/test_fisher_displays",
    "displays/hidden_margin": "measures/test_hidden_margins",
    "displays/sources": "displays/test_display_sources",
    "displays/learning_rate_map": "displays/test_learning_rate_map_display",
    "displays/margin": "displays/test_margin_display",
    "displays/norm_geometry": "displays/test_norm_displays",
    "displays/weight_histogram": "displays/test_norm_displays",
    "estimators": "estimators/test_estimators",
    "estimators/_generalization_layer": "estimators/test_generalization_layer_estimators",
    "estimators/_layer_hooks": "estimators/test_generalization_layer_estimators",
    "graph": "graph/test_network",
    "graph/end_layers": "penalties/test_end_layers",
    "graph/linear_maps": "graph/test_weight_layers",
    "graph/module_layers": "graph/test_weight_layers",
    "layers": "layers/test_layers",
    "linalg": "linalg/test_operators",
    "linalg/banded_certificate": "linalg/test_conv",
    "linalg/lanczos_process": "linalg/test_lanczos",
    "linalg/padding": "linalg/test_conv",
    "linalg/torus_bound": "linalg/test_conv",
    "measures": "measures/test_every_measure",
    "measures/battery_distances": "measures/test_battery",
    "measures/capacities": "measures/test_paths",
    "measures/confidence_limits": "measures/test_pac_bayes",
    "measures/curvature": "measures/test_margins",
    "measures/fisher_eigenvalues": "measures/test_fisher_spectrum",
    "measures/fisher_limits": "measures/test_every_measure",
    "measures/hessian_estimates": "measures/test_hessian",
    "measures/induced_norms": "measures/test_norms",
    "measures/jacobians": "measures/test_margins",
    "measures/layer_operators": "measures/test_norms",
    "measures/learned_parts": "measures/test_pac_bayes",
    "measures/losses": "measures/test_sharpness",
    "measures/moved_weights": "measures/test_sharpness",
    "measures/normalized_margins": "measures/test_margins",
    "measures/output_gram": "measures/test_margins",
    "measures/output_traces": "measures/test_margins",
    "measures/power_law_tails": "measures/test_spectral_shape",
    "measures/radii": "measures/test_robustness",
    "measures/rise_search": "measures/test_battery_flatness",
    "measures/rectifier_chain": "measures/test_data_norms",
    "model_selection": "model_selection/test_rank_measures",
    "model_selection/conditional_information": "model_selection/test_rank_measures",
    "model_selection/rank_statistics": "model_selection/test_rank_measures",
    "penalties": "penalties/test_sweep_gradients",
    "penalties/frobenius": "penalties/test_jacobian_penalty",
    "penalties/fisher_rao": "penalties/test_parameter_penalties",
    "penalties/gradient_norm": "penalties/test_parameter_penalties",
    "penalties/module_graph": "penalties/test_shared_pass",
    "penalties/one_hidden_layer": "penalties/test_end_layers",
    "penalties/penalty_checks": "training/test_penalty_terms",
    "penalties/weight_norms": "penalties/test_parameter_penalties",
    "process_state/forks": "project/test_forks",
    "process_state/gates": "process_state/test_traces",
    "scoring": "scoring/test_scorer",
    "scoring/curves": "measures/test_interaction",
    "scoring/example_networks": "scoring/test_measure_checks",
    "scoring/from_sklearn": "scoring/test_find_network",
    "scoring/landscape": "displays/test_norm_displays",
    "scoring/measure_invariances": "scoring/test_measure_checks",
    "scoring/spectrum": "measures/test_fisher_spectrum",
    "storage/contents": "storage/test_fingerprint",
    "storage/known_functions": "graph/test_known_programs",
    "storage/origins": "storage/test_references",
    "storage/snapshots": "graph/test_known_programs",
    "storage": "persistence/test_safe_files",
    "theory": "theory/test_mean_field",
    "theory/_covering": "measures/test_robustness",
    "theory/_initialize": "theory/test_learning_rate_map",
    "training": "training/test_net",
    "training/regime": "estimators/test_generalization_layer_estimators",
}


def file_of_tests(module: Path) -> Path | None:
    """The file that tests a module of the package, given as a path inside it; None if there is none."""
    module = module.with_suffix("")
    mirror = ROOT / "tests" / module.parent / f"test_{module.name.lstrip('_')}.py"
    if mirror.exists():
        return mirror
    named = TESTED_IN.get(module.as_posix()) or TESTED_IN.get(module.parts[0])
    path = ROOT / "tests" / f"{named}.py"
    return path if named and path.exists() else None
