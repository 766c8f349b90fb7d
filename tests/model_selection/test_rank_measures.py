"""Ranking measures by the generalization gap, against scipy and pairs counted in loops."""

from __future__ import annotations

import collections
import itertools
import math

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


# Conditional mutual information and granulated coefficients: references count pairs in loops -------------------------


def sign(x):
    return int(x > 0) - int(x < 0)


def entropy(counts):
    total = sum(counts.values())
    return -sum(n / total * math.log2(n / total) for n in counts.values() if n)


def information_in_loops(values, gaps, levels, chosen, *, competition=False):
    """Sums over the settings of both models of p(u) I and p(u) H, from tables of one setting at a time."""
    cells = collections.defaultdict(list)
    for i, j in itertools.product(range(len(gaps)), repeat=2):
        v, g = sign(values[i] - values[j]), sign(gaps[i] - gaps[j])
        if competition:
            v, g = v > 0, g > 0
        elif i == j or not g:
            continue
        cells[tuple((levels[i][h], levels[j][h]) for h in chosen)].append((v, g))
    n_pairs = sum(map(len, cells.values()))
    information = doubt = 0.0
    for symbols in cells.values():
        joint = entropy(collections.Counter(symbols))
        v, g = (entropy(collections.Counter(s[k] for s in symbols)) for k in (0, 1))
        information += len(symbols) / n_pairs * (v + g - joint)
        doubt += len(symbols) / n_pairs * g
    return information / doubt if doubt > 1e-9 else math.inf


def least_in_loops(values, gaps, levels, sizes, **options):
    sets = [s for size in sizes for s in itertools.combinations(range(len(levels[0])), size)]
    return min(information_in_loops(values, gaps, levels, s, **options) for s in sets)


def random_design(seed, n=24):
    """An incomplete design of three hyper-parameters, with ties in the gaps and in one measure."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {"width": rng.choice([8, 16, 32], n), "depth": rng.choice([1, 2], n), "rate": rng.choice(3, n)}
    )
    frame["gap"] = np.round(0.1 * frame["depth"] + 0.05 * frame["rate"] + 0.1 * rng.random(n), 2)
    frame["norm"] = frame["gap"] + 0.1 * rng.normal(size=n)
    frame["tied"] = np.round(20 * frame["norm"])
    return frame.assign(noise=rng.normal(size=n), count=frame["width"] * 10.0 + frame["depth"])


@pytest.mark.parametrize("seed", range(3))
def test_conditional_information_is_that_of_counted_pairs(seed):
    data = random_design(seed)
    by = ["width", "depth", "rate"]
    ranks = rank_measures(data, "gap", by, n_bootstrap=2).set_index("measure")
    levels = data[by].to_numpy().tolist()
    for name in ("norm", "tied", "noise", "count"):
        values, gaps = data[name].tolist(), data["gap"].tolist()
        expected = least_in_loops(values, gaps, levels, (0, 1, 2))
        assert ranks.loc[name, "cmi"] == pytest.approx(expected, abs=1e-12)
        score = 100 * least_in_loops(values, gaps, levels, (2,), competition=True)
        assert ranks.loc[name, "pgdl_score"] == pytest.approx(score, abs=1e-10)
    assert ranks.loc["count", "cmi"] == pytest.approx(0, abs=1e-12)  # it only repeats width and depth


def test_competition_score_on_a_complete_grid_weighs_all_settings_equally():
    """As its scoring program: a table of 2 x 2 for each pair of values of both models, and ratios of their sums."""
    rng = np.random.default_rng(2)
    grid = list(itertools.product([1, 2], [1, 2, 3], [1, 2]))
    data = pd.DataFrame(grid, columns=["a", "b", "c"]).assign(gap=rng.random(len(grid)))
    data["norm"] = data["gap"] + 0.3 * rng.normal(size=len(grid))
    scores = []
    for first, second in itertools.combinations("abc", 2):
        total_information = total_doubt = 0.0
        for u in itertools.product(
            data[first].unique(), data[first].unique(), data[second].unique(), data[second].unique()
        ):
            one = data[(data[first] == u[0]) & (data[second] == u[2])]
            two = data[(data[first] == u[1]) & (data[second] == u[3])]
            table = np.zeros((2, 2))
            for (_, x), (_, y) in itertools.product(one.iterrows(), two.iterrows()):
                table[int(x["gap"] > y["gap"]), int(x["norm"] > y["norm"])] += 1
            p = table / table.sum()
            outer = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
            total_information += sum(p[k] * math.log2(p[k] / outer[k]) for k in np.ndindex(2, 2) if p[k])
            total_doubt += entropy(dict(enumerate(p.sum(1))))
        scores.append(total_information / total_doubt)
    ranks = rank_measures(data, "gap", ["a", "b", "c"], n_bootstrap=2)
    assert ranks["pgdl_score"][0] == pytest.approx(100 * min(scores))


def test_information_of_the_gap_itself_is_one_in_either_direction():
    data = table(4).assign(gap=lambda t: t["train_accuracy"] - t["test_accuracy"])
    data = data.assign(same=data["gap"], opposite=-data["gap"])
    ranks = rank_measures(data, "gap", ["width", "depth"], measures=["same", "opposite"]).set_index("measure")
    assert ranks["cmi"].tolist() == pytest.approx([1, 1]) and ranks["tau"].tolist() == pytest.approx([1, -1])
    assert ranks["granulated"].tolist() == pytest.approx([1, -1])


def test_no_doubt_is_left_where_each_model_is_alone_in_its_setting():
    data = pd.DataFrame({"width": [1, 2, 3, 4], "gap": [0.1, 0.3, 0.2, 0.4], "norm": [1.0, 2, 3, 4]})
    row = rank_measures(data, "gap", ["width"]).iloc[0]
    # with S = {width} nothing is open; S = {} is left: 5 of 6 pairs agree, in both orders
    expected = 1 + (5 / 6) * math.log2(5 / 6) + (1 / 6) * math.log2(1 / 6)
    assert row["cmi"] == pytest.approx(expected)
    assert math.isnan(row["pgdl_score"])  # it needs two hyper-parameters
    tied = rank_measures(data.assign(gap=0.1), "gap", ["width"]).iloc[0]
    assert math.isnan(tied["cmi"]) and math.isnan(tied["tau"]) and tied["granulated"] == 0


def test_granulated_coefficients_are_means_over_the_settings_of_the_others():
    data = random_design(5, n=40)
    by = ["width", "depth", "rate"]
    ranks = rank_measures(data, "gap", by, measures=["norm", "tied"], n_bootstrap=2).set_index("measure")
    for name in ("norm", "tied"):
        coefficients = []
        for axis in by:
            taus = []
            for _, group in data.groupby([other for other in by if other != axis]):
                agreements = [
                    sign(x[name] - y[name]) * sign(x["gap"] - y["gap"])
                    for (_, x), (_, y) in itertools.combinations(group.iterrows(), 2)
                    if x[axis] != y[axis]
                ]
                taus += [np.mean(agreements)] if agreements else []
            coefficients.append(np.mean(taus))
            assert ranks.loc[name, f"granulated_{axis}"] == pytest.approx(coefficients[-1])
        assert ranks.loc[name, "granulated"] == pytest.approx(np.mean(coefficients))


def test_tasks_are_ranked_apart_and_averaged():
    one, two = random_design(6), random_design(7, n=30)
    two["gap"] += 10  # models of different tasks are not compared
    both = pd.concat([one.assign(data="a"), two.assign(data="b")], ignore_index=True)
    by = ["width", "depth", "rate"]
    together = rank_measures(both, "gap", [*by, "data"], tasks="data").set_index("measure")
    apart = [rank_measures(part, "gap", by).set_index("measure") for part in (one, two)]
    assert set(together.index) == {"norm", "tied", "noise", "count"} and "sign_error_data" not in together
    for column in ("tau", "cmi", "pgdl_score", "granulated", "sign_error_rate", "granulated_rate"):
        mean = sum(ranks[column] for ranks in apart) / 2
        pd.testing.assert_series_equal(together[column].sort_index(), mean.sort_index(), check_names=False)
    for column in ("n_models", "n_pairs_width"):
        total = sum(ranks[column] for ranks in apart)
        pd.testing.assert_series_equal(together[column].sort_index(), total.sort_index(), check_names=False)
    assert (together["tau_low"] < together["tau"]).all() and (together["tau"] < together["tau_high"]).all()
    with pytest.raises(ValueError, match=r"at least 2 models with a finite gap for each of `tasks` \('data'\), got 1"):
        rank_measures(both[:25], "gap", by, tasks="data")
