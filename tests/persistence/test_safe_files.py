"""Files that are not what `save` wrote: one clear error for each, before much memory or time is spent."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sklearn_capacity import CapacityWarning, NetworkClassifier, load, save
from sklearn_capacity.storage import decode, encode, files

X = np.random.default_rng(0).normal(size=(30, 16))


@pytest.fixture(scope="module")
def model():
    return NetworkClassifier((6,), max_epochs=3, random_state=0).fit(X, np.array(["a", "bb", "ccc"])[np.arange(30) % 3])


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save(model, path)
    return path


def rewrite(path, *, tensors=None, **changes):
    """The file with other tensors or parts of its document, as anyone can write it with safetensors."""
    stored = files.read_file(path)
    files.write_file(path, {**stored.document, **changes}, tensors or stored.tensors)


def document(path):
    return files.read_file(path).document


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


def zip_bomb():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.pkl", b"\0" * 10**7)
    return out.getvalue()


def torch_file():
    out = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, out)
    return out.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda old: b"", "not a safetensors file"),
        (lambda old: b"hello", "not a safetensors file"),
        (lambda old: pickle.dumps(Bomb()), "pickle or an archive"),
        (lambda old: pickle.dumps(Bomb(), 2), "pickle or an archive"),
        (lambda old: pickle.dumps(Bomb(), 0), "not a safetensors file"),
        (lambda old: zip_bomb(), "pickle or an archive"),
        (lambda old: torch_file(), "pickle or an archive"),
        (lambda old: old[:7], "not a safetensors file"),
        (lambda old: old[:100], "truncated after 100 bytes"),
        (lambda old: old[:-1], "damaged: it has .* bytes instead of"),
        (lambda old: old + b"\0", "damaged"),
        (lambda old: old[:-9] + bytes([old[-9] ^ 1]) + old[-8:], "checksum"),
        (lambda old: (10**15).to_bytes(8, "little") + old[8:], "not a safetensors file"),
        (lambda old: (100_000).to_bytes(8, "little") + b'{"a":' + b"[" * 99_995, "header is not a JSON"),
        (lambda old: (2).to_bytes(8, "little") + b"{}", "of another program"),
    ],
)
def test_foreign_and_damaged_files(saved, content, message):
    saved.write_bytes(content(saved.read_bytes()))
    with pytest.raises(ValueError, match=message) as caught:
        load(saved)
    assert str(saved) in str(caught.value)


def test_what_is_no_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "endless"):
        with pytest.raises(ValueError, match="is not a regular file"):
            load(path)


def test_files_of_safetensors_itself(saved, tmp_path):
    save_file(load_file(saved), tmp_path / "bare")
    with pytest.raises(ValueError, match="of another program"):
        load(tmp_path / "bare")
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "nothing")


def test_every_cut_is_noticed(saved):
    whole = saved.read_bytes()
    for length in range(0, len(whole), 97):
        saved.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="damaged|not a safetensors"):
            load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("module.output.bias"), r"network lacks the tensors \['output.bias'\]"),
        (lambda t: t.pop("initial.output.bias"), r"initial state lacks the tensors \['output.bias'\]"),
        (lambda t: t.update({"module.more": torch.zeros(2)}), r"has the unexpected tensors \['more'\]"),
        (lambda t: t.update({"other": torch.zeros(2)}), "it has a tensor 'other', which does not belong"),
        (lambda t: t.update({"module.output.bias": torch.zeros(4)}), r"shape \(4,\) instead of \(3,\)"),
        (lambda t: t.update({"module.output.bias": torch.zeros(3)}), "torch.float32 instead of torch.float64"),
        (lambda t: t["module.output.bias"].fill_(torch.nan), "weights 'output.bias' are not finite"),
        (lambda t: t["module.output.bias"].fill_(torch.inf), "weights 'output.bias' are not finite"),
    ],
)
def test_wrong_tensors(saved, change, message):
    tensors = files.read_file(saved).tensors
    names = {name.partition(".")[2] for name in tensors}
    last = sorted(name for name in names if name.endswith("bias"))[-1]
    tensors = {name.replace(last, "output.bias"): t for name, t in tensors.items()}
    change(tensors)
    rewrite(saved, tensors={name.replace("output.bias", last): t for name, t in tensors.items()})
    with pytest.raises(ValueError, match=message.replace("output.bias", last)):
        load(saved)


PARAM = {"hidden_layer_sizes": {"tuple": [10**6, 10**6]}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format 2, newer than 1.*update"),
        ({"format": "x"}, "its format is 'x'"),
        ({"kind": "checkpoint"}, "an estimator, got a 'checkpoint'"),
        ({"class": "RandomForest"}, "class 'RandomForest', which this package does not have"),
        ({"class": "load"}, "class 'load', which this package does not have"),
        ({"class": ["load"]}, "which this package does not have"),
        ({"params": {"optimiser": "adam"}}, r"no parameters \['optimiser'\]"),
        ({"params": {"learning_rate": -1}}, "`learning_rate` must lie in"),
        ({"params": {"activation": "os.system"}}, "`activation` must be one of"),
        ({"params": {"module": "os"}}, "`module` must be one of"),
        ({"params": {"module": 3}}, "`module` must be a name, got 3"),
        ({"params": {"tol": {"object": "os.system"}}}, "not an encoded value"),
        ({"params": {"tol": {"float": "1"}}}, "not an encoded value"),
        ({"params": [1]}, "cannot be loaded"),
        ({"params": PARAM}, "describe a network (larger than|that cannot be built)"),
        ({"params": {"hidden_layer_sizes": {"tuple": [10**15]}}}, "larger than"),
        ({"params": {"hidden_layer_sizes": {"tuple": [1000] * 5000}}}, "larger than"),
        ({"params": {"hidden_layer_sizes": {"tuple": [1] * 10**5}}}, "larger than"),
        ({"params": {"checkpoint_dir": "/etc"}}, r"no parameters \['checkpoint_dir'\]"),
        ({"fitted": {}}, r"fitted attributes \['input_shape_'"),
        ({"fitted": {"predict": 1}}, "the fitted attribute 'predict' does not belong to"),
        ({"fitted": {"__class__": 1}}, "the fitted attribute '__class__' does not belong to"),
        ({"history": {"list": [3]}}, "history is not a list of epochs"),
        ({"history": None}, "history is not a list of epochs"),
    ],
)
def test_wrong_documents(saved, changes, message):
    rewrite(saved, **changes)
    with pytest.raises(ValueError, match=message):
        load(saved)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_shape_", {"tuple": [0]}, "must be a tuple of 1 to 8 positive integers"),
        ("n_features_in_", 15, "`n_features_in_` must be 16, since samples have shape"),
        ("_dtype", {"dtype": "<i8"}, "must be the precision float32 or float64"),
        ("_dtype", {"dtype": "<U99999999"}, "not a dtype of labels"),
        ("_dtype", {"dtype": "what"}, "is not a dtype"),
        (
            "classes_",
            {"array": [0, 1], "dtype": "<i8", "shape": [2]},
            r"`classes_` must .* shape \(3,\) of labels, got array",
        ),
        ("classes_", {"array": [0, 1], "dtype": "<i8", "shape": [3]}, "has 2 entries"),
        ("classes_", {"array": ["a"], "dtype": "<i8", "shape": [1]}, "is not of dtype int64"),
        ("classes_", {"array": [2**70], "dtype": "<i8", "shape": [1]}, "outside the range of 64-bit integers"),
        ("classes_", {"list": [0, 1, 2]}, r"`classes_` must be an array of shape \(3,\) of labels, got \[0"),
        ("feature_names_in_", {"array": ["a"], "dtype": "|O", "shape": [1]}, "`feature_names_in_` must be an array"),
        ("input_shape_", {"tuple": [2**32, 2**32, 4]}, "`n_features_in_` must be"),
        ("n_iter_", {"float": "nan"}, "`n_iter_` must be an integer of at least 0, got nan"),
        ("x_", {"list": [{"array": [""] * 999, "dtype": "<U262144", "shape": [999]}] * 999}, "more than 256 MiB"),
        ("x_", {"array": [], "dtype": "<f8", "shape": [10**4000] * 2000 + [0]}, "has 2001 dimensions"),
        ("loss_name_", "huber", "cannot be loaded"),
        ("x_", {"dict": [[1]]}, "something other than pairs"),
        ("x_", {"dict": [[{"list": []}, 1]]}, "a bad key"),
    ],
)
def test_wrong_attributes(saved, name, value, message):
    rewrite(saved, fitted={**document(saved)["fitted"], name: value})
    with pytest.raises(ValueError, match=message):
        load(saved)


def test_deep_nesting(saved):
    deep = 3
    for _ in range(200):
        deep = {"list": [deep]}
    rewrite(saved, fitted={**document(saved)["fitted"], "deep_": deep})
    with pytest.raises(ValueError, match="nested more than 50 deep"):
        load(saved)


def test_document_that_is_no_object(saved):
    stored = files.read_file(saved)
    files.write_file(saved, [1], stored.tensors)
    with pytest.raises(ValueError, match="its document is not a JSON object"):
        load(saved)


def test_missing_gpu_is_reported(saved):
    rewrite(saved, params={**document(saved)["params"], "device": "cuda:63"})
    with pytest.warns(CapacityWarning, match="The network is loaded on the CPU"):
        assert load(saved).module_ is not None


def test_tensors_are_copied_once_on_their_way_to_the_file(tmp_path):
    """The writer limits them: a checkpoint of a large network contains little else."""
    base, tensors = torch.arange(6.0).reshape(2, 3), {}
    document = encode({"a": base, "part of it": base[0], "turned": base.T}, tensors)
    assert all(tensor.untyped_storage().data_ptr() == base.untyped_storage().data_ptr() for tensor in tensors.values())
    files.write_file(tmp_path / "file", {"value": document}, tensors)
    stored = files.read_file(tmp_path / "file")
    result = decode(stored.document["value"], stored.tensors)
    assert stored.intact and [t.tolist() for t in result.values()] == [base.tolist(), [0, 1, 2], base.T.tolist()]


def test_header_is_plain_json(saved):
    """Other programs can read the file."""
    data = saved.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["sklearn_capacity"])["class"] == "NetworkClassifier"
