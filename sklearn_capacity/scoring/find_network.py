"""The module inside any model that a user passes, and the path of data to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import skorch
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import FixedThresholdClassifier, TunedThresholdClassifierCV
from torch import Tensor, nn

from ..losses import HingeLoss
from .initial_state import InitialStateCallback

if TYPE_CHECKING:
    from .from_sklearn import Converted

__all__ = ["Subject", "resolve"]


#: The parts of scikit-learn whose models may be convertible.
_CONVERTIBLE = ("sklearn.linear_model.", "sklearn.neural_network.", "sklearn.svm.")


def _unchanged(data: Any) -> Any:
    return data


@dataclass(frozen=True)
class Subject:
    """A module and what is known about the model around it.

    Attributes
    ----------
    module : nn.Module
        The user's module; never changed.
    output : "logits", "one_logit", "probabilities" or "one_probability"
    loss : str or None
        The model's own loss.
    other_loss : str or None
        The name of the model's loss, if it is not one of this package's.
    classes : ndarray or None
        Labels in the order of the logits, if the model knows them.
    columns : ndarray of str or None
        Names of the features, if the model was fitted on a data frame.
    input_shape : tuple or None
        Shape of one sample, if rows of X must be reshaped.
    transform_X, transform_y : callable
        The steps of a pipeline before the model; the target transformer.
    initial_state : mapping or None
    of_this_package : bool
        Whether the model is an estimator of this package.
    """

    module: nn.Module
    output: str = "logits"
    loss: str | None = None
    classes: np.ndarray | None = None
    columns: np.ndarray | None = None
    input_shape: tuple[int, ...] | None = None
    transform_X: Callable[[Any], Any] = _unchanged
    transform_y: Callable[[Any], Any] = _unchanged
    initial_state: Mapping[str, Tensor] | None = None
    of_this_package: bool = False
    other_loss: str | None = None


def resolve(model: Any) -> Subject:
    """Find the network in a model.

    Parameters
    ----------
    model : estimator of this package, skorch net, nn.Module, scikit-learn network or linear model, or a Pipeline,
        TransformedTargetRegressor or fitted search that ends in one

    Raises
    ------
    NotFittedError
        If the model is an estimator that has not been fitted.
    TypeError
        If the model contains no network.
    NotDefinedError
        If it contains one that cannot be measured; the message says why.
    """
    if isinstance(model, FrozenEstimator):
        model = model.estimator
    if isinstance(model, nn.Module):
        return Subject(model)
    if isinstance(model, type):
        raise TypeError(
            f"`model` must be a fitted model, got the class {model.__name__}. Create an instance and fit it."
        )
    for wrapper in (_search, _threshold, _pipeline, _transformed_target):
        inner = wrapper(model)
        if inner is not None:
            return inner
    if isinstance(model, skorch.NeuralNet):
        return _skorch_net(model)
    columns = getattr(model, "feature_names_in_", None)
    if hasattr(model, "loss_name_") and "net_" in vars(model):
        return replace(_package_estimator(model), columns=columns)
    _check_fitted(model)
    converted = _converted(model)
    if converted is None:
        raise TypeError(
            "`model` must contain a network: an estimator of this package, a skorch net, an nn.Module, an MLP or "
            "linear model of scikit-learn, or a Pipeline or fitted search that ends in one; "
            f"got {type(model).__name__}." + _inside(model)
        )
    module, output, loss, other = converted
    classes = getattr(model, "classes_", None)
    return Subject(module, output, loss, classes, columns, other_loss=other)


def _inside(model: Any) -> str:
    """A sentence on where a model that is not a network may contain one."""
    if hasattr(model, "calibrated_classifiers_"):
        return " Measure the `estimator` of each of its `calibrated_classifiers_`."
    if hasattr(model, "estimators_"):
        try:
            resolve(np.ravel(np.array(model.estimators_, dtype=object))[0])
        except (TypeError, ValueError, IndexError):
            return " Its models are not networks either."
        return " It contains several models: measure each of them by `compare_capacity(list(model.estimators_), X, y)`."
    return " Measure its `estimator_`." * hasattr(model, "estimator_")


def _converted(model: Any) -> Converted | None:
    """The network equivalent to a model of scikit-learn; None if there is no rule for it."""
    if not any(kind.__module__.startswith(_CONVERTIBLE) for kind in type(model).__mro__):
        return None
    # Imported here, since it imports all linear models and networks of scikit-learn, which takes 0.2 s.
    from .from_sklearn import convert

    return convert(model)


def _check_fitted(model: Any) -> None:
    if not hasattr(model, "fit"):
        return
    fitted = (
        model.__sklearn_is_fitted__()
        if hasattr(model, "__sklearn_is_fitted__")
        else any(name.endswith("_") and not name.startswith("__") for name in vars(model))
    )
    if not fitted:
        raise NotFittedError(f"This {type(model).__name__} is not fitted yet. Call `fit` before measuring it.")


def _search(model: Any) -> Subject | None:
    if not (hasattr(model, "get_params") and hasattr(model, "estimator")):
        return None
    if hasattr(model, "best_estimator_"):
        return resolve(model.best_estimator_)
    if hasattr(model, "cv_results_"):
        raise NotFittedError(f"This {type(model).__name__} has no best estimator. Fit it with refit=True.")
    return None


def _threshold(model: Any) -> Subject | None:
    """The classifier whose threshold was tuned; the threshold does not affect its logits."""
    if not isinstance(model, FixedThresholdClassifier | TunedThresholdClassifierCV):
        return None
    _check_fitted(model)
    return resolve(model.estimator_)


def _pipeline(model: Any) -> Subject | None:
    if not (hasattr(model, "steps") and hasattr(model, "named_steps")):
        return None
    before = model[:-1]
    inner = resolve(model.steps[-1][1])
    if not len(before.steps):
        return inner
    return replace(inner, transform_X=lambda X: inner.transform_X(before.transform(X)))


def _transformed_target(model: Any) -> Subject | None:
    if not (hasattr(model, "regressor") and hasattr(model, "transformer")):
        return None
    if not hasattr(model, "regressor_"):
        raise NotFittedError(f"This {type(model).__name__} is not fitted yet. Call `fit` before measuring it.")
    inner = resolve(model.regressor_)

    def transform_y(y: Any) -> Any:
        y = np.asarray(y, dtype=np.float64)
        transformed = model.transformer_.transform(y.reshape(len(y), -1))
        return transformed[:, 0] if y.ndim == 1 and transformed.shape[1] == 1 else transformed

    return replace(inner, transform_y=transform_y)


def _package_estimator(model: Any) -> Subject:
    return Subject(
        model.module_,
        "logits",
        model.loss_name_,
        getattr(model, "classes_", None),
        input_shape=tuple(model.input_shape_),
        initial_state=model.initial_state_,
        of_this_package=True,
    )


def _skorch_net(net: Any) -> Subject:
    if not getattr(net, "initialized_", False):
        raise NotFittedError(f"This {type(net).__name__} is not initialized yet. Call `fit` or `initialize` first.")
    output, loss = "logits", None
    for kind, (returned, trained_loss) in _CRITERIA.items():
        if isinstance(net.criterion_, kind):
            output, loss = returned, trained_loss
            break
    classes = None
    if isinstance(net, skorch.NeuralNetBinaryClassifier):
        classes = np.array([0, 1])
    elif isinstance(net, skorch.NeuralNetClassifier):
        try:
            classes = np.asarray(net.classes_)
        except AttributeError:  # initialised without labels, so the labels are the indices
            classes = None
    kept = [cb for _, cb in getattr(net, "callbacks_", []) if isinstance(cb, InitialStateCallback)]
    initial_state = getattr(kept[0], "initial_state_", None) if kept else None
    return Subject(net.module_, output, loss, classes, initial_state=initial_state)


#: What a skorch net's module returns under each criterion, and the corresponding loss. Under NLLLoss skorch itself
#: takes the logarithm of the module's output.
_CRITERIA: dict[type, tuple[str, str]] = {
    nn.CrossEntropyLoss: ("logits", "cross_entropy"),
    nn.NLLLoss: ("probabilities", "cross_entropy"),
    nn.BCEWithLogitsLoss: ("one_logit", "cross_entropy"),
    nn.BCELoss: ("one_probability", "cross_entropy"),
    HingeLoss: ("logits", "hinge"),
    nn.MSELoss: ("logits", "squared"),
    nn.L1Loss: ("logits", "absolute"),
}
