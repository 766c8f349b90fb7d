"""The paper's statement against the results: reproduced, not reproduced, or inconclusive at this scale.

A statement has one or more claims, each with a number per seed that is positive if the claim holds. A claim holds if
the mean over seeds is above zero by Student's one-sided 95 % quantile times its standard error; it fails if the mean is
as far below; otherwise the seeds do not tell. The statement is reproduced if all claims hold, not reproduced if one
fails.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

__all__ = ["Verdict", "judge", "mean_and_error"]

REPRODUCED, FAILED, OPEN = "reproduced", "not reproduced", "inconclusive at this scale"


class Verdict(NamedTuple):
    """The outcome, and for each claim its mean, standard error, number of seeds and outcome."""

    outcome: str
    claims: list[dict[str, Any]]

    def __str__(self) -> str:
        holding = sum(claim["outcome"] == REPRODUCED for claim in self.claims)
        return f"{self.outcome.upper()}: {holding} of {len(self.claims)} claims hold"

    def details(self) -> str:
        """A line per claim."""
        lines = []
        for claim in self.claims:
            error = "" if claim["standard_error"] is None else f" +- {claim['standard_error']:.2g}"
            lines.append(f"  {claim['outcome']}: {claim['claim']} {claim['mean']:.3g}{error}")
        return "\n".join(lines)


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error, nan for a single value."""
    values = np.asarray(values, dtype=float)
    error = values.std(ddof=1) / len(values) ** 0.5 if len(values) > 1 else np.nan
    return float(values.mean()), float(error)


def judge(claims: Mapping[str, Sequence[float]]) -> Verdict:
    """The verdict on claims: text -> one number per seed, positive if the claim holds."""
    judged = []
    for claim, values in claims.items():
        mean, error = mean_and_error(values)
        least = stats.t.ppf(0.95, len(values) - 1) * error if len(values) > 1 else np.nan
        outcome = REPRODUCED if mean > least else FAILED if mean < -least else OPEN  # nan: neither
        shown = None if np.isnan(error) else error  # JSON has no nan
        judged.append(dict(claim=claim, mean=mean, standard_error=shown, n_seeds=len(values), outcome=outcome))
    outcomes = {claim["outcome"] for claim in judged}
    return Verdict(FAILED if FAILED in outcomes else OPEN if OPEN in outcomes else REPRODUCED, judged)
