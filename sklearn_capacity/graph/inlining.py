"""Regions of a traced program in another mode, written out: autocast and gradients switched on or off.

Torch exports the body of `with torch.autocast(...)` or `with torch.no_grad()` as a separate graph that one operator
calls. Neither changes the function that a graph describes, in which casts count for nothing.
"""

from __future__ import annotations

import operator

import torch
from torch import fx

__all__ = ["inline_modes"]

_MODES = ("wrap_with_autocast", "wrap_with_set_grad_enabled")


def inline_modes(module: fx.GraphModule) -> bool:
    """Write such regions out in place; returns whether there were any."""
    n_regions = 0
    while (call := next(filter(_is_mode, module.graph.nodes), None)) is not None:
        _inline(module, call)
        n_regions += 1
    return n_regions > 0


def _is_mode(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.HigherOrderOperator) and node.target.name() in _MODES


def _inline(module: fx.GraphModule, call: fx.Node) -> None:
    index = next(i for i, arg in enumerate(call.args) if isinstance(arg, fx.Node) and arg.op == "get_attr")
    body, operands = call.args[index], call.args[index + 1 :]
    assert isinstance(body, fx.Node) and isinstance(body.target, str)
    graph = module.get_submodule(body.target).graph
    assert isinstance(graph, fx.Graph)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    values = dict(zip(placeholders, operands, strict=True))
    with module.graph.inserting_before(call):
        for node in graph.nodes:
            if node.op == "get_attr":  # a region inside the region
                name = f"{body.target}.{node.target}"
                values[node] = module.graph.get_attr(name)
        results = module.graph.graph_copy(graph, values)  # type: ignore[arg-type]
    for user in list(call.users):
        assert user.target is operator.getitem
        result = results[user.args[1]]  # type: ignore[index]
        user.replace_all_uses_with(result)  # type: ignore[arg-type]
        module.graph.erase_node(user)
    module.graph.erase_node(call)
    if not body.users:
        module.graph.erase_node(body)
