"""The checks of measures pass a good one and notice each planted fault."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_capacity import Measure, Measured, NotDefinedError, check_measure
from sklearn_capacity.scoring.example_networks import examples


def matrices(network):
    return [p for p in network.parameters.values() if p.dim() > 1]


def small_share(network, batch):
    weights = torch.cat([tensor.flatten() for tensor in network.tensors().values()])
    return float((weights.abs() < 0.01).double().mean())


def largest(network, batch):
    return max(float(p.abs().max()) for p in matrices(network))


def mean_margin(network, batch):
    logits, y = batch.logits, batch.classes
    true = logits.gather(1, y[:, None])
    return float(
        (true - logits.masked_fill(torch.nn.functional.one_hot(y, logits.shape[1]).bool(), -1e9)).min(1)[0].mean()
    )


FUNCTION = {"permutation", "layer_rescaling", "node_rescaling"}


def drawn(network, batch):
    noise = torch.randn(100, generator=batch.generator(), dtype=torch.float64)
    return Measured(largest(network, batch) + float(noise.mean()), standard_error=0.1)


@pytest.mark.parametrize(
    ("function", "fields"),
    [
        (largest, {"invariances": {"permutation"}}),
        (mean_margin, {"invariances": FUNCTION, "signed": True, "tasks": "classification"}),
        (drawn, {"stochastic": True, "signed": True}),
        (lambda module, X, y: module(X).square().mean(), {"invariances": FUNCTION}),
        (lambda n, b: Measured.from_log(1000 + largest(n, b)), {}),  # beyond the largest float: inf
        ("margin", None), ("l2_path_norm", None),
    ],
)  # fmt: skip
def test_good_measures_pass(function, fields):
    check_measure(function if fields is None else Measure("good", function, **fields))


def test_a_function_declares_nothing():
    check_measure(largest)
    check_measure(lambda network, batch: -largest(network, batch))
    check_measure(lambda network, batch, *, scale: scale * largest(network, batch), params={"scale": 2.0})
    with pytest.raises(TypeError, match="one real number or a `Measured`, got None"):
        check_measure(lambda network, batch: None)


def changes_weights(network, batch):
    matrices(network)[0].data.mul_(1.5)
    return 1.0


def leaves_a_gradient(network, batch):
    network.forward(batch.X).sum().backward()
    return 1.0


def trains(network, batch):
    network.module.train()
    return 1.0


def changes_data(network, batch):
    batch.X.add_(1.0)
    return 1.0


counter = iter(range(10**6))


@pytest.mark.parametrize(
    ("function", "fields", "message"),
    [
        (changes_weights, {}, "but changed `0.weight` of a rectifier network"),
        (leaves_a_gradient, {}, "changed the gradient of `0.weight`"),
        (trains, {}, "changed the mode of"),
        (changes_data, {}, "changed X of"),
        (lambda n, b: float(torch.rand(())), {}, r"changed the random numbers of torch.*`batch.generator\(\)`"),
        (lambda n, b: float(np.random.rand()), {}, "changed the random numbers of numpy"),
        (lambda n, b: random.random(), {}, "changed the random numbers of Python"),
        (lambda n, b: 0.0 * (random.seed("another") or 1), {}, "changed the random numbers of Python"),
        (lambda n, b: random.gauss(0, 1), {}, "changed the random numbers of Python"),
        (lambda n, b: float(random.randrange(9)), {}, "changed the random numbers of Python"),
        (lambda n, b: float(next(counter)), {}, "must be the same twice for one seed"),
        (drawn, {"signed": True}, "must be the same for two seeds.* or declare stochastic=True"),
        (lambda n, b: float(b.chunk_size), {}, "must be the same with two samples at once"),
        (lambda n, b: float(b.X[0].abs().sum()), {}, "must be the same in another order of the samples"),
        (lambda n, b: 1.0 + (n.dtype == torch.float64), {}, "must be the same in single precision"),
        (lambda n, b: -largest(n, b), {}, "must not be negative, got .* declare signed=True"),
        (lambda n, b: float("nan"), {}, "must be a number, got nan"),
        (lambda n, b: Measured(2.0, log_value=2.0), {}, "must have the logarithm of its value, got 2 for 2"),
        (lambda n, b: Measured(2.0, standard_error=-1.0), {}, "standard error of at least 0"),
        (lambda n, b: Measured(2.0, per_layer=[{"name": "0"}]), {}, '`bad` must have rows with "layer" and "value"'),
        (largest, {}, "must declare the invariance 'permutation', which it has"),
        (largest, {"invariances": FUNCTION}, "must not change under its declared invariance 'layer_rescaling'"),
        (lambda n, b: 1.0, {"invariances": {"permutation", "layer_rescaling"}}, "must declare .* 'node_rescaling'"),
    ],
)  # fmt: skip
def test_planted_faults_are_noticed(function, fields, message):
    with pytest.raises(ValueError, match=message):
        check_measure(Measure("bad", function, **fields))


def test_draws_of_other_threads_are_no_fault_of_the_measure():
    def beside_a_drawing_thread(network, batch):
        thread = threading.Thread(target=random.random)
        thread.start()
        thread.join()
        return 1.0

    check_measure(beside_a_drawing_thread)


def test_a_measure_must_be_defined_somewhere():
    def never(network, batch):
        raise NotDefinedError("there is no such network.")

    with pytest.raises(
        ValueError, match="`never` must be defined for at least one .* on a rectifier network .*: there is no such"
    ):
        check_measure(never)

    def only_tanh(network, batch):
        if not any(isinstance(part, nn.Tanh) for part in network.module.modules()):
            raise NotDefinedError("it is for tanh networks.")
        return largest(network, batch)

    check_measure(only_tanh)
    with pytest.raises(ValueError, match="must be defined and finite for a rectifier network"):
        check_measure(Measure("only_tanh", only_tanh, invariances={"permutation"}))


def test_a_network_of_the_user_is_tried_too():
    torch.manual_seed(0)
    network, X = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2)), torch.randn(20, 3)

    def fails_on_gelu(module, X, y):
        return float("nan") if isinstance(module[1], nn.GELU) else module(X).square().mean()

    check_measure(fails_on_gelu)
    with pytest.raises(ValueError, match="must be a number, got nan on your network"):
        check_measure(fails_on_gelu, network, X, torch.arange(20) % 2)


def test_examples_are_the_same_for_every_seed_of_the_process():
    torch.manual_seed(1)
    state = torch.get_rng_state()
    examples.cache_clear()
    first = examples()
    assert torch.equal(state, torch.get_rng_state())
    examples.cache_clear()
    torch.manual_seed(2)
    for one, other in zip(first, examples(), strict=True):
        assert torch.equal(one.X, other.X) and torch.equal(one.y, other.y) and len(one.X) > 20
        for a, b in zip(one.module.state_dict().values(), other.module.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_a_coarse_measure_does_not_seem_invariant():
    check_measure(Measure("small_share", small_share, invariances={"permutation"}))
