r"""Data-dependent norms ([FR] definitions 3-7): each dominates the Fisher-Rao norm divided by the depth (theorem 3.2).

All are :math:`\sqrt{E[\|x\|^2 \prod_t \|D_t(x)\|^2]}` times a norm of the weights; they differ in the exponents of the
norms.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .._validation import check_interval
from ..graph import Network
from ..linalg import dual_exponent
from ..linalg.entry_norms import stable_norm
from .batch import Batch
from .induced_norms import chain_norm, check_exponents, check_pair, induced_norm
from .layer_operators import norm_bytes
from .memory import Peak
from .norms import group_norm, spectral_norm
from .pass_limits import at_most
from .paths import path_norm
from .record import Measure, Measured
from .rectifier_chain import Chain, rectifier_chain

__all__ = [
    "MEASURES",
    "data_chain_norm",
    "data_group_norm",
    "data_induced_norm",
    "data_path_norm",
    "data_spectral_norm",
]

PURPOSE = "A data-dependent norm"
#: Logarithm of the norm of D_t: from its diagonal (n, units), or None for the identity, its units and the index t >= 1.
LogNorm = Callable[[Tensor | None, int, int], Tensor | float]


def data_spectral_norm(network: Network, batch: Batch) -> Measured:
    r"""Spectral norm of a rectifier chain, weighted by the data and by the units that are active on them.

    .. math:: \Big( E\big[ \|x\|_2^2 \prod_{t=1}^{d} \|D_t(x)\|_2^2 \big] \Big)^{1/2} \prod_{l=1}^d \|W_l\|_2

    :math:`D_t(x)` is the diagonal matrix of the activations' slopes after layer t; it is the identity after the last
    layer and where one layer directly follows another. Smaller values suggest better generalisation.

    Raises
    ------
    UnsupportedLayerError
        If the network is not a chain of bias-free linear maps and positively homogeneous activations.

    Notes
    -----
    The cost is that of `spectral_norm` (its lower end is used) and one forward pass.

    References
    ----------
    Liang, Poggio, Rakhlin, Stokes (2019), Fisher-Rao metric, geometry, and complexity of neural networks, definition 3.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 1, bias=False)
    >>> _ = net.weight.data.fill_(-3.0)
    >>> X = torch.tensor([[1.0], [7.0]])  # root mean square 5
    >>> round(measure_capacity(net, X, measures="data_spectral_norm")["data_spectral_norm"], 6)
    15.0
    """
    chain = rectifier_chain(network, PURPOSE)
    log = _log_moment(batch, chain, 2.0, _operator_log(lambda t: (2.0, 2.0)))
    return _times(spectral_norm(network, batch), log)


def data_group_norm(network: Network, batch: Batch, *, p: float = 2.0, q: float = 2.0) -> Measured:
    r"""Group norm of a rectifier chain, weighted by the data and by the units that are active on them.

    .. math:: \Big( E\big[ \|x\|_{p^*}^2 \prod_{t=1}^{d} \|D_t(x)\|_{q \to p^*}^2 \big] \Big)^{1/2} \|\theta\|_{p,q}

    with 1/p + 1/p* = 1 and the group norm of the operators (`group_norm`). :math:`D_t(x)` as in `data_spectral_norm`;
    the identity on k units has norm 1 if q <= p*, else :math:`k^{1/p^* - 1/q}`. Smaller values suggest better
    generalisation.

    Parameters
    ----------
    p : float in [1, inf], default=2
        Norm of one unit's incoming weights.
    q : float in (0, inf], default=2
        Norm over the units of a layer.

    Raises
    ------
    UnsupportedLayerError
        If the network is not a chain of bias-free linear maps and positively homogeneous activations.

    Notes
    -----
    The cost is one forward pass.

    References
    ----------
    Liang, Poggio, Rakhlin, Stokes (2019), Fisher-Rao metric, geometry, and complexity of neural networks, definition 4.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> X = torch.tensor([[1.0, -2.0]])  # largest number 2, l1 norm of the weights 7
    >>> value = measure_capacity(net, X, measures={"norm": ("data_group_norm", {"p": 1, "q": 1})})
    >>> round(value["norm"], 6)
    14.0
    """
    p, q = check_interval("p", p, 1), check_interval("q", q, 0, closed="right")
    chain, dual = rectifier_chain(network, PURPOSE), dual_exponent(p)
    log = _log_moment(batch, chain, dual, _operator_log(lambda t: (q, dual)))
    return _times(group_norm(network, batch, p=p, q=q, view="operator"), log)


def data_path_norm(network: Network, batch: Batch, *, q: float = 1.0) -> Measured:
    r"""Path norm of a rectifier chain, weighted by the data and by the units that are active on them.

    .. math:: \Big( E\Big[ \Big( \sum_{i_0, \dots, i_d} \Big| x_{i_0} \prod_{t=1}^{d} D^t_{i_t}(x) \Big|^{q^*}
              \Big)^{2/q^*} \Big] \Big)^{1/2} \|\pi(\theta)\|_q

    with 1/q + 1/q* = 1 and the path norm of `path_norm`. The sum over all tuples of one unit per layer is the product
    of :math:`\|x\|_{q^*}` and :math:`\|D^t(x)\|_{q^*}`. :math:`D^t(x)` is that of `data_spectral_norm`; the identity on
    k units has norm :math:`k^{1/q^*}`, also after the last layer (k = 1 in the paper). Smaller values suggest better
    generalisation.

    Parameters
    ----------
    q : float in [1, inf), default=1

    Raises
    ------
    UnsupportedLayerError
        If the network is not a chain of bias-free linear maps and positively homogeneous activations.

    Notes
    -----
    The cost is one forward pass.

    References
    ----------
    Liang, Poggio, Rakhlin, Stokes (2019), Fisher-Rao metric, geometry, and complexity of neural networks, definition 5.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> X = torch.tensor([[1.0, -2.0]])  # largest number 2, l1 norm of the weights 7
    >>> round(measure_capacity(net, X, measures="data_path_norm")["data_path_norm"], 6)
    14.0
    """
    q = check_interval("q", q, 1, closed="left")
    chain, dual = rectifier_chain(network, PURPOSE), dual_exponent(q)

    def log_norm(slope: Tensor | None, units: int, t: int) -> Tensor | float:
        return math.log(units) / dual if slope is None else stable_norm(slope, dual).log()

    return _times(path_norm(network, batch, p=q), _log_moment(batch, chain, dual, log_norm))


def data_induced_norm(network: Network, batch: Batch, *, p: float = 2.0, q: float = 2.0) -> Measured:
    r"""Induced norm of a rectifier chain, weighted by the data and by the units that are active on them.

    .. math:: \Big( E\big[ \|x\|_p^2 \prod_{t=1}^{d} \|D_t(x)\|_{q \to p}^2 \big] \Big)^{1/2}
              \prod_{l=1}^d \|W_l\|_{p \to q}

    :math:`D_t(x)` as in `data_spectral_norm`; the identity on k units has norm 1 if q <= p, else :math:`k^{1/p - 1/q}`.
    Smaller values suggest better generalisation.

    Parameters
    ----------
    p, q : float in [1, inf], default=2
        p = 1, q = inf, or p = q = 2, as in `induced_norm`.

    Raises
    ------
    UnsupportedLayerError
        If the network is not a chain of bias-free linear maps and positively homogeneous activations.
    ValueError
        For any other pair, since its norm cannot be computed exactly.

    Notes
    -----
    The cost is that of `induced_norm` and one forward pass.

    References
    ----------
    Liang, Poggio, Rakhlin, Stokes (2019), Fisher-Rao metric, geometry, and complexity of neural networks, definition 6.

    Examples
    --------
    >>> import math, torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> X = torch.tensor([[1.0, -2.0]])  # largest number 2, l1 norm of the weights 7
    >>> value = measure_capacity(net, X, measures={"norm": ("data_induced_norm", {"p": math.inf, "q": math.inf})})
    >>> round(value["norm"], 6)
    14.0
    """
    p, q = check_pair(p, q, "`p` and `q`")
    chain = rectifier_chain(network, PURPOSE)
    log = _log_moment(batch, chain, p, _operator_log(lambda t: (q, p)))
    return _times(induced_norm(network, batch, p=p, q=q), log)


def data_chain_norm(network: Network, batch: Batch, *, exponents: Sequence[float] | None = None) -> Measured:
    r"""Chain of induced norms of a rectifier chain, weighted by the data and by the units that are active on them.

    .. math:: \Big( E\big[ \|x\|_{p_0}^2 \prod_{t=1}^{d} \|D_t(x)\|_{p_t \to p_t}^2 \big] \Big)^{1/2}
              \prod_{l=1}^d \|W_l\|_{p_{l-1} \to p_l}

    :math:`D_t(x)` as in `data_spectral_norm`. Smaller values suggest better generalisation.

    Parameters
    ----------
    exponents : sequence of d + 1 floats in [1, inf], default=None
        p_0 .. p_d, as in `chain_norm`; None stands for all 2.

    Raises
    ------
    UnsupportedLayerError
        If the network is not a chain of bias-free linear maps and positively homogeneous activations.
    ValueError
        If there are not d + 1 exponents, or for a pair whose norm cannot be computed exactly.

    Notes
    -----
    The cost is that of `chain_norm` and one forward pass.

    References
    ----------
    Liang, Poggio, Rakhlin, Stokes (2019), Fisher-Rao metric, geometry, and complexity of neural networks, definition 7.

    Examples
    --------
    >>> import math, torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 1, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
    >>> X = torch.tensor([[1.0, -2.0]])  # l1 norm 3, largest weight 4
    >>> value = measure_capacity(net, X, measures={"norm": ("data_chain_norm", {"exponents": [1, math.inf]})})
    >>> round(value["norm"], 6)
    12.0
    """
    chain = rectifier_chain(network, PURPOSE)
    powers = check_exponents(exponents, len(chain.layers))
    log = _log_moment(batch, chain, powers[0], _operator_log(lambda t: (powers[t], powers[t])))
    return _times(chain_norm(network, batch, exponents=exponents), log)


def _operator_log(exponents: Callable[[int], tuple[float, float]]) -> LogNorm:
    """The logarithm of ||D_t||_{a -> b}, (a, b) = exponents(t): the largest slope if a <= b, else an l_r norm."""

    def log_norm(slope: Tensor | None, units: int, t: int) -> Tensor | float:
        a, b = exponents(t)
        inverse = max(0.0, 1 / b - 1 / a)
        if slope is None:
            return inverse * math.log(units)
        return stable_norm(slope, math.inf if inverse == 0 else 1 / inverse).log()

    return log_norm


def _log_moment(batch: Batch, chain: Chain, exponent: float, log_norm: LogNorm) -> float:
    """log sqrt(E[||x||^2 prod_t ||D_t||^2]) over the data."""
    units = [math.prod(layer.shape) for layer in chain.layers]

    def logs(X: Tensor) -> Tensor:
        total = stable_norm(X.double().flatten(1), exponent).log()  # (n,)
        for t, (slope, k) in enumerate(zip(chain.slopes(X), units, strict=True), start=1):
            total = total + log_norm(slope, k, t)
        return total

    with torch.no_grad():
        moments = 2 * batch.cat(logs)  # (n,)
    return float(torch.logsumexp(moments, 0) - math.log(len(moments))) / 2


def _times(norm: Measured, log: float) -> Measured:
    """A norm of the weights times the root of a moment of the data."""
    logs = (norm.log(), log)
    return Measured.from_log(-math.inf if -math.inf in logs else sum(logs), info={"norm": norm.value})


_COMMON: dict[str, Any] = {
    "family": "norm",
    "lower_is_better": True,
    "needs": frozenset({"chain", "data"}),
    "cost": "forward",
    "memory": Peak(layers=3, passes=4, more=norm_bytes),
    "limits": at_most(2),
}
_PER_LAYER = frozenset({"permutation", "layer_rescaling"})

MEASURES = (
    Measure("data_spectral_norm", data_spectral_norm, source="[FR] definition 3", invariances=_PER_LAYER, **_COMMON),
    Measure("data_group_norm", data_group_norm, source="[FR] definition 4", invariances=_PER_LAYER, **_COMMON),
    Measure(
        "data_path_norm",
        data_path_norm,
        source="[FR] definition 5",
        invariances=_PER_LAYER | {"node_rescaling"},
        **_COMMON,
    ),
    Measure(
        "data_induced_norm",
        data_induced_norm,
        source="[FR] definition 6",
        same_as="data_spectral_norm",
        invariances=_PER_LAYER,
        **_COMMON,
    ),
    Measure(
        "data_chain_norm",
        data_chain_norm,
        source="[FR] definition 7",
        same_as="data_spectral_norm",
        invariances=_PER_LAYER,
        **_COMMON,
    ),
)
