"""What K-FAC and Path-SGD have in common: what a step needs, checkpoints, parameters."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from skorch.callbacks import Callback
from torch import nn

from sklearn_capacity import NetworkClassifier
from sklearn_capacity.training import KFAC, PathSGD

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 6)), np.arange(40) % 3


@pytest.mark.parametrize("kind", [KFAC, PathSGD])
def test_a_step_needs_to_know_the_module_and_the_batch(kind):
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"needs `attach\(module, criterion\)` and `observe\(X, y\)` before a step"):
        kind(layer.parameters()).step()


break_in = []  # the epoch to end in


class Breaks(Callback):
    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) in break_in:
            raise InterruptedError


@pytest.mark.parametrize("optimizer", ["kfac", "path_sgd"])
def test_a_metric_that_lasts_for_several_steps_goes_on_from_a_checkpoint(optimizer, tmp_path):
    """Four steps an epoch, a new metric in every seventh: a fit that was broken off ends at the same bits."""
    params = {"optimizer": optimizer, "learning_rate": 0.05, "momentum": 0.5 if optimizer == "kfac" else 0.9}
    params |= {"optimizer_params": {"update_interval": 7}, "callbacks": [Breaks()], "random_state": 0}
    model = NetworkClassifier((8,), batch_size=10, max_epochs=6, **params)
    whole = model.fit(X, y).predict_proba(X)
    model.set_params(checkpoint_dir=tmp_path)
    break_in.append(4)  # after twelve steps
    with pytest.raises(InterruptedError):
        model.fit(X, y)
    break_in.clear()
    np.testing.assert_array_equal(model.fit(X, y).predict_proba(X), whole)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), whole)


BAD = [
    (KFAC, {"damping": 0.0}, r"`damping` must lie in \(0, inf\)"),
    (KFAC, {"update_interval": 0}, "`update_interval` must be at least 1"),
    (KFAC, {"fisher": "type-3"}, "`fisher` must be one of .* Did you mean 'type-2'"),
    (KFAC, {"max_kl": -1.0}, "`max_kl` must lie in"),
    (PathSGD, {"lr": 0.0}, "`lr` must lie in"),
    (PathSGD, {"update_interval": 0}, "`update_interval` must be at least 1"),
]


@pytest.mark.parametrize(("kind", "params", "text"), BAD, ids=str)
def test_bad_parameters(kind, params, text):
    with pytest.raises(ValueError, match=text):
        kind(nn.Linear(2, 2).parameters(), **params)
