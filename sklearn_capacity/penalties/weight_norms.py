"""The penalty on the spectral norms of the weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sklearn_capacity._validation import check_instance
from sklearn_capacity.graph import NetworkGraph, Node, UnsupportedLayerError, apply_linear, operator_of
from sklearn_capacity.linalg import leading_singular_vector
from sklearn_capacity.penalties.evaluation import checked_penalty
from sklearn_capacity.penalties.module_graph import whole_graph

__all__ = ["spectral_norm_penalty"]

#: Matrix products, besides "linear", for which the graph has no rule if their axes are unknown.
_OTHER_PRODUCTS = frozenset(
    "addmm baddbmm bilinear bmm conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d convolution "
    "einsum matmul mm mv".split()
)


@checked_penalty
def spectral_norm_penalty(module: nn.Module, X: Tensor) -> Tensor:
    r"""Sum over the layers of the squared spectral norm of the weight.

    .. math:: R = \sum_l \|W_l\|_2^2

    Parameters
    ----------
    module : nn.Module, (n, ...) -> (n, C)
        Its layers are its linear maps and convolutions. A convolution is treated as the operator at its input size,
        including padding and stride, not as its reshaped kernel. Batch norm is folded, or is a diagonal layer if it has
        no adjacent layer: in training mode with the variances of the batch X, else with its running ones. A layer that
        is used twice counts twice; the stacked projections of attention are one matrix. Biases, embeddings and the
        scales of layer, group and RMS norms do not count.
    X : Tensor of shape (n, ...)
        Without batch norm only the shape of a sample matters.

    Returns
    -------
    Tensor of shape ()
        The sum; the product of the same norms is the measure ``spectral_norm``.

    Raises
    ------
    UnsupportedLayerError
        If the module cannot be traced as a graph, uses a trained matrix in another way, or has no layer.

    Notes
    -----
    :math:`\|W\|_2^2 = \|W v\|^2` for the leading right singular vector v, and its derivative is the one with v held
    fixed: one forward and one backward pass of a single sample. v is computed at each step, by an eigendecomposition up
    to 256 units, else by about 20 to 100 products with the layer and its adjoint, in float64: about 2 plain steps of 64
    samples for two convolutions on 28x28 images, and 5 to 15 for a ResNet-20 on 16x16 images. If the largest singular
    value is not simple, the gradient is one of several subgradients.

    Batch norm in training mode costs one more forward and backward pass of X. The penalty then depends on a weight in
    front of it as the loss does: not on its scale. With running variances, which are constants of a step, the gradient
    would shrink such a weight without end.

    References
    ----------
    Y. Yoshida, T. Miyato: Spectral norm regularization for improving the generalizability of deep learning, 2017,
    eq. 6 (with half of each square, and kernels instead of convolutions).

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.penalties import spectral_norm_penalty
    >>> linear = torch.nn.Linear(2, 2)
    >>> _ = linear.weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> round(float(spectral_norm_penalty(linear, torch.randn(5, 2)).detach()), 4)
    16.0
    """
    check_instance("module", module, nn.Module, "a torch.nn.Module")
    graph = whole_graph(module, X, "The spectral-norm penalty", _batch_variances(module, X))
    layers = [node for node in graph.nodes if node.is_layer or _has_matrix(node)]
    norms = [_squared_norm(node, graph) for node in layers if not _scales_a_normalization(node, graph)]
    if not norms:
        raise UnsupportedLayerError(
            f"The spectral-norm penalty needs a linear map or a convolution, but {type(module).__name__} has none."
        )
    return torch.stack(norms).sum()


def _batch_variances(module: nn.Module, X: Tensor) -> dict[str, Tensor]:
    """The variances by which batch norms divide in a training pass of X, under the names of the running ones."""
    norms = {name: m for name, m in module.named_modules() if isinstance(m, _BatchNorm) and m.training}
    norms = {name: norm for name, norm in norms.items() if norm.running_var is not None}
    if not norms:
        return {}
    inputs: dict[str, list[Tensor]] = {name: [] for name in norms}
    handles = [
        norm.register_forward_pre_hook(lambda _, args, kept=inputs[name]: kept.append(args[0]))
        for name, norm in norms.items()
    ]
    try:
        buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}  # the pass updates the copies
        with torch.random.fork_rng([X.device] if X.is_cuda else []):  # dropout takes no draws from training
            torch.func.functional_call(module, buffers, (X,))
    finally:
        for handle in handles:
            handle.remove()
    # (channels,) of (n, channels, ...); a norm that is used twice has no single variance
    return {
        f"{name}.running_var".lstrip("."): values[0].transpose(0, 1).flatten(1).var(1, correction=0)
        for name, values in inputs.items()
        if len(values) == 1
    }


def _has_matrix(node: Node) -> bool:
    """Whether a node without a rule multiplies by a trained matrix, such as attention's projections."""
    if node.op != "opaque" or not any(w.trainable for w in node.tensors().values()):
        return False
    name = str(node.params["target"]).partition(".")[0]
    if name in _OTHER_PRODUCTS:
        raise node.refuse("The spectral-norm penalty", "its operator is not known.", "Use nn.Linear or nn.Conv2d.")
    return name == "linear"


def _scales_a_normalization(node: Node, graph: NetworkGraph) -> bool:
    """Whether a node is the trained scale after a layer norm or a similar one, which is not a matrix."""
    if node.op != "diagonal":
        return False
    before = graph[node.inputs[0]]
    while before.op == "view":  # a group norm returns to the shape of its input
        before = graph[before.inputs[0]]
    return before.op == "function" and before.params["kind"] == "normalization"


def _squared_norm(node: Node, graph: NetworkGraph) -> Tensor:
    """``|W v|^2`` at the leading right singular vector v, which is treated as constant."""
    if node.op == "opaque":
        node = replace(node, op="linear", weight=node.tensors()[1].tensor, bias=None)
    weight = node.weight
    assert weight is not None
    # (*input_shape)
    v = leading_singular_vector(operator_of(node, weight.detach(), graph[node.inputs[0]].shape)).to(weight.dtype)
    return apply_linear(node, v[None], weight, None).square().sum()
