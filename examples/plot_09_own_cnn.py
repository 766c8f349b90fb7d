"""
Your own CNN on images
======================

Any ``nn.Module`` can be trained as an estimator and measured: here a convolutional network with batch norm on images of
8 x 8 pixels. Convolutions are treated as linear operators that include batch norm.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import cross_val_score
from torch import nn

from sklearn_capacity import JacobianRegularizedClassifier, capacity_report

X, y = load_digits(return_X_y=True)
X = (X / 16).astype("float32").reshape(-1, 1, 8, 8)


class SmallCNN(nn.Module):
    def __init__(self, channels=16, n_outputs=10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(channels, 2 * channels, 3, padding=1), nn.BatchNorm2d(2 * channels), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(2 * channels, n_outputs)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


model = JacobianRegularizedClassifier(module=SmallCNN, jacobian_penalty=0.001, max_epochs=10, random_state=0)
print("accuracy in three folds:", cross_val_score(model, X, y, cv=3).round(3))

# %%
# ``per_layer=True`` adds a row for each weight layer.

model.fit(X, y)
report = capacity_report(model, X, y, ["spectral_norm", "fisher_rao_norm", "margin"], per_layer=True)
print(report.drop(columns=["seconds"], errors="ignore").to_string(index=False))

layers = report[(report["layer"].fillna("") != "") & (report["measure"] == "spectral_norm")]
plt.barh(layers["layer"], layers["value"])
plt.gca().invert_yaxis()
plt.xlabel("spectral norm of the layer's operator")
plt.tight_layout()
plt.show()
