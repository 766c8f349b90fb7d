"""The Jacobian in the parameters, its tangents, and what of a network is one parameter."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils import spectral_norm as old_spectral_norm
from torch.nn.utils import weight_norm as old_weight_norm

import reference_fisher as reference
from networks import NETWORKS, Blend, make
from sklearn_capacity import UnsupportedLayerError, fisher_spectrum, measure_capacity
from sklearn_capacity.derivatives.parameter_jacobian import AutogradJacobian, GraphJacobian, parameter_jacobian
from sklearn_capacity.derivatives.parameter_linearization import Linearization
from sklearn_capacity.derivatives.parameter_tangent import parameter_tangent
from sklearn_capacity.derivatives.parameter_vector import parameter_vector
from sklearn_capacity.derivatives.sample_gradients import Outer, sample_gradients
from sklearn_capacity.graph import Network


def network_of(name, module, X):
    return Network(module, tuple(X.shape[1:]), output="one_logit" if name == "binary" else "logits")


# -- networks that only these tests need -------------------------------------------------------------------------------


class Autoencoder(nn.Module):
    """The decoder is the encoder's matrix transposed, and the matrix is used again on the right of a product."""

    def __init__(self):
        super().__init__()
        self.encoder, self.bias = nn.Linear(4, 3), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.encoder.weight
        decoded = F.linear(self.encoder(x).tanh(), weight.T, self.bias)
        return self.encoder(decoded).tanh() @ weight


class Slices(nn.Module):
    """One matrix, read as two halves that share a column."""

    def __init__(self, overlap: bool):
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(3, 5 if overlap else 6)), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.linear(x, self.weight[:, :3]).relu()
        return self.head(F.linear(h, self.weight[:, -3:]).tanh())


class Shared(nn.Module):
    """A convolution used twice, and a transposed one that reads the same kernel."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 2, 3, padding=1), nn.Linear(2 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.conv(x).relu()).relu()
        x = F.conv_transpose2d(x, self.conv.weight, padding=1)
        return self.head(x.flatten(1))


class Positions(nn.Module):
    """A learned shift per position, a learned scale of everything, and convolutions in one and three dimensions."""

    def __init__(self):
        super().__init__()
        self.shift, self.scale = nn.Parameter(torch.randn(1, 2, 9)), nn.Parameter(torch.tensor(1.3))
        self.conv, self.deep = nn.Conv1d(2, 3, 3, stride=2, dilation=2, padding="valid"), nn.Conv3d(1, 2, (1, 2, 1))
        self.up, self.head = nn.ConvTranspose1d(3, 2, 3, stride=2, dilation=2, output_padding=1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.conv(x + self.shift).tanh() * self.scale)
        return self.head(self.deep(x[:, None, :, :4, None]).sigmoid().flatten(1))


class Attention(nn.Module):
    """An operator with parameters that has no rule, and products of activations."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv, self.head = Blend(4), nn.Linear(4, 12), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        return self.head(F.scaled_dot_product_attention(q, k, v).mean(1))


class Gated(nn.Module):
    """Operators without a rule and without parameters: a product of branches and a softmax."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x) * self.b(x).softmax(-1))


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    net[0].requires_grad_(False)
    net[2].bias.requires_grad_(False)
    net[4].weight.requires_grad_(False)
    return net


def grouped() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4, padding_mode="circular"),
        nn.Tanh(),
        nn.Conv2d(4, 6, 2, stride=2, dilation=2, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, groups=2, dilation=2),
        nn.Flatten(),
        nn.Linear(36, 3),
    )


def two_convolutions() -> nn.Module:
    """Few positions and many channels: gradients stay products."""
    head = nn.Sequential(nn.ReLU(), nn.Flatten(), nn.Linear(96, 3))
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 1), *head)


OTHERS = {
    "autoencoder": (Autoencoder, (4,)),
    "slices": (lambda: Slices(False), (3,)),
    "overlapping_slices": (lambda: Slices(True), (3,)),
    "shared_kernel": (Shared, (2, 4, 4)),
    "positions": (Positions, (2, 9)),
    "attention": (Attention, (3, 4)),
    "gated": (Gated, (4,)),
    "frozen": (frozen, (4,)),
    "grouped": (grouped, (4, 4, 4)),
    "two_convolutions": (two_convolutions, (3, 4, 4)),
}


@functools.cache
def case(name):
    """(network, X, y, the same network folded by hand), traced once."""
    module, X, y = make(*OTHERS[name]) if name in OTHERS else NETWORKS[name]()
    by_hand = module if name in OTHERS else reference.folded(name, module)
    return network_of(name, module, X), X, y, by_hand


@functools.cache
def exact_dual(name):
    _, X, _, by_hand = case(name)
    return reference.dual(by_hand, X)


ALL = [*NETWORKS, *OTHERS]


# -- theta -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_counts_once(name):
    network, X, _, by_hand = case(name)
    jacobian = parameter_jacobian(network)
    assert jacobian.size == sum(p.numel() for p in reference.trained(by_hand))
    assert isinstance(jacobian, AutogradJacobian) == (name == "attention")


def test_views_of_one_matrix_share_a_group_only_where_they_overlap():
    apart = parameter_jacobian(case("slices")[0]).groups
    sizes = [(group.size, len(group.uses), group.plain) for group in apart]
    assert sizes == [(9, 1, True)] * 2 + [(6, 1, True), (2, 1, True)]
    (joined,) = [group for group in parameter_jacobian(case("overlapping_slices")[0]).groups if not group.plain]
    assert joined.size == 15 and len(joined.uses) == 2


def test_computed_weights_are_tied_where_they_come_out_equal():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.body(self.body(x).relu()).relu())

    module, X, _ = make(Twice, (4,), classes=2)
    jacobian = parameter_jacobian(network_of("", module, X))
    assert jacobian.size == 16 + 4 + 8 + 2
    assert [len(group.uses) for group in jacobian.groups] == [2, 2, 1, 1]


# -- products ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_gradients_agree_with_one_backward_pass_per_sample_and_class(name):
    network, X, _, by_hand = case(name)
    point = parameter_jacobian(network).at(X)
    eye = torch.eye(point.logits.shape[1], dtype=X.dtype)[:, None].expand(-1, len(X), -1)
    rows = torch.cat([g.rows() for g in point.gradients(eye)], dim=2).flatten(0, 1)
    assert torch.allclose(point.logits, by_hand(X).detach().flatten(1), atol=1e-12)
    # theta may be ordered otherwise, which inner products do not see
    assert torch.allclose(rows @ rows.T / len(X), exact_dual(name), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_push_is_the_adjoint_of_pull(name):
    network, X, _, _ = case(name)
    jacobian = parameter_jacobian(network)
    point, generator = jacobian.at(X), torch.Generator().manual_seed(1)
    cotangent = torch.randn(point.logits.shape, generator=generator, dtype=X.dtype)
    direction = [torch.randn(size, generator=generator, dtype=X.dtype) for size in jacobian.sizes]
    pulled, pushed = point.pull(cotangent), point.push(direction)
    inner = sum((a * b).sum() for a, b in zip(pulled, direction, strict=True))
    assert inner == pytest.approx(float((cotangent * pushed).sum()), rel=1e-9)
    expected = len(X) * (exact_dual(name) @ cotangent.T.flatten()).reshape(-1, len(X)).T
    assert torch.allclose(point.push(pulled), expected, rtol=1e-9, atol=1e-10)


def test_few_positions_stay_products_and_many_become_rows():
    network, X, _, _ = case("two_convolutions")
    jacobian = parameter_jacobian(network)
    assert isinstance(jacobian, GraphJacobian)
    point = Linearization(jacobian.graph, X)
    eye = torch.eye(3, dtype=X.dtype)[:, None].expand(-1, len(X), -1)
    products = sample_gradients(point, jacobian.groups, eye)
    rows = sample_gradients(point, jacobian.groups, eye, few=0)
    assert [isinstance(g, Outer) for g in products] == [True, False, True]
    assert not any(isinstance(g, Outer) for g in rows)
    for a, b in zip(products, rows, strict=True):
        assert torch.allclose(a.rows(), b.rows())
        assert torch.allclose(a.squared_norms(), b.rows().square().sum(2))


@pytest.mark.parametrize("positions", [2, 40])
def test_squared_norms_of_products_at_positions(positions):
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(s, generator=generator) for s in ((2, 3, positions, 4), (3, positions, 5)))
    outer = Outer(left.double(), right.double())
    assert torch.allclose(outer.squared_norms(), outer.rows().square().sum(2))


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("name", [name for name in ALL if name != "attention"])
def test_tangent_along_the_parameters_is_the_jacobian_times_them(name, biases):
    network, X, _, by_hand = case(name)
    with torch.no_grad():
        f, u = parameter_tangent(network.graph, X, biases=biases)
    theta = reference.trained(by_hand)
    along = torch.cat([(p if biases or _is_weight(by_hand, p) else torch.zeros_like(p)).flatten() for p in theta])
    assert torch.allclose(f.flatten(1), by_hand(X).detach().flatten(1), atol=1e-12)
    assert torch.allclose(u.flatten(1), reference.jacobian(by_hand, X) @ along.detach(), rtol=1e-9, atol=1e-11)


def _is_weight(net, parameter):
    others = ("bias", "shift", "scale")
    return not any(p is parameter and name.split(".")[-1] in others for name, p in net.named_parameters())


# -- the effective weights, also next to an operator with parameters and without a rule --------------------------------


class Scaled(nn.Module):
    """A layer that computes its weight from its parameters."""

    def __init__(self):
        super().__init__()
        self.raw = nn.Parameter(torch.randn(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, 2 * self.raw.abs())


def spectral(layer: nn.Module) -> nn.Module:
    layer(torch.randn(3, 4))  # a power iteration, so that the vectors are of this weight
    return layer


COMPUTED = {
    "weight_norm": lambda: old_weight_norm(nn.Linear(4, 6)),
    "weight_norm along another axis": lambda: old_weight_norm(nn.Linear(4, 6), dim=1),
    "spectral_norm": lambda: spectral(old_spectral_norm(nn.Linear(4, 6))),
    "parametrized weight_norm": lambda: parametrizations.weight_norm(nn.Linear(4, 6)),
    "parametrized spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 6)),
    "pruned": lambda: prune.random_unstructured(nn.Linear(4, 6), "weight", 0.5),
    "by hand": Scaled,
    "batch norm": lambda: nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)),
}


def effective(layer: nn.Module) -> nn.Linear:
    """The affine map of a layer as a plain layer: its values at 0 and at the unit vectors."""
    plain = nn.Linear(4, 6, bias=not isinstance(layer, Scaled)).double()
    with torch.no_grad():
        shift = layer(torch.zeros(1, 4, dtype=torch.float64))
        plain.weight.copy_((layer(torch.eye(4, dtype=torch.float64)) - shift).T)
        if plain.bias is not None:
            plain.bias.copy_(shift[0])
    return plain


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("layer", COMPUTED.values(), ids=COMPUTED)
@pytest.mark.parametrize("between", [nn.LayerNorm, nn.Softmax], ids=["with parameters", "without"])
def test_weights_are_the_effective_ones(layer, between):
    middle = nn.LayerNorm(6) if between is nn.LayerNorm else nn.Softmax(-1)
    module, X, y = make(lambda: nn.Sequential(layer(), middle, nn.ReLU(), nn.Linear(6, 3)), (4,))
    plain = nn.Sequential(effective(module[0]), *module[1:]).requires_grad_(True)
    torch.testing.assert_close(plain(X), module(X))
    names: dict = {"fisher_rao_norm": "fisher_rao_norm", "spread": ("expected_sharpness", {"n_draws": 4})}
    names |= {"ascent": ("max_sharpness", {"steps": 3}), "kl": "kl_divergence", "trace": "fisher_trace"}
    got, expected = (measure_capacity(net, X, y, names) for net in (module, plain))
    assert got == pytest.approx(expected, rel=1e-8)
    matrix = torch.linalg.eigvalsh(reference.matrix(plain, X, "squared")).flip(0)[:21].clamp_min(0)
    assert fisher_spectrum(module, X) == pytest.approx(matrix.numpy(), rel=1e-8, abs=1e-12)


def test_computed_weights_that_are_read_in_part_are_refused():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.raw, self.norm = nn.Parameter(torch.randn(4, 4)), Blend(4)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.raw.abs()
            return F.linear(self.norm(F.linear(x, weight)), weight[:3])

    module, X, _ = make(Halves, (4,))
    with pytest.raises(UnsupportedLayerError, match="transposed or in part.*computes its weight from parameters"):
        parameter_jacobian(network_of("", module, X))


class Positions(nn.Module):
    """Entries of a table, some of them several times, and some rows of an embedding."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.rows = nn.Linear(3, 6), nn.Linear(6, 3), nn.Embedding(5, 2)
        self.table = nn.Parameter(torch.randn(4))
        self.register_buffer("places", torch.tensor([[0, 1, 2], [1, 0, 1]]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x).unflatten(1, (2, 3))
        h = (h + self.table[self.places.flatten()].reshape(3, 2).T.contiguous()).tanh()
        return self.last((h * self.rows(torch.arange(3)).T).softmax(2).flatten(1))


def test_entries_that_are_taken_several_times_are_one_parameter():
    module, X, y = make(Positions, (3,))
    matrix = reference.matrix(module, X, "squared")
    spectrum = torch.linalg.eigvalsh(matrix).flip(0).clamp_min(0)[: 3 * len(X)]
    assert fisher_spectrum(module, X)[: len(spectrum)] == pytest.approx(spectrum.numpy(), rel=1e-7, abs=1e-9)
    assert parameter_jacobian(network_of("", module, X)).size == sum(p.numel() for p in module.parameters()) - 1 - 4
    norm = math.sqrt(sum(float(p.detach().square().sum()) for p in module.parameters()))
    assert measure_capacity(module, X, y, "parameter_norm")["parameter_norm"] == pytest.approx(norm)


@pytest.mark.filterwarnings("ignore::sklearn_capacity.CapacityWarning")
def test_moves_of_entries_move_all_that_take_them():
    module, X, y = make(Positions, (3,))
    vector = parameter_vector(network_of("", module, X))
    moved = [tensor + 0.1 for tensor in vector.tensors]
    by_hand = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in by_hand.parameters():
            parameter += 0.1
    torch.testing.assert_close(vector.bind(moved)(X), by_hand(X))
    values = measure_capacity(module, X, y, {"s": ("max_sharpness", {"steps": 3}), "k": "kl_divergence"})
    assert all(math.isfinite(value) for value in values.values())
