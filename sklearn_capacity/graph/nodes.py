"""The graph of a network: a list of nodes in execution order, and a function to traverse it."""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from .._validation import NotDefinedError

__all__ = ["WEIGHT_OPS", "NetworkGraph", "Node", "Place", "UnsupportedLayerError", "Weight", "interpret"]

#: Operators that may carry a weight. A "diagonal" carries one only if it is a separate layer.
WEIGHT_OPS = ("linear", "conv", "conv_transpose", "diagonal")
#: Operators on images, if their values have three axes, and those that leave images what they are.
_OF_IMAGES = ("conv", "conv_transpose", "max_pool", "avg_pool")
_KEEP_IMAGES = ("activation", "add", "cat", "center", "diagonal", "pad", "reduce", "separable", "slice")


class UnsupportedLayerError(NotDefinedError):
    """A measure does not apply to this network; the message names the layer and says why.

    Parameters
    ----------
    message, reason
        As in `NotDefinedError`.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_capacity import UnsupportedLayerError, measure_capacity
    >>> try:
    ...     measure_capacity(nn.Sequential(nn.Linear(2, 2), nn.Tanh()), measures="path_norm")
    ... except UnsupportedLayerError as error:
    ...     print(str(error).split(":")[0])
    A path norm is not defined for the operator `tanh` in layer `1 (Tanh)`
    """


@dataclass(frozen=True)
class Place:
    """The position among the node's `inputs` of an argument of an operator without a rule.

    Only `inputs` names other nodes, so code that renames nodes needs to update nothing else.
    """

    index: int


@dataclass(frozen=True)
class Weight:
    """A tensor computed from parameters and buffers alone.

    Attributes
    ----------
    tensor : Tensor
    trainable : bool
        Whether it depends on a trained parameter.
    sources : frozenset of str
        Names of the parameters and buffers behind it.
    """

    tensor: Tensor
    trainable: bool
    sources: frozenset[str]


@dataclass(frozen=True)
class Node:
    """One operator of the network with the tensors bound to it.

    Attributes
    ----------
    name : str
        Unique in the graph.
    op : str
        Canonical operator: "input", "linear", "conv", "conv_transpose", "diagonal", "activation", "max_pool",
        "avg_pool", "reduce", "center", "separable", "view", "permute", "slice", "pick", "pad", "add", "cat", "function"
        or "opaque".
    inputs : tuple of str
        Names of the nodes it reads.
    scope : str
        Dotted name of its submodule; "" is the module itself.
    shape : tuple of int
        Shape of its output for one sample.
    weight, bias : Tensor or None
        Effective tensors: parametrisations applied, batch norm folded. They are differentiable functions of the bound
        tensors. The weight of an activation is its trained slope; this does not make it a layer.
    trainable : (bool, bool)
        Whether the weight and the bias depend on a trained parameter.
    sources : (frozenset of str, frozenset of str)
        Names of the parameters behind the weight and behind the bias; tensors with equal names are tied.
    params : mapping
        What else the operator needs: stride, dims, the kind of activation, ...; never the name of a node.
    module : str
        Class of its submodule.
    """

    name: str
    op: str
    inputs: tuple[str, ...]
    scope: str
    shape: tuple[int, ...]
    weight: Tensor | None = None
    bias: Tensor | None = None
    trainable: tuple[bool, bool] = (False, False)
    sources: tuple[frozenset[str], frozenset[str]] = (frozenset(), frozenset())
    params: Mapping[str, Any] = field(default_factory=dict)
    module: str = ""

    @property
    def is_layer(self) -> bool:
        """Whether the node is one of the weight layers l = 1..d."""
        if self.op == "diagonal":
            return self.weight is not None and bool(self.params.get("layer", False))
        return self.weight is not None and self.op in WEIGHT_OPS

    def tensors(self) -> dict[str | int, Weight]:
        """All tensors bound to it: "weight", "bias", and those among an opaque operator's arguments by position."""
        bound: dict[str | int, Weight] = {}
        for i, (part, tensor) in enumerate((("weight", self.weight), ("bias", self.bias))):
            if tensor is not None:
                bound[part] = Weight(tensor, self.trainable[i], self.sources[i])
        leaves = enumerate(self.params.get("leaves", ()))
        return bound | {position: leaf for position, leaf in leaves if isinstance(leaf, Weight)}

    def with_tensors(self, tensors: Mapping[str | int, Tensor]) -> Node:
        """The node with other tensors under the keys of `tensors()`."""
        named = {part: tensor for part, tensor in tensors.items() if isinstance(part, str)}
        if len(named) == len(tensors):
            return replace(self, **named)  # type: ignore[arg-type]
        leaves = list(self.params["leaves"])
        for position, tensor in tensors.items():
            if isinstance(position, int):
                leaves[position] = replace(leaves[position], tensor=tensor)
        return replace(self, **named, params={**self.params, "leaves": leaves})  # type: ignore[arg-type]

    @property
    def label(self) -> str:
        """The name of the node in messages and per-layer rows."""
        return self.scope or self.name

    @property
    def place(self) -> str:
        """The user's module of the node, as named in error messages."""
        if self.scope:
            return f"layer `{self.scope} ({self.module})`" if self.module else f"layer `{self.scope}`"
        return f"the forward pass of `{self.module}`" if self.module else f"layer `{self.name}`"

    @property
    def is_size(self) -> bool:
        """Whether its value is not a tensor (the number of samples, for example) and thus needs no rule."""
        return self.op == "opaque" and not self.params.get("is_tensor", True)

    def refuse(self, purpose: str, why: str = "", cure: str = "") -> UnsupportedLayerError:
        """The error that says why `purpose` is not defined for this node."""
        what = f"the operator `{self._operator}` in {self.place}{self._line}: {why or 'there is no rule for it.'}"
        reason = f"not defined for {what}" + (f" {cure}" if cure else "")
        return UnsupportedLayerError(f"{purpose} is {reason}", reason=reason)

    @property
    def _operator(self) -> str:
        """The user's name of the operator."""
        if self.op != "opaque":
            return str(self.params.get("kind", self.op))
        name = self.params["target"].split(".")[0]
        return next((f"{m.__name__}.{name}" for m in (torch, torch.nn.functional) if hasattr(m, name)), f"aten.{name}")

    @property
    def _line(self) -> str:
        """The line of the user's own code that called an operator without a rule, in brackets."""
        trace: list[str] = (self.params.get("stack_trace") or "").strip().splitlines()
        *_, where, code = ["", "", *trace]
        library = os.path.join("torch", "nn") in where
        return f" (`{code.strip()}`)" if where.strip().startswith("File ") and not library else ""


@dataclass(frozen=True)
class NetworkGraph:
    """Nodes in execution order; the first is the input, `output` names the logits."""

    nodes: tuple[Node, ...]
    output: str

    @property
    def input(self) -> Node:
        return self.nodes[0]

    @property
    def layers(self) -> tuple[Node, ...]:
        """The weight layers l = 1..d in execution order; a tied weight appears once per use."""
        return tuple(node for node in self.nodes if node.is_layer)

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @functools.cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    @functools.cached_property
    def images(self) -> frozenset[str]:
        """Nodes whose values (channels, height, width) a convolution or a pooling makes or reads.

        Heads of attention have three axes, too, but no channels.
        """
        found, size = set[str](), -1
        while size < len(found):
            size = len(found)
            for node in (*self.nodes, *reversed(self.nodes)):
                keeps = node.op in _KEEP_IMAGES and not found.isdisjoint((node.name, *node.inputs))
                if node.op in _OF_IMAGES or keeps:
                    found.update(name for name in (node.name, *node.inputs) if len(self[name].shape) == 3)
        return frozenset(found)

    def live(self) -> NetworkGraph:
        """The graph without nodes that its output does not need."""
        needed = {self.output}
        for node in reversed(self.nodes):
            if node.name in needed:
                needed.update(node.inputs)
        kept = (node for node in self.nodes if node.name in needed or node.op == "input")
        return NetworkGraph(tuple(kept), self.output)

    def consumers(self) -> Mapping[str, Sequence[Node]]:
        """For every node, the nodes that read it (twice if read twice)."""
        return self._readers

    @functools.cached_property
    def _readers(self) -> dict[str, list[Node]]:
        table: dict[str, list[Node]] = {node.name: [] for node in self.nodes}
        for node in self.nodes:
            for name in node.inputs:
                table[name].append(node)
        return table

    @functools.cached_property
    def n_readers(self) -> dict[str, int]:
        """For every node, how often it is read."""
        return {name: len(readers) for name, readers in self._readers.items()}

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Entries of every node's value for one sample."""
        return [math.prod(node.shape) for node in self.nodes]


def interpret(
    graph: NetworkGraph,
    rules: Mapping[str, Callable[..., Any]],
    start: Any,
    *,
    purpose: str = "This interpretation",
    keep: Callable[[Node, Any], None] | None = None,
) -> Any:
    """Traverse the graph with one rule per operator and return the value at the output.

    Parameters
    ----------
    graph : NetworkGraph
    rules : dict of operator to callable(node, *values)
        Maps the values of an operator's inputs to its value. An operator without a rule raises an error that names it.
    start : object
        Value at the input.
    purpose : str
        Subject of the error message: "A path norm", "The Lipschitz constant".
    keep : callable(node, value), default=None
        Called with every value as it is computed.

    Returns
    -------
    object
        The value at the output. Values are freed after their last use.
    """
    remaining = graph.n_readers.copy()
    remaining[graph.output] += 1
    values: dict[str, Any] = {}
    for node in graph.nodes:
        if node.op == "input":
            value = start
        else:
            rule = rules.get(node.op)
            if rule is None:
                raise node.refuse(purpose)
            value = rule(node, *(values[name] for name in node.inputs))
        values[node.name] = value
        if keep is not None:
            keep(node, value)
        for name in node.inputs:
            remaining[name] -= 1
            if not remaining[name]:
                values.pop(name, None)
    return values[graph.output]
