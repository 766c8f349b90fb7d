"""The studies of the papers: each runs at scale tiny, and what they share resumes, reads data and judges."""

from __future__ import annotations

import json
import runpy
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from structure import ROOT

FOLDER = ROOT / "examples" / "papers"
SCRIPTS = [path for path in sorted(FOLDER.glob("*.py")) if "\nSTUDY = " in path.read_text()]
sys.path.append(str(FOLDER))

from study import Study  # noqa: E402
from study.images import Images, load_images  # noqa: E402
from study.table import CellTable  # noqa: E402
from study.verdict import judge, mean_and_error  # noqa: E402


# Tiny networks may fail to learn, and the choice of a learning rate tries those that are too large.
@pytest.mark.filterwarnings("ignore::sklearn_capacity._validation.CapacityWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_study_runs_and_resumes(path: Path, tmp_path: Path):
    study = runpy.run_path(str(path), run_name=path.stem)["STUDY"]
    assert study.name == path.stem and set(study.scales) == {"tiny", "small", "paper"}
    arguments = ["--scale", "tiny", "--seeds", "0", "--output", str(tmp_path)]
    study.main(arguments)
    csv, png, verdict = (tmp_path / f"{path.stem}_tiny{ending}" for ending in (".csv", ".png", ".json"))
    rows, document, drawn = csv.read_text(), json.loads(verdict.read_text()), png.read_bytes()
    table = pd.read_csv(csv)
    assert document["cells"] == len(table) and (table["cpu_seconds"] >= 0).all()
    assert document["claims"] and all(np.isfinite(claim["mean"]) for claim in document["claims"])
    assert drawn.startswith(b"\x89PNG")
    study.main(arguments)  # nothing is left to run
    assert csv.read_text() == rows and json.loads(verdict.read_text()) == document


def a_study(calls: list) -> Study:
    def run(data, *, seed, device, slope, length):
        calls.append((seed, slope))
        return {"value": slope * length + seed / 3, "curve": np.arange(3) / 7}

    def draw(rows, figure):
        figure.subplots().plot(rows["slope"], rows["value"])

    def claims(rows):
        return {"the value is positive": rows.groupby("seed")["value"].min()}

    grids = [{"slope": [1, 2], "length": 3}, {"slope": 5, "length": [0]}]
    scales = {"tiny": {"slope": [1, 2], "length": 3}, "small": grids, "paper": grids}
    return Study("[X] figure 1", "A statement.", None, scales, run, draw, claims)


def run_study(calls: list, output: Path, *arguments: str):
    return a_study(calls).main(["--output", str(output), *arguments])


def test_a_grid_has_all_combinations(tmp_path: Path):
    calls: list = []
    run_study(calls, tmp_path)
    assert calls == [(seed, slope) for seed in (0, 1, 2) for slope in (1, 2, 5)]


def test_each_seed_may_have_cells_of_its_own(tmp_path: Path):
    calls: list = []
    study = a_study(calls)
    scales = {**study.scales, "tiny": lambda seed: [{"slope": seed + 1, "length": 3}, {"slope": [5, 6], "length": 1}]}
    replace(study, scales=scales).main(["--scale", "tiny", "--output", str(tmp_path)])
    assert calls == [(0, 1), (0, 5), (0, 6), (1, 2), (1, 5), (1, 6)]


def test_several_data_sets_have_all_cells_each(tmp_path: Path):
    calls: list = []
    study = replace(a_study(calls), data=("mnist", "cifar10"), run=lambda data, **_: {"value": data.X.shape[-1]})
    study.main(["--scale", "tiny", "--output", str(tmp_path), "--seeds", "0", "--data", "digits"])
    rows = pd.read_csv(tmp_path / "test_studies_tiny.csv")
    assert rows["value"].tolist() == [8, 32, 8, 32] and rows["data"].nunique() == 2
    document = json.loads((tmp_path / "test_studies_tiny.json").read_text())
    assert document["data"] == ", ".join(rows["data"][:2])


def test_only_missing_cells_run(tmp_path: Path):
    calls: list = []
    run_study(calls, tmp_path, "--scale", "tiny", "--seeds", "0")
    run_study(calls, tmp_path, "--scale", "tiny", "--seeds", "0", "1")
    assert calls == [(0, 1), (0, 2), (1, 1), (1, 2)]
    run_study(calls, tmp_path, "--seeds", "0")  # another scale is another file
    assert len(calls) == 7


def test_a_row_that_was_cut_off_runs_again(tmp_path: Path):
    calls: list = []
    run_study(calls, tmp_path, "--seeds", "0")
    path = tmp_path / "test_studies_small.csv"
    text = path.read_text()
    path.write_text(text[: text.rindex(",") + 2])  # the last number lacks its end, and so does the line
    run_study(calls, tmp_path, "--seeds", "0")
    assert calls[3:] == [(0, 5)]
    assert len(pd.read_csv(path)) == 3


def test_results_come_back_as_they_were(tmp_path: Path):
    settings = {"seed": 0, "rate": 0.1, "method": 'a "quoted", name', "sizes": (3, 4)}
    results = {"number": np.float32(0.5), "list": np.array([1.0, np.inf, np.nan]), "count": 3}
    CellTable(tmp_path / "t.csv", list(settings)).add(settings, results)
    again = CellTable(tmp_path / "t.csv", list(settings)).find(settings)
    np.testing.assert_equal(again, {"number": 0.5, "list": [1.0, np.inf, np.nan], "count": 3.0})
    assert CellTable(tmp_path / "t.csv", list(settings)).find({**settings, "seed": 1}) is None


def test_other_columns_are_refused(tmp_path: Path):
    table = CellTable(tmp_path / "t.csv", ["seed"])
    table.add({"seed": 0}, {"value": 1})
    with pytest.raises(ValueError, match=r"must get the results .*: pass another --output"):
        table.add({"seed": 1}, {"other": 1})
    with pytest.raises(ValueError, match=r"must have the settings width, seed .*, got seed, value"):
        CellTable(tmp_path / "t.csv", ["width", "seed"])


def test_cells_in_other_processes_give_the_same_rows(tmp_path: Path):
    calls: list = []
    run_study(calls, tmp_path / "two", "--jobs", "2")
    assert calls == []  # not in this process
    run_study(calls, tmp_path / "one")
    one, two = (
        pd.read_csv(tmp_path / folder / "test_studies_small.csv").sort_values(["seed", "slope"], ignore_index=True)
        for folder in ("one", "two")
    )
    pd.testing.assert_frame_equal(one.drop(columns="cpu_seconds"), two.drop(columns="cpu_seconds"))


# Verdicts ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "outcome"),
    [
        ([1.0, 1.1, 0.9], "reproduced"),
        ([-1.0, -1.1, -0.9], "not reproduced"),
        ([1.0, -1.0, 0.5], "inconclusive at this scale"),
        ([0.0, 0.0, 0.0], "inconclusive at this scale"),
        ([2.0, 2.0, 2.0], "reproduced"),  # no spread at all
        ([5.0], "inconclusive at this scale"),  # one seed tells nothing about others
        # three seeds with a mean of 1: Student's quantile is 2.92 standard errors
        ([1 - 0.58, 1.0, 1 + 0.58], "reproduced"),
        ([1 - 0.61, 1.0, 1 + 0.61], "inconclusive at this scale"),
    ],
)
def test_outcome_of_a_claim(values, outcome):
    assert judge({"a": values}).outcome == outcome


def test_outcome_of_several_claims():
    holds, fails, undecided = [1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]
    assert judge({"a": holds, "b": holds}).outcome == "reproduced"
    assert judge({"a": holds, "b": undecided}).outcome == "inconclusive at this scale"
    verdict = judge({"a": holds, "b": undecided, "c": fails})
    assert str(verdict) == "NOT REPRODUCED: 1 of 3 claims hold"
    assert "  not reproduced: c -1 +- 0" in verdict.details()


def test_mean_and_error():
    assert mean_and_error([1.0, 3.0]) == (2.0, 1.0)
    assert np.isnan(mean_and_error([1.0])[1])


# Data ----------------------------------------------------------------------------------------------------------------


def test_images_from_a_file(tmp_path: Path):
    X = np.random.default_rng(0).integers(0, 256, (12, 28, 28), dtype=np.uint8)
    np.savez(tmp_path / "digits.npz", X=X, y=np.arange(12, dtype=np.uint8) % 3)
    images, label = load_images("mnist", str(tmp_path / "digits.npz"))
    assert images.X.shape == (12, 1, 28, 28) and images.X.dtype == np.float32
    np.testing.assert_allclose(images.X[:, 0], X / 255.0, rtol=1e-6)
    np.savez(tmp_path / "digits.npz", X=X[::-1], y=np.arange(12, dtype=np.uint8) % 3)
    assert load_images("mnist", str(tmp_path / "digits.npz"))[1] != label  # other digits: other cells
    with pytest.raises(ValueError, match=r"must hold images of shape \(3, 32, 32\) .* got \(28, 28\)"):
        load_images("cifar10", str(tmp_path / "digits.npz"))
    assert load_images("mnist", str(tmp_path / "digits.npz"))[1].startswith("mnist-")
    with pytest.raises(FileNotFoundError, match='--data must be "fetch", "digits" or the path'):
        load_images("mnist", "no-such-file.npz")


def test_images_from_a_folder(tmp_path: Path):
    for name, shape in (("mnist_few", (28, 28)), ("cifar10_few", (3, 32, 32))):
        np.savez(tmp_path / f"{name}.npz", X=np.ones((4, *shape), np.uint8), y=np.arange(4))
    assert load_images("mnist", str(tmp_path))[0].X.shape == (4, 1, 28, 28)
    assert load_images("cifar10", str(tmp_path))[0].X.shape == (4, 3, 32, 32)
    np.savez(tmp_path / "mnist.npz", X=np.ones((4, 28, 28), np.uint8), y=np.arange(4))
    with pytest.raises(FileNotFoundError, match=r"must have one file mnist\*.npz, got 2"):
        load_images("mnist", str(tmp_path))


@pytest.mark.parametrize(("name", "shape"), [("mnist", (1, 8, 8)), ("cifar10", (3, 32, 32))])
def test_digits_stand_in_for_both(name, shape):
    images, label = load_images(name, "digits")
    assert images.X.shape == (1797, *shape) and label.startswith("digits-")


def test_reduced_images_hold_the_means_of_squares():
    X = np.arange(2 * 3 * 6 * 6, dtype=np.float32).reshape(2, 3, 6, 6)
    reduced = Images(X, np.arange(2)).reduced(4)  # 6 // 4 = 1: as they are
    np.testing.assert_array_equal(reduced.X, X)
    reduced = Images(X, np.arange(2)).reduced(3)
    np.testing.assert_allclose(reduced.X, X.reshape(2, 3, 3, 2, 3, 2).mean((3, 5)))


def test_no_seed_trains_on_the_last_images():
    images = Images(np.arange(10.0).reshape(10, 1, 1, 1), np.arange(10))
    for seed in range(5):
        X, y, X_test, y_test = images.split(6, 3, seed)
        assert len(set(y)) == 6 and set(y) <= set(range(7)) and list(y_test) == [7, 8, 9]
        assert (X.ravel() == y).all() and (X_test.ravel() == y_test).all()
    with pytest.raises(ValueError, match=r"8 \+ 3 images are needed, got 10"):
        images.split(8, 3, 0)
