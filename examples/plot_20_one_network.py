"""
One network, seen from five sides
=================================

Besides margins and norms, a trained network has a distribution of weights, margins in its hidden layers, spectra of the
Fisher information and of the loss's Hessian, and a geometry of norms around its weights. Each has a display.
"""

import matplotlib.pyplot as plt
from sklearn.datasets import load_digits

from sklearn_capacity import NetworkClassifier
from sklearn_capacity.displays import (
    FisherSpectrumDisplay,
    HessianSpectrumDisplay,
    HiddenMarginDisplay,
    NormGeometryDisplay,
    WeightHistogramDisplay,
)

X, y = load_digits(return_X_y=True)
X, y = (X[:400] / 16).astype("float32"), y[:400]
model = NetworkClassifier((32, 16), max_epochs=40, random_state=0).fit(X, y)
print(f"accuracy on the training digits: {model.score(X, y):.3f}")

# %%
# Training widens the distribution of the weights. Margins are distances to the decision boundary, at the input and
# before each layer, relative to how far the representations of the data are spread.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
WeightHistogramDisplay.from_estimator(model).plot(left)
HiddenMarginDisplay.from_estimator(model, X, y).plot(right)
plt.show()

# %%
# Both spectra fall over orders of magnitude: a few directions are steep, and most are nearly flat. Small negative
# eigenvalues of the Hessian say that training has not ended in a minimum.

figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
FisherSpectrumDisplay.from_estimator(model, X[:60], loss="cross_entropy").plot(left)
display = HessianSpectrumDisplay.from_estimator(model, X, y, n_draws=3, n_steps=40).plot(right)
plt.show()
print(f"Hessian: eigenvalues from {display.nodes.min():.3g} to {display.nodes.max():.3g}")

# %%
# Two measures over one weight of the first layer and one of the last, with all others fixed. The star is the trained
# network. Level sets of the path norm are symmetric in the signs of weights; those of Fisher-Rao depend on the data.

names = [name for name, parameter in model.module_.named_parameters() if parameter.dim() == 2]
NormGeometryDisplay.from_estimator(
    model, X, y, weights=[(names[0], (0, 20)), (names[-1], (0, 0))], resolution=15
).plot()
plt.show()
