"""
Capacity per epoch
==================

A callback measures the network while it trains. Accuracy stops changing long before the norms do.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from sklearn_capacity import CapacityCallback, JacobianRegularizedClassifier
from sklearn_capacity.displays import HistoryDisplay

X, y = load_digits(return_X_y=True)
X = StandardScaler().fit_transform(X).astype("float32")

callback = CapacityCallback(["spectral_norm", "fisher_rao_norm", "margin"], max_samples=500)
models = {
    name: JacobianRegularizedClassifier(
        jacobian_penalty=strength, max_epochs=30, early_stopping=True, n_iter_no_change=30, callbacks=[callback],
        random_state=0,
    ).fit(X, y)
    for name, strength in {"plain": 0.0, "penalised": 0.01}.items()
}  # fmt: skip

# %%
# The values are columns of ``history_``, next to the losses, the accuracy on the held-out part and the penalty.

HistoryDisplay.from_estimators(models).plot()
plt.show()

# %%
# Solid lines are values on the training part, dashed ones on the part held out.

for name, model in models.items():
    first, last = model.history_[4], model.history_[-1]
    print(
        f"{name}, epochs 5 and 30: validation accuracy {first['valid_acc']:.3f} and {last['valid_acc']:.3f}, "
        f"spectral norm {first['spectral_norm']:.0f} and {last['spectral_norm']:.0f}"
    )
