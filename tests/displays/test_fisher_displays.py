"""FisherSpectrumDisplay and CapacityGapDisplay: the artists, and the refusals."""

from __future__ import annotations

import matplotlib

matplotlib.use("Agg")

import numpy as np  # noqa: E402
import pandas as pd  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV  # noqa: E402
from torch import nn  # noqa: E402

from sklearn_capacity import CapacityScorer, fisher_spectrum  # noqa: E402
from sklearn_capacity.displays import CapacityGapDisplay, FisherSpectrumDisplay  # noqa: E402
from sklearn_capacity.model_selection import rank_measures  # noqa: E402
from sklearn_capacity.theory import initialize_mean_field, mean_field  # noqa: E402


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_spectrum_of_a_model_with_mean_field_lines():
    net = nn.Sequential(nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 2))
    net = initialize_mean_field(net, 3.0, 0.64, random_state=0)
    X = torch.randn(30, 40, generator=torch.Generator().manual_seed(0))
    theory = mean_field("tanh", 3.0, 0.64, depth=3, width=40, n_outputs=2, output="linear")
    display = FisherSpectrumDisplay.from_estimator(net, X, mean_field=theory).plot()
    spectrum = fisher_spectrum(net, X)
    assert display.lines_[""].get_ydata() == pytest.approx(spectrum[spectrum > 1e-12 * spectrum[0]])
    assert display.lines_[""].get_xdata()[0] == 1
    assert display.mean_.get_ydata()[0] == theory.mean_eigenvalue
    ranks, bound = display.bound_.get_data()
    assert bound[0] == pytest.approx(theory.alpha * theory.K1 * 40) and bound[-1] * ranks[-1] == pytest.approx(bound[0])
    heights = display.largest_.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx(theory.max_eigenvalue_bounds)
    assert display.ax_.get_xscale() == display.ax_.get_yscale() == "log"


def test_a_lower_bound_of_zero_leaves_the_axis_alone():
    theory = mean_field("linear", 1.0, 0.0, 3, 20)
    display = FisherSpectrumDisplay([100.0, 1.0, 0.1], theory).plot()
    assert theory.max_eigenvalue_bounds[0] == 0
    assert display.ax_.get_ylim()[0] > 1e-3


def test_several_spectra_on_given_axes():
    data = {"trained": [4.0, 1.0, 0.0], "initial": np.array([1.0, 2.0])}
    _, ax = plt.subplots()
    display = FisherSpectrumDisplay(data).plot(ax)
    assert display.ax_ is ax and display.mean_ is None
    assert display.lines_["trained"].get_ydata().tolist() == [4.0, 1.0]
    assert display.lines_["initial"].get_ydata().tolist() == [2.0, 1.0]
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["trained", "initial"]
    assert data["initial"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "dimensional and finite"),
        ([0.0], "above 0"),
        ([[1.0]], r"shape \(1, 1\)"),
        ({}, "at least one spectrum"),
    ],
)
def test_what_is_no_spectrum_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        FisherSpectrumDisplay(values).plot()


def table(n=12):
    rng = np.random.default_rng(0)
    gap = rng.uniform(0, 0.2, n)
    return pd.DataFrame(
        {
            "width": np.tile([8, 16, 32], n // 3),
            "train_accuracy": 0.95,
            "test_accuracy": 0.95 - gap,
            "path_norm": np.exp(40 * gap),
            "margin": -gap + 0.02 * rng.normal(size=n),
            "fisher_trace": rng.normal(size=n),
            "spectral_norm": np.where(np.arange(n) == 0, np.inf, gap),
        }
    )


def test_a_panel_per_measure_with_its_rank_correlation():
    data = table()
    before = data.copy()
    display = CapacityGapDisplay(data, color="width").plot()
    pd.testing.assert_frame_equal(data, before)
    pd.testing.assert_frame_equal(display.ranks_, rank_measures(data))
    assert list(display.points_) == display.ranks_["measure"].tolist() and len(display.axes_) == 4
    offsets = display.points_["path_norm"].get_offsets()
    assert np.asarray(offsets) == pytest.approx(np.c_[data["path_norm"], 0.95 - data["test_accuracy"]])
    panel = dict(zip(display.points_, display.axes_, strict=True))
    assert panel["path_norm"].get_xscale() == "log" and panel["margin"].get_xscale() == "linear"
    assert "higher is better" in panel["margin"].get_xlabel()
    assert "1.00" in panel["path_norm"].get_title()
    assert len(display.points_["spectral_norm"].get_offsets()) == 11
    assert any("1 not finite" in t.get_text() for t in panel["spectral_norm"].texts)
    assert [t.get_text() for t in display.axes_[0].get_legend().get_texts()] == ["8", "16", "32"]


def test_from_a_search():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 3))
    y = (X[:, 0] + rng.normal(size=60) > 0).astype(int)
    scorer = CapacityScorer(["accuracy", "fisher_rao_norm", "margin"])
    search = GridSearchCV(
        LogisticRegression(), {"C": [0.01, 1.0, 100.0]}, scoring=scorer, refit=False, cv=2, return_train_score=True
    ).fit(X, y)
    _, axes = plt.subplots(1, 2)
    display = CapacityGapDisplay.from_search(search, color="C").plot(axes)
    assert set(display.points_) == {"fisher_rao_norm", "margin"}
    with pytest.raises(ValueError, match="`axes` must contain 2 Axes, one per measure, got 1"):
        display.plot(axes[0])


def test_unknown_columns_are_refused():
    with pytest.raises(ValueError, match="no column 'widht'. Did you mean 'width'"):
        CapacityGapDisplay(table(), color="widht").plot()
    with pytest.raises(ValueError, match="no column 'path_nrm'"):
        CapacityGapDisplay(table(), measures=["path_nrm"]).plot()
