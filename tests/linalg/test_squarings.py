"""Leading eigenvectors by squaring, against matrices made from known eigenvectors."""

import pytest
import torch

from sklearn_capacity.linalg.squarings import WORTHWHILE, leading_eigenvectors


def made(eigenvalues, n=3, seed=0):
    """n matrices with these eigenvalues, from the largest on, and their eigenvectors (n, m, m) as columns."""
    generator = torch.Generator().manual_seed(seed)
    d = torch.as_tensor(eigenvalues, dtype=torch.float64)
    vectors = torch.linalg.qr(torch.randn(n, len(d), len(d), generator=generator, dtype=torch.float64)).Q
    return vectors @ (d[:, None] * vectors.mT), vectors


def error(found, vectors):
    """The length of what is not along the first vector, the largest over the matrices."""
    found, u = found.double(), vectors[:, :, 0]
    return float((found - u * (found * u).sum(1, keepdim=True)).norm(dim=1).max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("gap", [0.9, 0.1, 1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("m", [2, WORTHWHILE, 53])
def test_the_error_is_that_of_rounding_over_the_gap(m, gap, dtype):
    matrices, vectors = made([1.0, *torch.linspace(1 - gap, 0, m - 1).tolist()])
    found = leading_eigenvectors(matrices.to(dtype))
    assert found.dtype == dtype
    torch.testing.assert_close(found.norm(dim=1), torch.ones(3, dtype=dtype))
    assert error(found, vectors) < 30 * torch.finfo(dtype).eps / gap


def test_each_matrix_takes_the_powers_that_it_needs():
    """From one that a first round settles to one that is decomposed."""
    m = WORTHWHILE + 5
    parts = [made([1.0, 1 - gap] + [0.0] * (m - 2), n=2, seed=i) for i, gap in enumerate((1.0, 1e-1, 1e-2, 1e-6, 0.5))]
    found = leading_eigenvectors(torch.cat([matrices for matrices, _ in parts]))
    assert error(found, torch.cat([vectors for _, vectors in parts])) < 1e-9


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_scale_does_not_matter(scale):
    matrices, vectors = made([1.0] + [0.5] * WORTHWHILE)
    assert error(leading_eigenvectors((scale * matrices).float()), vectors) < 1e-5


def test_of_equal_eigenvalues_it_is_a_vector_of_their_space():
    matrices, vectors = made([2.0, 2.0] + [1.0] * WORTHWHILE)
    found = leading_eigenvectors(matrices)  # (n, m)
    assert (found[:, None] @ vectors[:, :, 2:]).abs().max() < 1e-12


def test_zeros_have_a_unit_vector():
    found = leading_eigenvectors(torch.zeros(2, WORTHWHILE, WORTHWHILE))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_powers_in_single_precision_and_none_shorter():
    matrices, vectors = made([1.0] + [0.3] * WORTHWHILE)
    found = leading_eigenvectors(matrices, torch.float32)
    assert found.dtype == torch.float64
    assert error(found, vectors) < 1e-6
    assert error(leading_eigenvectors(matrices.bfloat16()), vectors) < 0.1
