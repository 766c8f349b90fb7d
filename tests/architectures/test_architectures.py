"""Every architecture by name: its parameter count, one training step, its graph by torch.export."""

from __future__ import annotations

import copy
import pickle
import re
from ast import literal_eval
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_capacity.architectures import ARCHITECTURES, ConvNet, make_network
from sklearn_capacity.architectures.blocks import convolution, linear
from sklearn_capacity.layers import SkipLayer, generalization_layers, generalization_parameters

IMAGE, DIGIT, POINT = (3, 32, 32), (1, 8, 8), (1,)

#: name -> (shape and outputs of the paper, trainable parameters, shape for the quick tests)
EXPECTED = {
    "mlp": ((64,), 10, 64 * 100 + 100 + 100 * 10 + 10, DIGIT),
    "conv": ((1, 28, 28), 10, (25 + 1) * 32 + (32 * 25 + 1) * 32 + (32 * 49 + 1) * 10, DIGIT),
    "all_cnn_c": (IMAGE, 10, 1_369_738 + 3 * 96 + 5 * 192, DIGIT),  # published 1.4 M; biases become batch norm's two
    "vgg": (IMAGE, 10, 4_955_082, (1, 16, 16)),
    "resnet20": (IMAGE, 10, 269_722, DIGIT),  # 0.27 M
    "resnet32": (IMAGE, 10, 464_154, DIGIT),  # 0.46 M
    "resnet44": (IMAGE, 10, 658_586, DIGIT),  # 0.66 M
    "resnet56": (IMAGE, 10, 853_018, DIGIT),  # 0.85 M
    "resnet110": (IMAGE, 10, 1_727_962, DIGIT),  # 1.7 M
    "resnet20_gl": (IMAGE, 10, 219_706, DIGIT),
    "resnet56_gl": (IMAGE, 10, 691_642, DIGIT),
    "resnet20_gld": (IMAGE, 10, 343_706, DIGIT),  # printed as 0.3 M
    "resnet56_gld": (IMAGE, 10, 927_002, DIGIT),  # 0.93 M
    "preact_resnet18": (IMAGE, 10, 11_172_170, DIGIT),
    "wrn_22_5": (IMAGE, 10, 6_711_194, DIGIT),
    "residual_mlp": (POINT, 1, 36_160, POINT),  # as published
    "residual_mlp_gl": (POINT, 1, 17 * 2 + 90 * 17 * 18 + 18, POINT),
}
NAMES = sorted(EXPECTED)


def count(network):
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def test_every_architecture_is_tested():
    assert sorted(ARCHITECTURES) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_parameter_count(name):
    shape, n_outputs, expected, _ = EXPECTED[name]
    assert count(make_network(name, shape, n_outputs)) == expected


def test_documented_counts_are_these():
    page = (Path(__file__).parents[2] / "docs" / "architectures.rst").read_text()
    rows = re.findall(r"\* - ``(\w+)``\n +- (\(.*\))\n +- ([\d,]+)\n", page)
    documented = {name: (literal_eval(shape), int(number.replace(",", ""))) for name, shape, number in rows}
    assert documented == {name: (row[0], row[2]) for name, row in EXPECTED.items()}


@pytest.mark.parametrize("name", NAMES)
def test_one_training_step_lowers_the_loss(name):
    shape = EXPECTED[name][3]
    network = make_network(name, shape, 3).double().train()
    X = torch.randn(6, *shape, dtype=torch.float64)
    y = torch.tensor([0, 1, 2, 0, 1, 2])

    def loss():
        torch.manual_seed(1)  # the same dropout masks before and after
        return nn.functional.cross_entropy(network(X), y)

    value = loss()
    value.backward()
    before = float(value.detach())
    gradients = [p.grad for p in network.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    norm = sum(float(g.square().sum()) for g in gradients)
    promised = 1e-5 * before
    torch.optim.SGD(network.parameters(), lr=promised / norm).step()
    assert abs((before - float(loss().detach())) / promised - 1) < 0.1  # what the gradient promises


# deeper ResNets are the same class as 20, and cost seconds each
EXPORTED = [(name, {}) for name in NAMES if not name.startswith(("resnet3", "resnet4", "resnet5", "resnet11"))]
EXPORTED += [(name, {"weight_norm": True}) for name in ("mlp", "conv", "resnet20")]


@pytest.mark.parametrize(("name", "params"), EXPORTED)
def test_export_gives_the_same_function(name, params):
    shape = EXPECTED[name][3]
    network = make_network(name, shape, 4, **params).double().eval()
    X = torch.randn(2, *shape, dtype=torch.float64)
    program = torch.export.export(network, (X,), dynamic_shapes=({0: torch.export.Dim.AUTO},), strict=False)
    torch.testing.assert_close(program.module()(X), network(X))


@pytest.mark.parametrize("name", sorted({kind: name for name, (kind, _) in ARCHITECTURES.items()}.values()))
def test_networks_pickle_and_follow_the_seed(name):
    shape = EXPECTED[name][3]
    networks = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        networks.append(make_network(name, shape, 2).eval())
    X = torch.randn(2, *shape)
    outputs = [network(X) for network in (*networks, pickle.loads(pickle.dumps(networks[0])))]
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[3])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("params", [{"batch_norm": True}, {"batch_norm": False}, {"weight_norm": True}])
@pytest.mark.parametrize(
    "name",
    ["mlp", "conv", "all_cnn_c", "vgg", "resnet20", "preact_resnet18", "wrn_22_5", "residual_mlp", "residual_mlp_gl"],
)
def test_options_do_what_they_say(name, params):
    shape = EXPECTED[name][3]
    network = make_network(name, shape, 3, **params).eval()
    if "batch_norm" in params:
        norms = [m for m in network.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
        assert bool(norms) == params["batch_norm"]
    else:
        maps = [m for m in network.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
        assert all(hasattr(m, "effective_weight") for m in maps)
        for m in maps:
            torch.testing.assert_close(m.effective_weight.flatten(1).norm(dim=1), torch.ones(len(m.weight)))
    network.train()
    assert network(torch.randn(4, *shape)).isfinite().all()


def test_resnet_without_batch_norm_stays_of_order_one():
    network = make_network("resnet110", DIGIT, 10, batch_norm=False)
    with torch.no_grad():
        assert float(network(torch.randn(8, *DIGIT)).std()) < 10


# shapes


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("conv", (1, 4, 4)),
        ("conv", (2, 9, 13)),
        ("all_cnn_c", (3, 4, 7)),
        ("vgg", (3, 17, 30)),
        ("resnet20", (1, 4, 5)),
        ("preact_resnet18", (3, 8, 8)),
        ("preact_resnet18", (3, 64, 64)),
        ("wrn_22_5", (2, 4, 4)),
        ("mlp", (2, 3, 4)),
        ("residual_mlp", (2, 3)),
        ("residual_mlp", 5),
    ],
)
@pytest.mark.parametrize("n_outputs", [1, 7])
def test_any_reasonable_shape(name, shape, n_outputs):
    network = make_network(name, shape, n_outputs).eval()
    shape = (shape,) if isinstance(shape, int) else shape
    assert network(torch.randn(2, *shape)).shape == (2, n_outputs)


def test_numpy_s_integers_are_integers():
    assert make_network("mlp", np.int64(6), np.int32(3))(torch.zeros(2, 6)).shape == (2, 3)
    network = make_network("preact_resnet18", DIGIT, 3, channels=(2, 2), n_blocks=np.int64(1))
    assert network(torch.zeros(2, *DIGIT)).shape == (2, 3)


def test_unpadded_conv_net_knows_its_smallest_image():
    assert make_network("conv", (1, 16, 16), 2, padding=0)(torch.zeros(1, 1, 16, 16)).shape == (1, 2)
    with pytest.raises(ValueError, match=r"at least 16 .* got \(1, 15, 15\)"):
        make_network("conv", (1, 15, 15), 2, padding=0)
    assert ConvNet((1, 28, 28), 10, padding=0)[-1].in_features == 32 * 4 * 4


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("resnet20", (64,), r"`input_shape` must be \(channels, height, width\) for this architecture, got \(64,\)"),
        ("resnet20", (1, 3, 8), "at least 4 for this architecture"),
        ("vgg", DIGIT, "a height and a width of at least 16 .* Use one with less pooling, or enlarge"),
        ("conv", (1, 3, 3), "at least 4"),
        ("all_cnn_c", (1, 3, 3), "at least 4"),
        ("preact_resnet18", (1, 7, 7), "at least 8"),
        ("wrn_22_5", (1, 3, 3), "at least 4"),
        ("resnet20", (0, 8, 8), "`input_shape` must be at least 1, got 0"),
        ("resnet-20", IMAGE, "`name` must be one of .* Did you mean 'resnet20'"),
    ],
)
def test_shape_and_name_errors(name, shape, message):
    with pytest.raises(ValueError, match=message):
        make_network(name, shape, 10)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("resnet20", {"depth": 21}, r"`depth` must be 6 n \+ 2"),
        ("wrn_22_5", {"depth": 20}, r"`depth` must be 6 n \+ 4"),
        ("resnet20", {"shortcut": "padding"}, "`shortcut` must be one of 'pad', 'projection'"),
        ("resnet20", {"generalization_layer": "skips"}, "`generalization_layer` must be one of .* Did you mean 'skip'"),
        ("resnet20_gl", {"layer_form": "conv5x5"}, "`layer_form` must be one of"),
        ("resnet20_gl", {"nu": 0.0}, "`nu` must lie in"),
        ("preact_resnet18", {"stem": "big"}, "`stem` must be one of"),
        ("preact_resnet18", {"n_blocks": (2, 2)}, "`n_blocks` must be one number or one for each of the 4 stages"),
        ("preact_resnet18", {"dropout": 1.0}, r"`dropout` must lie in \[0, 1\)"),
        ("vgg", {"dropout": -1.0}, r"`dropout` must lie in \[0, 1\)"),
        ("residual_mlp", {"skip": 119}, "`skip` must be between 1 and 118"),
        ("residual_mlp", {"generalization_blocks": (59,)}, "`generalization_blocks` must be between -59 and 58"),
        ("residual_mlp", {"branch_scale": 0.0}, r"`branch_scale` must lie in \(0, inf\)"),
    ],
)
def test_parameter_errors(name, params, message):
    shape = POINT if name == "residual_mlp" else IMAGE
    with pytest.raises(ValueError, match=message):
        make_network(name, shape, 10, **params)


def test_unknown_parameter_and_bad_number_of_outputs():
    with pytest.raises(TypeError, match="`batchnorm` is not a parameter of the .* 'vgg'. Did you mean 'batch_norm'"):
        make_network("vgg", IMAGE, 10, batchnorm=True)
    with pytest.raises(TypeError, match="`zzz` is not a parameter of .* 'mlp'. It has: hidden_layer_sizes"):
        make_network("mlp", POINT, 10, zzz=True)
    with pytest.raises(ValueError, match="`n_outputs` must be at least 1"):
        make_network("vgg", IMAGE, 0)
    with pytest.raises(ValueError, match=r"`n_outputs` must be less than 2\*\*63, got an integer of 16610 bits"):
        make_network("mlp", POINT, 10**5000)


# structure


@pytest.mark.parametrize(
    ("make", "x"),
    [
        (lambda: linear(5, 3, weight_norm=True), torch.randn(4, 5, dtype=torch.float64)),
        (lambda: convolution(2, 3, bias=True, weight_norm=True), torch.randn(2, 2, 6, 6, dtype=torch.float64)),
    ],
)
def test_weight_norm_ignores_the_scale_of_the_rows(make, x):
    layer = make().double()
    plain = copy.deepcopy(layer)
    plain.__class__ = type(layer).__bases__[0]
    norms = torch.tensor([row.flatten().norm() for row in layer.weight.detach()], dtype=torch.float64)
    shape = (1, -1, *(1,) * (x.dim() - 2))
    bias = layer.bias.reshape(shape)
    y = layer(x)
    torch.testing.assert_close(y - bias, (plain(x) - bias) / norms.reshape(shape))
    layer.weight.data *= torch.tensor([0.5, 3.0, 7.0], dtype=torch.float64).reshape(-1, *(1,) * (x.dim() - 1))
    torch.testing.assert_close(layer(x), y)


def test_padding_shortcut_is_option_a():
    network = make_network("resnet20", IMAGE, 10)
    shortcut = network.stage2[0].shortcut
    x = torch.randn(2, 16, 7, 8)
    y = shortcut(x)
    expected = np.zeros((2, 32, 4, 4), dtype=np.float32)
    for row in range(4):
        for column in range(4):
            expected[:, 8:24, row, column] = x[:, :, 2 * row, 2 * column]
    np.testing.assert_array_equal(y.numpy(), expected)
    assert count(make_network("resnet20", IMAGE, 10, shortcut="projection")) == 269_722 + 16 * 32 + 64 + 32 * 64 + 128


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet20", 20),
        ("resnet110", 110),
        ("resnet20_gld", 22),
        ("resnet56_gld", 58),
        ("wrn_22_5", 22),
        ("preact_resnet18", 18),
    ],
)
def test_depth_is_the_number_in_the_name(name, layers):
    maps = [m for m in make_network(name, IMAGE, 10).modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    shortcuts = [m for m in maps if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    # wide ResNets count their three shortcut convolutions as layers where plain ones do not, and not the linear layer
    expected = len(maps) - 1 if name == "wrn_22_5" else len(maps) - len(shortcuts)
    assert expected == layers


def test_second_stage_is_one_generalization_layer():
    network = make_network("resnet20_gl", IMAGE, 10)
    (layer,) = generalization_layers(network)
    assert network.stage2[0] is layer and layer(torch.zeros(1, 16, 32, 32)).shape == (1, 32, 16, 16)
    assert {id(p) for p in generalization_parameters(network)} == {id(p) for p in layer.body.parameters()}
    assert len(make_network("resnet20_gl", IMAGE, 10, layer_form="conv3x3").stage2[0].body) == 5


def test_dropout_layer_leaves_the_encoder_of_one_seed_as_it_is():
    networks = []
    for name in ("resnet20", "resnet20_gld"):
        torch.manual_seed(5)
        networks.append(make_network(name, DIGIT, 10))
    plain, longer = (dict(network.named_parameters()) for network in networks)
    assert all(torch.equal(plain[name], longer[name]) for name in plain)
    assert networks[1].generalization.dropout.p == 0.75 and len(longer) > len(plain)


@pytest.mark.parametrize(("params", "n_skips"), [({}, 59), ({"skip": 7}, 16), ({"skip": 7, "n_hidden_layers": 15}, 2)])
def test_residual_mlp_is_its_formula(params, n_skips):
    network = make_network("residual_mlp", (2,), 3, **params).double()
    blocks = [m for m in network.children() if hasattr(m, "body")]
    linears = [m for m in network.modules() if isinstance(m, nn.Linear)]
    skip = params.get("skip", 2)
    assert len(blocks) == n_skips and len(linears) == params.get("n_hidden_layers", 119) + 1
    x = torch.randn(4, 2, dtype=torch.float64)
    h = torch.relu(linears[0](x))
    for block in range(n_skips):
        z = h
        for k in range(skip):
            z = linears[1 + block * skip + k](torch.relu(z) if k else z)
        h = torch.relu(z + h)
    for rest in linears[1 + n_skips * skip : -1]:
        h = torch.relu(rest(h))
    torch.testing.assert_close(network(x), linears[-1](h))


def test_residual_mlp_of_figure_7():
    network = make_network("residual_mlp_gl", POINT, 1)
    blocks = [m for m in network.children() if hasattr(m, "body")]
    assert len(blocks) == 45 and [isinstance(b, SkipLayer) for b in blocks] == [False] * 42 + [True] * 3
    square = [m for m in network.modules() if isinstance(m, nn.Linear) and m.weight.shape == (17, 17)]
    assert len(square) == 90


def test_branch_scale_is_what_keeps_the_deep_net_finite():
    X = torch.linspace(-8, 8, 50)[:, None]
    with torch.no_grad():
        scaled = make_network("residual_mlp", POINT, 1)(X).abs().max()
        plain = make_network("residual_mlp", POINT, 1, branch_scale=1.0)(X).abs().max()
    assert float(scaled) < 1e3 < 1e5 < float(plain)


def test_preactivation_block_projects_what_it_has_activated():
    network = make_network("preact_resnet18", DIGIT, 10, channels=(4, 8), n_blocks=1).double().eval()
    block = network.stages[1][0]
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    active = torch.relu(x / (1 + block.norm1.eps) ** 0.5)
    hidden = nn.functional.conv2d(active, block.conv1.weight, stride=2, padding=1)
    hidden = torch.relu(hidden / (1 + block.norm2.eps) ** 0.5)
    expected = nn.functional.conv2d(hidden, block.conv2.weight, padding=1)
    expected = expected + nn.functional.conv2d(active, block.projection.weight, stride=2)
    torch.testing.assert_close(block(x), expected)
    identity = network.stages[0][0]
    with torch.no_grad():
        identity.conv2.weight.zero_()
    torch.testing.assert_close(identity(x), x)


def test_vgg_and_all_cnn_are_the_printed_sequences():
    kinds = [type(m).__name__ for m in make_network("vgg", IMAGE, 10)]
    stack = ["Conv2d", "BatchNorm2d", "ReLU"] * 2 + ["MaxPool2d", "Dropout"]
    assert kinds == stack * 4 + ["AdaptiveAvgPool2d", "Flatten", "Linear", "ReLU", "Linear"]
    plain = make_network("all_cnn_c", IMAGE, 10, batch_norm=False, dropout=0.5)
    convs = [(m.out_channels, m.kernel_size[0], m.stride[0]) for m in plain if isinstance(m, nn.Conv2d)]
    assert convs == [
        (96, 3, 1),
        (96, 3, 1),
        (96, 3, 2),
        (192, 3, 1),
        (192, 3, 1),
        (192, 3, 2),
        (192, 3, 1),
        (192, 1, 1),
        (10, 1, 1),
    ]
    assert [m.p for m in plain if isinstance(m, nn.Dropout)] == [0.2, 0.5, 0.5] and count(plain) == 1_369_738


def test_count_helper_agrees_with_shapes():
    network = make_network("mlp", (64,), 10)
    assert count(network) == sum(prod(p.shape) for p in network.parameters())
