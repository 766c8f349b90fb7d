"""Classification margins at the input, and bounds derived from them ([JR] section IV)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .._validation import check_integer, check_interval, check_option
from ..derivatives.input_jacobian import OUTPUTS
from ..graph import Network, activation_of
from .batch import Batch
from .lipschitz import CERTIFICATE
from .memory import Peak
from .norms import frobenius_norm
from .pass_limits import Parts
from .radii import CERTIFIED, ESTIMATED, METHODS, radii_bytes, sample_radii
from .record import Measure, Measured, NotDefinedError, logarithm
from .rectifier_chain import rectifier_chain

__all__ = ["MEASURES", "input_margin_bound", "rademacher_bound", "robustness_bound"]


def input_margin_bound(
    network: Network,
    batch: Batch,
    *,
    method: str = "spectral",
    percentile: float = 0.0,
    n_draws: int = 10,
    output: str = "logits",
) -> Measured:
    r"""Distance within which no change of the input changes the prediction.

    .. math:: \gamma_i = \max(0, o_i) / s, \quad o_i = \min_{j \ne y_i} (f_{y_i}(x_i) - f_j(x_i)) / \sqrt{2}

    **Certified** for every input in the Euclidean ball around a sample: "spectral", where s is `lipschitz_l2`, and
    "frobenius", where s is composed of the layers' Frobenius norms; the latter radius is never larger. **Estimates**
    from above, which certify nothing: "jacobian", the fixed point :math:`\gamma = o / s(\gamma)` with :math:`s(\gamma)`
    the largest :math:`\|J\|_2` found in the ball of radius :math:`\gamma` by sampling and ascent; "hull", where s is
    the largest :math:`\|J\|_2` found at the data and at their convex combinations. **Upper end** of the true margin:
    "attack", the distance to the nearest misclassified point found by steps to the linearised boundary and along it.
    Larger values suggest better generalisation; 0 where a sample is misclassified; inf where s is 0, or where an attack
    finds no point.

    Parameters
    ----------
    method : "spectral", "frobenius", "jacobian", "hull" or "attack", default="spectral"
    percentile : float in [0, 100], default=0
        Percentile over the samples; 0 is the smallest radius.
    n_draws : int >= 1, default=10
        For the estimates: number of random points per sample, and of ascent steps. For the attack: number of searches,
        of which the first starts at the sample and the others at random points around it.
    output : "logits" or "softmax", default="logits"
        Outputs f and slope s of which the radius is computed. On the softmax z of the logits o is at most
        1 / sqrt(2), and the certified slope is half of that of the logits. The estimates differ more: far from
        the boundary a softmax is flat. Only "logits" is exact for linear models.

    Returns
    -------
    Measured
        ``info["certified"]`` states which of the two it is.

    Raises
    ------
    UnsupportedLayerError
        For the certified methods, if an operator has no known Lipschitz constant. The estimates need no graph.

    Notes
    -----
    Certified methods cost one forward pass and the operator norms; they assume that the network is evaluated without
    rounding. Estimates cost `n_draws` ("hull") or about 3 `n_draws` ("jacobian") full Jacobians per sample; another
    processor or batch size changes them as little as it changes the Jacobians. The attack costs up to 14 `n_draws`
    Jacobians and 150 `n_draws` forward passes. The true margin (definition 2) is between "spectral" and "attack".

    The paper's eq. 33 has the score sqrt(2) (f_y - f_j), whose radii exceed the true margin by up to a factor of 2; the
    score above makes the bound exact for linear models of two classes with opposite weights.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, definition 2 and theorem 4. The
    attack combines Moosavi-Dezfooli, Fawzi, Frossard (2016), DeepFool, and Croce, Hein (2020), Minimally distorted
    adversarial examples.

    Examples
    --------
    The class boundary is x_1 = 0, at distance 3 from the sample.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(2, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))
    >>> X, y = torch.tensor([[3.0, 1.0]]), torch.tensor([0])
    >>> round(measure_capacity(net, X, y, "input_margin_bound")["input_margin_bound"], 6)
    3.0
    """
    check_option("method", method, METHODS)
    check_interval("percentile", percentile, 0, 100)
    check_integer("n_draws", n_draws, 1)
    check_option("output", output, OUTPUTS)
    radii, info = sample_radii(network, batch, method, n_draws, output)
    return Measured(_percentile(radii.cpu().numpy(), percentile), info=info)


def _percentile(values: np.ndarray, percentile: float) -> float:
    """Like numpy's percentile, but between a finite value and infinity the result is infinity."""
    low, high = (float(np.percentile(values, percentile, method=side)) for side in ("lower", "higher"))
    if low == high or math.isinf(high):
        return high
    return float(np.percentile(values, percentile))


def robustness_bound(
    network: Network,
    batch: Batch,
    *,
    manifold_dim: int | None = None,
    manifold_constant: float | None = None,
    delta: float = 0.05,
    method: str = "spectral",
    n_draws: int = 10,
    output: str = "logits",
) -> Measured:
    r"""Bound on the generalisation error from the classification margin at the input.

    .. math:: \sqrt{\frac{\log 2 \; C \; 2^{k+1} C_M^k}{\gamma^k m}} + \sqrt{\frac{2 \log(1 / \delta)}{m}}

    for C classes, m training samples, and :math:`\gamma` the smallest `input_margin_bound` over them. The bound assumes
    that the inputs are on a k-dimensional manifold with covering number :math:`(C_M / \rho)^k` at radius
    :math:`\rho = \gamma / 2`. It holds with probability 1 - delta for the 0-1 loss; values above 1 are vacuous. Smaller
    values suggest better generalisation; inf if a training sample is misclassified.

    Parameters
    ----------
    manifold_dim : int >= 1
        Dimension k of the data's manifold. There is no default: it cannot be inferred from the data alone.
    manifold_constant : float > 0
        Constant C_M of the manifold, a length in units of the inputs.
    delta : float in (0, 1), default=0.05
    method : "spectral", "frobenius", "jacobian" or "hull", default="spectral"
        Method for the radius; the last two only estimate the margin, so the value is then an estimate.
    n_draws, output
        As in `input_margin_bound`.

    Returns
    -------
    Measured
        With the radius and the logarithm of the covering number in `info`.

    Raises
    ------
    NotDefinedError
        If the manifold is not given.

    Notes
    -----
    The cost is that of `input_margin_bound`. For other models of the data see
    :func:`sklearn_capacity.theory.robustness_bound_from_covering`.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues (2017), Robust large margin deep neural networks, corollary 3.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 2, bias=False)
    >>> _ = net.weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> X, y = torch.linspace(0.5, 1, 10_000)[:, None], torch.zeros(10_000, dtype=torch.long)
    >>> line = {"bound": ("robustness_bound", {"manifold_dim": 1, "manifold_constant": 1.0})}
    >>> round(measure_capacity(net, X, y, line)["bound"], 4)  # gamma = 1/2
    0.0578
    """
    check_interval("delta", delta, 0, 1, closed="neither")
    check_option("method", method, [*CERTIFIED, *ESTIMATED])
    check_integer("n_draws", n_draws, 1)
    check_option("output", output, OUTPUTS)
    if manifold_dim is None or manifold_constant is None:
        raise NotDefinedError(
            "The robustness bound needs a model of the data: pass `manifold_dim` and `manifold_constant`."
        )
    check_integer("manifold_dim", manifold_dim, 1, 2**31 - 1)
    check_interval("manifold_constant", manifold_constant, 0, closed="neither")
    measured = input_margin_bound(network, batch, method=method, n_draws=n_draws, output=output)
    gamma = measured.value
    # The logarithm of (2 C_M / gamma)^k: the covering number at radius gamma / 2.
    log_covering = manifold_dim * (math.log(2 * manifold_constant) - logarithm(gamma))
    log_first = 0.5 * (math.log(math.log(2) * 2 * network.n_outputs / batch.n_samples) + log_covering)
    first = Measured.from_log(log_first).value
    info = {**measured.info, "radius": gamma, "log_covering_number": log_covering}
    return Measured(first + math.sqrt(2 * math.log(1 / delta) / batch.n_samples), info=info)


def rademacher_bound(network: Network, batch: Batch) -> Measured:
    r"""Bound on the Rademacher complexity of networks with these Frobenius norms.

    .. math:: \frac{2^{d-1}}{\sqrt m} \, \max_i \|x_i\|_2 \prod_{l=1}^d \|W_l\|_F

    Convolutions are treated as linear operators at their input size. Smaller values suggest better generalisation; the
    value doubles with every layer, whatever the norms.

    Returns
    -------
    Measured
        With one row per weight layer.

    Raises
    ------
    UnsupportedLayerError
        If the network is not a chain of linear maps without biases and rectifiers of slope at most 1.

    Notes
    -----
    Uses the weights and the norms of the samples; the printed equation omits the latter.

    References
    ----------
    Neyshabur, Tomioka, Srebro (2015), Norm-based capacity control in neural networks; Sokolic, Giryes, Sapiro,
    Rodrigues (2017), Robust large margin deep neural networks, eq. 44.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Sequential(nn.Linear(2, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, 4.0]])), net[2].weight.data.fill_(2.0)
    >>> X = torch.tensor([[3.0, 4.0], [0.0, 1.0], [1.0, 0.0], [0.0, 0.0]])  # 2 / sqrt(4) * 5 * (5 * 2)
    >>> round(measure_capacity(net, X, measures="rademacher_bound")["rademacher_bound"], 6)
    50.0
    """
    purpose = "The Rademacher bound"
    for node in rectifier_chain(network, purpose).nodes:
        if node.op == "activation":
            activation, args = activation_of(node)
            if activation.lipschitz(*args) > 1:
                raise node.refuse(purpose, "its slope exceeds 1.")
    norms = frobenius_norm(network, batch, view="operator")
    largest = float(batch.X.flatten(1).double().norm(dim=1).max())
    log_factor = (len(norms.per_layer) - 1) * math.log(2) - 0.5 * math.log(batch.n_samples)
    return Measured.from_log(norms.log() + logarithm(largest) + log_factor, per_layer=norms.per_layer)


def _limits(network: Network, batch: Batch, *, method: str = "spectral", **params: Any) -> Parts | None:
    """A certificate takes the logits; the searches of an estimate end when they have converged."""
    return {"logits": 1} if method in ("spectral", "frobenius") else None


_ROBUSTNESS: dict[str, Any] = {
    "family": "robustness",
    "memory": Peak(layers=3, outputs=3, inputs=1, more=radii_bytes),
    "limits": _limits,
    "invariances": frozenset({"permutation", "layer_rescaling"}),
}

MEASURES = (
    Measure(
        "input_margin_bound",
        input_margin_bound,
        lower_is_better=False,
        source="[JR] theorem 4",
        cost="spectrum",
        passes=CERTIFICATE,
        needs=frozenset({"lipschitz", "data", "labels"}),
        unit="input",
        tasks=("classification",),
        **_ROBUSTNESS,
    ),
    Measure(
        "robustness_bound",
        robustness_bound,
        lower_is_better=True,
        source="[JR] corollary 3",
        cost="spectrum",
        passes=CERTIFICATE,
        needs=frozenset({"lipschitz", "data", "labels"}),
        tasks=("classification",),
        **_ROBUSTNESS,
    ),
    Measure(
        "rademacher_bound",
        rademacher_bound,
        lower_is_better=True,
        source="[JR] eq. 44",
        cost="forward",
        needs=frozenset({"chain", "data"}),
        unit="logit",
        **_ROBUSTNESS,
    ),
)
