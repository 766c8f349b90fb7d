"""
Capacity per epoch
==================

A callback measures the network while it trains. Loss and accuracy stop changing long before the norms do.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from sklearn_capacity import CapacityCallback, NetworkClassifier

X, y = load_digits(return_X_y=True)
X = StandardScaler().fit_transform(X).astype("float32")

MEASURES = ["spectral_norm", "fisher_rao_norm", "margin"]
callback = CapacityCallback(MEASURES, X=X, y=y, max_samples=500)
model = NetworkClassifier(max_epochs=30, callbacks=[("capacity", callback)], random_state=0).fit(X, y)

# %%
# The values are columns of ``history_``.

history = model.history_
epochs = [row["epoch"] for row in history]
panels = {"train_loss": "training loss", **{name: name.replace("_", " ") for name in MEASURES}}
figure, axes = plt.subplots(1, len(panels), figsize=(12, 3), layout="constrained")
for ax, (column, title) in zip(axes, panels.items(), strict=True):
    ax.plot(epochs, [row[column] for row in history])
    ax.set(title=title, xlabel="epoch")
axes[0].set_yscale("log")
plt.show()

first, last = history[4], history[-1]
print(f"from epoch 5 to 30: loss {first['train_loss']:.3f} to {last['train_loss']:.4f},")
print(
    f"margin {first['margin']:.2f} to {last['margin']:.2f}, spectral norm {first['spectral_norm']:.1f} to "
    f"{last['spectral_norm']:.1f}"
)
