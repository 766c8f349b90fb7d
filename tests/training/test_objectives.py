"""What a step may evaluate: optimisers of other packages, and evaluations that repeat, against loops by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_capacity import JacobianRegularizedClassifier, NetworkClassifier
from sklearn_capacity.training import PenalizedClassifier

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 5)), np.arange(40) % 3


class SAM(torch.optim.Optimizer):
    """The form of the most used package: gradients must be there, the closure computes the second ones."""

    def __init__(self, params, base_optimizer=torch.optim.SGD, rho=0.05, **kwargs):
        super().__init__(params, dict(rho=rho, **kwargs))
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        grad_norm = self._grad_norm()
        for group in self.param_groups:
            scale = group["rho"] / (grad_norm + 1e-12)
            for p in group["params"]:
                if p.grad is None:
                    continue
                self.state[p]["old_p"] = p.data.clone()
                p.add_(p.grad * scale)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None, "Sharpness Aware Minimization requires closure, but it was not provided"
        closure = torch.enable_grad()(closure)
        self.first_step(zero_grad=True)
        closure()
        self.second_step()

    def _grad_norm(self):
        norms = [p.grad.norm(p=2) for group in self.param_groups for p in group["params"] if p.grad is not None]
        return torch.norm(torch.stack(norms), p=2)


class ClosureFirst(SAM):
    """The form that evaluates twice, and moves by ``p.data`` so that no version counter sees it."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = closure()  # within `no_grad`, as some have it
        scale = self.param_groups[0]["rho"] / (self._grad_norm() + 1e-12)
        moves = [(p, p.grad * scale) for group in self.param_groups for p in group["params"]]
        for p, move in moves:
            p.data.add_(move)
        closure()
        for p, move in moves:
            p.data.sub_(move)
        self.base_optimizer.step()
        return loss


class GradientsFirst(SAM):
    """No closure at all: plain gradient descent on what `backward` left."""

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(p.grad, alpha=group["lr"])


class NoClosure(GradientsFirst):
    def step(self):
        super().step()


class NoStep(SAM):
    """The oldest form."""

    def step(self, closure=None):
        raise NotImplementedError("SAM doesn't work like the other optimizers: call `first_step` and `second_step`.")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def by_hand(model: nn.Module, n_steps: int, rho: float, lr: float) -> nn.Module:
    """Sharpness-aware steps written out; rho = 0 is gradient descent."""
    inputs, labels, parameters = torch.from_numpy(X), torch.from_numpy(y), list(model.parameters())
    for _ in range(n_steps):
        first = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), labels), parameters)
        norm = torch.cat([g.flatten() for g in first]).norm()
        old = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, first, strict=True):
                p.add_(rho * g / norm)
        second = torch.autograd.grad(nn.functional.cross_entropy(model(inputs), labels), parameters)
        with torch.no_grad():
            for p, g, start in zip(parameters, second, old, strict=True):
                p.copy_(start - lr * g)
    return model


@pytest.mark.parametrize(("kind", "rho"), [(SAM, 0.5), (ClosureFirst, 0.5), (GradientsFirst, 0.0), (NoClosure, 0.0)])
def test_steps_are_those_of_a_loop_by_hand(kind, rho):
    model = NetworkClassifier(
        module=network(), optimizer=kind, optimizer_params={"rho": rho}, learning_rate=0.3, max_epochs=4
    ).fit(X, y)
    wanted = by_hand(network(), 4, rho, 0.3)
    for parameter, value in zip(model.module_.parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(parameter, value)


def test_an_optimiser_without_a_step_is_refused_by_name():
    with pytest.raises(ValueError, match="`optimizer` NoStep has no usable `step`: SAM doesn't work like"):
        NetworkClassifier(optimizer=NoStep).fit(X, y)


class Counting(nn.Module):
    """Counts its forward passes in training, and is a network with dropout and batch norm."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))

    def forward(self, input):
        Counting.calls += self.training
        self.outputs = self.layers(input)
        return self.outputs


@pytest.mark.parametrize(
    ("optimizer", "params", "passes"),
    [
        ("sgd", {}, 1),
        ("adam", {}, 1),
        (torch.optim.LBFGS, {"max_iter": 3, "history_size": 2, "tolerance_change": 0, "tolerance_grad": 0}, 3),
        (SAM, {}, 2),
        (ClosureFirst, {}, 2),  # its first call finds what was computed
        (GradientsFirst, {}, 1),
    ],
)
def test_no_gradient_is_computed_twice_and_a_batch_counts_once(optimizer, params, passes):
    Counting.calls = 0
    model = NetworkClassifier(module=Counting, optimizer=optimizer, optimizer_params=params, random_state=0)
    model.set_params(learning_rate=1e-3, max_epochs=2, batch_size=20).fit(X, y)
    assert Counting.calls == 4 * passes  # two epochs of two batches
    assert model.module_.layers[1].num_batches_tracked == 4


class Evaluates(torch.optim.SGD):
    """Calls the closure three times without a move between."""

    losses: tuple = ()

    def step(self, closure=None):
        Evaluates.losses += (tuple(closure().item() for _ in range(3)),)
        return super().step()


@pytest.mark.parametrize("kind", [NetworkClassifier, JacobianRegularizedClassifier])
def test_dropout_and_projections_are_the_same_in_each_evaluation_of_a_step(kind):
    Evaluates.losses = ()
    params = {"jacobian_norm": "projection", "jacobian_penalty": 1.0} if kind is JacobianRegularizedClassifier else {}
    kind((8,), dropout=0.5, optimizer=Evaluates, max_epochs=2, batch_size=20, random_state=0, **params).fit(X, y)
    assert len(Evaluates.losses) == 4
    for losses in Evaluates.losses:
        assert losses[0] == losses[1] == losses[2]
    assert len({losses[0] for losses in Evaluates.losses}) == 4  # each batch has its own


def test_running_statistics_are_those_of_the_first_evaluation():
    """Of a batch's statistics before the step; plain gradient descent of rate 0 sees the same."""

    def statistics(optimizer, **params):
        model = NetworkClassifier(module=Counting, optimizer=optimizer, optimizer_params=params, random_state=0)
        model.set_params(learning_rate=1e-30, momentum=0.0, max_epochs=1).fit(X, y)
        return model.module_.layers[1].running_mean

    torch.testing.assert_close(statistics(SAM, rho=10.0), statistics("sgd"), rtol=0, atol=0)


def test_a_skorch_net_serves_such_an_optimiser_too():
    net = PenalizedClassifier(network(), optimizer=SAM, optimizer__rho=0.5, lr=0.3, max_epochs=4, verbose=0)
    net.set_params(batch_size=40).fit(X, y)
    wanted = by_hand(network(), 4, 0.5, 0.3)
    torch.testing.assert_close(net.module_[0].weight, wanted[0].weight)
