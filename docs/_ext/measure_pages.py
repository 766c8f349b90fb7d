"""The table of measures and their descriptions, written from the records before a build."""

from __future__ import annotations

from pathlib import Path

from written_pages import write_if_changed

from sklearn_capacity import list_measures
from sklearn_capacity.measures import MEASURES

FAMILY_TITLES = {
    "size": "Size",
    "norm": "Weight norms",
    "data_norm": "Data-dependent norms",
    "capacity": "Norms over margins",
    "margin": "Margins",
    "jacobian": "Jacobians",
    "lipschitz": "Lipschitz constants",
    "robustness": "Robustness",
    "fisher": "Fisher information",
    "sharpness": "Sharpness",
    "pac_bayes": "PAC-Bayes",
}


def title_of(family: str) -> str:
    """A heading for a family; one that has none here gets its own name."""
    return FAMILY_TITLES.get(family, family.replace("_", " ").capitalize())


def reference(name: str) -> str:
    """A link to the function that computes a measure."""
    function = MEASURES[name].function
    return f":func:`{name} <{function.__module__}.{function.__qualname__}>`"


def table_rows(table) -> list[list[str]]:
    """Cells of the rows of one family."""
    rows = []
    for row in table.to_dict("records"):
        tasks = "both" if "," in row["tasks"] else row["tasks"]
        needs = row["needs"] or "nothing"
        cells = [reference(row["name"]), *(row[key] for key in ("summary", "better"))]
        rows.append([*cells, needs, row["cost"], row["unit"], tasks, row["source"]])
    return rows


def list_table(rows: list[list[str]]) -> list[str]:
    """A reStructuredText table."""
    head = ["name", "what it is", "better", "needs", "cost", "unit", "tasks", "source"]
    lines = [".. list-table::", "   :header-rows: 1", "   :class: measures", ""]
    for cells in [head, *rows]:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(cells)]
    return [*lines, ""]


def functions_of(names) -> list[str]:
    """The functions behind some measures, each once, as autodoc names them."""
    found = {}
    for name in names:
        function = MEASURES[name].function
        found[f"{function.__module__}.{function.__qualname__}"] = None
    return list(found)


def measure_text() -> str:
    """Tables of all families, then the functions' docstrings."""
    table = list_measures()
    lines: list[str] = []
    families = list(dict.fromkeys(table["family"]))
    for family in families:
        rows = table[table["family"] == family]
        lines += [title_of(family), "-" * len(title_of(family)), "", *list_table(table_rows(rows))]
    lines += ["Definitions", "-----------", "", "Every function below is called by its name in `measures=`; ", ""]
    lines[-2] += "`network` and `batch` are made by the scorer."
    for function in functions_of(table["name"]):
        lines += [f".. autofunction:: {function}", "   :no-index-entry:", ""]
    return "\n".join(lines)


def write_measures(folder: Path) -> None:
    """Write `measures.inc`, which `measures.rst` includes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_if_changed(folder / "measures.inc", measure_text())
