"""Margins, Jacobian norms and pull-back curvature against loops over samples and dense matrices in float64."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

import reference_margins as reference
from networks import CHAINS, NETWORKS
from sklearn_capacity import CapacityWarning, NotDefinedError, capacity_report, measure_capacity
from sklearn_capacity.derivatives import input_sweeps
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch
from sklearn_capacity.measures.normalized_margins import normalized
from sklearn_capacity.measures.output_gram import fisher_norm

CLASSIFIERS = [name for name in NETWORKS if name not in ("binary", "one_output")]
REDUCE = {"mean": np.mean, "max": np.max}


@functools.cache
def network(case):
    """Traced once for all tests; its operator norms are computed once."""
    module, X, _ = NETWORKS[case]()
    return Network(module, tuple(X.shape[1:]))


@functools.cache
def batch(case, loss, scale):
    module, X, y = NETWORKS[case]()
    return Batch(network(case), scale * X, y if loss == "cross_entropy" else module(X).detach(), loss=loss)


def value_of(case, name, loss="cross_entropy", scale=1.0, **params):
    return MEASURES[name](network(case), batch(case, loss, scale), **params).value


def value(module, X, y, name, loss="cross_entropy", **params):
    return measure_capacity(module, X, y, {name: (name, params)}, loss=loss)[name]


# -- margins -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", ["mlp", "conv_1d", "residual", "concatenated"])
def test_margins_keep_their_sign(case):
    module, X, y = NETWORKS[case]()
    expected = reference.margins(module, X, y)
    assert min(expected) < 0  # labels are arbitrary
    assert value_of(case, "min_margin") == pytest.approx(min(expected), rel=1e-12)
    for q in (0, 5, 50, 100):
        assert value_of(case, "margin", percentile=q) == pytest.approx(np.percentile(expected, q), rel=1e-12)


@pytest.mark.parametrize("case", ["mlp", "conv_1d"])
def test_softmax_score_is_that_of_equation_33(case):
    module, X, y = NETWORKS[case]()
    scores = []
    for x, label in zip(X, y.tolist(), strict=True):
        z = reference.softmax(module(x[None])[0].detach().numpy())
        delta = np.eye(len(z))
        scores.append(min(math.sqrt(2) * (delta[label] - delta[j]) @ z for j in range(len(z)) if j != label))
    assert value_of(case, "softmax_score") == pytest.approx(min(scores), rel=1e-12)


def spectral_complexity(matrices):
    norms = [reference.norm_l2(W) for W in matrices]
    ratios = [sum(np.linalg.norm(row) for row in W) / s for W, s in zip(matrices, norms, strict=True)]
    return math.prod(norms) * sum(r ** (2 / 3) for r in ratios) ** 1.5


def matrices_of(case, module, X):
    """Weight matrices as operators: batch norm goes with the convolution, a shared map has a block per token."""
    parts = {
        "mlp": [[0], [2], [4]],
        "conv_batch_norm": [[0, 1], [5]],
        "conv_strided_grouped": [[0], [2], [5]],
        "mlp_batch_norm": [[0, 1], [3, 4]],
        "weight_norm": [[0], [2]],
    }[case]
    out, x, last = [], X[:1], 0
    for part in parts:
        x = module[last : part[0]](x)
        linear = module[part[0] : part[-1] + 1]
        out.append(reference.dense(linear, tuple(x.shape[1:])))
        x, last = linear(x), part[-1] + 1
    return out


@pytest.mark.parametrize("case", ["mlp", "conv_batch_norm", "conv_strided_grouped", "mlp_batch_norm", "weight_norm"])
def test_spectrally_normalized_margin_on_dense_operators(case):
    module, X, y = NETWORKS[case]()
    R = spectral_complexity(matrices_of(case, module, X))
    margins = reference.margins(module, X, y)
    got = value_of(case, "spectrally_normalized_margin", percentile=40)
    assert got == pytest.approx(np.percentile(margins, 40) / R, rel=1e-6)


def test_spectrally_normalized_margin_counts_every_token():
    module, X, y = NETWORKS["tokens"]()
    first, second = (reference.dense(layer, (4, k)) for layer, k in ((module.first, 3), (module.second, 5)))
    R = spectral_complexity([first, second, module.head.weight.detach().numpy()])
    expected = min(reference.margins(module, X, y)) / R
    assert value(module, X, y, "spectrally_normalized_margin", percentile=0) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("case", [case for case in CHAINS if case != "one_output"])
def test_fisher_rao_normalized_margin_of_a_homogeneous_chain(case):
    module, X, y = NETWORKS[case]()
    d = sum(isinstance(layer, nn.Linear | nn.Conv2d) for layer in module)
    squares = []
    for x, label in zip(X, y.tolist(), strict=True):
        f = module(x[None])[0].detach().numpy()  # lemma 2.1 of [FR]: the tangent along theta is d f
        residual = reference.softmax(f) - np.eye(len(f))[label]
        squares.append((residual @ (d * f)) ** 2)
    expected = np.percentile(reference.margins(module, X, y), 5) / math.sqrt(np.mean(squares))
    assert value_of(case, "fisher_rao_normalized_margin") == pytest.approx(expected, rel=1e-9)


def test_margin_over_nothing_is_infinite_with_its_sign():
    assert normalized(2.0, -math.inf) == math.inf
    assert normalized(-2.0, -math.inf) == -math.inf
    assert normalized(0.0, -math.inf) == 0.0
    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    module[0].weight.data.zero_()
    module[2].weight.data.zero_()
    module[2].bias.data.copy_(torch.tensor([2.0, 0.0]))
    X, y = torch.ones(3, 2, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    with pytest.warns(CapacityWarning, match=r"weights of 2 of 2 layers are zero \(`0`, `2`\)"):
        assert value(module, X, y, "spectrally_normalized_margin") == math.inf


@pytest.mark.parametrize("name", ["margin", "spectrally_normalized_margin", "fisher_rao_normalized_margin"])
def test_percentile_is_checked(name):
    with pytest.raises(ValueError, match=r"`percentile` must lie in \[0, 100\], got 150"):
        value(*NETWORKS["mlp"](), name, percentile=150)


@pytest.mark.parametrize("name", ["softmax_score", "input_margin_bound", "spectrally_normalized_margin"])
def test_margins_are_for_classification(name):
    module, X, _ = NETWORKS["mlp"]()
    with pytest.raises(NotDefinedError, match="classification only"):
        value(module, X, module(X).detach(), name, loss="squared")


def test_margin_needs_two_logits():
    from sklearn_capacity.measures.margins import margins_of

    with pytest.raises(NotDefinedError, match="at least two logits, got 1"):
        margins_of(torch.zeros(3, 1), torch.zeros(3, dtype=torch.long))


# -- Jacobians ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("case", CLASSIFIERS)
def test_jacobian_norms_against_each_samples_dense_jacobian(case, output):
    module, X, _ = NETWORKS[case]()
    function = nn.Sequential(module, nn.Softmax(1)) if output == "softmax" else module
    singular = [np.linalg.svd(reference.jacobian(function, x), compute_uv=False) for x in X]
    frobenius = np.mean([(s**2).sum() for s in singular])
    assert value_of(case, "jacobian_frobenius", output=output) == pytest.approx(frobenius, rel=1e-9)
    for reduction, reduce in REDUCE.items():
        got = value_of(case, "jacobian_spectral", output=output, reduction=reduction)
        assert got == pytest.approx(reduce([s[0] for s in singular]), rel=1e-9)


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("case", CLASSIFIERS)
def test_pullback_against_the_whole_metric(case, loss):
    module, X, _ = NETWORKS[case]()
    spectra = [reference.curvature(module, x, loss) for x in X]
    for reduction, reduce in REDUCE.items():
        got = value_of(case, "pullback_curvature", loss, reduction=reduction)
        assert got == pytest.approx(reduce([s[-1] for s in spectra]), rel=1e-8)
        got = value_of(case, "pullback_trace", loss, reduction=reduction)
        assert got == pytest.approx(reduce([s.sum() for s in spectra]), rel=1e-8)


def many_outputs(width=90, n_outputs=100):
    """More outputs than a Gram matrix is formed for."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Sequential(nn.Linear(130, width), nn.Tanh(), nn.Linear(width, n_outputs)).double()
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 6)
    X = torch.randn(5, 130, generator=generator, dtype=torch.float64)
    return module, X, torch.arange(5)


def two_hidden_layers(width=110, n_outputs=120):
    """The same, of a depth for which the trace of J^T J has no closed form."""
    module, X, y = many_outputs(width, n_outputs)
    first = nn.Linear(130, 130, dtype=torch.float64)
    weight = torch.randn(130, 130, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    first.weight.data.copy_(weight / 6)
    return nn.Sequential(first, nn.Tanh(), *module), X, y


@pytest.mark.parametrize("width", [40, 90], ids=["through a narrow layer", "by Lanczos"])
@pytest.mark.parametrize("output", ["logits", "softmax"])
def test_norms_of_many_outputs(output, width):
    module, X, y = many_outputs(width)
    function = nn.Sequential(module, nn.Softmax(1)) if output == "softmax" else module
    singular = [np.linalg.svd(reference.jacobian(function, x), compute_uv=False) for x in X]
    got = measure_capacity(
        module,
        X,
        y,
        {
            "spectral": ("jacobian_spectral", {"output": output}),
            "frobenius": ("jacobian_frobenius", {"output": output}),
        },
    )
    assert got["spectral"] == pytest.approx(max(s[0] for s in singular), rel=1e-6)
    assert got["frobenius"] == pytest.approx(np.mean([(s**2).sum() for s in singular]), rel=1e-9)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("width", [40, 90], ids=["through a narrow layer", "by Lanczos"])
def test_pull_back_of_many_outputs(width, scale):
    module, X, y = many_outputs(width)
    module[2].weight.data.mul_(scale)
    spectra = [reference.curvature(module, x, "cross_entropy") for x in X]
    assert value(module, X, y, "pullback_curvature") == pytest.approx(np.mean([s[-1] for s in spectra]), rel=1e-6)
    assert value(module, X, y, "pullback_trace") == pytest.approx(np.mean([s.sum() for s in spectra]), rel=1e-9)


# Above 100 outputs, the traces are estimates.

TRACES = {
    "logits": ("jacobian_frobenius", {}),
    "softmax": ("jacobian_frobenius", {"output": "softmax"}),
    "fisher": ("pullback_trace", {}),
}


def dense_grams(module, X, metric):
    """B^T J J^T B of every sample, where the metric of the outputs is B B^T."""
    for x in X:
        J = reference.jacobian(module, x)
        p = module(x[None]).softmax(1)[0].detach().numpy()
        B = {"logits": np.eye(len(p)), "softmax": np.diag(p) - np.outer(p, p)}
        B["fisher"] = np.diag(np.sqrt(p)) - np.outer(p, np.sqrt(p))
        yield B[metric].T @ J @ J.T @ B[metric]


@pytest.mark.parametrize("metric", TRACES)
def test_traces_of_more_than_100_outputs_are_estimates(metric):
    name, params = TRACES[metric]
    module, X, y = two_hidden_layers()
    grams = list(dense_grams(module, X, metric))
    expected = np.mean([np.trace(gram) for gram in grams])
    # Without a sketch, the variance of g^T G g for random signs g is 2 sum_{i != j} G_ij^2.
    plain = sum(2 * ((gram**2).sum() - (gram.diagonal() ** 2).sum()) for gram in grams) / len(X) ** 2
    scores, errors = [], []
    for seed in range(30):
        row = capacity_report(module, X, y, {"t": (name, params)}, random_state=seed).iloc[0]
        assert row["standard_error"] > 0 and row["computed"] == "method=Hutch++, draws=8"
        errors.append(row["standard_error"])
        scores.append((row["value"] - expected) / row["standard_error"])
    assert np.median(errors) < np.sqrt(plain / 10)  # of the ten random signs for each of five samples
    assert abs(np.mean(scores)) < 0.7 and 0.6 < np.sqrt(np.mean(np.square(scores))) < 1.6
    # Exact where the draws are as many as the inputs of the last layer, which are fewer than its outputs.
    exact = capacity_report(module, X, y, {"t": (name, {"n_draws": 110, **params})}).iloc[0]
    assert exact["value"] == pytest.approx(expected, rel=1e-9) and np.isnan(exact["standard_error"])


def test_estimates_capture_what_few_directions_carry():
    """The sketch finds the directions of a Jacobian of low rank, so that nothing is left to chance."""
    module, X, y = two_hidden_layers()
    u, s, v = torch.linalg.svd(module[4].weight.data, full_matrices=False)
    module[4].weight.data = (u[:, :2] * s[:2]) @ v[:2]
    expected = np.mean([np.trace(gram) for gram in dense_grams(module, X, "logits")])
    row = capacity_report(module, X, y, "jacobian_frobenius").iloc[0]
    assert row["value"] == pytest.approx(expected, rel=1e-9)
    assert 0 < row["standard_error"] < 1e-9 * expected


def test_estimated_traces_do_not_depend_on_chunks_and_follow_the_seed():
    module, X, y = two_hidden_layers()
    at_once = value(module, X, y, "jacobian_frobenius")
    assert measure_capacity(module, X, y, "jacobian_frobenius", batch_size=2)["jacobian_frobenius"] == pytest.approx(
        at_once, rel=1e-12
    )
    other = measure_capacity(module, X, y, "jacobian_frobenius", random_state=1)["jacobian_frobenius"]
    assert other != pytest.approx(at_once, rel=1e-6)


def test_traces_of_a_call_share_images_and_have_the_values_of_calls_of_their_own():
    module, X, y = two_hidden_layers()
    alone = {name: value(module, X, y, name) for name in ("pullback_trace", "jacobian_frobenius")}
    shared = Batch(Network(module, (130,)), X, y, loss="cross_entropy")
    together = {name: MEASURES[name](shared.network, shared).value for name in alone}
    assert together == pytest.approx(alone, rel=1e-12)
    assert ("images of random signs", 2) in shared.known


class Branching(nn.Module):
    """A network that cannot be traced, since its forward pass depends on the data."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x) if x.abs().max() < 1e9 else self.module(-x)


@pytest.mark.parametrize("name", ["jacobian_frobenius", "pullback_trace"])
def test_estimates_are_the_same_without_a_graph(name):
    module, X, y = two_hidden_layers(width=130)
    assert value(Branching(module), X, y, name) == pytest.approx(value(module, X, y, name), rel=1e-9)


def test_the_largest_of_many_traces_is_exact():
    module, X, y = two_hidden_layers()
    expected = max(np.trace(gram) for gram in dense_grams(module, X, "fisher"))
    row = capacity_report(module, X, y, {"t": ("pullback_trace", {"reduction": "max"})}).iloc[0]
    assert row["value"] == pytest.approx(expected, rel=1e-9) and np.isnan(row["standard_error"])


ACTIVATIONS = (nn.ReLU(), nn.Tanh(), nn.GELU(), nn.LeakyReLU(0.2), nn.Identity())


@pytest.mark.parametrize("activation", ACTIVATIONS, ids=lambda activation: type(activation).__name__)
@pytest.mark.parametrize("sizes", [(9, 7, 12), (30, 5, 4), (6, 40, 110), (40, 6, 130)], ids=str)
def test_one_hidden_layer_has_exact_traces_of_any_number_of_outputs(sizes, activation):
    """By the closed form or by rows, alone or beside a measure that needs the rows."""
    D, h, C = sizes
    generator = torch.Generator().manual_seed(D)
    module = nn.Sequential(nn.Flatten(), nn.Linear(D, h), activation, nn.Linear(h, C)).double()
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    X, y = torch.randn(40, D, generator=generator, dtype=torch.float64), torch.arange(40) % C
    jacobians = [reference.jacobian(module, x) for x in X]
    expected = np.mean([(J**2).sum() for J in jacobians])
    spectral = {"s": "jacobian_spectral"}
    asked = {"t": "jacobian_frobenius"}
    for measures in (asked, asked | spectral, spectral | asked):
        row = capacity_report(module, X, y, measures, batch_size=15).set_index("measure").loc["t"]
        assert row["value"] == pytest.approx(expected, rel=1e-10) and np.isnan(row["standard_error"])
    largest = max(reference.norm_l2(J) for J in jacobians)
    assert value(module, X, y, "jacobian_spectral") == pytest.approx(largest, rel=1e-6)


@pytest.mark.parametrize("n", [1, 2])
def test_rows_of_jacobians_leave_the_weights_as_they_are(n):
    """One sample's cotangents at the last layer's input have the shape of its weight."""
    module = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    X = torch.randn(n, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    network = Network(module, (5,))
    expected = torch.stack([torch.from_numpy(reference.jacobian(module, x)) for x in X])
    before = [node.weight.clone() for node in network.graph.nodes if node.weight is not None]
    assert torch.allclose(input_sweeps.jacobian_rows(network.graph, X), expected, rtol=1e-12, atol=1e-14)
    after = [node.weight for node in network.graph.nodes if node.weight is not None]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("scale", [1e-160, 1e160])
def test_the_closed_form_is_finite_where_squares_of_weights_are_not(scale):
    """Units whose incoming weights are huge or tiny, with outgoing weights that undo it."""
    generator = torch.Generator().manual_seed(2)
    module = nn.Sequential(nn.Linear(20, 8, bias=False), nn.ReLU(), nn.Linear(8, 30)).double()
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    X, y = torch.randn(40, 20, generator=generator, dtype=torch.float64), torch.arange(40) % 30
    expected = np.mean([(reference.jacobian(module, x) ** 2).sum() for x in X])
    factors = torch.tensor([scale, 1 / scale] * 4, dtype=torch.float64)  # (8,)
    module[0].weight.data *= factors[:, None]
    module[2].weight.data /= factors
    assert value(module, X, y, "jacobian_frobenius") == pytest.approx(expected, rel=1e-10)


def test_the_closed_form_is_chosen_by_its_cost(monkeypatch):
    from sklearn_capacity.measures import output_traces

    calls = []
    closed_form = output_traces._closed_form
    monkeypatch.setattr(output_traces, "_closed_form", lambda *args: calls.append(args) or closed_form(*args))
    for n, h, C in ((300, 20, 30), (3, 300, 30), (300, 400, 3)):
        module = nn.Sequential(nn.Linear(200, h), nn.ReLU(), nn.Linear(h, C)).double()
        with torch.random.fork_rng(devices=[]):
            X = torch.randn(n, 200, dtype=torch.float64)
        network = Network(module, (200,))
        assert network.graph is not None
        output_traces.traces(network, Batch(network, X, None), "logits")
    assert [args[0].n_outputs for args in calls] == [30]


def test_number_of_draws_is_checked():
    with pytest.raises(ValueError, match="`n_draws` must be"):
        value(*NETWORKS["mlp"](), "jacobian_frobenius", n_draws=5)


def test_layer_norm_and_attention_have_jacobians_too():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        module = nn.Sequential(encoder, nn.Flatten(), nn.Linear(24, 90)).double().eval()
    X, y = torch.randn(3, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), torch.arange(3)
    expected = max(reference.norm_l2(reference.jacobian(module, x)) for x in X)
    assert value(module, X, y, "jacobian_spectral") == pytest.approx(expected, rel=1e-6)


def test_jacobians_are_formed_in_bounded_pieces(monkeypatch):
    from sklearn_capacity.measures import output_gram

    module, X, y = NETWORKS["conv_1d"]()
    names = ["jacobian_spectral", "jacobian_frobenius", "pullback_trace"]
    expected = measure_capacity(module, X, y, names)
    seen = []
    rows = output_gram.jacobian_rows
    monkeypatch.setattr(output_gram, "ROW_BYTES", 2 * 3 * 16 * 8)  # two samples of 3 classes and 16 inputs
    monkeypatch.setattr(output_gram, "jacobian_rows", lambda net, X, *more: seen.append(len(X)) or rows(net, X, *more))
    assert measure_capacity(module, X, y, names) == pytest.approx(expected, rel=1e-12)
    assert seen == [2, 2, 2, 1]


@pytest.mark.parametrize("case", ["mlp_batch_norm", "residual_preactivation", "binary"])
def test_jacobians_of_the_folded_graph_are_those_of_the_module(case, monkeypatch):
    module, X, y = NETWORKS[case]()
    names = ["jacobian_spectral", "jacobian_frobenius", "pullback_trace"]
    of_module = measure_capacity(module, X, y, names, loss="squared" if case == "binary" else None)
    for limit in ("EXPORT_PAYS", "RECORDING_PAYS"):
        monkeypatch.setattr(f"sklearn_capacity.measures.output_gram.{limit}", 0)
    of_graph = measure_capacity(module, X, y, names, loss="squared" if case == "binary" else None)
    assert of_graph == pytest.approx(of_module, rel=1e-12)


# -- the spectral product bound ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("case", CLASSIFIERS)
def test_spectral_product_bounds_the_curvature(case, scale):
    for loss in ("cross_entropy", "squared"):
        for reduction in REDUCE:
            bound = value_of(case, "spectral_product_bound", loss, scale, reduction=reduction)
            assert bound >= value_of(case, "pullback_curvature", loss, scale, reduction=reduction) > 0


def test_spectral_product_bound_is_reached_by_orthogonal_weights():
    module = nn.Linear(2, 2, bias=False).double()
    module.weight.data.copy_(torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64))
    X, y = torch.zeros(1, 2, dtype=torch.float64), torch.tensor([0])
    assert value(module, X, y, "spectral_product_bound") == pytest.approx(0.5, rel=1e-8)  # diag p - p p^T at p = 1/2
    assert value(module, X, y, "pullback_curvature") == pytest.approx(0.5, rel=1e-12)


@pytest.mark.parametrize("n_classes", [2, 3, 10, 150])
@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 10.0, 100.0])
def test_norm_of_the_softmax_fisher_matrix(n_classes, spread):
    generator = torch.Generator().manual_seed(n_classes)
    logits = spread * torch.randn(20, n_classes, generator=generator, dtype=torch.float64)
    p = logits.softmax(1)
    # With diag sqrt(p) - p sqrt(p)^T as its factor nothing cancels, also where one p is all but 1.
    factor = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
    expected = torch.linalg.svdvals(factor)[:, 0] ** 2
    assert torch.allclose(fisher_norm(logits), expected, rtol=1e-12, atol=0.0)
    direct = torch.linalg.eigvalsh(torch.diag_embed(p) - p[:, :, None] * p[:, None, :])[:, -1]
    assert torch.allclose(expected, direct, rtol=1e-12, atol=1e-14)
    assert bool((expected <= 0.5 + 1e-14).all())  # softmax halves what it is given, at least


@pytest.mark.parametrize("name", ["pullback_curvature", "pullback_trace", "spectral_product_bound"])
def test_pull_back_needs_a_loss(name):
    module, X, _ = NETWORKS["mlp"]()
    with pytest.raises(NotDefinedError, match="needs a loss"):
        measure_capacity(module, X, measures=name)
    with pytest.raises(ValueError, match="`reduction` must be one of 'max', 'mean', got 'men'. Did you mean 'mean'"):
        measure_capacity(module, X, measures={name: (name, {"reduction": "men"})}, loss="squared")


def test_jacobian_output_is_checked():
    with pytest.raises(ValueError, match="`output` must be one of 'logits', 'softmax', got 'soft'"):
        value(*NETWORKS["mlp"](), "jacobian_frobenius", output="soft")
