"""Measures per epoch in the history of any skorch net."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, EpochScoring, MlflowLogger, TensorBoard
from torch import nn

from sklearn_capacity import CapacityCallback, CapacityWarning, NetworkClassifier, NetworkRegressor, measure_capacity

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 4)).astype("float32"), np.arange(40) % 3
MEASURES = ["l2_path_norm", "margin"]


def recorded(history, names=MEASURES):
    return {name: history[:, name] for name in names}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))


def skorch_net(callbacks=(), **params):
    options = {"criterion": nn.CrossEntropyLoss, "max_epochs": 3, "verbose": 0, "train_split": None, "lr": 0.1}
    torch.manual_seed(0)
    return NeuralNetClassifier(network(), callbacks=list(callbacks), **{**options, **params})


class Keeps(Callback):
    """Measures by hand as the epochs end."""

    def on_epoch_end(self, net, **kwargs):
        kept.append(measure_capacity(net.module_, X, y, MEASURES, loss="cross_entropy"))


kept: list[dict] = []


@pytest.fixture(autouse=True)
def none_kept():
    kept.clear()


def test_the_last_row_is_what_measure_capacity_gives():
    """On the same samples: a fit hands on a dataset, and a call arrays."""
    options = {"measures": ["margin"], "max_samples": 7, "random_state": 3}
    model = NetworkClassifier((5,), max_epochs=2, random_state=0, callbacks=[CapacityCallback(**options)]).fit(X, y)
    assert model.history_[-1, "margin"] == measure_capacity(model, X, y, **options)["margin"]


def test_any_skorch_net_is_measured_as_it_is_then():
    # EpochScoring caches predictions of the training data: none of them may be used
    callbacks = [EpochScoring("accuracy", on_train=True, use_caching=True), CapacityCallback(MEASURES), Keeps()]
    net = skorch_net(callbacks).fit(X, y)
    for name in MEASURES:
        np.testing.assert_array_equal(net.history[:, name], [values[name] for values in kept])
    assert len({values["margin"] for values in kept}) == 3
    last = measure_capacity(net.module_, X, y, MEASURES, loss="cross_entropy")
    assert last == {name: net.history[-1, name] for name in MEASURES}


def test_training_is_not_changed():
    watched = [CapacityCallback([*MEASURES, "fisher_rao_norm"])]
    plain, measured = (skorch_net(callbacks).fit(X, y) for callbacks in ([], watched))
    for a, b in zip(plain.module_.state_dict().values(), measured.module_.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert plain.history[:, "train_loss"] == measured.history[:, "train_loss"]


def test_estimators_of_this_package():
    model = NetworkClassifier((5,), max_epochs=4, random_state=0, callbacks=[CapacityCallback(MEASURES, prefix="c_")])
    model.fit(X, np.array(["a", "b", "c"])[y])
    values = measure_capacity(model, X, np.array(["a", "b", "c"])[y], MEASURES)
    assert {name: model.history_[-1, f"c_{name}"] for name in MEASURES} == values
    assert len(model.history_[:, "c_margin"]) == 4
    regressor = NetworkRegressor((5,), max_epochs=2, random_state=0, callbacks=[CapacityCallback("fisher_rao_norm")])
    regressor.fit(X, X[:, 0])
    assert (
        regressor.history_[-1, "fisher_rao_norm"]
        == measure_capacity(regressor, X, X[:, 0], "fisher_rao_norm")["fisher_rao_norm"]
    )


def test_given_data_every_other_epoch_and_pickles():
    callback = CapacityCallback(["margin"], X=X[:10], y=y[:10], every=2, max_samples=None)
    model = NetworkClassifier((5,), max_epochs=4, random_state=0, callbacks=[callback]).fit(X, y)
    values = np.array(model.history_[1:, "margin"])
    np.testing.assert_array_equal(np.isnan(values), [False, True, False])
    assert values[-1] == measure_capacity(model, X[:10], y[:10], "margin")["margin"]
    (inner,) = [cb for _, cb in model.net_.callbacks_ if isinstance(cb, CapacityCallback)]
    assert inner._data is None and not hasattr(callback, "_data")


def test_chosen_epochs():
    callback = CapacityCallback(["margin"], epochs=[1, 3, 9])
    model = NetworkClassifier((5,), max_epochs=4, random_state=0, callbacks=[callback]).fit(X, y)
    every = NetworkClassifier((5,), max_epochs=4, random_state=0, callbacks=[CapacityCallback(["margin"])]).fit(X, y)
    values, wanted = np.array(model.history_[:, "margin"]), np.array(every.history_[:, "margin"])
    np.testing.assert_array_equal(values, np.where([True, False, True, False], wanted, np.nan))


@pytest.mark.parametrize(
    ("params", "error", "text"),
    [
        ({"epochs": [0]}, ValueError, "`epochs` must be at least 1, got 0"),
        ({"epochs": 3}, TypeError, "`epochs` must be a sequence, got 3"),
        ({"epochs": [2.5]}, TypeError, "`epochs` must be an integer, got 2.5"),
        ({"epochs": [2], "every": 3}, ValueError, "`every` must be 1 when `epochs` is given, got 3"),
    ],
)
def test_refused_epochs(params, error, text):
    with pytest.raises(error, match=text):
        skorch_net([CapacityCallback("margin", **params)]).fit(X, y)


def test_subset_of_the_training_data():
    model = NetworkClassifier((5,), max_epochs=2, random_state=0, callbacks=[CapacityCallback("margin", max_samples=7)])
    first = clone(model).fit(X, y).history_[:, "margin"]
    assert first == model.fit(X, y).history_[:, "margin"]
    net = skorch_net([CapacityCallback("margin", max_samples=7)]).fit(X, y)
    assert np.isfinite(net.history[:, "margin"]).all()


def test_with_checkpoints(tmp_path):
    model = NetworkClassifier((5,), max_epochs=3, random_state=0, callbacks=[CapacityCallback(MEASURES)])
    model.set_params(checkpoint_dir=tmp_path)
    first = recorded(clone(model).fit(X, y).history_)
    assert recorded(model.fit(X, y).history_) == first
    sizes = [path.stat().st_size for path in tmp_path.rglob("*.safetensors")]
    assert len(sizes) == 2 and max(sizes) < 20_000  # the training data are not in it


class Log:
    """As TensorBoard's writer and MLflow's client: open, so that it cannot be copied."""

    def __init__(self):
        self.lock, self.seen = threading.Lock(), []

    def add_scalar(self, tag, scalar_value, global_step):
        self.seen.append((tag, scalar_value))

    def log_metric(self, run_id, key, value, step):
        self.seen.append((key, value))


def test_loggers_of_skorch_carry_it_further():
    run = SimpleNamespace(info=SimpleNamespace(run_id="1"))
    for log, kind, params in [
        (Log(), TensorBoard, {"close_after_train": False}),
        (Log(), MlflowLogger, {"terminate_after_train": False, "create_artifact": False, "run": run}),
    ]:
        logger = kind(**{"writer" if kind is TensorBoard else "client": log}, **params)
        model = NetworkClassifier((4,), max_epochs=2, random_state=0, callbacks=[CapacityCallback("margin"), logger])
        margins = model.fit(X, y).history_[:, "margin"]
        assert [value for key, value in log.seen if key == "margin"] == margins


def test_refusals():
    with pytest.raises(ValueError, match="`every` must be at least 1"):
        skorch_net([CapacityCallback(every=0)]).fit(X, y)
    with pytest.raises(ValueError, match="Did you mean 'margin'"):
        skorch_net([CapacityCallback("margn")]).fit(X, y)

    class Odd(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return X[index]

    with pytest.raises(ValueError, match="cannot read .* from this dataset: pass `X` and `y`"):
        CapacityCallback().on_train_begin(None, Odd())


def test_scores_of_scikit_learn_are_in_the_history_and_do_not_change_training():
    for make in (
        lambda callbacks: NetworkClassifier((5,), max_epochs=3, dropout=0.5, random_state=0, callbacks=callbacks),
        lambda callbacks: skorch_net(callbacks, iterator_train__shuffle=True),
    ):
        torch.manual_seed(1)
        plain = make([]).fit(X, y)
        torch.manual_seed(1)
        model = make([CapacityCallback(["accuracy", "margin"], X=X, y=y)]).fit(X, y)
        history = model.history_
        assert history[-1, "accuracy"] == pytest.approx(np.mean(model.predict(X) == y))
        np.testing.assert_array_equal(history[:, "train_loss"], plain.history_[:, "train_loss"])


def test_what_is_left_out_of_an_epoch_is_nan_in_its_row(monkeypatch):
    """A group's measures may differ between epochs, by time or because they do not apply; the columns do not."""
    epochs = iter([{"a": 1.0}, {"a": 2.0, "b": 3.0}, {"b": 4.0}])
    monkeypatch.setattr(CapacityCallback, "_measure", lambda self, net: next(epochs))
    history = skorch_net([CapacityCallback(max_seconds=5, prefix="p_")]).fit(X, y).history
    np.testing.assert_equal(history[:, ("p_a", "p_b")], [(1.0, np.nan), (2.0, 3.0), (np.nan, 4.0)])


def test_a_limit_of_time_holds_for_each_measurement():
    """The margin takes one pass and is always in time; thousands of draws are not."""
    wanted = {"margin": "margin", "draws": ("expected_sharpness", {"n_draws": 10**7})}
    net = skorch_net([CapacityCallback(wanted, max_seconds=5)])
    with pytest.warns(CapacityWarning, match="would not fit into `max_seconds=5`: 'draws'"):
        net.fit(X, y)
    assert np.isfinite(net.history[:, "margin"]).all()
    with pytest.raises(ValueError, match="`max_seconds` must"):
        skorch_net([CapacityCallback(max_seconds=-1)]).fit(X, y)
