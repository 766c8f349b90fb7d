"""Transposed convolutions by blocks of pixels, against the dense matrix in double precision."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from reference_linalg import drawn
from sklearn_capacity.linalg import ConvOperator
from sklearn_capacity.linalg.pixel_blocks import pixel_blocks

#: Channels, kernel, stride, padding, dilation and sides.
CASES = {
    "one channel": (1, (5, 5), (1, 1), (0, 0), (1, 1), (9, 12)),
    "two channels, padded": (2, (3, 3), (1, 1), (1, 1), (1, 1), (6, 5)),
    "stem": (3, (7, 7), (2, 2), (3, 3), (1, 1), (14, 13)),
    "patches": (3, (4, 4), (4, 4), (0, 0), (1, 1), (12, 8)),
    "patches with a rest": (3, (4, 4), (4, 4), (0, 0), (1, 1), (14, 15)),
    "unequal axes": (1, (3, 6), (1, 2), (1, 2), (1, 1), (7, 11)),
    "dilated": (1, (3, 3), (1, 1), (2, 2), (2, 2), (8, 9)),
    "unread pixels": (1, (2, 2), (3, 3), (0, 0), (1, 1), (9, 10)),
    "narrow": (1, (3, 3), (1, 1), (1, 1), (1, 1), (1, 2)),
    "much padding": (1, (5, 5), (2, 2), (4, 4), (1, 1), (6, 7)),
}


@pytest.fixture(autouse=True)
def long_registers(monkeypatch):
    """Blocks are chosen as with AVX-512 on every processor, where more convolutions have some."""
    monkeypatch.setattr("sklearn_capacity.linalg.pixel_blocks._lanes", lambda: 16)


needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")


def blocks_and_operator(channels, kernel, stride, padding, dilation, sides):
    """The blocks, and the operator in double precision."""
    weight = drawn(4, channels, *kernel)
    pairs = [(p, p) for p in padding]
    operator = ConvOperator(weight, (channels, *sides), stride, pairs, dilation)
    return pixel_blocks(weight.float(), sides, operator.output_shape[1:], stride, padding, dilation), operator


@needs_onednn
@pytest.mark.parametrize("name", CASES)
def test_the_transpose_is_that_of_the_dense_matrix(name):
    blocks, operator = blocks_and_operator(*CASES[name])
    units = torch.eye(math.prod(operator.input_shape), dtype=torch.float64)
    matrix = operator.forward(units.reshape(-1, *operator.input_shape)).flatten(1)  # (domain, image)
    y = drawn(2, *operator.output_shape)
    expected = (y.flatten(1) @ matrix.T).float()
    for laid_out in (y.float(), y.float().contiguous(memory_format=torch.channels_last)):
        torch.testing.assert_close(blocks(laid_out).flatten(1), expected, rtol=1e-4, atol=1e-5)


@needs_onednn
def test_every_small_geometry_has_the_transpose_of_torch():
    checked = 0
    for kernel, stride, padding, dilation, side in itertools.product(
        (1, 2, 3, 5), (1, 2, 3), (0, 1, 3), (1, 2), (5, 8)
    ):
        if side + 2 * padding <= (kernel - 1) * dilation:
            continue
        case = (1, (kernel, 3), (stride, 1), (padding, 1), (dilation, 1), (side, 4))
        blocks, operator = blocks_and_operator(*case)
        if blocks is None:
            continue
        y = drawn(1, *operator.output_shape)
        torch.testing.assert_close(blocks(y.float()), operator.adjoint(y).float(), rtol=1e-4, atol=1e-5)
        checked += 1
    assert checked > 60


@needs_onednn
def test_the_transpose_has_the_gradient_of_the_weight():
    weight, y = drawn(4, 1, 3, 3), drawn(2, 4, 5, 5)

    def gradient(transpose, dtype):
        w = weight.to(dtype).requires_grad_()
        return torch.autograd.grad(transpose(w, y.to(dtype)).square().sum(), w)[0]

    blocked = gradient(lambda w, y: pixel_blocks(w, (5, 5), (5, 5), (1, 1), (1, 1), (1, 1))(y), torch.float32)
    exact = gradient(lambda w, y: torch.nn.functional.conv_transpose2d(y, w, padding=1), torch.float64)
    torch.testing.assert_close(blocked, exact.float(), rtol=1e-4, atol=1e-4)


@needs_onednn
def test_neither_inference_mode_nor_the_default_device_leaves_a_trace():
    """The taps are kept between calls."""
    weight, y = drawn(4, 1, 3, 2).float().requires_grad_(), drawn(2, 4, 5, 6).float()
    shape = ((5, 5), (5, 6), (1, 1), (1, 1), (1, 1))
    with torch.inference_mode(), torch.device("meta"):
        inside = pixel_blocks(weight, *shape)
    blocks = pixel_blocks(weight, *shape)
    blocks(y).sum().backward()
    assert torch.equal(inside.weight, blocks.weight)


def test_other_convolutions_have_none():
    shape = ((8, 8), (8, 8), (1, 1), (1, 1), (1, 1))
    assert pixel_blocks(drawn(4, 1, 3, 3), *shape) is None  # in double precision
    assert pixel_blocks(drawn(4, 16, 3, 3).float(), *shape) is None  # a register full of channels
