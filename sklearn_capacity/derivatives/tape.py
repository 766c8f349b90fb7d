"""A network linearised at a batch: what products with its Jacobians need to know of the batch."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..graph.memory_layout import channels_last
from ..graph.nodes import NetworkGraph, Node

__all__ = ["Selection", "Tape"]


@dataclass(frozen=True)
class Selection:
    """The selected entry of each window of a max-pooling.

    Attributes
    ----------
    indices : Tensor or None
        Indices as returned by max-pooling.
    masks : list of (index, Tensor)
        If the windows tile their input: for every position in a window, the index of that position in all windows, and
        the slope of the output with respect to it, in the output's shape: 0 if another position was selected.
    """

    indices: Tensor | None = None
    masks: list[tuple[tuple[slice, ...], Tensor]] = field(default_factory=list)


@dataclass
class Tape:
    """A network linearised at a batch: the slopes of all activations, the selections of all max-poolings.

    Attributes
    ----------
    logits : Tensor of shape (n, C)
    slopes : dict of node name to Tensor of shape (n, ...), or None
        Derivatives of the activations; None if the masks of the next pooling include it.
    selections : dict of node name to Selection
    smooth : dict of node name to Tensor of shape (n, ...)
        Pre-activations of activations whose derivative is not piecewise constant.
    slope_masks : dict of node name to Tensor of shape (n, ...)
        1 where the derivative of an activation is its trained slope, else 0.
    points : dict of node name to tuple of Tensor of shape (n, ...)
        Inputs of functions of several entries, at which they were differentiated.
    kept : dict of node name to tuple of Tensor of shape (n, ...)
        What the derivatives of these functions need.
    """

    graph: NetworkGraph
    logits: Tensor
    slopes: dict[str, Tensor | None] = field(default_factory=dict)
    selections: dict[str, Selection] = field(default_factory=dict)
    smooth: dict[str, Tensor] = field(default_factory=dict)
    slope_masks: dict[str, Tensor] = field(default_factory=dict)
    points: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    kept: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)

    @property
    def curved(self) -> dict[str, tuple[Tensor, ...]]:
        """What the derivative of each node with a second derivative depends on, by the node's name."""
        return {**{name: (z,) for name, z in self.smooth.items()}, **self.points}

    def weight(self, node: Node) -> Tensor | None:
        """The node's weight; for a convolution of one channel with the strides of its images."""
        weight = node.weight
        if weight is None or node.op != "conv" or weight.shape[1] != 1:
            return weight
        return channels_last(weight)

    def part(self, samples: slice) -> Tape:
        """The tape of some of the samples; all views except for the logits' graph."""
        slopes = {name: None if slope is None else slope[samples] for name, slope in self.slopes.items()}
        selections = {
            name: Selection(
                None if chosen.indices is None else chosen.indices[samples],
                [(place, mask[samples]) for place, mask in chosen.masks],
            )
            for name, chosen in self.selections.items()
        }
        smooth = {name: z[samples] for name, z in self.smooth.items()}
        masks = {name: mask[samples] for name, mask in self.slope_masks.items()}
        points = {name: tuple(x[samples] for x in xs) for name, xs in self.points.items()}
        kept = {name: tuple(x[samples] for x in xs) for name, xs in self.kept.items()}
        return Tape(self.graph, self.logits[samples], slopes, selections, smooth, masks, points, kept)

    def rounded(self, dtype: torch.dtype) -> Tape:
        """The tape for sweeps in another precision, whose weights and slopes are constants."""

        def cast(t: Tensor | None) -> Tensor | None:
            return None if t is None else t.detach().to(dtype)

        nodes = tuple(replace(node, weight=cast(node.weight), bias=cast(node.bias)) for node in self.graph.nodes)
        slopes = {name: cast(slope) for name, slope in self.slopes.items()}
        selections = {
            name: replace(chosen, masks=[(place, mask.to(dtype)) for place, mask in chosen.masks])
            for name, chosen in self.selections.items()
        }
        kept = {name: tuple(x.to(dtype) if x.is_floating_point() else x for x in xs) for name, xs in self.kept.items()}
        graph = NetworkGraph(nodes, self.graph.output)
        return Tape(graph, self.logits, slopes, selections, self.smooth, self.slope_masks, self.points, kept)

    def input_shape(self, node: Node) -> tuple[int, ...]:
        """Shape of one sample of the node's (first) input."""
        return self.graph[node.inputs[0]].shape
