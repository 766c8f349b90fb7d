"""The graph of a module during training: traced once, bound to its current tensors at every step.

One trace is stored for each live module and is freed with it. It contains operators, constants and parameters of the
module, and no part of a batch.
"""

from __future__ import annotations

import weakref
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sklearn_capacity._validation import check_instance
from sklearn_capacity.derivatives.input_sweeps import chain_refusal
from sklearn_capacity.derivatives.modes import evaluating
from sklearn_capacity.graph import (
    NetworkGraph,
    Program,
    Rebinder,
    UnsupportedLayerError,
    evaluate,
    is_known,
    named_tensors,
    private_copy,
    takes_channels_last,
    trace,
)
from sklearn_capacity.graph.joined_norms import joined_norms
from sklearn_capacity.graph.trace import is_idle
from sklearn_capacity.penalties.surroundings import SCALARS, Surroundings, token
from sklearn_capacity.process_state import FORWARD_HOOKS, has_own_hooks, has_process_hooks

__all__ = [
    "ModuleTrace",
    "Parts",
    "acts_alike_in_training",
    "chain_of",
    "graph_of",
    "has_folded_layers",
    "has_hooks",
    "parts_of",
    "takes_images_last",
    "tensors_of",
    "trace_of",
    "whole_graph",
]

#: A module that changes more often than this, and more often than once in so many uses, is handled by the loop.
MANY_TRACES = 20
USES_PER_TRACE = 100
#: Samples of the batch on which a graph is compared with its module.
COMPARED = 16

_OF_TORCH = frozenset(vars(nn.Module()))


@dataclass(eq=False)
class ModuleTrace:
    """The state for one module: its program, or the fact that it has none, and the graph of the last step.

    Attributes
    ----------
    owner : weak reference to the module
    key : tuple
        Shape, precision and device of a sample, and what the trace fixes: shapes and ties of tensors, settings, and
        what the code reads elsewhere.
    surroundings : Surroundings
        The places that the code reads.
    program : Program or None
        None if it cannot be traced.
    refusal : str or None
        The reason why it cannot be traced or its graph has no chain.
    writes : bool
        Whether a forward pass changes the module's buffers or attributes.
    written : frozenset of (submodule, attribute)
        What it changes of attributes, and of the places that the code reads.
    uses, traces : int
        Numbers of times that the trace was asked for, and that the module was traced.
    volatile : frozenset of (submodule, attribute)
        Attributes that changed without an effect on the trace, and are written by the forward pass itself or named
        nowhere in its code; they are not settings.
    modes, mode_free
        Training flags of the submodules, and whether the forward pass in these modes equals that in eval mode.
    images_last : bool or None
        Whether the module may receive channels-last images; None if that was never asked.
    bound_to, rebinder
        Parameters and buffers (by id, with their ``requires_grad``), and what binds them.
    """

    owner: weakref.ref
    key: tuple
    surroundings: Surroundings
    program: Program | None = None
    refusal: str | None = None
    writes: bool = False
    written: frozenset[tuple[str, str]] = frozenset()
    uses: int = 0
    traces: int = 1
    volatile: frozenset[tuple[str, str]] = frozenset()
    modes: tuple[bool, ...] = ()
    mode_free: bool = False
    images_last: bool | None = None
    bound_to: tuple = ()
    rebinder: Rebinder | None = field(default=None, repr=False)


_TRACES: dict[int, ModuleTrace] = {}
#: A module's submodules with their names, and itself: a step reads them often, so it lists them once.
Parts: TypeAlias = list[tuple[str, nn.Module]]


def graph_of(module: Any, X: Tensor, *, folded: bool = True) -> NetworkGraph | None:
    """The module's graph with its current tensors, folded by `Program.bind`; None if it has no trace or no chain.

    Unless `folded`, every weight is that of the module's own layer, and batch norms are separate nodes.
    """
    if not isinstance(module, nn.Module) or not X.is_floating_point():
        return None
    parts = parts_of(module)
    return chain_of(trace_of(module, X, parts), parts, module, folded=folded)


def chain_of(trace: ModuleTrace, parts: Parts, module: nn.Module, *, folded: bool = True) -> NetworkGraph | None:
    """The same from the module's present trace."""
    if trace.program is None or trace.refusal is not None:
        return None
    return joined_norms(_rebinder(trace, trace.program, module, parts).graph(folded=folded))


def whole_graph(
    module: nn.Module, X: Tensor, purpose: str, replaced: Mapping[str, Tensor] | None = None
) -> NetworkGraph:
    """The module's folded graph with its live tensors, whether or not it has a chain.

    Tensors in `replaced`, by name, take the place of the module's parameters and buffers.

    Raises
    ------
    UnsupportedLayerError
        If the module cannot be traced; the message begins with `purpose`.
    """
    check_instance("module", module, nn.Module, "a torch.nn.Module")
    parts = parts_of(module)
    entry = trace_of(module, X, parts)
    if entry.program is None:
        raise UnsupportedLayerError(
            f"{purpose} needs the graph of `module`, but {type(module).__name__} has none: {entry.refusal}"
        )
    if replaced:
        return entry.program.bind({**named_tensors(module), **replaced})
    return _rebinder(entry, entry.program, module, parts).graph()


def _rebinder(entry: ModuleTrace, program: Program, module: nn.Module, parts: Parts) -> Rebinder:
    state = tuple((id(t), t.requires_grad) for t in tensors_of(parts))
    if entry.rebinder is None or entry.bound_to != state:  # an optimiser works in place
        entry.rebinder, entry.bound_to = Rebinder(program, named_tensors(module)), state
    return entry.rebinder


def trace_of(module: nn.Module, X: Tensor, parts: Parts) -> ModuleTrace:
    """The trace for samples like X, renewed if something that it fixes has changed; `parts` are the module's."""
    entry = _TRACES.get(id(module))
    entry = entry if entry is not None and entry.owner() is module else None
    layout = (tuple(X.shape[1:]), X.dtype, X.device, _layout(parts))
    if entry is not None:
        entry.uses += 1
        if entry.key == (*layout, _settings(parts, entry.surroundings, entry.volatile)):
            return entry
    number, surroundings = id(module), Surroundings(parts)
    owner = weakref.ref(module, lambda _: _TRACES.pop(number, None))
    new = ModuleTrace(owner, (*layout, _settings(parts, surroundings, ())), surroundings)
    if entry is not None:
        new.uses, new.traces = entry.uses, entry.traces + 1
    _find_program(new, module, parts, X)
    if entry is not None:
        new.volatile = entry.volatile | _without_effect(entry, new, parts)
        new.key = (*layout, {name: value for name, value in new.key[-1].items() if name not in new.volatile})
    _TRACES[number] = new
    return new


def _without_effect(old: ModuleTrace, new: ModuleTrace, parts: Parts) -> frozenset[tuple[str, str]]:
    """What changed without an effect on the trace, and will have none later, such as counters."""
    before, now = old.key[-1], new.key[-1]
    if old.key[:-1] != new.key[:-1] or old.program is None or new.program is None:
        return frozenset()
    if not _same(old.program, new.program):
        return frozenset()
    unread = {
        (name, attribute)
        for name, part in parts
        for attribute in vars(part).keys() - _OF_TORCH
        if not new.surroundings.names_attribute(attribute)
    }
    candidates = (old.written & new.written) | unread
    return frozenset(name for name in candidates if before.get(name) != now.get(name))


def _find_program(new: ModuleTrace, module: nn.Module, parts: Parts, X: Tensor) -> None:
    """Set the program if it reproduces the module at X, or why there is none, or no chain.

    Even if a module cannot be traced, the loop of double backward passes may still work for it.
    """
    if new.traces > MANY_TRACES and (new.traces - 1) * USES_PER_TRACE > new.uses:
        new.refusal = f"its attributes change at every step, {new.traces} times so far."
        return
    try:
        graph, new.refusal = _bound_graph(new, module, parts, X[:COMPARED])
        if new.refusal is not None and new.program is not None and new.program.reused:
            # that of an equal module does not fit this one
            graph, new.refusal = _bound_graph(new, module, parts, X[:COMPARED], anew=True)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        graph, new.refusal, new.writes = None, str(error), False
    if graph is None or new.refusal is not None:
        new.program = None
    else:
        new.refusal = chain_refusal(graph)


def _bound_graph(
    entry: ModuleTrace, module: nn.Module, parts: Parts, X: Tensor, *, anew: bool = False
) -> tuple[NetworkGraph, str | None]:
    """The graph of a new program of the entry, and why it does not reproduce the module at X.

    A module of torch's or this package's layers is compared once per structure: equal ones share their program.
    """
    entry.program = trace(module, tuple(X.shape[1:]), dtype=X.dtype, anew=anew)
    graph = _rebinder(entry, entry.program, module, parts).graph()
    known = is_known(module)
    if known and X.device in entry.program.confirmed:
        return graph, None
    # Side effects of a forward pass stay in the copy; known layers have none in eval mode.
    called = module if known else private_copy(module)
    with torch.no_grad(), evaluating(called):
        copied = parts_of(called)
        before, versions = _settings(copied, entry.surroundings, ()), _versions(copied)
        expected, got = called(X), evaluate(graph, X)
        copied = parts_of(called)
        after = _settings(copied, entry.surroundings, ())
        entry.written = frozenset(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        own = {name for name, _ in copied}
        entry.writes = any(name in own for name, _ in entry.written) or versions != _versions(copied)
    if not isinstance(expected, Tensor) or expected.shape != got.shape:
        return graph, "it returns something else than the operators of its graph."
    scale = expected.abs().max().clamp_min(torch.finfo(expected.dtype).tiny)
    difference = float((got - expected).abs().max() / scale)
    if difference >= 1e3 * torch.finfo(expected.dtype).eps ** 0.8:
        return graph, f"the operators of its graph differ from it by {difference:.1e}."
    entry.program.confirmed.add(X.device)
    return graph, None


def _versions(parts: Parts) -> list[tuple[int, int]]:
    """What changes with the parameters and buffers."""
    return [(id(t), t._version) for t in tensors_of(parts)]


def _settings(
    parts: Parts, surroundings: Surroundings, volatile: Collection[tuple[str, str]]
) -> dict[tuple[str, str], Any]:
    """What a trace fixes: types, hooks and attributes of all submodules, without their mode, and the surroundings."""
    settings = surroundings.state()
    for name, submodule in parts:
        settings[name, ""] = type(submodule)
        for attribute, value in vars(submodule).items():
            if attribute not in _OF_TORCH:
                settings[name, attribute] = value if isinstance(value, SCALARS) else token(value)
            elif value and attribute in FORWARD_HOOKS:
                settings[name, attribute] = token(value)
    for place in volatile:
        settings.pop(place, None)
    return settings


def parts_of(module: nn.Module) -> Parts:
    """What `named_modules` yields, but without its generators in generators: those took a third of a small step."""
    listed: Parts = []
    seen, pending = set[int](), [("", module)]
    while pending:
        name, part = pending.pop()
        if id(part) in seen:
            continue
        seen.add(id(part))
        listed.append((name, part))
        prefix = f"{name}." if name else ""
        pending += [(prefix + key, child) for key, child in reversed(part._modules.items()) if child is not None]
    return listed


def tensors_of(parts: Parts) -> list[Tensor]:
    """All parameters and buffers; one that submodules share stands in the list for each of them."""
    tables = (table for _, part in parts for table in (part._parameters, part._buffers))
    return [t for table in tables for t in table.values() if t is not None]


def _layout(parts: Parts) -> list[tuple[int, torch.Size, type]]:
    """The shapes and classes of all parameters and buffers, and which of them are one tensor."""
    numbers: dict[int, int] = {}
    return [(numbers.setdefault(id(t), len(numbers)), t.shape, type(t)) for t in tensors_of(parts)]


def has_folded_layers(module: nn.Module) -> bool:
    """Whether the folded graph of the module (traced before) may have layers other than the module's own."""
    program = _TRACES[id(module)].program
    return program is not None and program.may_fold


def acts_alike_in_training(trace: ModuleTrace, parts: Parts, module: nn.Module, X: Tensor) -> bool:
    """Whether the forward pass is the same in training mode as in eval mode, by comparing the two traces."""
    modes = tuple([part.training for _, part in parts])
    if trace.modes != modes:
        trace.modes = modes
        trace.mode_free = not any(modes) or (
            trace.program is not None and _same_traced(module, parts, trace.program, X.dtype)
        )
    return trace.mode_free


def takes_images_last(trace: ModuleTrace, module: nn.Module, X: Tensor) -> bool:
    """Whether the module's own pass computes the same from channels-last images, which is faster."""
    if trace.images_last is None:
        with torch.random.fork_rng(devices=[]):
            trace.images_last = (
                X.is_cpu and X.dim() == 4 and takes_channels_last(module, tuple(X.shape[1:]), training=True)
            )
    return trace.images_last


def _same_traced(module: nn.Module, parts: Parts, program: Program, dtype: torch.dtype) -> bool:
    training = [part for _, part in parts if part.training and not is_idle(part)]
    if any(isinstance(m, _MODAL) for m in training):
        return False
    if is_known(module) and all(type(m).forward in _MODELESS for m in training):
        return True
    try:
        other = trace(module, program.input_shape, dtype=dtype, training=True)
    except Exception:  # a forward pass that only eval mode can trace
        return False
    return _same(program, other)


def _same(a: Program, b: Program) -> bool:
    """Whether two traces contain the same operators and constants."""
    same = [node.format_node() for node in a.nodes] == [node.format_node() for node in b.nodes]
    pairs = zip(a.constants.values(), b.constants.values(), strict=False)
    return same and all(c.shape == d.shape and bool(torch.equal(c, d)) for c, d in pairs)


_MODAL = (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)
#: Forward passes that do not depend on the mode; subclasses, such as the package's MLP, inherit them.
_MODELESS = frozenset(
    kind.forward
    for kind in (
        *(nn.Sequential, nn.Flatten, nn.Identity, nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d),
        *(nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
        *(nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.GELU, nn.SiLU, nn.ELU),
    )
)


def has_hooks(parts: Parts) -> bool:
    """Whether one of the submodules has forward or backward hooks."""
    return has_process_hooks() or any(has_own_hooks(part) for _, part in parts)
