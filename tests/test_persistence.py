"""save and load: the same predictions to the bit, and one clear error for every file that is not what it should be."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_capacity import (
    CapacityWarning,
    GeneralizationLayerClassifier,
    GeneralizationLayerRegressor,
    JacobianRegularizedClassifier,
    NetworkClassifier,
    NetworkRegressor,
    load,
    measure_capacity,
    save,
)
from sklearn_capacity.storage import files

rng = np.random.default_rng(0)
X = rng.normal(size=(30, 16))
LABELS = {
    "int": np.arange(30) % 3,
    "str": np.array(["a", "bb", "ccc"])[np.arange(30) % 3],
    "object": np.array(["a", "bb", "ccc"], object)[np.arange(30) % 3],
    "bool": np.arange(30) % 2 == 0,
    "int8": (np.arange(30) % 3).astype("int8"),
}


class Own(nn.Module):
    """A network of the user's, with buffers and tied weights."""

    def __init__(self, n_features, n_outputs, width=5):
        super().__init__()
        self.first = nn.Linear(n_features, width)
        self.norm = nn.BatchNorm1d(width)
        self.second = nn.Linear(width, width)
        self.third = self.second
        self.head = nn.Linear(width, n_outputs)
        self.register_buffer("mask", torch.full((2,), -torch.inf))

    def forward(self, X):
        return self.head(self.third(self.second(torch.relu(self.norm(self.first(X))))))


def lazy(n_outputs):
    return nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(n_outputs))


def same_bits(a, b, X=X):
    for name in ("predict", "predict_proba"):
        if hasattr(a, name):
            np.testing.assert_array_equal(getattr(a, name)(X), getattr(b, name)(X))
    assert list(a.module_.state_dict()) == list(b.module_.state_dict())
    for key, value in a.initial_state_.items():
        torch.testing.assert_close(b.initial_state_[key], value, rtol=0, atol=0)


@pytest.fixture(scope="module")
def model():
    return NetworkClassifier((6,), max_epochs=3, random_state=0).fit(X, LABELS["str"])


@pytest.fixture
def saved(model, tmp_path):
    path = tmp_path / "model.safetensors"
    save(model, path)
    return path


@pytest.mark.parametrize("labels", LABELS)
def test_labels_of_any_dtype(labels, tmp_path):
    model = NetworkClassifier((6,), max_epochs=2, random_state=0).fit(X, LABELS[labels])
    save(model, tmp_path / "model")
    same = load(tmp_path / "model")
    same_bits(model, same)
    assert same.classes_.dtype == model.classes_.dtype
    assert vars(same).keys() == vars(model).keys()


@pytest.mark.parametrize(
    "estimator",
    [
        NetworkClassifier((6, 4), batch_norm=True, dropout=0.2, weight_norm=True, class_weight={0: 1.0, 1: 2.5, 2: 1}),
        NetworkClassifier(np.array([3]), "tanh", learning_rate=np.float64(0.1), dtype=np.float32, tol=np.float32(0.1)),
        NetworkClassifier(module="conv", input_shape=(1, 4, 4)),
        NetworkClassifier(early_stopping=True, learning_rate_schedule=[(0, 1.0), (1, 0.5)], dtype=torch.float32),
        NetworkRegressor((), loss="absolute", optimizer_params={"betas": (0.8, 0.9)}),
        JacobianRegularizedClassifier((4,), jacobian_norm="projection", n_projections=2),
        GeneralizationLayerClassifier((4,), nu_end=0.5),
        GeneralizationLayerRegressor((4,), variant="dropout"),
    ],
    ids=["mlp", "numpy", "conv", "early", "linear", "jacobian", "layer", "layer dropout"],
)
def test_everything_comes_back(estimator, tmp_path):
    estimator.set_params(max_epochs=2, random_state=0).fit(pd.DataFrame(X).rename(columns=str), LABELS["int"])
    save(estimator, tmp_path / "model")
    before = torch.random.get_rng_state()
    same = load(tmp_path / "model")
    assert torch.equal(before, torch.random.get_rng_state())
    same_bits(estimator, same, pd.DataFrame(X).rename(columns=str))
    for key, value in estimator.get_params().items():
        assert getattr(same, key) == value and (type(getattr(same, key)) is type(value) or key == "dtype")
    assert same.history_.to_list() == estimator.history_.to_list()
    assert list(same.feature_names_in_) == list(estimator.feature_names_in_)
    assert same.n_iter_ == estimator.n_iter_ and same.n_samples_fit_ == estimator.n_samples_fit_
    for measure in ("parameter_count", "spectral_norm"):
        assert measure_capacity(same, X, measures=measure) == measure_capacity(estimator, X, measures=measure)
    clone(same).fit(X, LABELS["int"])


def test_several_targets(tmp_path):
    model = NetworkRegressor((4,), max_epochs=2, random_state=0).fit(X, X[:, :2])
    save(model, tmp_path / "model")
    same_bits(model, load(tmp_path / "model"))


def test_training_goes_on(model, saved):
    same = load(saved)
    for estimator in (same, load(saved)):
        estimator.set_params(warm_start=True).fit(X, LABELS["str"])
        estimator.partial_fit(X, LABELS["str"])
        assert estimator.n_iter_ == 7
    assert "dur" in same.history_[-1]


@pytest.mark.parametrize("module", [Own, lazy, Own(16, 3), lambda n_outputs: nn.Linear(16, n_outputs)])
def test_own_modules_are_given_again(module, tmp_path):
    model = NetworkClassifier(module=module, max_epochs=2, random_state=0).fit(X.astype("float32"), LABELS["int"])
    save(model, tmp_path / "model")
    same_bits(model, load(tmp_path / "model", module=module), X.astype("float32"))
    with pytest.raises(ValueError, match=r"needs the network's class.*load\(path, module="):
        load(tmp_path / "model")
    with pytest.raises(ValueError, match="cannot be loaded: the network (lacks|has no place for)"):
        load(tmp_path / "model", module=nn.Sequential(nn.Linear(16, 7), nn.Linear(7, 3)))


def test_needless_module_is_refused(saved):
    with pytest.raises(ValueError, match="`module` must be None for"):
        load(saved, module=nn.Linear(2, 2))


class Recorder:
    """A callback that only has to be there."""


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"callbacks": [Recorder()]}, r"`callbacks\[0\]` is .*set_params\(callbacks=None\)"),
        ({"optimizer": torch.optim.SGD}, '`optimizer` is .*optimizer="sgd"'),
        ({"activation": nn.Mish}, "`activation` is .*define the network as a `module`"),
        ({"learning_rate_schedule": abs}, "`learning_rate_schedule` is .*list of factors"),
        ({"random_state": np.random.RandomState(0)}, "`random_state` is .*Use an integer"),
        ({"module_params": {"act": nn.ReLU}}, r"`module_params\['act'\]` is .*Fix it in the function"),
        ({"optimizer_params": {"foo": abs}}, "`optimizer_params.*set_params"),
    ],
)
def test_parameters_without_text_are_refused(model, tmp_path, params, message):
    other = pickle.loads(pickle.dumps(model)).set_params(**params)
    with pytest.raises(TypeError, match=message + ".*Or pickle"):
        save(other, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_saved(model, tmp_path):
    pipe = make_pipeline(StandardScaler(), model)
    cases = [
        (pipe, TypeError, r"got a Pipeline. Save its last step, `save\(pipeline\[-1\], path\)`.*skops"),
        (GridSearchCV(model, {}), TypeError, "Save its `best_estimator_`"),
        (NetworkClassifier(), NotFittedError, "not fitted yet. Call `fit` before saving"),
        (NetworkClassifier, TypeError, "got the class NetworkClassifier"),
        (LogisticRegression(), TypeError, "got LogisticRegression"),
        (nn.Linear(2, 2), TypeError, "state_dict.*safetensors.torch.save_file"),
    ]
    for thing, error, message in cases:
        with pytest.raises(error, match=message):
            save(thing, tmp_path / "model")
    with pytest.raises(FileNotFoundError):
        save(model, tmp_path / "nowhere" / "model")


def test_failed_save_keeps_the_old_file(model, saved, monkeypatch):
    before = saved.read_bytes()

    def broken(descriptor):
        raise OSError("no space left")

    monkeypatch.setattr(files.os, "fsync", broken)
    with pytest.raises(OSError, match="no space left"):
        save(model, saved)
    assert saved.read_bytes() == before and list(saved.parent.iterdir()) == [saved]


# -- files that are not what they should be ----------------------------------------------------------------------------


def rewrite(path, *, tensors=None, **changes):
    """The file with other tensors or parts of its document, as somebody with safetensors at hand would make it."""
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
        (lambda old: b"", "no safetensors file"),
        (lambda old: b"hello", "no safetensors file"),
        (lambda old: pickle.dumps(Bomb()), "pickle or an archive"),
        (lambda old: pickle.dumps(Bomb(), 2), "pickle or an archive"),
        (lambda old: pickle.dumps(Bomb(), 0), "no safetensors file"),
        (lambda old: zip_bomb(), "pickle or an archive"),
        (lambda old: torch_file(), "pickle or an archive"),
        (lambda old: old[:7], "no safetensors file"),
        (lambda old: old[:100], "cut off after 100 bytes"),
        (lambda old: old[:-1], "damaged"),
        (lambda old: old + b"\0", "damaged"),
        (lambda old: old[:-9] + bytes([old[-9] ^ 1]) + old[-8:], "checksum"),
        (lambda old: (10**15).to_bytes(8, "little") + old[8:], "no safetensors file"),
        (lambda old: (100_000).to_bytes(8, "little") + b'{"a":' + b"[" * 99_995, "header is no JSON"),
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
        with pytest.raises(ValueError, match="is no regular file"):
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
        with pytest.raises(ValueError, match="damaged|no safetensors"):
            load(saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("module.output.bias"), r"network lacks the tensors \['output.bias'\]"),
        (lambda t: t.pop("initial.output.bias"), r"initial state lacks the tensors \['output.bias'\]"),
        (lambda t: t.update({"module.more": torch.zeros(2)}), r"no place for the tensors \['more'\]"),
        (lambda t: t.update({"other": torch.zeros(2)}), "cannot be loaded"),
        (lambda t: t.update({"module.output.bias": torch.zeros(4)}), r"shape \(4,\) in place of \(3,\)"),
        (lambda t: t.update({"module.output.bias": torch.zeros(3)}), "torch.float32 in place of torch.float64"),
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
        ({"kind": "checkpoint"}, "no estimator but a 'checkpoint'"),
        ({"class": "RandomForest"}, "class 'RandomForest', which this package lacks"),
        ({"class": "load"}, "class 'load', which this package lacks"),
        ({"class": ["load"]}, "which this package lacks"),
        ({"params": {"optimiser": "adam"}}, r"no parameters \['optimiser'\]"),
        ({"params": {"learning_rate": -1}}, "`learning_rate` must lie in"),
        ({"params": {"activation": "os.system"}}, "`activation` must be one of"),
        ({"params": {"module": "os"}}, "`module` must name one of"),
        ({"params": {"module": 3}}, "`module` is 3, no name"),
        ({"params": {"tol": {"object": "os.system"}}}, "no encoded value"),
        ({"params": {"tol": {"float": "1"}}}, "no encoded value"),
        ({"params": [1]}, "cannot be loaded"),
        ({"params": PARAM}, "describe a network (larger than|that cannot be made)"),
        ({"params": {"hidden_layer_sizes": {"tuple": [10**15]}}}, "that cannot be made"),
        ({"params": {"hidden_layer_sizes": {"tuple": [1000] * 5000}}}, "larger than"),
        ({"params": {"hidden_layer_sizes": {"tuple": [1] * 10**5}}}, "larger than"),
        ({"params": {"checkpoint_dir": "/etc"}}, r"no parameters \['checkpoint_dir'\]"),
        ({"fitted": {}}, r"fitted attributes \['input_shape_'"),
        ({"fitted": {"predict": 1}}, "the fitted attribute 'predict' is none of"),
        ({"fitted": {"__class__": 1}}, "the fitted attribute '__class__' is none of"),
        ({"history": {"list": [3]}}, "history is no list of epochs"),
        ({"history": None}, "history is no list of epochs"),
    ],
)
def test_wrong_documents(saved, changes, message):
    rewrite(saved, **changes)
    with pytest.raises(ValueError, match=message):
        load(saved)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("input_shape_", {"tuple": [0]}, "not a tuple of positive integers"),
        ("n_features_in_", 15, "`n_features_in_` is 15, but samples have shape"),
        ("_dtype", {"dtype": "<i8"}, "neither float32 nor float64"),
        ("_dtype", {"dtype": "<U99999999"}, "no dtype of labels"),
        ("_dtype", {"dtype": "what"}, "is no dtype"),
        ("classes_", {"array": [0, 1], "dtype": "<i8", "shape": [2]}, r"`classes_` must .* shape \(3,\), got \(2,\)"),
        ("classes_", {"array": [0, 1], "dtype": "<i8", "shape": [3]}, "has 2 entries"),
        ("classes_", {"array": ["a"], "dtype": "<i8", "shape": [1]}, "does not hold int64"),
        ("classes_", {"array": [2**70], "dtype": "<i8", "shape": [1]}, "does not hold int64"),
        ("classes_", {"list": [0, 1, 2]}, r"`classes_` must be an array of shape \(3,\), got list"),
        ("feature_names_in_", {"array": ["a"], "dtype": "|O", "shape": [1]}, "`feature_names_in_` must be an array"),
        ("input_shape_", {"tuple": [2**32, 2**32, 4]}, "`n_features_in_` is 16, but samples"),
        ("n_iter_", {"float": "nan"}, "`n_iter_` is nan, no whole number"),
        ("x_", {"list": [{"array": [""] * 999, "dtype": "<U262144", "shape": [999]}] * 999}, "more than 256 MiB"),
        ("x_", {"array": [], "dtype": "<f8", "shape": [10**4000] * 2000 + [0]}, "has 2001 dimensions"),
        ("loss_name_", "hinge", "cannot be loaded"),
        ("x_", {"dict": [[1]]}, "something else than pairs"),
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
    with pytest.raises(ValueError, match="its document is no JSON object"):
        load(saved)


def test_missing_gpu_is_told(saved):
    rewrite(saved, params={**document(saved)["params"], "device": "cuda:63"})
    with pytest.warns(CapacityWarning, match="The network is put on the CPU"):
        assert load(saved).module_ is not None


def test_header_is_plain_json(saved):
    """Other programs can read what the file says."""
    data = saved.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["sklearn_capacity"])["class"] == "NetworkClassifier"
