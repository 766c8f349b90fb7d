"""Weight layers of a network that cannot be traced: those of its largest parts that can."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .nodes import Node, UnsupportedLayerError
from .trace import named_tensors, trace
from .weight_layers import WeightLayers, weight_layers

__all__ = ["module_layers"]


@dataclass
class Call:
    """One call of a submodule, with the calls inside it."""

    name: str
    module: nn.Module
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    parts: list[Call] = field(default_factory=list)


def module_layers(module: nn.Module, X: Tensor, *, shown: Callable[[str], str] = str) -> WeightLayers:
    """The weight layers of a network whose own forward pass cannot be traced.

    The network runs on `X`, and each submodule that it calls is traced by itself, at the size that it was called with;
    where that fails, the submodules within it are. So batch norm is folded inside such a part, and nowhere else.

    Parameters
    ----------
    module : nn.Module
        In eval mode.
    X : Tensor of shape (n, ...)
    shown : callable, default=str
        Gives the name of a submodule or parameter as the user knows it.

    Raises
    ------
    UnsupportedLayerError
        If the number of samples decides which submodules are called, and how often.
    """
    nodes: list[Node] = []
    left_out: list[str] = []
    network = _recorded(module, X)
    _check_calls(network, _recorded(module, torch.cat([X, X[:1]])), shown)
    for call, layers in _traced_parts(network, len(X)):
        name = shown(call.name)
        if layers is None:
            if any(p.dim() > 1 for p in call.module.parameters(recurse=False)):
                left_out.append(f"layer `{name} ({type(call.module).__name__})`" if name else "the network itself")
            continue
        nodes += [_inside(node, name, len(nodes)) for node in layers.nodes]
        left_out += [f"{place} inside `{name}`" for place in layers.left_out]
    return WeightLayers(tuple(nodes), tuple(dict.fromkeys(left_out)))


def _inside(node: Node, name: str, position: int) -> Node:
    """A node of a part under the names of the whole."""
    inner = "" if node.scope == "weight" else node.scope  # the part is a layer itself
    scope = f"{name}.{inner}" if name and inner else name or inner
    return replace(node, name=f"{position}.{node.name}", scope=scope)


def _recorded(module: nn.Module, X: Tensor) -> Call:
    """The tree of calls in one forward pass."""
    top = Call("", module, (X,))
    stack: list[Call] = []

    def enter(name: str) -> Callable[..., None]:
        def hook(submodule: nn.Module, args: tuple, kwargs: dict) -> None:
            call = Call(name, submodule, args, kwargs)
            if stack:
                stack[-1].parts.append(call)
            stack.append(call)

        return hook

    def leave(*_: Any) -> None:
        top.parts = stack.pop().parts  # the last to leave is the network itself

    handles = []
    for name, submodule in module.named_modules():
        handles.append(submodule.register_forward_pre_hook(enter(name), with_kwargs=True))
        handles.append(submodule.register_forward_hook(leave))
    try:
        with torch.no_grad():
            module(X)
    finally:
        for handle in handles:
            handle.remove()
    return top


def _check_calls(few: Call, more: Call, shown: Callable[[str], str]) -> None:
    """Raise if a submodule is called another number of times with more samples: each call would count as a layer."""
    counts = [Counter(call.name for call in _calls(top)) for top in (few, more)]
    for name in counts[1]:
        if counts[0][name] != counts[1][name]:
            raise UnsupportedLayerError(
                f"The forward pass calls `{shown(name)}` another number of times for each number of samples, so its "
                "layers cannot be counted. Pass all samples to it at once, not one by one."
            )


def _calls(call: Call) -> Iterator[Call]:
    yield call
    for part in call.parts:
        yield from _calls(part)


def _traced_parts(call: Call, n_samples: int) -> Iterator[tuple[Call, WeightLayers | None]]:
    """The parts of a call that can be traced, in their order, and with None those that were looked into instead."""
    yield call, None
    for part in call.parts:
        if not any(True for _ in part.module.parameters()):
            continue
        layers = _layers_of(part, n_samples)
        if layers is None:
            yield from _traced_parts(part, n_samples)
        else:
            yield part, layers


def _layers_of(call: Call, n_samples: int) -> WeightLayers | None:
    tensors = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    if not tensors or any(tensor is not tensors[0] for tensor in tensors) or tensors[0].dim() == 0:
        return None
    x = tensors[0]
    part = _OneInput(call, x)
    try:
        program = trace(part, tuple(x.shape[1:]), dtype=x.dtype if x.is_floating_point() else None, inside="module.")
        with torch.no_grad():
            state = {f"module.{name}": tensor for name, tensor in named_tensors(call.module).items()}
            layers = weight_layers(program.bind(state), shown=lambda name: name.removeprefix("module."))
    except UnsupportedLayerError:
        return None
    # The part was traced as if its first axis were the samples; it may be longer, or another axis.
    return WeightLayers(tuple(_times(node, len(x) / n_samples) for node in layers.nodes), layers.left_out)


def _times(node: Node, factor: float) -> Node:
    """The layer at so many times its positions, all of them in `copies`."""
    positions = node.params.get("copies", 1)
    if node.op == "linear":
        positions, node = positions * math.prod(node.shape[:-1]), replace(node, shape=node.shape[-1:])
    return replace(node, params={**node.params, "copies": round(positions * factor)})


class _OneInput(nn.Module):
    """A submodule as a function of the tensor that it was called with, be it once or as several arguments."""

    def __init__(self, call: Call, x: Tensor):
        super().__init__()
        self.module = call.module
        self.integers = None if x.is_floating_point() else x.dtype
        self.args = [None if value is x else value for value in call.args]
        self.kwargs = {key: None if value is x else value for key, value in call.kwargs.items()}
        self.places = [value is x for value in call.args], {key for key, value in call.kwargs.items() if value is x}

    def forward(self, x: Tensor) -> Any:
        x = x if self.integers is None else x.to(self.integers)
        args = [x if here else value for here, value in zip(self.places[0], self.args, strict=True)]
        kwargs = {key: x if key in self.places[1] else value for key, value in self.kwargs.items()}
        output = self.module(*args, **kwargs)
        return output if isinstance(output, Tensor) else next(v for v in output if isinstance(v, Tensor))
