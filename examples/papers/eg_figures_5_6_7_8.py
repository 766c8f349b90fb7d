"""
Conditions on the interaction of layers, learnt and random
==========================================================

[EG] figures 5 to 8: the constants of conditions C1 (layers do not cancel each other), C2 (few units are about to
switch) and C3 (no unit is far larger than the others) in a 10-layer network without biases on MNIST, with its initial
weights and after training. Figure 5 shows the learnt network; figures 6 to 8 compare it with its initialisation, C1
separately for triples (a, c, b) with a < c < b - 1 and for the others.
"""

from __future__ import annotations

import copy

import numpy as np
import pandas as pd
from eg_shared import train
from study import Study

from sklearn_capacity import interaction_conditions

CONDITIONS = ["C1 inner", "C1 outer", "C2", "C3"]
BOUNDS = {"C1 inner": 0.25, "C1 outer": 0.25, "C2": 5.0, "C3": 3.0}
QUANTILES = np.linspace(0, 1, 101)
SCALES = {
    "tiny": {"n_hidden": 3, "width": 32, "n_train": 200, "max_epochs": 30, "n_measured": 20},
    "small": {"n_hidden": 9, "width": 100, "n_train": 2000, "max_epochs": 60, "n_measured": 100},
    "paper": {"n_hidden": 9, "width": 1000, "n_train": 60000, "max_epochs": 100, "n_measured": 1000},
}


def run(data, *, seed, device, n_hidden, width, n_train, max_epochs, n_measured):
    X, y, X_test, y_test = data.split(n_train, min(2000, len(data.y) // 5), seed)
    network = {"hidden_layer_sizes": (width,) * n_hidden, "bias": False, "device": device, "random_state": seed}
    model = train(X, y, {**network, "max_epochs": max_epochs, "stop_below": 0.01})
    initial = copy.deepcopy(model.module_)
    initial.load_state_dict(model.initial_state_)
    results = {"train_error": 1 - model.score(X, y), "test_error": 1 - model.score(X_test, y_test)}
    deltas = np.geomspace(1 / width, 1, 20)  # below 1 / width a single unit decides about C2
    for state, module in {"learnt": model.module_, "initial": initial}.items():
        table = interaction_conditions(module, X[:n_measured], deltas=deltas)
        for condition, values in by_condition(table).items():
            results[f"{state} {condition}"] = np.quantile(values, QUANTILES)
    return results


def by_condition(table: pd.DataFrame) -> dict[str, pd.Series]:
    """Values of the three conditions over layers and samples, C1 in two parts."""
    inner = table["layers"].map(lambda layers: len(layers) == 3 and layers[0] < layers[1] < layers[2] - 1)
    names = table["condition"].where(table["condition"] != "C1", np.where(inner, "C1 inner", "C1 outer"))
    return {name: table["value"][names == name] for name in CONDITIONS}


def draw(rows: pd.DataFrame, figure) -> None:
    figure.set_size_inches(13, 3.4)
    for ax, condition in zip(figure.subplots(1, len(CONDITIONS)), CONDITIONS, strict=True):
        for state, color in {"initial": "C7", "learnt": "C0"}.items():
            for values in rows[f"{state} {condition}"]:
                ax.plot(values, QUANTILES, color=color, label=state)
        ax.axvline(BOUNDS[condition], color="k", linestyle=":", label="paper")
        ax.set(xscale="log", xlabel="constant", title=condition)
    figure.axes[0].set(ylabel="share of layers and samples below")
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    ax.legend(unique.values(), unique.keys())


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """The printed bounds at the 5th or 95th percentile, and the medians of learnt and random weights."""
    results = {}
    for condition in CONDITIONS:
        learnt, initial = (np.array(list(rows[f"{state} {condition}"])) for state in ("learnt", "initial"))
        bound = BOUNDS[condition]
        if condition.startswith("C1"):
            results[f"{condition}: 5 % quantile above {bound} by"] = learnt[:, 5] - bound
        else:
            results[f"{condition}: 95 % quantile below {bound} by"] = bound - learnt[:, 95]
        factor = np.abs(np.log(learnt[:, 50] / initial[:, 50]))
        results[f"{condition}: medians of learnt and initial weights within a factor of 2"] = np.log(2) - factor
    return results


STUDY = Study(
    paper="[EG] figures 5 to 8",
    statement="Networks trained in practice meet the conditions with mu >= 1/4, C2 <= 5 and C3 <= 3, and are similar "
    "to their random initialisation in this respect.",
    data="mnist",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
    remark="C2 <= 5 does not hold at the initialisation either: for a sample of unit norm, the pre-activations of the "
    "first layer are Gaussian with standard deviation sqrt(2 / 784) = 0.05, so 16 delta of its units lie below delta.",
)

if __name__ == "__main__":
    STUDY.main()
