"""Capacity as a scikit-learn scorer and as a transformer of models."""

from __future__ import annotations

import math
from typing import Any, NoReturn

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.metrics import check_scoring, get_scorer
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .._validation import NotDefinedError, check_boolean, check_option, warn
from ..measures import Measure
from ..process_state import keeps_modes
from .find_network import resolve
from .measurement import Session
from .module_estimator import module_estimator
from .outcomes import LeftOutError, check_max_seconds, outcomes, warn_of_left_out
from .pickling import TravelsByValue
from .requests import Request, in_order, is_group, label_of, parse_with_scores
from .scores import Scores

__all__ = ["CapacityScorer"]


class CapacityScorer(TravelsByValue, TransformerMixin, BaseEstimator):
    """Capacity measures as the `scoring` of any search or curve, and as features of trained models.

    As a scorer, greater is better: measures for which lower values go with better generalisation are negated, and
    their keys get the prefix ``neg_``. `measures` may include names of scikit-learn's scorers.

    Parameters
    ----------
    measures : str, Measure, list of these, dict, "essential", "cheap" or "all", default="essential"
        As in `measure_capacity`; names of scikit-learn's scorers ("accuracy", "roc_auc") are also allowed.
    loss : "cross_entropy", "hinge", "squared", "absolute" or None, default=None
    initial_state : nn.Module or dict of str to Tensor, default=None
    classes : array-like of shape (n_outputs,), default=None
        All three as in `measure_capacity`.
    log : bool, default=False
        Return natural logarithms of the capacity measures (not of scikit-learn's scores).
    refit_measure : str, default=None
        A key of the scores. The scorer then returns only this float, as HalvingGridSearchCV and cross_val_score
        require.
    on_error : "nan" or "raise", default="nan"
        "nan": a measure that fails gives nan for its key, with a `CapacityWarning`, so that every fold has every key.
        In either case, a measure of "essential", "cheap" or "all" that is not defined for the network gives nan
        without a warning; `capacity_report` shows the reason.
    max_samples, batch_size, max_memory, device, random_state, max_seconds
        As in `measure_capacity`; a measure for which there is no time gives nan.

    See Also
    --------
    measure_capacity : Values of one trained model, not negated.
    model_selection.capacity_table : The results of a search as a table.
    model_selection.capacity_refit : Chooses the candidate of least capacity within one standard error.

    Notes
    -----
    Measures that use data are meant for the training fold: search with ``return_train_score=True`` and read the
    ``mean_train_`` columns. All measures of a call share one graph and one forward pass.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.model_selection import cross_validate
    >>> from sklearn_capacity import CapacityScorer
    >>> X, y = load_iris(return_X_y=True)
    >>> scorer = CapacityScorer(["accuracy", "spectral_norm"])
    >>> scores = cross_validate(LogisticRegression(), X, y, scoring=scorer, cv=3)
    >>> sorted(key for key in scores if key.startswith("test_"))
    ['test_accuracy', 'test_neg_spectral_norm']
    """

    def __init__(
        self,
        measures: Any = "essential",
        *,
        loss: str | None = None,
        initial_state: Any = None,
        classes: Any = None,
        log: bool = False,
        refit_measure: str | None = None,
        on_error: str = "nan",
        max_samples: int | None = None,
        batch_size: int | None = None,
        max_memory: int | str | None = None,
        device: Any = None,
        random_state: int = 0,
        max_seconds: float | None = None,
    ):
        self.measures = measures
        self.loss = loss
        self.initial_state = initial_state
        self.classes = classes
        self.log = log
        self.refit_measure = refit_measure
        self.on_error = on_error
        self.max_samples = max_samples
        self.batch_size = batch_size
        self.max_memory = max_memory
        self.device = device
        self.random_state = random_state
        self.max_seconds = max_seconds

    # -- as a scorer ------------------------------------------------------------------------------

    @property
    def __name__(self) -> str:
        """The name of the score in scikit-learn's displays of curves."""
        if self.refit_measure is not None:
            return self.refit_measure
        if isinstance(self.measures, str | Measure) and not is_group(self.measures):
            return label_of(self.measures)
        return "capacity"

    @keeps_modes
    def __call__(self, estimator: Any, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Score a fitted estimator; greater is better.

        Parameters
        ----------
        estimator : fitted estimator
        X, y : array-like
        sample_weight : array-like of shape (n_samples,), default=None
            Passed to scikit-learn's scorers only.

        Returns
        -------
        float or dict of str to float
            A float for one measure given by its name, or with `refit_measure`. Functions of scikit-learn that require
            one number raise a TypeError on the dict; its message names `refit_measure`.
        """
        capacities, scorers = self._parsed()
        keys = [_key(request) for request in capacities] + list(scorers)
        if self.refit_measure is not None:
            check_option("refit_measure", self.refit_measure, keys)
            capacities = [r for r in capacities if _key(r) == self.refit_measure]
            scorers = {k: s for k, s in scorers.items() if k == self.refit_measure}
        session, measured = self._capacities(estimator, X, y, capacities)
        values = {_key(r): -measured[r.label] if r.measure.lower_is_better else measured[r.label] for r in capacities}
        if scorers:
            values |= self._others(session, estimator, X, y, scorers, sample_weight)
        if self.refit_measure is not None:
            return values[self.refit_measure]
        if isinstance(self.measures, str | Measure) and not is_group(self.measures):
            return values[keys[0]]
        scores = Scores(in_order(self.measures, values))
        scores.check_caller()
        return scores

    @property
    def _score_func(self) -> NoReturn:
        """Read by TunedThresholdClassifierCV; other callers ask by `hasattr` first."""
        raise AttributeError(
            "A threshold is tuned by a score of the predictions, and capacity does not depend on it, whatever "
            "`refit_measure` is: give TunedThresholdClassifierCV a scorer of scikit-learn in place of a "
            '`CapacityScorer`, such as scoring="balanced_accuracy".'
        )

    # scikit-learn reads the metadata request from a method of the name `score`.
    def score(self, estimator: Any, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Call the scorer."""
        return self(estimator, X, y, sample_weight=sample_weight)

    def _accept_sample_weight(self) -> bool:
        return bool(self._parsed()[1])

    def _parsed(self) -> tuple[list[Request], dict[str, str]]:
        """Capacity requests, and scikit-learn scorer names by label."""
        check_option("on_error", self.on_error, ("nan", "raise"))
        check_max_seconds(self.max_seconds)
        requests, names = parse_with_scores(self.measures)
        if is_group(self.measures):
            return requests, names
        signed = [r.label for r in requests if r.measure.signed]
        if check_boolean("log", self.log) and signed:
            raise ValueError(f"`log` must be False for measures that may be negative, got log=True with {signed}.")
        return requests, names

    def _capacities(
        self, estimator: Any, X: Any, y: Any, requests: list[Request]
    ) -> tuple[Session | None, dict[str, float]]:
        """The session, and the values by label, not negated; nan for measures that failed."""
        values = {request.label: math.nan for request in requests}
        try:
            session = self._session(estimator, X, y) if requests else None
        except Exception as error:
            self._failed([_key(request) for request in requests], error)
            return None, values
        if session is not None:
            self._measure(session, requests, values)
        return session, values

    def _measure(self, session: Session, requests: list[Request], values: dict[str, float]) -> None:
        """Put what is defined into `values`."""
        group = self.measures if is_group(self.measures) else None
        requests = [r for r in requests if not (self.log and r.measure.signed)]  # of a group; named ones were refused
        failures: dict[str, list[str]] = {}
        left_out = []
        for request, outcome in outcomes(session, requests, group=group, log=self.log, max_seconds=self.max_seconds):
            if not isinstance(outcome, Exception):
                values[request.label] = outcome.log() if self.log else outcome.value
            elif isinstance(outcome, LeftOutError):
                left_out.append(request.label)
            elif group is None or not isinstance(outcome, NotDefinedError):
                if self.on_error == "raise":
                    raise outcome
                reason = outcome.reason if isinstance(outcome, NotDefinedError) else str(outcome)
                failures.setdefault(f"{type(outcome).__name__}: {reason}", []).append(_key(request))
        warn_of_left_out(left_out, self.max_seconds)
        for message, keys in failures.items():
            _warn(keys, message)

    def _session(self, estimator: Any, X: Any, y: Any) -> Session:
        return Session(
            estimator,
            X,
            y,
            loss=self.loss,
            initial_state=self.initial_state,
            classes=self.classes,
            max_samples=self.max_samples,
            batch_size=self.batch_size,
            max_memory=self.max_memory,
            device=self.device,
            random_state=self.random_state,
        )

    def _failed(self, keys: list[str], error: Exception) -> None:
        if self.on_error == "raise":
            raise error
        _warn(keys, f"{type(error).__name__}: {error}")

    def _others(
        self, session: Session | None, estimator: Any, X: Any, y: Any, scorers: dict[str, str], sample_weight: Any
    ) -> dict[str, float]:
        """scikit-learn's scorers, on the forward pass of the measures where possible."""
        predictor = _with_known_outputs(session, estimator, self.max_samples)
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        values = {}
        for label, name in scorers.items():
            try:
                if isinstance(estimator, nn.Module):
                    session = session or self._session(estimator, X, y)
                    module = module_estimator(estimator, session, batch_size=self.batch_size, device=self.device)
                    values[label] = float(get_scorer(name)(module, X, y, **weights))
                else:
                    values[label] = float(check_scoring(estimator, scoring=name)(predictor, X, y, **weights))
            except Exception as error:
                self._failed([label], error)
                values[label] = math.nan
        return values

    # -- as a transformer -------------------------------------------------------------------------

    def fit(self, X: Any = None, y: Any = None) -> CapacityScorer:
        """Store reference data for `transform`; scoring does not use them.

        Parameters
        ----------
        X, y : array-like, default=None
            As in `measure_capacity`.
        """
        requests, names = self._parsed()
        if names:
            raise ValueError(f"`measures` must be capacity measures to transform models, got {sorted(names)}.")
        self.X_reference_, self.y_reference_ = X, y
        self.measures_ = [request.label for request in requests]
        return self

    @keeps_modes
    def transform(self, X: Any) -> np.ndarray:
        """Measure models on the reference data.

        Parameters
        ----------
        X : sequence of fitted models, (n_estimators,)

        Returns
        -------
        ndarray of shape (n_estimators, n_measures)
            The values, not negated for maximisation; nan where a measure does not apply.

        Raises
        ------
        TypeError, NotFittedError
            If `X` contains anything but fitted models.
        """
        check_is_fitted(self, "measures_")
        models = list(X) if isinstance(X, list | tuple | np.ndarray) else [X]
        if not models:
            raise ValueError("`X` must hold at least one fitted model, got none.")
        for model in models:
            _check_model(model)
        return np.array([self._row(model) for model in models], dtype=np.float64).reshape(len(models), -1)

    def _row(self, model: Any) -> list[float]:
        requests, _ = self._parsed()
        _, values = self._capacities(model, self.X_reference_, self.y_reference_, requests)
        return list(values.values())

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Labels of the measures, the columns of `transform`."""
        check_is_fitted(self, "measures_")
        return np.asarray(self.measures_, dtype=object)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags


def _check_model(model: Any) -> None:
    try:
        resolve(model)
    except NotDefinedError:
        pass  # a network for which every measure is nan or raises, depending on `on_error`


def _key(request: Request) -> str:
    return f"neg_{request.label}" if request.measure.lower_is_better else request.label


def _warn(keys: list[str], message: str) -> None:
    warn(f"No score for {', '.join(keys)}: {message}")


def _with_known_outputs(session: Session | None, estimator: Any, max_samples: int | None) -> Any:
    """The estimator with `predict` and `predict_proba` computed from the logits of the measurement.

    Only for classifiers of this package, alone or last in a Pipeline, measured on all samples: their predictions are
    the softmax and the argmax of the logits. Any other estimator is returned unchanged.
    """
    if (
        session is None
        or not session.subject.of_this_package
        or session.task != "classification"
        or max_samples is not None
    ):
        return estimator
    if "logits" not in session.batch.known or not hasattr(type(estimator), "predict"):
        return estimator
    logits, classes = session.batch.logits.cpu().numpy(), session.subject.classes
    if classes is None or not hasattr(estimator, "__dict__"):
        return estimator
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    predictor = object.__new__(type(estimator))
    predictor.__dict__.update(vars(estimator))

    def predict(X: Any) -> np.ndarray:
        return classes[logits.argmax(axis=1)]

    def predict_proba(X: Any) -> np.ndarray:
        return shifted / shifted.sum(axis=1, keepdims=True)

    predictor.predict = predict
    if hasattr(estimator, "predict_proba"):
        predictor.predict_proba = predict_proba
    return predictor
