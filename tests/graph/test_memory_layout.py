"""Images with their channels last inside, for modules that can take them and for those that cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from networks import measure_module
from sklearn_capacity import JacobianRegularizedClassifier, NetworkClassifier, measure_capacity
from sklearn_capacity.architectures import make_network
from sklearn_capacity.graph import channels_first, channels_last, takes_channels_last
from sklearn_capacity.measures import MEASURES
from sklearn_capacity.penalties import forward_pass

rng = np.random.default_rng(0)
X, y = rng.normal(size=(30, 3, 6, 6)).astype(np.float32), np.arange(30) % 3
#: Settings that make slow measures quick.
QUICK = {"max_sharpness": {"steps": 5}, "expected_sharpness": {"n_draws": 8}, "pac_bayes_bound": {"n_draws": 8}}


class Tutorial(nn.Module):
    """Convolutions, and a flattening by `view`, which needs their output channels-first; or by `flatten`."""

    def __init__(self, channels: int = 3, view: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.conv1, self.conv2 = nn.Conv2d(channels, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
            self.fc = nn.Linear(64, 3)
        self.flattened = (lambda x: x.view(x.shape[0], -1)) if view else (lambda x: x.flatten(1))

    def forward(self, x):
        return self.fc(self.flattened(torch.relu(self.conv2(torch.relu(self.conv1(x))))))


class FromRows(nn.Module):
    """A network for images that gets them as rows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x.view(-1, 3, 6, 6))


@pytest.mark.parametrize("channels", [1, 3])
def test_layouts_hold_the_same_numbers(channels):
    x = torch.randn(2, channels, 4, 5)
    last = channels_last(x)
    assert torch.equal(last, x) and last.stride() == (20 * channels, 1, 5 * channels, channels)
    assert channels_last(last) is last
    first = channels_first(last)
    assert torch.equal(first, x) and first.stride() == x.stride()
    rows = torch.randn(2, 5)
    assert channels_last(rows) is rows and channels_first(rows) is rows


@pytest.mark.parametrize("channels", [1, 3])
def test_modules_that_need_the_channels_first_are_found(channels):
    shape = (channels, 6, 6)
    assert takes_channels_last(Tutorial(channels, view=False).eval(), shape)
    assert not takes_channels_last(Tutorial(channels).eval(), shape)
    assert not takes_channels_last(nn.Sequential(nn.Flatten(), nn.Linear(channels * 36, 3)), shape)
    assert takes_channels_last(make_network("resnet20", shape, 3).eval(), shape)


@pytest.mark.parametrize("name", MEASURES)
@pytest.mark.parametrize("wrap", [lambda module: module, FromRows], ids=["images", "rows"])
def test_measures_do_not_depend_on_how_the_module_flattens(name, wrap):
    def value(view: bool) -> float:
        module = wrap(Tutorial(view=view)).double()
        data = torch.tensor(X, dtype=torch.float64).reshape(30, *(() if wrap is FromRows else (3, 6)), -1)
        labels = module(data).argmax(1)  # separated, so that capacities are finite
        return measure_module(module, data, name, y=labels, **QUICK.get(name, {})).value

    try:
        expected = value(view=False)
    except ValueError as error:  # a measure that is not defined for it raises for both modules
        with pytest.raises(type(error)):
            value(view=True)
    else:
        assert value(view=True) == pytest.approx(expected, rel=1e-9, nan_ok=True)


class OnlyInTraining(Tutorial):
    """Flattens by `view` in training only, as an auxiliary head might."""

    def forward(self, x):
        self.flattened = (lambda x: x.view(len(x), -1)) if self.training else (lambda x: x.flatten(1))
        return super().forward(x)


class Pixels(Tutorial):
    """Refuses random samples."""

    def forward(self, x):
        assert x.min() >= 0, "no image"
        return super().forward(x)


@pytest.mark.parametrize("module", [OnlyInTraining, Pixels])
def test_modules_that_refuse_the_trial_are_left_alone(module):
    state = torch.get_rng_state()
    net = NetworkClassifier(module=module, max_epochs=2, random_state=0).fit(abs(X), y)
    assert not net.net_.images_last_ and torch.equal(torch.get_rng_state(), state)
    assert np.isfinite(measure_capacity(net, abs(X), y, "margin")["margin"])


@pytest.mark.parametrize("estimator", [NetworkClassifier, JacobianRegularizedClassifier])
@pytest.mark.parametrize("channels", [1, 3])
def test_fits_and_predictions_do_not_depend_on_it_either(estimator, channels):
    fits = [
        estimator(module=Tutorial(channels, view), max_epochs=3, batch_size=8, random_state=0).fit(X[:, :channels], y)
        for view in (False, True)
    ]
    assert [fit.net_.images_last_ for fit in fits] == [True, False]
    logits = [fit.decision_function(X[:, :channels]) for fit in fits]
    np.testing.assert_allclose(*logits, rtol=1e-3, atol=1e-4)


class InMemoryOrder(nn.Module):
    """Reads a convolution's output as it lies in memory."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(64, 3)
        nn.init.constant_(self.conv.bias, 0.0)
        if not weight:
            nn.init.zeros_(self.conv.weight)

    def forward(self, x):
        y = self.conv(x)
        return self.fc(y.as_strided((len(y), 64), (64, 1)))


def test_a_layout_that_weights_of_zero_hide_is_seen_in_the_next_network():
    images = torch.tensor(X, dtype=torch.float64)
    for weight in (0.0, 1.0, 0.0, 2.0):
        module = InMemoryOrder(weight).double().eval()
        logits = module(images).detach()
        labels = (logits.argmax(1) + 1) % 3
        expected = torch.tensor(
            [z[k] - z[[j for j in range(3) if j != k]].max() for z, k in zip(logits, labels, strict=True)]
        )
        got = measure_capacity(module, images, labels, {"m": ("margin", {"percentile": 0.0})})["m"]
        assert got == pytest.approx(expected.min().item(), rel=1e-9)


def test_the_gradient_of_a_group_norm_is_safe_where_its_input_has_none():
    # torch < 2.14 ends the process at channels-last images
    torch.manual_seed(0)
    layers = (nn.GroupNorm(1, 3), nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    module = nn.Sequential(*layers, nn.Linear(64, 3))
    model = NetworkClassifier(module=module, max_epochs=1, random_state=0).fit(X, y)
    assert len(model.history_) == 1
    frozen = module.train().requires_grad_(False)
    frozen[2].requires_grad_(True)
    logits = forward_pass(frozen, torch.from_numpy(X)).logits
    assert all(g.isfinite().all() for g in torch.autograd.grad(logits.sum(), list(frozen[2].parameters())))
