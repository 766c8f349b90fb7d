"""The API pages and the list of changes, written from the source before a build."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import sklearn_capacity

PACKAGE = sklearn_capacity.__name__


#: The subpackages that users import from; the others are for contributors.
PUBLIC = ("displays", "model_selection", "layers", "penalties", "training", "architectures", "datasets", "theory")
#: Headings of the package's own names, by the subpackage where each is defined.
HEADINGS = {
    "estimators": "Estimators",
    "scoring": "Measuring and scoring",
    "measures": "A measure of your own",
    "persistence": "Saving and loading",
    "": "Errors and warnings",
}


def exported(module: str) -> dict[str, object]:
    """What a module exports, except modules and constants."""
    namespace = importlib.import_module(module)
    things = {name: getattr(namespace, name) for name in getattr(namespace, "__all__", ())}
    return {name: thing for name, thing in things.items() if callable(thing)}


def summary_of(module: str) -> str:
    """The first line of a module's docstring."""
    return (importlib.import_module(module).__doc__ or "").strip().partition("\n")[0]


def section(title: str, module: str, names: list[str], text: str = "") -> list[str]:
    """A heading and a table of names, each with a page of its own."""
    lines = [title, "-" * len(title), "", *([text, ""] if text else []), f".. currentmodule:: {module}", ""]
    return [*lines, ".. autosummary::", "   :toctree: api", "", *(f"   {name}" for name in names), ""]


def api_page() -> str:
    """What users import first: the package's own names by subject, then the public subpackages."""
    lines = ["API", "===", "", "Import these from ``sklearn_capacity`` itself:", ""]
    by_heading: dict[str, list[str]] = {heading: [] for heading in HEADINGS.values()}
    for name, thing in exported(PACKAGE).items():
        by_heading[HEADINGS.get(thing.__module__.split(".")[1], HEADINGS[""])].append(name)
    for heading, names in by_heading.items():
        lines += section(heading, PACKAGE, names)
    for part in PUBLIC:
        module = f"{PACKAGE}.{part}"
        text = f"{summary_of(module)} Import these from ``{module}``."
        lines += section(part.replace("_", " ").capitalize(), module, list(exported(module)), text)
    return "\n".join([*lines, "The other subpackages are for contributors: :doc:`internals`.", ""])


def internals_page() -> str:
    """The names that subpackages export to one another."""
    parts = sorted(info.name for info in pkgutil.iter_modules(sklearn_capacity.__path__) if info.name[0] != "_")
    seen = {id(thing) for part in ("", *PUBLIC) for thing in exported(f"{PACKAGE}.{part}".rstrip(".")).values()}
    lines = ["Internals", "=========", "", "For contributors: what the parts of the package use of each other.", ""]
    for module in (f"{PACKAGE}.{part}" for part in parts if part not in PUBLIC):
        names = [name for name, thing in exported(module).items() if id(thing) not in seen]
        lines += section(module, module, names, summary_of(module)) if names else []
    return "\n".join(lines)


def write_api_pages(folder: Path) -> None:
    """Write `api.rst` and `internals.rst`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_if_changed(folder / "api.rst", api_page())
    write_if_changed(folder / "internals.rst", internals_page())


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
