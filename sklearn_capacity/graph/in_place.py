"""Replaces in-place operators of an exported graph where nothing else reads what they overwrite.

torch replaces all of them, but takes three times as long as the export itself; what most networks have is a rectifier
or a sum that overwrites the result of a convolution, a batch norm or another sum.
"""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["mutates", "replace_in_place"]

_aten = torch.ops.aten
#: Composite operators whose result is a new tensor; of others the schema states what they may return again.
_FRESH = {
    *(_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default, _aten.linear.default),
    *(_aten.batch_norm.default, _aten.layer_norm.default, _aten.group_norm.default),
}
#: In eval mode these write nothing.
_DROPOUTS = {
    *(_aten.dropout_.default, _aten.alpha_dropout_.default),
    *(_aten.feature_dropout_.default, _aten.feature_alpha_dropout_.default),
}


def mutates(graph: torch.fx.Graph) -> bool:
    """Whether the graph has an in-place operator."""
    return any(schema is not None and schema.is_mutable for schema in map(_schema, graph.nodes))


def replace_in_place(graph: torch.fx.Graph) -> None:
    """Replace the in-place operators whose first argument is a new tensor that only they read.

    What a later operator reads is then the same, since the overwritten tensor had no other reader.
    """
    for node in graph.nodes:
        functional = _functional(node)
        if functional is not None and (_is_off(node) or _overwrites_alone(node)):
            node.target = functional


def _schema(node: torch.fx.Node) -> Any:
    return getattr(node.target, "_schema", None)


def _functional(node: torch.fx.Node) -> Any:
    """The operator that returns what an in-place one writes, with the same arguments; None if there is none."""
    schema = _schema(node)
    if schema is None or not schema.is_mutable or not schema.name.endswith("_"):
        return None
    written = [a.alias_info is not None and a.alias_info.is_write for a in schema.arguments]
    if written != [True] + [False] * (len(written) - 1):
        return None
    packet = getattr(_aten, schema.name.removeprefix("aten::").removesuffix("_"), None)
    functional = getattr(packet, schema.overload_name or "default", None)
    if functional is None or _names(functional._schema) != _names(schema):
        return None
    return functional if functional._schema.returns[0].alias_info is None else None


def _names(schema: Any) -> list[str]:
    """Names of the arguments but for the first, which is the input."""
    return [argument.name for argument in schema.arguments[1:]]


def _is_off(node: torch.fx.Node) -> bool:
    """Whether it is a dropout in eval mode."""
    return node.target in _DROPOUTS and len(node.args) == 3 and node.args[2] is False


def _overwrites_alone(node: torch.fx.Node) -> bool:
    """Whether the node's first argument is a new tensor without another reader, of the result's dtype."""
    before = node.args[0] if node.args else None
    if not isinstance(before, torch.fx.Node) or len(before.users) != 1:
        return False
    new, old = node.meta.get("val"), before.meta.get("val")
    if not isinstance(new, torch.Tensor) or not isinstance(old, torch.Tensor) or new.dtype != old.dtype:
        return False
    return before.target in _FRESH or _makes_new(before)


def _makes_new(node: torch.fx.Node) -> bool:
    """Whether an operator returns one new tensor, by its schema; that of a composite operator may be silent."""
    schema = _schema(node)
    if schema is None or schema.is_mutable or len(schema.returns) != 1 or schema.returns[0].alias_info is not None:
        return False
    return not node.target._can_decompose()  # type: ignore[union-attr]
