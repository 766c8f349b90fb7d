"""Several scores of one call, in the form in which scikit-learn's callers of one number say what is wrong."""

from __future__ import annotations

import numbers
import sys
from typing import Any, NoReturn

import numpy as np

__all__ = ["Scores"]

#: Functions of scikit-learn that take several scores from a scorer, and fail on them later without a word about it.
_WANT_ONE_NUMBER = {
    "sklearn.model_selection._validation": ("learning_curve", "validation_curve", "_incremental_fit_estimator"),
    "sklearn.model_selection._search_successive_halving": ("_run_search",),
}


class Scores(dict[str, float]):
    """Scores by name, which name the cure wherever they are taken for one number.

    A scorer cannot know its caller, which may be in another process. `GridSearchCV`, `cross_validate` and
    `permutation_importance` want a dict, and this is one. The other callers treat it as the number that they expect:
    they do arithmetic with it, compare it, or ask for its `item`. Some put whatever they get into an array before
    anything else; they are recognised by the call stack, in the process of the user.

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
    One number is wanted here, and the scorer gives 2 scores. Set `refit_measure` to one of 'accuracy', 'margin'.
    """

    def item(self) -> NoReturn:
        """Raise: there is more than one."""
        raise self._several()

    def _refuse(self, *_: Any) -> NoReturn:
        raise self._several()

    def _several(self) -> TypeError:
        names = ", ".join(map(repr, self))
        cure = f"Set `refit_measure` to one of {names}."
        return TypeError(f"One number is wanted here, and the scorer gives {len(self)} scores. {cure}")

    __float__ = __int__ = __neg__ = __abs__ = _refuse
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        frame = sys._getframe(1)
        while frame is not None:
            if frame.f_code.co_name in _WANT_ONE_NUMBER.get(frame.f_globals.get("__name__", ""), ()):
                raise self._several()
            frame = frame.f_back  # type: ignore[assignment]
        array = np.empty((), dtype=object)
        array[()] = self
        return array


# Where scikit-learn gathers results it makes an array of numbers and leaves everything else in a list. Only as a number
# is `__array__` asked for.
numbers.Number.register(Scores)
