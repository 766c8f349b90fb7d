"""Several scores of one call, as a dict that raises a clear error wherever a single number is expected."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Mapping
from types import FrameType
from typing import Any, NoReturn

import numpy as np

__all__ = ["Scores"]

#: Functions of scikit-learn that accept several scores from a scorer and fail later with an unrelated error.
_WANT_ONE_NUMBER = {
    "sklearn.model_selection._validation": ("learning_curve", "validation_curve", "_incremental_fit_estimator"),
    "sklearn.model_selection._search_successive_halving": ("_run_search",),
}


class Scores(dict[str, float]):
    """Scores by name; using them as one number raises an error that names the cure.

    A scorer cannot know its caller, which may be in another process. `GridSearchCV`, `cross_validate` and
    `permutation_importance` expect a dict, and this is one. Other callers use the result as the number that they
    expect: they do arithmetic with it, compare it, or call its `item`. Some first put any result into an array; these
    are recognised from the call stack, in the user's process.

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

    def _several(self) -> TypeError:
        names = ", ".join(map(repr, self))
        cure = f"Set `refit_measure` to one of {names}."
        return TypeError(f"One number is required here, but the scorer returns {len(self)} scores. {cure}")

    __float__ = __int__ = __neg__ = __abs__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if _is_called_by(_WANT_ONE_NUMBER):
            raise self._several()
        array = np.empty((), dtype=object)
        array[()] = self
        return array


def _is_called_by(places: Mapping[str, tuple[str, ...]]) -> bool:
    """Whether one of these functions, by module, is in the call stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name in places.get(frame.f_globals.get("__name__", ""), ()):
            return True
        frame = frame.f_back
    return False


# scikit-learn collects results that are numbers in an array and leaves all others in a list. Only for a number does it
# call `__array__`.
numbers.Number.register(Scores)
