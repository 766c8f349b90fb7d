"""What the studies of [JR] have in common: three disjoint sets of images, training, and the choice of a strength."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from sklearn_capacity import JacobianRegularizedClassifier

__all__ = ["accuracies", "chosen", "comparison", "differences", "draw_methods", "train"]


def train(method: str, strength: float, **settings: Any) -> JacobianRegularizedClassifier:
    """An unfitted network: SGD with momentum 0.9, a rate that falls by 10 after each third of the epochs."""
    max_epochs = settings["max_epochs"]
    defaults = {
        "optimizer": "sgd",
        "learning_rate": 0.01,
        "learning_rate_schedule": [(max_epochs / 3, 0.1), (2 * max_epochs / 3, 0.1)],
        "jacobian_penalty": strength if method == "Jacobian" else 0.0,
        "weight_decay": strength if method == "weight decay" else 0.0,
    }
    return JacobianRegularizedClassifier(**{**defaults, **settings})


def accuracies(model: Any, data: Any, n_train: int, seed: int) -> dict[str, float]:
    """Fit, and score on the training images, on others of the pool (to choose the strength), and on the test images."""
    n_test = min(2000, len(data.y) // 5)
    n_valid = min(1000, n_train)
    X, y, X_test, y_test = data.split(n_train + n_valid, n_test, seed)
    model.fit(X[:n_train], y[:n_train])
    return {
        "train_accuracy": model.score(X[:n_train], y[:n_train]),
        "valid_accuracy": model.score(X[n_train:], y[n_train:]),
        "test_accuracy": model.score(X_test, y_test),
    }


def chosen(rows: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Of each method and group, the row of every seed at the strength with the best mean validation accuracy."""
    groups = [*by, "method"]
    means = rows.groupby([*groups, "strength"], as_index=False)["valid_accuracy"].mean()
    best = means.loc[means.groupby(groups)["valid_accuracy"].idxmax(), [*groups, "strength"]]
    return rows.merge(best, on=[*groups, "strength"])


def differences(rows: pd.DataFrame, by: list[str], method: str = "Jacobian", other: str = "weight decay") -> pd.Series:
    """Test accuracy of one method minus that of another in per cent, one number per group and seed."""
    table = chosen(rows, by).pivot(index=[*by, "seed"], columns="method", values="test_accuracy")
    return 100 * (table[method] - table[other])


def comparison(rows: pd.DataFrame, by: list[str], other: str) -> dict[str, list[float]]:
    """A claim per group: the Jacobian penalty is more accurate."""
    results = {}
    for group, values in differences(rows, by, other=other).groupby(level=by):
        names = group if isinstance(group, tuple) else (group,)
        where = ", ".join(f"{name} {value}" for name, value in zip(by, names, strict=True))
        results[f"{where}: test accuracy (%) with the Jacobian penalty minus {other}"] = list(values)
    return results


WORDS = {"n_train": "training samples", "n_layers": "layers"}


def draw_methods(rows: pd.DataFrame, figure: Any, x: str, by: str | None = None) -> None:
    """Test accuracies over `x`, a line per method and a picture per value of `by`, with standard errors."""
    best = chosen(rows, [x] if by is None else [x, by])
    parts = [(None, best)] if by is None else list(best.groupby(by))
    figure.set_size_inches(3.6 * len(parts) + 1, 3.4)
    for ax, (value, part) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        for method, group in part.groupby("method"):
            curve = (100 * group["test_accuracy"]).groupby(group[x]).agg(["mean", "sem"])
            ax.errorbar(np.arange(len(curve)), curve["mean"], curve["sem"], fmt="o-", capsize=3, label=method)
            ax.set_xticks(np.arange(len(curve)), curve.index)
        title = "" if by is None else f"{value} {WORDS[by]}"
        ax.set(xlabel=WORDS[x], ylabel="test accuracy (%)", title=title)
    ax.legend()
