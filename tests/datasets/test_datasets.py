"""Generators against their formulas, and the fetchers with OpenML replaced."""

from __future__ import annotations

from urllib.error import URLError

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.utils import Bunch

from sklearn_capacity.datasets import (
    fetch_cifar10,
    fetch_mnist,
    load_digit_images,
    make_confusion_set,
    make_noisy_cubic,
    make_noisy_quadratic,
    make_piecewise_linear_curves,
    randomize_labels,
)


def test_polynomials_are_the_printed_functions():
    X, y, clean = make_noisy_quadratic(return_clean=True, random_state=0)
    assert X.shape == (100, 1) and y.shape == clean.shape == (100,) and X[0, 0] == -8 and X[-1, 0] == 8
    np.testing.assert_allclose(clean, [10 + 1.22 * x * x for x in X[:, 0]])
    X, y, clean = make_noisy_cubic(return_clean=True, random_state=0)
    np.testing.assert_allclose(clean, [10 + 1.22 * x * x + (1.22 * (x + 4) ** 3 if x < 0 else 0) for x in X[:, 0]])


@pytest.mark.parametrize("make", [make_noisy_quadratic, make_noisy_cubic])
@pytest.mark.parametrize("noise", [10.0, 2.5])
def test_noise_is_a_standard_deviation(make, noise):
    n = 20_000
    _, y, clean = make(n, noise=noise, return_clean=True, random_state=1)
    assert abs((y - clean).mean()) < 4 * noise / n**0.5
    assert abs((y - clean).std() / noise - 1) < 4 / (2 * n) ** 0.5
    assert len(make(5)) == 2


def test_cubic_jumps_at_zero_and_is_smooth_at_minus_four():
    def jump(switch):
        _, _, clean = make_noisy_cubic(2001, switch=switch, interval=(switch - 1e-3, switch + 1e-3), return_clean=True)
        return np.abs(np.diff(clean)).max()

    assert abs(jump(0.0) - 1.22 * 4**3) < 0.1
    assert jump(-4.0) < 1e-3


def test_polynomials_follow_their_seed():
    same = [make_noisy_cubic(random_state=seed)[1] for seed in (0, 0, np.random.RandomState(0), 1)]
    assert np.array_equal(same[0], same[1]) and np.array_equal(same[0], same[2])
    assert not np.array_equal(same[0], same[3])


def test_curves_are_the_sum_of_their_kinks():
    X, y = make_piecewise_linear_curves(20, n_points=15, n_pieces=4, random_state=0)
    assert ((y != 0).sum(1) == 4).all() and np.abs(y).max() <= 1
    for row in range(20):
        for t in range(1, 16):
            value = sum(y[row, theta] * max(t - theta, 0) for theta in range(15))
            assert abs(X[row, t - 1] - value) < 1e-12


def test_curves_are_as_ill_conditioned_as_documented():
    condition = [np.linalg.cond(np.cumsum(np.cumsum(np.eye(n), axis=0), axis=0)) for n in (50, 100)]
    assert 3.8 < condition[1] / condition[0] < 4.2  # n squared


def test_kinks_are_uniform():
    n = 30_000
    _, y = make_piecewise_linear_curves(n, n_points=10, n_pieces=1, random_state=0)
    share = (y != 0).mean(0)
    assert np.abs(share - 0.1).max() < 4 * (0.1 * 0.9 / n) ** 0.5


@pytest.mark.parametrize("labels", [np.arange(10), np.array(list("abcdefghij")), np.array([True, False])])
def test_randomised_labels_are_uniform_on_an_exact_number(labels):
    y = np.repeat(labels, 3000)
    before = y.copy()
    z = randomize_labels(y, 0.5, random_state=0)
    assert np.array_equal(y, before) and z.dtype == y.dtype
    n_random, n_classes = len(y) // 2, len(labels)
    expected = n_random * (1 - 1 / n_classes)
    assert abs((z != y).sum() - expected) < 4 * (expected / n_classes) ** 0.5
    assert np.array_equal(randomize_labels(y, 0.0), y)
    assert np.array_equal(z, randomize_labels(y, 0.5, random_state=0))


def test_all_labels_random_forget_the_true_ones():
    y = np.repeat(np.arange(4), 10_000)
    z = randomize_labels(y, 1.0, random_state=0)
    table = np.array([[(z[y == a] == b).mean() for b in range(4)] for a in range(4)])
    assert np.abs(table - 0.25).max() < 4 * (0.25 * 0.75 / 10_000) ** 0.5


def test_confusion_set_keeps_the_training_labels_and_loses_the_others():
    X = np.arange(6000)[:, None]
    y = X[:, 0] % 5
    X_union, y_union, in_train = make_confusion_set(X, y, 2000, 3000, random_state=0)
    assert X_union.shape == (5000, 1) and in_train.sum() == 2000 and len(np.unique(X_union)) == 5000
    assert (y_union[in_train] == X_union[in_train, 0] % 5).all()
    right = (y_union[~in_train] == X_union[~in_train, 0] % 5).mean()
    assert abs(right - 0.2) < 4 * (0.2 * 0.8 / 3000) ** 0.5


def test_confusion_sets_of_one_seed_are_nested():
    X, y = np.arange(100)[:, None], np.arange(100) % 3
    small, large = (make_confusion_set(X, y, 20, n, random_state=3) for n in (0, 50))
    assert len(small[0]) == 20 and small[2].all()
    middle = make_confusion_set(X, y, 20, 30, random_state=3)
    for part in (0, 1, 2):
        assert np.array_equal(large[part][:20], small[part]) and np.array_equal(large[part][:50], middle[part])


def test_digit_images():
    X, y = load_digit_images(return_X_y=True)
    bunch = load_digit_images()
    assert X.shape == (1797, 1, 8, 8) and X.dtype == np.float32 and X.min() == 0 and X.max() == 1
    from sklearn.datasets import load_digits

    np.testing.assert_array_equal(X.reshape(1797, 64) * 16, load_digits().data)
    np.testing.assert_array_equal(y, load_digits().target)
    assert np.array_equal(bunch.data, X) and bunch.target_names == list("0123456789") and "digits" in bunch.DESCR


def _fake_openml(n, n_pixels):
    def fetch_openml(**kwargs):
        assert kwargs["data_id"] in (554, 40927) and kwargs["data_home"] == "somewhere"
        data = np.broadcast_to(np.arange(n_pixels) % 256, (n, n_pixels))
        return Bunch(data=data, target=np.array([str(i % 10) for i in range(n)], dtype=object), DESCR="a description")

    return fetch_openml


def test_fetchers_give_images_in_the_unit_interval(monkeypatch):
    monkeypatch.setattr("sklearn.datasets.fetch_openml", _fake_openml(60_002, 784))
    X, y = fetch_mnist(subset="test", return_X_y=True, data_home="somewhere")
    assert X.shape == (2, 1, 28, 28) and X.dtype == np.float32 and y.tolist() == [0, 1] and y.dtype == np.int64
    monkeypatch.setattr("sklearn.datasets.fetch_openml", _fake_openml(12, 3072))
    bunch = fetch_cifar10(data_home="somewhere")
    assert bunch.data.shape == (12, 3, 32, 32) and 0 <= bunch.data.min() and bunch.data.max() == 1
    assert bunch.data[0, 1, 0, 0] == np.float32(1024 % 256) / 255 and bunch.target_names[3] == "cat"


@pytest.mark.parametrize("fetch", [fetch_mnist, fetch_cifar10])
def test_no_network_is_a_clear_error(monkeypatch, fetch):
    def fetch_openml(**kwargs):
        raise URLError("no route")

    monkeypatch.setattr("sklearn.datasets.fetch_openml", fetch_openml)
    with pytest.raises(ConnectionError, match="could not reach OpenML .* Call it once with network access, or pass"):
        fetch()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_noisy_quadratic(noise=-1), r"`noise` must lie in \[0, inf\), got -1"),
        (lambda: make_noisy_quadratic(0), "`n_samples` must be at least 1"),
        (lambda: make_noisy_cubic(interval=(1, 1)), "`interval` must have finite ends in ascending order"),
        (lambda: make_noisy_cubic(interval=(0, np.inf)), "`interval` must have finite ends"),
        (lambda: make_piecewise_linear_curves(2, n_points=3, n_pieces=4), "`n_pieces` must be between 1 and 3, got 4"),
        (lambda: randomize_labels([0, 1], 1.1), r"`fraction` must lie in \[0, 1\], got 1.1"),
        (lambda: make_noisy_cubic(interval=(1, 10**5000)), "`interval` must have finite ends"),
        (lambda: make_noisy_cubic(random_state="a"), "`random_state` must be None, an integer from 0 .* got 'a'"),
        (lambda: randomize_labels([0, 1], 0.5, random_state=-1), "`random_state` must be None, .* got -1"),
        (lambda: randomize_labels([], 0.5), r"`y` must have shape \(n_samples,\) with at least one sample"),
        (lambda: randomize_labels([[0, 1]], 0.5), r"`y` must have shape \(n_samples,\)"),
        (lambda: make_confusion_set(np.zeros((5, 2)), np.zeros(4), 2, 2), "`X` and `y` must have one label for each"),
        (lambda: make_confusion_set([0, 1], 0, 1, 1), r"`y` must have shape \(n_samples,\)"),
        (lambda: make_confusion_set(0, [0, 1], 1, 1), "`X` and `y` must have one label for each"),
        (
            lambda: make_confusion_set(np.zeros((5, 2)), np.zeros(5), 3, 3),
            r"`n_train` \+ `n_confusion` must be at most 5",
        ),
        (lambda: fetch_mnist(subset="tests"), "`subset` must be one of .* Did you mean 'test'"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "y",
    [
        pd.Series([1, 2, None], dtype="Int64"),
        pd.Series(["a", "b", None], dtype="string"),
        pd.Series(["a", "b", None], dtype="category"),
        pd.Series([True, False, None], dtype="boolean"),
        np.array([1, 2, None], dtype=object),
        np.array([np.nan, "a", "b"], dtype=object),
        np.array([1.0, np.nan, 2.0]),
        np.array([1.0, np.nan + 1j, 2.0]),
        np.array(["2020-01-01", "NaT", "2020-01-02"], "M8[D]"),
        torch.tensor([1.0, torch.nan, 2.0]),
    ],
    ids=lambda y: str(y.dtype),
)
def test_a_missing_label_is_refused(y):
    for call in (lambda: randomize_labels(y, 0.5), lambda: make_confusion_set(np.zeros((3, 2)), y, 1, 1)):
        with pytest.raises(ValueError, match="`y` must hold a label for each sample, got "):
            call()


def test_labels_of_two_kinds_are_refused():
    y = np.array([1, "b", 2], dtype=object)
    for call in (lambda: randomize_labels(y, 0.5), lambda: make_confusion_set(np.zeros((3, 2)), y, 1, 1)):
        with pytest.raises(TypeError, match="`y` must hold labels of one kind"):
            call()


@pytest.mark.parametrize("load", [load_digit_images, fetch_mnist, fetch_cifar10])
def test_the_form_of_the_result_is_checked_before_anything_is_read(load):
    with pytest.raises(TypeError, match="`return_X_y` must be True or False, got 'yes'"):
        load(return_X_y="yes")
