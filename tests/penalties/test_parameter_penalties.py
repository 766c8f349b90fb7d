"""Penalties on the parameters against dense matrices and loops, on every kind of network, alone and together."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

from networks import Attention
from sklearn_capacity import (
    NetworkClassifier,
    UnsupportedLayerError,
    measure_capacity,
)
from sklearn_capacity.derivatives.double_backward import twice_differentiable
from sklearn_capacity.graph import Network
from sklearn_capacity.penalties import (
    PARAMETER_PENALTIES,
    check_penalty,
    fisher_rao,
    fisher_rao_penalty,
    gradient_norm_penalty,
    spectral_norm_penalty,
)

N = 7
y = torch.arange(N) % 3


class Gate(nn.Module):
    """One half of a linear map, times the sigmoid of the other."""

    def __init__(self):
        super().__init__()
        self.both, self.head = nn.Linear(6, 10), nn.Linear(5, 3)

    def forward(self, x):
        value, gate = self.both(x).chunk(2, dim=1)
        return self.head(value * gate.sigmoid())


class Residual(nn.Module):
    """Convolutions with a stride, padding and groups; batch norms before and after them; a branch around them."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 4, 3, padding=1, groups=2, padding_mode="circular")
        self.head = nn.Linear(4 * 9, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        return self.head((x + self.second(x)).flatten(1))


class Tied(nn.Module):
    """One matrix, used twice."""

    def __init__(self):
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))


def relu_chain():
    return nn.Sequential(
        nn.Linear(6, 9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 4), nn.LeakyReLU(0.1), nn.Linear(4, 3)
    )


def smooth_chain():
    norm = torch.nn.utils.parametrizations.weight_norm
    return nn.Sequential(norm(nn.Linear(6, 5)), nn.Tanh(), nn.Linear(5, 4), nn.PReLU(), nn.Linear(4, 3, bias=False))


KINDS = {
    "relu": (relu_chain, (6,)),
    "smooth": (smooth_chain, (6,)),
    "residual": (Residual, (2, 6, 6)),
    "gate": (Gate, (6,)),
    "attention": (Attention, (5, 4)),
    "tied": (Tied, (6,)),
}


def built(name):
    kind, shape = KINDS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        module, X = kind().double(), torch.randn(N, *shape, dtype=torch.float64)
        for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 2)
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
    return module, X


def gradient(value, module):
    parameters = list(module.parameters())
    result = torch.autograd.grad(value, parameters, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, result, strict=True)]
    )


def functional_logits(module, X):
    """Outputs of the module in eval mode as a function of its parameters in one vector."""
    named = dict(module.eval().named_parameters())

    def logits(theta):
        pieces = theta.split([p.numel() for p in named.values()])
        state = {name: piece.reshape(p.shape) for (name, p), piece in zip(named.items(), pieces, strict=True)}
        with twice_differentiable():
            return torch.func.functional_call(module, state, (X,))

    return logits, torch.cat([p.detach().flatten() for p in named.values()])


def affine_matrix(function, shape):
    """The matrix of an affine map, column by column; differentiable."""
    eye = torch.eye(int(np.prod(shape)), dtype=torch.float64)
    origin = function(torch.zeros(1, *shape, dtype=torch.float64))
    return torch.stack([(function(e.reshape(1, *shape)) - origin).flatten() for e in eye], dim=1)


def affine_parts(name, module):
    """The weight layers as functions, written out by hand: (map, shape of its input), one for each use."""
    if name in ("relu", "smooth"):
        return [(m, (m.in_features,)) for m in module if isinstance(m, nn.Linear)]
    if name == "gate":
        return [(module.both, (6,)), (module.head, (5,))]
    if name == "tied":
        return [(module.inner, (6,)), (module.inner, (6,)), (module.head, (6,))]
    if name == "residual":
        first = lambda x: module.norm(module.first(x))  # noqa: E731
        return [(first, (2, 6, 6)), (module.second, (4, 3, 3)), (module.head, (36,))]
    layer = module.encoder
    packed = partial(functional.linear, weight=layer.self_attn.in_proj_weight)
    maps = [packed, layer.self_attn.out_proj, layer.linear1, layer.linear2, module.head]
    return list(zip(maps, [(4,), (4,), (4,), (6,), (4,)], strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_spectral_norms_are_those_of_dense_matrices(name):
    module, X = built(name)
    module.eval()
    norms = [torch.linalg.matrix_norm(affine_matrix(*part), 2) for part in affine_parts(name, module)]
    want = sum(norm.square() for norm in norms)
    got = spectral_norm_penalty(module, X)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient(got, module), gradient(want, module), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm((4, 3)),
        nn.RMSNorm(3),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm1d(4, affine=True),
    ],
    ids=lambda norm: type(norm).__name__,
)
def test_scales_of_normalizations_are_no_matrices(norm):
    torch.manual_seed(0)
    nn.init.constant_(norm.weight, 5.0)
    module = nn.Sequential(nn.Conv1d(2, 4, 1), norm, nn.Flatten(), nn.Linear(12, 3)).double()
    first, head = module[0].weight[:, :, 0], module[3].weight
    want = sum(torch.linalg.matrix_norm(weight, 2).square() for weight in (first, head))
    got = spectral_norm_penalty(module, torch.zeros(1, 2, 3, dtype=torch.float64))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


def test_a_batch_norm_without_a_layer_beside_it_counts():
    module = nn.Sequential(nn.Tanh(), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2)).double().eval()
    nn.init.constant_(module[1].weight, 2.0)
    want = 4 / (1 + module[1].eps) + torch.linalg.matrix_norm(module[3].weight, 2).square()
    got = spectral_norm_penalty(module, torch.zeros(1, 3, dtype=torch.float64))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


def test_batch_norm_in_training_scales_by_the_variances_of_the_batch():
    """Against dense matrices whose variances depend on the weights."""
    module, X = built("residual")
    got = spectral_norm_penalty(module.train(), X)
    variance = module.first(X).var((0, 2, 3), correction=0)
    factor = (module.norm.weight / (variance + module.norm.eps).sqrt())[:, None, None]
    first = affine_matrix(lambda x: functional.conv2d(x, module.first.weight, None, 2, 1) * factor, (2, 6, 6))
    rest = [affine_matrix(*part) for part in affine_parts("residual", module)[1:]]
    want = sum(torch.linalg.matrix_norm(matrix, 2).square() for matrix in (first, *rest))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient(got, module), gradient(want, module), rtol=1e-6, atol=1e-8)


def test_the_pass_for_the_variances_changes_neither_the_module_nor_the_next_dropout_mask():
    module = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).double()
    state, draws = {name: value.clone() for name, value in module.state_dict().items()}, torch.get_rng_state()
    first, second = (spectral_norm_penalty(module, built("relu")[1]) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), draws) and torch.equal(first, second)
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


def test_the_scale_in_front_of_a_batch_norm_is_left_alone():
    """It does not change the training pass, so the penalty has no slope along it; running variances would."""
    module, X = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double(), built("relu")[1]
    module[1].eps = 1e-12
    weight = module[0].weight
    for training in (True, False):
        slopes = torch.autograd.grad(spectral_norm_penalty(module.train(training), X), weight)[0]
        along = (slopes * weight).sum(1).abs().max()
        assert (along < 1e-9) == training


def test_batch_norm_under_the_spectral_penalty_predicts_at_a_constant_rate():
    X, y = load_digits(return_X_y=True)
    model = NetworkClassifier(
        (32,), batch_norm=True, penalty="spectral_norm", penalty_strength=0.01, optimizer="sgd", learning_rate=0.1,
        max_epochs=12, random_state=0,
    )  # fmt: skip
    assert model.fit(X[:600] / 16, y[:600]).score(X[:600] / 16, y[:600]) > 0.97


def test_spectral_norms_are_those_of_the_measure():
    module, X = built("residual")
    model = Network(module, (2, 6, 6))
    product = measure_capacity(module, X, measures="spectral_norm", log=True)["spectral_norm"]
    assert len(model.graph.layers) == 3
    norms = [torch.linalg.matrix_norm(affine_matrix(*part), 2) for part in affine_parts("residual", module.eval())]
    assert product == pytest.approx(float(sum(norm.log() for norm in norms).detach()), rel=1e-6)


def test_wide_matrices_and_convolutions_take_lanczos():
    """Above the size of the direct route; a gap, as the vector needs one."""
    torch.manual_seed(0)
    layers = nn.Linear(300, 270, bias=False), nn.ReLU(), nn.Linear(270, 290, bias=False), nn.Linear(290, 2)
    module = nn.Sequential(*layers).double()
    with torch.no_grad():
        for layer in (layers[0], layers[2]):
            u, v = torch.randn(layer.out_features, 1), torch.randn(1, layer.in_features)
            layer.weight.add_(u.double() @ v.double(), alpha=0.01)
    got = spectral_norm_penalty(module, torch.zeros(1, 300, dtype=torch.float64))
    want = sum(torch.linalg.matrix_norm(m.weight, 2).square() for m in module if isinstance(m, nn.Linear))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)
    torch.testing.assert_close(gradient(got, module), gradient(want, module), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("squared", [False, True])
def test_the_gradients_norm_and_its_gradient_are_those_of_a_dense_hessian(name, squared):
    module, X = built(name)
    logits, theta = functional_logits(module, X)

    def loss(vector):
        return functional.cross_entropy(logits(vector), y)

    g = torch.autograd.functional.jacobian(loss, theta)
    H = torch.autograd.functional.hessian(loss, theta)
    got = gradient_norm_penalty(module.train(), X, y, squared=squared)
    torch.testing.assert_close(got, g.square().sum() if squared else g.norm())
    want = 2 * H @ g if squared else H @ g / g.norm()
    torch.testing.assert_close(gradient(got, module), want, rtol=1e-7, atol=1e-9)


def test_weights_and_losses_of_the_gradients_norm():
    module, X = built("relu")
    weight = torch.linspace(0.5, 2, N, dtype=torch.float64)
    targets = torch.randn(N, 3, dtype=torch.float64)
    outputs = module.eval()(X)
    rows = [(functional.cross_entropy(outputs, y, reduction="none"), y, None)]
    rows.append(((outputs - targets).square().mean(1), targets, None))
    rows.append(((outputs - targets).square().mean(1), targets, nn.MSELoss()))  # takes no weights
    for losses, target, criterion in rows:
        mean = losses.mean() if criterion else (losses * weight).mean()
        want = torch.cat(
            [g.flatten() for g in torch.autograd.grad(mean, module.parameters(), retain_graph=True)]
        ).norm()
        got = gradient_norm_penalty(module, X, target, criterion=criterion, sample_weight=weight)
        torch.testing.assert_close(got, want)


def test_a_gradient_of_zero_has_a_gradient():
    linear = nn.Linear(2, 2, bias=False).double()
    X = torch.zeros(3, 2, dtype=torch.float64)
    value = gradient_norm_penalty(linear, X, torch.tensor([0, 1, 0]))
    value.backward()
    assert value == 0 and torch.equal(linear.weight.grad, torch.zeros(2, 2, dtype=torch.float64))


def dense_fisher_rao(module, X, distribution, loss, targets):
    """theta^T I(theta) theta, from J written out; of networks in which nothing is folded."""
    logits, theta = functional_logits(module, X)
    f, u = logits(theta), torch.autograd.functional.jacobian(logits, theta) @ theta  # (n, C)
    total = 0.0
    for i in range(len(X)):
        if loss == "squared":
            form = ((f[i] - targets[i]) @ u[i]) ** 2 if distribution == "empirical" else u[i] @ u[i]
        else:
            p = f[i].softmax(0)
            gradients = [p - functional.one_hot(torch.tensor(k), 3) for k in range(3)]  # of -log p_k
            terms = [(g @ u[i]) ** 2 for g in gradients]
            form = terms[int(targets[i])] if distribution == "empirical" else sum(p * torch.stack(terms))
        total += form / len(X)
    return total


@pytest.mark.parametrize("loss", ["cross_entropy", "squared"])
@pytest.mark.parametrize("distribution", ["model", "empirical"])
@pytest.mark.parametrize("name", ["relu", "gate", "attention", "tied"])
def test_fisher_rao_norms_are_those_of_dense_jacobians(name, distribution, loss):
    module, X = built(name)
    torch.manual_seed(2)
    targets = y if loss == "cross_entropy" else torch.randn(N, 3, dtype=torch.float64)
    got = fisher_rao_penalty(module, X, targets, distribution=distribution)
    torch.testing.assert_close(got, dense_fisher_rao(module, X, distribution, loss, targets))


@pytest.mark.parametrize("distribution", ["model", "empirical"])
@pytest.mark.parametrize("name", KINDS)
def test_fisher_rao_norms_are_those_of_the_measure(name, distribution):
    module, X = built(name)
    got = fisher_rao_penalty(module, X, y, distribution=distribution).item()
    measure = ("fisher_rao_norm", {"distribution": distribution, "squared": True})
    assert got == pytest.approx(measure_capacity(module, X, y, {"norm": measure})["norm"], rel=1e-9)


def test_fisher_rao_without_rules_equals_the_tangent_sweep(monkeypatch):
    """Two backward passes are another way to the same numbers, gradients too."""
    for name in ("relu", "residual", "tied"):
        module, X = built(name)
        weight = torch.linspace(0.5, 2, N, dtype=torch.float64)
        one = fisher_rao_penalty(module, X, y, distribution="empirical", sample_weight=weight)
        with monkeypatch.context() as patch:
            patch.setattr(fisher_rao, "parameter_tangent", None)
            patch.setattr(fisher_rao, "_with_rules", lambda graph: False)
            other = fisher_rao_penalty(module, X, y, distribution="empirical", sample_weight=weight)
        torch.testing.assert_close(one, other)
        torch.testing.assert_close(gradient(one, module), gradient(other, module), rtol=1e-9, atol=1e-12)
        with pytest.raises(RuntimeError, match="cannot be differentiated again"):
            torch.autograd.grad(other, list(module.parameters()), create_graph=True, allow_unused=True)


def test_frozen_parameters_take_no_part_in_fisher_rao_and_bound_is_theorem_3_1():
    """Without biases, a rectifier chain of depth d has u = d f ([FR] lemma 2.1)."""
    torch.manual_seed(0)
    layers = [
        nn.Linear(5, 8, bias=False),
        nn.ReLU(),
        nn.Linear(8, 6, bias=False),
        nn.ReLU(),
        nn.Linear(6, 2, bias=False),
    ]
    module, X = nn.Sequential(*layers).double(), torch.randn(9, 5, dtype=torch.float64)
    mean = module(X).square().sum(1).mean()
    torch.testing.assert_close(fisher_rao_penalty(module, X, criterion=nn.MSELoss()), 9 * mean)
    module[2].weight.requires_grad_(False)
    torch.testing.assert_close(fisher_rao_penalty(module, X, criterion=nn.MSELoss()), 4 * mean)
    assert not spectral_norm_penalty(module, X).isnan()


CHECKED = {
    **PARAMETER_PENALTIES,
    "squared_gradient": partial(gradient_norm_penalty, squared=True),
    "empirical": partial(fisher_rao_penalty, distribution="empirical"),
    "sum": lambda module, X, y: spectral_norm_penalty(module, X) + gradient_norm_penalty(module, X, y),
}


@pytest.mark.parametrize("penalty", CHECKED)
@pytest.mark.parametrize("name", KINDS)
def test_gradients_are_those_of_finite_differences_and_nothing_moves(name, penalty):
    module, X = built(name)
    check_penalty(CHECKED[penalty], module, X, y)


@pytest.mark.parametrize("criterion", [nn.MSELoss(), nn.L1Loss()])
def test_gradients_under_other_losses(criterion):
    module, X = built("smooth")
    module = nn.Sequential(module, nn.Linear(3, 1)).double()
    targets = torch.linspace(-1, 1, N).double()[:, None]
    for penalty in PARAMETER_PENALTIES.values():
        check_penalty(penalty, module, X, targets, criterion=criterion)


@pytest.mark.parametrize("distribution", ["empirical", "model"])
def test_one_number_per_sample_is_a_column_of_targets(distribution):
    linear, X, targets = nn.Linear(4, 1).double(), torch.randn(5, 4).double(), torch.randn(5).double()
    theta = torch.cat([p.detach().flatten() for p in linear.parameters()])
    residuals = (linear(X).squeeze(1) - targets).detach()
    rows = torch.cat([X, torch.ones(5, 1)], 1).double()  # df/dtheta
    u = rows @ theta
    expected = ((residuals if distribution == "empirical" else 1) * u).square().mean()
    slope = 2 * (residuals @ rows) / 5
    for y in (targets, targets[:, None]):
        value = fisher_rao_penalty(linear, X, y, distribution=distribution)
        torch.testing.assert_close(value.detach(), expected)
        torch.testing.assert_close(gradient_norm_penalty(linear, X, y).detach(), slope.norm())


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.ones(3, 1), r"`y` must have the outputs' shape, \(3, 2\), got \(3, 1\)"),
        (torch.ones(3), r"`y` must have the outputs' shape, \(3, 2\), got \(3,\)"),
        (torch.ones(1, 2), "`y` must have one target per sample, 3 in all, got shape"),
        (torch.tensor([1]), "`y` must have one target per sample, 3 in all, got shape"),
    ],
)
def test_targets_are_not_spread_over_outputs_or_samples(targets, message):
    linear, batch = nn.Linear(4, 2), torch.randn(3, 4)
    for penalty in (partial(fisher_rao_penalty, distribution="empirical"), gradient_norm_penalty):
        with pytest.raises(ValueError, match=message):
            penalty(linear, batch, targets)


def test_what_is_refused():
    linear, batch = nn.Linear(4, 2), torch.randn(3, 4)
    with pytest.raises(ValueError, match="`y` must be given with distribution='empirical', got None"):
        fisher_rao_penalty(linear, batch, distribution="empirical")
    for labels in (torch.zeros(3, 1, dtype=torch.long), torch.ones(3, dtype=torch.bool)):
        with pytest.raises(ValueError, match="`y` must hold an integer label for each sample, got shape"):
            fisher_rao_penalty(linear, batch, labels, distribution="empirical")
    with pytest.raises(ValueError, match="`distribution` must be one of"):
        fisher_rao_penalty(linear, batch, distribution="data")
    with pytest.raises(ValueError, match="`criterion` must be one of CrossEntropyLoss, HingeLoss, .* got Huber"):
        fisher_rao_penalty(linear, batch, criterion=nn.HuberLoss())
    with pytest.raises(ValueError, match="defined for one output, got 2"):
        fisher_rao_penalty(linear, batch, criterion=nn.L1Loss())
    with pytest.raises(TypeError, match="`y` must be a tensor of targets, got"):
        gradient_norm_penalty(linear, batch, [0, 1, 0])
    with pytest.raises(TypeError, match="`squared` must"):
        gradient_norm_penalty(linear, batch, torch.tensor([0, 1, 0]), squared=1.5)
    with pytest.raises(UnsupportedLayerError, match="needs a linear map or a convolution, but Flatten has none"):
        spectral_norm_penalty(nn.Flatten(), batch)
    frozen = nn.Linear(4, 2).requires_grad_(False)
    with pytest.raises(UnsupportedLayerError, match="needs trainable parameters, and all are frozen"):
        fisher_rao_penalty(frozen, batch)
    with pytest.raises(ValueError, match="must have a trained parameter that its outputs depend on"):
        gradient_norm_penalty(frozen, batch, torch.tensor([0, 1, 0]))


class Branches(nn.Module):
    """Has no graph: which layer it uses depends on the data."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        return self.a(x) if x.sum() > 0 else self.b(x)


def test_a_module_without_a_graph_is_named():
    module, X = Branches(), torch.ones(3, 4)
    for penalty in (spectral_norm_penalty, fisher_rao_penalty):
        with pytest.raises(UnsupportedLayerError, match="penalty needs the graph of `module`, but Branches has none: "):
            penalty(module, X)
    check_penalty(gradient_norm_penalty, module, X, torch.tensor([0, 1, 0]))
