"""The measures of all families, by name."""

from __future__ import annotations

from collections.abc import Iterable

from .._validation import closest
from . import (
    adaptive_sharpness,
    battery,
    battery_distances,
    battery_flatness,
    capacities,
    curvature,
    data_norms,
    fisher_rao,
    fisher_spectrum,
    function_space,
    hessian,
    hidden_margins,
    induced_norms,
    interaction,
    jacobians,
    lipschitz,
    margins,
    normalized_margins,
    norms,
    pac_bayes,
    path_activity,
    paths,
    power_law_tails,
    relative_flatness,
    robustness,
    separability,
    sharpness,
    size,
    spectral_shape,
    steps_to_loss,
)
from .record import Measure

__all__ = ["ESSENTIAL", "FAMILIES", "MEASURES", "measure_named"]

#: One module per family; its table MEASURES is at the end of the file.
FAMILIES = (
    size,
    norms,
    induced_norms,
    spectral_shape,
    power_law_tails,
    paths,
    path_activity,
    capacities,
    data_norms,
    fisher_rao,
    fisher_spectrum,
    function_space,
    margins,
    normalized_margins,
    hidden_margins,
    jacobians,
    lipschitz,
    curvature,
    robustness,
    hessian,
    relative_flatness,
    sharpness,
    adaptive_sharpness,
    interaction,
    pac_bayes,
    battery,
    battery_distances,
    battery_flatness,
    steps_to_loss,
    separability,
)

#: The default of every call: different in kind, together less than three forward passes and a Jacobian
#: (with attention eight, since the Fisher-Rao norm takes reverse mode twice).
ESSENTIAL = ("parameter_count", "frobenius_norm", "l2_path_norm", "fisher_rao_norm", "margin", "jacobian_frobenius")

MEASURES: dict[str, Measure] = {measure.name: measure for family in FAMILIES for measure in family.MEASURES}


def measure_named(name: str, others: Iterable[str] = ()) -> Measure:
    """The record of a measure.

    Parameters
    ----------
    name : str
    others : iterable of str, default=()
        What else may be meant, for the suggestion in the error.

    Raises
    ------
    ValueError
        If no measure has this name; the message suggests the closest one.
    """
    if name not in MEASURES:
        hint = closest(name, [*MEASURES, *others])
        raise ValueError(f"Unknown measure {name!r}. {hint + ' ' if hint else ''}`list_measures()` shows all.")
    return MEASURES[name]
