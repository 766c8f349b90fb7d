"""The table of conversion rules, one per aten operator, joined from its three files."""

from . import convert_elementwise, convert_layers, convert_shapes
from .conversion import CONVERSIONS, Call, Draft, Ref, Weight
from .convert_shapes import SPLITS, split_piece

__all__ = ["CONVERSIONS", "RULE_FILES", "SPLITS", "Call", "Draft", "Ref", "Weight", "split_piece"]

#: Importing them registers their rules; another operator is one rule in one of them.
RULE_FILES = (convert_layers, convert_elementwise, convert_shapes)
