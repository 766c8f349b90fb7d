"""Weight decay on chosen parameters, against steps that are written out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_iris
from torch import nn
from torch.nn import functional as F

from sklearn_capacity import GeneralizationLayerClassifier, NetworkClassifier, NetworkRegressor
from sklearn_capacity.training.regime import SLOW

X, y = load_iris(return_X_y=True)
EPOCHS, RATE = 3, 0.05
WHOLE = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": RATE, "batch_size": 150, "max_epochs": EPOCHS}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def steps_by_hand(strengths: dict[str, float]) -> dict[str, torch.Tensor]:
    """Full gradient steps w <- w - rate (g + decay w), with a decay per parameter."""
    module = network()
    for _ in range(EPOCHS):
        loss = F.cross_entropy(module(torch.from_numpy(X)), torch.from_numpy(y))
        names, parameters = zip(*module.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
                parameter -= RATE * (gradient + strengths.get(name, 0.0) * parameter)
    return module.state_dict()


@pytest.mark.parametrize(
    ("decay", "strengths"),
    [
        ({"*.weight": 0.5}, {"0.weight": 0.5, "2.weight": 0.5}),
        ({"2.*": 0.5}, {"2.weight": 0.5, "2.bias": 0.5}),
        ({"0.weight": 0.3, "2.bias": 0.9}, {"0.weight": 0.3, "2.bias": 0.9}),
        # the first pattern that matches counts, also if it says 0
        ({"0.*": 0.0, "*": 0.4}, {"2.weight": 0.4, "2.bias": 0.4}),
        ({"*": 0.4}, dict.fromkeys(["0.weight", "0.bias", "2.weight", "2.bias"], 0.4)),
        ({}, {}),
        ({"*": 0.0}, {}),
    ],
)
def test_chosen_parameters_decay(decay, strengths):
    model = NetworkClassifier(module=network(), weight_decay=decay, **WHOLE).fit(X, y)
    for name, value in steps_by_hand(strengths).items():
        torch.testing.assert_close(model.module_.state_dict()[name], value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "kfac", "nadam", "rmsprop", "sam"])
def test_every_parameter_by_pattern_is_the_number(optimizer):
    settings = {"optimizer": optimizer, "max_epochs": 3, "random_state": 0}
    number, pattern = (NetworkClassifier((5,), weight_decay=decay, **settings).fit(X, y) for decay in (0.3, {"*": 0.3}))
    np.testing.assert_allclose(pattern.predict_proba(X), number.predict_proba(X), rtol=1e-9)


def test_generalization_layers_decay_and_learn_slowly():
    model = GeneralizationLayerClassifier((6, 6), weight_decay={"*.weight": 0.1}, max_epochs=1, random_state=0).fit(
        X, y
    )
    names = {id(parameter): name for name, parameter in model.module_.named_parameters()}
    strengths, slow = {}, set()
    for group in model.net_.optimizer_.param_groups:
        for parameter in group["params"]:
            strengths[names[id(parameter)]] = group["weight_decay"]
            slow |= {names[id(parameter)]} if group.get(SLOW) else set()
    assert strengths == {name: 0.1 if name.endswith(".weight") else 0.0 for name in names.values()}
    plain = clone(model).set_params(weight_decay=0.1).fit(X, y)
    others = {id(parameter): name for name, parameter in plain.module_.named_parameters()}
    groups = plain.net_.optimizer_.param_groups
    assert slow == {others[id(p)] for group in groups if group.get(SLOW) for p in group["params"]} != set()


def test_a_changed_pattern_holds_for_the_next_fit():
    model = NetworkClassifier(module=network(), warm_start=True, **WHOLE).fit(X, y)
    model.set_params(weight_decay={"2.*": 0.5}).fit(X, y)
    assert sorted(group["weight_decay"] for group in model.net_.optimizer_.param_groups) == [0, 0.5]


@pytest.mark.parametrize(
    ("decay", "error", "text"),
    [
        (
            {"head.*": 0.1},
            ValueError,
            r"`weight_decay` must name parameters of the module, got 'head.\*', which matches",
        ),
        ({"0.weights": 0.1}, ValueError, "none of 0.weight, 0.bias, 2.weight, 2.bias. Did you mean '0.weight'"),
        ({"*": -1.0}, ValueError, r"`weight_decay\['\*'\]` must lie in \[0, inf\), got -1"),
        ({0: 0.1}, TypeError, "`weight_decay` must have patterns of parameter names as keys .*, got 0"),
        ("much", TypeError, r"`weight_decay` must be a number in \[0, inf\), got 'much'"),
    ],
)
def test_refused_patterns(decay, error, text):
    with pytest.raises(error, match=text):
        NetworkClassifier(module=network(), weight_decay=decay).fit(X, y)


def test_an_optimizer_without_weight_decay_refuses_patterns():
    with pytest.raises(ValueError, match="`weight_decay` must be 0 with LBFGS, which has no weight decay, got 0.1"):
        NetworkRegressor(optimizer="lbfgs", weight_decay={"*": 0.1}).fit(X, y)
