"""Margins inside the network against gradients of the user's own module, sample by sample, taken at its submodules."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from networks import NETWORKS, make, measure_module
from sklearn_capacity import NotDefinedError, measure_capacity
from sklearn_capacity.displays import HiddenMarginDisplay
from sklearn_capacity.measures.hidden_margins import STATISTICS
from sklearn_capacity.scoring.curves import hidden_margins


def by_hooks(module, names, X, y):
    """d_l of every sample, by the submodules whose inputs are meant."""
    module.eval()
    result = {name: [] for name in names}
    seen = {name: [] for name in names}
    for x, label in zip(X, y.tolist(), strict=True):
        inputs = {}

        hooks = [
            module.get_submodule(name).register_forward_pre_hook(
                lambda m, a, name=name, inputs=inputs: inputs.update({name: a[0]})
            )
            for name in names
        ]
        f = module(x[None].clone().requires_grad_(True))[0]
        for handle in hooks:
            handle.remove()
        j = max((k for k in range(len(f)) if k != label), key=lambda k: float(f[k].detach()))
        gap = f[label] - f[j]
        for name in names:
            (slope,) = torch.autograd.grad(gap, inputs[name], retain_graph=True)
            result[name].append(float(gap.detach()) / math.sqrt(float((slope**2).sum())))
            seen[name].append(inputs[name].detach().numpy().ravel())
    for name in names:
        h = np.array(seen[name])
        variation = np.trace(np.cov(h.T, bias=True).reshape(h.shape[1], -1))
        result[name] = np.array(result[name]) / math.sqrt(variation)
    return result


CASES = {
    "mlp": ["0", "2", "4"],
    "mlp_tanh": ["0", "2"],
    "conv_max_pool": ["0", "3", "6"],
    "mlp_batch_norm": ["0", "4"],
    "residual": ["blocks.0.conv1", "blocks.0.conv2", "blocks.1.conv1", "blocks.1.conv2", "head"],
}


@pytest.mark.parametrize("case", CASES)
def test_equals_gradients_of_the_module(case):
    module, X, y = NETWORKS[case]()
    expected = by_hooks(module, CASES[case], X, y)
    result = hidden_margins(module, X, y)
    if case == "mlp_batch_norm":  # what the last layer reads there is folded into it, up to a scaling of the units
        result.pop("4"), expected.pop("4")
    assert len(result) == len(expected)
    for values, by_hand in zip(result.values(), expected.values(), strict=True):
        assert values == pytest.approx(by_hand, rel=1e-8)


class Attention(nn.Module):
    """Attention and a gate, which no rule of the graph knows inside."""

    def __init__(self):
        super().__init__()
        self.first, self.attend = nn.Linear(3, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.gate, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = self.first(x).relu()
        a = self.attend(h, h, h, need_weights=False)[0].mean(1)
        return self.head(torch.sigmoid(self.gate(a)) * a)


def test_attention_and_gates():
    module, X, y = make(Attention, (5, 3))
    result, expected = hidden_margins(module, X, y), by_hooks(module, ["first", "gate", "head"], X, y)
    for name in ("first", "head"):
        assert result[name] == pytest.approx(expected[name], rel=1e-7)


class UsedAgain(nn.Module):
    """One layer three times, and a last one; `inputs` lists what the four uses receive."""

    def __init__(self):
        super().__init__()
        self.again, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def inputs(self, x):
        h = [x]
        for _ in range(3):
            h.append(torch.tanh(self.again(h[-1])))
        return h

    def forward(self, x):
        return self.head(self.inputs(x)[-1])


class TwoProjections(nn.Module):
    """Attention of three tokens in one of torch's modules; `inputs` computes it by hand."""

    def __init__(self):
        super().__init__()
        self.mixed, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(12, 4)

    def inputs(self, x):
        tokens = x.view(-1, 3, 4)
        packed = nn.functional.linear(tokens, self.mixed.in_proj_weight, self.mixed.in_proj_bias)
        q, k, v = (part.view(-1, 3, 2, 2).transpose(1, 2) for part in packed.chunk(3, dim=2))
        heads = (q @ k.transpose(2, 3) / math.sqrt(2)).softmax(3) @ v
        joined = heads.transpose(1, 2).flatten(2)
        return [x, joined, self.mixed.out_proj(joined).flatten(1)]

    def forward(self, x):
        tokens = x.view(-1, 3, 4)
        return self.head(self.mixed(tokens, tokens, tokens, need_weights=False)[0].flatten(1))


@pytest.mark.parametrize(
    ("network", "size", "labels"),
    [
        (UsedAgain, 6, ["again", "again (2)", "again (3)", "head"]),
        (TwoProjections, 12, ["mixed.in_proj_weight", "mixed.out_proj", "head"]),
    ],
)
def test_each_use_of_a_layer_and_each_matrix_of_a_module_counts(network, size, labels):
    module, X, y = make(network, (size,))
    inputs = module.inputs(X.clone().requires_grad_(True))
    logits = module.head(inputs[-1])
    others = logits.detach().scatter(1, y[:, None], -torch.inf).argmax(1)
    rows = torch.arange(len(y))
    gaps = logits[rows, y] - logits[rows, others]
    expected = {}
    for label, h in zip(labels, inputs, strict=True):
        (slopes,) = torch.autograd.grad(gaps.sum(), h, retain_graph=True)
        spread = (h - h.mean(0)).square().flatten(1).sum(1).mean().sqrt()
        expected[label] = (gaps / (slopes.flatten(1).norm(dim=1) * spread)).detach().numpy()
    result = hidden_margins(module, X, y)
    assert list(result) == labels
    for label, values in expected.items():
        assert result[label] == pytest.approx(values, rel=1e-7)
    medians = [float(np.median(values)) for values in expected.values()]
    measured = measure_capacity(module, X, y, "hidden_margin_median")
    assert measured["hidden_margin_median"] == pytest.approx(np.mean(medians), rel=1e-7)


def test_a_thousand_classes_in_chunks():
    module, X, _ = make(lambda: nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 1000)), (3,))
    y = torch.arange(7) * 140
    expected = by_hooks(module, ["0", "2"], X, y)
    for chunk in (None, 2):
        result = measure_capacity(module, X, y, "hidden_margin_median", batch_size=chunk)["hidden_margin_median"]
        assert result == pytest.approx(np.mean([np.median(v) for v in expected.values()]), rel=1e-9)


def test_statistics_are_those_of_a_box_plot():
    """matplotlib's boxes have the same quartiles and whiskers."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    module, X, _ = make(lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)), (4,))
    X = torch.randn(60, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 3
    y = module(X).argmax(1)
    y[:5] = (y[:5] + 1) % 3
    margins = hidden_margins(module, X, y)
    boxes = [matplotlib.cbook.boxplot_stats(values)[0] for values in margins.values()]
    keys = dict(zip(STATISTICS, ("whislo", "q1", "med", "q3", "whishi"), strict=True))
    for statistic, key in keys.items():
        measured = measure_module(module, X, f"hidden_margin_{statistic}", y=y)
        assert [row["value"] for row in measured.per_layer] == pytest.approx([box[key] for box in boxes])
        assert measured.value == pytest.approx(np.mean([box[key] for box in boxes]))
        one = measure_module(module, X, f"hidden_margin_{statistic}", y=y, layer="2")
        assert one.value == pytest.approx(boxes[1][key])
    display = HiddenMarginDisplay.from_estimator(module, X, y).plot()
    finite = [np.median(values[np.isfinite(values)]) for values in margins.values()]
    assert [float(line.get_ydata()[0]) for line in display.boxes_["medians"]] == pytest.approx(finite)
    assert "infinite)" in display.ax_.get_xticklabels()[0].get_text()
    matplotlib.pyplot.close(display.figure_)


def test_scaled_layers_have_the_same_margins_and_logits_do_too():
    module, X, y = NETWORKS["mlp_no_bias"]()
    before = hidden_margins(module, X, y)
    module[0].weight.data *= 5
    module[4].weight.data *= 3
    for name, values in hidden_margins(module, X, y).items():
        assert values == pytest.approx(before[name], rel=1e-9)


def test_units_that_are_off_have_infinite_margins():
    """The logits of a sample that no unit passes do not depend on its input: nothing can take it across."""
    net = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2)).double()
    net[0].weight.data, net[0].bias.data = torch.tensor([[1.0], [2.0]]).double(), torch.zeros(2).double()
    net[2].weight.data, net[2].bias.data = torch.eye(2).double(), torch.tensor([1.0, 0.0]).double()
    X, y = torch.tensor([[-1.0], [-2.0], [1.0]]).double(), torch.tensor([0, 0, 1])
    assert hidden_margins(net, X, y)["0"].tolist()[:2] == [math.inf, math.inf]
    assert measure_module(net, X, "hidden_margin_upper_quartile", y=y, layer="0").value == math.inf
    assert math.isfinite(measure_module(net, X, "hidden_margin_lower_fence", y=y, layer="0").value)


class Ratio(nn.Module):
    """One, up to rounding."""

    def forward(self, x):
        return x.exp() * x.neg().exp()


def test_inputs_that_differ_by_rounding_are_the_same():
    torch.manual_seed(0)
    X, y = torch.randn(50, 4).double(), torch.arange(50) % 3
    assert len(Ratio()(X).unique()) > 1
    with pytest.raises(NotDefinedError, match="need inputs of layer `1` that differ .* all 50 are the same"):
        measure_module(nn.Sequential(Ratio(), nn.Linear(4, 3)).double(), X, "hidden_margin_median", y=y)
    tiny = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    tiny[0].weight.data *= 1e-13  # next to a bias of 0.3, still 300 times as much as rounding
    assert math.isfinite(measure_module(tiny, X, "hidden_margin_median", y=y).value)


def test_what_is_refused():
    module, X, y = NETWORKS["mlp"]()
    with pytest.raises(NotDefinedError, match="need inputs of layer `0` that differ .* all 1 are the same"):
        measure_capacity(module, X[:1], y[:1], "hidden_margin_median")
    with pytest.raises(NotDefinedError, match="need a weight layer"):
        measure_capacity(nn.Identity(), 3 * torch.eye(3), torch.arange(3), "hidden_margin_median")
    with pytest.raises(NotDefinedError, match="at least two logits, got 1"):
        measure_module(NETWORKS["one_output"]()[0], X[:, :4], "hidden_margin_median", y=y % 2)
    with pytest.raises(ValueError, match="`layer` must be the name of a weight layer, got '3'"):
        measure_module(module, X, "hidden_margin_median", y=y, layer="3")
    with pytest.raises(TypeError, match="`layer` must be the name of a weight layer or None"):
        measure_module(module, X, "hidden_margin_median", y=y, layer=2)


@pytest.mark.parametrize("margins", [{}, [1.0], {"0": []}, {"0": [math.inf]}, {"0": [1.0, math.nan]}])
def test_displays_of_nothing(margins):
    with pytest.raises(ValueError, match="`margins` must"):
        HiddenMarginDisplay(margins).plot()
