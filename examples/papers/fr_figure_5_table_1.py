"""
Margins over the Fisher-Rao norm, true and random labels
========================================================

[FR] figure 5 and table 1: networks with two hidden layers on CIFAR-10, true labels (share 0) and random ones (share 1).
Figure 5 has the distribution of the training margins divided by the empirical Fisher-Rao norm and by the spectral norm;
table 1 the norms themselves. Scale small averages images down to 8 x 8.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from fr_shared import NAMES, NORMS, OPTIMIZERS, draw_sample, errors_and_norms, train
from study import Study

from sklearn_capacity import measure_capacity

PERCENTILES = range(0, 101, 5)
MARGINS = {f"{p}": ("margin", {"percentile": p}) for p in PERCENTILES}
COMMON = {"optimizer": ["sgd", "kfac"], "fraction": [0.0, 1.0]}
SCALES = {
    "tiny": {**COMMON, "width": 64, "n_train": 100, "n_test": 200, "pixels": 4, "max_epochs": 20},
    "small": {**COMMON, "width": 200, "n_train": 1000, "n_test": 2000, "pixels": 8, "max_epochs": 100},
    "paper": {**COMMON, "width": 500, "n_train": 50000, "n_test": 10000, "pixels": 32, "max_epochs": 200},
}


def run(data, *, seed, device, optimizer, fraction, width, n_train, n_test, pixels, max_epochs):
    X, y, X_test, y_test = draw_sample(data, n_train, n_test, pixels, fraction, seed)
    model = train(X, y, optimizer, (width, width), max_epochs, device, seed)
    results = errors_and_norms(model, X, y, X_test, y_test)
    return {**results, "margins": list(measure_capacity(model, X, y, MARGINS).values())}


def draw(rows: pd.DataFrame, figure) -> None:
    """Distributions as in figure 5: rows are optimisers, columns the norm that divides the margin."""
    figure.set_size_inches(9, 6)
    for axes, optimizer in zip(figure.subplots(2, 2), OPTIMIZERS, strict=True):
        for ax, norm in zip(axes, ("fisher_rao", "spectral"), strict=True):
            for fraction, color in {0.0: "C0", 1.0: "C3"}.items():
                chosen = rows[(rows["optimizer"] == optimizer) & (rows["fraction"] == fraction)]
                for margins, value in zip(chosen["margins"], chosen[norm], strict=True):
                    ax.plot(np.array(margins) / value, PERCENTILES, color=color, label=f"{fraction:g}")
            ax.set(xlabel=f"margin / {norm.replace('_', '-')} norm", ylabel=f"percentile, {NAMES[optimizer]}")
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    ax.legend(unique.values(), unique.keys(), title="share of random labels")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Table 1's ratios of true over random labels, as decimal logarithms, and figure 5's medians."""
    results = {}
    for optimizer, name in NAMES.items():
        table = rows[rows["optimizer"] == optimizer].set_index(["fraction", "seed"])
        true, random = table.loc[0.0], table.loc[1.0]
        ratio = {norm: np.log10(true[norm] / random[norm]) for norm in NORMS}
        results[f"{name}, table 1: model Fisher-Rao norm of true below random labels, log10"] = -ratio[
            "fisher_rao_model"
        ]
        results[f"{name}, table 1: empirical Fisher-Rao norm of true below random labels, log10"] = -ratio["fisher_rao"]
        results[f"{name}, table 1: spectral norm of true below random labels, log10"] = -ratio["spectral"]
        results[f"{name}, table 1: empirical Fisher-Rao ratio below the spectral one, log10"] = (
            ratio["spectral"] - ratio["fisher_rao"]
        )
        median = table["margins"].map(lambda margins: margins[len(margins) // 2]) / table["fisher_rao"]
        results[f"{name}, figure 5: median margin over the Fisher-Rao norm, true minus random"] = (
            median.loc[0.0] - median.loc[1.0]
        )
    return results


STUDY = Study(
    paper="[FR] figure 5 and table 1",
    statement="Norms are smaller for true than for random labels, the empirical Fisher-Rao norm by a larger factor "
    "than the spectral norm, and margins divided by it are larger.",
    remark="Natural gradient descent has a training loss close to zero with either kind of labels, and so has the "
    "empirical Fisher-Rao norm, which is L + 1 times the root mean square of the derivative of the loss "
    "along the logits. Which of two such small numbers is the smaller one differs from seed to seed.",
    data="cifar10",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
