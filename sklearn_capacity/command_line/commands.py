"""What each command does with its options; the results are text."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

from .._validation import closest
from ..persistence import model_card
from ..scoring import capacity_report, compare_capacity, list_measures
from ..scoring.outcomes import by_reason
from ..scoring.pass_totals import PassTotal
from .data import read_data
from .models import read_model
from .tables import written

__all__ = ["card", "compare", "list_all", "report"]

#: Columns of a report that are shown on the screen, with the reasons below; files and other formats hold all.
SHOWN = ["measure", "value", "standard_error", "unit", "better", "same_as"]


def report(options: Namespace) -> str:
    """The capacities of one model."""
    model, (X, y) = read_model(options.model, options.trust), read_data(options.data, options.target)
    table = capacity_report(model, X, y, _measures(options), verbose=int(options.verbose), **_measuring(options))
    if options.format != "table":
        return written(table, options.format)
    refused = (f"No value of {', '.join(names)}: {reason}\n" for reason, names in by_reason(table).items())
    text = written(table.loc[table["reason"] == "", SHOWN], options.format) + "".join(refused)
    total = PassTotal(**table.attrs["passes"])
    return text + (f"{total}\n" if total.at_most else "")


def compare(options: Namespace) -> str:
    """Several models in one table, and in a figure."""
    twice = sorted({given for given in options.models if options.models.count(given) > 1})
    if twice:
        raise ValueError(f"Each model must be given once, got {', '.join(map(repr, twice))} more than once.")
    models = {_label(given): read_model(given, options.trust) for given in options.models}
    if len(models) < len(options.models):
        models = {given: read_model(given, options.trust) for given in options.models}
    X, y = read_data(options.data, options.target)
    test = (None, None) if options.test is None else read_data(options.test, options.target)
    table = compare_capacity(
        models, X, y, _measures(options), X_test=test[0], y_test=test[1], verbose=int(options.verbose),
        **_measuring(options),
    )  # fmt: skip
    if options.plot is not None:
        from ..displays import CapacityComparisonDisplay

        CapacityComparisonDisplay(table).plot().figure_.savefig(options.plot, bbox_inches="tight")
    return written(table.reset_index(), options.format)


def list_all(options: Namespace) -> str:
    """List all measures."""
    table = list_measures()
    families = sorted(set(table["family"]))
    if options.family is not None:
        if options.family not in families:
            hint = closest(options.family, families)
            raise ValueError(f"There is no family {options.family!r}. {hint or 'One of: ' + ', '.join(families) + '.'}")
        table = table[table["family"] == options.family]
    return written(table[["name", "family", "better", "cost", "unit", "summary"]], options.format)


def card(options: Namespace) -> str:
    """A model card; without data, it contains only measures of the weights."""
    X, y = (None, None) if options.data is None else read_data(options.data, options.target)
    model = read_model(options.model, options.trust)
    return model_card(model, X, y, _measures(options), title=options.title, **_measuring(options))


def _label(given: str) -> str:
    """A short name of a model: its file's, or its factory's."""
    return Path(given.partition("@")[2] or given).stem


def _measures(options: Namespace) -> Any:
    named: list[str] = options.measures
    return named[0] if len(named) == 1 and named[0] in ("essential", "cheap", "all") else named


def _measuring(options: Namespace) -> dict[str, Any]:
    classes: Any = None if options.classes is None else options.classes.split(",")
    if classes and all(label.strip().lstrip("-").isdigit() for label in classes):
        classes = list(map(int, classes))
    return {"loss": options.loss, "classes": classes, "max_samples": options.max_samples,
            "max_seconds": options.max_seconds}  # fmt: skip
