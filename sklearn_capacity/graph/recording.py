"""Known modules as operators without an export, from the calls of their forward code on tensors without values.

Known are torch's layers and this package's networks. Recording takes milliseconds where an export takes tens to
thousands, and changes nothing outside the calling thread. A call that `known_calls` does not list ends it; the module
is then exported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..process_state import has_own_hooks, has_process_hooks
from .known_calls import CALLS, RESHAPES, VIEWS, UnknownCallError, result_of

__all__ = ["Recording", "is_known", "recorded"]

#: Number of samples of the recorded pass. It is prime, so that every size that depends on it is a multiple of it.
SAMPLES = 7919

_PACKAGE = __name__.partition(".")[0]
#: What a forward pass may ask of a value; sizes are those of `SAMPLES` samples.
_PROPERTIES = {
    *(Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_floating_point),
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype", "device", "requires_grad", "_version")),
}


@dataclass(frozen=True)
class Recording:
    """The operators of a forward pass in the form of an exported program's graph.

    Attributes
    ----------
    nodes : tuple of fx.Node
        With the value, which has a size and no entries, and the submodules around each call in `meta`.
    tensor_names : mapping of str to str
        Parameters and buffers by the names of the nodes that stand for them.
    input_name, output_name : str
        Names of the nodes.
    batch : str
        The number of samples.
    """

    nodes: tuple[fx.Node, ...]
    tensor_names: Mapping[str, str]
    input_name: str
    output_name: str
    batch: str = str(SAMPLES)


def is_known(module: nn.Module) -> bool:
    """Whether a module and its submodules are torch's or this package's, without hooks and replaced methods."""
    if has_process_hooks():
        return False
    return all(_is_known_alone(part) for part in module.modules())


def _is_known_alone(module: nn.Module) -> bool:
    kind = type(module)
    known = (f"{_PACKAGE}.", "torch.nn.modules.")
    # The forward code is checked, too: a generated class can have any name.
    if not kind.__module__.startswith(known) or not kind.forward.__module__.startswith(known):
        return False
    if "forward" in vars(module):
        return False
    return not has_own_hooks(module)


def recorded(module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype) -> Recording | None:
    """The operators of a known module's forward pass; None if one of its calls is not listed, or fails.

    Parameters
    ----------
    module : nn.Module
        A private copy on the meta device, which is used up.
    input_shape : tuple of int
        Shape of one sample.
    dtype : torch.dtype
        Dtype of the sample.
    """
    tape = _Tape()
    try:
        tensor_names = tape.replace_tensors(module)
        tape.follow(module)
        x = tape.placeholder("x", torch.empty(SAMPLES, *input_shape, dtype=dtype, device="meta"), of_samples=True)
        input_name = x.node.name  # now, since a call in place gives it another node
        output = module(x)
    except Exception:  # the export that follows gives the better error
        return None
    if not isinstance(output, _Value) or not output.of_samples:
        return None
    return Recording(tuple(tape.graph.nodes), tensor_names, input_name, output.node.name)


class _Value(Tensor):
    """A tensor without entries, whose calls are recorded.

    Attributes
    ----------
    tape : _Tape
    node : fx.Node
    of_samples : bool
        Whether it depends on the network's input.
    shared : bool
        Whether another value may be a view of the same memory, so that an in-place call would change both.
    """

    tape: _Tape
    node: fx.Node
    of_samples: bool
    shared: bool

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PROPERTIES:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args)
        translate = CALLS.get(func)
        if translate is None:
            raise UnknownCallError(str(func))
        options = dict(kwargs or {})
        in_place = options.pop("inplace", False)
        target, arguments, options = translate(*args, **options)
        first = next(value for value in args if isinstance(value, _Value))
        result = first.tape.record(target, *arguments, **options)
        if not in_place:
            return result
        if first.shared or not first.of_samples:
            raise UnknownCallError(f"{func} in place on a view")
        first.node = result.node
        return first


class _Tape:
    """The graph that a forward pass writes, and the submodule that is running."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.running: list[tuple[str, str]] = []  # path and class, from the outside in

    def placeholder(self, name: str, value: Tensor, *, of_samples: bool = False) -> _Value:
        return self._value(self.graph.create_node("placeholder", name, name=name), value, of_samples)

    def replace_tensors(self, module: nn.Module) -> dict[str, str]:
        """Put values in the place of a copy's parameters and buffers; returns their names by those of the nodes."""
        names: dict[str, str] = {}
        for path, part in module.named_modules():
            tables: list[dict[str, Any]] = [part._parameters, part._buffers]  # type: ignore[list-item]
            for table in tables:
                for name, tensor in table.items():
                    if tensor is not None:
                        full_name = f"{path}.{name}" if path else name
                        value = self.placeholder("p_" + full_name.replace(".", "_"), tensor.detach())
                        table[name], names[value.node.name] = value, full_name
        return names

    def follow(self, module: nn.Module) -> None:
        """Note which submodule of a private copy is running; each may run once, since the operators carry its name."""
        ran: set[nn.Module] = set()

        def enter(path: str) -> Callable[..., None]:
            def hook(part: nn.Module, _: Any) -> None:
                if part in ran:
                    raise UnknownCallError(f"{path} twice")
                ran.add(part)
                self.running.append((path, type(part).__qualname__))

            return hook

        for path, part in module.named_modules(prefix="module"):
            part.register_forward_pre_hook(enter(path))
            part.register_forward_hook(lambda *_: self.running.pop() and None)

    def record(self, target: Any, *args: Any, **options: Any) -> _Value:
        """The value of an operator, which becomes a node."""
        read = [value for value in args if isinstance(value, _Value)]
        of_samples = any(value.of_samples for value in read)
        result = result_of(target, [v.node.meta["val"] if isinstance(v, _Value) else v for v in args], options)
        if of_samples and (result.shape[:1] != (SAMPLES,) or any(size % SAMPLES == 0 for size in result.shape[1:])):
            raise UnknownCallError(f"{target} along the samples")
        if of_samples and target in RESHAPES:
            args = args[0], self._for_any_number(*args)
        node = self._node(target, tuple(value.node if isinstance(value, _Value) else value for value in args), options)
        value = self._value(node, result, of_samples)
        if target in VIEWS:
            value.shared = read[0].shared = True
        return value

    def _for_any_number(self, x: _Value, sizes: list[int]) -> list[Any]:
        """The sizes of a reshaped value, with the number of samples as a value instead of a number."""
        if sizes[0] != SAMPLES:
            return sizes
        node = self._node(torch.ops.aten.sym_size.int, (x.node, 0), {})
        node.meta["val"] = SAMPLES
        return [node, *sizes[1:]]

    def _node(self, target: Any, args: tuple, options: dict[str, Any]) -> fx.Node:
        name = target.__name__.split(".")[0]
        node = self.graph.create_node("call_function", target, args, options, name=name)
        node.meta["nn_module_stack"] = dict(enumerate(self.running))
        return node

    def _value(self, node: fx.Node, value: Tensor, of_samples: bool) -> _Value:
        node.meta["val"] = value
        traced = value.as_subclass(_Value)
        traced.tape, traced.node, traced.of_samples, traced.shared = self, node, of_samples, False
        return traced
