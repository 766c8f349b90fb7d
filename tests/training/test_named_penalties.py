"""Estimators that train with the penalties on the parameters, by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from sklearn_capacity import CapacityScorer, JacobianRegularizedClassifier, NetworkClassifier, NetworkRegressor
from sklearn_capacity.penalties import PARAMETER_PENALTIES, frobenius_penalty

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype("float32")


def conv_net(n_outputs):
    head = nn.Flatten(), nn.Linear(4 * 16, n_outputs)
    return nn.Sequential(nn.Conv2d(1, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4), nn.ReLU(), *head)


MLP, CONV = {}, {"module": conv_net, "input_shape": (1, 8, 8)}
# With a constant rate, the batch norm's running statistics lag behind the shrinking weights, by an amount that depends
# on the last bits.
DECAYING = {**CONV, "learning_rate_schedule": "cosine"}
TRAINED = [
    ("spectral_norm", 0.01, MLP),
    ("spectral_norm", 0.003, DECAYING),
    ("gradient_norm", 0.3, MLP),
    ("gradient_norm", 0.3, CONV),
    ("fisher_rao", 0.1, MLP),
    ("fisher_rao", 0.01, CONV),
]


@pytest.mark.parametrize(("name", "strength", "params"), TRAINED)
def test_digits_are_learnt_with_less_of_what_is_penalised(name, strength, params):
    options = {"max_epochs": 10, "random_state": 0, **params}
    X, target = images[:1000], labels[:1000]
    plain = NetworkClassifier(**options).fit(X, target)
    model = NetworkClassifier(penalty=name, penalty_strength=strength, **options).fit(X, target)
    inputs = torch.from_numpy(X.reshape(-1, *model.input_shape_))
    given = {"y": torch.from_numpy(target)} if name != "spectral_norm" else {}
    less, more = (float(PARAMETER_PENALTIES[name](m.module_, inputs, **given).detach()) for m in (model, plain))
    assert less < 0.9 * more
    assert model.score(images[1000:], labels[1000:]) > 0.8
    assert model.history_[-1, "train_penalty"] > 0 and "train_penalty" not in plain.history_[-1]


def test_a_step_follows_loss_and_penalties_with_weights():
    """Plain gradient descent at the initial weights, together with a Jacobian penalty."""
    rng = np.random.default_rng(0)
    X, target, weights = rng.normal(size=(40, 5)), np.arange(40) % 3, rng.uniform(0.5, 2, size=40)
    options = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1, "max_epochs": 1, "batch_size": 40}
    inputs, classes, factors = torch.from_numpy(X), torch.from_numpy(target), torch.from_numpy(weights / weights.mean())
    for name, penalty in PARAMETER_PENALTIES.items():
        model = JacobianRegularizedClassifier(
            (6,), "tanh", penalty=name, penalty_strength=0.3, jacobian_penalty=0.2, random_state=0, **options
        ).fit(X, target, sample_weight=weights)
        module = NetworkClassifier((6,), "tanh", max_epochs=1).fit(X, target).module_
        module.load_state_dict(model.initial_state_)
        module.zero_grad()
        losses = functional.cross_entropy(module(inputs), classes, reduction="none")
        given = {} if name == "spectral_norm" else {"y": classes, "sample_weight": factors}
        objective = (losses * factors).mean() + 0.3 * penalty(module, inputs, **given)
        objective = objective + 0.2 * frobenius_penalty(module, inputs, sample_weight=factors)
        objective.backward()
        for key, parameter in module.named_parameters():
            step = model.initial_state_[key] - 0.1 * parameter.grad
            torch.testing.assert_close(model.module_.state_dict()[key], step, rtol=1e-9, atol=1e-11)


def test_names_travel_with_grids_checkpoints_sam_and_regressors(tmp_path):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(40, 5))
    for name in PARAMETER_PENALTIES:
        options = {"penalty": name, "penalty_strength": 0.1, "max_epochs": 2, "random_state": 0, "optimizer": "sam"}
        one = NetworkRegressor((4,), checkpoint_dir=tmp_path, **options).fit(X, X[:, 0])
        two = NetworkRegressor((4,), checkpoint_dir=tmp_path, **options).fit(X, X[:, 0])
        assert np.array_equal(one.predict(X), two.predict(X))
    assert len(list(tmp_path.iterdir())) == 3
    assert CapacityScorer("fisher_rao_norm")(one, X, X[:, 0]) < 0


def test_a_misspelt_name_is_refused():
    with pytest.raises(ValueError, match="`penalty` must be one of .*Did you mean 'spectral_norm'"):
        NetworkClassifier(penalty="spectral_nrom").fit(np.zeros((4, 2)), [0, 1, 0, 1])
