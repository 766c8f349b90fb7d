"""Penalties on the Jacobian: functions of a module and a batch that are added to a training loss.

`frobenius` (and projections), `spectral`, `per_layer`: one penalty a file; `jacobian_penalty` names them for estimators
and loops. `module_graph` traces a module once for a training, `shared_pass` makes the forward pass that loss and
penalties share, `sweep_gradients` computes value and gradient by sweeps through the graph; a module without a graph is
differentiated twice by autograd, slower and with the same result. `evaluation` checks what
penalties are called with, `penalty_checks` serves penalties of a user's own.

Data flow: module, X -> forward_pass -> SharedPass -> penalty -> scalar with a gradient.
"""

from __future__ import annotations

from sklearn_capacity.penalties.frobenius import frobenius_penalty, projection_penalty
from sklearn_capacity.penalties.jacobian_penalty import PENALTIES, JacobianPenalty, Penalty
from sklearn_capacity.penalties.penalty_checks import check_penalty
from sklearn_capacity.penalties.per_layer import per_layer_penalty
from sklearn_capacity.penalties.shared_pass import SharedPass, forward_pass
from sklearn_capacity.penalties.spectral import spectral_penalty

__all__ = [
    "PENALTIES",
    "JacobianPenalty",
    "Penalty",
    "SharedPass",
    "check_penalty",
    "forward_pass",
    "frobenius_penalty",
    "per_layer_penalty",
    "projection_penalty",
    "spectral_penalty",
]
