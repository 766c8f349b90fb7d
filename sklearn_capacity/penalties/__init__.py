"""Penalties: functions of a module and a batch that are added to a training loss.

On the input-output Jacobian: `frobenius` (and projections), `spectral`, `per_layer`, one penalty per file;
`jacobian_penalty` names them for estimators and loops. On the parameters: `weight_norms`, `gradient_norm`,
`fisher_rao`; `parameter_penalties` names them. `module_graph` traces a module once per training and again when
`surroundings` finds something changed that its code reads, `shared_pass` runs the forward pass that loss and Jacobian
penalties share, `output_basis` leaves out outputs that the others determine, `sweep_gradients` computes value and
gradient by sweeps through the graph, `end_layers` leaves out products at its ends, `one_hidden_layer` is a closed form
without sweeps, and `gradient_sums` hands gradients to autograd. A module without a graph is differentiated twice by
autograd, which is slower and gives the same result. `evaluation` checks the arguments of penalties, `penalty_checks`
supports user-defined ones. Read `frobenius` first.

Data flow: module, X -> forward_pass -> SharedPass -> penalty -> scalar with a gradient.
"""

from __future__ import annotations

from sklearn_capacity.penalties.fisher_rao import fisher_rao_penalty
from sklearn_capacity.penalties.frobenius import frobenius_penalty, projection_penalty
from sklearn_capacity.penalties.gradient_norm import gradient_norm_penalty
from sklearn_capacity.penalties.jacobian_penalty import PENALTIES, JacobianPenalty, Penalty
from sklearn_capacity.penalties.parameter_penalties import PARAMETER_PENALTIES
from sklearn_capacity.penalties.penalty_checks import check_penalty
from sklearn_capacity.penalties.per_layer import per_layer_penalty
from sklearn_capacity.penalties.shared_pass import SharedPass, forward_pass
from sklearn_capacity.penalties.spectral import spectral_penalty
from sklearn_capacity.penalties.weight_norms import spectral_norm_penalty

__all__ = [
    "PARAMETER_PENALTIES",
    "PENALTIES",
    "JacobianPenalty",
    "Penalty",
    "SharedPass",
    "check_penalty",
    "fisher_rao_penalty",
    "forward_pass",
    "frobenius_penalty",
    "gradient_norm_penalty",
    "per_layer_penalty",
    "projection_penalty",
    "spectral_norm_penalty",
    "spectral_penalty",
]
