"""Rank correlation of capacity measures with the generalization gap of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._validation import check_instance, check_integer, check_interval, closest
from ..measures import MEASURES, Measure
from ..scoring.requests import directions, label_of

__all__ = ["generalization_gap", "hyperparameters", "rank_measures"]

SCORES = ("test_", "train_", "gap_")


def rank_measures(
    table: pd.DataFrame,
    gap: str | tuple[str, str] | None = None,
    by: Sequence[str] | None = None,
    *,
    measures: Any = None,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> pd.DataFrame:
    r"""Correlate the ranks of each measure with those of the generalization gap over trained models.

    .. math:: \tau = \frac{\sum_{i<j} s_{ij} g_{ij}}{\sqrt{\sum_{i<j} s_{ij}^2 \; \sum_{i<j} g_{ij}^2}}, \qquad
              \varepsilon_h = \mathrm{mean}_{(i,j) \in h} \frac{1 - s_{ij} g_{ij}}{2}

    with :math:`s_{ij}, g_{ij} \in \{-1, 0, 1\}` the signs of the differences of the measure and of the gap between two
    models (Kendall's tau-b), and :math:`h` the pairs that differ only in the hyper-parameter h. A measure for which
    higher is better (a margin) is negated, so 1 always means a perfect order, and a sign error of 0.5 means chance.

    Parameters
    ----------
    table : DataFrame
        One row per trained model, from `capacity_table` or any table with numeric columns.
    gap : str or (str, str), default=None
        Column of the gaps, or a training and a test score whose difference is the gap. None uses ``train_<score>``
        and ``test_<score>``, if there is one such pair.
    by : sequence of str, default=None
        Columns of hyper-parameters. None uses those before the first score, in the order of `capacity_table`.
    measures : sequence of str or Measure, or dict, default=None
        Columns to rank. If given in the form of `measures` in `measure_capacity`, their directions are known. None uses
        all other numeric columns except scores.
    n_bootstrap : int >= 2, default=1000
        Number of resamples of the models for the interval.
    confidence : float in (0, 1), default=0.95
        Confidence level of the percentile interval.
    random_state : int, default=0

    Returns
    -------
    DataFrame
        One row per measure, best first: ``measure``, ``better`` ("lower" or "higher"), ``tau``, ``tau_low`` and
        ``tau_high`` (bootstrap interval), ``n_models`` (rows without a nan), then ``sign_error_<h>`` and
        ``n_pairs_<h>`` for each hyper-parameter. nan if nothing can be ordered. Directions are known for `measures`
        given as objects, for tables from `capacity_table` or `compare_capacity` with such measures, and for the names
        in `list_measures`; for any other column, lower is assumed to be better.

    Raises
    ------
    ValueError
        For missing columns, no measures, or fewer than 2 models with a gap.

    See Also
    --------
    capacity_table : A table of a search.
    sklearn_capacity.compare_capacity : A table of trained models.
    sklearn_capacity.displays.CapacityGapDisplay : Draws gap and measure.

    Notes
    -----
    If models differ in a single hyper-parameter, that alone may cause a correlation: also read the sign errors.

    References
    ----------
    Jiang, Neyshabur, Mobahi, Krishnan, Bengio (2020), Fantastic generalization measures and where to find them,
    section 2. Dziugaite et al. (2020), In search of robust measures of generalization, section 4.

    Examples
    --------
    >>> import pandas as pd
    >>> from sklearn_capacity.model_selection import rank_measures
    >>> table = pd.DataFrame({
    ...     "width": [8, 16, 8, 16], "depth": [1, 1, 2, 2],
    ...     "gap": [0.1, 0.2, 0.3, 0.4],
    ...     "path_norm": [1.0, 3.0, 2.0, 4.0], "margin": [4.0, 3.0, 2.0, 1.0],
    ... })
    >>> ranks = rank_measures(table, "gap", ["width", "depth"]).set_index("measure")
    >>> ranks[["better", "tau", "sign_error_width", "sign_error_depth"]].round(3)
             better    tau  sign_error_width  sign_error_depth
    measure
    margin   higher  1.000               0.0               0.0
    path_norm  lower  0.667               0.0               0.0
    """
    check_instance("table", table, pd.DataFrame, "a DataFrame such as from `capacity_table`")
    by = [by] if isinstance(by, str) else by
    measures, better = _named(measures, table)
    n_bootstrap = check_integer("n_bootstrap", n_bootstrap, 2)
    confidence = check_interval("confidence", confidence, 0, 1, closed="neither")
    gaps, used = generalization_gap(table, gap)
    known = np.isfinite(gaps)
    if known.sum() < 2:
        raise ValueError(f"`table` must have at least 2 models with a finite gap, got {known.sum()}.")
    by = hyperparameters(table) if by is None else [_checked(table, name) for name in by]
    by = [name for name in by if name not in used]
    names = _measures(table, {*used, *by}) if measures is None else [_checked(table, name) for name in measures]
    if not names:
        raise ValueError("`table` must have columns of measures besides the gap and the hyper-parameters, got none.")
    generator = np.random.default_rng(check_integer("random_state", random_state, 0))
    pairs = {name: _pairs(table, name, by) for name in by}
    rows = []
    for name in names:
        lower = _lower_is_better(str(name), better)
        values = _numbers(table, name) * (1.0 if lower else -1.0)
        kept = known & ~np.isnan(values)
        measure_signs, gap_signs = _signs(values[kept]), _signs(gaps[kept])
        low, high = _interval(measure_signs, gap_signs, n_bootstrap, confidence, generator)
        row: dict[str, Any] = {"measure": name, "better": "lower" if lower else "higher"}
        row |= {"tau": _tau(measure_signs, gap_signs, np.ones((1, kept.sum())))[0], "tau_low": low, "tau_high": high}
        row["n_models"] = int(kept.sum())
        for key, pair in pairs.items():
            row |= _sign_error(key, _signs(values), _signs(gaps), pair & kept[:, None] & kept[None, :])
        rows.append(row)
    return pd.DataFrame(rows).sort_values("tau", ascending=False, kind="stable", ignore_index=True)


def generalization_gap(table: pd.DataFrame, gap: str | tuple[str, str] | None) -> tuple[np.ndarray, set[str]]:
    """Gaps of the models, and the columns that they were computed from; see `rank_measures` for the parameters."""
    if gap is None:
        scores = [c.removeprefix("train_") for c in table.columns if str(c).startswith("train_")]
        scores = [s for s in scores if f"test_{s}" in table.columns]
        if len(scores) != 1:
            available = f"the pairs of {', '.join(scores)}" if scores else "none"
            raise ValueError(
                f"`gap` must name a column, or a training and a test score, since `table` has {available} of "
                "train_<score> and test_<score>. Search with return_train_score=True."
            )
        gap = (f"train_{scores[0]}", f"test_{scores[0]}")
    if isinstance(gap, str):
        return _numbers(table, _checked(table, gap)), {gap}
    train, test = (_checked(table, name) for name in gap)
    return _numbers(table, train) - _numbers(table, test), {train, test}


def hyperparameters(table: pd.DataFrame) -> list[str]:
    """The columns before the first score, in the order of `capacity_table`; none in a table without scores."""
    columns = list(table.columns)
    first = next((i for i, name in enumerate(columns) if str(name).startswith(SCORES)), 0)
    return columns[:first]


def _checked(table: pd.DataFrame, name: str) -> str:
    if name not in table.columns:
        raise ValueError(f"The table has no column {name!r}. {closest(name, table.columns)}".rstrip())
    return name


def _numbers(table: pd.DataFrame, name: str) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(table[name]):
        raise TypeError(f"Column {name!r} of `table` must contain numbers, got {table[name].dtype}.")
    return table[name].to_numpy(dtype=np.float64)


def _measures(table: pd.DataFrame, others: set[str]) -> list[str]:
    numeric = table.select_dtypes("number").columns
    return [name for name in numeric if name not in others and not str(name).startswith(SCORES)]


def _named(measures: Any, table: pd.DataFrame) -> tuple[Sequence[str] | None, dict[str, str]]:
    """Columns to rank, and the directions of measures given as objects, here or when the table was computed."""
    better = dict(table.attrs.get("better", {}))
    if measures is None or isinstance(measures, str):
        return (None if measures is None else [measures]), better
    if isinstance(measures, Measure | Mapping):
        return list(given := directions(measures)), better | given
    columns = [label_of(entry) for entry in measures]
    objects = [entry for entry in measures if isinstance(entry, Measure)]
    return columns, better | (directions(objects) if objects else {})


def _lower_is_better(name: str, better: Mapping[str, str]) -> bool:
    if name in better:
        return better[name] == "lower"
    if name.startswith("neg_"):  # a scorer's name for the negated measure
        return not _lower_is_better(name.removeprefix("neg_"), better)
    return MEASURES[name].lower_is_better if name in MEASURES else True


def _signs(values: np.ndarray) -> np.ndarray:
    """Signs of all differences; 0 for ties, including infinite values."""
    return (values[:, None] > values[None, :]).astype(np.float64) - (values[:, None] < values[None, :])


def _tau(a: np.ndarray, b: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Kendall's tau-b of samples with counts[i] copies of model i, (n_samples,); copies of one model are ties."""

    def total(signs: np.ndarray) -> np.ndarray:
        return ((counts @ signs) * counts).sum(1)

    norm = np.sqrt(total(a * a) * total(b * b))
    return np.divide(total(a * b), norm, out=np.full(len(counts), np.nan), where=norm > 0)


def _interval(
    a: np.ndarray, b: np.ndarray, n_bootstrap: int, confidence: float, generator: np.random.Generator
) -> tuple[float, float]:
    n = len(a)
    if n < 2:
        return np.nan, np.nan
    taus = _tau(a, b, generator.multinomial(n, np.full(n, 1 / n), size=n_bootstrap).astype(np.float64))
    taus = taus[~np.isnan(taus)]
    if not len(taus):
        return np.nan, np.nan
    low, high = np.quantile(taus, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _pairs(table: pd.DataFrame, name: str, by: Sequence[str]) -> np.ndarray:
    """A mask of the pairs of models that differ only in this hyper-parameter."""
    codes = {key: pd.factorize(table[key].map(repr))[0] for key in by}
    pairs = codes[name][:, None] != codes[name][None, :]
    for key in by:
        if key != name:
            pairs &= codes[key][:, None] == codes[key][None, :]
    return np.triu(pairs)


def _sign_error(name: str, a: np.ndarray, b: np.ndarray, pairs: np.ndarray) -> dict[str, Any]:
    """Mean of (1 - s g) / 2 over the pairs whose gaps differ."""
    counted = pairs & (b != 0)
    n = int(counted.sum())
    error = float((1 - (a * b)[counted]).mean() / 2) if n else np.nan
    return {f"sign_error_{name}": error, f"n_pairs_{name}": n}
