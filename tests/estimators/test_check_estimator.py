"""scikit-learn's own checks, all of them, none skipped; one expected failure, of the variant with dropout."""

from __future__ import annotations

import os
from unittest import SkipTest

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_capacity import (
    GeneralizationLayerClassifier,
    GeneralizationLayerRegressor,
    JacobianRegularizedClassifier,
    JacobianRegularizedRegressor,
    NetworkClassifier,
    NetworkRegressor,
)

ESTIMATORS = [
    NetworkClassifier(),
    NetworkClassifier(loss="hinge"),
    NetworkRegressor(),
    JacobianRegularizedClassifier(jacobian_penalty=0.1, max_epochs=20),
    JacobianRegularizedRegressor(jacobian_penalty=0.1, max_epochs=20),
    JacobianRegularizedClassifier(),
    JacobianRegularizedRegressor(),
    GeneralizationLayerClassifier(),
    GeneralizationLayerRegressor(),
]
WITH_DROPOUT = [GeneralizationLayerClassifier(variant="dropout"), GeneralizationLayerRegressor(variant="dropout")]
# a sample of weight 2 gets one mask, two equal samples get two
INHERENT = {"check_sample_weight_equivalence_on_dense_data"}


def test_no_check_is_left_out_for_want_of_a_setting():
    # without it, and before scipy is imported, check_array_api_input is skipped silently
    assert os.environ.get("SCIPY_ARRAY_API") == "1"


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check(estimator, check):
    try:
        check(estimator)
    except SkipTest as skipped:
        raise AssertionError(f"The check was skipped: {skipped}") from skipped


@parametrize_with_checks(WITH_DROPOUT)
def test_scikit_learn_check_with_dropout(estimator, check):
    if check.func.__name__ in INHERENT:
        with pytest.raises(AssertionError):
            check(estimator)
    else:
        test_scikit_learn_check(estimator, check)
