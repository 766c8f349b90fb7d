"""A user's measures: as records and as functions, wherever a name is accepted, and across processes."""

from __future__ import annotations

import copy
import functools
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from joblib import parallel_config
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_validate
from torch import nn

from sklearn_capacity import (
    CapacityCallback,
    CapacityScorer,
    Measure,
    Measured,
    NetworkClassifier,
    NotDefinedError,
    capacity_report,
    measure_capacity,
)
from sklearn_capacity.scoring.requests import directions, parse_with_scores

rng = np.random.default_rng(0)
X, y = rng.normal(size=(30, 4)).astype("float32"), np.arange(30) % 3


def largest_weight(network, batch, *, p=1.0):
    return max(float(weight.abs().max()) for weight in network.parameters.values() if weight.dim() == 2) ** p


def confidence(module, X, y):
    return module(X).softmax(1)[torch.arange(len(y)), y].mean()


LARGEST = Measure("largest_weight", largest_weight, family="norm", unit="weight")
CONFIDENCE = Measure("confidence", confidence, lower_is_better=False, cost="forward", needs={"data", "labels"})


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture(scope="module")
def values(module):
    """What the two measures must give."""
    with torch.no_grad():
        outputs = copy.deepcopy(module).eval()(torch.from_numpy(X)).softmax(1)
    largest = max(float(module[i].weight.abs().max()) for i in (0, 4))
    return {"largest_weight": largest, "confidence": float(outputs[range(len(y)), y].mean())}


@pytest.mark.parametrize(
    "measures",
    [
        [LARGEST, CONFIDENCE],
        {"largest_weight": largest_weight, "confidence": CONFIDENCE},
        {"largest_weight": (LARGEST, {"p": 1.0}), "confidence": confidence},
        {"largest_weight": lambda network, batch: largest_weight(network, batch), "confidence": (confidence, {})},
        {"largest_weight": functools.partial(largest_weight, p=1.0), "confidence": lambda m, x, t: confidence(m, x, t)},
        {"largest_weight": lambda network, batch, **params: largest_weight(network, batch, **params),
         "confidence": lambda module, X, y=None: Measured(confidence(module, X, y))},
    ],
)  # fmt: skip
def test_a_measure_is_accepted_wherever_a_name_is(measures, module, values):
    assert measure_capacity(module.train(), X, y, measures) == pytest.approx(values, rel=1e-5)
    assert module.training
    report = capacity_report(module, X, y, measures).set_index("measure")
    assert report["value"].to_dict() == pytest.approx(values, rel=1e-5) and (report["reason"] == "").all()
    with_names = {"accuracy": "accuracy", "margin": "margin", **(measures if isinstance(measures, dict) else {})}
    if isinstance(measures, list):
        with_names = ["accuracy", "margin", *measures]
    fitted = NetworkClassifier((5,), max_epochs=1, random_state=0).fit(X, y)
    scores = CapacityScorer(with_names)(fitted, X, y)
    assert list(scores)[:3] == ["accuracy", "margin", "neg_largest_weight"]
    assert scores["neg_largest_weight"] == -measure_capacity(fitted, X, y, measures)["largest_weight"]


def test_sign_unit_and_cost_follow_from_the_record(module, values):
    report = capacity_report(module, X, y, [LARGEST, CONFIDENCE, "margin"]).set_index("measure")
    assert report["better"].tolist() == ["lower", "higher", "higher"]
    assert report["unit"].tolist()[:2] == ["weight", "1"] and report["cost"].tolist()[:2] == ["weights", "forward"]
    assert CapacityScorer(CONFIDENCE)(module, X, y) == pytest.approx(values["confidence"])
    assert CapacityScorer(LARGEST)(module, X, y) == pytest.approx(-values["largest_weight"])
    assert CapacityScorer([CONFIDENCE, LARGEST], refit_measure="neg_largest_weight")(module, X, y) < 0
    assert directions(["accuracy", LARGEST, CONFIDENCE]) == {"largest_weight": "lower", "confidence": "higher"}
    table = CapacityScorer([LARGEST, CONFIDENCE]).fit(X, y).transform([module])
    np.testing.assert_allclose(table[0], list(values.values()), rtol=1e-5)
    log = measure_capacity(module, X, y, [LARGEST], log=True)["largest_weight"]
    assert log == pytest.approx(np.log(values["largest_weight"]), rel=1e-5)


def test_parameters_reach_the_function(module, values):
    got = measure_capacity(
        module, measures={"square": (largest_weight, {"p": 2.0}), "free": (lambda n, b, **k: k["q"], {"q": 3})}
    )
    assert got == pytest.approx({"square": values["largest_weight"] ** 2, "free": 3.0}, rel=1e-5)
    with pytest.raises(ValueError, match="Measure 'own' has no parameter 'q'. It has: p"):
        measure_capacity(module, measures={"own": (largest_weight, {"q": 2.0})})
    fixed = Measure("cube", largest_weight, fixed={"p": 3.0})
    assert measure_capacity(module, measures=fixed)["cube"] == pytest.approx(values["largest_weight"] ** 3, rel=1e-5)
    with pytest.raises(ValueError, match="no parameter 'p'. It has: none"):
        measure_capacity(module, measures={"c": (fixed, {"p": 2.0})})


def test_a_function_gets_a_copy_of_the_users_module(module):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x).log_softmax(1)

    net = Net()
    seen = []

    def breaks(module, X, y):
        seen.append(module(X))
        module.head.weight.data.zero_()
        return 0.0

    before = copy.deepcopy(net.state_dict())
    values = measure_capacity(net, X, y, {"breaks": breaks, "norm": "frobenius_norm", "again": breaks})
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert values["norm"] == measure_capacity(net, X, y, "frobenius_norm")["frobenius_norm"] > 0
    assert torch.equal(seen[0], seen[1]) and torch.allclose(seen[0].exp().sum(1), torch.ones(30).double())


def test_functions_that_need_what_is_not_there(module):
    assert measure_capacity(module, X, measures={"a": lambda module, X: float(len(X))}) == {"a": 30.0}
    assert measure_capacity(module, X, measures={"a": lambda module, X, y=None: float(y is None)}) == {"a": 1.0}
    with pytest.raises(NotDefinedError, match="needs labels: pass y"):
        measure_capacity(module, X, measures={"a": confidence})
    with pytest.raises(NotDefinedError, match="needs data: pass X"):
        measure_capacity(module, measures={"a": lambda network, batch: float(batch.X.sum())})


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (float("nan"), NotDefinedError, "The measure 'own' returned nan"),
        (torch.tensor(float("nan")), NotDefinedError, "The measure 'own' returned nan"),
        (Measured(float("nan")), NotDefinedError, "The measure 'own' returned nan"),
        (np.ones(3), TypeError, r"'own' must return one real number or a `Measured`, got ndarray of shape \(3,\)"),
        (torch.ones(1), TypeError, r"got Tensor of shape \(1,\) and torch.float32"),
        (1j, TypeError, "got 1j of type complex"),
        (torch.ones((), device="meta"), TypeError, r"got Tensor of shape \(\) and torch.float32"),
        (10**400, ValueError, "'own' must return a number that a float can hold"),
        (torch.tensor(1j), TypeError, r"got Tensor of shape \(\) and torch.complex64"),
        (None, TypeError, "got None of type NoneType"),
        (True, TypeError, "got True of type bool"),
        (np.True_, TypeError, "of type bool"),
        (torch.tensor(True), TypeError, "torch.bool"),
        ("3", TypeError, "got '3' of type str"),
        ((1.0, 2.0), TypeError, "of type tuple"),
        (Measured(None), TypeError, "got None of type NoneType"),
        (Measured(1.0, standard_error=[1.0]), TypeError, "of type list"),
    ],
)  # fmt: skip
def test_a_wrong_return_is_one_clear_error(returned, error, message, module):
    with pytest.raises(error, match=message):
        measure_capacity(module, X, y, {"own": lambda network, batch: returned})
    with pytest.raises(error, match=message):
        CapacityScorer({"own": lambda module, X, y: returned}, on_error="raise")(module, X, y)
    report = capacity_report(module, X, y, {"own": lambda network, batch: returned, "margin": "margin"})
    assert "own" in report.loc[0, "reason"] and report.loc[1, "reason"] == ""


@pytest.mark.parametrize("returned", [2, 2.0, np.float32(2), np.int64(2), np.array(2.0), torch.tensor(2), Measured(2)])
def test_numbers_of_every_kind_are_taken(returned, module):
    (value,) = measure_capacity(module, measures={"own": lambda network, batch: returned}).values()
    assert type(value) is float and value == 2.0


def test_a_negative_value_has_no_logarithm(module):
    with pytest.raises(NotDefinedError, match="'own' is -2, and a negative number has no logarithm"):
        measure_capacity(module, measures={"own": lambda network, batch: -2.0}, log=True)
    report = capacity_report(module, measures={"own": lambda network, batch: -2.0}, log=True)
    assert "no logarithm" in report.loc[0, "reason"]
    with pytest.raises(ValueError, match="`log` must be False"):
        measure_capacity(module, measures=Measure("own", lambda network, batch: -2.0, signed=True), log=True)


@pytest.mark.parametrize(
    ("measures", "error", "message"),
    [
        ([largest_weight], TypeError, "must contain names and `Measure` objects if it is a list.*Use a dict"),
        (largest_weight, TypeError, "`measures` must be a name, a `Measure`, a list"),
        ({"a": 3}, TypeError, "An entry of `measures` must be a name, a `Measure`, a function"),
        ({"a": lambda network: 1.0}, TypeError, r"'a' must be a function f\(network, batch\) or f\(module, X, y\)"),
        ({"a": dict}, TypeError, "The measure 'a' must be a function, got <class 'dict'>"),
        ({3: largest_weight}, TypeError, "The labels of `measures` must be strings, got 3"),
        ([LARGEST, LARGEST], ValueError, "`measures` contains 'largest_weight' twice"),
    ],
)  # fmt: skip
def test_what_is_no_measure_is_refused(measures, error, message, module):
    with pytest.raises(error, match=message):
        measure_capacity(module, X, y, measures)


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ({"name": 3}, TypeError, "`name` must be text"),
        ({"function": 3}, TypeError, "must be a function, got 3"),
        ({"cost": "free"}, ValueError, "`cost` must be one of"),
        ({"needs": {"gpu"}}, ValueError, "`needs` must be one of"),
        ({"invariances": "permutations"}, ValueError, "Did you mean 'permutation'"),
        ({"tasks": "ranking"}, ValueError, "`tasks` must be one of"),
        ({"tasks": ()}, ValueError, "`tasks` must name a task"),
        ({"lower_is_better": "yes"}, TypeError, "`lower_is_better` must be True or False"),
    ],
)
def test_a_record_checks_its_fields(params, error, message):
    with pytest.raises(error, match=message):
        Measure(**{"name": "own", "function": largest_weight, **params})


# -- across processes --------------------------------------------------------------------------------------------------


def scorer_of_lambdas():
    offset = 1.0  # a closure
    functions = {
        "a": lambda network, batch: offset + largest_weight(network, batch),
        "b": lambda m, X, y: m(X)[0, 0] + 5,
    }
    return CapacityScorer(
        {"accuracy": "accuracy", **functions, "c": Measure("c", lambda n, b: 1.0, lower_is_better=False)}
    )


def test_scorers_with_lambdas_are_pickled_and_copied(module):
    scorer = scorer_of_lambdas()
    fitted = NetworkClassifier((5,), max_epochs=1, random_state=0).fit(X, y)
    expected = scorer(fitted, X, y)
    assert list(expected) == ["accuracy", "neg_a", "neg_b", "c"]
    for again in (pickle.loads(pickle.dumps(scorer)), clone(scorer), copy.deepcopy(scorer)):
        assert again(fitted, X, y) == expected
    assert clone(scorer).measures["a"] is copy.deepcopy(scorer).measures["a"] is scorer.measures["a"]
    transformer = CapacityScorer({"a": lambda network, batch: 2.0}).fit(X, y)
    assert pickle.loads(pickle.dumps(transformer)).transform([module]).tolist() == [[2.0]]


@pytest.mark.parametrize("backend", ["loky", "threading", "multiprocessing"])
def test_two_jobs_give_the_serial_numbers(backend):
    network, options = NetworkClassifier((5,), max_epochs=2, random_state=0), {"scoring": scorer_of_lambdas(), "cv": 2}
    serial = cross_validate(network, X, y, return_train_score=True, **options)
    with parallel_config(backend=backend):
        parallel = cross_validate(network, X, y, return_train_score=True, n_jobs=2, **options)
    for key in serial:
        if "time" not in key:
            np.testing.assert_array_equal(parallel[key], serial[key])
            assert np.isfinite(serial[key]).all()


# A script, and cells that a notebook runs: their functions belong to no module that another process could import.
SCRIPT = """
import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn_capacity import CapacityScorer, Measure, NetworkClassifier

scope = {"__name__": "__main__"}
exec('''
import torch
SCALE = 2.0
def of_a_cell(network, batch):
    return SCALE * max(float(p.abs().max()) for p in network.parameters.values())
''', scope)

def of_the_script(module, X, y):
    return module(X).square().mean()

if __name__ == "__main__":
    X, y = np.random.default_rng(0).normal(size=(40, 4)), np.arange(40) % 2
    measures = {
        "accuracy": "accuracy", "cell": scope["of_a_cell"], "script": of_the_script, "margin": "margin",
        "record": Measure("record", lambda network, batch: len(batch.X), lower_is_better=False),
    }
    results = [
        GridSearchCV(
            NetworkClassifier((4,), max_epochs=2, random_state=0), {"weight_decay": [0.0, 0.1]}, cv=2, n_jobs=n_jobs,
            scoring=CapacityScorer(measures, on_error="raise"), refit="accuracy", return_train_score=True,
        ).fit(X, y).cv_results_
        for n_jobs in (1, 2)
    ]
    keys = [key for key in results[0] if key.startswith("split")]
    assert len(keys) == 5 * 2 * 2, keys
    for key in keys:
        assert np.isfinite(results[0][key]).all(), key
        assert (results[0][key] == results[1][key]).all(), key
    print("equal")
"""


def test_a_search_of_a_script_that_defines_functions(tmp_path):
    (tmp_path / "search.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, "-W", "ignore", tmp_path / "search.py"], capture_output=True, text=True)
    assert done.stdout.strip() == "equal", done.stderr[-2000:]


def test_the_callback_takes_them_and_is_pickled():
    callback = CapacityCallback({"own": lambda network, batch: 3.0, "largest": LARGEST})
    model = NetworkClassifier((5,), max_epochs=2, random_state=0, callbacks=[callback])
    for fitted in (model.fit(X, y), clone(pickle.loads(pickle.dumps(model))).fit(X, y)):
        assert fitted.history_[:, "own"] == [3.0, 3.0]
        assert fitted.history_[-1, "largest"] == measure_capacity(fitted, measures=LARGEST)["largest_weight"]
    seen: list[float] = []
    counting = CapacityCallback({"own": lambda network, batch: float(seen.append(1.0) or 1.0)})
    NetworkClassifier((5,), max_epochs=2, random_state=0, callbacks=[counting]).fit(X, y)
    assert len(seen) == 2  # the user's list itself, not a copy


def test_checkpoints_know_the_measures_of_a_callback(tmp_path):
    def model(function):
        callback = CapacityCallback({"own": function})
        return NetworkClassifier((5,), max_epochs=2, random_state=0, callbacks=[callback], checkpoint_dir=tmp_path)

    assert model(lambda network, batch: 1.0).fit(X, y).history_[:, "own"] == [1.0, 1.0]
    assert model(lambda network, batch: 2.0).fit(X, y).history_[:, "own"] == [2.0, 2.0]


def test_names_of_scores_are_distinguished_from_measures():
    requests, scores = parse_with_scores({"a": "accuracy", "m": ("margin", {"percentile": 5}), "own": largest_weight})
    assert [r.label for r in requests] == ["m", "own"] and scores == {"a": "accuracy"}
    assert parse_with_scores(LARGEST)[0][0].measure is LARGEST and parse_with_scores("accuracy") == (
        [],
        {"accuracy": "accuracy"},
    )


def test_a_grid_over_a_user_s_measures():
    scorer = CapacityScorer({"own": largest_weight})
    search = GridSearchCV(NetworkClassifier((3,), max_epochs=1, random_state=0), {}, scoring=scorer, refit=False, cv=2)
    search.set_params(scoring__measures={"other": lambda n, b: 4.0}).fit(X, y)
    assert search.cv_results_["mean_test_neg_other"] == [-4.0]
