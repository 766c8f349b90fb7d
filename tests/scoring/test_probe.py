"""The checks of a network before it is measured, and the errors for one that a measure cannot handle."""

from __future__ import annotations

import math
import threading
import warnings

import pytest
import torch
import torch.nn.functional as F
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_capacity import (
    CapacityScorer,
    CapacityWarning,
    NetworkClassifier,
    NotDefinedError,
    UnsupportedLayerError,
    capacity_report,
    compare_capacity,
    fisher_spectrum,
    measure_capacity,
)
from sklearn_capacity.displays import MarginDisplay
from sklearn_capacity.graph import Network
from sklearn_capacity.penalties import check_penalty

X = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
Y = torch.arange(6) % 3
MEASURES = ["spectral_norm", "l2_path_norm", "lipschitz_l2", "margin", "jacobian_spectral", "fisher_rao_norm"]


def perceptron() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


class Function(nn.Module):
    """A perceptron whose forward pass is the function given."""

    def __init__(self, function):
        super().__init__()
        self.net, self.function = perceptron(), function

    def forward(self, x):
        return self.function(self.net, x)


@pytest.mark.parametrize("wrap", [lambda module: torch.compile(module, backend="eager"), nn.DataParallel])
def test_wrappers_are_seen_through(wrap):
    assert measure_capacity(wrap(perceptron()), X, Y, MEASURES) == measure_capacity(perceptron(), X, Y, MEASURES)


@pytest.mark.parametrize(
    "function",
    [
        lambda net, x: net(x.float()),
        lambda net, x: net(x.to(torch.float32)),
        lambda net, x: net(x.type_as(net[0].weight)),
        lambda net, x: net(x.to(net[0].weight.dtype)),
    ],
    ids=["float", "to", "type_as", "own dtype"],
)
def test_a_forward_pass_that_casts(function):
    got = measure_capacity(Function(function), X, Y, MEASURES)
    assert got == pytest.approx(measure_capacity(perceptron(), X, Y, MEASURES), rel=1e-5)


class Late(nn.Module):
    """A network that creates its last layer in its first forward pass."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), None

    def forward(self, x):
        if self.last is None:
            self.last = nn.Linear(6, 3)
        return self.last(self.first(x).relu())


def test_layers_that_the_forward_pass_creates_are_not_measured():
    before = torch.get_rng_state()
    module = Late()
    after = torch.get_rng_state()
    with pytest.raises(NotDefinedError, match="creates `last.bias`, `last.weight`, with values that nobody"):
        measure_capacity(module, X, Y, "margin")
    assert module.last is None
    assert not torch.equal(before, after)
    assert torch.equal(torch.get_rng_state(), after)
    module(X.float())
    assert measure_capacity(module, X, Y, "margin")["margin"] < 1


class Silent(nn.Sequential):
    """A network whose `train` returns nothing."""

    def train(self, mode=True):
        super().train(mode)


def test_a_train_method_that_returns_nothing():
    assert measure_capacity(Silent(*perceptron()), X, Y, MEASURES) == measure_capacity(perceptron(), X, Y, MEASURES)
    check_penalty(lambda module, X: module(X).square().sum(), Silent(*perceptron()), X)


def test_inference_mode():
    expected = measure_capacity(perceptron(), X, Y, MEASURES)
    with torch.inference_mode():
        inside = X.clone()
        assert measure_capacity(perceptron(), inside, Y, MEASURES) == expected


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Sequential(nn.LazyLinear(3)), "`0.weight` of `Sequential` has no values yet"),
        (nn.Linear(4, 3, device="meta"), "`weight` of `Linear` is on the meta device"),
        (nn.Linear(4, 3, dtype=torch.complex64), "has dtype torch.complex64, but weights must be real"),
        (nn.Linear(4, 1), 'at least two logits, got a network with one output. For regression pass loss="squared"'),
        (nn.Sequential(nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 1)), r"an array of shape \(3, 2, 2\) for one"),
        (Function(lambda net, x: {"logits": net(x)}), "must return a tensor, got dict"),
        (nn.Sequential(nn.Embedding(5, 3), nn.Flatten()), "receives real numbers here, so measure the part after"),
    ],
    ids=["lazy", "meta", "complex", "one output", "image", "dict", "embedding"],
)
def test_refused_with_the_cure(module, message):
    with pytest.raises(ValueError, match=message):
        measure_capacity(module, X, Y, "margin")


def test_probabilities_and_logits_that_are_confused_warn():
    probabilities = nn.Sequential(perceptron(), nn.Softmax(1))
    with pytest.warns(CapacityWarning, match="returns probabilities.*Remove the final softmax"):
        measure_capacity(probabilities, X, Y, "margin")
    with (
        pytest.warns(CapacityWarning, match="returns probabilities"),
        pytest.raises(
            UnsupportedLayerError, match=r"`softmax` in layer `1 \(Softmax\)`: a softmax is not positively homogeneous"
        ),
    ):
        measure_capacity(probabilities, X, Y, "l2_path_norm")
    options = dict(criterion=nn.NLLLoss, train_split=None, verbose=0)
    confused = NeuralNetClassifier(perceptron(), **options).initialize()
    with pytest.warns(CapacityWarning, match="expects probabilities.*criterion=nn.CrossEntropyLoss"):
        measure_capacity(confused, X.float(), Y, "margin")
    right = NeuralNetClassifier(probabilities, **options).initialize()
    with warnings.catch_warnings():
        warnings.simplefilter("error", CapacityWarning)
        for model in (right, perceptron(), nn.Sequential(perceptron(), nn.LogSoftmax(1))):
            measure_capacity(model, X.float(), Y, "margin")
        measure_capacity(probabilities, X, measures="jacobian_frobenius")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripts_are_refused_with_the_cure():
    with pytest.raises(NotDefinedError, match="compiled to TorchScript. Pass the original module"):
        measure_capacity(torch.jit.trace(perceptron(), torch.zeros(2, 4)), X, Y, "margin")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [nn.Linear, nn.LSTM])
def test_quantized_networks_are_refused_with_the_cure(kind):
    module = nn.Sequential(nn.LSTM(4, 3) if kind is nn.LSTM else nn.Linear(4, 3))
    quantized = torch.ao.quantization.quantize_dynamic(module, {kind})
    for given in (quantized, nn.Sequential(nn.Linear(4, 4), *quantized)):  # some of the layers
        for measure in ("margin", "spectral_norm"):
            with pytest.raises(NotDefinedError, match="is quantized: .* Pass the module before quantization"):
                measure_capacity(given, X, Y, measure)
        with pytest.raises(ValueError, match="`module` must not be quantized"):
            NetworkClassifier(module=given).fit(X, Y)


def test_a_network_that_refuses_zeros_is_measured_at_its_data():
    def refuses_zeros(net, x):
        if not bool(x.any()):
            raise ValueError("nothing but zeros")
        return net(x)

    names = ["parameter_count", "frobenius_norm", "margin", "jacobian_frobenius", "expected_sharpness"]
    expected = measure_capacity(perceptron(), X, Y, names)
    assert measure_capacity(Function(refuses_zeros), X, Y, names) == pytest.approx(expected, rel=1e-9)


def test_what_torch_cannot_differentiate_is_left_out_with_its_reason():
    def overwrites(net, x):
        h = torch.sigmoid(net[0](x))
        out = net[2](h)
        h.add_(1)
        return out

    report = capacity_report(Function(overwrites), X, Y, ["margin", "jacobian_spectral"]).set_index("measure")
    assert math.isfinite(report.loc["margin", "value"])
    assert "modified by an inplace operation" in report.loc["jacobian_spectral", "reason"]
    with pytest.raises(NotDefinedError, match="'jacobian_spectral' cannot be computed for this network; torch says"):
        measure_capacity(Function(overwrites), X, Y, "jacobian_spectral")


@pytest.mark.filterwarnings("ignore:No value of")
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e200])
def test_weights_without_a_finite_measure_leave_the_others(value):
    net = perceptron().double()
    with torch.no_grad():
        net[0].weight[0, 0] = value
    # Without the measures that draw or ascend.
    names = ["parameter_count", "margin", "input_margin_bound", "spectral_product_bound", "jacobian_spectral"]
    names += ["fisher_max_eigenvalue", "fisher_second_moment"]
    report = capacity_report(net, X, Y, names).set_index("measure")
    assert report.loc["parameter_count", "value"] == 51
    missing = report[report["value"].isna()]
    assert len(missing) >= (6 if math.isnan(value) else 1) and all(missing["reason"])
    if not math.isfinite(value):
        with pytest.warns(CapacityWarning, match="`0.weight` of the network is not finite"):
            assert "margin" not in measure_capacity(net, X, Y)


def test_a_failed_trace_is_quiet_and_not_repeated(capfd, monkeypatch):
    import sklearn_capacity.graph.network as module

    calls, trace = [], module.trace
    monkeypatch.setattr(module, "trace", lambda *args, **kwargs: calls.append(1) or trace(*args, **kwargs))
    branching = Function(lambda net, x: net(x) if x.sum() > 0 else -net(x))
    with pytest.raises(UnsupportedLayerError, match="cannot be traced"):
        measure_capacity(branching, X, Y, "l2_path_norm")
    report = capacity_report(branching, X, Y, MEASURES).set_index("measure")
    assert len(calls) == 2  # one for each call
    assert report["value"].isna().tolist() == [False, True, True, False, False, False]
    assert capfd.readouterr().err == ""


def test_a_number_of_samples_that_is_fixed_in_the_trace_is_reported():
    def recurrent(net, x):  # `torch.zeros(len(x), ...)` has the two samples of the trace
        return net(x) + net[2](torch.zeros(len(x), 6, dtype=x.dtype))

    report = capacity_report(Function(recurrent), X, Y, ["l2_path_norm", "margin"]).set_index("measure")
    assert "fix the number of samples" in report.loc["l2_path_norm", "reason"]
    assert math.isfinite(report.loc["margin", "value"])


# -- operators that need more than one rule ---------------------------------------------------------------------------


def maxout(net, x):
    return net[2](torch.cat([torch.maximum(*net[0](x).chunk(2, 1)), net[0](x)[:, :3]], 1))


def indices(net, x):
    values, where = net[0](x).topk(3, dim=1)
    return net[2](torch.cat([values, torch.zeros_like(where.to(x.dtype))], 1))


@pytest.mark.parametrize("function", [maxout, indices], ids=["chunk", "topk"])
def test_operators_with_several_results(function):
    """The Fisher-Rao norm by central differences along the parameters."""
    module = Function(function).double()
    got = measure_capacity(module, X, Y, "fisher_rao_norm")["fisher_rao_norm"]

    def logits(t):
        theta = {name: p.detach() * (1 + t) for name, p in module.named_parameters()}
        return torch.func.functional_call(module, theta, (X,)).detach()

    u = (logits(1e-5) - logits(-1e-5)) / 2e-5
    rows = torch.arange(6)
    values = (logits(0).softmax(1) * u).sum(1) - u[rows, Y]
    assert got == pytest.approx(values.square().mean().sqrt().item(), rel=1e-6)


@pytest.mark.parametrize(
    ("function", "paths"),
    [
        (lambda net, x: net[2](torch.cat(net[0](x).relu().split(2, 1), 1)), lambda a, b: b @ a),
        (
            lambda net, x: net[2](torch.cat(net[0](x).relu().chunk(3, dim=-1)[::-1], 1)),
            lambda a, b: b[:, [4, 5, 2, 3, 0, 1]] @ a,
        ),
        (lambda net, x: net[2](1 - 2 * net[0](x).relu()), lambda a, b: b @ (2 * a)),
        (lambda net, x: net[2](torch.rsub(net[0](x).relu(), 3.0, alpha=2)), lambda a, b: b @ (2 * a)),
        (lambda net, x: net[2](torch.ones(6, dtype=x.dtype) - net[0](x).relu()), lambda a, b: b @ a),
        (lambda net, x: net[2](torch.zeros_like(net[0](x)) + net[0](x).relu()), lambda a, b: b @ a),
    ],
    ids=["split", "chunk", "rsub", "rsub alpha", "tensor minus", "zeros_like"],
)
def test_pieces_and_differences_have_paths(function, paths):
    module = Function(function).double()
    a, b = module.net[0].weight.detach().abs(), module.net[2].weight.detach().abs()
    assert measure_capacity(module, X, measures="l1_path_norm")["l1_path_norm"] == pytest.approx(
        paths(a, b).sum().item(), rel=1e-12
    )


def test_uneven_adaptive_max_pooling_has_the_norm_of_its_layer():
    module = nn.Sequential(nn.Unflatten(1, (1, 4)), nn.AdaptiveMaxPool1d(3), nn.Flatten(), nn.Linear(3, 3)).double()
    report = capacity_report(module, X, Y, MEASURES).set_index("measure")
    norm = torch.linalg.matrix_norm(module[3].weight.detach(), 2).item()
    assert report.loc["spectral_norm", "value"] == pytest.approx(norm, rel=1e-9)
    assert all(report["value"].notna()[["margin", "jacobian_spectral", "fisher_rao_norm"]])
    J = torch.autograd.functional.jacobian(lambda x: module(x).sum(0), X).permute(1, 0, 2).detach()
    largest = torch.linalg.svdvals(J).max().item()
    assert report.loc["jacobian_spectral", "value"] == pytest.approx(largest, rel=1e-9)


def test_dropout_that_is_always_on_is_refused_and_global_random_numbers_stay():
    module = Function(lambda net, x: F.dropout(net(x), 0.5))
    before = torch.get_rng_state()
    with pytest.raises(UnsupportedLayerError, match="draws random numbers in eval mode"):
        measure_capacity(module, X, Y, "margin")
    assert torch.equal(torch.get_rng_state(), before)


def _recurrent(net, x):
    h, rows = torch.zeros(6, dtype=x.dtype), []
    for row in net[0](x):
        h = (row + 0.5 * h).tanh()
        rows.append(h)
    return net[2](torch.stack(rows))


OTHERS = "the outputs of one depend on the others in its batch.*`track_running_stats=True`.*`batch_first=True`"
ORDER = "it returns the outputs of other samples in the place of a sample's, as after `flip`, `roll` or `sort`"
PLACE = "the outputs of one depend on its place in the batch or on the number of samples there"
MIXING = {
    "flip": (lambda net, x: net(x.flip(0)), ORDER),
    "flip at the end": (lambda net, x: net(x).flip(0), ORDER),
    "roll": (lambda net, x: net(x.roll(1, 0)), ORDER),
    "roll back": (lambda net, x: net(x.roll(-1, 0)), ORDER),
    "roll by two": (lambda net, x: net(x.roll(2, 0)), ORDER),
    "halves": (lambda net, x: net(x.roll(len(x) // 2, 0)), ORDER),
    "ends": (lambda net, x: net(torch.cat([x[-1:], x[1:-1], x[:1]])), ORDER),
    "first two": (lambda net, x: net(torch.cat([x[1:2], x[:1], x[2:]])), ORDER),
    "even, then odd": (lambda net, x: net(torch.cat([x[::2], x[1::2]])), ORDER),
    "sort": (lambda net, x: net(x[x[:, 0].argsort()]), ORDER),
    "sort in descending order": (lambda net, x: net(x[x[:, 0].argsort(descending=True)]), ORDER),
    "one for all": (lambda net, x: net(x[:1].expand_as(x)), ORDER),
    "last for all": (lambda net, x: net(x[-1:].expand_as(x)), ORDER),
    "sort columns": (lambda net, x: net(x.sort(0).values), OTHERS),
    "batch norm": (lambda net, x: net(F.batch_norm(x, None, None, training=True)), OTHERS),
    "hidden batch norm": (lambda net, x: net[2](F.batch_norm(net[0](x), None, None, training=True)), OTHERS),
    "centred": (lambda net, x: net(x - x.mean(0)), OTHERS),
    "minus the first": (lambda net, x: net(x - x[:1]), OTHERS),
    "minus the last": (lambda net, x: net(x - x[-1:]), OTHERS),
    "over the maximum": (lambda net, x: net(x / x.abs().amax()), OTHERS),
    "minus the largest of one feature": (lambda net, x: net(x - x[:, :1].amax(0)), OTHERS),
    "minus the smallest of one feature": (lambda net, x: net(x - x[:, 3:].amin(0)), OTHERS),
    "minus the median": (lambda net, x: net(x - x.median(0).values), OTHERS),
    "sum": (lambda net, x: net(x + x.sum(0)), OTHERS),
    "cumulative sum": (lambda net, x: net(x.cumsum(0)), OTHERS),
    "neighbours": (lambda net, x: net(x + 0.1 * x.roll(1, 0)), OTHERS),
    "attention": (lambda net, x: net((x @ x.T).softmax(1) @ x), OTHERS),
    "softmax over the batch": (lambda net, x: net(x).softmax(0), OTHERS),
    "recurrent": (_recurrent, OTHERS),
    "number of samples": (lambda net, x: net(x / len(x)), PLACE),
    "odd number of samples": (lambda net, x: net(x) * (1 + len(x) % 2), PLACE),
    "large batches": (lambda net, x: net(x) * (1 + (len(x) > 3)), PLACE),
    "place": (lambda net, x: net(x + torch.arange(len(x), dtype=x.dtype)[:, None]), PLACE),
}
DATA = {
    "six samples": X,
    "one sample": X[:1],
    "two samples": X[:2],
    "copies at the start": torch.cat([X[:1].expand(5, -1), X]),
    "sorted": X[X[:, 0].argsort()],
    "none": None,
}


def _labels(data):
    return None if data is None else torch.arange(len(data)) % 3


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("kind", MIXING)
def test_networks_that_mix_their_samples_are_refused(kind, data):
    function, message = MIXING[kind]
    seen = f": {message}" if data == "six samples" else ""
    with pytest.raises(UnsupportedLayerError, match=f"The network mixes its samples in eval mode{seen}"):
        measure_capacity(Function(function), DATA[data], _labels(DATA[data]), "param_norm")


ALONE = {
    "flip of the features": lambda net, x: net(x.flip(1)),
    "sort of the features": lambda net, x: net(x.sort(1).values),
    "layer norm": lambda net, x: net(F.layer_norm(x, (4,))),
    "instance norm": lambda net, x: net(F.instance_norm(x[:, None])[:, 0]),
    "batch norm": lambda net, x: net(F.batch_norm(x, torch.ones(4).to(x), torch.ones(4).to(x))),
    "largest feature": lambda net, x: net(x / x.abs().amax(1, keepdim=True).clamp_min(1e-3)),
    "attention": lambda net, x: net((x[:, :, None] @ x[:, None]).softmax(2).sum(1)),
    "there and back": lambda net, x: net(x.flip(0)).flip(0),
    "sample by sample": lambda net, x: torch.stack([net(row) for row in x]),
    "in pairs": lambda net, x: torch.cat([net(part) for part in x.split(2)]),
    "zeros": lambda net, x: net(x + torch.zeros(len(x), 4, dtype=x.dtype)),
    "constant": lambda net, x: torch.ones(len(x), 3, dtype=x.dtype) + 0 * net(x),
}


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("kind", ALONE)
def test_networks_whose_samples_pass_alone_are_measured(kind, data):
    measured = measure_capacity(Function(ALONE[kind]), DATA[data], _labels(DATA[data]), "parameter_count")
    assert measured == {"parameter_count": 51}


def _checks_its_samples(net, x):
    ends = (x == 1).sum(1)
    if not bool((x == x.round()).all() and (ends == ends[0]).all()):
        raise ValueError("all tokens must be whole, with as many ends in each sample.")
    return net(x)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_few_samples_are_enough_for_a_network_that_checks_them(n):
    tokens = torch.cat([torch.arange(2, 3.0 * n + 2).reshape(n, 3), torch.ones(n, 1)], 1)
    labels = torch.arange(n) % 3
    assert measure_capacity(Function(_checks_its_samples), tokens, labels, "parameter_count") == {"parameter_count": 51}
    with pytest.raises(ValueError, match=r"failed on samples of shape \(4,\), those of `X`: all tokens must be whole"):
        measure_capacity(Function(_checks_its_samples), tokens + 0.5, labels, "parameter_count")


def _draws_in_vain(net, x):
    torch.rand(3)
    return net(x)


CALLS_OF_ALL_KINDS = {
    "measure": lambda m: measure_capacity(m, X, Y, "essential"),
    "report": lambda m: capacity_report(m, X, Y, ["margin", "spectral_norm"]),
    "scorer": lambda m: CapacityScorer(["margin", "accuracy"])(m, X, Y),
    "comparison": lambda m: compare_capacity([m, m], X, Y, ["margin"]),
    "spectrum": lambda m: fisher_spectrum(m, X),
    "display": lambda m: MarginDisplay.from_estimator(m, X, Y),
}


@pytest.mark.parametrize("call", CALLS_OF_ALL_KINDS)
@pytest.mark.filterwarnings("ignore::sklearn_capacity.CapacityWarning")
def test_numbers_drawn_in_vain_are_given_back(call):
    """Some networks draw whether to skip a layer in eval mode, too, and do not skip it."""
    module = Function(_draws_in_vain)
    before = torch.get_rng_state()
    answer = CALLS_OF_ALL_KINDS[call](module)
    assert torch.equal(torch.get_rng_state(), before)
    if call == "measure":
        assert answer["margin"] == measure_capacity(perceptron(), X, Y, "margin")["margin"]


def test_numbers_that_another_thread_draws_stay_drawn():
    drawing = threading.Event()

    def forward(net, x):
        if not drawing.is_set():
            drawing.set()
            thread = threading.Thread(target=torch.rand, args=(3,))
            thread.start()
            thread.join()
        return net(x)

    before = torch.get_rng_state()
    measure_capacity(Function(forward), X, Y, "margin")
    expected = torch.Generator()
    expected.set_state(before)
    torch.rand(3, generator=expected)
    assert torch.equal(torch.get_rng_state(), expected.get_state())


def test_a_call_passes_few_samples_through_the_network_four_times(monkeypatch):
    """Once for what the samples make, twice in other batches, and once beside the graph; then come the data."""
    passes: list[int] = []
    for name in ("explored", "forward"):
        whole = getattr(Network, name)
        monkeypatch.setattr(
            Network, name, lambda self, X, *rest, whole=whole: passes.append(len(X)) or whole(self, X, *rest)
        )
    measure_capacity(perceptron(), X, Y, ["parameter_count", "l2_path_norm", "margin"])
    assert passes == [5, 2, 3, 3, 6]
    passes.clear()
    measure_capacity(perceptron(), X, Y, ["parameter_count", "l2_path_norm", "fisher_rao_norm", "margin"])
    assert passes == [5, 2, 3, 3]  # the sweep along the graph has told the logits
