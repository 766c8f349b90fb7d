"""
Sharpness and flatness
======================

How far can the weights move before the training loss rises? For each relative size of a perturbation, the bi-criteria
curve shows the mean rise of the loss and the Kullback-Leibler term of a PAC-Bayes bound. Training with batches of
different sizes ends in minima of different flatness.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from sklearn_capacity import NetworkClassifier, compare_capacity
from sklearn_capacity.displays import BicriteriaDisplay

X, y = load_digits(return_X_y=True)
X = StandardScaler().fit_transform(X).astype("float32")

models = {}
for name, settings in {
    "SGD, batches of 16": {"optimizer": "sgd", "batch_size": 16, "learning_rate": 0.05, "max_epochs": 10},
    "SGD, batches of 512": {"optimizer": "sgd", "batch_size": 512, "learning_rate": 0.05, "max_epochs": 150},
    "Adam": {"optimizer": "adam", "max_epochs": 20},
}.items():
    models[name] = NetworkClassifier(random_state=0, **settings).fit(X, y)

table = compare_capacity(
    models, X, y, ["accuracy", "hessian_max_eigenvalue", "loss_gradient_norm", "adaptive_sharpness"]
)
print(table.to_string())

# %%
# A curve closer to the lower left corner belongs to a flatter minimum with smaller weights.

BicriteriaDisplay.from_estimators({name: (model, X, y) for name, model in models.items()}).plot()
plt.show()
