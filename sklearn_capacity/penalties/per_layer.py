"""The cheap penalty on one row of each layer's Jacobian ([JR] eq. 52)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sklearn_capacity._validation import check_option
from sklearn_capacity.derivatives.input_jacobian import OUTPUTS, apply_output
from sklearn_capacity.derivatives.input_sweeps import pull, pull_to_layers, stacks
from sklearn_capacity.derivatives.modes import evaluating
from sklearn_capacity.derivatives.sweep_rules import weight_gradient
from sklearn_capacity.graph import NetworkGraph, Node
from sklearn_capacity.graph.end_layers import first_linear
from sklearn_capacity.linalg.product import product
from sklearn_capacity.penalties.end_layers import GRAM_SHARE
from sklearn_capacity.penalties.evaluation import checked_penalty
from sklearn_capacity.penalties.frobenius import sample_scale
from sklearn_capacity.penalties.gradient_sums import Gradients, wants
from sklearn_capacity.penalties.module_graph import graph_of, has_folded_layers
from sklearn_capacity.penalties.shared_pass import LinearizedBatch, SharedPass, linearized
from sklearn_capacity.penalties.sweep_gradients import softmax_jacobian

__all__ = ["per_layer_penalty"]

LAYER_OPERATORS = ("linear", "conv", "conv_transpose")
LAYER_MODULES = (nn.Linear, nn.modules.conv._ConvNd)


@checked_penalty
def per_layer_penalty(
    function: nn.Module,
    X: Tensor,
    *,
    generator: torch.Generator | None = None,
    output: str = "logits",
    sample_weight: Tensor | None = None,
    shared: SharedPass | None = None,
) -> Tensor:
    r"""Sum over the layers of the mean squared gradient of one random output with respect to the layer's input.

    .. math:: R = \sum_l \frac{1}{n} \sum_{i=1}^{n} \|W_l^T g_{l,i}\|^2, \qquad
              g_{l,i} = \partial f_{\pi(i)} / \partial \hat z_l \,(x_i), \quad \hat z_l = W_l z_{l-1} + b_l

    with a random output :math:`\pi(i)` for each sample. Every g is treated as constant, so the gradient is
    :math:`\nabla_{W_l} R = \frac{2}{n} \sum_i g_{l,i} g_{l,i}^T W_l`.

    **This penalty differs from the exact one** (:func:`frobenius_penalty`): its value was 0.15 to 4.3 times as
    large, and its gradient had a cosine of .69 to .91 with the exact gradient. It also grows with the number of layers.
    Strengths are not comparable.

    Parameters
    ----------
    function : nn.Module, (n, ...) -> (n, C)
        Evaluated in eval mode: batch norm with its running statistics, no dropout. The layers are its linear maps and
        convolutions, each with its own weight; everything between them, including batch norm before or after a layer,
        belongs to g and is treated as constant. In a residual network, the gradient with respect to a layer's input is
        the part that passes through the layer. The layers of a module that cannot be traced as a graph must be
        ``nn.Linear`` and ``nn.Conv*d`` modules.
    X : Tensor of shape (n, ...)
    generator : torch.Generator on the CPU, default=None
        Source of the outputs' indices; None creates a generator with torch's default seed.
    output : {"logits", "softmax"}, default="logits"
        Whether f is the output itself or, as in [JR], its softmax.
    sample_weight : Tensor of shape (n,), default=None
        Weights in the mean over the samples. One of weight 0 is left out.
    shared : SharedPass, default=None
        As in :func:`frobenius_penalty`.

    Returns
    -------
    Tensor of shape ()

    Raises
    ------
    ValueError
        If `output` is not one of the two, or if there is no such layer.

    Notes
    -----
    The cost is one backward pass for all layers together, which also gives the gradient: 1.1 to 1.8 plain steps. The
    penalty can be differentiated once.

    References
    ----------
    Sokolic, Giryes, Sapiro, Rodrigues: Robust large margin deep neural networks, 2017, eq. 52.

    Examples
    --------
    With one layer and one output, it is the squared norm of the weight:

    >>> import torch
    >>> from sklearn_capacity.penalties import per_layer_penalty
    >>> linear = torch.nn.Linear(2, 1, bias=False)
    >>> _ = torch.nn.init.constant_(linear.weight, 3.0)
    >>> round(float(per_layer_penalty(linear, torch.randn(5, 2)).detach()), 3)
    18.0
    """
    check_option("output", output, OUTPUTS)
    generator = torch.Generator() if generator is None else generator
    batch = linearized(function, X, shared)
    if batch is None:
        return _by_hooks(function, X, generator, output, sample_weight)
    plain = graph_of(function, X, folded=False) if has_folded_layers(function) else batch.graph
    assert plain is not None
    layers = _own_layers(batch.graph, plain)
    if layers is None:
        batch, layers = LinearizedBatch(plain, batch.X), _own_layers(plain, plain)
        assert layers is not None
    return _by_chain(batch, layers, generator, output, sample_weight)


class _Layer(NamedTuple):
    """A layer of the module itself, and the scale (out,) with which a batch norm after it multiplies its outputs."""

    node: Node
    scale: Tensor | None


def _own_layers(folded: NetworkGraph, plain: NetworkGraph) -> dict[str, _Layer] | None:
    """The module's own layer behind each layer of the folded graph; None if one has another input.

    With a batch norm folded into the layer before, ``W' = s W`` and ``g = s g'``: so ``W^T g = W'^T g'``, and a sweep
    through the folded graph gives the penalty of the module's own layers.
    """
    if plain is folded:
        return {node.name: _Layer(node, None) for node in plain.nodes if node.op in LAYER_OPERATORS}
    mine, theirs = ({n.name: n for n in graph.nodes if n.op in LAYER_OPERATORS} for graph in (plain, folded))
    if mine.keys() != theirs.keys():
        return None
    if any((n.inputs, n.params) != (theirs[name].inputs, theirs[name].params) for name, n in mine.items()):
        return None
    names, readers = {node.name for node in folded.nodes}, plain.consumers()
    norms = {name: [norm for norm in readers[name] if norm.name not in names] for name in mine}
    return {name: _Layer(node, norms[name][0].weight if norms[name] else None) for name, node in mine.items()}


def _drawn(values: Tensor, generator: torch.Generator) -> Tensor:
    """A unit vector of a random output for each sample, (n, C)."""
    # (n, 1)
    index = torch.randint(values.shape[1], (len(values), 1), generator=generator, device="cpu").to(values.device)
    return torch.zeros_like(values).scatter_(1, index, 1.0)


@dataclass
class _FirstLayer:
    """A first linear layer W (h, D) whose products g W, (n, D), are left out.

    With S = sum_i w_i g_i g_i^T, its part of the penalty is <S W, W>, half of whose gradient is S W: n h^2 + h^2 D
    multiplications in place of 2 n h D.
    """

    node: Node
    weight: Tensor
    squares: Tensor | None = None

    @classmethod
    def chosen(cls, graph: NetworkGraph, layers: Mapping[str, _Layer], n: int) -> _FirstLayer | None:
        """The first layer, if this saves work for n samples."""
        node = first_linear(graph)
        layer = None if node is None else layers.get(node.name)
        if node is None or layer is None or layer.scale is not None or layer.node.weight is None:
            return None
        weight = layer.node.weight
        h, D = weight.shape
        return cls(node, weight) if wants(weight) and h * (n + D) <= GRAM_SHARE * 2 * n * D else None

    def add(self, g: Tensor, weights: Tensor | None) -> None:
        """Add samples with cotangents g (n, h) of the layer's output."""
        squares = product((g if weights is None else g * weights[:, None]).t(), g)  # (h, h)
        self.squares = squares if self.squares is None else self.squares.add_(squares)

    def finish(self, sums: Gradients) -> Tensor:
        """The layer's part of the penalty; adds its gradient."""
        assert self.squares is not None
        weight = self.weight.detach()
        gradient = product(self.squares, weight)  # (h, D)
        sums.add(self.weight, gradient)
        return torch.dot(gradient.flatten(), weight.flatten())


def _by_chain(
    batch: LinearizedBatch,
    layers: Mapping[str, _Layer],
    generator: torch.Generator,
    output: str,
    sample_weight: Tensor | None,
) -> Tensor:
    values = batch.outputs
    n_samples, vectors = len(values), _drawn(values, generator)  # (n, C)
    scale = None if sample_weight is None else sample_scale(values, sample_weight)  # (n,)
    trained = {name for name, layer in layers.items() if wants(layer.node.weight)}
    sums, totals = Gradients(), []
    n, _ = stacks(batch.graph, n_samples, values)
    first = _FirstLayer.chosen(batch.graph, layers, n_samples)
    sweep = pull if first is None else pull_to_layers
    with torch.no_grad():  # g is constant
        for samples, tape in batch.parts(n):
            weights = None if scale is None else scale[samples]

            def keep(node: Node, g: Tensor, part: Tensor, weights: Tensor | None = weights) -> bool:
                # g (n, out) and part = g W (n, in) for a linear layer; (n, channels, ...) for a convolution
                if node.op not in LAYER_OPERATORS:
                    return False
                if first is not None and node is first.node:
                    first.add(g, weights)
                    return False
                weighted = part if weights is None else part * weights.reshape(-1, *(1,) * (part.dim() - 1))
                squares = torch.linalg.vector_norm(part).square() if weights is None else (part * weighted).sum()
                totals.append(squares)
                if node.name in trained:
                    _add_gradient(sums, layers[node.name], weighted, g)
                return weighted is part and node.op == "linear"  # its gradient stays in factored form

            v = vectors[samples]  # (n', C) for the n' samples of this part
            v = softmax_jacobian(tape.logits.softmax(1), v) if output == "softmax" else v
            sweep(tape, v, keep)
        if first is not None:
            totals.append(first.finish(sums))
    _check_layers(totals)
    factor = 1 / n_samples if scale is None else 1.0
    return sums.attach(torch.stack(totals).sum() * factor, 2 * factor)


def _add_gradient(sums: Gradients, layer: _Layer, t: Tensor, g: Tensor) -> None:
    """Add the gradient of <s g, W t> for the scale s behind W."""
    node, scale = layer
    assert node.weight is not None
    if scale is None:
        sums.add_weight(node.weight, node, t, g)
    elif node.op == "conv":  # the kernel is smaller than g
        gradient = weight_gradient(node, t, g, None)  # (out, in, *kernel)
        sums.add(node.weight, gradient.mul_(scale.reshape(-1, *(1,) * (gradient.dim() - 1))))
    else:
        channels = scale if node.op == "linear" else scale.reshape(-1, *(1,) * (g.dim() - 2))
        sums.add_weight(node.weight, node, t, g * channels)


def _check_layers(layers: Sequence[Any]) -> None:
    if not layers:
        raise ValueError(
            "`function` must contain a linear map or a convolution, the layers that this penalty sums over, got none "
            'that can be found. Use the "frobenius" or the "projection" norm.'
        )


def _by_hooks(
    function: Any, X: Tensor, generator: torch.Generator, output: str, sample_weight: Tensor | None
) -> Tensor:
    """The same for a module without a graph, from the inputs and outputs of its layers, recorded by hooks."""
    with evaluating(function), torch.enable_grad():
        with _caught(function) as calls:
            values = apply_output(function(X.detach().requires_grad_(True)), output)  # (n, C)
        # g includes the root of the weights: sum_i w_i |W^T g_i|^2 = sum_i |W^T sqrt(w_i) g_i|^2.
        v = _drawn(values.detach(), generator) * sample_scale(values.detach(), sample_weight)[:, None].sqrt()
        # g_l, like the layers' outputs
        gradients = torch.autograd.grad(values, [y for _, _, y in calls], v, allow_unused=True, retain_graph=True)
        totals = []
        for (layer, x, _), g in zip(calls, gradients, strict=True):
            if g is not None:
                x = x.detach().requires_grad_(True)
                # W_l^T g_l, like the layer's input; g_l is constant
                (t,) = torch.autograd.grad(layer(x), x, g, create_graph=True)
                totals.append(t.square().sum())
    return torch.stack(totals).sum()


@contextmanager
def _caught(module: Any) -> Iterator[list[tuple[nn.Module, Tensor, Tensor]]]:
    """Collect (layer, input, output) of every call of a linear or convolutional layer."""
    layers = [m for m in module.modules() if isinstance(m, LAYER_MODULES)] if isinstance(module, nn.Module) else []
    _check_layers(layers)
    calls: list[tuple[nn.Module, Tensor, Tensor]] = []

    def catch(layer: nn.Module, args: tuple[Any, ...], result: Tensor) -> Tensor:
        calls.append((layer, args[0], result))
        return result.clone()  # an in-place operator after the layer would overwrite `result`

    handles = [layer.register_forward_hook(catch) for layer in layers]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()
