"""Steps of gradient descent against torch's own optimiser."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from networks import NETWORKS
from sklearn_capacity import CapacityWarning, NotDefinedError, measure_capacity

FULL = {"batch_size": 1000, "check_every": 1}


def by_torch(module, X, y, threshold, learning_rate, momentum):
    module = copy.deepcopy(module).eval()
    optimizer = torch.optim.SGD(module.parameters(), lr=learning_rate, momentum=momentum)
    for step in range(10_000):
        loss = F.cross_entropy(module(X), y)
        if loss.item() <= threshold:
            return step
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    raise AssertionError("not reached")


@pytest.mark.parametrize("start", ["trained", "initial"])
@pytest.mark.parametrize("case", ["mlp", "conv_no_bias", "tied", "weight_norm"])
def test_as_many_as_torch_takes(case, start):
    module, X, y = NETWORKS[case]()
    before = copy.deepcopy(module)
    for parameter in before.parameters():
        parameter.data.mul_(0.7)
    for momentum in (0.0, 0.9):
        expected = by_torch(module if start == "trained" else before, X, y, 0.9, 0.05, momentum)
        descent = {"start": start, "threshold": 0.9, "learning_rate": 0.05, "momentum": momentum, **FULL}
        request = {"steps": ("steps_to_loss", descent)}
        assert measure_capacity(module, X, y, request, initial_state=before)["steps"] == expected > 0


def test_number_is_a_multiple_of_the_look_and_depends_on_the_seed_only_through_the_batches():
    module, X, y = NETWORKS["mlp"]()
    request = {"s": ("steps_to_loss", {"start": "trained", "threshold": 0.7, "batch_size": 3, "check_every": 7})}
    values = [measure_capacity(module, X, y, request, random_state=seed)["s"] for seed in (0, 0, 1)]
    assert values[0] == values[1] and all(value % 7 == 0 and value > 0 for value in values)


def test_a_loss_that_is_not_reached_or_known():
    module, X, y = NETWORKS["mlp"]()
    request = {"s": ("steps_to_loss", {"start": "trained", "threshold": 1e-9, "max_steps": 5})}
    with pytest.warns(CapacityWarning, match="after 5 steps and not 1e-09. Take another `learning_rate`"):
        assert measure_capacity(module, X, y, request)["s"] == math.inf
    diverging = {"s": ("steps_to_loss", {"start": "trained", "learning_rate": 1e9, "momentum": 0.0})}
    with pytest.warns(CapacityWarning, match="Take another `learning_rate`"):
        assert measure_capacity(module, X, y, diverging, loss="cross_entropy")["s"] == math.inf
    with pytest.raises(NotDefinedError, match="needs the weights before training"):
        measure_capacity(module, X, y, "steps_to_loss")
    done = {"s": ("steps_to_loss", {"start": "trained", "threshold": 100.0})}
    assert measure_capacity(module, X, y, done)["s"] == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"threshold": 0.0}, "`threshold` must lie in"),
        ({"start": "begin"}, "`start` must be one of"),
        ({"learning_rate": math.inf}, "`learning_rate` must lie in"),
        ({"momentum": 1.0}, "`momentum` must lie in"),
        ({"max_steps": 0}, "`max_steps` must be at least 1"),
    ],
)
def test_wrong_parameters(params, message):
    module, X, y = NETWORKS["mlp"]()
    with pytest.raises(ValueError, match=message):
        measure_capacity(module, X, y, {"s": ("steps_to_loss", params)})
