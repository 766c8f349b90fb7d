"""The results page: every study's statement, numbers and verdict come from its files."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from structure import ROOT

sys.path.append(str(ROOT / "docs" / "_ext"))

from result_pages import RANKING, number, write_results  # noqa: E402

RESULTS, SCRIPTS = ROOT / "docs" / "results", ROOT / "examples" / "papers"
CLAIM = {"claim": "a_norm grows", "mean": 0.1234, "standard_error": 0.0456, "outcome": "reproduced"}
STUDY = {
    "study": "x_figure_1",
    "paper": "[X] figure 1",
    "statement": "Norms *grow*.",
    "scale": "small",
    "seeds": [0, 1],
}
STUDY |= {"cells": 6, "cpu_seconds": 90.0, "outcome": "reproduced", "claims": [CLAIM], "remark": "Few samples."}


def written(folder: Path, results: Path = RESULTS) -> dict[str, str]:
    write_results(results, SCRIPTS, folder)
    return {path.stem: path.read_text() for path in folder.glob("*.inc")}


def test_a_study_is_shown_with_its_numbers(tmp_path: Path):
    (tmp_path / "x_figure_1_small.json").write_text(json.dumps(STUDY))
    (tmp_path / "x_figure_1_small.png").write_bytes(b"")
    (tmp_path / "x_figure_1_small_summary.csv").write_text("net_work,steps,standard_error,rate\nMLP,9.876,0.123,0.25\n")
    page = written(tmp_path / "pages", tmp_path)["results"]
    for text in (
        "**Statement.** Norms \\*grow\\*.",
        "   * - a\\_norm grows\n     - 0.123 ± 0.046\n     - reproduced",
        "6 cells, seeds 0, 1, 1.5 CPU minutes.",
        "**Verdict: reproduced.**",
        "**Why.** Few samples.",
        ".. figure:: /results/x_figure_1_small.png",
        "   * - net work\n     - steps\n     - rate\n   * - MLP\n     - 9.88 ± 0.12\n     - 0.25",
    ):
        assert text in page


@pytest.mark.parametrize(
    ("mean", "error", "text"),
    [(0.6166, 0.00698, "0.6166 ± 0.0070"), (12.34, 1.26, "12.3 ± 1.3"), (1234.5, 45.6, "1234 ± 46"), (2.0, None, "2")],
)
def test_numbers_have_two_digits_of_their_error(mean, error, text):
    assert number(mean, error) == text


def test_all_finished_studies_are_shown(tmp_path: Path):
    page = written(tmp_path)["results"]
    for path in RESULTS.glob("*.json"):
        document = json.loads(path.read_text())
        assert f"\n{document['paper']}\n---" in page and f"/results/{path.stem}.png" in page


def test_measures_have_their_ranks(tmp_path: Path):
    pages, ranks = written(tmp_path), pd.read_csv(RESULTS / RANKING).set_index("measure")
    used = re.findall(r"\|ranked_(\w+)\|", (ROOT / "docs" / "which_measure.rst").read_text())
    assert len(used) > 10
    for name in used:
        row = ranks.loc[name]
        assert f"|ranked_{name}| replace:: {row['tau']:.2f}: {row['outcome']}\n" in pages["ranked"] + "\n"
        assert f"{row['tau']:.2f} ({row['tau_low']:.2f} to {row['tau_high']:.2f})" in pages["ranking"]


def test_ranks_are_those_of_the_cells():
    """Kendall's tau of the table, by pairs counted in the csv file of the networks."""
    cells = pd.read_csv(RESULTS / RANKING.replace("_summary", ""))
    cells = cells[cells["train_loss"] < 0.1]
    assert len(cells) >= 400
    ranks = pd.read_csv(RESULTS / RANKING).set_index("measure")
    for name, sign in (("jacobian_frobenius", 1), ("l2_path_norm", 1), ("margin", -1)):
        groups = cells.groupby(["data", "n_train"])
        taus = [g[name].corr(g["train_accuracy"] - g["test_accuracy"], method="kendall") for _, g in groups]
        assert ranks.loc[name, "tau"] == pytest.approx(sign * sum(taus) / len(taus), abs=1e-5)
