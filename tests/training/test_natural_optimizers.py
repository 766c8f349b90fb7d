"""K-FAC against dense Fisher matrices and on ill-conditioned curves; Path-SGD under rescaling of nodes."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from skorch.callbacks import Callback
from torch import nn

from sklearn_capacity import NetworkClassifier, NetworkRegressor
from sklearn_capacity.datasets import make_piecewise_linear_curves
from sklearn_capacity.layers import GeneralizationLayer
from sklearn_capacity.training import CRITERIA, KFAC, PathSGD, PenalizedClassifier, PenalizedRegressor
from sklearn_capacity.training.kronecker import _residuals
from sklearn_capacity.training.path_sgd import path_scales

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 6)), np.arange(40) % 3


# ---- K-FAC --------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
def test_kfac_step_of_a_linear_map_is_that_of_the_dense_kronecker_product(loss):
    """One layer: A is the second moment of (x, 1), B the mean Hessian in the outputs, both written out here."""
    torch.manual_seed(0)
    inputs = torch.randn(12, 4, dtype=torch.float64)
    target = torch.arange(12) % 3 if loss == "cross_entropy" else torch.randn(12, 3, dtype=torch.float64)
    layer, criterion = nn.Linear(4, 3).double(), CRITERIA[loss]()
    optimizer = KFAC(layer.parameters(), lr=0.3, damping=0.05, max_kl=None)
    optimizer.attach(layer, criterion)
    start = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach().clone()
    outputs = layer(inputs)
    criterion(outputs, target).backward()
    gradient = torch.cat([layer.weight.grad, layer.bias.grad[:, None]], dim=1)
    extended = torch.cat([inputs, torch.ones(12, 1, dtype=torch.float64)], dim=1)
    A = extended.T @ extended / 12
    if loss == "squared":
        B = 2 / 3 * torch.eye(3, dtype=torch.float64)  # the loss is the mean over the three outputs
    else:
        p = outputs.detach().softmax(1)
        B = (torch.diag_embed(p) - p[:, :, None] * p[:, None, :]).mean(0)
    F = torch.kron(B, A) + 0.05 * torch.eye(15, dtype=torch.float64)
    optimizer.observe(inputs, target)
    optimizer.step()
    moved = torch.cat([layer.weight, layer.bias[:, None]], dim=1).detach()
    torch.testing.assert_close(moved, start - 0.3 * torch.linalg.solve(F, gradient.flatten()).reshape(3, 5))


class PerPosition(nn.Module):
    """A linear map of each of four positions, then one of all."""

    def __init__(self):
        super().__init__()
        self.each, self.all = nn.Linear(2, 3), nn.Linear(12, 3)

    def forward(self, input):
        return self.all(self.each(input.unflatten(1, (4, 2))).tanh().flatten(1))


def networks() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    conv = nn.Conv2d(2, 4, (3, 2), stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 2, padding="same", dilation=2)
    frozen = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    for parameter in frozen[0].weight, frozen[2].bias:
        parameter.requires_grad_(False)
    return {
        "wide": (nn.Sequential(nn.Linear(40, 20), nn.ReLU(inplace=True), nn.Linear(20, 3)), (40,)),
        "convolutions": (nn.Sequential(*conv, nn.Flatten(), nn.Linear(3 * 6, 3, bias=False)), (2, 4, 5)),
        "positions": (PerPosition(), (8,)),
        "frozen": (frozen, (8,)),
    }


@pytest.mark.parametrize(
    "loss",
    [nn.CrossEntropyLoss(), nn.MSELoss(), nn.MSELoss(reduction="sum")],
    ids=["cross_entropy", "squared", "squared_sum"],
)
@pytest.mark.parametrize("fisher", ["type-2", "empirical"])
@pytest.mark.parametrize("name", networks())
def test_kfac_steps_are_those_of_curvlinops(name, fisher, loss):
    """Its factors are accumulated otherwise, as whole matrices, and inverted in their full eigenbases."""
    curvlinops = pytest.importorskip("curvlinops", reason="the reference of K-FAC's steps")
    torch.manual_seed(0)
    network, shape = networks()[name]
    network.double()
    inputs = torch.randn(7, *shape, dtype=torch.float64)
    target = torch.arange(7) % 3 if isinstance(loss, nn.CrossEntropyLoss) else torch.randn(7, 3, dtype=torch.float64)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    loss(network(inputs), target).backward()
    fisher_matrix = curvlinops.KFACLinearOperator(
        network, loss, trained, [(inputs, target)], fisher_type=fisher, separate_weight_and_bias=False
    )
    inverse = curvlinops.KFACInverseLinearOperator(fisher_matrix, damping=0.05, use_exact_damping=True)
    wanted = [p - 0.3 * step for p, step in zip(trained, inverse @ [p.grad for p in trained], strict=True)]
    optimizer = KFAC(trained, lr=0.3, damping=0.05, max_kl=None, fisher=fisher)
    optimizer.attach(network, loss)
    optimizer.observe(inputs, target)
    optimizer.step()
    for parameter, value in zip(trained, wanted, strict=True):
        torch.testing.assert_close(parameter, value)


def test_drawn_labels_have_the_exact_fisher_matrix_as_their_mean():
    """For few outputs and many samples of one input: the standard error of a second moment."""
    torch.manual_seed(0)
    z = torch.randn(1, 3, dtype=torch.float64).expand(20_000, 3)
    target = torch.zeros(20_000, 3, dtype=torch.float64)
    for loss in nn.CrossEntropyLoss(), nn.MSELoss(), nn.BCEWithLogitsLoss():
        exact = _residuals(loss, z[:1], target[:1], "type-2", 0)  # (3, 1, 3)
        drawn = _residuals(loss, z, target, "mc", 0)[0]  # (20000, 3)
        products = drawn[:, :, None] * drawn[:, None, :]
        error = products.std(0) / len(z) ** 0.5 + 1e-12
        wanted = torch.einsum("kni,knj->ij", exact, exact)
        assert ((products.mean(0) - wanted) / error).abs().max() < 4


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
    with pytest.raises(ValueError, match="Training diverged: the curvature of layer .* Lower `learning_rate`"):
        optimizer.step()


def test_kfac_refuses_a_module_that_changes_its_input():
    network = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(6, 3))
    with pytest.raises(ValueError, match="`module` works in place on its input, which `optimizer` 'kfac' needs"):
        NetworkClassifier(module=network, optimizer="kfac").fit(X, y)


def test_kfac_learns_piecewise_linear_curves_where_gradient_descent_cannot():
    """[FR] figure 7: in the same number of steps the error is at least five times below SGD's at its best rate."""
    curves, slopes = make_piecewise_linear_curves(300, n_points=20, random_state=0)

    def error(hidden, **params):
        model = NetworkRegressor(hidden, max_epochs=40, batch_size=100, random_state=0, **params)
        try:
            model.fit(curves[:200], slopes[:200])
        except ValueError:  # diverged
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
    with pytest.raises(ValueError, match="'kfac' needs a gradient of all that it trains, but 0.spare.weight has none"):
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
    (convolutional(nn.Conv2d(6, 3, 1, groups=3)), r"no grouped convolutions, but 1 \(Conv2d\) has 3 groups"),
    (Tied(), r"no tied weights, but two \(Linear\) uses those of one \(Linear\)"),
]


@pytest.mark.parametrize(("network", "text"), KFAC_REFUSED, ids=["batch norm", "grouped", "tied"])
def test_what_kfac_refuses(network, text):
    with pytest.raises(ValueError, match=text):
        NetworkClassifier(module=network, optimizer="kfac").fit(X, y)


def test_kfac_refuses_row_normalised_weights_and_other_losses():
    with pytest.raises(ValueError, match=r"plain Linear and Conv2d layers only, but .* \(RowNormalizedLinear\)"):
        NetworkClassifier(weight_norm=True, optimizer="kfac").fit(X, y)
    with pytest.raises(ValueError, match="needs a loss that is one of MSELoss, .* got AbsoluteLoss"):
        NetworkRegressor(loss="absolute", optimizer="kfac").fit(X, y)
    binary = PenalizedRegressor(
        nn.Linear(6, 1).double(), criterion=nn.BCEWithLogitsLoss, optimizer=KFAC, max_epochs=60, verbose=0, lr=0.5
    )
    wanted = (X[:, :1] > 0).astype(float)
    logits = binary.fit(X, wanted).module_(torch.from_numpy(X)).detach().numpy()
    assert ((logits > 0) == wanted).mean() > 0.9


@pytest.mark.parametrize("kind", [KFAC, PathSGD])
def test_a_step_needs_to_know_the_module_and_the_batch(kind):
    layer = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match=r"needs `attach\(module, criterion\)` and `observe\(X, y\)` before a step"):
        kind(layer.parameters()).step()


break_in = []  # the epoch to end in


class Breaks(Callback):
    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) in break_in:
            raise InterruptedError


@pytest.mark.parametrize("optimizer", ["kfac", "path_sgd"])
def test_a_metric_that_lasts_for_several_steps_goes_on_from_a_checkpoint(optimizer, tmp_path):
    """Four steps an epoch, a new metric in every seventh: a fit that was broken off ends at the same bits."""
    params = {"optimizer": optimizer, "learning_rate": 0.05, "momentum": 0.5 if optimizer == "kfac" else 0.9}
    params |= {"optimizer_params": {"update_interval": 7}, "callbacks": [Breaks()], "random_state": 0}
    model = NetworkClassifier((8,), batch_size=10, max_epochs=6, **params)
    whole = model.fit(X, y).predict_proba(X)
    model.set_params(checkpoint_dir=tmp_path)
    break_in.append(4)  # after twelve steps
    with pytest.raises(InterruptedError):
        model.fit(X, y)
    break_in.clear()
    np.testing.assert_array_equal(model.fit(X, y).predict_proba(X), whole)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(X), whole)


def test_a_kept_metric_is_not_taken_for_other_parameters():
    model = NetworkClassifier((8,), optimizer="kfac", optimizer_params={"update_interval": 7}, random_state=0)
    model.set_params(max_epochs=1, warm_start=True).fit(X, y)
    model.module_[1].bias.requires_grad_(False)
    before = model.module_[1].bias.detach().clone()
    model.fit(X, y)
    assert torch.equal(model.module_[1].bias, before)


BAD = [
    (KFAC, {"damping": 0.0}, r"`damping` must lie in \(0, inf\)"),
    (KFAC, {"update_interval": 0}, "`update_interval` must be at least 1"),
    (KFAC, {"fisher": "type-3"}, "`fisher` must be one of .* Did you mean 'type-2'"),
    (KFAC, {"max_kl": -1.0}, "`max_kl` must lie in"),
    (PathSGD, {"lr": 0.0}, "`lr` must lie in"),
    (PathSGD, {"update_interval": 0}, "`update_interval` must be at least 1"),
]


@pytest.mark.parametrize(("kind", "params", "text"), BAD, ids=str)
def test_bad_parameters(kind, params, text):
    with pytest.raises(ValueError, match=text):
        kind(nn.Linear(2, 2).parameters(), **params)


# ---- Path-SGD -----------------------------------------------------------------------------------


def chain() -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.0), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
    return nn.Sequential(*layers).double()


def rescaled(network: nn.Sequential) -> nn.Sequential:
    """The same function, every hidden unit multiplied by its own factor between 1/8 and 8."""
    other = pickle.loads(pickle.dumps(network))
    layers = [layer for layer in other if isinstance(layer, nn.Linear)]
    for i, (before, after) in enumerate(zip(layers, layers[1:], strict=False)):
        factors = 2.0 ** torch.linspace(-3, 3, before.out_features, dtype=torch.float64).roll(i)
        with torch.no_grad():
            before.weight.mul_(factors[:, None])
            before.bias.mul_(factors)
            after.weight.div_(factors)
    return other


def trained(network, optimizer, **params):
    net = PenalizedClassifier(network, optimizer=optimizer, max_epochs=15, batch_size=40, verbose=0, **params)
    return net.fit(X, y).module_(torch.from_numpy(X)).detach()


def test_path_sgd_is_invariant_under_rescaling_of_nodes_and_sgd_is_not():
    one, two = chain(), rescaled(chain())
    start = one(torch.from_numpy(X))
    torch.testing.assert_close(start, two(torch.from_numpy(X)))
    first, second = (trained(network, PathSGD, lr=0.5) for network in (one, two))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
    assert (first - start).abs().max() > 0.1  # they have moved
    plain, other = (trained(network, torch.optim.SGD, lr=0.01) for network in (one, two))
    assert (plain - other).abs().max() > 0.01


def test_path_scales_equal_the_sum_over_enumerated_paths():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    scales = path_scales(network, torch.zeros(1, 2, dtype=torch.float64))
    V, b, W = (tensor.detach() ** 2 for tensor in (network[0].weight, network[0].bias, network[2].weight))
    for i in range(3):
        onward = sum(W[k, i] for k in range(2))
        for j in range(2):
            torch.testing.assert_close(1 / scales[id(network[0].weight)][i, j], onward)
        torch.testing.assert_close(1 / scales[id(network[0].bias)][i], onward)
        for k in range(2):
            torch.testing.assert_close(1 / scales[id(network[2].weight)][k, i], V[i, 0] + V[i, 1] + b[i])
    assert scales[id(network[2].bias)].tolist() == [1.0, 1.0]


def test_path_scales_count_all_inputs_of_a_pooling_window_and_leave_dead_weights():
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 1, bias=False))
    nn.init.constant_(network[3].weight, 2.0)
    network[3].weight.data[0, 0] = 0.0
    nn.init.constant_(network[0].weight, 3.0)
    scales = path_scales(network, torch.zeros(1, 1, 4, 4))
    assert 1 / scales[id(network[0].weight)].item() == pytest.approx(3 * 4 * 4.0)  # three windows of four pixels
    assert (1 / scales[id(network[3].weight)]).tolist() == [[36.0] * 4]
    nn.init.zeros_(network[0].weight)
    assert path_scales(network, torch.zeros(1, 1, 4, 4))[id(network[3].weight)].tolist() == [[0.0] * 4]


def test_path_scales_square_the_strength_of_a_skip():
    torch.manual_seed(0)
    layer = GeneralizationLayer(3, nu=0.1)
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), layer, nn.ReLU(), nn.Linear(3, 1)).double()
    scales = path_scales(network, torch.zeros(1, 2, dtype=torch.float64))
    W, out = layer.body[0].weight.detach() ** 2, network[4].weight.detach()[0] ** 2
    onward = [sum(out[k] * (W[k, i] + 0.1**2 * (k == i)) for k in range(3)) for i in range(3)]
    torch.testing.assert_close(1 / scales[id(network[0].weight)], torch.stack(onward)[:, None].expand(3, 2))


def test_path_sgd_trains_images_and_updates_at_its_interval():
    images = rng.normal(size=(40, 1, 4, 4))
    images[np.arange(40), 0, y, y] += 6
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    model = NetworkClassifier(
        module=network,
        optimizer="path_sgd",
        optimizer_params={"update_interval": 5},
        learning_rate=0.2,
        max_epochs=60,
        random_state=0,
    )
    assert model.fit(images, y).score(images, y) > 0.9


class Between(nn.Module):
    """A function between two layers that is not a submodule."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 4), nn.LazyLinear(3), function

    def forward(self, input):
        return self.last(self.function(self.first(input)))


def test_path_sgd_refuses_what_is_no_rectifier_chain():
    with pytest.raises(ValueError, match="'path_sgd' takes chains of .* is a Tanh"):
        NetworkClassifier(activation="tanh", optimizer="path_sgd").fit(X, y)
    with pytest.raises(ValueError, match="is a BatchNorm1d"):
        NetworkClassifier(batch_norm=True, optimizer="path_sgd").fit(X, y)
    for function, text in [
        (torch.tanh, "but the module computes `tanh`"),
        (lambda x: x.unflatten(1, (2, 2)).mean(2), "but the module computes `mean`"),
        (lambda x: nn.functional.max_pool1d(x[:, None], 2)[:, 0], "but the module computes `max_pool`"),
    ]:
        with pytest.raises(ValueError, match=f"'path_sgd' takes .*, {text}"):
            NetworkClassifier(module=Between, module_params={"function": function}, optimizer="path_sgd").fit(X, y)
    network = Between(torch.relu)
    assert NetworkClassifier(module=network, optimizer="path_sgd", max_epochs=1).fit(X, y).n_iter_ == 1
    with pytest.raises(ValueError, match="`weight_decay` must be 0 with PathSGD, which has none"):
        NetworkClassifier(weight_decay=0.1, optimizer="path_sgd").fit(X, y)
