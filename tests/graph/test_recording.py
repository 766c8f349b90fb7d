"""A recorded program is the exported one: the same nodes with the same tensors, for known modules and for users'."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations

from sklearn_capacity.architectures import ARCHITECTURES, make_network
from sklearn_capacity.graph import Network, NetworkGraph, evaluate, named_tensors, trace
from sklearn_capacity.graph.recording import is_known, recorded_twice

trace_module = importlib.import_module("sklearn_capacity.graph.trace")


class Written(nn.Module):
    """A module of a user around a known one."""

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
    return trace(module, shape).bind(named_tensors(module)), exported(written, shape)


@contextmanager
def users_modules_exported() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trace_module, "recorded_twice", lambda *_: None)
        yield


def exported(module: nn.Module, shape: tuple[int, ...]) -> NetworkGraph:
    with users_modules_exported():
        return trace(module, shape, anew=True).bind(named_tensors(module))


def assert_same_values(
    recorded: NetworkGraph, expected: NetworkGraph, module: nn.Module, shape: tuple[int, ...]
) -> None:
    """The tensors of both graphs are equal, and the recorded one computes what the module does."""
    for a, b in zip(recorded.nodes, expected.nodes, strict=True):
        for mine, other in ((a.weight, b.weight), (a.bias, b.bias)):
            assert (mine is None) == (other is None)
            assert mine is None or torch.equal(mine, other)
    X = torch.randn(5, *shape)
    with torch.no_grad():
        torch.testing.assert_close(evaluate(recorded, X).reshape(5, -1), module(X.clone()).reshape(5, -1))


def refuse(*_: object, **__: object) -> None:
    raise AssertionError("exported")


@pytest.mark.parametrize(("build", "shape"), CASES, ids=IDS)
def test_recorded_like_exported(build, shape):
    module = prepared(build)
    recorded, expected = both(module, shape)
    assert contents(recorded) == contents(expected, "module.")
    assert_same_values(recorded, expected, module, shape)


@pytest.mark.parametrize(("build", "shape"), CASES, ids=IDS)
def test_known_modules_are_not_exported(build, shape, monkeypatch):
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
    with users_modules_exported():
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


class Of(nn.Module):
    """A user's forward code, with some layers."""

    def __init__(self, forward: Callable[..., torch.Tensor], **layers: nn.Module):
        super().__init__()
        self.code = forward
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, x):
        return self.code(self, x)


class Residual(nn.Module):
    """A block in the manner of torchvision: sums in place, one activation module for all."""

    def __init__(self, width: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = nn.Sequential(nn.Conv2d(2, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        identity = self.downsample(x) if self.downsample is not None else x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


def pooled(module, x):
    x = module.block(x)
    return module.head(module.drop(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1)))


def gated(module, x):
    h = torch.relu(module.a(x))
    h = h * torch.sigmoid(module.b(h))
    h *= 0.5
    return module.head((1.5 * h + x.tanh().flatten(1)).relu_() / 2)


def own_slice(module, x):
    return module.head(F.pad(x[:, : torch.tensor(7)], (0, 1)))


def constant_in_a_list(module, x):
    return module.head(torch.cat([x[:, :7], torch.ones(x.shape[0], 1)], 1))


def along_samples(module, x):
    return module.head(torch.cat([x, x]))[: x.shape[0]]


def permuted_view_in_place(module, x):
    h = module.a(x)
    h.view(-1, 2, 4).transpose(1, 2).add_(1)
    return module.head(h)


def positional_in_place(module, x):
    h = module.a(x)
    F.relu(h, True)
    return module.head(h)


def by_size(module, x):
    h = module.a(x).view(x.shape[0], 2, -1)
    return module.head(torch.relu(h).reshape(h.size(0), -1))


def by_product_of_sizes(module, x):
    n_samples, n_features = x.shape
    h = module.a(x).view(n_samples, 2, n_features // 2)
    return module.head(torch.relu(h).reshape([h.size(dim=0), h.numel() // n_samples]))


LAYERS = {"a": (8, 8), "b": (8, 8), "head": (8, 3)}


def with_layers(code: Callable[..., torch.Tensor]) -> Callable[[], nn.Module]:
    return lambda: Of(code, **{name: nn.Linear(*sizes) for name, sizes in LAYERS.items()})


def joined(module, x):
    h = torch.cat([x, module.a(x), torch.cat((x, x), dim=-1)], 1)
    h = h.reshape(-1, 4, 8).transpose(1, 2).permute(0, 2, 1)
    return module.head(torch.permute(h, (0, 2, 1)).mean(-1))


def tied() -> nn.Module:
    module = with_layers(gated)()
    module.b.weight = module.a.weight
    return module


USERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (
        lambda: Of(pooled, block=Residual(6, 2), drop=nn.Dropout(0.2, inplace=True), head=nn.Linear(6, 3)),
        (2, 9, 9),
    ),
    "mean over pixels": (lambda: Of(lambda m, x: m.conv(x).mean((2, 3)), conv=nn.Conv2d(2, 3, 3)), (2, 7, 7)),
    "gates": (with_layers(gated), (8,)),
    "sizes": (with_layers(by_size), (8,)),
    "joined and permuted": (with_layers(joined), (8,)),
    "products of sizes": (with_layers(by_product_of_sizes), (8,)),
    "tied": (tied, (8,)),
    "in place by position": (with_layers(positional_in_place), (8,)),
    "without gradients": (with_layers(torch.no_grad()(gated)), (8,)),
}


@pytest.mark.parametrize(("build", "shape"), USERS.values(), ids=USERS)
def test_users_modules_are_recorded_like_exported(build, shape, monkeypatch):
    module = prepared(build)
    expected = exported(module, shape)
    monkeypatch.setattr(torch.export, "export", refuse)
    recorded = trace(module, shape, anew=True).bind(named_tensors(module))
    assert contents(recorded) == contents(expected)
    assert_same_values(recorded, expected, module, shape)


def scaled_by_number(module, x):
    return module.head(x) * x.shape[0]


def branches_on_number(module, x):
    return module.head(x if x.shape[0] < 1000 else -x)


def smaller_number(module, x):
    return module.head(x) / min(2, x.shape[0])


def half_the_number(module, x):
    return module.head(x) * (x.shape[0] * 0.5)


def share_of_the_number(module, x):
    return module.head(x) if x.shape[0] / 8 < 10_000 else module.head(-x)


def one_number(module, x):
    return module.head(x) if x.size(dim=0) == 5 else module.head(-x)


def number_of_values(module, x):
    return module.head(x) if x.numel() // 8 % 100 else module.head(-x)


def catches(module, x):
    try:
        factor = float(x.abs().max())
    except Exception:
        factor = 1.0
    return module.head(x * factor)


def own_constant(module, x):
    return module.head(x * torch.linspace(0, 1, 8))


def alias_in_place(module, x):
    h = module.a(x)
    view = h.flatten(1)
    view += 1
    return module.head(h)


def device_dependent(module, x):
    return module.head(x if x.device.type == "cpu" else -x)


counted: list[int] = []


def changes_what_it_reads(module, x):
    counted.append(len(counted))
    return module.head(x * counted[-1])


def keyword_tensor(module, x):
    return F.linear(x, weight=module.head.weight, bias=module.head.bias)


UNCLEAR = [
    *(scaled_by_number, branches_on_number, along_samples, catches, changes_what_it_reads, device_dependent),
    *(own_constant, own_slice, constant_in_a_list, keyword_tensor, alias_in_place, permuted_view_in_place),
    *(smaller_number, one_number, number_of_values, half_the_number, share_of_the_number),
]


@pytest.mark.parametrize("code", UNCLEAR)
def test_unclear_code_of_users_is_not_recorded(code):
    module = prepared(with_layers(code))
    assert recorded_twice(lambda: trace_module.private_copy(module, "meta"), (8,), torch.float32) is None


@pytest.mark.parametrize("code", [own_constant, alias_in_place, device_dependent, keyword_tensor])
def test_what_users_do_otherwise_is_exported(code):
    module = prepared(with_layers(code))
    graph = trace(module, (8,)).bind(named_tensors(module))
    X = torch.randn(6, 8)
    with torch.no_grad():
        torch.testing.assert_close(evaluate(graph, X), module(X))


@pytest.mark.parametrize("change", [hooked, replaced, parametrized])
def test_users_modules_with_more_than_their_forward_are_exported(change):
    module = Written(change(nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))))
    assert recorded_twice(lambda: trace_module.private_copy(module, "meta"), (8,), torch.float32) is None


def test_the_users_line_of_a_call_is_known():
    """Messages show it, as they do after an export."""
    module = prepared(USERS["gates"][0])
    lines = {str(n.target): n.meta["stack_trace"].splitlines()[-1].strip() for n in trace(module, (8,)).nodes[7:]}
    assert lines["aten.sigmoid.default"] == "h = h * torch.sigmoid(module.b(h))"
    assert lines["aten.linear.default"].startswith("return F.linear(")  # of the layer
