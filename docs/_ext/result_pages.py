"""The results page, written from the files of finished studies in `docs/results` before a build.

A study NAME leaves NAME_small.csv (its cells), .json (claims and verdict), .png, and some a NAME_small_summary.csv.
"""

from __future__ import annotations

import ast
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
from measure_pages import list_table, reference
from written_pages import write_if_changed

#: The ranks of all measures, and what is shown of them.
RANKING = "study_ranking_small_summary.csv"
COLUMNS = ["tau", "granulated", "CMI", "any size", "outcome"]


def write_results(results: Path, scripts: Path, folder: Path) -> None:
    """Write `results.inc` (all studies), `ranking.inc` (all measures) and `ranked.inc` (a substitution for each)."""
    folder.mkdir(parents=True, exist_ok=True)
    documents = [(path, json.loads(path.read_text())) for path in sorted(results.glob("*.json"))]
    write_if_changed(folder / "results.inc", "\n".join([*overview(documents), *sections(documents, scripts)]))
    summary = results / RANKING
    ranks = pd.read_csv(summary) if summary.exists() else pd.DataFrame({"measure": []})
    write_if_changed(folder / "ranking.inc", "\n".join(ranking_table(ranks)))
    write_if_changed(folder / "ranked.inc", "\n".join(substitutions(ranks)))


def overview(documents: list[tuple[Path, dict[str, Any]]]) -> list[str]:
    """One row per study, and the time that all of them took."""
    rows = [["Study", "Verdict", "Claims that hold", "Seeds", "CPU minutes"]]
    for _, document in documents:
        holding = sum(claim["outcome"] == "reproduced" for claim in document["claims"])
        counts = [f"{holding} of {len(document['claims'])}", len(document["seeds"])]
        rows.append([f"`{document['paper']}`_", document["outcome"], *counts, minutes(document["cpu_seconds"])])
    total = sum(document["cpu_seconds"] for _, document in documents)
    table = list_table([[str(cell) for cell in row] for row in rows], "30 30 16 10 14", header=True)
    return [*table, f"Together they took {total / 3600:.1f} CPU hours.", ""]


def sections(documents: list[tuple[Path, dict[str, Any]]], scripts: Path) -> list[str]:
    """For each study the paper's statement, what was run, the claims with their numbers, the reason and the figure."""
    lines: list[str] = []
    for path, document in documents:
        title, script = document["paper"], scripts / f"{document['study']}.py"
        lines += [title, "-" * len(title), "", f"**Statement.** {escaped(document['statement'])}", ""]
        lines += ["**Run.** " + paragraph for paragraph in described(script)[:1]] + ["", *joined(described(script)[1:])]
        facts = f"``{document['study']}.py --scale {document['scale']}``: {document['cells']} cells, seeds "
        facts += f"{', '.join(map(str, document['seeds']))}, {minutes(document['cpu_seconds'])} CPU minutes."
        lines += [facts, "", f"**Verdict: {document['outcome']}.**", ""]
        rows = [[escaped(c["claim"]), number(c["mean"], c["standard_error"]), c["outcome"]] for c in document["claims"]]
        lines += list_table(
            [["Claim (holds if positive)", "Mean over seeds", "Outcome"], *rows], "56 22 22", header=True
        )
        lines += [f"**Why.** {escaped(document['remark'])}", ""] if document.get("remark") else []
        lines += summary_table(path.with_name(f"{path.stem}_summary.csv"))
        figure = path.with_suffix(".png")
        lines += [f".. figure:: /results/{figure.name}", f"   :alt: {title}", ""] if figure.exists() else []
    return lines


def summary_table(path: Path) -> list[str]:
    """The summary of a study that has one; a column of standard errors is joined to the one before it."""
    if path.name == RANKING or not path.exists():
        return []
    table = pd.read_csv(path)
    names = [name for name in table if name != "standard_error"]
    rows = [[name.replace("_", " ") for name in names]]
    for row in table.to_dict("records"):
        cells = {name: f"{row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in names}
        if "standard_error" in row:
            mean = list(table)[list(table).index("standard_error") - 1]
            cells[mean] = number(row[mean], row["standard_error"])
        rows.append([escaped(cells[name]) for name in names])
    return list_table(rows, " ".join(["20"] * len(names)), header=True)


def described(script: Path) -> list[str]:
    """The paragraphs of a script's docstring below its title; none if the script is gone."""
    if not script.exists():
        return []
    document = ast.get_docstring(ast.parse(script.read_text())) or ""
    return [" ".join(paragraph.split()) for paragraph in document.split("\n\n")[1:]]


def joined(paragraphs: list[str]) -> list[str]:
    """Paragraphs with blank lines between them."""
    return [line for paragraph in paragraphs for line in (paragraph, "")]


def ranking_table(ranks: pd.DataFrame) -> list[str]:
    """All measures, best first: the rank correlation with its interval, what it tells beyond two hyper-parameters."""
    rows = [["measure", *COLUMNS]]
    for row in ranks.to_dict("records"):
        name = row["measure"] if row["measure"] == "random numbers" else reference(row["measure"])
        tau = f"{row['tau']:.2f} ({row['tau_low']:.2f} to {row['tau_high']:.2f})"
        rows.append([name, tau, f"{row['granulated']:.2f}", f"{row['cmi']:.3f}"])
        rows[-1] += [f"{row['any_size_tau']:.2f}", str(row["outcome"])]
    return list_table(rows, "26 22 12 9 9 22", header=True)


def substitutions(ranks: pd.DataFrame) -> list[str]:
    """``|ranked_<measure>|`` for the table that compares the measures."""
    return [
        f".. |ranked_{row['measure']}| replace:: {row['tau']:.2f}: {row['outcome']}"
        for row in ranks.to_dict("records")
        if row["measure"] != "random numbers"
    ]


def number(mean: float, error: float | None) -> str:
    """A mean and its standard error, rounded to two digits of the latter."""
    if error is None or not error:
        return f"{mean:.3g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{mean:.{digits}f} ± {error:.{digits}f}"


def minutes(seconds: float) -> str:
    """CPU seconds as minutes."""
    return f"{seconds / 60:.1f}"


def escaped(text: str) -> str:
    """Text in which nothing is markup."""
    for character in "\\*`|_":
        text = text.replace(character, f"\\{character}")
    return text
