"""K-FAC natural gradient; the only file that knows curvlinops (extra ``curvature``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_capacity._validation import check_integer, check_interval, check_option
from sklearn_capacity.derivatives.modes import evaluating

__all__ = ["KFAC"]

FISHERS = ("type-2", "mc", "empirical")
#: where the operator of curvlinops has its Kronecker factors, by layer
FACTORS = ("_input_covariances", "_gradient_covariances")
LOSSES = (nn.MSELoss, nn.CrossEntropyLoss, nn.BCEWithLogitsLoss)


class KFAC(torch.optim.Optimizer):
    r"""Natural gradient descent with Kronecker-factored curvature.

    .. math:: v \leftarrow m v + (F + \delta I)^{-1} (\nabla L + w \theta), \qquad
              \theta \leftarrow \theta - \eta s v, \qquad F \approx \bigoplus_l A_l \otimes B_l

    with A the second moment of a layer's inputs (and of the 1 that its bias sees), and B that of the loss's
    gradients at its outputs.

    Parameters
    ----------
    params : iterable of Parameter
        Weights and biases of plain ``Linear`` and ``Conv2d`` layers.
    lr : float in (0, inf), default=0.1
        :math:`\eta`. On a quadratic loss 1 is Newton's step.
    momentum : float in [0, 1), default=0.0
        m.
    damping : float in (0, inf), default=1e-2
        :math:`\delta`, added to F itself, not to its factors.
    weight_decay : float in [0, inf), default=0.0
        w.
    update_interval : int, default=1
        Steps between two computations of F, which takes the batch of the step. More than 1 saves time, and asks for
        more damping: a unit that was silent on an earlier batch seems to have no curvature.
    fisher : {"type-2", "mc", "empirical"}, default="type-2"
        Gradients in B: exact Hessian of the loss in the outputs, C backward passes; labels drawn from the model's
        own distribution, one pass; or the labels at hand, one pass, which is no Fisher matrix far from a good fit.
    max_kl : float in (0, inf) or None, default=1e-2
        The step is scaled down, s < 1, where :math:`\eta^2 g^T (F + \delta I)^{-1} g` exceeds it; None: s = 1.
    random_state : int, default=0
        Seed of the labels for "mc".

    Raises
    ------
    ImportError
        Without curvlinops.
    ValueError
        In `attach`, for a loss or a layer that is not supported: it is named.

    Notes
    -----
    The optimiser must know the module, the loss and the batch: :class:`PenalizedNet` calls `attach` and `observe`.
    F is that of the loss, of dropout-free outputs; penalties and sample weights act through the gradient alone.
    Factors that last for several steps are part of the optimiser's state, so that a checkpoint goes on with them.

    References
    ----------
    J. Martens, R. Grosse. Optimizing neural networks with Kronecker-factored approximate curvature. ICML 2015;
    T. Liang, T. Poggio, A. Rakhlin, J. Stokes. Fisher-Rao metric, geometry, and complexity of neural networks.
    AISTATS 2019, section 5.3.

    Examples
    --------
    On a linear least-squares problem one step of rate 1 goes to the solution, whatever the condition number:

    >>> import torch
    >>> from sklearn_capacity.training import KFAC, PenalizedRegressor
    >>> X = torch.tensor([[1.0, 0.0], [0.0, 1e-2], [1.0, 1e-2]], dtype=torch.float64)
    >>> y = X @ torch.tensor([[1.0], [-100.0]], dtype=torch.float64)
    >>> net = PenalizedRegressor(torch.nn.Linear(2, 1, bias=False).double(), optimizer=KFAC, lr=1.0,
    ...                          optimizer__damping=1e-12, optimizer__max_kl=None, max_epochs=1, verbose=0)
    >>> net.fit(X, y).module_.weight.detach().round(decimals=3)
    tensor([[   1., -100.]], dtype=torch.float64)
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 0.1,
        *,
        momentum: float = 0.0,
        damping: float = 1e-2,
        weight_decay: float = 0.0,
        update_interval: int = 1,
        fisher: str = "type-2",
        max_kl: float | None = 1e-2,
        random_state: int = 0,
    ) -> None:
        _curvlinops()
        settings = {
            "lr": check_interval("lr", lr, 0.0, math.inf, closed="neither"),
            "momentum": check_interval("momentum", momentum, 0.0, 1.0, closed="left"),
            "damping": check_interval("damping", damping, 0.0, math.inf, closed="neither"),
            "weight_decay": check_interval("weight_decay", weight_decay, 0.0, math.inf, closed="left"),
            "update_interval": check_integer("update_interval", update_interval),
            "fisher": check_option("fisher", fisher, FISHERS),
            "max_kl": None if max_kl is None else check_interval("max_kl", max_kl, 0.0, math.inf, closed="neither"),
            "random_state": check_integer("random_state", random_state, 0),
            "n_steps": 0,
            "trained": [],
        }
        super().__init__(params, settings)

    def attach(self, module: nn.Module, criterion: nn.Module) -> None:
        """Say what is trained, and by which loss."""
        if not isinstance(criterion, LOSSES):
            shown = ", ".join(loss.__name__ for loss in LOSSES)
            raise ValueError(f"`optimizer` 'kfac' needs a loss that is one of {shown}, got {type(criterion).__name__}.")
        check_layers(module)
        self._module, self._criterion = module, criterion
        self._batch: tuple[Tensor, Tensor] | None = None
        self._inverse: Callable[[list[Tensor]], list[Tensor]] | None = None

    def observe(self, X: Tensor, y: Tensor) -> None:
        """Say what the next step's batch is."""
        self._batch = (X, y)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Compute the gradient by `closure`, if there is one, and move the parameters."""
        loss = None if closure is None else closure()
        if getattr(self, "_batch", None) is None:
            raise RuntimeError("KFAC needs `attach(module, criterion)` and `observe(X, y)` before a step.")
        self._check_gradients()
        first = self.param_groups[0]
        if self._inverse is None or first["n_steps"] % first["update_interval"] == 0:
            self._inverse = self._damped_inverse()
        first["n_steps"] += 1
        with torch.no_grad():
            self._move(self._inverse)
        self._batch = None  # the data do not stay
        return loss

    def _parameters(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for group in self.param_groups:
            yield from ((group, parameter) for parameter in group["params"] if parameter.requires_grad)

    def _check_gradients(self) -> None:
        unused = {id(parameter) for _, parameter in self._parameters() if parameter.grad is None}
        for name, parameter in self._module.named_parameters():
            if id(parameter) in unused:
                raise ValueError(
                    f"`optimizer` 'kfac' needs a gradient of all that it trains, but {name} has none: it has no part "
                    "in the loss. Freeze it, or take another optimiser."
                )

    def _damped_inverse(self) -> Callable[[list[Tensor]], list[Tensor]]:
        """Multiplication of tensors, shaped as the parameters are, by the inverse of F + damping."""
        operators, settings = _curvlinops(), self.param_groups[0]
        with torch.enable_grad(), evaluating(self._module):
            fisher = operators.KFACLinearOperator(
                self._module,
                self._criterion,
                [parameter for _, parameter in self._parameters()],
                [self._batch],
                check_deterministic=False,
                seed=settings["random_state"] + settings["n_steps"],
                fisher_type=settings["fisher"],
                separate_weight_and_bias=False,
            )
            if not self._recall(fisher):
                fisher.compute_kronecker_factors()
                self._remember(fisher)
        inverse = operators.KFACInverseLinearOperator(fisher, damping=settings["damping"], use_exact_damping=True)
        return lambda tensors: inverse @ tensors

    def _remember(self, fisher: Any) -> None:
        """Keep factors that are to last for several steps in the state, where checkpoints and pickles find them."""
        first = self.param_groups[0]
        if first["update_interval"] > 1:
            self.state[first["params"][0]]["factors"] = {key: dict(getattr(fisher, key)) for key in FACTORS}
            first["trained"] = self._trained()

    def _recall(self, fisher: Any) -> bool:
        """Give kept factors to the operator, if they are of the same parameters and no new ones are due."""
        first = self.param_groups[0]
        kept = self.state[first["params"][0]].get("factors")
        if first["n_steps"] % first["update_interval"] == 0 or not kept or first["trained"] != self._trained():
            return False
        for key in FACTORS:
            setattr(fisher, key, kept[key])
        return True

    def _trained(self) -> list[str]:
        return [name for name, parameter in self._module.named_parameters() if parameter.requires_grad]

    def _move(self, inverse: Callable[[list[Tensor]], list[Tensor]]) -> None:
        pairs = list(self._parameters())
        gradients = []
        for group, parameter in pairs:
            gradients.append(parameter.grad + group["weight_decay"] * parameter)
        directions = inverse(gradients)
        first = self.param_groups[0]
        if first["max_kl"] is not None:
            moves = zip(pairs, gradients, directions, strict=True)
            change = torch.stack([group["lr"] ** 2 * (g * d).sum() for (group, _), g, d in moves]).sum()
            scale = (first["max_kl"] / change.clamp_min(torch.finfo(change.dtype).tiny)).sqrt()
            directions = [direction * scale.clamp_max(1.0) for direction in directions]
        for (group, parameter), direction in zip(pairs, directions, strict=True):
            if group["momentum"]:
                state = self.state[parameter]
                velocity = state.setdefault("velocity", torch.zeros_like(parameter))
                direction = velocity.mul_(group["momentum"]).add_(direction)
            parameter.sub_(direction, alpha=group["lr"])


def check_layers(module: nn.Module) -> None:
    """Refuse, by its name, a parameter whose curvature has no such Kronecker factors."""
    seen: dict[int, str] = {}
    for owner_name, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            where = f"{owner_name or 'the module'!s} ({type(owner).__name__})"
            if type(owner).forward not in (nn.Linear.forward, nn.Conv2d.forward) or name not in ("weight", "bias"):
                cure = "Use a network without batch norm" if _is_batch_norm(owner) else "Freeze it"
                raise ValueError(
                    f"`optimizer` 'kfac' takes plain Linear and Conv2d layers only, but {where} has the parameter "
                    f"`{name}`. {cure}, or take another optimiser."
                )
            if getattr(owner, "groups", 1) != 1:
                raise ValueError(
                    f"`optimizer` 'kfac' takes no grouped convolutions, but {where} has {owner.groups} groups: their "
                    "blocks share no factors, and would cost one pair of matrices for each group."
                )
            if id(parameter) in seen:
                raise ValueError(
                    f"`optimizer` 'kfac' takes no tied weights, but {where} uses those of {seen[id(parameter)]}."
                )
            seen[id(parameter)] = where


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _curvlinops() -> Any:
    try:
        import curvlinops
    except ImportError as error:
        raise ImportError(
            "`optimizer` 'kfac' needs curvlinops. Install it by: pip install 'sklearn_capacity[curvature]'"
        ) from error
    return curvlinops
