"""Separation of the classes inside the network, and consistency between samples (Natekar, Sharma 2020)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .._validation import NotDefinedError, check_instance, check_integer, closest, shown
from ..graph import Network, NetworkGraph, evaluate
from .batch import Batch
from .hidden_margins import layer_inputs
from .memory import Peak
from .pass_limits import UNSHARED, Parts, at_most
from .record import Measure, Measured

__all__ = ["MEASURES", "davies_bouldin", "davies_bouldin_mixup", "mixup_error"]


def davies_bouldin(network: Network, batch: Batch, *, layer: str | None = None) -> Measured:
    r"""Davies-Bouldin index of the classes in a hidden representation.

    .. math:: \frac1K \sum_{a} \max_{b \ne a} \frac{s_a + s_b}{\| c_a - c_b \|_2}, \qquad
        s_a = \frac{1}{m_a} \sum_{y_i = a} \| h(x_i) - c_a \|_2

    :math:`c_a` is the mean of the representation h over the :math:`m_a` samples of class a, one of the K classes in y.
    Smaller (classes are tight and far apart) suggests better generalisation; infinite if two classes have one mean.
    Batch norm is folded.

    Parameters
    ----------
    layer : str, default=None
        Name of a weight layer, whose input is h. None uses the first hidden representation, that is, the input of the
        second weight layer.

    Returns
    -------
    Measured
        The report shows the layer.

    Raises
    ------
    NotDefinedError
        With fewer than two classes in y; without `layer`, if there is no hidden layer.
    UnsupportedLayerError
        If the network cannot be traced.
    ValueError
        If there is no weight layer of this name.

    Notes
    -----
    The cost is two forward passes: means, then distances. The published code differs: it takes the mean over b instead
    of the maximum, pools images by 4 x 4, and averages the index over batches of 150 augmented samples.

    References
    ----------
    Davies, Bouldin (1979), A cluster separation measure. Natekar, Sharma (2020), Representation based complexity
    measures for predicting generalization in deep learning, section 3.1.

    Examples
    --------
    Both classes have the spread 1, and their means the distance 10.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2))
    >>> _ = net[0].weight.data.fill_(1.0), net[0].bias.data.fill_(1.0)
    >>> X, y = torch.tensor([[-1.0], [1.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1])
    >>> round(measure_capacity(net, X, y, "davies_bouldin")["davies_bouldin"], 6)
    0.2
    """
    name, label = _representation(network, layer)
    classes = batch.classes
    present, index = torch.unique(classes, return_inverse=True)
    if len(present) < 2:
        raise NotDefinedError(f"The Davies-Bouldin index needs at least two classes, but y has {len(present)}.")
    counts = torch.bincount(index).double()  # (K,)

    part = NetworkGraph(network.graph.nodes, name).live()

    def features(X: Tensor) -> Tensor:
        with torch.no_grad():
            return evaluate(part, X).flatten(1).double()  # (n, D)

    centers = counts.new_zeros(len(present), math.prod(part[name].shape))  # (K, D)
    batch.map(lambda X, index: centers.index_add_(0, index, features(X)), index)
    centers /= counts[:, None]
    # (n,)
    lengths = batch.cat(lambda X, index: torch.linalg.vector_norm(features(X) - centers[index], dim=1), index)
    spreads = lengths.new_zeros(len(present)).index_add_(0, index, lengths) / counts  # (K,)
    # (K, K)
    ratios = (spreads[:, None] + spreads) / torch.cdist(centers, centers, compute_mode="donot_use_mm_for_euclid_dist")
    ratios.fill_diagonal_(-math.inf)
    ratios = ratios.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf)  # no spread around one mean
    return Measured(float(ratios.amax(1).mean()), info={"layer": label})


def _representation(network: Network, layer: str | None) -> tuple[str, str]:
    """The input node of a weight layer, and the layer's label."""
    readers = layer_inputs(network)
    if layer is None:
        if len(readers) < 2:
            raise NotDefinedError("The Davies-Bouldin index needs a hidden layer, but the network has none.")
        return list(readers.items())[1]
    check_instance("layer", layer, str, "the name of a weight layer or None")
    names = {label: name for name, label in readers.items()}
    if layer not in names:
        hint = closest(layer, names)
        raise ValueError(f"`layer` must be the name of a weight layer, got {shown(layer)}.{hint and ' ' + hint}")
    return names[layer], layer


def mixup_error(network: Network, batch: Batch, *, n_pairs: int = 10_000) -> Measured:
    r"""Error rate on the midpoints between samples of one class.

    .. math:: 1 - \frac1K \sum_a \Pr_{y_i = y_j = a} \Big[ \arg\max_k f_k \big( \tfrac12 (x_i + x_j) \big) = a \Big]

    over the K classes with at least two samples. Smaller (classes are consistent between samples) suggests better
    generalisation. Between 0 and 1.

    Parameters
    ----------
    n_pairs : int >= 1, default=10000
        Total number of pairs, equal for all classes, drawn with replacement. In a class with at most as many pairs,
        each pair is used once.

    Returns
    -------
    Measured
        With the standard error from the classes whose pairs were drawn, as if there were one more error in all; 0 if
        all pairs were used.

    Raises
    ------
    NotDefinedError
        If no class has two samples.

    Notes
    -----
    The cost is one forward pass per pair. The published code takes the mean cross-entropy of the midpoints instead of
    the error rate, for all pairs within batches of some ten samples per class.

    References
    ----------
    Natekar, Sharma (2020), Representation based complexity measures for predicting generalization in deep learning,
    section 3.2 (label-wise mixup).

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X, y = torch.tensor([[1.0, 0.0], [-2.0, 0.0], [3.0, 0.0]]), torch.tensor([0, 0, 0])
    >>> round(measure_capacity(nn.Identity(), X, y, "mixup_error")["mixup_error"], 4)  # the midpoint of 1 and -2
    0.3333
    """
    check_integer("n_pairs", n_pairs)
    classes = batch.classes
    groups = [g for g in (torch.nonzero(classes == c)[:, 0] for c in torch.unique(classes)) if len(g) > 1]
    if not groups:
        raise NotDefinedError("The error under mixup needs a class of two samples or more.")
    generator, each = batch.generator(), max(1, n_pairs // len(groups))
    rates, variances = [], []
    for members in groups:
        n = len(members)
        everything = n * (n - 1) // 2 <= each
        first, second = _all_pairs(n) if everything else _drawn_pairs(n, each, generator)
        wrong = _errors(batch, members[first.to(members.device)], members[second.to(members.device)])
        rates.append(wrong)
        if not everything:
            variances.append(wrong * (1 - wrong) / each)
    k = len(groups)
    # one more error in all, since none among the draws does not prove a rate of 0
    error = math.sqrt(math.fsum(variances) + each**-2) / k if variances else 0.0
    return Measured(math.fsum(rates) / k, standard_error=error, info={"classes": k})


def _all_pairs(n: int) -> tuple[Tensor, Tensor]:
    first, second = torch.triu_indices(n, n, 1, device="cpu")
    return first, second


def _drawn_pairs(n: int, n_pairs: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    first = torch.randint(n, (n_pairs,), generator=generator, device="cpu")
    # of the n - 1 others: first is skipped
    second = torch.randint(n - 1, (n_pairs,), generator=generator, device="cpu")
    return first, second + (second >= first)


def _errors(batch: Batch, first: Tensor, second: Tensor) -> float:
    """The share of midpoints that are classified differently from their ends."""

    def wrong(first: Tensor, second: Tensor) -> Tensor:
        middle = (batch.X[first] + batch.X[second]) / 2  # (pairs, ...)
        with torch.no_grad():
            return (batch.network.forward(middle).argmax(1) != batch.classes[first]).double().sum()

    pieces = zip(first.split(batch.chunk_size), second.split(batch.chunk_size), strict=True)
    return float(torch.stack([wrong(*piece) for piece in pieces]).sum()) / len(first)


def davies_bouldin_mixup(
    network: Network, batch: Batch, *, layer: str | None = None, n_pairs: int = 10_000
) -> Measured:
    r"""Davies-Bouldin index of a hidden representation times the error rate under mixup.

    .. math:: \mathrm{DBI} \cdot \mathrm{error}

    from `davies_bouldin` and `mixup_error`: the measure that won the competition on predicting generalization in deep
    learning in 2020. Smaller values suggest better generalisation; 0 if no midpoint is misclassified.

    Parameters
    ----------
    layer : str, default=None
        As for `davies_bouldin`.
    n_pairs : int >= 1, default=10000
        As for `mixup_error`.

    Returns
    -------
    Measured
        With the standard error from that of the error rate; both factors are in `info`.

    Notes
    -----
    The cost is two forward passes and one per pair.

    References
    ----------
    Natekar, Sharma (2020), Representation based complexity measures for predicting generalization in deep learning.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    >>> X, y = torch.tensor([[-1.0], [1.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1])
    >>> names = ["davies_bouldin", "mixup_error", "davies_bouldin_mixup"]
    >>> index, error, both = measure_capacity(net, X, y, names).values()
    >>> abs(both - index * error) < 1e-12
    True
    """
    check_integer("n_pairs", n_pairs)
    index, error = davies_bouldin(network, batch, layer=layer), mixup_error(network, batch, n_pairs=n_pairs)
    value = index.value * error.value if error.value else 0.0
    spread = index.value * error.standard_error if error.standard_error else 0.0
    return Measured(value, standard_error=spread, info={"index": index.value, "error": error.value, **index.info})


def _center_bytes(network: Network, batch: Batch, *, layer: str | None = None, **params: Any) -> float:
    """The means of the classes, and the differences from them of one sample."""
    if not batch.has_labels:
        return 0.0
    name, _ = _representation(network, layer)
    return 8.0 * math.prod(network.graph[name].shape) * (len(torch.unique(batch.y)) + 2)


def _pair_limits(network: Network, batch: Batch, *, n_pairs: int, **params: Any) -> Parts:
    n, counts = batch.n_samples, torch.unique(batch.classes, return_counts=True)[1].tolist()
    each = max(1, n_pairs // max(1, sum(count > 1 for count in counts)))
    return {UNSHARED: sum(min(each, count * (count - 1) // 2) for count in counts) / n}


_PGDL: dict[str, Any] = {
    "family": "separability",
    "source": "Natekar, Sharma (2020)",
    "tasks": ("classification",),
}
_PER_LAYER = frozenset({"permutation", "layer_rescaling"})

MEASURES = (
    Measure(
        "davies_bouldin",
        davies_bouldin,
        needs=frozenset({"graph", "data", "labels"}),
        cost="forward",
        invariances=_PER_LAYER,
        memory=Peak(passes=2, more=_center_bytes),
        limits=at_most(2),
        **_PGDL,
    ),
    Measure(
        "mixup_error",
        mixup_error,
        needs=frozenset({"data", "labels"}),
        cost="draws",
        memory=Peak(passes=2),
        limits=_pair_limits,
        unit="error rate",
        invariances=_PER_LAYER | {"node_rescaling"},
        stochastic=True,
        **_PGDL,
    ),
    Measure(
        "davies_bouldin_mixup",
        davies_bouldin_mixup,
        needs=frozenset({"graph", "data", "labels"}),
        cost="draws",
        memory=Peak(passes=2, more=_center_bytes),
        limits=lambda network, batch, **params: {UNSHARED: 2 + _pair_limits(network, batch, **params)[UNSHARED]},
        invariances=_PER_LAYER,
        stochastic=True,
        **_PGDL,
    ),
)
