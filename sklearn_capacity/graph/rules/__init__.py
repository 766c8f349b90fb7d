"""The table of conversion rules, one per aten operator, by kind of operator.

A rule is a function in `layers` (linear maps, batch norm), `elementwise` (activations, sums, scales), `mixing`
(softmax, attention, normalisations, variances), `contractions` (`einsum`), `entries` (selections from several signals),
`maxima` (also selections by a comparison), `order` (sorting), `overlaps` (`fold`) or `shapes` (views, splits, joins,
pooling, interpolation), registered by the decorator `rule` of `call`. Importing those files fills the table
`CONVERSIONS`; to add an operator, add one rule to one of them, or write it out in others in `graph/expansion.py`.
`drafts` has the nodes that many of them return, `products` multiplies two signals, and `composite_activations`
recognises activations and normalisations that are written as such products. Rules only know rows, one per sample:
`rows` converts calls whose samples are along another axis, `frames` operators on images whose batch is merged with
another axis.
"""

from . import contractions, elementwise, entries, layers, maxima, mixing, order, overlaps, shapes
from .call import CONVERSIONS, Call, Draft, Ref, Weight
from .maxima import READ_MASKS
from .shapes import SPLITS, split_piece

__all__ = [
    "CONVERSIONS",
    "READ_MASKS",
    "SPLITS",
    "Call",
    "Draft",
    "Ref",
    "Weight",
    "contractions",
    "elementwise",
    "entries",
    "layers",
    "maxima",
    "mixing",
    "order",
    "overlaps",
    "shapes",
    "split_piece",
]
