"""Interaction conditions against written-out matrices; lemma 1; the curves and their display."""

from __future__ import annotations

import copy
import math

import matplotlib
import numpy as np
import pytest
import torch
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import networks
from reference_sharpness import Interaction, layers_of
from sklearn_capacity import (
    NetworkClassifier,
    NotDefinedError,
    UnsupportedLayerError,
    bicriteria_curve,
    interaction_conditions,
    measure_capacity,
)
from sklearn_capacity.displays import BicriteriaDisplay
from sklearn_capacity.measures.interaction import DELTAS

matplotlib.use("Agg")


def chain(sizes=(5, 8, 7, 6, 3), seed=0):
    """A bias-free rectifier chain whose outputs are nowhere zero, and samples."""

    def build():
        layers = []
        for a, b in zip(sizes, sizes[1:], strict=False):
            layers += [nn.Linear(a, b, bias=False), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    module, X, _ = networks.make(build, sizes[:1], seed=seed)
    assert (module(X).norm(dim=1) > 0).all()
    return module, X


def references(module, X):
    weights = [weight for weight, _ in layers_of(module)]
    return [Interaction(weights, x) for x in X.numpy()]


# -- conditions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(5, 8, 7, 6, 3), (9, 4, 2), (3, 2)])
def test_conditions_with_matrices_written_out(sizes):
    module, X = chain(sizes)
    table = interaction_conditions(module, X)
    refs = references(module, X)
    d = len(sizes) - 1
    expected = {("C1", t): [r.c1(*t) for r in refs] for t in refs[0].triples()}
    expected |= {("C2", (k,)): [r.c2(k, DELTAS) for r in refs] for k in range(1, d)}
    expected |= {("C3", (i,)): [r.c3(i) for r in refs] for i in range(1, d + 1)}
    groups = table.groupby(["condition", "layers"], sort=False)
    assert set(groups.groups) == set(expected)
    for key, rows in groups:
        assert rows["sample"].tolist() == list(range(len(X)))
        np.testing.assert_allclose(rows["value"], expected[key], rtol=1e-10)
    assert list(table.columns) == ["condition", "layers", "sample", "value"]


def test_conditions_hold_as_inequalities_and_no_better_constant_does():
    module, X = chain()
    table = interaction_conditions(module, X).set_index(["condition", "layers", "sample"])["value"]
    for sample, ref in enumerate(references(module, X)):
        for a, c, b in ref.triples():
            mu = table["C1", (a, c, b), sample]
            right = ref.norm(c + 1, b) * ref.norm(a, c) / math.sqrt(ref.widths[c])
            assert ref.norm(a, b) >= mu * right * (1 - 1e-9) and ref.norm(a, b) < 1.001 * mu * right
        for k in range(1, ref.d):
            for delta in DELTAS:
                fraction = np.mean([abs(z) <= delta for z in ref.z[k]])
                assert fraction <= table["C2", (k,), sample] * delta * (1 + 1e-9)


def test_chunks_and_scale_of_the_samples_do_not_matter(monkeypatch):
    module, X = chain()
    expected = interaction_conditions(module, X)["value"]
    np.testing.assert_allclose(interaction_conditions(module, 7.0 * X)["value"], expected, rtol=1e-10)
    monkeypatch.setattr("sklearn_capacity.measures.interaction.CPU_BYTES", 1000)
    np.testing.assert_allclose(interaction_conditions(module, X)["value"], expected, rtol=1e-10)


def test_c1_does_not_see_the_scale_of_the_layers():
    module, X = chain()
    before = interaction_conditions(module, X)
    for layer, factor in zip(module[::2], (3.0, 0.1, 7.0, 0.5), strict=True):
        layer.weight.data *= factor
    after = interaction_conditions(module, X)
    for condition in ("C1", "C3"):
        rows = before["condition"] == condition
        np.testing.assert_allclose(after[rows]["value"], before[rows]["value"], rtol=1e-9)


def test_the_grid_of_deltas_is_a_parameter():
    module, X = chain()
    table = interaction_conditions(module, X, deltas=[0.05])
    values = table[table["layers"] == (2,)].query("condition == 'C2'")["value"]
    assert values.tolist() == pytest.approx([r.c2(2, [0.05]) for r in references(module, X)])


def test_any_model_of_ours_in_a_pipeline():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((30, 4))
    y = X[:, 0] > 0
    model = make_pipeline(
        StandardScaler(), NetworkClassifier(hidden_layer_sizes=(6,), bias=False, max_epochs=3, random_state=0)
    ).fit(X, y)
    table = interaction_conditions(model, X)
    assert len(table) == 30 * (4 + 1 + 2) and np.isfinite(table["value"]).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_lemma_1(seed):
    """E |f with noise and fixed states - f| <= (prod (1 + gamma_i) - 1) |f|, with gamma of D_i W_i."""
    module, X = chain((4, 6, 5, 2), seed)
    rng = np.random.default_rng(seed)
    for ref in references(module, X):
        for sigma in (0.003, 0.1):
            f = ref.product(0, ref.d)
            changes = []
            for _ in range(400):
                noisy = ref.W[0]
                for i in range(1, ref.d + 1):
                    noisy = ref.D[i] @ (ref.W[i] + sigma * rng.standard_normal(ref.W[i].shape)) @ noisy
                changes.append(np.linalg.norm(noisy - f))
            bound = (math.prod(1 + ref.gamma(i, sigma) for i in range(1, ref.d + 1)) - 1) * np.linalg.norm(f)
            assert np.mean(changes) + 4 * np.std(changes) / 20 <= bound


# -- the estimate ------------------------------------------------------------------------------------------------------


def test_estimate_with_matrices_written_out():
    module, X = chain()
    for params in ({}, {"sigma": 0.01, "delta": 0.2, "loss_constant": 3.0, "deltas": (0.1, 0.2)}):
        settings = {"sigma": 1e-3, "delta": 0.05, "deltas": DELTAS, **params}
        constant = settings.pop("loss_constant", 1.0)
        expected = constant * np.mean([r.estimate(**settings) for r in references(module, X)])
        value = measure_capacity(module, X, measures={"s": ("sharpness_estimate", params)}, loss="squared")["s"]
        assert value == pytest.approx(expected, rel=1e-9)


def test_estimate_of_a_deep_chain_is_in_logarithms():
    module, X = chain((6, *[8] * 30, 2), seed=3)
    log = measure_capacity(
        module, X, measures={"s": ("sharpness_estimate", {"sigma": 10.0})}, loss="squared", log=True
    )["s"]
    assert 710 < log < math.inf


def test_estimate_of_a_dead_network_is_infinite():
    module, X = chain()
    module[-1].weight.data.zero_()
    assert measure_capacity(module, X, measures="sharpness_estimate", loss="squared")["sharpness_estimate"] == math.inf


def test_biases_of_zero_are_none():
    plain, X = chain()
    module = copy.deepcopy(plain)
    for layer in module:
        if isinstance(layer, nn.Linear):
            layer.bias = nn.Parameter(torch.zeros(layer.out_features, dtype=layer.weight.dtype))
    expected = interaction_conditions(plain, X)["value"]
    np.testing.assert_array_equal(interaction_conditions(module, X)["value"], expected)


class _Branch(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)

    def forward(self, x):
        return self.b(x + self.a(x).relu())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(4, 3)),
            "in layer `0 \\(Linear\\)`: it has a bias. It needs a chain of bias-free",
        ),
        (lambda: nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3, bias=False)), "there is no ReLU between"),
        (lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU()), "the output must come from a linear layer"),
        (lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh()), "it is not positively homogeneous"),
        (lambda: nn.Sequential(nn.Linear(4, 3, bias=False), nn.LeakyReLU()), "only fully connected layers with ReLU"),
        (_Branch, "the network is not a chain"),
    ],
)
def test_other_networks_are_refused(build, message):
    module, X, _ = networks.make(build, (4,))
    with pytest.raises(UnsupportedLayerError, match=message):
        interaction_conditions(module, X)


def test_bad_input_is_refused():
    module, X = chain()
    with pytest.raises(NotDefinedError, match="need samples of unit norm, but `X` contains a zero sample"):
        interaction_conditions(module, torch.cat([X, torch.zeros(1, 5)]))
    with pytest.raises(ValueError, match=r"`deltas` must lie in \(0, inf\), got 0"):
        interaction_conditions(module, X, deltas=[0.0])
    with pytest.raises(ValueError, match="`deltas` must be a sequence of at least one number"):
        interaction_conditions(module, X, deltas=[])
    for name, value in (("sigma", 0.0), ("loss_constant", -1.0), ("delta", 1.0)):
        with pytest.raises(ValueError, match=f"`{name}` must lie in"):
            measure_capacity(module, X, measures={"s": ("sharpness_estimate", {name: value})}, loss="squared")


# -- the bi-criteria curve ---------------------------------------------------------------------------------------------


def test_curve_consists_of_the_two_measures():
    module, X, y = networks.mlp()
    alphas = [0.02, 0.001, 0.005]
    curve = bicriteria_curve(module, X, y, alphas, n_draws=40, random_state=3)
    assert curve.shape == (3, 2)
    for point, alpha in zip(curve, alphas, strict=True):
        requests = {
            "s": ("expected_sharpness", {"alpha": alpha, "n_draws": 40}),
            "k": ("kl_divergence", {"alpha": alpha}),
        }
        assert list(measure_capacity(module, X, y, requests, random_state=3).values()) == point.tolist()


def test_curve_takes_what_measure_capacity_takes():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((40, 3))
    labels = np.where(X[:, 0] > 0, "up", "down")
    model = make_pipeline(StandardScaler(), NetworkClassifier((4,), max_epochs=3, random_state=0)).fit(X, labels)
    curve = bicriteria_curve(model, X, labels, np.array([0.01, 0.1]), n_draws=10, random_state=np.random.RandomState(0))
    assert np.isfinite(curve).all() and curve[0, 1] > curve[1, 1]
    net = nn.Linear(3, 1, dtype=torch.float64)
    first, second = (bicriteria_curve(net, X, X[:, 1], [0.1], n_draws=10, loss="absolute")[0, 0] for _ in range(2))
    assert first != second  # random_state=None: another seed in every call


def test_curve_leaves_numpy_as_it_was():
    module, X, y = networks.mlp()
    before = np.random.get_state()[1].copy()
    bicriteria_curve(module, X, y, [0.1], n_draws=4)
    assert (np.random.get_state()[1] == before).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alphas": []}, "`alphas` must be a sequence of at least one number"),
        ({"alphas": [0.1, 0.0]}, r"`alphas` must lie in \(0, inf\), got 0"),
        ({"n_draws": 1}, "`n_draws` must be at least 2, got 1"),
        ({"random_state": -1}, "`random_state` must be at least 0, got -1"),
    ],
)
def test_curve_parameters_out_of_range(change, message):
    module, X, y = networks.mlp()
    with pytest.raises(ValueError, match=message):
        bicriteria_curve(module, X, y, **{"alphas": [0.1], "n_draws": 4, **change})


# -- the display -------------------------------------------------------------------------------------------------------


def test_display_shows_the_curves():
    import matplotlib.pyplot as plt

    curves = {
        "true": np.array([[0.1, 50.0], [0.001, 900.0], [0.03, 200.0]]),
        "random": np.array([[0.5, 60.0], [-0.001, 1000.0]]),
    }
    copies = {name: curve.copy() for name, curve in curves.items()}
    display = BicriteriaDisplay(curves)
    assert display.plot() is display
    np.testing.assert_array_equal(display.lines_["true"].get_xdata(), [50, 200, 900])
    np.testing.assert_array_equal(display.lines_["true"].get_ydata(), [0.1, 0.03, 0.001])
    assert [t.get_text() for t in display.ax_.get_legend().get_texts()] == ["true", "random"]
    assert display.ax_.get_xscale() == "log" and "divergence" in display.ax_.get_xlabel()
    assert all((curves[name] == copies[name]).all() for name in curves)
    figure, ax = plt.subplots()
    single = BicriteriaDisplay(curves["true"]).plot(ax=ax)
    assert single.ax_ is ax and single.figure_ is figure and ax.get_legend() is None
    figure.canvas.draw()
    plt.close("all")


def test_display_from_estimators():
    import matplotlib.pyplot as plt

    module, X, y = networks.mlp()
    params = {"n_draws": 6, "random_state": 0}
    one = BicriteriaDisplay.from_estimator(module, X, y, [0.01, 0.1], name="net", **params)
    np.testing.assert_array_equal(one.curves["net"], bicriteria_curve(module, X, y, [0.01, 0.1], **params))
    many = BicriteriaDisplay.from_estimators({"a": (module, X, y), "b": (module, X, y)}, [0.01, 0.1], **params)
    assert (many.curves["a"] == many.curves["b"]).all() and set(many.plot().lines_) == {"a", "b"}
    plt.close("all")


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        ({}, "contain at least one curve"),
        ({"a": np.ones((3, 3))}, r"of shape \(n_alphas, 2\), got \(3, 3\) for 'a'"),
    ],
)
def test_display_refuses_other_arrays(curves, message):
    with pytest.raises(ValueError, match=message):
        BicriteriaDisplay(curves).plot()
