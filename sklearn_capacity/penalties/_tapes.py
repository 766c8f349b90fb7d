"""The graph of a module for the length of a training: traced once, bound to its live tensors at every step."""

from __future__ import annotations

import functools
import itertools
import threading
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_capacity.graph import NetworkGraph, Program, activation_of, evaluate, named_tensors, private_copy, trace
from sklearn_capacity.graph.chain import Tape, chain_refusal, linearize
from sklearn_capacity.penalties._joint import Joints, joint_linear
from sklearn_capacity.penalties._modes import autocasts

__all__ = ["Linearized", "graph_of", "linearized", "shared_forward"]

#: A module whose attributes change more often than this is left to the loop.
MANY_TRACES = 20

_LOCK = threading.Lock()
_SCALARS = (int, float, bool, str, bytes, complex, type(None))


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
    mode_free: bool | None = None
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
    if graph is None or _entry(module, X).writes or not _mode_free(module, X) or _watched(module):
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
    key = (tuple(X.shape[1:]), X.dtype, X.device, tuple(_settings(module)))
    entry = _TRACED.get(id(module))
    if entry is not None and entry.owner() is module and entry.key == key:
        return entry
    number = id(module)
    owner = weakref.ref(module, lambda _: _TRACED.pop(number, None))
    traces = 1 if entry is None or entry.owner() is not module else entry.traces + 1
    program, writes = (None, False) if traces > MANY_TRACES else _program(module, X)
    entry = _Traced(owner, key, program, writes, traces)
    with _LOCK:
        _TRACED[number] = entry
    return entry


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
    except Exception:  # whatever a user's module raises here, the loop of double backward passes may still serve it
        return None, False
    if not isinstance(expected, Tensor) or expected.shape != got.shape:
        return None, False
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    error = float((got - expected).abs().max() / scale)
    if error >= 1e3 * torch.finfo(expected.dtype).eps ** 0.8:
        return None, False
    after = _contents(twin)
    return program, len(before) != len(after) or any(a is not b for a, b in zip(before, after, strict=True))


def _contents(module: nn.Module) -> list[Any]:
    """All attributes of all submodules, and the versions of their tensors."""
    values = [value for submodule in module.modules() for value in vars(submodule).values()]
    return [*values, *(t._version for t in named_tensors(module).values())]


def _settings(module: nn.Module) -> Iterator[Any]:
    """What a trace bakes in: types and plain attributes of all submodules. The mode is not among them."""
    for name, submodule in module.named_modules():
        yield name
        yield type(submodule)
        for attribute, value in vars(submodule).items():
            if attribute != "training" and _is_plain(value):
                yield value


def _is_plain(value: Any) -> bool:
    return isinstance(value, _SCALARS) or (isinstance(value, tuple) and all(isinstance(v, _SCALARS) for v in value))


def _holds_only(graph: NetworkGraph, tensors: Mapping[str, Tensor]) -> bool:
    own = {id(t) for t in tensors.values()}
    parts = [(t, node.sources) for node in graph.nodes for t in (node.weight, node.bias) if t is not None]
    return all(id(t) in own or not sources for t, sources in parts)


def _mode_free(module: nn.Module, X: Tensor) -> bool:
    """Whether the forward pass is the same in training as in eval, by comparing the two traces."""
    if not module.training:
        return not any(m.training for m in module.modules())
    entry = _entry(module, X)
    if entry.mode_free is None:
        entry.mode_free = entry.program is not None and _same_traced(module, entry.program, X.dtype)
    return entry.mode_free


def _same_traced(module: nn.Module, program: Program, dtype: torch.dtype) -> bool:
    if any(m.training and isinstance(m, _MODAL) for m in module.modules()):
        return False
    try:
        other = trace(module, program.input_shape, dtype=dtype, training=True)
    except Exception:  # a forward pass that only eval mode can trace
        return False
    same = [node.format_node() for node in other.nodes] == [node.format_node() for node in program.nodes]
    pairs = zip(other.constants.values(), program.constants.values(), strict=False)
    return same and all(a.shape == b.shape and bool(torch.equal(a, b)) for a, b in pairs)


_MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)


def _watched(module: nn.Module) -> bool:
    tables = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    of_all = any(getattr(nn.modules.module, f"_global{table}", None) for table in tables)
    return of_all or any(getattr(m, table, None) for m in module.modules() for table in tables)
