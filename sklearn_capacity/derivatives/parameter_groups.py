"""The parameter vector theta of a graph: its tensors, and the nodes that use each of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph.nodes import NetworkGraph, Node
from ..graph.selections import entries_of, is_selection, root

__all__ = ["ParameterGroup", "Use", "parameter_groups"]


@dataclass(frozen=True)
class Use:
    """One use of a parameter by a node.

    Attributes
    ----------
    node : Node
    part : "weight", "bias", or the position among the arguments of an operator without a rule
    index : Tensor of int64 or None
        Position of each of its elements in the group's vector; None if they are in order.
    """

    node: Node
    part: str | int
    index: Tensor | None = None

    @property
    def sources(self) -> frozenset[str]:
        return self.node.tensors()[self.part].sources

    @property
    def tensor(self) -> Tensor:
        return self.node.tensors()[self.part].tensor


@dataclass(frozen=True)
class ParameterGroup:
    """A segment of theta: one folded trainable tensor with all its uses."""

    uses: tuple[Use, ...]
    size: int

    @property
    def values(self) -> Tensor:
        """The values of the segment, as one vector."""
        if self.plain:
            return self.uses[0].tensor.flatten()
        vector = self.uses[0].tensor.new_zeros(self.size)  # (size,)
        for use in self.uses:
            where = slice(None) if use.index is None else use.index.to(vector.device)  # (numel of the use,)
            vector[where] = use.tensor.flatten()
        return vector

    @property
    def plain(self) -> bool:
        """Whether every use reads each entry once, in one order, not through a transpose or a slice."""
        return all(use.index is None for use in self.uses)


def parameter_groups(graph: NetworkGraph, *, without_rule: bool = False) -> tuple[ParameterGroup, ...]:
    """The folded trainable parameters, each tied tensor once.

    Parameters
    ----------
    graph : NetworkGraph
    without_rule : bool, default=False
        Whether to include the parameters of operators without a rule.

    Uses are tied if they read one parameter, possibly through views of it (a transpose, slices) or some of its entries
    (a table of relative positions), or if tensors computed from the same parameters (a normalised weight) are equal.

    Raises
    ------
    UnsupportedLayerError
        If an operator without a rule has parameters and `without_rule` is false.
    """
    families: list[list[Use]] = []
    for node in graph.nodes:
        if node.op == "opaque" and node.params["trained"] and not without_rule:
            raise node.refuse("The vector of folded parameters", "it has parameters, but there is no rule for it.")
        for part, bound in node.tensors().items():
            if not bound.trainable:
                continue
            use = Use(node, part)
            family = next((f for f in families if _related(f[0], use)), None)
            if family is None:
                families.append([use])
            else:
                family.append(use)
    return tuple(group for family in families for group in _groups(family))


def _related(a: Use, b: Use) -> bool:
    if root(a.tensor) is root(b.tensor):
        return True
    if a.part != b.part or a.node.op != b.node.op or a.sources != b.sources:
        return False
    return a.tensor.shape == b.tensor.shape and torch.equal(a.tensor, b.tensor)


def _groups(family: list[Use]) -> list[ParameterGroup]:
    """One group if all uses read the same elements in order; else one per set of uses that overlap in memory."""
    first = family[0].tensor
    layouts = {(u.tensor.shape, u.tensor.stride(), u.tensor.storage_offset()) for u in family}
    repeats = any(step == 0 and n > 1 for step, n in zip(first.stride(), first.shape, strict=True))
    computed = root(first) is not root(family[-1].tensor)  # equal tensors without shared memory
    taken = any(is_selection(use.tensor) for use in family)
    if computed or (len(layouts) == 1 and not repeats and not taken):
        return [ParameterGroup(tuple(family), first.numel())]
    places = [entries_of(use.tensor).cpu() for use in family]  # each (numel,), int64
    return [_group_of([family[i] for i in set_], [places[i] for i in set_]) for set_ in _overlapping(places)]


def _overlapping(places: list[Tensor]) -> list[list[int]]:
    """Indices of the uses, grouped into sets that share memory locations.

    A union-find: each use points towards the representative of its set, and later uses of a memory location join the
    set of its first use.
    """
    parent = list(range(len(places)))

    def representative(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    first_use: dict[int, int] = {}
    for i, place in enumerate(places):
        for where in place.unique().tolist():
            parent[representative(i)] = representative(first_use.setdefault(where, i))
    sets: dict[int, list[int]] = {}
    for i in range(len(places)):
        sets.setdefault(representative(i), []).append(i)
    return list(sets.values())


def _group_of(uses: list[Use], places: list[Tensor]) -> ParameterGroup:
    """One group: its vector contains every memory location of its uses once, in memory order."""
    memory = torch.cat(places).unique()  # (size,), ascending
    if len(uses) == 1 and len(places[0]) == len(memory):  # reads each location once, so its own order suffices
        return ParameterGroup(tuple(uses), len(memory))
    # Offsets -> positions in the group's vector, (numel,) for each use.
    indexed = [Use(u.node, u.part, torch.searchsorted(memory, place)) for u, place in zip(uses, places, strict=True)]
    return ParameterGroup(tuple(indexed), len(memory))
