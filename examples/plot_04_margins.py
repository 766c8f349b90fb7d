"""
Raw and normalised margins
==========================

Multiply all weights of the last layer by ten: no prediction changes, but every raw margin grows by a factor of ten.
Margins of different networks are comparable only after division by a norm, or in the input space.
"""

import copy

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.preprocessing import StandardScaler

from sklearn_capacity import NetworkClassifier, compare_capacity
from sklearn_capacity.displays import MarginDisplay

X, y = load_digits(return_X_y=True)
X = StandardScaler().fit_transform(X).astype("float32")

model = NetworkClassifier(max_epochs=20, random_state=0).fit(X, y)
scaled = copy.deepcopy(model)
with torch.no_grad():
    for parameter in list(scaled.module_.parameters())[-2:]:
        parameter.mul_(10)
print("predictions that changed:", int((model.predict(X) != scaled.predict(X)).sum()))

# %%
# ``margin`` is the 5th percentile of the raw margins. ``spectral_capacity`` and its relatives divide by margins, and
# ``input_margin_bound`` is a distance in the input space.

models = {"as trained": model, "last layer x 10": scaled}
table = compare_capacity(models, X, y, ["margin", "spectral_norm", "spectral_capacity", "input_margin_bound"])
print(table.T.to_string())

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
raw = MarginDisplay.from_estimators({name: (m, X, y) for name, m in models.items()}).plot(left)
left.set_title("raw margins")
norms = table["spectral_norm"]
normalised = {name: margins / norms[name] for name, margins in raw.margins.items()}
curves = MarginDisplay(normalised).plot(right)
right.set(title="divided by the product of spectral norms", xlabel="margin / product of spectral norms")
curves.lines_["last layer x 10"].set_linestyle("--")
plt.show()

# %%
# The raw curves are a factor of ten apart; the normalised ones are the same curve twice.
