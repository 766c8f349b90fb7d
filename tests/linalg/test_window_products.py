"""Products with the windows of few pixels, against those of torch's convolution."""

from __future__ import annotations

import pytest
import torch

from reference_linalg import drawn
from sklearn_capacity.linalg import ConvOperator
from sklearn_capacity.linalg import window_products as module
from sklearn_capacity.linalg.window_products import window_products

OPERATORS = {
    "2 x 2": ConvOperator(drawn(5, 4, 3, 3), (4, 2, 2), padding=1),
    "strided": ConvOperator(drawn(5, 4, 3, 3), (4, 5, 4), (2, 1), 1),
    "uneven padding": ConvOperator(drawn(5, 4, 4, 3), (4, 3, 3), padding=((3, 1), (0, 2))),
    "negative padding": ConvOperator(drawn(5, 4, 2, 3), (4, 5, 3), padding=(-1, 1)),
    "unread pixels": ConvOperator(drawn(5, 4, 2, 2), (4, 5, 5), 2),
    "dilated": ConvOperator(drawn(3, 2, 3, 3), (2, 3, 3), padding=2, dilation=2),
    "transposed": ConvOperator(drawn(4, 5, 3, 3), (4, 2, 2), 2, 1, output_padding=1, transposed=True),
}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
@pytest.mark.parametrize("count", [1, 3])
def test_products_are_those_of_torch(operator, count, monkeypatch):
    monkeypatch.setattr(module, "FEWEST_ENTRIES", 1)
    forward, adjoint = window_products(operator)
    x, y = drawn(count, *operator.input_shape), drawn(count, *operator.output_shape)
    torch.testing.assert_close(forward(x), operator.forward(x))
    torch.testing.assert_close(adjoint(y), operator.adjoint(y))


def test_other_convolutions_keep_torchs_products():
    weight = drawn(180, 180, 3, 3)
    assert window_products(ConvOperator(weight, (180, 4, 4), padding=1)) is not None
    assert window_products(ConvOperator(weight, (180, 5, 4), padding=1)) is None
    assert window_products(ConvOperator(weight, (180, 4, 4), padding=1, padding_mode="circular")) is None
    assert window_products(ConvOperator(weight[:90], (180, 4, 4), padding=1)) is None
    assert window_products(ConvOperator(weight, (360, 4, 4), padding=1, groups=2)) is None
