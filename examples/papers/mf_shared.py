"""Maps of training losses over learning rates and widths ([MF] figures 2, G.1 and G.2), one row of cells at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from study import Images

from sklearn_capacity.displays import LearningRateMapDisplay
from sklearn_capacity.theory import LearningRateMap, learning_rate_map

__all__ = ["draw_maps", "explosion_claims", "rate_row"]

VARIANCES = {"tanh": {"sigma_w2": 3.0, "sigma_b2": 0.64}, "relu": {"sigma_w2": 2.0, "sigma_b2": 0.5}}


def rate_row(data: Images, *, seed, device, activation, width, n_train, lowest, highest, n_rates, **training) -> dict:
    """Losses of one network of the paper (L = 4, C = 10) at all learning rates, one draw of the weights."""
    X, y, _, _ = data.split(n_train, 0, seed)
    device = "cpu" if device == "auto" else device
    result = learning_rate_map(
        X.reshape(n_train, -1),
        np.eye(10, dtype=np.float32)[y],
        np.geomspace(lowest, highest, n_rates),
        [width],
        activation=activation,
        depth=4,
        n_trials=1,
        random_state=seed,
        device=device,
        **VARIANCES[activation],
        **training,
    )
    return {
        "critical_rate": result.critical_learning_rates[0],
        "rates": result.learning_rates,
        "losses": result.losses[0, :, 0],
    }


def draw_maps(rows: pd.DataFrame, figure: Any) -> None:
    """One map per activation; the loss of a cell is the mean over the seeds."""
    activations = rows["activation"].unique()
    figure.set_size_inches(4.5 * len(activations), 3.6)
    for ax, activation in zip(figure.subplots(1, len(activations), squeeze=False)[0], activations, strict=True):
        chosen = rows[rows["activation"] == activation]
        seeds = chosen.groupby("width")
        LearningRateMapDisplay(
            LearningRateMap(
                "width",
                np.array(sorted(chosen["width"].unique()), dtype=float),
                np.array(chosen["rates"].iloc[0]),
                np.array([np.transpose(group["losses"].tolist()) for _, group in seeds]),
                seeds["critical_rate"].first().to_numpy(),
                momentum=0.0,
            )
        ).plot(ax)
        ax.set_title(f"{activation}: loss (grey: diverged)")


def explosion_claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Decades between the predicted and the observed boundary, a number per seed: the mean over the networks."""
    boundaries = _boundaries(rows)
    step = np.log10(np.divide(*rows["rates"].iloc[0][1::-1]))
    narrow, wide = boundaries["width"].min(), boundaries["width"].max()
    claims = {}
    for activation, group in boundaries.groupby("activation"):
        late = np.log10(group["all"] / group["critical_rate"]).groupby(group["seed"]).mean()
        early = np.log10(group["critical_rate"] / group["first"]).groupby(group["seed"]).mean()
        widths = np.log10(group.pivot(index="seed", columns="width", values="all"))
        claims[f"{activation}, every rate above the critical one diverges, decades to spare"] = list(step - late)
        claims[f"{activation}, none below a third of it diverges, decades to spare"] = list(0.5 - early)
        claims[f"{activation}, decades between the boundaries at the smallest and the largest width"] = list(
            widths[narrow] - widths[wide]
        )
    return claims


def _boundaries(rows: pd.DataFrame) -> pd.DataFrame:
    """For every cell the smallest rate that diverges ("first"), and the smallest above which all do ("all").

    Where even the largest rate converges, the next one of the grid, which is a lower end.
    """
    boundaries = []
    for row in rows.itertuples():
        rates = np.array([*row.rates, row.rates[-1] ** 2 / row.rates[-2]])
        diverged = np.isinf([*row.losses, np.inf])
        boundaries.append((rates[diverged.argmax()], rates[len(rates) - np.logical_not(diverged[::-1]).argmax()]))
    columns = pd.DataFrame(boundaries, columns=["first", "all"], index=rows.index)
    return rows[["seed", "activation", "width", "critical_rate"]].join(columns)
