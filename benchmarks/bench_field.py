"""Measures of the field: the ratio is the cost in forward passes. And hidden margins by a loop.

A naive loop takes one forward and one backward pass per layer for the margins inside; ours takes one for all of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn

from benchmarks.bench_sharpness import networks
from benchmarks.timing import measure_row
from sklearn_capacity import CapacityWarning
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch

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


def run() -> list[dict]:
    """Rows for every network and family."""
    rows = []
    for name, (module, X) in networks().items():
        module = module.eval()
        y = torch.arange(len(X)) % 10
        network = Network(module, tuple(X.shape[1:]))
        _ = network.graph, network.weight_layers

        def forward(module: nn.Module = module, X: Tensor = X) -> None:
            with torch.no_grad():
                module(X)

        for measure, params in ROWS.items():

            def value(network=network, X=X, y=y, measure=measure, params=params) -> None:
                fresh = network.renewed()
                fresh.graph = network.graph
                with warnings.catch_warnings():  # the networks are not trained
                    warnings.simplefilter("ignore", CapacityWarning)
                    MEASURES[measure](fresh, Batch(fresh, X, y, loss="cross_entropy"), **params)

            note = "forward pass: the ratio is the cost in forwards"
            rows.append(measure_row(f"{measure}, {name}", value, forward, note=note, repeats=1))

        def margins(network=network, X=X, y=y) -> None:
            MEASURES["hidden_margin_median"](network, Batch(network, X, y, loss="cross_entropy"))

        title = f"hidden margins, {name}"
        rows.append(
            measure_row(title, margins, naive_margins(module, X, y), target=1.0, note="a pass per layer", repeats=3)
        )
    return rows
