"""
Do optimisers find minima of different capacity?
================================================

The same rectifier networks, from the same initial weights, on the same digits, trained by stochastic gradient descent,
sharpness-aware minimisation, K-FAC and Path-SGD until the mean cross-entropy of an epoch is below 0.02
(``final_loss`` is that of the last weights): if they differ then, the optimiser chose the minimum, not the length of
the training. Each has two learning rates, a factor of four apart, and the mean of those that reach the loss counts, so
that nothing is chosen by results. None of the papers has this experiment.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import log_loss
from study import Study

from sklearn_capacity import NetworkClassifier, measure_capacity

RATES = {"sgd": [0.01, 0.04], "sam": [0.01, 0.04], "kfac": [0.01, 0.04], "path_sgd": [0.04, 0.16]}
MEASURES = [
    "parameter_norm",
    "distance_from_initialization",
    "l2_path_norm",
    "spectral_norm",
    "fisher_rao_norm",
    "jacobian_frobenius",
    "hessian_max_eigenvalue",
    "adaptive_sharpness",
]
THRESHOLD = 0.02


def scale(**settings) -> list[dict]:
    return [{"optimizer": name, "learning_rate": rates, **settings} for name, rates in RATES.items()]


SCALES = {
    "tiny": scale(n_train=50, width=32, pixels=8, max_epochs=800),
    "small": scale(n_train=1000, width=64, pixels=14, max_epochs=300),
    "paper": scale(n_train=20000, width=1000, pixels=28, max_epochs=500),
}


def run(images, *, seed, device, optimizer, learning_rate, n_train, width, pixels, max_epochs):
    n_test = min(2000, len(images.y) // 5)
    X, y, X_test, y_test = images.reduced(pixels).split(n_train, n_test, seed)
    model = NetworkClassifier(
        (width, width),
        optimizer=optimizer,
        optimizer_params={"momentum": 0.9} if optimizer == "sam" else None,
        learning_rate=learning_rate,
        batch_size=64,
        max_epochs=max_epochs,
        stop_below=THRESHOLD,
        device=device,
        random_state=seed,
    ).fit(X, y)
    results = {"n_epochs": len(model.history_), "train_loss": model.history_[-1, "train_loss"]}
    results["final_loss"] = log_loss(y, model.predict_proba(X))
    results |= {"train_accuracy": model.score(X, y), "test_accuracy": model.score(X_test, y_test)}
    return results | measure_capacity(model, X, y, MEASURES)


def over_sgd(rows: pd.DataFrame) -> pd.DataFrame:
    """Decimal logarithms of each measure over that of SGD, by seed and optimiser, of the mean over learning rates."""
    rows = rows[rows["train_loss"] < THRESHOLD]
    logs = np.log10(rows[MEASURES]).groupby([rows["seed"], rows["optimizer"]]).mean()
    return logs - logs.xs("sgd", level="optimizer").reindex(logs.index, level="seed")


def draw(rows: pd.DataFrame, figure) -> None:
    figure.set_size_inches(8, 4)
    ratios, ax = over_sgd(rows), figure.subplots()
    ax.axhline(0, color="0.7")
    for k, (name, label) in enumerate({"sam": "SAM", "kfac": "K-FAC", "path_sgd": "Path-SGD"}.items()):
        part = ratios.xs(name, level="optimizer")
        positions = np.arange(len(MEASURES)) + 0.2 * (k - 1)
        ax.errorbar(positions, part.mean(), part.sem(), fmt="osD"[k], capsize=3, label=label)
    ax.set_xticks(range(len(MEASURES)), [m.replace("_", "\n") for m in MEASURES], fontsize=8)
    ax.set_ylabel("log10 of the measure over that of SGD")
    ax.legend()


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    """Each optimiser against SGD in what it is made for, and in accuracy (percentage points)."""
    ratios = over_sgd(rows)

    def smaller(optimizer: str, measure: str) -> list[float]:
        return list(-ratios.xs(optimizer, level="optimizer")[measure])

    accuracy = rows[rows["train_loss"] < THRESHOLD].groupby(["seed", "optimizer"])["test_accuracy"].mean().unstack()
    return {
        "log10 of the Hessian's largest eigenvalue of SGD over SAM": smaller("sam", "hessian_max_eigenvalue"),
        "log10 of the adaptive sharpness of SGD over SAM": smaller("sam", "adaptive_sharpness"),
        "log10 of the l2 path norm of SGD over Path-SGD": smaller("path_sgd", "l2_path_norm"),
        "log10 of the Fisher-Rao norm of SGD over K-FAC": smaller("kfac", "fisher_rao_norm"),
        "test accuracy of SAM minus that of SGD (points)": list(100 * (accuracy["sam"] - accuracy["sgd"])),
    }


STUDY = Study(
    paper="Optimisers and the capacity of their minima",
    statement="At the same training loss, each optimiser has found a minimum that is smaller in the geometry it uses: "
    "SAM in sharpness, Path-SGD in the path norm, K-FAC in the Fisher-Rao norm; and SAM's generalises better.",
    remark="The minima do differ, although the loss is the same. SAM's are flatter, with a smaller Jacobian and the "
    "same norms; Path-SGD's have a smaller path norm and Jacobian and are flat relative to the weights, but their "
    "Hessian is larger; K-FAC goes farther from the initial weights and ends with larger norms, a larger Jacobian and "
    "the widest spread. The Fisher-Rao norm hardly tells them apart, since it is small wherever the loss is. Path-SGD "
    "with the lower rate does not reach the loss for every seed.",
    data="mnist",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
