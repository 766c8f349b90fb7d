"""
Series through one-dimensional convolutions
===========================================

Noisy sine waves of three frequencies. A network of one-dimensional convolutions classifies them; the scorer compares
three kernel sizes by accuracy and capacity in one grid.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_capacity import CapacityScorer, NetworkClassifier
from sklearn_capacity.model_selection import capacity_table

rng = np.random.default_rng(0)
y = rng.integers(3, size=400)
time = np.linspace(0, 1, 64)
phases = rng.uniform(0, 2 * np.pi, (400, 1))
X = np.sin(2 * np.pi * (3 + 2 * y[:, None]) * time + phases) + rng.normal(0, 1.5, (400, 64))
X = X[:, None].astype("float32")  # one channel


class SeriesNet(nn.Module):
    def __init__(self, kernel_size=5, channels=16):
        super().__init__()
        padding = kernel_size // 2
        self.first = nn.Conv1d(1, channels, kernel_size, padding=padding)
        self.second = nn.Conv1d(channels, channels, kernel_size, padding=padding)
        self.head = nn.Linear(channels, 3)

    def forward(self, x):
        return self.head(self.second(self.first(x).relu()).relu().mean(-1))


model = NetworkClassifier(module=SeriesNet, max_epochs=30, random_state=0)
search = GridSearchCV(
    model,
    {"module_params": [{"kernel_size": k} for k in (3, 7, 15)]},
    scoring=CapacityScorer(["accuracy", "spectral_norm", "fisher_rao_norm"]),
    refit="accuracy",
    return_train_score=True,
    cv=3,
).fit(X, y)
table = capacity_table(search.cv_results_)
print(table.to_string(index=False))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
for label in range(3):
    axes[0].plot(time, X[y == label][0, 0] + 8 * label, lw=1)
axes[0].set(title="one series of each class", xlabel="time", yticks=[0, 8, 16], yticklabels=[0, 1, 2], ylabel="class")
sizes = ["3", "7", "15"]
axes[1].errorbar(sizes, table["test_accuracy"], table["test_accuracy_se"], marker="o", capsize=3)
axes[1].set(ylabel="accuracy on the test folds", xlabel="kernel size")
plt.show()

print("chosen:", search.best_params_["module_params"])
