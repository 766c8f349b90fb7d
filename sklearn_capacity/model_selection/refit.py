"""Choose among the candidates of a search by accuracy and capacity together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .._validation import check_instance, check_interval, closest, float_array, warn

__all__ = ["capacity_column", "capacity_refit", "column", "standard_error"]

RULE = "one_standard_error"


class capacity_refit:
    """Refit the candidate of smallest capacity whose score equals the best within noise.

    A picklable object for the ``refit`` of a search. Among the candidates whose mean test score is within one standard
    error of the best, it selects the one with the greatest capacity score (scores of lower-is-better measures are
    negated, so greatest means smallest capacity), and among ties the one with the best test score.

    Parameters
    ----------
    score : str, default="accuracy"
        Key of the score, as in ``cv_results_["mean_test_<key>"]``.
    capacity : str, default="neg_fisher_rao_norm"
        Key of the capacity score. Read from ``mean_train_<key>``, since capacity is a property of the training data;
        without ``return_train_score=True`` from ``mean_test_<key>``, with a `CapacityWarning`.
    rule : "one_standard_error" or float, default="one_standard_error"
        Allowed distance of a score below the best one, in standard errors of the best.

    Raises
    ------
    ValueError
        If a key is missing (the message suggests the closest), or no candidate has a finite score and capacity.

    See Also
    --------
    capacity_table : The candidates as a table.

    References
    ----------
    Breiman, Friedman, Olshen, Stone (1984), Classification and regression trees, section 3.4.3 (the 1-SE rule).

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_capacity.model_selection import capacity_refit
    >>> results = {
    ...     "mean_test_accuracy": np.array([0.90, 0.91, 0.80]),
    ...     "split0_test_accuracy": np.array([0.88, 0.89, 0.80]),
    ...     "split1_test_accuracy": np.array([0.92, 0.93, 0.80]),
    ...     "mean_train_neg_fisher_rao_norm": np.array([-1.0, -2.0, -0.1]),
    ... }
    >>> int(capacity_refit()(results))  # 0.90 lies within 0.02 of 0.91 and has the smaller norm
    0
    """

    def __init__(self, score: str = "accuracy", capacity: str = "neg_fisher_rao_norm", rule: str | float = RULE):
        self.score = check_instance("score", score, str, "a key; `refit` takes an object, `capacity_refit(...)`")
        self.capacity = check_instance("capacity", capacity, str, "a key, such as 'neg_fisher_rao_norm'")
        self.rule = rule

    def __repr__(self) -> str:
        return f"capacity_refit(score={self.score!r}, capacity={self.capacity!r}, rule={self.rule!r})"

    # A search with several scores looks up `scores[refit]` in its own `score` method: these two methods make it find
    # the score named here, since scikit-learn uses a callable only for the choice of the refit.
    def __eq__(self, other: object) -> bool:
        if isinstance(other, capacity_refit):
            return vars(self) == vars(other)
        return isinstance(other, str) and other == self.score

    def __hash__(self) -> int:
        return hash(self.score)

    def __call__(self, cv_results: Mapping[str, Any]) -> int:
        """Index of the chosen candidate."""
        check_instance("cv_results", cv_results, Mapping, "the `cv_results_` of a fitted search")
        width = 1.0 if self.rule == RULE else check_interval("rule", self.rule, 0, cure=f"Or use {RULE!r}.")
        score = column(cv_results, f"mean_test_{self.score}")
        capacity = capacity_column(cv_results, self.capacity)
        usable = np.isfinite(score) & np.isfinite(capacity)
        if not usable.any():
            raise ValueError(
                f"No candidate has a finite {self.score!r} and {self.capacity!r}: every fit or measurement failed. "
                'Search with error_score="raise" and CapacityScorer(on_error="raise") to see why.'
            )
        masked = np.where(usable, score, -np.inf)
        best = int(masked.argmax())
        slack = width * standard_error(cv_results, f"test_{self.score}")[best]
        near = np.flatnonzero(usable & (score >= score[best] - slack))
        return int(max(near, key=lambda i: (capacity[i], score[i])))


def column(cv_results: Mapping[str, Any], key: str) -> np.ndarray:
    """A column of `cv_results_` as floats, or an error that suggests the closest key."""
    if key not in cv_results:
        means = [name for name in cv_results if str(name).startswith("mean_")]
        hint = closest(key, means) or "Let the scorer of the search measure it, or name another."
        raise ValueError(f"`cv_results_` has no column {key!r}. {hint} It has: {', '.join(means)}.")
    return float_array(f"cv_results_[{key!r}]", cv_results[key])


def capacity_column(cv_results: Mapping[str, Any], key: str) -> np.ndarray:
    """A capacity on the training folds, or on the test folds with a warning."""
    if f"mean_train_{key}" in cv_results:
        return column(cv_results, f"mean_train_{key}")
    values = column(cv_results, f"mean_test_{key}")
    warn(
        f"{key!r} is read from the test folds, since there are no train scores. Search with return_train_score=True.",
    )
    return values


def standard_error(cv_results: Mapping[str, Any], key: str) -> np.ndarray:
    """Standard error over the splits of a score, per candidate; 0 for a single split."""
    names = sorted(name for name in cv_results if name.startswith("split") and name.endswith(f"_{key}"))
    names = [name for name in names if name.removesuffix(f"_{key}")[len("split") :].isdigit()]
    splits = np.array([cv_results[name] for name in names], dtype=np.float64)
    if len(splits) < 2:
        return np.zeros(len(cv_results[f"mean_{key}"]))
    return splits.std(axis=0, ddof=1) / np.sqrt(len(splits))
