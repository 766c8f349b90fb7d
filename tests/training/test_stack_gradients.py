"""Gradients of plain stacks of layers beside those of autograd, and everything that makes a fit use autograd."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skorch.callbacks import Callback
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sklearn_capacity import NetworkClassifier, NetworkRegressor
from sklearn_capacity.architectures import MLP
from sklearn_capacity.losses import CrossEntropyLoss, HingeLoss, SquaredLoss
from sklearn_capacity.training import PenalizedClassifier, TensorData
from sklearn_capacity.training import net as net_module
from sklearn_capacity.training.stack_gradients import StackGradients, stack_gradients

rng = np.random.default_rng(0)
X, y = rng.normal(size=(90, 6)), np.arange(90) % 3


def data(y_dtype: str = "class", shape: tuple[int, ...] = (6,)) -> TensorData:
    targets = torch.from_numpy(y) if y_dtype == "class" else torch.from_numpy(rng.normal(size=(90, 3)))
    return TensorData(torch.from_numpy(X).reshape(90, *shape), targets)


def stack(*parts: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for part in parts:
        for parameter in part.parameters():
            nn.init.normal_(parameter)
    return nn.Sequential(*parts).double()


STACKS = {
    "linear": lambda: stack(nn.Linear(6, 3)),
    "relu": lambda: stack(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
    "tanh": lambda: stack(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4, bias=False), nn.Tanh(), nn.Linear(4, 3)),
    "sigmoid": lambda: stack(nn.Linear(6, 5, bias=False), nn.Sigmoid(), nn.Linear(5, 3)),
    "deep linear": lambda: stack(nn.Linear(6, 5), nn.Linear(5, 4), nn.Identity(), nn.Linear(4, 3)),
    "nested": lambda: stack(nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace=True)), nn.Sequential(nn.Linear(5, 3))),
    "activated outputs": lambda: stack(nn.Linear(6, 3), nn.Tanh()),
    "images": lambda: stack(nn.Flatten(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)),
    "MLP": lambda: MLP(6, 3, hidden_layer_sizes=(5, 4)).double(),
}
CRITERIA = [CrossEntropyLoss, nn.CrossEntropyLoss, SquaredLoss, nn.MSELoss]


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", STACKS)
def test_loss_outputs_and_gradients_are_those_of_autograd(name, criterion):
    module, loss_of = STACKS[name](), criterion()
    samples = data("class" if "CrossEntropy" in criterion.__name__ else "real", (1, 2, 3) if name == "images" else (6,))
    outputs = module(samples.X)
    loss = loss_of(outputs, samples.y)
    expected = torch.autograd.grad(loss, list(module.parameters()))
    before = samples.X.clone()
    gradients = stack_gradients(module, loss_of, samples)
    values = gradients(samples.X, samples.y)
    torch.testing.assert_close(values, (loss.detach(), outputs.detach()), rtol=1e-12, atol=1e-12)
    got = [p.grad.clone() for p in module.parameters()]
    torch.testing.assert_close(got, list(expected), rtol=1e-10, atol=1e-12)
    held = [p.grad for p in module.parameters()]
    gradients(samples.X, samples.y)  # adds to them in place, as a backward pass does
    assert all(p.grad is tensor for p, tensor in zip(module.parameters(), held, strict=True))
    torch.testing.assert_close(held, [2 * g for g in got])
    assert torch.equal(samples.X, before) and torch.is_grad_enabled()


@pytest.mark.parametrize("criterion", [CrossEntropyLoss, SquaredLoss])
def test_weighted_losses_are_those_of_autograd(criterion):
    module, loss_of = STACKS["tanh"](), criterion()
    samples = data("class" if criterion is CrossEntropyLoss else "real")
    samples.sample_weight = weight = torch.from_numpy(rng.uniform(0, 3, size=90))
    loss = loss_of(module(samples.X), samples.y, weight)
    expected = torch.autograd.grad(loss, list(module.parameters()))
    value, _ = stack_gradients(module, loss_of, samples)(samples.X, samples.y, weight)
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close([p.grad for p in module.parameters()], list(expected), rtol=1e-10, atol=1e-12)
    assert (
        stack_gradients(module, {CrossEntropyLoss: nn.CrossEntropyLoss, SquaredLoss: nn.MSELoss}[criterion](), samples)
        is None
    )


def test_labels_that_the_loss_ignores_have_no_gradient():
    module, samples = STACKS["relu"](), data()
    samples.y[::2] = -100
    (expected,) = torch.autograd.grad(CrossEntropyLoss()(module(samples.X), samples.y), module[0].weight)
    stack_gradients(module, CrossEntropyLoss(), samples)(samples.X, samples.y)
    torch.testing.assert_close(module[0].weight.grad, expected)


# ---- where autograd remains -------------------------------------------------------------------


class Doubled(nn.Linear):
    def forward(self, input):
        return 2 * super().forward(input)


class Residual(nn.Sequential):
    def forward(self, input):
        return input + super().forward(input)


class Tagged(nn.Parameter):
    pass


def transposed(weight) -> nn.Parameter:
    """The same weights, column by column in memory."""
    return nn.Parameter(weight.detach().t().contiguous().t())


def changed(change) -> nn.Module:
    module = STACKS["relu"]()
    result = change(module)
    return result if isinstance(result, nn.Module) else module


def tie(module):
    module[2] = nn.Linear(5, 5).double()
    module.append(nn.ReLU()).append(module[2])
    return module.append(nn.Linear(5, 3).double())


def replace_forward(module):
    module[0].forward = lambda input: nn.functional.linear(input, module[0].weight)


MODULES = {
    "forward hook": lambda m: m[0].register_forward_hook(lambda *_: None),
    "hook of the whole": lambda m: m.register_forward_hook(lambda *_: None),
    "forward pre-hook": lambda m: m[1].register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda m: m[2].register_full_backward_hook(lambda *_: None),
    "backward pre-hook": lambda m: m[2].register_full_backward_pre_hook(lambda *_: None),
    "hook of a parameter": lambda m: m[0].weight.register_hook(lambda g: 2 * g),
    "hook of its sum": lambda m: m[0].bias.register_post_accumulate_grad_hook(lambda p: None),
    "frozen": lambda m: m[0].weight.requires_grad_(False),
    "shared": tie,
    "parametrised": lambda m: nn.utils.parametrizations.weight_norm(m[0]),
    "class of its own": lambda m: stack(Doubled(6, 3)),
    "residual": lambda m: Residual(nn.Linear(6, 6).double()),
    "replaced forward": replace_forward,
    "parameter of another class": lambda m: setattr(m[0], "bias", Tagged(m[0].bias.detach())),
    "transposed": lambda m: setattr(m[0], "weight", transposed(m[0].weight)),
    "single precision": lambda m: m.float(),
    "dropout": lambda m: m.insert(1, nn.Dropout(0.5)),
    "batch norm": lambda m: m.insert(1, nn.BatchNorm1d(5).double()),
    "other activation": lambda m: m.insert(1, nn.GELU()),
    "activation of the inputs": lambda m: m.insert(0, nn.ReLU()),
    "two activations": lambda m: m.insert(1, nn.Tanh()),
    "flattening in between": lambda m: m.insert(1, nn.Flatten()),
    "no layers": lambda m: nn.Sequential(nn.Identity()),
    "scripted": torch.jit.script,
    "scripted layer": lambda m: nn.Sequential(torch.jit.script(m[0]), *m[1:]),
}


@pytest.mark.parametrize("name", MODULES)
def test_another_module_is_left_to_autograd(name):
    assert stack_gradients(changed(lambda m: None), CrossEntropyLoss(), data()) is not None
    assert stack_gradients(changed(MODULES[name]), CrossEntropyLoss(), data()) is None


@pytest.mark.parametrize("name", ["linear", "relu", "cross_entropy"])
def test_functions_of_torch_that_somebody_has_replaced_are_left_to_autograd(name, monkeypatch):
    assert stack_gradients(STACKS["relu"](), CrossEntropyLoss(), data()) is not None
    original = getattr(nn.functional, name)
    monkeypatch.setattr(nn.functional, name, lambda *args, **options: 2 * original(*args, **options))
    assert stack_gradients(STACKS["relu"](), CrossEntropyLoss(), data()) is None


SAMPLES = {
    "no targets": lambda: TensorData(X),
    "probabilities": lambda: TensorData(X, np.full((90, 3), 1 / 3)),
    "sequences": lambda: TensorData(X.reshape(90, 1, 6), y),
    "inputs with a gradient": lambda: TensorData(torch.from_numpy(X).requires_grad_(), y),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_other_data_are_left_to_autograd(name):
    assert stack_gradients(STACKS["relu"](), CrossEntropyLoss(), SAMPLES[name]()) is None


def test_other_losses_are_left_to_autograd():
    module = STACKS["relu"]()
    weights = torch.ones(3, dtype=torch.float64)
    others = [nn.CrossEntropyLoss(**o) for o in ({"weight": weights}, {"label_smoothing": 0.1}, {"reduction": "sum"})]
    for criterion in (HingeLoss(), nn.CrossEntropyLoss(ignore_index=0), *others):
        assert stack_gradients(module, criterion, data()) is None
    columns = TensorData(X, np.zeros((90, 1)))  # broadcast against three outputs, with a warning of torch
    for criterion, samples in ((nn.MSELoss(), columns), (SquaredLoss(), data()), (nn.L1Loss(), data("real"))):
        assert stack_gradients(module, criterion, samples) is None


def test_within_contexts_that_change_autograd_it_remains():
    module, criterion, samples = STACKS["relu"](), CrossEntropyLoss(), data()
    contexts = [torch.no_grad(), torch.autograd.set_detect_anomaly(True), torch.autocast("cpu", torch.bfloat16)]
    contexts.append(torch.autograd.graph.saved_tensors_hooks(lambda t: t.bfloat16(), lambda t: t.double()))
    contexts += [torch.device("cpu"), TorchDispatchMode()]
    for context in contexts:
        with context:
            assert stack_gradients(module, criterion, samples) is None
    handle = nn.modules.module.register_module_forward_hook(lambda *_: None)
    try:
        assert stack_gradients(module, criterion, samples) is None
    finally:
        handle.remove()
    assert stack_gradients(module, criterion, samples) is not None


@pytest.mark.parametrize("kind", [nn.Linear, nn.ReLU, nn.Sequential, CrossEntropyLoss])
def test_a_forward_that_is_replaced_in_the_class_is_left_to_autograd(kind, monkeypatch):
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda *args: 2 * forward(*args))
    assert stack_gradients(STACKS["relu"](), CrossEntropyLoss(), data()) is None


# ---- fits -------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch) -> list[int]:
    """The batches of which a stack computed the gradients."""
    sizes: list[int] = []

    def counted(self, X, y, weight=None, call=StackGradients.__call__):
        sizes.append(len(X))
        return call(self, X, y, weight)

    monkeypatch.setattr(StackGradients, "__call__", counted)
    return sizes


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "sam", "lbfgs", "rmsprop"])
@pytest.mark.parametrize("estimator", [NetworkClassifier, NetworkRegressor])
def test_a_fit_is_that_of_autograd(estimator, optimizer, calls, monkeypatch):
    options = {"hidden_layer_sizes": (7,), "max_epochs": 3, "batch_size": 40, "learning_rate": 0.01, "random_state": 0}
    model = estimator(optimizer=optimizer, **options).fit(X, y)
    assert set(calls) == {40, 10} and len(calls) >= 9
    calls.clear()
    monkeypatch.setattr(net_module, "stack_gradients", lambda *_: None)
    other = estimator(optimizer=optimizer, **options).fit(X, y)
    assert not calls
    for a, b in zip(model.module_.parameters(), other.module_.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(model.history_[:, "train_loss"], other.history_[:, "train_loss"], rtol=1e-9)


@pytest.mark.parametrize("estimator", [NetworkClassifier, NetworkRegressor])
def test_a_weighted_fit_is_that_of_autograd(estimator, calls, monkeypatch):
    model = estimator((7,), max_epochs=3, batch_size=40, random_state=0).fit(X, y, np.arange(1, 91))
    assert len(calls) == 9
    monkeypatch.setattr(net_module, "stack_gradients", lambda *_: None)
    other = estimator((7,), max_epochs=3, batch_size=40, random_state=0).fit(X, y, np.arange(1, 91))
    assert len(calls) == 9
    for a, b in zip(model.module_.parameters(), other.module_.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(model.history_[:, "train_loss"], other.history_[:, "train_loss"], rtol=1e-9)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "sam"])
def test_the_order_of_weights_in_memory_is_of_no_consequence(optimizer):
    """torch's fused optimisers read gradients in the order of the parameters."""
    options = {"optimizer": optimizer, "max_epochs": 3, "batch_size": 40, "random_state": 0}
    plain, other = STACKS["relu"](), STACKS["relu"]()
    other[0].weight = transposed(other[0].weight)
    plain, other = (NetworkRegressor(module=m, **options).fit(X, X[:, :3] ** 2).module_ for m in (plain, other))
    assert not other[0].weight.is_contiguous()
    for a, b in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


class AtEpoch(Callback):
    """Do something to the module when the second epoch begins."""

    def __init__(self, change):
        self.change = change

    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 2:
            self.change(net.module_)


def test_a_callback_may_freeze_or_watch_a_layer_between_epochs(calls):
    frozen, seen = [], []

    def freeze(module):
        frozen.append(module[1].weight.requires_grad_(False).clone())

    options = {"hidden_layer_sizes": (7,), "max_epochs": 3, "batch_size": 90, "random_state": 0}
    model = NetworkClassifier(callbacks=[AtEpoch(freeze)], **options).fit(X, y)
    assert torch.equal(model.module_[1].weight, frozen[0]) and len(calls) == 1

    def watch(module):
        module[1].register_forward_hook(lambda layer, args, output: seen.append(output.requires_grad))

    NetworkClassifier(callbacks=[AtEpoch(watch)], **options).fit(X, y)
    assert seen.count(True) == 2


class Listener(Callback):
    def on_batch_end(self, net, y_pred=None, training=False, **kwargs):
        assert y_pred.requires_grad or not training


class OwnStep(PenalizedClassifier):
    def train_step_single(self, batch, **fit_params):
        step = super().train_step_single(batch, **fit_params)
        assert step["y_pred"].grad_fn is not None
        return step


def test_callbacks_and_subclasses_that_see_a_step_get_the_graph(calls):
    NetworkClassifier((7,), max_epochs=1, callbacks=[Listener]).fit(X, y)
    options = {"max_epochs": 1, "verbose": 0, "callbacks__valid_acc": None, "callbacks__print_log": None}
    OwnStep(STACKS["relu"](), **options).fit(X, y)
    assert not calls
    PenalizedClassifier(STACKS["relu"](), **options).fit(X, y)
    assert calls


def test_a_transform_with_parameters_gets_their_gradients():
    matrix = nn.Parameter(torch.eye(6, dtype=torch.float64))
    options = {"max_epochs": 1, "batch_size": 90, "verbose": 0, "callbacks__valid_acc": None}
    PenalizedClassifier(STACKS["relu"](), iterator_train__transform=lambda X, _: X @ matrix, **options).fit(X, y)
    module = STACKS["relu"]()
    loss = nn.functional.cross_entropy(module(torch.from_numpy(X) @ matrix), torch.from_numpy(y))
    torch.testing.assert_close(matrix.grad, torch.autograd.grad(loss, matrix)[0])


def test_a_method_that_is_replaced_on_a_net_is_called(calls):
    net = PenalizedClassifier(STACKS["relu"](), max_epochs=1, verbose=0, callbacks__valid_acc=None).initialize()
    scales, infer = [], net.infer

    def doubled(x, **fit_params):
        scales.append(2)
        return infer(2 * x, **fit_params)

    net.infer = doubled
    net.partial_fit(X, y)
    assert scales and not calls
