"""The checkpoints of a fit: which folder belongs to it, and where in it training resumes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sklearn_capacity.estimators._data import Samples
from sklearn_capacity.storage import fingerprint
from sklearn_capacity.training import CheckpointFolder, PenalizedNet, make_schedule, seeded
from sklearn_capacity.training.behaviour import Behaviour, first_step, global_generators
from sklearn_capacity.training.checkpoints import FORMAT

if TYPE_CHECKING:
    from sklearn_capacity.estimators._base import BaseNetwork

__all__ = ["newest_checkpoint"]

#: parameters that do not change the result
NOT_HASHED = ("checkpoint_dir", "checkpoint_every", "device", "verbose", "warm_start")


def newest_checkpoint(
    estimator: BaseNetwork, net: PenalizedNet, train: Samples, valid: Samples | None
) -> tuple[CheckpointFolder, Any] | None:
    """The folder of this fit, named by a hash of parameters, data, seed and first values, and its newest state."""
    if estimator.checkpoint_dir is None:
        return None
    params = {key: value for key, value in estimator.get_params(deep=False).items() if key not in NOT_HASHED}
    try:
        key = fingerprint(
            params=params,
            kind=type(estimator),
            data=[*train.arrays(), *(valid.arrays() if valid else [])],
            classes=getattr(estimator, "classes_", None),
            versions=[torch.__version__, FORMAT],
        )
    except TypeError as error:
        raise TypeError(f"{error} Fit with checkpoint_dir=None.") from error
    try:
        behaviour = _behaviour(estimator, train, torch.device("cpu"))
    except RuntimeError:  # layers that run on a GPU only
        if torch.device(net.device).type == "cpu":
            raise
        behaviour = _behaviour(estimator, train, torch.device(net.device))
    return CheckpointFolder.open(estimator.checkpoint_dir, key[:40], behaviour)


def _behaviour(estimator: BaseNetwork, train: Samples, device: torch.device) -> Behaviour:
    """What the first step computes, from a network that is built only for this purpose."""
    few = train.take(slice(estimator.batch_size))
    schedule = make_schedule(estimator.learning_rate_schedule, estimator.max_epochs)
    factor = getattr(schedule, "factor", None)  # a function of the epoch only
    factors = [float(factor(epoch)) for epoch in range(estimator.max_epochs)] if callable(factor) else []
    with global_generators(), seeded(estimator._seed, device) as generator:
        alone = object.__new__(type(estimator))  # copy.copy would pickle the user's classes
        alone.__dict__.update(vars(estimator))
        net = alone._make_net(few.X, device)
        return first_step(net, alone._prepare(net, few, 1, generator), factors)
