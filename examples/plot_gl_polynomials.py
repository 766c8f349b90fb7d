"""
A generalization layer as the only regulariser
==============================================

A residual MLP of 17 units a layer learns 100 noisy values of a function that is cubic on the left and quadratic on the
right, and is then compared with the function without the noise. Its twin has generalization layers in the place of its
last three residual blocks: the skips over them weaken from 1 to 0.1 in the first half of the training, their own
weights learn with a tenth of the learning rate, and nothing else regularises. A small version of [GL] figure 7: 20
residual blocks for 45, and Adam for plain gradient descent, whose published rate of 1e-7 needs many more epochs
than an example has.
"""

from __future__ import annotations

import argparse
import sys
from statistics import mean, stdev

import numpy as np
from sklearn.compose import TransformedTargetRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_capacity import GeneralizationLayerRegressor, NetworkRegressor
from sklearn_capacity.datasets import make_noisy_cubic


def make_model(with_layers: bool, epochs: int, seed: int) -> TransformedTargetRegressor:
    """The network behind scalers of x and y."""
    settings = dict(learning_rate=0.003, max_epochs=epochs, batch_size=100, random_state=seed, module="residual_mlp")
    size = dict(n_hidden_layers=41)
    if with_layers:
        network = GeneralizationLayerRegressor(
            module_params={**size, "generalization_blocks": (-3, -2, -1)},
            position=None,
            nu_decay_fraction=0.5,
            slow_after=0.02,
            **settings,
        )
    else:
        network = NetworkRegressor(module_params=size, **settings)
    return TransformedTargetRegressor(make_pipeline(StandardScaler(), network), transformer=StandardScaler())


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--epochs", type=int, default=600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args(arguments)

    import matplotlib.pyplot as plt

    grid = np.linspace(-8, 8, 801)[:, None]
    _, clean = make_noisy_cubic(801, noise=0.0, switch=-4.0)
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True)
    for panel, (name, with_layers) in zip(panels, {"plain": False, "GL": True}.items(), strict=True):
        errors = []
        for seed in options.seeds:
            X, y = make_noisy_cubic(100, switch=-4.0, random_state=seed)
            found = make_model(with_layers, options.epochs, seed).fit(X, y).predict(grid)
            errors.append(float(np.sqrt(np.mean((found - clean) ** 2))))
            panel.plot(grid, found, lw=1)
        spread = stdev(errors) / len(errors) ** 0.5 if len(errors) > 1 else float("nan")
        print(f"{name:5s} root mean squared error {mean(errors):.2f} +- {spread:.2f}  {np.round(errors, 2)}")
        panel.plot(grid, clean, "k--", lw=1)
        panel.plot(X, y, ".", color="grey", ms=3)
        panel.set(title=f"{name}: error {mean(errors):.2f}", xlabel="x")
    figure.savefig("gl_polynomials.png", dpi=150, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1:])
