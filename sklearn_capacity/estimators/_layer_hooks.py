"""How an estimator inserts a generalization layer and controls its training: parameters and hooks."""

from __future__ import annotations

import glob
from typing import Any, ClassVar

import torch
from skorch.callbacks import Callback
from torch import nn

from sklearn_capacity._validation import shown
from sklearn_capacity.estimators import _constraints
from sklearn_capacity.estimators._base import CALLBACK_PARAMETERS
from sklearn_capacity.estimators._jacobian import JACOBIAN_CONSTRAINTS, JacobianPenaltyMixin
from sklearn_capacity.layers import (
    generalization_layers,
    generalization_parameters,
    insert_generalization_layer,
    slow_start,
)
from sklearn_capacity.layers.generalization import check_nu
from sklearn_capacity.layers.insertion import FORMS
from sklearn_capacity.training import NuSchedule, SlowLearning, decay_of
from sklearn_capacity.training.regime import SLOW

__all__ = ["LAYER_CONSTRAINTS", "GeneralizationLayerMixin"]


def _position(name: str, value: Any) -> Any:
    if not (value is None or isinstance(value, str | int)) or isinstance(value, bool):
        raise TypeError(f"`{name}` must be None, an index or the name of a submodule, got {shown(value)}.")
    return value


LAYER_CONSTRAINTS: dict[str, Any] = JACOBIAN_CONSTRAINTS | {
    "variant": _constraints.option(FORMS),
    "position": _position,
    "nu_start": lambda name, value: check_nu(value, name),
    "nu_end": lambda name, value: check_nu(value, name),
    "nu_decay_fraction": _constraints.interval(0, 1),
    "slow_factor": _constraints.interval(0, closed="left"),
    "slow_after": lambda name, value: slow_start(value, 1),
    "layer_form": _constraints.optional(_constraints.option(FORMS["skip"])),
    "layer_depth": _constraints.option([1, 2]),
    "layer_dropout": _constraints.interval(0, 1, "left"),
}


class GeneralizationLayerMixin(JacobianPenaltyMixin):
    """The hooks that insert the layer and control its training."""

    variant: str
    position: str | int | None
    nu_start: float
    nu_end: float
    nu_decay_fraction: float
    slow_factor: float
    slow_after: int | float
    layer_form: str | None
    layer_depth: int
    layer_dropout: float

    _callback_parameters: ClassVar[tuple[str, ...]] = (
        *CALLBACK_PARAMETERS,
        "nu_start",
        "nu_end",
        "nu_decay_fraction",
        "slow_factor",
        "slow_after",
    )

    def _make_module(self, input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
        module = super()._make_module(input_shape, n_outputs)
        if self.position is None:
            if self.variant == "skip" and not any(True for _ in generalization_layers(module)):
                raise ValueError(
                    "`position` must name the place of the layer, got None: the module has no generalization layer of "
                    'its own (as "resnet20_gl" does). Set it to "head", a name or an index.'
                )
            return module
        skip = self.variant == "skip"
        return insert_generalization_layer(
            module,
            self.position,
            self.variant,
            self.layer_form,
            depth=self.layer_depth if skip else None,
            nu=self.nu_start,
            p=self.layer_dropout,
            input_shape=input_shape,
        )

    def _parameter_groups(self, module: nn.Module) -> list[tuple[str, dict[str, Any]]]:
        if self.optimizer in ("lbfgs", torch.optim.LBFGS):  # it accepts one group only; see SlowLearning
            return []
        # with groups present from the start, a checkpoint can restore the optimiser's state
        slow = {id(parameter) for parameter in generalization_parameters(module)}
        names = [name for name, parameter in module.named_parameters() if id(parameter) in slow]
        decay = super()._parameter_groups(module)
        return [*((glob.escape(name), {SLOW: True, **decay_of(name, decay)}) for name in names), *decay]

    def _extra_callbacks(self) -> list[Callback]:
        return [
            NuSchedule(self.max_epochs, self.nu_start, self.nu_end, self.nu_decay_fraction),
            SlowLearning(self.max_epochs, self.slow_factor, self.slow_after),
        ]
