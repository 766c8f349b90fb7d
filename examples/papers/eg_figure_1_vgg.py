"""
True and random labels: norms over margins, VGG on CIFAR-10
===========================================================

[EG] figure 1: as ``eg_figure_1.py``, with the VGG network of the paper's appendix A. Smaller scales have an eighth of
its channels and no dropout (the paper gives no rate). Batches of 16 give batch norm enough steps for its running
statistics, with which the margin is measured; on the few images of scale tiny, training stops at error zero instead.
"""

from __future__ import annotations

from eg_figure_1 import claims, draw, fit_and_measure
from study import Study

COMMON = {"labels": ["true", "random"], "max_epochs": 300, "stop_below": 0.01, "stop_at_error": None}
SCALES = {
    "tiny": {
        **COMMON,
        "stop_below": None,
        "stop_at_error": 0.0,
        "n_train": [16, 32],
        "channels": 2,
        "hidden_size": 16,
        "dropout": 0.0,
        "batch_size": 8,
    },
    "small": {**COMMON, "n_train": [200, 400, 800], "channels": 8, "hidden_size": 64, "dropout": 0.0, "batch_size": 16},
    "paper": {
        **COMMON,
        "stop_below": 1e-4,
        "n_train": [1000, 5000, 10000, 20000, 50000],
        "channels": 64,
        "hidden_size": 512,
        "dropout": 0.3,
        "batch_size": 64,
    },
}


def run(data, *, seed, device, labels, max_epochs, stop_below, stop_at_error, **network):
    n_train, channels = network["n_train"], network["channels"]
    stacks = tuple(channels * factor for factor in (1, 2, 4, 8))
    settings = {
        "module": "vgg",
        "module_params": {"channels": stacks, "hidden_size": network["hidden_size"], "dropout": network["dropout"]},
        "batch_size": network["batch_size"],
        "max_epochs": max_epochs,
        "stop_below": stop_below,
        "stop_at_error": stop_at_error,
        "device": device,
        "random_state": seed,
    }
    return fit_and_measure(data, n_train, labels, settings)


STUDY = Study(
    paper="[EG] figure 1",
    statement="All four norms over the margin are larger for networks that fit random labels than for true labels, and "
    "the difference grows with the size of the training set.",
    data="cifar10",
    scales=SCALES,
    run=run,
    draw=draw,
    claims=claims,
    remark="The same code reproduces the statement for an MLP on more images (eg_figure_1); here the sets are small.",
)

if __name__ == "__main__":
    STUDY.main()
