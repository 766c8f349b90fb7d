"""The graph of a module for the length of a training: traced once, bound to its live tensors at every step."""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_capacity.derivatives.input_sweeps import Tape, chain_refusal, linearize
from sklearn_capacity.derivatives.modes import autocasts
from sklearn_capacity.graph import NetworkGraph, Program, activation_of, evaluate, named_tensors, private_copy, trace
from sklearn_capacity.penalties.joint_weights import Joints, joint_linear

__all__ = ["Linearized", "graph_of", "linearized", "shared_forward"]

#: A module whose attributes change more often than this is left to the loop.
MANY_TRACES = 20
#: Longer lists and dicts are no settings of a forward pass, and are not read at every step.
MANY_ENTRIES = 100

_LOCK = threading.Lock()
_SCALARS = (int, float, bool, str, bytes, complex, type(None))
_OF_TORCH = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class _Waiting:
    """A forward pass that the loss has made and the penalty may use, if no tensor in it has changed since."""

    source: weakref.ref
    versions: int
    batch: Linearized


@dataclass
class _Traced:
    """What is known of one module: its program, or that it has none, and the graph of the last step.

    `writes` says that a forward pass changes the module's buffers or attributes.
    """

    owner: weakref.ref
    key: tuple
    program: Program | None
    writes: bool = False
    traces: int = 1
    volatile: frozenset[tuple[str, str]] = frozenset()
    modes: tuple[bool, ...] = ()
    mode_free: bool = False
    bound_to: tuple = ()
    graph: NetworkGraph | None = field(default=None, repr=False)
    waiting: _Waiting | None = field(default=None, repr=False)


_TRACED: dict[int, _Traced] = {}


@dataclass(frozen=True)
class Linearized:
    """A module's graph and a batch; `tape` is there if the loss's own forward pass recorded it.

    `joints` are that pass's wide linear layers, by node.
    """

    graph: NetworkGraph
    X: Tensor
    tape: Tape | None = None
    joints: Joints = field(default_factory=dict)

    @property
    def outputs(self) -> Tensor:
        """A tensor (n, C) without content, to draw directions for."""
        shape = (len(self.X), *self.graph[self.graph.output].shape)
        return torch.empty(shape, dtype=self.X.dtype, device=self.X.device)

    def parts(self, size: int, output: str = "logits") -> Iterator[tuple[slice, Tape]]:
        """Tapes of `size` samples at a time.

        Logits and smooth pre-activations are differentiable where the Jacobian depends on them: with the softmax,
        and with activations that are not piecewise linear.
        """
        bent = any(n.op == "activation" and not activation_of(n)[0].piecewise_linear for n in self.graph.nodes)
        for start in range(0, len(self.X), size):
            samples = slice(start, min(start + size, len(self.X)))
            if self.tape is not None:
                yield samples, self.tape if size >= len(self.X) else self.tape.part(samples)
                continue
            with torch.set_grad_enabled((bent or output == "softmax") and torch.is_grad_enabled()):
                tape = linearize(self.graph, self.X[samples])
            yield samples, tape


def linearized(module: Any, X: Tensor, *, fixed_norms: bool = False) -> Linearized | None:
    """The module's eval forward pass at X for the chain, or None where there is no chain for it.

    With `fixed_norms` the weights are no functions of the batch norms' scales that are folded into them.
    """
    batch = _take_waiting(module, X)
    if batch is not None and not (fixed_norms and _norm_scales(module)):
        return batch
    graph = graph_of(module, X, fixed_norms)
    if graph is None:
        return None
    return Linearized(graph, X.detach()) if batch is None else replace(batch, graph=graph)


def _take_waiting(module: nn.Module, X: Tensor) -> Linearized | None:
    """The forward pass that the loss has made, once, if it is of this X and the module is as it was."""
    entry = _TRACED.get(id(module))
    if entry is None or entry.owner() is not module or entry.waiting is None:
        return None
    waiting, entry.waiting = entry.waiting, None
    if waiting.source() is not X or waiting.batch.tape is None:
        return None
    return waiting.batch if waiting.versions == _versions(module, X, waiting.batch.tape.logits) else None


def _norm_scales(module: nn.Module) -> frozenset[str]:
    program = _TRACED[id(module)].program
    return frozenset() if program is None else program.norm_scales


def shared_forward(module: Any, X: Tensor) -> Tensor | None:
    """Outputs of the module for a loss, from a forward pass that the penalty of the same step uses again.

    None where batch norm, dropout or the module's own code does something else in training than in eval, where hooks
    listen to the module's forward pass or it writes into the module, where the loss's is in mixed precision and the
    penalty's is not, or where the loss has a gradient with respect to X, too.
    """
    graph = graph_of(module, X) if torch.is_grad_enabled() and not (autocasts(X) or X.requires_grad) else None
    if graph is None or _TRACED[id(module)].writes or not _mode_free(module, X) or _watched(module):
        return None
    data = X.detach()
    joints: Joints = {}
    tape = linearize(graph, data, {"linear": functools.partial(joint_linear, joints)})
    waiting = _Waiting(weakref.ref(X), _versions(module, X, tape.logits), Linearized(graph, data, tape, joints))
    _TRACED[id(module)].waiting = waiting
    return tape.logits


def _versions(module: nn.Module, *others: Tensor) -> int:
    """A number that changes with every change of a parameter, a buffer or another tensor in place."""
    return sum(t._version for t in itertools.chain(module.parameters(), module.buffers(), others))


def graph_of(module: Any, X: Tensor, fixed_norms: bool = False) -> NetworkGraph | None:
    """The module's folded graph with its live tensors, or None if it cannot be traced or has no chain."""
    if not isinstance(module, nn.Module) or not X.is_floating_point():
        return None
    entry = _entry(module, X)
    if entry.program is None:
        return None
    tensors = named_tensors(module)
    if fixed_norms and (scales := entry.program.norm_scales):
        return entry.program.bind({name: t.detach() if name in scales else t for name, t in tensors.items()})
    state = tuple((id(t), t.requires_grad) for t in tensors.values())
    if entry.graph is not None and entry.bound_to == state:
        return entry.graph
    graph = entry.program.bind(tensors)
    # The graph can serve again if nothing in it was computed from the tensors; an optimiser works in place.
    entry.graph, entry.bound_to = (graph, state) if _holds_only(graph, tensors) else (None, ())
    return graph


def _entry(module: nn.Module, X: Tensor) -> _Traced:
    """The trace for samples like X, made anew where something that it bakes in has changed."""
    entry = _TRACED.get(id(module))
    entry = entry if entry is not None and entry.owner() is module else None
    key = (tuple(X.shape[1:]), X.dtype, X.device, _settings(module, entry.volatile if entry else frozenset()))
    if entry is not None and entry.key == key:
        return entry
    number = id(module)
    owner = weakref.ref(module, lambda _: _TRACED.pop(number, None))
    traces = 1 if entry is None else entry.traces + 1
    program, writes = (None, False) if traces > MANY_TRACES else _program(module, X)
    new = _Traced(owner, key, program, writes, traces)
    if entry is not None:
        new.volatile = entry.volatile | _without_effect(entry, new)
        new.key = (*key[:3], {name: value for name, value in key[3].items() if name not in new.volatile})
    with _LOCK:
        _TRACED[number] = new
    return new


def _without_effect(old: _Traced, new: _Traced) -> frozenset[tuple[str, str]]:
    """Attributes that have changed and left the trace as it was: counters, what a forward pass notes down."""
    before, now = old.key[3], new.key[3]
    if old.key[:3] != new.key[:3] or old.program is None or new.program is None:
        return frozenset()
    if not _same(old.program, new.program):
        return frozenset()
    return frozenset(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))


def _program(module: nn.Module, X: Tensor) -> tuple[Program | None, bool]:
    """The traced program, if it has a chain and reproduces the module at X, and whether the module writes in itself."""
    try:
        program = trace(module, tuple(X.shape[1:]), dtype=X.dtype)
        twin = private_copy(module)  # what a forward pass leaves behind is left in the copy
        before = _contents(twin)
        with torch.no_grad():
            graph = program.bind(named_tensors(module))
            if chain_refusal(graph) is not None:
                return None, False
            expected, got = twin(X), evaluate(graph, X)
    except torch.OutOfMemoryError:
        raise
    except Exception:  # whatever a user's module raises here, the loop of double backward passes may still serve it
        return None, False
    if not isinstance(expected, Tensor) or expected.shape != got.shape:
        return None, False
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    error = float((got - expected).abs().max() / scale)
    if error >= 1e3 * torch.finfo(expected.dtype).eps ** 0.8:
        return None, False
    return program, before != _contents(twin)


def _contents(module: nn.Module) -> tuple:
    """What a forward pass may have written: attributes, parameters and buffers of all submodules."""
    return _settings(module, ()), [(id(t), t._version) for t in named_tensors(module).values()]


def _settings(module: nn.Module, volatile: Collection[tuple[str, str]]) -> dict[tuple[str, str], Any]:
    """What a trace bakes in: types and attributes of all submodules. The mode is not among them."""
    found: dict[tuple[str, str], Any] = {}
    for name, submodule in module.named_modules():
        found[name, ""] = type(submodule)
        for attribute, value in vars(submodule).items():
            if attribute not in _OF_TORCH and (name, attribute) not in volatile:
                found[name, attribute] = value if isinstance(value, _SCALARS) else _state(value)
    return found


def _state(value: Any) -> Any:
    """Something that differs when the value has changed, for scalars, tensors and containers of these."""
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, (dict, list, tuple)) and len(value) <= MANY_ENTRIES:
        return tuple(
            (key, _state(part)) for key, part in (value.items() if isinstance(value, dict) else enumerate(value))
        )
    return id(value)


def _holds_only(graph: NetworkGraph, tensors: Mapping[str, Tensor]) -> bool:
    own = {id(t) for t in tensors.values()}
    parts = [(t, node.sources) for node in graph.nodes for t in (node.weight, node.bias) if t is not None]
    return all(id(t) in own or not sources for t, sources in parts)


def _mode_free(module: nn.Module, X: Tensor) -> bool:
    """Whether the forward pass is the same in training as in eval, by comparing the two traces."""
    modes = tuple(m.training for m in module.modules())
    entry = _TRACED[id(module)]
    if entry.modes != modes:
        entry.modes = modes
        entry.mode_free = not any(modes) or (entry.program is not None and _same_traced(module, entry.program, X.dtype))
    return entry.mode_free


def _same_traced(module: nn.Module, program: Program, dtype: torch.dtype) -> bool:
    if any(m.training and isinstance(m, _MODAL) for m in module.modules()):
        return False
    try:
        other = trace(module, program.input_shape, dtype=dtype, training=True)
    except Exception:  # a forward pass that only eval mode can trace
        return False
    return _same(program, other)


def _same(a: Program, b: Program) -> bool:
    """Whether two traces hold the same operators and constants."""
    same = [node.format_node() for node in a.nodes] == [node.format_node() for node in b.nodes]
    pairs = zip(a.constants.values(), b.constants.values(), strict=False)
    return same and all(c.shape == d.shape and bool(torch.equal(c, d)) for c, d in pairs)


_MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def _watched(module: nn.Module) -> bool:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_all = any(getattr(nn.modules.module, f"_global{table}", None) for table in tables)
    return of_all or any(getattr(m, table, None) for m in module.modules() for table in tables)
