"""
A first fit and a first report
==============================

Train a network on scikit-learn's digits, then ask how much of its capacity it uses.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_capacity import NetworkClassifier, capacity_report
from sklearn_capacity.displays import MarginDisplay

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split(X, y, stratify=y, random_state=0)

model = make_pipeline(StandardScaler(), NetworkClassifier(max_epochs=20, random_state=0))
model.fit(X_train, y_train)
print(f"accuracy on new digits: {model.score(X_test, y_test):.3f}")

# %%
# One row per measure: its value, its unit, the direction that suggests better generalisation, and its time. A measure
# that is not defined for this network has a reason instead of a value.

report = capacity_report(model, X_train, y_train)
print(report[["measure", "value", "unit", "better", "reason"]].to_string(index=False))

# %%
# The margin of a sample is the logit of its class minus the largest other logit. A negative margin is an error. The
# full distribution is more informative than one number: here for the training digits and for new ones.

MarginDisplay.from_estimators({"training": (model, X_train, y_train), "new": (model, X_test, y_test)}).plot()
plt.show()

# %%
# The network fits every training digit with room to spare; the new digits' margins are smaller, and some are negative.
