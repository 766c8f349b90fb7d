"""Pages that are written from the source before a build: the API page, and one page per example."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import sklearn_capacity

PACKAGE = sklearn_capacity.__name__


def api_modules() -> list[str]:
    """The package, then its public parts that export something."""
    parts = sorted(info.name for info in pkgutil.iter_modules(sklearn_capacity.__path__) if info.name[0] != "_")
    names = [PACKAGE, *(f"{PACKAGE}.{part}" for part in parts)]
    return [name for name in names if getattr(importlib.import_module(name), "__all__", ())]


def api_page() -> str:
    """The API page: every name of every `__all__`, under the module where a user imports it."""
    lines = ["API", "===", "", "What is listed under the package's own name is imported from there.", ""]
    seen: set[int] = set()
    for module in api_modules():
        namespace = importlib.import_module(module)
        summary = (namespace.__doc__ or "").strip().partition("\n")[0]
        things = {name: getattr(namespace, name) for name in namespace.__all__}
        names = [n for n, thing in things.items() if callable(thing) and id(thing) not in seen]
        seen.update(id(things[name]) for name in names)
        if names:
            lines += [module, "-" * len(module), "", summary, "", f".. currentmodule:: {module}", ""]
            lines += [".. autosummary::", "   :toctree: api", "", *(f"   {name}" for name in names), ""]
    return "\n".join(lines)


def write_api_page(folder: Path) -> None:
    """Write `api.rst`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_if_changed(folder / "api.rst", api_page())


def example_page(path: Path, include: str) -> str:
    """Title and text from the script's docstring, then the script itself."""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    title, _, text = docstring.partition("\n")
    title = title.strip().rstrip(".")
    text = "\n".join(line for line in text.splitlines() if set(line.strip()) - set("=-") or not line.strip())
    return "\n".join([title, "=" * len(title), "", text.strip(), "", f".. literalinclude:: {include}", ""])


def write_example_pages(examples: Path, folder: Path) -> None:
    """Write one page per script and the list of them."""
    pages = folder / "examples"
    pages.mkdir(parents=True, exist_ok=True)
    scripts = sorted(examples.rglob("*.py"))
    for old in set(pages.glob("*.rst")) - {pages / f"{script.stem}.rst" for script in scripts}:
        old.unlink()
    for script in scripts:
        include = f"../../../examples/{script.relative_to(examples).as_posix()}"
        write_if_changed(pages / f"{script.stem}.rst", example_page(script, include))
    lines = ["Examples", "========", "", "Scripts to run as they stand; those that draw need the extra `plot`.", ""]
    lines += [".. toctree::", "   :maxdepth: 1", "", *(f"   examples/{script.stem}" for script in scripts), ""]
    write_if_changed(folder / "examples.rst", "\n".join(lines))


def write_if_changed(path: Path, text: str) -> None:
    """Leave an unchanged page alone, so that Sphinx does not read it again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)
