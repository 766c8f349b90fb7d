"""The graphs of one program and one set of tensors, while the tensors change in place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from .binding import Binder
from .fold import fold
from .rules import Ref, Weight
from .rules.rows import Repeated

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .nodes import NetworkGraph, Node
    from .trace import Program

__all__ = ["Rebinder"]


@dataclass(frozen=True)
class _Bound:
    """A binder at its end, the operations whose results it computed from tensors, and the names of their nodes.

    The results themselves are left out, so that no history of autograd stays alive.
    """

    binder: Binder
    renewed: tuple[fx.Node, ...]
    nodes: frozenset[str]


class Rebinder:
    """Binds the same tensors to a program as often as their values change.

    An operator's conversion takes some 50 microseconds, a training step on a small network not much more. So a node
    that only holds tensors is kept. What was computed from them, such as the scale of a batch norm or a slice of a
    weight, is computed again, with its autograd graph.

    Parameters
    ----------
    program : Program
    tensors : mapping of str to Tensor
        Parameters and buffers by name.
    """

    def __init__(self, program: Program, tensors: Mapping[str, Tensor]) -> None:
        self.program, self.tensors = program, tensors
        self._live = {id(tensor) for tensor in tensors.values()}
        self._bound: _Bound | None = None
        self._constant: NetworkGraph | None = None  # the folded graph, if nothing in it is computed

    def graph(self, *, folded: bool = True) -> NetworkGraph:
        """The graph for the present values, as `Program.bind` returns it."""
        if folded and self._constant is not None:
            return self._constant
        graph = fold(self._unfolded(), norms=folded)
        computes = self._bound is None or self._bound.renewed or not all(map(self._holds_only_tensors, graph.nodes))
        if folded and not computes:
            self._constant = graph
        return graph

    def _holds_only_tensors(self, node: Node) -> bool:
        """Whether what a node holds is among the tensors, or constant."""
        return all(id(held.tensor) in self._live or not held.sources for held in node.tensors().values())

    def _unfolded(self) -> NetworkGraph:
        renewed = None if self._bound is None else self._renewed(self._bound)
        if renewed is not None:
            return renewed
        binder = Binder(self.program, self.tensors)
        graph = binder.graph()
        self._bound = self._kept(binder)
        return graph

    def _renewed(self, bound: _Bound) -> NetworkGraph | None:
        """The graph with the operations computed again; None if one of them has become something else."""
        kept, binder = bound.binder, bound.binder.copy()
        for operation in bound.renewed:
            value, before = binder.bind(operation), kept.values[operation.name]
            if isinstance(value, Ref) != isinstance(before, Ref) or (isinstance(value, Ref) and value != before):
                return None
        if binder.nodes.keys() != kept.nodes.keys():
            return None
        alike = all(_is_same_operator(binder.nodes[name], kept.nodes[name]) for name in bound.nodes)
        return binder.network() if alike else None

    def _kept(self, binder: Binder) -> _Bound | None:
        """What the next binding needs of this one; None if nodes hold tensors in their settings, too."""
        parts: dict[str, list[Node]] = {}
        for name, node in binder.nodes.items():
            parts.setdefault(name.partition(".")[0], []).append(node)  # "add.0" is part of "add"
        renewed = tuple(
            operation
            for operation in self.program.nodes
            if self._is_computed(binder, operation, parts.get(operation.name, []))
        )
        nodes = frozenset(node.name for operation in renewed for node in parts.get(operation.name, []))
        kept = binder.copy()
        for operation in renewed:
            if not isinstance(kept.values[operation.name], Ref):
                kept.values[operation.name] = None
        for name in nodes:
            node = kept.nodes[name]
            if any(isinstance(leaf, Tensor | Weight) for leaf in tree_leaves(dict(node.params), is_leaf=_is_weight)):
                return None
            kept.nodes[name] = replace(node, weight=None, bias=None)
        return _Bound(kept, renewed, nodes)

    def _is_computed(self, binder: Binder, operation: fx.Node, nodes: list[Node]) -> bool:
        """Whether an operation reads tensors and does something else with them than to hold them in its nodes."""
        if operation.op == "placeholder" or operation.name not in binder.values:
            return False
        values = [binder.values[source.name] for source in operation.all_input_nodes]
        leaves = tree_leaves(values, is_leaf=lambda value: isinstance(value, Ref | Weight | Repeated))
        read = [leaf.weight if isinstance(leaf, Repeated) else leaf for leaf in leaves]
        weights = [weight.tensor for weight in read if isinstance(weight, Weight) and weight.sources]
        if not all(map(self._holds_only_tensors, nodes)):
            return bool(weights)
        held = {id(tensor) for node in nodes for tensor in (node.weight, node.bias)}
        return any(id(tensor) not in held for tensor in weights)


def _is_weight(value: Any) -> bool:
    return isinstance(value, Weight)


def _is_same_operator(node: Node, other: Node) -> bool:
    return (node.op, node.inputs, node.shape, node.params) == (other.op, other.inputs, other.shape, other.params)
