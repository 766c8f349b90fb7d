"""Jacobian penalties: functions of a module and a batch that are added to a training loss.

A module whose eval forward pass is a graph of known operators is linearised, and its Jacobian is a chain of matrices
through masks; the graph is traced once and kept as long as the module lives. Any other module or function is
differentiated twice by autograd, slower and with the same result.
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
