"""
Level sets of the Fisher-Rao and of the path norm
=================================================

[FR] figure 6: both norms of a small random rectifier network with one hidden layer, as functions of two of its weights,
for Gaussian inputs and the absolute loss. The claims are what the picture is to show: the path norm's level sets are
symmetric in the sign of a weight, those of the Fisher-Rao norm are not; and the data-dependent path norm times L + 1
(section 4.1) is never below the Fisher-Rao norm, so that its balls lie inside.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from study import Study

from sklearn_capacity.architectures import MLP
from sklearn_capacity.displays import NormGeometryDisplay

MEASURES = ("fisher_rao_norm", "l2_path_norm", "data_path_norm")
N_LAYERS = 2
COMMON = {"n_features": 2, "width": 3}
SCALES = {
    "tiny": {**COMMON, "n_samples": 50, "resolution": 7},
    "small": {**COMMON, "n_samples": 1000, "resolution": 21},
    "paper": {**COMMON, "n_samples": 10000, "resolution": 101},
}


def run(data, *, seed, device, n_features, width, n_samples, resolution):
    torch.manual_seed(seed)
    device = "cpu" if device == "auto" else device  # the network is tiny
    X, y = torch.randn(n_samples, n_features).to(device), torch.zeros(n_samples, 1, device=device)
    module = MLP(n_features, 1, (width,), bias=False).to(device)
    options = {"measures": MEASURES, "half_width": 2.0, "resolution": resolution, "loss": "absolute"}
    land = NormGeometryDisplay.from_estimator(module, X, y, **options).landscape
    return {"x": land.x, **{name: values.ravel() for name, values in land.values.items()}}


def draw(rows: pd.DataFrame, figure) -> None:
    figure.set_size_inches(8, 3 * len(rows))
    for axes, (_, row) in zip(figure.subplots(len(rows), 2, squeeze=False), rows.iterrows(), strict=True):
        for ax, name in zip(axes, MEASURES[:2], strict=True):
            contours = ax.contour(row["x"], row["x"], _grid(row[name]), levels=10)
            ax.clabel(contours, fontsize=7)
            ax.set(title=f"{name.replace('_', ' ')}, seed {row['seed']}", xlabel="a weight of layer 1", aspect="equal")
        axes[0].set_ylabel("a weight of layer 2")


def claims(rows: pd.DataFrame) -> dict[str, list[float]]:
    return {
        "asymmetry of the Fisher-Rao norm over 1 %, log10": [
            np.log10(_asymmetry(row) / 0.01) for row in rows["fisher_rao_norm"]
        ],
        "asymmetry of the path norm below 0.01 %": [1e-4 - _asymmetry(row) for row in rows["l2_path_norm"]],
        "(L + 1) data path norm over the Fisher-Rao norm, smallest log10 on the grid": [
            np.log10(N_LAYERS * np.array(path) / np.array(norm)).min()
            for path, norm in zip(rows["data_path_norm"], rows["fisher_rao_norm"], strict=True)
        ],
    }


def _grid(values) -> np.ndarray:
    values = np.array(values)
    return values.reshape(round(len(values) ** 0.5), -1)


def _asymmetry(values) -> float:
    """Largest change of a norm when one of the weights changes its sign, relative to the norm's maximum."""
    grid = _grid(values)
    return float(max(np.abs(grid - np.flip(grid, axis)).max() for axis in (0, 1)) / grid.max())


STUDY = Study(
    paper="[FR] figure 6",
    statement="The Fisher-Rao norm has a geometry of its own: its level sets differ from those of the path norm, whose "
    "data-dependent form dominates it.",
    data=None,
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
)

if __name__ == "__main__":
    STUDY.main()
