"""K-FAC natural gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_capacity._validation import check_integer, check_interval, check_option, check_parameters
from sklearn_capacity.training.kronecker import (
    FISHERS,
    LOSSES,
    LayerFactors,
    damped_solve,
    kronecker_factors,
    trained_layers,
)

__all__ = ["KFAC"]


class KFAC(torch.optim.Optimizer):
    r"""Natural gradient descent with Kronecker-factored curvature.

    .. math:: v \leftarrow m v + s (F + \delta I)^{-1} (\nabla L + w \theta), \qquad
              \theta \leftarrow \theta - \eta v, \qquad F \approx \bigoplus_l A_l \otimes B_l

    with A the second moment of a layer's inputs (with a 1 for the bias), and B that of the loss's
    gradients at its outputs.

    Parameters
    ----------
    params : iterable of Parameter
        Weights and biases of plain ``Linear`` and ``Conv2d`` layers.
    lr : float in (0, inf), default=0.1
        :math:`\eta`. For a quadratic loss, 1 gives Newton's step.
    momentum : float in [0, 1), default=0.0
        m.
    damping : float in (0, inf), default=3e-2
        :math:`\delta`, added to F itself, not to its factors.
    weight_decay : float in [0, inf), default=0.0
        w.
    update_interval : int, default=10
        Number of steps between two computations of F from the current batch. Larger values save time but require more
        damping: a unit that was inactive on an earlier batch appears to have no curvature.
    fisher : {"type-2", "mc", "empirical"}, default="type-2"
        Gradients in B: "type-2" uses the exact Hessian of the loss in the outputs, with C backward passes; "mc" uses
        labels drawn from the model's distribution, with one pass; "empirical" uses the given labels, with one pass,
        which is not a Fisher matrix far from a good fit.
    max_kl : float in (0, inf) or None, default=3e-2
        The step is scaled by s < 1 if :math:`\eta^2 g^T (F + \delta I)^{-1} g / (1 - m)^2` exceeds this value, that is,
        as if momentum had already accumulated steps in one direction. None: s = 1.
    random_state : int, default=0
        Seed of the labels for "mc".

    Raises
    ------
    ValueError
        In `attach`, for an unsupported loss or layer, which the message names.

    Notes
    -----
    The optimiser needs the module, the loss and the batch: :class:`PenalizedNet` calls `attach` and `observe`.
    F is that of the loss without dropout; penalties and sample weights affect only the gradient.
    Its factors are decomposed in float64, from the rows of the batch if there are fewer of them than a layer has
    inputs, so that F takes time O(n_rows^2 n_inputs) for a wide layer and O(n_inputs^3) for a narrow one. With batches
    of 128 and 50 hidden units, an epoch takes about four times as long as one of SGD on a CPU core, for images of 784
    and of 3,072 pixels alike. Factors that are reused for several steps are part of the optimiser's state, so
    checkpoints restore them.

    References
    ----------
    J. Martens, R. Grosse. Optimizing neural networks with Kronecker-factored approximate curvature. ICML 2015;
    T. Liang, T. Poggio, A. Rakhlin, J. Stokes. Fisher-Rao metric, geometry, and complexity of neural networks.
    AISTATS 2019, section 5.

    Examples
    --------
    On a linear least-squares problem, one step of rate 1 reaches the solution for any condition number:

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
        damping: float = 3e-2,
        weight_decay: float = 0.0,
        update_interval: int = 10,
        fisher: str = "type-2",
        max_kl: float | None = 3e-2,
        random_state: int = 0,
    ) -> None:
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
        super().__init__(check_parameters(params), settings)

    def attach(self, module: nn.Module, criterion: nn.Module) -> None:
        """Set the module that is trained, and its loss."""
        if not isinstance(criterion, LOSSES):
            shown = ", ".join(loss.__name__ for loss in LOSSES)
            raise ValueError(f"`optimizer` 'kfac' needs a loss that is one of {shown}, got {type(criterion).__name__}.")
        check_layers(module)
        self._module, self._criterion = module, criterion
        self._batch: tuple[Tensor, Tensor, int] | None = None
        self._factors: dict[str, LayerFactors] | None = None

    def observe(self, X: Tensor, y: Tensor) -> None:
        """Set the batch of the next step."""
        self._batch = (X, y, X._version)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Compute the gradient with `closure`, if given, and update the parameters."""
        loss = None if closure is None else closure()
        batch = getattr(self, "_batch", None)
        if batch is None:
            raise RuntimeError("KFAC needs `attach(module, criterion)` and `observe(X, y)` before a step.")
        self._check_gradients()
        factors = self._current_factors(*batch)
        self.param_groups[0]["n_steps"] += 1
        with torch.no_grad():
            self._move(factors)
        self._batch = None  # do not keep the data
        return loss

    def _parameters(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for group in self.param_groups:
            yield from ((group, parameter) for parameter in group["params"] if parameter.requires_grad)

    def _check_gradients(self) -> None:
        unused = {id(parameter) for _, parameter in self._parameters() if parameter.grad is None}
        for name, parameter in self._module.named_parameters():
            if id(parameter) in unused:
                raise ValueError(
                    f"`optimizer` 'kfac' needs a gradient of every trained parameter, but {name} has none: it does not "
                    "affect the loss. Freeze it, or use another optimiser."
                )

    def _current_factors(self, X: Tensor, y: Tensor, version: int) -> dict[str, LayerFactors]:
        """The factors of an earlier step until they expire; they are stored in the state, for checkpoints."""
        first, trained = self.param_groups[0], self._trained()
        kept = self.state[first["params"][0]].get("factors")
        if first["n_steps"] % first["update_interval"] and kept and first["trained"] == trained:
            return {name: LayerFactors(**factors) for name, factors in kept.items()}
        factors = self._new_factors(X, y, version)
        if first["update_interval"] > 1:
            kept = {name: factors_._asdict() for name, factors_ in factors.items()}
            self.state[first["params"][0]]["factors"], first["trained"] = kept, trained
        return factors

    def _new_factors(self, X: Tensor, y: Tensor, version: int) -> dict[str, LayerFactors]:
        if X._version != version:
            raise ValueError(
                "`module` must not modify its input in place, since `optimizer` 'kfac' needs it. "
                "Let the first operation return a new tensor, as nn.ReLU(inplace=False) does."
            )
        first = self.param_groups[0]
        return kronecker_factors(
            self._module,
            self._criterion,
            X,
            y,
            parameters={id(parameter) for _, parameter in self._parameters()},
            fisher=first["fisher"],
            seed=first["random_state"] + first["n_steps"],
        )

    def _trained(self) -> list[str]:
        return [name for name, parameter in self._module.named_parameters() if parameter.requires_grad]

    def _move(self, factors: dict[str, LayerFactors]) -> None:
        pairs = list(self._parameters())
        gradients = {id(p): p.grad + group["weight_decay"] * p for group, p in pairs}
        directions = self._directions(factors, gradients)
        first = self.param_groups[0]
        if first["max_kl"] is not None:
            parts = [group["lr"] ** 2 * (gradients[id(p)] * directions[id(p)]).sum() for group, p in pairs]
            change = torch.stack(parts).sum() / (1 - first["momentum"]) ** 2
            scale = (first["max_kl"] / change.clamp_min(torch.finfo(change.dtype).tiny)).sqrt()
            directions = {key: direction * scale.clamp_max(1.0) for key, direction in directions.items()}
        for group, parameter in pairs:
            direction = directions[id(parameter)]
            if group["momentum"]:
                state = self.state[parameter]
                velocity = state.setdefault("velocity", torch.zeros_like(parameter))
                direction = velocity.mul_(group["momentum"]).add_(direction)
            parameter.sub_(direction, alpha=group["lr"])

    def _directions(self, factors: dict[str, LayerFactors], gradients: dict[int, Tensor]) -> dict[int, Tensor]:
        """(F + damping)^{-1} times the gradients, with a layer's weight and bias as columns of one matrix."""
        damping = self.param_groups[0]["damping"]
        directions: dict[int, Tensor] = {}
        for name, layer, trained in trained_layers(self._module, set(gradients)):
            tensors = [getattr(layer, key) for key in trained]
            columns = [gradients[id(tensor)].reshape(len(tensor), -1) for tensor in tensors]  # (d_out, inputs or 1)
            solved = damped_solve(factors[name], torch.cat(columns, dim=1), damping)  # (d_out, d_in)
            parts = solved.split([column.shape[1] for column in columns], dim=1)
            directions |= {id(tensor): part.reshape(tensor.shape) for tensor, part in zip(tensors, parts, strict=True)}
        return directions


def check_layers(module: nn.Module) -> None:
    """Refuse, by name, parameters whose curvature has no such Kronecker factors."""
    seen: dict[int, str] = {}
    for owner_name, owner in module.named_modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            where = f"{owner_name or 'the module'!s} ({type(owner).__name__})"
            if type(owner).forward not in (nn.Linear.forward, nn.Conv2d.forward) or name not in ("weight", "bias"):
                cure = "Use a network without batch norm" if _is_batch_norm(owner) else "Freeze it"
                raise ValueError(
                    f"`optimizer` 'kfac' supports only plain Linear and Conv2d layers, but {where} has the parameter "
                    f"`{name}`. {cure}, or use another optimiser."
                )
            if getattr(owner, "groups", 1) != 1:
                raise ValueError(
                    f"`optimizer` 'kfac' does not support grouped convolutions, but {where} has {owner.groups} groups. "
                    "Use groups=1, or another optimiser."
                )
            if id(parameter) in seen:
                raise ValueError(
                    f"`optimizer` 'kfac' does not support tied weights, but {where} uses those of "
                    f"{seen[id(parameter)]}."
                )
            seen[id(parameter)] = where


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)
