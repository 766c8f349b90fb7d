"""A step without torch's wrapper is the same step, and whoever would notice the wrapper's absence gets it."""

from __future__ import annotations

import functools

import pytest
import torch
from torch.optim.lr_scheduler import StepLR
from torch.optim.optimizer import register_optimizer_step_post_hook

from sklearn_capacity.training.unobserved_step import unobserved_step


class Halving(torch.optim.Optimizer):
    """A user's optimiser."""

    def __init__(self, params):
        super().__init__(params, {})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(0.5)


def optimizer_of(kind=torch.optim.Adam, **options):
    weight = torch.nn.Parameter(torch.arange(1.0, 4.0))
    weight.grad = torch.ones(3)
    return weight, kind([weight], **options)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (torch.optim.Adam, {"lr": 0.1, "fused": True}),
        (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9}),
        (torch.optim.RMSprop, {"lr": 0.1}),
        (Halving, {}),
    ],
)
def test_the_step_is_the_same(kind, options):
    (weight, optimizer), (expected, other) = optimizer_of(kind, **options), optimizer_of(kind, **options)
    step = unobserved_step(optimizer)
    assert step != optimizer.step
    for _ in range(3):
        step()
        other.step()
    assert torch.equal(weight, expected) and not torch.equal(weight, torch.arange(1.0, 4.0))
    assert torch.is_grad_enabled()


def test_a_closure_is_evaluated_with_gradients():
    weight, optimizer = optimizer_of(torch.optim.SGD, lr=0.5)

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        return loss

    assert unobserved_step(optimizer)(closure).item() == 14
    assert weight.tolist() == [0, 0, 0]


def test_hooks_and_profilers_see_the_step():
    _, optimizer = optimizer_of()
    calls = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("before")),
        optimizer.register_step_post_hook(lambda *_: calls.append("after")),
        register_optimizer_step_post_hook(lambda *_: calls.append("any")),
    ]
    for handle in handles:
        unobserved_step(optimizer)()
        handle.remove()
    assert calls == ["before", "after", "any", "after", "any", "any"]
    unobserved_step(optimizer)()
    assert len(calls) == 6
    with torch.profiler.profile() as profile:
        unobserved_step(optimizer)()
    assert "Optimizer.step#Adam.step" in [event.key for event in profile.key_averages()]


def test_a_replaced_step_is_called(monkeypatch):
    _, optimizer = optimizer_of()
    StepLR(optimizer, 1)  # counts the calls of the instance's `step`
    assert unobserved_step(optimizer) == optimizer.step
    calls, original = [], torch.optim.SGD.step

    @functools.wraps(original)
    def counted(self, *args):
        calls.append(type(self))
        return original(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", counted)
    unobserved_step(optimizer_of(torch.optim.SGD, lr=0.1)[1])()
    assert calls == [torch.optim.SGD]
