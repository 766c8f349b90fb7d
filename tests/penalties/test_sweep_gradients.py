"""The chain and the loop against dense Jacobians, on every kind of layer."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from networks import make
from reference_penalties import (
    CASES,
    FALLBACKS,
    assert_same,
    built,
    chained,
    gradients,
    mean_squared_jacobian,
    mean_squared_norm,
    per_layer,
)
from sklearn_capacity import JacobianRegularizedClassifier
from sklearn_capacity.architectures import make_network
from sklearn_capacity.derivatives import input_sweeps as chain
from sklearn_capacity.derivatives.input_sweeps import jacobian_rows
from sklearn_capacity.graph import Network
from sklearn_capacity.penalties import (
    PENALTIES,
    JacobianPenalty,
    forward_pass,
    frobenius_penalty,
    per_layer_penalty,
    projection_penalty,
    spectral_penalty,
)
from sklearn_capacity.penalties.frobenius import squared_products

ALL = CASES | FALLBACKS
# a second use of a matrix, or a layer of one dimension, is nothing that the reference sees as a layer
LAYERED = sorted(ALL.keys() - {"tied", "one_dimensional"})


@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("name", ALL)
def test_exact_penalties_and_their_gradients_equal_dense_jacobians(name, output):
    module, X = built(name)
    state = copy.deepcopy(module.state_dict())
    pairs = [(frobenius_penalty, mean_squared_jacobian), (spectral_penalty, mean_squared_norm)]
    for penalty, reference in pairs:
        value = penalty(module.train(), X, output=output)
        expected = reference(module.eval(), X, output)
        assert_same(value.detach(), expected.detach())
        assert_same(gradients(value, module), gradients(expected, module))
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[key])
    assert chained(module, X) == (name in CASES)


@pytest.mark.parametrize("name", ["conv_batch_norm", "residual", "tanh", "max_pool_overlapping", "normalised"])
def test_projections_average_to_the_exact_penalty(name):
    """Over an orthonormal basis, one direction at a time: the estimate is unbiased without luck."""
    module, X = built(name)
    basis, _ = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    terms = [squared_products(module, X, lambda values, v=v: v.expand(1, *values.shape)) for v in basis]
    total, exact = 3 * torch.stack(terms).mean(), frobenius_penalty(module, X)
    assert_same(total.detach(), exact.detach())
    assert_same(gradients(total, module), gradients(exact, module))
    drawn = projection_penalty(module, X, n_projections=3, generator=torch.Generator().manual_seed(1))
    assert_same(gradients(drawn, module), gradients(exact, module))


@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("name", LAYERED)
def test_per_layer_penalty_is_equation_52_for_one_of_the_outputs(name, output):
    module, X = built(name, 1)
    references = [per_layer(module.eval(), X[0], index, output) for index in range(3)]
    computed = set()
    for seed in range(8):
        value = per_layer_penalty(module.train(), X, output=output, generator=torch.Generator().manual_seed(seed))
        index = min(range(3), key=lambda k: abs(value.item() - references[k].item()))
        assert_same(value.detach(), references[index].detach())
        assert_same(gradients(value, module), gradients(references[index], module))
        computed.add(index)
    assert computed == {0, 1, 2}


@pytest.mark.parametrize("name", ["conv_batch_norm", "preactivation", "normalised"])
def test_per_layer_penalty_weighs_its_samples(name):
    module, X = built(name)
    weights = torch.tensor([0.0, 2.0, 1.0, 0.5], dtype=torch.float64)  # the first sample is left out of the draws, too
    indices = torch.randint(3, (3, 1), generator=torch.Generator().manual_seed(5)).flatten().tolist()
    value = per_layer_penalty(module, X, sample_weight=weights, generator=torch.Generator().manual_seed(5))
    terms = [per_layer(module.eval(), x, index) for x, index in zip(X[1:], indices, strict=True)]
    expected = (weights[1:] * torch.stack(terms)).sum() / len(X)
    assert_same(value.detach(), expected.detach())
    assert_same(gradients(value, module), gradients(expected, module))


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", ["mlp", "tanh", "weight_norm", "normalised", "one layer", "images"])
def test_per_layer_penalty_leaves_out_products_of_a_first_layer(name, weighted, monkeypatch):
    """Few samples or many, narrow layers or wide: the same number."""
    monkeypatch.setattr("sklearn_capacity.penalties.per_layer.GRAM_SHARE", 1e9)
    if name in CASES:
        module, X = built(name)
    else:
        layers = (nn.Linear(5, 3),) if name == "one layer" else (nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))
        module, X = nn.Sequential(nn.Flatten(), *layers).double(), torch.randn(4, 1, 5).double()
    weights = torch.tensor([0.5, 2.0, 1.0, 0.5], dtype=torch.float64) if weighted else None
    indices = torch.randint(3, (4, 1), generator=torch.Generator().manual_seed(5)).flatten().tolist()
    terms = torch.stack([per_layer(module.eval(), x, index) for x, index in zip(X, indices, strict=True)])
    expected = (terms if weights is None else weights * terms).mean()
    with monkeypatch.context() as patched:  # its products are not formed
        patched.setattr("sklearn_capacity.penalties.per_layer.pull", None)
        value = per_layer_penalty(module, X, sample_weight=weights, generator=torch.Generator().manual_seed(5))
    assert_same(value.detach(), expected.detach())
    assert_same(gradients(value, module), gradients(expected, module))


def test_per_layer_penalty_of_a_matrix_is_2_g_g_w():
    """[JR] below eq. 52, by matrices, for two layers."""
    module, X = built("mlp")
    module = module[:3]  # linear, rectifier, linear: 6 outputs
    first, _, second = module
    index = torch.randint(6, (4, 1), generator=torch.Generator().manual_seed(0)).flatten()
    per_layer_penalty(module, X, generator=torch.Generator().manual_seed(0)).backward()
    g = second.weight[index] * (first(X) > 0)
    torch.testing.assert_close(first.weight.grad, 2 / 4 * g.T @ g @ first.weight)
    v = torch.eye(6, dtype=torch.float64)[index]
    torch.testing.assert_close(second.weight.grad, 2 / 4 * v.T @ v @ second.weight)


class _NoGraph(nn.Sequential):
    """Has no graph: what it computes depends on the data, if only on whether they are finite."""

    def forward(self, x):
        return super().forward(x) if x.isfinite().all() else x


NORMED = {
    "before": lambda build: build(nn.BatchNorm1d(4), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)),
    "before, not trained": lambda build: build(
        nn.BatchNorm1d(4, affine=False), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)
    ),
    "after": lambda build: build(nn.Linear(4, 5, bias=False), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)),
    "both": lambda build: build(
        *(nn.BatchNorm1d(4), nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.BatchNorm1d(5), nn.Linear(5, 3)),
        nn.BatchNorm1d(3),
    ),
    "convolutions": lambda build: build(
        *(nn.BatchNorm2d(1), nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2), nn.ReLU(), nn.BatchNorm2d(2)),
        *(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(8), nn.Linear(8, 3)),
    ),
    "transposed convolution": lambda build: build(
        *(nn.ConvTranspose2d(1, 4, 2, groups=1), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(150, 3)),
    ),
    "padding": lambda build: build(
        *(nn.ZeroPad2d(1), nn.Conv2d(1, 2, 3), nn.ReLU(), nn.ReflectionPad2d(1), nn.Conv2d(2, 2, 3), nn.Flatten()),
        nn.Linear(18, 3),
    ),
    "padding of the layer": lambda build: build(
        *(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)),
    ),
    "in place": lambda build: build(
        *(nn.BatchNorm1d(4), nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 4), nn.LeakyReLU(0.3, inplace=True)),
        nn.Linear(4, 3),
    ),
}


def _normed(name, build):
    shape = (1, 3, 3) if "conv" in name or "padding" in name else (4,)
    module, X, _ = make(lambda: NORMED[name](build), shape)
    return module, X


@pytest.mark.parametrize("output", ["logits", "softmax"])
@pytest.mark.parametrize("training", [False, True, "some"])
@pytest.mark.parametrize("build", [nn.Sequential, _NoGraph], ids=["chain", "hooks"])
@pytest.mark.parametrize("name", NORMED)
def test_per_layer_penalty_is_that_of_the_layers_own_weights(name, build, training, output):
    """[JR] eq. 52 with a batch norm, or another padding, before a layer, after it, or both."""
    module, X = _normed(name, build)
    plain = copy.deepcopy(module)
    for i, layer in enumerate(plain):
        if getattr(layer, "inplace", False):
            plain[i] = nn.ReLU() if isinstance(layer, nn.ReLU) else nn.LeakyReLU(layer.negative_slope)
    indices = torch.randint(3, (len(X), 1), generator=torch.Generator().manual_seed(5)).flatten().tolist()
    terms = [per_layer(plain, x, index, output) for x, index in zip(X, indices, strict=True)]
    expected = torch.stack(terms).mean()
    module.train(bool(training))
    if training == "some":
        next(module.children()).eval()
    # In training mode, the module runs its own pass, which changes running statistics and is not shared.
    for shared in (None,) if training else (None, forward_pass(module, X)):
        generator = torch.Generator().manual_seed(5)
        value = per_layer_penalty(module, X, output=output, generator=generator, shared=shared)
        assert_same(value.detach(), expected.detach())
        assert_same(gradients(value, module), gradients(expected, plain))
    assert chained(module, X) == (build is nn.Sequential)


def test_per_layer_penalty_shares_the_pass_of_folded_batch_norms(monkeypatch):
    """A norm after its layer changes no product with the layer's transpose, so no second pass is needed."""
    module, X = make_network("resnet20", (3, 8, 8), 3).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for norm in (m for m in module.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.weight, 0.5, 2.0)
    plain = per_layer(module, X[0], 1)
    shared = forward_pass(module, X[:1])
    monkeypatch.setattr("sklearn_capacity.penalties.shared_pass.linearize", None)
    monkeypatch.setattr("torch.randint", lambda high, size, **_: torch.ones(size, dtype=torch.int64))
    value = per_layer_penalty(module, shared.X, shared=shared)
    assert_same(value.detach(), plain.detach())
    assert_same(gradients(value, module), gradients(plain, module))


def test_frozen_parameters_and_no_grad():
    module, X = built("residual")
    parameters = list(module.parameters())
    parameters[0].requires_grad_(False)
    frobenius_penalty(module, X).backward()
    assert parameters[0].grad is None and parameters[-2].grad.abs().max() > 0
    for parameter in parameters:
        parameter.requires_grad_(False)
    assert not frobenius_penalty(module, X).requires_grad
    module, X = built("tanh")
    expected = mean_squared_jacobian(module, X).detach()
    with torch.no_grad():
        assert not spectral_penalty(module, X, output="softmax").requires_grad
        assert_same(frobenius_penalty(module, X), expected)


def test_many_small_stacks_equal_one(monkeypatch):
    module, X = built("max_pool", 5)
    values = {}
    for size in (1, 3000, 1 << 30):
        monkeypatch.setattr("sklearn_capacity.derivatives.input_sweeps.STACK_BYTES", size)
        for penalty in (frobenius_penalty, spectral_penalty, per_layer_penalty):
            value = penalty(module, X, output="softmax")
            result = torch.cat([value.detach()[None], gradients(value, module)])
            assert_same(result, values.setdefault(penalty, result))


def test_stacks_fill_the_cache_of_a_cpu_and_a_share_of_a_gpu_s_memory(monkeypatch):
    graph = Network(nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)), (8,)).graph
    cpu = SimpleNamespace(device=torch.device("cpu"), element_size=lambda: 4)
    gpu = SimpleNamespace(device=torch.device("cuda", 1), element_size=lambda: 4)
    monkeypatch.setattr(chain, "STACK_BYTES", 100 * 32 * 4)
    assert chain.stacks(graph, 10, cpu) == (10, 10) and chain.stacks(graph, 150, cpu) == (75, 1)
    memory = {torch.device("cuda", 1): SimpleNamespace(total_memory=16 * 500 * (8 + 32 + 32 + 4) * 4)}
    monkeypatch.setattr(torch.cuda, "get_device_properties", memory.__getitem__)
    assert chain.stacks(graph, 50, gpu) == (50, 10) and chain.stacks(graph, 600, gpu) == (300, 1)
    memory[torch.device("cuda", 1)].total_memory = 1
    assert chain.stacks(graph, 600, gpu) == (1, 1)


@pytest.mark.parametrize("name", ["residual", "max_pool", "tanh"])
def test_rows_are_the_jacobian(name):
    module, X = built(name)
    module.eval()
    graph = Network(module, tuple(X.shape[1:])).graph
    dense = torch.stack([torch.autograd.functional.jacobian(lambda x: module(x[None])[0], x).flatten(1) for x in X])
    torch.testing.assert_close(jacobian_rows(graph, X), dense, rtol=1e-10, atol=1e-12)
    V = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.einsum("knc,ncd->nkd", V, dense)
    torch.testing.assert_close(jacobian_rows(graph, X, V), expected, rtol=1e-10, atol=1e-12)
    expected = torch.einsum("kc,ncd->nkd", V[:, 0], dense)
    torch.testing.assert_close(jacobian_rows(graph, X, V[:, 0]), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["conv_batch_norm", "residual", "tanh", "max_pool_overlapping"])
def test_a_sweep_that_ends_at_the_first_layers_keeps_the_same_cotangents(name):
    module, X = built(name)
    graph = Network(module, tuple(X.shape[1:])).graph
    with torch.no_grad():
        tape = chain.linearize(graph, X)
        v = torch.linspace(-1, 1, tape.logits.numel(), dtype=X.dtype).reshape_as(tape.logits)
        kept, shorter = {}, {}
        chain.pull(tape, v, lambda node, g, part: kept.update({node.name: g.clone()}))
        chain.pull_to_layers(tape, v, lambda node, g, part: shorter.update({node.name: (g.clone(), part)}))
    assert kept.keys() == shorter.keys()
    assert any(part is None for _, part in shorter.values())
    for node, g in kept.items():
        torch.testing.assert_close(shorter[node][0], g)


@pytest.mark.parametrize("name", [*CASES, "resnet20"])
def test_both_sweeps_keep_the_channels_last(name):
    """In another layout than the slopes' an exact penalty on a ResNet-20 took a quarter longer."""
    module, X = (make_network(name, (3, 8, 8), 3), torch.randn(2, 3, 8, 8)) if name == "resnet20" else built(name)
    tape = chain.linearize(Network(module.eval(), tuple(X.shape[1:]), dtype=X.dtype).graph, X)
    seen = [slope for slope in tape.slopes.values() if slope is not None]
    with torch.no_grad():
        rows = chain.pull(tape, torch.ones_like(tape.logits), lambda _, g, part: seen.extend((g, part)))
        chain.push(tape, rows, lambda _, t: seen.append(t))
    images = [t for t in seen if t.dim() == 4]
    assert bool(images) == (X.dim() == 4)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in images)


@pytest.mark.parametrize("name", ["mlp", "residual", "one_channel", "gelu"])
def test_single_precision_agrees_with_double(name):
    module, X = built(name)
    for penalty in (frobenius_penalty, spectral_penalty):
        exact = gradients(penalty(module.double(), X), module)
        single = gradients(penalty(module.float(), X.float()), module)
        torch.testing.assert_close(single.double(), exact, rtol=1e-3, atol=1e-4 * float(exact.abs().max()))


class Attention(nn.Module):
    """One head, by torch's fused operator, whose fast kernels cannot be differentiated twice, or written out."""

    def __init__(self, fused: bool):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.qkv, self.head = nn.Linear(4, 12), nn.Linear(4, 3)
        self.fused = fused

    def forward(self, x):
        q, k, v = self.qkv(x)[:, None].chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(q, k, v) if self.fused else (q @ k.mT / 2).softmax(-1) @ v
        return self.head(mixed.mean((1, 2)))


@pytest.mark.parametrize("norm", PENALTIES)
def test_fused_attention_is_penalised(norm):
    X = torch.randn(3, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fused, written_out = Attention(True).double(), Attention(False).double()
    values = [JacobianPenalty(norm, generator=torch.Generator())(module, X) for module in (fused, written_out)]
    assert_same(values[0].detach(), values[1].detach())
    assert_same(gradients(values[0], fused), gradients(values[1], written_out))


def test_attention_has_its_fast_kernels_back_after_penalties_in_threads():
    X, flags = torch.randn(3, 5, 4), torch.backends.cuda
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: frobenius_penalty(Attention(True), X), range(30)))
    assert flags.flash_sdp_enabled() and flags.mem_efficient_sdp_enabled() and flags.math_sdp_enabled()


def test_bad_requests_raise():
    with pytest.raises(ValueError, match="the layers that this penalty sums over, got none"):
        per_layer_penalty(torch.sin, torch.randn(3, 2))
    with pytest.raises(ValueError, match="`norm` must be one of .*Did you mean 'frobenius'"):
        JacobianPenalty("frobenious")


@pytest.mark.parametrize("norm", PENALTIES)
def test_two_fits_give_equal_bits_and_a_penalty_lowers_itself(norm):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 12)).astype("float32"), np.arange(60) % 3
    options = {"jacobian_norm": norm, "max_epochs": 15, "batch_size": 20, "random_state": 0, "batch_norm": True}
    fits = [JacobianRegularizedClassifier((16,), jacobian_penalty=s, **options).fit(X, y) for s in (0.3, 0.3, 0.0)]
    modules = [fit.net_.module_ for fit in fits]
    states = [list(module.state_dict().values()) for module in modules]
    assert all(torch.equal(a, b) for a, b in zip(states[0], states[1], strict=True))
    strong, none = (frobenius_penalty(modules[i], torch.as_tensor(X)).item() for i in (0, 2))
    assert strong < 0.8 * none


@pytest.mark.parametrize("norm", PENALTIES)
@pytest.mark.parametrize("name", FALLBACKS)
def test_modules_without_a_graph_can_be_fitted(name, norm):
    X, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) % 3
    model = JacobianRegularizedClassifier(module=FALLBACKS[name][0], jacobian_norm=norm, max_epochs=2, random_state=0)
    assert np.isfinite(model.fit(X, y).predict_proba(X)).all()
