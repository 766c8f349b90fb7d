"""Results of the command line as a table for the screen, JSON, csv or markdown."""

from __future__ import annotations

from typing import Any

import pandas as pd

__all__ = ["FORMATS", "written"]

FORMATS = ("table", "json", "csv", "markdown")


def written(table: pd.DataFrame, how: str) -> str:
    """A table as text in one of FORMATS, without its index."""
    if how == "json":
        return table.to_json(orient="records", indent=2, default_handler=str) + "\n"
    if how == "csv":
        return table.to_csv(index=False)
    if how == "markdown":
        rows = [list(map(str, table.columns)), ["---"] * table.shape[1], *(map(_cell, row) for row in table.to_numpy())]
        return "".join("| " + " | ".join(row) + " |\n" for row in rows)
    return table.to_string(index=False, float_format=lambda value: f"{value:.6g}", na_rep="") + "\n"


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")
