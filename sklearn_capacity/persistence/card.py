"""A model card: a description of a trained network and its capacity in markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import sklearn
import torch

from .._validation import check_instance
from ..scoring import capacity_report
from ..scoring.outcomes import by_reason

__all__ = ["markdown_table", "model_card"]


def model_card(
    model: Any,
    X: Any = None,
    y: Any = None,
    measures: Any = "essential",
    *,
    title: str | None = None,
    description: str = "",
    **report_options: Any,
) -> str:
    """Describe a trained network in markdown: parameters, training, capacity.

    Parameters
    ----------
    model, X, y, measures
        As in `capacity_report`; pass the training data.
    title : str, default=None
        Title of the card; None is the name of the model's class.
    description : str, default=""
        Your description of purpose, data and limits.
    **report_options
        Further arguments of `capacity_report`, such as ``loss`` or ``max_samples``.

    Returns
    -------
    str
        Markdown with the sections Parameters (those that differ from the defaults), Training, Capacity (a table) and
        Versions; empty sections are omitted. Measures that do not apply are listed below the table.

    Raises
    ------
    ValueError
        As in `capacity_report`.

    See Also
    --------
    save : Writes the network itself.
    capacity_report : Values with their units, errors, times, and reasons where there is no value.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_capacity import NetworkClassifier, model_card
    >>> X, y = load_iris(return_X_y=True)
    >>> model = NetworkClassifier((8,), max_epochs=3, random_state=0).fit(X, y)
    >>> card = model_card(model, X, y, ["parameter_count", "margin"], title="Iris")
    >>> print(card.splitlines()[0])
    # Iris
    """
    check_instance("title", title, (str, type(None)), "None or a string")
    check_instance("description", description, str, "text")
    report = capacity_report(model, X, y, measures, **report_options)
    inner = _inner(model)
    sections = [
        f"# {title or type(inner).__name__}",
        description.strip(),
        _section("Parameters", _parameters(inner)),
        _section("Training", _training(inner)),
        _section("Capacity", _capacity(report, X)),
        _section("Versions", f"torch {torch.__version__}, scikit-learn {sklearn.__version__}, numpy {np.__version__}"),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _inner(model: Any) -> Any:
    """The estimator in a search or Pipeline."""
    if hasattr(model, "best_estimator_"):
        return _inner(model.best_estimator_)
    return _inner(model.steps[-1][1]) if hasattr(model, "steps") else model


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def markdown_table(header: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """A table in markdown, with six digits of floats."""
    lines = [header, ["---"] * len(header), *(map(_cell, row) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: Any) -> str:
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _parameters(model: Any) -> str:
    if not hasattr(model, "get_params") or isinstance(model, type):
        return ""
    try:
        defaults = type(model)().get_params(deep=False)
    except TypeError:  # a required argument, so there are no defaults
        defaults = {}
    changed = {
        name: value
        for name, value in model.get_params(deep=False).items()
        if name not in defaults or repr(value) != repr(defaults[name])
    }
    return markdown_table(["parameter", "value"], [[f"`{name}`", f"`{value!r}`"] for name, value in changed.items()])


def _training(model: Any) -> str:
    rows: list[list[Any]] = []
    if hasattr(model, "n_samples_fit_"):
        rows.append(["samples", model.n_samples_fit_])
    if hasattr(model, "n_iter_"):
        rows.append(["epochs", model.n_iter_])
    if isinstance(getattr(model, "loss_name_", None), str):
        rows.append(["loss", model.loss_name_])
    history = getattr(model, "history_", None) or []
    last = history[-1] if len(history) else {}
    losses = [key for key in last if key in ("train_loss", "valid_loss") or key.startswith("train_penalty")]
    rows += [[f"last {key}", float(last[key])] for key in losses]
    return markdown_table(["", ""], rows) if rows else ""


def _capacity(report: pd.DataFrame, X: Any) -> str:
    measured = report[report["reason"] == ""]
    table = markdown_table(
        ["measure", "value", "standard error", "unit", "better"],
        [
            [
                f"{row.measure} ({row.layer})" if row.layer else row.measure,
                row.value,
                "" if math.isnan(row.standard_error) else row.standard_error,
                row.unit,
                row.better,
            ]
            for row in measured.itertuples()
        ],
    )
    on = "of the weights alone" if X is None else f"on {len(X)} samples"
    lines = [f"Measured {on}.", table]
    if len(measured) < len(report):
        lines.append("\n".join(f"- {', '.join(names)}: {_cell(why)}" for why, names in by_reason(report).items()))
    return "\n\n".join(lines)
