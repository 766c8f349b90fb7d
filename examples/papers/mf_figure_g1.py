"""
Learning rates above which sigmoid outputs do not learn
=======================================================

[MF] figure G.1: as figure 2(a) (``mf_figure_2a.py``), with sigmoid outputs and without momentum. The loss is bounded,
so that no training explodes; the critical rate separates lower from higher losses.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from mf_shared import draw_maps, rate_row
from study import Study

COMMON = {
    "activation": ["tanh", "relu"],
    "lowest": 1e-2,
    "highest": 10.0,
    "batch_size": 500,
    "momentum": 0.0,
    "output": "sigmoid",
}
SCALES = {
    "tiny": {**COMMON, "width": [20, 60], "n_train": 300, "n_rates": 7, "n_steps": 20},
    "small": {**COMMON, "width": [50, 100, 200], "n_train": 4000, "n_rates": 10, "n_steps": 60},
    "paper": {**COMMON, "width": [50, 100, 200, 300, 400, 500], "n_train": 60000, "n_rates": 25, "n_steps": None},
}


def run(data, **settings):
    return rate_row(data, **settings)


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Per seed, means over the widths: the losses on both sides, and where they rise fastest with the rate."""
    results = {}
    for activation, group in rows.groupby("activation"):
        rises, decades = [], []
        for row in group.itertuples():
            rates, losses = np.array(row.rates), np.array(row.losses)
            above = rates > row.critical_rate
            rises.append(losses[above].mean() - losses[~above][-3:].mean())
            steepest = np.diff(losses).argmax()
            decades.append(0.5 - abs(np.log10(np.sqrt(rates[steepest] * rates[steepest + 1]) / row.critical_rate)))
        per_seed = pd.DataFrame({"rise": rises, "decades": decades}, index=group["seed"]).groupby(level=0).mean()
        results[f"{activation}, loss above the critical rate minus loss at the three rates below it"] = list(
            per_seed["rise"]
        )
        results[f"{activation}, half a decade minus the distance of the steepest rise from it"] = list(
            per_seed["decades"]
        )
    return results


STUDY = Study(
    paper="[MF] figure G.1",
    statement="The critical rate of theorem 6 estimates the boundary between lower and higher losses of networks with "
    "sigmoid outputs.",
    data="mnist",
    scales=SCALES,
    run=run,
    draw=draw_maps,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
