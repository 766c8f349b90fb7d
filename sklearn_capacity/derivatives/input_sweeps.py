"""Products with the input-output Jacobian by sweeps through a linearised network, without autograd.

A network is linearised once at a batch (`linearize`). Then ``v^T J`` is one backward sweep through the transposed
operators (`pull`) and ``J t`` one forward sweep (`push`). The derivative of ``R = 1/2 |v^T J|^2`` with respect to a
weight needs both: with ``t = J^T v`` pushed forward, ``dR / dW_l = g_l t_{l-1}^T`` for cotangents g_l and tangents
t_{l-1} of layer l. So a penalty on Jacobians takes three sweeps per direction and stores no graph of a graph.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..graph.activations import activation_of
from ..graph.end_layers import last_linear
from ..graph.evaluate import EVALUATE, slice_index
from ..graph.functions import function_of
from ..graph.max_pooling import pool_indices
from ..graph.memory_layout import channels_last
from ..graph.nodes import NetworkGraph, Node, interpret
from ..linalg.product import LARGE, affine, product
from .freed_memory import keep_freed_memory
from .sweep_rules import ADJOINT, FRESH, TANGENT, convolution, times_slope
from .tape import Selection, Tape

__all__ = ["ROWS_BYTES", "chain_refusal", "jacobian_rows", "linearize", "pull", "pull_to_layers", "push", "stacks"]

#: called with a node, the cotangent of its output, and its contribution to the cotangent of its input, if computed
Keep = Callable[[Node, Tensor, Any], "bool | None"]

#: larger pooling windows store indices
LARGEST_TILE = 16
#: operators whose cotangents are views of the incoming ones
ALIASES = ("view", "permute")
#: Bytes of the largest tensor in a stack. With 3 MB an exact penalty on ResNet-20 took 10.5 to 12.3 plain steps, with
#: 1.5 MB 9.0 to 10.3, with 1 MB 10.2 to 11.6; for an MLP and a small convolutional network it hardly matters.
STACK_BYTES = 3 << 19
#: The same without gradients, where nothing else is kept. With 3 MB the rows took 2 to 9 % less time than with 1.5 MB.
ROWS_BYTES = 3 << 20
#: Divisor of a GPU's memory that gives the budget of one stack; two sweeps hold their values at once.
GPU_SHARE = 16


def chain_refusal(graph: NetworkGraph) -> str | None:
    """The reason why the chain does not apply to the graph, or None if it does."""
    for node in graph.nodes:
        if node.op != "input" and node.op not in ADJOINT:
            return str(node.refuse("The Jacobian chain"))
    shape = graph[graph.output].shape
    return None if len(shape) == 1 else f"The output has shape {shape} per sample."


def linearize(graph: NetworkGraph, X: Tensor, rules: Mapping[str, Callable[..., Tensor]] | None = None) -> Tape:
    """Run the network and store what its Jacobians need; `rules` override those of operators.

    The result is differentiable: logits and smooth pre-activations carry a graph if gradients are enabled and the
    weights require them; slopes and selections are constants.
    """
    images = graph.images
    X = channels_last(X) if graph.input.name in images else X
    tape = Tape(graph, X)
    readers = graph.n_readers

    def activation(node: Node, z: Tensor) -> Tensor:
        row, args = activation_of(node)
        y = row.value(z, *args)  # (n, *node.shape), like z
        y = channels_last(y) if node.name in images else y
        with torch.no_grad():
            tape.slopes[node.name] = row.slope(z, y, *args)
        if not row.piecewise_linear:
            tape.smooth[node.name] = z
        if node.weight is not None and row.slope_mask is not None:
            tape.slope_masks[node.name] = row.slope_mask(z.detach())
        return y

    def max_pool(node: Node, x: Tensor) -> Tensor:
        y, indices = pool_indices(node, x)  # (n, channels, *windows) each
        before = node.inputs[0]
        # If only the pooling reads a rectifier, the pooling's masks include its slopes, which saves one product.
        constant = before in tape.slopes and before not in tape.smooth and graph[before].weight is None
        joined = constant and readers[before] == 1
        masks = _masks(node, x, indices, tape.slopes[before] if joined else None)
        if joined and masks:
            tape.slopes[before] = None
        tape.selections[node.name] = Selection(None if masks else indices, masks)
        return y

    def conv(node: Node, x: Tensor) -> Tensor:
        _keep_memory(node, x.shape[0] * math.prod(node.shape[1:]))
        return convolution(tape, node, x, node.bias)

    def linear(node: Node, x: Tensor) -> Tensor:
        _keep_memory(node, x.shape[:-1].numel())
        assert node.weight is not None
        return affine(x, node.weight, node.bias)

    def function(node: Node, *xs: Tensor) -> Tensor:
        row, args = function_of(node)
        y = row.value(xs, *args)  # (n, *node.shape)
        tape.points[node.name] = xs
        with torch.no_grad():
            tape.kept[node.name] = row.kept(xs, y, *args)
        return y

    recording = {
        "activation": activation, "max_pool": max_pool, "conv": conv, "linear": linear, "function": function
    }  # fmt: skip
    tape.logits = interpret(graph, {**EVALUATE, **recording, **(rules or {})}, X)
    return tape


def _keep_memory(node: Node, positions: int) -> None:
    """Let the process keep what it frees, if a layer that reads its weight at so many positions takes long."""
    assert node.weight is not None
    if positions * node.weight.numel() >= LARGE:
        keep_freed_memory()


def _masks(node: Node, x: Tensor, indices: Tensor, slope: Tensor | None) -> list[tuple[tuple[slice, ...], Tensor]]:
    """A tiling max-pooling as one mask per position in its windows, times the slope of the preceding activation."""
    p = node.params
    if "adaptive" in p:
        return []
    plain = not any(p["padding"]) and set(p["dilation"]) == {1} and not p["ceil_mode"]
    if not plain or p["kernel"] != p["stride"] or math.prod(p["kernel"]) > LARGEST_TILE:
        return []
    places = torch.arange(x.shape[2:].numel(), device=x.device).reshape(x.shape[2:])  # (*side), as counted by `indices`
    strides = places.stride()
    starts = tuple(slice(0, k * m, k) for k, m in zip(p["kernel"], indices.shape[2:], strict=True))
    firsts = places[starts]  # (*windows)
    within = indices - firsts  # (n, channels, *windows), counted from a window's first position
    out = []
    for offset in itertools.product(*(range(k) for k in p["kernel"])):
        parts = zip(offset, p["kernel"], indices.shape[2:], strict=True)
        place = (slice(None), slice(None), *(slice(o, o + k * m - o, k) for o, k, m in parts))
        taken = within == sum(o * step for o, step in zip(offset, strides, strict=True))
        out.append((place, taken.to(x.dtype) if slope is None else slope[place] * taken))
    return out


def pull(
    tape: Tape, vectors: Tensor, keep: Keep | None = None, start: str | None = None, stop: str | None = None
) -> Tensor:
    """``v^T J`` for stacked directions.

    Parameters
    ----------
    tape : Tape
    vectors : Tensor of shape (k n, C)
        k blocks with one direction per sample.
    keep : callable(node, g, contribution), default=None
        Called at weights and at nodes with a second derivative with the cotangent g of the node's output and the
        contribution to the cotangent of its (first) input. g stays unchanged; the contribution may change after the
        call, unless it returns True.
    start : str, default=None
        Name of a node on all paths to the output whose cotangents `vectors` (k n, ...) are; they may change.
    stop : str, default=None
        Name of a node on all paths from the input whose cotangents are returned; None stands for the input.

    Returns
    -------
    Tensor of shape (k n, ...)
    """
    sweep = _BackwardSweep(tape, vectors, keep, start)
    stop = stop or tape.graph.input.name
    sweep.run(_until(tape.graph, start)[len(_until(tape.graph, stop)) :])
    return sweep.cotangents[stop]


def pull_to_layers(tape: Tape, vectors: Tensor, keep: Keep, start: str | None = None) -> None:
    """Like `pull`, but ends at the first layers: the products with these, which only the input needs, are left out."""
    curved, last = tape.curved, set[str]()  # `last` are the nodes that no layer precedes
    for node in tape.graph.nodes:
        if last.issuperset(node.inputs) and node.weight is None and node.name not in curved:
            last.add(node.name)
    nodes = [node for node in _until(tape.graph, start) if node.name not in last]
    _BackwardSweep(tape, vectors, keep, start, last).run(nodes)


def _until(graph: NetworkGraph, name: str | None) -> Sequence[Node]:
    """The nodes up to one of them; None stands for the last."""
    return graph.nodes if name is None else graph.nodes[: graph.nodes.index(graph[name]) + 1]


class _BackwardSweep:
    """One backward sweep through the transposed operators.

    The cotangent of a node s is the sum over its readers r, ``g_s = sum_r (dr/ds)^T g_r``; each r contributes its term
    when the sweep passes r. Element-wise operators cost little more than a pass over memory, so sums and slopes are
    written in place if nothing else refers to the tensor: neither the caller, who passes `vectors`; nor another node,
    which receives the same cotangent from an addition; nor `keep`.

    Attributes
    ----------
    cotangents : dict of node name to Tensor of shape (k n, *node.shape)
        Partial sums of nodes that the sweep has not passed yet.
    exclusive : set of str
        Nodes whose cotangent only the sweep refers to.
    omitted : collection of str
        Nodes whose cotangent is not needed.
    """

    def __init__(
        self, tape: Tape, vectors: Tensor, keep: Keep | None, start: str | None = None, omitted: Collection[str] = ()
    ) -> None:
        self.tape, self.keep, self.curved, self.omitted = tape, keep, tape.curved, omitted
        self.images = tape.graph.images
        self.cotangents: dict[str, Tensor] = {start or tape.graph.output: vectors}
        self.exclusive: set[str] = set() if start is None else {start}

    def run(self, nodes: Sequence[Node]) -> None:
        """Pass the nodes, from the last to the first."""
        for node in reversed(nodes):
            self._pass(node)

    def _pass(self, node: Node) -> None:
        g = self.cotangents.pop(node.name)  # (k n, *node.shape); complete, since all readers of the node come after it
        if self.omitted and all(name in self.omitted for name in node.inputs):
            assert self.keep is not None
            self.keep(node, g, None)
            return
        if node.op == "slice":
            self._add_slice(node, g)
            return
        parts, exclusive = self._contributions(node, g)
        if self.keep is not None and (node.weight is not None or node.name in self.curved):
            exclusive = not self.keep(node, g, parts[0]) and exclusive
        for name, part in zip(node.inputs, parts, strict=True):
            if name not in self.omitted:
                self._add(name, part, exclusive)

    def _contributions(self, node: Node, g: Tensor) -> tuple[tuple[Tensor, ...], bool]:
        """The node's contributions to its inputs' cotangents, (k n, *shape), and whether only the sweep has them."""
        given_up = node.name in self.exclusive
        if node.op == "activation" and given_up and node.name not in self.tape.smooth and node.weight is None:
            return (times_slope(self.tape, node, g, in_place=True),), True
        parts = self._laid_out(node, ADJOINT[node.op](self.tape, node, g))
        return parts, node.op in FRESH or (node.op in ALIASES and given_up)

    def _laid_out(self, node: Node, parts: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The cotangents of a node's inputs, those of images with channels last."""
        if self.images.isdisjoint(node.inputs):
            return parts
        pairs = zip(node.inputs, parts, strict=True)
        return tuple(channels_last(part) if name in self.images else part for name, part in pairs)

    def _add_slice(self, node: Node, g: Tensor) -> None:
        """Add to a part of the input's cotangent, so that slices of one tensor share its zeros."""
        (name,) = node.inputs
        total = self.cotangents.get(name)
        if total is None:
            (self.cotangents[name],) = self._laid_out(node, ADJOINT["slice"](self.tape, node, g))
        else:
            total = total if name in self.exclusive else total.clone()
            total[slice_index(node)] += g
            self.cotangents[name] = total
        self.exclusive.add(name)

    def _add(self, name: str, part: Tensor, exclusive: bool) -> None:
        total = self.cotangents.get(name)
        if total is not None:
            part = part.add_(total) if exclusive else total + part
            exclusive = True
        self.cotangents[name] = part
        if exclusive:
            self.exclusive.add(name)


def push(
    tape: Tape, tangents: Tensor, keep: Callable[..., None], stop: str | None = None, start: str | None = None
) -> Tensor | None:
    """``J t`` for stacked tangents t of shape (k n, ...).

    Parameters
    ----------
    keep : callable(node, *ts)
        Called at weights and at what has a second derivative with the tangents of the node's inputs.
    stop : str, default=None
        Name of a node whose output is not needed; the sweep ends there and returns None.
    start : str, default=None
        Name of a node behind which all others lie, whose output's tangents t are.
    """
    graph = tape.graph
    readers, remaining = graph.n_readers, graph.n_readers.copy()
    before = _until(graph, start or graph.input.name)
    values, curved = {before[-1].name: tangents}, tape.curved  # node -> tangent of its output, (k n, *node.shape)
    for node in graph.nodes[len(before) :]:
        inputs = [values[name] for name in node.inputs]
        if node.weight is not None or node.name in curved:
            keep(node, *inputs)
        if node.name == stop:
            return None
        if node.op == "activation" and graph[node.inputs[0]].op in FRESH and readers[node.inputs[0]] == 1:
            values[node.name] = times_slope(tape, node, inputs[0], in_place=True)
        else:
            value = TANGENT[node.op](tape, node, *inputs)
            values[node.name] = channels_last(value) if node.name in graph.images else value
        for name in node.inputs:
            remaining[name] -= 1
            if not remaining[name]:
                values.pop(name, None)
    return values[graph.output]


def stacks(graph: NetworkGraph, n_samples: int, like: Tensor, n_bytes: int | None = None) -> tuple[int, int]:
    """The number of samples per stack, and of directions stacked on them, for the device of `like`.

    On a CPU, the largest tensor should stay in the cache, where element-wise operators are cheap: it has at most
    `n_bytes`, by default `STACK_BYTES`. On a GPU, all tensors together may take a share of its memory.
    """
    sizes = [size * like.element_size() for size in graph.sizes]
    if like.device.type == "cuda":
        total = torch.cuda.get_device_properties(like.device).total_memory
        rows = total // GPU_SHARE // max(sum(sizes), 1)
    else:
        rows = (n_bytes or STACK_BYTES) // max(max(sizes), 1)
    if rows >= n_samples:
        return n_samples, rows // n_samples
    return math.ceil(n_samples / math.ceil(n_samples / max(rows, 1))), 1


def jacobian_rows(
    graph: NetworkGraph, X: Tensor, vectors: Tensor | None = None, first: tuple[Node, Tensor] | None = None
) -> Tensor:
    """Rows ``v^T J(x)`` of the input-output Jacobian, without gradients.

    Parameters
    ----------
    graph : NetworkGraph
    X : Tensor of shape (n, ...)
    vectors : Tensor of shape (k, C) or (k, n, C), default=None
        None stands for the C unit vectors.
    first : (Node, Tensor of shape (h, D)), default=None
        The first linear map, and a matrix that takes the place of its weight, whatever its number of columns D is.

    Returns
    -------
    Tensor of shape (n, k, D)
        D is the number of features of a sample, or of columns of the matrix in `first`.
    """
    start, vectors = _from_last_layer(graph, X, vectors)
    stop, columns = (None, X[0].numel()) if first is None else (first[0].name, first[1].shape[1])
    n, k = stacks(graph, len(X), X, ROWS_BYTES)
    rows = torch.empty(len(X), len(vectors), columns, dtype=X.dtype, device=X.device)  # (n, k, D)
    with torch.no_grad():
        for begin in range(0, len(X), n):
            samples = slice(begin, begin + n)
            tape = linearize(graph, X[samples])
            for one in range(0, len(vectors), k):
                v = vectors[one : one + k, samples]  # (k, n, C or h) of this stack
                copied = v.clone(memory_format=torch.contiguous_format)  # never a view of a weight, since it may change
                pulled = pull(tape, copied.flatten(0, 1), start=start, stop=stop)  # (k n, ...)
                pulled = pulled if first is None else product(pulled, first[1])
                rows[samples, one : one + k] = pulled.reshape(v.shape[0], v.shape[1], -1).transpose(0, 1)
    return rows


def _from_last_layer(graph: NetworkGraph, X: Tensor, vectors: Tensor | None) -> tuple[str | None, Tensor]:
    """Cotangents for each sample, (k, n, ...), and the node whose they are: the last linear layer's input if possible.

    The products of vectors that all samples share with a last layer are done once.
    """
    last = None if vectors is not None and vectors.dim() == 3 else last_linear(graph)
    if last is not None and last.weight is not None:
        weight = last.weight.detach()  # (C, h)
        vectors = weight if vectors is None else product(vectors, weight)
    elif vectors is None:
        vectors = torch.eye(graph[graph.output].shape[0], dtype=X.dtype, device=X.device)  # (C, C)
    if vectors.dim() == 2:
        vectors = vectors[:, None, :].expand(-1, len(X), -1)  # (k, n, C or h), a view
    return None if last is None else last.inputs[0], vectors
