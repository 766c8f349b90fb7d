"""Generalization layers: their formulas, their slow weights, and their insertion into any network."""

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
    RowNormalizedConv2d,
    RowNormalizedLinear,
    generalization_layers,
    generalization_parameters,
    he_initialize,
    insert_generalization_layer,
    normalize_rows,
    nu_schedule,
    set_nu,
    slow_learning_factor,
    slow_start,
)
from sklearn_capacity.layers.initialization import scale_branches


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def image_network():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 2, 1)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


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
    hidden = torch.relu((nn.functional.conv2d(x, conv1.weight, None, 2, 1) - norm1.running_mean[:, None, None])
                        / (1 + norm1.eps) ** 0.5)
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


@pytest.mark.parametrize("make", [
    lambda: GeneralizationLayer(4, depth=2, nu=0.2),
    lambda: ConvGeneralizationLayer(4, 6, 2, form="conv3x3", nu=0.2),
    lambda: GeneralizationWrap(nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(4, 2, bias=False), nu=0.2),
    lambda: GeneralizationDropout(4),
    lambda: ConvGeneralizationDropout(4, form="conv3x3"),
])
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


# insertion

CASES = [
    ("skip", None, {}),
    ("skip", "wrap", {"depth": 2, "activation": "identity"}),
    ("skip", "block", {}),
    ("skip", "block", {"depth": 2, "nu": 0.5}),
    ("dropout", None, {"p": 0.25}),
]


@pytest.mark.parametrize(("variant", "form", "params"), CASES)
@pytest.mark.parametrize("position", ["head", "3", 3, 0])
def test_insertion_leaves_the_original_alone_and_trains(variant, form, params, position):
    network = image_network()
    state = copy.deepcopy(network.state_dict())
    names = [name for name, _ in network.named_modules()]
    rng = torch.get_rng_state()
    x = torch.randn(4, 3, 8, 8)
    torch.set_rng_state(rng)
    longer = insert_generalization_layer(network, position, variant, form, **params)
    assert [name for name, _ in network.named_modules()] == names and network[2].inplace
    assert all(torch.equal(state[k], v) for k, v in network.state_dict().items())
    assert longer.training and longer(x).shape == (4, 4)
    longer(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in longer.parameters())
    assert all(p.grad is None for p in network.parameters())
    assert not {id(p) for p in network.parameters()} & {id(p) for p in longer.parameters()}
    pickle.loads(pickle.dumps(longer))


def test_wrap_at_the_head_is_the_formula():
    network = image_network().double().eval()
    longer = insert_generalization_layer(network, nu=0.3)
    assert isinstance(longer[7], GeneralizationWrap)
    x = draw(3, 3, 8, 8)
    features = network[:7](x)
    wrap = longer[7]
    expected = network[7](torch.relu(wrap.body(features))) + float(wrap.nu) * wrap.shortcut(features)
    torch.testing.assert_close(longer(x), expected)


def test_block_goes_before_the_head_or_replaces_it():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    x = draw(5, 4)
    before = insert_generalization_layer(network, "head", "skip", "block")
    features = network[:2](x)
    torch.testing.assert_close(before(x), network[2](before[2].generalization(features)))
    instead = insert_generalization_layer(network, "head", "skip", "block", replace=True)
    assert isinstance(instead[2], GeneralizationLayer) and instead(x).shape == (5, 3)
    assert tuple(instead[2].shortcut.weight.shape) == (3, 6)


@pytest.mark.parametrize(("kernel", "stride", "dilation"), [(5, 1, 1), (3, 2, 1), (3, 1, 2), (4, 2, 1)])
def test_skip_over_an_unpadded_convolution_reads_the_centre_of_each_window(kernel, stride, dilation):
    conv = nn.Conv2d(2, 3, kernel, stride, dilation=dilation).double()
    wrap = insert_generalization_layer(conv, "head")
    nn.init.zeros_(wrap.layer.weight), nn.init.zeros_(wrap.layer.bias)
    x = draw(1, 2, 11, 12)
    y = wrap(x)
    assert y.shape == conv(x).shape
    projection = wrap.shortcut[1].weight[:, :, 0, 0]
    centre = dilation * (kernel - 1) // 2
    for row in range(y.shape[2]):
        for column in range(y.shape[3]):
            seen = x[0, :, row * stride + centre, column * stride + centre]
            torch.testing.assert_close(y[0, :, row, column], projection @ seen)


def test_stage_is_replaced_with_its_stride_and_channels():
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Sequential(nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1)), nn.ReLU())
    for form in ("block", "conv3x3"):
        new = insert_generalization_layer(network, 1, "skip", form, replace=True, input_shape=(3, 9, 9))
        assert isinstance(new[1], ConvGeneralizationLayer)
        assert new(torch.zeros(2, 3, 9, 9)).shape == network(torch.zeros(2, 3, 9, 9)).shape == (2, 8, 5, 5)
    wrapped = insert_generalization_layer(network, "1", input_shape=(3, 9, 9))
    assert wrapped(torch.zeros(2, 3, 9, 9)).shape == (2, 8, 5, 5)


def test_three_by_three_dropout_goes_before_the_pooling():
    network = image_network()
    longer = insert_generalization_layer(network, 5, "dropout", "conv3x3", input_shape=(3, 8, 8))
    assert isinstance(longer[5].generalization, ConvGeneralizationDropout)
    assert longer.training and all(m.training for m in longer.modules())  # looking at the shapes left no trace
    assert torch.equal(longer[1].running_mean, network[1].running_mean)
    assert longer(torch.zeros(2, 3, 8, 8)).shape == (2, 4)


class Backwards(nn.Module):
    """Registers its layers in the order opposite to that of execution."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 3)
        self.first = nn.Linear(4, 6)

    def forward(self, x):
        return self.last(torch.relu(self.first(x)))


def test_head_is_the_last_executed_if_the_shape_is_known():
    assert isinstance(insert_generalization_layer(Backwards(), "head", input_shape=(4,)).last, GeneralizationWrap)
    assert isinstance(insert_generalization_layer(Backwards(), "head").first, GeneralizationWrap)


def test_head_may_be_a_convolution_or_the_module_itself():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert isinstance(insert_generalization_layer(network)[2].body[0], nn.Conv2d)
    assert isinstance(insert_generalization_layer(nn.Linear(3, 2)), GeneralizationWrap)


def test_new_layers_take_dtype_and_mode_of_the_network():
    network = image_network().double().eval()
    longer = insert_generalization_layer(network, 5, "skip", "block", input_shape=(3, 8, 8))
    assert {p.dtype for p in longer.parameters()} == {torch.float64} and longer[5].generalization.nu.dtype == torch.float64
    assert not longer[5].training and not longer[5].generalization.body.training


@pytest.mark.parametrize("variant", ["skip", "dropout"])
def test_in_place_activations_do_not_overwrite_what_the_new_layer_saved(variant):
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    longer = insert_generalization_layer(network, 1, variant, input_shape=(4,)).eval()
    x = torch.randn(5, 4, requires_grad=True)
    longer(x).sum().backward()  # in place, autograd would raise here
    assert x.grad.isfinite().all() and network[1].inplace


MESSAGES = [
    ({"position": "heat"}, "`position` must be 'head', an index or the name of a submodule, got 'heat'"),
    ({"position": ""}, "`position` must be 'head', an index or the name"),
    ({"position": 9}, "`position` must be between -8 and 7, got 9"),
    ({"variant": "skipp"}, "`variant` must be one of .* Did you mean 'skip'"),
    ({"form": "wrapp"}, "`form` must be one of .* Did you mean 'wrap'"),
    ({"variant": "dropout", "form": "wrap"}, "`form` must be one of 'block', 'conv3x3', got 'wrap'"),
    ({"form": "conv3x3"}, "form='conv3x3' needs feature maps, but '7' gets vectors"),
    ({"variant": "dropout", "form": "conv3x3"}, "form='conv3x3' needs feature maps"),
    ({"position": 5}, "`input_shape` is needed to find the shapes at '5', a AdaptiveAvgPool2d"),
    ({"position": 6, "input_shape": (3, 8, 8)}, "form='wrap' cannot put a skip over '6'"),
    ({"position": 6, "form": "block", "replace": True, "input_shape": (3, 8, 8)}, "`replace` cannot put a block"),
    ({"replace": True}, "`replace` needs variant='skip' and form='block'"),
    ({"depth": 3}, "`depth` must be one of 1, 2, got 3"),
    ({"activation": "tanh"}, "`activation` must be one of 'relu', 'identity', got 'tanh'"),
    ({"variant": "dropout", "p": 1.0}, r"`p` must lie in \[0, 1\), got 1. At 1 no node would be left"),
    ({"nu": 0.0}, "`nu` must lie in"),
]


@pytest.mark.parametrize(("params", "message"), MESSAGES)
def test_insertion_errors(params, message):
    with pytest.raises(ValueError, match=message):
        insert_generalization_layer(image_network(), **params)


def test_insertion_errors_of_odd_modules():
    with pytest.raises(TypeError, match="`module` must be a torch.nn.Module, got str"):
        insert_generalization_layer("resnet20")
    with pytest.raises(ValueError, match="the module has no Linear or Conv2d"):
        insert_generalization_layer(nn.ReLU())
    with pytest.raises(ValueError, match="must have parameters"):
        insert_generalization_layer(nn.ReLU(), input_shape=(3,))
    with pytest.raises(ValueError, match="cannot put a skip over"):  # padded by more than half its window
        insert_generalization_layer(nn.Conv2d(2, 2, 3, padding=2))
    volume = nn.Sequential(nn.Conv3d(1, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(16, 2))
    with pytest.raises(ValueError, match="vectors or images, but '1' gets"):
        insert_generalization_layer(volume, 1, input_shape=(1, 2, 2, 2))
    network = image_network()
    network.spare = nn.ReLU()
    with pytest.raises(ValueError, match="must name a submodule that maps one tensor to one, got 'unused'"):
        insert_generalization_layer(Unused(), "unused", input_shape=(3,))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.ReLU()

    def forward(self, x):
        return self.used(x)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: GeneralizationLayer(0), "`in_features` must be at least 1"),
    (lambda: ConvGeneralizationLayer(2, stride=0), "`stride` must be at least 1"),
    (lambda: ConvGeneralizationLayer(2, form="conv5x5"), "`form` must be one of 'conv1x1', 'conv3x3'"),
    (lambda: ConvGeneralizationDropout(2, form="conv5x5"), "`form` must be one of"),
    (lambda: GeneralizationDropout(2, -0.1), r"`p` must lie in \[0, 1\)"),
])
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


def test_slow_start_tells_epochs_from_fractions():
    assert [slow_start(after, 50) for after in (0, 1, 20, 0.0, 0.5, 1.0, np.int64(3))] == [0, 1, 20, 0, 25, 50, 3]
    assert [slow_learning_factor(e, 10, 0.3, 0.2) for e in range(5)] == [1.0, 1.0, 1.0, 0.2, 0.2]
    assert slow_learning_factor(0, 10, 0) == 0.1  # [GL] figure 7: slow from the beginning


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda: nu_schedule(0, 10, end=0.0), ValueError, r"`end` must lie in \(0, inf\), got 0. 0 would cut"),
    (lambda: nu_schedule(-1, 10), ValueError, "`epoch` must be at least 0"),
    (lambda: nu_schedule(0, 10, decay_fraction=1.5), ValueError, r"`decay_fraction` must lie in \[0, 1\]"),
    (lambda: slow_start(20.0, 100), ValueError, "`slow_after` must lie in .* pass an int for a number of epochs"),
    (lambda: slow_start(-1, 100), ValueError, "`slow_after` must be at least 0"),
    (lambda: slow_start("20", 100), TypeError, "`slow_after` must be a number"),
    (lambda: slow_learning_factor(0, 10, slow_factor=-1), ValueError, "`slow_factor` must lie in"),
])
def test_schedule_errors(call, error, message):
    with pytest.raises(error, match=message):
        call()


# row norm and initialisation


def test_row_normalised_layers_ignore_the_scale_of_their_rows():
    for layer, x in ((RowNormalizedLinear(5, 3), draw(4, 5)), (RowNormalizedConv2d(2, 3, 3), draw(2, 2, 6, 6))):
        layer = layer.double()
        y = layer(x)
        plain = copy.deepcopy(layer)
        plain.__class__ = type(layer).__bases__[0]
        norms = torch.tensor([row.flatten().norm() for row in layer.weight.detach()], dtype=torch.float64)
        shape = (1, -1) if y.dim() == 2 else (1, -1, 1, 1)
        bias = layer.bias.reshape(shape)
        torch.testing.assert_close(y - bias, (plain(x) - bias) / norms.reshape(shape))
        layer.weight.data *= torch.tensor([0.5, 3.0, 7.0], dtype=torch.float64).reshape(-1, *(1,) * (x.dim() - 1))
        torch.testing.assert_close(layer(x), y)
        pickle.loads(pickle.dumps(layer))
    assert torch.equal(normalize_rows(torch.zeros(2, 3)), torch.zeros(2, 3))


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
