"""The parts of the training loop: nets, batches, callbacks, schedules, optimisers, devices, seeds."""

from __future__ import annotations

import copy
import functools
import pickle

import numpy as np
import pytest
import torch
from skorch import NeuralNetClassifier
from skorch.callbacks import Callback, EpochScoring, GradientNormClipping
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR, OneCycleLR, ReduceLROnPlateau, StepLR

from sklearn_capacity import CapacityWarning, JacobianRegularizedClassifier, NetworkClassifier, NetworkRegressor
from sklearn_capacity.penalties import frobenius_penalty
from sklearn_capacity.training import (
    OPTIMIZERS,
    PenalizedClassifier,
    PenalizedRegressor,
    TensorBatches,
    TensorData,
    make_schedule,
    resolve_device,
    seeded,
)
from sklearn_capacity.training import devices as devices_module

rng = np.random.default_rng(0)
X, y = rng.normal(size=(90, 5)), np.arange(90) % 3


class Log(Callback):
    """Record the learning rate of each epoch."""

    def on_epoch_begin(self, net, **kwargs):
        net.history.record("rate", net.optimizer_.param_groups[0]["lr"])


def rates(model) -> list[float]:
    return [epoch["rate"] for epoch in model.history_]


# ---- batches ----------------------------------------------------------------------------------


def test_batches_cover_all_samples_once_in_a_new_order():
    data = TensorData(np.arange(10.0)[:, None], np.arange(10), np.arange(10.0))
    batches = TensorBatches(data, 3, shuffle=True, generator=torch.Generator().manual_seed(0))
    seen = [[batch[1].tolist() for batch in batches] for _ in range(2)]
    assert [len(batch) for batch in seen[0]] == [3, 3, 4] and len(batches) == 3  # no batch of one
    assert sorted(sum(seen[0], [])) == list(range(10))
    assert seen[0] != seen[1]
    for batch in batches:
        assert batch[0][:, 0].tolist() == batch[1].tolist() == batch.sample_weight.tolist()
    assert [len(b[0]) for b in TensorBatches(TensorData(np.zeros((1, 2))), 1)] == [1]
    assert [b[0].flatten().tolist() for b in TensorBatches(data, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_batches_are_transformed_with_the_same_generator():
    data = TensorData(np.zeros((6, 1)), np.arange(6), np.arange(6.0))

    def noise(X, generator):
        return X + torch.rand(X.shape, generator=generator, dtype=X.dtype)

    def drawn() -> list:
        batches = TensorBatches(data, 3, True, torch.Generator().manual_seed(0), noise)
        return [(batch[0].flatten().tolist(), batch.sample_weight.tolist()) for batch in batches]

    assert drawn() == drawn()
    assert len(set(drawn()[0][0] + drawn()[1][0])) == 6 and (data.X == 0).all()


@pytest.mark.parametrize("params", [{}, {"batch_size": 30}, {"early_stopping": True}])
def test_a_module_or_an_augmentation_that_works_in_place_leaves_the_data_alone(params):
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(X.shape[1], 3))
    data = X.copy()
    model = NetworkClassifier(module=module, max_epochs=3, **params).fit(data, y)
    model.predict(data)
    np.testing.assert_array_equal(data, X)
    images = X.reshape(-1, 1, 1, X.shape[1]).copy()
    NetworkClassifier((4,), augmentation=lambda batch, generator: batch.add_(1), max_epochs=3, **params).fit(images, y)
    np.testing.assert_array_equal(images.reshape(X.shape), X)


def test_no_penalty_is_evaluated_where_the_module_has_overwritten_its_input():
    module = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(X.shape[1], 4), nn.Dropout(0.1), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="`module` must not modify its input in place.*inplace=False"):
        JacobianRegularizedClassifier(module=module, max_epochs=1).fit(X, y)


def test_data_copies_what_is_read_only():
    array = np.zeros((3, 2))
    array.flags.writeable = False
    data = TensorData(array[::-1])
    data.X += 1
    assert (array == 0).all() and data.X.sum() == 6


# ---- the net for skorch users -----------------------------------------------------------------


def test_net_without_penalty_equals_skorch():
    """The fast loop gives the same bits as that of skorch."""
    X32, module = X.astype("float32"), nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
    options = {"max_epochs": 3, "batch_size": 32, "train_split": None, "verbose": 0, "lr": 0.1}
    theirs = NeuralNetClassifier(copy.deepcopy(module), criterion=nn.CrossEntropyLoss, **options).fit(X32, y)
    ours = PenalizedClassifier(copy.deepcopy(module), iterator_train__shuffle=False, **options).fit(X32, y)
    for a, b in zip(theirs.module_.parameters(), ours.module_.parameters(), strict=True):
        assert torch.equal(a, b)
    np.testing.assert_allclose(theirs.history[:, "train_loss"], ours.history[:, "train_loss"], rtol=1e-6)
    np.testing.assert_array_equal(theirs.predict_proba(X32), ours.predict_proba(X32))


@pytest.mark.parametrize("listening", [False, True])
def test_net_adds_strength_times_penalty(listening):
    X32 = X.astype("float32")
    torch.manual_seed(0)
    module = nn.Linear(5, 3)
    net = PenalizedClassifier(
        copy.deepcopy(module),
        penalty=frobenius_penalty,
        penalty_strength=0.5,
        max_epochs=1,
        batch_size=90,
        lr=0.1,
        verbose=0,
        callbacks=[GradientNormClipping(1e9)] if listening else None,
        callbacks__valid_acc=None,
    ).fit(X32, y)
    loss = nn.functional.cross_entropy(module(torch.from_numpy(X32)), torch.from_numpy(y))
    (gradient,) = torch.autograd.grad(loss + 0.5 * module.weight.square().sum(), module.weight)
    torch.testing.assert_close(net.module_.weight, module.weight - 0.1 * gradient)
    assert net.history[0]["train_penalty"] == pytest.approx(module.weight.square().sum().item(), rel=1e-5)
    assert len(net.history[0]["batches"]) == listening


def test_regression_net_and_its_pickle():
    net = PenalizedRegressor(lambda: nn.Linear(5, 1), max_epochs=2, verbose=0).fit(
        X.astype("float32"), X[:, :1].astype("float32")
    )
    again = pickle.loads(pickle.dumps(net))
    np.testing.assert_array_equal(net.predict(X.astype("float32")), again.predict(X.astype("float32")))
    assert again.partial_fit(X.astype("float32"), X[:, :1].astype("float32")).history[-1]["epoch"] == 4


def test_mode_changes_only_when_needed_so_frozen_parts_stay_frozen():
    class Freeze(Callback):
        def on_batch_begin(self, net, training=None, **kwargs):
            net.module_[1].training = False

    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model = NetworkClassifier(module=module, callbacks=[Freeze()], max_epochs=2, batch_size=30).fit(X, y)
    # the first step switches the module to training, after the callback; the others leave it frozen
    assert model.module_[1].num_batches_tracked.item() == 1


def test_a_callback_that_evaluates_the_module_does_not_end_its_training():
    class Evaluate(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.module_.eval()

    module = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    model = NetworkClassifier(module=module, callbacks=[Evaluate()], max_epochs=3, batch_size=len(X)).fit(X, y)
    assert model.module_[1].num_batches_tracked.item() == 3


# ---- callbacks --------------------------------------------------------------------------------


def test_users_callbacks_are_copied_and_heard():
    class Count(Callback):
        n_batches = 0

        def on_batch_end(self, net, training=None, **kwargs):
            self.n_batches += training

        def on_train_end(self, net, **kwargs):
            net.history.record("n_batches", self.n_batches)

    callback = Count()
    score = EpochScoring("accuracy", on_train=True, name="acc")
    model = NetworkClassifier(callbacks=[callback, ("acc", score)], max_epochs=3, batch_size=30).fit(X, y)
    assert model.history_[-1]["n_batches"] == 9 and callback.n_batches == 0
    assert 0 <= model.history_[-1]["acc"] <= 1
    assert [len(epoch["batches"]) for epoch in model.history_] == [1, 1, 1]  # the last one's, which Checkpoint asks for


def test_keyboard_interrupt_keeps_what_was_learnt():
    class Interrupt(Callback):
        def on_batch_end(self, net, **kwargs):
            if len(net.history) == 3:
                raise KeyboardInterrupt

    with pytest.warns(CapacityWarning, match="interrupted in epoch 3") as seen:
        model = NetworkClassifier(callbacks=[Interrupt()], max_epochs=50, batch_size=30).fit(X, y)
    assert seen[0].filename == __file__
    assert model.n_iter_ == 3
    assert model.predict(X).shape == (90,)


def test_training_goes_on_after_an_interrupted_epoch_under_a_scheduler_that_reads_the_loss():
    class Interrupt(Callback):
        def on_batch_end(self, net, **kwargs):
            if len(net.history) == 3:
                raise KeyboardInterrupt

    model = NetworkClassifier(callbacks=[Interrupt()], learning_rate_schedule=ReduceLROnPlateau, batch_size=30)
    with pytest.warns(CapacityWarning, match="interrupted in epoch 3"):
        model.fit(X, y)
    assert model.partial_fit(X, y).n_iter_ == 4


def test_progress_bar_shows_epochs_and_losses(capsys):
    model = JacobianRegularizedClassifier(verbose=1, max_epochs=4).fit(X, y)
    shown = capsys.readouterr().err
    assert "4/4" in shown and "train_loss" in shown and "train_penalty" in shown
    pickle.dumps(model)
    NetworkClassifier(max_epochs=2).fit(X, y)
    assert capsys.readouterr().err == ""


# ---- schedules --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, [1, 1, 1, 1]),
        ("cosine", [1, 0.5 + 0.5 * 2**-0.5, 0.5, 0.5 - 0.5 * 2**-0.5]),
        ([(1, 0.1), (3, 0.5)], [1, 0.1, 0.1, 0.05]),
        ([1.0, 0.5], [1, 0.5, 0.5, 0.5]),
        (lambda epoch: 2.0**-epoch, [1, 0.5, 0.25, 0.125]),
        (functools.partial(ExponentialLR, gamma=0.5), [1, 0.5, 0.25, 0.125]),
        (functools.partial(LambdaLR, lr_lambda=lambda epoch: 1 / (1 + epoch)), [1, 1 / 2, 1 / 3, 1 / 4]),
        (functools.partial(ReduceLROnPlateau, threshold=1e9, patience=1), [1, 1, 0.1, 0.1]),
    ],
)
def test_schedule_and_its_continuation(schedule, expected):
    settings = {"optimizer": "sgd", "learning_rate": 0.02, "learning_rate_schedule": schedule, "callbacks": [Log()]}
    model = NetworkClassifier(max_epochs=4, **settings).fit(X, y)
    np.testing.assert_allclose(rates(model), 0.02 * np.array(expected))
    parts = NetworkClassifier(max_epochs=4, **settings)
    for _ in range(2):
        parts.partial_fit(X, y, classes=range(3))
    parts = pickle.loads(pickle.dumps(parts))
    for _ in range(2):
        parts.partial_fit(X, y)
    np.testing.assert_allclose(rates(parts), 0.02 * np.array(expected))


@pytest.mark.parametrize(
    ("schedule", "cure"),
    [
        (StepLR, r"missing a required argument: 'step_size'\. Pass functools.partial\(StepLR, step_size=\.\.\.\)"),
        (OneCycleLR, r"max_lr=\.\.\."),
        (functools.partial(StepLR, step=2), "unexpected keyword argument 'step'|'step_size'"),
        (functools.partial(ExponentialLR, gamma=0.5, rate=1), "unexpected keyword argument 'rate'"),
        (lambda: 1.0, "with only the epoch"),
        (lambda epoch, total: epoch / total, r"functools.partial\(<lambda>, total=\.\.\.\)"),
    ],
)
def test_a_schedule_that_lacks_arguments_is_refused_with_their_names(schedule, cure):
    with pytest.raises(ValueError, match=cure) as raised:
        NetworkClassifier(learning_rate_schedule=schedule, max_epochs=1).fit(X, y)
    assert str(raised.value).startswith("`learning_rate_schedule` must be callable with only the ")


def test_a_schedule_may_change_between_calls_of_partial_fit():
    model = NetworkClassifier(max_epochs=4, learning_rate_schedule=[1.0, 0.5], callbacks=[Log()])
    model.partial_fit(X, y, classes=[0, 1, 2]).partial_fit(X, y)
    log = dict(model.net_.callbacks_)["Log"]
    model.partial_fit(X, y)
    assert dict(model.net_.callbacks_)["Log"] is log  # as long as nothing changes
    rates = []
    for schedule in (None, [0.25]):
        model.set_params(learning_rate_schedule=schedule).partial_fit(X, y)
        rates.append(model.net_.optimizer_.param_groups[0]["lr"])
    assert rates == [0.01, 0.0025]


def test_an_array_may_be_a_schedule():
    settings = {"callbacks": [Log()], "warm_start": True, "max_epochs": 2}
    model = NetworkClassifier(learning_rate_schedule=np.array([1.0, 0.5]), **settings)
    optimizer = model.fit(X, y).net_.optimizer_
    model.set_params(learning_rate_schedule=np.array([1.0, 0.5])).fit(X, y)
    assert model.net_.optimizer_ is optimizer
    np.testing.assert_allclose(rates(model), [0.01, 0.005, 0.005, 0.005])


def test_new_schedule_starts_from_the_first_learning_rate():
    model = NetworkClassifier(learning_rate_schedule=[0.1], callbacks=[Log()], max_epochs=2, warm_start=True).fit(X, y)
    model.set_params(learning_rate_schedule=None).fit(X, y)
    np.testing.assert_allclose(rates(model), [0.001, 0.001, 0.01, 0.01])
    assert make_schedule(None, 5) is None


# ---- optimisers -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_lowers_the_loss(name):
    rate = {"adadelta": 1.0, "sgd": 0.1, "lbfgs": 0.1}.get(name, 0.01)
    model = NetworkClassifier(optimizer=name, learning_rate=rate, max_epochs=15, random_state=0).fit(X, y)
    assert model.history_[-1]["train_loss"] < 0.97 * model.history_[0]["train_loss"]


@pytest.mark.parametrize("listens", [False, True])
def test_a_line_search_minimises_loss_and_penalty(listens):
    """On a linear model it is ridge regression. In float32 the loss is flat to the last bit long before the minimum."""
    targets = X @ rng.normal(size=(5, 1)) + 1
    torch.manual_seed(0)
    net = PenalizedRegressor(
        nn.Linear(5, 1, bias=False, dtype=torch.float64),
        penalty=frobenius_penalty,
        penalty_strength=3.0,
        batch_size=-1,
        max_epochs=3,
        optimizer=torch.optim.LBFGS,
        optimizer__line_search_fn="strong_wolfe",
        optimizer__tolerance_change=0.0,  # the default stops as far from the minimum as the square root of 1e-9
        lr=1.0,
        verbose=0,
        callbacks=[GradientNormClipping(1e9)] if listens else None,
    ).fit(X, targets)
    exact = np.linalg.solve(X.T @ X / 90 + 3.0 * np.eye(5), X.T @ targets / 90)
    np.testing.assert_allclose(net.module_.weight.detach().numpy().T, exact, rtol=1e-4, atol=1e-6)


def test_optimizer_settings_reach_the_optimizer():
    def group(**params):
        return NetworkClassifier(max_epochs=1, **params).fit(X, y).net_.optimizer_.param_groups[0]

    sgd = group(optimizer="sgd", momentum=0.5, weight_decay=0.1, optimizer_params={"nesterov": True})
    assert (sgd["momentum"], sgd["weight_decay"], sgd["nesterov"], sgd["lr"]) == (0.5, 0.1, True, 0.01)
    assert group(optimizer=torch.optim.Adam)["fused"] is True
    assert group(optimizer=torch.optim.Adam, optimizer_params={"fused": False, "foreach": True})["foreach"] is True
    assert group(optimizer=lambda params, lr: torch.optim.SGD(params, lr=2 * lr))["lr"] == 0.02


def test_weight_decay_shrinks_weights():
    models = [NetworkRegressor(weight_decay=decay, random_state=0).fit(X, y) for decay in (0.0, 1.0)]
    norms = [sum(p.square().sum().item() for p in model.module_.parameters()) for model in models]
    assert norms[1] < 0.5 * norms[0]


# ---- devices ----------------------------------------------------------------------------------


def test_auto_device_goes_round_the_gpus_by_worker(monkeypatch):
    class Process:
        _identity = ()

    monkeypatch.setattr(devices_module.multiprocessing, "current_process", lambda: Process)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    chosen = []
    for identity in [(), (1,), (2,), (3,), (4,), (1, 2)]:
        Process._identity = identity
        chosen.append(resolve_device("auto").index)
    assert chosen == [0, 0, 1, 2, 0, 1]
    assert resolve_device("cuda:2") == torch.device("cuda:2")
    with pytest.raises(ValueError, match="`device` must be available, got 'cuda:3'; torch sees 3 GPUs"):
        resolve_device("cuda:3")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert resolve_device("auto") == torch.device("cpu")


# ---- seeds ------------------------------------------------------------------------------------


def fitted_bits(dropout: float = 0.3, **params) -> bytes:
    model = NetworkClassifier((20,), dropout=dropout, random_state=5, max_epochs=4, batch_size=16, **params).fit(X, y)
    return model.predict_proba(X).tobytes()


def test_an_integer_seed_gives_the_same_bits_and_other_seeds_do_not():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].tobytes(), torch.get_rng_state().clone()
    bits = fitted_bits()
    torch.rand(7)
    np.random.rand(3)
    assert fitted_bits() == bits
    np.random.seed(0)
    torch.manual_seed(0)
    JacobianRegularizedClassifier(jacobian_norm="projection", random_state=0, max_epochs=1).fit(X, y)
    assert np.random.get_state()[1].tobytes() == before[0]
    assert torch.equal(torch.get_rng_state(), before[1])
    other = NetworkClassifier((20,), random_state=6, max_epochs=4, batch_size=16, dropout=0.3).fit(X, y)
    assert other.predict_proba(X).tobytes() != bits


def test_fits_in_threads_give_the_serial_bits():
    from joblib import Parallel, delayed

    bits = fitted_bits()
    assert Parallel(n_jobs=4, backend="threading")(delayed(fitted_bits)() for _ in range(8)) == [bits] * 8


def test_seeding_nests_and_restores():
    state = torch.get_rng_state()
    with seeded(1, torch.device("cpu")) as generator:
        first = torch.rand(2), torch.rand(2, generator=generator)
        with seeded(1, torch.device("cpu")):
            assert torch.equal(torch.rand(2), first[0])
    assert torch.equal(torch.get_rng_state(), state)
    with seeded(1, torch.device("cpu")) as generator:
        assert torch.equal(torch.rand(2), first[0]) and torch.equal(torch.rand(2, generator=generator), first[1])


def test_random_state_instance_moves_on():
    state = np.random.RandomState(0)
    models = [NetworkClassifier(random_state=state, max_epochs=1).fit(X, y) for _ in range(2)]
    assert not np.array_equal(models[0].predict_proba(X), models[1].predict_proba(X))
