"""Penalties refuse what they cannot be evaluated for, and name it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_capacity.penalties import (
    check_penalty,
    forward_pass,
    frobenius_penalty,
    per_layer_penalty,
    projection_penalty,
    spectral_penalty,
)

PENALTIES = [frobenius_penalty, projection_penalty, spectral_penalty, per_layer_penalty]
X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("penalty", PENALTIES)
@pytest.mark.parametrize(
    ("batch", "weights", "message"),
    [
        (np.ones((5, 4)), None, "`X` must be a tensor of shape"),
        (torch.ones(5), None, r"`X` must be a dense real tensor of shape \(n, ...\).*\(5,\)"),
        (torch.ones(5, 4, dtype=torch.long), None, "`X` must be .* torch.int64"),
        (torch.ones(5, 4, dtype=torch.complex64), None, "`X` must be .* torch.complex64"),
        (X.to_sparse(), None, "`X` must be .* torch.sparse_coo"),
        (X[:, :3], None, r"`Linear` cannot be evaluated .*\(5, 3\).*RuntimeError"),
        (X.double(), None, "`Linear` cannot be evaluated .* torch.float64"),
        (X, [1.0] * 5, "`sample_weight` must be None or a tensor"),
        (X, torch.ones(4), r"`sample_weight` must have shape \(5,\), got \(4,\)"),
        (X, torch.ones(5, 4), r"`sample_weight` must have shape \(5,\), got \(5, 4\)"),
    ],
)
def test_a_batch_that_cannot_be_evaluated(penalty, batch, weights, message):
    with pytest.raises((TypeError, ValueError), match=message):
        penalty(nn.Linear(4, 3), batch, sample_weight=weights)


def test_a_module_that_fails_is_named():
    with pytest.raises(ValueError, match="`Linear` cannot be evaluated or differentiated at `X` of shape"):
        forward_pass(nn.Linear(3, 2), X)
    with pytest.raises(ValueError, match="`Module` cannot be evaluated .*forward"):
        forward_pass(nn.Module(), X)
    with pytest.raises(TypeError, match="`X` must be a tensor"):
        forward_pass(nn.Linear(4, 2), X.tolist())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, nn.Linear(4, 2), X), "`penalty` must be a callable"),
        ((frobenius_penalty, frobenius_penalty, X), "`module` must be a torch.nn.Module"),
        ((frobenius_penalty, nn.Linear(4, 2), X.numpy()), "`X` must be a tensor"),
    ],
)
def test_check_penalty_refuses_other_kinds(arguments, message):
    with pytest.raises(TypeError, match=message):
        check_penalty(*arguments)
