"""Order parameters and the theorems of Karakida et al. against quadrature by another route and simulated networks."""

import dataclasses
import math
import re
import warnings

import numpy as np
import pytest
from scipy import integrate, stats

from reference_theory import FUNCTIONS, draw_network, simulate
from sklearn_capacity._validation import CapacityWarning
from sklearn_capacity.theory import MeanField, mean_field
from sklearn_capacity.theory._integrals import (
    ErfIntegrals,
    QuadratureIntegrals,
    RectifierIntegrals,
    check_derivative,
    equidistant_rule,
    hermite_rule,
)

FIGURE_1 = {"tanh": (3.0, 0.64), "relu": (2.0, 0.5), "linear": (1.0, 0.5)}
INTEGRALS = {
    "relu": RectifierIntegrals(0.0),
    "leaky_relu": RectifierIntegrals(0.01),
    "linear": RectifierIntegrals(1.0),
    "erf": ErfIntegrals(),
    "tanh": QuadratureIntegrals(*FUNCTIONS["tanh"], equidistant_rule(4000), equidistant_rule(400)),
}


def relu_pair():
    return lambda u: np.maximum(u, 0), lambda u: (u > 0).astype(float)


LEGENDRE = np.polynomial.legendre.leggauss(60)


def normal_density(u, mean, variance):
    return np.exp(-((u - mean) ** 2) / (2 * variance)) / np.sqrt(2 * np.pi * variance)


def line_average(integrand, a):
    def density(u):
        return integrand(u) * normal_density(u, 0.0, a)

    edge = 12 * np.sqrt(a)
    return sum(integrate.quad(density, *ends, epsabs=1e-13, limit=200)[0] for ends in ((-edge, 0), (0, edge)))


def plane_average(function, a, b):
    """E f(u) f(u') through the conditional law of u' given u, one kink-free quadrant at a time."""

    variance = a - b * b / a

    def inner(u):
        mean, reach, total = b / a * u, 12 * np.sqrt(variance), 0.0
        for low, high in ((min(mean - reach, 0.0), 0.0), (0.0, max(mean + reach, 0.0))):
            nodes = (high - low) / 2 * LEGENDRE[0] + (high + low) / 2
            total += (high - low) / 2 * np.sum(LEGENDRE[1] * function(nodes) * normal_density(nodes, mean, variance))
        return total

    return line_average(lambda u: float(function(np.array([u]))[0]) * inner(u), a)


@pytest.mark.parametrize("name", INTEGRALS)
@pytest.mark.parametrize("a", [0.3, 3.0])
def test_line_integrals_equal_adaptive_quadrature(name, a):
    phi, slope = FUNCTIONS[name]
    integrals = INTEGRALS[name]
    expected = {
        "square": lambda u: phi(u) ** 2,
        "slope_square": lambda u: slope(u) ** 2,
        "tangent_mean": lambda u: u * phi(u) * slope(u),
        "tangent_square": lambda u: (u * slope(u)) ** 2,
    }
    for method, integrand in expected.items():
        value = line_average(lambda u, f=integrand: float(f(np.array([u]))[0]), a)
        assert getattr(integrals, method)(a) == pytest.approx(value, rel=1e-9), method


@pytest.mark.parametrize("name", INTEGRALS)
@pytest.mark.parametrize("a, b", [(3.0, 1.2), (0.5, -0.2)])
def test_plane_integrals_equal_adaptive_quadrature(name, a, b):
    phi, slope = FUNCTIONS[name]
    assert INTEGRALS[name].product(a, b) == pytest.approx(plane_average(phi, a, b), rel=1e-5)
    assert INTEGRALS[name].slope_product(a, b) == pytest.approx(plane_average(slope, a, b), rel=1e-5)


def test_relu_slope_product_is_an_orthant_probability():
    """(C.12) as printed has a factor a: 0.9465 for a = 3, which is not a probability of two signs."""
    value = RectifierIntegrals(0.0).slope_product(3.0, 1.2)
    assert value == pytest.approx(0.3155, abs=5e-5)
    assert value == pytest.approx(stats.multivariate_normal([0, 0], [[3.0, 1.2], [1.2, 3.0]]).cdf([0, 0]), abs=1e-6)


@pytest.mark.parametrize("name", INTEGRALS)
def test_equal_samples_have_the_one_sample_averages(name):
    integrals = INTEGRALS[name]
    assert integrals.product(2.0, 2.0) == pytest.approx(integrals.square(2.0))
    assert integrals.slope_product(2.0, 2.0) == pytest.approx(integrals.slope_square(2.0))


def test_quadrature_reproduces_a_closed_form():
    phi, slope = FUNCTIONS["erf"]
    by_rule = mean_field((phi, slope), [3.0, 1.0, 2.0, 0.5], [0.2, 0.0, 0.1, 0.3], 4, 100, input_correlation=0.3)
    closed = mean_field("erf", [3.0, 1.0, 2.0, 0.5], [0.2, 0.0, 0.1, 0.3], 4, 100, input_correlation=0.3)
    for name in ("q_hat", "q_hat_st", "q_tilde", "q_tilde_st", "fisher_rao", "fisher_rao_with_biases"):
        np.testing.assert_allclose(getattr(by_rule, name), getattr(closed, name), rtol=1e-6, err_msg=name)
    assert closed.quadrature_error == 0 < by_rule.quadrature_error <= 1e-6


def test_a_steep_activation_needs_and_gets_equidistant_nodes():
    """At sigma_w^2 = 100 Gauss-Hermite with 200 nodes is off by half; the fallback is exact."""
    phi, slope = FUNCTIONS["tanh"]
    result = mean_field("tanh", 100.0, 0.5, 2, 100)
    q = 100.5
    expected = line_average(lambda u: float(slope(np.array([u]))[0]) ** 2, q)
    coarse = QuadratureIntegrals(phi, slope, hermite_rule(200), hermite_rule(200)).slope_square(q)
    assert abs(coarse / expected - 1) > 0.3
    assert result.q_tilde[0] == pytest.approx(result.q_tilde[1] * 100 * expected, rel=1e-7)


@pytest.mark.parametrize("n_nodes", [100, 200])
def test_even_rules_are_right_on_the_kink(n_nodes):
    nodes, weights = hermite_rule(n_nodes)
    assert np.isfinite(nodes).all() and (nodes != 0).all()
    pair = QuadratureIntegrals(*relu_pair(), hermite_rule(n_nodes), hermite_rule(n_nodes))
    assert pair.square(2.0) == pytest.approx(1.0, rel=1e-12)
    assert pair.slope_square(2.0) == pytest.approx(0.5, rel=1e-12)


def test_missed_tolerance_warns():
    with pytest.warns(CapacityWarning, match=r"accurate only to .*, but `tolerance` is 1e-06\. Use a smoother"):
        result = mean_field(relu_pair(), 2.0, 0.5, 3, 100)
    closed = mean_field("relu", 2.0, 0.5, 3, 100)
    assert 1e-6 < result.quadrature_error < 1e-3
    np.testing.assert_allclose(result.q_tilde_st, closed.q_tilde_st, rtol=2 * result.quadrature_error)
    with pytest.warns(CapacityWarning, match="accurate only to inf"):  # no node sees the rise: not a silent 0
        mean_field("tanh", 1e16, 0.0, 2, 10)


SETTINGS = [
    # activations, sigma_w^2, sigma_b^2, width ratios, input correlation
    (["tanh", "relu", "erf"], [3.0, 2.0, 1.0], [0.3, 0.5, 0.1], [1.0, 0.5, 1.5], 0.0),
    (["leaky_relu", "sigmoid", "linear"], [2.0, 3.0, 1.5], [0.0, 0.2, 0.4], [0.5, 1.0, 1.0], 0.4),
]


@pytest.mark.parametrize("activations, w2, b2, ratios, rho", SETTINGS)
def test_order_parameters_describe_simulated_networks(activations, w2, b2, ratios, rho):
    width, n_outputs = 400, 4
    theory = mean_field(activations, w2, b2, 3, width, n_outputs, ratios, input_correlation=rho)

    def order_parameters(draw):
        samples, T = [], len(draw.h[0])
        pairs = ~np.eye(T, dtype=bool)
        for h in draw.h:
            gram = h @ h.T / h.shape[1]
            samples += [np.diag(gram).mean(), gram[pairs].mean()]
        for delta in draw.delta:
            gram = np.mean([d @ d.T for d in delta], axis=0)
            samples += [np.diag(gram).mean(), gram[pairs].mean()]
        return samples

    sizes = [round(ratio * width) for ratio in ratios] + [n_outputs]
    mean, error = simulate(order_parameters, 60, 1, activations, w2, b2, sizes, n_samples=20, correlation=rho)
    expected = np.concatenate(
        [np.stack([theory.q_hat, theory.q_hat_st], 1).ravel(), np.stack([theory.q_tilde, theory.q_tilde_st], 1).ravel()]
    )
    assert (np.abs(mean - expected) <= 4 * error).all(), (mean - expected) / error
    assert (error[error > 0] < 0.15 * expected.max()).all()  # or agreement would mean nothing


def test_dual_matrix_of_the_reference_has_the_spectrum_of_the_gradients():
    rng = np.random.default_rng(0)
    draw = draw_network(rng, ["tanh", "relu", "sigmoid"], [2.0] * 3, [0.5] * 3, [4, 5, 6, 2], rng.normal(size=(7, 4)))
    rows = draw.rows().reshape(-1, draw.n_parameters)
    np.testing.assert_allclose(draw.dual(), rows @ rows.T / 7, atol=1e-12)
    theta = np.concatenate([np.concatenate([w.ravel(), b]) for w, b in zip(draw.weights, draw.biases, strict=True)])
    assert draw.fisher_rao(biases=True) == pytest.approx(np.sum((rows @ theta) ** 2) / 7)
    step = 1e-6 * rng.normal(size=draw.weights[0].shape)  # and the gradients are gradients
    X, (w, *rest) = draw.h[0], draw.weights
    h = np.tanh(X @ (w + step).T + draw.biases[0])
    h = np.maximum(h @ rest[0].T + draw.biases[1], 0)
    moved = FUNCTIONS["sigmoid"][0](h @ rest[1].T + draw.biases[2]) - draw.h[-1]
    np.testing.assert_allclose(moved.T, draw.rows()[:, :, : step.size] @ step.ravel(), rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize("activation", FIGURE_1)
def test_figure_1(activation):
    """M = T = 200 and 100 draws: relative standard error of the mean 1 % (linear), 4 % (tanh), 8 % (relu)."""
    w2, b2 = FIGURE_1[activation]
    width = 200
    theory = mean_field(activation, w2, b2, 3, width)

    def spectrum(draw):
        eigenvalues = np.linalg.eigvalsh(draw.dual())
        P = draw.n_parameters
        return [eigenvalues.sum() / P, np.sum(eigenvalues**2) / P, eigenvalues[-1], np.sum(eigenvalues >= 0.5)]

    sizes = [width] * 3 + [1]
    mean, error = simulate(spectrum, 100, 0, [activation] * 3, [w2] * 3, [b2] * 3, sizes, n_samples=200)
    assert abs(mean[0] - theory.mean_eigenvalue) <= 4 * error[0]
    assert error[0] < 0.12 * theory.mean_eigenvalue
    assert theory.K2_lower < mean[1] < theory.K2_upper
    assert theory.max_eigenvalue_bounds[0] < mean[2] + 4 * error[2] and mean[2] < theory.max_eigenvalue_bounds[1]
    assert mean[3] <= theory.n_large_eigenvalues(0.5)
    unrelated = mean_field(activation, 2 * w2, b2, 3, width)  # the check can fail
    assert abs(mean[0] - unrelated.mean_eigenvalue) > 4 * error[0]


FISHER_RAO = [
    # activations, sigma_w^2, sigma_b^2, sizes, output
    (["linear"] * 3, 1.0, 0.0, [200] * 3 + [4], "linear"),
    (["relu", "relu", "linear"], 2.0, 0.5, [100] * 3 + [20], "linear"),
    (["tanh"] * 3, 3.0, 0.64, [200] * 3 + [4], "activated"),
    (["relu", "erf", "tanh", "sigmoid"], 1.5, 0.3, [200] * 4 + [4], "sigmoid"),
]


@pytest.mark.parametrize("activations, w2, b2, sizes, output", FISHER_RAO)
def test_corrected_theorem_7_holds_and_the_printed_one_does_not(activations, w2, b2, sizes, output):
    depth = len(activations)
    names = activations if output == "activated" else activations[:-1]
    theory = mean_field(names, w2, b2, depth, sizes[0], sizes[-1], output=output)
    mean, error = simulate(
        lambda draw: [draw.fisher_rao(), draw.fisher_rao(biases=True)],
        150, 2, activations, [w2] * depth, [b2] * depth, sizes, n_samples=30,
    )  # fmt: skip
    assert abs(mean[0] - theory.fisher_rao) <= 4 * error[0]
    assert abs(mean[1] - theory.fisher_rao_with_biases) <= 4 * error[1]
    assert abs(mean[0] - theory.fisher_rao_theorem7) > 10 * error[0]


def test_fisher_rao_values_known_by_hand():
    linear = mean_field("linear", 1.0, 0.0, 3, 1000)
    assert (linear.fisher_rao, linear.fisher_rao_theorem7) == (9.0, 3.0)  # L^2 E f^2, lemma 2.1 of Liang et al.
    relu = mean_field("relu", 2.0, 0.5, 3, 1000, 20, output="linear")
    assert (relu.fisher_rao, relu.fisher_rao_theorem7) == pytest.approx((410.0, 150.0))
    for depth in (2, 5):  # relu without biases is homogeneous too: E f^2 = 1 for sigma_w^2 = 2 but the last layer's 1
        he = mean_field("relu", [2.0] * (depth - 1) + [1.0], 0.0, depth, 10, output="linear")
        assert he.fisher_rao == pytest.approx(depth**2)


def test_theorems_follow_from_the_order_parameters():
    ratios = np.array([2.0, 1.0, 0.5])
    theory = mean_field("relu", 2.0, 0.5, 3, 200, 7, ratios, output="linear", input_correlation=0.2)
    alpha = 2.0 * 1.0 + 1.0 * 0.5
    K1 = 7 / alpha * sum(ratios[i] * theory.q_tilde[i] * theory.q_hat[i] for i in range(3))
    lower = 7 / alpha * sum(ratios[i] * theory.q_tilde_st[i] * theory.q_hat_st[i] for i in range(3)) ** 2
    assert (theory.alpha, theory.K1, theory.mean_eigenvalue) == pytest.approx((alpha, K1, K1 / 200))
    assert theory.second_moment_bounds == pytest.approx((lower, alpha * K1**2))
    assert theory.max_eigenvalue_bounds == pytest.approx((np.sqrt(alpha * lower / 7) * 200, alpha * K1 * 200))
    assert theory.critical_learning_rate() == pytest.approx(2 / (np.sqrt(alpha * lower / 7) * 200))
    assert theory.critical_learning_rate(0.9) == pytest.approx(1.9 * theory.critical_learning_rate())
    assert theory.n_parameters == 400 * 200 + 200 + 200 * 100 + 100 + 100 * 7 + 7
    assert theory.n_large_eigenvalues(10.0) == pytest.approx(alpha * K1 * 200 / 10)
    assert theory.n_large_eigenvalues(1e-9) == theory.n_parameters


def test_input_correlation_of_mnist_lowers_the_critical_rate_by_17_percent():
    """Figure 2's relu network: L = 4, linear outputs, C = 10."""
    rates = [
        mean_field("relu", 2.0, 0.5, 4, 1000, 10, output="linear", input_correlation=rho).critical_learning_rate()
        for rho in (0.0, 0.3)
    ]
    assert 1 - rates[1] / rates[0] == pytest.approx(0.17, abs=0.005)


def test_no_bound_for_odd_functions_without_biases():
    theory = mean_field("tanh", 1.5, 0.0, 3, 100)
    assert theory.K2_lower == pytest.approx(0.0, abs=1e-15)
    for odd in ("erf", "tanh", "linear"):  # the integrals of tanh are quadratures, whose rounding is not a rate
        for sigma_w2 in (0.7, 1.0, 2.0):
            theory = mean_field(odd, sigma_w2, 0.0, 3, 100)
            assert theory.critical_learning_rate() == np.inf and theory.max_eigenvalue_bounds[0] == 0
            assert np.isfinite(mean_field(odd, sigma_w2, 1e-9, 3, 100).critical_learning_rate())


def test_leaky_relu_lies_between_relu_and_linear():
    slopes = {s: mean_field("leaky_relu", 2.0, 0.5, 3, 100, negative_slope=s) for s in (0.0, 1.0)}
    for s, name in ((0.0, "relu"), (1.0, "linear")):
        np.testing.assert_allclose(slopes[s].q_tilde_st, mean_field(name, 2.0, 0.5, 3, 100).q_tilde_st)
        np.testing.assert_allclose(slopes[s].q_hat_st, mean_field(name, 2.0, 0.5, 3, 100).q_hat_st)


def test_one_value_per_layer_means_the_same_as_one_value():
    one = mean_field("tanh", 3.0, 0.64, 3, 100, output="sigmoid")
    many = mean_field(["tanh", "tanh"], [3.0] * 3, [0.64] * 3, 3, 100, width_ratios=[1, 1, 1], output="sigmoid")
    assert (one.K1, one.K2_lower, one.fisher_rao) == (many.K1, many.K2_lower, many.fisher_rao)
    assert len(one.q_hat) == len(one.q_hat_st) == 4 and len(one.q_tilde) == len(one.q_tilde_st) == 3


def test_result_is_frozen_and_nothing_warns():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theory = mean_field("tanh", 3.0, 0.64, 3, 1000)
    assert isinstance(theory, MeanField)
    with pytest.raises(dataclasses.FrozenInstanceError):
        theory.width = 3
    with pytest.raises(ValueError, match="read-only"):
        theory.q_hat[0] = 2.0


def call(**changes):
    params = {"activation": "tanh", "sigma_w2": 3.0, "sigma_b2": 0.64, "depth": 3, "width": 100}
    return mean_field(**{**params, **changes})


BAD = [
    ({"activation": "rellu"}, "`activation` must be one of .*Did you mean 'relu'?"),
    ({"activation": 3}, "`activation` must be one of .* or a tuple (function, derivative), got 3."),
    ({"activation": [np.tanh, np.cosh]}, "`activation` must have 3 entries for depth 3 and output 'activated', got 2."),
    ({"activation": ["tanh", "tanh", np.tanh]}, "`activation[2]` must be one of"),
    ({"activation": ["tanh"] * 3, "output": "linear"}, "`activation` must have 2 entries"),
    ({"activation": (np.tanh, np.tanh)}, "the integral of the second differs from the first by"),
    ({"activation": (math.tanh, math.cos)}, "work element by element, but its function accepts no array"),
    ({"activation": (np.sign, np.zeros_like)}, "a function with a jump has none."),
    ({"activation": (np.zeros_like, np.zeros_like)}, "`activation` must not be constant"),
    (
        {"activation": (lambda u: u[:3], np.ones_like)},
        "functions that work element by element",
    ),
    ({"activation": (lambda u: np.where(u > 7, np.nan, u), np.ones_like)}, "its function is not finite at 7.001"),
    ({"sigma_w2": 0}, "`sigma_w2` must lie in (0, inf), got 0."),
    ({"sigma_w2": float("nan")}, "`sigma_w2` must lie in (0, inf), got nan."),
    ({"sigma_w2": [1.0, 2.0]}, "`sigma_w2` must be a number or a sequence of 3 numbers"),
    ({"sigma_w2": [1.0, -2.0, 1.0]}, "`sigma_w2[1]` must lie in (0, inf), got -2."),
    ({"sigma_w2": 1e200, "activation": "linear"}, "layer 2 overflows."),
    ({"sigma_w2": [1e-300, 1e300, 1e200], "sigma_b2": 0, "activation": "relu"}, "the back-propagated signals finite"),
    ({"sigma_b2": -1}, "`sigma_b2` must lie in [0, inf), got -1."),
    ({"depth": 1}, "`depth` must be at least 2, got 1. `depth` counts the weight layers"),
    ({"depth": 2.5}, "`depth` must be an integer, got 2.5."),
    ({"width": 0}, "`width` must be at least 1, got 0."),
    ({"n_outputs": 0}, "`n_outputs` must be at least 1, got 0."),
    ({"width_ratios": [1, 1]}, "`width_ratios` must be a number or a sequence of 3 numbers"),
    ({"output": "softmax"}, "`output` must be one of 'activated', 'linear', 'sigmoid', got 'softmax'."),
    ({"input_correlation": 1.5}, "`input_correlation` must lie in [0, 1], got 1.5."),
    ({"negative_slope": -0.1}, "`negative_slope` must lie in [0, inf), got -0.1."),
    ({"n_nodes": 400}, "`n_nodes` must be between 4 and 200, got 400."),
    ({"n_nodes": 151}, "`n_nodes` must be even, got 151. An odd rule has a node on the kink at 0."),
    ({"tolerance": 0}, "`tolerance` must lie in (0, inf), got 0."),
]


@pytest.mark.parametrize("changes, message", BAD)
def test_bad_input_is_refused(changes, message):
    pattern = ".*".join(re.escape(part) for part in message.split(".*"))
    with pytest.raises((ValueError, TypeError), match=pattern):
        call(**changes)


def test_bad_arguments_of_the_methods():
    theory = call()
    with pytest.raises(ValueError, match=re.escape("`k` must lie in (0, inf), got 0.")):
        theory.n_large_eigenvalues(0)
    with pytest.raises(ValueError, match=re.escape("`momentum` must lie in [0, 1), got 1.")):
        theory.critical_learning_rate(1)


def test_the_derivative_check_passes_true_derivatives():
    check_derivative(relu_pair())
    check_derivative((lambda u: np.clip(u, -1, 1), lambda u: (np.abs(u) < 1).astype(float)))
    check_derivative((lambda u: u, lambda u: 1.0))
