"""Functions of several numbers of a sample: every interpretation against autograd, bounds against sampled slopes."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reference_fisher
from networks import make
from reference import along_parameters, gradients, input_jacobians
from sklearn_capacity import UnsupportedLayerError, fisher_spectrum, measure_capacity
from sklearn_capacity.derivatives.input_sweeps import chain_refusal, jacobian_rows
from sklearn_capacity.derivatives.parameter_tangent import parameter_tangent
from sklearn_capacity.graph import Network, evaluate
from sklearn_capacity.graph.functions import FUNCTIONS
from sklearn_capacity.penalties import frobenius_penalty, spectral_penalty
from sklearn_capacity.penalties.module_graph import graph_of


class Between(nn.Module):
    """Two layers around an operator on values of shape (n, 2, 6)."""

    def __init__(self, operator, outputs: int = 12):
        super().__init__()
        self.first, self.operator, self.last = nn.Linear(3, 12), operator, nn.Linear(outputs, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operator(self.first(x).unflatten(1, (2, 6))).flatten(1))


class Scaled(nn.Module):
    """Root mean square normalisation as in the library transformers, with a trained scale."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(6))

    def forward(self, h):
        return self.weight * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 0.1))


def attention(h, **options):
    q, k, v = h.unflatten(2, (3, 2)).unbind(2)  # (n, 2, 2) each
    return F.scaled_dot_product_attention(q, k, v, **options)


def by_hand(h):
    q, k, v = h.unflatten(2, (2, 3)).transpose(1, 2).chunk(3, 3)  # (n, 2, 2, 1): two heads
    return ((q @ k.mT) * 0.7).softmax(-1) @ v


def chosen_keys(h):
    hidden = torch.ones(2, 2, dtype=torch.bool, device=h.device).triu(1).expand(h.shape[0], 2, 2)
    return (h @ h.mT).masked_fill(hidden, -math.inf).softmax(-1) @ h


def _by_heads(h):
    return torch.einsum("bihd,bjhd->bhij", h, h.square())


class Heads(nn.Module):
    """torch's multi-head attention of bounded values, (n, 2, 6)."""

    def __init__(self, *, weights: bool = False, first: bool = False, cross: bool = False, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=not first, **options)
        self.weights, self.first, self.cross = weights, first, cross
        for parameter in self.attention.parameters():  # some start at 0
            nn.init.normal_(parameter, std=0.5)

    def forward(self, h):
        h = h.tanh().transpose(0, 1) if self.first else h.tanh()
        keys = h.flip(-1) if self.cross else h
        attended, weights = self.attention(h, keys, keys, need_weights=self.weights)
        attended = attended.transpose(0, 1) if self.first else attended
        return torch.cat([attended.flatten(1), weights.flatten(1)], 1) if self.weights else attended


BIAS = torch.tensor([[0.3, -math.inf], [0.1, -0.5]], dtype=torch.float64)
BOUNDED = {
    "softmax": (lambda h: h.softmax(2), 12),
    "softmax of an inner axis": (lambda h: h.softmax(1), 12),
    "softmin": (nn.Softmin(2), 12),
    "log_softmax": (lambda h: h.log_softmax(2), 12),
    "layer norm": (nn.LayerNorm(6, eps=0.1), 12),
    "layer norm of two axes": (nn.LayerNorm((2, 6), eps=0.3), 12),
    "layer norm without scale": (nn.LayerNorm(6, eps=0.1, elementwise_affine=False), 12),
    "layer norm without shift": (nn.LayerNorm(6, eps=0.1, bias=False), 12),
    "RMS norm": (nn.RMSNorm(6, eps=0.1), 12),
    "RMS norm in steps": (Scaled(), 12),
    "group norm": (nn.GroupNorm(2, 2, eps=0.2), 12),
    "one group": (nn.GroupNorm(1, 2, eps=0.2), 12),
    "instance norm": (nn.InstanceNorm1d(2, eps=0.2, affine=True), 12),
    "length": (lambda h: torch.linalg.vector_norm(h, dim=2), 2),
    "length of everything": (lambda h: h.flatten(1).norm(dim=1, keepdim=True), 1),
    "gate between bounds": (lambda h: torch.tanh(h) * torch.sigmoid(h.flip(1)), 12),
    "normed gate": (nn.Sequential(nn.LayerNorm(6, eps=0.2), nn.GLU()), 6),
    "normed SwiGLU": (lambda h: F.silu(F.layer_norm(h, (6,), eps=0.2)) * F.rms_norm(h.flip(2), (6,), eps=0.1), 12),
    "normed attention": (lambda h: attention(F.layer_norm(h, (6,), eps=0.5)), 4),
    "causal attention": (lambda h: attention(F.layer_norm(h, (6,), eps=0.5), is_causal=True), 4),
    "scaled attention": (lambda h: attention(h.tanh(), scale=1.5), 4),
    "masked attention": (lambda h: attention(h.tanh(), attn_mask=BIAS.to(h)), 4),
    "chosen keys": (lambda h: attention(h.tanh(), attn_mask=BIAS.isfinite()), 4),
    "attention by hand": (lambda h: by_hand(h.tanh()), 4),
    "masked scores": (lambda h: chosen_keys(h.tanh()), 12),
    "logsumexp": (lambda h: h.logsumexp(2), 2),
    "logsumexp of everything": (lambda h: h.logsumexp((1, 2), keepdim=True), 1),
    "heads": (Heads(), 12),
    "heads with their weights": (Heads(weights=True), 16),
    "heads, samples second": (Heads(first=True), 12),
    "heads, samples second, with their weights": (Heads(first=True, weights=True), 16),
    "heads with further keys": (Heads(first=True, add_bias_kv=True, add_zero_attn=True), 12),
    "heads of two signals": (Heads(cross=True, kdim=6, vdim=6), 12),
    "normed, samples second": (lambda h: F.layer_norm(h.transpose(0, 1), (6,), eps=0.2).transpose(0, 1), 12),
    "sorted": (lambda h: h.sort(2, descending=True)[0], 12),
    "sorted along an inner axis": (lambda h: torch.sort(h, 1).values, 12),
    "sorted, samples second": (lambda h: h.transpose(0, 1).sort(0)[0].transpose(0, 1), 12),
    "largest entries": (lambda h: h.topk(3, 2)[0], 6),
    "smallest entries": (lambda h: h.topk(2, largest=False)[0], 4),
    "third entry": (lambda h: h.kthvalue(3, 2)[0], 2),
    "median": (lambda h: h.median(2, keepdim=True)[0], 2),
    "running maximum": (lambda h: h.cummax(2)[0], 12),
    "running minimum, negated": (lambda h: -h.cummin(1)[0], 12),
    "product of sorted bounds": (lambda h: h.tanh().sort(2)[0] * h.flip(1).tanh().cummin(2)[0], 12),
    "overlapping slices": (lambda h: torch.cat([h[..., :4], h[..., 2:], h[..., ::2]], 2).tanh(), 22),
    "running sum": (lambda h: h.cumsum(2), 12),
    "larger of two, softly": (lambda h: torch.logaddexp(h, h.flip(1)), 12),
    "length in the 3-norm": (lambda h: h.norm(p=3, dim=2), 2),
    "length in the 1.5-norm": (lambda h: torch.linalg.vector_norm(h, 1.5, dim=(1, 2), keepdim=True), 1),
    "hypotenuse": (lambda h: torch.hypot(h, torch.ones(6).to(h)), 12),
    "distances of each other": (lambda h: F.pairwise_distance(h[:, 0], h[:, 1], keepdim=True), 1),
    "running sums of exponentials": (lambda h: h.logcumsumexp(2), 12),
    "running products of bounds": (lambda h: h.tanh().cumprod(2), 12),
    "product of bounds": (lambda h: h.tanh().prod(1), 6),
    "square of bounds": (lambda h: h.tanh() ** 2, 12),
    "exponential of bounds": (lambda h: h.tanh().exp() * h.sigmoid(), 12),
    "arcsine of bounds": (lambda h: torch.asin(0.9 * h.tanh()), 12),
    "cross product of bounds": (lambda h: torch.linalg.cross(h.tanh()[:, :, :3], h.tanh()[:, :, 3:]), 6),
    "interpolation by a gate": (lambda h: torch.lerp(h.tanh(), h.flip(1).tanh(), h[:, :1].sigmoid()), 12),
    "sums of absolute values": (lambda h: h.norm(p=1, dim=2), 2),
    "a parameter with more axes": (lambda h: h[:, :1] * torch.ones(2, 6).to(h).cumsum(1) + h[:, :, :1], 12),
    "softmax, samples last": (lambda h: h.permute(1, 2, 0).softmax(1).permute(2, 1, 0), 12),
}
UNBOUNDED = {
    "lerp by a signal": (lambda h: torch.lerp(h, 2 * h.flip(1), h[:, :1].tanh()), 12),
    "GLU": (nn.GLU(), 6),
    "SwiGLU": (lambda h: F.silu(h[..., :3]) * h[..., 3:], 6),
    "squeeze and excite": (lambda h: h * torch.sigmoid(h.mean(2, keepdim=True)), 12),
    "bilinear": (lambda h: h @ h.mT, 4),
    "bmm": (lambda h: torch.bmm(h, h.transpose(1, 2)), 4),
    "one matrix for two": (lambda h: h.unflatten(2, (2, 3)) @ h[:, :1].unflatten(2, (3, 2)), 8),
    "quotient": (lambda h: h[:, :1] / (1 + h[:, 1:].square()), 6),
    "unit length": (lambda h: F.normalize(h, dim=2), 12),
    "attention": (attention, 4),
    "einsum": (lambda h: torch.einsum("b i d, b j d -> b j i", h, 2 * h), 4),
    "einsum of heads": (lambda h: _by_heads(h.unflatten(2, (2, 3))), 8),
    "einsum with sums": (lambda h: torch.einsum("bid,bje->bde", h, h.square()[:, :, :2]), 12),
    "einsum with dots": (lambda h: torch.einsum("...i,...i->...", h, h.flip(1)), 2),
    "baddbmm": (lambda h: torch.baddbmm(h[:, :, :2], h, h.mT, beta=0.5, alpha=2), 4),
    "baddbmm of a constant": (lambda h: torch.baddbmm(torch.ones(2, 2).to(h), h, h.mT, alpha=2), 4),
    "gate, samples second": (lambda h: (h.transpose(0, 1) * h.sum(1)).transpose(0, 1), 12),
    "products joined with the samples": (
        lambda h: (h.flatten(0, 1) * h.flip(1).flatten(0, 1)).unflatten(0, (-1, 2)),
        12,
    ),
    "addcdiv": (lambda h: torch.addcdiv(h, h.flip(1), h.square() + 1, value=0.5), 12),
    "cosine": (lambda h: F.cosine_similarity(h, h.flip(1), dim=2), 2),
    "cosine with numbers": (lambda h: F.cosine_similarity(h, torch.arange(6.0).to(h)[None, None], dim=2), 2),
    "product": (lambda h: h.prod(2, keepdim=True), 2),
    "running products": (lambda h: h.cumprod(2), 12),
    "outer product": (lambda h: torch.einsum("ni,nj->nij", h[:, 0], h[:, 1]), 36),
    "cross entropy of gates": (
        lambda h: F.binary_cross_entropy_with_logits(h, h.flip(1).sigmoid(), reduction="none"),
        12,
    ),
    "addcmul": (lambda h: torch.addcmul(h.mean(1, keepdim=True), h, h.flip(1), value=0.5), 12),
    "addcmul of a constant": (
        lambda h: torch.addcmul(torch.ones(6).to(h), torch.full((6,), 2.0).to(h), h * h.flip(1)),
        12,
    ),
    "response norm": (nn.LocalResponseNorm(2, alpha=0.5), 12),
}
ALL = {**BOUNDED, **UNBOUNDED}


def case(name):
    operator, outputs = ALL[name]
    module, X, y = make(lambda: Between(operator, outputs), (3,), classes=2)
    return module, X, y


@pytest.mark.parametrize("name", ALL)
def test_every_interpretation_agrees_with_autograd(name):
    module, X, _ = case(name)
    graph = Network(module, (3,)).graph
    assert "opaque" not in {node.op for node in graph.nodes} and chain_refusal(graph) is None
    torch.testing.assert_close(evaluate(graph, X), module(X))
    torch.testing.assert_close(jacobian_rows(graph, X), input_jacobians(module, X), rtol=1e-9, atol=1e-11)
    _, u = parameter_tangent(graph, X)
    theta = {key: p.detach() for key, p in module.named_parameters()}
    expected = along_parameters(module, X, theta)
    torch.testing.assert_close(u.detach(), expected, rtol=1e-9, atol=1e-11)
    expected = torch.linalg.eigvalsh(reference_fisher.matrix(module, X, "squared")).flip(0)[:14].clamp_min(0)
    assert fisher_spectrum(module, X)[: len(expected)] == pytest.approx(expected.numpy(), rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("penalty", [frobenius_penalty, spectral_penalty])
@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("name", ALL)
def test_penalties_and_their_gradients_are_those_of_autograd(name, output, penalty):
    module, X, _ = case(name)
    got = penalty(module, X, output=output)
    expected = penalty(lambda x: module(x), X, output=output)
    torch.testing.assert_close(got.detach(), expected.detach(), rtol=1e-8, atol=1e-11)
    parameters = list(module.parameters())
    for a, b in zip(gradients(got, parameters), gradients(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", ["layer norm of two axes", "layer norm without scale", "group norm", "instance norm"])
def test_penalties_take_a_normalisation_for_one_function(name):
    module, X, _ = case(name)
    kinds = [node.params.get("kind") for node in graph_of(module, X).nodes]
    assert "standardization" in kinds and "center" not in kinds and "normalization" not in kinds


@pytest.mark.parametrize("name", [name for name, row in FUNCTIONS.items() if row.curvature is not None])
def test_second_derivatives_in_closed_form_are_those_of_autograd(name):
    row, generator = FUNCTIONS[name], torch.Generator().manual_seed(3)
    shapes = {"product": [(5, 4), (5, 4)], "matmul": [(5, 4), (4, 2)]}.get(name, [(5, 4)])
    args = {"softmax": (-2,), "normalization": ((-1,), 0.2), "standardization": ((-2, -1), 0.2)}.get(name, ())

    def drawn(*sizes):
        return torch.randn(*sizes, generator=generator, dtype=torch.float64)

    xs = tuple(drawn(3, *shape).requires_grad_(True) for shape in shapes)  # 3 samples, 2 directions
    ts = tuple(drawn(2, 3, *shape) for shape in shapes)
    at, along = tuple(x.detach() for x in xs), tuple(t[0] for t in ts)
    value, tangents = torch.autograd.functional.jvp(lambda *xs: row.value(xs, *args), at, along)
    kept = row.kept(at, value, *args)
    torch.testing.assert_close(row.tangent(kept, ts, *args)[0], tangents)
    g = drawn(2, *value.shape)
    expected = torch.zeros(())
    for along, direction in zip(zip(*ts, strict=True), g, strict=True):
        # <g, J t> = <J^T g, t>, by torch's own gradient
        pulled = torch.autograd.grad(row.value(xs, *args), xs, direction, create_graph=True)
        expected = expected + sum((p * t).sum() for p, t in zip(pulled, along, strict=True))
    for got, wanted in zip(row.curvature(kept, ts, g, *args), torch.autograd.grad(expected, xs), strict=True):
        torch.testing.assert_close(got, wanted)


def test_images_are_what_convolutions_and_poolings_touch():
    """Heads (heads, T, T) have three axes, too, but are no images, whose channels would be moved to the end."""

    class Patches(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.norm = nn.Conv2d(1, 6, 2, stride=2), nn.GroupNorm(2, 6)
            self.heads, self.head = Heads(), nn.Linear(24, 2)

        def forward(self, x):
            h = torch.relu(self.norm(self.patches(x)) + 1).flatten(2).transpose(1, 2)
            return self.head(self.heads(h).flatten(1))

    graph = Network(Patches().double(), (1, 4, 4)).graph
    images = {node.op for node in graph.nodes if node.name in graph.images}
    assert {"input", "conv"} <= images <= {"input", "conv", "diagonal", "view", "activation"}
    assert not any(node.op == "function" for node in graph.nodes if node.name in graph.images)


@pytest.mark.parametrize("name", BOUNDED)
def test_no_sampled_slope_exceeds_the_lipschitz_constant(name):
    module, X, y = case(name)
    bounds = measure_capacity(module, X, y, ["lipschitz_l2", "lipschitz_linf"])
    assert all(math.isfinite(bound) for bound in bounds.values())
    generator = torch.Generator().manual_seed(1)
    # Near 0, where normalisations are steepest, and far from it: inputs of very different sizes.
    sizes = torch.logspace(-3, 2, 200, dtype=X.dtype)[:, None]
    many = sizes * torch.randn(200, 3, dtype=X.dtype, generator=generator)
    slopes = input_jacobians(module, many)
    assert float(torch.linalg.matrix_norm(slopes, 2).max()) <= bounds["lipschitz_l2"] * (1 + 1e-9)
    assert float(slopes.abs().sum(2).max()) <= bounds["lipschitz_linf"] * (1 + 1e-9)


@pytest.mark.parametrize("name", UNBOUNDED)
def test_products_with_an_unbounded_signal_have_no_constant(name):
    module, X, y = case(name)
    with pytest.raises(UnsupportedLayerError, match="multiplies two signals of which one has no bound"):
        measure_capacity(module, X, y, "lipschitz_l2")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 9, 40])
def test_normalisation_is_steepest_as_computed(size):
    """The bound in the maximum norm is reached: by x_i = a and x_j = b for all others, at the best length and angle."""
    eps = 0.25
    module = nn.Sequential(nn.RMSNorm(size, eps=eps, elementwise_affine=False)).double()
    values = measure_capacity(
        module, torch.zeros(2, size, dtype=torch.float64), measures=["lipschitz_l2", "lipschitz_linf"]
    )
    assert values["lipschitz_l2"] == pytest.approx(eps**-0.5)
    lengths = torch.linspace(0, 4 * math.sqrt(size * eps), 400, dtype=torch.float64)
    angle = (math.pi - math.atan(math.sqrt(size - 1))) / 2
    rows = []
    for length in lengths:
        x = torch.full((size,), float(length) * math.sin(angle) / math.sqrt(max(size - 1, 1)), dtype=torch.float64)
        x[0] = float(length) * math.cos(angle)
        rows.append(float(torch.autograd.functional.jacobian(lambda v: module(v[None])[0], x).abs().sum(1).max()))
    assert max(rows) == pytest.approx(values["lipschitz_linf"], rel=1e-3)
    assert max(rows) <= values["lipschitz_linf"] * (1 + 1e-9)


def test_the_length_of_nothing_has_the_slope_0():
    x = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    row = FUNCTIONS["length"]
    slope = row.tangent_at((x,), (torch.ones_like(x),), (-1,))
    assert not slope.any() and not torch.autograd.grad(slope.sum(), x)[0].any()


@pytest.mark.parametrize("name", ["bilinear", "layer norm", "softmax", "length"])
def test_paths_are_refused_with_the_reason(name):
    module, X, y = case(name)
    operator = {"bilinear": "matmul", "layer norm": "normalization"}.get(name, name)
    with pytest.raises(UnsupportedLayerError, match=f"operator `{operator}` .*path"):
        measure_capacity(module, X, y, "l2_path_norm")


def test_norms_look_through_functions():
    module, X, y = case("GLU")
    logs = sum(math.log(float(torch.linalg.matrix_norm(m.weight.detach()))) for m in (module.first, module.last))
    assert measure_capacity(module, X, y, "frobenius_norm")["frobenius_norm"] == pytest.approx(math.exp(logs))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 6e-3), (torch.float32, 3e-6)])
@pytest.mark.parametrize("offset", [0.0, 30.0, 100.0])
def test_a_large_mean_costs_a_standardization_no_digits(dtype, tolerance, offset):
    """Against the formula in float64, at the rounded input."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(20, 48, dtype=torch.float64, generator=generator) + offset).to(dtype)
    t = torch.randn(4, 20, 48, dtype=torch.float64, generator=generator).to(dtype)
    row, args = FUNCTIONS["standardization"], ((-1,), 1e-5)
    kept = row.kept((x,), row.value((x,), *args), *args)
    centred, direction = x.double() - x.double().mean(-1, keepdim=True), t.double()
    variance = centred.square().mean(-1, keepdim=True) + 1e-5
    along = centred * (centred * direction).mean(-1, keepdim=True) / variance
    expected = (direction - direction.mean(-1, keepdim=True) - along) / variance.sqrt()
    for got in (row.tangent(kept, (t,), *args), row.adjoint(kept, t, *args)[0]):
        assert (got.double() - expected).norm() < tolerance * expected.norm()
