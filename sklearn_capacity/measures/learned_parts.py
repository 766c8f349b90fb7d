"""Whether noise on the trained parameters is noise on all that a network has learned, as PAC-Bayes bounds require."""

from __future__ import annotations

import torch

from ..graph import Network, UnsupportedLayerError

__all__ = ["check_learned_parts"]


def check_learned_parts(network: Network, prior: str) -> None:
    """Raise if a tensor without noise was learned: no posterior on it has a finite divergence from the prior."""
    statistics = _folded_statistics(network)
    try:
        graph = network.graph
    except UnsupportedLayerError:  # in this case the raw parameters carry the noise
        if prior == "initial":
            _check_frozen_tensors(network)
        return
    before = graph
    if prior == "initial":
        with torch.no_grad():
            before = network.program.bind(network.initial_tensors())
    for node, start in zip(graph.nodes, before.nodes, strict=True):
        initial = start.tensors()
        for part, bound in node.tensors().items():
            moved = bound.sources & statistics or not torch.equal(bound.tensor, initial[part].tensor)
            if moved and not bound.trainable:
                raise node.refuse(
                    "A PAC-Bayes bound",
                    "it contains values learned from the data (statistics, or weights that are now frozen) that "
                    "are not trained parameters, so they carry no noise.",
                )


def _folded_statistics(network: Network) -> set[str]:
    """Names of the running statistics that folding moves into weights and biases.

    A batch norm without scale and shift leaves its running mean in a bias that is not trained. Other layers with
    running statistics (instance norm) are not folded and are refused.
    """
    statistics = set()
    for name, module in network.module.named_modules():
        if isinstance(module, torch.nn.modules.batchnorm._NormBase) and module.running_mean is not None:
            if not isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                raise _learned(network.shown(f"{name}.running_mean"))
            statistics |= {f"{name}.running_mean", f"{name}.running_var"}
    return statistics


def _check_frozen_tensors(network: Network) -> None:
    """Raise if a tensor that is not trained differs from its value before training."""
    initial = network.initial_tensors()
    for name, tensor in network.tensors().items():
        if not tensor.requires_grad and not torch.equal(tensor, initial[name]):
            raise _learned(network.shown(name)) from None


def _learned(name: str) -> UnsupportedLayerError:
    return UnsupportedLayerError(
        f"A PAC-Bayes bound is not defined for this network: `{name}` was learned from the data but is not a trained "
        "parameter, so it carries no noise."
    )
