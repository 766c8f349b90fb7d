"""
Which measure predicts the generalization gap?
==============================================

Every measure of the package on networks that differ in width, depth, learning rate, batch size, weight decay, strength
of the Jacobian penalty, label noise and size of the training set, on two data sets. The design is a full factorial of
two levels for each of these eight, so that every network has a neighbour for each of them that differs in nothing
else: sign errors and granulated coefficients need such pairs, and the conditional mutual information needs all
combinations of the levels of two hyper-parameters. At scale small, the 256 cells of each data set are divided among
three seeds at random; at scale paper, each seed has all.

Measures are ranked among networks with equally many training samples, and again among those that also share one other
hyper-parameter: a measure that follows only this one then orders nothing any more. As in Jiang et al. (2020), all
networks are trained to the same cross-entropy: here 0.1 (theirs: 0.01), on an epoch's running mean. Those that do not
reach it have no measures and do not count. The networks are rectifier MLPs without biases, since some of the measures
are defined for nothing else; ``robustness_bound`` is left out, since it needs a model of the data. Images are reduced
to 9 x 9 (MNIST) and 8 x 8 (CIFAR) pixels at scale small.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
from study import Study

from sklearn_capacity import DivergenceError, JacobianRegularizedClassifier, compare_capacity, list_measures
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
THRESHOLD = 0.1
RANDOM = "random numbers"
FEW = {name: levels[0] for name, levels in LEVELS.items()}
FEW |= {"width": [8, 16], "label_noise": [0.0, 0.2], "learning_rate": 0.05, "n_train": 50}
LARGE = {**LEVELS, "width": [256, 1024], "depth": [2, 4], "weight_decay": [0.0, 0.0001], "n_train": [5000, 40000]}


def share(levels: dict, seed: int, n_shares: int) -> list[dict]:
    """The cells of this seed: the factorial in random order, of which it takes every n-th."""
    cells = [dict(zip(levels, values, strict=True)) for values in itertools.product(*levels.values())]
    order = np.random.default_rng(0).permutation(len(cells))
    return [{**cells[i], "max_epochs": 200, "pixels": 8} for i in order[seed % n_shares :: n_shares]]


SCALES = {
    "tiny": {**FEW, "max_epochs": 200, "pixels": 8},
    "small": lambda seed: share(LEVELS, seed, 3),
    "paper": {**LARGE, "max_epochs": 500, "pixels": 32},
}


def run(images, *, seed, device, max_epochs, pixels, n_train, label_noise, width, depth, jacobian_strength, **settings):
    n_test = min(2000, len(images.y) // 5)
    X, y, X_test, y_test = images.reduced(pixels).standardized().split(n_train, n_test, seed)
    y = randomize_labels(y, label_noise, random_state=seed)
    model = JacobianRegularizedClassifier(
        (width,) * depth,
        bias=False,
        optimizer="sgd",
        jacobian_penalty=jacobian_strength,
        jacobian_norm="projection",
        max_epochs=max_epochs,
        stop_below=THRESHOLD,
        device=device,
        random_state=seed,
        **settings,
    )
    results = {"train_loss": np.nan, "n_epochs": np.nan, "train_accuracy": np.nan, "test_accuracy": np.nan}
    results |= dict.fromkeys(MEASURES, np.nan)
    try:
        model.fit(X, y)
    except DivergenceError:
        return results
    results |= {"train_loss": model.history_[-1, "train_loss"], "n_epochs": len(model.history_)}
    results |= {"train_accuracy": model.score(X, y), "test_accuracy": model.score(X_test, y_test)}
    if results["train_loss"] < THRESHOLD:
        results |= dict(compare_capacity([model], X, y, MEASURES).iloc[0])
    return results


def ranked(rows: pd.DataFrame, by: list[str], alike: tuple[str, ...] = ("n_train",), **options) -> pd.DataFrame:
    """Ranks of the measures among networks on the same data that reached the training loss and are `alike`."""
    rows = rows[rows["train_loss"] < THRESHOLD].copy()
    rows = rows.assign(task=rows[["data", *alike]].astype(str).agg(" ".join, axis=1))
    measures = [name for name in rows if name in MEASURES or name == RANDOM]
    gap = ("train_accuracy", "test_accuracy")
    return rank_measures(rows, gap, by, measures=measures, tasks="task", **options).set_index("measure")


def taus(rows: pd.DataFrame) -> pd.DataFrame:
    """Kendall's tau of each measure (columns) for each seed (rows)."""
    return pd.DataFrame({seed: ranked(part, [], n_bootstrap=2)["tau"] for seed, part in rows.groupby("seed")}).T


def summarize(rows: pd.DataFrame) -> pd.DataFrame:
    """The ranks among networks with equally many training samples, and whether they hold in narrower groups.

    ``tau_same_h`` is tau among those that also have the same h, ``any_size_`` precedes what was computed without regard
    to the number of training samples.
    """
    rows = rows.assign(**{RANDOM: np.random.default_rng(0).random(len(rows))})
    ranks = ranked(rows, [name for name in HYPERPARAMETERS if name != "n_train"])
    anything = ranked(rows, HYPERPARAMETERS, ()).drop(columns="better")
    among = {name: ranked(rows, [], ("n_train", name)) for name in HYPERPARAMETERS if name != "n_train"}
    for name, part in among.items():
        ranks[f"tau_same_{name}"] = part["tau"]
    ranks["outcome"] = [outcome(ranks.loc[m], {h: part.loc[m] for h, part in among.items()}) for m in ranks.index]
    return ranks.join(anything.add_prefix("any_size_")).reset_index()


def outcome(overall: pd.Series, among: dict[str, pd.Series]) -> str:
    """Whether the measure predicts the gap, follows one hyper-parameter, or tells nothing; reversed: below zero."""
    if np.isnan(overall["tau"]):
        return "not defined"
    sign = 1 if overall["tau_low"] > 0 else -1 if overall["tau_high"] < 0 else 0
    if not sign:
        return "tells nothing"
    inner = "tau_low" if sign > 0 else "tau_high"
    weakest = min(among, key=lambda name: sign * among[name][inner])
    if sign * among[weakest][inner] > 0:
        return "predicts" if sign > 0 else "reversed"
    return f"{'' if sign > 0 else 'reversed, '}follows {weakest.replace('_', ' ')}"


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
    """Statements about the rank correlation with the gap, among networks with equally many training samples."""
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
    paper="Which measure predicts the gap",
    statement="Path norms over the margin ([EG]), the Fisher-Rao norm ([FR]) and the Jacobian ([JR]) grow with the "
    "generalization gap; flatness predicts it better than products of norms, which fall with it (Jiang et al. 2020).",
    remark="All ranks are among networks with equally many training samples. Across training sizes most measures order "
    "networks the wrong way round: more samples reduce the gap, but need larger weights to be fitted, which Nagarajan "
    "and Kolter (2019) observed for norms. Products of norms do not fall with the gap here: label noise raises both, "
    "and networks as small as these differ less in width and depth than those of Jiang et al.",
    data=("mnist", "cifar10"),
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
    summarize=summarize,
)

if __name__ == "__main__":
    STUDY.main()
