"""Norms and margins of the battery of Jiang et al. against dense matrices and kernels."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import reference
from networks import NETWORKS, make
from sklearn_capacity import CapacityWarning, NotDefinedError, measure_capacity
from sklearn_capacity.measures import MEASURES, battery, battery_distances

CASES = ["mlp", "mlp_batch_norm", "conv_batch_norm", "conv_strided_grouped", "residual", "concatenated"]
NAMES = [measure.name for measure in (*battery.MEASURES, *battery_distances.MEASURES)]


def before_training(name):
    """The same network with other weights, and batch norms as a new module has them."""
    module = copy.deepcopy(NETWORKS[name]()[0])
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 2
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.reset_running_stats()
            nn.init.ones_(layer.weight), nn.init.zeros_(layer.bias)
    return module


def by_definition(name, module, before, X, y):
    """All of them, layer by layer, from dense matrices for the spectral norm and kernels for the Frobenius norm."""
    operators, kernels = reference.matrices(name, module, X), reference.kernels(name, module)
    ways = [
        (W - V, K - L)
        for W, V, K, L in zip(
            operators, reference.matrices(name, before, X), kernels, reference.kernels(name, before), strict=True
        )
    ]
    spec = [float(np.linalg.svd(W, compute_uv=False)[0]) ** 2 for W in operators]
    fro = [float((K**2).sum()) for K in kernels]
    dist_spec = sum(float(np.linalg.svd(way, compute_uv=False)[0]) ** 2 for way, _ in ways)
    dist_fro = [float((way**2).sum()) for _, way in ways]
    margins = []
    for f, label in zip(module(X).detach().numpy(), y.tolist(), strict=True):
        margins.append(f[label] - max(f[j] for j in range(len(f)) if j != label))
    gamma, d = float(np.percentile(margins, 10)), len(spec)
    result = {
        "inverse_margin": gamma**-2,
        "param_norm": sum(fro),
        "fro_dist": sum(dist_fro),
        "dist_spec_init": dist_spec,
    }
    result["fro_over_spec"] = sum(a / b for a, b in zip(fro, spec, strict=True))
    for short, squares in (("spec", spec), ("fro", fro)):
        product = math.prod(squares)
        result[f"log_prod_of_{short}"] = math.log(product)
        result[f"log_prod_of_{short}_over_margin"] = math.log(product / gamma**2)
        result[f"log_sum_of_{short}"] = math.log(d * product ** (1 / d))
        result[f"log_sum_of_{short}_over_margin"] = math.log(d * (product / gamma**2) ** (1 / d))
    for center, squares in (("init", dist_fro), ("orig", fro)):
        ratio = sum(a / b for a, b in zip(squares, spec, strict=True))
        result[f"log_spec_{center}_main"] = math.log(math.prod(spec) * ratio / gamma**2)
    return result


@pytest.mark.parametrize("name", CASES)
def test_equals_the_definitions(name):
    module, X, _ = NETWORKS[name]()
    y, before = module(X).argmax(1), before_training(name)
    expected = by_definition(name, module, before, X, y)
    assert set(expected) == set(NAMES)
    result = measure_capacity(module, X, y, NAMES, initial_state=before)
    assert result == pytest.approx(expected, rel=1e-8)


def test_a_thousand_classes():
    module, X, _ = make(lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1000)), (3,), seed=2)
    y = module(X).argmax(1)
    W = [layer.weight.detach().numpy() for layer in (module[0], module[2])]
    spectral = math.fsum(2 * math.log(np.linalg.norm(w, 2)) for w in W)
    top = module(X).detach().numpy()
    gamma = np.percentile([f[c] - np.sort(f)[-2] for f, c in zip(top, y.tolist(), strict=True)], 10)
    result = measure_capacity(module, X, y, ["log_prod_of_spec_over_margin", "inverse_margin"])
    assert result["log_prod_of_spec_over_margin"] == pytest.approx(spectral - 2 * math.log(gamma))
    assert result["inverse_margin"] == pytest.approx(gamma**-2)


def test_data_that_are_not_separated():
    module, X, y = NETWORKS["mlp"]()
    wrong = (module(X).argmax(1) + 1) % 3
    names = [n for n in NAMES if n.endswith("_over_margin")] + ["inverse_margin", "log_spec_orig_main"]
    with pytest.warns(CapacityWarning, match="margin at percentile 10 must be positive"):
        result = measure_capacity(module, X, wrong, names)
    assert set(result.values()) == {math.inf}


def test_a_layer_of_zeros():
    module, X, y = NETWORKS["mlp"]()
    module[2].weight.data.zero_()
    result = measure_capacity(module, measures=["log_prod_of_spec", "log_sum_of_fro", "param_norm", "fro_over_spec"])
    assert result["log_prod_of_spec"] == result["log_sum_of_fro"] == -math.inf
    assert 0 < result["param_norm"] < math.inf and 0 < result["fro_over_spec"] < math.inf


def test_what_needs_the_weights_before_training_says_so():
    module, X, y = NETWORKS["mlp"]()
    for name in ("fro_dist", "dist_spec_init", "log_spec_init_main"):
        assert "initial_state" in MEASURES[name].needs
        with pytest.raises(NotDefinedError, match="needs the weights before training: pass the untrained module"):
            measure_capacity(module, X, y, name)


def test_no_layers():
    with pytest.raises(NotDefinedError, match="needs a weight layer, but the network has none"):
        measure_capacity(nn.Identity(), 3 * torch.eye(3), measures="log_prod_of_fro")


class Attention(nn.Module):
    """Attention with two further matrices."""

    def __init__(self):
        super().__init__()
        self.first, self.attend = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        h = self.first(x).relu()
        return self.head(self.attend(h, h, h, need_weights=False)[0].mean(1))


def test_matrices_of_attention_take_part():
    module, X, _ = make(Attention, (5, 3))
    before = make(Attention, (5, 3), seed=1)[0]

    def matrices(module):
        attend = module.attend
        parts = (module.first.weight, attend.in_proj_weight, attend.out_proj.weight, module.head.weight)
        return [p.detach().numpy() for p in parts]

    pairs = list(zip(matrices(module), matrices(before), strict=True))
    result = measure_capacity(
        module, X, measures=["fro_dist", "dist_spec_init", "log_prod_of_fro"], initial_state=before
    )
    assert result["fro_dist"] == pytest.approx(sum(float(((W - V) ** 2).sum()) for W, V in pairs))
    assert result["dist_spec_init"] == pytest.approx(sum(np.linalg.norm(W - V, 2) ** 2 for W, V in pairs))
    assert result["log_prod_of_fro"] == pytest.approx(sum(math.log(float((W**2).sum())) for W, _ in pairs))
