"""Every parameter of every measure answers a value of a wrong kind by its name, or takes it as it must."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_capacity.measures import MEASURES
from sklearn_capacity.scoring.measurement import Session
from sklearn_capacity.scoring.requests import parse_measures

HUGE = 10**400
WRONG = {
    "text": "text", "empty": "", "bytes": b"x", "None": None, "negative": -1, "half": 0.5, "nan": math.nan,
    "inf": math.inf, "-inf": -math.inf, "True": True, "huge": HUGE, "complex": 1j, "array": np.ones(3),
    "tensor": torch.ones(3), "list": [1.0, 2.0], "dict": {}, "object": object(),
}  # fmt: skip


@functools.cache
def session():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False))
        X = torch.randn(6, 3)
    before = {name: tensor * 0.5 for name, tensor in net.state_dict().items()}
    return Session(net, X, net(X).argmax(1), loss="cross_entropy", initial_state=before)


def taken(kind, default):
    """Whether a value may be taken: one truth value for another, no value for none, numbers for numbers."""
    if kind == "True":
        return isinstance(default, bool)
    if kind == "None":
        return default is None
    if kind in ("array", "tensor", "list"):
        return default is None or isinstance(default, tuple)
    return kind in ("half", "inf", "huge") and not isinstance(default, str | bool)


@pytest.mark.parametrize(("name", "parameter"), [(m.name, p) for m in MEASURES.values() for p in m.parameters])
def test_a_wrong_kind_is_refused_by_name_and_never_gives_nan(name, parameter):
    others = {"manifold_dim": 1, "manifold_constant": 1.0} if name == "robustness_bound" else {}
    default = MEASURES[name].parameters[parameter]
    for kind, wrong in WRONG.items():
        if kind == "huge" and isinstance(default, int):
            continue  # as many draws or products as that would be taken, too
        try:
            ((request,), _) = parse_measures({"m": (name, {**others, parameter: wrong})})
            value = session().run(request).value
        except (TypeError, ValueError) as error:
            assert f"`{parameter}`" in str(error), (kind, error)
        else:
            assert not math.isnan(value) and taken(kind, default), (kind, value)
