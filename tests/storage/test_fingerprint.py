"""Fingerprints differ if and only if the fits differ."""

from __future__ import annotations

import copy
import functools
import threading

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback, EpochScoring
from torch import nn

from sklearn_capacity.storage import fingerprint


class Timed(Callback):
    """A callback with a setting."""

    def __init__(self, limit=1.0):
        self.limit = limit


def scale(factor):
    return lambda epoch: factor**epoch


def test_fingerprints_distinguish_values():
    torch.manual_seed(0)
    values = [
        None, 0, False, 0.0, "0", (0,), [0], {0: 0}, {"0": 0}, b"0", np.zeros(1), np.zeros((1, 1)), np.zeros(1, "f4"),
        np.array([0], object), np.array([None], object), torch.zeros(1), torch.zeros(1, 1), {0}, frozenset({0}),
        scale(0.5), scale(0.6), functools.partial(scale, 0.5), functools.partial(scale, 0.6), nn.Linear, [[0]],
        nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU(), len, abs, Callback, Callback(), Timed(), [].append, torch.float32,
        np.dtype("f4"), [[], 0], EpochScoring("accuracy"), EpochScoring("roc_auc"),
    ]  # fmt: skip
    hashes = [fingerprint(value=value) for value in values]
    assert len(set(hashes)) == len(hashes)
    assert hashes == [fingerprint(value=value) for value in values]
    assert fingerprint(value=scale(0.5)) == hashes[19]
    loop = [0]
    loop.append(loop)
    assert fingerprint(value=loop) == fingerprint(value=loop)


class Scaled(nn.Module):
    """A layer with a number that is neither in its `repr` nor in its state."""

    def __init__(self, k=1.0):
        super().__init__()
        self.k, self.layer = k, nn.Linear(2, 2, bias=False)

    def forward(self, x):
        return self.layer(x) * self.k


class Doubled(Scaled):
    def forward(self, x):
        return super().forward(2 * x)


class TwoTied(nn.Module):
    def __init__(self, tied):
        super().__init__()
        self.a = nn.Linear(2, 2, bias=False)
        self.b = self.a if tied else copy.deepcopy(self.a)


def test_fingerprints_distinguish_modules():
    """By what changes a fit: attributes, code of submodules and base classes, hooks, frozen and tied weights."""

    def same(module):
        for parameter in module.parameters():
            nn.init.ones_(parameter)
        return module

    frozen, hooked, recoded = Scaled(), Scaled(), type("Scaled", (Scaled,), {"__module__": __name__})
    frozen.layer.requires_grad_(False)
    hooked.layer.register_forward_hook(scale(2.0))
    inherits = type("Scaled", (type("Scaled", (Scaled,), {"forward": lambda self, x: x}),), {"__module__": __name__})
    modules = [
        Scaled(), Scaled(2.0), nn.Sequential(Scaled()), nn.Sequential(Scaled(2.0)), nn.Sequential(recoded()), Doubled(),
        nn.Sequential(inherits()), frozen, hooked, TwoTied(True), TwoTied(False), nn.Conv2d(1, 1, 2, bias=False),
        nn.Conv2d(1, 1, 2, bias=False, padding=1), nn.LSTM(2, 2), nn.TransformerEncoderLayer(2, 1, 2),
        nn.utils.parametrizations.weight_norm(Scaled().layer), nn.utils.parametrizations.orthogonal(Scaled().layer),
    ]  # fmt: skip
    hashes = [fingerprint(module=same(module)) for module in modules]
    assert len(set(hashes)) == len(hashes)
    assert hashes == [fingerprint(module=copy.deepcopy(module)) for module in modules]


def test_fingerprints_refuse_bottomless_values():
    deep = 0
    for _ in range(50):
        deep = [deep]
    with pytest.raises(TypeError, match="nested too deeply"):
        fingerprint(value=deep)
    with pytest.raises(TypeError, match="`value` is .* cannot be hashed"):
        fingerprint(value=threading.Lock())
