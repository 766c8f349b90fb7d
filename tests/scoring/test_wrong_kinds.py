"""Arguments of a wrong kind are refused by name, before any work."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_capacity import (
    CapacityCallback,
    CapacityScorer,
    GeneralizationLayerClassifier,
    Measure,
    NetworkClassifier,
    architectures,
    capacity_report,
    compare_capacity,
    displays,
    layers,
    load,
    measure_capacity,
    model_card,
    penalties,
    save,
)
from sklearn_capacity import model_selection as selection
from sklearn_capacity.datasets import make_noisy_quadratic
from sklearn_capacity.theory import gaussian_mixture_covering_number as covering
from sklearn_capacity.theory import initialize_mean_field
from sklearn_capacity.training import KFAC, SAM, PathSGD, PenalizedClassifier, make_schedule

MODULE = nn.Linear(1, 2)
X, y = [[0.0], [1.0], [2.0], [3.0]], [0, 1, 0, 1]
TABLE = pd.DataFrame({"jacobian_penalty": [0.1, 1.0], "accuracy": [0.5, 0.6], "margin": [1.0, 2.0]})


class Branching(nn.Module):
    """Has no graph, and no layer."""

    def forward(self, x):
        return x if x.sum() > 0 else -x


def watch(**params):
    return NetworkClassifier((2,), max_epochs=1, callbacks=[CapacityCallback("parameter_count", **params)]).fit(X, y)


@pytest.mark.parametrize(
    ("function", "args", "message"),
    [
        (layers.generalization_layers, [3], "`module` must be an nn.Module, got int"),
        (layers.set_nu, [None, 0.5], "`module` must be an nn.Module, got NoneType"),
        (layers.he_initialize, ["net"], "`module` must be an nn.Module, got str"),
        (layers.random_flip, [X, None], "`X` must be a tensor of images, got list"),
        (initialize_mean_field, [3, 1.0, 0.1], "`module` must be an nn.Module"),
        (lambda: architectures.MLP(2, 2, bias="no"), [], "`bias` must be True or False"),
        (lambda: architectures.ResidualMLP((2,), 2, batch_norm=1), [], "`batch_norm` must be True or False"),
        (lambda: Measure("a", lambda network, batch: 1.0, needs=3), [], "`needs` must be a sequence, got 3"),
        (lambda: measure_capacity(MODULE, measures="frobenius_norm", log=1), [], "`log` must be True or False, got 1"),
        (lambda: capacity_report(MODULE, measures="frobenius_norm", log="no"), [], "`log` must be True or False"),
        (lambda: compare_capacity([MODULE], measures="frobenius_norm", log=None), [], "`log` must be True or False"),
        (lambda: CapacityScorer("frobenius_norm", log=torch.ones(2))(MODULE, X), [], "`log` must be True or False"),
        (lambda: capacity_report(MODULE, per_layer="yes"), [], "`per_layer` must be True or False"),
        (lambda: measure_capacity(MODULE, X, y, "accuracyy"), [], "Did you mean 'accuracy'"),
        (NetworkClassifier("64").fit, [X, y], r"must be an integer, got '64'. Give the width of each hidden layer"),
        (load, [MODULE], "`path` must be the path of a file, got Linear"),
        (save, [NetworkClassifier((2,), max_epochs=1).fit(X, y), 3], "`path` must be the path of a file, got int"),
        (lambda: displays.CapacityPathDisplay.from_search(GridSearchCV(NetworkClassifier(), {})), [],
         "must be a fitted search such as GridSearchCV, got an unfitted GridSearchCV"),
        (lambda: displays.CapacityPathDisplay(pd.DataFrame({"width": [1]})).plot(), [],
         r"no column 'jacobian_penalty'\. It has: width\."),
        (layers.insert_generalization_layer, [nn.ReLU(), 0], "`position` must be 'head' for a module without"),
        *((penalties.per_layer_penalty, [module, torch.ones(2, 3)], "`function` must contain a linear map or a conv")
          for module in (nn.ReLU(), Branching())),
        (penalties.gradient_norm_penalty, [MODULE, torch.ones(4, 1), torch.zeros(3).long()],
         r"`y` must have one target per sample, 4 in all, got shape \(3,\)"),
        (PenalizedClassifier(MODULE, penalty=3, max_epochs=1).fit, [torch.ones(4, 1), torch.zeros(4).long()],
         "`penalty` must be a function of the module and X, or None, got 3"),
        *((optimizer, [3], "`params` must be a sequence") for optimizer in (KFAC, PathSGD, SAM)),
        (lambda: covering(0.1, 10**400, 2), [], "`n_components` must be between 1 and"),
        (lambda: layers.insert_generalization_layer(MODULE, input_shape=(5,)), [],
         r"`module` must take samples of `input_shape` \(5,\), and failed on zeros: RuntimeError"),
        (lambda: measure_capacity(nn.Sequential(MODULE, nn.Flatten(0)), X), [],
         r"its forward pass must return one row of outputs for each sample, got shape \(10,\)"),
        (architectures.MLP, [None, 2], "`n_features` must be an integer"),
        (architectures.MLP, [2, 0], "`n_outputs` must be at least 1"),
        (architectures.MLP, [0, 2], "`n_features` must be at least 1"),
        *((net, [(1, 16, 16), -1], "`n_outputs` must be at least 1") for net in (
            architectures.ConvNet, architectures.AllConvNet, architectures.VGG, architectures.CifarResNet,
            architectures.PreactResNet, architectures.WideResNet, architectures.ResidualMLP,
        )),
        (lambda: architectures.PreactResNet((1, 8, 8), 2, channels=()), [], r"`len\(channels\)` must be at least 1"),
        (selection.capacity_table, [[1.0]], "`cv_results` must be the `cv_results_` of .*, not the search, got list"),
        (selection.capacity_refit, [{}], "`score` must be a key; `refit` takes an object"),
        (selection.capacity_refit(), [[1.0]], "`cv_results` must be the `cv_results_`"),
        (selection.rank_measures, [{}], "`table` must be a DataFrame such as from `capacity_table`, got dict"),
        (displays.CapacityGapDisplay, [{}], "`table` must be a DataFrame, got dict"),
        (displays.CapacityPathDisplay, [None], "`table` must be a DataFrame"),
        (displays.FisherSpectrumDisplay, [[1.0], 3], "`mean_field` must be None or the result of `theory.mean_field`"),
        (displays.LearningRateMapDisplay, [3], "`learning_rate_map` must be the result of `theory.learning_rate_map`"),
        (displays.NormGeometryDisplay, [3], "`landscape` must be a MeasureLandscape"),
        (displays.WeightHistogramDisplay, [[1.0]], "`weights` must be a dict of label to weights"),
        (displays.WeightHistogramDisplay.from_estimators, [[1.0]], "`estimators` must be a dict of label to model"),
        (lambda: model_card(None, description=3), [], "`description` must be text, got int"),
        (lambda: watch(max_samples=2.5), [], "`max_samples` must be an integer"),
        (lambda: NetworkClassifier(callbacks=[3]).fit(X, y), [], "`callbacks` must contain skorch callbacks, got 3"),
        (lambda: NetworkClassifier(callbacks=3).fit(X, y), [], "`callbacks` must be None or a list"),
    ],
)  # fmt: skip
def test_wrong_kinds_are_refused_by_name(function, args, message):
    with pytest.raises((TypeError, ValueError), match=message):
        function(*args)


def test_an_ensemble_that_is_not_fitted_is_no_data():
    """Its length cannot be asked for, nor can it be iterated over."""
    forest = RandomForestClassifier()
    for given in ((forest, y), (X, forest)):
        with pytest.raises(TypeError, match="must be an array or tensor, got a RandomForestClassifier"):
            measure_capacity(MODULE, *given)
    with pytest.raises(TypeError, match="`capacities` must be a sequence, got RandomForestClassifier"):
        displays.CapacityPathDisplay(TABLE, capacities=forest).plot()
    with pytest.raises(TypeError, match="`return_clean` must be True or False, got RandomForestClassifier"):
        make_noisy_quadratic(return_clean=forest)
    with pytest.raises(TypeError, match="`per_class` must be True or False, got RandomForestClassifier"):
        capacity_report(MODULE, per_class=forest)
    with pytest.raises(TypeError, match="`learning_rate_schedule` must be a sequence, got RandomForestClassifier"):
        make_schedule(forest, 3)
    with pytest.raises(TypeError, match="`measures` must be a sequence, got RandomForestClassifier"):
        selection.rank_measures(TABLE, "accuracy", measures=forest)


class Nameless:
    """An object that cannot be shown."""

    def __repr__(self):
        raise RuntimeError("no text")


@pytest.mark.parametrize("value", [10**5000, -(10**5000), Nameless()], ids=["large", "small", "nameless"])
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda value: measure_capacity(MODULE, X, y, "frobenius_norm", max_samples=[value]), "max_samples"),
        (lambda value: measure_capacity(MODULE, X, y, "frobenius_norm", batch_size=(value,)), "batch_size"),
        (lambda value: measure_capacity(MODULE, X, y, "frobenius_norm", log=value), "log"),
        (lambda value: measure_capacity(MODULE, X, y, "frobenius_norm", loss=value), "loss"),
        (lambda value: layers.GeneralizationDropout(3, p=value), "p"),
        (lambda value: layers.GeneralizationLayer(3, depth=[value]), "depth"),
        (lambda value: make_noisy_quadratic(interval=[value]), "interval"),
        (lambda value: make_schedule([value], 3), "learning_rate_schedule"),
        (lambda value: SAM([value], 0.1), "params"),
        (lambda value: NetworkClassifier(input_shape=value).fit(X, y), "input_shape"),
        (lambda value: NetworkClassifier(class_weight=value).fit(X, y), "class_weight"),
        (lambda value: NetworkClassifier(augmentation=value).fit(X, y), "augmentation"),
        (lambda value: NetworkClassifier(device=value).fit(X, y), "device"),
        (lambda value: NetworkClassifier(dtype=value).fit(X, y), "dtype"),
        (lambda value: NetworkClassifier(module=value).fit(X, y), "module"),
        (lambda value: NetworkClassifier(module_params={"a": value}).fit(X, y), "module_params"),
        (lambda value: NetworkClassifier(weight_decay={value: 1.0}).fit(X, y), "weight_decay"),
        (lambda value: NetworkClassifier(module=MODULE, hidden_layer_sizes=value).fit(X, y), "hidden_layer_sizes"),
        (lambda value: GeneralizationLayerClassifier(position=[value]).fit(X, y), "position"),
        (lambda value: measure_capacity(MODULE, value, y), "X"),
        (lambda value: measure_capacity(MODULE, X, value), "y"),
        (lambda value: measure_capacity(MODULE, X, y, value), "measures"),
        (lambda value: measure_capacity(MODULE, X, y, [[value]]), "measures"),
        (lambda value: measure_capacity(MODULE, X, y, {"label": [value]}), "measures"),
        (lambda value: measure_capacity(MODULE, X, y, classes=[value]), "classes"),
        (lambda value: selection.rank_measures(TABLE, gap=[value]), "gap"),
        (lambda value: penalties.check_penalty([value], MODULE, torch.tensor(X)), "penalty"),
        (lambda value: architectures.make_network("conv", [value], 2), "input_shape"),
        (lambda value: layers.insert_generalization_layer(MODULE, [value]), "position"),
    ],
)
def test_what_cannot_be_shown_is_refused_by_name(call, name, value):
    with pytest.raises((ValueError, TypeError), match=f"`{name}`"):
        call(value)


@pytest.mark.parametrize("optimizer", [KFAC, SAM, PathSGD])
@pytest.mark.parametrize("params", [[()], [(1,)], [("a",)], [{}], [{"a": 1}], [("a", 1)], ["a"], [None], [[]]])
def test_parameters_must_be_tensors_or_groups(optimizer, params):
    with pytest.raises(TypeError, match="`params` must contain tensors, pairs of a name and a tensor, or dicts"):
        optimizer(params, 0.1)
