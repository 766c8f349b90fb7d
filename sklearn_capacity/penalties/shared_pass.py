"""One forward pass of a training step, shared by the loss and its penalties.

::

    shared = forward_pass(module, X)
    loss = criterion(shared.logits, y) + strength * frobenius_penalty(module, X, shared=shared)

The pass is an ordinary value: its memory is freed with the last reference to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_capacity._validation import check_instance
from sklearn_capacity.derivatives.input_sweeps import linearize
from sklearn_capacity.derivatives.modes import autocasts
from sklearn_capacity.derivatives.tape import Tape
from sklearn_capacity.graph import NetworkGraph, Node, activation_of, channels_last
from sklearn_capacity.penalties.evaluation import naming_function
from sklearn_capacity.penalties.module_graph import (
    ModuleTrace,
    Parts,
    acts_alike_in_training,
    chain_of,
    graph_of,
    has_hooks,
    parts_of,
    takes_images_last,
    tensors_of,
    trace_of,
)

__all__ = ["LinearizedBatch", "SharedPass", "forward_pass", "linearized"]


@dataclass(frozen=True, eq=False)
class SharedPass:
    """A module's forward pass at a batch, returned by :func:`forward_pass`.

    Attributes
    ----------
    module : nn.Module
    X : Tensor of shape (n, ...)
    logits : Tensor of shape (n, C)
        The output, for the criterion; differentiable.
    tape : Tape or None
        The intermediate values that Jacobian penalties reuse. With None they run their own pass.

    Examples
    --------
    See :func:`forward_pass`.
    """

    module: Any
    X: Tensor
    logits: Tensor
    tape: Tape | None = field(default=None, repr=False)
    state: tuple = field(default=(), repr=False)

    def tape_at(self, module: Any, X: Tensor) -> Tape | None:
        """The tape for a penalty at this module and batch; None if something in it has since changed in place.

        Raises
        ------
        ValueError
            If the pass belongs to another module or another batch.
        """
        for name, mine, theirs in (("module", self.module, module), ("X", self.X, X)):
            if mine is not theirs:
                raise ValueError(
                    f"`shared` must be a forward pass of the penalty's `{name}`, got one of another. "
                    "Call `forward_pass(module, X)` once per step."
                )
        if self.tape is None:
            return None
        parts = parts_of(module)
        same = self.state == _state(trace_of(module, X, parts), parts, X, self.logits)
        return self.tape if same else None


def forward_pass(module: Any, X: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> SharedPass:
    """Run a forward pass for the loss that Jacobian penalties can reuse.

    Loss and penalties also share its autograd graph: take the gradient of their sum, or keep the graph
    (``retain_graph=True``) for all but the last backward pass.

    Parameters
    ----------
    module : nn.Module
    X : Tensor of shape (n, ...)
    forward : callable, default=None
        Called instead of the module if the pass cannot be shared.

    Returns
    -------
    SharedPass
        Pass its ``logits`` to the criterion, and the object itself to the penalties, as ``shared``. If the pass cannot
        be shared, the module runs its own forward pass, and penalties run another. This happens if the module behaves
        differently in training mode (batch norm, dropout), cannot be traced as a graph, has hooks or writes into
        itself, if X requires a gradient, or under autocast, since penalties are evaluated in the precision of X.

    Notes
    -----
    A penalty raises if it receives the pass of another module or another tensor X. If a parameter, a buffer, X or the
    logits have since changed in place, the penalty ignores the pass and is correct for the current module.

    Examples
    --------
    A training step:

    >>> import torch
    >>> from sklearn_capacity.penalties import forward_pass, frobenius_penalty
    >>> module, X, y = torch.nn.Linear(4, 3), torch.randn(10, 4), torch.arange(10) % 3
    >>> shared = forward_pass(module, X)
    >>> loss = torch.nn.functional.cross_entropy(shared.logits, y)
    >>> (loss + 0.1 * frobenius_penalty(module, X, shared=shared)).backward()
    """
    check_instance("X", X, Tensor, "a tensor of shape (n, ...)")
    if X.is_nested:
        raise ValueError("`X` must be a tensor of shape (n, ...), got a nested one. Pad its parts to one shape.")
    with naming_function(module, X):
        present = _unobserved(module, X)
        graph = None
        if present is not None and acts_alike_in_training(*present, module, X):
            graph = chain_of(*present, module)
        if present is None or graph is None:
            return SharedPass(module, X, _own_pass(module, X, forward, present))
        tape = linearize(graph, X.detach())  # logits (n, C) and what their Jacobian needs
        return SharedPass(module, X, tape.logits, tape, _state(*present, X, tape.logits))


def _own_pass(
    module: Any, X: Tensor, forward: Callable[[Tensor], Tensor] | None, present: tuple[ModuleTrace, Parts] | None
) -> Tensor:
    """The module's own forward pass, on channels-last images where that gives the same."""
    if forward is not None:
        return forward(X)
    return module(channels_last(X) if present is not None and takes_images_last(present[0], module, X) else X)


def _unobserved(module: Any, X: Tensor) -> tuple[ModuleTrace, Parts] | None:
    """The module's trace and parts, if it leaves itself as it is and nobody listens; else None."""
    if not torch.is_grad_enabled() or autocasts(X) or X.requires_grad:
        return None
    if not isinstance(module, nn.Module) or not X.is_floating_point():
        return None
    parts = parts_of(module)
    trace = trace_of(module, X, parts)
    return None if trace.writes or has_hooks(parts) else (trace, parts)


def _state(trace: ModuleTrace, parts: Parts, X: Tensor, logits: Tensor) -> tuple:
    """A token that changes with the module, whose trace and parts are given, with the batch or with the logits."""
    return trace, [(id(t), t._version, t.requires_grad) for t in (*tensors_of(parts), X, logits)]


@dataclass(frozen=True)
class LinearizedBatch:
    """A module's graph and a batch; `tape` is set if the loss's forward pass recorded it."""

    graph: NetworkGraph
    X: Tensor
    tape: Tape | None = None

    @property
    def outputs(self) -> Tensor:
        """An uninitialised tensor (n, C), for drawing directions."""
        shape = (len(self.X), *self.graph[self.graph.output].shape)
        return torch.empty(shape, dtype=self.X.dtype, device=self.X.device)

    def parts(self, size: int, output: str = "logits") -> Iterator[tuple[slice, Tape]]:
        """Tapes of `size` samples at a time.

        Logits, smooth pre-activations and the inputs of functions are differentiable where the Jacobian depends on
        them: with the softmax, and with whatever is not linear in pieces.
        """
        curved = any(map(_is_curved, self.graph.nodes))
        for start in range(0, len(self.X), size):
            samples = slice(start, min(start + size, len(self.X)))
            if self.tape is not None:
                yield samples, self.tape if size >= len(self.X) else self.tape.part(samples)
                continue
            with torch.set_grad_enabled((curved or output == "softmax") and torch.is_grad_enabled()):
                tape = linearize(self.graph, self.X[samples])
            yield samples, tape


def _is_curved(node: Node) -> bool:
    """Whether the node's derivative depends on where it is taken, beyond a choice between pieces."""
    return node.op == "function" or (node.op == "activation" and not activation_of(node)[0].piecewise_linear)


def linearized(module: Any, X: Tensor, shared: SharedPass | None = None) -> LinearizedBatch | None:
    """The module's eval forward pass at X for the chain, or None if it has no chain."""
    tape = None if shared is None else shared.tape_at(module, X)
    if tape is not None:
        return LinearizedBatch(tape.graph, X.detach(), tape)
    graph = graph_of(module, X)
    return None if graph is None else LinearizedBatch(graph, X.detach())
