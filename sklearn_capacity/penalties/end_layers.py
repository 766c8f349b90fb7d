"""Products that sweeps need not do at the first and the last layers of a network.

A sweep multiplies each of m cotangents or tangents (samples times directions) with each matrix. Where an end of the
network is linear, some of these products follow from smaller ones.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from sklearn_capacity.derivatives.tape import Tape
from sklearn_capacity.graph import NetworkGraph, Node
from sklearn_capacity.graph.end_layers import first_linear, is_matrix, last_linear
from sklearn_capacity.linalg.product import LARGE, product
from sklearn_capacity.penalties.gradient_sums import Gradients, wants

__all__ = ["GRAM_SHARE", "FirstLayer", "LastLayer"]

#: The products of a layer's Gram matrix are preferred if they take this share of the multiplications, or less.
GRAM_SHARE = 0.85
#: Samples from which the products of `LastLayer.outer` pay for their passes over matrices.
MANY_SAMPLES = 32


@dataclass
class FirstLayer:
    r"""A first linear layer W (h, D) and its Gram matrix G = W W^T: no direction needs D entries.

    For cotangents g (m, h) of the layer's output, the rows of the Jacobian are g W. Their weighted squared norm, the
    tangents that a sweep begins with, and the gradient of W are

    .. math:: R = \sum_i s_i \langle g_i, G g_i \rangle, \qquad t_i = 2 s_i W (W^T g_i) = 2 s_i G g_i, \qquad
              dR / dW = 2 \Big( \sum_i s_i g_i g_i^T \Big) W

    In place of 3 m h D multiplications these take 2 h^2 D + 2 m h^2, or less.

    Attributes
    ----------
    node : Node
    gram : Tensor of shape (h, h)
    trained : bool
    by_rows : bool
        Whether the gradient is computed from g W, (m, D), which takes less for few directions.
    squares : Tensor of shape (h, h), or None
        The sum of s_i g_i g_i^T, so far.
    """

    node: Node
    gram: Tensor
    trained: bool
    by_rows: bool
    squares: Tensor | None = None

    @classmethod
    def chosen(cls, graph: NetworkGraph, n_pulled: int, n_pushed: int) -> FirstLayer | None:
        """The first layer, if its Gram matrix saves work for this number of cotangents and tangents."""
        node = first_linear(graph)
        if node is None or node.weight is None or node.name == graph.output:
            return None
        trained = wants(node.weight)
        h, D = node.weight.shape
        # multiplications, over h
        by_rows, by_squares = 2 * n_pushed * D, n_pushed * h + h * D
        swept = (n_pulled + n_pushed * (1 + trained)) * D
        if h * D + n_pulled * h + trained * min(by_rows, by_squares) > GRAM_SHARE * swept:
            return None
        weight = node.weight.detach()
        return cls(node, product(weight, weight.t()), trained, by_rows < by_squares)

    def __call__(self, g: Tensor, scale: Tensor, sums: Gradients) -> tuple[Tensor, Tensor]:
        """The value for cotangents (k n, h), and the tangents (k n, h) of the layer's output."""
        products = product(g, self.gram)  # (k n, h)
        blocks = products.unflatten(0, (-1, len(scale)))  # (k, n, h)
        value = ((blocks * g.view_as(blocks)).sum(2) * scale).sum()
        tangents = blocks.mul_(2 * scale[:, None]).view_as(g)
        weight = self.node.weight
        if self.trained and weight is not None:
            weighted = (g.view_as(blocks) * scale[:, None]).view_as(g)
            if self.by_rows:
                sums.add_weight(weight, self.node, product(weighted, weight.detach()).mul_(2), g)
            else:
                squares = product(weighted.t(), g)  # (h, h)
                self.squares = squares if self.squares is None else self.squares.add_(squares)
        return value, tangents

    def finish(self, sums: Gradients) -> None:
        """Add the gradient of the weight for all directions."""
        if self.squares is not None and self.node.weight is not None:
            sums.add(self.node.weight, product(self.squares, self.node.weight.detach()).mul_(2))


@dataclass(frozen=True)
class LastLayer:
    r"""The last layer W (C, h) in sweeps along unit vectors.

    The cotangent of its input along e_c is its row w_c, for all samples. If only a rectifier (or another activation
    that is linear in pieces) with slopes d_i is between it and another linear layer V (h, m), which has the tangents
    t_{ci} as inputs, then the gradients of both follow from the same products:

    .. math:: M_c = \sum_i d_i t_{ci}^T, \qquad dR/dV = \sum_c \operatorname{diag}(w_c) M_c, \qquad
              dR/dw_c = \sum_i d_i \circ V t_{ci} = \text{row sums of } M_c \circ V

    so V t_{ci} is not needed.

    Attributes
    ----------
    node, before : Node
        The last layer, and V, or None if it is not as above or not worth it.
    n_samples : int
    slope : Tensor of shape (n, h), or None
    """

    node: Node
    n_samples: int
    before: Node | None = None
    slope: Tensor | None = None

    @classmethod
    def of(cls, tape: Tape, trained: Collection[str]) -> LastLayer | None:
        """The last layer, if it is a linear map; with V if both are among the `trained`."""
        node = last_linear(tape.graph)
        if node is None:
            return None
        n = len(tape.logits)
        activation = tape.graph[node.inputs[0]]
        slope = tape.slopes.get(activation.name)
        if slope is None or activation.weight is not None or activation.name in tape.smooth:
            return cls(node, n)
        before = tape.graph[activation.inputs[0]]
        alone = all(len(tape.graph.consumers()[name]) == 1 for name in (before.name, activation.name))
        if not (alone and is_matrix(tape.graph, before) and {node.name, before.name} <= set(trained)):
            return cls(node, n)
        many = before.weight is not None and n >= MANY_SAMPLES and n * before.weight.numel() >= LARGE
        return cls(node, n, before, slope) if many else cls(node, n)

    def cotangents(self, outputs: slice) -> Tensor:
        """Those of the layer's input along some of the unit vectors, (k n, h)."""
        assert self.node.weight is not None
        return self.node.weight.detach()[outputs].repeat_interleave(self.n_samples, dim=0)

    @property
    def stop(self) -> str | None:
        """The name of V, from which on the tangents are not needed."""
        return None if self.before is None else self.before.name

    def collects(self, node: Node) -> bool:
        """Whether `collect` adds the gradient of a layer."""
        return node.name in (self.node.name, self.stop)

    def collect(self, node: Node, t: Tensor, outputs: slice, sums: Gradients) -> None:
        """Add the gradient of W for tangents t (k n, h) of its input, or those of W and V for t (k n, m) of V's."""
        W = self.node.weight
        assert W is not None
        rows = torch.zeros_like(W)
        blocks = t.unflatten(0, (-1, self.n_samples))  # (k, n, h) or (k, n, m)
        if node.name == self.node.name:
            rows[outputs] = blocks.sum(1, dtype=rows.dtype)
        else:
            assert self.before is not None and self.before.weight is not None and self.slope is not None
            V = self.before.weight.detach()
            total = sums.total(self.before.weight)
            for row, w, block in zip(rows[outputs], W.detach()[outputs], blocks, strict=True):
                outer = product(self.slope.t(), block)  # M_c, (h, m)
                total.addcmul_(outer, w[:, None])
                torch.sum(outer.mul_(V), 1, out=row)
        sums.add(W, rows)
