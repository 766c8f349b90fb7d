"""The exact penalty with products in bfloat16: close to the full one, and refused where there are no such products."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference_penalties import CASES, built
from sklearn_capacity.architectures import make_network
from sklearn_capacity.penalties import JacobianPenalty, forward_pass, frobenius_penalty
from sklearn_capacity.penalties import frobenius as exact

needs_products = pytest.mark.skipif(not exact.cpu_has_bfloat16(), reason="this processor has no products in bfloat16")


def value_and_gradient(module: nn.Module, X: torch.Tensor, **options: str) -> tuple[float, torch.Tensor]:
    module.zero_grad()
    value = frobenius_penalty(module, X, **options)
    value.backward()
    return float(value.detach()), torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def assert_close(module: nn.Module, X: torch.Tensor, output: str) -> None:
    value, gradient = value_and_gradient(module, X, output=output)
    rounded, other = value_and_gradient(module, X, output=output, precision="bfloat16")
    assert other.dtype == gradient.dtype == torch.float32
    # One rounding is up to 2^-9 = 0.2 % off; those of a few layers add up in networks of a few units, as here.
    assert rounded == pytest.approx(value, rel=2e-2)
    assert 0 < float((other - gradient).norm()) < 2e-2 * float(gradient.norm())


@needs_products
@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("name", sorted(CASES))
def test_error_of_each_kind_of_layer(name, output):
    module, X = built(name)
    assert_close(module.float(), X.float(), output)


@needs_products
@pytest.mark.parametrize("name", ["mlp", "conv", "resnet20", "residual_mlp"])
def test_error_of_each_architecture(name):
    torch.manual_seed(0)
    shape = (20,) if "mlp" in name else (3, 16, 16)
    assert_close(make_network(name, shape, 5).eval(), torch.randn(12, *shape), "logits")


@needs_products
def test_a_step_shares_its_forward_pass():
    torch.manual_seed(0)
    module, X = make_network("mlp", 20, 5, hidden_layer_sizes=(40, 30)), torch.randn(12, 20)
    penalty = JacobianPenalty("frobenius", precision="bfloat16")
    alone = penalty(module, X)
    together = penalty(module, X, shared=forward_pass(module, X))
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=0)
    for p, q in zip(*(torch.autograd.grad(v, module[1].weight) for v in (alone, together)), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-7)


def test_what_cannot_be_computed_in_bfloat16_is_refused(monkeypatch):
    module, X = nn.Linear(3, 2), torch.randn(4, 3)
    with pytest.raises(ValueError, match="`precision` must be .*'half'"):
        frobenius_penalty(module, X, precision="half")
    with pytest.raises(ValueError, match="`precision` must be 'full' for `X` of torch.float64"):
        frobenius_penalty(module.double(), X.double(), precision="bfloat16")
    monkeypatch.setattr(exact, "cpu_has_bfloat16", lambda: True)
    with pytest.raises(ValueError, match="`precision` must be 'full' for function"):
        frobenius_penalty(lambda X: X.square(), X, precision="bfloat16")
    monkeypatch.setattr(exact, "cpu_has_bfloat16", lambda: False)
    with pytest.raises(ValueError, match="`precision` must be 'full' on this cpu device"):
        frobenius_penalty(module.float(), X, precision="bfloat16")
