"""Capacities: squared norms over squared margins ([EG] section 2.2)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._validation import check_interval, warn
from ..graph import Network
from .batch import Batch
from .layer_operators import norm_bytes, weight_layers
from .margins import sample_margins
from .memory import Peak
from .norms import frobenius_norm, l1_inf_norm, spectral_norm
from .pass_limits import ONE_SAMPLE
from .paths import path_norm
from .record import Measure, Measured

__all__ = [
    "MEASURES",
    "frobenius_capacity",
    "l1_inf_capacity",
    "l1_path_capacity",
    "l2_path_capacity",
    "separating_margin",
    "spectral_capacity",
]


def frobenius_capacity(
    network: Network, batch: Batch, *, view: str = "kernel", margin_percentile: float = 5.0, constants: bool = False
) -> Measured:
    r"""Squared product of Frobenius norms over the squared margin.

    .. math:: \frac{1}{\gamma^2} \prod_{l=1}^d \|W_l\|_F^2

    Smaller values suggest better generalisation. The value is infinite, with a warning, if the margin is not positive.

    Parameters
    ----------
    view : "kernel" or "operator", default="kernel"
        As in `frobenius_norm`.
    margin_percentile : float in [0, 100], default=5
        The margin is this percentile over the data of f_y - max_{k != y} f_k.
    constants : bool, default=False
        Include the factor 4^d, which [EG] omits in its figures.

    Returns
    -------
    Measured
        With the margin in `info`.

    Warns
    -----
    CapacityWarning
        If the margin is not positive, as for all capacities.

    Notes
    -----
    The cost is that of the norm and one forward pass, which all measures share.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, section 2.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> X, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])  # a margin of 3
    >>> round(measure_capacity(net, X, y, "frobenius_capacity")["frobenius_capacity"], 6)  # 25 / 9
    2.777778
    """
    margin = separating_margin(batch, margin_percentile)
    factor = depth_of(network) * math.log(4) if constants else 0.0
    return _capacity(frobenius_norm(network, batch, view=view), margin, factor)


def l1_path_capacity(
    network: Network, batch: Batch, *, margin_percentile: float = 5.0, constants: bool = False
) -> Measured:
    r"""Squared l1 path norm over the squared margin.

    .. math:: \frac{1}{\gamma^2} \Big( \sum_{\text{paths}} \prod_{e} |w_e| \Big)^2

    Smaller values suggest better generalisation. The value is infinite, with a warning, if the margin is not positive.

    Parameters
    ----------
    margin_percentile : float in [0, 100], default=5
        The margin is this percentile over the data of f_y - max_{k != y} f_k.
    constants : bool, default=False
        Include the factor 4^d (2 per edge, squared), which [EG] omits in its figures.

    Notes
    -----
    The cost is that of the norm and one forward pass, which all measures share.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, section 2.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> X, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])  # a margin of 3
    >>> round(measure_capacity(net, X, y, "l1_path_capacity")["l1_path_capacity"], 6)  # 49 / 9
    5.444444
    """
    margin = separating_margin(batch, margin_percentile)
    factor = depth_of(network) * math.log(4) if constants else 0.0
    return _capacity(path_norm(network, batch, p=1.0), margin, factor)


def l2_path_capacity(
    network: Network, batch: Batch, *, margin_percentile: float = 5.0, constants: bool = False
) -> Measured:
    r"""Squared l2 path norm over the squared margin.

    .. math:: \frac{1}{\gamma^2} \sum_{\text{paths}} \prod_{e} w_e^2

    Smaller values suggest better generalisation. The value is infinite, with a warning, if the margin is not positive.

    Parameters
    ----------
    margin_percentile : float in [0, 100], default=5
        The margin is this percentile over the data of f_y - max_{k != y} f_k.
    constants : bool, default=False
        Include the factor prod 4 h_l, which [EG] omits in its figures; h_l = units of layer l (channels times
        positions).

    Notes
    -----
    The cost is that of the norm and one forward pass, which all measures share.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, section 2.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> X, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])  # a margin of 3
    >>> with_constants = {"capacity": ("l2_path_capacity", {"constants": True})}
    >>> round(measure_capacity(net, X, y, with_constants)["capacity"], 6)  # 4 * 2 * 25 / 9
    22.222222
    """
    margin = separating_margin(batch, margin_percentile)
    factor = depth_of(network) * math.log(4) + log_units(network) if constants else 0.0
    return _capacity(path_norm(network, batch, p=2.0), margin, factor)


def spectral_capacity(
    network: Network, batch: Batch, *, margin_percentile: float = 5.0, constants: bool = False
) -> Measured:
    r"""Squared product of spectral norms over the squared margin.

    .. math:: \frac{1}{\gamma^2} \prod_{l=1}^d \|W_l\|_2^2

    Smaller values suggest better generalisation. The value is infinite, with a warning, if the margin is not positive.

    Parameters
    ----------
    margin_percentile : float in [0, 100], default=5
        The margin is this percentile over the data of f_y - max_{k != y} f_k.
    constants : bool, default=False
        Include the factor prod h_l, which [EG] omits in its figures; h_l = units of layer l (channels times
        positions).

    Notes
    -----
    The cost is that of the norm and one forward pass, which all measures share.

    References
    ----------
    Neyshabur, Bhojanapalli, McAllester, Srebro (2017), Exploring generalization in deep learning, section 2.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> X, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])  # a margin of 3
    >>> round(measure_capacity(net, X, y, "spectral_capacity")["spectral_capacity"], 6)  # 16 / 9
    1.777778
    """
    margin = separating_margin(batch, margin_percentile)
    return _capacity(spectral_norm(network, batch), margin, log_units(network) if constants else 0.0)


def l1_inf_capacity(
    network: Network, batch: Batch, *, view: str = "kernel", margin_percentile: float = 5.0, constants: bool = False
) -> Measured:
    r"""Squared product of the largest l1 norms of incoming weights over the squared margin.

    .. math:: \frac{1}{\gamma^2} \prod_{l=1}^d \Big( \max_i \sum_j |W_l[i,j]| \Big)^2

    Smaller values suggest better generalisation. The value is infinite, with a warning, if the margin is not positive.

    Parameters
    ----------
    view : "kernel" or "operator", default="kernel"
        As in `l1_inf_norm`.
    margin_percentile : float in [0, 100], default=5
        The margin is this percentile over the data of f_y - max_{k != y} f_k.
    constants : bool, default=False
        Has no effect, since the factor of this capacity is 1.

    Notes
    -----
    The cost is that of the norm and one forward pass, which all measures share.

    References
    ----------
    Bartlett, Mendelson (2002), Rademacher and Gaussian complexities. Neyshabur et al. (2017), Exploring generalization
    in deep learning, section 2.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> X, y = torch.tensor([[1.0, 0.0]]), torch.tensor([0])  # a margin of 3
    >>> round(measure_capacity(net, X, y, "l1_inf_capacity")["l1_inf_capacity"], 6)  # 16 / 9
    1.777778
    """
    return _capacity(l1_inf_norm(network, batch, view=view), separating_margin(batch, margin_percentile), 0.0)


def depth_of(network: Network) -> int:
    """Number d of weight layers."""
    return len(weight_layers(network))


def log_units(network: Network) -> float:
    """Sum over the layers of the logarithm of their number of units h_l (channels times positions)."""
    layers = weight_layers(network)
    return math.fsum(math.log(math.prod(node.shape) * node.params.get("copies", 1)) for node in layers)


def separating_margin(batch: Batch, percentile: float) -> float:
    """The margin at a percentile; if it is not positive, warns once for all capacities of a call."""
    check_interval("margin_percentile", percentile, 0, 100)
    margin = float(np.percentile(sample_margins(batch), percentile))
    if margin <= 0:
        message = (
            f"The margin at percentile {percentile:g} must be positive, got {margin:.3g}: "
            "capacities divide by this margin and are infinite. Raise `margin_percentile`, or train longer."
        )
        batch.once(message, lambda: warn(message))
    return margin


def _capacity(norm: Measured, margin: float, log_factor: float) -> Measured:
    """norm^2 / margin^2 times a factor."""
    info = {"margin": margin, **{key: text for key, text in norm.info.items() if key == "left_out"}}
    if margin <= 0:
        return Measured(math.inf, math.inf, info=info)
    return Measured.from_log(2 * (norm.log() - math.log(margin)) + log_factor, info=info)


_COMMON: dict[str, Any] = {
    "family": "capacity",
    "lower_is_better": True,
    "source": "[EG] 2.2",
    "cost": "forward",
    "tasks": ("classification",),
    "memory": Peak(layers=3, outputs=3, more=norm_bytes),
    "limits": ONE_SAMPLE,
}
_PER_LAYER: dict[str, Any] = {
    "needs": frozenset({"layers", "data", "labels"}),
    "invariances": frozenset({"permutation", "layer_rescaling"}),
    **_COMMON,
}
_PER_NODE: dict[str, Any] = {
    "needs": frozenset({"homogeneous", "data", "labels"}),
    "invariances": frozenset({"permutation", "layer_rescaling", "node_rescaling"}),
    **_COMMON,
}

MEASURES = (
    Measure("frobenius_capacity", frobenius_capacity, **_PER_LAYER),
    Measure("l1_path_capacity", l1_path_capacity, **_PER_NODE),
    Measure("l2_path_capacity", l2_path_capacity, **_PER_NODE),
    Measure("spectral_capacity", spectral_capacity, **_PER_LAYER),
    Measure("l1_inf_capacity", l1_inf_capacity, **_PER_LAYER),
)
