"""scikit-learn's networks and linear models as torch modules that compute the same function."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn import linear_model, svm
from sklearn.neural_network import MLPClassifier, MLPRegressor
from torch import nn

from .._validation import NotDefinedError

__all__ = ["Converted", "convert"]

#: Models that are one linear map, whose rows give the classes' logits (a single row for two classes), and
#: scikit-learn's name of the loss, or None if the parameter `loss` holds it.
LINEAR_MODELS: dict[type, str | None] = {
    linear_model.LogisticRegression: "log_loss",
    linear_model.LogisticRegressionCV: "log_loss",
    linear_model.SGDClassifier: None,
    linear_model.Perceptron: "perceptron",
    svm.LinearSVC: None,
    linear_model.LinearRegression: "squared_error",
    linear_model.Ridge: "squared_error",
    linear_model.RidgeCV: "squared_error",
    linear_model.Lasso: "squared_error",
    linear_model.ElasticNet: "squared_error",
    linear_model.SGDRegressor: None,
    svm.LinearSVR: None,
}
#: The losses that this package has too. For other models the caller names a loss where one is needed.
LOSSES = {"log_loss": "cross_entropy", "hinge": "hinge", "squared_error": "squared"}
_TARGETS = "it is trained on targets -1 and 1, so its outputs are not logits. Use LogisticRegression"
#: Classifiers trained on targets -1 and 1, and the losses that make others equivalent to them.
REFUSED = (linear_model.RidgeClassifier, linear_model.RidgeClassifierCV)
_REGRESSION_LOSSES = ("squared_error", "huber", "epsilon_insensitive", "squared_epsilon_insensitive")
#: Classifiers that train one binary problem per class when there are more than two.
ONE_VERSUS_REST = (linear_model.SGDClassifier, linear_model.Perceptron, svm.LinearSVC)
_LOGISTIC = (linear_model.LogisticRegression, linear_model.LogisticRegressionCV)

_ACTIVATIONS = {"identity": nn.Identity, "relu": nn.ReLU, "tanh": nn.Tanh, "logistic": nn.Sigmoid}


class Converted(NamedTuple):
    """A module in float64, what it returns, and the model's loss: one of this package, or else scikit-learn's name."""

    module: nn.Module
    output: str
    loss: str | None
    other_loss: str | None = None


def convert(model: Any) -> Converted | None:
    """The network equivalent to a fitted scikit-learn model, or None if there is no rule for it.

    Raises
    ------
    NotDefinedError
        For models that resemble a convertible one but cannot be converted; the message gives the reason.
    """
    if isinstance(model, REFUSED):
        raise NotDefinedError(f"{type(model).__name__} cannot be measured: {_TARGETS}.")
    if isinstance(model, MLPClassifier | MLPRegressor):
        return _multilayer_perceptron(model)
    for kind, loss in LINEAR_MODELS.items():
        if isinstance(model, kind):
            return _linear(model, loss)
    return None


def _linear(model: Any, loss: str | None) -> Converted:
    if getattr(model, "multi_class", None) == "crammer_singer":
        loss = "hinge"  # LinearSVC ignores its `loss` then
    loss = str(model.loss) if loss is None else loss
    coef = np.atleast_2d(np.asarray(model.coef_, dtype=np.float64))
    classes = getattr(model, "classes_", None)
    if classes is not None and loss in _REGRESSION_LOSSES:
        raise NotDefinedError(f"{type(model).__name__}(loss={loss!r}) cannot be measured: {_TARGETS}.")
    intercept = np.atleast_1d(np.asarray(model.intercept_, dtype=np.float64))
    if classes is not None and len(coef) > 1 and _is_one_versus_rest(model):
        raise NotDefinedError(
            f"{type(model).__name__} with {len(coef)} classes is one-versus-rest: {len(coef)} separate models, "
            "whose outputs are not logits of one network. Use LogisticRegression with a multinomial solver."
        )
    if len(coef) == 1 and isinstance(model, _LOGISTIC) and getattr(model, "multi_class", None) == "multinomial":
        coef, intercept = 2 * coef, 2 * intercept  # scikit-learn before 1.8: softmax of [-z, z]
    module = _layer(coef, intercept)
    one_logit = classes is not None and len(coef) == 1
    known = LOSSES.get(loss)
    if loss == "epsilon_insensitive" and model.epsilon == 0:
        known = "absolute"
    return Converted(module, "one_logit" if one_logit else "logits", known, None if known else loss)


def _is_one_versus_rest(model: Any) -> bool:
    """Whether a linear classifier with a row per class was trained one class at a time."""
    if isinstance(model, _LOGISTIC):  # only before scikit-learn 1.8, which refuses to fit these
        return model.solver == "liblinear" or getattr(model, "multi_class", None) == "ovr"
    return isinstance(model, ONE_VERSUS_REST) and getattr(model, "multi_class", "ovr") != "crammer_singer"


def _layer(weight: np.ndarray, bias: np.ndarray) -> nn.Linear:
    # without initial values, since drawing them would advance the user's random numbers
    layer = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], dtype=torch.float64, device="cpu")
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(np.array(weight, dtype=np.float64)))
        layer.bias.copy_(torch.from_numpy(np.array(np.broadcast_to(bias, len(weight)), dtype=np.float64)))
    return layer


def _multilayer_perceptron(model: Any) -> Converted:
    name = type(model).__name__
    if isinstance(model, MLPClassifier):
        if model.out_activation_ == "logistic" and model.n_outputs_ > 1:
            raise NotDefinedError(
                f"{name} fitted on multilabel targets cannot be measured: its outputs are {model.n_outputs_} "
                "independent binary models. Measure one label at a time."
            )
        output, loss = ("one_logit" if model.n_outputs_ == 1 else "logits"), "cross_entropy"
    else:
        if model.loss != "squared_error":
            raise NotDefinedError(f"{name} with loss={model.loss!r} cannot be measured; only 'squared_error' can.")
        output, loss = "logits", "squared"
    layers: list[nn.Module] = []
    for weight, bias in zip(model.coefs_, model.intercepts_, strict=True):
        layers += [_layer(weight.T, bias), _ACTIVATIONS[model.activation]()]
    return Converted(nn.Sequential(*layers[:-1]), output, loss)
