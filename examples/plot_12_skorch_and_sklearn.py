"""
Measuring models that were trained elsewhere
============================================

The same measures on scikit-learn's own models, a plain PyTorch module and a skorch net, all trained on the same digits,
with the reasons where a measure does not apply.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import MinMaxScaler
from skorch import NeuralNetClassifier
from torch import nn

from sklearn_capacity import capacity_report, measure_capacity

MEASURES = ["parameter_count", "spectral_norm", "l2_path_norm", "fisher_rao_norm", "jacobian_frobenius", "margin"]


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def trained_models(X: np.ndarray, y: np.ndarray) -> dict[str, object]:
    """A model of each kind, trained briefly."""
    net = NeuralNetClassifier(make_module, criterion=nn.CrossEntropyLoss, max_epochs=20, lr=0.1, verbose=0)
    module = make_module()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    inputs, labels = torch.as_tensor(X), torch.as_tensor(y)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), labels).backward()
        optimizer.step()
    mlp = make_pipeline(MinMaxScaler(), MLPClassifier((64,), max_iter=100, random_state=0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a hundred iterations do not converge, which does not matter here
        return {
            "LogisticRegression": LogisticRegression(max_iter=200).fit(X, y),
            "pipeline with MLPClassifier": mlp.fit(X, y),
            "skorch net": net.fit(X, y),
            "nn.Module": module,
        }


X, y = load_digits(return_X_y=True)
X = (X / 16).astype(np.float32)
models = trained_models(X, y)
table = pd.DataFrame({name: measure_capacity(model, X, y, MEASURES) for name, model in models.items()})
print(table.to_string(float_format="{:.4g}".format))

report = capacity_report(models["nn.Module"], X, y, "cheap")
print(report[["measure", "value", "unit", "seconds", "reason"]].to_string())

norms = table.drop(index="margin")  # the margin may be negative
relative = norms.div(norms["LogisticRegression"], axis=0)
figure, ax = plt.subplots(figsize=(8, 5), layout="constrained")
for i, name in enumerate(relative):  # side by side, since the networks have equal numbers of parameters
    ax.plot(np.arange(len(relative)) + 0.1 * (i - 1.5), relative[name], "o", label=name)
ax.set(yscale="log", ylabel=r"value over that of logistic regression, $\leftarrow$ lower is better")
ax.set_xticks(range(len(relative)), [name.replace("_", " ") for name in relative.index])
ax.set_yticks([0.3, 1, 3, 10], [0.3, 1, 3, 10])
ax.minorticks_off()
figure.legend(loc="outside upper center", ncols=4)
plt.show()
