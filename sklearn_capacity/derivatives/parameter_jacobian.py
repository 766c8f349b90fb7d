"""The Jacobian of the logits with respect to the parameters: products with it and its transpose, and its rows."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..graph.fold import split_head
from ..graph.network import Network
from ..graph.nodes import NetworkGraph, UnsupportedLayerError
from .double_backward import directional_derivative
from .parameter_groups import parameter_groups
from .parameter_linearization import Linearization
from .parameter_vector import parameter_vector
from .sample_gradients import Rows, SampleGradients, iter_sample_gradients, partners, sample_gradients

__all__ = ["AutogradJacobian", "GraphJacobian", "ParameterJacobian", "Point", "parameter_jacobian"]


class Point(ABC):
    """The Jacobian of n samples at the current parameters; `logits` has shape (n, C)."""

    logits: Tensor

    @abstractmethod
    def gradients(self, cotangents: Tensor) -> SampleGradients:
        """Gradients of <c, f(x_i)> for every sample and each of its cotangents c, of shape (K, n, C)."""

    @abstractmethod
    def squared_norms(self, cotangents: Tensor) -> Tensor:
        """Squared lengths of these gradients, summed over samples and cotangents; float64, one entry per label."""

    @abstractmethod
    def pull(self, cotangent: Tensor) -> list[Tensor]:
        """Gradient of sum_i <cotangent_i, f(x_i)>, one vector per group of parameters."""

    @abstractmethod
    def push(self, direction: Sequence[Tensor]) -> Tensor:
        """Derivative of the logits along a direction, given as one vector per group; (n, C)."""


class ParameterJacobian(ABC):
    """The Jacobian of a network's logits with respect to its parameters.

    Attributes
    ----------
    sizes : tuple of int
        Number of parameters in every group; `size` is their sum P.
    labels : tuple of str
        The layer of every entry that `Point.gradients` returns; "" is the whole network.
    method : str
        Method of computation, for reports.
    """

    sizes: tuple[int, ...]
    labels: tuple[str, ...]
    method: str

    @property
    def size(self) -> int:
        return sum(self.sizes)

    @abstractmethod
    def at(self, X: Tensor) -> Point:
        """The Jacobian of a chunk of samples, from one forward pass."""

    @property
    @abstractmethod
    def floats_per_point(self) -> int:
        """Number of floats that a `Point` stores per sample."""

    @abstractmethod
    def floats_per_sample(self, n_cotangents: int) -> int:
        """Number of floats that `Point.gradients` returns per sample."""

    def floats_at_work(self, n_cotangents: int) -> int:
        """Peak number of floats per sample in `Point.gradients`."""
        return self.floats_per_sample(n_cotangents)


def parameter_jacobian(network: Network) -> ParameterJacobian:
    """The Jacobian with respect to the folded parameters, or the raw ones if the module has no graph and both agree.

    Parameters
    ----------
    network : Network

    Raises
    ------
    UnsupportedLayerError
        If neither is possible: there is no graph, but batch norm or a parametrisation.
    """

    def build() -> ParameterJacobian:
        try:
            return GraphJacobian(network.graph)
        except UnsupportedLayerError:
            return AutogradJacobian(network)

    return network.once("parameter_jacobian", build)


class GraphJacobian(ParameterJacobian):
    """With respect to a graph's folded parameters, tied tensors once; a one-logit model has those of its one logit."""

    method = "graph"

    def __init__(self, graph: NetworkGraph):
        self.graph = split_head(graph)
        self.groups = parameter_groups(self.graph)
        self.sizes = tuple(group.size for group in self.groups)
        joined = set(partners(self.groups).values())
        self.labels = tuple(g.uses[0].node.label for i, g in enumerate(self.groups) if i not in joined)

    def at(self, X: Tensor) -> Point:
        return _GraphPoint(self, X)

    @property
    def floats_per_point(self) -> int:
        return sum(math.prod(node.shape) for node in self.graph.nodes)

    def floats_per_sample(self, n_cotangents: int) -> int:
        total = 0
        for group in self.groups:
            rows = n_cotangents * group.size
            use = group.uses[0]
            if use.node.op == "linear" and use.part == "weight" and len(use.node.shape) == 1 and group.plain:
                weight = use.tensor
                rows = len(group.uses) * (n_cotangents * weight.shape[0] + weight.shape[1] + 1)
            total += rows
        return total

    def floats_at_work(self, n_cotangents: int) -> int:
        nodes = {use.node.name: use.node for group in self.groups for use in group.uses}.values()
        deltas = sum(math.prod(node.shape) for node in nodes)
        windows = [  # the positions of a convolution times the size of its window
            math.prod(node.shape[1:]) * node.weight[0].numel()
            for node in nodes
            if node.op in ("conv", "conv_transpose") and node.weight is not None
        ]
        return self.floats_per_sample(n_cotangents) + n_cotangents * deltas + max(windows, default=0)


class _GraphPoint(Point):
    def __init__(self, jacobian: GraphJacobian, X: Tensor):
        self.groups = jacobian.groups
        self.linearization = Linearization(jacobian.graph, X)
        self.logits = self.linearization.logits.flatten(1)  # (n, C)

    def gradients(self, cotangents: Tensor) -> SampleGradients:
        return sample_gradients(self.linearization, self.groups, cotangents)

    def squared_norms(self, cotangents: Tensor) -> Tensor:
        parts = iter_sample_gradients(self.linearization, self.groups, cotangents)
        return torch.stack([part.squared_norms().double().sum() for part in parts])  # (labels,), from (K, n) each

    def pull(self, cotangent: Tensor) -> list[Tensor]:
        by_parameter = self.linearization.gradient(cotangent)
        vectors = []
        for group in self.groups:
            vector: Tensor | None = None
            for use in group.uses:
                part = by_parameter[use.node.name, use.part].flatten()  # (numel of the use,)
                if use.index is not None:
                    # the transpose of `vector[index]`
                    part = part.new_zeros(group.size).index_add_(0, use.index.to(part.device), part)
                vector = part if vector is None else vector + part  # a tied tensor: the sum over its uses
            assert vector is not None
            vectors.append(vector)
        return vectors

    def push(self, direction: Sequence[Tensor]) -> Tensor:
        moved = {}
        for group, vector in zip(self.groups, direction, strict=True):
            for use in group.uses:
                values = vector if use.index is None else vector[use.index.to(vector.device)]  # (numel of the use,)
                moved[use.node.name, use.part] = values.to(use.tensor.dtype).reshape(use.tensor.shape)
        return self.linearization.push(moved).flatten(1)


class AutogradJacobian(ParameterJacobian):
    """With respect to a network's parameter vector, by automatic differentiation."""

    method = "autograd"
    labels = ("",)

    def __init__(self, network: Network):
        self.network = network
        self.vector = parameter_vector(network, allow_empty=True)
        self.sizes = tuple(tensor.numel() for tensor in self.vector.tensors)

    def at(self, X: Tensor) -> Point:
        return _AutogradPoint(self, X)

    @property
    def floats_per_point(self) -> int:
        return self.network.activation_size * (1 + len(list(self.network.module.modules())))

    def floats_per_sample(self, n_cotangents: int) -> int:
        return n_cotangents * self.size


class _AutogradPoint(Point):
    def __init__(self, jacobian: AutogradJacobian, X: Tensor):
        self.vector = jacobian.vector
        self.theta = [tensor.detach().requires_grad_(True) for tensor in self.vector.tensors]
        self.X = X
        with torch.enable_grad():
            self.forward = self.vector.bind(self.theta)
            self._logits = self.forward(X)  # (n, C), with a graph
        self.logits = self._logits.detach()

    def _pull(self, logits: Tensor, cotangent: Tensor) -> list[Tensor]:
        if not self.theta:
            return []
        by_parameter = torch.autograd.grad(
            logits, self.theta, cotangent.to(logits.dtype), retain_graph=True, allow_unused=True, materialize_grads=True
        )
        return [gradient.flatten() for gradient in by_parameter]

    def gradients(self, cotangents: Tensor) -> SampleGradients:
        rows = [  # (K, P) for each sample
            torch.stack([torch.cat(gradient) for gradient in sample]) for sample in self._sample_gradients(cotangents)
        ]
        return [Rows(torch.stack(rows, dim=1))]  # (K, n, P)

    def squared_norms(self, cotangents: Tensor) -> Tensor:
        total = self.logits.new_zeros(1, dtype=torch.float64)  # one label
        for sample in self._sample_gradients(cotangents):
            for gradient in sample:  # of length P, one at a time
                for part in gradient:
                    total += torch.linalg.vector_norm(part, dtype=torch.float64).square()
        return total

    def _sample_gradients(self, cotangents: Tensor) -> Iterator[Iterator[list[Tensor]]]:
        """For each sample, its gradient for each cotangent, one sample at a time."""
        for i in range(len(self.X)):
            with torch.enable_grad():
                logits = self.forward(self.X[i : i + 1])  # (1, C)
            yield (self._pull(logits, c[i : i + 1]) for c in cotangents)

    def pull(self, cotangent: Tensor) -> list[Tensor]:
        return self._pull(self._logits, cotangent)

    def push(self, direction: Sequence[Tensor]) -> Tensor:
        theta = {str(i): tensor for i, tensor in enumerate(self.theta)}
        along = {key: v.to(p.dtype).reshape(p.shape) for (key, p), v in zip(theta.items(), direction, strict=True)}
        return directional_derivative(lambda point: self.vector.bind(list(point.values()))(self.X), theta, along)[1]
