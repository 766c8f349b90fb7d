"""Operators by rules of one or several nodes: every interpretation of each, against autograd and enumeration."""

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
from sklearn_capacity.graph import Network, evaluate, named_tensors, trace
from sklearn_capacity.penalties import frobenius_penalty, spectral_penalty
from zoo import Of


class Between(nn.Module):
    """A layer, an operator, and a layer that takes what comes out of it; no biases, so that there are paths only."""

    def __init__(self, operator, outputs: int):
        super().__init__()
        self.first, self.operator = nn.Linear(3, 4, bias=False), operator
        self.last = nn.Linear(outputs, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.operator(self.first(x)).flatten(1))


def centred(rows):
    return rows - rows.mean(2, keepdim=True)


def joined_after(h):
    second = h.transpose(0, 1).reshape(-1, 2)[:, 1:]  # (2 n, 1)
    return second.reshape(2, h.shape[0]).transpose(0, 1)


def overwritten(h):
    h = h.clone()
    h[:, ::2] = 2 * h[:, 1::2]
    h[:, 3] = 0.5
    return h


def grid(h):
    """Places between, on and beyond pixels, the same for all samples."""
    places = torch.tensor([[[0.3, -0.2], [0.9, 1.2]], [[-1.0, 1.0], [0.0, 0.4]]]).to(h)
    return places.expand(h.shape[0], 2, 2, 2)


IMAGE = (1, 2, 2)
PLACES = torch.tensor([[1, 0, 1], [0, 1, 1]])
LOW = torch.tensor([-0.3, -2.0, 0.1, -0.5], dtype=torch.float64)
HIGH = torch.tensor(0.4, dtype=torch.float64)
SCALE = torch.tensor([[[2.0, -3.0]], [[0.5, 1.0]]], dtype=torch.float64)
#: Operators that only pick numbers of a sample, with how many numbers they give.
PICKS = {
    "flip": (lambda h: h.flip(1), 4),
    "roll": (lambda h: h.roll(1, 1), 4),
    "expand": (lambda h: h.unsqueeze(1).expand(-1, 3, -1), 12),
    "expand by the number of samples": (lambda h: h.unsqueeze(1).expand(h.shape[0], 2, 4), 8),
    "repeat": (lambda h: h.repeat(1, 2), 8),
    "tile": (lambda h: torch.tile(h, (1, 2)), 8),
    "repeat_interleave": (lambda h: h.repeat_interleave(2, 1), 8),
    "rot90": (lambda h: torch.rot90(h.unflatten(1, (2, 2)), 1, (1, 2)), 4),
    "narrow": (lambda h: h.narrow(1, 1, 2), 2),
    "a list of indices": (lambda h: h[:, [0, 2, 2]], 3),
    "index_select": (lambda h: torch.index_select(h, 1, torch.tensor([3, 0])), 2),
    "diagonal": (lambda h: h.unflatten(1, (2, 2)).diagonal(dim1=1, dim2=2), 2),
    "movedim": (lambda h: h.unflatten(1, (2, 2)).movedim(1, 2), 4),
    "mT": (lambda h: h.unflatten(1, (2, 2)).mT, 4),
    "broadcast_to": (lambda h: h.unsqueeze(1).broadcast_to(h.shape[0], 2, 4), 8),
    "positive": (torch.positive, 4),
    "repeat_interleave of samples": (lambda h: h.repeat_interleave(2, 0).unflatten(0, (h.shape[0], 2)), 8),
    "repeat of samples": (lambda h: h.repeat(3, 1).unflatten(0, (3, h.shape[0])).transpose(0, 1), 12),
    "unfold": (lambda h: h.unfold(1, 2, 1), 6),
    "unbind": (lambda h: h.unflatten(1, (2, 2)).unbind(1)[1], 2),
    "tensor_split": (lambda h: h.tensor_split([1], 1)[1], 3),
    "pixel_shuffle": (lambda h: F.pixel_shuffle(h.unflatten(1, (4, 1, 1)), 2), 4),
    "pixel_unshuffle": (lambda h: F.pixel_unshuffle(h.unflatten(1, IMAGE), 2), 4),
    "interpolate": (lambda h: F.interpolate(h.unflatten(1, IMAGE), scale_factor=2, mode="nearest"), 16),
    "stack": (lambda h: torch.stack([h, 2 * h], 1), 8),
    "stack along the last axis": (lambda h: torch.stack([h, h.flip(1)], -1), 8),
    "hstack": (lambda h: torch.hstack([h, h]), 8),
    "nearest-exact": (lambda h: F.interpolate(h.unflatten(1, IMAGE), size=(3, 5), mode="nearest-exact"), 15),
    "tril": (lambda h: h.unflatten(1, (2, 2)).tril(), 4),
    "triu": (lambda h: h.unflatten(1, (2, 2)).triu(1), 4),
    "diag_embed": (torch.diag_embed, 16),
    "windows": (lambda h: F.unfold(h.unflatten(1, IMAGE), 2, padding=1), 36),
    "padding by a number": (lambda h: F.pad(h, (1, 2), value=0.5), 7),
    "samples second": (lambda h: h.unflatten(1, (2, 2)).transpose(0, 1).flip(0).transpose(0, 1), 4),
    "a row, samples second": (lambda h: h.unflatten(1, (2, 2)).transpose(0, 1)[1], 2),
    "joined with the samples": (lambda h: h.unflatten(1, (2, 2)).flatten(0, 1).roll(1, 1).unflatten(0, (-1, 2)), 4),
    "joined after the samples": (lambda h: joined_after(h.unflatten(1, (2, 2))), 2),
    "halves, samples second": (lambda h: torch.cat(h.unflatten(1, (2, 2)).transpose(0, 1).chunk(2)[::-1])[0], 2),
    "zeros beside": (lambda h: torch.cat([h.new_zeros(h.shape[0], 2), h], 1), 6),
    "a token": (lambda h: torch.cat([torch.ones(1, 1).to(h).expand(h.shape[0], -1), h], 1), 5),
    "a choice of places": (lambda h: torch.where(torch.tensor([True, False, True, True]), h, h.flip(1)), 4),
    "a mask": (lambda h: h.masked_fill(torch.tensor([True, False, False, True]), 2.0), 4),
    "gather": (lambda h: h.unflatten(1, (2, 2)).gather(2, PLACES.expand(h.shape[0], 2, 3)), 6),
    "take_along_dim": (lambda h: h.unflatten(1, (2, 2)).take_along_dim(PLACES[None], 2), 6),
    "scatter of a number": (lambda h: h.scatter(1, PLACES[:1, :2].expand(h.shape[0], 2), 0.5), 4),
    "scatter of a signal": (lambda h: h.scatter(1, PLACES[:1, :2].expand(h.shape[0], 2), h[:, 2:]), 4),
    "index_copy": (lambda h: h[:, :3].index_copy(1, torch.tensor([2, 0]), h[:, 2:]), 3),
    "index_fill": (lambda h: h.index_fill(1, torch.tensor([2, 0]), 0.5), 4),
    "select_scatter": (lambda h: h[:, :3].select_scatter(h[:, 3], 1, 1), 3),
    "diagonal_scatter": (
        lambda h: torch.diagonal_scatter(h.unflatten(1, (2, 2)), h.new_zeros(h.shape[0], 2), 0, 1, 2),
        4,
    ),
    "overwritten": (lambda h: overwritten(h)[:, :3], 3),
    "nearest pixels": (
        lambda h: F.grid_sample(h.unflatten(1, IMAGE), grid(h), mode="nearest", align_corners=False),
        4,
    ),
    "entries, samples second": (
        lambda h: h.unflatten(1, (2, 2)).transpose(0, 1).select_scatter(h[:, :2], 0, 1).transpose(0, 1),
        4,
    ),
    "dstack": (lambda h: torch.dstack([h, h]), 8),
    "fliplr": (lambda h: h.fliplr(), 4),
    "fftshift": (lambda h: torch.fft.fftshift(h, dim=1), 4),
    "nan_to_num": (torch.nan_to_num, 4),
    "add with broadcasting": (lambda h: h.unflatten(1, (2, 2)) + h.narrow(1, 0, 2).unsqueeze(1), 4),
}
#: Linear maps that weigh what they read.
MAPS = {
    "bilinear": (lambda h: F.interpolate(h.unflatten(1, IMAGE), scale_factor=1.7, mode="bilinear"), 9),
    "corners": (lambda h: F.interpolate(h.unflatten(1, IMAGE), size=(3, 5), mode="bilinear", align_corners=True), 15),
    "bicubic": (lambda h: F.interpolate(h.unflatten(1, IMAGE), size=(5, 3), mode="bicubic"), 15),
    "antialiased": (lambda h: F.interpolate(h.unflatten(1, (1, 1, 4)), (2, 3), mode="bilinear", antialias=True), 6),
    "linear": (lambda h: F.interpolate(h.unflatten(1, (2, 2)), size=5, mode="linear"), 10),
    "trilinear": (lambda h: F.interpolate(h.unflatten(1, (1, 2, 1, 2)), size=(3, 2, 4), mode="trilinear"), 24),
    "cumsum": (lambda h: h.cumsum(1), 4),
    "cumsum of rows": (lambda h: h.unflatten(1, (2, 2)).cumsum(1), 4),
    "fold": (lambda h: F.fold(h.unflatten(1, (2, 2)), (1, 3), (1, 2)), 3),
    "fold with padding": (lambda h: F.fold(h.unflatten(1, (2, 2)), (1, 2), (1, 2), padding=(0, 1), stride=2), 2),
    "fold of several channels": (lambda h: F.fold(h.unflatten(1, (4, 1)), (1, 3), (1, 2), dilation=(1, 2)), 6),
    "x - mean": (lambda h: h - h.mean(1, keepdim=True), 4),
    "lerp": (lambda h: torch.lerp(h, h.flip(1), 0.3), 4),
    "mean, samples second": (lambda h: h.unflatten(1, (2, 2)).transpose(0, 1).mean(0), 2),
    "scale and shift, samples second": (
        lambda h: (h.unflatten(1, (2, 2)).transpose(0, 1) * SCALE + 1).transpose(0, 1),
        4,
    ),
    "diff": (lambda h: h.diff(n=2, dim=1), 2),
    "diff of rows": (lambda h: h.unflatten(1, (2, 2)).diff(dim=1), 2),
    "trapezoid": (lambda h: torch.trapezoid(h, torch.tensor([0.0, 1.0, 3.0, 4.0]).to(h), dim=1)[:, None], 1),
    "cumulative_trapezoid": (lambda h: torch.cumulative_trapezoid(h, dx=0.5, dim=1), 3),
    "gradient": (lambda h: torch.gradient(h, dim=1)[0], 4),
    "diff, samples second": (lambda h: h.unflatten(1, (2, 2)).transpose(0, 1).diff(dim=0)[0], 2),
    "index_add": (lambda h: h[:, :3].index_add(1, torch.tensor([2, 2, 0, 1]), h, alpha=-2), 3),
    "scatter_add": (
        lambda h: torch.zeros_like(h[:, :3]).scatter_add(1, PLACES[:1].expand(h.shape[0], 3), h[:, 1:]),
        3,
    ),
    "grid_sample": (lambda h: F.grid_sample(h.unflatten(1, IMAGE), grid(h), align_corners=False), 4),
    "affine_grid": (
        lambda h: F.affine_grid(h.repeat(1, 2)[:, :6].unflatten(1, (2, 3)), (h.shape[0], 1, 1, 2), align_corners=False),
        4,
    ),
    "triangular system": (
        lambda h: torch.linalg.solve_triangular(
            torch.tensor([[2.0, 0.0], [1.0, 4.0]]).to(h), h.unflatten(1, (2, 2)), upper=False
        ),
        4,
    ),
    "Kronecker product": (lambda h: torch.kron(torch.tensor([[1.0, -2.0]]).to(h), h), 8),
    "outer product with numbers": (lambda h: torch.einsum("ni,j->nij", h, torch.tensor([1.0, -2.0]).to(h)), 8),
    "x - mean of rows": (lambda h: centred(h.unflatten(1, (2, 2))), 4),
}
#: What is linear in pieces, between several numbers of a sample.
MAXIMA = {
    "amax": (lambda h: h.unflatten(1, (2, 2)).amax(1), 2),
    "amax over two axes": (lambda h: h.unflatten(1, (1, 2, 2)).amax((2, 3), keepdim=True), 1),
    "amin": (lambda h: h.unflatten(1, (2, 2)).amin(2), 2),
    "max": (lambda h: h.unflatten(1, (2, 2)).max(1)[0], 2),
    "min": (lambda h: h.unflatten(1, (2, 2)).min(1, keepdim=True).values, 2),
    "maxout": (lambda h: torch.maximum(h[:, :2], h[:, 2:]), 2),
    "minimum": (lambda h: torch.minimum(h[:, :2], h[:, 2:]), 2),
    "maximum with a row": (lambda h: torch.maximum(h[:, :2, None], h[:, None, 2:]), 4),
    "largest absolute value": (lambda h: torch.linalg.vector_norm(h, math.inf, dim=1, keepdim=True), 1),
    "both extrema": (lambda h: torch.stack(torch.aminmax(h.unflatten(1, (2, 2)), dim=2), 1), 4),
    "absolute differences": (lambda h: F.l1_loss(h[:, :2], h[:, 2:], reduction="none"), 2),
    "uneven windows": (lambda h: F.adaptive_max_pool2d(h.unflatten(1, IMAGE), 3), 9),
    "uneven windows of a row": (lambda h: F.adaptive_max_pool1d(h[:, None], 3), 3),
}
ACTIVATIONS = {
    "prelu": (nn.PReLU(4), 1.5),
    "abs": (torch.abs, 1.0),
    "softsign": (nn.Softsign(), 1.0),
    "threshold": (nn.Threshold(0.1, 0.1), 1.0),
    "softshrink": (nn.Softshrink(0.2), 1.0),
    "clamp from above": (lambda h: h.clamp(max=0.3), 1.0),
    "clamp from below": (lambda h: h.clamp(min=-0.3), 1.0),
    "clamp between tensors": (lambda h: torch.clamp(h, LOW, HIGH), 1.0),
    "clamp_min": (lambda h: torch.clamp_min(h, LOW), 1.0),
    "clamp_max": (lambda h: torch.clamp_max(h, 0.3), 1.0),
    "sin": (torch.sin, 1.0),
    "erfc": (torch.erfc, 2 / math.sqrt(math.pi)),
    "fmax": (lambda h: torch.fmax(h, LOW), 1.0),
    "cos": (torch.cos, 1.0),
    "sinc": (torch.sinc, 1.3703052),
    "huber": (lambda h: F.huber_loss(h, torch.full_like(h, 0.1), reduction="none", delta=0.7), 0.7),
    "smooth_l1": (lambda h: F.smooth_l1_loss(h, LOW.to(h).expand_as(h), reduction="none", beta=0.3), 1.0),
    "minimum by a mask": (lambda h: h.masked_fill(h > 0.3, 0.3), 1.0),
    "normal distribution": (torch.special.ndtr, 1 / math.sqrt(2 * math.pi)),
    "expit": (torch.special.expit, 0.25),
    "atan": (torch.atan, 1.0),
    "asinh": (torch.asinh, 1.0),
    "maximum with 0": (lambda h: torch.maximum(h, torch.zeros_like(h)), 1.0),
    "maximum with numbers": (lambda h: torch.maximum(h, torch.tensor([0.1, -0.2, 0.0, 0.3], dtype=h.dtype)), 1.0),
    "minimum with a number": (lambda h: torch.minimum(h, torch.tensor(0.2, dtype=h.dtype)), 1.0),
    "where": (lambda h: torch.where(h > 0, h, 0.0), 1.0),
    "where not": (lambda h: torch.where(h <= 0, torch.zeros_like(h), h), 1.0),
    "where, leaky": (lambda h: torch.where(h > 0, h, -1.5 * h), 1.5),
    "x (x > 0)": (lambda h: h * (h > 0), 1.0),
    "x (x > 0) in numbers": (lambda h: (h > 0).to(h.dtype) * h, 1.0),
    "masked_fill": (lambda h: h.masked_fill(h < 0, 0.0), 1.0),
    "x sigmoid(x)": (lambda h: h * torch.sigmoid(h), 1.0998394),
    "quick GELU": (lambda h: h * torch.sigmoid(1.702 * h), 1.0998394),
    "GELU in steps": (lambda h: h * 0.5 * (1.0 + torch.erf(h / math.sqrt(2))), 1.1289042),
    "new GELU": (lambda h: 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3))), 1.1289931),
    "mish in steps": (lambda h: h * torch.tanh(F.softplus(h)), 1.0884982),
    "hard swish in steps": (lambda h: h * F.relu6(h + 3) / 6, 1.5),
}
IDENTITIES = {
    "alpha_dropout": nn.AlphaDropout(),
    "feature_alpha_dropout": nn.FeatureAlphaDropout(),
    "channels": nn.Sequential(nn.Unflatten(1, (4, 1)), nn.Dropout1d(), nn.Flatten()),
}
STEEP = {
    "acos": (lambda h: torch.acos(0.1 * h), 4),
    "asin": (lambda h: torch.asin(0.1 * h), 4),
    "acosh": (lambda h: torch.acosh(h.abs() + 1), 4),
    "erfinv": (lambda h: torch.erfinv(0.1 * h), 4),
    "lgamma": (lambda h: torch.lgamma(h.abs()), 4),
    "digamma": (lambda h: torch.digamma(h.abs() + 0.5), 4),
    "atanh": (lambda h: torch.atanh(0.1 * h), 4),
    "logit": (lambda h: torch.logit(0.5 + 0.1 * h), 4),
    "squared differences": (lambda h: F.mse_loss(h[:, :2], h[:, 2:], reduction="none"), 2),
    "a power of h": (lambda h: 1.5**h, 4),
    "remainder": (lambda h: h.remainder(0.7), 4),
    "fmod": (lambda h: h.fmod(0.7), 4),
    "rounded": (lambda h: h + h.round(decimals=1), 4),
    "beyond, by a mask": (lambda h: h.masked_fill(h > 0.3, -0.2), 4),
    "mean and variance": (lambda h: torch.stack(torch.var_mean(h.unflatten(1, (2, 2)), 2), 1), 4),
    "mean and spread": (lambda h: torch.stack(torch.std_mean(h, 1, correction=0), 1), 2),
    "square": (torch.square, 4),
    "x x": (lambda h: h * h, 4),
    "cube": (lambda h: h**3, 4),
    "root": (lambda h: (h**2 + 1).sqrt(), 4),
    "reciprocal": (lambda h: 1 / (2 + h.abs()), 4),
    "exp": (torch.exp, 4),
    "variance": (lambda h: h.var(1, keepdim=True), 1),
    "variance of rows": (lambda h: h.unflatten(1, (2, 2)).var(2, correction=0), 2),
    "spread": (lambda h: h.unflatten(1, (2, 2)).std((1, 2), keepdim=True), 1),
    "log1p": (lambda h: h.abs().log1p(), 4),
    "sinh": (torch.sinh, 4),
    "cosh": (torch.cosh, 4),
    "log2": (lambda h: h.abs().log2(), 4),
    "exp2": (torch.exp2, 4),
}
ALL = {
    **PICKS,
    **MAPS,
    **MAXIMA,
    **STEEP,
    **{name: (op, 4) for name, (op, _) in ACTIVATIONS.items()},
    **{n: (op, 4) for n, op in IDENTITIES.items()},
}


def _without_second_derivative(operator):
    """Whether this torch lacks a derivative that the references need (of a grid's or an extremum's gradient)."""
    h = torch.rand(2, 4, requires_grad=True)
    try:
        (first,) = torch.autograd.grad(operator(h).square().sum(), h, create_graph=True)
        torch.autograd.grad(first.sum(), h)
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        return True
    return False


def _named(cases):
    """The names of cases for tests by autograd; older releases of torch do not differentiate three of them."""
    reason = f"torch {torch.__version__} has no second derivative of it, which the reference needs"
    late = {"nearest pixels", "grid_sample", "both extrema"}
    lacking = {name for name in late if _without_second_derivative(ALL[name][0])}
    return [pytest.param(name, marks=[pytest.mark.skip(reason)] if name in lacking else []) for name in cases]


def case(name):
    operator, outputs = ALL[name]
    module, X, y = make(lambda: Between(operator, outputs), (3,), classes=2)
    if name == "prelu":
        with torch.no_grad():
            module.operator.weight.copy_(torch.tensor([0.25, -0.5, 1.5, 0.0]))
    return module, X, y


@pytest.mark.parametrize("name", _named(ALL))
def test_every_interpretation_agrees_with_autograd(name):
    module, X, _ = case(name)
    graph = Network(module, (3,)).graph
    assert "opaque" not in {node.op for node in graph.nodes} and chain_refusal(graph) is None
    torch.testing.assert_close(evaluate(graph, X), module(X))
    torch.testing.assert_close(jacobian_rows(graph, X), input_jacobians(module, X), rtol=1e-10, atol=1e-12)
    f, u = parameter_tangent(graph, X)
    theta = {key: p.detach() for key, p in module.named_parameters()}
    torch.testing.assert_close(u.detach(), along_parameters(module, X, theta), rtol=1e-10, atol=1e-12)
    matrix = torch.linalg.eigvalsh(reference_fisher.matrix(module, X, "squared")).flip(0)[:14].clamp_min(0)
    assert fisher_spectrum(module, X)[: len(matrix)] == pytest.approx(matrix.numpy(), rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("penalty", [frobenius_penalty, spectral_penalty])
@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("name", _named(ALL))
def test_penalties_and_their_gradients_are_those_of_autograd(name, output, penalty):
    module, X, _ = case(name)
    got = penalty(module, X, output=output)
    expected = penalty(lambda x: module(x), X, output=output)
    torch.testing.assert_close(got.detach(), expected.detach(), rtol=1e-9, atol=1e-12)
    parameters = list(module.parameters())
    for a, b in zip(gradients(got, parameters), gradients(expected, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", STEEP)
def test_slopes_without_a_bound_have_no_finite_constant(name):
    module, X, y = case(name)
    assert math.isinf(measure_capacity(module, X, y, "lipschitz_l2")["lipschitz_l2"])


@pytest.mark.parametrize("name", [*PICKS, *MAPS])
def test_linear_maps_have_the_paths_and_the_norm_of_their_matrix(name):
    module, X, y = case(name)
    M = torch.autograd.functional.jacobian(lambda h: module.operator(h[None]).flatten(), X.new_zeros(4))
    first, last = module.first.weight.detach(), module.last.weight.detach()
    for p in (1.0, 2.0):
        # Every path through the operator is one of its non-zero entries, and its weight is that entry; two paths of
        # weight 1 meet where a number is added to itself.
        weights = M if name == "add with broadcasting" else M.abs() ** p
        paths = (last.abs() ** p @ weights @ first.abs() ** p).sum() ** (1 / p)
        value = measure_capacity(module, X, y, {"m": ("path_norm", {"p": p})})["m"]
        assert value == pytest.approx(float(paths), rel=1e-10)
    norm = measure_capacity(module, X, y, "lipschitz_l2")["lipschitz_l2"]
    ends = torch.linalg.matrix_norm(first, 2) * torch.linalg.matrix_norm(last, 2)
    through = float(torch.linalg.matrix_norm(M, 2))
    # Of sums and joins the bound adds up what each part may do.
    loose = {"add with broadcasting": 1 + math.sqrt(2), "a choice of places": 2, "halves, samples second": math.sqrt(2)}
    loose |= {"index_copy": math.sqrt(2), "select_scatter": math.sqrt(2), "index_add": 3 * math.sqrt(2)}
    loose |= {"affine_grid": math.sqrt(2) * through}  # of a signal that is there twice
    composed = loose.get(name, through)
    assert norm == pytest.approx(float(ends) * composed, rel=1e-6)
    assert composed >= through - 1e-12


#: Products with a parameter W, as functions of (module, x), with the shapes of W and of x.
CONTRACTIONS = {
    "W x": (lambda m, x: m.W @ x, (4, 3), (3, 2)),
    "matrices W x": (lambda m, x: m.W @ x, (2, 4, 3), (2, 3, 2)),
    "matrices x W": (lambda m, x: x @ m.W, (2, 2, 4), (2, 3, 2)),
    "one matrix for all": (lambda m, x: x @ m.W, (1, 1, 2, 4), (2, 3, 2)),
    "matrices by row": (lambda m, x: torch.einsum("bhwc,hkc->bhwk", x, m.W), (2, 3, 4), (2, 3, 4)),
    "matrices by column": (lambda m, x: torch.einsum("bhwc,wkc->bkhw", x, m.W), (3, 5, 4), (2, 3, 4)),
    "factors": (lambda m, x: torch.einsum("bhw,hw->bwh", x, m.W), (2, 3), (2, 3)),
    "samples second": (
        lambda m, x: torch.einsum("tbc,tkc->tbk", x.transpose(0, 1), m.W).transpose(0, 1),
        (3, 2, 4),
        (3, 4),
    ),
    "samples joined": (
        lambda m, x: torch.einsum("bhc,hkc->bhk", x.flatten(0, 1), m.W).unflatten(0, (x.shape[0], 2)),
        (3, 2, 4),
        (2, 3, 4),
    ),
}


@pytest.mark.parametrize("name", CONTRACTIONS)
def test_products_with_a_parameter_are_weight_layers(name):
    operator, of_weight, shape = CONTRACTIONS[name]
    torch.manual_seed(0)
    X = torch.randn(5, *shape, dtype=torch.float64)
    module = Of(operator, W=of_weight).double()
    outputs = module(X)[0].numel()
    module = nn.Sequential(module, nn.Flatten(), nn.Linear(outputs, 2, bias=False)).double().eval()
    net = Network(module, shape)
    assert "opaque" not in {node.op for node in net.graph.nodes if not node.is_size}
    assert len(net.weight_layers.nodes) == 2 and not net.weight_layers.left_out
    torch.testing.assert_close(evaluate(net.graph, X), module(X))
    torch.testing.assert_close(
        jacobian_rows(net.graph, X).flatten(2), input_jacobians(module, X).flatten(2), rtol=1e-10, atol=1e-12
    )
    matrix = torch.autograd.functional.jacobian(lambda x: module[0](x[None]).flatten(), X[0]).reshape(outputs, -1)
    ends = torch.linalg.matrix_norm(matrix, 2) * torch.linalg.matrix_norm(module[2].weight.detach(), 2)
    values = measure_capacity(module, X, measures=["lipschitz_l2", "l1_path_norm", "l2_path_norm"])
    assert values["lipschitz_l2"] == pytest.approx(float(ends), rel=1e-6)
    for p in (1, 2):  # the network with |w|^p adds up all paths from an input of ones
        powers = {key: w.detach().abs() ** p for key, w in module.named_parameters()}
        total = torch.func.functional_call(module, powers, (torch.ones_like(X[:1]),)).sum()
        assert values[f"l{p}_path_norm"] == pytest.approx(float(total) ** (1 / p), rel=1e-10)


@pytest.mark.parametrize("places", [(), (3,)])
def test_a_bilinear_layer_is_linear_in_products(places):
    torch.manual_seed(0)
    parts = {"a": nn.Linear(4, 2), "b": nn.Linear(4, 3), "c": nn.Bilinear(2, 3, 4)}
    module = Of(lambda m, x: m.c(m.a(x).tanh(), m.b(x).sigmoid()).flatten(1), **parts).double().eval()
    X = torch.randn(5, *places, 4, dtype=torch.float64)
    graph = Network(module, (*places, 4)).graph
    torch.testing.assert_close(evaluate(graph, X), module(X))
    torch.testing.assert_close(
        jacobian_rows(graph, X).flatten(2), input_jacobians(module, X).flatten(2), rtol=1e-10, atol=1e-12
    )
    values = measure_capacity(module, X, measures=["lipschitz_l2", "lipschitz_linf"], loss="squared")
    J = input_jacobians(module, 3 * X).flatten(2)
    assert float(torch.linalg.matrix_norm(J, 2).max()) <= values["lipschitz_l2"]
    assert float(J.abs().sum(-1).max()) <= values["lipschitz_linf"]
    unbounded = Of(lambda m, x: m.c(m.a(x), m.b(x)).flatten(1), **parts).double().eval()
    with pytest.raises(UnsupportedLayerError, match=r"in layer `c \(Bilinear\)`: it multiplies two signals"):
        measure_capacity(unbounded, X, measures="lipschitz_l2", loss="squared")


@pytest.mark.parametrize("name", _named(MAXIMA))
def test_maxima_stretch_no_more_than_their_bound_and_count_all_paths(name):
    module, X, y = case(name)
    values = measure_capacity(module, X, y, ["lipschitz_l2", "lipschitz_linf", "l1_path_norm"])
    many = 4 * torch.randn(200, 3, dtype=X.dtype, generator=torch.Generator().manual_seed(1))
    slopes = input_jacobians(module, many)
    assert float(torch.linalg.matrix_norm(slopes, 2).max()) <= values["lipschitz_l2"]
    assert float(slopes.abs().sum(2).max()) <= values["lipschitz_linf"]
    # What an output can choose from: the places whose entry is 1 for some input.
    inner = torch.stack(
        [
            torch.autograd.functional.jacobian(lambda h: module.operator(h[None]).flatten(), h)
            for h in torch.randn(200, 4, dtype=X.dtype, generator=torch.Generator().manual_seed(2))
        ]
    )
    reached = (inner != 0).any(0).to(X.dtype)
    paths = (module.last.weight.detach().abs() @ reached @ module.first.weight.detach().abs()).sum()
    assert values["l1_path_norm"] == pytest.approx(float(paths), rel=1e-10)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_their_lipschitz_constants(name):
    module, X, y = case(name)
    ends = math.prod(float(torch.linalg.matrix_norm(m.weight.detach(), 2)) for m in (module.first, module.last))
    value = measure_capacity(module, X, y, "lipschitz_l2")["lipschitz_l2"]
    assert value == pytest.approx(ends * ACTIVATIONS[name][1], rel=1e-6)


@pytest.mark.parametrize("operator", [nn.Hardshrink(0.2), nn.Threshold(0.1, 0.0)], ids=repr)
def test_jumps_have_no_finite_constant(operator):
    module, X, y = make(lambda: Between(operator, 4), (3,), classes=2)
    assert math.isinf(measure_capacity(module, X, y, "lipschitz_l2")["lipschitz_l2"])


class Trained(nn.Module):
    """Slopes per channel of images, one slope for everything, a frozen one, before and after a pooling."""

    def __init__(self):
        super().__init__()
        self.conv, self.channels = nn.Conv2d(1, 3, 3, padding=1), nn.PReLU(3)
        self.one, self.frozen, self.last = nn.PReLU(), nn.PReLU(init=0.7), nn.Linear(12, 3)
        self.frozen.requires_grad_(False)

    def forward(self, x):
        h = F.max_pool2d(self.channels(self.conv(x)), 2)
        return self.last(self.frozen(self.one(h)).flatten(1))


def test_trained_slopes_are_parameters_and_no_layers():
    module, X, y = make(Trained, (1, 4, 4))
    network = Network(module, (1, 4, 4))
    with torch.no_grad():
        module.channels.weight.copy_(torch.tensor([0.2, -0.3, 1.4]))
        network = Network(module, (1, 4, 4))
    assert [node.label for node in network.graph.layers] == ["conv", "last"]
    trained = [p for p in module.parameters() if p.requires_grad]
    expected = math.sqrt(sum(float(p.detach().square().sum()) for p in trained))
    assert measure_capacity(module, X, y, "parameter_norm")["parameter_norm"] == pytest.approx(expected)
    matrix = reference_fisher.matrix(module, X, "squared")
    spectrum = torch.linalg.eigvalsh(matrix).flip(0)[:21].clamp_min(0)
    assert fisher_spectrum(module, X) == pytest.approx(spectrum.numpy(), rel=1e-8, abs=1e-10)
    for penalty in (frobenius_penalty, spectral_penalty):
        got, by_loop = penalty(module, X), penalty(lambda x: module(x), X)
        for a, b in zip(gradients(got, trained), gradients(by_loop, trained), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
    steps = {"norm": ("expected_sharpness", {"n_draws": 2}), "kl": "kl_divergence", "bound": "pac_bayes_bound"}
    assert all(math.isfinite(v) for v in measure_capacity(module, X, y, steps).values())


def test_paths_go_through_a_trained_slope_as_through_a_rectifier():
    module, X, y = case("prelu")
    other, _, _ = make(lambda: Between(nn.ReLU(), 4), (3,))
    other.load_state_dict(module.state_dict(), strict=False)
    names = ["l1_path_norm", "l2_path_norm", "frobenius_norm", "spectral_norm"]
    assert measure_capacity(module, X, y, names) == measure_capacity(other, X, y, names)


class WithTrained(nn.Module):
    """An operator of four numbers in two rows and of a trained tensor, between two linear maps."""

    def __init__(self, operator, start):
        super().__init__()
        self.first, self.last, self.start = nn.Linear(3, 4), nn.Linear(4, 3), nn.Parameter(start)
        self.operator = operator

    def forward(self, x):
        h = self.operator(self.first(x).tanh().unflatten(1, (2, 2)), self.start)
        return self.last(h.expand(-1, 2, 2).flatten(1).tanh())


#: Operators of a trained tensor that take entries as they are, or weigh them by whole numbers, where training begins.
AT_THE_START = {
    "kron": (torch.kron, torch.ones(1, 1, 1)),
    "triangular": (lambda h, w: torch.linalg.solve_triangular(w, h, upper=True), torch.eye(2)),
    "trapezoid": (lambda h, w: torch.trapezoid(h, w, dim=1)[:, :, None], torch.tensor([0.0, 1.0])),
    "grid_sample": (
        lambda h, w: F.grid_sample(h[:, None], w.expand(len(h), -1, -1, -1), align_corners=True)[:, 0],
        torch.tensor([[[[-1.0, -1.0], [1.0, -1.0]]]]),
    ),
    "index_add": (lambda h, w: h.index_add(2, torch.tensor([1]), w.expand(len(h), 2, 1)), torch.full((1, 1), 0.1)),
    "index_fill": (lambda h, w: h.index_fill(2, torch.tensor([1]), w), torch.tensor(0.3)),
    "slice_scatter": (lambda h, w: h.slice_scatter(w.expand(len(h), 2, 1), 2, 0, 1), torch.full((1, 1), 0.3)),
}


@pytest.mark.parametrize("name", _named(AT_THE_START))
def test_trained_numbers_of_a_selection_or_a_linear_map_have_gradients(name):
    module, X, _ = make(lambda: WithTrained(*AT_THE_START[name]), (3,))
    parameters = list(module.parameters())
    for _ in range(2):
        by_loop = gradients(frobenius_penalty(lambda x: module(x), X), parameters)
        for a, b in zip(gradients(frobenius_penalty(module, X), parameters), by_loop, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-10)
        with torch.no_grad():  # a step
            module.start.mul_(0.75)


@pytest.mark.parametrize("name", ["index_add", "index_fill", "slice_scatter"])
def test_trained_numbers_that_are_added_leave_a_selection(name):
    module, X, _ = make(lambda: WithTrained(*AT_THE_START[name]), (3,))
    assert chain_refusal(Network(module, (3,)).graph) is None


@pytest.mark.parametrize("operator", [lambda h: h.roll(1, 0), lambda h: h.flip(0), lambda h: h[[1, 0]]])
def test_what_moves_numbers_between_samples_is_no_pick(operator):
    class Mixing(nn.Module):
        def forward(self, x):
            return operator(x)

    module = Mixing()
    graph = trace(module, (3,)).bind(named_tensors(module))
    assert [node.op for node in graph.nodes[1:]] == ["opaque"]
