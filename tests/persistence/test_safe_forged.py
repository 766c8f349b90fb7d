"""A file sets only what it may set: every parameter and attribute is forged, and accepted values do no harm."""

from __future__ import annotations

import inspect
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from sklearn.base import clone

from sklearn_capacity import (
    CapacityWarning,
    GeneralizationLayerClassifier,
    NetworkClassifier,
    NetworkRegressor,
    load,
    save,
)
from sklearn_capacity.storage import FileError, encode, files

X = np.random.default_rng(0).normal(size=(24, 16))
LABELS = np.array(["a", "bb", "ccc"])[np.arange(24) % 3]
MODELS = {
    "classifier": NetworkClassifier((5,), max_epochs=2, random_state=0).fit(X, LABELS),
    "images": NetworkClassifier(module="conv", input_shape=(1, 4, 4), max_epochs=2, random_state=0).fit(X, LABELS),
    "regressor": NetworkRegressor((5,), max_epochs=2, random_state=0).fit(X, X[:, 0]),
    "layer": GeneralizationLayerClassifier((5,), max_epochs=2, random_state=0).fit(X, LABELS),
}

#: values of every kind that a document can hold
KINDS = [
    None, True, 0, 3, -1, 2**62, 0.5, float("nan"), "", "relu", "os.system", (), (3,), (2**40,), ("a", "b"), [None], {},
    {1: 2}, {"a": {"b": [1]}}, np.int64(2), np.zeros((3, 3)), np.array("a"), np.array(["x", "y", "z"]),
    np.array([None, 1, "a"], object), np.array(["a"] * 16, object), np.dtype("f4"), np.dtype("i8"),
]  # fmt: skip


@pytest.fixture
def forge(tmp_path):
    """Saves a model, changes one part of the document and loads it; None if that is refused as it should be."""
    path = tmp_path / "model.safetensors"

    def forged(model, part, name, value):
        save(model, path)
        stored = files.read_file(path)
        changed = {**stored.document[part], name: encode(value)}
        files.write_file(path, {**stored.document, part: changed}, stored.tensors)
        try:
            return load(path)
        except FileError as error:
            assert str(path) in str(error) and len(str(error)) < 2000
            return None

    return forged


def assert_behaves(model, y):
    """Every method of an estimator gives a result, or one of the errors that report a bad parameter."""
    inspect.signature(type(model)).bind(**model.get_params(deep=False))
    assert len(repr(model)) and len(model.predict(X)) == len(X) and np.isfinite(model.score(X, y))
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict(X), model.predict(X))
    fresh = clone(model).set_params(max_epochs=1, batch_size=8, verbose=0)
    assert fresh.checkpoint_dir is None and model.checkpoint_dir is None
    for fit in (fresh.fit, again.set_params(max_epochs=1, verbose=0).fit):
        try:
            assert len(fit(X, y).predict(X)) == len(X)
        except (ValueError, TypeError) as error:
            assert "`" in str(error) or "class_weight" in str(error) or "diverged" in str(error), error


def target(name):
    return X[:, 0] if name == "regressor" else LABELS


@pytest.mark.filterwarnings("ignore")
def test_every_parameter_with_every_kind(forge):
    model, n_accepted = MODELS["layer"], 0  # which has the parameters of all the others
    assert all(set(other.get_params()) <= set(model.get_params()) for other in MODELS.values())
    for parameter in sorted(set(model.get_params()) - {"checkpoint_dir"}):
        for value in KINDS:
            forged = forge(model, "params", parameter, value)
            if forged is not None:
                assert_behaves(forged, LABELS)
                n_accepted += 1
    assert n_accepted > len(model.get_params())  # each parameter takes some values


#: how many of the values above an attribute may have in a file that else tells of something else; other attributes none
FREE = {"n_samples_fit_": 2, "_seed": 3, "_n_runs": 3, "feature_names_in_": 1, "images_last": 1, "classes_": 1}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["classifier", "images", "regressor"])
def test_every_attribute_with_every_kind(name, forge):
    model = MODELS[name]
    same = encode(model._fitted_values())
    for attribute in {**model._fitted_attributes, "images_last": None}:
        n_accepted = 0
        for value in KINDS:
            if encode(value) == encode(model._fitted_values().get(attribute)):
                continue  # not a forgery
            forged = forge(model, "fitted", attribute, value)
            if forged is not None:
                n_accepted += 1
                assert_behaves(forged, value[np.arange(24) % 3] if attribute == "classes_" else target(name))
        assert n_accepted <= FREE.get(attribute, 0), attribute
    assert encode(model._fitted_values()) == same


def test_foreign_names_are_no_attributes(forge):
    model = MODELS["classifier"]
    names = {*vars(model), "predict", "module_", "history_", "checkpoint_dir", "x_", "", "a b", "__class__", "__dict__"}
    foreign = names - {*model._fitted_attributes, "images_last"}
    assert {"batch_size", "verbose", "net_", "initial_state_", "_optimizer_settings"} <= foreign
    for name in sorted(foreign):
        assert forge(model, "fitted", name, "/somewhere") is None, name
    for name in sorted(names - set(model.get_params()) | {"checkpoint_dir"}):
        assert forge(model, "params", name, "/somewhere") is None, name


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [{"epoch": 1}],
        [{"epoch": 1}, {"epoch": 3}],
        [{"epoch": 1}, {"epoch": True}],
        [{"epoch": 1}, {"train_loss": 1.0}],
        [{"epoch": 1}, {"epoch": 2, "train_loss": "low"}],
        [{"epoch": 1}, {"epoch": 2, "dur": None}],
        [{"epoch": 1}, {"epoch": 2, 3: 4}],
        [{"epoch": i} for i in range(1, 4)],
    ],
)
def test_histories_that_no_fit_leaves(rows, tmp_path):
    path = tmp_path / "model"
    save(MODELS["classifier"], path)
    stored = files.read_file(path)
    files.write_file(path, {**stored.document, "history": encode(rows)}, stored.tensors)
    with pytest.raises(FileError, match="history"):
        load(path)


@pytest.mark.parametrize("part", ["params", "fitted", "history", "class", "format", "kind", "user_module", "versions"])
def test_every_part_of_the_document_with_every_kind(part, tmp_path):
    path = tmp_path / "model"
    save(MODELS["classifier"], path)
    stored = files.read_file(path)
    for value in [None, True, 0, 2, -1, 1.5, "", "x", [], [1], {}, {"a": 1}, {"list": []}, {"tuple": {}}, [[[]]]]:
        files.write_file(path, {**stored.document, part: json.loads(json.dumps(value))}, stored.tensors)
        try:
            accepted = load(path)
        except ValueError as error:
            assert str(path) in str(error)
        else:
            assert (part, value) in [("user_module", None), ("params", {}), *[("versions", value)]], part
            np.testing.assert_array_equal(accepted.predict(X), MODELS["classifier"].predict(X))


def test_attributes_of_the_user_are_left_out_with_a_warning(tmp_path):
    model = pickle.loads(pickle.dumps(MODELS["classifier"]))
    model.note_ = "mine"
    with pytest.warns(CapacityWarning, match=r"leaves out the attributes \['note_'\]"):
        save(model, tmp_path / "model")
    assert not hasattr(load(tmp_path / "model"), "note_")


READ = """
import resource, sys
from sklearn_capacity import load
load(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
model = load(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, model.input_shape_)
"""


@pytest.mark.parametrize(
    "model",
    [NetworkClassifier(module="resnet20"), GeneralizationLayerClassifier(module="resnet20_gl", position="head")],
    ids=["plain", "layer"],
)
def test_no_network_is_run_on_large_images_that_a_file_makes_up(model, tmp_path):
    """A network that averages over its maps has as many weights for 36 million pixels as for 64."""
    images = np.random.default_rng(0).normal(size=(6, 3, 8, 8))
    save(model.set_params(max_epochs=1, random_state=0).fit(images, np.arange(6) % 2), tmp_path / "model")
    stored = files.read_file(tmp_path / "model")
    fitted = {**stored.document["fitted"], "input_shape_": {"tuple": [3, 6000, 6000]}, "n_features_in_": 108_000_000}
    files.write_file(tmp_path / "forged", {**stored.document, "fitted": fitted}, stored.tensors)
    command = [sys.executable, "-c", READ, str(tmp_path / "model"), str(tmp_path / "forged")]
    process = subprocess.run(command, capture_output=True, text=True, timeout=300)
    grown, _, shape = process.stdout.partition(" ")
    assert shape.strip() == "(3, 6000, 6000)", process.stderr
    assert int(grown) < 100 * 1024  # KiB; one image has 432 MB
