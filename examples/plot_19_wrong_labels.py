"""
Three displays of one story
===========================

Thirty percent of the training labels are drawn at random. A plain network learns them; a penalty on the Jacobian
prevents that. Three displays show it: what happens in each epoch, the margins of new digits, and capacity beside the
generalization gap.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from sklearn_capacity import CapacityCallback, JacobianRegularizedClassifier, compare_capacity
from sklearn_capacity.displays import CapacityGapDisplay, HistoryDisplay, MarginDisplay

X, y = load_digits(return_X_y=True)
X, X_new, y, y_new = train_test_split((X / 16).astype("float32"), y, train_size=400, stratify=y, random_state=0)
rng = np.random.default_rng(0)
y = np.where(rng.random(400) < 0.3, rng.integers(10, size=400), y)

models = {}
for strength in [0.0, 0.001, 0.003, 0.01, 0.03, 0.1]:
    on_training = CapacityCallback(["accuracy"])
    on_new = CapacityCallback(["accuracy"], X=X_new, y=y_new, prefix="valid_")
    model = JacobianRegularizedClassifier(
        (100,), jacobian_penalty=strength, max_epochs=60, batch_size=50, callbacks=[on_training, on_new], random_state=0
    )
    models[f"strength {strength:g}"] = model.fit(X, y)

# %%
# In the panel on the left, dashed lines are the accuracies on new digits, whose labels are true.

pair = {name: models[name] for name in ("strength 0", "strength 0.03")}
table = compare_capacity(models, X, y, ["accuracy", "jacobian_frobenius"], X_test=X_new, y_test=y_new)

figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
HistoryDisplay.from_estimators(pair, columns=["accuracy", "valid_accuracy"]).plot(axes[0])
MarginDisplay.from_estimators({name: (model, X_new, y_new) for name, model in pair.items()}).plot(axes[1])
axes[1].set_title("margins of new digits")
CapacityGapDisplay(table, ("train_accuracy", "test_accuracy")).plot(axes[2:])
plt.show()

# %%
print(table.round(3).to_string())
plain, chosen = (table.loc[name] for name in pair)
print(
    f"The plain network fits {plain['train_accuracy']:.0%} of the training labels, wrong ones included, and is right on "
    f"{plain['test_accuracy']:.0%} of new digits; with a penalty of 0.03 it is {chosen['train_accuracy']:.0%} and "
    f"{chosen['test_accuracy']:.0%}."
)
