"""A recorded program is the exported one: the same nodes with the same tensors, for known modules and no others."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from sklearn_capacity.architectures import ARCHITECTURES, make_network
from sklearn_capacity.graph import Network, NetworkGraph, evaluate, named_tensors, trace
from sklearn_capacity.graph.recording import is_known


class Written(nn.Module):
    """A module of a user around a known one: it is exported."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


VECTORS: dict[str, Callable[[], nn.Module]] = {
    "one layer": lambda: nn.Linear(8, 3),
    "activations": lambda: nn.Sequential(
        *(
            nn.ReLU(),
            nn.LeakyReLU(0.1),
            nn.ReLU6(),
            nn.Hardtanh(-2, 3),
            nn.ELU(0.5),
            nn.SELU(),
            nn.CELU(0.7),
            nn.GELU(),
        ),
        *(nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Hardsigmoid(), nn.Softplus(2.0)),
        *(
            nn.LogSigmoid(),
            nn.PReLU(),
            nn.PReLU(8),
            nn.Tanh(),
            nn.Sigmoid(),
            nn.Identity(),
            nn.Linear(8, 3, bias=False),
        ),
    ),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.Linear(8, 4), nn.Tanh()), nn.Sequential(nn.Linear(4, 3))),
    "norms": lambda: nn.Sequential(nn.BatchNorm1d(8), nn.Linear(8, 6), nn.LayerNorm(6), nn.Dropout(), nn.Linear(6, 3)),
    "ends in softmax": lambda: nn.Sequential(nn.Linear(8, 3), nn.LogSoftmax(1)),
    "in place": lambda: nn.Sequential(nn.Linear(8, 4), nn.ReLU(inplace=True), nn.Linear(4, 3), nn.ELU(inplace=True)),
    "its input in place": lambda: nn.Sequential(nn.ReLU(inplace=True), nn.Linear(8, 3)),
}
IMAGES: dict[str, Callable[[], nn.Module]] = {
    "pooling": lambda: nn.Sequential(
        *(nn.MaxPool2d(3, 1, 1), nn.MaxPool2d(3, 2, 1, ceil_mode=True), nn.AvgPool2d(2, 1), nn.AdaptiveAvgPool2d(3)),
        *(
            nn.AvgPool2d(2, 1, 1, ceil_mode=True, count_include_pad=False),
            nn.AdaptiveAvgPool2d((2, None)),
            nn.Flatten(),
        ),
    ),
    "convolutions": lambda: nn.Sequential(
        *(nn.Conv2d(2, 4, (2, 3), (1, 2), (1, 0), (2, 1), groups=2), nn.Conv2d(4, 4, 3, padding="same"), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 3, 2, 2, output_padding=1), nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect")),
        *(nn.BatchNorm2d(3), nn.GroupNorm(3, 3), nn.ZeroPad2d(1), nn.Dropout2d(), nn.Flatten(), nn.Softmax(1)),
    ),
}
NAMES = ["mlp", "conv", "resnet20_gl", "resnet20_gld", "preact_resnet18", "residual_mlp_gl"]


def shape_of(name: str) -> tuple[int, ...]:
    return (8,) if "mlp" in name else (2, 16, 16)


def architecture(name: str, **options: bool) -> Callable[[], nn.Module]:
    small = {"n_hidden_layers": 9} if name.startswith("residual") else {"depth": 14} if "resnet20" in name else {}
    return lambda: make_network(name, shape_of(name), 3, **small, **options)


CASES = [(build, (8,)) for build in VECTORS.values()] + [(build, (2, 11, 11)) for build in IMAGES.values()]
for _name in NAMES:
    CASES += [(architecture(_name, **{option: True}), shape_of(_name)) for option in ("batch_norm", "weight_norm")]
IDS = [*VECTORS, *IMAGES, *(f"{name}, {option}" for name in NAMES for option in ("batch norm", "weight norm"))]


def prepared(build: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    module = build().eval()
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return module


def contents(graph: NetworkGraph, prefix: str = "") -> list[tuple]:
    """What the nodes hold, independent of their names."""
    positions = {node.name: position for position, node in enumerate(graph.nodes)}
    return [
        (
            *(
                node.op,
                [positions[name] for name in node.inputs],
                node.scope.removeprefix(prefix[:-1]).removeprefix("."),
                node.shape,
            ),
            *(node.trainable, [sorted(name.removeprefix(prefix) for name in names) for names in node.sources]),
            *(node.module, str({key: value for key, value in node.params.items() if key != "stack_trace"})),
        )
        for node in graph.nodes
    ]


def both(module: nn.Module, shape: tuple[int, ...]) -> tuple[NetworkGraph, NetworkGraph]:
    """The recorded graph, and the exported one of the same module inside a user's."""
    assert is_known(module)
    written = Written(module)
    assert not is_known(written)
    return trace(module, shape).bind(named_tensors(module)), trace(written, shape).bind(named_tensors(written))


@pytest.mark.parametrize(("build", "shape"), CASES, ids=IDS)
def test_recorded_like_exported(build, shape):
    module = prepared(build)
    recorded, exported = both(module, shape)
    assert contents(recorded) == contents(exported, "module.")
    for a, b in zip(recorded.nodes, exported.nodes, strict=True):
        for mine, other in ((a.weight, b.weight), (a.bias, b.bias)):
            assert (mine is None) == (other is None)
            assert mine is None or torch.equal(mine, other)
    X = torch.randn(5, *shape)
    with torch.no_grad():
        torch.testing.assert_close(evaluate(recorded, X).reshape(5, -1), module(X.clone()).reshape(5, -1))


@pytest.mark.parametrize(("build", "shape"), CASES, ids=IDS)
def test_known_modules_are_not_exported(build, shape, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("exported")

    monkeypatch.setattr(torch.export, "export", refuse)
    monkeypatch.setattr(threading, "Thread", refuse)
    trace(prepared(build), shape)


@pytest.mark.parametrize("output", ["one_logit", "one_probability", "probabilities", "log_probabilities"])
def test_outputs_of_every_kind(output):
    """The wrappers that compute logits are recorded, too."""
    classes = 1 if output.startswith("one") else 3
    endings = {"one_probability": nn.Sigmoid(), "probabilities": nn.Softmax(-1), "log_probabilities": nn.LogSoftmax(-1)}
    layers = [nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, classes), endings.get(output, nn.Identity())]
    torch.manual_seed(0)
    known = nn.Sequential(*layers)
    graphs = [Network(module, (4,), output=output).graph for module in (known, Written(known))]
    X = torch.randn(6, 4)
    torch.testing.assert_close(*(evaluate(graph, X) for graph in graphs))
    assert [node.op for node in graphs[0].nodes] == [node.op for node in graphs[1].nodes]


def hooked(module: nn.Module) -> nn.Module:
    module[0].register_forward_hook(lambda _, args, output: 2 * output)
    return module


def replaced(module: nn.Module) -> nn.Module:
    module[1].forward = torch.tanh
    return module


def with_user_class(module: nn.Module) -> nn.Module:
    module[1] = Written(nn.Sigmoid())
    return module


def parametrized(module: nn.Module) -> nn.Module:
    parametrizations.weight_norm(module[0])
    return module


def of_generated_class(module: nn.Module) -> nn.Module:
    kind = type("ReLU", (nn.ReLU,), {"forward": lambda self, x: x * x, "__module__": nn.ReLU.__module__})
    module[1] = kind()
    return module


@pytest.mark.parametrize("change", [hooked, replaced, with_user_class, parametrized, of_generated_class])
def test_changed_modules_are_exported(change):
    torch.manual_seed(0)
    module = change(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)))
    assert not is_known(module)
    X = torch.randn(6, 4)
    graph = trace(module, (4,)).bind(named_tensors(module))
    torch.testing.assert_close(evaluate(graph, X), module(X))


def test_a_patched_class_is_recorded_as_it_runs(monkeypatch):
    """The forward code itself runs, so a change of a torch class shows."""
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: torch.tanh(x))
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU())
    assert trace(module, (4,)).bind(named_tensors(module)).nodes[-1].params["kind"] == "tanh"


@pytest.mark.parametrize(
    "build",
    [
        lambda: (lambda layer: nn.Sequential(layer, nn.ReLU(), layer))(nn.Linear(4, 4)),  # called twice
        lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(4, 3)),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(4, 3)),  # a view
        lambda: nn.Sequential(nn.Tanhshrink(), nn.Linear(4, 3)),  # a call without a rule
    ],
)
def test_what_is_not_recorded_is_exported(build):
    torch.manual_seed(0)
    module = build()
    X = torch.randn(6, 4)
    graph = Network(module, (4,)).graph
    with torch.no_grad():
        torch.testing.assert_close(evaluate(graph, X), module(X.clone()))


def test_a_width_like_the_number_of_samples():
    """Sizes that could be mistaken for the number of samples end the recording."""
    module = nn.Sequential(nn.Linear(2, 7919), nn.ReLU(), nn.Linear(7919, 2))
    graph = trace(module, (2,)).bind(named_tensors(module))
    assert [node.shape for node in graph.nodes] == [(2,), (7919,), (7919,), (2,)]


def test_the_module_is_left_alone():
    module = make_network("conv", (1, 8, 8), 3)
    before = {name: tensor.clone() for name, tensor in named_tensors(module).items()}
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    state = torch.get_rng_state()
    trace(module, (1, 8, 8))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(part.training for part in module.modules())
    assert all(type(p) is nn.Parameter for p in module.parameters())
    assert hooks == [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules()]
    assert all(torch.equal(before[name], tensor) for name, tensor in named_tensors(module).items())


def test_every_architecture_is_known():
    for name in ARCHITECTURES:
        shape = (4,) if "mlp" in name else (1, 32, 32)
        with torch.device("meta"):
            assert is_known(make_network(name, shape, 2)), name
