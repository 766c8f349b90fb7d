"""One forward pass of a training step, for the loss and for its penalties.

::

    shared = forward_pass(module, X)
    loss = criterion(shared.logits, y) + strength * frobenius_penalty(module, X, shared=shared)

The pass is a value that is handed on. Whoever holds it holds its memory, and nothing else does.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_capacity._validation import check_instance
from sklearn_capacity.derivatives.input_sweeps import linearize
from sklearn_capacity.derivatives.modes import autocasts
from sklearn_capacity.derivatives.sweep_rules import Tape
from sklearn_capacity.graph import NetworkGraph, activation_of
from sklearn_capacity.penalties.evaluation import naming_function
from sklearn_capacity.penalties.module_graph import (
    acts_alike_in_training,
    graph_of,
    has_folded_layers,
    has_hooks,
    trace_of,
    writes_into_itself,
)

__all__ = ["LinearizedBatch", "SharedPass", "forward_pass", "linearized"]


@dataclass(frozen=True, eq=False)
class SharedPass:
    """A module's forward pass at a batch, made by :func:`forward_pass`.

    Attributes
    ----------
    module : nn.Module
    X : Tensor of shape (n, ...)
    logits : Tensor of shape (n, C)
        The output, for the criterion; differentiable.
    tape : Tape or None
        What Jacobian penalties use again. None: they make a pass of their own.

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
        """The tape for a penalty at this module and batch; None if something in it has changed in place since.

        Raises
        ------
        ValueError
            If the pass is of another module or another batch.
        """
        for name, mine, theirs in (("module", self.module, module), ("X", self.X, X)):
            if mine is not theirs:
                raise ValueError(
                    f"`shared` must be a forward pass of the penalty's `{name}`, got that of another. "
                    "Make one for each step by `forward_pass(module, X)`."
                )
        return self.tape if self.tape is not None and self.state == _state(module, X, self.logits) else None


def forward_pass(module: Any, X: Tensor, forward: Callable[[Tensor], Tensor] | None = None) -> SharedPass:
    """Outputs of a module for the loss, by a forward pass that its Jacobian penalties use again.

    Loss and penalties share it backwards, too: take the gradient of their sum, or keep the graph
    (``retain_graph=True``) for all but the last.

    Parameters
    ----------
    module : nn.Module
    X : Tensor of shape (n, ...)
    forward : callable, default=None
        Takes the place of the module where the pass cannot be shared.

    Returns
    -------
    SharedPass
        Its ``logits`` go to the criterion, and itself to the penalties, as ``shared``. The module runs its own forward
        pass, and penalties make another, where it does something else in training than in eval (batch norm,
        dropout), cannot be traced as a graph, has hooks, or writes into itself, where X requires a gradient, and where
        autocast is on: penalties are evaluated in the precision of X.

    Notes
    -----
    A penalty that gets the pass of another module or another tensor X raises. If a parameter, a buffer, X or the
    logits were changed in place since, it does not use the pass and is right for the module as it is now.

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
    with naming_function(module, X):
        graph = graph_of(module, X) if torch.is_grad_enabled() and not (autocasts(X) or X.requires_grad) else None
        if graph is None or writes_into_itself(module) or not acts_alike_in_training(module, X) or has_hooks(module):
            return SharedPass(module, X, (module if forward is None else forward)(X))
        tape = linearize(graph, X.detach())
        return SharedPass(module, X, tape.logits, tape, _state(module, X, tape.logits))


def _state(module: nn.Module, X: Tensor, logits: Tensor) -> tuple:
    """Something that differs once the module, the batch or the logits have changed."""
    tensors = itertools.chain(module.parameters(), module.buffers(), (X, logits))
    return trace_of(module, X), [(id(t), t._version, t.requires_grad) for t in tensors]


@dataclass(frozen=True)
class LinearizedBatch:
    """A module's graph and a batch; `tape` is there if the loss's own forward pass recorded it."""

    graph: NetworkGraph
    X: Tensor
    tape: Tape | None = None

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
        curved = any(n.op == "activation" and not activation_of(n)[0].piecewise_linear for n in self.graph.nodes)
        for start in range(0, len(self.X), size):
            samples = slice(start, min(start + size, len(self.X)))
            if self.tape is not None:
                yield samples, self.tape if size >= len(self.X) else self.tape.part(samples)
                continue
            with torch.set_grad_enabled((curved or output == "softmax") and torch.is_grad_enabled()):
                tape = linearize(self.graph, self.X[samples])
            yield samples, tape


def linearized(
    module: Any, X: Tensor, shared: SharedPass | None = None, *, folded: bool = True
) -> LinearizedBatch | None:
    """The module's eval forward pass at X for the chain, or None where there is no chain for it.

    Unless `folded`, every weight is that of the module's own layer, and batch norms stand beside them.
    """
    tape = None if shared is None else shared.tape_at(module, X)
    if tape is not None and (folded or not has_folded_layers(module)):
        return LinearizedBatch(tape.graph, X.detach(), tape)
    graph = graph_of(module, X, folded=folded)
    return None if graph is None else LinearizedBatch(graph, X.detach())
