"""K-FAC on ill-conditioned problems, the length of its steps, and what it refuses."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

from sklearn_capacity import DivergenceError, NetworkClassifier, NetworkRegressor
from sklearn_capacity.datasets import make_piecewise_linear_curves
from sklearn_capacity.training import KFAC, PenalizedRegressor

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 6)), np.arange(40) % 3


@pytest.mark.parametrize("learning_rate", [0.01, 0.1])
def test_kfac_learns_digits_of_rank_deficient_pixels_in_single_precision(learning_rate):
    """Every pixel nine times, and a dead margin: 128 samples and 61 live pixels in 900 features."""
    digits, labels = load_digits(return_X_y=True)
    images = np.kron(digits[:500].reshape(-1, 8, 8) / 16, np.ones((1, 3, 3)))
    rows = np.pad(images, [(0, 0), (3, 3), (3, 3)]).reshape(500, 900).astype("float32")
    model = NetworkClassifier((50,), optimizer="kfac", learning_rate=learning_rate, max_epochs=30, random_state=0)
    assert model.fit(rows, labels[:500]).score(rows, labels[:500]) == 1


def test_kfac_says_that_the_curvature_is_no_longer_finite():
    layer = nn.Linear(2, 2)
    optimizer = KFAC(layer.parameters())
    optimizer.attach(layer, nn.MSELoss())
    inputs = torch.full((3, 2), 1e30)
    nn.MSELoss()(layer(inputs), torch.zeros(3, 2)).backward()
    optimizer.observe(torch.full((3, 2), torch.inf), torch.zeros(3, 2))
    with pytest.raises(DivergenceError, match="Training diverged: the curvature of layer .* Lower `learning_rate`"):
        optimizer.step()


def test_kfac_refuses_a_module_that_changes_its_input():
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="`module` must not modify its input in place, since `optimizer` 'kfac' needs"):
        NetworkClassifier(module=network, optimizer="kfac").fit(X, y)


def test_kfac_learns_piecewise_linear_curves_where_gradient_descent_cannot():
    """[FR] figure 7: in the same number of steps the error is at least five times below SGD's at its best rate."""
    curves, slopes = make_piecewise_linear_curves(300, n_points=20, random_state=0)

    def error(hidden, **params):
        model = NetworkRegressor(hidden, max_epochs=40, batch_size=100, random_state=0, **params)
        try:
            model.fit(curves[:200], slopes[:200])
        except DivergenceError:
            return np.inf
        return np.mean((model.predict(curves[200:]) - slopes[200:]) ** 2)

    gradient = min(error((), optimizer="sgd", learning_rate=rate) for rate in (1e-4, 1e-3, 1e-2, 1e-1))
    settings = dict(damping=1e-6, update_interval=2, max_kl=None)
    natural = error((), optimizer="kfac", learning_rate=0.1, momentum=0.0, optimizer_params=settings)
    assert np.isfinite(gradient) and natural < gradient / 5
    assert error((), optimizer="kfac") < gradient  # as it comes


def test_kfac_trains_convolutions_and_counts_its_updates(monkeypatch):
    calls = []
    original = KFAC._new_factors
    monkeypatch.setattr(KFAC, "_new_factors", lambda self, *batch: calls.append(1) or original(self, *batch))
    network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 36, 3))
    images = rng.normal(size=(40, 1, 8, 8))
    images[np.arange(40), 0, y, y] += 6
    fits = {}
    for fisher in ("type-2", "mc", "empirical"):
        model = NetworkClassifier(
            module=network,
            optimizer="kfac",
            max_epochs=25,
            batch_size=20,
            learning_rate=0.1,
            random_state=0,
            optimizer_params={"update_interval": 20, "fisher": fisher},
        )
        fits[fisher] = model.fit(images, y)
        assert model.score(images, y) > 0.9
    assert len(calls) == 3 * 3  # 50 steps each, one update in 20
    again = pickle.loads(pickle.dumps(fits["mc"].set_params(warm_start=True, max_epochs=1)))
    again.fit(images, y)
    assert again.net_.optimizer_.param_groups[0]["n_steps"] == 52


def test_max_kl_bounds_the_step_in_the_metric():
    torch.manual_seed(0)
    inputs, target = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 1, dtype=torch.float64)
    layer = nn.Linear(4, 1, bias=False).double()
    optimizer = KFAC(layer.parameters(), lr=1.0, damping=1e-9, max_kl=1e-4)
    optimizer.attach(layer, nn.MSELoss())
    before = layer.weight.detach().clone()
    nn.MSELoss()(layer(inputs), target).backward()
    optimizer.observe(inputs, target)
    optimizer.step()
    step = (layer.weight - before).detach()
    fisher = 2 * inputs.T @ inputs / 30
    assert float(step @ fisher @ step.T) == pytest.approx(1e-4, rel=1e-5)


def test_max_kl_bounds_the_step_where_groups_have_their_own_rates():
    torch.manual_seed(0)
    inputs, target = torch.randn(30, 4, dtype=torch.float64), torch.randn(30, 1, dtype=torch.float64)
    first, last = nn.Linear(4, 2, bias=False).double(), nn.Linear(2, 1, bias=False).double()
    network = nn.Sequential(first, last)
    groups = [{"params": first.parameters(), "lr": 0.1}, {"params": last.parameters(), "lr": 1.0}]
    optimizer = KFAC(groups, damping=1e-9, max_kl=1e-4)
    optimizer.attach(network, nn.MSELoss())
    before = [layer.weight.detach().clone() for layer in network]
    hidden = first(inputs).detach()
    nn.MSELoss()(network(inputs), target).backward()
    optimizer.observe(inputs, target)
    optimizer.step()
    steps = [(layer.weight - old).detach() for layer, old in zip(network, before, strict=True)]
    outer = [2 * before[1].T @ before[1], 2 * torch.eye(1, dtype=torch.float64)]  # of gradients at the layers' outputs
    inner = [x.T @ x / 30 for x in (inputs, hidden)]
    moved = sum((B @ step @ A * step).sum() for step, A, B in zip(steps, inner, outer, strict=True))
    assert float(moved) == pytest.approx(1e-4, rel=1e-4)


def test_kfac_does_not_move_frozen_layers_and_takes_momentum_and_decay():
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    network[0].requires_grad_(False)
    model = NetworkClassifier(module=network, optimizer="kfac", momentum=0.5, weight_decay=0.1, max_epochs=3)
    model.fit(X, y)
    assert torch.equal(model.module_[0].weight, network[0].weight)
    assert not torch.equal(model.module_[2].weight, network[2].weight)


def test_kfac_names_a_layer_without_a_part_in_the_loss():
    network = nn.Sequential(nn.Linear(6, 3))
    network[0].spare = nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match="'kfac' needs a gradient of every trained parameter, but 0.spare.weight has none"
    ):
        NetworkClassifier(module=network, optimizer="kfac").fit(X, y)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)
        self.two.weight = self.one.weight

    def forward(self, input):
        return self.two(self.one(input))[:, :3]


def convolutional(conv):
    return nn.Sequential(nn.Unflatten(1, (6, 1, 1)), conv, nn.Flatten())


KFAC_REFUSED = [
    (nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(3)), r"1 \(BatchNorm1d\) has the parameter `weight`"),
    (convolutional(nn.Conv2d(6, 3, 1, groups=3)), r"not support grouped convolutions, but 1 \(Conv2d\) has 3 groups"),
    (Tied(), r"not support tied weights, but two \(Linear\) uses those of one \(Linear\)"),
]


@pytest.mark.parametrize(("network", "text"), KFAC_REFUSED, ids=["batch norm", "grouped", "tied"])
def test_what_kfac_refuses(network, text):
    with pytest.raises(ValueError, match=text):
        NetworkClassifier(module=network, optimizer="kfac").fit(X, y)


def test_kfac_refuses_row_normalised_weights_and_other_losses():
    with pytest.raises(ValueError, match=r"plain Linear and Conv2d layers, but .* \(RowNormalizedLinear\)"):
        NetworkClassifier(weight_norm=True, optimizer="kfac").fit(X, y)
    with pytest.raises(ValueError, match="needs a loss that is one of MSELoss, .* got AbsoluteLoss"):
        NetworkRegressor(loss="absolute", optimizer="kfac").fit(X, y)
    binary = PenalizedRegressor(
        nn.Linear(6, 1).double(), criterion=nn.BCEWithLogitsLoss, optimizer=KFAC, max_epochs=60, verbose=0, lr=0.5
    )
    wanted = (X[:, :1] > 0).astype(float)
    logits = binary.fit(X, wanted).module_(torch.from_numpy(X)).detach().numpy()
    assert ((logits > 0) == wanted).mean() > 0.9


def test_a_kept_metric_is_not_taken_for_other_parameters():
    model = NetworkClassifier((8,), optimizer="kfac", optimizer_params={"update_interval": 7}, random_state=0)
    model.set_params(max_epochs=1, warm_start=True).fit(X, y)
    model.module_[1].bias.requires_grad_(False)
    before = model.module_[1].bias.detach().clone()
    model.fit(X, y)
    assert torch.equal(model.module_[1].bias, before)
