"""Block Lanczos: repeated eigenvalues, exhausted spaces, refusals."""

from __future__ import annotations

import pytest
import torch

from sklearn_capacity import CapacityWarning
from sklearn_capacity.linalg import block_lanczos, lanczos


def rotated(eigenvalues, seed=0):
    n = len(eigenvalues)
    draws = torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    basis = torch.linalg.qr(draws).Q
    return basis @ torch.diag(torch.as_tensor(eigenvalues, dtype=torch.float64)) @ basis.T


@pytest.mark.parametrize("block", [3, 4, 7])
def test_repeated_eigenvalues_are_found_as_often_as_the_block_allows(block):
    eigenvalues = [5.0] * 3 + [2.0] * 3 + [1.0 / (i + 1) for i in range(60)]
    matrix = rotated(eigenvalues)
    result = block_lanczos(lambda x: matrix @ x, 66, k=6, block=block)
    assert result.values.tolist() == pytest.approx([5.0] * 3 + [2.0] * 3, rel=1e-9)
    assert bool((result.residuals <= 1e-5).all()) and result.n_products < 66
    # one vector sees each value once
    assert lanczos(lambda x: matrix @ x, (66,), k=2).values.tolist() == pytest.approx([5.0, 2.0], rel=1e-9)


def test_all_eigenvalues_of_a_small_matrix_and_of_one_of_low_rank():
    matrix = rotated([3.0, 1.0, -2.0, 0.5])
    assert block_lanczos(lambda x: matrix @ x, 4, k=4, block=3).values.tolist() == pytest.approx([3.0, 1.0, 0.5, -2.0])
    low = rotated([3.0, 1.0] + [0.0] * 8)
    result = block_lanczos(lambda x: low @ x, 10, k=4, block=2)
    assert result.values.tolist() == pytest.approx([3.0, 1.0, 0.0, 0.0], abs=1e-9)
    assert block_lanczos(torch.zeros_like, 5, k=2, block=2).values.tolist() == [0.0, 0.0]


def test_one_seed_one_answer():
    matrix = rotated([1.0 / (i + 1) for i in range(50)])
    first, second, other = (block_lanczos(lambda x: matrix @ x, 50, k=3, block=2, random_state=s) for s in (1, 1, 2))
    assert torch.equal(first.values, second.values)
    assert torch.allclose(first.values, other.values, rtol=1e-8)


def test_spent_steps_warn_and_numbers_that_are_not_finite_raise():
    matrix = rotated([1.0 - 0.001 * i for i in range(200)])
    with pytest.warns(CapacityWarning, match="after 6 products; they are lower bounds that may not have converged"):
        result = block_lanczos(lambda x: matrix @ x, 200, k=2, block=2, max_steps=3)
    assert bool((result.values <= 1 + 1e-12).all())
    with pytest.raises(ValueError, match="`product` returned numbers that are not finite"):
        block_lanczos(lambda x: x * float("nan"), 5, k=1)
    with pytest.raises(ValueError, match="`k` must be between 1 and 5, got 6"):
        block_lanczos(lambda x: x, 5, k=6)
