"""The parameter vector theta of a graph: which tensors it holds, and which nodes use one and the same."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..graph.nodes import NetworkGraph, Node

__all__ = ["ParameterGroup", "Use", "parameter_groups", "root"]


@dataclass(frozen=True)
class Use:
    """One place where a node reads a parameter.

    Attributes
    ----------
    node : Node
    part : "weight", "bias", or the position among the arguments of an operator without a rule
    index : Tensor of int64 or None
        Position of each of its elements in the group's vector; None where they stand in order.
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
    """A stretch of theta: one folded trainable tensor, with all its uses."""

    uses: tuple[Use, ...]
    size: int

    @property
    def values(self) -> Tensor:
        """The stretch itself, as one vector."""
        if self.plain:
            return self.uses[0].tensor.flatten()
        vector = self.uses[0].tensor.new_zeros(self.size)
        for use in self.uses:
            where = slice(None) if use.index is None else use.index.to(vector.device)
            vector[where] = use.tensor.flatten()
        return vector

    @property
    def plain(self) -> bool:
        """Whether every use reads the tensor as it is, and not through a transpose or a slice."""
        return all(use.index is None for use in self.uses)


def parameter_groups(graph: NetworkGraph, *, without_rule: bool = False) -> tuple[ParameterGroup, ...]:
    """The folded trainable parameters, each tied tensor once.

    Parameters
    ----------
    graph : NetworkGraph
    without_rule : bool, default=False
        Whether the parameters of operators without a rule (layer norm) belong to them, too.

    Uses are tied where they read one parameter, perhaps through views of it (a transpose, slices), or where what was
    computed from the same parameters (a normalised weight) is equal.

    Raises
    ------
    UnsupportedLayerError
        If an operator without a rule has parameters, unless `without_rule`.
    """
    families: list[list[Use]] = []
    for node in graph.nodes:
        if node.op == "opaque" and node.params["trained"] and not without_rule:
            raise node.refuse("The vector of folded parameters", "it has parameters, and there is no rule for it.")
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


def root(tensor: Tensor) -> Tensor:
    """The tensor that a view shows, or the tensor itself."""
    return tensor if tensor._base is None else tensor._base


def _related(a: Use, b: Use) -> bool:
    if root(a.tensor) is root(b.tensor):
        return True
    if a.part != b.part or a.node.op != b.node.op or a.sources != b.sources:
        return False
    return a.tensor.shape == b.tensor.shape and torch.equal(a.tensor, b.tensor)


def _groups(family: list[Use]) -> list[ParameterGroup]:
    """One group if all uses read alike; else one for each set of uses that overlap in memory."""
    first = family[0].tensor
    layouts = {(u.tensor.shape, u.tensor.stride(), u.tensor.storage_offset()) for u in family}
    repeats = any(step == 0 and n > 1 for step, n in zip(first.stride(), first.shape, strict=True))
    computed = root(first) is not root(family[-1].tensor)  # equal tensors, each computed anew: no memory in common
    if computed or (len(layouts) == 1 and not repeats):
        return [ParameterGroup(tuple(family), first.numel())]
    places = [_places(use.tensor) for use in family]  # each (numel,), int64
    return [_group_of([family[i] for i in set_], [places[i] for i in set_]) for set_ in _overlapping(places)]


def _overlapping(places: list[Tensor]) -> list[list[int]]:
    """Indices of the uses, in sets that are joined by common places in memory.

    A union-find: each use points towards the representative of its set, and the first use of a place is where all
    later uses of that place are joined.
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
    """One group: its vector holds every place that a use reads once, in the order of memory."""
    memory = torch.cat(places).unique()  # (size,), ascending
    if len(uses) == 1 and len(places[0]) == len(memory):  # reads each place once: its own order will do
        return ParameterGroup(tuple(uses), len(memory))
    indexed = [Use(u.node, u.part, torch.searchsorted(memory, place)) for u, place in zip(uses, places, strict=True)]
    return ParameterGroup(tuple(indexed), len(memory))


def _places(tensor: Tensor) -> Tensor:
    """Where the elements of a view lie in the memory of what it views."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    last = int(tensor.storage_offset()) + sum((int(n) - 1) * int(step) for n, step in steps)
    memory = torch.arange(last + 1, device="cpu")
    return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset()).flatten()
