"""Products with weights that oneDNN has laid out, against the dense matrix in double precision."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from reference_linalg import drawn
from sklearn_capacity.linalg import ConvOperator
from sklearn_capacity.linalg.packed_products import packed_products

OPERATORS = {
    "2 x 2": ConvOperator(drawn(5, 4, 3, 3), (4, 2, 2), padding=1),
    "many channels": ConvOperator(drawn(48, 33, 3, 3), (33, 4, 3), padding=1),
    "strided": ConvOperator(drawn(5, 4, 3, 3), (4, 5, 4), (2, 1), 1),
    "unread pixels": ConvOperator(drawn(5, 4, 2, 2), (4, 5, 5), 2),
    "long stride": ConvOperator(drawn(6, 3, 4, 4), (3, 12, 8), 4),
    "dilated": ConvOperator(drawn(3, 2, 3, 3), (2, 6, 5), padding=2, dilation=2),
    "grouped": ConvOperator(drawn(6, 2, 3, 3), (4, 5, 6), 2, 1, groups=2),
    "depthwise": ConvOperator(drawn(16, 1, 3, 3), (16, 5, 6), padding=1, groups=16),
    "transposed": ConvOperator(drawn(4, 5, 3, 3), (4, 3, 2), 2, 1, transposed=True),
    "transposed, grouped": ConvOperator(drawn(4, 3, 3, 3), (4, 3, 4), 2, 1, groups=2, transposed=True),
}


def in_single_precision(operator):
    """The same operator with a weight in single precision."""
    short = copy.copy(operator)
    object.__setattr__(short, "weight", operator.weight.float())  # `replace` would convert it to double precision
    return short


def dense(operator):
    """The matrix of an operator in double precision, (image, domain), by torch's convolution of the unit vectors."""
    units = torch.eye(math.prod(operator.input_shape), dtype=torch.float64)
    return operator.forward(units.reshape(-1, *operator.input_shape)).flatten(1).T


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("count", [1, 3])
def test_products_are_those_of_the_dense_matrix(name, count):
    operator = OPERATORS[name]
    matrix = dense(operator)
    products = packed_products(in_single_precision(operator))
    if not torch.backends.mkldnn.is_available():
        assert products is None
        return
    forward, adjoint = products
    x, y = drawn(count, *operator.input_shape), drawn(count, *operator.output_shape)
    for product, factor, argument in ((forward, matrix.T, x), (adjoint, matrix, y)):
        expected = (argument.flatten(1) @ factor).float()
        last = argument.float().contiguous(memory_format=torch.channels_last)
        for laid_out in (argument.float(), last):
            torch.testing.assert_close(product(laid_out).flatten(1), expected, rtol=1e-4, atol=1e-4)


def test_other_operators_have_none():
    assert packed_products(OPERATORS["2 x 2"]) is None  # in double precision
    for refused in (
        ConvOperator(drawn(5, 4, 3, 3), (4, 4, 4), padding=1, padding_mode="circular"),
        ConvOperator(drawn(5, 4, 4, 3), (4, 3, 3), padding=((3, 1), (0, 2))),
        ConvOperator(drawn(4, 5, 3, 3), (4, 2, 2), 2, 1, output_padding=1, transposed=True),
        ConvOperator(drawn(5, 4, 3), (4, 6)),
    ):
        assert packed_products(in_single_precision(refused)) is None
