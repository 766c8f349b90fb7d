"""The API page and the list of changes, written from the source before a build."""

from __future__ import annotations

import importlib
import pkgutil
import re
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
    lines = ["API", "===", "", "Names listed under the package itself are imported from there.", ""]
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


def write_if_changed(path: Path, text: str) -> None:
    """Leave an unchanged page alone, so that Sphinx does not read it again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def write_changes(changes: Path, folder: Path) -> None:
    """Write `changes.inc`: the notes for the next release, new features first."""
    kinds = {"feature": "New", "change": "Changed", "removal": "Removed", "fix": "Repaired", "docs": "Documentation"}
    lines: list[str] = []
    for kind, title in kinds.items():
        notes = sorted(changes.glob(f"*.{kind}.md"))
        lines += [title, "-" * len(title), ""] if notes else []
        for note in notes:
            first, *rest = re.sub(r"(?<!`)`([^`]+)`(?!`)", r"``\1``", note.read_text()).strip().splitlines()
            lines += [f"* {first}", *(f"  {line}" for line in rest)]
        lines.append("")
    write_if_changed(folder / "changes.inc", "\n".join(lines))
