"""Relative flatness against dense Hessians of one layer, summed pair by pair."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from networks import NETWORKS, make
from reference_hessian import dense_hessian
from sklearn_capacity import NotDefinedError, measure_capacity
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch


def flatness(module, X, y, *, loss="cross_entropy", chunk=None, output="logits", **params):
    network = Network(module, tuple(X.shape[1:]), output=output)
    return MEASURES["relative_flatness"](network, Batch(network, X, y, loss=loss, batch_size=chunk), **params).value


def by_definition(module, layer, X, y, loss="cross_entropy", **options):
    """sum_{s, s'} <w_s, w_s'> tr H_{s,s'} with loops, H of this layer's weight alone."""
    weight = module.get_submodule(layer).weight
    for parameter in module.parameters():
        parameter.requires_grad_(parameter is weight)
    W = weight.detach()
    n_out, n_in = W.shape
    H = dense_hessian(module, X, y, loss, **options).reshape(n_out, n_in, n_out, n_in)
    module.requires_grad_(True)
    return sum(float(W[s] @ W[r] * H[s, :, r, :].trace()) for s in range(n_out) for r in range(n_out))


CASES = {
    **{case: (NETWORKS[case], "") for case in ("mlp_batch_norm", "conv_max_pool", "residual", "binary")},
    "first": (NETWORKS["mlp"], "0"),
    "middle": (NETWORKS["mlp"], "2"),
    "tanh": (NETWORKS["mlp_tanh"], "0"),
    "many classes": (lambda: (*make(lambda: nn.Linear(2, 500), (2,))[:2], torch.arange(7) * 70), ""),
    "wide": (lambda: make(lambda: nn.Sequential(nn.Linear(3, 20), nn.Softplus(), nn.Linear(20, 3)), (3,)), "0"),
}
LAST = {"mlp_batch_norm": "4", "conv_max_pool": "6", "residual": "head", "binary": "2", "many classes": ""}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_definition(case):
    build, layer = CASES[case]
    module, X, y = build()
    expected = by_definition(module, layer or LAST[case], X, y, one_logit=case == "binary")
    for chunk in (None, 2):
        output = "one_logit" if case == "binary" else "logits"
        result = flatness(module, X, y, layer=layer or None, output=output, chunk=chunk)
        assert result == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize("loss", ["squared", "absolute"])
def test_losses_of_regression(loss):
    module, X, _ = NETWORKS["mlp_tanh"]()
    y = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for layer in ("0", "2"):
        expected = by_definition(module, layer, X, y, loss)
        assert flatness(module, X, y, loss=loss, layer=layer) == pytest.approx(expected, rel=1e-8, abs=1e-13)


def test_effective_weights():
    """The same as of the network whose weights are written out."""
    module, X, y = NETWORKS["weight_norm"]()
    plain = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    plain[0].weight.data, plain[0].bias.data = module[0].weight.detach(), module[0].bias.data
    plain[2].load_state_dict(module[2].state_dict())
    for layer in ("0", "2"):
        assert flatness(module, X, y, layer=layer) == pytest.approx(by_definition(plain, layer, X, y), rel=1e-8)


def test_nothing_is_left_on_the_module():
    module, X, y = NETWORKS["mlp"]()
    first = measure_capacity(module, X, y, ["relative_flatness", "loss_gradient_norm"])
    assert first == measure_capacity(module, X, y, ["relative_flatness", "loss_gradient_norm"])
    assert not any(m._forward_hooks for m in module.modules())


class Ends(nn.Module):
    """A linear layer, and then one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3), nn.LayerNorm(3)

    def forward(self, x):
        return self.norm(self.linear(x))


@pytest.mark.parametrize(
    ("build", "layer", "error", "message"),
    [
        (NETWORKS["tied"], "first", NotDefinedError, "`first` is tied to another layer's"),
        (NETWORKS["tokens"], "second", NotDefinedError, "one vector per sample, once, but `second` does not"),
        (NETWORKS["residual"], "blocks.0.conv1", NotDefinedError, "`blocks.0.conv1` is a Conv2d"),
        (lambda: make(Ends, (4,)), None, NotDefinedError, "`norm` is a LayerNorm. Name a linear layer"),
        (lambda: make(nn.Flatten, (3,)), None, NotDefinedError, "the network has no weights"),
        (NETWORKS["residual"], "haed", ValueError, "got 'haed'. Did you mean 'head'?"),
        (NETWORKS["residual"], 3, TypeError, "`layer` must be the name of a linear layer or None, got int"),
    ],
)
def test_layers_that_are_refused(build, layer, error, message):
    with pytest.raises(error, match=message):
        flatness(*build(), layer=layer)


def test_a_layer_that_is_not_used():
    module, X, y = make(Ends, (4,))
    module.spare = nn.Linear(4, 3).double()
    with pytest.raises(NotDefinedError, match="needs a layer that the forward pass uses, but `spare` is not"):
        flatness(module, X, y, layer="spare")
