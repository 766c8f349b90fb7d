"""A training step with each Jacobian penalty against the plain step, and the alternatives of a user.

CPU time of one thread, to reduce the effect of other processes; the peers are a loop of double backward passes
(`double_backward`) and, for the exact penalty, ``vmap(jacrev)``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.memory import reset_peak, resident
from benchmarks.timing import measure_row, memory_row
from sklearn_capacity.architectures import make_network
from sklearn_capacity.derivatives.input_sweeps import jacobian_rows
from sklearn_capacity.graph import Network
from sklearn_capacity.linalg.product import LARGE, product
from sklearn_capacity.penalties import JacobianPenalty
from sklearn_capacity.penalties.frobenius import cpu_has_bfloat16

STRENGTH, CLASSES = 0.01, 10
#: Kernel -> (norm, options, largest ratio to a plain step for the MLP, the conv net and the ResNet).
KERNELS = {
    "exact": ("frobenius", {}, (11.0, 11.0, 11.0)),
    "exact in bfloat16": ("frobenius", {"precision": "bfloat16"}, (11.0, 11.0, 11.0)),
    "projection n=1": ("projection", {"n_projections": 1}, (2.0, 2.0, 2.0)),
    "projection n=3": ("projection", {"n_projections": 3}, (4.9, 4.9, 4.9)),
    "spectral": ("spectral", {}, (5.0, 5.0, 5.0)),
    "per layer": ("per_layer", {}, (1.6, 1.6, 1.6)),
}
REPEATS = {"MLP": 31, "conv": 9, "ResNet-20": 5}


class Case(NamedTuple):
    """A network in its training mode, and a batch."""

    name: str
    module: nn.Module
    X: Tensor
    y: Tensor


def cases() -> Iterator[Case]:
    """The three networks of the targets. The ResNet has its batch norm in eval mode."""
    torch.manual_seed(0)
    images, small = torch.randn(128, 1, 28, 28), torch.randn(64, 3, 32, 32)
    y = torch.randint(CLASSES, (128,))
    yield Case("MLP", make_network("mlp", 784, CLASSES, hidden_layer_sizes=(784, 784)), images.flatten(1), y)
    yield Case("conv", make_network("conv", (1, 28, 28), CLASSES), images, y)
    yield Case("ResNet-20", make_network("resnet20", (3, 32, 32), CLASSES).eval(), small, y[:64])


def plain(case: Case) -> Callable[[], None]:
    """Forward, loss, backward."""

    def step() -> None:
        case.module.zero_grad()
        cross_entropy(case.module(case.X), case.y).backward()

    return step


def penalized(case: Case, norm: str, **options: Any) -> Callable[[], None]:
    """The same with one of our penalties, like a step of the estimators."""
    penalty = JacobianPenalty(norm, **options)

    def step() -> None:
        case.module.zero_grad()
        shared = penalty.forward(case.module, case.X)
        (cross_entropy(shared.logits, case.y) + STRENGTH * penalty(case.module, case.X, shared=shared)).backward()

    return step


def double_backward(case: Case, n: int | None = None) -> Callable[[], None]:
    """The textbook penalty: one differentiated backward pass per class or random vector, one forward pass for all."""

    def step() -> None:
        case.module.zero_grad()
        X = case.X.detach().requires_grad_(True)
        logits = case.module(X)
        if n is None:
            vectors = torch.eye(CLASSES)[:, None, :].expand(-1, len(X), -1)
        else:
            vectors = torch.nn.functional.normalize(torch.randn(n, len(X), CLASSES), dim=2) * (CLASSES / n) ** 0.5
        rows = [torch.autograd.grad(logits, X, v, create_graph=True)[0] for v in vectors]
        penalty = sum(row.square().sum() for row in rows) / len(X)
        (cross_entropy(logits, case.y) + STRENGTH * penalty).backward()

    return step


def functional(case: Case) -> Callable[[], None]:
    """The Jacobian by torch.func."""

    def single(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(case.module, parameters, (x[None],))[0]

    def step() -> None:
        case.module.zero_grad()
        parameters = dict(case.module.named_parameters())
        jacobian = torch.func.vmap(torch.func.jacrev(single, argnums=1), (None, 0))(parameters, case.X)
        penalty = jacobian.square().sum() / len(case.X)
        (cross_entropy(case.module(case.X), case.y) + STRENGTH * penalty).backward()

    return step


def layer_by_layer(case: Case) -> Callable[[], None]:
    """Equation 52 one layer at a time: a backward pass for each, g detached, then W^T g differentiated."""
    layers = [m for m in case.module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]

    def step() -> None:
        case.module.zero_grad()
        calls: list[tuple[Tensor, Tensor]] = []
        handles = [m.register_forward_hook(lambda _, a, y: calls.append((a[0], y))) for m in layers]
        logits = case.module(case.X)
        for handle in handles:
            handle.remove()
        chosen = logits.gather(1, torch.randint(CLASSES, (len(logits), 1))).sum()
        penalty = logits.new_zeros(())
        for layer, (a, y) in zip(layers, calls, strict=True):
            (g,) = torch.autograd.grad(chosen, y, retain_graph=True)
            a = a.detach().requires_grad_(True)
            (t,) = torch.autograd.grad(layer(a), a, g, create_graph=True)
            penalty = penalty + t.square().sum() / len(logits)
        (cross_entropy(logits, case.y) + STRENGTH * penalty).backward()

    return step


def peers(case: Case, kernel: str) -> dict[str, Callable[[], None]]:
    """The alternatives of a user to a kernel."""
    if kernel == "exact":
        return {"loop": double_backward(case), "vmap(jacrev)": functional(case)}
    if kernel.startswith("projection"):
        return {"loop": double_backward(case, int(kernel[-1]))}
    return {"layer by layer": layer_by_layer(case)} if kernel == "per layer" else {}


def kernel_rows(position: int, kernel: str) -> list[dict]:
    """A kernel on one network: ours relative to the plain step, then each peer relative to the plain step."""
    case = list(cases())[position]
    norm, options, targets = KERNELS[kernel]
    step, ours, repeats = plain(case), penalized(case, norm, **options), REPEATS[case.name]
    name, note = f"{case.name}, {kernel}", "over a plain step"
    rows = [measure_row(name, ours, step, target=targets[position], note=note, repeats=repeats)]
    for peer_name, peer in peers(case, kernel).items():
        slow = max(3, repeats // 2)
        rows.append(measure_row(f"{name}: {peer_name}", peer, step, note=f"a peer, {note}", repeats=slow))
    return rows


def jacobian_row(position: int) -> list[dict]:
    """All rows of the Jacobian without gradients, relative to one forward pass."""
    case = list(cases())[position]
    module = case.module.eval()
    graph = Network(module, tuple(case.X.shape[1:])).graph

    def forward() -> None:
        with torch.no_grad():
            module(case.X)

    name = f"{case.name}, Jacobian rows, C={CLASSES}"
    rows = functools.partial(jacobian_rows, graph, case.X)
    return [measure_row(name, rows, forward, target=12.0, note="over a forward pass", repeats=9)]


def measure_peak(position: int, kernel: str) -> float:
    """MB that three steps add to the largest resident size.

    Tracing comes before, with a batch of two, and so does a product that loads oneDNN: its code takes 7 MB, once.
    """
    product(torch.ones(LARGE >> 10, 32), torch.ones(32, 32))
    case = list(cases())[position]
    small = case._replace(X=case.X[:2], y=case.y[:2])
    norm, options, _ = KERNELS.get(kernel, ("", {}, ()))
    make = {"plain": plain, "loop": double_backward}.get(kernel, lambda case: penalized(case, norm, **options))
    make(small)()
    case.module.zero_grad(set_to_none=True)
    reset_peak()
    before = resident("VmRSS")
    step = make(case)
    for _ in range(3):
        step()
    return resident("VmHWM") - before


def peak_row(name: str, kernel: str, peak: float, base: float) -> dict:
    """Peak memory of a step without that of torch itself, relative to a plain step."""
    target = None if kernel == "loop" else 3.0
    return memory_row(f"{name}, {kernel}: peak memory", 1e6 * peak, 1e6 * base, target=target, note="over a plain step")


def run() -> Iterator[dict]:
    """Rows for each network: the kernels and their peers, the rows of the Jacobian, peak memory.

    Each is measured in a separate process: the heap left by an earlier one changed ratios by a tenth.
    """
    kernels = [kernel for kernel in KERNELS if kernel != "exact in bfloat16" or cpu_has_bfloat16()]
    with get_context("spawn").Pool(1, torch.set_num_threads, (1,), maxtasksperchild=1) as fresh:
        for position, name in enumerate(REPEATS):
            for kernel in kernels:
                yield from fresh.apply(kernel_rows, (position, kernel))
            yield from fresh.apply(jacobian_row, (position,))
            peaks = {k: fresh.apply(measure_peak, (position, k)) for k in ("plain", *kernels, "loop")}
            base = peaks.pop("plain")
            yield from (peak_row(name, kernel, peak, base) for kernel, peak in peaks.items())
