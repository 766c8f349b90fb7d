"""The graphs of one program and one set of tensors, while the tensors change in place."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from .binding import Binder
from .fold import fold
from .rules import Ref, Weight
from .templates import computed_operations, holds_only, nodes_by_operation

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
        self._bound: _Bound | None = None
        self._held: NetworkGraph | None = None  # the unfolded graph, if its nodes only hold tensors
        self._constant: NetworkGraph | None = None  # the folded graph, if nothing in it is computed

    def graph(self, *, folded: bool = True) -> NetworkGraph:
        """The graph for the present values, as `Program.bind` returns it."""
        if folded and self._constant is not None:
            return self._constant
        graph = fold(self._unfolded(), norms=folded)
        constant = self._held is not None or (self._bound is not None and not self._bound.renewed)
        if folded and constant:
            given = {id(tensor) for tensor in self.tensors.values()}
            self._constant = graph if all(holds_only(given, node) for node in graph.nodes) else None
        return graph

    def _unfolded(self) -> NetworkGraph:
        if self._bound is None and self._held is None:
            template = self.program.template(self.tensors)
            self._held = template.graph(self.tensors) if template is not None and not template.computed else None
        if self._held is not None:
            return self._held
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
        parts = nodes_by_operation(binder)
        renewed = tuple(computed_operations(binder, parts))
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


def _is_weight(value: Any) -> bool:
    return isinstance(value, Weight)


def _is_same_operator(node: Node, other: Node) -> bool:
    return (node.op, node.inputs, node.shape, node.params) == (other.op, other.inputs, other.shape, other.params)
