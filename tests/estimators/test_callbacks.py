"""Every callback that skorch ships, in a fit, a search and a pipeline, and what an interrupted fit makes of it."""

from __future__ import annotations

import functools
import inspect
import sys
import types

import numpy as np
import pytest
import skorch.callbacks
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import (
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    Initializer,
    InputShapeSetter,
    LoadInitState,
    LRScheduler,
    PrintLog,
    TrainEndCheckpoint,
)
from torch import nn
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel
from torch.utils.data import DataLoader, TensorDataset

from sklearn_capacity import NetworkClassifier, NetworkRegressor, measure_capacity

rng = np.random.default_rng(0)
X, y = rng.normal(size=(60, 5)), np.arange(60) % 3


class Log:
    """Stands for a client of a logging service: takes every call, and can be deep-copied and compared by identity."""

    def __init__(self, *args, **kwargs):
        self.info = types.SimpleNamespace(run_id="a run")

    def __getattr__(self, name):
        if name.startswith("_") or name == "get_params":
            raise AttributeError(name)
        return lambda *args, **kwargs: Log()

    def __getitem__(self, key):
        return Log()

    def __setitem__(self, key, value):
        pass


def supplied(folder) -> dict[str, object]:
    """One of each class, by its name; a new one in skorch is missed by the test below."""
    return {
        "BatchScoring": skorch.callbacks.BatchScoring("accuracy", lower_is_better=False),
        "Checkpoint": Checkpoint(dirname=str(folder / "checkpoint"), monitor="train_loss_best", load_best=True),
        "EarlyStopping": EarlyStopping(monitor="train_loss", patience=3, load_best=True),
        "EpochScoring": EpochScoring("accuracy", lower_is_better=False, on_train=True, name="accuracy"),
        "EpochTimer": skorch.callbacks.EpochTimer(),
        "Freezer": skorch.callbacks.Freezer("layers.0.*"),
        "GradientNormClipping": skorch.callbacks.GradientNormClipping(0.1),
        "Initializer": Initializer("*bias", fn=nn.init.ones_),
        "LRScheduler": LRScheduler("StepLR", step_size=1),
        "LoadInitState": LoadInitState(TrainEndCheckpoint(dirname=str(folder / "end"))),
        "MlflowLogger": skorch.callbacks.MlflowLogger(run=Log(), client=Log()),
        "NeptuneLogger": skorch.callbacks.NeptuneLogger(run=Log()),
        "ParamMapper": skorch.callbacks.ParamMapper("*bias", fn=nn.init.zeros_, at=2),
        "PassthroughScoring": skorch.callbacks.PassthroughScoring("train_loss", on_train=True),
        "PrintLog": PrintLog(sink=len),
        "ProgressBar": skorch.callbacks.ProgressBar(),
        "SacredLogger": skorch.callbacks.SacredLogger(Log(), log_on_batch_end=True),
        "TensorBoard": skorch.callbacks.TensorBoard(Log()),
        "TrainEndCheckpoint": TrainEndCheckpoint(dirname=str(folder / "end")),
        "Unfreezer": skorch.callbacks.Unfreezer("*", at=2),
        "WandbLogger": skorch.callbacks.WandbLogger(Log(), save_model=False),
    }


SHIPPED = sorted(
    name
    for name, value in vars(skorch.callbacks).items()
    if inspect.isclass(value) and issubclass(value, Callback) and value is not Callback
)
REFUSED = {"InputShapeSetter": InputShapeSetter()}  # see the test of refusals
NAMES = [name for name in SHIPPED if name not in REFUSED]


def network(**params) -> NetworkClassifier:
    return NetworkClassifier((6,), max_epochs=3, batch_size=30, random_state=0, **params)


def test_all_of_skorch_are_here(tmp_path):
    assert {*supplied(tmp_path), *REFUSED} == set(SHIPPED)


@pytest.mark.parametrize("name", NAMES)
def test_each_callback_of_skorch_in_a_fit_a_search_and_a_pipeline(name, tmp_path, capsys):
    model = network(callbacks=[("it", supplied(tmp_path)[name])])
    for _ in range(2):  # a second fit finds the files of the first one
        assert model.fit(X, y).module_ is not None
    model.set_params(warm_start=True).fit(X, y)
    model.set_params(warm_start=False)
    assert "it" in dict(model.net_.callbacks_)
    other = supplied(tmp_path / "search")[name]
    grid = {"networkclassifier__learning_rate": [0.01, 0.1], "networkclassifier__callbacks__it": [None, other]}
    search = GridSearchCV(make_pipeline(StandardScaler(), model), grid, cv=2, error_score="raise").fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_parameters_of_callbacks_in_a_grid():
    model = network(callbacks=[LRScheduler("StepLR", step_size=1, gamma=0.5), ("stop", EarlyStopping("train_loss"))])
    grid = {"callbacks__LRScheduler__gamma": [0.5, 1.0], "callbacks__stop__patience": [2]}
    search = GridSearchCV(model, grid, cv=2, refit=False, error_score="raise").fit(X, y)
    assert [c["callbacks__LRScheduler__gamma"] for c in search.cv_results_["params"]] == [0.5, 1.0]
    assert model.callbacks[1][1].patience == 5  # the searches copied it
    rates = [clone(model).set_params(callbacks__LRScheduler__gamma=gamma).fit(X, y).history_ for gamma in (0.5, 1.0)]
    assert rates[0][:, "event_lr"] == [0.01, 0.005, 0.0025] and rates[1][:, "event_lr"] == [0.01] * 3
    assert "stop" not in dict(clone(model).set_params(callbacks__stop=None).fit(X, y).net_.callbacks_)
    twice = network(callbacks=[LRScheduler(), LRScheduler()])
    twice.set_params(callbacks__LRScheduler_2__step_every="batch")
    assert [callback.step_every for callback in twice.callbacks] == ["epoch", "batch"]
    with pytest.raises(ValueError, match="`callbacks__other__p` must name one of `callbacks`, got 'other'. Avail"):
        model.set_params(callbacks__other__p=1)
    with pytest.raises(ValueError, match="Available: none"):
        network().set_params(callbacks__other=None)


def test_the_history_says_which_epoch_is_best_so_far_and_how_many_are_right():
    model = network(early_stopping=True, learning_rate=0.3).set_params(max_epochs=12).fit(X, y)
    for name in "train_loss", "valid_loss":
        losses = model.history_[:, name]
        assert model.history_[:, f"{name}_best"] == [n < min(losses[:i], default=np.inf) for i, n in enumerate(losses)]
    shares = model.history_[:, "valid_acc"]
    assert all(share * 6 == pytest.approx(round(share * 6)) for share in shares)  # of six samples
    assert "valid_acc" not in NetworkRegressor(early_stopping=True, max_epochs=2).fit(X, X[:, 0]).history_[-1]


def test_the_best_epoch_is_the_one_whose_weights_are_kept():
    model = network(early_stopping=True, learning_rate=0.3, n_iter_no_change=2, tol=0.0).set_params(max_epochs=30)
    model.fit(X, y)
    losses = model.history_[:, "valid_loss"]
    assert model.best_epoch_ == int(np.argmin(losses)) + 1 < model.n_iter_
    short = clone(model).set_params(max_epochs=model.best_epoch_).fit(X, y)
    np.testing.assert_array_equal(short.predict_proba(X), model.predict_proba(X))
    assert not hasattr(network().fit(X, y), "best_epoch_")
    vars(model.net_.callbacks_[-1][1]).pop("best_epoch_")  # as in an estimator from a file
    assert model.best_epoch_ == short.best_epoch_


WITHOUT_VALIDATION = [
    (EarlyStopping(), "EarlyStopping, which monitors 'valid_loss', .* monitor='train_loss'"),
    (Checkpoint(), "Checkpoint, which monitors 'valid_loss_best', .* early_stopping=True"),
    (("mine", Checkpoint), "mine, which monitors 'valid_loss_best'"),
    (LRScheduler("ReduceLROnPlateau", monitor="valid_loss"), "LRScheduler, which monitors 'valid_loss'"),
    (InputShapeSetter(), "the network is built before training starts. Let `module` accept `n_features`"),
]


@pytest.mark.parametrize(("callback", "text"), WITHOUT_VALIDATION)
def test_callbacks_that_a_fit_does_not_support_are_refused_before_it(callback, text):
    with pytest.raises(ValueError, match=text):
        network(callbacks=[callback]).fit(X, y)


def test_validation_entries_that_are_recorded_may_be_monitored(tmp_path):
    scored = EpochScoring("accuracy", lower_is_better=False, on_train=True, name="valid_mine")
    stop = EarlyStopping("valid_mine", lower_is_better=False)
    assert network(callbacks=[scored, stop]).fit(X, y).n_iter_ == 3
    keep = Checkpoint(dirname=str(tmp_path), load_best=True)
    model = network(callbacks=[EarlyStopping(patience=1), keep], early_stopping=True, learning_rate=0.5).fit(X, y)
    assert (tmp_path / "params.pt").exists() and model.net_ is not None


class TokenNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, input):
        return self.head(self.embed(input).mean(1))


def test_containers_are_refused_as_in_measuring():
    data = TensorDataset(torch.from_numpy(X), torch.from_numpy(y))
    fitted = network().fit(X, y)
    for given in data, DataLoader(data), {"a": X}:
        texts = []
        for call in (
            lambda given=given: network().fit(given),
            lambda given=given: network().fit(given, y),
            lambda given=given: fitted.predict(given),
            lambda given=given: measure_capacity(fitted.module_, given),
        ):
            with pytest.raises(TypeError) as error:
                call()
            texts.append(str(error.value).replace("measured", "trained"))
        assert len(set(texts)) == 1 and texts[0].startswith("`X` must be ")
    with pytest.raises(ValueError, match="real numbers here, so train the part after its embedding"):
        network().set_params(hidden_layer_sizes=(100,), module=TokenNet).fit(np.arange(60).reshape(12, 5) % 7, y[:12])


# ---- interrupted fits ------------------------------------------------------------------------------------------------


class Interrupted(Exception):
    """Stands for whatever ends a process."""


break_in = []  # the epoch to end in


@pytest.fixture(autouse=True)
def disarmed(monkeypatch):
    for name in "neptune", "neptune.handler", "neptune.types":  # which NeptuneLogger imports
        stub = types.SimpleNamespace(Handler=type(None), File=Log(), __version__="1")
        monkeypatch.setitem(sys.modules, name, stub)
    yield
    break_in.clear()


class Breaks(Callback):
    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) in break_in:
            raise Interrupted


def state_of(model) -> list:
    """Everything that a later fit or prediction depends on."""
    rows = [{k: v for k, v in row.items() if k not in ("dur", "batches")} for row in model.history_.to_list()]
    frozen = [parameter.requires_grad for parameter in model.module_.parameters()]
    groups = [group["lr"] for group in model.net_.optimizer_.param_groups]
    return [model.predict_proba(X).tobytes(), rows, frozen, groups, model.n_iter_]


def whole_and_resumed(callback, folder, **params):
    """The same fit without a break, and interrupted in epoch 4 and resumed; `callback` returns new callbacks."""
    results = []
    for name in "whole", "resumed":
        model = network(optimizer="sgd", **params).set_params(
            max_epochs=6, callbacks=[Breaks(), *callback(folder / name)]
        )
        if name == "resumed":
            model.set_params(checkpoint_dir=folder / "checkpoints")
            break_in.append(4)
            with pytest.raises(Interrupted):
                clone(model).fit(X, y)
            break_in.clear()
        results.append(model.fit(X, y))
    break_in.clear()
    again = clone(results[1]).fit(X, y)  # the finished fit is loaded
    assert state_of(again) == state_of(results[1])
    return results


@pytest.mark.parametrize("name", [name for name in NAMES if name != "LoadInitState"])
def test_an_interrupted_fit_with_a_callback_of_skorch_ends_at_the_same_bits(name, tmp_path, capsys):
    whole, resumed = whole_and_resumed(lambda folder: [supplied(folder)[name]], tmp_path)
    assert state_of(resumed) == state_of(whole)


def test_what_begins_from_a_file_cannot_be_resumed(tmp_path):
    model = network(callbacks=[supplied(tmp_path)["LoadInitState"]], checkpoint_dir=tmp_path / "checkpoints")
    with pytest.raises(ValueError, match=r"must not contain LoadInitState \(LoadInitState\) when `checkpoint_dir`"):
        model.fit(X, y)


STEPS = 2 * 6  # batches of the whole training


def chained(optimizer, last_epoch=-1):
    parts = [lr_scheduler.ExponentialLR(optimizer, 0.9), lr_scheduler.StepLR(optimizer, 2)]
    return lr_scheduler.ChainedScheduler(parts, optimizer)


def sequential(optimizer, last_epoch=-1):
    parts = [lr_scheduler.ConstantLR(optimizer, 0.5, 2), lr_scheduler.CosineAnnealingLR(optimizer, 4)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


SCHEDULERS = {
    "LambdaLR": {"lr_lambda": lambda epoch: 0.9**epoch},
    "MultiplicativeLR": {"lr_lambda": lambda epoch: 0.9},
    "StepLR": {"step_size": 2},
    "MultiStepLR": {"milestones": [2, 5]},
    "ConstantLR": {"total_iters": 4},
    "LinearLR": {"total_iters": 5},
    "ExponentialLR": {"gamma": 0.8},
    "SequentialLR": None,
    "CosineAnnealingLR": {"T_max": 6},
    "ChainedScheduler": None,
    "ReduceLROnPlateau": {"patience": 1},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3, "scale_fn": lambda x: 0.9},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": STEPS},
    "PolynomialLR": {"total_iters": 8},
    "SWALR": {"swa_lr": 0.001, "anneal_epochs": 5},
    "WarmRestartLR": {"base_period": 2},
}
FACTORIES = {"SequentialLR": sequential, "ChainedScheduler": chained}
CLASSES = {name: getattr(lr_scheduler, name, None) for name in SCHEDULERS}
CLASSES |= {"SWALR": SWALR, "WarmRestartLR": skorch.callbacks.WarmRestartLR}


def test_all_schedulers_of_torch_are_here():
    shipped = {
        name
        for name, value in vars(lr_scheduler).items()
        if inspect.isclass(value) and issubclass(value, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert shipped - {"LRScheduler"} <= set(SCHEDULERS)


@pytest.mark.parametrize("every", ["epoch", "batch"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_interrupted_fit_with_a_scheduler_in_skorch_ends_at_the_same_bits(name, every, tmp_path):
    policy, settings = FACTORIES.get(name, CLASSES[name]), SCHEDULERS[name] or {}
    if every == "batch" and name == "ReduceLROnPlateau":
        settings = {**settings, "monitor": "train_loss"}

    def callbacks(folder):
        return [LRScheduler(policy, step_every=every, **settings)]

    whole, resumed = whole_and_resumed(callbacks, tmp_path)
    assert state_of(resumed) == state_of(whole)


@pytest.mark.parametrize("name", [name for name in SCHEDULERS if name not in FACTORIES])
def test_an_interrupted_fit_with_a_schedule_of_torch_ends_at_the_same_bits(name, tmp_path):
    schedule = functools.partial(CLASSES[name], **SCHEDULERS[name])
    whole, resumed = whole_and_resumed(lambda folder: [], tmp_path, learning_rate_schedule=schedule)
    assert state_of(resumed) == state_of(whole)


class Averaging(Callback):
    """Averages the weights from epoch `start` on; 0 makes the average as training begins."""

    def __init__(self, start, average=AveragedModel):
        self.start = start
        self.average = average

    def on_train_begin(self, net, **kwargs):
        self.mean_ = self.average(net.module_) if self.start == 0 else None

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) < self.start:
            return
        if self.mean_ is None:
            self.mean_ = self.average(net.module_)
        self.mean_.update_parameters(net.module_)

    def on_train_end(self, net, **kwargs):
        net.module_.load_state_dict(self.mean_.module.state_dict())


def moving(module):
    return AveragedModel(module, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))


@pytest.mark.parametrize(
    "average",
    [Averaging(0), Averaging(2), Averaging(5), Averaging(0, moving)],
    ids=["from the start", "early", "late", "moving"],
)
def test_an_interrupted_fit_with_averaged_weights_ends_at_the_same_bits(average, tmp_path):
    whole, resumed = whole_and_resumed(lambda folder: [clone(average)], tmp_path)
    assert state_of(resumed) == state_of(whole)


def test_an_average_that_cannot_be_rebuilt_is_refused(tmp_path):
    model = network(callbacks=[Averaging(1, moving)], checkpoint_dir=tmp_path)
    with pytest.raises(TypeError, match="`Averaging.mean_` .* was created after .* `on_train_begin`"):
        model.fit(X, y)
