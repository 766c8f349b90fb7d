"""Networks like those of other libraries: their graphs have a rule for everything, and measures their values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import reference_fisher
from benchmarks.zoo import UNDEFINED, in_a_process
from sklearn_capacity import capacity_report
from sklearn_capacity.derivatives.input_sweeps import chain_refusal, jacobian_rows
from sklearn_capacity.graph import Network, evaluate
from sklearn_capacity.scoring.outcomes import by_reason
from zoo import CLASSES, ZOO, build

RULED = [name for name in ZOO if not name.startswith("tokens") and name != "lstm"]
#: What every network has; with a Lipschitz constant come those that need one.
ALWAYS = (
    "frobenius_norm",
    "spectral_norm",
    "parameter_norm",
    "fisher_rao_norm",
    "fisher_trace",
    "loss_gradient_norm",
    "margin",
    "softmax_score",
    "kl_divergence",
    "adaptive_sharpness",
)


def jacobians(module, X):
    """By autograd through the module, (n, C, D); torch's fused attention errs for some single samples."""
    x = X.clone().requires_grad_()
    logits = module(x)
    rows = [torch.autograd.grad(logits[:, c].sum(), x, retain_graph=True)[0] for c in range(CLASSES)]
    return torch.stack(rows, 1).flatten(2)


@pytest.mark.parametrize("name", RULED)
def test_graph_and_chain_are_the_network(name):
    module, X, _ = build(name)
    graph = Network(module, tuple(X.shape[1:])).graph
    assert [node.params["target"] for node in graph.nodes if node.op == "opaque" and not node.is_size] == []
    assert chain_refusal(graph) is None
    torch.testing.assert_close(evaluate(graph, X), module(X), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(jacobian_rows(graph, X), jacobians(module, X), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ["video", "levit"])
def test_batch_norms_of_merged_batches_are_folded(name):
    module, X, _ = build(name)
    graph = Network(module, tuple(X.shape[1:])).graph
    assert [node.params.get("kind") for node in graph.nodes].count("batch_norm") == 0


@pytest.mark.parametrize("name", ZOO)
def test_values_are_those_of_dense_matrices(name):
    module, X, y = build(name)
    report = capacity_report(module, X, y, [*ALWAYS, "jacobian_frobenius", "lipschitz_l2", "l2_path_norm"])
    values = report.set_index("measure")["value"]
    assert values[list(ALWAYS)].map(math.isfinite).all(), report[["measure", "reason"]].to_string()
    if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in module.modules()):  # it is folded
        F = reference_fisher.matrix(module, X, "squared")
        assert values["fisher_trace"] == pytest.approx(float(F.trace()), rel=1e-7)
    for reason in by_reason(report):  # only what is not defined
        assert any(words in reason for words in UNDEFINED), reason
    if name.startswith("tokens"):
        assert "whole numbers" in report.set_index("measure").loc["jacobian_frobenius", "reason"]
        return
    J = jacobians(module, X)
    assert values["jacobian_frobenius"] == pytest.approx(float(J.square().sum((1, 2)).mean()), rel=1e-7)
    steepest = float(torch.linalg.matrix_norm(J, 2).max())
    assert not values["lipschitz_l2"] < steepest


def test_a_row_of_the_table_is_the_report_or_the_failure():
    def row(name, build):
        if name == "dies":
            raise RuntimeError("it fails")
        return {"network": name, "values": len(build()[1])}

    good, bad = (in_a_process(name, lambda: (nn.Identity(), torch.zeros(7)), row) for name in ("lives", "dies"))
    assert good["values"].tolist() == [7]
    assert bad["refused"].tolist() == ["failed with status 1"]
    assert CLASSES == 3
