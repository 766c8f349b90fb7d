"""
True and random labels
======================

A network that is large enough fits random labels; the difference is the capacity that it uses for them. This is the
observation behind figure 1 of Neyshabur, Bhojanapalli, McAllester and Srebro (2017), on digits.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from sklearn_capacity import NetworkClassifier, compare_capacity

X, y = load_digits(return_X_y=True)
X = StandardScaler().fit_transform(X).astype("float32")
random_labels = np.random.default_rng(0).permutation(y)

MEASURES = ["accuracy", "frobenius_capacity", "spectral_capacity", "l1_path_capacity", "l2_path_capacity"]
sizes, rows = [200, 400, 800, 1600], {"true": [], "random": []}
for size in sizes:
    for name, labels in {"true": y, "random": random_labels}.items():
        model = NetworkClassifier((256,), max_epochs=200, stop_below=0.01, random_state=0)
        model.fit(X[:size], labels[:size])
        rows[name].append(compare_capacity([model], X[:size], labels[:size], MEASURES).iloc[0])

# %%
# Training accuracy is 1 throughout. Every norm divided by the margin is larger for random labels, and grows faster.

measures = MEASURES[1:]
figure, axes = plt.subplots(1, len(measures), figsize=(12, 3.2), layout="constrained")
for ax, measure in zip(axes, measures, strict=True):
    for name, marker in {"true": "o", "random": "s"}.items():
        ax.plot(sizes, [row[measure] for row in rows[name]], marker=marker, label=f"{name} labels")
    ax.set(xscale="log", yscale="log", xlabel="training samples", title=measure.replace("_", " "))
    ax.set_xticks(sizes, sizes)
    ax.minorticks_off()
axes[0].legend()
axes[0].set_ylabel(r"value, $\leftarrow$ lower is better")
plt.show()

for measure in measures:
    ratios = [r[measure] / t[measure] for r, t in zip(rows["random"], rows["true"], strict=True)]
    print(f"{measure:22s} random over true: " + ", ".join(f"{ratio:.3g}" for ratio in ratios))
