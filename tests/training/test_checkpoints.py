"""Training that is killed at any moment resumes to the same bits; damaged checkpoints are reported and skipped."""

from __future__ import annotations

import functools
import os
import threading
import time

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from skorch.callbacks import Callback, EpochScoring, LRScheduler
from torch import nn

from kills import run_and_kill
from sklearn_capacity import (
    CapacityWarning,
    GeneralizationLayerClassifier,
    JacobianRegularizedClassifier,
    NetworkClassifier,
    NetworkRegressor,
)
from sklearn_capacity.storage import FileError, decode, encode, read_file, write_file

rng = np.random.default_rng(0)
X = rng.normal(size=(60, 5))
y = np.array(["a", "b", "c"])[np.arange(60) % 3]
weights = rng.uniform(0, 2, size=60)

BASE = {"max_epochs": 6, "batch_size": 16, "random_state": 0, "hidden_layer_sizes": (8,)}


class Interrupted(Exception):
    """Stands for whatever ends a process."""


break_in = []  # the epoch to end in


class Breaks(Callback):
    """Ends the training as an epoch begins."""

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) in break_in:
            raise Interrupted


@pytest.fixture(autouse=True)
def disarmed():
    break_in.clear()
    yield
    break_in.clear()


def bits(model):
    """Everything a later fit or prediction depends on."""
    state = [(key, value.numpy().tobytes()) for key, value in model.module_.state_dict().items()]
    slots = model.net_.optimizer_.state_dict()["state"].values()
    optimizer = [value.numpy().tobytes() for s in slots for value in s.values() if isinstance(value, torch.Tensor)]
    rows = [{key: value for key, value in row.items() if key != "dur"} for row in model.history_.to_list()]
    return state, optimizer, model.net_.optimizer_.param_groups[0]["lr"], rows, model.n_iter_


def interrupted_fit(model, epoch, **fit_params):
    break_in.append(epoch)
    with pytest.raises(Interrupted):
        clone(model).fit(X, target_of(model), **fit_params)
    break_in.clear()


def target_of(model):
    return y if hasattr(model, "class_weight") else X[:, :2]


CASES = {
    "plain": NetworkClassifier(),
    "dropout": NetworkClassifier(dropout=0.3, batch_norm=True, dtype="float32"),
    "projection": JacobianRegularizedClassifier(jacobian_norm="projection", n_projections=1),
    "early": NetworkClassifier(early_stopping=True, n_iter_no_change=2, learning_rate=0.3, max_epochs=20),
    "stop at error": NetworkClassifier(stop_at_error=0.1, max_epochs=60),
    "stop": NetworkRegressor(stop_below=0.35, max_epochs=60),
    "cosine": NetworkClassifier(learning_rate_schedule="cosine", optimizer="sgd"),
    "exponential": NetworkClassifier(
        learning_rate_schedule=functools.partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.7), optimizer="nadam"
    ),
    "plateau": NetworkClassifier(learning_rate_schedule=torch.optim.lr_scheduler.ReduceLROnPlateau, optimizer="adamw"),
    "lbfgs": NetworkRegressor(optimizer="lbfgs", batch_size=60, activation="tanh"),
    "every 2": NetworkClassifier(checkpoint_every=2, optimizer="rmsprop"),
    "layer": GeneralizationLayerClassifier(slow_after=2, variant="skip"),
    "weights": NetworkClassifier(class_weight="balanced", weight_norm=True),
}
RUNS = [*((case, 3) for case in CASES), ("plain", 1), ("early", 5), ("dropout", 6)]


@pytest.mark.parametrize(("case", "epoch"), RUNS)
def test_interrupted_training_ends_at_the_same_bits(case, epoch, tmp_path):
    model, defaults = clone(CASES[case]), type(CASES[case])()
    model.set_params(**{key: value for key, value in BASE.items() if getattr(model, key) == getattr(defaults, key)})
    model.set_params(callbacks=[Breaks()])
    fit_params = {"sample_weight": weights} if case == "weights" else {}
    target = target_of(model)
    whole = clone(model).fit(X, target, **fit_params)
    model.set_params(checkpoint_dir=tmp_path)
    interrupted_fit(model, epoch, **fit_params)
    state = torch.random.get_rng_state()
    again = clone(model).fit(X, target, **fit_params)
    assert torch.equal(state, torch.random.get_rng_state())
    assert bits(again) == bits(whole)
    for key, value in whole.initial_state_.items():
        assert torch.equal(again.initial_state_[key], value)
    loaded = clone(model).fit(X, target, **fit_params)
    assert bits(loaded) == bits(whole)


def count_epochs(monkeypatch):
    """Epochs that are trained from now on."""
    from sklearn_capacity.training import PenalizedNet

    trained, run = [], PenalizedNet.run_single_epoch

    def counted(self, iterator, training, *args, **kwargs):
        if training:
            trained.append(len(self.history))
        return run(self, iterator, training, *args, **kwargs)

    monkeypatch.setattr(PenalizedNet, "run_single_epoch", counted)
    return trained


@pytest.fixture
def model(tmp_path):
    return NetworkClassifier(**BASE, checkpoint_dir=tmp_path / "checkpoints", callbacks=[Breaks()])


def folder_of(model):
    (folder,) = model.checkpoint_dir.iterdir()
    return folder


def test_only_the_missing_epochs_are_trained(model, monkeypatch):
    trained = count_epochs(monkeypatch)
    interrupted_fit(model, 4)
    assert trained == [1, 2, 3]
    assert sorted(path.name for path in folder_of(model).iterdir()) == [
        "epoch-00000002.safetensors",
        "epoch-00000003.safetensors",
    ]
    del trained[:]
    clone(model).fit(X, y)
    assert trained == [4, 5, 6]
    clone(model).set_params(verbose=0, device="cpu", checkpoint_every=3).fit(X, y)
    assert trained == [4, 5, 6]
    assert [path.suffix for path in folder_of(model).iterdir()] == [".safetensors"] * 2


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.02},
        {"random_state": 1},
        {"max_epochs": 7},
        {"callbacks": None},
        {"module": lambda n_features, n_outputs: nn.Linear(n_features, n_outputs), "hidden_layer_sizes": (100,)},
    ],
)
def test_each_change_has_its_own_folder(model, change):
    model.fit(X, y)
    clone(model).set_params(**change).fit(X, y)
    assert len(list(model.checkpoint_dir.iterdir())) == 2


def test_data_and_kind_have_their_own_folder(model):
    model.fit(X, y)
    n_folders = 1
    others = [(model, X + 1e-9, y, None), (model, X, y[::-1], None), (model, X, y, weights), (model, X, y == "a", None)]
    others += [(JacobianRegularizedClassifier(**model.get_params()), X, y, None), (model, X.astype("f4"), y, None)]
    for estimator, data, target, weight in others:
        clone(estimator).fit(data, target, sample_weight=weight)
        n_folders += 1
        assert len(list(model.checkpoint_dir.iterdir())) == n_folders


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other", "list"])
def test_a_damaged_file_is_reported_and_the_previous_one_used(model, damage, monkeypatch):
    whole = clone(model).set_params(checkpoint_dir=None).fit(X, y)
    interrupted_fit(model, 5)
    newest = folder_of(model) / "epoch-00000004.safetensors"
    content = newest.read_bytes()
    if damage == "other":
        write_file(newest, {"kind": "estimator"}, {})
    elif damage == "list":
        write_file(newest, {"kind": "checkpoint", "format": 1, "history": [1]}, {})
    else:
        flipped = content[:-20] + bytes([content[-20] ^ 4]) + content[-19:]
        newest.write_bytes({"cut": content[: len(content) // 2], "flip": flipped, "empty": b""}[damage])
    trained = count_epochs(monkeypatch)
    with pytest.warns(CapacityWarning, match=r"epoch-00000004.safetensors is .*The previous checkpoint is used\."):
        again = clone(model).fit(X, y)
    assert trained == [4, 5, 6] and bits(again) == bits(whole)


OTHERS = [
    {"random_state": 1},
    {"learning_rate": 0.02},
    {"max_epochs": 9},
    {"optimizer": "sgd"},
    {"hidden_layer_sizes": (5,)},
]


@pytest.mark.parametrize("name", ["finished", "epoch-00000006", "epoch-00000005"])
@pytest.mark.parametrize("other", range(len(OTHERS)))
def test_a_whole_file_of_another_fit_is_not_taken(model, other, name, tmp_path):
    whole = clone(model).set_params(checkpoint_dir=None).fit(X, y)
    another = clone(model).set_params(checkpoint_dir=tmp_path / "other", **OTHERS[other]).fit(X, y)
    model.fit(X, y)
    folder = folder_of(model)
    for path in folder.iterdir():
        path.unlink()
    foreign = folder_of(another) / "finished.safetensors"
    (folder / f"{name}.safetensors").write_bytes(foreign.read_bytes())
    with pytest.warns(CapacityWarning, match=f"{name}.safetensors belongs to another fit"):
        assert bits(clone(model).fit(X, y)) == bits(whole)


def test_a_file_of_another_epoch_is_not_taken(model):
    whole = clone(model).set_params(checkpoint_dir=None).fit(X, y)
    interrupted_fit(model, 4)
    folder = folder_of(model)
    (folder / "epoch-00000002.safetensors").rename(folder / "finished.safetensors")
    with pytest.warns(CapacityWarning, match="finished.safetensors belongs to another epoch, 2"):
        assert bits(clone(model).fit(X, y)) == bits(whole)
    (folder / "epoch-00000006.safetensors").rename(folder / "epoch-00000099.safetensors")
    (folder / "finished.safetensors").unlink()
    with pytest.warns(CapacityWarning, match="epoch-00000099.safetensors belongs to another epoch, 6"):
        assert bits(clone(model).fit(X, y)) == bits(whole)


def test_a_checkpoint_sets_no_parameter_of_a_callback(model):
    model.set_params(callbacks=[("scoring", EpochScoring("accuracy", name="seen")), Breaks()])
    interrupted_fit(model, 4)
    for path in folder_of(model).iterdir():
        stored = read_file(path)
        state = decode(stored.document["state"], stored.tensors)
        tensors = {}
        state["callbacks"]["scoring"]["name"] = "other"
        document = {**stored.document, "state": encode(state, tensors, name="state")}
        write_file(path, document, tensors)
    with pytest.raises(FileError, match="'name' of EpochScoring is not an attribute.*Remove that folder"):
        clone(model).fit(X, y)


@pytest.mark.parametrize("part", ["module", "best"])
@pytest.mark.parametrize("damage", ["nan", "name", "shape"])
def test_forged_weights_are_no_result_of_a_fit(model, part, damage):
    """Neither the network's nor those that EarlyStopping will load."""
    model.set_params(early_stopping=True).fit(X, y)
    path = folder_of(model) / "finished.safetensors"
    stored = read_file(path)
    state, tensors = decode(stored.document["state"], stored.tensors), {}
    weights = state["module"] if part == "module" else state["callbacks"]["early_stopping"]["best_model_weights_"]
    name = next(iter(weights))
    if damage == "name":
        weights["other"] = weights.pop(name)
    else:
        weights[name] = weights[name].repeat(2, 1) if damage == "shape" else weights[name] * float("nan")
    write_file(path, {**stored.document, "state": encode(state, tensors, name="state")}, tensors)
    with pytest.raises(FileError, match="its weights .*Remove that folder"):
        clone(model).fit(X, y)


def test_a_damaged_result_is_computed_again(model):
    whole = clone(model).fit(X, y)
    path = folder_of(model) / "finished.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.warns(CapacityWarning, match="finished.safetensors is damaged"):
        again = clone(model).fit(X, y)
    assert bits(again) == bits(whole)
    assert bits(clone(model).fit(X, y)) == bits(whole)


def test_all_files_damaged(model):
    whole = clone(model).fit(X, y)
    for path in folder_of(model).iterdir():
        path.write_bytes(b"{}")
    with pytest.warns(CapacityWarning, match="is not a safetensors file"):
        assert bits(clone(model).fit(X, y)) == bits(whole)


def test_the_keyboard_does_not_finish_a_fit(model, monkeypatch):
    class Keyboard(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) in break_in:
                raise KeyboardInterrupt

    model.set_params(callbacks=[Keyboard()])
    break_in.append(3)
    assert model.fit(X, y).n_iter_ == 3
    break_in.clear()
    again = clone(model).fit(X, y)
    assert again.n_iter_ == 6
    assert bits(again) == bits(clone(model).set_params(checkpoint_dir=None).fit(X, y))


# -- killed processes --------------------------------------------------------------------------------------------------


def test_killed_at_random_moments(tmp_path):
    model = NetworkClassifier((8,), max_epochs=25, batch_size=8, dropout=0.2, random_state=0)
    whole = clone(model).fit(X, y)
    start = time.perf_counter()
    clone(model).set_params(checkpoint_dir=tmp_path / "timed").fit(X, y)
    longest, killed = time.perf_counter() - start, 0
    for seed in range(int(os.environ.get("KILLS", "5"))):
        model.set_params(checkpoint_dir=tmp_path / str(seed))
        n_killed = run_and_kill(lambda: clone(model).fit(X, y), 1, longest, seed)
        killed, longest = killed + n_killed, longest if n_killed else longest / 2  # it may have been timed under load
        assert bits(clone(model).fit(X, y)) == bits(whole)
        left = sorted(path.name for path in folder_of(model).iterdir())
        assert left == ["epoch-00000025.safetensors", "finished.safetensors"]
    assert killed


def test_a_killed_search_goes_on(tmp_path, monkeypatch):
    model = NetworkClassifier(**BASE, checkpoint_dir=tmp_path)
    grid = {"weight_decay": [0.0, 0.1], "learning_rate": [0.01, 0.1]}
    search = GridSearchCV(model, grid, cv=2)
    whole = GridSearchCV(clone(model).set_params(checkpoint_dir=None), grid, cv=2).fit(X, y)
    run_and_kill(lambda: clone(search).fit(X, y), 3, 0.5)
    trained = count_epochs(monkeypatch)
    again = clone(search).fit(X, y)
    assert trained == []
    for key in whole.cv_results_:
        if "score" in key and "time" not in key:
            np.testing.assert_array_equal(again.cv_results_[key], whole.cv_results_[key])
    assert len(list(tmp_path.iterdir())) == 9  # 4 candidates on 2 folds, and the best on all data


def test_two_processes_and_threads_at_once(tmp_path):
    model = NetworkClassifier(**{**BASE, "max_epochs": 25}, checkpoint_dir=tmp_path)
    whole = clone(model).set_params(checkpoint_dir=None).fit(X, y)
    results = {}

    def fit(name):
        results[name] = bits(clone(model).fit(X, y))

    threads = [threading.Thread(target=fit, args=(i,)) for i in range(2)]
    pids = []
    for _ in range(2):
        pid = os.fork()
        if not pid:
            code = 1
            try:
                code = int(bits(clone(model).fit(X, y)) != bits(whole))
            finally:
                os._exit(code)
        pids.append(pid)
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids] == [0, 0]
    assert results == {0: bits(whole), 1: bits(whole)}
    assert [path.suffix for path in folder_of(model).iterdir()] == [".safetensors"] * 2


# -- callbacks and refusals --------------------------------------------------------------------------------------------


def test_callbacks_of_skorch_go_on(model):
    callbacks = [Breaks(), EpochScoring("accuracy", lower_is_better=False), LRScheduler("StepLR", step_size=2)]
    model.set_params(callbacks=callbacks)
    whole = clone(model).set_params(checkpoint_dir=None).fit(X, y)
    interrupted_fit(model, 4)
    assert bits(clone(model).fit(X, y)) == bits(whole)


class Holds(Callback):
    """Keeps something that no file can hold."""

    def on_train_begin(self, net, **kwargs):
        self.lock_ = threading.Lock()


class Locked:
    """A schedule that no hash can distinguish."""

    def __init__(self):
        self.lock = threading.Lock()

    def __call__(self, epoch):
        return 1.0


def test_refusals(model):
    cases = [
        ({"random_state": None}, ValueError, "`random_state` must be an integer when `checkpoint_dir` is given"),
        ({"random_state": np.random.RandomState(0)}, ValueError, "`random_state` must be an integer"),
        ({"warm_start": True}, ValueError, "`warm_start` must be False when `checkpoint_dir` is given"),
        ({"checkpoint_dir": 3}, TypeError, "`checkpoint_dir` must be None or the path of a folder, got 3"),
        ({"checkpoint_dir": ""}, TypeError, "`checkpoint_dir` must be None or the path"),
        ({"checkpoint_every": 0}, ValueError, "`checkpoint_every` must be at least 1"),
        ({"callbacks": [Holds()]}, TypeError, "`Holds.lock_` is .*Therefore `checkpoint_dir` cannot resume"),
        ({"learning_rate_schedule": Locked()}, TypeError, "cannot be hashed. Fit with checkpoint_dir=None"),
    ]
    for params, error, message in cases:
        with pytest.raises(error, match=message):
            clone(model).set_params(**params).fit(X, y)
    with pytest.raises(ValueError, match="`checkpoint_dir` must be None for `partial_fit`"):
        model.partial_fit(X, y, classes=["a", "b", "c"])
