"""The tail of the eigenvalues of the layers' weights: the exponent of its power law, and norms based on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from .._validation import NotDefinedError, check_integer, warn
from ..graph import Network, Node
from ..linalg import PowerLaw, fit_power_law
from .batch import Batch
from .layer_operators import check_view, weight_layers
from .pass_limits import NO_PASSES
from .record import Measure, Measured
from .spectral_shape import SPECTRUM, SPECTRUM_PASSES, singular_values

__all__ = ["MEASURES", "alpha_weighted", "log_alpha_norm", "power_law_alpha"]


def power_law_alpha(network: Network, batch: Batch, *, min_eigenvalues: int = 20, view: str = "kernel") -> Measured:
    r"""Mean over the layers of the exponent of the tail of their eigenvalues.

    .. math:: \alpha_l = 1 + n \Big( \sum_{\lambda_i \ge \lambda_{\min}} \ln (\lambda_i / \lambda_{\min}) \Big)^{-1}

    for the density :math:`\lambda^{-\alpha_l}` of the n largest eigenvalues of :math:`W_l^\top W_l`;
    :math:`\lambda_{\min}` is the eigenvalue that minimises the Kolmogorov-Smirnov distance between them and the law.
    Smaller values suggest better generalisation; well trained layers are reported to have exponents from 2 to 6. Biases
    are ignored; batch norm is folded.

    Parameters
    ----------
    min_eigenvalues : int >= 2, default=20
        A layer with fewer positive eigenvalues is left out, with a warning; so is one whose eigenvalues are all
        equal. With fewer, the exponent is uninformative: its standard error exceeds a fifth of alpha - 1.
    view : "kernel" or "operator", default="kernel"
        As in `stable_rank`; copies of a linear layer at several positions do not count.

    Returns
    -------
    Measured
        With the standard error of the mean, and one row per layer included: exponent, standard error
        :math:`(\alpha_l - 1) / \sqrt n`, threshold, n, and distance.

    Raises
    ------
    NotDefinedError
        If no layer is left, or as in `effective_rank`.

    Warns
    -----
    CapacityWarning
        If a layer was left out, once for all measures of a call.

    Notes
    -----
    The cost is that of all singular values. The standard error treats the eigenvalues as independent and the threshold
    as given, as is usual in the literature.

    References
    ----------
    Clauset, Shalizi, Newman (2009), Power-law distributions in empirical data, eqs. 3.1, 3.2, 3.9. Martin, Mahoney
    (2021), Implicit self-regularization in deep neural networks.

    Examples
    --------
    Evenly spaced quantiles of a density proportional to the power -3.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(200, 200, bias=False)
    >>> _ = net.weight.data.copy_(torch.diag((1 - torch.arange(200) / 200) ** -0.25))
    >>> round(measure_capacity(net, measures="power_law_alpha")["power_law_alpha"], 1)
    3.0
    """
    rows = _tails(network, view, min_eigenvalues)
    return _mean_of_tails(rows, [law.alpha for _, law, _ in rows], [law.standard_error for _, law, _ in rows])


def alpha_weighted(network: Network, batch: Batch, *, min_eigenvalues: int = 20, view: str = "kernel") -> Measured:
    r"""Mean over the layers of the tail's exponent times the logarithm of the largest eigenvalue.

    .. math:: \frac{1}{d} \sum_{l=1}^d \alpha_l \log_{10} \|W_l\|_2^2

    over the layers whose eigenvalues have an exponent according to `power_law_alpha`. Smaller values suggest better
    generalisation. Biases are ignored; batch norm is folded.

    Parameters
    ----------
    min_eigenvalues : int >= 2, default=20
    view : "kernel" or "operator", default="kernel"
        Both as in `power_law_alpha`.

    Returns
    -------
    Measured
        With the standard error from that of the exponents, and one row per layer included.

    Notes
    -----
    The cost is that of `power_law_alpha`, and is shared with it.

    References
    ----------
    Martin, Peng, Mahoney (2021), Predicting trends in the quality of state-of-the-art neural networks without access to
    training or testing data, eq. 5.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(200, 200, bias=False)
    >>> _ = net.weight.data.copy_(torch.diag((1 - torch.arange(200) / 200) ** -0.25))
    >>> values = measure_capacity(net, measures=["alpha_weighted", "power_law_alpha"])
    >>> round(values["alpha_weighted"] / values["power_law_alpha"], 4)  # the decimal logarithm of the root of 200
    1.1505
    """
    rows = _tails(network, view, min_eigenvalues)
    logs = [float(logs[-1]) / math.log(10) for _, _, logs in rows]
    values = [law.alpha * log for (_, law, _), log in zip(rows, logs, strict=True)]
    return _mean_of_tails(
        rows, values, [law.standard_error * abs(log) for (_, law, _), log in zip(rows, logs, strict=True)]
    )


def log_alpha_norm(network: Network, batch: Batch, *, min_eigenvalues: int = 20, view: str = "kernel") -> Measured:
    r"""Mean over the layers of the logarithm of the Schatten norm whose exponent is that of the tail.

    .. math:: \frac{1}{d} \sum_{l=1}^d \log_{10} \sum_i \lambda_i^{\alpha_l}

    over the eigenvalues :math:`\lambda_i` of :math:`W_l^\top W_l` and the layers that have an exponent according to
    `power_law_alpha`. Smaller values suggest better generalisation. Biases are ignored; batch norm is folded.

    Parameters
    ----------
    min_eigenvalues : int >= 2, default=20
    view : "kernel" or "operator", default="kernel"
        Both as in `power_law_alpha`.

    Returns
    -------
    Measured
        With the standard error from that of the exponents, and one row per layer included.

    Notes
    -----
    The cost is that of `power_law_alpha`, and is shared with it.

    References
    ----------
    Martin, Peng, Mahoney (2021), Predicting trends in the quality of state-of-the-art neural networks without access to
    training or testing data, eq. 6.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(200, 200, bias=False)
    >>> _ = net.weight.data.copy_(torch.diag((1 - torch.arange(200) / 200) ** -0.25))
    >>> values = measure_capacity(net, measures=["log_alpha_norm", "alpha_weighted"])
    >>> values["log_alpha_norm"] > values["alpha_weighted"]
    True
    """
    rows = _tails(network, view, min_eigenvalues)
    values, errors = [], []
    for _, law, logs in rows:
        powers = law.alpha * logs  # (n,)
        share = np.exp(powers - powers.max())
        values.append((powers.max() + math.log(share.sum())) / math.log(10))
        slope = float((share * logs).sum() / share.sum()) / math.log(10)  # of the logarithm, in alpha
        errors.append(abs(slope) * law.standard_error)
    return _mean_of_tails(rows, values, errors)


def _tails(network: Network, view: str, min_eigenvalues: int) -> list[tuple[Node, PowerLaw, np.ndarray]]:
    """The layers whose positive eigenvalues have a tail, its law, and the ascending logarithms of these eigenvalues."""
    check_integer("min_eigenvalues", min_eigenvalues, 2)
    check_view(view)

    def compute() -> list[tuple[Node, PowerLaw, np.ndarray]]:
        tails, missing = [], []
        for node, values in zip(weight_layers(network), singular_values(network, view), strict=True):
            logs = _log_eigenvalues(values)
            if len(logs) < min_eigenvalues:
                missing.append(f"`{node.label}` ({len(logs)})")
                continue
            try:
                law = fit_power_law(np.exp(logs - logs.max()))
            except NotDefinedError:
                missing.append(f"`{node.label}` (all equal)")
                continue
            tails.append((node, law, logs))
        _warn_of_missing(missing, tails, min_eigenvalues)
        return tails

    return network.once(("tails", view, min_eigenvalues), compute)


def _log_eigenvalues(values: Tensor) -> np.ndarray:
    """Ascending logarithms of the squared singular values that exceed rounding."""
    singular = values.numpy()
    floor = singular[:1].max(initial=0.0) * len(singular) * np.finfo(np.float64).eps
    return 2 * np.log(singular[singular > floor])[::-1]


def _warn_of_missing(missing: Sequence[str], tails: Sequence[Any], min_eigenvalues: int) -> None:
    listed = ", ".join(missing)
    if not tails:
        raise NotDefinedError(
            f"A power law needs a layer with {min_eigenvalues} positive eigenvalues that are not all equal, but the "
            f"layers have: {listed or 'none'}. Lower `min_eigenvalues`."
        )
    if missing:
        warn(
            f"The exponents leave out {len(missing)} of {len(missing) + len(tails)} layers, with fewer than "
            f"{min_eigenvalues} different positive eigenvalues: {listed}."
        )


def _mean_of_tails(
    tails: Sequence[tuple[Node, PowerLaw, np.ndarray]], values: Sequence[float], errors: Sequence[float]
) -> Measured:
    rows: list[dict[str, Any]] = [
        {
            "layer": node.label,
            "value": float(value),
            "standard_error": float(error),
            "x_min": Measured.from_log(math.log(law.x_min) + logs[-1]).value,
            "n_tail": law.n_tail,
            "distance": law.distance,
        }
        for (node, law, logs), value, error in zip(tails, values, errors, strict=True)
    ]
    n = len(rows)
    error = math.sqrt(math.fsum(float(error) ** 2 for error in errors)) / n
    return Measured(math.fsum(map(float, values)) / n, standard_error=error, per_layer=rows, info={"layers": n})


_TAIL: dict[str, Any] = {
    "family": "spectral_shape",
    "lower_is_better": True,
    "needs": frozenset({"layers"}),
    "memory": SPECTRUM,
    "limits": NO_PASSES,
    "cost": "spectrum",
    "passes": SPECTRUM_PASSES,
}
_PERMUTATION = frozenset({"permutation"})

MEASURES = (
    Measure(
        "power_law_alpha",
        power_law_alpha,
        source="Martin, Mahoney (2021)",
        invariances=frozenset({"permutation", "layer_rescaling"}),
        **_TAIL,
    ),
    Measure(
        "alpha_weighted",
        alpha_weighted,
        source="Martin et al. (2021), eq. 5",
        invariances=_PERMUTATION,
        signed=True,
        **_TAIL,
    ),
    Measure(
        "log_alpha_norm",
        log_alpha_norm,
        source="Martin et al. (2021), eq. 6",
        invariances=_PERMUTATION,
        signed=True,
        **_TAIL,
    ),
)
