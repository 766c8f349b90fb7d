"""A plain module with the methods that scikit-learn's scorers call."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from torch import nn

from .measurement import Session

__all__ = ["module_estimator"]


class _Module(BaseEstimator):
    def __init__(self, module: nn.Module, options: dict[str, Any]):
        self.module = module
        self.options = options

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def _logits(self, X: Any) -> np.ndarray:
        return Session(self.module, X, **self.options).batch.logits.cpu().numpy()


class _Classifier(ClassifierMixin, _Module):
    def __init__(self, module: nn.Module, options: dict[str, Any], classes: np.ndarray):
        super().__init__(module, options)
        self.classes = classes

    @property
    def classes_(self) -> np.ndarray:
        return np.sort(self.classes)  # scikit-learn's order of the columns of probabilities

    def predict(self, X: Any) -> np.ndarray:
        return self.classes[self._logits(X).argmax(1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        logits = self._logits(X)[:, np.argsort(self.classes)]
        shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
        return shifted / shifted.sum(axis=1, keepdims=True)


class _Regressor(RegressorMixin, _Module):
    def predict(self, X: Any) -> np.ndarray:
        outputs = self._logits(X)
        return outputs[:, 0] if outputs.shape[1] == 1 else outputs


def module_estimator(module: nn.Module, session: Session, **options: Any) -> Any:
    """An estimator for a session's task that predicts with a module.

    Parameters
    ----------
    module : nn.Module
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
