"""What every measure must do, from its record alone; a new measure is tested here without a word being added."""

from __future__ import annotations

import copy
import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from networks import NETWORKS
from sklearn_capacity import CapacityWarning, NetworkClassifier, NotDefinedError, measure_capacity
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch

#: Cheap settings for measures that draw or ascend: the properties below do not depend on how long they do.
SHORT = {
    "max_sharpness": {"steps": 20, "check_every": 10, "batch_size": 4},
    "expected_sharpness": {"n_draws": 20},
    "pac_bayes_bound": {"n_draws": 20},
}
DETERMINISTIC = [name for name, m in MEASURES.items() if not m.stochastic]
CASES = ["mlp", "mlp_no_bias", "mlp_tanh", "conv_batch_norm", "conv_strided_grouped", "residual", "conv_max_pool"]


def value_of(name, module, X, y, **options):
    """The value of one measure, or None where it is not defined."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CapacityWarning)
        try:
            return measure_capacity(module, X, y, {name: (name, SHORT.get(name, {}))}, **options)[name]
        except NotDefinedError:
            return None


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", MEASURES)
def test_value_is_a_float_and_leaves_all_as_it_was(name, case):
    module, X, y = NETWORKS[case]()
    module.train()
    state, flags = copy.deepcopy(module.state_dict()), [m.training for m in module.modules()]
    data, rng, numpy_rng = X.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    first = value_of(name, module, X, y)
    assert first is None or (type(first) is float and not math.isnan(first))
    assert value_of(name, module, X, y) == first  # one integer seed
    assert all(torch.equal(state[k], v) for k, v in module.state_dict().items())
    assert [m.training for m in module.modules()] == flags
    assert all(p.grad is None and p.requires_grad for p in module.parameters())
    assert torch.equal(X, data) and torch.equal(torch.get_rng_state(), rng)
    assert (np.random.get_state()[1] == numpy_rng).all()


@pytest.mark.parametrize("name", MEASURES)
def test_is_defined_somewhere(name):
    module, X, _ = NETWORKS["one_output"]()
    values = [value_of(name, module, X, module(X).detach() + 1.0)]
    values += [value_of(name, *NETWORKS[case]()) for case in CASES]
    if "initial_state" in MEASURES[name].needs:  # a plain module has none
        X, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
        values = [value_of(name, NetworkClassifier((4,), max_epochs=2, random_state=0).fit(X, y), X, y)]
    assert any(v is not None for v in values)


@pytest.mark.parametrize("case", ["mlp", "mlp_no_bias", "conv_batch_norm"])
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_batch_split_and_order_do_not_matter(name, case):
    module, X, y = NETWORKS[case]()
    expected = value_of(name, module, X, y)
    if expected is None:
        pytest.skip(f"{name} is not defined for {case}")
    order = torch.randperm(len(X), generator=torch.Generator().manual_seed(3))
    assert value_of(name, module, X, y, batch_size=2) == pytest.approx(expected, rel=1e-9)
    assert value_of(name, module, X[order], y[order]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_float32_is_within_1e_4_of_float64(name, case):
    module, X, y = NETWORKS[case]()
    single = copy.deepcopy(module).float()

    def value(twin, dtype):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CapacityWarning)
            network = Network(twin, tuple(X.shape[1:]), dtype=dtype)  # measured in float32 itself
            batch = Batch(network, X.to(dtype), y, loss="cross_entropy")
            return MEASURES[name](network, batch, **SHORT.get(name, {})).value

    try:
        expected = value(module, torch.float64)
    except NotDefinedError:
        pytest.skip(f"{name} is not defined for {case}")
    assert value(single, torch.float32) == pytest.approx(expected, rel=1e-4)


# -- invariances: declared ones hold, undeclared ones fail -------------------------------------------------------------


def base_network() -> nn.Sequential:
    """A rectifier network without biases, where every measure of a chain is defined too."""
    generator = torch.Generator().manual_seed(5)
    net = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False)).double()
    for layer in (net[0], net[2]):
        layer.weight.data.copy_(torch.randn(layer.weight.shape, generator=generator, dtype=torch.float64))
    return net


def permuted(net):
    twin = copy.deepcopy(net)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    twin[0].weight.data = net[0].weight.data[order]
    twin[2].weight.data = net[2].weight.data[:, order]
    return twin


def rescaled(net, factors):
    twin = copy.deepcopy(net)
    twin[0].weight.data *= factors[:, None]
    twin[2].weight.data /= factors
    return twin


CHANGES = {
    "permutation": permuted,
    "layer_rescaling": lambda net: rescaled(net, torch.full((6,), 3.0, dtype=torch.float64)),
    "node_rescaling": lambda net: rescaled(net, torch.tensor([3.0, 0.5, 1.0, 2.0, 0.25, 1.5], dtype=torch.float64)),
}


def data():
    generator = torch.Generator().manual_seed(6)
    net = base_network()
    X = torch.randn(40, 4, generator=generator, dtype=torch.float64)
    return net, X, net(X).argmax(1)  # separated, so that margins are positive


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_declared_invariances_hold_and_undeclared_ones_fail(name, change):
    net, X, y = data()
    twin = CHANGES[change](net)
    assert torch.allclose(net(X), twin(X))  # the function is the same
    before, after = value_of(name, net, X, y), value_of(name, twin, X, y)
    if before is None:
        pytest.skip(f"{name} is not defined for a plain chain under cross-entropy")
    same = after == pytest.approx(before, rel=1e-9)
    assert same == (change in MEASURES[name].invariances), f"{before} before, {after} after"


def test_the_invariance_test_would_notice():
    net, X, y = data()
    norm = value_of("frobenius_norm", net, X, y)
    assert value_of("frobenius_norm", CHANGES["node_rescaling"](net), X, y) != pytest.approx(norm, rel=1e-3)


@pytest.mark.parametrize("name", MEASURES)
def test_logarithm_is_that_of_the_value(name):
    net, X, y = data()
    if MEASURES[name].signed:
        with pytest.raises(ValueError, match="`log` must be False"):
            measure_capacity(net, X, y, name, log=True)
        return
    value = value_of(name, net, X, y)
    if value is None or not math.isfinite(value) or value == 0:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CapacityWarning)
        log = measure_capacity(net, X, y, {name: (name, SHORT.get(name, {}))}, log=True)[name]
    assert log == pytest.approx(math.log(value), abs=1e-9)


@pytest.mark.parametrize("name", MEASURES)
def test_record_says_what_the_function_does(name):
    measure = MEASURES[name]
    assert measure.summary.endswith(".") and len(measure.summary) < 130
    assert measure.source and measure.unit and measure.family
    assert set(measure.tasks) <= {"classification", "regression"} and measure.tasks
