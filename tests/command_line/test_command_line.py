"""The command line: every command of its documentation, every form of model and data, and every mistake."""

from __future__ import annotations

import json
import os
import pickle
import re
import shlex
import subprocess
import sys
import zipfile
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from sklearn_capacity import NetworkClassifier, measure_capacity, save
from sklearn_capacity.command_line import main, sizes
from sklearn_capacity.command_line.data import read_data
from sklearn_capacity.command_line.models import read_model
from structure import ROOT

FACTORY = """
from torch import nn

def small():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))

def broken():
    raise KeyError("no")

def nothing():
    return None
"""


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The files of the documentation."""
    folder = tmp_path_factory.mktemp("models")
    iris = load_iris(as_frame=True)
    X, y = iris.data.to_numpy(dtype="float32"), iris.target.to_numpy()
    species = iris.target_names[y]
    iris.data.assign(species=species).to_csv(folder / "iris.csv", index=False)
    np.savez(folder / "iris.npz", X=X, y=y)
    for name, size in (("iris", 5), ("wide", 20)):
        save(NetworkClassifier((size,), max_epochs=2, random_state=0).fit(X, species), folder / f"{name}.safetensors")
    (folder / "networks.py").write_text(FACTORY)
    names: dict = {}
    exec(FACTORY, names)
    torch.manual_seed(0)
    module = names["small"]().eval()
    save_file(module.state_dict(), folder / "small.safetensors")
    batch = torch.export.Dim("batch", min=2)
    torch.export.save(torch.export.export(module, (torch.from_numpy(X[:4]),), dynamic_shapes=({0: batch},)),
                      folder / "network.pt2")  # fmt: skip
    joblib.dump(LogisticRegression(max_iter=500).fit(X, species), folder / "model.joblib")
    return folder, module, X, y


@pytest.fixture
def folder(prepared, monkeypatch):
    monkeypatch.chdir(prepared[0])
    monkeypatch.setattr(sys, "path", [*sys.path])
    sys.modules.pop("networks", None)
    yield prepared[0]
    sys.modules.pop("networks", None)


PAGE = (ROOT / "docs" / "command_line.rst").read_text()
COMMANDS = re.findall(r"^   \$ sklearn-capacity (.*)$", PAGE, flags=re.MULTILINE)


@pytest.mark.filterwarnings("ignore::sklearn_capacity.CapacityWarning")
@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_page_run(folder, capsys, command):
    assert main(shlex.split(command)) == 0
    shown = capsys.readouterr()
    assert (shown.out == "") == ("--output" in command) and "Traceback" not in shown.err
    for written in re.findall(r"--(?:output|plot) (\S+)", command):
        assert (folder / written).stat().st_size > 100


def test_a_report_is_what_the_function_gives(prepared, folder, capsys):
    _, module, X, y = prepared
    expected = measure_capacity(module, X, y, ["frobenius_norm", "accuracy", "margin"])
    for model in ("network.pt2", "networks:small@small.safetensors"):
        assert main(["report", model, "iris.npz", "--measures", *expected, "--format", "json"]) == 0
        rows = json.loads(capsys.readouterr().out)
        assert {row["measure"]: row["value"] for row in rows} == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("how", ["table", "json", "csv", "markdown"])
def test_formats(folder, capsys, how):
    arguments = ["compare", "iris.safetensors", "wide.safetensors", "iris.npz", "--measures", "parameter_count"]
    assert main(["list", "--format", how, "--output", "listed"]) == 0
    assert "fisher_rao_norm" in (folder / "listed").read_text() and capsys.readouterr().out == ""
    with pytest.raises(SystemExit):
        main([*arguments, "--format", "yaml"])
    capsys.readouterr()
    np.savez(folder / "labelled.npz", X=np.load("iris.npz")["X"], kind=load_iris().target_names[load_iris().target])
    arguments[3] = "labelled.npz"
    assert main([*arguments, "--target", "kind", "--format", how]) == 0
    out = capsys.readouterr().out
    counts = {"iris": 4 * 5 + 5 + 5 * 3 + 3, "wide": 4 * 20 + 20 + 20 * 3 + 3}
    assert all(str(count) in out and name in out for name, count in counts.items())
    if how == "json":
        assert {row["model"]: row["parameter_count"] for row in json.loads(out)} == counts
    if how == "csv":
        (folder / "table.csv").write_text(out)
        assert pd.read_csv(folder / "table.csv").set_index("model")["parameter_count"].to_dict() == counts


def test_scores_on_other_data_and_their_gap(folder, capsys):
    arguments = ["compare", "iris.safetensors", "wide.safetensors", "iris.csv", "--test", "iris.csv"]
    assert main([*arguments, "--target", "species", "--measures", "accuracy", "margin", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["gap_accuracy"] for row in rows] == [0.0, 0.0] and rows[0]["test_accuracy"] > 0


class Planted:
    """What an attacker would put into a pickle."""

    def __reduce__(self):
        return Path("opened").write_text, ("it ran",)


PICKLED = ("bad.pkl", "bad.pickle", "bad.joblib", "bad.pt", "bad.pth")
OTHERS = ("bad.pt2", "bad.safetensors", "networks:small@bad.safetensors")


@pytest.mark.parametrize("name", [*PICKLED, *OTHERS])
def test_no_pickle_is_opened_unasked(folder, capsys, name):
    (folder / name.rpartition("@")[2]).write_bytes(pickle.dumps(Planted()))
    assert main(["report", name, "iris.npz"]) == 1
    assert not (folder / "opened").exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    assert (f"--trust {name}" in error) == (name in PICKLED)


def test_only_the_pickle_that_is_named_is_opened(folder, capsys):
    arguments = ["report", "model.joblib", "iris.csv", "--target", "species"]
    assert main([*arguments, "--trust", "other.joblib"]) == 1
    assert "--trust model.joblib" in capsys.readouterr().err


def test_a_model_is_compared_with_others(folder, capsys):
    assert main(["compare", "iris.safetensors", "iris.safetensors", "iris.npz"]) == 1
    assert "once, got 'iris.safetensors' more than once" in capsys.readouterr().err


def test_an_archive_may_hold_no_pickle(folder, capsys, tmp_path):
    """torch falls back on a full pickle for an archive's constants and sample inputs."""
    module = torch.nn.Linear(4, 3)
    torch.export.save(torch.export.export(module, (torch.zeros(2, 4),)), tmp_path / "plain.pt2")
    with zipfile.ZipFile(tmp_path / "plain.pt2") as plain, zipfile.ZipFile(folder / "evil.pt2", "w") as evil:
        for entry in plain.infolist():
            inner = plain.read(entry)
            is_pickle = entry.filename.endswith(".pt")
            evil.writestr(entry, pickle.dumps(Planted()) if is_pickle else inner)
    main(["report", "evil.pt2", "iris.npz"])
    assert not (folder / "opened").exists()
    assert "Traceback" not in capsys.readouterr().err


def _large_files(folder):
    """Files that take nothing on the disk, and more than machines have in memory."""
    for name in ("large.csv", "large.safetensors", "large.pt2"):
        with open(folder / name, "wb") as file:
            file.truncate(2**42)
    text = "{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    declared = b"\x93NUMPY\x01\x00" + len(text + "\n").to_bytes(2, "little") + text.encode() + b"\n"
    with zipfile.ZipFile(folder / "declared.npz", "w") as archive:
        archive.writestr("X.npy", declared)
    with zipfile.ZipFile(folder / "brackets.npz", "w") as archive:
        archive.writestr("X.npy", b"\x93NUMPY\x02\x00" + (9000).to_bytes(4, "little") + b"(" * 9000)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("iris.safetensors large.csv", "'large.csv' takes 4398046511104 bytes of memory, more than the limit of"),
        ("large.safetensors iris.npz", "'large.safetensors' takes 4398046511104 bytes"),
        ("large.pt2 iris.npz", "'large.pt2' takes 4398046511104 bytes"),
        ("networks:small@large.safetensors iris.npz", "'large.safetensors' takes 4398046511104 bytes"),
        ("iris.safetensors declared.npz", "'declared.npz' is not an npz file: Unable to allocate"),
        ("iris.safetensors brackets.npz", "'brackets.npz' is not an npz file"),
    ],
)
def test_what_would_fill_the_memory_is_not_read(folder, capsys, command, message):
    _large_files(folder)
    assert main(["report", *command.split()]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_an_archive_counts_as_large_as_what_is_packed_in_it(folder, capsys, monkeypatch):
    np.savez_compressed(folder / "zeros.npz", X=np.zeros((4000, 4)), y=np.zeros(4000))
    assert (folder / "zeros.npz").stat().st_size < 10**4
    monkeypatch.setattr(sizes, "memory_limit", lambda: 10**5)
    assert main(["report", "iris.safetensors", "zeros.npz"]) == 1
    assert "'zeros.npz' takes 160256 bytes of memory, more than the limit of 100000." in capsys.readouterr().err


MISTAKES = {
    "report none.safetensors iris.npz": "There is no file 'none.safetensors'",
    "report iris.safetensors none.csv --target species": "There is no file 'none.csv'",
    "report iris.safetensors iris.csv": "Name the target column of 'iris.csv' with --target, one of: sepal length",
    "report iris.safetensors iris.csv --target specis": "has no column 'specis'. Did you mean 'species'",
    "report iris.safetensors networks.py": "Data must be an .npz, .csv or .parquet file, got 'networks.py'",
    "report iris.csv iris.npz": "A model must be a file of `save`",
    "report networks:small iris.npz": "A model must be a file of `save`",
    "report networks:smal@small.safetensors iris.npz": "'networks:smal' cannot be called: AttributeError",
    "report networks:broken@small.safetensors iris.npz": "'networks:broken' cannot be called: KeyError",
    "report networks:nothing@small.safetensors iris.npz": "'networks:nothing' must return an nn.Module, got NoneType",
    "report sys:exit@small.safetensors iris.npz": "'sys:exit' cannot be called: SystemExit",
    "report nowhere:small@small.safetensors iris.npz": "'nowhere:small' cannot be called: ModuleNotFoundError",
    "report networks:small@iris.safetensors iris.npz": "The weights 'iris.safetensors' do not fit 'networks:small'",
    "report network.pt2 iris.npz --measures margn": "Unknown measure 'margn'. Did you mean 'margin'",
    "report iris.safetensors iris.npz --measures margin": "labels that the model does not know",
    "report iris.safetensors iris.npz --target z": "has no array 'z', only X, y",
    "report networks:small@small.safetensors iris.csv --target species": "`y` must",
    "report network.pt2 iris.npz --max-seconds -1": "`max_seconds` must",
    "list --family marg": "There is no family 'marg'. Did you mean 'margin'",
    "list --output nowhere/file": "nowhere/file",
}  # fmt: skip


@pytest.mark.parametrize("command", MISTAKES)
def test_a_mistake_is_one_line_on_stderr(folder, capsys, command):
    assert main(shlex.split(command)) == 1
    shown = capsys.readouterr()
    name = command.split()[0]
    assert shown.out == "" and shown.err.startswith(f"sklearn-capacity {name}: ") and shown.err.count("\n") == 1
    assert MISTAKES[command] in shown.err


@pytest.mark.parametrize(
    "command", ["", "report", "report iris.safetensors", "lost", "list --format xml", "compare a.csv"]
)
def test_wrong_options_exit_with_2(capsys, command):
    with pytest.raises(SystemExit) as left:
        main(shlex.split(command))
    assert left.value.code == 2 and "usage: sklearn-capacity" in capsys.readouterr().err


def test_text_among_the_features_is_named(folder, tmp_path):
    path = tmp_path / "text.csv"
    path.write_text("a,city,y\n1,Rome,0\n2,Oslo,1\n")
    with pytest.raises(ValueError, match="Features must be numbers; column 'city' of .* is not"):
        read_data(str(path), "y")
    path.write_text("")
    with pytest.raises(ValueError, match="cannot be read as csv"):
        read_data(str(path), "y")


def test_parquet(folder, monkeypatch):
    table = pd.DataFrame({"a": [1.0, 2.0], "b": [3, 4], "y": ["u", "v"]})
    monkeypatch.setattr(pd, "read_parquet", lambda path: table.copy())  # pyarrow is not a dependency
    (folder / "x.parquet").touch()
    X, y = read_data("x.parquet", "y")
    assert X.tolist() == [[1, 3], [2, 4]] and list(y) == ["u", "v"]

    def missing(path):
        raise ImportError("Unable to find a usable engine")

    monkeypatch.setattr(pd, "read_parquet", missing)
    with pytest.raises(ImportError, match="Parquet files need pyarrow. Install it"):
        read_data("x.parquet", "y")


def test_environment_is_as_before(folder, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    read_model("network.pt2")
    assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "0"


def test_as_a_program(folder):
    def run(*arguments):
        return subprocess.run([sys.executable, "-m", "sklearn_capacity", *arguments], capture_output=True, text=True)

    good = run("report", "networks:small@small.safetensors", "iris.npz", "--measures", "parameter_count")
    assert good.returncode == 0 and "parameter_count" in good.stdout and good.stderr == ""
    bad = run("report", "none.safetensors", "iris.npz")
    assert bad.returncode == 1 and bad.stdout == "" and bad.stderr.count("\n") == 1
