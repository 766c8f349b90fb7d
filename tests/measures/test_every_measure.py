"""What every measure must do, from its record alone: a new measure is tested here with no change to this file."""

from __future__ import annotations

import contextlib
import copy
import inspect
import math
import re
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from measuring import SHORT, separated, values_of
from networks import NETWORKS
from sklearn_capacity import CapacityWarning, NetworkClassifier, NotDefinedError, check_measure, measure_capacity
from sklearn_capacity.measures import MEASURES
from sklearn_capacity.scoring.example_networks import Example
from sklearn_capacity.scoring.measure_checks import check_on
from sklearn_capacity.scoring.requests import parse_measures

CASES = ["mlp", "mlp_no_bias", "mlp_tanh", "conv_batch_norm", "conv_strided_grouped", "residual", "conv_max_pool"]


@pytest.mark.parametrize("case", CASES)
def test_values_are_floats_and_leave_all_as_it_was(case):
    module, X, y = separated(case)
    module.train()
    state, flags = copy.deepcopy(module.state_dict()), [m.training for m in module.modules()]
    data, rng, numpy_rng = X.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    first = values_of(module, X, y)
    for name, value in first.items():
        assert value is None or (type(value) is float and not math.isnan(value)), name
    assert values_of(module, X, y) == first  # one integer seed
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())
    assert [m.training for m in module.modules()] == flags
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert torch.equal(X, data) and torch.equal(torch.get_rng_state(), rng)
    assert (np.random.get_state()[1] == numpy_rng).all()


def test_every_measure_is_defined_somewhere():
    module, X, _ = NETWORKS["one_output"]()
    result = [values_of(module, X, module(X).detach() + 1.0)]
    result += [values_of(*NETWORKS[case]()) for case in CASES]
    X, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    fitted = NetworkClassifier((4,), max_epochs=2, random_state=0).fit(X, y)  # knows its weights before training
    result.append(values_of(fitted, X, y))
    assert {name for values in result for name, value in values.items() if value is not None} == set(MEASURES)


@pytest.mark.parametrize("name", MEASURES)
def test_every_measure_keeps_what_its_record_says(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CapacityWarning)
        check_measure(name, params=SHORT.get(name))


@pytest.mark.parametrize("case", CASES)
def test_every_measure_keeps_the_common_rules_on_other_networks(case):
    module, X, y = separated(case)
    requests, _ = parse_measures({name: (name, SHORT.get(name, {})) for name in MEASURES})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CapacityWarning)
        reasons = check_on(requests, Example(case, module, X, y))
    assert reasons.count(None) > 10


def base_network() -> nn.Sequential:
    """A rectifier network without biases, where every measure of a chain is defined too."""
    generator = torch.Generator().manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    for layer in (net[0], net[2]):
        layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
    return net


def data():
    generator = torch.Generator().manual_seed(6)
    net = base_network()
    X = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    X = X[(net(X) != 0).any(1)]  # where all units are off, all classes tie
    return net, X, net(X).argmax(1)  # separated, so that margins are positive


def test_logarithms_are_those_of_the_values():
    net, X, y = data()
    for name, value in values_of(net, X, y).items():
        if MEASURES[name].signed:
            with pytest.raises(ValueError, match="`log` must be False"):
                measure_capacity(net, X, y, name, log=True)
        elif value is not None and math.isfinite(value) and value > 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", CapacityWarning)
                log = measure_capacity(net, X, y, {name: (name, SHORT.get(name, {}))}, log=True)[name]
            assert log == pytest.approx(math.log(value), abs=1e-9), name


@pytest.mark.parametrize("name", MEASURES)
def test_record_says_what_the_function_does(name):
    measure = MEASURES[name]
    assert measure.summary.endswith(".") and len(measure.summary) < 130
    assert measure.source and measure.unit and measure.family
    assert set(measure.tasks) <= {"classification", "regression"} and measure.tasks


@pytest.mark.parametrize("name", MEASURES)
def test_docstrings_state_the_cost_and_the_source(name):
    sections = set(inspect.getdoc(MEASURES[name].function).splitlines())
    assert {"Notes", "References", "Examples"} <= sections


# Sizes of a call on 40 samples of which all, some and hardly any measures are within.
@pytest.mark.parametrize("max_memory", ["1GB", "100kB", "30kB", "10kB"])
@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.filterwarnings("ignore::sklearn_capacity.CapacityWarning")
def test_a_budget_changes_no_value_or_refuses_the_measure(name, max_memory):
    net, X, y = data()
    before = {key: value * 0.5 for key, value in net.state_dict().items()}
    request = {name: (name, SHORT.get(name, {}))}
    with contextlib.suppress(NotDefinedError):
        free = measure_capacity(net, X, y, request, initial_state=before)[name]
        try:
            kept = measure_capacity(net, X, y, request, initial_state=before, max_memory=max_memory)[name]
        except NotDefinedError as error:
            assert max_memory != "1GB", error
            assert re.search(r"needs [\d.]+ [kM]B, and `max_memory` is \d+ kB", str(error)), error
        else:
            assert kept == pytest.approx(free, rel=1e-4), name
