"""Rules for variances and standard deviations: compositions of centring, squares, sums and roots."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .call import Call, Draft, rule


@rule("var.correction", "var.dim", "var.default", "std.correction", "std.dim", "std.default")
def _variance(call: Call) -> Draft | None:
    """The sum of (x - mean)^2 over k entries, divided by k - correction; its root for a standard deviation."""
    x, shape = call["self"], call.shapes[call["self"].name]
    dims = call.get("dim")
    dims = range(len(shape)) if dims is None else dims if isinstance(dims, Sequence) else (dims,)
    dims = tuple(sorted(d % len(shape) for d in dims))
    if 0 in dims:
        return None
    correction = float(call.get("correction", 1)) if "unbiased" not in call.args else float(call["unbiased"])
    count = math.prod(shape[d] for d in dims) - correction
    if count <= 0:
        return None
    centred = Draft("center", (x,), params={"kind": "center", "dims": dims}, shape=shape[1:])
    squared = Draft("activation", (centred,), params={"kind": "pow", "args": (2.0,)}, shape=shape[1:])
    mean = {"kind": "mean", "dims": dims, "keepdim": call.get("keepdim", False), "factor": 1 / count}
    variance = Draft("reduce", (squared,), params=mean, shape=call.shape[1:])
    if "var" in call.target.__name__:
        return variance
    return Draft("activation", (variance,), params={"kind": "pow", "args": (0.5,)})
