"""Values for parameters: those that mean something, those that nearly do, and anything."""

from __future__ import annotations

import datetime
import decimal
import fractions
from collections.abc import Callable
from typing import Any

import numpy as np
import skorch.callbacks
import torch
from sklearn.ensemble import RandomForestClassifier
from torch import nn

from sklearn_capacity.penalties import JacobianPenalty, frobenius_penalty

from .case import Case
from .modules import CLASSES, FACTORIES, FEATURES, MODULES


class Mute:
    """An object without a text."""

    def __repr__(self) -> str:
        return ""

    def __len__(self) -> int:
        return 3


class Uncomparable:
    """An object that will not be compared or be true or false, as an array."""

    def __eq__(self, other: object) -> Any:
        return np.array([True, False])

    def __hash__(self) -> int:
        return 0

    def __bool__(self) -> bool:
        raise ValueError("the truth value is ambiguous")


def anything() -> list[Any]:
    """Objects that hardly any parameter takes."""
    return [
        None, True, False, 0, 1, 2, -1, 3.5, 0.0, -0.0, 0.5, 1e-320, 1e300, -1e300, float("nan"), float("inf"), -float("inf"),
        2**31, 2**63, 10**400, -(10**400), np.int64(1), np.int8(-1), np.uint8(2), np.float32(0.5), np.float64("nan"), np.bool_(True),
        np.array(1), np.array(0.5), np.array([1, 2]), np.array([0.5]), np.array([]), np.array("text"), np.array(None),
        np.datetime64("2020-01-01"), torch.tensor(1), torch.tensor(0.5), torch.tensor([1.0, 2.0]), torch.tensor(float("nan")),
        "", "text", "0.5", "1", "auto", "\x00", "a/b", b"bytes", 1j, fractions.Fraction(1, 2), decimal.Decimal("0.5"),
        [], [1], [None], [0.1, 0.2], ["a"], (), (1,), (1, 2), (0.5, "x"), {}, {"a": 1}, {1: 2}, {None: None}, set(), {1}, frozenset({1}),
        range(3), iter([1]), (x for x in [1]), lambda: None, lambda x: x, lambda *a, **k: None, print, int, object, object(),
        Mute(), Uncomparable(), nn.Linear(1, 1), nn.ReLU, torch.optim.SGD, torch.float32, torch.device("cpu"), np.float32, np,
        datetime.date(2020, 1, 1), Exception("text"), NotImplemented, ..., slice(1), RandomForestClassifier(), memoryview(b"1"),
    ]  # fmt: skip


def _policy(name: str, **options: Any) -> Any:
    return skorch.callbacks.LRScheduler(policy=name, **options)


class Raising(skorch.callbacks.Callback):
    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        raise ValueError("the callback stops the training")


def callbacks() -> list[Any]:
    """What users put into `callbacks`."""
    sc = skorch.callbacks
    lists = [
        sc.Freezer("*"), sc.Freezer(["*weight"]), sc.Freezer("nothing"), sc.Freezer(lambda name: True), sc.Freezer(3), sc.Unfreezer("*"),
        sc.ParamMapper("*", at=-1), sc.InputShapeSetter(), sc.InputShapeSetter(param_name="in_features"), _policy("StepLR", step_size=1),
        _policy("nothing"), _policy("OneCycleLR", max_lr=1.0, total_steps=1), _policy("CosineAnnealingLR"), _policy(3),
        _policy("ReduceLROnPlateau", monitor="nothing"), _policy("WarmRestartLR"), sc.EarlyStopping(), sc.EarlyStopping("train_loss", patience=1),
        sc.EarlyStopping(monitor="nothing"), sc.EpochScoring("accuracy"), sc.EpochScoring("nothing"), sc.EpochScoring(3),
        sc.EpochScoring("accuracy", on_train=True), sc.BatchScoring("accuracy"), sc.PassthroughScoring("train_loss", on_train=True),
        sc.GradientNormClipping(1.0), sc.GradientNormClipping("text"), sc.GradientNormClipping(-1), sc.ProgressBar(), sc.PrintLog(), sc.EpochTimer,
        sc.Checkpoint(dirname="kept"), sc.Checkpoint(monitor="nothing", dirname="kept"), sc.TrainEndCheckpoint(dirname="kept"), sc.LoadInitState(sc.Checkpoint()),
        sc.Initializer("*", fn=lambda t: None), sc.Initializer("*", fn=lambda t: t.detach().fill_(float("nan"))), sc.Initializer("*weight", fn=3), Raising(),
        sc.Callback(), sc.Callback, Raising, ("name", sc.EpochTimer()), ("name", 3), (3, sc.Callback()), ("a", sc.Callback(), 1), ("print_log", None), None, nn.Linear(1, 1), "text",
    ]  # fmt: skip
    return [[callback] for callback in lists] + [lists[0], "text", (), [sc.Callback(), sc.Callback()]]


def _aug(change: Callable[[torch.Tensor], Any]) -> Callable[[torch.Tensor, Any], Any]:
    return lambda X, generator: change(X)


def augmentations() -> list[Any]:
    """What users put into `augmentation`."""
    return [
        None, "flip", "crop_flip", "crop", "blur", _aug(lambda X: X), _aug(lambda X: None), _aug(lambda X: X[:0]), _aug(lambda X: X[:1]),
        _aug(lambda X: X.double()), _aug(lambda X: X.half()), _aug(lambda X: X.long()), _aug(lambda X: X + 1j), _aug(lambda X: X[:, :2]),
        _aug(lambda X: torch.cat([X, X])), _aug(lambda X: X.numpy()), _aug(lambda X: X.tolist()), _aug(lambda X: X * float("nan")),
        _aug(lambda X: X.mul_(2)), _aug(lambda X: X.requires_grad_()), _aug(lambda X: (X, X)), _aug(lambda X: X.to("meta")),
        _aug(lambda X: X.to_sparse()), lambda X: X, lambda: None, nn.ReLU(), nn.ReLU,
    ]  # fmt: skip


def optimizers() -> list[Any]:
    """What users put into `optimizer`."""
    o = torch.optim
    return [
        "adam", "sgd", "lbfgs", "kfac", "path_sgd", "sam", "rmsprop", "adagrad", "adadelta", "nadam", "adamw", "best", "Adam", o.SGD, o.Adam, o.AdamW, o.LBFGS, o.SparseAdam,
        o.Rprop, o.ASGD, o.Adamax, o.RAdam, o.Optimizer, getattr(o, "Muon", o.SGD), getattr(o, "Adafactor", o.SGD), int, nn.Linear, lambda params, lr: o.SGD(params, lr=lr),
        lambda params: o.SGD(params, lr=0.1), lambda params, lr: None, lambda *a, **k: o.SGD(*a, **k), o.lr_scheduler.StepLR,
    ]  # fmt: skip


def optimizer_params() -> list[Any]:
    """What users put into `optimizer_params`."""
    o = torch.optim
    return [
        None, {}, {"fused": True, "foreach": True}, {"foreach": True}, {"fused": False}, {"fused": None, "foreach": None}, {"differentiable": True},
        {"capturable": True}, {"fused": "yes"}, {"betas": (0.9, 0.99)}, {"betas": (2, 3)}, {"betas": 3}, {"betas": "text"}, {"eps": -1}, {"eps": "x"}, {"amsgrad": True},
        {"nothing": 3}, {"lr": 0.1}, {"lr": torch.tensor(0.1)}, {"lr": "x"}, {"params": []}, {"momentum": "x"}, {"momentum": -1}, {"nesterov": True}, {"nesterov": True, "momentum": 0},
        {"dampening": 0.5}, {"maximize": True}, {"weight_decay": "x"}, {"weight_decay": float("nan")}, {"param_groups": []}, {"param_groups": [("*", {})]}, {"param_groups": 3}, {"line_search_fn": "strong_wolfe"},
        {"line_search_fn": "x"}, {"max_iter": 2}, {"max_iter": 0}, {"history_size": -1}, {"damping": 0}, {"damping": "x"}, {"rho": 0.1}, {"rho": -1}, {"adaptive": True}, {"base": o.Adam}, {"base": "x"}, {"update_interval": 0}, {"fisher": "x"}, {"random_state": "x"}, {1: 2}, 3, "text", [("lr", 0.1)],
        {"params": 3, "lr": 1}, {"rho": 0.5, "base": "adam"}, {"rho": "x"}, {"adaptive": True}, {"base": "lbfgs"}, {"base": 3},
    ]  # fmt: skip


def custom_penalties() -> list[Any]:
    """What users put into `penalty`."""
    return [
        None, frobenius_penalty, JacobianPenalty("spectral"), JacobianPenalty("projection"), lambda module, X: module(X).pow(2).mean(), lambda module, X: None, lambda module, X: 3.0,
        lambda module, X: "text", lambda module, X: module(X), lambda module, X: module(X).sum() * float("nan"), lambda module, X: module(X).mean().detach(),
        lambda module: 0, lambda *args: torch.tensor(1.0), lambda module, X: torch.tensor(1j), lambda module, X: module(X).sum().long(), lambda module, X: (module(X).sum(), 1), nn.Linear(1, 1), nn.Linear,
        lambda module, X: sum(p.abs().sum() for p in module.parameters()), lambda module, X: X.sum(), lambda module, X: module(X).sum().double(), "spectral_norm", "gradient_norm", "fisher_rao", "weights",
        lambda module, X, y: torch.nn.functional.cross_entropy(module(X), y), lambda module, X, y, criterion: criterion(module(X), y),
        lambda module, X, shared: shared.logits.square().mean(), lambda module, X, sample_weight=None, shared=None: frobenius_penalty(module, X, sample_weight=sample_weight, shared=shared), lambda module, X: X.zero_().sum() * module(X).sum(),
        lambda module, X: module.eval()(X).square().sum(), lambda module, X: next(module.parameters()).square().sum().sqrt(), lambda module, X: 1 / (next(module.parameters()).sum() * 0), lambda module, X: {}["lost"], lambda module, X: print,
    ]  # fmt: skip


def _schedules() -> list[Any]:
    s = torch.optim.lr_scheduler
    return [
        None, "cosine", [1.0, 0.1], [(0, 1.0)], [(0, 1.0, 2)], [], "step", 3, [float("nan")], [-1.0], abs, lambda e: None, lambda e: "x", lambda e: float("nan"), lambda e: -1.0, lambda: 1.0,
        lambda e: torch.tensor(0.5), lambda e: [1.0], lambda e: 1j, lambda e: 10**400, lambda e: float("inf"), s.StepLR, s.ExponentialLR, s.ReduceLROnPlateau, s.CosineAnnealingLR, s.OneCycleLR, s.LRScheduler, np.array([1.0, 0.5]), {0: 1.0}, (x for x in [1.0]),
    ]  # fmt: skip


SIZE_LIKE = [1, 2, 5, 0, -1, 1.5, "3", None, np.int64(2), np.float64(2), np.array(2), True, float("nan"), float("inf")]
UNIT = [0.0, 0.1, 0.5, 0.9, 1.0, -0.1, float("nan"), "half", None, np.float32(0.25), np.array(0.5), 1e-300, True]
SCALE = [
    0.0,
    0.01,
    1.0,
    1e-300,
    1e300,
    -1.0,
    float("inf"),
    float("nan"),
    None,
    "0.1",
    np.float32(0.1),
    np.array(0.1),
    torch.tensor(0.1),
    10**400,
]
FLAG = [False, True, np.bool_(True), 0, 1, "yes", None]


def parameters() -> dict[str, list[Any]]:
    """Values of each constructor parameter, new at each call."""
    return {
        "hidden_layer_sizes": [(), (2,), 3, [2, 2], (0,), "wide", None, (2.5,), np.array([2]), np.array(2), np.int64(3), (np.int64(2),), (-1,), (True,), ((2,),), {2}, (2, None), "3", torch.tensor([2]), range(2, 4)],
        "activation": ["relu", "tanh", "gelu", "elu", "linear", "steep", None, nn.ReLU, nn.ReLU(), nn.Softmax, nn.PReLU, nn.Linear, lambda: nn.Tanh(), lambda: None, lambda x: x, torch.relu, 3, nn.GLU, nn.Identity, lambda: 3],
        "bias": FLAG, "batch_norm": FLAG, "weight_norm": FLAG, "dropout": UNIT,
        "module_params": [None, {}, {"in_features": FEATURES, "out_features": CLASSES}, {"width": 2}, {"width": "x"}, {"width": -1}, {"width": 10**400}, {"n_outputs": 7}, {"input_shape": 3}, {"hidden_layer_sizes": (2,)}, {"nothing": 1}, 3, {1: 2}, [("width", 2)], {"channels": (2,), "kernel_size": 1}],
        "input_shape": [None, (4,), (1, 2, 2), [2, 2], (5,), (0,), 4, (-1, -4), (2.0, 2.0), "4", (), np.array([1, 2, 2]), torch.Size([4]), (10**30, 4), (True, 4), (4, 1, 1, 1, 1, 1, 1, 1, 1, 1)],
        "loss": ["auto", "cross_entropy", "squared", "absolute", "hinge", None, nn.MSELoss, nn.MSELoss()],
        "optimizer": optimizers(), "optimizer_params": optimizer_params(), "learning_rate": SCALE, "learning_rate_schedule": _schedules(),
        "momentum": UNIT, "weight_decay": [*SCALE, {"*.weight": 0.1}, {"*": 0.0}, {"nothing": 0.1}, {1: 0.1}, {"*": -1.0}, {}], "penalty": custom_penalties(), "penalty_strength": SCALE,
        "max_epochs": SIZE_LIKE, "batch_size": [*SIZE_LIKE, 100, 2**62, "auto"],
        "stop_below": [*SCALE], "early_stopping": FLAG, "validation_fraction": UNIT, "n_iter_no_change": [*SIZE_LIKE, 10**30], "tol": SCALE,
        "stop_at_error": UNIT, "class_weight": [None, "balanced", {0: 1.0}, {0: 0.0, 1: 0.0, 2: 0.0}, {0: -1}, "equal", {9: 1.0}, {"a": 2.0}, {0: "x"}, {0: float("nan")}, {0: 1e300, 1: 1e-300}, [1.0, 2.0, 3.0], 3, {0: np.float32(2)}, {None: 1.0}, {}],
        "augmentation": augmentations(), "callbacks": callbacks(),
        "dtype": ["auto", "float32", "float64", "float16", "bfloat16", np.int64, "f8", None, np.float32, torch.float64, torch.float16, torch.complex64, float, "x", 3, "U3", object, complex, np.dtype("f4"), [("a", "f8")], np.longdouble, ">f4"],
        "device": ["auto", "cpu", "cpu:0", "cpu:7", "cuda", "cuda:99", "meta", "nowhere", 3, -1, None, torch.device("cpu"), torch.device("cpu", 1), torch.device("meta"), "mps", "xpu", "", "CPU", "cpu:x", "privateuseone", "hpu", "mkldnn", "vulkan", "xla", True, 1.5],
        "random_state": [0, None, -1, "seed", 2.5, 2**31, 2**32, 2**40, 10**400, np.int64(3), np.uint64(2**63), np.random.RandomState(0), np.random.default_rng(0), np.random, torch.Generator(), True, np.array(3), float("nan")],
        "verbose": [0, -1, 1.5, "x", None, True, np.int64(1)], "warm_start": FLAG, "checkpoint_dir": [None, "folder", 3, "", "\x00", b"folder", "a" * 300, "/dev/null/x"], "checkpoint_every": SIZE_LIKE,
        "jacobian_penalty": SCALE, "jacobian_norm": ["frobenius", "spectral", "per_layer", "projection", "nothing", None, 3], "n_projections": [*SIZE_LIKE, 7], "jacobian_output": ["logits", "softmax", "x", None],
        "variant": ["skip", "dropout", "x", None, 3], "position": ["head", None, 0, 1, 2, -1, 7, "0", "layers.0", "nothing", "", 1.5, True, 10**30], "nu_start": SCALE, "nu_end": SCALE, "nu_decay_fraction": UNIT,
        "slow_factor": SCALE, "slow_after": [*SIZE_LIKE, 0.5, 10**400], "layer_form": [None, "linear", "conv1x1", "conv3x3", "x", 3], "layer_depth": SIZE_LIKE, "layer_dropout": UNIT,
    }  # fmt: skip


def pick_module(case: Case) -> Any:
    """A `module` parameter."""
    return case.pick(MODULES if case.happens(0.75) else FACTORIES, "module")()
