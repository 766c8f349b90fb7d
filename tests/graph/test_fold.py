"""Batch norm is folded also where what follows is an operator without a rule, against modules fused by torch."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from skorch import NeuralNetClassifier
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from networks import make
from sklearn_capacity import CapacityCallback, capacity_report, fisher_spectrum, measure_capacity


class SqueezeExcitation(nn.Module):
    pairs = (("conv", "norm"),)

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.squeeze, self.excite, self.head = nn.Linear(4, 2), nn.Linear(2, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.norm(self.conv(x))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(h.mean((2, 3))))))
        return self.head(F.relu(h * gate[:, :, None, None]).mean((2, 3)))


class Ghost(nn.Module):
    """Cheap operators next to the plain ones, joined and gated."""

    pairs = (("plain", "plain_norm"), ("cheap", "cheap_norm"))

    def __init__(self):
        super().__init__()
        self.plain, self.plain_norm = nn.Conv2d(2, 3, 1, bias=False), nn.BatchNorm2d(3)
        self.cheap, self.cheap_norm = nn.Conv2d(3, 3, 3, padding=1, groups=3, bias=False), nn.BatchNorm2d(3)
        self.gate, self.head = nn.Conv2d(6, 6, 1), nn.Linear(6, 3)

    def forward(self, x):
        plain = self.plain_norm(self.plain(x))
        both = torch.cat([plain * plain, self.cheap_norm(self.cheap(plain.sin()))], 1)
        return self.head((both * F.hardsigmoid(self.gate(F.adaptive_avg_pool2d(both, 1)))).mean((2, 3)))


class Fused(nn.Module):
    """Two resolutions that meet, as in HRNet."""

    pairs = (("high", "high_norm"), ("low", "low_norm"), ("point", "point_norm"))

    def __init__(self):
        super().__init__()
        self.high, self.high_norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.low, self.low_norm = nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.BatchNorm2d(4)
        self.point, self.point_norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        low = self.point_norm(self.point(F.relu(self.low_norm(self.low(x)))))
        up = F.interpolate(low, scale_factor=2, mode="nearest")
        return self.head(F.relu(self.high_norm(self.high(x)) + up).mean((2, 3)))


class Gated(nn.Module):
    pairs = (("value", "value_norm"), ("gate", "gate_norm"))

    def __init__(self):
        super().__init__()
        self.value, self.value_norm = nn.Linear(5, 6), nn.BatchNorm1d(6)
        self.gate, self.gate_norm, self.head = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.value_norm(self.value(x)) * torch.sigmoid(self.gate_norm(self.gate(x))))


class Functional(nn.Module):
    """Operators of several results and of one tensor read twice."""

    pairs = (("first", "norm"), ("second", "second_norm"))

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(6)
        self.second, self.second_norm, self.head = nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)

    def forward(self, x):
        h = self.norm(self.first(x))
        h = self.second_norm(self.second(h.topk(3, dim=1)[0]))
        return self.head(torch.where(h > 0, h * h, torch.sin(h)))


class Lengths(nn.Module):
    """The number of samples is read between a layer and its batch norm, for an operator without a rule."""

    pairs = (("first", "norm"),)

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.head = nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(16, 3)

    def forward(self, x):
        h = self.first(x)
        ones = torch.ones(h.shape[0], 1, 4, dtype=h.dtype)
        h = self.norm(h)
        return self.head((h.unsqueeze(2) * (h.unsqueeze(1) * ones)).flatten(1))


SHAPES = {SqueezeExcitation: (2, 6, 6), Ghost: (2, 6, 6), Fused: (2, 6, 6)}
MODULES = [SqueezeExcitation, Ghost, Fused, Gated, Functional, Lengths]


def fused(module):
    """The module with every batch norm fused into the layer before it, by torch's tool."""
    joined = copy.deepcopy(module)
    for layer, norm in module.pairs:
        fuse = fuse_linear_bn_eval if isinstance(getattr(joined, layer), nn.Linear) else fuse_conv_bn_eval
        setattr(joined, layer, fuse(getattr(joined, layer), getattr(joined, norm)))
        setattr(joined, norm, nn.Identity())
    return joined.requires_grad_(True)  # the shift of a norm is trained, also as the bias of a layer that had none


@pytest.mark.parametrize("build", MODULES, ids=lambda build: build.__name__)
def test_measures_are_those_of_the_fused_module(build):
    module, X, y = make(build, SHAPES.get(build, (5,)))
    plain = fused(module)
    torch.testing.assert_close(plain(X), module(X))
    names = [
        "parameter_norm",
        "margin",
        "jacobian_spectral",
        "fisher_rao_norm",
        "fisher_trace",
        "fisher_max_eigenvalue",
    ]
    got, expected = (measure_capacity(net, X, y, names) for net in (module, plain))
    assert got == pytest.approx(expected, rel=1e-9)
    assert fisher_spectrum(module, X) == pytest.approx(fisher_spectrum(plain, X), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("build", MODULES, ids=lambda build: build.__name__)
def test_every_measure_has_a_value_or_a_reason(build):
    module, X, y = make(build, SHAPES.get(build, (5,)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert measure_capacity(module, X, y)
        report = capacity_report(module, X, y, measures="all")
    left_out = report[report["value"].isna()]
    assert len(report) - len(left_out) >= 20
    assert not left_out["reason"].str.contains("KeyError|Error:").any()


class ScaledTwice(nn.Module):
    """A scale of a scale, which two branches read."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = 0.5 * self.first(x)
        return self.last(F.relu(h) + F.relu(-h))


def test_a_scale_of_a_folded_scale_stays_in_place():
    module, X, y = make(ScaledTwice, (5,))
    value = measure_capacity(module, X, y, "lipschitz_l2")["lipschitz_l2"]
    norms = [float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) for layer in (module.first, module.last)]
    assert value == pytest.approx(norms[0] * norms[1], rel=1e-6)
    norms = [float(torch.linalg.matrix_norm(layer.weight.detach())) for layer in (module.first, module.last)]
    product = measure_capacity(module, X, y, "frobenius_norm")["frobenius_norm"]
    assert product == pytest.approx(0.5 * norms[0] * norms[1], rel=1e-9)


def test_a_training_goes_on_with_the_callback():
    module, X, y = make(Gated, (5,))
    callback = CapacityCallback(measures=["margin", "fisher_rao_norm"])
    options = {"criterion": nn.CrossEntropyLoss, "max_epochs": 2, "verbose": 0, "train_split": None, "lr": 0.1}
    net = NeuralNetClassifier(module.float(), callbacks=[callback], **options).fit(
        X.numpy().astype("float32"), y.numpy()
    )
    assert all(value == value for value in net.history[:, "fisher_rao_norm"])
