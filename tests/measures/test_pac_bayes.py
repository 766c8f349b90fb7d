"""KL divergence and PAC-Bayes bounds: closed forms, held-out data, and what cannot be bounded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import networks
from reference_sharpness import kl, layers_of, perceptron
from sklearn_capacity import NetworkClassifier, NotDefinedError, UnsupportedLayerError, measure_capacity
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch
from sklearn_capacity.measures.confidence_limits import kl_inverse, upper_limit
from sklearn_capacity.measures.pac_bayes import SIGMAS


def measured(module, X, y, *, seed=0, initial=None, **params):
    network = Network(module, tuple(X.shape[1:]), initial_state=initial)
    batch = Batch(network, X, y, loss="cross_entropy", random_state=seed)
    return MEASURES["pac_bayes_bound"](network, batch, **params)


# -- KL divergence -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["mlp", "mlp_tanh"])
def test_divergence_parameter_by_parameter(case):
    module, X, _ = networks.NETWORKS[case]()
    weights = [float(w) for pair in layers_of(module) for tensor in pair for w in tensor.flat]
    magnitude = sum(w**2 / (2 * (0.01 * (10 * abs(w) + 1)) ** 2) for w in weights)
    spherical = sum(w**2 / (2 * 0.3**2) for w in weights)
    requests = {"m": ("kl_divergence", {"alpha": 0.01}), "s": ("kl_divergence", {"noise": "spherical", "sigma": 0.3})}
    assert measure_capacity(module, X, measures=requests) == pytest.approx({"m": magnitude, "s": spherical})


def test_divergence_is_that_of_the_densities():
    """Of N(w, s^2) from N(0, s^2), integrated on a grid."""
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(0.7)
    x = np.linspace(-8, 8, 160_001)
    log_q, log_p = -((x - 0.7) ** 2) / (2 * 0.5**2), -(x**2) / (2 * 0.5**2)
    q = np.exp(log_q) / (0.5 * math.sqrt(2 * math.pi))
    integral = float(np.sum(q * (log_q - log_p)) * (x[1] - x[0]))
    requests = {"s": ("kl_divergence", {"noise": "spherical", "sigma": 0.5})}
    assert measure_capacity(net, measures=requests)["s"] == pytest.approx(integral, rel=1e-6)


def test_divergence_under_magnitude_noise_is_bounded_whatever_the_weights_are():
    """Why such noise proves nothing: the limit P / (200 alpha^2) knows no data."""
    net = nn.Linear(50, 2, bias=False)
    net.weight.data.fill_(1e6)
    value = measure_capacity(net, measures={"k": ("kl_divergence", {"alpha": 0.01})})["k"]
    assert value == pytest.approx(100 / (200 * 0.01**2), rel=1e-4) and value < 100 / (200 * 0.01**2)


# -- the inverted small kl ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("q", [0.0, 0.03, 0.5, 0.97])
@pytest.mark.parametrize("budget", [1e-4, 0.02, 0.7])
def test_inverse_of_the_small_kl(q, budget):
    p = kl_inverse(q, budget)
    grid = np.linspace(q, 1, 20_001)[1:-1]
    inside = [v for v in grid if kl(q, v) <= budget]
    assert q <= p <= 1 and p >= max(inside, default=q) and p <= max(inside, default=q) + 1e-4
    assert kl_inverse(q, 0.0) == pytest.approx(q, abs=1e-7) and kl_inverse(1.0, 0.1) == 1.0
    assert kl_inverse(q, 1e9) == 1.0


@pytest.mark.parametrize("p", [0.05, 0.4])
def test_upper_limit_of_a_mean_covers(p):
    """Of n coins with probability p the limit lies below p in at most a fraction delta of all cases, enumerated."""
    n, delta = 60, 0.2
    missed = 0.0
    for k in range(n + 1):
        limit = upper_limit(torch.tensor([1.0] * k + [0.0] * (n - k), dtype=torch.float64), delta)
        missed += math.comb(n, k) * p**k * (1 - p) ** (n - k) * (limit < p)
    assert missed <= delta


def test_upper_limit_profits_from_small_variance():
    values = torch.tensor([0.29, 0.31] * 500, dtype=torch.float64)
    log = math.log(4 / 0.01)
    bernstein = 0.3 + math.sqrt(2 * float(np.var(values.numpy(), ddof=1)) * log / 1000) + 7 * log / (3 * 999)
    assert upper_limit(values, 0.01) == pytest.approx(bernstein) and bernstein < kl_inverse(0.3, math.log(200) / 1000)
    assert upper_limit(values[:1], 0.01) == kl_inverse(0.29, math.log(200))


# -- the bound ---------------------------------------------------------------------------------------------------------


def test_forms_by_hand():
    module, X, y = networks.mlp()
    sigma, delta, m = 0.2, 0.1, 7
    weights = np.concatenate([t.ravel() for pair in layers_of(module) for t in pair])
    divergence = float((weights**2).sum()) / (2 * sigma**2)
    results = {f: measured(module, X, y, form=f, sigmas=[sigma], delta=delta, n_draws=30) for f in FORMS}
    limit = results["sqrt"].info["error_limit"]
    share = 0.9 * delta
    k = 2 * (divergence + math.log(2 * m / share)) / (m - 1)
    assert results["sqrt"].value == pytest.approx(limit + 4 * math.sqrt((divergence + math.log(2 * m / share)) / m))
    assert results["implicit"].value == pytest.approx(limit + math.sqrt(limit * k) + k)
    budget = (divergence + math.log(2 * math.sqrt(m) / share)) / m
    assert results["kl"].value == pytest.approx(kl_inverse(limit, budget))
    assert results["kl"].info["kl"] == pytest.approx(divergence)
    assert results["kl"].value <= min(1.0, results["implicit"].value, results["sqrt"].value)


FORMS = ("sqrt", "implicit", "kl")


def test_error_is_that_of_independent_draws():
    module, X, y = networks.mlp()
    result = measured(module, X, y, sigmas=[0.5], n_draws=2000)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(2000):
        moved = [tuple(t + 0.5 * rng.standard_normal(t.shape) for t in pair) for pair in layers_of(module)]
        errors.append(np.mean(perceptron(moved, X.numpy()).argmax(1) != y.numpy()))
    assert abs(result.info["error"] - np.mean(errors)) < 4 * math.sqrt(2) * np.std(errors) / math.sqrt(2000)
    assert result.info["error"] < result.info["error_limit"] < result.info["error"] + 0.05


def test_draws_end_once_their_limit_is_close():
    """The first draws of the full run; every look at them pays an equal part of the limit's share of delta."""
    module, X, y = networks.mlp()
    options = {"sigmas": [0.5], "n_draws": 800}
    errors = {n: measured(module, X, y, **options | {"n_draws": n}) for n in (100, 200, 400)}
    stopped = measured(module, X, y, tolerance=0.1, **options)
    n = stopped.info["draws"]
    assert n in (100, 200, 400)
    assert stopped.info["error"] == errors[n].info["error"]
    assert stopped.info["error"] < errors[n].info["error_limit"] < stopped.info["error_limit"]
    assert stopped.info["error_limit"] <= stopped.info["error"] + 0.1
    assert stopped.value > errors[n].value
    assert measured(module, X, y, tolerance=1e-3, **options).info["draws"] == 800


def test_every_sigma_of_the_grid_is_paid_for():
    module, X, y = networks.mlp()
    alone, many = (measured(module, X, y, form="implicit", sigmas=[0.5] * k, n_draws=400) for k in (1, 20))
    extra = 2 * math.log(20) / 6
    limit = many.info["error_limit"]
    k_one = 2 * (alone.info["kl"] + math.log(14 / 0.045)) / 6
    assert many.value == pytest.approx(limit + math.sqrt(limit * (k_one + extra)) + k_one + extra)


def separated(n_samples, rng, flip=0.1):
    X = rng.standard_normal((n_samples, 3))
    y = (X @ np.array([1.0, -0.5, 0.2]) > 0) ^ (rng.random(n_samples) < flip)
    return torch.from_numpy(X), torch.from_numpy(y.astype(np.int64))


@pytest.mark.parametrize(("prior", "form"), [("zero", "kl"), ("initial", "kl"), ("initial", "implicit")])
def test_the_bound_holds_on_held_out_data(prior, form):
    """In each of 70 trials (with probability 1 - delta = 0.95 it need hold in 66), and it is not vacuous."""
    rng = np.random.default_rng(1)
    X_new, y_new = separated(1000, rng)
    module = nn.Linear(3, 2, dtype=torch.float64)
    network = Network(module, (3,), initial_state={n: torch.empty_like(p) for n, p in module.named_parameters()})
    assert len(network.graph.layers) == 1  # traced once for all trials
    bounds = []
    for seed in range(70):
        generator = torch.Generator().manual_seed(seed)
        X, y = separated(300, rng)
        learned = {n: p for n, p in network.module.named_parameters()}
        with torch.no_grad():
            for p in learned.values():
                p.copy_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
        network.initial_state = {n: p.detach().clone() for n, p in learned.items()}
        for _ in range(15):
            loss = nn.functional.cross_entropy(network.module(X), y)
            grads = torch.autograd.grad(loss, list(learned.values()))
            with torch.no_grad():
                for p, g in zip(learned.values(), grads, strict=True):
                    p.sub_(2.0 * g)
        trained = network.renewed()
        batch = Batch(trained, X, y, loss="cross_entropy", random_state=seed)
        params = {"prior": prior, "form": form, "n_draws": 60, "sigmas": (0.1, 0.3, 0.6, 1.0)}
        result = MEASURES["pac_bayes_bound"](trained, batch, **params)
        noise = [torch.randn(40, *p.shape, generator=generator, dtype=p.dtype) for p in learned.values()]
        weight, bias = (p.detach() + result.info["sigma"] * v for p, v in zip(learned.values(), noise, strict=True))
        fresh = ((X_new @ weight.mT + bias[:, None]).argmax(2) != y_new).double().mean()
        bounds.append(result.value)
        assert result.value >= fresh, f"trial {seed}: {result.value} < {fresh}"
    assert np.mean(bounds) < (0.6 if form == "kl" else 0.8)


def test_the_initial_prior_is_nearer_after_short_training():
    X, y = separated(200, np.random.default_rng(0))
    model = NetworkClassifier(hidden_layer_sizes=(20,), max_epochs=2, random_state=0).fit(X.numpy(), y.numpy())
    requests = {p: ("pac_bayes_bound", {"prior": p, "n_draws": 20, "sigmas": [0.2]}) for p in ("zero", "initial")}
    bounds = measure_capacity(model, X.numpy(), y.numpy(), requests)
    assert bounds["initial"] < bounds["zero"]


def test_the_initial_prior_folds_batch_norm_with_the_statistics_of_then():
    module, X, y = networks.mlp_batch_norm()
    initial = {name: torch.ones_like(t) for name, t in module.state_dict().items()}
    initial["0.weight"] = 0.5 * module[0].weight.detach()
    initial["4.weight"] = 0.5 * module[4].weight.detach()
    result = measured(module, X, y, initial=initial, prior="initial", sigmas=[1.0], n_draws=10)

    def fold(state):
        """Weights and biases by hand: the first norm goes backwards, the last forwards."""

        def affine(i):
            scale = state[f"{i}.weight"] / (state[f"{i}.running_var"] + module[i].eps).sqrt()
            return scale, state[f"{i}.bias"] - scale * state[f"{i}.running_mean"]

        (a, b), (c, d) = affine(1), affine(3)
        last = state["4.weight"]
        return [a[:, None] * state["0.weight"], b, last * c, state["4.bias"] + last @ d]

    pairs = zip(fold(module.state_dict()), fold(initial), strict=True)
    distance = sum(float((u - v).square().sum()) for u, v in pairs)
    assert result.info["kl"] == pytest.approx(distance / 2)


def test_seeds_decide():
    module, X, y = networks.mlp()
    a, b, c = (measured(module, X, y, seed=seed, sigmas=[0.5], n_draws=40).value for seed in (0, 0, 1))
    assert a == b != c


# -- what cannot be bounded --------------------------------------------------------------------------------------------


def test_magnitude_noise_is_refused_with_the_reason():
    module, X, y = networks.mlp()
    requests = {"b": ("pac_bayes_bound", {"noise": "magnitude"})}
    with pytest.raises(ValueError, match="depends on the learned weights") as caught:
        measure_capacity(module, X, y, requests)
    assert "`noise` must be 'spherical' in a PAC-Bayes bound, got 'magnitude'" in str(caught.value)


def test_statistics_without_noise_are_refused():
    """Batch norm without scale and shift leaves its running mean in a bias that is not trained."""

    def build():
        norm = nn.BatchNorm1d(5, affine=False)
        return nn.Sequential(nn.Linear(4, 5, bias=False), norm, nn.ReLU(), nn.Linear(5, 3))

    module, X, y = networks.make(build, (4,))
    with pytest.raises(
        UnsupportedLayerError, match=r"in layer `0 \(Linear\)`: it contains values learned from the data"
    ):
        measured(module, X, y, n_draws=10)
    fine, X, y = networks.mlp_batch_norm()
    assert math.isfinite(measured(fine, X, y, n_draws=10).value)


@pytest.mark.parametrize("affine", [True, False])
def test_statistics_that_are_not_folded_are_refused(affine):
    def build():
        norm = nn.InstanceNorm1d(2, affine=affine, track_running_stats=True)
        return nn.Sequential(nn.Conv1d(1, 2, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(8, 3))

    module, X, y = networks.make(build, (1, 6))
    with pytest.raises(UnsupportedLayerError, match=r"`1\.running_mean` was learned from the data"):
        measured(module, X, y, n_draws=10)


class _Branching(nn.Sequential):
    """Has no graph: what it computes depends on the data, if only on whether they are finite."""

    def forward(self, x):
        return super().forward(x) if x.isfinite().all() else x


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (nn.Sequential, r"layer `0 \(Linear\)`: it contains values learned"),
        (_Branching, r"`0\.bias` was learned from the data"),
    ],
)
def test_a_frozen_parameter_must_not_have_moved(build, message):
    module, X, y = networks.make(lambda: build(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (4,))
    initial = {name: t + 0.1 for name, t in module.state_dict().items()}
    module[0].bias.requires_grad_(False)
    with pytest.raises(UnsupportedLayerError, match=message):
        measured(module, X, y, initial=initial, prior="initial", n_draws=10)


def test_a_frozen_layer_must_not_have_moved():
    module, X, y = networks.mlp()
    initial = {name: t.clone() for name, t in module.state_dict().items()}
    module[0].weight.requires_grad_(False)
    assert math.isfinite(measured(module, X, y, initial=initial, prior="initial", n_draws=10).value)
    initial["0.weight"] += 0.1
    with pytest.raises(UnsupportedLayerError, match="statistics, or weights that are now frozen"):
        measured(module, X, y, initial=initial, prior="initial", n_draws=10)


def test_raw_parameters_have_initial_values_too():
    module, X, y = networks.make(lambda: nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)), (4,))
    initial = {name: t + 0.1 for name, t in module.state_dict().items()}
    result = measured(module, X, y, initial=initial, prior="initial", sigmas=[1.0], n_draws=10)
    assert result.info["kl"] == pytest.approx(0.01 * (30 + 12 + 21) / 2)


def test_the_initial_prior_needs_initial_weights():
    module, X, y = networks.mlp()
    with pytest.raises(NotDefinedError, match="`prior='initial'` needs the weights before training"):
        measure_capacity(module, X, y, {"b": ("pac_bayes_bound", {"prior": "initial"})})


def test_one_sample_bounds_nothing():
    module, X, y = networks.mlp()
    with pytest.raises(NotDefinedError, match="needs at least 2 samples, got 1"):
        measured(module, X[:1], y[:1])


def test_regression_is_refused():
    module, X, _ = networks.one_output()
    with pytest.raises(NotDefinedError, match="is defined for classification only"):
        measure_capacity(module, X, torch.ones(7), "pac_bayes_bound")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"delta": 1.0}, r"`delta` must lie in \(0, 1\), got 1"),
        ({"form": "sqr"}, "`form` must be one of 'sqrt', 'implicit', 'kl', got 'sqr'"),
        ({"prior": "normal"}, "`prior` must be one of 'zero', 'initial', got 'normal'"),
        ({"tolerance": 0}, r"`tolerance` must lie in \(0, inf\), got 0"),
        ({"n_draws": 0}, "`n_draws` must be at least 1, got 0"),
        ({"sigmas": []}, "`sigmas` must be a sequence of at least one number"),
        ({"sigmas": [0.1, -0.1]}, r"`sigmas` must lie in \(0, inf\), got -0.1"),
        ({"sigmas": 0.1}, "`sigmas` must be a sequence of at least one number, got 0.1"),
    ],
)
def test_parameters_out_of_range(params, message):
    module, X, y = networks.mlp()
    with pytest.raises(ValueError, match=message):
        measured(module, X, y, **params)


def test_the_grid_is_as_documented():
    assert len(SIGMAS) == 31 and SIGMAS[0] == pytest.approx(1e-3) and SIGMAS[-1] == 1.0
