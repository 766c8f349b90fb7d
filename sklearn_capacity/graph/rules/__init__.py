"""The table of conversion rules, one per aten operator, by kind of operator.

A rule is a function in `layers` (linear maps, norms, pooling), `elementwise` (activations, sums, scales) or `shapes`
(views, splits, joins), registered by the decorator `rule` of `call`. Importing those three files fills the table
`CONVERSIONS`; to add an operator, add one rule to one of them.
"""

from . import elementwise, layers, shapes
from .call import CONVERSIONS, Call, Draft, Ref, Weight
from .shapes import SPLITS, split_piece

__all__ = ["CONVERSIONS", "SPLITS", "Call", "Draft", "Ref", "Weight", "elementwise", "layers", "shapes", "split_piece"]
