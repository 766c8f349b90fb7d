"""Generalization layers: their formulas, their slow weights, their schedules and their initialisation."""

from __future__ import annotations

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_capacity.layers import (
    ConvGeneralizationDropout,
    ConvGeneralizationLayer,
    GeneralizationDropout,
    GeneralizationLayer,
    GeneralizationWrap,
    generalization_layers,
    generalization_parameters,
    he_initialize,
    insert_generalization_layer,
    nu_schedule,
    set_nu,
    slow_learning_factor,
    slow_start,
)
from sklearn_capacity.layers.initialization import scale_branches


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


# the formulas, written as numpy loops


@pytest.mark.parametrize("out_features", [None, 3])
@pytest.mark.parametrize("depth", [1, 2])
def test_linear_layer_is_its_formula(depth, out_features):
    layer = GeneralizationLayer(5, out_features, depth=depth, nu=0.3).double()
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = draw(7, 5)
    weights = [p.detach().numpy() for p in layer.body.parameters()]
    expected = x.numpy() @ weights[0].T + weights[1]
    if depth == 2:
        expected = np.maximum(expected, 0) @ weights[2].T + weights[3]
    skip = np.eye(5) if out_features is None else layer.shortcut.weight.detach().numpy()
    expected += float(layer.nu) * x.numpy() @ skip.T
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, rtol=1e-12)
    assert layer.shortcut is not None and all(name != "bias" for name, _ in layer.shortcut.named_parameters())


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_one_by_one_form_is_the_linear_layer_at_each_place(stride):
    conv = ConvGeneralizationLayer(4, 6, stride, depth=2, nu=0.7).double()
    flat = GeneralizationLayer(4, 6, depth=2, nu=0.7).double()
    flat.load_state_dict({k: v.flatten(1) if v.dim() == 4 else v for k, v in conv.state_dict().items()})
    x = draw(2, 4, 7, 8)
    y = conv(x)
    assert y.shape[2:] == (-(-7 // stride), -(-8 // stride))
    for row in range(y.shape[2]):
        for column in range(y.shape[3]):
            torch.testing.assert_close(y[:, :, row, column], flat(x[:, :, row * stride, column * stride]))


def test_identity_skip_has_no_parameters_and_projection_has_no_bias():
    assert isinstance(ConvGeneralizationLayer(4).shortcut, nn.Identity)
    projection = ConvGeneralizationLayer(4, 4, stride=2, form="conv3x3").shortcut
    assert [tuple(p.shape) for p in projection.parameters()] == [(4, 4, 1, 1)]


def test_three_by_three_form_is_conv_norm_relu_conv_norm():
    layer = ConvGeneralizationLayer(3, 5, 2, form="conv3x3", nu=0.4).double().eval()
    conv1, norm1, _, conv2, norm2 = layer.body
    norm1.running_mean.normal_(), norm2.weight.data.normal_()
    x = draw(2, 3, 9, 9)
    hidden = torch.relu(
        (nn.functional.conv2d(x, conv1.weight, None, 2, 1) - norm1.running_mean[:, None, None]) / (1 + norm1.eps) ** 0.5
    )
    hidden = nn.functional.conv2d(hidden, conv2.weight, None, 1, 1) / (1 + norm2.eps) ** 0.5
    hidden = hidden * norm2.weight[:, None, None]
    skip = torch.einsum("oi,nihw->nohw", layer.shortcut.weight[:, :, 0, 0], x[:, :, ::2, ::2])
    torch.testing.assert_close(layer(x), hidden + float(layer.nu) * skip)
    assert len(ConvGeneralizationLayer(3, form="conv3x3", depth=1).body) == 2


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_wrap_is_figure_3(activation):
    layer, body, skip = nn.Linear(4, 3), nn.Linear(4, 4), nn.Linear(4, 3, bias=False)
    wrap = GeneralizationWrap(layer, body, skip, activation, nu=0.25).double()
    x = draw(6, 4)
    new_nodes = x @ body.weight.T + body.bias
    new_nodes = new_nodes.clamp_min(0) if activation == "relu" else new_nodes
    torch.testing.assert_close(wrap(x), new_nodes @ layer.weight.T + layer.bias + 0.25 * x @ skip.weight.T)


def test_dropout_layer_drops_its_own_nodes_only():
    p, n = 0.75, 40_000
    layer = GeneralizationDropout(3, p).double()
    with torch.no_grad():
        layer.body.weight.copy_(torch.eye(3))
    x = torch.ones(n, 3, dtype=torch.float64)
    torch.testing.assert_close(layer.eval()(x), x)
    y = layer.train()(x)
    assert set(y.unique().tolist()) == {0.0, 1 / (1 - p)}
    kept = (y > 0).double().mean(0)
    assert ((kept - (1 - p)).abs() < 4 * (p * (1 - p) / n) ** 0.5).all()


def test_dropout_layer_for_maps():
    layer = ConvGeneralizationDropout(4, 0.5, 2).double().eval()
    x = draw(2, 4, 6, 6)
    expected = torch.einsum("oi,nihw->nohw", layer.body[0].weight[:, :, 0, 0], x[:, :, ::2, ::2]).clamp_min(0)
    torch.testing.assert_close(layer(x), expected)
    big = ConvGeneralizationDropout(4, 0.5, form="conv3x3")
    assert [type(part).__name__ for part in big.body] == ["Conv2d", "BatchNorm2d", "ReLU", "Conv2d", "BatchNorm2d"]
    assert (big.eval()(x.float()) >= 0).all()


@pytest.mark.parametrize(
    "make",
    [
        lambda: GeneralizationLayer(4, depth=2, nu=0.2),
        lambda: ConvGeneralizationLayer(4, 6, 2, form="conv3x3", nu=0.2),
        lambda: GeneralizationWrap(nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 2, bias=False), nu=0.2),
        lambda: GeneralizationDropout(4),
        lambda: ConvGeneralizationDropout(4, form="conv3x3"),
    ],
)
def test_layers_copy_pickle_save_and_export(make):
    layer = make().double().eval()
    x = draw(2, 4, 6, 6) if "Conv" in type(layer).__name__ else draw(2, 4)
    expected = layer(x)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
    buffer = io.BytesIO()
    torch.save(layer.state_dict(), buffer)
    fresh = make().double().eval()
    fresh.load_state_dict(torch.load(io.BytesIO(buffer.getvalue())))
    torch.testing.assert_close(fresh(x), expected, rtol=0, atol=0)
    shapes = {0: torch.export.Dim.AUTO}
    program = torch.export.export(layer, (x,), dynamic_shapes=(shapes,), strict=False)
    torch.testing.assert_close(program.module()(x), expected)


# nu and the slow weights


@pytest.mark.parametrize("nu", [0, -1.0, float("nan"), float("inf")])
def test_nu_must_be_positive(nu):
    with pytest.raises(ValueError, match=r"`nu` must lie in \(0, inf\), got .* would cut the network"):
        GeneralizationLayer(3, nu=nu)
    layer = GeneralizationLayer(3)
    with pytest.raises(ValueError, match="`nu` must lie in"):
        layer.set_nu(nu)
    assert float(layer.nu) == 1.0


def test_set_nu_reaches_every_layer_and_follows_dtype():
    network = nn.Sequential(GeneralizationLayer(2), nn.Sequential(GeneralizationLayer(2, depth=2)), nn.Linear(2, 1))
    network.double()
    assert set_nu(network, 0.1) == 2
    assert [(layer.nu.dtype, float(layer.nu)) for layer in generalization_layers(network)] == [(torch.float64, 0.1)] * 2
    assert set_nu(nn.Linear(2, 2), 0.1) == 0
    assert "nu=0.1" in repr(network)


def test_slow_parameters_are_the_new_weights_only():
    skip = insert_generalization_layer(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    wrap = next(generalization_layers(skip))
    assert set(generalization_parameters(skip)) == set(wrap.body.parameters())
    assert not set(generalization_parameters(skip)) & (set(wrap.layer.parameters()) | set(wrap.shortcut.parameters()))
    dropout = insert_generalization_layer(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), "head", "dropout")
    assert list(generalization_parameters(dropout)) == []


def test_shared_slow_parameters_come_once():
    layer = GeneralizationLayer(3)
    outer = GeneralizationWrap(nn.Linear(3, 3), nn.Sequential(layer, layer), nn.Identity())
    assert len(list(generalization_parameters(nn.Sequential(outer, layer)))) == len(list(layer.body.parameters()))


def test_slow_group_moves_a_tenth_as_far():
    network = insert_generalization_layer(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    slow = list(generalization_parameters(network))
    rest = [p for p in network.parameters() if all(p is not q for q in slow)]
    before = {p: p.detach().clone() for p in network.parameters()}
    optimizer = torch.optim.SGD([{"params": rest}, {"params": slow, "lr": 0.01}], lr=0.1)
    network(torch.randn(5, 4)).square().mean().backward()
    optimizer.step()
    for p in network.parameters():
        rate = 0.01 if any(p is q for q in slow) else 0.1
        torch.testing.assert_close(before[p] - p.detach(), rate * p.grad)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GeneralizationLayer(0), "`in_features` must be at least 1"),
        (lambda: ConvGeneralizationLayer(2, stride=0), "`stride` must be at least 1"),
        (lambda: ConvGeneralizationLayer(2, form="conv5x5"), "`form` must be one of 'conv1x1', 'conv3x3'"),
        (lambda: ConvGeneralizationDropout(2, form="conv5x5"), "`form` must be one of"),
        (lambda: GeneralizationDropout(2, -0.1), r"`p` must lie in \[0, 1\)"),
    ],
)
def test_layer_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# schedules


def test_nu_schedule_is_linear_then_constant():
    values = np.array([nu_schedule(epoch, 100) for epoch in range(100)])
    assert values[0] == 1.0 and set(values[80:]) == {0.1}
    np.testing.assert_allclose(np.diff(values[:81]), -0.9 / 80, rtol=1e-9)
    figure_7 = [nu_schedule(epoch, 1000, decay_fraction=0.5) for epoch in (0, 250, 500, 999, 5000)]
    np.testing.assert_allclose(figure_7, [1.0, 0.55, 0.1, 0.1, 0.1])
    assert nu_schedule(0, 10, decay_fraction=0) == 0.1 and nu_schedule(3, 10, 0.2, 0.2) == 0.2


def test_slow_start_distinguishes_epochs_from_fractions():
    assert [slow_start(after, 50) for after in (0, 1, 20, 0.0, 0.5, 1.0, np.int64(3))] == [0, 1, 20, 0, 25, 50, 3]
    assert [slow_learning_factor(e, 10, 0.3, 0.2) for e in range(5)] == [1.0, 1.0, 1.0, 0.2, 0.2]
    assert slow_learning_factor(0, 10, 0) == 0.1  # [GL] figure 7: slow from the beginning


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: nu_schedule(0, 10, end=0.0), ValueError, r"`end` must lie in \(0, inf\), got 0. 0 would cut"),
        (lambda: nu_schedule(-1, 10), ValueError, "`epoch` must be at least 0"),
        (lambda: nu_schedule(0, 10, decay_fraction=1.5), ValueError, r"`decay_fraction` must lie in \[0, 1\]"),
        (lambda: slow_start(20.0, 100), ValueError, "`slow_after` must lie in .* pass an int for a number of epochs"),
        (lambda: slow_start(-1, 100), ValueError, "`slow_after` must be at least 0"),
        (lambda: slow_start("20", 100), TypeError, "`slow_after` must be a number"),
        (lambda: slow_learning_factor(0, 10, slow_factor=-1), ValueError, "`slow_factor` must lie in"),
    ],
)
def test_schedule_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


# initialisation


def test_he_initialisation_needs_floats_that_torch_can_draw():
    with pytest.raises(TypeError, match=r"^`module` must have weights in float16 to float64, got torch.float8_e4m3fn"):
        he_initialize(nn.Linear(2, 2).to(torch.float8_e4m3fn))


def test_he_initialisation_has_variance_two_over_fan_in():
    for layer, fan_in in ((nn.Linear(200, 300), 200), (nn.Conv2d(20, 80, 5), 500)):
        scaled = he_initialize(layer).weight.detach().double() * (fan_in / 2) ** 0.5
        n = scaled.numel()
        assert abs(float(scaled.mean())) < 4 * n**-0.5
        assert abs(float(scaled.square().mean()) - 1) < 4 * (2 / n) ** 0.5
        assert not layer.bias.any()


def test_scaled_branches_keep_the_second_moment_below_e():
    def growth(scale):
        branches = [he_initialize(nn.Linear(300, 300, bias=False)) for _ in range(12)]
        if scale:
            scale_branches(branches)
        h = torch.randn(100, 300)
        start = h.square().mean()
        with torch.no_grad():
            for branch in branches:
                h = h + branch(h)  # without a ReLU He's weights triple the second moment
        return float(h.square().mean() / start)

    assert growth(True) < 1.3 * (1 + 2 / 12) ** 12  # 30 % for the draw
    assert growth(False) > 0.5 * 3**12
