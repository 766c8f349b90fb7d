"""Data-dependent norms of rectifier chains against loops over samples and index tuples, and the theorems of [FR]."""

from __future__ import annotations

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reference
from networks import CHAINS, NETWORKS, make, measure, measure_again, measure_module
from sklearn_capacity.graph import Network, UnsupportedLayerError
from sklearn_capacity.measures import MEASURES, Batch, NotDefinedError

INF = math.inf
NAMES = ["data_spectral_norm", "data_group_norm", "data_path_norm", "data_induced_norm", "data_chain_norm"]


# Against loops over the definitions -----------------------------------------------------------------------------------


def diagonals(name: str, module: nn.Module, x: Tensor) -> list[np.ndarray]:
    """D_1(x) .. D_{L+1}(x) as vectors: the slope of every activation, ones where there is none."""
    slopes: list[np.ndarray] = []
    chain = [names[0] for names in reference.LAYERS[name]]

    def note(leaf, args, output):
        if isinstance(leaf, reference.ACTIVATIONS):
            low = leaf.negative_slope if isinstance(leaf, nn.LeakyReLU) else 0.0
            slopes[-1] = np.where(args[0].detach().numpy().ravel() > 0, 1.0, low)
        else:
            slopes.append(np.ones(output.numel()))

    kept = [leaf for key, leaf in module.named_children() if key in chain or isinstance(leaf, reference.ACTIVATIONS)]
    hooks = [leaf.register_forward_hook(note) for leaf in kept]
    module(x[None])
    for hook in hooks:
        hook.remove()
    return slopes


def diagonal_norm(d: np.ndarray, a: float, b: float) -> float:
    """max ||d v||_b / ||v||_a: at one unit vector if a <= b, else where Hoelder's inequality is tight."""
    candidates = list(np.eye(len(d)))
    if a > b:
        r = 1 / (1 / b - 1 / a)
        candidates.append(np.where(d > 0, d, 0) ** (0.0 if math.isinf(a) else r / a))
    return max(reference.lp(d * v, b) / reference.lp(v, a) for v in candidates if v.any())


def definition(name: str, x_exponent: float, pairs) -> float:
    """( E [ ||x||^2 prod ||D_t||_{a_t -> b_t}^2 ] )^(1/2), by a loop over the samples."""
    module, X, _ = NETWORKS[name]()
    total = 0.0
    for x in X:
        value = reference.lp(x.flatten().tolist(), x_exponent)
        for t, d in enumerate(diagonals(name, module, x), start=1):
            value *= diagonal_norm(d, *pairs(t))
        total += value**2
    return math.sqrt(total / len(X))


@pytest.mark.parametrize("name", CHAINS)
def test_spectral_and_chain(name):
    depth = len(reference.LAYERS[name])
    spectral = definition(name, 2, lambda t: (2, 2)) * measure(name, "spectral_norm").value
    assert measure(name, "data_spectral_norm").value == pytest.approx(spectral, rel=1e-10)
    assert measure(name, "data_chain_norm").value == pytest.approx(spectral, rel=1e-10)
    exponents = [1.0, 3.0] + [INF] * (depth - 1)
    chain = definition(name, 1, lambda t: (exponents[t], exponents[t]))
    chain *= measure(name, "chain_norm", exponents=exponents).value
    assert measure(name, "data_chain_norm", exponents=exponents).value == pytest.approx(chain, rel=1e-10)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(("p", "q"), [(2, 2), (1, INF), (1, 2), (3, 0.7), (2, 4), (INF, 3)])
def test_group(name, p, q):
    dual = {1: INF, 2: 2, 3: 1.5, INF: 1}[p]
    expected = (
        definition(name, dual, lambda t: (q, dual)) * measure(name, "group_norm", p=p, q=q, view="operator").value
    )
    assert measure(name, "data_group_norm", p=p, q=q).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize(("p", "q"), [(2, 2), (1, 2), (1, 1), (3, INF), (INF, INF)])
def test_induced(name, p, q):
    expected = definition(name, p, lambda t: (q, p)) * measure(name, "induced_norm", p=p, q=q).value
    assert measure(name, "data_induced_norm", p=p, q=q).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["mlp_no_bias", "one_output"])
@pytest.mark.parametrize("q", [1, 1.5, 2, 4])
def test_path_enumerates_index_tuples(name, q):
    dual = INF if q == 1 else q / (q - 1)
    module, X, _ = NETWORKS[name]()
    total = 0.0
    for x in X:
        factors = [np.abs(x.numpy()), *diagonals(name, module, x)]
        products = [math.prod(choice) for choice in itertools.product(*factors)]
        total += reference.lp(products, dual) ** 2
    expected = math.sqrt(total / len(X)) * measure(name, "path_norm", p=q).value
    assert measure(name, "data_path_norm", q=q).value == pytest.approx(expected, rel=1e-10)


def test_identity_between_two_layers_weighs_its_units():
    """Two linear maps in a row: ||I_k||_{2 -> 1} = sqrt(k)."""
    module, X, _ = make(lambda: nn.Sequential(nn.Linear(4, 9, bias=False), nn.Linear(9, 1, bias=False)), (4,))
    base = float(X.abs().amax(1).square().mean().sqrt())
    norms = math.prod(reference.group(W.detach().numpy(), INF, 2) for W in (module[0].weight, module[1].weight))
    l1 = math.sqrt(np.mean([float(x.abs().sum()) ** 2 for x in X]))
    assert measure_module(module, X, "data_group_norm", p=INF, q=2).value == pytest.approx(l1 * 3 * norms, rel=1e-12)
    paths = measure_module(module, X, "l1_path_norm").value
    assert measure_module(module, X, "data_path_norm").value == pytest.approx(base * paths, rel=1e-12)


def test_activations_in_a_row_and_at_the_end():
    """LeakyReLU of LeakyReLU is one of the product slope; a last ReLU is D_{L+1}."""
    weight = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    module = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LeakyReLU(0.5), nn.Flatten(), nn.LeakyReLU(0.5))
    module[0].weight.data = weight
    X = torch.tensor([[-4.0, 3.0]])  # both units negative: slopes 1/4
    assert measure_module(module, X, "data_spectral_norm").value == pytest.approx(5 / 4)


# Theorem 3.2: each of them dominates the Fisher-Rao norm --------------------------------------------------------------


def chain_of(widths: list[int], seed: int) -> tuple[nn.Sequential, Tensor]:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b, bias=False), nn.LeakyReLU(0.3) if seed % 2 else nn.ReLU()]
    module, X, _ = make(lambda: nn.Sequential(*layers[:-1]), (widths[0],), seed=seed)
    return module, X


def conv_chain(seed: int) -> tuple[nn.Sequential, Tensor]:
    layers = (
        nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", bias=False),
        nn.ReLU(),
        nn.Conv2d(3, 2, 3, stride=2, bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8, 1, bias=False),
    )
    module, X, _ = make(lambda: nn.Sequential(*layers), (2, 5, 5), seed=seed)
    return module, X


GRID = {
    "data_spectral_norm": [{}],
    "data_group_norm": [{"p": p, "q": q} for p in (1, 1.5, 2, INF) for q in (0.5, 1, 2, 3, INF)],
    "data_path_norm": [{"q": q} for q in (1, 1.5, 2, 5)],
    "data_induced_norm": [{"p": p, "q": q} for p, q in [(2, 2), (1, 1), (1, 2), (1, INF), (2, INF), (INF, INF)]],
    "data_chain_norm": [{"exponents": e} for e in ([2, 2, 2, 2], [1, 4, INF, INF], [3, INF, INF, INF], [1, 1, 1, 1])],
}


@pytest.mark.parametrize("seed", range(6))
def test_theorem_3_2(seed):
    module, X = conv_chain(seed) if seed > 3 else chain_of([4, 5, 3, 1], seed)
    network = Network(module, tuple(X.shape[1:]))
    batch = Batch(network, X, torch.zeros(len(X), 1, dtype=torch.float64), loss="absolute")
    fisher_rao = MEASURES["fisher_rao_norm"](network, batch).value
    function = module(X).square().mean().sqrt().item()
    assert fisher_rao / 3 == pytest.approx(function, rel=1e-10)  # remark 3.1
    assert function > 0
    for name, grid in GRID.items():
        for params in grid:
            assert function <= MEASURES[name](network, batch, **params).value * (1 + 1e-12), (name, params)


def test_theorem_3_2_is_tight():
    """One linear map and samples along it: all inequalities of the Euclidean norms are equalities."""
    module = nn.Linear(3, 1, bias=False).double()
    module.weight.data = torch.tensor([[1.0, -2.0, 2.0]], dtype=torch.float64)
    X = torch.tensor([[2.0], [-1.0]], dtype=torch.float64) * module.weight.data
    function = module(X).square().mean().sqrt().item()
    for name, params in [("data_spectral_norm", {}), ("data_group_norm", {}), ("data_path_norm", {"q": 2})]:
        assert measure_module(module, X, name, **params).value == pytest.approx(function, rel=1e-12)


def test_path_and_spectral_norm_dominate_several_outputs():
    for name in CHAINS:
        module, X, _ = NETWORKS[name]()
        function = module(X).square().sum(1).mean().sqrt().item()
        for measure_name, params in [("data_spectral_norm", {}), *(("data_path_norm", {"q": q}) for q in (1, 2, 4))]:
            assert function <= measure(name, measure_name, **params).value


# Lemma 4.1, corollary 3.1 ---------------------------------------------------------------------------------------------


def test_lemma_4_1_the_ball_is_star_shaped():
    """||r theta||_fr = r^{L+1} ||theta||_fr, and every norm of the weights scales alike."""
    module, X = chain_of([4, 5, 3, 1], 0)
    names = ["fisher_rao_norm", "spectral_norm", "frobenius_norm", "l1_inf_norm", "path_norm", *NAMES]
    larger = copy.deepcopy(module)
    for parameter in larger.parameters():
        parameter.data.mul_(1.7)
    network = Network(module, (4,))
    for name in names:
        before, after = (measure_again(network, m, name, X) for m in (module, larger))
        assert after == pytest.approx(1.7**3 * before, rel=1e-10), name
    before, after = (measure_again(network, m, "parameter_norm") for m in (module, larger))
    assert after == pytest.approx(1.7 * before, rel=1e-12)


def test_corollary_3_1_equal_functions_have_equal_fisher_rao_norms():
    """Another basis between two linear maps changes every norm of the weights and not the Fisher-Rao norm."""
    layers = lambda: (nn.Linear(4, 3, bias=False), nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Linear(3, 1, bias=False))  # noqa: E731
    module, X, _ = make(lambda: nn.Sequential(*layers()), (4,))
    basis = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 0.0, 3.0]], dtype=torch.float64)
    other = copy.deepcopy(module)
    other[0].weight.data = basis @ module[0].weight.data
    other[1].weight.data = module[1].weight.data @ basis.inverse()
    assert torch.allclose(module(X), other(X), rtol=1e-12)
    network = Network(module, (4,))
    before, after = (measure_again(network, m, "fisher_rao_norm", X) for m in (module, other))
    assert after == pytest.approx(before, rel=1e-10)
    for name in ("parameter_norm", "spectral_norm", "frobenius_norm", "path_norm"):  # "not satisfied for l2, ..."
        before, after = (measure_again(network, m, name) for m in (module, other))
        assert abs(after / before - 1) > 0.01


# Refusals -------------------------------------------------------------------------------------------------------------


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(5, 5, bias=False), nn.Linear(5, 3, bias=False)

    def forward(self, x):
        return self.b(x + self.a(x).relu())


def plain(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4, bias=False), *middle, nn.Linear(4, 3, bias=False))


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (nn.Sequential(nn.Linear(5, 3)), (5,), "`linear` in layer `0 \\(Linear\\)`: it has a bias"),
        (plain(nn.Tanh()), (5,), "`tanh` in layer `1 \\(Tanh\\)`: it is not positively homogeneous"),
        (
            plain(nn.Unflatten(1, (1, 4)), nn.MaxPool1d(1), nn.Flatten()),
            (5,),
            "`max_pool` in layer `2 \\(MaxPool1d\\)`: pooling is neither",
        ),
        (
            plain(nn.Unflatten(1, (1, 4)), nn.AvgPool1d(1), nn.Flatten()),
            (5,),
            "`avg_pool` in layer `2 \\(AvgPool1d\\)`: pooling is neither",
        ),
        (
            nn.Sequential(nn.ReLU(), nn.Linear(5, 3, bias=False)),
            (5,),
            "`relu` in layer `0 \\(ReLU\\)`: it acts before the first",
        ),
        (
            _Branches(),
            (5,),
            "in layer `a \\(Linear\\)`: its input is also used elsewhere, so the network is not a chain",
        ),
        (plain(nn.LayerNorm(4)), (5,), "`center` in layer `1 \\(LayerNorm\\)`"),
    ],
)
def test_anything_but_a_bias_free_chain_is_refused(module, shape, message):
    X = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    network = Network(module, shape)
    for name in NAMES:
        with pytest.raises(
            UnsupportedLayerError, match=f"A data-dependent norm is not defined for the operator .*{message}"
        ):
            MEASURES[name](network, Batch(network, X))


def test_biases_of_zero_are_no_biases():
    module, X, _ = NETWORKS["mlp_no_bias"]()
    biased = nn.Sequential(
        *(nn.Linear(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in module)
    )
    biased = biased.double()
    for layer, original in zip(biased, module, strict=True):
        if isinstance(layer, nn.Linear):
            layer.weight.data = original.weight.data
            nn.init.zeros_(layer.bias)
    network = Network(biased, (5,))
    for name in NAMES:
        assert MEASURES[name](network, Batch(network, X)).value == measure("mlp_no_bias", name).value


def test_a_network_without_layers_is_refused():
    with pytest.raises(
        NotDefinedError, match="A data-dependent norm is not defined for a network without weight layers"
    ):
        measure_module(nn.Flatten(), torch.ones(1, 2), "data_spectral_norm")


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("data_group_norm", {"p": 0.5}, r"`p` must lie in \[1, inf\], got 0.5"),
        ("data_group_norm", {"q": 0}, r"`q` must lie in \(0, inf\], got 0"),
        ("data_path_norm", {"q": INF}, r"`q` must lie in \[1, inf\), got inf"),
        (
            "data_induced_norm",
            {"p": 2, "q": 1},
            "`p` and `q` must be a pair whose norm can be computed exactly, got 2 and 1",
        ),
        ("data_chain_norm", {"exponents": [1, 2]}, "`exponents` must hold 4 numbers for 3 weight layers, got 2"),
    ],
)
def test_parameters_out_of_range_are_refused(name, params, message):
    with pytest.raises(ValueError, match=message):
        measure("mlp_no_bias", name, **params)
