"""Model cards describe a network and contain the measured values."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from sklearn_capacity import NetworkClassifier, measure_capacity, model_card

X = np.random.default_rng(0).normal(size=(30, 4))
y = np.array(["a", "bb", "c|c"])[np.arange(30) % 3]
MEASURES = ["parameter_count", "margin"]


@pytest.fixture(scope="module")
def model():
    return NetworkClassifier((6,), max_epochs=3, random_state=0).fit(X, y)


def test_model_card(model):
    pipe = make_pipeline(StandardScaler().fit(X), model)
    card = model_card(pipe, X, y, MEASURES, title="Mine", description="For | tests.")
    assert card.startswith("# Mine\n\nFor | tests.\n\n## Parameters")
    values = measure_capacity(pipe, X, y, MEASURES)
    for name, value in values.items():
        assert f"| {name} | {value:.6g} |" in card
    for text in ("| `max_epochs` | `3` |", "| samples | 30 |", "| epochs | 3 |", "last train_loss", "on 30 samples"):
        assert text in card
    assert "`batch_size`" not in card


def test_model_card_says_what_does_not_apply():
    card = model_card(nn.Linear(4, 2), measures=MEASURES)
    assert card.startswith("# Linear") and "of the weights alone" in card and "- margin: " in card
    assert "## Training" not in card


def test_model_card_of_a_search(model):
    search = GridSearchCV(model, {"weight_decay": [0.1]}, cv=2).fit(X, y)
    card = model_card(search, X, y, MEASURES, per_class=True)
    assert card.startswith("# NetworkClassifier") and "| `weight_decay` | `0.1` |" in card
    assert "median_margin (class c\\|c)" in card
