"""Models of different classes, as in a search over architectures: scored, penalised and fitted.

`python -m benchmarks.soak --classes` runs them. Anything that the process caches per class, or per constant in a
forward pass, grows with each of them; refused networks must leak as little as measured ones.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from sklearn_capacity import (
    CapacityScorer,
    CapacityWarning,
    JacobianRegularizedClassifier,
    NetworkClassifier,
    NotDefinedError,
    UnsupportedLayerError,
    capacity_report,
    measure_capacity,
)
from sklearn_capacity.penalties import frobenius_penalty, spectral_penalty

__all__ = ["FORWARDS", "class_of", "one_class"]

SOURCE = """
class Net{number}(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = {first}, nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        {forward}
"""

LINEAR, CONV = "nn.Linear(6, 4)", "nn.Sequential(nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3), nn.AdaptiveAvgPool1d(1))"
ATTENTION = "nn.MultiheadAttention(6, 2, batch_first=True)"
#: The first layer of a class and its forward pass; most contain the number of the class as a constant.
FORWARDS = [
    (LINEAR, "return self.last(torch.relu(self.first(x)))"),
    (LINEAR, "return self.last(torch.tanh(self.norm(self.first(x))) + {number})"),
    (CONV, "return self.last(self.first(x).flatten(1) * {number})"),
    (ATTENTION, "t = x.unsqueeze(1); return self.last(self.first(t, t, t)[0].mean(1)[:, :4] + {number})"),
    (f"nn.utils.parametrizations.weight_norm({LINEAR})", "return self.last(torch.sigmoid(self.first(x)) - {number})"),
    ("nn.GRU(6, 4, batch_first=True)", "return self.last(self.first(x.unsqueeze(1))[0][:, -1] / (1 + {number}))"),
    (LINEAR, "return self.last(torch.linalg.svd(self.first(x).view(-1, 2, 2))[1].repeat(1, 2) + {number})"),
    # and what is refused: by the trace, by itself, since it draws, since it mixes its samples, since torch cannot
    (LINEAR, "return self.last(self.first(x) if x.sum() > {number} else -self.first(x))"),
    (LINEAR, "raise RuntimeError('class {number} fails')"),
    (LINEAR, "return self.last(torch.dropout(self.first(x), 0.5, True))"),
    (LINEAR, "return self.last(self.first(x) - self.first(x).mean(0))"),
    (LINEAR, "return self.last(torch.from_numpy(self.first(x).detach().numpy() + {number}))"),
]
REFUSALS = (UnsupportedLayerError, NotDefinedError, RuntimeError, TypeError, ValueError)


def class_of(number: int) -> type[nn.Module]:
    """A class that no other call has created."""
    first, forward = FORWARDS[number % len(FORWARDS)]
    names: dict[str, Any] = {"nn": nn, "torch": torch, "__name__": f"made_{number}"}
    exec(SOURCE.format(number=number, first=first, forward=forward.format(number=number)), names)  # noqa: S102
    cls: type[nn.Module] = names[f"Net{number}"]
    return cls


def one_class(number: int) -> None:
    """Use a class in all the ways that the package has, of which some refuse it."""
    cls = class_of(number)
    rng = np.random.default_rng(number)
    X, y = rng.normal(size=(20, 6)).astype(np.float32), np.arange(20) % 3

    def make(input_shape: tuple[int, ...], n_outputs: int) -> nn.Module:
        return cls()

    def score() -> None:
        model = NetworkClassifier(module=make, max_epochs=2, random_state=0).fit(X, y)
        CapacityScorer(["accuracy", "l2_path_norm", "margin"])(model, X, y)

    def penalise(penalty: Callable[..., torch.Tensor]) -> None:
        penalty(cls(), torch.from_numpy(X)).backward()

    uses: list[Callable[[], object]] = [
        lambda: measure_capacity(cls(), X, y, ["l2_path_norm", "fisher_rao_norm", "jacobian_frobenius", "margin"]),
        lambda: capacity_report(cls(), X, y, ["frobenius_norm", "l2_path_norm"], per_layer=True),
        lambda: penalise(frobenius_penalty),
        lambda: penalise(spectral_penalty),
        lambda: JacobianRegularizedClassifier(module=make, max_epochs=1, random_state=0).fit(X, y),
        score,
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CapacityWarning)
        for use in uses:
            try:
                use()
            except REFUSALS:
                pass
