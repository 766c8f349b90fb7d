"""Scoring: measure any model, as a function, a report or a scikit-learn scorer.

Public functions: `capacity` (`measure_capacity`, `capacity_report`), `listing` (`list_measures`), `scorer`
(`CapacityScorer`, whose multiple values are `scores`), `compare` (several models; `module_estimator` wraps plain
modules for scikit-learn's scorers), `callback` (capacity after each epoch), `spectrum`, `curves`, `landscape`.

Their parts: `requests` parses the requested measures; `find_network` finds the network inside a model, with
`from_sklearn` for linear models and perceptrons; `data` creates tensors; `probe` runs the network on a few samples;
`measurement` runs one measure, and `outcomes` those of one call, within its time limit; `pass_totals` bounds their
passes over the data. `initial_state` stores the weights before training, `pickling` pickles a user's functions for
other processes, `measure_checks` (`check_measure`) and `measure_invariances` test a measure on small networks
(`example_networks`). Read `capacity` first, then `measurement`.

Data flow: model, X, y -> find_network, data -> probe -> measurement -> Measured values -> dict, frame or score.
"""

from .callback import CapacityCallback
from .capacity import capacity_report, measure_capacity
from .compare import compare_capacity
from .curves import bicriteria_curve, interaction_conditions
from .initial_state import InitialStateCallback
from .listing import list_measures
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
