"""Margins at the input and inside the network, relative to the spread of the layer (Jiang et al. 2019)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._validation import NotDefinedError, check_instance, check_option, closest, shown
from ..graph import Network, Node, evaluate
from ..graph.recurrent import is_recurrent
from ..graph.weight_layers import labelled
from .batch import Batch
from .memory import Peak
from .record import Measure, Measured

__all__ = ["MEASURES", "STATISTICS", "hidden_margin", "layer_inputs", "layer_margins"]

#: a larger margin counts as infinite
LARGE = 1e300


def hidden_margin(network: Network, batch: Batch, *, statistic: str = "median", layer: str | None = None) -> Measured:
    r"""Statistic of the distances from the decision boundary in the layers, relative to the layers' spread.

    .. math::
        d_l(x) = \frac{f_y(x) - f_j(x)}{\| \nabla_{h_l} (f_y - f_j)(x) \|_2 \, \sqrt{\nu_l}}, \qquad
        \nu_l = \frac1m \sum_i \| h_l(x_i) - \bar h_l \|_2^2

    where j is the best class other than y, and :math:`h_l` the input of the weight layer l: the network's input for the
    first, a hidden representation for the others, after activation and pooling. The value is the mean over the layers
    of the quartile, median or fence of :math:`d_l` over the data. The fences are the smallest and the largest d_l
    within 1.5 interquartile ranges of the quartiles. Larger values suggest better generalisation; negative where
    samples are misclassified. Batch norm is folded.

    Parameters
    ----------
    statistic : "lower_fence", "lower_quartile", "median", "upper_quartile" or "upper_fence", default="median"
        Percentiles are linear between samples.
    layer : str, default=None
        Name of the weight layer whose input is used, as in the rows; the second use of a layer ends in " (2)". None
        uses the mean over all.

    Returns
    -------
    Measured
        With one row per weight layer, named by the layer after the representation.

    Raises
    ------
    NotDefinedError
        If a representation is the same for all samples, or the network has no weight layer.
    UnsupportedLayerError
        If the network cannot be traced.

    Notes
    -----
    The cost is one forward and one backward pass for all layers, shared by all statistics of a call. The paper leaves
    out misclassified samples; here they count, with negative distances. Public code differs in the fences: some takes
    the quartiles -+ 1.5 interquartile ranges themselves, some the nearest samples beyond. The authors' code divides
    :math:`\sqrt{\nu_l}` by m, a factor common to all samples.

    References
    ----------
    Jiang, Krishnan, Mobahi, Bengio (2019), Predicting the generalization gap in deep networks with margin
    distributions, eqs. 3 to 5.

    Examples
    --------
    The difference of the logits is x with slope 1; x = 1, 3 have the variance 1.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[0.5], [-0.5]]))
    >>> measure_capacity(net, torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]), "hidden_margin_median")
    {'hidden_margin_median': 2.0}
    """
    check_option("statistic", statistic, STATISTICS)
    margins = layer_margins(network, batch)
    if layer is not None:
        check_instance("layer", layer, str, "the name of a weight layer or None")
        if layer not in margins:
            hint = closest(layer, margins)
            raise ValueError(f"`layer` must be the name of a weight layer, got {shown(layer)}.{hint and ' ' + hint}")
        margins = {layer: margins[layer]}
    rows = [{"layer": label, "value": _statistic(values, statistic)} for label, values in margins.items()]
    return Measured(float(np.mean([row["value"] for row in rows])), per_layer=rows)


def layer_margins(network: Network, batch: Batch) -> Mapping[str, np.ndarray]:
    """The normalised margins of all samples, (m,), by the weight layer after the representation."""
    return batch.once("layer_margins", lambda: _margins(network, batch))


def _margins(network: Network, batch: Batch) -> dict[str, np.ndarray]:
    if network.n_outputs < 2:
        raise NotDefinedError(f"A margin needs at least two logits, got {network.n_outputs}.")
    _ = batch.logits  # checks that they are finite
    readers = layer_inputs(network)
    spreads = [_Spread() for _ in readers]

    def on_chunk(X: Tensor, y: Tensor) -> Tensor:
        kept: dict[str, Tensor] = {}

        def keep(node: Node, value: Tensor) -> None:
            if node.name in readers:
                kept[node.name] = value

        with torch.enable_grad():
            logits = evaluate(network.graph, X.detach().requires_grad_(True), keep).reshape(len(X), -1)  # (n, C)
            others = logits.detach().scatter(1, y[:, None], -torch.inf)  # (n, C)
            pairs = torch.stack([y, others.argmax(1)], dim=1)  # the label and the strongest other class, (n, 2)
            gaps = logits.gather(1, pairs).diff(dim=1).neg().squeeze(1)  # (n,)
            values = [kept[name] for name in readers]
            # like the layers' inputs
            slopes = torch.autograd.grad(gaps.sum(), values, allow_unused=True, materialize_grads=True)
        for spread, value in zip(spreads, values, strict=True):
            spread.add(value.detach().flatten(1).double())
        # (n,) for each layer
        lengths = [torch.linalg.vector_norm(slope.flatten(1).double(), dim=1) for slope in slopes]
        return gaps.detach().double()[:, None] / torch.stack(lengths, dim=1)  # (n, layers)

    distances = batch.cat(on_chunk, batch.classes).nan_to_num(nan=0.0, posinf=math.inf, neginf=-math.inf)
    result = {}
    for label, spread, column in zip(readers.values(), spreads, distances.T, strict=True):
        if not spread.total > spread.rounding(network.dtype):
            raise NotDefinedError(
                f"The margins inside the network need inputs of layer `{label}` that differ between the samples, and "
                f"all {batch.n_samples} are the same."
            )
        result[label] = (column / math.sqrt(spread.total / batch.n_samples)).cpu().numpy()
    return result


def layer_inputs(network: Network) -> dict[str, str]:
    """The input nodes of weight layers, with the label of the first such layer; no two labels are equal.

    A layer that is used again has the labels `layer`, `layer (2)`, and so on.
    """
    layers = [node for node in network.graph.nodes if node.is_layer or is_recurrent(node)]
    if not layers:
        raise NotDefinedError("The margins inside the network need a weight layer, and it has none.")
    readers: dict[str, str] = {}
    uses = Counter[str]()
    for node in labelled(layers, network.shown):
        if node.inputs[0] not in readers:
            uses[node.label] += 1
            use = uses[node.label]
            readers[node.inputs[0]] = node.label if use == 1 else f"{node.label} ({use})"
    return readers


class _Spread:
    """The sum of squared distances from the mean, for rows that arrive in chunks (Chan, Golub, LeVeque 1983)."""

    def __init__(self) -> None:
        self.n, self.total = 0, 0.0
        self.mean: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        mean = rows.mean(0)  # (numbers,)
        total = float((rows - mean).square().sum())
        if self.mean is not None:
            # S = S_1 + S_2 + n_1 n_2 / (n_1 + n_2) |m_1 - m_2|^2
            total += self.n * len(rows) / (self.n + len(rows)) * float((mean - self.mean).square().sum())
            mean = self.mean + (mean - self.mean) * (len(rows) / (self.n + len(rows)))
        self.n, self.mean, self.total = self.n + len(rows), mean, self.total + total

    def rounding(self, dtype: torch.dtype) -> float:
        """The sum that equal rows may have from rounding in the last places."""
        squares = 0.0 if self.mean is None else float(self.mean.square().sum())
        return self.n * squares * (4 * torch.finfo(dtype).eps) ** 2


def _statistic(values: np.ndarray, statistic: str) -> float:
    """A quartile or fence; infinite margins keep their order."""
    values = np.clip(values, -LARGE, LARGE)
    low, middle, high = np.percentile(values, [25, 50, 75])
    reach = 1.5 * (high - low)
    result = {
        "lower_fence": values[values >= low - reach].min(),
        "lower_quartile": low,
        "median": middle,
        "upper_quartile": high,
        "upper_fence": values[values <= high + reach].max(),
    }[statistic]
    return float(result) if abs(result) < LARGE else math.copysign(math.inf, result)


#: Statistics of a distribution, with the words for them.
STATISTICS = {
    "lower_fence": "lower fence",
    "lower_quartile": "lower quartile",
    "median": "median",
    "upper_quartile": "upper quartile",
    "upper_fence": "upper fence",
}

_HIDDEN: dict[str, Any] = {
    "family": "margin",
    "lower_is_better": False,
    "source": "Jiang et al. (2019), eqs. 3-5",
    "needs": frozenset({"graph", "data", "labels"}),
    "cost": "jacobian",
    "tasks": ("classification",),
    "invariances": frozenset({"permutation", "layer_rescaling"}),
    "signed": True,
    "memory": Peak(outputs=3, passes=4),
    "limits": lambda network, batch, **params: {"hidden margins": 2, "logits": 1},
}

MEASURES = tuple(
    Measure(
        f"hidden_margin_{statistic}",
        hidden_margin,
        fixed={"statistic": statistic},
        description=f"Mean over the layers of the {words} of the hidden margins, relative to the layer's spread.",
        **_HIDDEN,
    )
    for statistic, words in STATISTICS.items()
)
