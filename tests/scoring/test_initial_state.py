"""The weights before training, given with a model or kept by a callback, and labels for a plain module."""

from __future__ import annotations

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import cross_validate
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_capacity import (
    CapacityScorer,
    InitialStateCallback,
    NetworkClassifier,
    NotDefinedError,
    capacity_report,
    measure_capacity,
)

DISTANCE = "distance_from_initialization"
rng = np.random.default_rng(0)
X, y = rng.normal(size=(30, 4)).astype("float32"), np.arange(30) % 3


def trained_and_before():
    torch.manual_seed(0)
    before = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))
    module = copy.deepcopy(before)
    with torch.no_grad():
        for layer, step in ((module[0], 0.5), (module[3], -0.25)):
            layer.weight += step
    return module, before


def by_hand():
    """Frobenius norms of 0.5 in all of 6 x 4 weights, and of 0.25 in all of 3 x 6."""
    return 0.5 * 24**0.5 + 0.25 * 18**0.5


@pytest.mark.parametrize("kind", ["module", "state", "compiled", "parallel"])
def test_distances_of_a_plain_module(kind):
    module, before = trained_and_before()
    state = {
        "module": before, "state": before.state_dict(), "compiled": torch.compile(before),
        "parallel": nn.DataParallel(before),
    }[kind]  # fmt: skip
    assert measure_capacity(module, X, measures=DISTANCE, initial_state=state)[DISTANCE] == pytest.approx(by_hand())
    kept = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    report = capacity_report(module, X, y, [DISTANCE, "margin"], initial_state=state).set_index("measure")
    assert report.loc[DISTANCE, "value"] == pytest.approx(by_hand())
    assert CapacityScorer(DISTANCE, initial_state=state)(module, X, y) == pytest.approx(-by_hand())
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.state_dict().items())


def test_bounds_with_the_initial_weights_as_prior():
    module, before = trained_and_before()
    with torch.no_grad():
        before[1].weight.copy_(module[1].weight)
    entry = {"bound": ("pac_bayes_bound", {"prior": "initial", "n_draws": 20})}
    with pytest.raises(NotDefinedError, match="needs the weights before training: pass .* `initial_state`"):
        measure_capacity(module, X, y, entry)
    values = measure_capacity(module, X, y, entry, initial_state=before)
    assert 0 < values["bound"] < math.inf


def test_an_initial_state_that_is_given_comes_before_the_one_kept():
    model = NetworkClassifier((5,), max_epochs=2, random_state=0).fit(X, y)
    assert measure_capacity(model, measures=DISTANCE)[DISTANCE] > 0
    assert measure_capacity(model, measures=DISTANCE, initial_state=model.module_)[DISTANCE] == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda state: 3, TypeError, "`initial_state` must be the module before training or its state dict, got int"),
        (lambda state: list(state), TypeError, "got list"),
        (lambda state: {**state, "0.weight": torch.ones(5, 4)}, ValueError,
         r"its `0.weight` has shape \(5, 4\), that of the module \(6, 4\)"),
        (lambda state: {k: v for k, v in state.items() if k != "1.running_var"}, ValueError,
         "must contain `1.running_var` of the trained module, but has no such tensor"),
        (lambda state: {f"net.{k}": v for k, v in state.items()}, ValueError, "it has `net.0.weight`"),
        (lambda state: {**state, "4.weight": torch.ones(2)}, ValueError, "must not contain `4.weight`"),
        (lambda state: {**state, "0.bias": [0.0] * 6}, ValueError, "`0.bias` of .*, but has a list there"),
        (lambda state: nn.Linear(4, 3), ValueError, "must contain `0.weight` of the trained module"),
        (lambda state: {k: v.to("meta") for k, v in state.items()}, ValueError, "`0.weight` is on the meta device"),
    ],
)  # fmt: skip
def test_the_state_of_another_module_is_refused_by_name(change, error, message):
    module, before = trained_and_before()
    with pytest.raises(error, match=message):
        measure_capacity(module, X, measures=DISTANCE, initial_state=change(dict(before.state_dict())))


def skorch_net(**params):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    options = {"criterion": nn.CrossEntropyLoss, "max_epochs": 2, "verbose": 0, "lr": 0.1, "train_split": None}
    return NeuralNetClassifier(module, callbacks=[InitialStateCallback()], **{**options, **params})


def test_the_callback_keeps_the_state_of_a_skorch_net():
    net = skorch_net().initialize()
    before = copy.deepcopy(net.module_.state_dict())
    net.partial_fit(X, y)
    expected = sum(float((net.module_.state_dict()[k] - v).norm()) for k, v in before.items() if v.dim() == 2)
    assert expected > 0
    assert measure_capacity(net, measures=DISTANCE)[DISTANCE] == pytest.approx(expected, rel=1e-5)
    again = pickle.loads(pickle.dumps(net))
    assert measure_capacity(again, measures=DISTANCE) == measure_capacity(net, measures=DISTANCE)
    net.partial_fit(X, y)  # from the same beginning
    assert measure_capacity(net, measures=DISTANCE)[DISTANCE] == pytest.approx(
        sum(float((net.module_.state_dict()[k] - v).norm()) for k, v in before.items() if v.dim() == 2), rel=1e-5
    )
    with pytest.raises(NotDefinedError, match="as `initial_state`"):
        measure_capacity(clone(net).set_params(callbacks=None).fit(X, y), measures=DISTANCE)


def test_the_callback_in_cross_validation():
    scores = cross_validate(skorch_net(), X, y.astype("int64"), scoring=CapacityScorer(DISTANCE), cv=2)
    assert (scores["test_score"] < 0).all()


# -- labels of a plain module ------------------------------------------------------------------------------------------


def labelled():
    """A module whose outputs are, in their order, labels that are not in alphabetical order."""
    torch.manual_seed(1)
    return nn.Linear(4, 3), np.array(["setosa", "aster", "rose"])


@pytest.mark.parametrize("dtype", [str, object])
def test_string_labels_need_their_order(dtype):
    module, classes = labelled()
    labels = classes[y].astype(dtype)
    for function in (measure_capacity, capacity_report):
        with pytest.raises(ValueError, match="`y` must hold class indices, .* got .*'setosa'.* as `classes`"):
            function(module, X, labels, ["margin"])
    with pytest.raises(ValueError, match="`y` must hold class indices"):
        CapacityScorer("margin", on_error="raise")(module, X, labels)
    expected = measure_capacity(module, X, y, "margin")
    assert measure_capacity(module, X, labels, "margin", classes=classes) == expected
    assert CapacityScorer("margin", classes=list(classes))(module, X, labels) == expected["margin"]
    report = capacity_report(module, X, labels, ["margin"], classes=classes, per_class=True)
    assert report.loc[0, "value"] == expected["margin"] and "class aster" in set(report["layer"])


def test_numbers_may_be_labels_too():
    module, _ = labelled()
    expected = measure_capacity(module, X, y, ["margin"])
    assert (
        measure_capacity(module, X, np.array([30.0, 10.0, 20.0])[y], ["margin"], classes=[30.0, 10.0, 20.0]) == expected
    )


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["a", "b"], "`classes` must have one label for each of the network's 3 outputs, got 2 labels"),
        (["a", "b", "b"], "`classes` must be distinct labels"),
        ("abc", "`classes` must be distinct labels"),
        (["a", "b", "c"], "labels that the model does not know"),
    ],
)
def test_wrong_classes_are_refused(classes, message):
    module, labels = labelled()
    with pytest.raises(ValueError, match=message):
        measure_capacity(module, X, labels[y], "margin", classes=classes)


def test_classes_are_for_modules_that_know_none():
    model = NetworkClassifier((5,), max_epochs=1, random_state=0).fit(X, np.array(["a", "b", "c"])[y])
    labels = np.array(["a", "b", "c"])[y]
    assert measure_capacity(model, X, labels, "margin", classes=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"`classes` must be None or the labels of the model, \['a', 'b', 'c'\]"):
        measure_capacity(model, X, labels, "margin", classes=["c", "b", "a"])
    with pytest.raises(ValueError, match="`classes` must be None for regression"):
        measure_capacity(nn.Linear(4, 2), X, X[:, :2], "parameter_count", loss="squared", classes=[0, 1])
