"""All measures of one network at once, as tests of every measure take them."""

from __future__ import annotations

import warnings

from networks import NETWORKS
from sklearn_capacity import CapacityWarning, NotDefinedError
from sklearn_capacity.measures import MEASURES
from sklearn_capacity.scoring.measurement import Session
from sklearn_capacity.scoring.requests import parse_measures

__all__ = ["SHORT", "results_of", "separated", "values_of"]

FLATNESS_FORMS = ("flatness", "init", "orig", "mag_flatness", "mag_init", "mag_orig")
#: Cheap settings for measures that draw or ascend, and parameters that have no default.
SHORT = {
    **{name: {"min_eigenvalues": 2} for name in ("alpha_weighted", "log_alpha_norm", "power_law_alpha")},
    "adaptive_sharpness": {"steps": 3},
    "max_sharpness": {"steps": 20, "check_every": 10, "batch_size": 4},
    "expected_sharpness": {"n_draws": 20},
    "pac_bayes_bound": {"n_draws": 20},
    **{f"pacbayes_{form}": {"n_draws": 10, "criterion": "loss"} for form in FLATNESS_FORMS},
    **{f"sharpness_{form}": {"steps": 2, "criterion": "loss"} for form in FLATNESS_FORMS},
    "steps_to_loss": {"start": "trained", "max_steps": 20, "threshold": 0.2, "batch_size": 8},
    "robustness_bound": {"manifold_dim": 2, "manifold_constant": 1.0},
}


def values_of(module, X, y, names=tuple(MEASURES), **options):
    """The values of measures from one session, None where one is not defined."""
    return {name: result for name, result in results_of(Session(module, X, y, **options), names)}


def results_of(session, names):
    requests, _ = parse_measures({name: (name, SHORT.get(name, {})) for name in names})
    for request in requests:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CapacityWarning)
            try:
                yield request.label, session.run(request).value
            except NotDefinedError:
                yield request.label, None


def separated(case):
    """A network and data that it classifies without error, so that capacities are finite."""
    module, X, _ = NETWORKS[case]()
    return module, X, module(X).argmax(1)
