"""No measure takes more passes over the data than its record states; the work is counted at every product of torch."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from measuring import SHORT
from sklearn_capacity import CapacityWarning, NotDefinedError
from sklearn_capacity.linalg import ConvOperator, MatrixOperator
from sklearn_capacity.measures import MEASURES
from sklearn_capacity.scoring.measurement import Session
from sklearn_capacity.scoring.requests import parse_measures

aten = torch.ops.aten


class LayerWork(TorchDispatchMode):
    """Counts multiplications in products of weight layers: of matrices with the sizes of a layer, and convolutions.

    The sizes of the networks below are chosen so that no other product has those of a layer.
    """

    def __init__(self, module: nn.Module):
        super().__init__()
        self.sizes = {tuple(sorted(p.shape)) for p in module.parameters() if p.dim() == 2}
        self.count = 0
        self.paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.paused:
            self.count += self._work(func.overloadpacket, args, result)
        return result

    def _work(self, kind, args, result) -> int:
        if kind is aten.convolution:
            x, weight, transposed = args[0], args[1], args[6]
            return weight.numel() * (x if transposed else result)[:, 0].numel()
        if kind is aten.convolution_backward:
            gradient, x, weight, transposed, wanted = args[0], args[1], args[2], args[7], args[10]
            return weight.numel() * (x if transposed else gradient)[:, 0].numel() * sum(wanted[:2])
        if kind in (aten.mm, aten.bmm):
            left, right = args[:2]
        elif kind in (aten.addmm, aten.baddbmm):
            left, right = args[1:3]
        elif kind is aten.mv:
            left, right = args[0], args[1][:, None]
        else:
            return 0
        lengths = (left.shape[-2], left.shape[-1], right.shape[-1])
        if left.dim() == 3 and lengths[0] == lengths[2]:  # a Gram matrix of each sample
            return 0
        pairs = {tuple(sorted((lengths[i], lengths[j]))) for i, j in ((0, 1), (0, 2), (1, 2))}
        return left.shape[:-2].numel() * math.prod(lengths) if pairs & self.sizes else 0


class Residual(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(19, 29), nn.Linear(29, 29), nn.Linear(29, classes)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(h + torch.relu(self.inner(h)))


class Transformer(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.embed = nn.Linear(7, 22)
        self.layer = nn.TransformerEncoderLayer(22, 2, 37, batch_first=True, dropout=0.0)
        self.last = nn.Linear(22, classes)

    def forward(self, x):
        return self.last(self.layer(self.embed(x)).mean(1))


class Untraceable(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.first, self.last = nn.Linear(19, 23), nn.Linear(23, classes)

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(2 * h if float(h.detach().sum()) > 1e9 else h)


def chain(classes):
    sizes = (19, 31, 23, classes)
    layers = [part for a, b in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(a, b, bias=False), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def one_hidden(classes):
    return nn.Sequential(nn.Linear(19, 31), nn.Tanh(), nn.Linear(31, classes))


def convolutional(classes):
    return nn.Sequential(
        nn.Conv2d(2, 11, 3, padding=1), nn.BatchNorm2d(11), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(11, 13, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(52, classes),
    )  # fmt: skip


CASES = {
    "chain": (chain, (19,), 5, 40),
    "convolution": (convolutional, (2, 8, 8), 5, 40),
    "residual": (Residual, (19,), 5, 40),
    "attention": (Transformer, (5, 7), 5, 40),
    "no graph": (Untraceable, (19,), 5, 40),
    "many classes": (Residual, (19,), 113, 12),
    "many classes, convolution": (convolutional, (2, 8, 8), 113, 12),
    "one hidden layer": (one_hidden, (19,), 43, 60),
    "a thousand classes": (chain, (19,), 1000, 2),
}
#: More than 512 rows of the dual matrix, so that the largest eigenvalue of the Fisher matrix comes from products.
ITERATED = ("fisher_max_eigenvalue", "fisher_second_moment", "hessian_max_eigenvalue", "hessian_trace", "ntk_alignment")


def problem(case, n_samples=None):
    build, shape, classes, n = CASES[case]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, before = build(classes).eval(), build(classes)
        X = torch.randn(n_samples or n, *shape)
        with torch.no_grad():
            y = module(X).argmax(1)
    y[::7] = (y[::7] + 1) % classes  # some mistakes, so that searches for a rise have a range
    return module, before, X, y


@pytest.fixture
def counter(monkeypatch):
    """A function that counts what a call does, without the norms of single layers."""
    counters: list[LayerWork] = []

    def paused(method):
        def run(*args, **kwargs):
            before = [(work, work.paused) for work in counters]
            for work in counters:
                work.paused = True
            try:
                return method(*args, **kwargs)
            finally:
                for work, paused in before:
                    work.paused = paused

        return run

    for operator in (MatrixOperator, ConvOperator):
        for name in ("norm_lower", "norm_upper"):
            monkeypatch.setattr(operator, name, paused(getattr(operator, name)))

    def count(module, call) -> int:
        counters[:] = [LayerWork(module)]
        with counters[0], warnings.catch_warnings():
            warnings.simplefilter("ignore", CapacityWarning)
            call()
        return counters[0].count

    return count


def one_pass(counter, session) -> int:
    def forward():
        with torch.no_grad():
            session.network.forward(session.batch.X)

    return counter(session.network.module, forward)


def refused(session, request):
    try:
        session.run(request)
    except NotDefinedError:
        pass


def names_of(case):
    """All measures on a chain; elsewhere one for each function."""
    if case == "chain":
        return list(MEASURES)
    return list({measure.function: name for name, measure in MEASURES.items()}.values())


@pytest.mark.parametrize("case", CASES)
def test_no_measure_takes_more_passes_than_its_record_states(case, counter):
    module, before, X, y = problem(case)
    requests, _ = parse_measures({name: (name, SHORT.get(name, {})) for name in names_of(case)})
    unit, checked = None, 0
    for request in requests:
        session = Session(module, X, y, initial_state=before)
        unit = unit or one_pass(counter, session)
        stated = session.most_passes(request)
        assert stated is not None, request.label
        taken = counter(module, lambda s=session, r=request: refused(s, r)) / unit
        # The trace is checked, and parameters are looked for, on a few samples.
        assert taken <= sum(stated.values()) + 30 / len(X), (request.label, taken, stated)
        checked += taken > 0
    assert checked > 20


@pytest.mark.parametrize("case", ["chain", "convolution", "residual", "attention", "no graph"])
@pytest.mark.parametrize("batch_size", [None, 50])
def test_iterations_keep_their_limits_in_chunks(case, batch_size, counter):
    module, _, X, y = problem(case, n_samples=130)
    params = {"hessian_max_eigenvalue": {"max_products": 5}, "hessian_trace": {"n_products": 12}}
    requests, _ = parse_measures({name: (name, params.get(name, {})) for name in ITERATED})
    for request in requests:
        session = Session(module, X, y, batch_size=batch_size)
        taken = counter(module, lambda s=session, r=request: refused(s, r)) / one_pass(counter, session)
        assert taken <= sum(session.most_passes(request).values()) + 30 / len(X), request.label


@pytest.mark.parametrize("case", ["residual", "one hidden layer"])
def test_limits_are_not_far_from_what_is_taken(case, counter):
    module, before, X, y = problem(case)
    names = ["margin", "jacobian_frobenius", "hessian_trace", "expected_sharpness"]
    names += ["pullback_trace", "path_activity"] if case == "residual" else []
    requests, _ = parse_measures({name: (name, SHORT.get(name, {})) for name in names})
    for request in requests:
        session = Session(module, X, y, initial_state=before)
        taken = counter(module, lambda s=session, r=request: refused(s, r)) / one_pass(counter, session)
        assert sum(session.most_passes(request).values()) <= 1.5 * taken + 1, request.label
