"""Scoring: measure any model, as a function, a report or a scikit-learn scorer.

What users call: `capacity` (`measure_capacity`, `capacity_report`, `list_measures`), `scorer` (`CapacityScorer`, whose
several values are `scores`), `compare` (several models, where `module_estimator` predicts by plain modules), `callback`
(capacity after each epoch), `spectrum`, `curves`, `landscape`.

How they get there: `requests` reads which measures are wanted; `find_network` finds the network in a model, by
`from_sklearn` for linear models and perceptrons; `data` makes tensors; `probe` tries the network on a few samples;
`measurement` runs the measures of one call. `initial_state` keeps weights before training, `by_value` carries a user's
functions to other processes, `measure_checks` (`check_measure`) tries a measure on small networks.

Data flow: model, X, y -> find_network, data -> probe -> measurement -> Measured values -> dict, frame or score.
"""

from .callback import CapacityCallback
from .capacity import capacity_report, list_measures, measure_capacity
from .compare import compare_capacity
from .curves import bicriteria_curve, interaction_conditions
from .initial_state import InitialStateCallback
from .measure_checks import check_measure
from .scorer import CapacityScorer
from .spectrum import fisher_spectrum

__all__ = [
    "CapacityCallback",
    "CapacityScorer",
    "InitialStateCallback",
    "bicriteria_curve",
    "capacity_report",
    "check_measure",
    "compare_capacity",
    "fisher_spectrum",
    "interaction_conditions",
    "list_measures",
    "measure_capacity",
]
