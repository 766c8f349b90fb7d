"""
A map of learning rates
=======================

From the initial weights, theory predicts the learning rate at which gradient descent diverges: twice the inverse of the
largest eigenvalue of the Fisher matrix, which grows with the width. Each cell of the map is a short training.
"""

import matplotlib.pyplot as plt
import numpy as np

from sklearn_capacity.displays import LearningRateMapDisplay

rng = np.random.default_rng(0)
X, y = rng.standard_normal((100, 64)).astype(np.float32), rng.standard_normal((100, 3))
display = LearningRateMapDisplay.from_data(
    X, y, np.geomspace(0.01, 3, 14), [20, 40, 80, 160], depth=3, n_steps=40, n_trials=2, random_state=0
)
display.plot()
plt.show()

# %%
# Grey cells diverged. The line is the predicted critical rate: no free parameter was fitted.
