"""Modules as operators without an export, from the calls of their forward code on tensors without values.

Recording takes milliseconds where an export takes hundreds, and imports hundreds of modules less. A call that
`known_calls` does not list ends it; the module is then exported.

Known are torch's layers and this package's networks. Other people's forward code may do anything with the number of
samples, which a recording takes for one that stands for all: it is recorded for two samples, too, and exported if the
calls differ, or if it compares that number with another.
"""

from __future__ import annotations

import itertools
import linecache
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from ..process_state import has_own_hooks, has_process_hooks
from .known_calls import CALLS, IN_PLACE, RESHAPES, VIEWS, WITHOUT_EFFECT, UnknownCallError, fits, result_of

__all__ = ["Recording", "is_known", "recorded", "recorded_twice"]

#: Number of samples of the recorded pass. It is prime, so that every size that depends on it is a multiple of it.
SAMPLES = 7919
#: Number of samples of the pass that must agree with it.
FEW_SAMPLES = 2

_PACKAGE = __name__.partition(".")[0]
#: What a forward pass may ask of a value; sizes are those of the recorded number of samples.
_PROPERTIES = {
    *(Tensor.dim, Tensor.size, Tensor.numel, Tensor.is_floating_point),
    *(getattr(Tensor, name).__get__ for name in ("shape", "ndim", "dtype")),
}
#: The modules that record, and the files in which torch's functions pass a call on.
_RECORDING = (__name__, UnknownCallError.__module__)
_PASSING_ON = tuple(
    path.replace("/", os.sep) for path in ("torch/overrides.py", "torch/_tensor.py", "torch/nn/functional.py")
)


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

    @property
    def calls(self) -> list[tuple[Any, ...]]:
        """What does not depend on the number of samples, unless the forward pass computes something from it."""
        calls = [(node.name, node.target, str(node.args), str(node.kwargs)) for node in self.nodes]
        return [*calls, (self.input_name, self.output_name)]


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


def recorded_twice(
    meta_copy: Callable[[], nn.Module], input_shape: tuple[int, ...], dtype: torch.dtype
) -> Recording | None:
    """The operators of the forward pass of a module that is not known; None if `recorded` has none, or it is unclear.

    Parameters
    ----------
    meta_copy : callable
        A private copy on the meta device each time.
    input_shape, dtype
        As for `recorded`.
    """
    module = meta_copy()
    if has_process_hooks() or not all(map(_runs_only_its_forward, module.modules())):
        return None
    record = recorded(module, input_shape, dtype)
    again = None if record is None else recorded(meta_copy(), input_shape, dtype, samples=FEW_SAMPLES)
    return record if record is not None and again is not None and record.calls == again.calls else None


def _runs_only_its_forward(module: nn.Module) -> bool:
    """Whether a call of it runs the forward code of its class, which torch has not written for a purpose of its own."""
    kind = type(module)
    own = kind.__module__.startswith("torch.") and not kind.__module__.startswith("torch.nn.modules.")
    replaced = kind.__call__ is not nn.Module.__call__ or "forward" in vars(module)
    return not (own or replaced or has_own_hooks(module))


def recorded(
    module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype, *, samples: int = SAMPLES
) -> Recording | None:
    """The operators of a module's forward pass; None if one of its calls is not listed, or fails.

    Parameters
    ----------
    module : nn.Module
        A private copy on the meta device, which is used up.
    input_shape : tuple of int
        Shape of one sample.
    dtype : torch.dtype
        Dtype of the sample.
    samples : int, default=7919
        Their number.
    """
    tape = _Tape(samples)
    try:
        tensor_names = tape.replace_tensors(module)
        tape.follow(module)
        x = tape.placeholder("x", torch.empty(samples, *input_shape, dtype=dtype, device="meta"), of_samples=True)
        input_name = x.node.name  # now, since a call in place gives it another node
        output = module(x)
    except Exception:  # the export that follows gives the better error
        return None
    if tape.failed or not isinstance(output, _Value) or not output.of_samples:
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
    def __torch_function__(cls, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _PROPERTIES:
            with torch._C.DisableTorchFunctionSubclass():
                return _counted(func, func(*args, **(kwargs or {})), *args, **(kwargs or {}))
        try:
            args, options = tree_map_only(_Count, int, (args, kwargs or {}))
            return cls._recorded(func, args, options)
        except Exception:  # which the forward code may catch
            for value in _values((args, kwargs)):
                value.tape.failed = True
            raise

    @staticmethod
    def _recorded(func: Any, args: tuple, options: dict[str, Any]) -> _Value:
        translate = CALLS.get(func)
        if translate is None:
            raise UnknownCallError(str(func))
        in_place = options.pop("inplace", False) or func in IN_PLACE
        target, arguments, options = translate(*args, **options)
        first = next(_values(args))
        if not fits(target, arguments, options):
            raise UnknownCallError(f"{func} with other arguments than the operator's")
        result = first.tape.record(target, *arguments, **options)
        if not in_place or target in WITHOUT_EFFECT:
            return result
        shapes = [value.node.meta["val"].shape for value in (first, result)]
        if first is not args[0] or first.shared or not first.of_samples or shapes[0] != shapes[1]:
            raise UnknownCallError(f"{func} in place on a view")
        first.node = result.node
        return first


def _values(tree: Any) -> Iterator[_Value]:
    """The values in nested containers."""
    if isinstance(tree, _Value):
        yield tree
    elif isinstance(tree, tuple | list | dict):
        for item in tree.values() if isinstance(tree, dict) else tree:
            yield from _values(item)


def _each(arg: Any, function: Callable[[_Value], Any]) -> Any:
    """An argument with a function of each value in the place of the value."""
    if isinstance(arg, list):
        return [_each(item, function) for item in arg]
    if isinstance(arg, Tensor) and not isinstance(arg, _Value):
        raise UnknownCallError("a tensor that the forward pass makes")
    return function(arg) if isinstance(arg, _Value) else arg


class _Count(int):
    """A number computed from the number of samples; others would give other results of comparisons with it."""

    tape: _Tape

    def refuse(self, *_: Any) -> Any:
        self.tape.failed = True
        raise UnknownCallError("a decision by the number of samples")

    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __bool__ = refuse
    __truediv__ = __rtruediv__ = __float__ = refuse  # of which comparisons could not be noticed
    __hash__ = int.__hash__


def _computing(name: str) -> Callable[..., Any]:
    def method(self: _Count, *others: Any) -> Any:
        result = getattr(int, name)(self, *others)  # NotImplemented for a float
        return _count(result, self.tape) if isinstance(result, int) else result

    return method


for _name in ("neg", "add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "rfloordiv", "mod", "rmod"):
    setattr(_Count, f"__{_name}__", _computing(f"__{_name}__"))


def _count(number: int, tape: _Tape) -> _Count:
    count = _Count(number)
    count.tape = tape
    return count


def _counted(func: Any, answer: Any, x: _Value, dim: int | None = None) -> Any:
    """What a forward pass is told of a value, with counts for numbers computed from the number of samples."""
    if not x.of_samples:
        return answer
    if isinstance(answer, torch.Size):
        return torch.Size([_count(answer[0], x.tape), *answer[1:]])
    is_counted = func is Tensor.numel or (func is Tensor.size and dim in (0, -x.dim()))
    return _count(answer, x.tape) if is_counted else answer


class _Tape:
    """The graph that a forward pass writes, and the submodule that is running."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.failed = False
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
        """Note which submodule of a private copy is running; each with weights may run once, since it names them."""
        ran: set[nn.Module] = set()

        def enter(path: str) -> Callable[..., None]:
            def hook(part: nn.Module, _: Any) -> None:
                if part in ran and next(itertools.chain(part.parameters(), part.buffers()), None) is not None:
                    self.failed = True
                    raise UnknownCallError(f"{path} twice")
                ran.add(part)
                self.running.append((path, type(part).__qualname__))

            return hook

        for path, part in module.named_modules(prefix="module"):
            part.register_forward_pre_hook(enter(path))
            part.register_forward_hook(lambda *_: self.running.pop() and None)

    def record(self, target: Any, *args: Any, **options: Any) -> _Value:
        """The value of an operator, which becomes a node."""
        read = list(_values(args))
        of_samples = any(value.of_samples for value in read)
        result = result_of(target, [_each(arg, lambda value: value.node.meta["val"]) for arg in args], options)
        mixed = self.samples == SAMPLES and any(size % SAMPLES == 0 for size in result.shape[1:])
        if of_samples and (mixed or result.shape[:1] != (self.samples,)):
            raise UnknownCallError(f"{target} along the samples")
        if of_samples and target in RESHAPES:
            args = args[0], self._for_any_number(*args)
        node = self._node(target, tuple(_each(arg, lambda value: value.node) for arg in args), options)
        value = self._value(node, result, of_samples)
        if target in VIEWS:
            value.shared = read[0].shared = True
        return value

    def _for_any_number(self, x: _Value, sizes: list[int]) -> list[Any]:
        """The sizes of a reshaped value, with the number of samples as a value instead of a number."""
        if sizes[0] != self.samples:
            return sizes
        node = self._node(torch.ops.aten.sym_size.int, (x.node, 0), {})
        node.meta["val"] = self.samples
        return [node, *sizes[1:]]

    def _node(self, target: Any, args: tuple, options: dict[str, Any]) -> fx.Node:
        name = target.__name__.split(".")[0]
        node = self.graph.create_node("call_function", target, args, options, name=name)
        node.meta["nn_module_stack"] = dict(enumerate(self.running))
        node.meta["stack_trace"] = _calling_line()
        return node

    def _value(self, node: fx.Node, value: Tensor, of_samples: bool) -> _Value:
        node.meta["val"] = value
        traced = value.as_subclass(_Value)
        traced.tape, traced.node, traced.of_samples, traced.shared = self, node, of_samples, False
        return traced


def _calling_line() -> str:
    """The line of the forward code that makes the present call, as in a traceback."""
    frame = sys._getframe(1)
    while frame.f_back and _passes_on(frame):
        frame = frame.f_back
    file, number = frame.f_code.co_filename, frame.f_lineno
    return f'  File "{file}", line {number}, in {frame.f_code.co_name}\n    {linecache.getline(file, number).strip()}'


def _passes_on(frame: types.FrameType) -> bool:
    return frame.f_globals.get("__name__") in _RECORDING or frame.f_code.co_filename.endswith(_PASSING_ON)
