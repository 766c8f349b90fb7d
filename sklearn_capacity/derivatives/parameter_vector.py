"""The parameter vector theta as tensors that can be replaced: the graph's folded one, or the module's raw one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from .._validation import NotDefinedError
from ..graph import Network, NetworkGraph, UnsupportedLayerError, evaluate
from ..graph.fold import split_head
from ..graph.selections import is_selection, root
from .parameter_groups import ParameterGroup, Use, parameter_groups

__all__ = ["ParameterVector", "parameter_vector", "raw_parameter_vector"]

#: Forward pre-hooks of torch that compute a weight from other parameters.
_REPARAMETRIZING = (WeightNorm, SpectralNorm, prune.BasePruningMethod)


@dataclass(frozen=True)
class ParameterVector:
    """The trainable parameters, each tied tensor once, and the network as a function of them.

    A one-logit model has the parameters of its one logit z, although [-z/2, z/2] is measured: independent noise on the
    two halves would make another model.

    Attributes
    ----------
    tensors : sequence of Tensor
        The values; they must not be modified.
    bind : callable
        Maps tensors of the same shapes to the function X -> logits (n, C) that uses them.
    initial : callable
        Returns the values before training; raises if they are unknown.
    names : sequence of str
        Names of the module's parameters; empty if the vector is folded.
    """

    tensors: Sequence[Tensor]
    bind: Callable[[Sequence[Tensor]], Callable[[Tensor], Tensor]]
    initial: Callable[[], list[Tensor]]
    names: Sequence[str] = ()


def parameter_vector(network: Network, *, allow_empty: bool = False) -> ParameterVector:
    """The folded trainable parameters; without a graph the raw ones, if folding would not change them.

    The vector contains effective weights, not the parameters from which a normalised weight is computed. Parameters of
    operators without a rule (the scale of a layer norm) are included unchanged.

    Raises
    ------
    UnsupportedLayerError
        If neither is available, or if nothing is trained and `allow_empty` is false.
    """

    def find() -> ParameterVector:
        try:
            return _folded(network)
        except UnsupportedLayerError as error:
            return _raw(network, error)

    vector = network.once("parameter_vector", find)
    if not vector.tensors and not allow_empty:
        raise UnsupportedLayerError("The network has no trainable parameters that could vary.")
    return vector


def raw_parameter_vector(network: Network, purpose: str) -> ParameterVector:
    """All trainable parameters of the module: not folded, and a normalised weight by its underlying parameters.

    Raises
    ------
    NotDefinedError
        If there are none; the message begins with `purpose`.
    """
    theta: dict[str, Tensor] = {name: p for name, p in network.module.named_parameters() if p.requires_grad}
    if not theta:
        raise NotDefinedError(f"{purpose} needs trainable parameters, but the network has none that are not frozen.")
    return _unfolded(network, theta)


def _folded(network: Network) -> ParameterVector:
    graph = split_head(network.graph)
    groups = parameter_groups(graph, without_rule=True)
    for group in groups:
        if not group.plain and not any(is_selection(use.tensor) for use in group.uses):
            raise group.uses[0].node.refuse(
                "The vector of folded parameters", "another layer reads the same parameter transposed or in part."
            )
    order = {node.name: i for i, node in enumerate(graph.nodes)}
    places = [[(order[use.node.name], use.part, use.index, use.tensor.shape) for use in group.uses] for group in groups]

    def taken(tensor: Tensor, index: Tensor | None, shape: torch.Size) -> Tensor:
        """What a use reads of its group's tensor."""
        return tensor if index is None else tensor[index.to(tensor.device)].reshape(shape)

    def replaced(tensors: Sequence[Tensor]) -> NetworkGraph:
        parts: list[dict[str | int, Tensor]] = [{} for _ in graph.nodes]
        for uses, tensor in zip(places, tensors, strict=True):
            for node, part, index, shape in uses:
                parts[node][part] = taken(tensor, index, shape)
        nodes = tuple(node.with_tensors(new) for node, new in zip(graph.nodes, parts, strict=True))
        return NetworkGraph(nodes, graph.output)

    def bind(tensors: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        # Entries are taken in each pass, so that each has a backward pass of its own.
        fixed = replaced(tensors) if all(group.plain for group in groups) else None

        def forward(X: Tensor) -> Tensor:
            moved = replaced(tensors) if fixed is None else fixed
            return evaluate(moved, X).reshape(len(X), -1)  # (n, C)

        return forward

    def initial() -> list[Tensor]:
        with torch.no_grad():
            before = split_head(network.program.bind(network.initial_tensors()))
        return [_read(group, lambda use: before[use.node.name].tensors()[use.part].tensor) for group in groups]

    return ParameterVector([_read(group, lambda use: use.tensor) for group in groups], bind, initial)


def _read(group: ParameterGroup, tensor_of: Callable[[Use], Tensor]) -> Tensor:
    """A group's values, in the shape in which all its uses read them, or as a vector."""
    if group.plain:
        return tensor_of(group.uses[0]).detach()
    vector = tensor_of(group.uses[0]).new_zeros(group.size)  # (size,)
    for use in group.uses:
        where = slice(None) if use.index is None else use.index.to(vector.device)  # (numel of the use,)
        vector[where] = tensor_of(use).detach().flatten()
    return vector


def _raw(network: Network, reason: UnsupportedLayerError) -> ParameterVector:
    return _unfolded(network, _raw_parameters(network, reason))


def _unfolded(network: Network, theta: Mapping[str, Tensor]) -> ParameterVector:
    """Parameters of the module, by their names in it."""
    network.refuse_replacing(theta)

    def bind(tensors: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        state = dict(zip(theta, tensors, strict=True))
        return lambda X: network.forward(X, state)

    def initial() -> list[Tensor]:
        before = network.initial_tensors()
        return [before[name].detach() for name in theta]

    return ParameterVector(list(theta.values()), bind, initial, [network.shown(name) for name in theta])


def _raw_parameters(network: Network, reason: UnsupportedLayerError) -> dict[str, Tensor]:
    """The trainable parameters that a module uses, if they equal the folded ones: no batch norm, no parametrisation.

    Parameters
    ----------
    network : Network
    reason : UnsupportedLayerError
        The reason why the folded ones are not available; repeated in the error if these are not available either.
    """
    theta: dict[str, Tensor] = {name: p for name, p in network.module.named_parameters() if p.requires_grad}
    try:
        _ = network.graph
    except UnsupportedLayerError:
        _check_modules(network, reason)
        return theta  # which parameters are used may depend on the data
    _check_weights(network, reason)
    X = torch.zeros(2, *network.input_shape, dtype=network.dtype, device=network.device)  # (2, *input_shape)
    with torch.enable_grad():
        logits = network.forward(X).sum()  # only whether it depends on each parameter matters
    if not logits.requires_grad:
        return {}
    gradients = torch.autograd.grad(logits, list(theta.values()), allow_unused=True)
    return {name: p for (name, p), g in zip(theta.items(), gradients, strict=True) if g is not None}


def _check_modules(network: Network, reason: UnsupportedLayerError) -> None:
    """Raise if a module's weights are known to differ from its parameters."""
    for name, submodule in network.module.named_modules():
        if isinstance(submodule, nn.modules.batchnorm._BatchNorm) or _reparametrized(submodule):
            raise UnsupportedLayerError(
                f"{reason} Without a graph, layer `{network.shown(name)}` cannot be folded."
            ) from reason


def _check_weights(network: Network, reason: UnsupportedLayerError) -> None:
    """Raise if a trained tensor of the graph is computed from parameters, and is neither a parameter nor a view of one.

    This includes a batch norm, which computes its scale.
    """
    parameters = network.tensors()
    with torch.no_grad():
        graph = network.program.bind(parameters, folded=False)
    held = {id(tensor) for tensor in parameters.values()}
    for node in graph.nodes:
        if any(bound.trainable and id(root(bound.tensor)) not in held for bound in node.tensors().values()):
            raise UnsupportedLayerError(
                f"{reason} Layer `{node.label}` computes its weight from parameters, so these cannot replace it."
            ) from reason


def _reparametrized(module: nn.Module) -> bool:
    """Whether a weight of the module itself is computed from other parameters by one of torch's tools."""
    hooks = module._forward_pre_hooks.values()
    return parametrize.is_parametrized(module) or any(isinstance(hook, _REPARAMETRIZING) for hook in hooks)
