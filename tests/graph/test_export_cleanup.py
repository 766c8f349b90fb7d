"""Tracing leaves nothing behind in the process, whether it works or fails."""

from __future__ import annotations

import gc
import linecache
import logging

import pytest
import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.nn.modules.module import _global_buffer_registration_hooks, register_module_buffer_registration_hook

from networks import Exported
from sklearn_capacity.graph import UnsupportedLayerError, trace


class DependsOnData(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 2)

    def forward(self, x):
        return self.linear(x) if x.sum() > 0 else -self.linear(x)


def trace_and_drop(module, shape, fails):
    if fails:
        with pytest.raises(UnsupportedLayerError, match="cannot be traced"):
            trace(module, shape)
    else:
        trace(module, shape)


def held() -> tuple[int, ...]:
    """Shape environments, fake tensors, source texts and hooks on buffers that are alive."""
    gc.collect()
    things = gc.get_objects()
    environments = sum(type(thing) is ShapeEnv for thing in things)
    fakes = sum(type(thing).__name__ == "FakeTensor" for thing in things)
    sources = sum(name.startswith("<eval_with_key>") for name in linecache.cache)
    return environments, fakes, sources, len(_global_buffer_registration_hooks)


@pytest.mark.parametrize(
    ("module", "shape", "fails"),
    [
        (Exported(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)), (5,), False),
        (Exported(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(inplace=True)), (1, 4, 4), False),
        (DependsOnData(), (4,), True),
    ],
    ids=["mlp", "in place", "refused"],
)
def test_traces_are_freed(module, shape, fails):
    trace_and_drop(module, shape, fails)
    before = held()
    for _ in range(3):
        trace_and_drop(module, shape, fails)
    assert all(now <= then for now, then in zip(held(), before, strict=True))


def test_hooks_of_others_stay():
    def forward_with_hook(module, x):
        handles.append(register_module_buffer_registration_hook(lambda module, name, buffer: None))
        raise ValueError

    handles = []
    module = DependsOnData()
    module.forward = forward_with_hook.__get__(module)
    before = len(_global_buffer_registration_hooks)
    trace_and_drop(module, (4,), True)
    assert len(_global_buffer_registration_hooks) == before + len(handles) > before
    for handle in handles:
        handle.remove()


def test_torch_alone_leaves_them():
    """The check above can fail: without the cleaning each trace stays."""
    net, x = nn.Linear(5, 4), torch.zeros(2, 5)
    spec = ({0: torch.export.Dim.AUTO},)
    before = held()
    for _ in range(3):
        torch.export.export(net, (x,), dynamic_shapes=spec, strict=False)
    after = held()
    assert after[0] >= before[0] + 3
    assert after[2] >= before[2] + 3


def test_a_failed_trace_logs_nothing(caplog):
    with caplog.at_level(logging.WARNING, logger="torch._subclasses.fake_tensor"):
        with pytest.raises(UnsupportedLayerError, match="cannot be traced"):
            trace(Exported(nn.Linear(5, 4)), (3,))
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_log_level_comes_back():
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = logger.level
    trace_and_drop(DependsOnData(), (4,), True)
    assert logger.level == before
