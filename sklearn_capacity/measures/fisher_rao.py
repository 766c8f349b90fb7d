"""The Fisher-Rao norm by one tangent sweep ([FR] definition 2)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._validation import check_option
from ..derivatives.output_fisher import DISTRIBUTIONS, fisher_form
from ..derivatives.parameter_jacobian import AutogradJacobian
from ..derivatives.parameter_tangent import parameter_tangent
from ..derivatives.parameter_uses import which_are_weights
from ..graph import Network, UnsupportedLayerError
from .batch import Batch
from .losses import targets
from .memory import Peak
from .pass_limits import Parts
from .record import Measure, Measured, NotDefinedError

__all__ = ["MEASURES", "TANGENT", "fisher_rao_norm", "tangent_limits"]

PARAMETERS = ("all", "weights")
#: Of a tangent sweep: every signal with its tangent; by automatic differentiation the direction too.
TANGENT = Peak(vectors=1, passes=4, outputs=4)


def fisher_rao_norm(
    network: Network,
    batch: Batch,
    *,
    distribution: str = "empirical",
    parameters: str = "all",
    squared: bool = False,
    per_layer: bool = False,
) -> Measured:
    r"""Length of the parameters in the metric of the Fisher information.

    .. math:: \|\theta\|_{fr} = \langle \theta, I(\theta)\, \theta \rangle^{1/2}

    with :math:`u = J_\theta f \cdot \theta` and :math:`p = \mathrm{softmax}(f)`. Cross-entropy: the mean over the data
    of :math:`\langle p - e_y, u \rangle^2` (empirical) or of the variance of :math:`u_k` under :math:`k \sim p`
    (model). Squared loss, a Gaussian of unit variance: :math:`\langle f - y, u \rangle^2` or :math:`\|u\|^2`. Absolute
    loss, one output: :math:`u^2`. Hinge loss, empirical only: :math:`(u_k - u_y)^2` where the margin to the nearest
    rival k is below 1, else 0. Smaller values suggest better generalisation; invariant under node-wise rescaling of
    rectifier networks.

    Parameters
    ----------
    distribution : "empirical" or "model", default="empirical"
        The data's labels, or labels distributed as the model predicts (which needs no y).
    parameters : "all" or "weights", default="all"
        "weights" excludes biases, shifts and scales of any shape, and keeps weights of matrix products, convolutions
        and embeddings. Batch norm is folded; frozen parameters are ignored.
    squared : bool, default=False
        Return the quadratic form instead of its root ([MF] eq. 16).
    per_layer : bool, default=False
        Divide by the number of weight layers d ([FR] figure 3), before squaring.

    Returns
    -------
    Measured

    Raises
    ------
    NotDefinedError
        For the absolute loss with several outputs, for the hinge loss with the model's distribution, or if nothing is
        trained.

    Notes
    -----
    The cost is 1.1 to 2 forward passes: one forward pass and, from the third layer on, its products once more. No
    gradient is formed. If an operator with parameters has no tangent rule (a recurrent layer), reverse mode is
    applied twice, at about four passes.

    References
    ----------
    Liang, Poggio, Rakhlin, Stokes (2019), Fisher-Rao metric, geometry, and complexity of neural networks, definition 2
    and theorem 3.1.

    Examples
    --------
    A linear model f = w x with the absolute loss has u = w x, so the norm is abs(w) times the root mean square of x.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 1, bias=False)
    >>> _ = net.weight.data.fill_(-3.0)
    >>> X, y = torch.tensor([[1.0], [-1.0]]), torch.tensor([0.0, 0.0])
    >>> measure_capacity(net, X, y, "fisher_rao_norm", loss="absolute")
    {'fisher_rao_norm': 3.0}
    """
    check_option("distribution", distribution, DISTRIBUTIONS)
    check_option("parameters", parameters, PARAMETERS)
    if not network.parameters:
        raise NotDefinedError("The Fisher-Rao norm needs trainable parameters, and all are frozen.")
    biases = parameters == "all"
    f, u = batch.once(("tangent", biases), lambda: _tangents(network, batch, biases))
    y = None if distribution == "model" or batch.loss == "absolute" else targets(batch)
    form = fisher_form(f, u, y, str(batch.loss), distribution).mean().item()
    value = math.sqrt(max(form, 0.0))
    if per_layer:
        value /= len(network.weight_layers.nodes)
    return Measured(value**2 if squared else value)


def _tangents(network: Network, batch: Batch, biases: bool) -> tuple[Tensor, Tensor]:
    """Logits and tangents of all samples in float64; through the graph where its operators allow it."""
    try:
        graph = network.graph
        with torch.no_grad():
            pairs = batch.map(lambda X: parameter_tangent(graph, X, biases=biases))
    except UnsupportedLayerError:
        jacobian = AutogradJacobian(network)
        theta = jacobian.vector.tensors
        counted = [True] * len(theta) if biases else which_are_weights(jacobian.vector, batch.X[:1])
        along = [p if counts else torch.zeros_like(p) for p, counts in zip(theta, counted, strict=True)]

        def raw(X: Tensor) -> tuple[Tensor, Tensor]:
            point = jacobian.at(X)
            return point.logits, point.push(along)

        pairs = batch.map(raw)
    f, u = (torch.cat(parts).double().flatten(1) for parts in zip(*pairs, strict=True))  # (n, C) each
    batch.keep_logits(f)
    return f, u


def tangent_limits(network: Network, batch: Batch, *, parameters: str = "all", **params: Any) -> Parts:
    """A tangent sweep with the weights takes three passes; without a graph, reverse mode twice takes five."""
    return {("tangent", parameters): 5}


MEASURES = (
    Measure(
        "fisher_rao_norm",
        fisher_rao_norm,
        family="fisher",
        lower_is_better=True,
        source="[FR] definition 2",
        needs=frozenset({"data", "labels", "loss"}),
        cost="forward",
        invariances=frozenset({"permutation", "layer_rescaling", "node_rescaling"}),
        memory=TANGENT,
        limits=tangent_limits,
    ),
)
