"""
Mean-field theory of the Fisher information
===========================================

Two numbers, the variances of the initial weights and biases, determine how steep the loss of a wide network is before
it has seen any data. Here they are compared with random networks: first figure 1 of Karakida, Akaho and Amari (2019) on
a small scale, then the learning rates at which training diverges (figure 2).
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from sklearn_capacity import fisher_spectrum
from sklearn_capacity.displays.learning_rate_map import LearningRateMapDisplay
from sklearn_capacity.theory import initialize_mean_field, mean_field

# %%
# Mean and second moment of the eigenvalues
# -----------------------------------------
# Three weight layers of width M and one activated output, as in the paper. A network's Fisher matrix is far too large
# to build (P x P), but its nonzero eigenvalues are those of a T x T matrix, which ``fisher_spectrum`` uses.

n_samples, n_draws, widths = 150, 15, [25, 50, 100, 200]
settings = {"tanh": (nn.Tanh, 3.0, 0.64), "relu": (nn.ReLU, 2.0, 0.5), "linear": (nn.Identity, 1.0, 0.5)}


def network(width, activation):
    layers = []
    for out in (width, width, 1):
        layers += [nn.Linear(width, out, dtype=torch.float64), activation()]
    return nn.Sequential(*layers)


def simulate(name, width):
    activation, sigma_w2, sigma_b2 = settings[name]
    generator = torch.Generator().manual_seed(width)
    moments = []
    for seed in range(n_draws):
        X = torch.randn(n_samples, width, generator=generator, dtype=torch.float64)
        module = initialize_mean_field(network(width, activation), sigma_w2, sigma_b2, random_state=seed)
        eigenvalues = fisher_spectrum(module, X)
        moments.append([eigenvalues.sum(), np.square(eigenvalues).sum()])
    moments = np.array(moments) / sum(parameter.numel() for parameter in module.parameters())
    return np.mean(moments, axis=0), np.std(moments, axis=0, ddof=1) / np.sqrt(n_draws)


figure, axes = plt.subplots(2, 3, figsize=(10, 5), sharex=True, constrained_layout=True)
for column, (name, (_, sigma_w2, sigma_b2)) in zip(axes.T, settings.items(), strict=True):
    measured, errors = (np.array(part) for part in zip(*(simulate(name, width) for width in widths), strict=True))
    theory = [mean_field(name, sigma_w2, sigma_b2, depth=3, width=width) for width in widths]
    column[0].plot(widths, [one.mean_eigenvalue for one in theory], label="theorem 1")
    column[1].fill_between(
        widths, *zip(*(one.second_moment_bounds for one in theory), strict=True), alpha=0.3, label="theorem 3"
    )
    for i, ax in enumerate(column):
        ax.errorbar(widths, measured[:, i], 2 * errors[:, i], fmt="k.", label="simulated, 2 s.e.")
        ax.set(xscale="log", yscale="log", xticks=widths, xticklabels=widths)
        ax.minorticks_off()
    column[0].set_title(name)
    column[1].set_xlabel("width M")
axes[0, 0].set_ylabel("mean eigenvalue")
axes[1, 0].set_ylabel("second moment")
axes[0, 0].legend()
axes[1, 0].legend(loc="upper right")

# %%
# The mean decreases as 1/M while the second moment stays constant: most eigenvalues vanish, a few are huge.
#
# The learning rate at which training diverges
# --------------------------------------------
# The largest eigenvalue grows like M, so a wider network needs a smaller learning rate. Grey cells diverged.

rng = np.random.default_rng(0)
X, y = rng.standard_normal((100, 64)).astype(np.float32), rng.standard_normal((100, 3))
display = LearningRateMapDisplay.from_data(
    X, y, np.geomspace(0.01, 3, 12), [20, 40, 60, 80, 100], depth=3, n_steps=50, n_trials=2, random_state=0
)
display.plot()

# %%
# The Fisher-Rao norm
# -------------------
# The published expectation of theta^T F theta (theorem 7) omits cross-layer terms. For a linear network of
# L layers the exact value is L^2 times the mean squared output, which only the corrected recursion gives.

for depth in (2, 3, 5):
    linear = mean_field("linear", 1.0, 0.0, depth=depth, width=1000)
    print(f"L = {depth}: corrected {linear.fisher_rao:g}, as printed {linear.fisher_rao_theorem7:g}")

plt.show()
