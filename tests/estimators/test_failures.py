"""What fails in a fit names the parameter that it came from."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import skorch
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from sklearn_capacity import GeneralizationLayerClassifier, NetworkClassifier, NetworkRegressor, measure_capacity
from sklearn_capacity.penalties import check_penalty

X, y = np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) % 3


class Fails(skorch.callbacks.Callback):
    def __init__(self, error):
        self.error = error

    def on_epoch_end(self, net, **kwargs):
        raise self.error


class Trial(Exception):
    """As searches end a trial by."""


class FailsInTraining(nn.Linear):
    def forward(self, X):
        if self.training:
            raise KeyError("no such key")
        return super().forward(X)


class NoCopy(nn.Linear):
    def __deepcopy__(self, memo):
        raise RuntimeError("it is locked")


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"optimizer_params": {"fused": True, "foreach": True}}, "^`optimizer` made the fit fail: .*`fused`"),
        ({"optimizer": torch.optim.SparseAdam}, "^`optimizer` made the fit fail: RuntimeError: SparseAdam"),
        ({"optimizer_params": {"nothing": 1}}, "^`optimizer` made the fit fail: .* argument 'nothing'"),
        ({"callbacks": [skorch.callbacks.Freezer("*")]}, "^`module` must return outputs .* `callbacks` that freeze"),
        ({"callbacks": [skorch.callbacks.LRScheduler("Nothing")]}, r"^`callbacks` \(LRScheduler\) made the fit fail"),
        ({"callbacks": [Fails(ZeroDivisionError("by zero"))]}, r"^`callbacks` \(Fails\) made the fit fail: ZeroDiv"),
        ({"learning_rate_schedule": torch.optim.lr_scheduler.StepLR}, "^`learning_rate_schedule` must be callable"),
        ({"module": FailsInTraining(4, 3)}, "^`module` made the fit fail: KeyError: 'no such key'"),
        ({"module": NoCopy(4, 3)}, "^`module` cannot be copied: it is locked. Give its class"),
        ({"module": lambda: {}["missing"]}, "^`module` made the fit fail: KeyError: 'missing"),
        ({"penalty": lambda module, X: {}["missing"]}, "^`penalty` made the fit fail: KeyError: 'missing"),
        ({"augmentation": lambda X, generator: {}["missing"]}, "^`augmentation` made the fit fail: KeyError: 'missing"),
    ],
)  # fmt: skip
def test_a_failure_names_its_parameter(params, message):
    estimator = NetworkClassifier(max_epochs=1, random_state=0, dtype="float32", **params)
    random = torch.random.get_rng_state()
    with pytest.raises((ValueError, TypeError), match=message):
        estimator.fit(X, y)
    assert "net_" not in vars(estimator) and torch.equal(random, torch.random.get_rng_state())


@pytest.mark.parametrize("error", [Trial("pruned"), OSError("disk full"), MemoryError(), ValueError("of my own")])
def test_some_errors_pass_as_they_are(error):
    with pytest.raises(type(error), match=f"^{error}$"):
        NetworkClassifier(max_epochs=1, callbacks=[Fails(error)]).fit(X, y)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X: None, "return a tensor, got NoneType"),
        (lambda X: X.numpy(), "return a tensor, got ndarray"),
        (lambda X: X[:0], r"of its input's shape \(12, 4\), got \(0, 4\)"),
        (lambda X: X[:, :2], r"of its input's shape \(12, 4\), got \(12, 2\)"),
        (lambda X: X.double(), "like its input, torch.float32 on cpu, got torch.float64"),
        (lambda X: X.to("meta"), "on meta"),
        (lambda X: X.to_sparse(), "sparse"),
    ],
)
def test_an_augmentation_returns_a_batch_like_the_one_it_got(change, message):
    estimator = NetworkClassifier(max_epochs=1, dtype="float32", augmentation=lambda X, generator: change(X))
    with pytest.raises((TypeError, ValueError), match=f"^`augmentation` must .*{message}"):
        estimator.fit(X, y)


def test_tensors_are_arrays_wherever_they_come_from():
    plain = NetworkRegressor((3,), max_epochs=1, random_state=0).fit(X, y, sample_weight=np.ones(12))
    tensors = [torch.from_numpy(array).requires_grad_() for array in (X, y.astype(float), np.ones(12))]
    fitted = NetworkRegressor((3,), max_epochs=1, random_state=0).fit(*tensors[:2], sample_weight=tensors[2])
    np.testing.assert_array_equal(fitted.predict(tensors[0]), plain.predict(X))
    assert fitted.score(tensors[0], tensors[1], tensors[2]) == plain.score(X, y)
    negated = torch.from_numpy(-X)._neg_view()  # as of the imaginary part of a conjugate
    np.testing.assert_array_equal(fitted.predict(negated), plain.predict(X))


def _fake():
    with FakeTensorMode():
        return torch.zeros(12, 4)


ODD_TENSORS = {
    "meta": lambda: torch.empty(12, 4, device="meta"),
    "nested": lambda: torch.nested.nested_tensor([torch.zeros(4)] * 12),
    "nested, torch.float64": lambda: torch.nested.nested_tensor([torch.zeros(4).double()] * 12, layout=torch.jagged),
    "float8": lambda: torch.zeros(12, 4, dtype=torch.float8_e5m2),
    "complex32": lambda: torch.zeros(12, 4, dtype=torch.complex32),
    "bits8": lambda: torch.zeros(12, 4, dtype=torch.uint8).view(torch.bits8),
    "quint8": lambda: torch.quantize_per_tensor(torch.zeros(12, 4), 0.1, 0, torch.quint8),
    "sparse_csr": lambda: torch.eye(12, 4).to_sparse_csr(),
    "FakeTensor": _fake,
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's of prototypes
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_tensors_without_plain_values_are_refused_by_name(kind):
    odd, linear = ODD_TENSORS[kind](), nn.Linear(4, 3)
    fitted = NetworkRegressor((3,), max_epochs=1, random_state=0).fit(X, y)
    calls = [
        ("X", lambda: fitted.fit(odd, y)),
        ("y", lambda: NetworkRegressor((3,)).fit(X, odd)),
        ("sample_weight", lambda: NetworkRegressor((3,)).fit(X, y, odd)),
        ("X", lambda: fitted.predict(odd)),
        ("y", lambda: fitted.score(X, odd)),
        ("y", lambda: NetworkClassifier((3,), max_epochs=1).fit(X, y).score(X, odd)),
        ("X", lambda: measure_capacity(linear, odd, y, "fisher_trace")),
        ("y", lambda: measure_capacity(linear, X, odd, "margin")),
        ("X", lambda: check_penalty(lambda module, X: module(X).square().sum(), linear, odd)),
    ]
    for name, call in calls:
        with pytest.raises(TypeError, match=f"^`{name}` must be a dense real tensor with values, got .*{kind}"):
            call()


@pytest.mark.parametrize(
    ("X_", "y_", "message"),
    [
        ([[10**400] * 4] * 12, y, "X and y must contain numbers that are finite in float64"),
        (X, "labels", "y must have one entry per sample, got 'labels'"),
    ],
)
def test_data_that_are_no_numbers(X_, y_, message):
    with pytest.raises(ValueError, match=message):
        NetworkClassifier(max_epochs=1).fit(X_, y_)


@pytest.mark.parametrize("nu", [1e-300, 1e300])
def test_nu_stays_a_number_in_single_precision(nu):
    with pytest.raises(ValueError, match="`nu_start` must lie in"):
        GeneralizationLayerClassifier(max_epochs=1, nu_start=nu).fit(X, y)


def test_there_is_one_cpu():
    with pytest.raises(ValueError, match="`device` must be .cpu., got 'cpu:7'"):
        NetworkClassifier(max_epochs=1, device="cpu:7").fit(X, y)
    first = NetworkClassifier(max_epochs=1, device="cpu:0", random_state=0).fit(X, y)
    assert (pickle.loads(pickle.dumps(first)).predict(X) == first.predict(X)).all()


def test_what_cannot_be_pickled_says_so():
    module = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    fitted = NetworkClassifier(module=module, max_epochs=1).fit(X, y)
    with pytest.raises(TypeError, match="cannot be pickled because its `module` cannot: .*sklearn_capacity.save"):
        pickle.dumps(fitted)
