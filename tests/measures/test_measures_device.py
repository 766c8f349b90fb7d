"""Every measure on a pretend accelerator: no stray CPU tensor, and the CPU's numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from measuring import separated, values_of
from networks import NETWORKS, make
from pretend_device import pretend_device
from sklearn_capacity import CapacityScorer, NetworkClassifier, measure_capacity


@pytest.mark.parametrize("case", ["mlp_no_bias", "conv_batch_norm"])
def test_measures_run_on_the_device(case):
    module, X, y = separated(case)
    expected = values_of(module, X, y)
    with pretend_device() as pretend:
        got = values_of(module.to(pretend.device), X, y)
    for name, value in expected.items():
        assert got[name] == (None if value is None else pytest.approx(value, rel=1e-6, abs=1e-9)), name


def test_iterations_and_draws_run_on_the_device():
    """Of a network with too many parameters for the Hessian itself."""
    layers = lambda: (nn.Linear(8, 30), nn.Tanh(), nn.Linear(30, 3))  # noqa: E731
    module, X, y = make(lambda: nn.Sequential(*layers()), (8,))
    request = {
        "hessian_max_eigenvalue": "hessian_max_eigenvalue",
        "hessian_trace": ("hessian_trace", {"n_products": 6}),
        "average": ("adaptive_sharpness", {"average": True, "n_draws": 4}),
        "restarts": ("adaptive_sharpness", {"n_restarts": 2, "norm": "linf", "steps": 3}),
    }
    expected = measure_capacity(module, X, y, request)
    with pretend_device() as pretend:
        got = measure_capacity(module.to(pretend.device), X, y, request)
    assert got == pytest.approx(expected, rel=1e-6)


def test_scorer_runs_on_the_device():
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(30, 4, generator=generator, dtype=torch.float64).numpy()
    y = (X[:, 0] > 0).astype(int)
    scorer = CapacityScorer(["accuracy", "fisher_rao_norm", "spectral_norm", "margin"], on_error="raise")
    here = scorer(NetworkClassifier((4,), max_epochs=2, random_state=0).fit(X, y), X, y)
    with pretend_device() as pretend:
        network = NetworkClassifier((4,), max_epochs=2, random_state=0, device=pretend.device).fit(X, y)
        there = scorer(network, X, y)
        devices = {p.device for p in network.module_.parameters()}
    assert there == pytest.approx(here, rel=1e-6) and devices == {pretend.device}


def test_transfers_do_not_grow_with_the_batches():
    counts = []
    names = ["margin", "fisher_rao_norm", "jacobian_frobenius"]
    for batch_size in (7, 7, 1, 3):
        module, X, y = NETWORKS["mlp"]()
        with pretend_device() as pretend:
            measure_capacity(module.to(pretend.device), X, y, names, batch_size=batch_size)
            counts.append(pretend.n_transfers)
    first, *later = counts  # the first network of a structure is bound from nothing, which compares its tensors
    assert later[0] == later[1] == later[2] <= first
