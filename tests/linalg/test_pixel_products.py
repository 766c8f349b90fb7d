"""Products of convolutions on few pixels, against those of torch."""

from __future__ import annotations

import pytest
import torch

from reference_linalg import drawn
from sklearn_capacity.linalg import ConvOperator, conv_norm_lower, operator_norm
from sklearn_capacity.linalg import pixel_products as module
from sklearn_capacity.linalg.pixel_products import PixelProducts, _calls, pixel_products

OPERATORS = {
    "2 x 2": ConvOperator(drawn(5, 4, 3, 3), (4, 2, 2), padding=1),
    "strided": ConvOperator(drawn(5, 4, 3, 3), (4, 3, 2), (2, 1), 1),
    "one axis, uneven padding": ConvOperator(drawn(5, 4, 4), (4, 3), padding=((3, 1),)),
    "three axes": ConvOperator(drawn(3, 2, 3, 3, 3), (2, 2, 1, 2), padding=1),
    "dilated": ConvOperator(drawn(3, 2, 3, 3), (2, 3, 3), padding=2, dilation=2),
    "circular": ConvOperator(drawn(3, 2, 3, 3), (2, 2, 3), padding=1, padding_mode="circular"),
    "replicated": ConvOperator(drawn(3, 2, 5), (2, 2), padding=2, padding_mode="replicate"),
    "transposed": ConvOperator(drawn(4, 5, 3, 3), (4, 2, 2), 2, 1, output_padding=1, transposed=True),
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_products_are_those_of_torch(operator):
    products = PixelProducts(operator, _calls(operator))
    forward, adjoint = products.convolve, products.convolve_transposed
    if operator.transposed:
        forward, adjoint = adjoint, forward
    x, y = drawn(1, *operator.input_shape), drawn(1, *operator.output_shape)
    torch.testing.assert_close(forward(x), operator.forward(x))
    torch.testing.assert_close(adjoint(y), operator.adjoint(y))


@pytest.mark.parametrize("transposed", [False, True])
def test_they_are_taken_where_most_taps_read_padding_and_give_the_same_norm(transposed, monkeypatch):
    weight = drawn(90, 85, 3, 3)
    few = ConvOperator(weight, (90 if transposed else 85, 2, 2), padding=1, transposed=transposed)
    assert len(pixel_products(few).calls) == 16
    value = conv_norm_lower(few).value
    monkeypatch.setattr(module, "FEWEST_ENTRIES", weight.numel() + 1)
    assert pixel_products(few) is None  # too small for so many calls
    assert value == pytest.approx(conv_norm_lower(few).value, rel=1e-9)
    plain = operator_norm(few.forward, few.adjoint, few.input_shape)
    assert value == pytest.approx(plain.value, rel=1e-9)


def test_larger_images_and_groups_keep_torchs_products():
    assert pixel_products(ConvOperator(drawn(90, 85, 3, 3), (85, 4, 4), padding=1)) is None
    assert pixel_products(ConvOperator(drawn(90, 85, 3, 3), (85, 40, 40), padding=1)) is None
    assert pixel_products(ConvOperator(drawn(180, 85, 3, 3), (170, 2, 2), padding=1, groups=2)) is None
