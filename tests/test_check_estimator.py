"""scikit-learn's own checks, all of them: no expected failures, none skipped."""

from __future__ import annotations

import os
from unittest import SkipTest

from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_capacity import (
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    NetworkClassifier,
    NetworkRegressor,
)

ESTIMATORS = [
    NetworkClassifier(),
    NetworkRegressor(),
    JacobianRegularizedClassifier(jacobian_penalty=0.1, max_epochs=20),
    JacobianRegularizedRegressor(jacobian_penalty=0.1, max_epochs=20),
    JacobianRegularizedClassifier(),
    JacobianRegularizedRegressor(),
]


def test_no_check_is_left_out_for_want_of_a_setting():
    # without it, and before scipy is imported, check_array_api_input is skipped without a word
    assert os.environ.get("SCIPY_ARRAY_API") == "1"


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check(estimator, check):
    try:
        check(estimator)
    except SkipTest as skipped:
        raise AssertionError(f"The check was skipped: {skipped}") from skipped
