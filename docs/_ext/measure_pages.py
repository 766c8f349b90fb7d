"""The tables of measures and one page for each, written from the records before a build."""

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
    """The heading of a family; by default its name."""
    return FAMILY_TITLES.get(family, family.replace("_", " ").capitalize())


def reference(name: str) -> str:
    """A link to the page of a measure."""
    return f":doc:`{name} </generated/measures/{name}>`"


def list_table(rows: list[list[str]], widths: str, *, header: bool) -> list[str]:
    """A reStructuredText table."""
    lines = [".. list-table::", f"   :widths: {widths}", *(["   :header-rows: 1"] if header else []), ""]
    for cells in rows:
        lines += [f"   {'* -' if i == 0 else '  -'} {cell}" for i, cell in enumerate(cells)]
    return [*lines, ""]


def overview() -> str:
    """One table per family: name, description, better direction, cost."""
    table = list_measures()
    lines: list[str] = []
    for family, rows in table.groupby("family", sort=False):
        title = title_of(family)
        cells = [[reference(r["name"]), r["summary"], r["better"], r["cost"]] for r in rows.to_dict("records")]
        lines += [title, "-" * len(title), ""]
        lines += list_table([["name", "description", "better", "cost"], *cells], "25 50 10 15", header=True)
    pages = [f"   /generated/measures/{name}" for name in table["name"]]
    return "\n".join([*lines, ".. toctree::", "   :hidden:", "", *pages, ""])


def facts(row) -> list[list[str]]:
    """The properties in a measure's record, as rows of a table."""
    parameters = ", ".join(f"``{name}={default!r}``" for name, default in row["parameters"].items())
    return [
        ["Better", row["better"]],
        ["Needs", row["needs"] or "only the network"],
        ["Cost", row["cost"] + (", in the preset ``cheap``" if row["cheap"] else "")],
        ["Unit", row["unit"]],
        ["Tasks", row["tasks"]],
        ["Invariant under", row["invariances"].replace("_", " ") or "no transformation of the weights"],
        ["Value", "an estimate by random draws" if row["stochastic"] else "the same for every seed"],
        ["Parameters", parameters or "none"],
        ["Source", row["source"]],
    ]


def measure_page(row, seen: set[str]) -> str:
    """The page of one measure; several measures may share one function."""
    name, measure = row["name"], MEASURES[row["name"]]
    function = f"{measure.function.__module__}.{measure.function.__qualname__}"
    lines = [name, "=" * len(name), "", f"{row['summary']}.".replace("..", "."), ""]
    lines += list_table(facts(row), "20 80", header=False)
    if measure.fixed:
        fixed = ", ".join(f"{key}={value!r}" for key, value in measure.fixed.items())
        lines += [f"The function below with ``{fixed}``.", ""]
    lines += ["Definition", "----------", "", f".. autofunction:: {function}"]
    lines += ["   :no-index:", ""] if function in seen else ["   :no-index-entry:", ""]
    seen.add(function)
    return "\n".join(lines)


def write_measures(folder: Path) -> None:
    """Write `measures.inc`, which `measures.rst` includes, and a page for each measure."""
    pages = folder / "measures"
    pages.mkdir(parents=True, exist_ok=True)
    write_if_changed(folder / "measures.inc", overview())
    seen: set[str] = set()
    for old in set(pages.glob("*.rst")) - {pages / f"{name}.rst" for name in MEASURES}:
        old.unlink()
    for row in list_measures().to_dict("records"):
        write_if_changed(pages / f"{row['name']}.rst", measure_page(row, seen))
