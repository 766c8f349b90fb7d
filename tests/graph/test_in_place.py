"""In-place operators: replaced without torch's slow pass where that changes nothing, by that pass elsewhere."""

import importlib

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sklearn_capacity.graph import evaluate, named_tensors, trace


@pytest.fixture(autouse=True)
def exports(monkeypatch):
    """Nothing is recorded: a recording replaces operators in place by itself."""
    monkeypatch.setattr(importlib.import_module("sklearn_capacity.graph.trace"), "recorded_twice", lambda *_: None)


class Block(nn.Module):
    """A residual block that overwrites results of its own, as those of torchvision do."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        out = F.relu(self.norm(self.conv(x)), inplace=True)
        out = self.norm(self.conv(out))
        out += x
        out = F.hardtanh(F.relu(out, inplace=True), 0, 6, inplace=True)
        return self.head(F.dropout(out.mean((2, 3)), 0.5, self.training, inplace=True))


class ReadAgain(nn.Module):
    """The overwritten tensor is read again, so the second reader gets what was written."""

    def forward(self, x):
        z = 2 * x
        return F.relu_(z) + z


class ThroughView(nn.Module):
    def forward(self, x):
        z = 2 * x
        z[:, 0].mul_(3)
        return z


class OfViewOfRead(nn.Module):
    """A view is overwritten, and the tensor behind it is read later."""

    def forward(self, x):
        z = 2 * x
        return F.relu_(z.flatten(1)) * z


class ReadBefore(nn.Module):
    """A view of the overwritten tensor is read later."""

    def forward(self, x):
        z = 2 * x
        view = z.flatten(1)
        return F.relu_(z) * view


class OverwritesInput(nn.Module):
    def forward(self, x):
        return F.relu_(x) - x


class Filled(nn.Module):
    """In-place operators whose results and arguments other in-place operators overwrite."""

    def forward(self, x):
        z = torch.sin(x).add_(x)
        return z.mul_(torch.cos(x).sub_(x)).clamp_(-0.5, 0.5)


def _outputs(module, shape):
    module = module.double().eval()
    X = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    program = trace(module, shape)
    with torch.no_grad():
        return evaluate(program.bind(named_tensors(module)), X.clone()), module(X.clone()), program


def _in_place(program):
    return [node for node in program.nodes if (s := getattr(node.target, "_schema", None)) and s.is_mutable]


@pytest.mark.parametrize(("module", "shape"), [(Block(), (3, 5, 5)), (Filled(), (4,)), (ReadAgain(), (4,))])
def test_operators_that_overwrite_what_only_they_read_are_replaced(module, shape, monkeypatch):
    def slow(*args, **kwargs):
        raise AssertionError("torch's pass is not needed")

    monkeypatch.setattr(torch.export.ExportedProgram, "run_decompositions", slow)
    got, expected, program = _outputs(module, shape)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert not _in_place(program)


@pytest.mark.parametrize("module", [ThroughView(), OfViewOfRead(), ReadBefore(), OverwritesInput()])
def test_what_others_read_is_left_to_torch(module, monkeypatch):
    passes = []
    original = torch.export.ExportedProgram.run_decompositions
    monkeypatch.setattr(
        torch.export.ExportedProgram, "run_decompositions", lambda *args: passes.append(1) or original(*args)
    )
    got, expected, program = _outputs(module, (4,))
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert passes and not _in_place(program)


def test_dropout_while_training_is_not_taken_for_the_identity():
    module = nn.Sequential(nn.Flatten(), nn.Dropout(0.5, inplace=True)).double()
    program = trace(module, (4,), training=True)
    dropouts = [node for node in program.nodes if "dropout" in str(node.target)]
    assert all(True in node.args for node in dropouts) and not _in_place(program)
