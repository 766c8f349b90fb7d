"""Estimators train and predict on a pretend accelerator: the CPU's numbers, no needless transfers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pretend_device import DeviceMismatchError, LostTensorError, pretend_device
from sklearn_capacity import NetworkClassifier
from tests.gpu.training import CASES, KINDS, X, fitted, y


@pytest.mark.parametrize(("kind", "params"), CASES)
def test_training_and_prediction_equal_the_cpu(kind, params):
    with pretend_device() as pretend:
        try:
            there = fitted(kind, pretend.device, **params)
        except LostTensorError:
            if torch.__version__.startswith("2.8"):
                pytest.skip("torch 2.8 loses what the pretend device wraps")
            raise
        assert {p.device for p in there.module_.parameters()} == {pretend.device}
        predicted = there._outputs(X)
    np.testing.assert_allclose(predicted, fitted(kind, "cpu", **params)._outputs(X), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_transfers_to_the_host_do_not_grow_with_the_batches(kind):
    counts = []
    for batch_size in (20, 20, 8):  # the first fit of a structure also compares its program with the module
        with pretend_device() as pretend:
            # Untrained in both, as the check after a training reads more of one that has learnt nothing.
            fitted(kind, pretend.device, batch_size=batch_size, learning_rate=1e-9)
            counts.append(pretend.n_transfers)
    assert counts[1] == counts[2] > 0


def test_the_pretend_device_notices_faults():
    class Careless(nn.Linear):
        def forward(self, X):
            return super().forward(X) + torch.ones(self.out_features, dtype=X.dtype)

    with pretend_device() as pretend:
        with pytest.raises(ValueError, match="on the CPU") as caught:
            NetworkClassifier(module=Careless(16, 3).double(), device=pretend.device).fit(X, y)
        assert isinstance(caught.value.__cause__, DeviceMismatchError)
        tensor = torch.zeros(3, device=pretend.device)
        before = pretend.n_transfers
        tensor.sum().item()
        assert pretend.n_transfers == before + 1
        with pytest.raises((TypeError, RuntimeError)):
            tensor.numpy()
