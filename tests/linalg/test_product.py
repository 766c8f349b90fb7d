"""Products of matrices equal those in double precision, whichever library multiplies."""

from __future__ import annotations

import pytest
import torch

from sklearn_capacity.linalg.product import LARGE, affine, fits_onednn, product


def matrices(n: int, m: int, p: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(n + m + p)
    return torch.randn(n, m, generator=generator).to(dtype), torch.randn(m, p, generator=generator).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(0, 3, 2), (3, 0, 2), (1, 1, 1), (7, 5, 3), (160, 170, 180), (3, 2000, 1000)])
def test_value(sizes, dtype):
    a, b = matrices(*sizes, dtype)
    expected = torch.einsum("nm,mp->np", a.double(), b.double())
    torch.testing.assert_close(product(a, b), expected.to(dtype), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "shifted"])
def test_any_strides(layout):
    a, b = matrices(160, 170, 180)
    assert len(a) * b.numel() >= LARGE
    if layout == "transposed":
        a, b = a.t().contiguous().t(), b.t().contiguous().t()
    elif layout == "strided":
        a, b = a.repeat_interleave(2, 1)[:, ::2], b.repeat_interleave(2, 0)[::2]
    elif layout == "expanded":
        a, b = a[:1].expand_as(a), b[:, :1].expand_as(b)
    else:
        a, b = torch.cat([a, a])[160:], torch.cat([b, b], 1)[:, 180:]
    expected = (a.double()[:, :, None] * b.double()).sum(1)
    torch.testing.assert_close(product(a, b), expected.float(), rtol=1e-4, atol=1e-4)


def test_a_product_that_needs_a_gradient_has_one():
    a, b = matrices(160, 170, 180)
    a.requires_grad_(True)
    (gradient,) = torch.autograd.grad(product(a, b).sum(), a)
    torch.testing.assert_close(gradient, b.sum(1).expand_as(a), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        assert not product(a, b).requires_grad


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
@pytest.mark.parametrize(("capability", "transposed"), [("AVX512", True), ("AVX2", False)])
def test_onednn_takes_whole_matrices_and_their_transposes_where_it_is_fast(capability, transposed, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    a, b = matrices(160, 170, 180)
    assert fits_onednn(a, b)
    assert fits_onednn(a, b.t().contiguous().t())
    assert fits_onednn(a.t().contiguous().t(), b) is transposed
    assert not fits_onednn(torch.cat([a, a], 1)[:, :170], b)
    assert not fits_onednn(a, torch.cat([b, b], 1)[:, :180])


def test_without_onednn(monkeypatch):
    a, b = matrices(160, 170, 180)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert torch.equal(product(a, b), a @ b)


@pytest.mark.parametrize("needs", ["x", "weight", "bias", "all", "no bias"])
@pytest.mark.parametrize("sizes", [(7, 5, 3), (160, 170, 180)])
def test_affine_has_the_value_and_gradients_of_linear(sizes, needs):
    x, weight = matrices(*sizes)
    weight, bias = weight.t().contiguous(), None if needs == "no bias" else torch.linspace(-1, 1, sizes[2])
    inputs = {"x": x, "weight": weight, "bias": bias}
    asked = [t for name, t in inputs.items() if t is not None and needs in (name, "all", "no bias")]
    for t in asked:
        t.requires_grad_(True)
    y = affine(**inputs)
    expected = torch.nn.functional.linear(*(t if t is None else t.double() for t in inputs.values()))
    torch.testing.assert_close(y, expected.float(), rtol=1e-4, atol=1e-4)
    g = torch.linspace(-1, 1, y.numel()).reshape_as(y)
    gradients, expected = (torch.autograd.grad(out, asked, g.to(out)) for out in (y, expected))
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-3)


def test_affine_can_be_differentiated_twice():
    x, weight = (t.requires_grad_(True) for t in matrices(160, 170, 180))

    def second(function):
        (first,) = torch.autograd.grad(function(x, weight.t()).square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum() / 1e4, [x, weight])

    for ours, other in zip(second(affine), second(torch.nn.functional.linear), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))
