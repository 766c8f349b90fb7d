"""Products of weights along the paths that are active at a sample ([GL] proposition 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .._validation import check_interval
from ..graph import Network, Node, interpret
from ..graph.activations import activation_of
from ..graph.evaluate import EVALUATE
from ..graph.max_pooling import pool_indices
from .batch import Batch
from .layer_operators import graph_layers, refuse_unknown
from .memory import Peak
from .pass_limits import at_most
from .paths import Paths, path_rules
from .record import Measure, Measured, logarithm

__all__ = ["MEASURES", "path_activity"]

PURPOSE = "A path activity"
#: The values of a node, and the sums over the paths that lead to it.
Pair = tuple[Tensor, Paths]


def path_activity(network: Network, batch: Batch, *, p: float = 1.0) -> Measured:
    r"""Norm of the weights of paths that are active at a sample, averaged over the data.

    .. math:: \Big( \frac1m \sum_x \sum_{\text{paths}} \Big( L_p(x) \prod_{e \in \text{path}} |w_e| \Big)^p \Big)^{1/p}

    :math:`L_p(x)` is the product of the absolute derivatives of the activations along the path: for a rectifier network
    1 for a path whose units are all on, else 0. Max pooling keeps the path of the largest entry. [GL] adds the same
    products with their signs, which gives the Jacobian, whose entries are at most this sum; with all paths on it is
    `path_norm`. Smaller values suggest better generalisation. Batch norm is folded; biases decide which units are on.

    Parameters
    ----------
    p : float, 0 < p < inf, default=1

    Returns
    -------
    Measured

    Raises
    ------
    UnsupportedLayerError
        If an operator has no rule (attention, layer norm, a product of two branches).

    Notes
    -----
    The cost is that of two forward passes, with a running logarithm of the scale.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, proposition 3.1.

    Examples
    --------
    Of two hidden units only the first is on: its path has the weight 3 times 2.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0], [-1.0]]))
    >>> _ = net[2].weight.data.copy_(torch.tensor([[-2.0, 5.0]]))
    >>> round(measure_capacity(net, torch.tensor([[1.0]]), measures="path_activity")["path_activity"], 6)
    6.0
    """
    p = check_interval("p", p, 0, math.inf, closed="neither")
    graph_layers(network, PURPOSE)  # all finite
    dtype = torch.promote_types(network.dtype, torch.float32)  # of sums, whose terms are not negative
    rules = _rules(network, p, dtype)
    refuse_unknown(network.unrolled_graph, rules, PURPOSE)

    def on_chunk(X: Tensor) -> tuple[float, float]:
        """The sum over samples and paths, and the logarithm of its scale."""
        with torch.no_grad():
            ones = torch.ones(X.shape, dtype=dtype, device=X.device)  # (n, *input_shape)
            _, (total, log_scale) = interpret(network.unrolled_graph, rules, (X, (ones, 0.0)), purpose=PURPOSE)
        return float(total.double().sum()), log_scale

    parts = batch.map(on_chunk)
    top = max(log_scale for _, log_scale in parts)
    total = math.fsum(value * math.exp(log_scale - top) for value, log_scale in parts)
    return Measured.from_log((logarithm(total) + top - math.log(batch.n_samples)) / p)


def _rules(network: Network, p: float, dtype: torch.dtype) -> dict[str, Callable[..., Pair]]:
    """The rules of the path norm with the nodes' values, which determine the active units and pooled entries."""
    over_paths = {**path_rules(network, p, PURPOSE, dtype), "activation": None, "max_pool": None}

    def activation(node: Node, pair: Pair) -> Pair:
        z, (values, log_scale) = pair
        function, args = activation_of(node)
        slope = function.derivative(z, *args).abs().to(dtype)
        return function.value(z, *args), (values * slope.pow(p), log_scale)

    def max_pool(node: Node, pair: Pair) -> Pair:
        z, (values, log_scale) = pair
        pooled, where = pool_indices(node, z)
        return pooled, (_picked(node, where, values), log_scale)

    def both(op: str, rule: Callable[..., Paths]) -> Callable[..., Pair]:
        def apply(node: Node, *pairs: Pair) -> Pair:
            values = EVALUATE[op](node, *(value for value, _ in pairs))
            return values, rule(node, *(paths for _, paths in pairs))

        return apply

    paired = {op: both(op, rule) for op, rule in over_paths.items() if rule is not None}
    return {**paired, "activation": activation, "max_pool": max_pool}


def _picked(node: Node, where: Tensor, values: Tensor) -> Tensor:
    """The entries at the maxima; the indices run over the pooled axes."""
    nd = node.params["nd"]
    lead = where.shape[: where.dim() - nd]
    return values.reshape(*lead, -1).gather(-1, where.reshape(*lead, -1)).reshape(where.shape)


MEASURES = (
    Measure(
        "path_activity",
        path_activity,
        family="norm",
        source="[GL] proposition 3.1",
        needs=frozenset({"graph", "data"}),
        cost="forward",
        invariances=frozenset({"permutation", "layer_rescaling", "node_rescaling"}),
        memory=Peak(layers=4, passes=4),
        limits=at_most(2),
    ),
)
