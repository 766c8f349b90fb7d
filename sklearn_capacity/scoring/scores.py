"""Several scores of one call, as a dict that raises a clear error wherever a single number is expected."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn

import numpy as np

__all__ = ["Scores"]

# Functions of scikit-learn by module. These keep what a scorer returns in a list and compare it much later, or never:
_LISTS = {
    "sklearn.ensemble._hist_gradient_boosting.gradient_boosting": ("_score_with_raw_predictions",),
    "sklearn.linear_model._logistic": ("score",),
}
# These put it into an array and fail later with an unrelated error:
_ARRAYS = {
    "sklearn.model_selection._validation": ("learning_curve", "validation_curve", "_incremental_fit_estimator"),
    "sklearn.model_selection._search_successive_halving": ("_run_search",),
}
# These put it into an array and take several scores; a search has to know by which of them it chooses:
_TAKE_ALL = {
    "sklearn.model_selection._validation": ("cross_validate",),
    "sklearn.model_selection._search": ("fit",),
}


class Scores(dict[str, float]):
    """Scores by name; using them as one number raises an error that names the cure.

    A scorer cannot know its caller, which may be in another process. `GridSearchCV`, `cross_validate` and
    `permutation_importance` expect a dict, and this is one. Other callers use the result as the number that they
    expect: they do arithmetic with it, compare it, or call its `item`. Some first put any result into an array or a
    list; these are recognised from the call stack, in the user's process. So is a search whose `refit` names
    no score.

    Examples
    --------
    >>> from sklearn_capacity.scoring.scores import Scores
    >>> scores = Scores(accuracy=0.9, margin=2.0)
    >>> scores["accuracy"]
    0.9
    >>> try:
    ...     scores + scores
    ... except TypeError as error:
    ...     print(error)
    One number is required here, but the scorer returns 2 scores. Set `refit_measure` to one of 'accuracy', 'margin'.
    """

    def item(self) -> NoReturn:
        """Raise, since there is more than one number."""
        raise self._several()

    def _refuse(self, *_: Any) -> NoReturn:
        raise self._several()

    def _several(self, other_cure: str = "") -> TypeError:
        names = ", ".join(map(repr, self))
        cure = f"Set `refit_measure` to one of {names}{other_cure}."
        return TypeError(f"One number is required here, but the scorer returns {len(self)} scores. {cure}")

    def check_caller(self) -> None:
        """Raise if the function that called the scorer would store these scores without inspecting them."""
        caller = next(((m, frame) for m, frame in _callers() if m.split(".")[0] != __name__.split(".")[0]), None)
        if caller is not None and _is_in(_LISTS, *caller):
            raise self._several()

    def _check_array(self) -> None:
        """Raise if the innermost function that collects scores in an array requires one number."""
        for module, frame in _callers():
            if _is_in(_ARRAYS, module, frame):
                raise self._several()
            if _is_in(_TAKE_ALL, module, frame):
                refit = getattr(frame.f_locals.get("self"), "refit", False)
                if refit is True or (isinstance(refit, str) and refit not in self):
                    raise self._several(", or `refit` of the search")
                return

    def __missing__(self, key: object) -> NoReturn:
        if isinstance(key, str):
            raise KeyError(key)
        raise self._several()  # `score` of a search, whose `refit` is a function

    __float__ = __int__ = __neg__ = __abs__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        self._check_array()
        array = np.empty((), dtype=object)
        array[()] = self
        return array


def _callers() -> Iterator[tuple[str, FrameType]]:
    """The frames of the call stack, from the inside, with the names of their modules."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_globals.get("__name__", ""), frame
        frame = frame.f_back


def _is_in(functions: Mapping[str, tuple[str, ...]], module: str, frame: FrameType) -> bool:
    return frame.f_code.co_name in functions.get(module, ())


# scikit-learn collects results that are numbers in an array and leaves all others in a list. Only for a number does it
# call `__array__`.
numbers.Number.register(Scores)
