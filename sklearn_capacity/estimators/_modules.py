"""From the `module` parameter to a network with checked outputs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from sklearn_capacity import architectures
from sklearn_capacity._validation import check_option, copied_module, has_packed_weights, shown
from sklearn_capacity.training import embedding_cure

__all__ = ["check_batch_norm", "check_output", "make_module"]


def make_module(module: Any, module_params: Mapping[str, Any] | None, input_shape: tuple[int, ...], n_outputs: int):
    """A new network for samples of `input_shape` from a name, class, factory or instance.

    A name goes to :func:`sklearn_capacity.architectures.make_network`. A class or factory gets those of
    ``input_shape``, ``n_features`` and ``n_outputs`` that its signature names, and `module_params`,
    which take precedence. An instance is copied with its weights.
    """
    params = dict(module_params or {})
    if isinstance(module, str):
        name = check_option("module", module, architectures.ARCHITECTURES)
        return architectures.make_network(name, input_shape, n_outputs, **params)
    if isinstance(module, nn.Module):
        if params:
            raise ValueError(
                f"`module_params` must be None when `module` is an instance, got {shown(params)}. "
                "Give the class instead."
            )
        hollow = next((name for name, tensor in module.named_parameters() if tensor.is_meta), None)
        if hollow is not None:
            raise ValueError(f"`module` must have values, got {hollow!r} on the meta device. Give the class instead.")
        if any(map(has_packed_weights, module.modules())):
            raise ValueError("`module` must not be quantized, since it cannot be trained. Give it as it was before.")
        return copied_module(module, "Give its class, or a function that makes it.")
    if not callable(module):
        raise TypeError(
            "`module` must be None, the name of an architecture, an nn.Module class or instance, "
            f"or a callable that returns one, got {shown(module)}."
        )
    result = _call(module, params, input_shape, n_outputs)
    if not isinstance(result, nn.Module):
        raise TypeError(f"`module` must return an nn.Module, got {shown(result)}.")
    return result


def _call(factory: Any, params: dict[str, Any], input_shape: tuple[int, ...], n_outputs: int) -> Any:
    offered = {"input_shape": input_shape, "n_features": int(torch.Size(input_shape).numel()), "n_outputs": n_outputs}
    try:
        signature = inspect.signature(factory)
    except (TypeError, ValueError):  # some builtins have none
        return factory(**params)
    arguments = {name: value for name, value in offered.items() if name in signature.parameters} | params
    try:
        signature.bind(**arguments)
    except TypeError as error:
        raise ValueError(
            f"`module` cannot be called with {sorted(arguments)}: {error}. Pass missing arguments in `module_params`."
        ) from error
    return factory(**arguments)


def _description(error: Exception) -> str:
    return str(error) if isinstance(error, RuntimeError | ValueError) else f"{type(error).__name__}: {error}"


def check_output(module: nn.Module, sample: torch.Tensor, n_outputs: int, meaning: str) -> None:
    """Run one sample through the module, which also initialises lazy layers, and check the output's shape."""
    module.eval()
    try:
        with torch.no_grad():
            output = module(sample)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:
        shape = tuple(sample.shape[1:])
        images = " Images need `input_shape`, or X of shape (n_samples, channels, height, width)." * (len(shape) == 1)
        cure = embedding_cure(module, "train") or images
        raise ValueError(f"`module` failed on a sample of shape {shape}: {_description(error)}.{cure}") from error
    if not isinstance(output, torch.Tensor) or output.shape != (1, n_outputs):
        got = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise ValueError(
            f"`module` must return a tensor of shape (n_samples, {n_outputs}), {meaning}; "
            f"for one sample it returned {got}."
        )


def check_batch_norm(module: nn.Module, batch_size: int) -> None:
    """Refuse batches of one sample, whose variance batch norm cannot compute."""
    if batch_size == 1 and any(isinstance(m, nn.BatchNorm1d) for m in module.modules()):
        raise ValueError("Batch norm needs batches of at least 2 samples, got 1 sample.")
