"""The battery of Jiang et al. (2020) and Dziugaite et al. (2020): norms and margins.

Distances are in `battery_distances`, flatness in `battery_flatness`. The formulas are those of appendix C of Jiang et
al., with the signs printed there, under the names of both papers. The docs have a table of all names (`battery.rst`);
measures of other families are not repeated here.
"""

from __future__ import annotations

import math
from typing import Any

from .._validation import check_option
from ..graph import Network, Node
from .batch import Batch
from .capacities import separating_margin
from .layer_operators import layer_rows, left_out, norm_bytes, operator_norm, weight_layers
from .memory import Peak
from .norms import layer_group_norm
from .pass_limits import LOGITS, NO_PASSES, Parts
from .record import Measure, Measured, NotDefinedError, logarithm

__all__ = [
    "JIANG",
    "MEASURES",
    "NORMS",
    "PER_LAYER",
    "fro_over_spec",
    "inverse_margin",
    "layer_norms",
    "log_of_norms",
    "log_squared_margin",
    "margin_limits",
    "norm_layers",
    "squared_ratios",
    "summed",
]

NORMS = ("spectral", "frobenius")


def log_of_norms(
    network: Network,
    batch: Batch,
    *,
    norm: str = "spectral",
    total: str = "product",
    over_margin: bool = False,
    margin_percentile: float = 10.0,
) -> Measured:
    r"""Logarithm of the product, or of d times the geometric mean, of the layers' squared norms.

    .. math::
        \ln \prod_{l=1}^d \|W_l\|^2 - 2 \ln \gamma \quad \text{(product)}

        \ln d + \frac{1}{d} \Big( \ln \prod_{l=1}^d \|W_l\|^2 - 2 \ln \gamma \Big) \quad \text{(sum)}

    The margin :math:`\gamma` is included in names that end in ``over_margin``. ``spec`` is the spectral norm, of
    convolutions as linear operators at their input size, ``fro`` the Frobenius norm of matrices and kernels.
    Smaller values suggest better generalisation. Infinite, with a warning, where the margin is not positive, and minus
    infinity if a layer is zero. Biases are ignored; batch norm is folded.

    Parameters
    ----------
    norm : "spectral" or "frobenius", default="spectral"
    total : "product" or "sum", default="product"
    over_margin : bool, default=False
    margin_percentile : float in [0, 100], default=10
        The margin is this percentile over the data of f_y - max_{k != y} f_k.

    Returns
    -------
    Measured
        With the logarithm of each layer's squared norm.

    Notes
    -----
    Weights only, and a shared forward pass for the margin.

    References
    ----------
    Jiang, Neyshabur, Mobahi, Krishnan, Bengio (2020), Fantastic generalization measures and where to find them,
    appendix C, eqs. 31, 32 and 34 to 39.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> X, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])  # a margin of 3
    >>> names = ["log_prod_of_spec", "log_prod_of_fro", "log_prod_of_spec_over_margin"]
    >>> [round(value, 4) for value in measure_capacity(net, X, y, names).values()]  # ln 16, ln 25, ln (16 / 9)
    [2.7726, 3.2189, 0.5754]
    """
    check_option("norm", norm, NORMS)
    check_option("total", total, ("product", "sum"))
    log_margin = log_squared_margin(batch, margin_percentile) if over_margin else 0.0
    layers = norm_layers(network)
    logs = [2 * logarithm(value) for value in layer_norms(network, norm)]
    rows = layer_rows(layers, logs)
    value = -math.inf if -math.inf in logs else math.fsum(logs)
    value = math.inf if log_margin == -math.inf else value - log_margin
    return Measured(
        value if total == "product" else math.log(len(logs)) + value / len(logs), per_layer=rows, info=left_out(network)
    )


def fro_over_spec(network: Network, batch: Batch) -> Measured:
    r"""Sum over the layers of the squared Frobenius norm over the squared spectral norm.

    .. math:: \sum_{l=1}^d \|W_l\|_F^2 / \|W_l\|_2^2

    with the Frobenius norm of kernels and the spectral norm of convolutions as linear operators, as in `log_of_norms`;
    `stable_rank` uses the same matrix for both. A layer of zeros adds 0. Smaller values suggest better
    generalisation. Biases are ignored; batch norm is folded.

    Returns
    -------
    Measured
        With one row per weight layer.

    Notes
    -----
    Uses the weights only.

    References
    ----------
    Jiang, Neyshabur, Mobahi, Krishnan, Bengio (2020), Fantastic generalization measures and where to find them,
    appendix C, eq. 33.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[4.0, 0.0], [0.0, 2.0]]))
    >>> round(measure_capacity(net, measures="fro_over_spec")["fro_over_spec"], 6)
    1.25
    """
    return summed(network, squared_ratios(network, layer_norms(network, "frobenius")))


def inverse_margin(network: Network, batch: Batch, *, margin_percentile: float = 10.0) -> Measured:
    r"""One over the squared margin.

    .. math:: 1 / \gamma^2

    Smaller values suggest better generalisation. The value is infinite, with a warning, if the margin is not positive.

    Parameters
    ----------
    margin_percentile : float in [0, 100], default=10
        As for `log_of_norms`.

    Notes
    -----
    The cost is one forward pass, shared by all measures of the call.

    References
    ----------
    Jiang, Neyshabur, Mobahi, Krishnan, Bengio (2020), Fantastic generalization measures and where to find them,
    appendix C, eq. 22.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X = torch.tensor([[3.0, 1.0]])
    >>> measure_capacity(nn.Identity(), X, torch.tensor([0]), "inverse_margin")
    {'inverse_margin': 0.25}
    """
    return Measured.from_log(-log_squared_margin(batch, margin_percentile))


def norm_layers(network: Network) -> tuple[Node, ...]:
    """The weight layers, at least one."""
    layers = weight_layers(network)
    if not layers:
        raise NotDefinedError("A norm of the layers needs a weight layer, but the network has none.")
    return layers


def layer_norms(network: Network, norm: str) -> list[float]:
    """Norms of every layer: spectral norm of the operator, or Frobenius norm of the kernel."""
    layers = norm_layers(network)
    if norm == "spectral":
        return [operator_norm(network, node).value for node in layers]
    return [layer_group_norm(network, node, 2, 2, "kernel") for node in layers]


def squared_ratios(network: Network, lengths: list[float]) -> list[float]:
    """Squares over the squared spectral norms; 0 for a layer of zeros."""
    pairs = zip(lengths, layer_norms(network, "spectral"), strict=True)
    return [(length / norm) ** 2 if norm > 0 else 0.0 for length, norm in pairs]


def summed(network: Network, values: list[float]) -> Measured:
    """The sum of the layers' values, with a row for each layer."""
    return Measured(math.fsum(values), per_layer=layer_rows(norm_layers(network), values), info=left_out(network))


def log_squared_margin(batch: Batch, percentile: float) -> float:
    """2 ln of the margin; -inf, with a warning, where it is not positive."""
    margin = separating_margin(batch, percentile)
    return 2 * math.log(margin) if margin > 0 else -math.inf


#: Invariances of what each layer contributes alone.
PER_LAYER = frozenset({"permutation", "layer_rescaling"})
_FUNCTION = PER_LAYER | {"node_rescaling"}
_SPECTRA = Peak(layers=3, outputs=3, more=norm_bytes)
JIANG = "Jiang et al. (2020), eq. "


def margin_limits(network: Network, batch: Batch, *, margin_percentile: float | None = None, **params: Any) -> Parts:
    """One pass for the logits if the measure has a margin."""
    return {"logits": 0 if margin_percentile is None else 1}


#: The measures that are `log_of_norms`: name, equation, norm, total, and whether the margin is included.
_LOGS_OF_NORMS = (
    ("log_prod_of_spec", 32, "spectral", "product", False),
    ("log_prod_of_spec_over_margin", 31, "spectral", "product", True),
    ("log_sum_of_spec", 35, "spectral", "sum", False),
    ("log_sum_of_spec_over_margin", 34, "spectral", "sum", True),
    ("log_prod_of_fro", 37, "frobenius", "product", False),
    ("log_prod_of_fro_over_margin", 36, "frobenius", "product", True),
    ("log_sum_of_fro", 39, "frobenius", "sum", False),
    ("log_sum_of_fro_over_margin", 38, "frobenius", "sum", True),
)


def _log_of_norms_record(name: str, equation: int, norm: str, total: str, over_margin: bool) -> Measure:
    fixed = {"norm": norm, "total": total, "over_margin": over_margin}
    of_layers = "the product" if total == "product" else "d times the geometric mean"
    norms = f"squared {'Frobenius' if norm == 'frobenius' else norm} norms{', over the squared margin' * over_margin}"
    return Measure(
        name,
        log_of_norms,
        family="battery",
        source=f"{JIANG}{equation}",
        needs=frozenset({"layers", "data", "labels"} if over_margin else {"layers"}),
        cost="forward" if over_margin else "weights",
        tasks=("classification",) if over_margin else ("classification", "regression"),
        invariances=PER_LAYER,
        signed=True,
        fixed=fixed if over_margin else {**fixed, "margin_percentile": 10.0},
        description=f"Logarithm of {of_layers} of the layers' {norms}.",
        memory=_SPECTRA if norm == "spectral" else Peak(layers=3, outputs=3),
        limits=LOGITS if over_margin else NO_PASSES,
    )


_RECORD: dict[str, Any] = {"family": "battery", "memory": _SPECTRA, "limits": margin_limits}

MEASURES = (
    *(_log_of_norms_record(*row) for row in _LOGS_OF_NORMS),
    Measure(
        "fro_over_spec",
        fro_over_spec,
        source=f"{JIANG}33",
        needs=frozenset({"layers"}),
        invariances=PER_LAYER,
        **_RECORD,
    ),
    Measure(
        "inverse_margin",
        inverse_margin,
        source=f"{JIANG}22",
        needs=frozenset({"data", "labels"}),
        cost="forward",
        tasks=("classification",),
        invariances=_FUNCTION,
        **_RECORD,
    ),
)
