"""Modules that users have, from the usual to the impossible, each created by a function without arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.utils.prune
from torch import Tensor, nn

FEATURES, CLASSES = 4, 3


class Forward(nn.Module):
    """A linear layer, and what a function makes of it and X."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any], outputs: int = CLASSES) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, outputs)
        self.function = function
        self.n_calls = 0

    def forward(self, X: Tensor) -> Any:
        return self.function(self, X)


class Needs(nn.Module):
    """A class with an argument that is never supplied."""

    def __init__(self, width: int, n_outputs: int = CLASSES) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, width), nn.ReLU(), nn.Linear(width, n_outputs))

    def forward(self, X: Tensor) -> Tensor:
        return self.net(X)


class NoCopy(nn.Linear):
    def __deepcopy__(self, memo: Any) -> Any:
        raise RuntimeError("this object cannot be copied")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, CLASSES)
        self.b.weight = self.a.weight

    def forward(self, X: Tensor) -> Tensor:
        return self.head(self.b(self.a(X).relu()).relu())


class Late(nn.Module):
    """A network that creates its last layer in its first forward pass."""

    def __init__(self, n_outputs: int = CLASSES) -> None:
        super().__init__()
        self.n_outputs, self.first, self.last = n_outputs, nn.Linear(FEATURES, 5), None

    def forward(self, X: Tensor) -> Tensor:
        if self.last is None:
            self.last = nn.Linear(5, self.n_outputs)
        return self.last(self.first(X).relu())  # type: ignore[no-any-return]


class Silent(nn.Linear):
    """A network whose `train` returns nothing."""

    def train(self, mode: bool = True) -> None:  # type: ignore[override]
        super().train(mode)


class Counts(nn.Linear):
    """A network with buffers of integers, which a training step changes, and state that is no tensor."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("order", torch.arange(FEATURES).flip(0))
        self.register_buffer("n_steps", torch.zeros((), dtype=torch.long))

    def forward(self, X: Tensor) -> Tensor:
        if self.training:
            self.n_steps += 1
        return super().forward(X[:, self.order])


class Versioned(nn.Linear):
    def get_extra_state(self) -> Any:
        return {"version": 1}

    def set_extra_state(self, state: Any) -> None:
        self.version = state["version"]


class Repeated(nn.Module):
    """A network that applies one layer several times."""

    def __init__(self) -> None:
        super().__init__()
        self.again, self.head = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, CLASSES)

    def forward(self, X: Tensor) -> Tensor:
        for _ in range(3):
            X = self.again(X).tanh()
        return self.head(X)  # type: ignore[no-any-return]


class Gradient(nn.Linear):
    """A network that differentiates in its forward pass."""

    def forward(self, X: Tensor) -> Tensor:
        with torch.enable_grad():
            X = X.detach().requires_grad_()
            (slope,) = torch.autograd.grad(super().forward(X).square().sum(), X, create_graph=True)
        return super().forward(X + slope)


class TwoInputs(nn.Linear):
    def forward(self, X: Tensor, Z: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(X) + Z


def _with_empty() -> nn.Module:
    module = mlp()
    module.register_parameter("nothing", nn.Parameter(torch.zeros(0)))
    return module


def mlp(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 5), *(middle or (nn.ReLU(),)), nn.Linear(5, CLASSES))


def _raises(error: Exception) -> Callable[[nn.Module, Tensor], Any]:
    def forward(module: nn.Module, X: Tensor) -> Any:
        raise error

    return forward


def _count(module: Any, X: Tensor) -> Tensor:
    module.n_calls += 1
    return module.layer(X)


def _hooked() -> nn.Module:
    module = mlp()
    module[0].register_forward_hook(lambda m, args, out: out * 2)
    module[2].register_forward_pre_hook(lambda m, args: (args[0] + 1,))
    module[2].register_full_backward_hook(lambda m, gin, gout: None)
    return module


def _frozen(whole: bool) -> nn.Module:
    module = mlp()
    for parameter in module.parameters() if whole else module[0].parameters():
        parameter.requires_grad_(False)
    return module


def _filled(value: float) -> nn.Module:
    module = mlp()
    for parameter in module.parameters():
        nn.init.constant_(parameter, value)
    return module


def _quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(mlp().eval(), {nn.Linear}, dtype=torch.qint8)


def _half_meta() -> nn.Module:
    module = mlp()
    module[2] = nn.Linear(5, CLASSES, device="meta")
    return module


def _unsaved_buffer() -> nn.Module:
    module = mlp()
    module.register_buffer("mask", torch.full((5,), -torch.inf), persistent=False)
    return module


def _no_call(*args: Any) -> Any:
    raise AssertionError("it must not be called")


#: what an estimator can train and a measure can measure, more or less
MODULES: dict[str, Callable[[], Any]] = {
    "mlp": mlp,
    "tanh": lambda: mlp(nn.Tanh()),
    "batch norm": lambda: mlp(nn.BatchNorm1d(5), nn.ReLU()),
    "layer norm": lambda: mlp(nn.LayerNorm(5), nn.GELU()),
    "dropout": lambda: mlp(nn.Dropout(0.5)),
    "in place": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(FEATURES, CLASSES)),
    "linear": lambda: nn.Linear(FEATURES, CLASSES),
    "no bias": lambda: nn.Linear(FEATURES, CLASSES, bias=False),
    "one output": lambda: nn.Linear(FEATURES, 1),
    "two outputs": lambda: nn.Linear(FEATURES, 2),
    "wrong outputs": lambda: nn.Linear(FEATURES, 7),
    "wrong inputs": lambda: nn.Linear(6, CLASSES),
    "no rows": lambda: Forward(lambda m, X: m.layer(X)[0]),
    "flat": lambda: Forward(lambda m, X: m.layer(X).flatten()),
    "a further axis": lambda: Forward(lambda m, X: m.layer(X)[..., None]),
    "tuple": lambda: Forward(lambda m, X: (m.layer(X), X)),
    "dict": lambda: Forward(lambda m, X: {"logits": m.layer(X)}),
    "nothing": lambda: Forward(lambda m, X: None),
    "text": lambda: Forward(lambda m, X: "logits"),
    "numpy": lambda: Forward(lambda m, X: m.layer(X).detach().numpy()),
    "detached": lambda: Forward(lambda m, X: m.layer(X).detach()),
    "no grad": lambda: Forward(torch.no_grad()(lambda m, X: m.layer(X))),
    "integers": lambda: Forward(lambda m, X: m.layer(X).long()),
    "complex": lambda: Forward(lambda m, X: m.layer(X) + 1j),
    "half": lambda: Forward(lambda m, X: m.layer(X).half()),
    "sparse": lambda: Forward(lambda m, X: m.layer(X).to_sparse()),
    "nan": lambda: Forward(lambda m, X: m.layer(X) * torch.nan),
    "infinite": lambda: Forward(lambda m, X: m.layer(X) / 0),
    "in training only": lambda: Forward(lambda m, X: m.layer(X) * (torch.nan if m.training else 1)),
    "another shape in training": lambda: Forward(lambda m, X: m.layer(X)[:, :2] if m.training else m.layer(X)),
    "tuple in training": lambda: Forward(lambda m, X: (m.layer(X),) if m.training else m.layer(X)),
    "depends on data": lambda: Forward(lambda m, X: m.layer(X) if X.sum() > 0 else -m.layer(X)),
    "random": lambda: Forward(lambda m, X: m.layer(X) + torch.rand(1)),
    "counts": lambda: Forward(_count),
    "key error": lambda: Forward(_raises(KeyError("no key"))),
    "zero division": lambda: Forward(_raises(ZeroDivisionError("division by zero"))),
    "attribute error": lambda: Forward(lambda m, X: m.missing(X)),
    "assertion": lambda: Forward(_raises(AssertionError("the input must have 7 columns"))),
    "not implemented": lambda: Forward(_raises(NotImplementedError("later"))),
    "lazy": lambda: nn.Sequential(nn.LazyLinear(5), nn.ReLU(), nn.LazyLinear(CLASSES)),
    "hooks": _hooked,
    "tied": Tied,
    "scripted": lambda: torch.jit.script(mlp()),
    "traced": lambda: torch.jit.trace(mlp(), torch.zeros(2, FEATURES)),
    "compiled": lambda: torch.compile(mlp(), backend="eager"),
    "fx": lambda: torch.fx.symbolic_trace(mlp()),
    "data parallel": lambda: nn.DataParallel(mlp()),
    "frozen": lambda: _frozen(True),
    "half frozen": lambda: _frozen(False),
    "quantised": _quantised,
    "meta": lambda: nn.Linear(FEATURES, CLASSES, device="meta"),
    "half meta": _half_meta,
    "double": lambda: mlp().double(),
    "float16": lambda: mlp().half(),
    "bfloat16": lambda: mlp().bfloat16(),
    "complex weights": lambda: nn.Linear(FEATURES, CLASSES, dtype=torch.complex64),
    "mixed": lambda: nn.Sequential(nn.Linear(FEATURES, 5).double(), nn.ReLU(), nn.Linear(5, CLASSES)),
    "no parameters": nn.Identity,
    "empty": nn.Sequential,
    "bare": nn.Module,
    "list": lambda: nn.ModuleList([nn.Linear(FEATURES, CLASSES)]),
    "weight norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(FEATURES, CLASSES)),
    "spectral norm": lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(FEATURES, CLASSES)),
    "old weight norm": lambda: nn.utils.weight_norm(nn.Linear(FEATURES, CLASSES)),
    "recurrent": lambda: nn.GRU(FEATURES, CLASSES),
    "embedding": lambda: nn.Embedding(9, CLASSES),
    "sparse embedding": lambda: nn.Sequential(nn.EmbeddingBag(9, CLASSES, sparse=True)),
    "conv": lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2, CLASSES)),
    "nan weights": lambda: _filled(float("nan")),
    "zero weights": lambda: _filled(0.0),
    "large weights": lambda: _filled(1e30),
    "infinite buffer": _unsaved_buffer,
    "cannot be copied": lambda: NoCopy(FEATURES, CLASSES),
    "late": Late,
    "silent": lambda: Silent(FEATURES, CLASSES),
    "integer buffers": lambda: Counts(FEATURES, CLASSES),
    "extra state": lambda: Versioned(FEATURES, CLASSES),
    "one layer repeated": Repeated,
    "gradient": lambda: Gradient(FEATURES, CLASSES),
    "two inputs": lambda: TwoInputs(FEATURES, CLASSES),
    "empty parameter": _with_empty,
    "one-byte weights": lambda: mlp().to(torch.float8_e4m3fn),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(FEATURES, CLASSES)),
    "pruned": lambda: nn.utils.prune.identity(nn.Linear(FEATURES, CLASSES), "weight"),
    "statistics of the batch": lambda: mlp(nn.BatchNorm1d(5, track_running_stats=False)),
    "no momentum": lambda: mlp(nn.BatchNorm1d(5, momentum=None, affine=False)),
    "attention": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 2)),
        nn.TransformerEncoderLayer(2, 1, 3, 0.0, batch_first=True),
        nn.Flatten(),
        nn.Linear(4, CLASSES),
    ),
    "bilinear": lambda: nn.Bilinear(FEATURES, FEATURES, CLASSES),
    "dict of layers": lambda: nn.ModuleDict({"a": nn.Linear(FEATURES, CLASSES)}),
}

#: what else the parameter `module` may be
FACTORIES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "class": lambda: nn.Linear,
    "class that needs more": lambda: Needs,
    "partial": lambda: functools.partial(Needs, width=2),
    "lambda": lambda: mlp,
    "lambda of n_outputs": lambda: lambda n_features, n_outputs: nn.Linear(n_features, n_outputs),
    "returns a class": lambda: lambda: nn.Linear,
    "returns nothing": lambda: lambda: None,
    "returns a meta module": lambda: lambda: nn.Linear(FEATURES, CLASSES, device="meta"),
    "raises": lambda: lambda: {}["missing"],
    "abstract": lambda: nn.Module,
    "builtin": lambda: int,
    "method": lambda: "".join,
    "name": lambda: "mlp",
    "another name": lambda: "conv",
    "no name": lambda: "resnet",
    "number": lambda: 3,
    "state": lambda: mlp().state_dict(),
    "late class": lambda: Late,
    "lazy class": lambda: lambda n_outputs: nn.LazyLinear(n_outputs),
}
