"""Path-SGD under rescaling of nodes, its scales against sums over paths, and what it refuses."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from torch import nn

from sklearn_capacity import NetworkClassifier
from sklearn_capacity.layers import GeneralizationLayer
from sklearn_capacity.training import PathSGD, PenalizedClassifier
from sklearn_capacity.training.path_sgd import path_scales

rng = np.random.default_rng(0)
X, y = rng.normal(size=(40, 6)), np.arange(40) % 3


def chain() -> nn.Sequential:
    torch.manual_seed(1)
    layers = nn.Linear(6, 5), nn.ReLU(), nn.Dropout(0.0), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)
    return nn.Sequential(*layers).double()


def rescaled(network: nn.Sequential) -> nn.Sequential:
    """The same function, every hidden unit multiplied by its own factor between 1/8 and 8."""
    other = pickle.loads(pickle.dumps(network))
    layers = [layer for layer in other if isinstance(layer, nn.Linear)]
    for i, (before, after) in enumerate(zip(layers, layers[1:], strict=False)):
        factors = 2.0 ** torch.linspace(-3, 3, before.out_features, dtype=torch.float64).roll(i)
        with torch.no_grad():
            before.weight.mul_(factors[:, None])
            before.bias.mul_(factors)
            after.weight.div_(factors)
    return other


def trained(network, optimizer, **params):
    net = PenalizedClassifier(network, optimizer=optimizer, max_epochs=15, batch_size=40, verbose=0, **params)
    return net.fit(X, y).module_(torch.from_numpy(X)).detach()


def test_path_sgd_is_invariant_under_rescaling_of_nodes_and_sgd_is_not():
    one, two = chain(), rescaled(chain())
    start = one(torch.from_numpy(X))
    torch.testing.assert_close(start, two(torch.from_numpy(X)))
    first, second = (trained(network, PathSGD, lr=0.5) for network in (one, two))
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)
    assert (first - start).abs().max() > 0.1  # they have moved
    plain, other = (trained(network, torch.optim.SGD, lr=0.01) for network in (one, two))
    assert (plain - other).abs().max() > 0.01


def test_path_scales_equal_the_sum_over_enumerated_paths():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()
    scales = path_scales(network, torch.zeros(1, 2, dtype=torch.float64))
    V, b, W = (tensor.detach() ** 2 for tensor in (network[0].weight, network[0].bias, network[2].weight))
    for i in range(3):
        onward = sum(W[k, i] for k in range(2))
        for j in range(2):
            torch.testing.assert_close(1 / scales[id(network[0].weight)][i, j], onward)
        torch.testing.assert_close(1 / scales[id(network[0].bias)][i], onward)
        for k in range(2):
            torch.testing.assert_close(1 / scales[id(network[2].weight)][k, i], V[i, 0] + V[i, 1] + b[i])
    assert scales[id(network[2].bias)].tolist() == [1.0, 1.0]


def test_path_scales_count_all_inputs_of_a_pooling_window_and_leave_dead_weights():
    network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4, 1, bias=False))
    nn.init.constant_(network[3].weight, 2.0)
    network[3].weight.data[0, 0] = 0.0
    nn.init.constant_(network[0].weight, 3.0)
    scales = path_scales(network, torch.zeros(1, 1, 4, 4))
    assert 1 / scales[id(network[0].weight)].item() == pytest.approx(3 * 4 * 4.0)  # three windows of four pixels
    assert (1 / scales[id(network[3].weight)]).tolist() == [[36.0] * 4]
    nn.init.zeros_(network[0].weight)
    assert path_scales(network, torch.zeros(1, 1, 4, 4))[id(network[3].weight)].tolist() == [[0.0] * 4]


def test_path_scales_square_the_strength_of_a_skip():
    torch.manual_seed(0)
    layer = GeneralizationLayer(3, nu=0.1)
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), layer, nn.ReLU(), nn.Linear(3, 1)).double()
    scales = path_scales(network, torch.zeros(1, 2, dtype=torch.float64))
    W, out = layer.body[0].weight.detach() ** 2, network[4].weight.detach()[0] ** 2
    onward = [sum(out[k] * (W[k, i] + 0.1**2 * (k == i)) for k in range(3)) for i in range(3)]
    torch.testing.assert_close(1 / scales[id(network[0].weight)], torch.stack(onward)[:, None].expand(3, 2))


def test_path_sgd_trains_images_and_updates_at_its_interval():
    images = rng.normal(size=(40, 1, 4, 4))
    images[np.arange(40), 0, y, y] += 6
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3))
    model = NetworkClassifier(
        module=network,
        optimizer="path_sgd",
        optimizer_params={"update_interval": 5},
        learning_rate=0.2,
        max_epochs=60,
        random_state=0,
    )
    assert model.fit(images, y).score(images, y) > 0.9


class Between(nn.Module):
    """A function between two layers that is not a submodule."""

    def __init__(self, function):
        super().__init__()
        self.first, self.last, self.function = nn.Linear(6, 4), nn.LazyLinear(3), function

    def forward(self, input):
        return self.last(self.function(self.first(input)))


def test_path_sgd_refuses_what_is_no_rectifier_chain():
    with pytest.raises(ValueError, match="'path_sgd' supports only chains of .* is a Tanh"):
        NetworkClassifier(activation="tanh", optimizer="path_sgd").fit(X, y)
    with pytest.raises(ValueError, match="is a BatchNorm1d"):
        NetworkClassifier(batch_norm=True, optimizer="path_sgd").fit(X, y)
    for function, text in [
        (torch.tanh, "but the module computes `tanh`"),
        (lambda x: x.unflatten(1, (2, 2)).mean(2), "but the module computes `mean`"),
        (lambda x: nn.functional.max_pool1d(x[:, None], 2)[:, 0], "but the module computes `max_pool`"),
    ]:
        with pytest.raises(ValueError, match=f"'path_sgd' supports only .*, {text}"):
            NetworkClassifier(module=Between, module_params={"function": function}, optimizer="path_sgd").fit(X, y)
    network = Between(torch.relu)
    assert NetworkClassifier(module=network, optimizer="path_sgd", max_epochs=1).fit(X, y).n_iter_ == 1
    with pytest.raises(ValueError, match="`weight_decay` must be 0 with PathSGD, which has no weight decay"):
        NetworkClassifier(weight_decay=0.1, optimizer="path_sgd").fit(X, y)
