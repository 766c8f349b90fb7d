"""
Comparing three PyTorch models
==============================

Three modules trained in a plain loop, compared in one call: accuracy on both parts, their gap, and capacity.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

from sklearn_capacity import compare_capacity
from sklearn_capacity.displays import CapacityComparisonDisplay

X, y = load_digits(return_X_y=True)
X_train, X_test, y_train, y_test = train_test_split((X / 16).astype("float32"), y, stratify=y, random_state=0)


def train(module, weight_decay=0.0, epochs=300):
    """Full-batch Adam."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=weight_decay)
    for _ in range(epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(torch.as_tensor(X_train)), torch.as_tensor(y_train)).backward()
        optimizer.step()
    return module.eval()


torch.manual_seed(0)
models = {
    "small": train(nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))),
    "wide": train(nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))),
    "wide, decayed": train(nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10)), weight_decay=1.0),
}

# %%
# Names of scikit-learn's scorers are allowed among the measures; they are computed on both parts of the data.

MEASURES = ["accuracy", "parameter_count", "spectral_norm", "l2_path_norm", "fisher_rao_norm", "margin"]
table = compare_capacity(models, X_train, y_train, MEASURES, X_test=X_test, y_test=y_test)
print(table.T.to_string())

CapacityComparisonDisplay(table).plot()
plt.show()

# %%
# The wide network has thirty times the parameters of the small one. Counting them says nothing about how much of this
# capacity training has used: the norms do.
