"""Insertion of generalization layers: into any network, at any place, and nothing else changes."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

from sklearn_capacity.layers import (
    ConvGeneralizationDropout,
    ConvGeneralizationLayer,
    GeneralizationLayer,
    GeneralizationWrap,
    insert_generalization_layer,
)


def draw(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def image_network():
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3, 2, 1)]
    return nn.Sequential(*layers, nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


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
    stage = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 8, 3, 2, 1))
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), stage, nn.ReLU())
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


def test_an_index_counts_as_in_a_sequence_if_a_layer_occurs_twice():
    relu = nn.ReLU()
    network = nn.Sequential(nn.Linear(4, 4), relu, nn.Linear(4, 4), relu, nn.Linear(4, 2))
    for index in (2, 4, -1):
        longer = insert_generalization_layer(network, index)
        assert isinstance(longer[index], GeneralizationWrap) and longer[index].layer.in_features == 4
        assert longer[1] is longer[3]
    network = nn.Sequential(nn.Linear(4, 8), relu, nn.Linear(8, 6), relu, nn.Linear(6, 2))
    longer = insert_generalization_layer(network, 3, input_shape=(4,))
    assert isinstance(longer[3], GeneralizationWrap) and isinstance(longer[1], nn.ReLU)
    assert longer(torch.zeros(1, 4)).shape == (1, 2)


def test_head_may_be_a_convolution_or_the_module_itself():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert isinstance(insert_generalization_layer(network)[2].body[0], nn.Conv2d)
    assert isinstance(insert_generalization_layer(nn.Linear(3, 2)), GeneralizationWrap)


def test_new_layers_take_dtype_and_mode_of_the_network():
    network = image_network().double().eval()
    longer = insert_generalization_layer(network, 5, "skip", "block", input_shape=(3, 8, 8))
    assert {p.dtype for p in longer.parameters()} == {torch.float64} == {longer[5].generalization.nu.dtype}
    assert not longer[5].training and not longer[5].generalization.body.training


@pytest.mark.parametrize("variant", ["skip", "dropout"])
def test_in_place_activations_do_not_overwrite_what_the_new_layer_saved(variant):
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Linear(6, 3))
    longer = insert_generalization_layer(network, 1, variant, input_shape=(4,)).eval()
    x = torch.randn(5, 4, requires_grad=True)
    longer(x).sum().backward()  # in place, autograd would raise here
    assert x.grad.isfinite().all() and network[1].inplace


MESSAGES = [
    ({"position": "heat"}, "`position` must be 'head', an index or a submodule's name, got 'heat'"),
    ({"position": ""}, "`position` must be 'head', an index or a submodule's name, got ''"),
    ({"position": 9}, "`position` must be between -8 and 7, got 9"),
    ({"variant": "skipp"}, "`variant` must be one of .* Did you mean 'skip'"),
    ({"form": "wrapp"}, "`form` must be one of .* Did you mean 'wrap'"),
    ({"variant": "dropout", "form": "wrap"}, "`form` must be one of 'block', 'conv3x3', got 'wrap'"),
    ({"form": "conv3x3"}, "form='conv3x3' needs feature maps, but '7' receives vectors"),
    ({"variant": "dropout", "form": "conv3x3"}, "form='conv3x3' needs feature maps"),
    ({"position": 5}, "`input_shape` must be given to find the shapes at '5', a AdaptiveAvgPool2d"),
    ({"position": 6, "input_shape": (3, 8, 8)}, "form='wrap' cannot put a skip over '6'"),
    (
        {"position": 6, "form": "block", "replace": True, "input_shape": (3, 8, 8)},
        "`replace` cannot substitute a block",
    ),
    ({"replace": True}, "`replace` needs variant='skip' and form='block'"),
    ({"depth": 3}, "`depth` must be one of 1, 2, got 3"),
    ({"activation": "tanh"}, "`activation` must be one of 'relu', 'identity', got 'tanh'"),
    ({"variant": "dropout", "p": 1.0}, r"`p` must lie in \[0, 1\), got 1. At 1, no node would be left"),
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
    with pytest.raises(ValueError, match="vectors or images, but '1' receives"):
        insert_generalization_layer(volume, 1, input_shape=(1, 2, 2, 2))
    with pytest.raises(ValueError, match="must name a submodule that maps one tensor to one, got 'unused'"):
        insert_generalization_layer(Unused(), "unused", input_shape=(3,))


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(3, 2), nn.ReLU()

    def forward(self, x):
        return self.used(x)


def test_a_module_that_torch_cannot_copy_is_refused():
    module = nn.Sequential(nn.Linear(4, 3))
    nn.utils.prune.identity(module[0], "weight")
    with pytest.raises(
        ValueError, match=r"^`module` cannot be copied: Only Tensors created .* Insert the layer before"
    ):
        insert_generalization_layer(module)


def test_a_scripted_module_is_refused():
    with pytest.raises(TypeError, match="`module` must not be scripted or traced"):
        insert_generalization_layer(torch.jit.script(nn.Sequential(nn.Linear(4, 3))), "head", input_shape=(4,))
