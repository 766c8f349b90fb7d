"""Estimators with generalization layers: where the layer goes, its regime, and what it combines with."""

from __future__ import annotations

import functools
import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from skorch import NeuralNetRegressor
from skorch.callbacks import Callback
from torch import nn

from sklearn_capacity import GeneralizationLayerClassifier, GeneralizationLayerRegressor, NetworkClassifier, load, save
from sklearn_capacity.layers import (
    GeneralizationDropout,
    GeneralizationLayer,
    GeneralizationWrap,
    generalization_layers,
    generalization_parameters,
)
from sklearn_capacity.penalties import frobenius_penalty
from sklearn_capacity.training import NuSchedule, SlowLearning

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 6)), np.arange(40) % 3


def model(**params) -> GeneralizationLayerClassifier:
    return GeneralizationLayerClassifier((8,), **{"max_epochs": 10, "slow_after": 3, "random_state": 0, **params})


def layer_of(fitted) -> nn.Module:
    (layer,) = generalization_layers(fitted.module_)
    return layer


def n_slow(fitted) -> int:
    groups = fitted.net_.optimizer_.param_groups
    return sum(len(group["params"]) for group in groups if group.get("slow", False))


def test_the_layer_is_before_the_head_and_nowhere_else():
    fitted = model().fit(X, y)
    wrap = layer_of(fitted)
    assert isinstance(wrap, GeneralizationWrap) and isinstance(wrap.layer, nn.Linear)
    assert tuple(wrap.body[0].weight.shape) == (8, 8) and wrap.layer.out_features == 3
    deeper = model(layer_form="block", layer_depth=2).fit(X, y)
    assert isinstance(layer_of(deeper), GeneralizationLayer) and len(layer_of(deeper).body) == 3


def test_positions_by_index_and_by_name_and_in_a_user_s_module():
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    for position in (0, "0"):
        fitted = GeneralizationLayerClassifier(module=network, position=position, max_epochs=2).fit(X, y)
        assert layer_of(fitted).layer.in_features == 6
    assert len(list(network.modules())) == 4  # the instance itself is left as it was


def test_a_module_with_its_own_layers_needs_no_position():
    with_layer = nn.Sequential(GeneralizationLayer(6), nn.ReLU(), nn.Linear(6, 3))
    fitted = GeneralizationLayerClassifier(module=with_layer, position=None, max_epochs=10, slow_after=3).fit(X, y)
    assert isinstance(fitted.module_[0], GeneralizationLayer)
    assert fitted.history_[-1, "nu"] == pytest.approx(0.1) == float(layer_of(fitted).nu)
    with pytest.raises(ValueError, match="`position` must name the place of the layer, got None"):
        model(position=None).fit(X, y)


def test_named_architectures_with_generalization_layers():
    images = rng.normal(size=(12, 3, 8, 8)).astype("float32")
    fitted = GeneralizationLayerClassifier(
        module="resnet20_gl", position=None, max_epochs=1, slow_factor=0.0, slow_after=0
    ).fit(images, y[:12])
    for name, value in fitted.module_.named_parameters():
        assert torch.equal(value, fitted.initial_state_[name]) == name.startswith("stage2.0.body")


def test_regime_of_the_paper():
    history = model().fit(X, y).history_
    # nu falls linearly over the first 80 % of the epochs, the layer's rate is a tenth from the fourth epoch on
    np.testing.assert_allclose(history[:, "nu"], [1 - 0.9 * min(1, epoch / 8) for epoch in range(10)])
    assert history[:, "slow_factor"] == [1.0] * 3 + [0.1] * 7
    assert model(slow_after=0.5).fit(X, y).history_[:, "slow_factor"] == [1.0] * 5 + [0.1] * 5


def test_only_the_layer_s_weights_are_slow_and_by_exactly_the_factor():
    """One full-batch step of plain gradient descent: the moves differ by the factor, in that layer only."""
    params = dict(max_epochs=1, batch_size=40, optimizer="sgd", momentum=0.0, slow_after=0)
    fast, slow = (model(slow_factor=factor, **params).fit(X, y) for factor in (1.0, 0.25))
    with_layer = {id(parameter) for parameter in generalization_parameters(slow.module_)}
    for (name, a), b in zip(fast.module_.named_parameters(), slow.module_.parameters(), strict=True):
        start = fast.initial_state_[name]
        factor = 0.25 if id(b) in with_layer else 1.0
        torch.testing.assert_close(b - start, factor * (a - start))
        assert (a != start).any()
    assert len(with_layer) == 2


SCHEDULES = ["cosine", [(2, 0.5)], functools.partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda t: 0.5**t)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["cosine", "steps", "torch"])
def test_schedules_of_the_learning_rate_meet_no_factor(schedule):
    fitted = model(learning_rate_schedule=schedule, slow_factor=0.01, slow_after=1).fit(X, y)
    groups = fitted.net_.optimizer_.param_groups
    assert {group["lr"] for group in groups} == {groups[-1]["lr"]} != {0.01}
    assert n_slow(fitted) == 2


def test_the_regime_goes_on_in_partial_fit_and_with_warm_start_and_after_pickling():
    whole = model(warm_start=True).fit(X, y)
    parts = model()
    for _ in range(4):
        parts.partial_fit(X, y, classes=[0, 1, 2])
    parts = pickle.loads(pickle.dumps(parts))
    for _ in range(6):
        parts.partial_fit(X, y)
    for name in ("nu", "slow_factor"):
        assert parts.history_[:, name] == whole.history_[:, name]
    assert n_slow(parts) == 2
    whole.fit(X, y)  # ten more epochs, at the end of the schedules
    assert whole.history_[10:, "nu"] == [pytest.approx(0.1)] * 10
    assert whole.history_[10:, "slow_factor"] == [0.1] * 10
    whole.set_params(learning_rate=0.001).fit(X, y)  # a new optimiser
    assert n_slow(whole) == 2


def test_a_new_optimiser_with_momentum_keeps_going_where_it_was():
    """Two fits of five epochs are one of ten, bit by bit, but for the order of the batches: there is one batch."""
    params = dict(batch_size=40, optimizer="sgd", nu_decay_fraction=0.0, slow_after=0)
    once = model(max_epochs=10, **params).fit(X, y)
    twice = model(max_epochs=5, warm_start=True, **params).fit(X, y).fit(X, y)
    np.testing.assert_array_equal(once.predict_proba(X), twice.predict_proba(X))


class Stops(Callback):
    """Ends the training in the middle of a step, as the keyboard or an error does."""

    def __init__(self, error):
        self.error = error

    def on_batch_begin(self, net, training, **kwargs):
        net.module_.register_forward_pre_hook(self.stop)

    def stop(self, module, inputs):
        raise self.error


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_a_step_that_was_broken_off_leaves_the_learning_rate_as_it_was(error):
    torch.manual_seed(0)
    network = nn.Sequential(GeneralizationLayer(6), nn.Linear(6, 1)).double()
    net = NeuralNetRegressor(
        network, lr=0.5, callbacks=[SlowLearning(after=0), ("stops", Stops(error))], train_split=None, verbose=0
    )
    net.initialize()
    try:
        net.partial_fit(X, y[:, None].astype(float), epochs=1)
    except RuntimeError:
        pass
    net.module_._forward_pre_hooks.clear()
    net.callbacks_ = [(name, callback) for name, callback in net.callbacks_ if name != "stops"]
    net.partial_fit(X, y[:, None].astype(float), epochs=2)
    assert len(net.history) == 3 and [group["lr"] for group in net.optimizer_.param_groups] == [0.5, 0.5]


def test_parameters_of_the_regime_may_change_between_calls_of_partial_fit():
    fitted = model().partial_fit(X, y, classes=[0, 1, 2])
    fitted.set_params(nu_start=3.0, nu_end=3.0, slow_after=0, slow_factor=0.5).partial_fit(X, y)
    assert (fitted.history_[-1, "nu"], fitted.history_[-1, "slow_factor"]) == (3.0, 0.5)
    assert n_slow(fitted) == 2


def test_lbfgs_has_one_rate_for_all_weights():
    with pytest.raises(ValueError, match="LBFGS has one learning rate for all weights.*`slow_factor` to 1"):
        model(optimizer="lbfgs").fit(X, y)
    fitted = model(optimizer="lbfgs", slow_factor=1.0, batch_size=40, learning_rate=0.1, nu_decay_fraction=0.0)
    fitted.fit(X, y)
    assert len(fitted.net_.optimizer_.param_groups) == 1 and fitted.history_[-1, "nu"] == pytest.approx(0.1)


class Interrupt(Callback):
    at = 0

    def __init__(self):
        super().__init__()

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == Interrupt.at:
            raise KeyboardInterrupt


RESUMED = [{"jacobian_penalty": 0.1}, {"variant": "dropout"}, {"optimizer": "path_sgd", "layer_form": "block"}]


@pytest.mark.parametrize("params", RESUMED, ids=["skip", "dropout", "path_sgd"])
def test_an_interrupted_fit_goes_on_from_its_checkpoint(tmp_path, params, monkeypatch):
    params = {"learning_rate_schedule": "cosine", "momentum": 0.0, **params}
    whole = model(**params).fit(X, y).predict_proba(X)
    monkeypatch.setattr(Interrupt, "at", 6)
    resumed = model(checkpoint_dir=tmp_path, callbacks=[Interrupt()], **params)
    assert resumed.fit(X, y).n_iter_ == 6
    monkeypatch.setattr(Interrupt, "at", 0)
    np.testing.assert_array_equal(resumed.fit(X, y).predict_proba(X), whole)
    loaded = clone(resumed).fit(X, y)  # the finished fit
    np.testing.assert_array_equal(loaded.predict_proba(X), whole)


def test_save_and_load(tmp_path):
    fitted = model(jacobian_penalty=0.01).fit(X, y)
    save(fitted, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "model.safetensors").predict_proba(X), fitted.predict_proba(X))


def test_saving_without_the_callbacks_that_were_there_in_fit(tmp_path):
    fitted = model(callbacks=[Callback()]).fit(X, y).set_params(callbacks=None)
    save(fitted, tmp_path / "model.safetensors")
    assert load(tmp_path / "model.safetensors").partial_fit(X, y).n_iter_ == 11


def test_dropout_variant():
    fitted = model(variant="dropout", layer_dropout=0.75).fit(X, y)
    (layer,) = (m for m in fitted.module_.modules() if isinstance(m, GeneralizationDropout))
    assert "nu" not in fitted.history_[-1] and "slow_factor" not in fitted.history_[-1]
    assert any(m.p == 0.75 for m in layer.modules() if isinstance(m, nn.Dropout))
    assert len(fitted.net_.optimizer_.param_groups) == 1


@pytest.mark.parametrize("variant", ["skip", "dropout"])
@pytest.mark.parametrize("norm", ["frobenius", "projection"])
def test_jacobian_penalty_combines_with_both(variant, norm):
    def size(strength):
        fitted = model(variant=variant, jacobian_penalty=strength, jacobian_norm=norm, max_epochs=40).fit(X, y)
        penalty = fitted.history_[-1].get("train_penalty")
        return float(frobenius_penalty(fitted.module_, torch.from_numpy(X)).detach()), penalty

    (free, no_penalty), (small, penalty) = size(0.0), size(1.0)
    assert no_penalty is None and penalty is not None
    assert small < 0.25 * free


def test_the_penalty_sees_each_epochs_nu():
    """With one batch an epoch the recorded penalty is that of the network before the step, at the epoch's nu."""
    fitted = model(jacobian_penalty=1e-9, batch_size=40, nu_end=5.0, learning_rate=1e-12).fit(X, y)
    for epoch in (0, 4, 9):
        layer_of(fitted).set_nu(fitted.history_[epoch, "nu"])
        jacobians = torch.autograd.functional.jacobian(lambda x: fitted.module_(x).sum(0), torch.from_numpy(X))
        expected = float(jacobians.square().sum() / len(X))
        assert fitted.history_[epoch, "train_penalty"] == pytest.approx(expected, rel=1e-6)


def test_regressor_on_a_cubic():
    x = np.linspace(-1, 1, 60)[:, None]
    fitted = GeneralizationLayerRegressor((30,), layer_depth=2, max_epochs=150, random_state=0).fit(x, x[:, 0] ** 3)
    assert fitted.score(x, x[:, 0] ** 3) > 0.95
    assert layer_of(fitted).shortcut.out_features == 1  # the sizes differ: a projection


def test_callbacks_alone_in_a_plain_skorch_net():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 4), GeneralizationLayer(4), nn.Linear(4, 1)).double()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    net = NeuralNetRegressor(
        network,
        max_epochs=4,
        optimizer=torch.optim.Adam,
        callbacks=[NuSchedule(end=0.5), SlowLearning(factor=0.0, after=0)],
        train_split=None,
        verbose=0,
    )
    net.fit(X, y[:, None].astype(float))
    after = net.module_.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("1.body")
    np.testing.assert_allclose(net.history[:, "nu"], [1 - 0.5 * epoch / 3.2 for epoch in range(4)])
    net.fit(X, y[:, None].astype(float))  # skorch starts over
    assert net.history[0, "nu"] == 1.0 and len(net.optimizer_.param_groups) == 2


def test_a_network_of_slow_weights_only_has_one_group():
    with_layer = nn.Sequential(GeneralizationLayer(6, depth=1))
    fitted = GeneralizationLayerRegressor(module=with_layer, position=None, max_epochs=2, slow_after=0, slow_factor=0.0)
    fitted.fit(X, np.tile(y[:, None], 6))
    assert n_slow(fitted) == 2 == sum(1 for _ in fitted.module_.parameters())
    for name, value in fitted.module_.named_parameters():
        assert torch.equal(value, fitted.initial_state_[name])


BAD = [
    ({"variant": "skp"}, ValueError, "`variant` must be one of 'skip', 'dropout', got 'skp'. Did you mean 'skip'"),
    ({"position": 1.5}, TypeError, "`position` must be None, an index or the name of a submodule, got 1.5"),
    ({"position": "neck"}, ValueError, "`position` must be 'head', an index or a submodule's name, got 'neck'"),
    ({"nu_start": 0}, ValueError, r"`nu_start` must lie in \(0, inf\), got 0"),
    ({"nu_end": -1.0}, ValueError, r"`nu_end` must lie in \(0, inf\)"),
    ({"nu_decay_fraction": 1.5}, ValueError, r"`nu_decay_fraction` must lie in \[0, 1\]"),
    ({"slow_factor": -0.1}, ValueError, "`slow_factor` must lie in"),
    ({"slow_after": 1.5}, ValueError, "`slow_after` must lie in"),
    ({"slow_after": -1}, ValueError, "`slow_after` must be at least 0, got -1"),
    ({"layer_form": "ring"}, ValueError, "`layer_form` must be one of"),
    ({"layer_form": "wrap", "variant": "dropout"}, ValueError, "`form` must be one of 'block', 'conv3x3', got 'wrap'"),
    ({"layer_depth": 3}, ValueError, "`layer_depth` must be one of 1, 2, got 3"),
    ({"layer_dropout": 1.0}, ValueError, r"`layer_dropout` must lie in \[0, 1\)"),
    ({"jacobian_penalty": -1.0}, ValueError, "`jacobian_penalty` must lie in"),
]


@pytest.mark.parametrize(("params", "error", "text"), BAD, ids=lambda value: str(value)[:40])
def test_bad_parameters(params, error, text):
    with pytest.raises(error, match=text):
        model(**params).fit(X, y)


# ---- augmentation, a parameter of all estimators ------------------------------------------------

IMAGES = rng.normal(size=(40, 1, 8, 8)).astype("float32")


def test_augmentation_changes_training_batches_only_and_by_the_seed():
    seen = []

    def watch(batch, generator):
        seen.append(batch.shape)
        return batch + torch.randn(1, generator=generator)

    fits = [
        NetworkClassifier((5,), input_shape=(1, 8, 8), augmentation=augmentation, max_epochs=3, random_state=0)
        for augmentation in (watch, watch, None, "crop_flip")
    ]
    one, same, plain, named = (fit.fit(IMAGES, y).predict_proba(IMAGES) for fit in fits)
    assert seen == [(40, 1, 8, 8)] * 6  # no call from predict_proba
    np.testing.assert_array_equal(one, same)
    assert (one != plain).all() and (named != plain).all()
    pickle.loads(pickle.dumps(fits[3])).partial_fit(IMAGES, y)


def test_augmentation_of_other_data_than_images_is_refused():
    with pytest.raises(ValueError, match=r"`X` must have shape \(n_samples, channels, height, width\) to be augmented"):
        NetworkClassifier(augmentation="flip").fit(X, y)
    with pytest.raises(ValueError, match="`augmentation` must be None, one of .* got 'flop'. Did you mean 'flip'"):
        NetworkClassifier(augmentation="flop").fit(X, y)
    with pytest.raises(TypeError, match="`augmentation` must be None, one of .* or a callable, got 3"):
        NetworkClassifier(augmentation=3).fit(X, y)
