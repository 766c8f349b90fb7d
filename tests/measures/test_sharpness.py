"""Max and expected sharpness: exact models, independent draws, vertices of the box, and what may not be touched."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import networks
from reference_sharpness import layers_of, mean_loss, perceptron, sharpness_by_draws
from sklearn_capacity import CapacityWarning, NotDefinedError, measure_capacity
from sklearn_capacity.derivatives.parameter_groups import parameter_groups
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch, losses, moved_weights, sharpness


def batch_of(module, X, y, loss="cross_entropy", **options):
    network = Network(module, tuple(X.shape[1:]))
    return network, Batch(network, X, y, loss=loss, **options)


def measured(name, module, X, y, loss="cross_entropy", *, seed=0, chunk=None, **params):
    return MEASURES[name](*batch_of(module, X, y, loss, random_state=seed, batch_size=chunk), **params)


def linear_case(n_outputs=1):
    """A linear model with biases, away from its minimum."""
    generator = torch.Generator().manual_seed(2)
    net = nn.Linear(3, n_outputs).double()
    for p in net.parameters():
        p.data = torch.randn(p.shape, generator=generator, dtype=torch.float64)
    X = torch.randn(9, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(9, n_outputs, generator=generator, dtype=torch.float64)
    return net, X, y


# -- which parameters move ---------------------------------------------------------------------------------------------


def test_layer_norm_by_independent_draws():
    def build():
        return networks.make(lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)), (4,))

    (module, X, y), other = build(), build()[0]
    result = measured("expected_sharpness", module, X, y, alpha=0.01, n_draws=400)
    generator = torch.Generator().manual_seed(9)
    start, rises = nn.functional.cross_entropy(module(X), y), []
    with torch.no_grad():
        for _ in range(1000):
            for p, w in zip(other.parameters(), module.parameters(), strict=True):
                p.copy_(w + 0.01 * (10 * w.abs() + 1) * torch.randn(w.shape, generator=generator, dtype=w.dtype))
            rises.append(nn.functional.cross_entropy(other(X), y) - start)
    rises = torch.stack(rises)
    spread = math.hypot(result.standard_error, float(rises.std()) / math.sqrt(1000))
    assert abs(result.value - float(rises.mean())) < 4 * spread


def test_batch_norm_is_folded_before_the_noise():
    """The same as on the network without batch norm whose weights were folded by hand."""
    module, X, y = networks.NETWORKS["conv_batch_norm"]()
    conv, norm = module[0], module[1]
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    plain = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), *module[2:]).double()
    plain[0].weight.data = conv.weight.data * factor.data[:, None, None, None]
    plain[0].bias.data = (norm.bias - norm.running_mean * factor).data
    plain[-1].load_state_dict(module[-1].state_dict())
    assert torch.allclose(plain(X), module(X))
    short = {"max_sharpness": {"steps": 30, "batch_size": 3}, "expected_sharpness": {"n_draws": 40}}
    for name, params in {**short, "kl_divergence": {}}.items():
        a, b = (measured(name, net, X, y, **params).value for net in (module, plain))
        assert a == pytest.approx(b, rel=1e-8)


# -- a tolerance -------------------------------------------------------------------------------------------------------


def averaged(name, module, X, y, **params):
    average = {"average": True} if name == "adaptive_sharpness" else {}
    return measured(name, module, X, y, "squared", **average, **params)


@pytest.mark.parametrize("name", ["expected_sharpness", "adaptive_sharpness"])
def test_draws_end_once_the_standard_error_is_small(name):
    """The first draws of a longer run, up to the first of every 32 where the error is small enough."""
    module, X, y = linear_case()
    errors = {n: averaged(name, module, X, y, n_draws=n).standard_error for n in range(32, 321, 32)}
    tolerance = 1.0001 * errors[160]
    first = next(n for n, error in errors.items() if error <= tolerance)
    stopped = averaged(name, module, X, y, n_draws=320, tolerance=tolerance)
    assert stopped.info["draws"] == first <= 160
    assert stopped.value == averaged(name, module, X, y, n_draws=first).value
    assert stopped.standard_error <= tolerance
    assert averaged(name, module, X, y, n_draws=320, tolerance=1e-9).info["draws"] == 320


def test_draws_that_end_early_leave_the_weights_alone():
    module, X, y = linear_case()
    network, batch = batch_of(module, X, y, "squared", random_state=0)
    before = [p.clone() for p in module.parameters()]
    values = [MEASURES["expected_sharpness"](network, batch, n_draws=100, tolerance=1e6).value for _ in range(2)]
    assert values[0] == values[1]
    assert all(torch.equal(p, q) for p, q in zip(before, module.parameters(), strict=True))


def test_an_ascent_ends_on_its_plateau():
    """A linear model's absolute loss rises until the corner of the box is reached."""
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1.0)
    X, y = torch.ones(4, 1), torch.zeros(4)
    box = {"alpha": 0.1, "steps": 400, "check_every": 10, "normalize": False}
    whole = measured("max_sharpness", net, X, y, "absolute", **box)
    stopped = measured("max_sharpness", net, X, y, "absolute", tolerance=1e-3, **box)
    assert stopped.value == pytest.approx(whole.value, abs=1e-3) == pytest.approx(0.2)
    assert stopped.info["steps"] < 200 < whole.info["steps"] == 400


def test_restarts_end_once_they_agree():
    module, X, y = linear_case()
    options = {"steps": 10, "batch_size": 3, "n_restarts": 8, "learning_rate": 1e-5}  # ends inside of the box
    whole, equal, never = (
        measured("max_sharpness", module, X, y, "squared", tolerance=tolerance, **options)
        for tolerance in (None, 1e6, 1e-300)
    )
    assert [m.info["restarts"] for m in (whole, equal, never)] == [8, 3, 8]
    assert never.value == whole.value


@pytest.mark.parametrize("name", ["expected_sharpness", "max_sharpness", "adaptive_sharpness"])
@pytest.mark.parametrize("tolerance", [0, -1, math.nan, math.inf])
def test_a_tolerance_is_a_number_above_0(name, tolerance):
    with pytest.raises(ValueError, match="`tolerance` must"):
        measured(name, *linear_case(), "squared", tolerance=tolerance)


# -- expected sharpness ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_squared_loss_of_a_linear_model_is_exact(n_outputs):
    """E L(w + v) - L(w) = sum_i s_i^2 mean(x_i^2), averaged over the outputs: sigma is a standard deviation."""
    net, X, y = linear_case(n_outputs)
    inputs = torch.cat([X.square().mean(0), torch.ones(1, dtype=torch.float64)])  # and the bias
    for params, deviation in (
        ({"noise": "spherical", "sigma": 0.2}, lambda w: torch.full_like(w, 0.2)),
        ({"alpha": 0.02}, lambda w: 0.02 * (10 * w.abs() + 1)),
    ):
        weights = torch.cat([net.weight.detach(), net.bias.detach()[:, None]], dim=1)
        exact = float((deviation(weights).square() * inputs).sum()) / n_outputs
        result = measured("expected_sharpness", net, X, y, "squared", n_draws=2000, **params)
        assert abs(result.value - exact) < 4 * result.standard_error < 0.25 * exact


def test_antithetic_pairs_cancel_what_is_odd():
    """Far above its targets the absolute loss is linear in the weights: no rise, and no spread."""
    net, X, _ = linear_case()
    y = torch.full((9, 1), -100.0, dtype=torch.float64)
    result = measured("expected_sharpness", net, X, y, "absolute", n_draws=20)
    assert abs(result.value) < 1e-13 and result.standard_error < 1e-13


@pytest.mark.parametrize("loss", ["cross_entropy", "squared", "absolute"])
def test_one_parameter_by_quadrature(loss):
    """Unbiased: the mean over all noises, enumerated at 60 nodes of Gauss and Hermite."""
    net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 2, bias=False)).double()
    net[0].weight.data.fill_(0.8)
    net[2].weight.data = torch.tensor([[1.5], [-0.5]], dtype=torch.float64)
    net[2].weight.requires_grad_(False)
    X = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    y = np.array([0, 1, 1]) if loss == "cross_entropy" else np.array([[3.0, -3.0], [-4.0, 2.0], [5.0, 5.0]])
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    sigma, head = 0.4, (net[2].weight.numpy(), np.zeros(2))

    def at(w):
        return mean_loss(perceptron([(np.array([[w]]), np.zeros(1)), head], X.numpy(), np.tanh), y, loss)

    exact = sum(p * at(0.8 + sigma * v) for p, v in zip(weights / weights.sum(), nodes, strict=True)) - at(0.8)
    params = {"noise": "spherical", "sigma": sigma, "n_draws": 1500}
    result = measured("expected_sharpness", net, X, torch.from_numpy(y), loss, **params)
    assert abs(result.value - exact) < 4 * result.standard_error


@pytest.mark.parametrize(("case", "activation"), [("mlp", None), ("mlp_tanh", np.tanh)])
@pytest.mark.parametrize("params", [{"alpha": 0.02}, {"noise": "spherical", "sigma": 0.15}])
def test_agrees_with_independent_draws(case, activation, params):
    module, X, y = networks.NETWORKS[case]()

    def deviation(w):
        return params["sigma"] if "sigma" in params else 0.02 * (10 * abs(w) + 1)

    expected, spread = sharpness_by_draws(
        layers_of(module), X.numpy(), y.numpy(), deviation, n_draws=6000, activation=activation
    )
    result = measured("expected_sharpness", module, X, y, n_draws=1000, **params)
    assert result.standard_error < 0.15 * result.value
    assert abs(result.value - expected) < 4 * math.hypot(spread, result.standard_error)


def test_standard_error_is_that_of_repetitions():
    module, X, y = networks.mlp()
    network = Network(module, (5,))
    batches = [Batch(network, X, y, loss="cross_entropy", random_state=seed) for seed in range(40)]
    runs = [MEASURES["expected_sharpness"](network, batch, n_draws=20, alpha=0.02) for batch in batches]
    spread = np.std([run.value for run in runs], ddof=1)
    stated = math.sqrt(np.mean([run.standard_error**2 for run in runs]))
    assert stated == pytest.approx(spread, rel=4 / math.sqrt(2 * 39))


def test_an_odd_number_of_draws_is_rounded_up_and_a_single_pair_has_no_error():
    module, X, y = networks.mlp()
    three, four, two = (measured("expected_sharpness", module, X, y, n_draws=n) for n in (3, 4, 2))
    assert three.value == four.value and three.info["draws"] == 4
    assert two.standard_error is None and four.standard_error > 0


# -- max sharpness -----------------------------------------------------------------------------------------------------


def vertices(net, alpha, loss_of):
    """The largest loss over the corners of the box, where a convex function has its maximum."""
    tensors = [p.detach().clone() for p in net.parameters()]
    flat = torch.cat([t.flatten() for t in tensors])
    radius = alpha * (flat.abs() + 1)
    best = -math.inf
    for signs in itertools.product((-1.0, 1.0), repeat=len(flat)):
        moved = flat + radius * torch.tensor(signs, dtype=torch.float64)
        pieces = moved.split([t.numel() for t in tensors])
        best = max(best, loss_of(*(p.view(t.shape) for p, t in zip(pieces, tensors, strict=True))))
    return best


@pytest.mark.parametrize("loss", ["squared", "absolute"])
@pytest.mark.parametrize("normalize", [True, False])
def test_convex_losses_reach_the_worst_corner(loss, normalize):
    net, X, y = linear_case(2)

    def loss_of(weight, bias):
        difference = X @ weight.T + bias - y
        return float((difference.square() if loss == "squared" else difference.abs()).mean())

    start, exact = loss_of(net.weight.detach(), net.bias.detach()), vertices(net, 0.05, loss_of)
    params = {"alpha": 0.05, "steps": 60, "learning_rate": 0.1, "batch_size": 9, "check_every": 7}
    value = measured("max_sharpness", net, X, y, loss, normalize=normalize, **params).value
    assert value == pytest.approx((exact - start) / (1 + start if normalize else 1), rel=1e-12)


@pytest.mark.parametrize("case", ["mlp", "mlp_tanh"])
def test_at_least_the_step_along_the_signs(case):
    module, X, y = networks.NETWORKS[case]()
    loss = nn.functional.cross_entropy(module(X), y)
    grads = torch.autograd.grad(loss, list(module.parameters()))
    other = networks.NETWORKS[case]()[0]
    for p, w, g in zip(other.parameters(), module.parameters(), grads, strict=True):
        p.data = w.detach() + 0.02 * (w.detach().abs() + 1) * g.sign()
    along_signs = float((nn.functional.cross_entropy(other(X), y) - loss).detach())
    params = {"alpha": 0.02, "steps": 200, "learning_rate": 0.1, "batch_size": 4, "normalize": False}
    assert measured("max_sharpness", module, X, y, **params).value >= along_signs * (1 - 1e-9) > 0


def test_restarts_spread_and_the_best_counts():
    module, X, y = networks.mlp()
    params = {"steps": 6, "batch_size": 2, "alpha": 0.3, "check_every": 3}
    one = measured("max_sharpness", module, X, y, **params)
    five = measured("max_sharpness", module, X, y, n_restarts=5, **params)
    assert one.standard_error is None and five.standard_error > 0
    assert five.value >= one.value and five.info["best_step"] in (3, 6)


def test_checks_count_the_largest_loss_of_all_the_data():
    """More frequent checks of the same path can only find more."""
    module, X, y = networks.mlp()
    params = {"steps": 40, "batch_size": 2, "alpha": 0.3, "learning_rate": 0.3}
    values = [measured("max_sharpness", module, X, y, check_every=k, **params).value for k in (40, 10, 1)]
    assert values == sorted(values)


def test_batches_are_drawn_without_replacement():
    module, X, y = networks.mlp()
    search = sharpness._Search(*batch_of(module, X, y), alpha=0.1, batch_size=3)
    samples = search.samples(torch.Generator().manual_seed(0))
    for _ in range(3):
        epoch = [next(samples) for _ in range(3)]
        assert [len(part) for part in epoch] == [3, 3, 1] and sorted(torch.cat(epoch).tolist()) == list(range(7))


def test_a_flat_minimum_is_reported_and_not_passed_over():
    net, X, _ = linear_case()
    y = net(X).detach()
    with pytest.warns(CapacityWarning, match="No step of the ascent raised the loss above") as shown:
        result = measured("max_sharpness", net, X, y, "squared", steps=5)
    assert result.value == 0.0 and Path(shown[0].filename).parent == Path(__file__).parent  # not a line of ours


# -- seeds, memory, interruption ---------------------------------------------------------------------------------------

SHORT = {"expected_sharpness": {"n_draws": 30}, "max_sharpness": {"steps": 20, "check_every": 5, "batch_size": 5}}


@pytest.mark.parametrize("name", SHORT)
def test_seeds_decide(name):
    module, X, y = networks.mlp()
    values = [measured(name, module, X, y, seed=seed, **SHORT[name], alpha=0.1).value for seed in (0, 0, 1)]
    assert values[0] == values[1] != values[2]


@pytest.mark.parametrize("name", SHORT)
def test_single_precision_sees_the_same_noise(name):
    module, X, y = networks.mlp()
    expected = measured(name, module, X, y, alpha=0.02, **SHORT[name]).value
    assert measured(name, module.float(), X.float(), y, alpha=0.02, **SHORT[name]).value == pytest.approx(
        expected, rel=2e-3
    )


@pytest.mark.parametrize("name", SHORT)
def test_out_of_memory_halves_the_chunk(name, monkeypatch):
    module, X, y = networks.mlp()
    expected = measured(name, module, X, y, alpha=0.1, **SHORT[name]).value
    assert measured(name, module, X, y, alpha=0.1, chunk=2, **SHORT[name]).value == pytest.approx(expected)
    sizes = []

    def scarce(logits, y, loss):
        sizes.append(len(logits))
        if len(logits) > 3:
            raise torch.OutOfMemoryError("too much")
        return original(logits, y, loss)

    original = losses.sample_losses
    monkeypatch.setattr(losses, "sample_losses", scarce)
    monkeypatch.setattr(moved_weights, "sample_losses", scarce)
    assert measured(name, module, X, y, alpha=0.1, **SHORT[name]).value == pytest.approx(expected)
    assert max(sizes) == 7 and sizes.count(7) == 1  # the chunk stays halved


@pytest.mark.parametrize("name", SHORT)
def test_an_interruption_leaves_the_network_as_it_was(name, monkeypatch):
    module, X, y = networks.mlp()
    network, batch = batch_of(module, X, y)
    before = [g.values.clone() for g in parameter_groups(network.graph)]
    expected = MEASURES[name](network, batch, **SHORT[name]).value
    calls = itertools.count()

    def interrupted(*args):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    original = losses.mean_loss
    monkeypatch.setattr(sharpness, "mean_loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        MEASURES[name](network, batch, **SHORT[name])
    monkeypatch.undo()
    assert all(torch.equal(a, g.values) for a, g in zip(before, parameter_groups(network.graph), strict=True))
    assert all(torch.equal(p, q) for p, q in zip(module.parameters(), networks.mlp()[0].parameters(), strict=True))
    assert MEASURES[name](network, batch, **SHORT[name]).value == expected


@pytest.mark.parametrize("name", SHORT)
def test_progress_is_shown_on_request(name, capsys):
    module, X, y = networks.mlp()
    MEASURES[name](*batch_of(module, X, y), **SHORT[name])
    assert capsys.readouterr().err == ""
    MEASURES[name](*batch_of(module, X, y, verbose=1), **SHORT[name])
    assert name.replace("_", " ") in capsys.readouterr().err


# -- messages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("expected_sharpness", {"n_draws": 1}, "`n_draws` must be at least 2, got 1"),
        ("expected_sharpness", {"alpha": 0.0}, r"`alpha` must lie in \(0, inf\), got 0"),
        ("expected_sharpness", {"noise": "spheric", "sigma": 1.0}, "Did you mean 'spherical'"),
        ("expected_sharpness", {"noise": "spherical"}, '`sigma` must be a number with noise="spherical", got None'),
        ("expected_sharpness", {"noise": "spherical", "sigma": -1.0}, r"`sigma` must lie in \(0, inf\), got -1"),
        ("expected_sharpness", {"sigma": 1.0}, '`sigma` must be None with noise="magnitude", got 1.0'),
        ("max_sharpness", {"alpha": -1.0}, r"`alpha` must lie in \(0, inf\), got -1"),
        ("max_sharpness", {"steps": 0}, "`steps` must be at least 1, got 0"),
        ("max_sharpness", {"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ("max_sharpness", {"check_every": 0}, "`check_every` must be at least 1, got 0"),
        ("max_sharpness", {"n_restarts": 0}, "`n_restarts` must be at least 1, got 0"),
        ("max_sharpness", {"momentum": 1.0}, r"`momentum` must lie in \[0, 1\), got 1"),
        ("max_sharpness", {"learning_rate": 0.0}, r"`learning_rate` must lie in \(0, inf\), got 0"),
    ],
)
def test_parameters_out_of_range(name, params, message):
    module, X, y = networks.mlp()
    with pytest.raises(ValueError, match=message):
        measure_capacity(module, X, y, {name: (name, params)})


@pytest.mark.parametrize("name", SHORT)
def test_a_diverged_network_is_refused(name):
    module, X, y = networks.mlp()
    module[0].weight.data.fill_(torch.inf)
    with pytest.raises(NotDefinedError, match="not defined for a network whose loss is nan. Has training diverged"):
        measured(name, module, X, y)
