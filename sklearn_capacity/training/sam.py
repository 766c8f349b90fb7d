"""Sharpness-aware minimisation: each step follows the gradient at the worst point nearby."""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sklearn_capacity._validation import check_boolean, check_interval

__all__ = ["SAM"]


class SAM(torch.optim.Optimizer):
    r"""Sharpness-aware minimisation around another optimiser.

    .. math:: g = \nabla L(\theta), \qquad \theta' = \theta + \rho\, g / \|g\|, \qquad
              \theta \leftarrow \text{base step from } \theta \text{ with } \nabla L(\theta')

    L is the loss of one batch with its penalties, and the norm that of all trained parameters together.

    Parameters
    ----------
    params : iterable of Parameter
    lr : float in (0, inf), default=0.01
        Learning rate of `base`.
    rho : float in [0, inf), default=0.05
        :math:`\rho`, how far the worst point is away; 0 gives the steps of `base` alone, at twice their cost.
    adaptive : bool, default=False
        Measure the distance relative to each weight:
        :math:`\theta' = \theta + \rho\, \theta^2 g / \| |\theta|\, g \|`, elementwise. Ranges of `rho` do not carry
        over; 0.5 is usual.
    base : optimiser class or callable, default=torch.optim.SGD
        ``base(params, lr=..., **settings)`` makes the optimiser that takes the step. In the estimators'
        `optimizer_params` it may be a name, as `optimizer` itself.
    **settings
        Further arguments of `base`, such as ``momentum`` and ``weight_decay``.

    Raises
    ------
    ValueError
        For a base whose step evaluates a closure itself (LBFGS), or must know the module and the batch (K-FAC,
        Path-SGD).

    Notes
    -----
    Two forward and two backward passes a step, and one more copy of the parameters. `step` needs a closure that clears
    the gradients, computes them and returns the loss. An estimator, and :class:`PenalizedNet`, give it one whose second
    evaluation has the dropout masks and the random projections of the first, and leaves batch norm's running
    statistics as the first has made them. The loss that the history shows is that at :math:`\theta`.

    References
    ----------
    P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur. Sharpness-aware minimization for efficiently improving
    generalization. ICLR 2021, algorithm 1;
    J. Kwon, J. Kim, H. Park, I. K. Choi. ASAM: adaptive sharpness-aware minimization for scale-invariant learning of
    deep neural networks. ICML 2021, algorithm 1.

    Examples
    --------
    For the loss :math:`w^2` at w = 1, the worst point is 1.5, whose gradient is 3:

    >>> import torch
    >>> from sklearn_capacity.training import SAM
    >>> w = torch.nn.Parameter(torch.tensor(1.0))
    >>> optimizer = SAM([w], lr=0.25, rho=0.5)
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = w.square()
    ...     loss.backward()
    ...     return loss
    >>> loss = optimizer.step(closure)
    >>> float(w.detach()), float(loss.detach())
    (0.25, 1.0)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.01,
        *,
        rho: float = 0.05,
        adaptive: bool = False,
        base: Callable[..., torch.optim.Optimizer] = torch.optim.SGD,
        **settings: Any,
    ) -> None:
        own = {
            "rho": check_interval("rho", rho, 0.0, math.inf, closed="left"),
            "adaptive": check_boolean("adaptive", adaptive),
        }
        self.base = _checked_base(base, params, lr, settings)
        groups, state = self.base.param_groups, self.base.state
        super().__init__(groups, {**self.base.defaults, **own})
        self.state = state  # which Adagrad has filled already

    # Groups and state are those of the base: schedules, callbacks and checkpoints see one optimiser.

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The parameters and their settings, also those of the base."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """What the base remembers of each parameter; SAM itself remembers nothing."""
        return self.base.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.base.state = state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` has returned.

        Parameters
        ----------
        state_dict : dict
        """
        self.base.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "base": self.base}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Evaluate `closure` here and at the worst point nearby, and move from here by the second gradient.

        Parameters
        ----------
        closure : callable
            Clears the gradients, computes them and returns the loss.

        Returns
        -------
        The first loss.
        """
        if closure is None:
            raise ValueError(
                "`optimizer` 'sam' needs two gradients a step: call `step(closure)`, with a closure that clears the "
                "gradients, computes them and returns the loss."
            )
        with torch.enable_grad():
            loss = closure()
        here = self._ascend()
        try:
            with torch.enable_grad():
                closure()
        finally:  # an interrupt, too, leaves the parameters where they were
            for parameter, value in here:
                parameter.copy_(value)
        self.base.step()
        return loss

    def _ascend(self) -> list[tuple[Tensor, Tensor]]:
        """Move to the worst point nearby; returns the parameters with what they were."""
        trained = [(group, p, p.grad) for group in self.param_groups for p in group["params"] if p.grad is not None]
        # adaptive: T = |theta|, the step is rho T^2 g / |T g|; else T = 1
        scaled = [p.abs() * g if group["adaptive"] else g for group, p, g in trained]
        if not scaled:
            return []
        norms = [torch.linalg.vector_norm(t) for t in scaled]
        norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))  # ()
        norm = norm.clamp_min(torch.finfo(norm.dtype).tiny)  # a gradient of 0 has no direction: stay
        here = []
        for (group, p, g), t in zip(trained, scaled, strict=True):
            here.append((p, p.clone()))
            direction = p.abs() * t if group["adaptive"] else g
            p.add_(direction * (group["rho"] / norm.to(p)))
        return here


def _checked_base(
    base: Callable[..., torch.optim.Optimizer], params: Iterable[Any], lr: float, settings: dict[str, Any]
) -> torch.optim.Optimizer:
    """The base optimiser, if all that its step needs is gradients."""
    if not callable(base):
        raise TypeError(
            f"`base` must be an optimiser class or a callable (params, lr=...), got {base!r}. Names are for the "
            "`optimizer_params` of an estimator."
        )
    optimizer = base(params, lr=lr, **settings)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"`base` must return a torch.optim.Optimizer, got {optimizer!r}.")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    evaluates = closure is not None and closure.default is closure.empty
    if evaluates or isinstance(optimizer, SAM) or hasattr(optimizer, "attach"):
        reason = "must know the module and the batch" if hasattr(optimizer, "attach") else "evaluates the loss itself"
        raise ValueError(
            f"`base` of `optimizer` 'sam' must step by the gradients alone, got {type(optimizer).__name__}, which "
            f"{reason}. Take 'sgd', 'adam' or the like."
        )
    return optimizer
