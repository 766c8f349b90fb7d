"""Cases of what users supply, and of what runs next to a fit: measures, penalties, callbacks, states, clusters."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import joblib
import numpy as np
import torch
from dask.distributed import Client, LocalCluster
from sklearn.utils import Bunch
from skorch import NeuralNetClassifier
from skorch.dataset import ValidSplit
from torch import Tensor, nn

import sklearn_capacity as package
from sklearn_capacity import Measure, Measured, datasets, model_selection, penalties

from .case import REFUSALS, Case, Fault, check_finite, state_of
from .data import CLASSES, FEATURES, N, normal, pick_X, pick_y
from .measures import CHEAP, FITTED, fitted, random_options
from .modules import MODULES, mlp
from .values import anything, custom_penalties

X, Y = normal(N, FEATURES), np.arange(N) % CLASSES


# ---- measures of users ----------------------------------------------------------------------------------------------


class Counting:
    """A measure that remembers."""

    def __init__(self) -> None:
        self.n_calls = 0

    def __call__(self, network: Any, batch: Any) -> float:
        self.n_calls += 1
        return float(self.n_calls)


def _raises(error: Exception) -> Callable[..., Any]:
    def raising(network: Any, batch: Any) -> float:
        raise error

    return raising


def _in_place(module: Any, X: Tensor, y: Any) -> Tensor:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
    X.zero_()
    module.train()
    return module(X).sum()


def _returns(value: Any) -> Callable[..., Any]:
    return lambda network, batch: value


def custom_measures() -> dict[str, Any]:
    """Functions and records in place of a measure's name."""
    returned = {f"returns {name}": _returns(value) for name, value in {
        "a number": 1.0, "an integer": 3, "a tensor": torch.tensor(2.0), "numpy's": np.float32(2), "true": True, "none": None, "text": "1", "nan": float("nan"),
        "infinity": float("inf"), "a negative number": -1.0, "a complex number": 1j, "a vector": torch.ones(2), "an array": np.ones((1, 1)), "a huge integer": 10**400,
        "a gradient": torch.ones((), requires_grad=True), "a meta tensor": torch.ones((), device="meta"), "a class": float, "an object": object(),
        "a record": Measured(1.0, standard_error=0.1, per_layer=[{"layer": "0", "value": 1.0}]), "a record of nan": Measured(float("nan")), "a record of text": Measured("text"),  # type: ignore[arg-type]
        "rows of text": Measured(1.0, per_layer=["text"]), "info of text": Measured(1.0, info="text"), "a logarithm of text": Measured(1.0, log_value="text"),  # type: ignore[arg-type, list-item]
    }.items()}  # fmt: skip
    errors = [
        ValueError("the batch is too small"),
        KeyError("lost"),
        RuntimeError("size mismatch"),
        ZeroDivisionError("division"),
        AssertionError(),
        StopIteration(),
        package.NotDefinedError("only for trees"),
    ]
    return {
        **returned, **{f"raises {type(error).__name__}": _raises(error) for error in errors},
        "the module": lambda module, X: module(X).abs().sum(), "the labels": lambda module, X, y: module(X)[torch.arange(len(y)), y].mean(), "in place": _in_place,
        "the logits": lambda network, batch: batch.logits.abs().max(), "the weights": lambda network, batch: sum(p.abs().sum() for p in network.parameters.values()), "draws": lambda network, batch: torch.rand((), generator=batch.generator()),
        "draws for all": lambda module, X: torch.rand(()), "options": lambda network, batch, *, p=1.0: p, "no arguments": lambda: 1.0, "one argument": lambda network: 1.0, "four": lambda a, b, c, d: 1.0, "any": lambda *args, **kwargs: 1.0,
        "partial": functools.partial(lambda network, batch, p: p, p=2.0), "counting": Counting(), "a class": Counting, "built in": len, "a module": nn.Linear(FEATURES, 1), "a layer's class": nn.Linear,
        "a recorded one": Measure("mine", lambda module, X: module(X).square().mean(), lower_is_better=False, needs={"data"}), "a name that is taken": Measure("margin", lambda module, X: 1.0), "signed": Measure("mine", _returns(-1.0), signed=True),
        "not signed": Measure("mine", _returns(-1.0)), "of regressions": Measure("mine", _returns(1.0), tasks="regression"), "with labels": Measure("mine", lambda module, X, y: 1.0, needs={"data", "labels"}),
    }  # fmt: skip


def _one_of_users(case: Case) -> Any:
    custom = case.pick(custom_measures(), "own measure")
    if any(text in case.choices[-1] for text in ("raises", "labels")):
        case.refusals, case.shortest = (Exception,), 0  # of the user's code
    return custom


def _some_measures(case: Case) -> Any:
    custom, name = _one_of_users(case), case.pick(CHEAP)
    forms = {
        "a dict": {"own": custom},
        "with params": {"own": (custom, {case.pick(["p", "q"]): case.pick(anything())})},
        "both": [name, custom],
        "alone": custom,
        "twice": [custom, custom],
        "by name": name,
    }
    return case.pick(forms, f"measures with {name}")


def _custom_measure(case: Case) -> None:
    model = _model(case) if case.happens(0.3) else mlp()
    before = state_of(model)
    measures = _some_measures(case)
    case.may_change = ("torch's random numbers",) if "draws for all" in " ".join(case.choices) else ()
    call = case.pick(["measure", "report", "score"])
    data = (pick_X(case, 0.1), pick_y(case, 0.1))
    if call == "score":
        scorer = package.CapacityScorer(measures, on_error=case.pick(["nan", "raise"]))
        case.call("scorer", scorer, model, *data)
        case.call("clone", lambda: repr(scorer.__sklearn_clone__() if hasattr(scorer, "__sklearn_clone__") else scorer))
    elif call == "report":
        case.call("report", package.capacity_report, model, *data, measures, per_layer=case.happens(0.3))
    else:
        check_finite(
            "own measure", case.call("measure", package.measure_capacity, model, *data, measures), infinite=True
        )
    if state_of(model) != before:
        raise Fault("a measure changed the model")


def _record(case: Case) -> None:
    arguments: dict[str, Any] = {"name": "mine", "function": lambda network, batch: 1.0}
    fields = [
        "name",
        "function",
        "family",
        "lower_is_better",
        "source",
        "needs",
        "cost",
        "unit",
        "tasks",
        "invariances",
        "stochastic",
        "signed",
        "fixed",
        "description",
    ]
    for name in case.random.sample(fields, case.random.choice([1, 2])):
        arguments[name] = case.pick(anything(), name)
    record = case.call("Measure", Measure, **arguments)
    if (
        record is not None
        and case.call("report with a record", package.capacity_report, mlp(), X, Y, [record]) is not None
    ):
        case.call("repr", repr, record)


def _check_measure(case: Case) -> None:
    given = _one_of_users(case) if case.happens(0.8) else case.pick(anything(), "measure")
    params = (
        case.pick([None, {}, {"p": 2.0}, {"q": 1}, 3, "text", {"p": "x"}, {1: 2}], "params")
        if case.happens(0.3)
        else None
    )
    data = () if case.happens(0.5) else (_model(case), pick_X(case), pick_y(case))
    case.may_change = ("torch's random numbers",)  # of the one that draws
    case.call("check_measure", package.check_measure, given, *data, params=params)


# ---- penalties of users ---------------------------------------------------------------------------------------------


def _check_penalty(case: Case) -> None:
    module = case.pick(MODULES, "module")() if case.happens(0.5) else mlp(nn.Tanh()).double()
    batch = torch.from_numpy(X) if case.happens(0.6) else pick_X(case)
    penalty = case.pick(custom_penalties() if case.happens(0.8) else anything(), "penalty")
    before = state_of(module)
    case.call("check_penalty", penalties.check_penalty, penalty, module, batch)
    if state_of(module) != before:
        raise Fault("check_penalty changed the module")


def _penalized_fit(case: Case) -> None:
    kind = case.pick(
        [package.NetworkClassifier, package.JacobianRegularizedClassifier, package.GeneralizationLayerClassifier]
    )
    case.choices.append(kind.__name__)
    optimizer = case.pick(["adam", "sgd", "lbfgs", "kfac", "path_sgd"], "optimizer")
    strength = case.pick([1.0, 0.0, 0.1, 1e-300, 1e300, float("inf"), -1], "penalty_strength")
    model = kind(
        (3,),
        penalty=case.pick(custom_penalties(), "penalty"),
        penalty_strength=strength,
        optimizer=optimizer,
        max_epochs=2,
        random_state=0,
    )
    if case.call("fit", model.fit, X, Y) is not None:
        check_finite("predict_proba", case.call("predict_proba", model.predict_proba, X))


# ---- callbacks of this package in a fit ------------------------------------------------------------------------------


def _callback(case: Case) -> Any:
    settings = {name: case.pick(anything() if case.happens(0.3) else values, name) for name, values in {
        "every": [1, 2, 0, -1, 1.5, "x", None], "prefix": ["", "a_", 3, None], "log": [False, True, "x"], "max_samples": [None, 1, 5, 0, 2.5], "loss": [None, "cross_entropy", "squared", "hinge", 3],
        "epochs": [None, [1], [0], [-1], [], "x", [1.5], [10**30], 1, range(9)], "max_memory": [None, "1 GB", 1, 0, "x"], "max_seconds": [None, 5, 1e-9, 0, "x"],
        "batch_size": [None, 1, 0, "x"], "random_state": [0, None, "x"], "device": [None, "cpu", "nowhere"],
    }.items() if case.happens(0.15)}  # fmt: skip
    if case.happens(0.3):
        settings |= {"X": pick_X(case), "y": pick_y(case)}
    measures = case.pick(
        ["cheap", "frobenius_norm", ["margin", "l2_path_norm"], {"a": "fisher_trace"}, "nothing", None], "measures"
    )
    return package.CapacityCallback(_some_measures(case) if case.happens(0.4) else measures, **settings)


def _fit_with_callback(case: Case) -> None:
    callback = _callback(case)
    case.may_change = ("torch's random numbers",) if "draws for all" in " ".join(case.choices) else ()
    if case.happens(0.6):
        kinds = [
            package.NetworkClassifier,
            package.JacobianRegularizedClassifier,
            package.GeneralizationLayerClassifier,
            package.NetworkRegressor,
        ]
        kind = case.pick(kinds)
        case.choices.append(kind.__name__)
        early = case.happens(0.2)
        model = kind((3,), max_epochs=2, batch_size=5, early_stopping=early, callbacks=[callback], random_state=0)
        plain = kind((3,), max_epochs=2, batch_size=5, early_stopping=early, random_state=0)
        data = (pick_X(case), pick_y(case)) if case.happens(0.3) else (X, Y)
        if case.call("fit", model.fit, *data) is not None:
            case.call("fit without", plain.fit, *data)
            if "in place" not in " ".join(case.choices) and state_of(model.module_) != state_of(plain.module_):
                raise Fault("the callback changed the training")
    else:
        callbacks = [callback, *([package.InitialStateCallback()] if case.happens(0.5) else [])]
        split = ValidSplit(2) if case.happens(0.3) else None
        net = NeuralNetClassifier(
            mlp, criterion=nn.CrossEntropyLoss, max_epochs=2, train_split=split, verbose=0, callbacks=callbacks
        )
        case.may_change = ("torch's random numbers",)  # skorch draws from them
        case.call("skorch fit", net.fit, X.astype("f4"), Y)


# ---- several models, and their weights before training ---------------------------------------------------------------


def _model(case: Case) -> Any:
    if case.happens(0.4):
        return case.pick(MODULES, "model")()
    return fitted(case.pick(sorted(FITTED), "model"))


def _state(case: Case) -> Any:
    """What may pass for the weights before training."""
    good = mlp()
    return case.pick({
        "a module": good, "its state": good.state_dict(), "none": None, "another's": nn.Linear(2, 2), "half of it": dict(list(good.state_dict().items())[:1]), "on meta": good.to("meta").state_dict() if case.happens(0.5) else {},
        "double": {k: v.double() for k, v in mlp().state_dict().items()}, "nan": {k: v * float("nan") for k, v in mlp().state_dict().items()}, "arrays": {k: v.numpy() for k, v in mlp().state_dict().items()},
        "integers": {k: v.long() for k, v in mlp().state_dict().items()}, "complex": {k: v + 1j for k, v in mlp().state_dict().items()}, "anything": case.pick(anything()), "a class": nn.Linear, "lazy": nn.LazyLinear(3),
    }, "initial_state")  # fmt: skip


def _initial_state(case: Case) -> None:
    model = _model(case) if case.happens(0.5) else mlp()
    before = state_of(model)
    state = _state(case)
    if case.happens(0.5):
        measures = case.pick([["distance_from_initialization", "spectral_norm"], "cheap", "all_of_it"], "measures")
        values = case.call("measure_capacity", package.measure_capacity, model, X, Y, measures, initial_state=state)
        if "nan" not in " ".join(case.choices):
            check_finite("measure_capacity", values, infinite=True)
    else:
        case.call(
            "report",
            package.capacity_report,
            model,
            X,
            Y,
            "cheap",
            initial_state=state,
            classes=case.pick([None, [0, 1, 2], [0, 1], "abc", 3, ["a", "a", "b"]]),
        )
    if state_of(model) != before:
        raise Fault("measuring changed the model")


def _compare(case: Case) -> None:
    models = [_model(case) for _ in range(case.random.choice([0, 1, 2, 2, 3]))]
    given = case.pick(
        {
            "a list": models,
            "a dict": dict(enumerate(models)),
            "names": {f"m{i}": m for i, m in enumerate(models)},
            "one": models[0] if models else None,
            "a tuple": tuple(models),
            "anything": case.pick(anything()),
        },
        "models",
    )
    measures = (
        _some_measures(case)
        if case.happens(0.4)
        else case.pick(["cheap", ["margin", "accuracy"], "accuracy", [], "nothing", {"a": "r2"}], "measures")
    )
    more = random_options(case, "loss", "log", "max_samples", "batch_size", "device", "random_state")
    if case.happens(0.3):
        more["initial_states"] = case.pick(
            [None, [mlp()] * len(models), {"m0": mlp()}, {0: mlp().state_dict()}, {"z": mlp()}, [], 3, "text", [3]],
            "initial_states",
        )
    if case.happens(0.3):
        more |= {"X_test": pick_X(case), "y_test": pick_y(case)}
    if case.happens(0.2):
        more |= {
            "n_jobs": case.pick([None, 1, 0, "x", 1.5], "n_jobs"),
            "classes": case.pick([None, [0, 1, 2], "abc", [0]], "classes"),
        }
    case.may_change = ("torch's random numbers",) if "draws for all" in " ".join(case.choices) else ()
    case.call(
        "compare_capacity", package.compare_capacity, given, pick_X(case, 0.2), pick_y(case, 0.2), measures, **more
    )


# ---- data from afar and clusters -------------------------------------------------------------------------------------


def _downloaded(case: Case) -> Any:
    """In place of scikit-learn's function, with the data of one that is cut off, or none."""
    n = case.pick([3, 0, 1])
    answer = {"the data": Bunch(data=np.full((n, 784), 255), target=np.array(["3"] * n), DESCR="digits")}
    answer |= {"colours": Bunch(data=np.zeros((n, 3072)), target=np.array(["1"] * n), DESCR="colours")}
    errors = {
        "no network": ConnectionError("refused"),
        "a timeout": TimeoutError("timed out"),
        "a full disk": OSError(28, "No space left on device"),
        "a wrong checksum": ValueError("md5 checksum of local file does not match"),
    }
    drawn = case.pick({**answer, **errors}, "download")

    def fetch(**kwargs: Any) -> Any:
        if isinstance(drawn, Exception):
            raise drawn
        return drawn

    return fetch


def _fetch(case: Case) -> None:
    case.refusals = (*REFUSALS, OSError)
    function = case.pick([datasets.fetch_mnist, datasets.fetch_cifar10])
    case.choices.append(function.__name__)
    with mock.patch("sklearn.datasets.fetch_openml", _downloaded(case)):
        given = {
            "data_home": case.pick([None, "folder", 3, b"folder", "\0"], "data_home"),
            "return_X_y": case.happens(0.5),
        }
        if function is datasets.fetch_mnist:
            given["subset"] = case.pick(["all", "train", "test", "x", None, 3, ["all"]], "subset")
        answer = case.call("fetch", function, **given)
    if isinstance(answer, tuple):
        check_finite("fetch", answer[0])


@functools.cache
def _client() -> Client:
    here = LocalCluster(
        processes=False, n_workers=1, threads_per_worker=1, host="127.0.0.1", protocol="tcp", dashboard_address=None
    )
    return Client(here, set_as_default=False)


def close_cluster() -> None:
    """End the cluster of the cases, whose thread draws Python's random numbers."""
    if _client.cache_info().currsize:
        client = _client()
        client.close()
        client.cluster.close()
        _client.cache_clear()


def _cluster(case: Case) -> None:
    case.refusals = (*REFUSALS, ConnectionError)
    client = _client() if case.happens(0.6) else case.pick(anything(), "client")
    given = {name: case.pick(values if case.happens(0.7) else anything(), name) for name, values in {
        "scatter": [None, [X], (X, Y), [], X, "text"], "wait_for_workers_timeout": [60, 1, 0, -1, "x", None, float("nan")], "n_jobs": [1, 2, -1, 0, None], "verbose": [0], "key": ["a", 3], "priority": [1],
    }.items() if case.happens(0.2)}  # fmt: skip

    def inside() -> Any:
        with model_selection.dask_backend(client, **given):
            return joblib.Parallel()(joblib.delayed(abs)(-i) for i in range(3))

    answer = case.call("dask_backend", inside)
    if answer is not None and answer != [0, 1, 2]:
        raise Fault(f"dask_backend: {answer}")


CASES: dict[str, tuple[Callable[[Case], None], int]] = {
    "a record": (_record, 2), "check_measure": (_check_measure, 2), "check_penalty": (_check_penalty, 2), "penalized fit": (_penalized_fit, 3), "fit with a callback": (_fit_with_callback, 4),
    "initial state": (_initial_state, 3), "compare": (_compare, 4), "fetch": (_fetch, 1), "cluster": (_cluster, 1), "own measures": (_custom_measure, 4),
}  # fmt: skip


def run_case(case: Case) -> None:
    """One call, or one fit, of one of the kinds above."""
    torch.manual_seed(0)
    names = sorted(CASES)
    name = case.random.choices(names, [CASES[name][1] for name in names])[0]
    case.choices.append(name)
    CASES[name][0](case)
