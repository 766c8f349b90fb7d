"""The size of a network, and its distance from initialisation ([EG] section 2.1, [FR] figure 1).

`parameter_count`, `parameter_norm` and `vc_dimension` use one set of parameters: all trained parameters of the module,
whether or not its output depends on them; a tied one counts once, a frozen one does not count, and a model with one
logit counts only the parameters of that logit. The count is that of the module's parameters. Norm and dimension use the
effective ones: where batch norm is folded or a weight is computed from other parameters (weight norm), the result
replaces them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .._validation import check_option
from ..derivatives.parameter_groups import parameter_groups
from ..graph import Network, Node, operator_of
from ..graph import weight_layers as weight_layers_of
from ..graph.fold import split_head
from ..graph.selections import root
from ..linalg.entry_norms import stable_norm
from .batch import Batch
from .layer_operators import layer_weight, left_out, weight_layers
from .memory import Peak
from .pass_limits import NO_PASSES
from .record import Measure, Measured

__all__ = ["MEASURES", "distance_from_initialization", "parameter_count", "parameter_norm", "vc_dimension"]

DISTANCES = ("frobenius", "spectral")
MATRICES = ("linear", "conv", "conv_transpose")


def parameter_count(network: Network, batch: Batch) -> Measured:
    """Number of trainable parameters.

    All trainable parameters of the module count, whether or not its output depends on them: batch norm is not folded, a
    tied tensor counts once, a frozen one does not count. In the classical view, smaller values suggest better
    generalisation; large networks contradict it.

    Notes
    -----
    Uses the weights only, at negligible cost.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, section 2.1.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> measure_capacity(nn.Linear(3, 2), measures="parameter_count")["parameter_count"]
    8.0
    """
    return Measured(float(network.parameter_count))


def vc_dimension(network: Network, batch: Batch) -> Measured:
    r"""Depth times number of parameters, the VC dimension of rectifier networks up to logarithms and constants.

    .. math:: d \cdot \dim(w)

    d is the number of weight layers that the output depends on, and dim(w) is the number of the parameters that
    `parameter_count` counts, both after folding batch norm. In the classical view, smaller values suggest better
    generalisation.

    Notes
    -----
    Uses the weights only.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, eq. 1.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))  # 2 layers, 8 + 3 parameters
    >>> measure_capacity(net, measures="vc_dimension")
    {'vc_dimension': 22.0}
    """
    size = sum(tensor.numel() for tensor in _effective_parameters(network))
    return Measured(float(len(weight_layers(network, "A VC dimension")) * size), info=left_out(network))


def parameter_norm(network: Network, batch: Batch) -> Measured:
    r"""Euclidean norm of the vector of all parameters.

    .. math:: \|\theta\|_2

    These are the parameters that `parameter_count` counts, after folding batch norm and applying parametrisations.
    Smaller values suggest better generalisation.

    Notes
    -----
    Uses the weights only.

    References
    ----------
    Liang, Poggio, Rakhlin, Stokes (2019), Fisher-Rao metric, geometry, and complexity of neural networks, figure 1.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 1)
    >>> _ = net.weight.data.fill_(3.0), net.bias.data.fill_(-4.0)
    >>> measure_capacity(net, measures="parameter_norm")
    {'parameter_norm': 5.0}
    """
    tensors = _effective_parameters(network)
    if not tensors:
        return Measured(0.0)
    norms = torch.stack([stable_norm(tensor.detach().double().flatten(), 2) for tensor in tensors])  # (tensors,)
    return Measured(float(stable_norm(norms, 2)))


def _effective_parameters(network: Network) -> list[Tensor]:
    """The parameters defined in the module docstring, in their effective form."""
    parameters = {name: p for name, p in network.module.named_parameters() if p.requires_grad}
    names = {id(parameter): name for name, parameter in parameters.items()}
    computed: list[Tensor] = []
    sources: set[str] = set()
    plain: set[str] = set()
    for group in parameter_groups(split_head(network.graph), without_rule=True):
        read = {names.get(id(root(use.tensor))) for use in group.uses}
        if None in read:
            computed.append(group.values)
            sources |= {source for use in group.uses for source in use.sources}
        plain |= {name for name in read if name is not None}
    return computed + [p for name, p in parameters.items() if name in plain or name not in sources]


def distance_from_initialization(network: Network, batch: Batch, *, norm: str = "frobenius") -> Measured:
    r"""Sum over the layers of the distances of their weights from those before training.

    .. math:: \sum_{l=1}^d \|W_l - W_l^0\|

    The weights are the matrices and kernels of the module (the effective ones of a parametrised layer). Batch norm is
    **not** folded: its scales and shifts are ignored, like all biases. A tied matrix counts once, and a frozen one adds
    0. Smaller values suggest better generalisation.

    Parameters
    ----------
    norm : "frobenius" or "spectral", default="frobenius"
        Frobenius norm of the difference of the kernels, or its spectral norm; for the latter, convolutions are treated
        as linear operators at their input size.

    Returns
    -------
    Measured
        With one row per weight layer.

    Raises
    ------
    NotDefinedError
        If the weights before training are unknown: estimators of this package store them (`initial_state_`); for any
        other model pass them as `initial_state`.

    Notes
    -----
    Uses the weights only; with "spectral", the cost is that of `spectral_norm`.

    References
    ----------
    Nagarajan, Kolter (2019), Generalization in deep networks: the role of distance from initialization.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity import NetworkClassifier, measure_capacity
    >>> X, y = [[0.0, 1.0], [1.0, 0.0]] * 10, [0, 1] * 10
    >>> model = NetworkClassifier(hidden_layer_sizes=(), max_epochs=3, random_state=0).fit(X, y)
    >>> moved, before = model.module_.state_dict(), model.initial_state_
    >>> by_hand = sum(float((moved[k] - before[k]).norm()) for k in moved if moved[k].dim() == 2)
    >>> name = "distance_from_initialization"
    >>> bool(abs(measure_capacity(model, measures=name)[name] - by_hand) < 1e-6)
    True
    """
    check_option("norm", norm, DISTANCES)
    rows: list[dict[str, Any]] = []
    for node, change, input_shape in _moved_layers(network):
        if norm == "spectral":
            value = operator_of(node, change, input_shape).norm_lower().value
        else:
            value = float(stable_norm(change.flatten(), 2))
        rows.append({"layer": node.label, "value": value})
    return Measured(math.fsum(row["value"] for row in rows), per_layer=rows, info=left_out(network))


def _moved_layers(network: Network) -> Iterator[tuple[Node, Tensor, tuple[int, ...]]]:
    """Every layer with a trained matrix or kernel, its change and its input shape; tied layers once."""
    states = network.tensors(), network.initial_tensors()
    with torch.no_grad():
        graphs = [network.program.bind(state, folded=False) for state in states]
        now, before = (weight_layers_of(graph, folded=False, shown=network.shown) for graph in graphs)
    seen = set()
    for node, start in zip(now.nodes, before.nodes, strict=True):
        if node.op not in MATRICES or not node.trainable[0]:
            continue
        assert node.weight is not None
        key = (node.sources[0], node.weight.numel(), node.weight.storage_offset())
        if key not in seen:
            seen.add(key)
            yield node, layer_weight(node) - layer_weight(start), node.params["input_shape"]


_COMMON: dict[str, Any] = {"family": "size", "lower_is_better": True, "limits": NO_PASSES}
_FUNCTION = frozenset({"permutation", "layer_rescaling", "node_rescaling"})

MEASURES = (
    Measure(
        "parameter_count",
        parameter_count,
        source="[EG] 2.1",
        needs=frozenset({"weights"}),
        unit="parameters",
        invariances=_FUNCTION,
        **_COMMON,
    ),
    Measure(
        "vc_dimension",
        vc_dimension,
        source="[EG] eq. 1",
        needs=frozenset({"layers"}),
        unit="parameters",
        invariances=_FUNCTION,
        **_COMMON,
    ),
    Measure(
        "parameter_norm",
        parameter_norm,
        source="[FR] figure 1",
        memory=Peak(layers=2),
        needs=frozenset({"graph"}),
        invariances=frozenset({"permutation"}),
        **_COMMON,
    ),
    Measure(
        "distance_from_initialization",
        distance_from_initialization,
        source="Nagarajan, Kolter (2019)",
        needs=frozenset({"layers", "initial_state"}),
        memory=Peak(vectors=0.5, layers=3),
        **_COMMON,
    ),
)
