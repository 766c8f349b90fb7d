"""
Weights after training on true and on random labels
===================================================

[GL] figure 1: histograms of all weights of a convolutional network on MNIST, at initialisation and after it has fitted
true or random labels to zero training error.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats
from study import Study

from sklearn_capacity import NetworkClassifier
from sklearn_capacity.datasets import randomize_labels

EDGES = np.linspace(-0.5, 0.5, 101)
COMMON = {"labels": ["true", "random"], "max_epochs": 400}
SCALES = {
    "tiny": {**COMMON, "n_train": 50, "stop_below": 0.1},
    "small": {**COMMON, "n_train": 500, "stop_below": 0.01},
    "paper": {**COMMON, "n_train": 50_000, "stop_below": 1e-3},
}


def weights_of(state) -> np.ndarray:
    """All entries of the matrices and kernels."""
    return np.concatenate([tensor.cpu().numpy().ravel() for tensor in state.values() if tensor.dim() > 1])


def run(data, *, seed, device, labels, max_epochs, n_train, stop_below):
    n_test = min(2000, len(data.y) // 5)
    X, y, X_test, y_test = data.split(n_train, n_test, seed)
    if labels == "random":
        y = randomize_labels(y, 1.0, random_state=seed)
    model = NetworkClassifier(
        module="conv",
        learning_rate=1e-3,
        max_epochs=max_epochs,
        stop_below=stop_below,
        device=device,
        random_state=seed,
    ).fit(X, y)
    before, after = weights_of(model.initial_state_), weights_of(model.module_.state_dict())
    return {
        "train_error": 1 - model.score(X, y),
        "test_accuracy": model.score(X_test, y_test),
        "initial_kurtosis": stats.kurtosis(before),
        "kurtosis": stats.kurtosis(after),
        "largest_weights": np.percentile(np.abs(after), 99.9),
        "initial_histogram": np.histogram(before, EDGES)[0],
        "histogram": np.histogram(after, EDGES)[0],
    }


def draw(rows: pd.DataFrame, figure) -> None:
    figure.set_size_inches(10, 3.2)
    first = rows[rows["seed"] == rows["seed"].min()].set_index("labels")
    panels = {"initialisation": first.loc["true", "initial_histogram"]}
    panels |= {f"{labels} labels": first.loc[labels, "histogram"] for labels in ("true", "random")}
    for ax, (title, counts) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
        ax.stairs(counts, EDGES, fill=True)
        ax.set(title=title, xlabel="weight", yscale="log")
    figure.axes[0].set_ylabel("weights per bin")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    results = {}
    for column, text in (("kurtosis", "kurtosis of the weights"), ("largest_weights", "99.9th percentile of |w|")):
        table = rows.pivot(index="seed", columns="labels", values=column)
        results[f"{text}, random minus true labels"] = list(table["random"] - table["true"])
    return results


STUDY = Study(
    paper="[GL] figure 1",
    statement="The weights of the network that fits random labels have significantly heavier tails.",
    data="mnist",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
    remark="On a common scale, as in the paper's figure, the tails are heavier. Relative to the standard deviation, "
    "which random labels increase more than true ones, they are lighter, as the kurtosis says.",
)

if __name__ == "__main__":
    STUDY.main()
