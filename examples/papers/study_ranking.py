"""
Which measure predicts the generalization gap?
==============================================

Every measure of the package on networks that differ in width, depth, learning rate, batch size, weight decay, strength
of the Jacobian penalty, label noise and size of the training set, on two data sets. The design is a full factorial of
two levels for each of these eight, so that every network has a neighbour for each of them that differs in nothing
else: sign errors and granulated coefficients need such pairs, and the conditional mutual information needs all
combinations of the levels of two hyper-parameters. At scale small, the 256 cells of each data set are divided among
three seeds at random; at scale paper, each seed has all.

As in Jiang et al. (2020), all networks are trained to the same cross-entropy: here 0.1 (theirs: 0.01), on an epoch's
running mean. Those that do not reach it have no measures and do not count. The networks are rectifier MLPs without
biases, since some of the measures are defined for nothing else. Images are reduced to 9 x 9 (MNIST) and 8 x 8 (CIFAR)
pixels at scale small.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import torch
from study import Images, Study

from sklearn_capacity import JacobianRegularizedClassifier, compare_capacity, list_measures
from sklearn_capacity.datasets import randomize_labels
from sklearn_capacity.model_selection import rank_measures

#: Measures without a column, and why.
LEFT_OUT = {"robustness_bound": "needs a model of the data: its dimension and constant"}
KINDS = ("flatness", "init", "orig", "mag_flatness", "mag_init", "mag_orig")
#: Fewer draws, steps and products than by default, where these would take most of the time.
CHEAPER = {
    "hessian_max_eigenvalue": {"tol": 0.05},
    "hessian_min_eigenvalue": {"tol": 0.05},
    "hessian_trace": {"n_products": 30},
    "max_sharpness": {"steps": 200},
    "expected_sharpness": {"n_draws": 100},
    "pac_bayes_bound": {"n_draws": 50},
    **{f"pacbayes_{kind}": {"n_draws": 20} for kind in KINDS},
    **{f"sharpness_{kind}": {"steps": 10} for kind in KINDS},
}
MEASURES = {name: (name, CHEAPER.get(name, {})) for name in list_measures()["name"] if name not in LEFT_OUT}

LEVELS = {
    "width": [32, 128],
    "depth": [1, 3],
    "learning_rate": [0.01, 0.05],
    "batch_size": [32, 128],
    "weight_decay": [0.0, 0.001],
    "jacobian_strength": [0.0, 0.0005],
    "label_noise": [0.0, 0.2],
    "n_train": [75, 300],
}
HYPERPARAMETERS = list(LEVELS)
LARGE = {**LEVELS, "width": [256, 1024], "depth": [2, 4], "weight_decay": [0.0, 0.0001], "n_train": [5000, 40000]}


def share(levels: dict, seed: int, n_shares: int) -> list[dict]:
    """The cells of this seed: the factorial in random order, of which it takes every n-th."""
    cells = [dict(zip(levels, values, strict=True)) for values in itertools.product(*levels.values())]
    order = np.random.default_rng(0).permutation(len(cells))
    return [{**cells[i], "max_epochs": 200, "pixels": 8} for i in order[seed % n_shares :: n_shares]]


SCALES = {
    "tiny": lambda seed: share({**LEVELS, "width": [8, 16], "n_train": [50, 100]}, seed, 64),
    "small": lambda seed: share(LEVELS, seed, 3),
    "paper": {**LARGE, "max_epochs": 500, "pixels": 32},
}


def run(images, *, seed, device, max_epochs, pixels, n_train, label_noise, width, depth, jacobian_strength, **settings):
    n_test = min(2000, len(images.y) // 5)
    X, y, X_test, y_test = reduced(images, pixels).standardized().split(n_train, n_test, seed)
    y = randomize_labels(y, label_noise, random_state=seed)
    model = JacobianRegularizedClassifier(
        (width,) * depth,
        bias=False,
        optimizer="sgd",
        jacobian_penalty=jacobian_strength,
        jacobian_norm="projection",
        max_epochs=max_epochs,
        stop_below=0.1,
        device=device,
        random_state=seed,
        **settings,
    )
    results = {"train_loss": np.nan, "n_epochs": np.nan, "train_accuracy": np.nan, "test_accuracy": np.nan}
    results |= dict.fromkeys(MEASURES, np.nan)
    try:
        model.fit(X, y)
    except ValueError as error:
        if "diverged" not in str(error):
            raise
        return results
    results |= {"train_loss": model.history_[-1, "train_loss"], "n_epochs": len(model.history_)}
    results |= {"train_accuracy": model.score(X, y), "test_accuracy": model.score(X_test, y_test)}
    if results["train_loss"] < 0.1:
        results |= dict(compare_capacity([model], X, y, MEASURES).iloc[0])
    return results


def reduced(images: Images, pixels: int) -> Images:
    """Means over squares, so that about so many pixels are left on each side."""
    side = max(1, images.X.shape[-1] // pixels)
    return Images(torch.nn.functional.avg_pool2d(torch.as_tensor(images.X), side).numpy(), images.y)


def ranked(rows: pd.DataFrame, **options) -> pd.DataFrame:
    """Ranks of the measures among the networks that reached the training loss, averaged over the data sets."""
    rows = rows[rows["train_loss"] < 0.1]
    gap = ("train_accuracy", "test_accuracy")
    return rank_measures(rows, gap, HYPERPARAMETERS, measures=MEASURES, tasks="data", **options)


def taus(rows: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau of each measure (columns) for each seed (rows)."""
    ranks = {seed: ranked(part, n_bootstrap=2).set_index("measure") for seed, part in rows.groupby("seed")}
    return pd.DataFrame({seed: table["tau"] for seed, table in ranks.items()}).T


def draw(rows: pd.DataFrame, figure) -> None:
    figure.set_size_inches(7, 14)
    values = taus(rows)
    values = values[values.mean().sort_values().index]
    ax = figure.subplots()
    ax.axvline(0, color="0.7")
    for position, name in enumerate(values):
        ax.plot(values[name], [position] * len(values), "o", color="C0", alpha=0.4, markersize=3)
        ax.plot(values[name].mean(), position, "|", color="k", markersize=8)
    ax.set_yticks(range(values.shape[1]), values.columns, fontsize=6)
    ax.set(xlabel="Kendall's tau with the gap: one point per seed, and their mean", ylim=(-1, values.shape[1]))


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Statements about the rank correlation with the gap."""
    tau = taus(rows)
    sharpness = ["sharpness_flatness", "sharpness_mag_flatness", "pacbayes_flatness", "pacbayes_mag_flatness"]
    products = ["log_prod_of_spec", "log_prod_of_fro"]
    return {
        "tau of the l2 path capacity ([EG])": list(tau["l2_path_capacity"]),
        "tau of the Fisher-Rao norm ([FR])": list(tau["fisher_rao_norm"]),
        "tau of the squared Jacobian norm ([JR])": list(tau["jacobian_frobenius"]),
        "tau of flatness minus that of products of norms (Jiang et al.)": list(
            tau[sharpness].mean(axis=1) - tau[products].mean(axis=1)
        ),
        "tau of products of norms is negative (Jiang et al.)": list(-tau[products].mean(axis=1)),
    }


STUDY = Study(
    paper="Summary",
    statement="Path norms over the margin ([EG]), the Fisher-Rao norm ([FR]) and the Jacobian ([JR]) grow with the "
    "generalization gap; flatness predicts it better than products of norms, which fall with it (Jiang et al. 2020).",
    data=("mnist", "cifar10"),
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
