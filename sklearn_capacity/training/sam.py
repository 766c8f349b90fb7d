"""Sharpness-aware minimisation: each step follows the gradient at the worst nearby point."""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sklearn_capacity._validation import check_boolean, check_interval, check_parameters, shown
from sklearn_capacity.training.unobserved_step import unobserved_step

__all__ = ["SAM"]


class SAM(torch.optim.Optimizer):
    r"""Sharpness-aware minimisation around another optimiser.

    .. math:: g = \nabla L(\theta), \qquad \theta' = \theta + \rho\, g / \|g\|, \qquad
              \theta \leftarrow \text{base step from } \theta \text{ with } \nabla L(\theta')

    L is the loss of one batch with its penalties, and the norm is taken over all trained parameters together.

    Parameters
    ----------
    params : iterable of Parameter
    lr : float in (0, inf), default=0.01
        Learning rate of `base`.
    rho : float in [0, inf), default=0.05
        :math:`\rho`, the distance of the worst point; 0 gives the plain steps of `base` at twice their cost.
    adaptive : bool, default=False
        Measure the distance relative to each weight:
        :math:`\theta' = \theta + \rho\, \theta^2 g / \| |\theta|\, g \|`, elementwise. Values of `rho` are not
        comparable with those of the plain variant; 0.5 is usual.
    base : optimiser class or callable, default=torch.optim.SGD
        ``base(params, lr=..., **settings)`` returns the optimiser that takes the step. In the `optimizer_params` of an
        estimator it may be a name, as for `optimizer` itself.
    **settings
        Further arguments of `base`, such as ``momentum`` and ``weight_decay``.

    Raises
    ------
    ValueError
        If the step of `base` itself evaluates a closure (LBFGS), or needs the module and the batch (K-FAC,
        Path-SGD).

    Notes
    -----
    A step takes two forward and two backward passes, and one more copy of the parameters. `step` needs a closure that
    clears the gradients, computes them and returns the loss. Estimators and :class:`PenalizedNet` pass one whose second
    evaluation uses the dropout masks and random projections of the first and does not change batch norm's running
    statistics again. The loss in the history is that at :math:`\theta`.

    References
    ----------
    P. Foret, A. Kleiner, H. Mobahi, B. Neyshabur. Sharpness-aware minimization for efficiently improving
    generalization. ICLR 2021, algorithm 1;
    J. Kwon, J. Kim, H. Park, I. K. Choi. ASAM: adaptive sharpness-aware minimization for scale-invariant learning of
    deep neural networks. ICML 2021, algorithm 1.

    Examples
    --------
    For the loss :math:`w^2` at w = 1, the worst point is 1.5, where the gradient is 3:

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
        options = {
            "rho": check_interval("rho", rho, 0.0, math.inf, closed="left"),
            "adaptive": check_boolean("adaptive", adaptive),
        }
        self.base = _checked_base(base, params, lr, settings)
        groups, state = self.base.param_groups, self.base.state
        super().__init__(groups, {**self.base.defaults, **options})
        self.state = state  # already filled by Adagrad

    # Groups and state are those of the base, so schedules, callbacks and checkpoints see a single optimiser.

    @property
    def param_groups(self) -> list[dict[str, Any]]:  # type: ignore[override]
        """The parameters and their settings, including those of the base."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        self.base.param_groups = groups

    @property
    def state(self) -> defaultdict[Tensor, Any]:  # type: ignore[override]
        """The state of the base; SAM itself has none."""
        return self.base.state

    @state.setter
    def state(self, state: defaultdict[Tensor, Any]) -> None:
        self.base.state = state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state returned by `state_dict`.

        Parameters
        ----------
        state_dict : dict
        """
        self.base.load_state_dict(state_dict)

    def __getstate__(self) -> dict[str, Any]:
        return {"defaults": self.defaults, "base": self.base}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Evaluate `closure` here and at the worst nearby point, and step from here with the second gradient.

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
                "`optimizer` 'sam' needs two gradients per step: call `step(closure)`, with a closure that clears the "
                "gradients, computes them and returns the loss."
            )
        with torch.enable_grad():
            loss = closure()
        parameters, values = self._ascend()
        try:
            with torch.enable_grad():
                closure()
        finally:  # an interrupt also leaves the parameters at the original point
            if parameters:
                torch._foreach_copy_(parameters, values)
        unobserved_step(self.base)()
        return loss

    def _ascend(self) -> tuple[list[Tensor], list[Tensor]]:
        """Move to the worst nearby point; returns the parameters and their original values."""
        alike: dict[tuple, list[Tensor]] = {}  # parameters with a gradient, by setting, device and dtype
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault((group["rho"], group["adaptive"], p.device, p.dtype), []).append(p)
        if not alike:
            return [], []
        values, moves = [], []
        # adaptive: the step is rho T^2 g / |T g| for T = |theta|, where T^2 = theta conj(theta); else T = 1
        for (_, adaptive, *_), parameters in alike.items():
            here, gradients = [p.clone() for p in parameters], [p.grad for p in parameters if p.grad is not None]
            values.append(here)
            moves.append(list(torch._foreach_mul([p.conj() for p in here], gradients)) if adaptive else gradients)
        norms = [norm for part in moves for norm in torch._foreach_norm(part)]
        norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0]) for n in norms]))  # ()
        norm = norm.clamp_min(torch.finfo(norm.dtype).tiny)
        for ((rho, adaptive, device, dtype), parameters), here, part in zip(alike.items(), values, moves, strict=True):
            directions = torch._foreach_mul(here, part) if adaptive else part
            # finite, so that the point stays where a zero gradient has no direction
            length = (rho / norm).to(device, dtype.to_real()).clamp_max(torch.finfo(dtype).max)
            torch._foreach_add_(parameters, torch._foreach_mul(directions, length))
        return [p for parameters in alike.values() for p in parameters], [old for here in values for old in here]


def _checked_base(
    base: Callable[..., torch.optim.Optimizer], params: Iterable[Any], lr: float, settings: dict[str, Any]
) -> torch.optim.Optimizer:
    """The base optimiser, if its step needs only gradients."""
    if not callable(base):
        raise TypeError(
            f"`base` must be an optimiser class or a callable (params, lr=...), got {shown(base)}. Names are only "
            "accepted in the `optimizer_params` of an estimator."
        )
    try:
        optimizer = base(check_parameters(params), lr=lr, **settings)
    except (RuntimeError, ArithmeticError, TypeError) as error:  # as of a comparison with a tensor of several numbers
        kind = TypeError if isinstance(error, TypeError) else ValueError
        given = shown({"lr": lr, **settings})
        raise kind(f"`base` does not accept `lr` and its settings, {given}: {error}.") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"`base` must return a torch.optim.Optimizer, got {shown(optimizer)}.")
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    evaluates = closure is not None and closure.default is closure.empty
    if evaluates or isinstance(optimizer, SAM) or hasattr(optimizer, "attach"):
        reason = "needs the module and the batch" if hasattr(optimizer, "attach") else "evaluates the loss itself"
        raise ValueError(
            f"`base` of `optimizer` 'sam' must step with the gradients only, got {type(optimizer).__name__}, which "
            f"{reason}. Use 'sgd', 'adam' or similar."
        )
    return optimizer
