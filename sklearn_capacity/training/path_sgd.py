"""Path-SGD: gradient descent that is invariant to rescaling of a rectifier network's nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from sklearn_capacity._validation import check_integer, check_interval, check_parameters
from sklearn_capacity.derivatives.modes import evaluating
from sklearn_capacity.graph import named_tensors, trace

__all__ = ["PathSGD"]

#: linear layers; the other allowed layers keep or move non-negative entries
_LINEAR = (nn.Linear, nn.Conv2d)
_CARRIERS = (nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Flatten, nn.Unflatten, nn.MaxPool2d, nn.Dropout, nn.Dropout2d)


class PathSGD(torch.optim.Optimizer):
    r"""Gradient descent in the metric of the path norm, for chains of linear maps and rectifiers.

    .. math:: w_e \leftarrow w_e - \frac{\eta}{\kappa_e} \frac{\partial L}{\partial w_e}, \qquad
              \kappa_e = \frac{\partial}{\partial w_e^2} \sum_{\text{paths } p} \prod_{f \in p} w_f^2

    so that :math:`\kappa_e` sums, over all paths through the edge e, the squared weights of the others. Biases are
    edges from a unit with the constant value 1.

    Parameters
    ----------
    params : iterable of Parameter
    lr : float in (0, inf), default=0.01
        :math:`\eta`.
    update_interval : int, default=1
        Number of steps between two computations of :math:`\kappa`.

    Raises
    ------
    ValueError
        In `attach`, for a layer that is not a linear map, rectifier, max pooling, reshaping or dropout; at the first
        step, for such an operation, or a mean or a max pooling, in the module's own code.

    Notes
    -----
    Multiplying a hidden unit's weights and bias by c and its outgoing weights by 1 / c changes neither the function
    nor, up to the same factors, the steps. Kappa costs one forward and one backward pass of a single sample, in
    float64. Max pooling counts the paths of all its inputs. Weights without paths do not change. There is no momentum
    and no weight decay, since the latter depends on the scale.

    References
    ----------
    B. Neyshabur, R. Salakhutdinov, N. Srebro. Path-SGD: path-normalized optimization in deep neural networks.
    NIPS 2015, eq. 9.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sklearn_capacity import NetworkClassifier
    >>> X = np.random.default_rng(0).normal(size=(60, 3))
    >>> model = NetworkClassifier((10,), optimizer="path_sgd", learning_rate=1.0, random_state=0)
    >>> model.fit(X, X[:, 0] > 0).score(X, X[:, 0] > 0) > 0.9
    True
    """

    def __init__(self, params: Iterable[Any], lr: float = 0.01, *, update_interval: int = 1) -> None:
        settings = {
            "lr": check_interval("lr", lr, 0.0, math.inf, closed="neither"),
            "update_interval": check_integer("update_interval", update_interval),
            "n_steps": 0,
        }
        super().__init__(check_parameters(params), settings)

    def attach(self, module: nn.Module, criterion: nn.Module) -> None:
        """Set the network that is trained; the loss does not matter."""
        for name, layer in module.named_modules():
            leaf = not any(True for _ in layer.children())
            plain = isinstance(layer, _CARRIERS) or type(layer).forward in [kind.forward for kind in _LINEAR]
            if leaf and not plain:
                raise ValueError(
                    "`optimizer` 'path_sgd' supports only chains of Linear, Conv2d, ReLU, max pooling and dropout, "
                    f"but {name or 'the module'} is a {type(layer).__name__}. Use another optimiser."
                )
        if getattr(self, "_module", None) is not module:
            self._is_checked = False
        self._module = module
        self._sample: Tensor | None = None
        self._scales: dict[int, Tensor] = {}

    def observe(self, X: Tensor, y: Tensor) -> None:
        """Set the shape of the samples; their values do not matter."""
        self._sample = X[:1]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Compute the gradient with `closure`, if given, and update the parameters."""
        loss = None if closure is None else closure()
        sample: Tensor | None = getattr(self, "_sample", None)
        if sample is None:
            raise RuntimeError("PathSGD needs `attach(module, criterion)` and `observe(X, y)` before a step.")
        self._scales = self._current_scales(sample)
        self.param_groups[0]["n_steps"] += 1
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad * self._scales[id(parameter)], alpha=group["lr"])
        self._sample = None
        return loss

    def _current_scales(self, sample: Tensor) -> dict[int, Tensor]:
        """1 / kappa, current or from an earlier step; scales that are reused are in the state, for checkpoints."""
        steps, interval = (self.param_groups[0][key] for key in ("n_steps", "update_interval"))
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        if steps % interval and self._scales:
            return self._scales
        if steps % interval and all("scale" in self.state[parameter] for parameter in parameters):
            return {id(parameter): self.state[parameter]["scale"] for parameter in parameters}
        if not self._is_checked:
            check_functions(self._module, sample)
            self._is_checked = True
        scales = path_scales(self._module, sample)
        if interval > 1:
            for parameter in parameters:
                self.state[parameter]["scale"] = scales[id(parameter)]
        return scales


def check_functions(module: nn.Module, sample: Tensor) -> None:
    """Refuse unsupported operations in the module's own code, if it can be traced."""
    try:
        graph = trace(module, tuple(sample.shape[1:]), dtype=sample.dtype).bind(named_tensors(module))
    except Exception:  # even if a user's module fails here, its layers have been checked
        return
    for node in graph.nodes:
        kind = node.params.get("kind", node.op)
        owner = module.get_submodule(node.scope)
        averages = node.op == "avg_pool" or (node.op == "reduce" and node.params["factor"] != 1)
        functional = node.op == "max_pool" and not isinstance(owner, nn.MaxPool2d)
        smooth = node.op == "activation" and kind not in ("relu", "leaky_relu")
        if averages or functional or smooth or node.op in ("opaque", "function", "center", "separable"):
            raise ValueError(
                f"`optimizer` 'path_sgd' supports only linear maps, rectifiers and nn.MaxPool2d, but "
                f"{node.scope or 'the module'} computes `{kind}`. Use another optimiser."
            )


def path_scales(module: nn.Module, sample: Tensor) -> dict[int, Tensor]:
    r"""1 / kappa of each parameter, by its id; 0 for weights without paths.

    The sum over paths is the network's output on a sample of ones when all weights are squared (rectifiers then have no
    effect); since it is linear in each squared weight, its derivatives are the kappas.
    """
    squares, originals = {}, {}
    for name, parameter in module.named_parameters():
        squares[name] = parameter.detach().double().square().requires_grad_(True)
        originals[name] = parameter
    # the strength of a skip is also an edge
    buffers = {name: b.double().square() for name, b in module.named_buffers() if b.is_floating_point()}
    pools = [layer for layer in module.modules() if isinstance(layer, nn.MaxPool2d)]
    handles = [pool.register_forward_hook(_sum_pool) for pool in pools]
    try:
        with torch.enable_grad(), evaluating(module):
            ones = torch.ones_like(sample, dtype=torch.float64)
            total = torch.func.functional_call(module, {**squares, **buffers}, (ones,)).sum()
            kappas = torch.autograd.grad(total, list(squares.values()), allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    scales = {}
    for (name, parameter), kappa in zip(originals.items(), kappas, strict=True):
        kappa = torch.zeros_like(squares[name]) if kappa is None else kappa
        scales[id(parameter)] = torch.where(kappa > 0, 1 / kappa, 0.0).to(parameter.dtype)
    return scales


def _sum_pool(pool: nn.MaxPool2d, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """All inputs of a window in the place of the largest."""
    return functional.avg_pool2d(
        inputs[0], pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode, divisor_override=1
    )
