"""Estimators train and predict on a pretend accelerator: the CPU's numbers, no needless transfers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pretend_device import DeviceMismatchError, pretend_device
from sklearn_capacity import (
    GeneralizationLayerClassifier,
    GeneralizationLayerRegressor,
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    NetworkClassifier,
    NetworkRegressor,
)

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 16)), np.arange(40) % 3
KINDS = [
    NetworkClassifier,
    NetworkRegressor,
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    GeneralizationLayerClassifier,
    GeneralizationLayerRegressor,
]


def small_conv(n_outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 3, 2), nn.BatchNorm2d(3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3, n_outputs)
    )


CASES = [(kind, params) for kind in KINDS for params in ({}, {"batch_norm": True}, {"early_stopping": True})] + [
    (JacobianRegularizedClassifier, {"jacobian_norm": "projection", "n_projections": 2}),
    (JacobianRegularizedClassifier, {"jacobian_norm": "spectral", "activation": "tanh"}),
    (JacobianRegularizedClassifier, {"jacobian_norm": "per_layer", "module": small_conv, "input_shape": (1, 4, 4)}),
    (JacobianRegularizedClassifier, {"jacobian_output": "softmax", "weight_norm": True}),
    (JacobianRegularizedClassifier, {"module": small_conv, "input_shape": (1, 4, 4)}),
    (NetworkClassifier, {"class_weight": "balanced", "optimizer": "sgd", "learning_rate_schedule": "cosine"}),
    (GeneralizationLayerClassifier, {"jacobian_penalty": 0.1, "layer_form": "block", "slow_after": 0}),
    (NetworkClassifier, {"module": small_conv, "input_shape": (1, 4, 4), "augmentation": "crop_flip"}),
    (NetworkClassifier, {"optimizer": "path_sgd"}),
    (NetworkClassifier, {"optimizer": "kfac"}),
    (NetworkClassifier, {"optimizer": "kfac", "optimizer_params": {"fisher": "mc"}}),
    (NetworkRegressor, {"loss": "absolute", "optimizer": "lbfgs", "stop_below": 0.01}),
]


def fitted(kind, device, **params):
    target = y if issubclass(kind, NetworkClassifier) else X[:, :1] + X[:, 1:3]
    params = {"max_epochs": 2, "batch_size": 20, "random_state": 0, "hidden_layer_sizes": (8,), **params}
    if "module" in params:
        del params["hidden_layer_sizes"]
    return kind(device=device, **params).fit(X, target)


@pytest.mark.parametrize(("kind", "params"), CASES)
def test_training_and_prediction_equal_the_cpu(kind, params):
    with pretend_device() as pretend:
        there = fitted(kind, pretend.device, **params)
        assert {p.device for p in there.module_.parameters()} == {pretend.device}
        predicted = there._outputs(X)
    np.testing.assert_allclose(predicted, fitted(kind, "cpu", **params)._outputs(X), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_transfers_to_the_host_do_not_grow_with_the_batches(kind):
    counts = []
    for batch_size in (20, 8):
        with pretend_device() as pretend:
            fitted(kind, pretend.device, batch_size=batch_size)
            counts.append(pretend.n_transfers)
    assert counts[0] == counts[1] > 0


def test_the_pretend_device_notices_faults():
    class Careless(nn.Linear):
        def forward(self, X):
            return super().forward(X) + torch.ones(self.out_features, dtype=X.dtype)

    with pretend_device() as pretend:
        with pytest.raises(ValueError, match="on the CPU") as caught:
            NetworkClassifier(module=Careless(16, 3).double(), device=pretend.device).fit(X, y)
        assert isinstance(caught.value.__cause__, DeviceMismatchError)
        tensor = torch.zeros(3, device=pretend.device)
        before = pretend.n_transfers
        tensor.sum().item()
        assert pretend.n_transfers == before + 1
        with pytest.raises((TypeError, RuntimeError)):
            tensor.numpy()
