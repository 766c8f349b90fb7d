"""Cases of the public functions: usual arguments, of which one or two are something else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.utils import Bunch
from torch import nn

import sklearn_capacity as package
from sklearn_capacity import architectures, datasets, displays, layers, model_selection, penalties, theory, training
from sklearn_capacity.scoring.landscape import measure_landscape

from .case import RANDOM_NUMBERS, REFUSALS, Case, Fault, check_finite, shown, state_of
from .data import CLASSES, FEATURES, HOSTILE_X, HOSTILE_Y, N, normal
from .measures import fitted
from .modules import FACTORIES, MODULES, mlp
from .values import anything

Arguments = dict[str, Any]
IMAGE = (1, 8, 8)


def _batch() -> torch.Tensor:
    return torch.from_numpy(normal(N, FEATURES)).float()


def _images() -> torch.Tensor:
    return torch.from_numpy(normal(3, 1, 6, 6)).float()


def _search() -> dict[str, Any]:
    """The result of a search."""
    n = 6
    return {
        "params": [{"jacobian_penalty": 0.1 * i} for i in range(n)],
        "param_jacobian_penalty": np.ma.masked_array([0.1 * i for i in range(n)]),
        "mean_test_accuracy": np.linspace(0.5, 0.9, n),
        "std_test_accuracy": np.full(n, 0.1),
        "mean_train_accuracy": np.linspace(0.6, 1.0, n),
        "mean_train_neg_fisher_rao_norm": -np.linspace(1, 2, n),
        "mean_test_neg_fisher_rao_norm": -np.linspace(1, 2, n),
        "split0_test_accuracy": np.linspace(0.5, 0.9, n),
        "split1_test_accuracy": np.linspace(0.5, 0.8, n),
        "split0_train_accuracy": np.linspace(0.5, 0.9, n),
        "split1_train_accuracy": np.linspace(0.5, 0.8, n),
    }


def _table() -> pd.DataFrame:
    return model_selection.capacity_table(_search())


def _penalty(function: Callable[..., Any], **more: Any) -> tuple[Callable[..., Any], Callable[[], Arguments]]:
    weights = {"output": "logits", "sample_weight": torch.ones(N), **more}
    return function, lambda: {"function": mlp(), "X": _batch(), **weights}


def _network(kind: Callable[..., Any], **small: Any) -> tuple[Callable[..., Any], Callable[[], Arguments]]:
    return kind, lambda: {"input_shape": IMAGE, "n_outputs": 2, **small}


def _run(module: Any, X: torch.Tensor) -> Any:
    return module.eval()(X)


def _spectral_theory() -> Arguments:
    return {
        "activation": "relu",
        "sigma_w2": 2.0,
        "sigma_b2": 0.1,
        "depth": 3,
        "width": 10,
        "n_outputs": 2,
        "output": "linear",
    }


def _map_arguments() -> Arguments:
    small = {"width": 4, "depth": 2, "n_steps": 2, "n_trials": 1, "batch_size": 3, "random_state": 0}
    return {"X": normal(4, 2), "y": normal(4), "learning_rates": [0.1, 1.0], "values": [2, 3], **small}


def _plot(
    display: type, given: Callable[[], Any], options: Arguments | None = None, **plot: Any
) -> tuple[Callable[..., Any], Callable[[], Arguments]]:
    """Options of the display, and arguments of its `plot`."""
    options = options or {}

    def drawn(data: Any, **arguments: Any) -> None:
        try:
            shown = display(data, **{key: arguments.pop(key) for key in options})
            shown.plot(*([arguments.pop("ax")] if "ax" in arguments else []), **arguments)
        finally:
            plt.close("all")

    return drawn, lambda: {"data": given(), "ax": None, **options, **plot}


def _plot_from(make: Callable[..., Any], given: Callable[[], Arguments]) -> tuple[Callable[..., Any], Any]:
    """A display of models or data."""

    def drawn(**arguments: Any) -> None:
        try:
            make(**arguments).plot()
        finally:
            plt.close("all")

    return drawn, given


def _models() -> dict[str, Any]:
    return {"a": fitted("classifier"), "b": fitted("layer classifier")}


def _triples() -> dict[str, Any]:
    return {name: (model, XY["X"], XY["y"]) for name, model in _models().items()}


def _compared() -> pd.DataFrame:
    return package.compare_capacity(_models(), **XY, measures=["frobenius_norm", "margin"])


def _finished_search() -> Any:
    return Bunch(cv_results_=_search(), best_index_=0)


LANDSCAPE: Arguments = {"resolution": 2, "measures": ["frobenius_norm"], "half_width": 1.0, "weights": None}
XY: Arguments = {"X": normal(N, FEATURES), "y": np.arange(N) % CLASSES}

#: name -> (function, its usual arguments, newly created)
FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[], Arguments]]] = {
    "frobenius_penalty": _penalty(penalties.frobenius_penalty),
    "projection_penalty": _penalty(penalties.projection_penalty, n_projections=1),
    "spectral_penalty": _penalty(penalties.spectral_penalty),
    "per_layer_penalty": _penalty(penalties.per_layer_penalty),
    "spectral_norm_penalty": (penalties.spectral_norm_penalty, lambda: {"module": mlp(), "X": _batch()}),
    "gradient_norm_penalty": (penalties.gradient_norm_penalty, lambda: {"module": mlp(), "X": _batch(), "y": torch.arange(N) % CLASSES, "criterion": None, "sample_weight": torch.ones(N), "squared": True}),
    "fisher_rao_penalty": (penalties.fisher_rao_penalty, lambda: {"module": mlp(), "X": _batch(), "y": torch.arange(N) % CLASSES, "criterion": None, "distribution": "empirical", "sample_weight": torch.ones(N)}),
    "JacobianPenalty": (penalties.JacobianPenalty, lambda: {"norm": "projection", "output": "softmax", "n_projections": 1}),
    "check_penalty": (penalties.check_penalty, lambda: {"penalty": penalties.frobenius_penalty, "module": mlp(nn.Tanh()).double(), "X": _batch().double(), "y": None, "criterion": None, "random_state": 0}),
    "forward_pass": (penalties.forward_pass, lambda: {"module": mlp(), "X": _batch()}),
    "GeneralizationLayer": (layers.GeneralizationLayer, lambda: {"in_features": 4, "out_features": 3, "depth": 1, "nu": 1.0}),
    "ConvGeneralizationLayer": (layers.ConvGeneralizationLayer, lambda: {"in_channels": 2, "out_channels": 2, "stride": 1, "form": "conv1x1", "depth": 1, "nu": 1.0}),
    "GeneralizationDropout": (layers.GeneralizationDropout, lambda: {"features": 4, "p": 0.5}),
    "ConvGeneralizationDropout": (layers.ConvGeneralizationDropout, lambda: {"channels": 2, "p": 0.5, "stride": 1, "form": "conv1x1"}),
    "GeneralizationWrap": (layers.GeneralizationWrap, lambda: {"layer": nn.Linear(4, 4), "body": nn.Linear(4, 4), "shortcut": nn.Identity(), "activation": "relu", "nu": 1.0}),
    "SkipLayer": (layers.SkipLayer, lambda: {"body": nn.Linear(4, 4), "shortcut": nn.Identity(), "nu": 1.0}),
    "insert_generalization_layer": (layers.insert_generalization_layer, lambda: {"module": mlp(), "position": "head", "variant": "skip", "form": None, "depth": None, "nu": 1.0, "p": 0.5, "activation": "relu", "replace": False, "input_shape": (4,)}),
    "generalization_layers": (lambda module: list(layers.generalization_layers(module)), lambda: {"module": mlp()}),
    "generalization_parameters": (lambda module: list(layers.generalization_parameters(module)), lambda: {"module": mlp()}),
    "set_nu": (layers.set_nu, lambda: {"module": layers.GeneralizationLayer(4), "nu": 0.5}),
    "he_initialize": (layers.he_initialize, lambda: {"module": mlp()}),
    "nu_schedule": (layers.nu_schedule, lambda: {"epoch": 3, "max_epochs": 10, "start": 1.0, "end": 0.1, "decay_fraction": 0.8}),
    "slow_learning_factor": (layers.slow_learning_factor, lambda: {"epoch": 3, "max_epochs": 10, "slow_after": 5, "slow_factor": 0.1}),
    "slow_start": (layers.slow_start, lambda: {"slow_after": 5, "max_epochs": 10}),
    "crop_flip": (layers.crop_flip, lambda: {"X": _images(), "generator": torch.Generator()}),
    "random_crop": (layers.random_crop, lambda: {"X": _images(), "generator": torch.Generator(), "padding": 1}),
    "random_flip": (layers.random_flip, lambda: {"X": _images(), "generator": torch.Generator()}),
    "resolve_augmentation": (layers.resolve_augmentation, lambda: {"augmentation": "flip"}),
    "make_confusion_set": (datasets.make_confusion_set, lambda: {**XY, "n_train": 5, "n_confusion": 3, "random_state": 0}),
    "make_noisy_cubic": (datasets.make_noisy_cubic, lambda: {"n_samples": 5, "noise": 1.0, "switch": 0.0, "interval": (-1.0, 1.0), "return_clean": True, "random_state": 0}),
    "make_noisy_quadratic": (datasets.make_noisy_quadratic, lambda: {"n_samples": 5, "noise": 1.0, "interval": (-1.0, 1.0), "return_clean": True, "random_state": 0}),
    "make_piecewise_linear_curves": (datasets.make_piecewise_linear_curves, lambda: {"n_samples": 5, "n_points": 6, "n_pieces": 2, "random_state": 0}),
    "randomize_labels": (datasets.randomize_labels, lambda: {"y": XY["y"], "fraction": 0.5, "random_state": 0}),
    "load_digit_images": (datasets.load_digit_images, lambda: {"return_X_y": True}),
    "MLP": (architectures.MLP, lambda: {"n_features": 4, "n_outputs": 2, "hidden_layer_sizes": (2,), "activation": "relu", "bias": True, "batch_norm": False, "weight_norm": False, "dropout": 0.0}),
    "ConvNet": _network(architectures.ConvNet, channels=(2,), kernel_size=3, padding=None, batch_norm=False, weight_norm=False),
    "VGG": _network(architectures.VGG, channels=(2,), hidden_size=2, dropout=0.3, batch_norm=True, weight_norm=False),
    "AllConvNet": _network(architectures.AllConvNet, width=2, dropout=0.0, batch_norm=True, weight_norm=False),
    "CifarResNet": _network(architectures.CifarResNet, depth=8, width=2, shortcut="pad", generalization_layer=None, layer_form=None, layer_depth=None, layer_dropout=0.5, nu=1.0),
    "PreactResNet": _network(architectures.PreactResNet, channels=(2, 2), n_blocks=1, stem="auto", dropout=0.0),
    "WideResNet": _network(architectures.WideResNet, depth=10, widen=1, dropout=0.0),
    "ResidualMLP": (architectures.ResidualMLP, lambda: {"input_shape": (4,), "n_outputs": 2, "n_hidden_layers": 5, "width": 3, "skip": 2, "generalization_blocks": (), "nu": 1.0, "branch_scale": None, "dropout": 0.0, "batch_norm": False, "weight_norm": False}),
    "make_network": (architectures.make_network, lambda: {"name": "mlp", "input_shape": (4,), "n_outputs": 2, "hidden_layer_sizes": (2,)}),
    "gaussian_mixture_covering_number": (theory.gaussian_mixture_covering_number, lambda: {"radius": 0.1, "n_components": 2, "rank": 2}),
    "manifold_covering_number": (theory.manifold_covering_number, lambda: {"radius": 0.1, "dim": 2, "constant": 1.0}),
    "sparse_covering_number": (theory.sparse_covering_number, lambda: {"radius": 0.1, "n_atoms": 5, "sparsity": 2}),
    "robustness_bound_from_covering": (theory.robustness_bound_from_covering, lambda: {"covering_number": 10.0, "m": 100, "delta": 0.05, "n_classes": 2}),
    "initialize_mean_field": (theory.initialize_mean_field, lambda: {"module": mlp(), "sigma_w2": 2.0, "sigma_b2": 0.1, "random_state": 0}),
    "input_correlation": (theory.input_correlation, lambda: {"X": XY["X"]}),
    "mean_field": (theory.mean_field, _spectral_theory),
    "learning_rate_map": (theory.learning_rate_map, _map_arguments),
    "capacity_refit": (lambda cv_results, **options: model_selection.capacity_refit(**options)(cv_results), lambda: {"cv_results": _search(), "score": "accuracy", "capacity": "neg_fisher_rao_norm", "rule": "one_standard_error"}),
    "capacity_table": (model_selection.capacity_table, lambda: {"cv_results": _search()}),
    "rank_measures": (model_selection.rank_measures, lambda: {"table": _table(), "gap": None, "by": None, "measures": None, "n_bootstrap": 5, "confidence": 0.9, "random_state": 0}),
    "InteractionConditionsDisplay": _plot(displays.InteractionConditionsDisplay, lambda: {"a": pd.DataFrame({"condition": ["C1", "C2", "C3"], "value": [0.5, 1.0, 2.0]})}),
    "BicriteriaDisplay": _plot(displays.BicriteriaDisplay, lambda: {"a": np.array([[0.1, 1.0], [0.2, 0.5]])}),
    "CapacityComparisonDisplay": _plot(displays.CapacityComparisonDisplay, _compared),
    "CapacityGapDisplay": _plot(displays.CapacityGapDisplay, _table, {"gap": None, "measures": None, "color": None}),
    "CapacityPathDisplay": _plot(displays.CapacityPathDisplay, _table, {"strength": "jacobian_penalty", "score": "accuracy", "capacities": None}),
    "FisherSpectrumDisplay": _plot(displays.FisherSpectrumDisplay, lambda: np.array([3.0, 1.0, 0.1]), {"mean_field": None}),
    "HessianSpectrumDisplay": _plot(displays.HessianSpectrumDisplay, lambda: np.array([[-1.0, 0.5, 2.0]]), {"weights": np.array([[0.2, 0.5, 0.3]])}, width=None, label="a"),
    "LearningRateMapDisplay": _plot(displays.LearningRateMapDisplay, lambda: theory.LearningRateMap("width", np.array([2.0, 3.0]), np.array([0.1, 1.0]), np.ones((2, 2, 1)), np.array([0.5, 0.5]), 0.9), cmap="viridis"),
    "MarginDisplay": _plot(displays.MarginDisplay, lambda: {"a": np.arange(5.0)}, {"percentile": 5.0}),
    "NormGeometryDisplay": _plot(displays.NormGeometryDisplay, lambda: measure_landscape(fitted("classifier"), XY["X"], XY["y"], **LANDSCAPE), levels=4),
    "WeightHistogramDisplay": _plot(displays.WeightHistogramDisplay, lambda: {"a": np.arange(5.0)}, bins=10, log=True),
    "BicriteriaDisplay.from_estimator": _plot_from(displays.BicriteriaDisplay.from_estimator, lambda: {"estimator": fitted("classifier"), **XY, "alphas": [0.1], "n_draws": 2, "name": "a"}),
    "BicriteriaDisplay.from_models": _plot_from(displays.BicriteriaDisplay.from_models, lambda: {"models": _triples(), "alphas": [0.1], "n_draws": 2}),
    "CapacityComparisonDisplay.from_estimators": _plot_from(displays.CapacityComparisonDisplay.from_estimators, lambda: {"models": _models(), **XY, "measures": ["margin", "frobenius_norm"]}),
    "CapacityGapDisplay.from_estimators": _plot_from(displays.CapacityGapDisplay.from_estimators, lambda: {"models": {**_models(), "c": fitted("jacobian classifier")}, **XY, "X_test": XY["X"], "y_test": XY["y"], "measures": ["margin"]}),
    "CapacityGapDisplay.from_search": _plot_from(displays.CapacityGapDisplay.from_search, lambda: {"search": _finished_search(), "gap": None}),
    "CapacityPathDisplay.from_search": _plot_from(displays.CapacityPathDisplay.from_search, lambda: {"search": _finished_search(), "strength": "jacobian_penalty"}),
    "FisherSpectrumDisplay.from_model": _plot_from(displays.FisherSpectrumDisplay.from_model, lambda: {"model": fitted("classifier"), "X": XY["X"], "mean_field": None, "n_largest": 3}),
    "HessianSpectrumDisplay.from_estimator": _plot_from(displays.HessianSpectrumDisplay.from_estimator, lambda: {"estimator": fitted("classifier"), **XY, "n_draws": 1, "n_steps": 3}),
    "LearningRateMapDisplay.from_data": _plot_from(displays.LearningRateMapDisplay.from_data, _map_arguments),
    "MarginDisplay.from_estimator": _plot_from(displays.MarginDisplay.from_estimator, lambda: {"estimator": fitted("classifier"), **XY, "name": "a"}),
    "MarginDisplay.from_models": _plot_from(displays.MarginDisplay.from_models, lambda: {"models": _triples(), "percentile": 5.0}),
    "NormGeometryDisplay.from_estimator": _plot_from(displays.NormGeometryDisplay.from_estimator, lambda: {"estimator": fitted("classifier"), **XY, **LANDSCAPE}),
    "WeightHistogramDisplay.from_estimator": _plot_from(displays.WeightHistogramDisplay.from_estimator, lambda: {"estimator": fitted("classifier"), "label": "a", "initial": True}),
    "WeightHistogramDisplay.from_estimators": _plot_from(displays.WeightHistogramDisplay.from_estimators, lambda: {"estimators": _models()}),
    "make_schedule": (training.make_schedule, lambda: {"schedule": "cosine", "max_epochs": 3}),
    "resolve_device": (training.resolve_device, lambda: {"device": "cpu"}),
    "resolve_optimizer": (training.resolve_optimizer, lambda: {"optimizer": "adam", "momentum": 0.9, "weight_decay": 0.1, "params": None, "device": torch.device("cpu")}),
    "SAM": (training.SAM, lambda: {"params": list(mlp().parameters()), "lr": 0.1, "rho": 0.05, "adaptive": False, "base": torch.optim.SGD, "momentum": 0.9}),
    "KFAC": (training.KFAC, lambda: {"params": list(mlp().parameters()), "lr": 0.1, "momentum": 0.0, "damping": 0.1, "weight_decay": 0.0, "update_interval": 1, "fisher": "type-2", "max_kl": 0.1, "random_state": 0}),
    "PathSGD": (training.PathSGD, lambda: {"params": list(mlp().parameters()), "lr": 0.1, "update_interval": 1}),
    "list_measures": (package.list_measures, dict),
    "save": (package.save, lambda: {"estimator": fitted("classifier"), "path": "model.safetensors"}),
    "load": (package.load, lambda: {"path": "model.safetensors"}),
}  # fmt: skip

#: what makes layers, or draws in place of torch's own generator, as torch does
DRAWS = {
    "GeneralizationLayer", "ConvGeneralizationLayer", "GeneralizationDropout", "ConvGeneralizationDropout", "insert_generalization_layer", "he_initialize", "MLP", "ConvNet", "VGG",
    "AllConvNet", "CifarResNet", "PreactResNet", "WideResNet", "ResidualMLP", "make_network", "forward_pass", "crop_flip", "random_crop", "random_flip", "projection_penalty", "per_layer_penalty", "frobenius_penalty", "spectral_penalty", "spectral_norm_penalty", "gradient_norm_penalty", "fisher_rao_penalty",
}  # fmt: skip
#: what may end in an error of the file system
FILES = {"save", "load"}

#: results that may be infinite, as a number of balls or a squared Jacobian beyond all floats; a fit checks penalties
INFINITE = {
    "projection_penalty",
    "per_layer_penalty",
    "frobenius_penalty",
    "spectral_penalty",
    "spectral_norm_penalty",
    "gradient_norm_penalty",
    "fisher_rao_penalty",
    "gaussian_mixture_covering_number",
    "manifold_covering_number",
    "sparse_covering_number",
    "robustness_bound_from_covering",
    "learning_rate_map",
    "resolve_optimizer",
}
#: integers beyond which a call would only take long, and where any would be obeyed
LARGEST = 200
LOOPS = {
    "resolution",
    "n_draws",
    "levels",
    "bins",
    "n_hidden_layers",
    "depth",
    "n_steps",
    "n_trials",
    "n_bootstrap",
    "n_blocks",
    "widen",
    "n_nodes",
}


def _is_slow(value: Any) -> bool:
    """Whether a number would be obeyed, and take long."""
    values = value if isinstance(value, list | tuple | range) else [value]
    return any(isinstance(item, int | float | np.number) and LARGEST < item < 1e19 for item in values)


def _odd_value(case: Case, name: str, usual: Any) -> Any:
    if name in ("X", "data") and case.happens(0.7):
        return case.pick(HOSTILE_X, name)()
    if name == "y" and case.happens(0.7):
        return case.pick(HOSTILE_Y, name)()
    if isinstance(usual, nn.Module) and case.happens(0.8):
        return case.pick({**MODULES, **FACTORIES}, name)()
    if isinstance(usual, torch.Tensor) and case.happens(0.7):
        tensors = [
            torch.zeros(0),
            torch.tensor(1.0),
            torch.ones(N),
            torch.ones(N, FEATURES),
            torch.ones(2, 1, 4, 4),
            torch.full((N, FEATURES), torch.nan),
        ]
        tensors += [
            tensors[3].long(),
            tensors[3] + 1j,
            tensors[3].half(),
            tensors[3].to("meta"),
            -tensors[2],
            tensors[2] * 0,
            tensors[3].to_sparse(),
        ]
        return case.pick(tensors, name)
    if isinstance(usual, str) and case.happens(0.5):
        return case.pick([usual.upper(), usual + "s", "", "nothing"], name)
    return case.pick(anything(), name)


def run_case(case: Case) -> None:
    """One call with one or two odd arguments."""
    torch.manual_seed(0)
    name = case.pick(sorted(FUNCTIONS))
    case.choices.append(name)
    arguments = FUNCTIONS[name][1]()
    for key in case.random.sample(sorted(arguments), min(len(arguments), case.random.choice([0, 1, 1, 1, 2]))):
        value = _odd_value(case, key, arguments[key])
        if not _is_slow(value) and not (key in LOOPS and isinstance(value, int) and value > LARGEST):
            arguments[key] = value
    _call(case, name, arguments)


def single_changes(name: str) -> list[tuple[str, int]]:
    """Every parameter of a function with the number of every object that hardly any takes, and that costs little."""
    return [
        (key, number)
        for key in sorted(FUNCTIONS[name][1]())
        for number, value in enumerate(anything())
        if not _is_slow(value) and not (key in LOOPS and isinstance(value, int) and value > LARGEST)
    ]


def run_single_change(name: str, key: str, number: int) -> Case:
    """One call with one odd argument."""
    torch.manual_seed(0)
    case, value = Case(0, number), anything()[number]
    case.choices += [name, f"{key}={shown(value)}"]
    _call(case, name, FUNCTIONS[name][1]() | {key: value})
    return case


def run_single_module(name: str, key: str, module: str) -> Case:
    """One call with one of the modules."""
    torch.manual_seed(0)
    case = Case(0, 0)
    case.choices += [name, f"{key}={module}"]
    if module == "large weights":
        case.choices.append("inf")
    _call(case, name, FUNCTIONS[name][1]() | {key: {**MODULES, **FACTORIES}[module]()})
    return case


def _call(case: Case, name: str, arguments: Arguments) -> None:
    before = {key: state_of(value) for key, value in arguments.items()}
    if name in DRAWS:
        case.may_change = (RANDOM_NUMBERS,)
    if name in FILES:
        case.refusals = (*REFUSALS, OSError)
    answer = case.call(name, FUNCTIONS[name][0], **arguments)
    changes = "late" in " ".join(case.choices) or name in (
        "forward_pass",
        "he_initialize",
        "initialize_mean_field",
        "set_nu",
        "GeneralizationWrap",
    )
    for key, value in arguments.items():
        # a lazy module becomes another by its first call
        if not changes and before[key] is not None and state_of(value) != before[key]:
            raise Fault(f"{name}: changed {key}")
    spoilt = any("nan" in choice or "inf" in choice for choice in case.choices)
    if not spoilt:
        for part in answer if isinstance(answer, tuple) else [answer]:
            check_finite(name, part, infinite=name in INFINITE)
