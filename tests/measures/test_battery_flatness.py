"""Flatness at a given rise of the loss against closed forms of linear models, and against loops over draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from networks import NETWORKS, make
from reference_sharpness import layers_of, mean_loss, perceptron
from sklearn_capacity import NotDefinedError, capacity_report, measure_capacity
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch

FORMS = ["flatness", "init", "orig", "mag_flatness", "mag_init", "mag_orig"]
RISE = 0.3


def linear(seed=0, n=6, d=4):
    """A linear model of one output at the minimum of its squared loss, with its data."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Linear(d, 1, bias=False).double()
    net.weight.data = torch.randn(1, d, generator=generator, dtype=torch.float64)
    X = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return net, X, net(X).detach()


def measured(name, net, X, y, *, before=None, loss="squared", seed=0, **params):
    state = None if before is None else {"weight": before}
    network = Network(net, tuple(X.shape[1:]), initial_state=state)
    return MEASURES[name](network, Batch(network, X, y, loss=loss, random_state=seed), **params)


def bounds(w, w0, scale, m, *, extra, mag_extra, epsilon=1e-3):
    """The formulas of the two families in a loop; `extra` and `mag_extra` are their differences."""
    P = len(w)
    computed = {"flatness": 1 / scale**2}
    for form, v in (("init", w - w0), ("orig", w)):
        squared = sum(x**2 for x in v)
        computed[form] = squared * extra / (4 * scale**2) + math.log(m / scale) + 10
        terms = [
            math.log((epsilon**2 + (scale**2 + mag_extra) * squared / P) / (epsilon**2 + scale**2 * (a - b) ** 2))
            for a, b in zip(w, w0, strict=True)
        ]
        computed[f"mag_{form}"] = sum(terms) / 4 + math.log(m / scale) + 10
    computed["mag_flatness"] = computed["flatness"]
    return computed


@pytest.mark.parametrize("form", FORMS)
def test_noise_on_a_linear_model(form):
    """E (u x)^2 = sum_i Var(u_i) E x_i^2, so that sigma is known; within four standard errors, which are small."""
    net, X, y = linear()
    w, x = net.weight.detach().numpy().ravel(), (X**2).mean(0).numpy()
    w0 = np.array([0.3, -0.2, 0.1, 0.5])
    spread = (w**2 * x).sum() if form.startswith("mag") else x.sum()
    floor = 1e-6 * x.sum() if form.startswith("mag") else 0.0
    sigma = math.sqrt((RISE - floor) / spread)
    expected = bounds(w, w0, sigma, len(X), extra=1.0, mag_extra=1.0)[form]
    before = torch.from_numpy(w0)[None]
    result = measured(f"pacbayes_{form}", net, X, y, before=before, rise=RISE, n_draws=500)
    assert abs(result.value - expected) < 4 * result.standard_error + 2e-3 * abs(expected)
    assert result.standard_error < 0.1 * abs(expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_box_around_a_linear_model(form):
    """The largest (u x)^2 of a single sample is the square of sum_i r_i |x_i|."""
    net, X, y = linear(n=1)
    w, x = net.weight.detach().numpy().ravel(), X.numpy().ravel()
    w0 = np.array([0.3, -0.2, 0.1, 0.5])
    if form.startswith("mag"):
        alpha = (math.sqrt(RISE) - 1e-3 * np.abs(x).sum()) / np.abs(w * x).sum()
    else:
        alpha = math.sqrt(RISE) / np.abs(x).sum()
    P, delta = len(w), 0.05
    expected = bounds(w, w0, alpha, 1, extra=math.log(2 * P), mag_extra=4 * math.log(2 * P / delta))[form]
    params = {"delta": delta} if form in ("mag_init", "mag_orig") else {}
    before = torch.from_numpy(w0)[None]
    result = measured(f"sharpness_{form}", net, X, y, before=before, rise=RISE, **params)
    assert result.value == pytest.approx(expected, rel=3e-3)


def test_standard_errors_cover():
    """One over sigma^2 of 100 seeds, for which the truth is known: two standard errors hold it in 90 or more."""
    net, X, y = linear(seed=1)
    truth = float((X**2).mean(0).sum()) / RISE
    hits = 0
    for seed in range(100):
        result = measured("pacbayes_flatness", net, X, y, rise=RISE, n_draws=40, seed=seed)
        hits += abs(result.value - truth) <= 2 * result.standard_error
    assert hits >= 90


@pytest.mark.parametrize("magnitude", [False, True])
@pytest.mark.parametrize("criterion", ["error", "loss"])
def test_the_rise_at_the_scale_is_the_requested_one(criterion, magnitude):
    """Draws of numpy at the scale of the result, for a perceptron: sigma is a deviation and not a variance."""
    module, X, _ = NETWORKS["mlp"]()
    y = module(X).argmax(1)
    name = "pacbayes_mag_flatness" if magnitude else "pacbayes_flatness"
    result = measured(name, module, X, y, loss="cross_entropy", rise=0.2, criterion=criterion, n_draws=500)
    sigma, layers, rng = result.info["sigma"], layers_of(module), np.random.default_rng(0)

    def value(layers):
        outputs = perceptron(layers, X.numpy())
        return (
            np.mean(outputs.argmax(1) != y.numpy()) if criterion == "error" else mean_loss(outputs, y, "cross_entropy")
        )

    rises = []
    for _ in range(500):
        moved = [
            tuple(
                w + (np.sqrt(sigma**2 * w**2 + 1e-6) if magnitude else sigma) * rng.standard_normal(w.shape)
                for w in layer
            )
            for layer in layers
        ]
        rises.append(value(moved) - value(layers))
    spread = np.std(rises) / math.sqrt(len(rises))
    assert abs(np.mean(rises) - 0.2) < 6 * spread  # both are estimates


@pytest.mark.parametrize("case", ["conv_batch_norm", "residual", "mlp_tanh"])
def test_worst_weights_stay_in_the_box(case):
    """No point that a finer ascent meets in a slightly smaller box raises the loss by more than requested."""
    module, X, y = NETWORKS[case]()
    alpha = measured("sharpness_flatness", module, X, y, loss="cross_entropy", rise=0.5, criterion="loss").info["alpha"]
    report = measure_capacity(
        module, X, y, {"worst": ("max_sharpness", {"alpha": 1e-9, "steps": 1, "normalize": False})}
    )
    assert alpha > 0 and report["worst"] < 0.5
    twice = measured("sharpness_flatness", module, X, y, loss="cross_entropy", rise=1.0, criterion="loss").info["alpha"]
    assert twice > alpha


def test_measures_of_a_call_share_the_search():
    module, X, _ = NETWORKS["mlp"]()
    y = module(X).argmax(1)
    short = {"n_draws": 20}
    report = capacity_report(module, X, y, {name: (name, short) for name in ("pacbayes_flatness", "pacbayes_orig")})
    assert report["computed"][0] == report["computed"][1]
    w = np.concatenate([np.concatenate([a.ravel(), b]) for a, b in layers_of(module)])
    sigma = report["value"][0] ** -0.5
    expected = float(w @ w) / (4 * sigma**2) + math.log(len(X) / sigma) + 10
    assert report["value"][1] == pytest.approx(expected, rel=1e-8)


def test_flat_and_sharp_networks_that_have_no_scale():
    module, X, y = make(lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,), classes=2)
    with pytest.raises(NotDefinedError, match="No noise on the weights up to the scale 1e.06 raises the error by 0.9"):
        measured("pacbayes_flatness", module, X, y, loss="cross_entropy", rise=0.9, n_draws=4)
    net, X, y = linear()
    with pytest.raises(NotDefinedError, match="Every noise on the weights raises the loss by more than 0.1.*`epsilon`"):
        measured("sharpness_mag_flatness", net, X, y, rise=0.1, epsilon=10.0)


@pytest.mark.parametrize(
    ("name", "params", "error", "message"),
    [
        ("pacbayes_flatness", {"rise": 0.0}, ValueError, "`rise` must lie in "),
        ("pacbayes_flatness", {"n_draws": 1}, ValueError, "`n_draws` must be at least 2"),
        ("pacbayes_mag_flatness", {"epsilon": 0.0}, ValueError, "`epsilon` must lie in"),
        ("pacbayes_flatness", {"criterion": "eror"}, ValueError, "Did you mean 'error'"),
        ("sharpness_flatness", {"steps": 0}, ValueError, "`steps` must be at least 1"),
        ("sharpness_mag_init", {"delta": 0.0}, ValueError, "`delta` must lie in"),
        ("pacbayes_init", {}, NotDefinedError, "needs the weights before training"),
        ("sharpness_mag_orig", {}, NotDefinedError, "needs the weights before training"),
    ],
)
def test_wrong_parameters(name, params, error, message):
    with pytest.raises(error, match=message):
        measured(name, *linear(), **params)
