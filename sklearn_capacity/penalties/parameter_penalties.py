"""Penalties on the parameters, by their names for the parameter `penalty` of estimators."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sklearn_capacity.penalties.fisher_rao import fisher_rao_penalty
from sklearn_capacity.penalties.gradient_norm import gradient_norm_penalty
from sklearn_capacity.penalties.weight_norms import spectral_norm_penalty

__all__ = ["PARAMETER_PENALTIES"]

#: name -> ``penalty(module, X, ...)``. Add penalties here.
PARAMETER_PENALTIES: dict[str, Callable[..., Tensor]] = {
    "fisher_rao": fisher_rao_penalty,
    "gradient_norm": gradient_norm_penalty,
    "spectral_norm": spectral_norm_penalty,
}
