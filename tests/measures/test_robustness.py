"""Radii at the input against attacks and exact cases; robustness and Rademacher bounds against their formulas."""

from __future__ import annotations

import copy
import functools
import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn

import reference_margins as reference
from networks import CHAINS, NETWORKS, Blend
from sklearn_capacity import NotDefinedError, UnsupportedLayerError, measure_capacity, theory
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch
from sklearn_capacity.measures.radii import CERTIFIED, ESTIMATED, METHODS, sample_radii
from sklearn_capacity.measures.robustness import _percentile

CASES = [name for name in NETWORKS if name not in ("binary", "one_output")]


@functools.cache
def network(case):
    module, X, _ = NETWORKS[case]()
    return module, X, Network(module, tuple(X.shape[1:]))


@functools.cache
def radii(case, method):
    """One radius per sample, with the network's predictions as labels."""
    module, X, net = network(case)
    batch = Batch(net, X, module(X).argmax(1), loss="cross_entropy")
    return sample_radii(net, batch, method, 4)[0].numpy()


# -- theorem 4 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_order_of_the_radii(case):
    frobenius, spectral = radii(case, "frobenius"), radii(case, "spectral")
    assert (0 < frobenius).all() and (frobenius <= spectral * (1 + 1e-8)).all()
    # No Jacobian is larger than the Lipschitz constant, wherever it was looked at.
    assert (spectral <= radii(case, "hull")).all()
    assert (spectral <= radii(case, "jacobian")).all()
    assert (spectral <= radii(case, "attack")).all()


@pytest.mark.parametrize("case", CASES)
def test_no_attack_succeeds_within_the_certified_radius(case):
    module, X, _ = network(case)
    for x, label, radius in list(zip(X, module(X).argmax(1).tolist(), radii(case, "spectral"), strict=True))[:2]:
        assert reference.adversary(module, x, label, float(radius), steps=25) > 0


def linear(w, b=0.0):
    module = nn.Linear(len(w), 2).double()
    module.weight.data.copy_(torch.tensor([w, [-v for v in w]], dtype=torch.float64))
    module.bias.data.copy_(torch.tensor([b, -b], dtype=torch.float64))
    return module


@pytest.mark.parametrize("method", ["spectral", "jacobian", "hull", "attack"])
def test_exact_for_two_classes_with_opposite_weights(method):
    w, b = [3.0, -1.0, 2.0], 0.7
    X = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    distance = (X @ torch.tensor(w, dtype=torch.float64) + b) / np.linalg.norm(w)  # to the hyperplane
    module, y = linear(w, b), (distance < 0).long()
    for q in (0, 50, 100):
        request = {"r": ("input_margin_bound", {"method": method, "percentile": q})}
        got = measure_capacity(module, X, y, request)["r"]
        assert got == pytest.approx(np.percentile(distance.abs(), q), rel=1e-8)
    # The attack knows it too: just inside it fails, just outside it wins.
    for x, label, r in zip(X, y.tolist(), distance.abs().tolist(), strict=True):
        assert reference.adversary(module, x, label, r * (1 - 1e-6)) > 0
        assert reference.adversary(module, x, label, r * 1.01) < 0


def test_exact_for_one_logit():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    model = LogisticRegression().fit(X, X[:, 0] + 0.3 * X[:, 1] > 0)
    distances = np.abs(model.decision_function(X)) / np.linalg.norm(model.coef_)
    measures = {"r": "input_margin_bound", "J": "jacobian_spectral", "L": "lipschitz_l2"}
    got = measure_capacity(model, X, model.predict(X), measures)
    assert got["r"] == pytest.approx(distances.min(), rel=1e-6)
    assert got["J"] == pytest.approx(np.linalg.norm(model.coef_) / math.sqrt(2), rel=1e-6)
    assert got["L"] == pytest.approx(got["J"], rel=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_misclassified_samples_have_no_radius(method):
    module, X = linear([1.0, 0.0]), torch.tensor([[2.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    radius = measure_capacity(module, X, [0, 0], {"r": ("input_margin_bound", {"method": method})})["r"]
    assert radius == 0.0


@pytest.mark.parametrize("method", [*CERTIFIED, *ESTIMATED])
def test_misclassified_samples_bound_nothing(method):
    module, X = linear([1.0, 0.0]), torch.tensor([[2.0, 0.0], [-1.0, 0.0]], dtype=torch.float64)
    request = {"b": ("robustness_bound", {"method": method, "manifold_dim": 1, "manifold_constant": 1.0})}
    assert measure_capacity(module, X, [0, 0], request)["b"] == math.inf


def test_a_constant_network_has_infinite_radii():
    module = linear([0.0, 0.0], 1.0)
    X = torch.ones(2, 2, dtype=torch.float64)
    for method in METHODS:
        radius = measure_capacity(module, X, [0, 0], {"r": ("input_margin_bound", {"method": method})})["r"]
        assert radius == math.inf


# -- the estimates -----------------------------------------------------------------------------------------------------


class Parabola(nn.Module):
    """f = (x^2, -x^2) with the Jacobian (2x, -2x): the largest slope within r of x is 2 sqrt(2) (|x| + r)."""

    def forward(self, x):
        return torch.cat([x**2, -(x**2)], 1)


def test_jacobian_radius_is_the_fixed_point():
    # o = sqrt(2) at x = 1, so r (1 + r) = 1/2.
    got = measure_capacity(
        Parabola(), torch.tensor([[1.0]]), [0], {"r": ("input_margin_bound", {"method": "jacobian", "n_draws": 40})}
    )["r"]
    exact = (math.sqrt(3) - 1) / 2
    assert exact * (1 - 1e-6) <= got <= exact * 1.01


def test_hull_radius_takes_the_steepest_point_of_the_hull():
    X = torch.tensor([[1.0], [2.0], [-1.5]])  # the slope is largest at the vertex 2
    got = measure_capacity(Parabola(), X, [0, 0, 0], {"r": ("input_margin_bound", {"method": "hull"})})["r"]
    assert got == pytest.approx(math.sqrt(2) / (4 * math.sqrt(2)), rel=1e-12)

    class Hill(nn.Module):  # steepest between the samples
        def forward(self, x):
            return torch.cat([x.tanh() + 2, -x.tanh() - 2], 1)

    X = torch.tensor([[-3.0], [3.0]])
    got = measure_capacity(Hill(), X, [0, 0], {"r": ("input_margin_bound", {"method": "hull", "n_draws": 200})})["r"]
    o = math.sqrt(2) * (2 + math.tanh(-3.0))
    assert o / math.sqrt(2) <= got * (1 + 1e-12) and got <= 1.01 * o / math.sqrt(2)


@pytest.mark.parametrize("method", ["jacobian", "hull"])
def test_estimates_repeat_for_a_seed_and_need_no_graph(method):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), Blend(8), nn.Linear(8, 3)).double()
        X = torch.randn(6, 4, dtype=torch.float64)
    y = module(X).argmax(1)
    request = {"r": ("input_margin_bound", {"method": method, "n_draws": 3, "percentile": 50})}
    first, again, other = (measure_capacity(module, X, y, request, random_state=s)["r"] for s in (0, 0, 1))
    assert first == again
    assert method == "jacobian" or other != first  # ascent leads to the same place from most draws
    assert measure_capacity(module, X, y, request, batch_size=2)["r"] == pytest.approx(first, rel=1e-9)
    with pytest.raises(UnsupportedLayerError, match=r"layer `3 \(Blend\)`"):
        measure_capacity(module, X, y, "input_margin_bound")


def test_more_draws_find_no_larger_radius():
    module, X, net = network("mlp_tanh")
    batch = Batch(net, X, module(X).argmax(1), loss="cross_entropy")
    few, many = (sample_radii(net, batch, "jacobian", n)[0].numpy() for n in (2, 12))
    assert (many <= few + 1e-12).all() and (many < few).any()


def layer_norm():
    layers = (nn.Linear(4, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    return nn.Sequential(*layers), torch.randn(6, 4)


class Sphere(nn.Module):
    """Two of the three singular values agree everywhere, and all of them at 0."""

    def forward(self, x):
        return x * (1 + x.square().sum(1, keepdim=True)) + torch.tensor([1.0, 0, 0], dtype=x.dtype)


def sphere():
    return Sphere(), torch.tensor([[0.0, 0, 0], [1, 0, 0], [0.3, 0.2, 0.1]])


OTHERS = {"layer_norm": layer_norm, "sphere": sphere}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("case", [*CASES, *OTHERS])
def test_another_rounding_moves_no_radius_by_more(case, dtype):
    # Weights and samples changed in their last bits represent every processor, number of threads and batch size.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, X = OTHERS[case]() if case in OTHERS else network(case)[:2]
    module, X = copy.deepcopy(module).to(dtype), X.to(dtype)
    y = module(X).argmax(1)

    def radii_of(module, X, batch_size=None):
        net = Network(module, tuple(X.shape[1:]))
        batch = Batch(net, X, y, loss="cross_entropy", batch_size=batch_size)
        return sample_radii(net, batch, "jacobian", 10)[0].numpy()

    radii = radii_of(module, X)
    eps = torch.finfo(dtype).eps
    draws = torch.Generator().manual_seed(1)
    changed, tolerance = copy.deepcopy(module), 1e4 * eps
    with torch.no_grad():
        for tensor in changed.parameters():
            tensor.mul_(1 + eps * torch.randn(tensor.shape, generator=draws, dtype=dtype))
    assert radii_of(changed, X * (1 + eps)) == pytest.approx(radii, rel=tolerance)
    for batch_size in (1, 2):
        assert radii_of(module, X, batch_size) == pytest.approx(radii, rel=tolerance)


def test_info_says_what_is_certified():
    module, X, net = network("mlp")
    batch = Batch(net, X, module(X).argmax(1), loss="cross_entropy")
    for method in METHODS:
        info = MEASURES["input_margin_bound"](net, batch, method=method, n_draws=1).info
        assert info["certified"] == (method in CERTIFIED) and info["method"] == method


def test_percentiles_of_infinite_radii():
    values = np.array([1.0, 2.0, math.inf, math.inf])
    assert [_percentile(values, q) for q in (0, 100 / 6, 100 / 3, 50, 100)] == [1.0, 1.5, 2.0, math.inf, math.inf]
    assert _percentile(np.array([math.inf] * 3), 40) == math.inf


def test_a_percentile_between_finite_radii_is_finite_where_others_are_not():
    class Rectified(nn.Module):  # flat around the last sample
        def forward(self, x):
            return torch.cat([x.relu() + 1, -x.relu()], 1)

    X = torch.tensor([[1.0], [2.0], [3.0], [-500.0]])
    request = {"r": ("input_margin_bound", {"method": "jacobian", "percentile": 100 / 6, "n_draws": 1})}
    got = measure_capacity(Rectified(), X, [0, 0, 0, 0], request)["r"]
    net = Network(Rectified(), (1,), dtype=torch.float64)
    batch = Batch(net, X.double(), torch.zeros(4, dtype=torch.long), loss="cross_entropy")
    radii = np.sort(sample_radii(net, batch, "jacobian", 1)[0].numpy())
    assert np.isfinite(radii[:3]).all() and radii[3] == math.inf
    assert got == pytest.approx((radii[0] + radii[1]) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"method": "spectrum"}, "`method` must be one of .* got 'spectrum'. Did you mean 'spectral'"),
        ({"percentile": -1}, r"`percentile` must lie in \[0, 100\], got -1"),
        ({"n_draws": 0}, "`n_draws` must be at least 1, got 0"),
        ({"output": "odds"}, "`output` must be one of 'logits', 'softmax', got 'odds'"),
    ],
)
def test_parameters_of_the_radius_are_checked(params, message):
    module, X, _ = network("mlp")
    with pytest.raises(ValueError, match=message):
        measure_capacity(module, X, module(X).argmax(1), {"r": ("input_margin_bound", params)})


# -- on the softmax ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["mlp", "conv_batch_norm", "residual"])
def test_radii_on_the_softmax(case):
    """The certified one by its formula; none exceeds the distance to a misclassified point."""
    module, X, net = network(case)
    y = module(X).argmax(1)
    batch = Batch(net, X, y, loss="cross_entropy")
    by_method = {method: sample_radii(net, batch, method, 4, "softmax")[0].numpy() for method in METHODS}
    z = module(X).detach().double().softmax(1).numpy()
    gaps = np.array([np.delete(row[label] - row, label).min() for row, label in zip(z, y, strict=True)])
    lipschitz = MEASURES["lipschitz_l2"](net, batch).value
    np.testing.assert_allclose(by_method["spectral"], gaps / math.sqrt(2) / (lipschitz / 2), rtol=1e-5)
    np.testing.assert_array_equal(by_method["attack"], radii(case, "attack"))
    assert (by_method["frobenius"] <= by_method["spectral"] * (1 + 1e-8)).all()
    assert all((by_method["spectral"] <= by_method[method]).all() for method in ("jacobian", "hull", "attack"))


def test_hull_of_one_sample_is_its_softmax_jacobian():
    module, X, _ = network("mlp")
    x, y = X[:1], module(X[:1]).argmax(1)
    J = torch.autograd.functional.jacobian(lambda v: module(v).softmax(1)[0], x).flatten(1).double()
    z = module(x)[0].double().softmax(0).detach()
    expected = float((z.topk(2).values[0] - z.topk(2).values[1]) / math.sqrt(2) / torch.linalg.matrix_norm(J, 2))
    params = {"method": "hull", "output": "softmax"}
    assert measure_capacity(module, x, y, {"r": ("input_margin_bound", params)})["r"] == pytest.approx(
        expected, rel=1e-5
    )


# -- corollary 3 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CERTIFIED)
def test_robustness_bound_is_corollary_3(method):
    module, X, _ = network("mlp")
    k, constant, delta, m = 2, 0.3, 0.01, len(X)
    params = {"manifold_dim": k, "manifold_constant": constant, "delta": delta, "method": method}
    got = measure_capacity(module, X, module(X).argmax(1), {"b": ("robustness_bound", params)})["b"]
    gamma = radii("mlp", method).min()
    first = math.sqrt(math.log(2) * 3 * 2 ** (k + 1) * constant**k / (gamma**k * m))
    assert got == pytest.approx(first + math.sqrt(2 * math.log(1 / delta) / m), rel=1e-9)
    # The sum of the two roots is never less than theorem 1's root of the sum.
    covering = theory.manifold_covering_number(gamma / 2, k, constant)
    exact = theory.robustness_bound_from_covering(covering, m, delta, n_classes=3)
    assert exact <= got <= math.sqrt(2) * exact


def test_robustness_bound_in_many_dimensions_is_infinite_not_an_error():
    module, X, _ = network("mlp")
    params = {"manifold_dim": 100_000, "manifold_constant": 1e3}
    assert measure_capacity(module, X, module(X).argmax(1), {"b": ("robustness_bound", params)})["b"] == math.inf


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "needs a model of the data: pass `manifold_dim` and `manifold_constant`"),
        ({"manifold_dim": 0, "manifold_constant": 1.0}, "`manifold_dim` must be between 1 and 2147483647, got 0"),
        ({"manifold_dim": 1, "manifold_constant": 0.0}, r"`manifold_constant` must lie in \(0, inf\), got 0"),
        ({"manifold_dim": 1, "manifold_constant": 1.0, "delta": 1.0}, r"`delta` must lie in \(0, 1\), got 1"),
    ],
)
def test_robustness_bound_wants_a_manifold(params, message):
    module, X, _ = network("mlp")
    with pytest.raises(ValueError, match=message):
        measure_capacity(module, X, module(X).argmax(1), {"b": ("robustness_bound", params)})


def test_robustness_bound_is_left_out_of_all_without_a_manifold():
    module, X, net = network("mlp")
    batch = Batch(net, X, module(X).argmax(1), loss="cross_entropy")
    with pytest.raises(NotDefinedError):
        MEASURES["robustness_bound"](net, batch)


# -- covering numbers --------------------------------------------------------------------------------------------------


def test_covering_numbers():
    assert theory.gaussian_mixture_covering_number(0.25, 7, 3) == 7 * 9**3
    supports = len(list(itertools.combinations(range(6), 4)))
    assert theory.sparse_covering_number(0.5, 6, 4) == supports * 5**4
    assert theory.sparse_covering_number(0.5, 6, 0) == 1
    assert theory.manifold_covering_number(0.1, 2, 1.0) == pytest.approx(100)
    for name, args in (
        ("gaussian_mixture_covering_number", (1e-3, 2, 1000)),
        ("sparse_covering_number", (1.0, 10_000, 5_000)),
        ("manifold_covering_number", (1e-9, 1000, 1.0)),
    ):
        assert getattr(theory, name)(*args) == math.inf


def test_bound_from_covering_is_theorem_1():
    bound = theory.robustness_bound_from_covering
    assert bound(50, 400, 0.1) == pytest.approx(math.sqrt((2 * 50 * math.log(2) + 2 * math.log(10)) / 400))
    assert bound(5, 400, 0.1, n_classes=10) == bound(50, 400, 0.1)
    assert bound(0, 400, 0.1) == pytest.approx(math.sqrt(2 * math.log(10) / 400))
    assert bound(math.inf, 400, 0.1) == math.inf


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: theory.manifold_covering_number(0.0, 1, 1.0), r"`radius` must lie in \(0, inf\), got 0"),
        (lambda: theory.manifold_covering_number(1.0, 1, -1.0), r"`constant` must lie in \(0, inf\), got -1"),
        (lambda: theory.manifold_covering_number(1.0, -1, 1.0), "`dim` must be at least 0, got -1"),
        (lambda: theory.gaussian_mixture_covering_number(1.0, 0, 1), "`n_components` must be at least 1, got 0"),
        (lambda: theory.gaussian_mixture_covering_number(1.0, 1, -1), "`rank` must be at least 0, got -1"),
        (lambda: theory.sparse_covering_number(1.0, 3, 4), "`sparsity` must be between 0 and 3, got 4"),
        (lambda: theory.robustness_bound_from_covering(-1, 10), r"`covering_number` must lie in \[0, inf\], got -1"),
        (lambda: theory.robustness_bound_from_covering(1, 0), "`m` must be at least 1, got 0"),
        (lambda: theory.robustness_bound_from_covering(1, 10, 0), r"`delta` must lie in \(0, 1\), got 0"),
        (lambda: theory.robustness_bound_from_covering(1, 10, n_classes=0), "`n_classes` must be at least 1, got 0"),
    ],
)
def test_covering_parameters_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# -- the Rademacher bound ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CHAINS)
def test_rademacher_bound_on_dense_operators(case):
    module, X, _ = network(case)
    x, product, d = X[:1], 1.0, 0
    for layer in module:
        if list(layer.parameters()):
            product *= np.linalg.norm(reference.dense(layer, tuple(x.shape[1:])))
            d += 1
        x = layer(x)
    largest = max(float(row.norm()) for row in X)
    expected = largest * 2 ** (d - 1) * product / math.sqrt(len(X))
    got = measure_capacity(module, X, measures="rademacher_bound", loss="squared")["rademacher_bound"]
    assert got == pytest.approx(expected, rel=1e-9)


def test_rademacher_bound_holds_for_linear_functions():
    # sup over |w| <= B of the mean of s_i w.x_i is B |sum s_i x_i| / m: averaged over all signs.
    X = torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    module = nn.Linear(3, 1, bias=False).double()
    B = float(module.weight.detach().norm())
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=8)), dtype=torch.float64)
    complexity = B * float((signs @ X).norm(dim=1).mean()) / 8
    bound = measure_capacity(module, X, measures="rademacher_bound", loss="squared")["rademacher_bound"]
    assert complexity <= bound


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, bias=False)), "layer `0 .Linear.`: it has a bias"),
        (nn.Sequential(nn.Linear(4, 3, bias=False), nn.Tanh()), "layer `1 .Tanh.`: it is not positively homogeneous"),
        (nn.Sequential(nn.Linear(4, 3, bias=False), nn.LeakyReLU(2.0)), "layer `1 .LeakyReLU.`: its slope exceeds 1"),
        (
            nn.Sequential(nn.Linear(4, 4, bias=False), nn.Unflatten(1, (1, 4)), nn.MaxPool1d(2)),
            "layer `2 .MaxPool1d.`: pooling is",
        ),
    ],
)
def test_rademacher_bound_is_for_chains(module, message):
    with pytest.raises(UnsupportedLayerError, match=f"The Rademacher bound is not defined .*{message}"):
        measure_capacity(module, torch.ones(2, 4), measures="rademacher_bound", loss="squared")
