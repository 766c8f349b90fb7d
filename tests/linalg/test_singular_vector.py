"""The vector that a map stretches most, against singular value decompositions of dense matrices."""

from __future__ import annotations

import pytest
import torch

from sklearn_capacity import CapacityWarning
from sklearn_capacity._validation import NotDefinedError
from sklearn_capacity.linalg import ConvOperator, DiagonalOperator, MatrixOperator, leading_singular_vector


def drawn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def dense(operator):
    """The matrix, one unit vector at a time."""
    n = torch.Size(operator.input_shape).numel()
    return torch.stack(
        [operator.forward(e.reshape(1, *operator.input_shape)).flatten() for e in torch.eye(n).double()], 1
    )


def matrix_with_a_gap(rows, columns):
    matrix = drawn(rows, columns)
    return matrix + 0.3 * drawn(rows, 1) @ drawn(1, columns)


OPERATORS = {
    "tall": MatrixOperator(drawn(7, 4)),
    "wide": MatrixOperator(drawn(4, 7)),
    "large": MatrixOperator(matrix_with_a_gap(300, 280)),
    "large_wide": MatrixOperator(matrix_with_a_gap(270, 400)),
    "conv": ConvOperator(drawn(3, 2, 3, 3), (2, 5, 4), stride=2, padding=1),
    "circular": ConvOperator(drawn(2, 2, 3), (4, 6), padding=1, groups=2, padding_mode="circular"),
    "transposed": ConvOperator(drawn(2, 3, 3, 3), (2, 3, 3), stride=2, transposed=True),
    "diagonal": DiagonalOperator(torch.tensor([1.0, -3.0, 2.0]), (3, 2, 2)),
    "tiny": MatrixOperator(1e-170 * drawn(5, 3)),
    "huge": ConvOperator(1e170 * drawn(2, 2, 2, 2), (2, 4, 4)),
}


@pytest.mark.parametrize("name", OPERATORS)
def test_the_vector_is_stretched_by_the_norm(name):
    operator = OPERATORS[name]
    v = leading_singular_vector(operator)
    assert v.shape == operator.input_shape and v.norm() == pytest.approx(1)
    _, values, rows = torch.linalg.svd(dense(operator), full_matrices=False)
    stretched = (operator.forward(v[None]) / values[0]).norm()  # first scaled: the square of a huge number overflows
    assert stretched.item() == pytest.approx(1, rel=1e-9)
    if values[0] > 1.001 * values[1]:
        assert abs((rows[0] @ v.flatten()).item()) == pytest.approx(1, abs=1e-7)


def test_zero_and_what_is_not_finite():
    assert not leading_singular_vector(MatrixOperator(torch.zeros(3, 2))).isnan().any()
    assert not leading_singular_vector(ConvOperator(torch.zeros(1, 1, 2), (1, 4))).isnan().any()
    for bad in (float("nan"), float("inf")):
        with pytest.raises(NotDefinedError, match="`weight` must be finite"):
            leading_singular_vector(MatrixOperator(torch.full((2, 2), bad)))


def test_it_says_that_it_has_not_converged(monkeypatch):
    monkeypatch.setattr("sklearn_capacity.linalg.singular_vector.MAX_STEPS", 3)
    with pytest.warns(CapacityWarning, match="has a relative residual of .* after 3 steps"):
        leading_singular_vector(MatrixOperator(drawn(300, 300)))
