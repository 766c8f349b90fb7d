"""Measures of the field, in forward passes and beside their peers, all on the same networks and samples.

For each family the ratio is the cost in forward passes. The largest eigenvalue of the Hessian, with an error that is
proven to be below 0.001, stands beside ARPACK on curvlinops' operator and power iteration as PyHessian does it, which
stops at a relative change of 0.001, or else of 1e-8; the notes state the errors. The margins inside the network stand
beside a naive loop, with one forward and one backward pass per layer where ours takes one for all.
A ResNet-20 takes minutes for the same ratios, so it is left out.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator

import curvlinops
import torch
from scipy.sparse.linalg import eigsh
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.bench_sharpness import networks
from benchmarks.timing import measure_row
from sklearn_capacity import CapacityWarning
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch

TOLERANCE = 1e-3
#: One measure of each family with cheap settings.
ROWS: dict[str, dict[str, object]] = {
    "stable_rank": {},
    "power_law_alpha": {},
    "log_prod_of_spec_over_margin": {},
    "pacbayes_flatness": {"n_draws": 4, "criterion": "loss"},
    "sharpness_flatness": {"steps": 2, "criterion": "loss"},
    "steps_to_loss": {"start": "trained", "max_steps": 20, "threshold": 1e-9},
    "hidden_margin_median": {},
    "path_activity": {},
    "ntk_alignment": {},
    "davies_bouldin": {},
    "mixup_error": {"n_pairs": 500},
}


def naive_margins(module: nn.Module, X: Tensor, y: Tensor) -> Callable[[], None]:
    """Gradients of the gap between the true and the next logit, with a pass for every linear map or convolution."""
    layers = [m for m in module.modules() if isinstance(m, nn.Linear | nn.Conv2d)]

    def run() -> None:
        for layer in layers:
            seen: list[Tensor] = []

            def note(module: nn.Module, args: tuple[Tensor, ...], seen: list[Tensor] = seen) -> tuple[Tensor, ...]:
                seen.append(args[0] if args[0].requires_grad else args[0].detach().requires_grad_(True))
                return (seen[-1],)

            handle = layer.register_forward_pre_hook(note)
            logits = module(X)
            handle.remove()
            others = logits.detach().scatter(1, y[:, None], -torch.inf)
            gap = logits.gather(1, y[:, None]) - logits.gather(1, others.argmax(1, keepdim=True))
            torch.autograd.grad(gap.sum(), seen[0])[0].flatten(1).norm(dim=1)

    return run


def power_iteration(module: nn.Module, X: Tensor, y: Tensor, change: float = TOLERANCE) -> Callable[[], float]:
    """PyHessian's method: the gradient with its graph once, then power iteration until the eigenvalue settles."""
    parameters = list(module.parameters())

    def run() -> float:
        gradients = torch.autograd.grad(functional.cross_entropy(module(X), y), parameters, create_graph=True)
        vector = [torch.randn_like(p) for p in parameters]
        value = 0.0
        for _ in range(1000):
            length = torch.stack([v.norm() for v in vector]).norm()
            vector = [v / length for v in vector]
            product = torch.autograd.grad(gradients, parameters, vector, retain_graph=True)
            last, value = value, float(sum((h * v).sum() for h, v in zip(product, vector, strict=True)))
            if abs(value - last) < change * abs(value):
                break
            vector = [h.detach() for h in product]
        return value

    return run


def arpack(module: nn.Module, X: Tensor, y: Tensor) -> Callable[[], float]:
    """scipy's eigsh on curvlinops' operator."""
    operator = curvlinops.HessianLinearOperator(
        module, nn.CrossEntropyLoss(), list(module.parameters()), [(X, y)], check_deterministic=False
    ).to_scipy()
    return lambda: float(eigsh(operator, k=1, which="LA", tol=TOLERANCE, return_eigenvectors=False)[0])


def cost_rows(name: str, network: Network, X: Tensor, y: Tensor) -> Iterator[dict]:
    """A measure of each family, in forward passes of the module."""

    def forward() -> None:
        with torch.no_grad():
            network.module(X)

    def value(measure: str, params: dict[str, object]) -> None:
        fresh = network.renewed()
        fresh.graph = network.graph
        with warnings.catch_warnings():  # the networks are not trained
            warnings.simplefilter("ignore", CapacityWarning)
            MEASURES[measure](fresh, Batch(fresh, X, y, loss="cross_entropy"), **params)

    note = "forward pass: the ratio is the cost in forwards"
    for measure, params in ROWS.items():
        ours = functools.partial(value, measure, params)
        yield measure_row(f"{measure}, {name}", ours, forward, note=note, repeats=1)


def eigenvalue_rows(name: str, network: Network, X: Tensor, y: Tensor) -> Iterator[dict]:
    """The largest eigenvalue of the Hessian beside its peers, with the errors of both."""
    module = network.module

    def largest(tol: float = TOLERANCE) -> float:
        batch = Batch(network, X, y, loss="cross_entropy")
        return MEASURES["hessian_max_eigenvalue"](network, batch, tol=tol).value

    exact = largest(tol=1e-7)
    peers = {
        "power iteration, as PyHessian": power_iteration(module, X, y),
        "power iteration to a change of 1e-8": power_iteration(module, X, y, 1e-8),
        "ARPACK on curvlinops": arpack(module, X, y),
    }
    for words, peer in peers.items():
        note = f"error {abs(largest() / exact - 1):.0e}; {words}, error {abs(peer() / exact - 1):.0e}"
        yield measure_row(f"largest Hessian eigenvalue, {name}", largest, peer, note=note, repeats=3)


def margin_row(name: str, network: Network, X: Tensor, y: Tensor) -> dict:
    """The margins inside the network beside the naive loop."""

    def margins() -> None:
        MEASURES["hidden_margin_median"](network, Batch(network, X, y, loss="cross_entropy"))

    peer = naive_margins(network.module, X, y)
    return measure_row(f"hidden margins, {name}", margins, peer, target=1.0, note="a pass per layer", repeats=3)


def run() -> Iterator[dict]:
    """Rows for every network and family."""
    for name, (module, X) in networks().items():
        if name == "ResNet-20":
            continue
        X = X[:64]
        y = torch.arange(len(X)) % 10
        network = Network(module.eval(), tuple(X.shape[1:]))
        _ = network.graph, network.weight_layers
        yield from cost_rows(name, network, X, y)
        yield from eigenvalue_rows(name, network, X, y)
        yield margin_row(name, network, X, y)
