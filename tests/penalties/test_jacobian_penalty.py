"""Penalties against dense Jacobians, theorems, and the promise that samples do not mix."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reference_penalties import mean_squared_jacobian
from sklearn_capacity.penalties import (
    PENALTIES,
    JacobianPenalty,
    frobenius_penalty,
    projection_penalty,
    spectral_penalty,
)
from sklearn_capacity.penalties.frobenius import orthonormal_directions


def mlp() -> tuple[nn.Module, tuple[int, ...]]:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 3)), (5,)


def conv() -> tuple[nn.Module, tuple[int, ...]]:
    first = nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    return nn.Sequential(*first, nn.Conv2d(4, 3, 3), nn.Flatten(), nn.Linear(3, 3)), (2, 6, 6)


def batch_norm() -> tuple[nn.Module, tuple[int, ...]]:
    layers = nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 4), nn.Dropout()
    module = nn.Sequential(*layers)
    with torch.no_grad():
        module[1].running_mean.copy_(torch.tensor([0.3, -0.2, 0.1]))
        module[1].running_var.copy_(torch.tensor([2.0, 0.5, 1.5]))
    return module, (1, 4, 4)


def module_and_data(make, n_samples: int = 5) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    module, shape = make()
    return module.double(), torch.randn(n_samples, *shape, dtype=torch.float64)


@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("make", [mlp, conv, batch_norm])
def test_frobenius_penalty_and_its_gradient_equal_the_dense_reference(make, output):
    module, X = module_and_data(make)
    penalty = frobenius_penalty(module.train(), X, output=output)
    gradients = torch.autograd.grad(penalty, module.parameters(), allow_unused=True)
    expected = mean_squared_jacobian(module.eval(), X, output)
    expected_gradients = torch.autograd.grad(expected, module.parameters(), allow_unused=True)
    torch.testing.assert_close(penalty, expected, rtol=1e-10, atol=0)
    assert any(g is not None and g.abs().max() > 1e-3 for g in gradients)
    for got, want, parameter in zip(gradients, expected_gradients, module.parameters(), strict=True):
        zero = torch.zeros_like(parameter)  # the last bias has no influence on J
        torch.testing.assert_close(zero if got is None else got, zero if want is None else want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("make", [mlp, conv, batch_norm])
def test_as_many_projections_as_outputs_are_exact(make):
    module, X = module_and_data(make)
    n_outputs = module(X).shape[1]
    estimate = projection_penalty(module, X, n_projections=n_outputs, output="softmax")
    torch.testing.assert_close(estimate, frobenius_penalty(module, X, output="softmax"), rtol=1e-10, atol=0)


def test_projection_is_unbiased():
    module, X = module_and_data(mlp, 3)
    exact = frobenius_penalty(module, X).item()
    generator = torch.Generator().manual_seed(3)
    for k in (1, 2):
        draws = torch.stack(
            [projection_penalty(module, X, n_projections=k, generator=generator).detach() for _ in range(600)]
        )
        assert abs(draws.mean().item() - exact) < 4 * draws.std().item() / 600**0.5
        assert draws.std() > 0.01 * exact


def test_directions_are_orthonormal_and_uniform():
    values = torch.zeros(4000, 3, dtype=torch.float64)
    V = orthonormal_directions(2, values, torch.Generator().manual_seed(0))
    gram = torch.einsum("inc,jnc->nij", V, V)
    torch.testing.assert_close(gram, torch.eye(2, dtype=torch.float64).expand(4000, 2, 2))
    outer = torch.einsum("nc,nd->ncd", V[1], V[1])  # E v v^T = I / C, also for the last direction
    error = (outer.mean(0) - torch.eye(3, dtype=torch.float64) / 3).abs()
    assert (error < 4 * outer.std(0) / 4000**0.5).all()


@pytest.mark.parametrize("name", PENALTIES)
def test_linear_map_has_its_squared_norm_as_penalty_whatever_the_input(name):
    linear = nn.Linear(4, 1).double()
    penalty = PENALTIES[name].function(linear, torch.randn(6, 4, dtype=torch.float64))
    torch.testing.assert_close(penalty, linear.weight.square().sum(), rtol=1e-12, atol=0)


def penalty_in_eval_mode(module, penalty, X):
    """The penalty of the module in eval mode; its modes are as before afterwards."""
    modes = [m.training for m in module]
    module.eval()
    value = penalty(X)
    for m, mode in zip(module, modes, strict=True):
        m.train(mode)
    module.training = True
    return value


@pytest.mark.parametrize("name", PENALTIES)
def test_samples_do_not_mix_under_batch_norm(name):
    """The batch's penalty is the mean of its samples' penalties, though the module is in train mode."""
    module, X = module_and_data(batch_norm)
    module.train()
    module[5].eval()  # a submodule that is frozen stays so
    before = {key: value.clone() for key, value in module.state_dict().items()}

    def penalty(samples: torch.Tensor) -> torch.Tensor:
        options = {"n_projections": 4} if "n_projections" in PENALTIES[name].options else {}
        return PENALTIES[name].function(module, samples, **options)

    together = penalty(X)
    if name == "per_layer":  # draws one output per sample: the same ones in eval mode, where nothing can mix
        alone = penalty_in_eval_mode(module, penalty, X)
    else:
        alone = torch.stack([penalty(x[None]) for x in X]).mean()
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=0)
    assert [m.training for m in module] == [True] * 5 + [False] and module.training
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key])
    # the check can fail: with batch statistics samples do mix
    function = module.forward
    mixed = frobenius_penalty(lambda samples: function(samples), X)
    assert abs(mixed.item() / penalty(X).item() - 1) > 0.01


def test_sample_weights_weigh_the_mean():
    module, X = module_and_data(mlp)
    weights = torch.tensor([0.0, 2.0, 1.0, 0.5, 1.5], dtype=torch.float64)
    alone = torch.stack([frobenius_penalty(module, x[None]) for x in X])
    torch.testing.assert_close(frobenius_penalty(module, X, sample_weight=weights), (weights * alone).mean())


def test_draws_come_from_the_generator_alone():
    module, X = module_and_data(mlp)
    state = torch.get_rng_state()
    values = [projection_penalty(module, X, generator=torch.Generator().manual_seed(s)).item() for s in (1, 1, 2)]
    assert values[0] == values[1] != values[2]
    assert torch.equal(state, torch.get_rng_state())


def test_bad_options_raise():
    module, X = module_and_data(mlp)
    with pytest.raises(ValueError, match="`output` must be one of 'logits', 'softmax', got 'logit'. Did you mean"):
        frobenius_penalty(module, X, output="logit")
    with pytest.raises(ValueError, match="`n_projections` must be at most the number of outputs 3, got 4"):
        projection_penalty(module, X, n_projections=4)
    with pytest.raises(ValueError, match="`n_projections` must be at least 1, got 0"):
        projection_penalty(module, X, n_projections=0)


class Counts(nn.Module):
    def __init__(self, counter: str) -> None:
        super().__init__()
        self.linear, self.counter, self.number = nn.Linear(5, 3), counter, 0
        self.register_buffer("tensor", torch.zeros(()))

    def forward(self, x):
        if self.counter == "tensor":
            self.tensor += 1
        else:
            self.number += 1
        return self.linear(x)


@pytest.mark.parametrize("counter", ["tensor", "number"])
def test_a_module_that_writes_in_itself_runs_its_own_forward_pass_for_the_loss_and_for_it_alone(counter):
    module, X = Counts(counter), torch.randn(4, 5)
    penalty = JacobianPenalty()
    for _ in range(3):
        shared = penalty.forward(module, X)
        assert shared.tape is None
        penalty(module, X, shared=shared)
    assert module.tensor + module.number == 3


class Opaque(nn.Module):
    """Without a graph, so that the loop computes."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, X: torch.Tensor) -> torch.Tensor:
        return torch.fft.ifft(torch.fft.fft(self.inner(X))).real


@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("wrap", [nn.Sequential, Opaque])
@pytest.mark.parametrize(("n_inputs", "n_outputs"), [(3, 11), (11, 3), (1, 2), (4, 4), (21, 19), (17, 30)])
def test_spectral_penalty_of_more_outputs_than_inputs_and_of_fewer(n_inputs, n_outputs, wrap, output):
    """Against singular values of dense Jacobians, with the gradient of a distinct largest one."""
    torch.manual_seed(1)
    layers = nn.Linear(n_inputs, 6), nn.Tanh(), nn.Linear(6, n_outputs)
    module = wrap(nn.Sequential(*layers)).double()
    X = torch.randn(5, n_inputs, dtype=torch.float64)

    def function(x: torch.Tensor) -> torch.Tensor:
        logits = module(x[None])[0]
        return logits.softmax(0) if output == "softmax" else logits

    J = torch.stack([torch.autograd.functional.jacobian(function, x, create_graph=True) for x in X])  # (n, C, D)
    expected = torch.linalg.matrix_norm(J, 2).square().mean()
    penalty = spectral_penalty(module, X, output=output)
    torch.testing.assert_close(penalty, expected, rtol=1e-9, atol=0)
    weights = [p for p in module.parameters() if p.dim() == 2]
    pairs = zip(torch.autograd.grad(penalty, weights), torch.autograd.grad(expected, weights), strict=True)
    for got, want in pairs:
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-10)


def test_spectral_penalty_of_a_constant_is_zero():
    module = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 5))
    torch.nn.init.zeros_(module[0].weight)
    penalty = spectral_penalty(module, torch.randn(4, 2))
    penalty.backward()
    assert penalty.item() == 0 and all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)
