"""Estimators on the device: the CPU's numbers, checkpoints that resume, two workers of a search on one device."""

from __future__ import annotations

import tempfile
import warnings
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_capacity import (
    CapacityScorer,
    GeneralizationLayerClassifier,
    GeneralizationLayerRegressor,
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    NetworkClassifier,
    NetworkRegressor,
)
from tests.gpu.runner import Skip, check

rng = np.random.default_rng(0)
X = rng.normal(size=(120, 16))  # (n, features); also images of 4 x 4
y = np.arange(120) % 3
KINDS = [
    NetworkClassifier,
    NetworkRegressor,
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    GeneralizationLayerClassifier,
    GeneralizationLayerRegressor,
]


def small_conv(n_outputs: int) -> nn.Module:
    """A convolution with batch norm and max pooling."""
    head = nn.Flatten(), nn.Linear(3, n_outputs)
    return nn.Sequential(nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), *head)


CONV = {"module": small_conv, "input_shape": (1, 4, 4)}
CASES: list[tuple[type, dict[str, Any]]] = [
    *((kind, params) for kind in KINDS for params in ({}, {"batch_norm": True}, {"early_stopping": True})),
    (JacobianRegularizedClassifier, {"jacobian_norm": "projection", "n_projections": 2}),
    (JacobianRegularizedClassifier, {"jacobian_norm": "spectral", "activation": "tanh"}),
    (JacobianRegularizedClassifier, {"jacobian_norm": "per_layer", **CONV}),
    (JacobianRegularizedClassifier, {"jacobian_output": "softmax", "weight_norm": True}),
    (JacobianRegularizedClassifier, CONV),
    (NetworkClassifier, {"class_weight": "balanced", "optimizer": "sgd", "learning_rate_schedule": "cosine"}),
    (GeneralizationLayerClassifier, {"jacobian_penalty": 0.1, "layer_form": "block", "slow_after": 0}),
    (NetworkClassifier, {"augmentation": "crop_flip", **CONV}),
    (NetworkClassifier, {"optimizer": "path_sgd", "learning_rate": 1e-3}),
    (NetworkClassifier, {"optimizer": "kfac", "learning_rate": 1e-2}),
    (NetworkClassifier, {"optimizer": "kfac", "learning_rate": 1e-2, "optimizer_params": {"fisher": "mc"}}),
    (NetworkRegressor, {"loss": "absolute", "optimizer": "lbfgs", "learning_rate": 0.1, "stop_below": 0.01}),
    (NetworkClassifier, {"penalty": "spectral_norm", "penalty_strength": 1e-3, **CONV}),
    (NetworkClassifier, {"penalty": "gradient_norm", "penalty_strength": 0.1, "activation": "tanh"}),
    (NetworkRegressor, {"penalty": "fisher_rao", "penalty_strength": 0.01, "batch_norm": True}),
    (NetworkClassifier, {"optimizer": "sam", "batch_norm": True, "dropout": 0.2}),
    (JacobianRegularizedClassifier, {"optimizer": "sam", "optimizer_params": {"base": "adam", "adaptive": True}}),
]


def fitted(kind: type, device: torch.device | str, **params: Any) -> Any:
    """A small estimator after a few epochs."""
    target = y if issubclass(kind, NetworkClassifier) else X[:, :1] + X[:, 1:3]
    params = {"max_epochs": 3, "batch_size": 20, "random_state": 0, "hidden_layer_sizes": (8,), **params}
    if "module" in params:
        del params["hidden_layer_sizes"]
    return kind(device=device, **params).fit(X, target)


@check
def estimators_equal_the_cpu(device: torch.device) -> str:
    """Every estimator fits, with every penalty and optimiser, and predicts what it predicts on the CPU."""
    worst, n_cases = 0.0, 0
    for kind, params in CASES:
        there = fitted(kind, device, **params)
        assert {p.device.type for p in there.module_.parameters()} == {device.type}, (kind, params)
        got, expected = there._outputs(X), fitted(kind, "cpu", **params)._outputs(X)
        error = float(np.abs(got - expected).max() / np.abs(expected).max())
        # Both run in float64. Training multiplies rounding errors; anything beyond this is another computation.
        assert error < 1e-6, f"{kind.__name__} {params}: outputs differ by {error:.1e}"
        worst, n_cases = max(worst, error), n_cases + 1
    return f"{n_cases} fits, largest relative difference {worst:.1e}"


@check
def checkpoints_resume(device: torch.device) -> str:
    """A fit that is interrupted goes on to the end that it would have had."""
    if device.type == "meta":
        raise Skip("files are written from a real device")
    params = {"max_epochs": 8, "checkpoint_every": 1, "random_state": 0, "batch_size": 20, "device": device}
    whole = NetworkClassifier((8,), **{**params, "checkpoint_every": 1}).fit(X, y)
    with tempfile.TemporaryDirectory() as folder:
        from skorch.callbacks import Callback

        class Interrupt(Callback):
            """Press Ctrl-C in the fifth epoch, once."""

            armed = True

            def on_epoch_begin(self, net: Any, **_: Any) -> None:
                if Interrupt.armed and len(net.history) == 5:
                    Interrupt.armed = False
                    raise KeyboardInterrupt

        estimator = NetworkClassifier((8,), callbacks=[Interrupt()], checkpoint_dir=folder, **params)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                estimator.fit(X, y)
        except KeyboardInterrupt:
            pass
        assert not Interrupt.armed, "the fit was not interrupted"
        resumed = NetworkClassifier((8,), callbacks=[Interrupt()], checkpoint_dir=folder, **params).fit(X, y)
    expected, got = whole._outputs(X), resumed._outputs(X)
    np.testing.assert_allclose(got, expected, rtol=1e-9, atol=1e-12)
    return "equal to the bit" if np.array_equal(got, expected) else "equal but for rounding"


@check
def a_search_shares_the_device(device: torch.device) -> str:
    """Two workers of a search train and measure on one device, with the scores of a serial search."""
    if device.type == "meta":
        raise Skip("workers are other processes, which have no pretended device")
    scores = []
    for n_jobs in (1, 2):
        search = GridSearchCV(
            JacobianRegularizedClassifier((8,), max_epochs=3, random_state=0, device=device),
            {"jacobian_penalty": [0.0, 0.1]},
            scoring=CapacityScorer(["accuracy", "spectral_norm", "jacobian_frobenius"], on_error="raise"),
            refit="accuracy",
            cv=2,
            n_jobs=n_jobs,
            error_score="raise",
        ).fit(X, y)
        scores.append(search.cv_results_["mean_test_neg_jacobian_frobenius"])
        assert {p.device.type for p in search.best_estimator_.module_.parameters()} == {device.type}
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-6)
    return f"2 workers, {len(scores[0])} candidates"
