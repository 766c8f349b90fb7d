"""Measures of capacity: one small file per family, one function and one record per measure.

`record` defines what a measure is and calls its function, `registry` joins the families' tables, `batch` holds the data
that all measures of a call share, `memory` limits what they hold at once, and `pass_limits` counts how often they run
the network at most. Families: `size`, `norms`, `induced_norms`, `spectral_shape`, `power_law_tails`, `paths`,
`path_activity`, `capacities`, `data_norms`, `fisher_rao`, `fisher_spectrum`, `function_space`, `margins`,
`normalized_margins`, `hidden_margins`, `jacobians`, `lipschitz`, `curvature`, `robustness`, `sharpness`,
`adaptive_sharpness`, `hessian`, `relative_flatness`, `interaction`, `pac_bayes`, `battery`, `battery_distances`,
`battery_flatness`, `steps_to_loss`, `separability`. Shared parts: `layer_operators` (weight layers and their
operators), `function_slopes` and `magnitudes` (of products, softmax and normalisations), `convex_mixes`,
`rectifier_chain`, `output_gram` and `output_traces` (J J^T of each sample), `fisher_eigenvalues`, `fisher_limits`,
`hessian_estimates`, `radii` and `attack` (of `robustness`), `confidence_limits` and `learned_parts` (of `pac_bayes`),
`losses`, `moved_weights`, `rise_search`. Read `record` first, then `size`.

Data flow: Network, Batch -> function -> Measured(value, standard_error, per_layer, info).
"""

from .batch import Batch
from .record import Measure, Measured, NotDefinedError
from .registry import ESSENTIAL, MEASURES, measure_named

__all__ = ["ESSENTIAL", "MEASURES", "Batch", "Measure", "Measured", "NotDefinedError", "measure_named"]
