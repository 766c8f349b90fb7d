"""
Which measure orders networks as their generalization gaps?
===========================================================

Train networks that differ in width, weight decay and the share of wrong labels, and test which measure orders them by
their generalization gaps. ``rank_measures`` answers with Kendall's rank correlation and a bootstrap interval.
"""

import itertools

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sklearn_capacity import NetworkClassifier, compare_capacity
from sklearn_capacity.displays import CapacityGapDisplay
from sklearn_capacity.model_selection import rank_measures

X, y = load_digits(return_X_y=True)
X = StandardScaler().fit_transform(X).astype("float32")
X_train, X_test, y_train, y_test = train_test_split(X, y, train_size=500, stratify=y, random_state=0)
rng = np.random.default_rng(0)

MEASURES = ["accuracy", "parameter_count", "l2_path_norm", "spectral_norm", "fisher_rao_norm", "jacobian_frobenius"]
rows = []
for width, decay, noise in itertools.product([16, 64, 256], [0.0, 0.03], [0.0, 0.2, 0.4]):
    labels = np.where(rng.random(len(y_train)) < noise, rng.permutation(y_train), y_train)
    model = NetworkClassifier((width,), optimizer="adamw", weight_decay=decay, max_epochs=60, random_state=0)
    model.fit(X_train, labels)
    row = compare_capacity([model], X_train, labels, MEASURES, X_test=X_test, y_test=y_test).iloc[0]
    rows.append({"width": width, "weight decay": decay, "noise": noise, **row})
table = pd.DataFrame(rows)

# %%
# A tau of 1 means that the measure orders the networks like their gaps, 0 that it is unrelated to them.

measures = MEASURES[1:]
gap = ("train_accuracy", "test_accuracy")
ranks = rank_measures(table, gap, measures=measures)
print(ranks.to_string())

CapacityGapDisplay(table, gap, measures=measures, color="noise").plot()
plt.show()
