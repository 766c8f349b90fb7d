"""
A data frame with unbalanced classes
====================================

A pipeline from a data frame with numbers and categories to a network whose loss gives the rare class more weight.
Capacity is reported for each class: the problem is in the margins of the rare class.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from sklearn.compose import make_column_transformer
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklearn_capacity import NetworkClassifier
from sklearn_capacity.displays import MarginDisplay

rng = np.random.default_rng(0)
n = 1500
frame = pd.DataFrame(
    {"age": rng.normal(45, 12, n), "income": rng.lognormal(10, 0.5, n), "region": rng.choice(["north", "south"], n)}
)
risk = 0.08 * (frame["age"] - 45) + 2.0 * (frame["region"] == "south") + rng.normal(0, 1, n)
y = np.where(risk > np.quantile(risk, 0.93), "default", "paid")
X_train, X_test, y_train, y_test = train_test_split(frame, y, stratify=y, random_state=0)

columns = make_column_transformer((StandardScaler(), ["age", "income"]), (OneHotEncoder(), ["region"]))
curves = {}
for weight in (None, "balanced"):
    model = make_pipeline(columns, NetworkClassifier((32,), class_weight=weight, max_epochs=60, random_state=0))
    model.fit(X_train, y_train)
    score = balanced_accuracy_score(y_test, model.predict(X_test))
    print(f"class_weight={weight!s:8}  balanced accuracy on new rows {score:.3f}")
    rare = y_test == "default"
    curves[f"class_weight={weight}"] = (model, X_test[rare], y_test[rare])

# %%
# The margins of the rare class: without weights most of them are negative, that is, most samples are misclassified.

display = MarginDisplay.from_estimators(curves).plot()
display.ax_.axvline(0, color="black", lw=0.8)
display.ax_.set_title("margins of the rare class, new rows")
plt.show()
