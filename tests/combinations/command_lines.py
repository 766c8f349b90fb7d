"""Cases of the command line: files and options of every kind."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import zipfile
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import joblib
import numpy as np
import pandas as pd
import safetensors.torch
import torch
from torch import nn

import sklearn_capacity as package
from sklearn_capacity.command_line import main

from .case import Case, Fault
from .data import CLASSES, FEATURES, N, normal

X, Y = normal(N, FEATURES), np.arange(N) % CLASSES


@functools.cache
def _folder() -> Path:
    """A folder of models and data, right and wrong; it goes with the process's temporary files."""
    folder = Path(mkdtemp(prefix="command-lines-"))
    (folder / "folder").mkdir()
    _write_models(folder)
    _write_data(folder)
    return folder


def _write_models(folder: Path) -> None:
    settings: dict[str, Any] = {"hidden_layer_sizes": (3,), "max_epochs": 1, "random_state": 0}
    classifier = package.NetworkClassifier(**settings).fit(X, Y)
    package.save(classifier, folder / "classifier.safetensors")
    package.save(package.NetworkRegressor(**settings).fit(X, np.sin(Y)), folder / "regressor.safetensors")
    linear = nn.Linear(FEATURES, CLASSES)
    torch.export.save(torch.export.export(linear, (torch.zeros(N, FEATURES),)), folder / "exported.pt2")
    joblib.dump(classifier, folder / "pickled.joblib")
    torch.save(linear, folder / "pickled.pt")
    torch.save(linear.state_dict(), folder / "state.pt")
    safetensors.torch.save_file(linear.state_dict(), folder / "weights.safetensors")
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt2").write_text("no archive")


def _write_data(folder: Path) -> None:
    np.savez(folder / "data.npz", X=X, y=Y)
    np.savez(folder / "without targets.npz", X=X)
    np.savez(folder / "other names.npz", Z=X)
    np.savez(folder / "objects.npz", X=np.array([1, "a"], object), y=Y)
    np.savez(folder / "scalar.npz", X=np.float64(3), y=Y)
    frame = pd.DataFrame(X, columns=list("abcd"))
    frame.assign(y=Y).to_csv(folder / "data.csv", index=False)
    frame.assign(y=list("abc") * (N // 3)).to_csv(folder / "names.csv", index=False)
    frame[["a"]].assign(y=Y).to_csv(folder / "narrow.csv", index=False)
    frame.assign(a=np.nan, y=Y).to_csv(folder / "holes.csv", index=False)
    frame.assign(a="text", y=Y).to_csv(folder / "text.csv", index=False)
    (folder / "large.csv").write_text("a,b,c,d,y\n" + "1e400,1,2,3,0\n" * N)
    (folder / "doubled.csv").write_text("a,a,y,y\n1,2,0,1\n2,3,1,0\n")
    (folder / "header.csv").write_text("a,b,c,d,y\n")
    (folder / "quoted.csv").write_text('a,y\n"1,2\n3')
    (folder / "bytes.csv").write_bytes(bytes(range(256)))
    for name in ("empty.npz", "empty.csv", "empty.parquet"):
        (folder / name).write_bytes(b"")
    (folder / "text.parquet").write_text("no table")
    (folder / "text.npz").write_text("no archive")
    whole = (folder / "data.npz").read_bytes()
    (folder / "cut.npz").write_bytes(whole[: len(whole) // 2])
    (folder / "flipped.npz").write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    with zipfile.ZipFile(folder / "declared.npz", "w") as archive:  # a header that declares 8 TB
        archive.writestr("X.npy", _npy_header((10**6, 10**6)))


def _npy_header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return stream.getvalue()


MODELS = [
    "classifier.safetensors", "regressor.safetensors", "exported.pt2", "pickled.joblib", "pickled.pt", "state.pt", "weights.safetensors", "empty.safetensors", "empty.pt", "text.pt2", "missing.safetensors", "missing.pt", "folder", "data.csv",
    "torch.nn:Linear@weights.safetensors", "torch.nn:Identity@weights.safetensors", "nothing:here@weights.safetensors", "sys:exit@weights.safetensors", "os:getcwd@weights.safetensors", "torch:nn@weights.safetensors", "a:b", ":@", "", "model", "é.safetensors", "x" * 300 + ".pt", "\0.pt", "folder@weights.safetensors",
]  # fmt: skip
DATA = [
    "data.npz", "data.csv", "without targets.npz", "other names.npz", "objects.npz", "scalar.npz", "names.csv", "narrow.csv", "holes.csv", "text.csv", "large.csv", "doubled.csv", "header.csv", "quoted.csv", "bytes.csv", "empty.npz", "empty.csv", "empty.parquet", "text.parquet", "text.npz", "cut.npz", "flipped.npz", "declared.npz",
    "missing.npz", "folder", "", "data", "\0.csv", "x" * 300 + ".csv", "classifier.safetensors",
]  # fmt: skip
OPTIONS: dict[str, list[str]] = {
    "target": ["y", "z", "", "0", "X"], "measures": ["margin", "cheap", "nothing", "", "frobenius_norm", "fisher_trace"], "loss": ["cross_entropy", "squared", "hinge", "nothing"],
    "classes": ["0,1,2", "a,b,c", "", ",,", "0,0,1", "--5", "9" * 400 + ",2,3", "²,1,0", " 0 , 1 , 2 "], "trust": ["pickled.joblib", "pickled.pt", "state.pt", "empty.pt", "nothing"], "format": ["table", "csv", "json", "markdown", "nothing"],
    "output": ["written.txt", "/dev/full", "missing/written", "folder", "", "/dev/null"], "test": DATA, "plot": ["ranks.png", "ranks.nothing", "/dev/full", "", "folder"], "family": ["margins", "nothing", ""], "title": ["two\nlines", "", "x" * 999],
    "max-samples": ["3", "0", "-1", "x", "1.5", "9" * 400], "max-seconds": ["5", "0", "nan", "-1", "inf", "1e999", "x"], "verbose": [],
}  # fmt: skip


def _mostly(case: Case, values: list[str]) -> str:
    return values[0] if case.happens(0.5) else case.pick(values)


def _arguments(case: Case) -> list[str]:
    command = case.pick(["report", "report", "compare", "card", "list"])
    arguments = [command]
    if command != "list":
        arguments += [_mostly(case, MODELS) for _ in range(case.pick([1, 2, 3]) if command == "compare" else 1)]
    if command == "card" and case.happens(0.6):
        arguments.append(f"--data={_mostly(case, DATA)}")
    elif command in ("report", "compare"):
        arguments.append(_mostly(case, DATA))
    for name in case.random.sample(sorted(OPTIONS), case.pick([0, 1, 1, 2, 3])):
        arguments.append(f"--{name}={case.pick(OPTIONS[name])}" if OPTIONS[name] else f"--{name}")
    if command in ("report", "compare") and case.happens(0.6):
        arguments.append("--target=y")
    return arguments


def run_case(case: Case) -> None:
    """One command: a result and 0, or one line on stderr and 1, or 2 as argparse does."""
    torch.manual_seed(0)
    arguments = _arguments(case)
    case.choices += arguments
    errors, before = io.StringIO(), os.getcwd()

    def run() -> int:
        try:
            return main(arguments)
        except SystemExit as end:
            return 2 if end.code == 2 else -1

    os.chdir(_folder())
    try:
        with contextlib.redirect_stderr(errors):
            code = case.call("main", run)
    finally:
        os.chdir(before)
    lines = [line for line in errors.getvalue().splitlines() if not line.startswith("warning: ")]
    if code not in (0, 1, 2) or (code == 1 and len(lines) != 1 and "--verbose" not in arguments):
        raise Fault(f"exit code {code} after {lines[-3:]}")
    case.answered, case.refused = (case.answered - 1, case.refused + 1) if code else (case.answered, case.refused)
