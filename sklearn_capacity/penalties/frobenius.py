"""Penalties on the squared Frobenius norm of the input-output Jacobian ([JR] eq. 49)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sklearn_capacity._validation import check_integer, check_option, shown
from sklearn_capacity.derivatives.input_jacobian import OUTPUTS, jacobian_products
from sklearn_capacity.derivatives.modes import evaluating
from sklearn_capacity.penalties.end_layers import FirstLayer
from sklearn_capacity.penalties.evaluation import checked_penalty
from sklearn_capacity.penalties.one_hidden_layer import one_hidden_layer
from sklearn_capacity.penalties.output_basis import in_basis_of_last_layer
from sklearn_capacity.penalties.shared_pass import SharedPass, linearized
from sklearn_capacity.penalties.sweep_gradients import chain_products

__all__ = [
    "cpu_has_bfloat16",
    "frobenius_penalty",
    "orthonormal_directions",
    "projection_penalty",
    "sample_scale",
    "weighted_mean",
]

PRECISIONS = ("full", "bfloat16")


@checked_penalty
def frobenius_penalty(
    function: Callable[[Tensor], Tensor],
    X: Tensor,
    *,
    output: str = "logits",
    precision: str = "full",
    sample_weight: Tensor | None = None,
    shared: SharedPass | None = None,
) -> Tensor:
    r"""Mean squared Frobenius norm of the Jacobian, exact and differentiable.

    .. math:: R = \frac{1}{n} \sum_{i=1}^{n} \|J(x_i)\|_F^2, \qquad J(x) = \partial f / \partial x

    Parameters
    ----------
    function : nn.Module or callable, (n, ...) -> (n, C)
        A module is evaluated in eval mode: batch norm with its running statistics, no dropout.
        Any other callable must treat its samples independently.
    X : Tensor of shape (n, ...)
    output : {"logits", "softmax"}, default="logits"
        Whether f is the output itself or, as in [JR], its softmax.
    precision : {"full", "bfloat16"}, default="full"
        The numbers in which the sweeps multiply; "bfloat16" has 8 significant bits, and its products are summed in
        single precision. See Notes.
    sample_weight : Tensor of shape (n,), default=None
        The mean becomes ``(1/n) sum_i w_i ||J(x_i)||_F^2``. A sample of weight 0 is left out.
    shared : SharedPass, default=None
        The loss's forward pass from :func:`forward_pass` with the same module and X; the penalty then needs none.

    Returns
    -------
    Tensor of shape ()
        At least 0; 0 means that the output does not change with the input. Small values suggest
        good generalisation ([JR] theorem 4).

    Raises
    ------
    ValueError
        If `output` or `precision` is not one of the two, or if the network or the device has no such precision.

    Notes
    -----
    For a module with a graph (linear layers, convolutions, pooling, element-wise activations), each of the C outputs
    costs one backward sweep, one forward sweep and the gradients of the weights: in total 4 to 11 plain steps for C =
    10. If the last layer is linear with H <= C / 2 inputs, the norm of the logits' Jacobian costs as much as for H
    outputs; with one hidden layer it has a closed form whose cost hardly grows with C, of 2 to 6 plain steps. The
    gradient is in closed form, too, and can be differentiated only once. Other functions take C backward passes that
    can be differentiated any number of times, at 5 to 8 times the memory.

    In "bfloat16" the forward pass, logits and sums stay in single precision; weights, slopes and both sweeps are
    rounded. The value was off by less than 0.1 % and its gradient by 0.05 to 0.4 % (relative error of the whole vector)
    for a perceptron, a convolutional network and a ResNet-20, and by less than 2 % for networks with layers of a few
    units. On a processor with bfloat16 products (AVX-512) a step took 3.8 plain steps instead of 6.2 for the
    perceptron with layers of 784 units, 6.2 instead of 9.1 for the ResNet, 8.2 instead of 8.5 for the convolutional
    network. It needs `X` in float32, a module with a graph, and a device with such products.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues: Robust large margin deep neural networks, 2017, eq. 49.

    Examples
    --------
    The Jacobian of a linear map is its matrix, whatever the input:

    >>> import torch
    >>> from sklearn_capacity.penalties import frobenius_penalty
    >>> linear = torch.nn.Linear(2, 2, bias=False)
    >>> _ = torch.nn.init.constant_(linear.weight, 3.0)
    >>> float(frobenius_penalty(linear, torch.randn(5, 2)).detach())
    36.0
    """
    check_option("precision", precision, PRECISIONS)
    dtype = _bfloat16(X) if precision == "bfloat16" else None
    return squared_products(
        function, X, None, output=output, precision=dtype, sample_weight=sample_weight, shared=shared
    )


def _bfloat16(X: Tensor) -> torch.dtype:
    """The type, if the device of X multiplies in it."""
    name = X.device.type
    if X.dtype != torch.float32:
        raise ValueError(f"`precision` must be 'full' for `X` of {X.dtype}, got 'bfloat16', which shortens float32.")
    if not (torch.cuda.is_bf16_supported() if name == "cuda" else name == "cpu" and cpu_has_bfloat16()):
        raise ValueError(f"`precision` must be 'full' on this {name} device, which has no products in bfloat16.")
    return torch.bfloat16


def cpu_has_bfloat16() -> bool:
    """Whether torch multiplies in bfloat16 here, in oneDNN."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return torch.backends.mkldnn.is_available() and supported is not None and bool(supported())


@checked_penalty
def projection_penalty(
    function: Callable[[Tensor], Tensor],
    X: Tensor,
    *,
    n_projections: int = 1,
    generator: torch.Generator | None = None,
    output: str = "logits",
    sample_weight: Tensor | None = None,
    shared: SharedPass | None = None,
) -> Tensor:
    r"""Unbiased estimate of the mean squared Frobenius norm of the Jacobian by random projections.

    .. math:: R = \frac{1}{n} \sum_{i=1}^{n} \frac{C}{k} \sum_{j=1}^{k} \|v_{ij}^T J(x_i)\|^2

    with k orthonormal directions, uniform on the sphere and drawn independently for each sample.

    Parameters
    ----------
    function : nn.Module or callable, (n, ...) -> (n, C)
        As in :func:`frobenius_penalty`.
    X : Tensor of shape (n, ...)
    n_projections : int in [1, C], default=1
        k. With k = C the estimate is exact.
    generator : torch.Generator on the CPU, default=None
        Source of the directions; None creates a generator with torch's default seed.
    output : {"logits", "softmax"}, default="logits"
    sample_weight : Tensor of shape (n,), default=None
        As in :func:`frobenius_penalty`.
    shared : SharedPass, default=None
        As in :func:`frobenius_penalty`.

    Returns
    -------
    Tensor of shape ()

    Raises
    ------
    ValueError
        If `n_projections` exceeds the number of outputs C or is less than 1.

    Notes
    -----
    Computed like the Frobenius penalty, from k directions instead of C: 1.3 to 2.1 plain steps for k = 1. Orthonormal
    directions give a smaller variance than independent ones at the same cost.

    References
    ----------
    Sokolic et al. 2017, eq. 49; Hoffman, Roberts, Yaida: Robust learning with Jacobian
    regularization, 2019, eq. 7.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.penalties import frobenius_penalty, projection_penalty
    >>> net, X = torch.nn.Linear(4, 3), torch.randn(10, 4)
    >>> exact, estimate = frobenius_penalty(net, X), projection_penalty(net, X, n_projections=3)
    >>> torch.testing.assert_close(exact, estimate)
    """
    n_projections = check_integer("n_projections", n_projections)
    generator = torch.Generator() if generator is None else generator

    def directions(values: Tensor) -> Tensor:
        # E |v^T J|^2 = |J|_F^2 / C for v uniform on the sphere; the vectors include the root of C / k.
        scale = math.sqrt(values.shape[1] / n_projections)
        return scale * orthonormal_directions(n_projections, values, generator)

    return squared_products(function, X, directions, output=output, sample_weight=sample_weight, shared=shared)


def squared_products(
    function: Callable[[Tensor], Tensor],
    X: Tensor,
    directions: Callable[[Tensor], Tensor] | None,
    *,
    output: str = "logits",
    precision: torch.dtype | None = None,
    sample_weight: Tensor | None = None,
    shared: SharedPass | None = None,
) -> Tensor:
    """Weighted mean over the samples of squared Jacobian products, summed over directions; differentiable.

    ``directions`` maps the output's values to vectors of shape (k, n, C); None means all unit vectors. A module with a
    graph uses the chain, anything else a loop of double backward passes, which is correct for any function.
    """
    check_option("output", output, OUTPUTS)
    batch = linearized(function, X, shared)
    if batch is None:
        if precision is not None:
            raise ValueError(
                f"`precision` must be 'full' for {type(function).__name__}, whose Jacobian has no chain of operators."
            )
        with evaluating(function):
            # k of (n, ...)
            products = list(jacobian_products(function, X, directions, output=output, create_graph=True))
        squares = torch.stack([product.flatten(1).square().sum(dim=1) for product in products]).sum(dim=0)  # (n,)
        return weighted_mean(squares, sample_weight)
    scale = sample_scale(batch.outputs, sample_weight)  # (n,)
    if directions is None:
        value = one_hidden_layer(batch, scale) if output == "logits" and precision is None else None
        if value is not None:
            return value
        batch = in_basis_of_last_layer(batch, output)
    values = batch.outputs  # (n, C), or fewer columns
    vectors = None if directions is None else directions(values)  # (k, n, C)
    m = values.numel() if vectors is None else len(vectors) * len(values)
    first = FirstLayer.chosen(batch.graph, m, m) if precision is None else None
    return chain_products(
        batch,
        None if vectors is None else lambda part, _: vectors[:, part],
        scale,
        output,
        first=first,
        precision=precision,
    )


def sample_scale(values: Tensor, sample_weight: Tensor | None) -> Tensor:
    """The factor of each sample in a weighted mean, (n,)."""
    scale = torch.full_like(values[:, 0], 1 / len(values))  # (n,)
    return scale if sample_weight is None else scale * sample_weight


def orthonormal_directions(k: int, values: Tensor, generator: torch.Generator) -> Tensor:
    """k orthonormal vectors of length C for each of the n samples in `values` (n, C): (k, n, C)."""
    n_samples, n_outputs = values.shape
    if k > n_outputs:
        raise ValueError(
            f"`n_projections` must be at most the number of outputs {n_outputs}, got {shown(k)}. "
            'Use the "frobenius" norm, which is exact.'
        )
    drawn = torch.randn(k, n_samples, n_outputs, generator=generator, dtype=torch.float64, device="cpu")  # (k, n, C)
    rows: list[Tensor] = []
    for vector in drawn:  # Gram-Schmidt, twice: enough for orthogonality to rounding
        for _ in range(2):
            for row in rows:
                vector = vector - (vector * row).sum(dim=1, keepdim=True) * row  # (n, C)
        rows.append(vector / vector.norm(dim=1, keepdim=True))
    return torch.stack(rows).to(device=values.device, dtype=values.dtype)


def weighted_mean(values: Tensor, sample_weight: Tensor | None) -> Tensor:
    """``(1/n) sum_i w_i values_i``."""
    return values.mean() if sample_weight is None else (values * sample_weight).mean()
