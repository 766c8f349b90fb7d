"""The Davies-Bouldin index against scikit-learn's, and errors on midpoints against loops over pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from sklearn.metrics import davies_bouldin_score
from torch import nn

from networks import NETWORKS, make, measure_module
from sklearn_capacity import NotDefinedError, capacity_report, measure_capacity


def features(module, name, X):
    """What a submodule reads."""
    seen = []
    handle = module.get_submodule(name).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(X)
    handle.remove()
    return seen[0].detach().flatten(1).numpy()


@pytest.mark.parametrize(
    ("case", "default", "other"),
    [
        ("mlp", "2", "4"),
        ("conv_max_pool", "3", "0"),
        ("residual", "blocks.0.conv2", "head"),
        ("tokens", "second", "head"),
    ],
)
def test_index_is_that_of_scikit_learn(case, default, other):
    module, X, y = NETWORKS[case]()
    expected = davies_bouldin_score(features(module, default, X), y.numpy())
    for chunk in (None, 3):
        result = measure_capacity(module, X, y, "davies_bouldin", batch_size=chunk)["davies_bouldin"]
        assert result == pytest.approx(expected, rel=1e-9)
    expected = davies_bouldin_score(features(module, other, X), y.numpy())
    assert measure_module(module, X, "davies_bouldin", y=y, layer=other).value == pytest.approx(expected, rel=1e-9)


def test_index_of_a_thousand_classes_of_which_few_occur():
    module, X, _ = make(lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1000)), (3,))
    y = torch.tensor([7, 7, 999, 999, 0, 7, 0])
    expected = davies_bouldin_score(features(module, "2", X), y.numpy())
    assert measure_module(module, X, "davies_bouldin", y=y).value == pytest.approx(expected, rel=1e-9)


def test_index_of_classes_with_one_mean_is_infinite():
    net = nn.Sequential(nn.Linear(1, 1), nn.Identity(), nn.Linear(1, 2)).double()
    X, y = torch.tensor([[-1.0], [1.0], [-2.0], [2.0]]).double(), torch.tensor([0, 0, 1, 1])
    assert measure_module(net, X, "davies_bouldin", y=y, layer="0").value == math.inf


def by_pairs(module, X, y):
    """The mean over classes of the share of midpoints of another class, pair by pair."""
    rates = []
    for c in sorted(set(y.tolist())):
        members = [x for x, label in zip(X, y.tolist(), strict=True) if label == c]
        pairs = list(itertools.combinations(members, 2))
        wrong = [int(module(((a + b) / 2)[None]).argmax(1)) != c for a, b in pairs]
        rates += [np.mean(wrong)] if pairs else []
    return float(np.mean(rates))


@pytest.mark.parametrize("case", ["mlp", "conv_batch_norm", "residual", "mlp_tanh"])
def test_error_on_all_pairs(case):
    module, X, y = NETWORKS[case]()
    y = torch.tensor([0, 0, 0, 1, 1, 2, 0])  # one class has a single sample, which makes no pair
    expected = by_pairs(module, X, y)
    for chunk in (None, 2):
        report = capacity_report(module, X, y, "mixup_error", batch_size=chunk)
        assert report.loc[0, "value"] == pytest.approx(expected, abs=1e-12)
        assert report.loc[0, "standard_error"] == 0


def many():
    module, _, _ = make(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (4,))
    X = 2 * torch.randn(60, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return module, X, module(X).argmax(1)


def test_standard_errors_of_drawn_pairs_cover():
    module, X, y = many()
    truth = by_pairs(module, X, y)
    assert 0.02 < truth < 0.98
    hits = 0
    for seed in range(100):
        request = {"e": ("mixup_error", {"n_pairs": 300})}
        report = capacity_report(module, X, y, request, random_state=seed)
        hits += abs(report.loc[0, "value"] - truth) <= 2 * report.loc[0, "standard_error"]
    assert hits >= 90


def test_no_error_among_the_draws_counts_as_one_in_all():
    X = 3 * torch.eye(2, dtype=torch.float64).repeat_interleave(30, dim=0)
    request = {"e": ("mixup_error", {"n_pairs": 40})}  # 20 of the 435 pairs of each class
    report = capacity_report(nn.Identity(), X, torch.arange(60) // 30, request)
    assert report.loc[0, "value"] == 0 and report.loc[0, "standard_error"] == pytest.approx(1 / 40)


def test_winner_is_the_product():
    module, X, y = many()
    names = ["davies_bouldin", "mixup_error", "davies_bouldin_mixup"]
    result = measure_capacity(module, X, y, names)
    assert result["davies_bouldin_mixup"] == pytest.approx(result["davies_bouldin"] * result["mixup_error"])
    drawn = {"both": ("davies_bouldin_mixup", {"n_pairs": 30, "layer": "0"}), "e": ("mixup_error", {"n_pairs": 30})}
    report = capacity_report(module, X, y, drawn).set_index("measure")
    index = davies_bouldin_score(X.numpy(), y.numpy())
    assert report.standard_error["both"] == pytest.approx(index * report.standard_error["e"])


def test_what_is_refused():
    module, X, y = NETWORKS["mlp"]()
    with pytest.raises(NotDefinedError, match="needs at least two classes, but y has 1"):
        measure_capacity(module, X, 0 * y, "davies_bouldin")
    with pytest.raises(NotDefinedError, match="needs a hidden layer, but the network has none"):
        measure_capacity(nn.Linear(5, 3), X, y, "davies_bouldin")
    with pytest.raises(NotDefinedError, match="needs a class of two samples or more"):
        measure_capacity(module, X[:3], y[:3], "mixup_error")
    with pytest.raises(ValueError, match="`layer` must be the name of a weight layer, got '9'"):
        measure_module(module, X, "davies_bouldin", y=y, layer="9")
    with pytest.raises(ValueError, match="`n_pairs` must be at least 1"):
        measure_module(module, X, "mixup_error", y=y, n_pairs=0)
