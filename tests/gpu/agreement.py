"""Penalties and measures on the device against the CPU, in float64."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn

from measuring import values_of
from networks import NETWORKS, Attention
from sklearn_capacity.architectures import make_network
from sklearn_capacity.penalties import PARAMETER_PENALTIES, PENALTIES
from tests.gpu.runner import check

CASES = ("mlp_no_bias", "mlp_tanh", "conv_batch_norm", "conv_strided_grouped", "residual", "tokens")


def attention() -> tuple[nn.Module, Tensor, Tensor]:
    """The module, samples (7, 5, 4) and labels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Attention().double().eval(), torch.randn(7, 5, 4, dtype=torch.float64), torch.arange(7) % 3


@check
def penalties_equal_the_cpu(device: torch.device) -> str:
    """Value and gradient of every penalty on a perceptron, a ResNet and a network of smooth activations."""
    worst, n_values = 0.0, 0
    for build in (
        lambda: make_network("mlp", 16, 3, hidden_layer_sizes=(12, 12)),
        lambda: make_network("mlp", 16, 3, hidden_layer_sizes=(12,), activation="tanh"),
        lambda: make_network("resnet20", (3, 8, 8), 3).eval(),
    ):
        torch.manual_seed(0)
        module = build().double()
        X = torch.randn(6, 16, dtype=torch.float64) if len(list(module.parameters())) < 9 else None
        X = torch.randn(6, 3, 8, 8, dtype=torch.float64) if X is None else X
        on_jacobian = itertools.product(PENALTIES, ("logits", "softmax"))
        for name, output in [*on_jacobian, *((name, "") for name in PARAMETER_PENALTIES)]:
            expected = _value_and_gradient(module, X, name, output)
            got = _value_and_gradient(module.to(device), X.to(device), name, output)
            module.to("cpu")
            error = float((got - expected).norm() / expected.norm())
            assert error < 1e-9, f"{name}, {output}: {error:.1e}"
            worst, n_values = max(worst, error), n_values + 1
    return f"{n_values} values with gradients, largest relative difference {worst:.1e}"


def _value_and_gradient(module: nn.Module, X: Tensor, name: str, output: str) -> Tensor:
    """The penalty and its gradient with respect to all parameters as one vector on the CPU."""
    if name in PENALTIES:
        penalty = PENALTIES[name]
        options = {"generator": torch.Generator().manual_seed(0)} if penalty.random else {}
        value = penalty.function(module, X, output=output, **options)
    else:
        options = {} if name == "spectral_norm" else {"y": (torch.arange(len(X)) % 3).to(X.device)}
        value = PARAMETER_PENALTIES[name](module, X, **options)
    parameters = [p for p in module.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(value, parameters, allow_unused=True)
    pieces = [value.reshape(1), *(g.flatten() for g in gradients if g is not None)]
    return torch.cat(pieces).detach().to("cpu")


@check
def measures_equal_the_cpu(device: torch.device) -> str:
    """Every measure there is, on chains, a residual net, embeddings and attention."""
    worst, n_values, defined = 0.0, 0, set()
    for case in (*CASES, "attention"):
        module, X, _ = attention() if case == "attention" else NETWORKS[case]()
        y = module(X).argmax(1)  # no sample is misclassified, so that capacities are finite
        expected = values_of(module, X, y)
        got = values_of(module.to(device), X, y)
        for name, value in expected.items():
            other = got[name]
            assert (value is None) == (other is None), f"{name} on {case}: {value} on the CPU, {other} on the device"
            if value is None or other is None or value == other:
                continue
            error = abs(other - value) / max(abs(value), 1e-12)
            assert math.isfinite(error) and error < 1e-6, f"{name} on {case}: {value} on the CPU, {other} on the device"
            worst = max(worst, error)
        present = {name for name, value in expected.items() if value is not None}
        defined |= present
        n_values += len(present)
    return f"{n_values} values of {len(defined)} measures, largest relative difference {worst:.1e}"
