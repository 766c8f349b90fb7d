"""Scores of scikit-learn by name, also for a plain module: what scorers call is answered from its logits."""

from __future__ import annotations

from typing import Any

import numpy as np
import skorch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer
from sklearn.utils.metaestimators import available_if
from torch import Tensor, nn

from .measurement import Session

__all__ = ["module_estimator", "score", "scored_estimator"]


class _Module(BaseEstimator):
    def __init__(self, module: Any, options: dict[str, Any]):
        self.module = module
        self.options = options

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _logits(self, X: Any) -> np.ndarray:
        return Session(self.module, X, **self.options).batch.logits.cpu().numpy()


class _Classifier(ClassifierMixin, _Module):
    def __init__(self, module: Any, options: dict[str, Any], classes: np.ndarray):
        super().__init__(module, options)
        self.classes = classes

    @property
    def classes_(self) -> np.ndarray:
        return np.sort(self.classes)  # scikit-learn's order of the columns of probabilities

    def predict(self, X: Any) -> np.ndarray:
        return self.classes[self._logits(X).argmax(1)]

    def decision_function(self, X: Any) -> np.ndarray:
        logits = self._sorted_logits(X)
        return logits[:, 1] - logits[:, 0] if logits.shape[1] == 2 else logits

    @available_if(lambda self: self.options["loss"] != "hinge")
    def predict_proba(self, X: Any) -> np.ndarray:
        logits = self._sorted_logits(X)
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)

    def _sorted_logits(self, X: Any) -> np.ndarray:
        return self._logits(X)[:, np.argsort(self.classes)]


class _Regressor(RegressorMixin, _Module):
    def predict(self, X: Any) -> np.ndarray:
        outputs = self._logits(X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs


def scored_estimator(model: Any, session: Session, **options: Any) -> Any:
    """The estimator that scikit-learn's scorers are called with: the model itself if it is one.

    Modules predict from their logits, and so do skorch nets, whose own `predict` draws from the global random numbers.
    The parameters are those of `module_estimator`.
    """
    return module_estimator(model, session, **options) if isinstance(model, nn.Module | skorch.NeuralNet) else model


def score(name: str, estimator: Any, X: Any, y: Any) -> float:
    """The score of a scikit-learn scorer by its name; labels may be a tensor."""
    return float(get_scorer(name)(estimator, X, y.detach().cpu().numpy() if isinstance(y, Tensor) else y))


def module_estimator(module: Any, session: Session, **options: Any) -> Any:
    """An estimator for a session's task that predicts with a module.

    Parameters
    ----------
    module : nn.Module, or any model with a network
    session : Session
        The session of that module.
    **options
        `batch_size` and `device`, as in `measure_capacity`.
    """
    options = {**options, "loss": session.loss}
    if session.task == "regression":
        return _Regressor(module, options)
    known = session.subject.classes
    return _Classifier(module, options, np.arange(session.network.n_outputs) if known is None else known)
