"""What Ctrl-C makes of a training: nothing, where nothing was trained yet, and a warning later."""

from __future__ import annotations

import pickle
import signal
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import Callback, Checkpoint, TrainEndCheckpoint

from process_settings import interrupt_at
from sklearn_capacity import (
    CapacityWarning,
    GeneralizationLayerClassifier,
    JacobianRegularizedRegressor,
    NetworkClassifier,
)
from sklearn_capacity.training import PenalizedNet

X, y = np.random.default_rng(0).normal(size=(30, 4)), np.arange(30) % 3
MOMENTS = ["epoch_begin", "batch_begin", "grad_computed", "batch_end", "epoch_end", "train_end"]
armed: list[tuple[str, int]] = []  # the moment and the epoch of the one Ctrl-C that is still to come


def _press(moment, net):
    if (moment, len(net.history)) in armed:
        armed.clear()
        signal.raise_signal(signal.SIGINT)


class Keyboard(Callback):
    """Ctrl-C at a moment of an epoch, as the operating system sends it."""


for _moment in ["train_begin", *MOMENTS]:
    setattr(Keyboard, f"on_{_moment}", lambda self, net, moment=_moment, **kwargs: _press(moment, net))


@pytest.fixture(autouse=True)
def keyboard():
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    armed.clear()
    signal.signal(signal.SIGINT, handler)


def network(*callbacks, **params):
    params = {"max_epochs": 4, "batch_size": 10, "random_state": 0, **params}
    return NetworkClassifier((5,), callbacks=[*callbacks, Keyboard()], **params)


def messages(call):
    """The texts of the warnings of a call."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("moment", ["train_begin", *MOMENTS[:3]])
def test_an_interrupt_before_the_first_step_goes_on(moment):
    armed.append((moment, 0 if moment == "train_begin" else 1))
    model = network(TrainEndCheckpoint(), early_stopping=True)
    with pytest.raises(KeyboardInterrupt):
        model.fit(X, y)
    with pytest.raises(NotFittedError):
        model.predict(X)


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("epoch", [1, 2, 4])
@pytest.mark.parametrize("moment", MOMENTS[:-1])
def test_a_later_interrupt_is_warned_of_and_keeps_what_was_learnt(moment, epoch, early_stopping, tmp_path):
    if epoch == 1 and moment in MOMENTS[:3]:
        return  # nothing was trained then
    armed.append((moment, epoch))
    model = network(TrainEndCheckpoint(dirname=tmp_path), early_stopping=early_stopping)
    [text] = messages(lambda: model.fit(X, y))
    # an epoch that no step was taken in is not counted
    where = {"batch_end": "in", "epoch_end": "after"}.get(moment, "after")
    n_epochs = epoch - (moment in MOMENTS[:3])
    assert f"interrupted {where} epoch {n_epochs}. The estimator keeps" in text
    assert model.n_iter_ == len(model.history_) == n_epochs
    assert [row["epoch"] for row in model.history_] == list(range(1, n_epochs + 1))
    assert pickle.loads(pickle.dumps(model)).predict(X).shape == (30,)


def test_a_callback_that_stops_the_training_is_no_interrupt():
    class Stops(Callback):
        def on_epoch_end(self, net, **kwargs):
            raise KeyboardInterrupt  # skorch's way to end a training

    assert messages(lambda: network(Stops()).fit(X, y)) == []
    assert messages(lambda: network(stop_below=100.0).fit(X, y)) == []
    assert messages(lambda: network(early_stopping=True, n_iter_no_change=1, tol=10.0).fit(X, y)) == []


def test_an_interrupt_that_callbacks_cannot_end_goes_on(tmp_path):
    armed.append(("batch_end", 1))
    model = network(Checkpoint(monitor="train_loss_best", load_best=True, dirname=tmp_path))
    with pytest.raises(KeyboardInterrupt, match="in epoch 1, and `callbacks` cannot stop there: FileNotFoundError"):
        model.fit(X, y)
    assert not hasattr(model, "net_")


@pytest.mark.parametrize("continued", ["partial_fit", "warm_start"])
def test_an_interrupt_before_a_later_training_leaves_the_estimator_as_it_was(continued):
    model = network(warm_start=continued == "warm_start").fit(X, y)
    before, history = model.predict_proba(X), list(model.history_)
    armed.append(("epoch_begin", 5))
    with pytest.raises(KeyboardInterrupt):
        (model.partial_fit if continued == "partial_fit" else model.fit)(X, y)
    np.testing.assert_array_equal(model.predict_proba(X), before)
    assert list(model.history_) == history
    assert pickle.loads(pickle.dumps(model)).n_iter_ == 4
    assert model.partial_fit(X, y).n_iter_ == 5


@pytest.mark.parametrize("name", ["_callbacks_listen", "begin_training"])
@pytest.mark.parametrize("continued", [False, True])
def test_an_interrupt_before_the_first_epoch_goes_on(name, continued, monkeypatch):
    model = network()
    if continued:
        model.partial_fit(X, y, classes=[0, 1, 2])
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="before its first step"):
        patch.setattr(PenalizedNet, name, lambda net: signal.raise_signal(signal.SIGINT))
        model.partial_fit(X, y, classes=[0, 1, 2])
    assert hasattr(model, "net_") is continued
    assert model.partial_fit(X, y, classes=[0, 1, 2]).n_iter_ == 1 + continued


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # interrupts of generators that end
def test_training_returns_after_an_interrupt_only_if_something_was_trained():
    net = network(max_epochs=1).fit(X, y).net_
    data = net.get_dataset(X.astype(np.float32), y)
    raised = 0
    for number in range(1, 120):
        before = list(net.history)
        try:
            with interrupt_at(number):
                net.partial_fit(data, None, epochs=1)
            assert len(net.history) > len(before), number
        except KeyboardInterrupt:
            raised += 1
            assert list(net.history) == before, number
    assert raised > 20


def test_an_interrupted_partial_fit_counts_its_epoch():
    model = network().partial_fit(X, y, classes=[0, 1, 2])
    armed.append(("batch_end", 2))
    [text] = messages(lambda: model.partial_fit(X, y))
    assert "in epoch 2" in text
    armed.append(("train_begin", 2))
    with pytest.raises(KeyboardInterrupt):
        model.partial_fit(X, y)
    assert model.n_iter_ == len(model.history_) == 2 and model.partial_fit(X, y).n_iter_ == 3


@pytest.mark.parametrize("moment", ["train_begin", *MOMENTS])
@pytest.mark.parametrize("epoch", [1, 3])
def test_a_fit_with_checkpoints_goes_on_to_the_same_bits(moment, epoch, tmp_path):
    model = network(checkpoint_dir=tmp_path, dropout=0.2)
    whole = clone(model).set_params(checkpoint_dir=None).fit(X, y).predict_proba(X)
    armed.append((moment, {"train_begin": 0, "train_end": 4}.get(moment, epoch)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CapacityWarning)
        try:
            clone(model).fit(X, y)
        except KeyboardInterrupt:
            assert epoch == 1 or moment.startswith("train")
        else:
            assert moment != "train_begin"
    assert not armed
    for _ in range(2):
        np.testing.assert_array_equal(clone(model).fit(X, y).predict_proba(X), whole)


@pytest.mark.parametrize("variant", [GeneralizationLayerClassifier, JacobianRegularizedRegressor])
def test_variants_keep_what_they_learnt(variant):
    model = variant((5,), callbacks=[Keyboard()], batch_size=10, learning_rate_schedule="cosine")
    armed.append(("batch_end", 1))
    assert "in epoch 1" in messages(lambda: model.fit(X, y))[0]
    assert np.isfinite(model.partial_fit(X, y).predict(X)).all()


def test_a_search_goes_on_if_something_was_trained_and_ends_if_not():
    search = GridSearchCV(make_pipeline(StandardScaler(), network()), {"networkclassifier__dropout": [0.0, 0.1]}, cv=2)
    armed.append(("batch_end", 2))
    texts = messages(lambda: search.fit(X, y))
    assert len(texts) == 1 and "in epoch 2. The estimator keeps" in texts[0]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    armed.append(("batch_begin", 1))
    with pytest.raises(KeyboardInterrupt, match="before its first step"):
        search.fit(X, y)
