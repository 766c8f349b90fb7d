"""Ranking measures by the generalization gap, against scipy and pairs counted in loops."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau

from sklearn_capacity.model_selection import rank_measures


def table(seed=0, n_seeds=2):
    """A grid of width, depth and batch size with two noisy measures, one of them with ties."""
    rng = np.random.default_rng(seed)
    rows = []
    for width, depth, _ in itertools.product([8, 16, 32], [1, 2], range(n_seeds)):
        gap = 0.05 * depth + 0.01 * np.log2(width) + 0.02 * rng.normal()
        rows.append({"width": width, "depth": depth, "test_accuracy": 0.9 - gap, "train_accuracy": 0.9})
        rows[-1] |= {"path_norm": gap + 0.02 * rng.normal(), "margin": float(np.round(-20 * gap)), "note": "x"}
    return pd.DataFrame(rows)


def test_tau_is_scipys_and_higher_is_better_is_turned_round():
    data = table()
    ranks = rank_measures(data).set_index("measure")
    gap = data["train_accuracy"] - data["test_accuracy"]
    assert ranks.loc["path_norm", "tau"] == pytest.approx(kendalltau(data["path_norm"], gap).statistic)
    assert ranks.loc["margin", "tau"] == pytest.approx(-kendalltau(data["margin"], gap).statistic)
    assert ranks["better"].to_dict() == {"path_norm": "lower", "margin": "higher"}
    assert ranks["tau"].is_monotonic_decreasing and (ranks["n_models"] == 12).all()


def test_sign_errors_are_those_of_pairs_that_differ_in_one_hyperparameter():
    data = table(3)
    ranks = rank_measures(data, by=["width", "depth"]).set_index("measure")
    gap = (data["train_accuracy"] - data["test_accuracy"]).to_numpy()
    for measure, turn in (("path_norm", 1), ("margin", -1)):
        values = turn * data[measure].to_numpy()
        for changed, kept in (("width", "depth"), ("depth", "width")):
            errors = [
                (1 - np.sign(values[i] - values[j]) * np.sign(gap[i] - gap[j])) / 2
                for i, j in itertools.combinations(range(len(data)), 2)
                if data[changed][i] != data[changed][j] and data[kept][i] == data[kept][j]
            ]
            assert ranks.loc[measure, f"sign_error_{changed}"] == pytest.approx(np.mean(errors))
            assert ranks.loc[measure, f"n_pairs_{changed}"] == len(errors)


def test_interval_is_that_of_resampled_models():
    data = table(1)
    row = rank_measures(data, measures=["path_norm"], n_bootstrap=4000).iloc[0]
    gap = (data["train_accuracy"] - data["test_accuracy"]).to_numpy()
    rng, taus = np.random.default_rng(5), []
    for _ in range(4000):
        drawn = rng.integers(len(data), size=len(data))
        taus.append(kendalltau(data["path_norm"].to_numpy()[drawn], gap[drawn]).statistic)
    low, high = np.nanquantile(taus, [0.025, 0.975])
    # quantiles of 4000 draws: their own standard error is about 0.01 here
    assert row["tau_low"] == pytest.approx(low, abs=0.05) and row["tau_high"] == pytest.approx(high, abs=0.05)
    assert rank_measures(data, measures=["path_norm"], n_bootstrap=4000).iloc[0].equals(row)
    narrow = rank_measures(data, measures=["path_norm"], confidence=0.5).iloc[0]
    assert row["tau_low"] < narrow["tau_low"] < narrow["tau_high"] < row["tau_high"]


def test_gap_columns_scorer_names_and_models_without_a_number():
    data = table().assign(gap=lambda t: t["train_accuracy"] - t["test_accuracy"])
    data["neg_path_norm"] = -data["path_norm"]
    data.loc[0, "path_norm"] = np.nan
    data.loc[1, "margin"] = -np.inf  # ordered all the same
    names = ["path_norm", "neg_path_norm", "margin"]
    ranks = rank_measures(data, "gap", ["width"], measures=names).set_index("measure")
    assert ranks["n_models"].to_dict() == {"path_norm": 11, "neg_path_norm": 12, "margin": 12}
    assert ranks.loc["neg_path_norm", "better"] == "higher"
    plain = rank_measures(table()).set_index("measure")
    assert ranks.loc["neg_path_norm", "tau"] == pytest.approx(plain.loc["path_norm", "tau"])
    pair = rank_measures(data, ("train_accuracy", "test_accuracy"), measures=["margin"])
    assert pair["tau"][0] == pytest.approx(ranks.loc["margin", "tau"])


def test_hyperparameters_may_be_any_objects():
    data = table()
    data.insert(0, "layers", [(8,), (8, 8)] * 6)
    data.insert(1, "optimizer_params", [{"a": 1}] * 12)
    ranks = rank_measures(data)
    assert "sign_error_layers" in ranks and (ranks["n_pairs_optimizer_params"] == 0).all()
    assert ranks["sign_error_optimizer_params"].isna().all()


def test_a_measure_that_never_changes_orders_nothing():
    data = table().assign(constant=1.0)
    row = rank_measures(data, measures=["constant"]).iloc[0]
    assert np.isnan([row["tau"], row["tau_low"], row["tau_high"]]).all()
    assert row["sign_error_width"] == 0.5


def test_refusals():
    data = table()
    with pytest.raises(ValueError, match="The table has no column 'gapp'"):
        rank_measures(data, "gapp")
    with pytest.raises(ValueError, match="Did you mean 'width'"):
        rank_measures(data, by=["widht"])
    message = "`gap` must name a column, or a training and a test score, since `table` has none"
    with pytest.raises(ValueError, match=message):
        rank_measures(data.drop(columns="train_accuracy"))
    with pytest.raises(ValueError, match="at least 2 models with a finite gap, got 1"):
        rank_measures(data[:1])
    with pytest.raises(ValueError, match="columns of measures besides the gap"):
        rank_measures(data.drop(columns=["path_norm", "margin"]))
    with pytest.raises(ValueError, match="`confidence` must lie in"):
        rank_measures(data, confidence=1.0)
    with pytest.raises(ValueError, match="`n_bootstrap` must be at least 2, got 1"):
        rank_measures(data, n_bootstrap=1)
    with pytest.raises(TypeError, match="`table` must be a DataFrame such as from `capacity_table`, got dict"):
        rank_measures({"gap": [0.1, 0.2]}, "gap")
    with pytest.raises(TypeError, match="Column 'kind' of `table` must contain numbers"):
        rank_measures(data.assign(kind="a"), measures="kind")
