"""The training regime of generalization layers ([GL] section 4.1.1) as callbacks for any skorch net."""

from __future__ import annotations

from typing import Any

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback

from sklearn_capacity.layers import generalization_parameters, nu_schedule, set_nu, slow_learning_factor

__all__ = ["SLOW", "NuSchedule", "SlowLearning"]

#: marks a parameter group of weights of generalization layers, without those of the skip
SLOW = "slow"


class NuSchedule(Callback):
    """Decrease the strength nu of the skips over generalization layers from epoch to epoch.

    nu decreases linearly from `start` to `end` over the first ``decay_fraction * max_epochs`` epochs, and then stays
    constant. Epochs are counted in the net's history, so ``partial_fit`` and ``warm_start`` continue the schedule; the
    history records each epoch's ``nu``.

    Parameters
    ----------
    max_epochs : int, default=None
        Number of epochs of the entire training; None: the net's `max_epochs`.
    start, end : float in (0, inf), default=1.0 and 0.1
    decay_fraction : float in [0, 1], default=0.8

    References
    ----------
    Generalization by design: learning in the manifold of distributions, section 4.1.1.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sklearn_capacity.layers import GeneralizationLayer
    >>> from sklearn_capacity.training import NuSchedule, PenalizedRegressor
    >>> net = PenalizedRegressor(torch.nn.Sequential(GeneralizationLayer(2), torch.nn.Linear(2, 1)), max_epochs=3,
    ...                          callbacks=[NuSchedule(decay_fraction=0.5)], verbose=0)
    >>> X = np.ones((4, 2), dtype="float32")
    >>> [round(nu, 2) for nu in net.fit(X, X[:, :1]).history[:, "nu"]]
    [1.0, 0.4, 0.1]
    """

    def __init__(
        self, max_epochs: int | None = None, start: float = 1.0, end: float = 0.1, decay_fraction: float = 0.8
    ) -> None:
        self.max_epochs = max_epochs
        self.start = start
        self.end = end
        self.decay_fraction = decay_fraction

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        epochs = self.max_epochs or net.max_epochs
        nu = nu_schedule(len(net.history) - 1, epochs, self.start, self.end, self.decay_fraction)
        if set_nu(net.module_, nu):
            net.history.record("nu", nu)


class SlowLearning(Callback):
    """Train the weights W_g of generalization layers with a fraction of the learning rate, from some epoch on.

    These weights get a separate parameter group. Its learning rate is lowered only during each step, so that schedules
    do not see the factor. Place the callback before callbacks that create a scheduler. It has no effect in a net
    without generalization layers.

    Parameters
    ----------
    max_epochs : int, default=None
        Number of epochs of the entire training, needed for a fraction; None: the net's `max_epochs`.
    factor : float in [0, inf), default=0.1
    after : int or float in [0, 1], default=20
        An integer counts epochs; a float is a fraction of `max_epochs`.

    Raises
    ------
    ValueError
        When training starts with LBFGS, which has one learning rate for all weights, and a `factor` other than 1.

    Notes
    -----
    The history records each epoch's ``slow_factor``. With Adam, whose steps do not depend on the gradient's scale,
    as with SGD, the factor multiplies the step.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, section 4.1.1.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sklearn_capacity.layers import GeneralizationLayer
    >>> from sklearn_capacity.training import PenalizedRegressor, SlowLearning
    >>> layer = GeneralizationLayer(2)
    >>> net = PenalizedRegressor(layer, max_epochs=3, callbacks=[SlowLearning(factor=0.0, after=0)], verbose=0)
    >>> X = np.ones((4, 2), dtype="float32")
    >>> before = layer.body[0].weight.clone()
    >>> bool((net.fit(X, X).module_.body[0].weight == before).all())
    True
    """

    def __init__(self, max_epochs: int | None = None, factor: float = 0.1, after: int | float = 20) -> None:
        self.max_epochs = max_epochs
        self.factor = factor
        self.after = after

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self._leave()  # the last training may have failed without `on_train_end`
        self.factor_ = 1.0
        self.rates_: list[tuple[dict[str, Any], float]] = []
        slow = {id(parameter) for parameter in generalization_parameters(net.module_)}
        self.handles_ = []
        if slow and isinstance(net.optimizer_, torch.optim.LBFGS):
            _check_one_rate(self.factor)
            return
        _split_groups(net.optimizer_, slow)
        self.handles_ = [
            net.optimizer_.register_step_pre_hook(self._slow_down),
            net.optimizer_.register_step_post_hook(self._restore),
        ]

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        epochs = self.max_epochs or net.max_epochs
        self.factor_ = slow_learning_factor(len(net.history) - 1, epochs, self.after, self.factor)
        if any(map(_is_slow, net.optimizer_.param_groups)):
            net.history.record("slow_factor", self.factor_)

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self._leave()

    def _leave(self) -> None:
        """Remove the hooks; if training was stopped within a step, restore the learning rates."""
        for group, rate in self.__dict__.pop("rates_", []):
            group["lr"] = rate
        for handle in self.__dict__.pop("handles_", []):
            handle.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in ("handles_", "rates_")}

    def _slow_down(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        groups = [group for group in optimizer.param_groups if _is_slow(group)]
        self.rates_ = [(group, group["lr"]) for group in groups]
        for group, rate in self.rates_:
            group["lr"] = rate * self.factor_

    def _restore(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        for group, rate in self.rates_:
            group["lr"] = rate
        self.rates_ = []


def _check_one_rate(factor: float) -> None:
    if factor != 1:
        raise ValueError(
            f"LBFGS has one learning rate for all weights, but those of a generalization layer learn {factor:g} times "
            "as fast as the others. Use another optimiser, or set `slow_factor` to 1."
        )


def _is_slow(group: dict[str, Any]) -> bool:
    return group.get(SLOW, False)


def _split_groups(optimizer: torch.optim.Optimizer, slow: set[int]) -> None:
    """Move the slow parameters of each group to a separate group with the same settings, unless they have one."""
    for group in list(optimizer.param_groups):
        inside = [parameter for parameter in group["params"] if id(parameter) in slow]
        if not inside or _is_slow(group):
            continue
        others = [parameter for parameter in group["params"] if id(parameter) not in slow]
        if not others:
            group[SLOW] = True
            continue
        group["params"] = others
        optimizer.param_groups.append({**group, "params": inside, SLOW: True})
