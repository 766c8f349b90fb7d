"""Results of the command line as a table for the screen, JSON, csv or markdown."""

from __future__ import annotations

import pandas as pd

from ..persistence.card import markdown_table

__all__ = ["FORMATS", "written"]

FORMATS = ("table", "json", "csv", "markdown")


def written(table: pd.DataFrame, how: str) -> str:
    """A table as text in one of FORMATS, without its index."""
    if how == "json":
        return table.to_json(orient="records", indent=2, default_handler=str) + "\n"
    if how == "csv":
        return table.to_csv(index=False)
    if how == "markdown":
        return markdown_table([*map(str, table.columns)], table.to_numpy()) + "\n"
    return table.to_string(index=False, float_format=lambda value: f"{value:.6g}", na_rep="") + "\n"
