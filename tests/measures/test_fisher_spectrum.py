"""Eigenvalues of the Fisher information: every way against dense matrices, known answers, training, errors."""

from __future__ import annotations

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import reference_fisher as reference
from networks import NETWORKS, Blend, make
from pretend_device import pretend_device
from sklearn_capacity import NotDefinedError, capacity_report, fisher_spectrum, list_measures, measure_capacity
from sklearn_capacity.derivatives import fisher_matrix as dual
from sklearn_capacity.derivatives.input_jacobian import jacobian_products
from sklearn_capacity.derivatives.parameter_jacobian import parameter_jacobian
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch
from sklearn_capacity.measures import fisher_eigenvalues as methods
from sklearn_capacity.measures import fisher_spectrum as family
from sklearn_capacity.theory import initialize_mean_field, mean_field

NAMES = [name for name in MEASURES if MEASURES[name].function.__module__ == family.__name__]
CASES = ["mlp", "mlp_tanh", "mlp_batch_norm", "tied", "binary", "tokens", "conv_batch_norm", "conv_strided_grouped"]
CASES += ["conv_transposed", "residual", "residual_preactivation"]


@functools.cache
def network(name):
    module, X, y = NETWORKS[name]()
    output = "one_logit" if name == "binary" else "logits"
    return Network(module, tuple(X.shape[1:]), output=output), X, y


@functools.cache
def exact(name, loss):
    """All P eigenvalues of the dense matrix, descending."""
    module, X, _ = NETWORKS[name]()
    return torch.linalg.eigvalsh(reference.matrix(reference.folded(name, module), X, loss)).flip(0)


def batch(name, **options):
    net, X, y = network(name)
    return net, Batch(net, X, y, loss="cross_entropy", **options)


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("name", CASES)
def test_statistics_agree_with_dense_matrices(name, loss):
    net, data = batch(name)
    eigenvalues = exact(name, loss)
    n = min(net.n_outputs * data.n_samples, len(eigenvalues))
    spectrum, info = methods.fisher_eigenvalues(net, data, loss)
    assert len(spectrum) == n and info["method"] in ("dual matrix", "parameter matrix")
    assert bool((spectrum >= 0).all()) and bool((spectrum.diff() <= 0).all())
    assert torch.allclose(spectrum, eigenvalues[:n].clamp_min(0), rtol=1e-9, atol=1e-13)
    values = {name: MEASURES[name](net, data, loss=loss).value for name in NAMES}
    assert values["fisher_trace"] == pytest.approx(float(eigenvalues.sum()), rel=1e-10)
    assert values["fisher_mean_eigenvalue"] == pytest.approx(float(eigenvalues.mean()), rel=1e-10)
    assert values["fisher_second_moment"] == pytest.approx(float((eigenvalues**2).mean()), rel=1e-10)
    assert values["fisher_max_eigenvalue"] == pytest.approx(float(eigenvalues[0]), rel=1e-10)
    assert values["critical_learning_rate"] == pytest.approx(2 / float(eigenvalues[0]), rel=1e-10)


def attention():
    class Attention(nn.Module):
        """A layer norm has parameters and no rule, so this one goes by automatic differentiation."""

        def __init__(self):
            super().__init__()
            self.norm, self.qkv, self.head = nn.LayerNorm(4), nn.Linear(4, 12), nn.Linear(4, 3)

        def forward(self, x):
            q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
            return self.head(nn.functional.scaled_dot_product_attention(q, k, v).mean(1))

    return make(Attention, (3, 4))


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("name", ["mlp", "conv_batch_norm", "conv_strided_grouped", "residual", "tied", "attention"])
@pytest.mark.parametrize("classes", [1, 2])
def test_a_few_classes_at_once_give_the_same(name, loss, classes, monkeypatch):
    """As where the gradients of one sample for all classes do not fit into memory."""
    module, X, _ = attention() if name == "attention" else NETWORKS[name]()
    net = Network(module, tuple(X.shape[1:]))
    jacobian = parameter_jacobian(net)
    monkeypatch.setattr(dual, "CHUNK_BYTES", (jacobian.floats_at_work(classes) + classes * net.n_outputs) * 8)
    fisher = dual.FisherMatrix(jacobian, X, net.n_outputs, loss, samples=4)
    assert (fisher.chunk, fisher.classes) == (1, classes)
    dense = reference.matrix(module if name == "attention" else reference.folded(name, module), X, loss)
    assert sum(fisher.traces()) == pytest.approx(float(dense.trace()), rel=1e-10)
    assert fisher.squared_norm() == pytest.approx(float(dense.square().sum()), rel=1e-10)
    spectrum = torch.linalg.eigvalsh(dense).flip(0)
    size = min(len(spectrum), fisher.dual_size)
    for matrix in (fisher.dual(), fisher.matrix()):
        assert torch.allclose(torch.linalg.eigvalsh(matrix).flip(0)[:size], spectrum[:size], rtol=1e-8, atol=1e-11)
    v = torch.randn(fisher.dual_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(fisher.product(v), fisher.dual() @ v, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["mlp", "conv_batch_norm", "residual"])
def test_both_matrices_have_the_same_eigenvalues(name):
    net, data = batch(name)
    fisher = methods.fisher_matrix(net, data, "cross_entropy")
    direct, through_dual = fisher.matrix(), fisher.dual()
    assert torch.allclose(through_dual, through_dual.T, rtol=1e-12, atol=1e-15)
    n = min(len(direct), len(through_dual))
    a, b = (torch.linalg.eigvalsh(m).flip(0)[:n] for m in (direct, through_dual))
    assert torch.allclose(a, b, atol=1e-13)
    assert fisher.squared_norm() == pytest.approx(float((direct**2).sum()), rel=1e-10)


@pytest.mark.parametrize("held", [1, 2**28])
@pytest.mark.parametrize("rows", [1, 5, 1024])
def test_chunks_tiles_and_what_is_held_do_not_matter(rows, held, monkeypatch):
    monkeypatch.setattr(dual, "TILE_ROWS", rows)
    monkeypatch.setattr(dual, "HELD_BYTES", held)
    for name in ("mlp", "conv_strided_grouped"):
        net, whole = batch(name)
        fisher = methods.fisher_matrix(net, batch(name, batch_size=2)[1], "squared")
        module, X, _ = NETWORKS[name]()
        assert torch.allclose(fisher.dual(), reference.dual(module, X), rtol=1e-9, atol=1e-13)
        assert fisher.squared_norm() == pytest.approx(float((fisher.dual() ** 2).sum()), rel=1e-12)
        vector = torch.randn(fisher.dual_size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        assert torch.allclose(fisher.product(vector), fisher.dual() @ vector)
        assert torch.allclose(fisher.product(vector), fisher.dual() @ vector)  # from what the first product kept


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
@pytest.mark.parametrize("name", ["mlp", "conv_max_pool", "tied"])
def test_lanczos_finds_the_largest_eigenvalue(name, loss, monkeypatch):
    monkeypatch.setattr(methods, "SMALL", 0)
    net, data = batch(name)
    largest = MEASURES["fisher_max_eigenvalue"](net, data, loss=loss)
    module, X, _ = NETWORKS[name]()
    spectrum = torch.linalg.eigvalsh(reference.matrix(module, X, loss)).flip(0)
    assert largest.value == pytest.approx(float(spectrum[0]), rel=1e-5)
    assert largest.info["method"] == "Lanczos on the dual"
    assert largest.info["products"] <= 16 and largest.info["error"] <= 1e-5
    several, info = methods.fisher_eigenvalues(net, data, loss, 4)
    assert info["method"] == "block Lanczos on the dual"
    assert torch.allclose(several, spectrum[:4], rtol=1e-6)


@pytest.mark.parametrize(("seed", "width", "n_outputs", "n"), [(42, 200, 2, 270), (43, 200, 2, 270), (62, 50, 3, 180)])
def test_two_close_eigenvalues_do_not_pass_for_one(seed, width, n_outputs, n):
    # Samples far from the origin: as many close outliers as outputs. Temple's bound stopped at 140.05 for 142.42.
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(20, width), nn.ReLU(), nn.Linear(width, n_outputs))
    X = torch.randn(n, 20) + 2
    network = Network(net, (20,))
    for random_state in range(5):
        data = Batch(network, X, loss="squared", random_state=random_state)
        value, info = methods.fisher_eigenvalues(network, data, "squared", 1)
        true = float(torch.linalg.eigvalsh(reference.dual(net.double(), X.double()))[-1])
        net.float()
        assert float(value[0]) == pytest.approx(true, rel=1e-5)
        assert abs(float(value[0]) - true) <= info["error"] * true
        assert info["method"] == "Lanczos on the dual" and info["products"] <= 16


def test_two_dozen_products_suffice_for_a_wide_network():
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))
    for layer in (net[0], net[2], net[4]):
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * (2 / layer.in_features) ** 0.5
    X = torch.randn(80, 64, generator=generator)
    report = capacity_report(net, X, measures=["fisher_max_eigenvalue"], loss="squared")
    top = float(fisher_spectrum(net, X)[0])  # 800 eigenvalues of the dual matrix
    assert report["value"][0] == pytest.approx(top, rel=1e-5)
    computed = dict(pair.split("=") for pair in report["computed"][0].split(", "))
    assert computed["method"] == "Lanczos on the dual" and int(computed["size"]) == 800
    # The second eigenvalue is 0.93 of the first: 16 products reach a residual of 1e-5, and 22 the error.
    assert 3 <= int(computed["products"]) <= 24 and float(computed["residual"]) < 1e-5
    assert float(computed["error"]) <= 2e-5


@pytest.mark.parametrize("loss", ["squared", "cross_entropy"])
def test_the_dual_of_wide_layers_is_formed(loss, monkeypatch):
    monkeypatch.setattr(methods, "SMALL", 0)
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 40), nn.Tanh(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    X = torch.randn(5, 8, dtype=torch.float64)
    spectrum = torch.linalg.eigvalsh(reference.matrix(module, X, loss)).flip(0)
    network = Network(module, (8,), dtype=torch.float64)
    largest = MEASURES["fisher_max_eigenvalue"](network, Batch(network, X, None), loss=loss)
    assert largest.value == pytest.approx(float(spectrum[0]), rel=1e-9)
    assert largest.info["method"] == "Lanczos on the dual matrix"
    several, info = methods.fisher_eigenvalues(network, Batch(network, X, None), loss, 4)
    assert torch.allclose(several, spectrum[:4], rtol=1e-6) and info["method"] == "block Lanczos on the dual matrix"
    monkeypatch.setattr(methods, "MATRIX_SIZE", 10)  # of the 15 rows that it has: products need no matrix
    products = MEASURES["fisher_max_eigenvalue"](network, Batch(network, X, None), loss=loss)
    assert products.info["method"] == "Lanczos on the dual"
    assert products.value == pytest.approx(largest.value, rel=1e-9)


def test_a_spectrum_that_is_known_is_used_again(monkeypatch):
    monkeypatch.setattr(methods, "SMALL", 0)
    net, data = batch("mlp")
    methods.fisher_eigenvalues(net, data)
    assert MEASURES["fisher_max_eigenvalue"](net, data).info["method"] in ("dual matrix", "parameter matrix")


# -- answers known by hand ---------------------------------------------------------------------------------------------


def test_linear_regression_repeats_the_eigenvalues_of_the_second_moment_matrix(monkeypatch):
    X = np.random.default_rng(0).normal(size=(30, 4))
    model = LinearRegression().fit(X, X[:, :3] @ np.ones((3, 2)))
    inputs = np.hstack([X, np.ones((30, 1))])
    once = np.linalg.eigvalsh(inputs.T @ inputs / 30)[::-1]
    assert fisher_spectrum(model, X) == pytest.approx(np.repeat(once, 2), rel=1e-10)
    monkeypatch.setattr(methods, "SMALL", 0)
    assert fisher_spectrum(model, X, n_largest=5) == pytest.approx(np.repeat(once, 2)[:5], rel=1e-8)


def test_binary_logistic_regression_has_its_textbook_information():
    X = np.random.default_rng(1).normal(size=(40, 3))
    y = (X[:, 0] + 0.5 * np.random.default_rng(2).normal(size=40) > 0).astype(int)
    model = LogisticRegression().fit(X, y)
    p = model.predict_proba(X)[:, 1]
    inputs = np.hstack([X, np.ones((40, 1))])
    information = (inputs * (p * (1 - p))[:, None]).T @ inputs / 40
    expected = np.linalg.eigvalsh(information)[::-1]
    assert fisher_spectrum(model, X, loss="cross_entropy") == pytest.approx(expected, rel=1e-9)


def test_pipelines_and_networks_of_scikit_learn_are_measured():
    X = np.random.default_rng(3).normal(size=(20, 3)) * 5
    perceptron = MLPRegressor(hidden_layer_sizes=(6,), max_iter=400, tol=1e-3, random_state=0)
    model = make_pipeline(StandardScaler(), perceptron)
    model.fit(X, X[:, 0])
    spectrum = fisher_spectrum(model, X)
    assert len(spectrum) == 20
    trace = measure_capacity(model, X, measures="fisher_trace")["fisher_trace"]
    assert trace == pytest.approx(spectrum.sum(), rel=1e-10)


def test_networks_without_a_graph_have_the_spectrum_of_their_raw_parameters():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), Blend(5), nn.ReLU(), nn.Linear(5, 3)).double()
    X = torch.randn(6, 4, dtype=torch.float64)
    for loss in ("squared", "cross_entropy"):
        expected = torch.linalg.eigvalsh(reference.matrix(net, X, loss)).flip(0)[:18].clamp_min(0)
        assert fisher_spectrum(net, X, loss=loss) == pytest.approx(expected.numpy(), rel=1e-9, abs=1e-13)
    report = capacity_report(net, X, measures=["fisher_trace", "fisher_max_eigenvalue"], loss="squared")
    assert report["computed"][0] == "method=autograd"


def test_layers_share_the_trace():
    module, X, _ = NETWORKS["residual"]()
    report = capacity_report(module, X, measures=["fisher_trace"], loss="squared", per_layer=True)
    assert report["value"][1:].sum() == pytest.approx(report["value"][0], rel=1e-12)
    assert set(report["layer"][1:]) == {
        "blocks.0.conv1", "blocks.0.conv2", "blocks.0.shortcut.0", "blocks.1.conv1", "blocks.1.conv2", "head",
    }  # fmt: skip


def test_mean_field_theory_holds_for_a_wide_random_network():
    net = nn.Sequential(nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, 1), nn.Tanh())
    theory = mean_field("tanh", 3.0, 0.64, depth=3, width=200)
    X = torch.randn(300, 200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    names = ["fisher_mean_eigenvalue", "fisher_second_moment", "fisher_max_eigenvalue"]
    draws = []
    for seed in range(10):
        drawn = initialize_mean_field(net, 3.0, 0.64, random_state=seed).double()
        draws.append(list(measure_capacity(drawn, X, measures=names, loss="squared").values()))
    mean, second, largest = np.mean(draws, axis=0)
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws))
    finite = 2 / 200  # biases and the last layer, which alpha M^2 does not count
    assert abs(mean - theory.mean_eigenvalue) < 4 * error[0] + finite * mean
    low, high = theory.second_moment_bounds
    assert low - 4 * error[1] < second < high + 4 * error[1]
    assert theory.max_eigenvalue_bounds[0] - 4 * error[2] < largest < theory.max_eigenvalue_bounds[1]


# -- the critical learning rate ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("criterion", ["half", "mse"])
def test_gradient_descent_leaves_the_minimum_above_the_critical_rate_only(criterion, momentum):
    """A linear model of two outputs, whose loss is exactly quadratic."""
    torch.manual_seed(1)
    net = nn.Linear(4, 2).double()
    X = torch.randn(20, 4, dtype=torch.float64)
    y = net(X).detach()
    params = {"rate": ("critical_learning_rate", {"momentum": momentum})}
    rate = measure_capacity(net, X, measures=params, loss="squared")["rate"]
    rate *= net.out_features / 2 if criterion == "mse" else 1  # the factor that the docstring gives

    def distance(learning_rate):
        trained = nn.Linear(4, 2).double()
        trained.load_state_dict({k: v + 0.01 for k, v in net.state_dict().items()})
        optimizer = torch.optim.SGD(trained.parameters(), learning_rate, momentum=momentum)
        for _ in range(400):
            optimizer.zero_grad()
            residual = trained(X) - y
            ((residual**2).mean() if criterion == "mse" else (residual**2).sum() / (2 * len(X))).backward()
            optimizer.step()
        return float((trained.weight - net.weight).norm())

    assert distance(0.95 * rate) < 1e-4
    assert not distance(1.05 * rate) < 1e3


# -- devices, memory, errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tied", "conv_max_pool"])
def test_runs_on_an_accelerator(name, monkeypatch):
    module, X, _ = NETWORKS[name]()
    expected = fisher_spectrum(module, X, loss="cross_entropy")
    values = measure_capacity(module, X, measures=NAMES, loss="cross_entropy")
    monkeypatch.setattr(methods, "SMALL", 0)
    with pretend_device() as device:
        got = fisher_spectrum(module, X, loss="cross_entropy", device=device.device)
        assert got == pytest.approx(expected, rel=1e-9, abs=1e-13)
        on_device = measure_capacity(module, X, measures=NAMES, loss="cross_entropy", device=device.device)
    assert on_device == pytest.approx(values, rel=1e-5)
    assert len(fisher_spectrum(module, X, n_largest=2)) == 2


@pytest.mark.parametrize("mode", [True, False])
def test_an_unfinished_walk_leaves_the_gradient_mode_alone(mode):
    """As one does that an interrupt from the keyboard ends: its traceback keeps the generator."""
    module, X = nn.Linear(3, 2), torch.ones(4, 3)
    jacobian = parameter_jacobian(Network(module, (3,)))
    fisher = dual.FisherMatrix(jacobian, X, 2, "squared", samples=2)
    with torch.set_grad_enabled(mode):
        for walk in (fisher._tiles(), fisher._gradients(fisher._blocks()), jacobian_products(module, X)):
            next(walk)
            assert torch.is_grad_enabled() == mode


def test_half_as_many_samples_when_memory_runs_out(monkeypatch):
    net, data = batch("mlp")
    fisher = methods.fisher_matrix(net, data, "squared")
    at, sizes = fisher.jacobian.at, []

    def small_memory(X):
        sizes.append(len(X))
        if len(X) > 2:
            raise MemoryError("DefaultCPUAllocator: can't allocate memory")
        return at(X)

    monkeypatch.setattr(fisher.jacobian, "at", small_memory)
    value = MEASURES["fisher_trace"](net, data).value
    assert value == pytest.approx(float(exact("mlp", "squared").sum()), rel=1e-10)
    assert sizes[:2] == [7, 3] and max(sizes[2:]) <= 2

    def no_memory(X):
        raise MemoryError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(fisher.jacobian, "at", no_memory)
    with pytest.raises(MemoryError):
        MEASURES["fisher_second_moment"](net, data)
    monkeypatch.undo()


def test_too_large_a_matrix_is_refused_with_the_cure(monkeypatch):
    monkeypatch.setattr(methods, "MATRIX_SIZE", 20)
    module, X, _ = NETWORKS["mlp"]()
    with pytest.raises(ValueError, match="`n_largest` must be given if both matrices have more than 20 rows"):
        fisher_spectrum(module, X)
    assert len(fisher_spectrum(module, X[:6])) == 18


def test_refusals():
    module, X, _ = NETWORKS["mlp"]()
    with pytest.raises(ValueError, match="`loss` must be one of 'squared', 'cross_entropy', got 'absolute'"):
        fisher_spectrum(module, X, loss="absolute")
    with pytest.raises(ValueError, match="`X` must contain samples, got None"):
        fisher_spectrum(module, None)
    with pytest.raises(ValueError, match="`n_largest` must be between 1 and 21, got 22"):
        fisher_spectrum(module, X, n_largest=22)
    with pytest.raises(ValueError, match="`momentum` must lie in"):
        measure_capacity(module, X, measures={"c": ("critical_learning_rate", {"momentum": 1.0})}, loss="squared")
    with pytest.raises(NotDefinedError, match="needs trainable parameters, and all are frozen"):
        fisher_spectrum(module.requires_grad_(False), X)
    with pytest.raises(NotDefinedError, match="The softmax Fisher information needs two logits or more"):
        fisher_spectrum(nn.Linear(5, 1), X, loss="cross_entropy")


def test_a_network_that_no_parameter_moves_has_no_critical_rate():
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    for layer in (net[0], net[2]):
        nn.init.zeros_(layer.weight)
    assert measure_capacity(net, torch.ones(2, 3), measures="critical_learning_rate", loss="squared") == {
        "critical_learning_rate": float("inf")
    }
    assert fisher_spectrum(net, torch.ones(2, 3)).tolist() == [0.0, 0.0]


def test_a_diverged_network_has_a_report_with_reasons(monkeypatch):
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    net[0].weight.data[0, 0] = float("nan")
    monkeypatch.setattr(methods, "SMALL", 0)
    table = list_measures()
    names = table[table.family.isin(["fisher", "jacobian", "margin"])].name.tolist()
    report = capacity_report(net, torch.ones(4, 3), torch.arange(4) % 2, names)
    assert report.value.isna().all() and (report.reason != "").all()


def test_weights_that_are_not_finite_are_named():
    net = nn.Linear(3, 2)
    net.weight.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN and infinity"):
        fisher_spectrum(nn.Sequential(net, nn.Tanh(), nn.Linear(2, 2)), torch.ones(4, 3))


@pytest.mark.parametrize("norm", ["Identity", "LayerNorm"])
def test_a_thousand_classes_do_not_take_classes_times_parameters(norm):
    """4 GB of gradients per sample if all were held; with a layer norm by automatic differentiation."""
    script = f"""
import resource, torch
from torch import nn
from sklearn_capacity import measure_capacity
net = nn.Sequential(nn.Linear(4, 1000), nn.{norm}(1000), nn.ReLU(), nn.Linear(1000, 1000))
X = torch.ones(1, 4)
def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
measure_capacity(net, X, measures="parameter_count", loss="squared")
before = peak()
measure_capacity(net, X, measures="fisher_trace", loss="squared")
print(peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # MB


def test_the_second_moment_of_many_classes_is_estimated_where_gradients_would_be_formed_again():
    """101 classes in little memory: within the standard error of the exact sum, for a hundred seeds."""
    torch.manual_seed(0)
    net, X = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 101)), torch.randn(6, 5)
    exact = capacity_report(net, X, measures="fisher_second_moment", loss="squared").loc[0]
    assert np.isnan(exact["standard_error"])
    little = {"max_memory": 400_000, "loss": "squared"}
    rows = [
        capacity_report(net, X, measures="fisher_second_moment", random_state=seed, **little).loc[0]
        for seed in range(100)
    ]
    assert all("Hutch++" in row["computed"] for row in rows)
    errors = np.array([row["value"] - exact["value"] for row in rows])
    spreads = np.array([row["standard_error"] for row in rows])
    assert (np.abs(errors) > 4 * spreads).sum() <= 2
    assert np.sqrt((spreads**2).mean()) < 0.2 * exact["value"]
