"""The largest number of passes that a call announces."""

from __future__ import annotations

import torch
from torch import nn

from networks import NETWORKS
from sklearn_capacity import capacity_report, measure_capacity
from sklearn_capacity.scoring.measurement import Session
from sklearn_capacity.scoring.pass_totals import PassTotal, pass_total
from sklearn_capacity.scoring.requests import parse_measures


class Counted(nn.Module):
    """Counts the samples that it sees."""

    seen = 0

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        Counted.seen += len(x)
        return self.last(torch.relu(self.first(x)))


def total_of(measures, *, group=None, **options):
    module, X, y = NETWORKS["residual"]()
    requests, _ = parse_measures(measures)
    return pass_total(Session(module, X, y, **options), requests, group=group, timed=False)


def test_measures_share_what_they_compute_once():
    alone, both = total_of(["margin"]), total_of(["margin", "min_margin", "softmax_score"])
    assert alone == both
    assert total_of(["jacobian_frobenius", "jacobian_spectral"]) == total_of(["jacobian_frobenius"])
    # Another number of draws is another search.
    few, many = ({"pacbayes_flatness": ("pacbayes_flatness", {"n_draws": n})} for n in (2, 20))
    more = {"a": ("pacbayes_flatness", {"n_draws": 2}), "b": ("pacbayes_flatness", {"n_draws": 20})}
    assert total_of(few).at_most < total_of(many).at_most < total_of(more).at_most


def test_labels_of_one_measure_count_each():
    once = {"a": ("max_sharpness", {"steps": 100})}
    twice = {**once, "b": ("max_sharpness", {"steps": 100})}
    assert total_of(twice).at_most > 1.8 * total_of(once).at_most


def test_functions_of_a_user_are_named_as_not_counted():
    total = total_of({"mine": lambda network, batch: 1.0, "margin": "margin"})
    assert total.without_limit == ["mine"]
    assert str(total) == f"At most {total.at_most} passes of the network over the data. Not counted: mine."
    estimate = {"radius": ("input_margin_bound", {"method": "jacobian"})}
    assert total_of(estimate).without_limit == ["radius"]


def test_weights_alone_take_no_passes():
    report = capacity_report(nn.Linear(3, 2), measures=["frobenius_norm", "spectral_norm"])
    assert report.attrs["passes"] == {"at_most": 0, "seconds": None, "without_limit": []}


def test_wrong_parameters_are_left_to_the_measure():
    report = total_of({"draws": ("expected_sharpness", {"n_draws": "many"}), "margin": "margin"})
    assert report == total_of(["margin"])


def test_the_samples_that_a_report_shows_a_module_are_within_the_total():
    X, y = torch.randn(20, 4), torch.arange(20) % 3
    for measures in ("essential", "cheap", ["fisher_trace", "hessian_max_eigenvalue", "expected_sharpness"]):
        Counted.seen = 0
        report = capacity_report(Counted(), X, y, measures)
        assert 0 < Counted.seen <= 20 * report.attrs["passes"]["at_most"]


def test_the_line_comes_before_the_measures(capsys):
    module, X, y = NETWORKS["residual"]()
    measure_capacity(module, X, y, ["margin"], verbose=1)
    shown = capsys.readouterr().err
    assert shown.index("At most ") < shown.index("1/1")
    assert " passes of the network over the data, about " in shown
    total = PassTotal(**capacity_report(module, X, y, ["margin"], verbose=1).attrs["passes"])
    assert total.seconds is not None and total.seconds > 0
    assert f"At most {total.at_most} passes" in capsys.readouterr().err
