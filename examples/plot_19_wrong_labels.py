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
y, noisy_new = (np.where(rng.random(len(true)) < 0.3, rng.integers(10, size=len(true)), true) for true in (y, y_new))

models = {}
for strength in [0.0, 0.001, 0.003, 0.01, 0.03, 0.1]:
    on_training = CapacityCallback(["accuracy"])
    on_new = CapacityCallback(["accuracy"], X=X_new, y=y_new, prefix="valid_")
    model = JacobianRegularizedClassifier(
        (100,), jacobian_penalty=strength, max_epochs=60, batch_size=50, callbacks=[on_training, on_new], random_state=0
    )
    models[f"strength {strength:g}"] = model.fit(X, y)

# %%
# In the first two panels, the labels of new digits are the true ones. The gap compares like with like: accuracies on
# labels of which 30 % are random, in training and on new digits.

pair = {name: models[name] for name in ("strength 0", "strength 0.03")}
table = compare_capacity(models, X, y, ["accuracy", "jacobian_frobenius"], X_test=X_new, y_test=noisy_new)

figure, axes = plt.subplots(1, 3, figsize=(13, 3.8), layout="constrained")
HistoryDisplay.from_estimators(pair, columns=["accuracy", "valid_accuracy"]).plot(axes[0])
MarginDisplay.from_estimators({name: (model, X_new, y_new) for name, model in pair.items()}).plot(axes[1])
axes[0].set_title("accuracy, dashed on new digits")
axes[1].set_title("margins of new digits")
CapacityGapDisplay(table, ("train_accuracy", "test_accuracy")).plot(axes[2:])
plt.show()

# %%
print(table.round(3).to_string())
for name, model in pair.items():
    noisy, new = model.score(X, y), model.score(X_new, y_new)
    print(f"{name}: fits {noisy:.0%} of the training labels, and is right on {new:.0%} of new digits")
