"""First and second derivatives of the training loss with respect to the module's trainable parameters.

L is the mean loss over all the data (cross-entropy or hinge; squared or absolute error, averaged over the outputs as in
training), and w holds all trainable parameters of the module: batch norm is not folded, a tied tensor counts once, and
a normalised weight is represented by the parameters from which it is computed.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import torch

from .._validation import check_integer, check_interval
from ..derivatives.parameter_vector import raw_parameter_vector
from ..graph import Network
from .batch import Batch
from .hessian_estimates import (
    SMALL,
    estimated_trace,
    extreme_eigenvalue,
    finite,
    layer_hessians,
    layer_of,
    loss_hessian,
)
from .memory import Peak
from .pass_limits import UNSHARED, Parts, at_most
from .record import Measure, Measured

__all__ = ["MEASURES", "hessian_max_eigenvalue", "hessian_min_eigenvalue", "hessian_trace", "loss_gradient_norm"]


def loss_gradient_norm(network: Network, batch: Batch) -> Measured:
    r"""Length of the gradient of the mean loss in the trainable parameters.

    .. math:: \|\nabla_w L(w)\|_2

    L is the mean loss over all the data (cross-entropy or hinge; squared or absolute error, averaged over the outputs
    as in training) and w holds all trainable parameters of the module itself: batch norm is **not** folded, a tied
    tensor counts once. 0 at a stationary point; a smaller value shows that training is closer to one, for weights of
    this scale.

    Raises
    ------
    NotDefinedError
        If there are no trainable parameters, or the gradient is not finite.

    Notes
    -----
    The cost is one forward and one backward pass over all the data.

    References
    ----------
    Dziugaite et al. (2020), In search of robust measures of generalization, gradient-based measures.

    Examples
    --------
    The loss (w x - y)^2 at w = 1, x = 2, y = 0 has the slope 2 (w x - y) x.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 1, bias=False)
    >>> _ = net.weight.data.fill_(1.0)
    >>> measure_capacity(net, torch.tensor([[2.0]]), torch.tensor([0.0]), "loss_gradient_norm")
    {'loss_gradient_norm': 8.0}
    """
    gradient = loss_hessian(network, batch, "The gradient of the loss").gradient()
    return Measured(float(torch.linalg.vector_norm(finite(gradient, "gradient"))))


def hessian_max_eigenvalue(
    network: Network, batch: Batch, *, tol: float = 1e-5, max_products: int = 200, per_layer: bool = False
) -> Measured:
    r"""Largest eigenvalue of the Hessian of the mean loss.

    .. math:: \lambda_{\max} = \max_v \frac{v^\top \nabla_w^2 L(w)\, v}{v^\top v}

    L is the mean loss over all the data (cross-entropy or hinge; squared or absolute error, averaged over the outputs
    as in training) and w holds all trainable parameters of the module itself: batch norm is **not** folded, a tied
    tensor counts once. Smaller (flatter) values suggest better generalisation, but rescaling rectifier layers against
    each other changes the value. Gradient descent with a learning rate above 2 / lambda_max leaves a minimum. Second
    derivatives of rectifiers, max pooling, hinge and absolute loss hold almost everywhere: 0 off the kinks.

    Parameters
    ----------
    tol : float in (0, 1), default=1e-5
        Error of the iteration, relative to the largest absolute eigenvalue.
    max_products : int >= 1, default=200
        Largest number of Hessian-vector products; a `CapacityWarning` reports if `tol` was not reached.
    per_layer : bool, default=False
        Whether to add a row per layer with the same value for the diagonal block of its own parameters.

    Returns
    -------
    Measured
        The report shows the number of products, the residual, and the absolute error.

    Raises
    ------
    NotDefinedError
        If there are no trainable parameters, or the Hessian is not finite.

    Notes
    -----
    With up to 300 parameters the full matrix is computed, with as many products. Above that, Lanczos gives a lower
    bound that is within the stated error of the eigenvalue with probability 1 - 1e-6 over the random start vector,
    however close the next eigenvalues are; the error includes rounding in the network's precision. A product is one
    backward pass through a gradient, which is computed once if all samples fit into memory, and otherwise again for
    every product.

    References
    ----------
    Pearlmutter (1994), Fast exact multiplication by the Hessian; Yao, Gholami, Keutzer, Mahoney (2020), PyHessian.

    Examples
    --------
    For the squared loss of a linear model the Hessian is 2 / C times the mean of x x^T, here diag(4, 16).

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X, y = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.zeros(2)
    >>> value = measure_capacity(nn.Linear(2, 1, bias=False), X, y, "hessian_max_eigenvalue")
    >>> round(value["hessian_max_eigenvalue"], 6)
    16.0
    """
    return _extreme(network, batch, 1, tol, max_products, per_layer)


def hessian_min_eigenvalue(
    network: Network, batch: Batch, *, tol: float = 1e-5, max_products: int = 200, per_layer: bool = False
) -> Measured:
    r"""Smallest eigenvalue of the Hessian of the mean loss, negative at a saddle.

    .. math:: \lambda_{\min} = \min_v \frac{v^\top \nabla_w^2 L(w)\, v}{v^\top v}

    L and w are those of `hessian_max_eigenvalue`. At a minimum the value is at least 0. Larger values mean that the
    loss falls in no direction; a value far below 0 means that training has stopped at a saddle or too early.

    Parameters
    ----------
    tol : float in (0, 1), default=1e-5
        Error of the iteration, relative to the largest absolute eigenvalue.
    max_products : int >= 1, default=200
        Largest number of Hessian-vector products; a `CapacityWarning` reports if `tol` was not reached.
    per_layer : bool, default=False
        Whether to add a row per layer with the same value for the diagonal block of its own parameters.

    Returns
    -------
    Measured
        The report shows the number of products, the residual, and the absolute error.

    Raises
    ------
    NotDefinedError
        If there are no trainable parameters, or the Hessian is not finite.

    Notes
    -----
    Computed like `hessian_max_eigenvalue`, for the negated Hessian, so the value is an upper bound. The lower end of
    the spectrum is denser and takes several times as many products.

    References
    ----------
    Pearlmutter (1994), Fast exact multiplication by the Hessian; Yao, Gholami, Keutzer, Mahoney (2020), PyHessian.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X, y = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.zeros(2)
    >>> value = measure_capacity(nn.Linear(2, 1, bias=False), X, y, "hessian_min_eigenvalue")
    >>> round(value["hessian_min_eigenvalue"], 6)
    4.0
    """
    return _extreme(network, batch, -1, tol, max_products, per_layer)


def hessian_trace(network: Network, batch: Batch, *, n_products: int = SMALL, per_layer: bool = False) -> Measured:
    r"""Trace of the Hessian of the mean loss.

    .. math:: \mathrm{tr}\, \nabla_w^2 L(w) = \sum_i \lambda_i

    L and w are those of `hessian_max_eigenvalue`. The trace is twice the mean rise of the loss under small noise, per
    unit of its variance. Smaller (flatter) values suggest better generalisation, but rescaling rectifier layers against
    each other changes the value. It may be negative away from a minimum.

    Parameters
    ----------
    n_products : int >= 6, default=300
        Largest number of Hessian-vector products. The value is exact if there are at most as many parameters.
    per_layer : bool, default=False
        Whether to add a row per layer with the trace of the diagonal block of its own parameters; the value is then the
        sum of the rows, with `n_products` for each row.

    Returns
    -------
    Measured
        With the standard error if the value is an estimate, from n_products / 3 draws: with 12 products, two standard
        errors cover 90 % of the estimates rather than 95 %.

    Raises
    ------
    NotDefinedError
        If there are no trainable parameters, or the Hessian is not finite.

    Notes
    -----
    Exact with one product per parameter, or Hutch++: a third of the products finds the directions of the large
    eigenvalues, a third computes the trace on these exactly, and a third estimates the rest with random signs. The
    estimate is unbiased; if the spectrum decays, its spread is far below that of random signs alone.

    References
    ----------
    Meyer, Musco, Musco, Woodruff (2021), Hutch++: optimal stochastic trace estimation.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> X, y = torch.tensor([[2.0, 0.0], [0.0, 4.0]]), torch.zeros(2)  # the Hessian is diag(4, 16)
    >>> round(measure_capacity(nn.Linear(2, 1, bias=False), X, y, "hessian_trace")["hessian_trace"], 6)
    20.0
    """
    check_integer("n_products", n_products, 6)
    rows: list[dict[str, Any]] = []
    generator = batch.generator()
    for layer, hessian in layer_hessians(network, batch) if per_layer else [("", loss_hessian(network, batch))]:
        rows.append({"layer": layer, **estimated_trace(hessian, batch, n_products, generator)})
    spreads = [row["standard_error"] for row in rows if row["standard_error"] is not None]
    info = {"method": rows[0]["method"], "size": rows[0]["size"]} if not per_layer else {"method": "sum of the layers"}
    return Measured(
        math.fsum(row["value"] for row in rows),
        standard_error=math.hypot(*spreads) if spreads else None,
        per_layer=rows if per_layer else (),
        info={**info, "products": sum(row["products"] for row in rows)},
    )


def _extreme(network: Network, batch: Batch, sign: int, tol: float, max_products: int, per_layer: bool) -> Measured:
    """The largest (sign 1) or smallest (sign -1) eigenvalue, of the full Hessian and of its blocks."""
    check_interval("tol", tol, 0, 1, closed="neither")
    check_integer("max_products", max_products, 1)

    options: dict[str, Any] = {"sign": sign, "tol": tol, "max_products": max_products}
    whole = extreme_eigenvalue(loss_hessian(network, batch), batch, **options)
    blocks = layer_hessians(network, batch) if per_layer else ()
    rows = [{"layer": name, **extreme_eigenvalue(block, batch, **options)} for name, block in blocks]
    return Measured(whole.pop("value"), per_layer=rows, info=whole)


def _limits(
    network: Network,
    batch: Batch,
    *,
    per_layer: bool,
    n_products: int = 0,
    max_products: int = 0,
    **params: Any,
) -> Parts:
    """A product differentiates the three passes of a gradient, which it also computes unless one chunk holds it."""
    vector = raw_parameter_vector(network, "The Hessian of the loss")
    each = 6 if batch.n_samples <= batch.chunk_size else 9
    sizes: Counter[str] = Counter()  # of the blocks, and of the full matrix
    for name, tensor in zip(vector.names, vector.tensors, strict=True):
        sizes.update({"": tensor.numel(), **({layer_of(name): tensor.numel()} if per_layer else {})})
    at_once, products = (n_products, n_products) if n_products else (SMALL, max_products)
    return {UNSHARED: sum(3 + each * (size if size <= at_once else products) for size in sizes.values())}


_HESSIAN: dict[str, Any] = {
    "family": "hessian",
    "needs": frozenset({"data", "labels", "loss"}),
    "unit": "loss",
    "invariances": frozenset({"permutation"}),
    "memory": Peak(vectors=8, passes=4),
}

MEASURES = (
    Measure(
        "loss_gradient_norm",
        loss_gradient_norm,
        source="Dziugaite et al. (2020)",
        lower_is_better=True,
        cost="jacobian",
        passes=(4,),
        limits=at_most(3),
        **_HESSIAN,
    ),
    Measure(
        "hessian_max_eigenvalue",
        hessian_max_eigenvalue,
        source="Yao et al. (2020)",
        lower_is_better=True,
        cost="spectrum",
        passes=(200,),
        limits=_limits,
        signed=True,
        **_HESSIAN,
    ),
    Measure(
        "hessian_min_eigenvalue",
        hessian_min_eigenvalue,
        source="Yao et al. (2020)",
        lower_is_better=False,
        cost="spectrum",
        passes=(500,),
        limits=_limits,
        signed=True,
        **_HESSIAN,
    ),
    Measure(
        "hessian_trace",
        hessian_trace,
        source="Meyer et al. (2021)",
        lower_is_better=True,
        cost="spectrum",
        passes=(5, "n_products"),
        limits=_limits,
        stochastic=True,
        signed=True,
        **_HESSIAN,
    ),
)
