"""
Norms of over-parametrised networks: width, label noise, natural gradient
=========================================================================

[FR] figures 1, 2 and 4: networks with two hidden layers of width k on CIFAR-10, trained by gradient descent or by
natural gradient (K-FAC), with a share of random labels in the training and test data. Figure 1 shows norms over the
width for true labels, figures 2 (gradient descent) and 4 (natural gradient) norms over the share. Scale small averages
images down to 8 x 8: the natural gradient inverts a matrix of the size of the input.
"""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from fr_shared import NAMES, NORMS, OPTIMIZERS, draw_sample, errors_and_norms, train
from scipy.stats import kendalltau
from study import Study

SCALES = {
    "tiny": {
        "optimizer": ["sgd", "kfac"],
        "width": [16, 64],
        "fraction": [0.0, 1.0],
        "n_train": 100,
        "n_test": 200,
        "pixels": 4,
        "max_epochs": 20,
    },
    "small": {
        "optimizer": ["sgd", "kfac"],
        "width": [50, 100, 200, 400],
        "fraction": [0.0, 0.5, 1.0],
        "n_train": 1000,
        "n_test": 2000,
        "pixels": 8,
        "max_epochs": 100,
    },
    "paper": {
        "optimizer": ["sgd", "kfac"],
        "width": [200, 300, 400, 500, 600, 700, 800, 900, 1000],
        "fraction": [0.0, 0.2, 0.4, 0.6, 0.8, 1.0],
        "n_train": 50000,
        "n_test": 10000,
        "pixels": 32,
        "max_epochs": 200,
    },
}


def run(data, *, seed, device, optimizer, width, fraction, n_train, n_test, pixels, max_epochs):
    X, y, X_test, y_test = draw_sample(data, n_train, n_test, pixels, fraction, seed)
    model = train(X, y, optimizer, (width, width), max_epochs, device, seed)
    return errors_and_norms(model, X, y, X_test, y_test)


def draw(rows: pd.DataFrame, figure) -> None:
    figure.set_size_inches(15, 8)
    axes = figure.subplots(3, len(NORMS) + 1)
    rows = rows.assign(gap=rows["test_error"] - rows["train_error"])
    widths = sorted(rows["width"].unique())
    for column, name in enumerate([*NORMS, "gap"]):
        for optimizer, color in OPTIMIZERS.items():
            chosen = rows[(rows["optimizer"] == optimizer) & (rows["fraction"] == 0)]
            curve = chosen.groupby("width")[name].agg(["mean", "sem"])
            line = {"color": color, "label": NAMES[optimizer]}
            axes[0, column].errorbar(curve.index, curve["mean"], curve["sem"], capsize=3, **line)
        axes[0, column].set(xlabel="width", title=name.replace("_", " "), yscale="linear" if name == "gap" else "log")
        for row, optimizer in enumerate(OPTIMIZERS, 1):
            for place, width in enumerate(widths):
                chosen = rows[(rows["optimizer"] == optimizer) & (rows["width"] == width)]
                color = matplotlib.colormaps["plasma"](0.8 * place / max(len(widths) - 1, 1))
                axes[row, column].plot(chosen.groupby("fraction")[name].mean(), color=color, label=f"{width}")
            axes[row, column].set(xlabel="share of random labels", yscale="linear" if name == "gap" else "log")
    for row, text in enumerate(["true labels", *NAMES.values()]):
        axes[row, 0].set_ylabel(text)
    for ax, title in ((axes[0, -1], "optimizer"), (axes[1, -1], "width"), (axes[2, -1], "width")):
        ax.legend(title=title, loc="center left", bbox_to_anchor=(1, 0.5))


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Logarithms of ratios, and Kendall's tau between a norm and the generalization gap over widths and shares."""
    groups = [group for _, group in rows.groupby("seed")]
    sgd, kfac = ([group[group["optimizer"] == name] for group in groups] for name in OPTIMIZERS)
    true = [group[group["fraction"] == 0] for group in sgd]
    others = [name for name in NORMS if not name.startswith("fisher_rao")]
    tau = {name: [_tau(group, name) for group in sgd] for name in NORMS}
    return {
        "figure 1: Fisher-Rao norm grows with the width by less than a factor of 1.25, log": [
            np.log(1.25) - _growth(group) for group in true
        ],
        "figure 1: Fisher-Rao norm below the smallest other norm, log10": [
            np.log10(group[others].min(axis=1) / group["fisher_rao"]).min() for group in true
        ],
        "figure 1: Fisher-Rao norm of the model distribution below 10, log10": [
            1 - np.log10(group["fisher_rao_model"].max()) for group in true
        ],
        "figure 2: Fisher-Rao norm decreases with the width, log": [-_growth(group) for group in true],
        "figure 2: tau of the Fisher-Rao norm and the generalization gap": tau["fisher_rao"],
        "figure 2: this tau above that of the spectral norm by": np.subtract(tau["fisher_rao"], tau["spectral"]),
        "figure 4: spread of the log norm over widths above that of gradient descent by": [
            _spread(natural) - _spread(plain) for natural, plain in zip(kfac, sgd, strict=True)
        ],
    }


def _growth(group: pd.DataFrame) -> float:
    """Logarithm of the ratio of the Fisher-Rao norms of the widest and of the narrowest network."""
    by_width = np.log(group.set_index("width")["fisher_rao"])
    return by_width[by_width.index.max()] - by_width[by_width.index.min()]


def _tau(group: pd.DataFrame, name: str) -> float:
    return kendalltau(group[name], group["test_error"] - group["train_error"]).statistic


def _spread(group: pd.DataFrame) -> float:
    """Standard deviation over the widths of the logarithm of the Fisher-Rao norm, averaged over the shares."""
    return np.log(group.pivot(index="width", columns="fraction", values="fisher_rao")).std().mean()


STUDY = Study(
    paper="[FR] figures 1, 2 and 4",
    statement="The Fisher-Rao norm stays constant or decreases with the width, is the smallest of the norms, and is of "
    "order 1 for labels of the model; it tracks the generalization gap under label noise better than other norms. "
    "Natural gradient, unlike gradient descent, separates the widths by it.",
    data="cifar10",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
    remark="At each width the Fisher-Rao and the spectral norm order the shares of random labels equally well. Pooled "
    "over the widths, the decrease of the Fisher-Rao norm with the width counts against it, since the gap hardly "
    "depends on the width here.",
)

if __name__ == "__main__":
    STUDY.main()
