"""The interaction of a rectifier network's layers, and its relation to sharpness ([EG] section 4)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .._validation import check_interval, check_numbers
from ..graph import Network
from .batch import CPU_BYTES, Batch
from .layer_operators import layer_weight
from .memory import Peak
from .pass_limits import Parts
from .record import Measure, Measured, NotDefinedError
from .rectifier_chain import rectifier_chain

__all__ = ["DELTAS", "MEASURES", "interaction_conditions", "sharpness_estimate"]

#: Thresholds for pre-activations below which condition C2 counts units.
DELTAS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class LayerTable:
    """The quantities in the three conditions, per sample of unit norm.

    Attributes
    ----------
    widths : list of int
        h_0 (inputs) to h_d.
    products : dict of (a, b) to Tensor of shape (n,)
        Frobenius norms of D_b W_b ... D_a W_a for 0 <= a <= b <= d, with W_0 = x, D_0 = I and D_d = I.
    near_zero : Tensor of shape (n, d - 1)
        Largest ratio over the grid of the fraction of hidden units with a pre-activation of at most delta, to delta.
    largest_rows : list of float
        Largest Euclidean norm of a row of W_1 to W_d.
    """

    widths: list[int]
    products: dict[tuple[int, int], Tensor]
    near_zero: Tensor
    largest_rows: list[float]

    @property
    def depth(self) -> int:
        return len(self.widths) - 1

    def c1(self, a: int, c: int, b: int) -> Tensor:
        """The largest mu with which condition C1 holds for the layers (a, c, b)."""
        whole, apart = self.products[a, b], self.products[c + 1, b] * self.products[a, c]
        return torch.where(apart > 0, math.sqrt(self.widths[c]) * whole / apart, torch.inf)

    def c2(self, k: int) -> Tensor:
        """The smallest C2 with which condition C2 holds in layer k, over the grid."""
        return self.near_zero[:, k - 1]

    def c3(self, i: int) -> Tensor:
        """The smallest C3 with which condition C3 holds in layer i."""
        return self.largest_rows[i - 1] * math.sqrt(self.widths[i]) / self.products[i, i]

    def triples(self) -> list[tuple[int, int, int]]:
        """All a <= c < b; the paper prints a < c, but its lemma 1 also uses c = a."""
        d = self.depth
        return [(a, c, b) for a in range(d) for c in range(a, d) for b in range(c + 1, d + 1)]


def interaction_conditions(network: Network, batch: Batch, *, deltas: Sequence[float] = DELTAS) -> pd.DataFrame:
    r"""The constants of the three interaction conditions, per layer and sample.

    See :func:`sklearn_capacity.interaction_conditions`, which accepts any model.

    Parameters
    ----------
    network : Network
    batch : Batch
    deltas : sequence of float > 0, default=DELTAS

    Returns
    -------
    DataFrame
        Columns ``condition``, ``layers``, ``sample``, ``value``.
    """
    table = _layer_table(network, batch, deltas)
    rows: list[tuple[str, tuple[int, ...], Tensor]] = []
    rows += [("C1", triple, table.c1(*triple)) for triple in table.triples()]
    rows += [("C2", (k,), table.c2(k)) for k in range(1, table.depth)]
    rows += [("C3", (i,), table.c3(i)) for i in range(1, table.depth + 1)]
    n = batch.n_samples
    frames = {
        "condition": np.repeat([name for name, _, _ in rows], n),
        "layers": [layers for _, layers, _ in rows for _ in range(n)],
        "sample": np.tile(np.arange(n), len(rows)),
        "value": torch.cat([values for _, _, values in rows]).cpu().numpy(),
    }
    return pd.DataFrame(frames)


def sharpness_estimate(
    network: Network,
    batch: Batch,
    *,
    sigma: float = 1e-3,
    loss_constant: float = 1.0,
    delta: float = 0.05,
    deltas: Sequence[float] = DELTAS,
) -> Measured:
    r"""Estimate of the expected sharpness from the interaction of the layers; an O() without constants, not a bound.

    .. math::
        \frac{C_L}{m} \sum_x \|f(x)\| \Big[ \prod_i (1 + \gamma_i) - 1
        + \prod_i (1 + \gamma_i C_2 C_3) \Big( \prod_i (1 + \gamma_i C_\delta C_2) - 1 \Big) \Big]

    with :math:`\gamma_i = \sigma \sqrt{h_i h_{i-1}} / (\mu^2 \|D_i W_i\|_F)` and :math:`C_\delta = 2 \sqrt{\ln(d h /
    \delta)}`, under spherical noise on the weights. The constants mu, C2 and C3 of the conditions are computed
    separately for each sample: mu is the smallest over a <= c < b and at most 1, C2 and C3 are the largest over the
    layers. Samples are scaled to unit norm. Smaller values suggest better generalisation; inf if the output or a layer
    is zero.

    Defined for chains of fully connected layers without biases, with rectifiers between the layers.

    Parameters
    ----------
    sigma : float > 0, default=1e-3
        Standard deviation of the noise.
    loss_constant : float > 0, default=1
        C_L, the Lipschitz constant of the loss with respect to the logits: at most sqrt(2) for cross-entropy, 1 for the
        absolute loss of one output. The estimate is proportional to it.
    delta : float in (0, 1), default=0.05
        Failure probability in C_delta.
    deltas : sequence of float > 0, default=0.001 to 1
        Grid for C2.

    Returns
    -------
    Measured
        The medians of mu, C2 and C3 are in `info`.

    Raises
    ------
    UnsupportedLayerError
        For any other network.

    Notes
    -----
    The cost is d^2 / 2 products of weight matrices per sample.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, theorem 1 (which
    prints the norm of W_i in gamma, while its lemmas use that of D_i W_i).

    Examples
    --------
    One layer: gamma = sigma sqrt(h_1 h_0) / norm(W) with mu = 1, and no unit can change its state.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 1, bias=False)
    >>> _ = net.weight.data.fill_(2.0)
    >>> estimate = {"s": ("sharpness_estimate", {"sigma": 0.5})}
    >>> round(measure_capacity(net, torch.ones(1, 1), measures=estimate, loss="absolute")["s"], 6)
    0.5
    """
    check_interval("sigma", sigma, 0, math.inf, closed="neither")
    check_interval("loss_constant", loss_constant, 0, math.inf, closed="neither")
    check_interval("delta", delta, 0, 1, closed="neither")
    table = _layer_table(network, batch, deltas)
    d = table.depth
    # Constants of the conditions for every sample, (n,) each.
    mu = torch.stack([table.c1(*triple) for triple in table.triples()]).amin(0).clamp_max(1.0)
    c3 = torch.stack([table.c3(i) for i in range(1, d + 1)]).amax(0)
    c2 = torch.stack([table.c2(k) for k in range(1, d)]).amax(0) if d > 1 else torch.zeros_like(mu)
    gammas = [
        sigma * math.sqrt(table.widths[i] * table.widths[i - 1]) / (mu.square() * table.products[i, i])
        for i in range(1, d + 1)
    ]
    gamma = torch.stack(gammas)  # (d, n)
    c_delta = 2 * math.sqrt(math.log(d * max(table.widths[1:]) / delta))
    # Computed in logarithms, (n,) each, since products of many layers overflow.
    linear = _log_expm1(torch.log1p(gamma).sum(0))
    switched = torch.log1p(gamma * c2 * c3).sum(0) + _log_expm1(torch.log1p(gamma * c_delta * c2).sum(0))
    logs = torch.logaddexp(linear, switched) + table.products[0, d].log()
    logs = torch.where(table.products[0, d] > 0, logs, torch.inf)
    value = torch.logsumexp(logs, 0) - math.log(batch.n_samples) + math.log(loss_constant)
    info = {"mu": float(mu.median()), "C2": float(c2.median()), "C3": float(c3.median())}
    return Measured.from_log(float(value), info=info)


def _log_expm1(x: Tensor) -> Tensor:
    """log(exp(x) - 1) for x >= 0."""
    return x + torch.log(-torch.expm1(-x))


def _layer_table(network: Network, batch: Batch, deltas: Sequence[float]) -> LayerTable:
    grid = tuple(check_numbers("deltas", deltas, 0, math.inf, closed="neither"))
    return batch.once(("layer_table", grid), lambda: _measure_layers(network, batch, grid))


def _measure_layers(network: Network, batch: Batch, grid: tuple[float, ...]) -> LayerTable:
    weights = _weights(network)
    widths = [weights[0].shape[1], *(len(weight) for weight in weights)]
    # Only norms of products B W_a are needed, and ||B L Q||_F = ||B L||_F: of a wide W_a = L Q, the square L is enough.
    narrow = [torch.linalg.qr(w.mT).R.mT if w.shape[1] > w.shape[0] else w for w in weights]
    largest = max(w.numel() for w in weights) * weights[0].element_size()
    size = max(1, min(batch.n_samples, CPU_BYTES // largest))
    chunks = Batch(network, batch.X, batch_size=size, budget=batch.budget)
    with torch.no_grad():
        parts = chunks.map(lambda X: _chunk(X.flatten(1).double(), weights, narrow, grid))
    products = {key: torch.cat([part[0][key] for part in parts]) for key in parts[0][0]}
    near_zero = torch.cat([part[1] for part in parts])
    return LayerTable(widths, products, near_zero, [float(w.norm(dim=1).max()) for w in weights])


def _chunk(
    X: Tensor, weights: list[Tensor], narrow: list[Tensor], grid: tuple[float, ...]
) -> tuple[dict[tuple[int, int], Tensor], Tensor]:
    d = len(weights)
    norms = X.norm(dim=1, keepdim=True)  # (n, 1)
    if not bool((norms > 0).all()):
        raise NotDefinedError("The interaction conditions need samples of unit norm, but `X` contains a zero sample.")
    h = X / norms  # (n, D)
    products = {(0, 0): h.norm(dim=1)}
    active: list[Tensor] = []
    fractions = []
    for b, weight in enumerate(weights, start=1):
        z = h @ weight.mT  # pre-activations of layer b, (n, h_b)
        active.append((z > 0).double() if b < d else torch.ones_like(z))  # the diagonal of D_b, (n, h_b)
        if b < d:
            counts = [(z.abs() <= delta).double().mean(1) / delta for delta in grid]  # (n,) for each delta
            fractions.append(torch.stack(counts).amax(0))
        h = z * active[-1]
        products[0, b] = h.norm(dim=1)  # |D_b W_b ... x|, (n,)
    for a in range(1, d + 1):
        product = active[a - 1][:, :, None] * narrow[a - 1]  # D_a W_a, (n, h_a, columns)
        products[a, a] = product.flatten(1).norm(dim=1)
        for b in range(a + 1, d + 1):
            product = active[b - 1][:, :, None] * (weights[b - 1] @ product)  # D_b W_b ... D_a W_a, (n, h_b, columns)
            products[a, b] = product.flatten(1).norm(dim=1)
    near_zero = torch.stack(fractions, dim=1) if fractions else X.new_zeros((len(X), 0))  # (n, d - 1)
    return products, near_zero


def _weights(network: Network) -> list[Tensor]:
    """W_1 ... W_d, float64, of a chain of linear maps without biases, with rectifiers between them."""
    purpose = "An interaction condition"
    weights: list[Tensor] = []
    rectified = True
    for node in rectifier_chain(network, purpose).nodes:
        if node.op == "linear" and len(node.shape) == 1:
            if not rectified:
                raise node.refuse(purpose, "there is no ReLU between it and the layer before.")
            weights.append(layer_weight(node))
            rectified = False
        elif node.op == "activation" and node.params["kind"] == "relu":
            rectified = True
        elif node.op != "view" or weights:
            raise node.refuse(purpose, "only fully connected layers with ReLU between them are supported.")
    if rectified:
        node = network.graph[network.graph.output]
        raise node.refuse(purpose, "the output must come from a linear layer.")
    return weights


def _limits(network: Network, batch: Batch, **params: Any) -> Parts:
    """A pass, and the products of matrices of each sample."""
    weights = _weights(network)
    columns = [min(weight.shape) for weight in weights]
    behind = [sum(later.numel() for later in weights[a + 1 :]) for a in range(len(weights))]
    products = sum(width * numbers for width, numbers in zip(columns, behind, strict=True))
    return {"layer table": 1 + products / sum(weight.numel() for weight in weights)}


MEASURES = (
    Measure(
        "sharpness_estimate",
        sharpness_estimate,
        family="sharpness",
        lower_is_better=True,
        source="[EG] theorem 1",
        needs=frozenset({"chain", "data"}),
        cost="spectrum",
        unit="loss",
        memory=Peak(vectors=2, layers=6),
        limits=_limits,
        invariances=frozenset({"permutation"}),
    ),
)
