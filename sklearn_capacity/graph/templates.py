"""The graph of a program without the tensors, for all networks of its structure.

To convert an operator takes some 50 microseconds, and a network has hundreds. Networks of one structure differ in a few
values only: in the tensors that nodes hold, and in what is computed from tensors, such as the scale of a batch norm or
a slice of a weight. These operators are converted again.
"""

from __future__ import annotations

import functools
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from .binding import Binder
from .nodes import NetworkGraph, Node
from .rules import Ref, Weight
from .rules.rows import Repeated

__all__ = ["Template", "computed_operations", "holds_only", "kinds_of", "nodes_by_operation"]


def kinds_of(tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What binding reads of tensors besides values: names, ties, shapes, dtypes, devices, and which are trained."""
    first: dict[int, str] = {}
    return tuple(
        (
            *(name, first.setdefault(id(tensor), name), tensor.shape, tensor.dtype, tensor.device),
            isinstance(tensor, nn.Parameter) and tensor.requires_grad,
        )
        for name, tensor in tensors.items()
    )


class Template:
    """What a finished binder holds, without the tensors.

    Parameters
    ----------
    binder : Binder
        Which has bound all operations.
    """

    def __init__(self, binder: Binder) -> None:
        parts, held = nodes_by_operation(binder), binder.first_names
        self.program, self.kept = binder.program, binder.copy()
        self.kept.tensors, self.kept.first_names = {}, {}
        self.given = [node for node in self.program.nodes if node.name in self.program.tensor_names]
        self.computed = list(computed_operations(binder, parts))
        self.kinds = {operation.name: _kind(binder.values[operation.name]) for operation in self.computed}
        computed_nodes = [node for operation in self.computed for node in parts.get(operation.name, [])]
        self.node_kinds = {node.name: _node_kind(node) for node in computed_nodes}
        #: names of the tensors that the other nodes hold
        self.holding: dict[str, dict[str, str]] = {}
        for name, node in binder.nodes.items():
            if name in self.node_kinds:
                self.kept.nodes[name] = replace(node, weight=None, bias=None, params={})  # it only keeps the place
                continue
            tensors = {"weight": node.weight, "bias": node.bias}
            self.holding[name] = {part: held[id(tensor)] for part, tensor in tensors.items() if id(tensor) in held}
            constant = {part: tensor for part, tensor in tensors.items() if part not in self.holding[name]}
            self.kept.nodes[name] = replace(node, weight=constant.get("weight"), bias=constant.get("bias"))
        for operation in (*self.given, *self.computed):
            if not isinstance(self.kept.values[operation.name], Ref):
                self.kept.values[operation.name] = None

    @property
    def cost(self) -> int:
        """Numbers in the constants that it holds."""
        leaves = tree_leaves(self.kept.values, is_leaf=lambda value: isinstance(value, Ref | Weight | Repeated))
        constants = (leaf.weight if isinstance(leaf, Repeated) else leaf for leaf in leaves)
        return sum(weight.tensor.numel() for weight in constants if isinstance(weight, Weight))

    def graph(self, tensors: Mapping[str, Tensor]) -> NetworkGraph | None:
        """The graph of tensors of the same kinds; None if an operator has become something else."""
        binder = Binder(self.program, tensors)
        for name in ("values", "nodes", "signals", "shapes", "whole_numbers"):
            setattr(binder, name, dict(getattr(self.kept, name)))
        for operation in self.given:
            binder.enter_tensor(operation)
        for name, parts in self.holding.items():
            if parts:
                binder.nodes[name] = binder.nodes[name].with_tensors({part: tensors[of] for part, of in parts.items()})
        for operation in self.computed:
            if _kind(binder.bind(operation)) != self.kinds[operation.name]:
                return None
        alike = all(_node_kind(binder.nodes[name]) == kind for name, kind in self.node_kinds.items())
        return binder.network() if alike and len(binder.nodes) == len(self.kept.nodes) else None


def nodes_by_operation(binder: Binder) -> dict[str, list[Node]]:
    """The nodes of a binder by the names of the operations that they are parts of."""
    parts: dict[str, list[Node]] = {}
    for name, node in binder.nodes.items():
        parts.setdefault(name.partition(".")[0], []).append(node)  # "add.0" is part of "add"
    return parts


def computed_operations(binder: Binder, parts: Mapping[str, list[Node]]) -> Iterable[fx.Node]:
    """The operations that do something else with tensors than to hold them in their nodes."""
    return (
        operation
        for operation in binder.program.nodes
        if operation.op != "placeholder"
        and operation.name in binder.values
        and (operation.name in binder.readers or _is_computed(binder, operation, parts.get(operation.name, [])))
    )


def _is_computed(binder: Binder, operation: fx.Node, nodes: list[Node]) -> bool:
    values = [binder.values[source.name] for source in operation.all_input_nodes]
    leaves = tree_leaves(values, is_leaf=lambda value: isinstance(value, Ref | Weight | Repeated))
    read = [leaf.weight if isinstance(leaf, Repeated) else leaf for leaf in leaves]
    weights = [weight.tensor for weight in read if isinstance(weight, Weight) and weight.sources]
    if not all(holds_only(binder.first_names, node) for node in nodes):
        return bool(weights)
    held = {id(tensor) for node in nodes for tensor in (node.weight, node.bias)}
    return any(id(tensor) not in held for tensor in weights)


def holds_only(tensors: Container[int], node: Node) -> bool:
    """Whether what a node holds is among the tensors, which are given by identity, or constant."""
    return all(id(held.tensor) in tensors or not held.sources for held in node.tensors().values())


def _node_kind(node: Node) -> Any:
    return node.op, node.inputs, node.shape, _kind(node.tensors()), _kind(dict(node.params))


def _kind(value: Any) -> Any:
    """What later operators may read of a value: everything but the entries of tensors."""
    if isinstance(value, Repeated):
        return "repeated", value.layout, _kind(value.weight)
    if isinstance(value, Weight):
        return "weight", value.trainable, value.sources, _kind(value.tensor)
    if isinstance(value, Tensor):
        return "tensor", value.shape, value.dtype, value.device
    if type(value) in (list, tuple):
        return type(value), [_kind(item) for item in value]
    if type(value) is functools.partial:
        return value.func, _kind(value.args), _kind(value.keywords)
    if type(value) is dict:
        return [(key, _kind(item)) for key, item in value.items()]
    return value
