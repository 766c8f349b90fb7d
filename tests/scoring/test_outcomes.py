"""Sets of measures, those left out because of their cost, rows that are equal by definition, progress."""

from __future__ import annotations

import itertools
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from sklearn_capacity import (
    CapacityScorer,
    CapacityWarning,
    Measure,
    NotDefinedError,
    UnsupportedLayerError,
    capacity_report,
    compare_capacity,
    list_measures,
    measure_capacity,
)
from sklearn_capacity.measures import ESSENTIAL, MEASURES
from sklearn_capacity.scoring.measurement import Session

rng = np.random.default_rng(0)
X, y = rng.normal(size=(60, 4)).astype("float32"), np.arange(60) % 3


def network(*sizes, bias=False):
    torch.manual_seed(0)
    layers = [part for ends in itertools.pairwise(sizes) for part in (nn.Linear(*ends, bias=bias), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.encoder(x).mean(1))


CONV = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten())
CASES = {
    "perceptron": (network(4, 16, 16, 3), (4,)),
    "convolutions": (nn.Sequential(CONV, nn.Linear(8 * 16, 3)), (3, 8, 8)),
    "transformer": (Attention(), (5, 8)),
}


class Flops(TorchDispatchMode):
    """Counts floating-point operations; torch's own counter hooks modules, which `autograd.grad` does not allow."""

    total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function._overloadpacket in flop_registry:
            self.total += flop_registry[function._overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def flops(function):
    with Flops() as counter:
        function()
    return counter.total


@pytest.mark.filterwarnings("ignore:No value of 'l2_path_norm'")  # of attention
@pytest.mark.parametrize("case", CASES)
def test_the_default_costs_three_forward_passes_and_a_jacobian(case):
    """Counted, not timed. The Fisher-Rao norm of attention takes reverse mode twice."""
    module, shape = CASES[case]
    X = torch.randn(200, *shape, generator=torch.Generator().manual_seed(0))
    y = torch.arange(200) % 3
    forward = flops(lambda: module.eval()(X))  # with gradients: the encoder's fused kernel would not be counted
    jacobian = flops(lambda: measure_capacity(module, X, y, "jacobian_frobenius"))
    assert 0 < flops(lambda: measure_capacity(module, X, y)) <= (8 if case == "transformer" else 3) * forward + jacobian


@pytest.mark.filterwarnings("ignore:No value of 'l2_path_norm'")  # of attention
@pytest.mark.parametrize("case", CASES)
def test_the_default_is_small_and_of_different_kinds(case):
    module, shape = CASES[case]
    X = np.random.default_rng(0).normal(size=(20, *shape)).astype("float32")
    values = measure_capacity(module, X, y[:20])
    everywhere = {"parameter_count", "fisher_rao_norm", "margin", "jacobian_frobenius"}
    assert everywhere <= values.keys() <= set(ESSENTIAL)
    assert list(values) == [name for name in ESSENTIAL if name in values]
    families = [MEASURES[name].family for name in ESSENTIAL]
    assert len(set(families)) >= 5 and len(families) <= 7


def test_every_call_has_the_same_default():
    module = network(4, 6, 3)
    values = measure_capacity(module, X, y)
    assert list(capacity_report(module, X, y)["measure"]) == list(ESSENTIAL) == list(values)
    assert list(compare_capacity([module], X, y).columns) == list(ESSENTIAL)
    assert {key.removeprefix("neg_") for key in CapacityScorer()(module, X, y)} == set(ESSENTIAL)
    table = list_measures().set_index("name")
    assert set(table.index[table["essential"]]) == set(ESSENTIAL)
    assert all(table.loc[name, "cheap"] for name in ESSENTIAL)


def test_singular_values_of_jacobians_with_many_outputs_are_not_cheap():
    module = network(4, 300)
    y = np.arange(60)
    report = capacity_report(module, X, y, "cheap").set_index("measure")
    reason = report.loc["jacobian_spectral", "reason"]
    assert "would take some 240 forward passes" in reason and "by name" in reason
    assert report.loc["margin", "reason"] == report.loc["jacobian_frobenius", "reason"] == ""
    assert "jacobian_spectral" in measure_capacity(module, X, y, ["jacobian_spectral"])


@pytest.mark.parametrize("kind", ["gradients", "spectrum", "draws", "ascent"])
def test_what_is_dear_on_some_network_is_not_cheap(kind):
    assert MEASURES["fisher_trace"].cost == "gradients"
    assert not [m.name for m in MEASURES.values() if m.cost == kind and m.cheap]
    assert [m.name for m in MEASURES.values() if m.cost == kind]


def slow(module, X, y, *, rounds=1):
    raise AssertionError("it must not run")


def test_what_would_not_fit_is_left_out_with_the_reason(monkeypatch):
    from sklearn_capacity.scoring import outcomes

    monkeypatch.setattr(outcomes, "seconds_per_pass", lambda session: 0.5)  # no clock decides this test
    module = network(4, 6, 3)
    dear = Measure("dear", slow, cost="draws", passes=(100, "rounds"))
    measures = {"dear": (dear, {"rounds": 3}), "margin": "margin", "norm": "frobenius_norm"}
    report = capacity_report(module, X, y, measures, max_seconds=100.0).set_index("measure")
    assert "It would take some 1.5e+02 s: 1e+02 s are left of `max_seconds=100`" in report.loc["dear", "reason"]
    assert list(report.index) == ["dear", "margin", "norm"] and (report["reason"].iloc[1:] == "").all()
    with pytest.warns(CapacityWarning, match="would not fit into `max_seconds=100`: 'dear'"):
        values = measure_capacity(module, X, y, measures, max_seconds=100.0)
    assert list(values) == ["margin", "norm"] and values["margin"] == report.loc["margin", "value"]
    with pytest.warns(CapacityWarning, match="'dear'"):
        scores = CapacityScorer(measures, max_seconds=100.0)(module, X, y)
    assert math.isnan(scores["neg_dear"]) and list(scores) == ["neg_dear", "margin", "neg_norm"]
    with pytest.warns(CapacityWarning, match="'dear'"):
        table = compare_capacity({"a": module}, X, y, measures, max_seconds=100.0)
    assert table["dear"].isna().all() and table.loc["a", "margin"] == values["margin"]
    with pytest.raises(AssertionError, match="must not run"):
        measure_capacity(module, X, y, measures, max_seconds=1000.0)


@pytest.mark.filterwarnings("ignore:The margin at percentile")
def test_a_group_within_a_time_leaves_the_dear_ones_out():
    module = network(4, 6, 3)
    full = measure_capacity(module, X, y, "cheap")
    with pytest.warns(CapacityWarning, match="'max_sharpness'"):
        values = measure_capacity(module, X, y, "all", max_seconds=1e-6)
    assert not values
    assert measure_capacity(module, X, y, "cheap", max_seconds=1e6) == full


CALLS = {
    "measure_capacity": measure_capacity,
    "capacity_report": capacity_report,
    "compare_capacity": lambda module, X, y, **params: compare_capacity([module], X, y, **params),
    "CapacityScorer": lambda module, X, y, **params: CapacityScorer(**params)(module, X, y),
}


@pytest.mark.parametrize("bad", [0, -1.0, math.nan, math.inf * -1, "soon"])
@pytest.mark.parametrize("call", CALLS)
def test_a_wrong_time_is_refused(call, bad):
    with pytest.raises((ValueError, TypeError), match="`max_seconds` must"):
        CALLS[call](network(4, 3), X, y, max_seconds=bad)


def test_estimates_follow_the_parameters():
    session = Session(network(4, 6, 3), X, y)
    shape = (session.network.n_outputs, session.batch.n_samples)
    draws = MEASURES["expected_sharpness"]
    assert draws.estimated_passes(*shape, {"n_draws": 20}) * 50 == draws.estimated_passes(*shape, {"n_draws": 1000})
    frobenius = MEASURES["jacobian_frobenius"]
    assert frobenius.estimated_passes(*shape, {}) == 4.5
    assert frobenius.estimated_passes(1000, 20, {}) * 10 == frobenius.estimated_passes(1000, 20, {"n_draws": 80})
    assert MEASURES["frobenius_norm"].estimated_passes(*shape, {}) == 0
    for name in ("effective_rank", "power_law_alpha", "alpha_weighted", "log_alpha_norm"):  # of the weights alone
        assert MEASURES[name].estimated_passes(1000, 100, {}) == MEASURES[name].estimated_passes(2, 100, {}) <= 10
    with pytest.raises(ValueError, match="`passes` must be one of 'n_outputs', 'per_sample', 'rounds', got 'round'"):
        Measure("dear", slow, passes=(2, "round"))


@pytest.mark.parametrize("name", sorted(MEASURES))
def test_dearer_costs_have_larger_estimates(name):
    measure = MEASURES[name]
    few, many = (measure.estimated_passes(n_outputs, 100, {}) for n_outputs in (2, 20))
    assert 0 <= few <= many < 1e6 and (few <= 200) >= measure.cheap


def chain_values():
    """Values of all cheap measures and of all that are declared equal, on a chain and a convolution."""
    images = torch.randn(30, *CASES["convolutions"][1], generator=torch.Generator().manual_seed(0))
    rows = torch.randn(30, 4, generator=torch.Generator().manual_seed(1))
    for module, X in ((network(4, 5, 5, 3).double(), rows.double()), (CASES["convolutions"][0], images)):
        names = [m.name for m in MEASURES.values() if m.cost in ("weights", "forward") or m.same_as]
        report = capacity_report(module, X, torch.arange(len(X)) % 3, names, loss="cross_entropy")
        yield report.set_index("measure")


def test_rows_that_are_equal_by_definition_are_marked_and_no_others():
    marked = {name: measure.same_as for name, measure in MEASURES.items() if measure.same_as}
    assert {"group_norm", "induced_norm", "chain_norm", "path_norm"} <= marked.keys()
    (report, _) = both = list(chain_values())
    for table in both:
        assert {name: table.loc[name, "same_as"] for name in marked} == marked
        defined = table[table["value"].notna() & np.isfinite(table["value"].astype(float))]
        for first, second in itertools.combinations(defined.index, 2):
            roots = {marked.get(name, name) for name in (first, second)}
            if len(roots) == 1:
                assert defined.loc[first, "value"] == pytest.approx(defined.loc[second, "value"], rel=1e-6)
    values = report["value"].astype(float)
    roots = [name for name in values.index if name not in marked and np.isfinite(values[name])]
    unmarked = [(a, b) for a, b in itertools.combinations(roots, 2) if values[a] == pytest.approx(values[b], rel=1e-9)]
    assert not unmarked


def test_other_parameters_are_another_value():
    report = capacity_report(
        network(4, 5, 3), X, y, {"a": "l2_path_norm", "b": "path_norm", "c": ("path_norm", {"p": 1.0})}
    ).set_index("measure")
    assert report["same_as"].to_dict() == {"a": "", "b": "a", "c": ""}
    assert report.loc["a", "value"] == report.loc["b", "value"] != report.loc["c", "value"]
    alone = capacity_report(network(4, 5, 3), X, y, ["path_norm"])
    assert alone.loc[0, "same_as"] == ""


def test_progress_says_which_measure_runs(capsys):
    module = network(4, 6, 3)
    for call in (measure_capacity, capacity_report):
        call(module, X, y, ["frobenius_norm", "margin"], verbose=1)
        shown = capsys.readouterr().err
        assert "margin" in shown and "2/2" in shown
        call(module, X, y, ["frobenius_norm", "margin"])
        assert capsys.readouterr().err == ""
    compare_capacity({"a": module, "b": module}, X, y, ["margin"], verbose=1)
    shown = capsys.readouterr().err
    assert "models" in shown and "margin" in shown


@pytest.mark.parametrize("name", ["accuracy", "neg_log_loss", "roc_auc_ovr"])
def test_scores_are_accepted_among_measures(name):
    linear = LogisticRegression().fit(X, y)
    module = network(4, 6, 3)
    for model in (linear, module):
        alone = measure_capacity(model, X, y, name)
        scorer = CapacityScorer([name, "margin"])(model, X, y)
        assert alone == {name: pytest.approx(scorer[name])}
        values = measure_capacity(model, X, y, ["frobenius_norm", name, "margin"])
        assert list(values) == ["frobenius_norm", name, "margin"] and values[name] == alone[name]
        labelled = measure_capacity(model, X, y, {"score": name, "m": "margin"})
        assert labelled == {"score": alone[name], "m": values["margin"]}
        report = capacity_report(model, X, y, ["frobenius_norm", name, "margin"]).set_index("measure")
        assert report.loc[name, ["value", "unit", "better"]].tolist() == [alone[name], "score", "higher"]
        assert report["value"].to_dict() == pytest.approx(values)


def test_scores_need_data():
    with pytest.raises(ValueError, match="`X` and `y` must be given for the scores 'accuracy'"):
        measure_capacity(network(4, 3), measures=["accuracy", "frobenius_norm"])


def tanh_network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


def caught(function, *args, **options):
    """The result, and the texts of the warnings that say what has no value."""
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        result = function(*args, **options)
    return result, [str(w.message) for w in shown if str(w.message).startswith("No value of")]


@pytest.mark.parametrize("measures", ["essential", "cheap"])
def test_a_group_says_once_per_reason_what_it_omits(measures):
    values, messages = caught(measure_capacity, tanh_network(), X, y, measures)
    report, _ = caught(capacity_report, tanh_network(), X, y, measures)
    missing = set(report.loc[report["reason"] != "", "measure"])
    assert missing == set(list_measures().query(measures)["name"]) - set(values)
    unsaid = {row.measure for row in report.itertuples() if "before training" in row.reason}  # not part of this call
    said = [message.removeprefix("No value of ").split(": ")[0].split(", ") for message in messages]
    assert sorted(sum(said, [])) == sorted(map(repr, missing - unsaid))
    assert len({message.partition(": ")[2] for message in messages}) == len(messages)
    (paths,) = (message for message in messages if "'l2_path_norm'" in message)
    assert "not defined for the operator `tanh` in layer `1 (Tanh)`" in paths
    if measures == "cheap":
        assert "'path_norm', 'l1_path_norm'" in paths


def test_a_group_is_silent_about_what_the_call_does_not_give():
    assert caught(measure_capacity, network(4, 8, 3), measures="essential")[1] == []
    assert caught(measure_capacity, network(4, 8, 1), X, X[:, 0])[1] == []


def test_one_obstacle_has_one_reason_in_a_report():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.fft.rfft(x).abs()

    module = nn.Sequential(nn.Linear(4, 4), Odd())
    names = ["l2_path_norm", "path_activity", "lipschitz_l2", "input_margin_bound"]
    report = capacity_report(module, X, y, [*names, "margin"]).set_index("measure")["reason"]
    assert report["margin"] == "" and set(report[names]) == {report["lipschitz_l2"]}
    assert report["lipschitz_l2"].startswith("not defined for the operator") and "`1 (Odd)`" in report["lipschitz_l2"]
    before = ["distance_from_initialization", "fro_dist", "dist_spec_init", "steps_to_loss"]
    (reason,) = set(capacity_report(module, X, y, before)["reason"])
    assert reason.startswith("needs the weights before training")


def test_a_comparison_says_once_per_reason_what_is_missing():
    models = {"first": tanh_network(), "second": tanh_network(), "third": network(4, 8, 3)}
    table, messages = caught(compare_capacity, models, X, y, "essential")
    (message,) = messages
    assert message.startswith("No value of 'l2_path_norm' for model 'first', 'second': not defined for the operator")
    assert table["l2_path_norm"].isna().tolist() == [True, True, False]


def test_an_error_without_words_and_a_pickled_one_have_their_reason():
    assert NotDefinedError().reason == "" and NotDefinedError("a").reason == "a"
    copied = pickle.loads(pickle.dumps(UnsupportedLayerError("A norm is not.", reason="not.")))
    assert (str(copied), copied.reason) == ("A norm is not.", "not.")
