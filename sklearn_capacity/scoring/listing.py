"""The list of all measures, from their records."""

from __future__ import annotations

import pandas as pd

from ..measures import ESSENTIAL, MEASURES

__all__ = ["list_measures"]


def list_measures() -> pd.DataFrame:
    """List all measures, one per row.

    Returns
    -------
    DataFrame
        Columns ``name``, ``family``, ``better`` ("lower" or "higher"), ``needs``, ``cost``, ``essential``, ``cheap``,
        ``unit``, ``tasks``, ``invariances``, ``stochastic``, ``signed``, ``parameters`` (name to default), ``source``,
        ``summary``.

    See Also
    --------
    measure_capacity : Only the values.
    capacity_report : Values with their units, errors, times, and reasons where there is no value.

    Examples
    --------
    >>> from sklearn_capacity import list_measures
    >>> table = list_measures().set_index("name")
    >>> table.loc["margin", "better"]
    'higher'
    """
    rows = [
        {
            "name": m.name,
            "family": m.family,
            "better": "lower" if m.lower_is_better else "higher",
            "needs": ", ".join(sorted(m.needs)),
            "cost": m.cost,
            "essential": m.name in ESSENTIAL,
            "cheap": m.cheap,
            "unit": m.unit,
            "tasks": ", ".join(m.tasks),
            "invariances": ", ".join(sorted(m.invariances)),
            "stochastic": m.stochastic,
            "signed": m.signed,
            "parameters": m.parameters,
            "source": m.source,
            "summary": m.summary,
        }
        for m in MEASURES.values()
    ]
    return pd.DataFrame(rows)
