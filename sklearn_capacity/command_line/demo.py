"""Choose the strength of a penalty by cross-validation, on digits of which 30 % have random labels.

Run with ``sklearn-capacity demo [--output FOLDER] [--jobs N]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, ParameterGrid, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import MaxAbsScaler
from tqdm import tqdm

from ..displays import CapacityPathDisplay
from ..estimators import JacobianRegularizedClassifier
from ..model_selection import capacity_refit, capacity_table
from ..scoring import CapacityScorer

STRENGTHS = [0.0, 0.001, 0.01, 0.03, 0.1, 1.0]
MEASURES = ["accuracy", "jacobian_frobenius", "l2_path_norm", "lipschitz_l2"]
N_TRAIN, NOISE, SEEDS = 400, 0.3, (0, 1, 2)


@contextmanager
def one_thread() -> Iterator[None]:
    """Run on one: on a busy machine the threads of such small products wait ten times as long as they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class SearchWithProgress(GridSearchCV):
    """A grid search with a progress bar over the candidates."""

    def _run_search(self, evaluate_candidates):  # type: ignore[no-untyped-def]
        for candidate in tqdm(list(ParameterGrid(self.param_grid)), desc="cross-validation", unit="strength"):
            evaluate_candidates([candidate])


def noisy_digits(seed: int) -> tuple[np.ndarray, ...]:
    """Training images and their labels, 30 % of them random; test images and their true labels."""
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X.astype("float32"), y, train_size=N_TRAIN, stratify=y, random_state=seed)
    rng = np.random.default_rng(seed)
    random = rng.random(N_TRAIN) < NOISE
    return X, np.where(random, rng.integers(10, size=N_TRAIN), y), X_test, y_test


def network(seed: int) -> Pipeline:
    """A hundred hidden units after a scaler."""
    classifier = JacobianRegularizedClassifier((100,), max_epochs=60, batch_size=50, random_state=seed)
    return Pipeline([("scale", MaxAbsScaler()), ("network", classifier)])


def search(n_jobs: int | None = None) -> GridSearchCV:
    """Cross-validate the strength on the noisy labels; the clean ones take no part."""
    X, y, _, _ = noisy_digits(SEEDS[0])
    return SearchWithProgress(
        network(SEEDS[0]),
        {"network__jacobian_penalty": STRENGTHS},
        scoring=CapacityScorer(MEASURES),
        refit=capacity_refit(score="accuracy", capacity="neg_jacobian_frobenius"),
        cv=5,
        n_jobs=n_jobs,
        return_train_score=True,
    ).fit(X, y)


def accuracy_on_clean_digits() -> pd.DataFrame:
    """Accuracy on digits with true labels: one row per strength, one column per seed."""
    scores: dict[int, list[float]] = {}
    for seed in tqdm(SEEDS, desc="new digits", unit="seed"):
        X, y, X_test, y_test = noisy_digits(seed)
        models = [network(seed).set_params(network__jacobian_penalty=strength).fit(X, y) for strength in STRENGTHS]
        scores[seed] = [model.score(X_test, y_test) for model in models]
    return pd.DataFrame(scores, index=STRENGTHS)


def results(grid: GridSearchCV) -> pd.DataFrame:
    """The table of the search, with the accuracy on clean digits beside it."""
    clean = accuracy_on_clean_digits()
    table = capacity_table(grid.cv_results_)
    table.insert(1, "clean_accuracy", clean.mean(axis=1).to_numpy())
    table.insert(2, "clean_accuracy_se", clean.sem(axis=1).to_numpy())
    return table


def shown(table: pd.DataFrame, chosen: float) -> str:
    """The table for the screen, with the chosen row marked."""
    names = {
        "jacobian_penalty": "strength", "clean_accuracy": "new digits", "test_accuracy": "test folds",
        "train_accuracy": "training folds", "jacobian_frobenius": "squared Jacobian", "l2_path_norm": "path norm",
    }  # fmt: skip
    small = table[list(names)].rename(columns=names)
    small[""] = ["<- chosen" if strength == chosen else "" for strength in table["jacobian_penalty"]]
    return small.to_string(index=False, float_format=lambda value: f"{value:.4g}")


def draw(table: pd.DataFrame, chosen: float) -> Any:
    """The path of the search, with the accuracy on clean digits in the first panel."""
    display = CapacityPathDisplay(table, capacities=MEASURES[1:], chosen=chosen).plot()
    panel = display.axes_[0]
    x, y, error = (table[name] for name in ("jacobian_penalty", "clean_accuracy", "clean_accuracy_se"))
    panel.errorbar(x, y, error, color="C2", marker="s", capsize=3, label="new digits, true labels")
    panel.legend(fontsize="small")
    return display.figure_


@one_thread()
def main(output: Path, jobs: int | None = None) -> None:
    """Run the demonstration; `output` is the folder for the figure and the table."""
    print(f"{N_TRAIN} digits, {NOISE:.0%} of their labels random. Networks of 100 hidden units, 60 epochs.")
    grid = search(jobs)
    table, chosen = results(grid), grid.best_params_["network__jacobian_penalty"]
    output.mkdir(parents=True, exist_ok=True)
    table.to_csv(output / "capacity_path.csv", index=False)
    print(shown(table, chosen))
    plain, best = (table.set_index("jacobian_penalty").loc[strength] for strength in (0.0, chosen))
    print(
        f"\nThe plain network learns the wrong labels too: it fits {plain['train_accuracy']:.0%} of its training "
        f"labels, and is right\non {plain['clean_accuracy']:.1%} of new digits."
    )
    print(
        f"The network that cross-validation chose, on the same labels, leaves wrong ones out: it fits "
        f"{best['train_accuracy']:.0%}, and is right\non {best['clean_accuracy']:.1%} of new digits. Its "
        f"squared Jacobian is {plain['jacobian_frobenius'] / best['jacobian_frobenius']:.0f} times smaller."
    )
    try:
        figure = draw(table, chosen)
    except ImportError:
        print("The figure needs matplotlib. Install it with `pip install sklearn_capacity[plot]`.")
        return
    figure.savefig(output / "capacity_path.png", dpi=120)
    print(f"Figure and table written to {output}/.")
