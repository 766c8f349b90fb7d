"""Rank correlation of capacity measures with the generalization gap of models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from .._validation import as_list, check_column, check_instance, check_integer, check_interval, shown
from ..measures import MEASURES, Measure
from ..scoring.requests import directions, label_of
from .conditional_information import competition_score, least_conditional_information, settings_of
from .rank_statistics import axis_coefficient, bootstrap_taus, kendall_tau, pairs_along, sign_error, signs_of

__all__ = ["generalization_gap", "hyperparameters", "rank_measures"]

SCORES = ("test_", "train_", "gap_")


def rank_measures(
    table: pd.DataFrame,
    gap: str | tuple[str, str] | None = None,
    by: Sequence[str] | None = None,
    *,
    measures: Any = None,
    tasks: str | None = None,
    n_bootstrap: int = 1000,
    confidence: float = 0.95,
    random_state: int = 0,
) -> pd.DataFrame:
    r"""Correlate the ranks of each measure with those of the generalization gap over trained models.

    .. math:: \tau = \frac{\sum_{i<j} s_{ij} g_{ij}}{\sqrt{\sum_{i<j} s_{ij}^2 \; \sum_{i<j} g_{ij}^2}}, \qquad
              \varepsilon_h = \mathrm{mean}_{(i,j) \in h} \frac{1 - s_{ij} g_{ij}}{2}, \qquad
              \mathcal{K} = \min_{|S| \le 2} \frac{I(s; g \mid U_S)}{H(g \mid U_S)}

    with :math:`s_{ij}, g_{ij} \in \{-1, 0, 1\}` the signs of the differences of the measure and of the gap between two
    models (Kendall's tau-b), :math:`h` the pairs that differ only in the hyper-parameter h, and :math:`U_S` the values
    of the hyper-parameters in S in both models. A measure for which higher is better (a margin) is negated, so 1 always
    means a perfect order, and a sign error of 0.5 means chance.

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
    tasks : str, default=None
        Column of the task, such as the data set. Models of different tasks are not compared: each statistic is the mean
        over the tasks in which it is defined, and the interval resamples the models of each task.
    n_bootstrap : int >= 2, default=1000
        Number of resamples of the models for the interval.
    confidence : float in (0, 1), default=0.95
        Confidence level of the percentile interval.
    random_state : int, default=0

    Returns
    -------
    DataFrame
        One row per measure, best first: ``measure``, ``better`` ("lower" or "higher"), ``tau``, ``tau_low`` and
        ``tau_high`` (bootstrap interval), ``granulated`` (mean of the coefficients of the hyper-parameters),
        ``cmi`` (:math:`\mathcal{K}`, from 0 to 1), ``pgdl_score``, ``n_models`` (rows without a nan), then
        ``sign_error_<h>``, ``granulated_<h>`` (mean over the settings of the others of Kendall's coefficient along h)
        and ``n_pairs_<h>`` for each hyper-parameter. nan if nothing can be ordered. Directions are known for `measures`
        given as objects, for tables from `capacity_table` or `compare_capacity` with such measures, and for the names
        in `list_measures`; for any other column, lower is assumed to be better.

    Raises
    ------
    ValueError
        For missing columns, no measures, or fewer than 2 models of a task with a gap.

    See Also
    --------
    capacity_table : A table of a search.
    sklearn_capacity.compare_capacity : A table of trained models.
    sklearn_capacity.displays.CapacityGapDisplay : Draws gap and measure.

    Notes
    -----
    If models differ in a single hyper-parameter, that alone may cause a correlation: also read the sign errors, and the
    conditional mutual information, which is 0 for a measure that only repeats two hyper-parameters. It does not depend
    on the measure's direction. It is estimated from counts: with few pairs for each combination of values it is too
    large, also for a column of random numbers. Group a hyper-parameter with many different values (`pandas.cut`)
    beforehand.

    ``pgdl_score`` is the score of the competition of 2020: 100 times the mean over `tasks` of the same quantity with
    sets of exactly two hyper-parameters, ties counted as "not greater", and pairs of a model with itself included. Its
    tasks were complete grids, where all values of :math:`U_S` are equally frequent.

    References
    ----------
    Jiang, Neyshabur, Mobahi, Krishnan, Bengio (2020), Fantastic generalization measures and where to find them,
    section 2. Dziugaite et al. (2020), In search of robust measures of generalization, section 4. Jiang et al. (2020),
    NeurIPS 2020 competition: predicting generalization in deep learning.

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
    parts = _parts(table, tasks, np.isfinite(gaps))
    used = used if tasks is None else {*used, tasks}
    columns = table.columns
    by = hyperparameters(table) if by is None else [check_column(name, columns) for name in as_list("by", by)]
    by = [name for name in by if name not in used]
    names = _measures(table, {*used, *by}) if measures is None else [check_column(name, columns) for name in measures]
    if not names:
        raise ValueError("`table` must have columns of measures besides the gap and the hyper-parameters, got none.")
    generator = np.random.default_rng(check_integer("random_state", random_state, 0))
    levels = _levels(table, by)
    models = [Models(gaps[part], levels[part], by) for part in parts]
    rows = []
    for name in names:
        lower = _lower_is_better(str(name), better)
        values = _numbers(table, name) * (1.0 if lower else -1.0)
        results = [
            task.statistics(values[part], n_bootstrap, generator) for part, task in zip(parts, models, strict=True)
        ]
        row = {"measure": name, "better": "lower" if lower else "higher", **_combined(results, confidence, by)}
        rows.append(row)
    return pd.DataFrame(rows).sort_values("tau", ascending=False, kind="stable", ignore_index=True)


class Models:
    """The models of one task: the signs of their gaps, and their pairs along each hyper-parameter.

    Parameters
    ----------
    gaps : ndarray of shape (n,)
    levels : int ndarray of shape (n, n_hyperparameters)
    by : sequence of str
        Names of the hyper-parameters.
    """

    def __init__(self, gaps: np.ndarray, levels: np.ndarray, by: Sequence[str]) -> None:
        self.settings, self.gap_signs = settings_of(levels), signs_of(gaps)
        self.axes = {}
        for axis, name in enumerate(by):
            others = np.unique(np.delete(levels, axis, axis=1), axis=0, return_inverse=True)[1].reshape(-1)
            self.axes[name] = pairs_along(axis, levels), others

    def statistics(self, values: np.ndarray, n_bootstrap: int, generator: np.random.Generator) -> dict[str, Any]:
        """All statistics of a measure; "taus" holds those of the resampled models."""
        kept = ~np.isnan(values)
        square = np.ix_(kept, kept)
        measure, gap = signs_of(values[kept]), self.gap_signs[square]
        settings = {chosen: codes[kept] for chosen, codes in self.settings.items()}
        row: dict[str, Any] = {"tau": kendall_tau(measure, gap)[0]}
        row["taus"] = bootstrap_taus(measure, gap, n_bootstrap, generator)
        row["cmi"] = least_conditional_information(measure, gap, settings)
        row["pgdl_score"] = competition_score(measure, gap, settings)
        row["n_models"] = int(kept.sum())
        for name, (pairs, others) in self.axes.items():
            pairs = pairs[square]
            row[f"sign_error_{name}"], row[f"n_pairs_{name}"] = sign_error(measure, gap, pairs)
            row[f"granulated_{name}"] = axis_coefficient(measure, gap, pairs, others[kept])
        row["granulated"] = _mean([row[f"granulated_{name}"] for name in self.axes])
        return row


def _combined(results: Sequence[Mapping[str, Any]], confidence: float, by: Sequence[str]) -> dict[str, Any]:
    """The row of a measure from its statistics in each task: means, but numbers of models and of pairs are summed."""

    def mean(name: str) -> float:
        return _mean([result[name] for result in results])

    def total(name: str) -> int:
        return sum(result[name] for result in results)

    taus = np.stack([result["taus"] for result in results])  # (n_tasks, n_bootstrap)
    taus = np.array([_mean(column) for column in taus.T])
    taus = taus[~np.isnan(taus)]
    low, high = np.quantile(taus, [(1 - confidence) / 2, (1 + confidence) / 2]) if len(taus) else (np.nan, np.nan)
    row = {"tau": mean("tau"), "tau_low": float(low), "tau_high": float(high), "granulated": mean("granulated")}
    row |= {"cmi": mean("cmi"), "pgdl_score": mean("pgdl_score"), "n_models": total("n_models")}
    for name in by:
        row |= {f"sign_error_{name}": mean(f"sign_error_{name}"), f"granulated_{name}": mean(f"granulated_{name}")}
        row[f"n_pairs_{name}"] = total(f"n_pairs_{name}")
    return row


def _mean(values: Any) -> float:
    """Mean of the numbers that are not nan; nan if there are none."""
    values = np.asarray(values, dtype=np.float64)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else np.nan


def _parts(table: pd.DataFrame, tasks: str | None, known: np.ndarray) -> list[np.ndarray]:
    """For each task, the positions of its models with a finite gap."""
    if tasks is None:
        codes = np.zeros(len(table), dtype=np.intp)
    else:
        codes = pd.factorize(table[check_column(tasks, table.columns)].map(repr))[0]
    parts = [np.flatnonzero(known & (codes == code)) for code in range(max(1, codes.max(initial=0) + 1))]
    smallest = min(map(len, parts))
    if smallest < 2:
        of = "" if tasks is None else f" for each of `tasks` ({tasks!r})"
        raise ValueError(f"`table` must have at least 2 models with a finite gap{of}, got {smallest}.")
    return parts


def _levels(table: pd.DataFrame, by: Sequence[str]) -> np.ndarray:
    """Integer codes of the hyper-parameters' values, which may be any objects, (n_models, n_hyperparameters)."""
    codes = [pd.factorize(table[name].map(repr))[0] for name in by]
    return np.stack(codes, axis=1) if codes else np.empty((len(table), 0), dtype=np.intp)


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
        return _numbers(table, check_column(gap, table.columns)), {gap}
    pair = as_list("gap", gap)
    if len(pair) != 2:
        raise ValueError(f"`gap` must be a column, or a training and a test score, got {shown(gap)}.")
    train, test = (check_column(name, table.columns) for name in pair)
    return _numbers(table, train) - _numbers(table, test), {train, test}


def hyperparameters(table: pd.DataFrame) -> list[str]:
    """The columns before the first score, in the order of `capacity_table`; none in a table without scores."""
    columns = list(table.columns)
    first = next((i for i, name in enumerate(columns) if str(name).startswith(SCORES)), 0)
    return columns[:first]


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
    measures = as_list("measures", measures)
    columns = [label_of(entry) for entry in measures]
    objects = [entry for entry in measures if isinstance(entry, Measure)]
    return columns, better | (directions(objects) if objects else {})


def _lower_is_better(name: str, better: Mapping[str, str]) -> bool:
    if name in better:
        return better[name] == "lower"
    if name.startswith("neg_"):  # a scorer's name for the negated measure
        return not _lower_is_better(name.removeprefix("neg_"), better)
    return MEASURES[name].lower_is_better if name in MEASURES else True
