"""The main job on real digits: cross-validate the Jacobian strength, measure capacity, print a table, draw a figure.

Run with ``python -m sklearn_capacity [--output FOLDER] [--jobs N]``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, ParameterGrid, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

from sklearn_capacity import CapacityScorer, JacobianRegularizedClassifier
from sklearn_capacity.displays import CapacityPathDisplay
from sklearn_capacity.model_selection import capacity_refit, capacity_table

STRENGTHS = [0.0, 0.001, 0.01, 0.1, 1.0]
MEASURES = ["accuracy", "fisher_rao_norm", "l2_path_norm", "jacobian_frobenius", "margin"]


class SearchWithProgress(GridSearchCV):
    """A grid search with a bar that moves with every candidate."""

    def _run_search(self, evaluate_candidates):  # type: ignore[no-untyped-def]
        for candidate in tqdm(list(ParameterGrid(self.param_grid)), desc="strengths", unit="strength"):
            evaluate_candidates([candidate])


def search(n_jobs: int | None = None) -> tuple[SearchWithProgress, float]:
    """The fitted search and the chosen network's accuracy on digits it has never seen."""
    X, y = load_digits(return_X_y=True)
    X, X_test, y, y_test = train_test_split(X.astype("float32"), y, test_size=0.3, stratify=y, random_state=0)
    network = JacobianRegularizedClassifier(max_epochs=30, random_state=0)
    model = Pipeline([("scale", StandardScaler()), ("network", network)])
    grid = SearchWithProgress(
        model,
        {"network__jacobian_penalty": STRENGTHS},
        scoring=CapacityScorer(MEASURES),
        refit=capacity_refit(score="accuracy", capacity="neg_jacobian_frobenius"),
        cv=5,
        n_jobs=n_jobs,
        return_train_score=True,
    )
    grid.fit(X, y)
    return grid, grid.best_estimator_.score(X_test, y_test)


def main() -> None:
    """Run the demonstration from the command line."""
    parser = argparse.ArgumentParser(prog="python -m sklearn_capacity", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the figure and the table")
    parser.add_argument("--jobs", type=int, default=None, help="networks to train at once")
    options = parser.parse_args()
    grid, test_accuracy = search(options.jobs)
    table = capacity_table(grid.cv_results_)
    options.output.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.output / "capacity_path.csv", index=False)
    print(table.drop(columns="test_accuracy_se").to_string(index=False, float_format=lambda v: f"{v:.4g}"))
    best = table.loc[table["test_accuracy"].idxmax(), "jacobian_penalty"]
    chosen = grid.best_params_["network__jacobian_penalty"]
    print(f"\nBest mean accuracy at strength {best:g}.")
    print(f"Smallest Jacobian within one standard error of it: strength {chosen:g}.")
    print(f"Refitted at strength {chosen:g}: accuracy {test_accuracy:.4f} on 540 digits kept apart.")
    try:
        figure = CapacityPathDisplay(table).plot().figure_
    except ImportError:
        print("No figure: it needs matplotlib. Install it with `pip install sklearn_capacity[plot]`.")
        return
    figure.savefig(options.output / "capacity_path.png", dpi=120)
    print(f"Figure and table written to {options.output}/.")


if __name__ == "__main__":
    main()
