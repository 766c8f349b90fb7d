"""
Decision regions with and without a Jacobian penalty
====================================================

Two interleaved half-moons with noise. The penalty keeps the network's outputs from changing fast, so the boundary
stays away from the samples and does not bend around single ones.
"""

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import make_moons
from sklearn.inspection import DecisionBoundaryDisplay

from sklearn_capacity import JacobianRegularizedClassifier, measure_capacity

X, y = make_moons(120, noise=0.3, random_state=0)
X_new, y_new = make_moons(2000, noise=0.3, random_state=1)
X, X_new = X.astype(np.float32), X_new.astype(np.float32)

strengths = [0.0, 0.01, 0.1]
figure, axes = plt.subplots(1, 3, figsize=(11, 4), sharex=True, sharey=True, layout="constrained")
accuracies = []
for ax, strength in zip(axes, strengths, strict=True):
    model = JacobianRegularizedClassifier((100, 100), jacobian_penalty=strength, max_epochs=200, random_state=0)
    model.fit(X, y)
    jacobian = measure_capacity(model, X, y, ["jacobian_frobenius"])["jacobian_frobenius"]
    accuracies.append(model.score(X_new, y_new))
    DecisionBoundaryDisplay.from_estimator(model, X, ax=ax, response_method="predict_proba", alpha=0.7, cmap="PuOr")
    ax.scatter(*X.T, c=np.where(y, "purple", "orange"), edgecolor="black", s=20)
    ax.set_title(
        f"strength {strength:g}\naccuracy on new samples {accuracies[-1]:.3f}\nmean squared Jacobian {jacobian:,.1f}"
    )
    ax.set_xlabel("first feature")
axes[0].set_ylabel("second feature")
plt.show()

# %%
# The plain network carves out single samples of the wrong colour, and pays for it on new ones.

best = strengths[int(np.argmax(accuracies))]
print(f"Best on 2,000 new samples: strength {best:g}, accuracy {max(accuracies):.3f} against {accuracies[0]:.3f}.")
