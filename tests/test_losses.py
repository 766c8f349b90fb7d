"""The hinge loss: its values and derivatives, training with it, and the measures that are defined under it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.linear_model import SGDClassifier
from sklearn.metrics import hinge_loss
from sklearn.svm import LinearSVC
from torch import nn

from measuring import values_of
from networks import NETWORKS
from sklearn_capacity import (
    JacobianRegularizedClassifier,
    NetworkClassifier,
    NetworkRegressor,
    NotDefinedError,
    load,
    measure_capacity,
    save,
)
from sklearn_capacity.losses import CLASSIFICATION, CRITERIA, REGRESSION, HingeLoss, is_classification, sample_losses
from sklearn_capacity.measures import MEASURES
from sklearn_capacity.penalties import fisher_rao_penalty, gradient_norm_penalty

#: Measures of a distribution: the Fisher information and what is computed from it, and the pull-back metric.
OF_A_LIKELIHOOD = {name for name, measure in MEASURES.items() if "loss" in measure.parameters} | {
    "pullback_curvature",
    "pullback_trace",
    "spectral_product_bound",
}


def by_loops(logits, y):
    """max(0, 1 - margin) of each sample, class by class."""
    rows = []
    for f, label in zip(logits, y.tolist(), strict=True):
        rival = torch.stack([f[k] for k in range(len(f)) if k != label]).max()
        rows.append((1 + rival - f[label]).clamp_min(0))
    return torch.stack(rows)


def drawn(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def chain(*widths):
    """A rectifier chain without biases."""
    layers = []
    for seed, (a, b) in enumerate(zip(widths[:-1], widths[1:], strict=True)):
        linear = nn.Linear(a, b, bias=False).double()
        linear.weight.data = drawn(b, a, seed=seed) / a**0.5
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def test_every_loss_is_of_one_kind():
    assert {*CLASSIFICATION, *REGRESSION} == {*CRITERIA}
    assert [is_classification(loss) for loss in (*CRITERIA, None)] == [True, True, False, False, False]


@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_values_are_those_of_scikit_learn(n_classes):
    logits, y = 2 * drawn(50, n_classes), torch.arange(50) % n_classes
    losses = sample_losses(logits, y, "hinge")
    assert 0 < (losses == 0).sum() < 50
    torch.testing.assert_close(losses, by_loops(logits, y))
    decision = logits[:, 1] - logits[:, 0] if n_classes == 2 else logits
    assert losses.mean().item() == pytest.approx(hinge_loss(y.numpy(), decision.numpy()))
    weight = drawn(50, seed=1).square()
    assert HingeLoss()(logits, y, weight).item() == pytest.approx((by_loops(logits, y) * weight).mean().item())
    if n_classes == 2:  # torch divides by the number of classes
        assert HingeLoss()(logits, y).item() == pytest.approx(2 * nn.MultiMarginLoss()(logits, y).item())


def test_the_gradient_is_that_of_the_nearest_rival():
    logits = torch.tensor([[2.0, 1.5, 0.0], [9.0, 1.0, 2.0], [0.0, 1.0, 5.0]], requires_grad=True)
    sample_losses(logits, torch.tensor([0, 0, 1]), "hinge").sum().backward()
    assert logits.grad.tolist() == [[-1, 1, 0], [0, 0, 0], [0, -1, 1]]


def test_diverged_logits_have_no_finite_loss():
    logits = torch.tensor([[torch.nan, 0.0, 1.0], [0.0, torch.inf, torch.inf]])
    assert not sample_losses(logits, torch.tensor([1, 1]), "hinge").isfinite().any()


# ---- measures --------------------------------------------------------------------------------------------------------


def test_the_hessian_is_that_of_the_loss_written_out():
    module, X = chain(3, 4, 3), drawn(12, 3, seed=5)
    y = torch.arange(12) % 3
    shapes = [p.shape for p in module.parameters()]
    theta = torch.cat([p.detach().flatten() for p in module.parameters()])

    def loss(flat):
        first, second = flat.split([shape.numel() for shape in shapes])
        return by_loops((X @ first.view(shapes[0]).T).relu() @ second.view(shapes[1]).T, y).mean()

    hessian = torch.autograd.functional.hessian(loss, theta)
    gradient = torch.autograd.functional.jacobian(loss, theta)
    values = torch.linalg.eigvalsh(hessian)
    measured = measure_capacity(
        module, X, y, ["hessian_max_eigenvalue", "hessian_trace", "loss_gradient_norm"], loss="hinge"
    )
    assert values[-1] > 0.1
    assert measured["hessian_max_eigenvalue"] == pytest.approx(values[-1].item())
    assert measured["hessian_trace"] == pytest.approx(0, abs=1e-12)  # the loss is linear in every single weight
    assert measured["loss_gradient_norm"] == pytest.approx(gradient.norm().item())
    penalty = gradient_norm_penalty(module, X, y, criterion=HingeLoss())
    assert penalty.item() == pytest.approx(gradient.norm().item())


def test_sharpness_is_the_rise_of_the_loss():
    module, X = chain(3, 4, 3), drawn(12, 3, seed=5)
    y = torch.arange(12) % 3
    ball = {"s": ("adaptive_sharpness", {"rho": 0.1, "adaptive": False})}
    before = by_loops(module(X), y).mean().item()
    rise = measure_capacity(module, X, y, ball, loss="hinge")["s"]
    steepest = 0.1 * measure_capacity(module, X, y, "loss_gradient_norm", loss="hinge")["loss_gradient_norm"]
    assert rise == pytest.approx(steepest, rel=0.2)  # the loss has little curvature
    assert by_loops(module(X), y).mean().item() == before


def test_the_fisher_rao_norm_of_a_rectifier_chain_follows_from_its_margins():
    """Theorem 3.1: <dl/df, f> is minus the margin where that is below 1, and 0 elsewhere."""
    module, X = chain(4, 9, 7, 3), 3 * drawn(60, 4, seed=1)
    y = module(X).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    margins = (1 - by_loops(module(X), y)).detach()  # right where it is below 1
    assert 5 < (margins < 1).sum() < 60
    expected = 3 * (margins.square() * (margins < 1)).mean().sqrt().item()
    value = measure_capacity(module, X, y, "fisher_rao_norm", loss="hinge")["fisher_rao_norm"]
    assert value == pytest.approx(expected)
    penalty = fisher_rao_penalty(module, X, y, criterion=HingeLoss(), distribution="empirical")
    assert penalty.item() == pytest.approx(expected**2)
    penalty.backward()
    slopes = sum((p.grad * p).sum() for p in module.parameters())  # the square has degree 2 L + 2 in the weights
    assert slopes.item() == pytest.approx(6 * expected**2)


def test_without_a_likelihood_there_is_no_fisher_information():
    module, X, y = chain(3, 4, 3), drawn(12, 3), torch.arange(12) % 3
    for name in OF_A_LIKELIHOOD:
        with pytest.raises(NotDefinedError, match=r'got "hinge".*(Give the measure its own loss|Pass loss=)'):
            measure_capacity(module, X, y, name, loss="hinge")
    model = {"r": ("fisher_rao_norm", {"distribution": "model"})}
    with pytest.raises(NotDefinedError, match='needs distribution="empirical", got "model"'):
        measure_capacity(module, X, y, model, loss="hinge")
    with pytest.raises(NotDefinedError, match='needs distribution="empirical"'):
        fisher_rao_penalty(module, X, y, criterion=HingeLoss())


def test_all_other_measures_of_a_classifier_are_defined():
    module, X, y = NETWORKS["mlp"]()
    values = {
        loss: {k for k, v in values_of(module, X, y, loss=loss, initial_state=module).items() if v is not None}
        for loss in ("hinge", "cross_entropy")
    }
    assert values["cross_entropy"] - values["hinge"] == OF_A_LIKELIHOOD & values["cross_entropy"]


def test_labels_are_class_indices():
    module, X = chain(3, 4, 3), drawn(12, 3)
    with pytest.raises(ValueError, match="labels that the model does not know: 0.5"):
        measure_capacity(module, X, np.full(12, 0.5), "margin", loss="hinge")


# ---- estimators ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    X, y = load_digits(return_X_y=True)
    return (X / 16).astype(np.float32), np.array([f"digit {label}" for label in y])


@pytest.fixture(scope="module")
def model(digits):
    X, y = digits
    return NetworkClassifier((32,), loss="hinge", max_epochs=15, random_state=0).fit(X[:1200], y[:1200])


def test_digits_are_learnt_with_the_hinge_loss(model, digits):
    X, y = digits
    assert model.loss_name_ == "hinge"
    assert model.score(X[1200:], y[1200:]) > 0.88
    loss = hinge_loss(y[:1200], model.decision_function(X[:1200]), labels=model.classes_)
    assert loss < 0.1 < model.history_[0, "train_loss"]
    assert model.history_[-1, "train_loss"] == pytest.approx(loss, rel=0.5)


def test_there_are_no_probabilities(model, digits):
    X, y = digits
    for name in ("predict_proba", "predict_log_proba"):
        assert not hasattr(model, name) and not hasattr(NetworkClassifier(loss="hinge"), name)
        assert hasattr(NetworkClassifier(), name)
        with pytest.raises(AttributeError, match=name) as raised:
            getattr(model, name)
        assert 'need loss="cross_entropy"' in str(raised.value.__cause__)
    calibrated = CalibratedClassifierCV(NetworkClassifier((8,), loss="hinge", max_epochs=3, random_state=0), cv=2)
    assert calibrated.fit(X[:300], y[:300]).predict_proba(X[:2]).shape == (2, 10)


def test_the_model_measures_with_its_loss(model, digits, tmp_path):
    X, y = digits[0][:200], digits[1][:200]
    names = ["loss_gradient_norm", "fisher_rao_norm", "margin", "accuracy"]
    values = measure_capacity(model, X, y, names)
    assert values == measure_capacity(model, X, y, names, loss="hinge")
    index = np.searchsorted(model.classes_, y)
    assert measure_capacity(model.net_, X, index, names) == values
    assert values != measure_capacity(model, X, y, names, loss="cross_entropy")
    assert "fisher_trace" in measure_capacity(model, X, y, ["fisher_trace"])  # of the squared loss, as for any model
    save(model, tmp_path / "model.json")
    again = load(tmp_path / "model.json")
    assert again.loss_name_ == "hinge" and (again.decision_function(X) == model.decision_function(X)).all()


def test_scores_of_modules_use_no_probabilities(model, digits):
    X, y = digits[0][:200], digits[1][:200]
    options = {"loss": "hinge", "classes": model.classes_}
    assert measure_capacity(model.module_, X, y, "accuracy", **options)["accuracy"] == model.score(X, y)
    with pytest.raises(AttributeError, match="predict_proba"):
        measure_capacity(model.module_, X, y, "neg_log_loss", **options)


def test_penalties_are_added_to_the_hinge_loss(digits):
    X, y = digits
    settings = {"loss": "hinge", "max_epochs": 3, "random_state": 0, "hidden_layer_sizes": (16,)}
    penalized = JacobianRegularizedClassifier(jacobian_penalty=0.1, **settings).fit(X[:300], y[:300])
    plain = NetworkClassifier(**settings).fit(X[:300], y[:300])
    norms = [
        measure_capacity(m, X[:300], measures="jacobian_frobenius")["jacobian_frobenius"] for m in (penalized, plain)
    ]
    assert norms[0] < 0.9 * norms[1]


def test_what_the_hinge_loss_does_not_have_is_refused(digits):
    X, y = digits[0][:50], digits[1][:50]
    with pytest.raises(ValueError, match="`optimizer` 'kfac' needs a loss .* got HingeLoss"):
        NetworkClassifier(loss="hinge", optimizer="kfac").fit(X, y)
    with pytest.raises(ValueError, match="`loss` must be one of 'auto', 'squared', 'absolute', got 'hinge'"):
        NetworkRegressor(loss="hinge").fit(X, np.arange(50.0))


@pytest.mark.parametrize(
    ("machine", "n_classes"),
    [
        (LinearSVC(loss="hinge", random_state=0, max_iter=20_000), 2),
        (SGDClassifier(random_state=0), 2),
        (LinearSVC(multi_class="crammer_singer", random_state=0, max_iter=20_000), 2),
        (LinearSVC(multi_class="crammer_singer", random_state=0, max_iter=20_000), 3),
    ],
    ids=["liblinear", "sgd", "Crammer-Singer of two", "Crammer-Singer of three"],
)
def test_support_vector_machines_measure_with_the_hinge_loss(digits, machine, n_classes):
    X, y = digits[0][:150].astype(float), np.arange(150) % n_classes
    X = X + 2 * np.eye(64)[y]
    machine.fit(X, y)
    weights = torch.tensor(np.atleast_2d(machine.coef_), requires_grad=True)
    bias = torch.tensor(machine.intercept_)
    logits = torch.from_numpy(X) @ weights.T + bias
    both = torch.cat([-logits / 2, logits / 2], 1) if n_classes == 2 else logits
    assert by_loops(both, torch.from_numpy(y)).mean().item() == pytest.approx(
        hinge_loss(y, machine.decision_function(X))
    )
    value = measure_capacity(machine, X, y, "fisher_rao_norm")["fisher_rao_norm"]
    losses = by_loops(both, torch.from_numpy(y)).detach()  # u = f: where a margin is below 1, it is 1 - loss
    assert value == pytest.approx((((1 - losses) * (losses > 0)) ** 2).mean().sqrt().item())
