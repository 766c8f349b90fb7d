"""Upper bounds of the passes that measures take over the data, in parts that the measures of a call share.

A pass is the work that a forward pass over all samples does in the weight layers. A sweep of derivatives to the inputs
of the layers, forwards or backwards, is one more; one that also yields those with respect to the weights is two. Linear
algebra on single layers (their norms), and on what the passes return, is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

__all__ = ["LOGITS", "NO_PASSES", "ONE_SAMPLE", "UNSHARED", "Limits", "Parts", "at_most", "share_of"]

#: ``f(network, batch, **params)``, with all parameters of the measure: the largest number of passes of each part, or
#: None if none is known for these parameters.
Parts = Mapping[Hashable, float]
Limits = Callable[..., Parts | None]
#: The part that no other measure shares.
UNSHARED = ""


def at_most(unshared: float = 0.0, logits: float = 0.0) -> Limits:
    """Limits that are the same for all networks: passes that no other measure shares, and those for the logits.

    Examples
    --------
    >>> from sklearn_capacity.measures.pass_limits import at_most
    >>> at_most(2, logits=1)(None, None, p=1.0)
    {'': 2, 'logits': 1}
    """
    return lambda network, batch, **params: {UNSHARED: unshared, "logits": logits}


def share_of(batch: Any, batch_size: int) -> float:
    """What a mini-batch is of all samples, at most 1."""
    return min(batch_size, batch.n_samples) / batch.n_samples


NO_PASSES, LOGITS = at_most(), at_most(logits=1)


def ONE_SAMPLE(network: Any, batch: Any, **params: Any) -> Parts:  # noqa: N802
    """One pass of one sample, and the logits if there are labels."""
    return {UNSHARED: 1 / batch.n_samples if batch.has_samples else 1.0, "logits": float(batch.has_labels)}
