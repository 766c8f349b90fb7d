"""Weight layers of any network: operators without a rule against Jacobians and against matrices by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from networks import make
from sklearn_capacity import CapacityScorer, CapacityWarning, UnsupportedLayerError, capacity_report, measure_capacity
from sklearn_capacity.graph import Network
from sklearn_capacity.measures import MEASURES, Batch


class Of(nn.Module):
    """A forward pass `f(self, x)` with named submodules and parameters."""

    def __init__(self, f: Callable[[Of, Tensor], Tensor], **parts: nn.Module | tuple[int, ...]):
        super().__init__()
        self.f = f
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(torch.randn(*part)))

    def forward(self, x):
        return self.f(self, x)


def values(module: nn.Module, X: Tensor, **measures) -> dict[str, float]:
    network = Network(module, tuple(X.shape[1:]), samples=X)
    batch = Batch(network, X)
    return {key: MEASURES[name](network, batch, **params).value for key, (name, params) in measures.items()}


# Linear networks: the one layer's operator is the Jacobian -----------------------------------------------------------

#: A network that is one linear map, and the shape of a sample.
MAPS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "einsum": (lambda: Of(lambda m, x: torch.einsum("bi,oi->bo", x, m.w), w=(3, 4)), (4,)),
    "einsum_implicit": (lambda: Of(lambda m, x: torch.einsum("bi,io", x, m.w), w=(4, 3)), (4,)),
    "einsum_ellipsis": (lambda: Of(lambda m, x: torch.einsum("...i,oi->...o", x, m.w).flatten(1), w=(3, 4)), (2, 4)),
    "einsum_heads": (lambda: Of(lambda m, x: torch.einsum("bti,hio->bhto", x, m.w).flatten(1), w=(2, 4, 3)), (5, 4)),
    "einsum_blocks": (
        lambda: Of(lambda m, x: torch.einsum("bthi,hio->btho", x, m.w).flatten(1), w=(2, 4, 3)),
        (5, 2, 4),
    ),
    "einsum_depthwise": (lambda: Of(lambda m, x: torch.einsum("btd,d->btd", x, m.w).flatten(1), w=(4,)), (5, 4)),
    "einsum_summed": (lambda: Of(lambda m, x: torch.einsum("bti,oi->bo", x, m.w), w=(3, 4)), (5, 4)),
    "einsum_middle": (lambda: Of(lambda m, x: torch.einsum("bti,ts->bsi", x, m.w).flatten(1), w=(5, 2)), (5, 4)),
    "einsum_two_inputs": (lambda: Of(lambda m, x: torch.einsum("bti,tio->bo", x, m.w), w=(5, 4, 3)), (5, 4)),
    "vector": (lambda: Of(lambda m, x: (x @ m.w)[:, None], w=(4,)), (4,)),
    "from_the_left": (lambda: Of(lambda m, x: (m.w @ x).flatten(1), w=(3, 4)), (4, 2)),
    "batched": (lambda: Of(lambda m, x: (x @ m.w).flatten(1), w=(2, 4, 3)), (2, 5, 4)),
    "broadcast_signal": (lambda: Of(lambda m, x: (x[:, None] @ m.w).flatten(1), w=(2, 4, 3)), (5, 4)),
    "broadcast_weight": (lambda: Of(lambda m, x: (x @ m.w).flatten(1), w=(1, 4, 3)), (5, 4)),
    "rows_joined": (
        lambda: Of(lambda m, x: torch.addmm(m.b, x.reshape(-1, 4), m.w).view(x.shape[0], -1), w=(4, 3), b=(3,)),
        (5, 4),
    ),
    "scaled_sum": (
        lambda: Of(
            lambda m, x: torch.addmm(m.b, x.reshape(-1, 4), m.w, alpha=2).view(x.shape[0], -1), w=(4, 3), b=(3,)
        ),
        (5, 4),
    ),
    "time_first": (
        lambda: Of(lambda m, x: m.l(x.transpose(0, 1)).transpose(0, 1).flatten(1), l=nn.Linear(4, 3)),
        (5, 4),
    ),
    "matrix_time_first": (
        lambda: Of(lambda m, x: (x.transpose(0, 1) @ m.w).transpose(0, 1).flatten(1), w=(4, 3)),
        (5, 4),
    ),
    "images_joined": (
        lambda: Of(lambda m, x: m.c(x.flatten(0, 1)).reshape(x.shape[0], -1), c=nn.Conv2d(2, 3, 3, padding=1)),
        (4, 2, 5, 5),
    ),
    "transposed_joined": (
        lambda: Of(lambda m, x: m.c(x.flatten(0, 1)).reshape(x.shape[0], -1), c=nn.ConvTranspose1d(4, 2, 3, groups=2)),
        (3, 4, 5),
    ),
    "joined_batch_norm": (
        lambda: Of(
            lambda m, x: m.n(m.c(x.flatten(0, 1))).reshape(x.shape[0], -1), c=nn.Conv1d(2, 3, 3), n=nn.BatchNorm1d(3)
        ),
        (4, 2, 5),
    ),
    "temperature": (lambda: nn.Sequential(nn.Linear(4, 3), Of(lambda m, x: x / 4)), (4,)),
    "temperature_behind_views": (
        lambda: Of(lambda m, x: 3 * m.l(x.unflatten(1, (2, 2))).flatten(1), l=nn.Linear(2, 3)),
        (4,),
    ),
    "pixels": (lambda: nn.Sequential(Of(lambda m, x: x / 255), nn.Conv1d(2, 3, 3, padding=1), nn.Flatten()), (2, 5)),
    "channels": (
        lambda: nn.Sequential(
            Of(lambda m, x: x / torch.tensor([[2.0], [5.0]], dtype=x.dtype)), nn.Conv1d(2, 4, 3, groups=2), nn.Flatten()
        ),
        (2, 5),
    ),
    "channels_behind": (
        lambda: Of(
            lambda m, x: (m.c(x) * torch.tensor([[2.0], [-5.0]], dtype=x.dtype)).flatten(1), c=nn.Conv1d(3, 2, 3)
        ),
        (3, 5),
    ),
}


@pytest.mark.parametrize("name", MAPS)
def test_the_operator_of_a_linear_network_is_its_jacobian(name):
    build, shape = MAPS[name]
    module, X, _ = make(build, shape)
    J = torch.autograd.functional.jacobian(lambda x: module(x[None])[0].flatten(), X[0])
    J = J.reshape(len(J), -1).numpy()  # (outputs, inputs)
    result = values(
        module,
        X,
        frobenius=("frobenius_norm", {"view": "operator"}),
        spectral=("spectral_norm", {}),
        rows=("l1_inf_norm", {"view": "operator"}),
        columns=("induced_norm", {"p": 1, "q": 2}),
        group=("group_norm", {"p": 1, "q": 3, "view": "operator"}),
    )
    units = np.abs(J).sum(1)
    assert result == pytest.approx(
        {
            "frobenius": np.linalg.norm(J),
            "spectral": np.linalg.norm(J, 2),
            "rows": units.max(),
            "columns": np.linalg.norm(J, axis=0).max(),
            "group": (units**3).sum() ** (1 / 3),
        },
        rel=1e-9,
    )


# Layers by hand -------------------------------------------------------------------------------------------------------

Matrices = Callable[[nn.Module], list[tuple[Tensor, int]]]
#: A network, the shape of a sample, and its matrices with the number of positions that each is applied at.
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], Matrices]] = {
    "attention": (
        lambda: Of(lambda m, x: m.a(x, x, x)[0].mean(1), a=nn.MultiheadAttention(4, 2, batch_first=True)),
        (5, 4),
        lambda m: [(m.a.in_proj_weight, 5), (m.a.out_proj.weight, 5)],
    ),
    "attention_time_first": (
        lambda: Of(
            lambda m, x: (lambda t: m.a(t, t, t, need_weights=False)[0].mean(0))(x.transpose(0, 1)),
            a=nn.MultiheadAttention(4, 2),
        ),
        (5, 4),
        lambda m: [(m.a.in_proj_weight, 5), (m.a.out_proj.weight, 5)],
    ),
    "attention_other_sizes": (
        lambda: Of(
            lambda m, x: m.a(x, x[..., :3], x[..., :2], need_weights=False)[0].mean(1),
            a=nn.MultiheadAttention(4, 2, kdim=3, vdim=2, batch_first=True),
        ),
        (5, 4),
        lambda m: [  # the scores' factor, one over the root of a head's size, is folded
            (w, 5)
            for w in (m.a.q_proj_weight / math.sqrt(2), m.a.k_proj_weight, m.a.v_proj_weight, m.a.out_proj.weight)
        ],
    ),
    "encoder": (
        lambda: Of(
            lambda m, x: m.e(x).mean(1), e=nn.TransformerEncoderLayer(4, 2, 6, batch_first=True, activation="gelu")
        ),
        (5, 4),
        lambda m: [
            (m.e.self_attn.in_proj_weight, 5),
            (m.e.self_attn.out_proj.weight, 5),
            (m.e.norm1.weight.diag(), 5),
            (m.e.linear1.weight, 5),
            (m.e.linear2.weight, 5),
            (m.e.norm2.weight.diag(), 5),
        ],
    ),
    "lstm": (
        lambda: Of(lambda m, x: m.l(m.r(x)[0][:, -1]), r=nn.LSTM(4, 3, 2, batch_first=True), l=nn.Linear(3, 3)),
        (5, 4),
        lambda m: [*((w, 5) for name, w in m.r.named_parameters() if "weight" in name), (m.l.weight, 1)],
    ),
    "gru_both_ways": (
        lambda: Of(
            lambda m, x: m.l(m.r(x)[0][:, -1]), r=nn.GRU(4, 2, batch_first=True, bidirectional=True), l=nn.Linear(4, 3)
        ),
        (5, 4),
        lambda m: [*((w, 5) for name, w in m.r.named_parameters() if "weight" in name), (m.l.weight, 1)],
    ),
    "rnn_time_first": (
        lambda: Of(lambda m, x: m.l(m.r(x.transpose(0, 1))[1][-1]), r=nn.RNN(4, 3), l=nn.Linear(3, 3)),
        (5, 4),
        lambda m: [(m.r.weight_ih_l0, 5), (m.r.weight_hh_l0, 5), (m.l.weight, 1)],
    ),
    "cell": (
        lambda: Of(lambda m, x: m.r(x, m.r(x)), r=nn.GRUCell(4, 3)),
        (4,),
        lambda m: [(m.r.weight_ih, 1), (m.r.weight_hh, 1)] * 2,  # a tied weight has one entry per use
    ),
    "bilinear": (
        lambda: Of(lambda m, x: m.b(x[:, :2], x[:, 2:]), b=nn.Bilinear(2, 3, 3)),
        (5,),
        lambda m: [(m.b.weight.flatten(1), 1)],
    ),
    "quadratic": (
        lambda: Of(lambda m, x: torch.einsum("ni,ij,nj->n", x, m.w, x)[:, None], w=(4, 4)),
        (4,),
        lambda m: [(m.w.reshape(1, -1), 1)],
    ),
    "layer_norm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 3)),
        (4,),
        lambda m: [(m[0].weight, 1), (m[1].weight.diag(), 1), (m[3].weight, 1)],
    ),
    "layer_norm_without_scale": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5, elementwise_affine=False), nn.Linear(5, 3)),
        (4,),
        lambda m: [(m[0].weight, 1), (m[2].weight, 1)],
    ),
    "rms_norm_by_hand": (
        lambda: Of(
            lambda m, x: m.l(m.g * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))), g=(4,), l=nn.Linear(4, 3)
        ),
        (4,),
        lambda m: [(m.g.diag(), 1), (m.l.weight, 1)],
    ),
    "gate": (
        lambda: Of(
            lambda m, x: m.l(torch.sigmoid(m.g(x)) * m.v(x)), g=nn.Linear(4, 5), v=nn.Linear(4, 5), l=nn.Linear(5, 3)
        ),
        (4,),
        lambda m: [(m.g.weight, 1), (m.v.weight, 1), (m.l.weight, 1)],
    ),
    "frozen": (
        lambda: Of(
            lambda m, x: m.l(m.a(x, x, x)[0].mean(1)),
            a=nn.MultiheadAttention(4, 2).requires_grad_(False),
            l=nn.Linear(4, 3),
        ),
        (1, 4),
        lambda m: [(m.a.in_proj_weight, 1), (m.a.out_proj.weight, 1), (m.l.weight, 1)],
    ),
    "thousand_classes": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 1000)),
        (4,),
        lambda m: [(m[0].weight, 1), (m[2].weight.diag(), 1), (m[3].weight, 1)],
    ),
    "unused": (
        lambda: Of(lambda m, x: m.l(x).softmax(1) @ m.w, l=nn.Linear(4, 5), w=(5, 3), other=nn.Linear(7, 7)),
        (4,),
        lambda m: [(m.l.weight, 1), (m.w.T, 1)],
    ),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", LAYERS)
def test_products_are_those_of_the_matrices(name, dtype):
    build, shape, matrices = LAYERS[name]
    module, X, _ = make(build, shape)
    with torch.no_grad():
        for parameter in module.parameters():  # no norm keeps the ones that it starts from
            parameter.mul_(
                torch.rand(parameter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
            )
    by_hand = [(W.detach().numpy(), copies) for W, copies in matrices(module)]
    result = values(
        module.to(dtype),
        X.to(dtype),
        kernel=("frobenius_norm", {}),
        operator=("frobenius_norm", {"view": "operator"}),
        spectral=("spectral_norm", {}),
        rows=("l1_inf_norm", {}),
    )
    frobenius = math.prod(np.linalg.norm(W) for W, _ in by_hand)
    expected = {
        "kernel": frobenius,
        "operator": frobenius * math.sqrt(math.prod(copies for _, copies in by_hand)),
        "spectral": math.prod(np.linalg.norm(W, 2) for W, _ in by_hand),
        "rows": math.prod(np.abs(W).sum(1).max() for W, _ in by_hand),
    }
    assert result == pytest.approx(expected, rel=1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("bag", [False, True])
def test_embeddings_are_matrices_of_indicators(bag):
    layer = nn.EmbeddingBag(6, 4, mode="mean") if bag else nn.Embedding(6, 4)
    module = Of(lambda m, x: m.l(m.e(x.long()).reshape(x.shape[0], -1)), e=layer, l=nn.Linear(4 if bag else 20, 3))
    X = torch.randint(0, 6, (7, 5), generator=torch.Generator().manual_seed(0)).float()
    measures = {"kernel": "frobenius_norm", "operator": ("frobenius_norm", {"view": "operator"}), "s": "spectral_norm"}
    result = measure_capacity(module, X, torch.arange(7) % 3, measures)
    E, W = layer.weight.detach().double(), module.l.weight.detach().double()
    product = float(E.norm() * W.norm())
    spectral = float(torch.linalg.matrix_norm(E, 2) * torch.linalg.matrix_norm(W, 2))
    expected = {"kernel": product, "operator": product * math.sqrt(1 if bag else 5), "s": spectral}
    assert result == pytest.approx(expected, rel=1e-6)


def test_rows_name_the_parameter_where_a_module_has_several():
    build, shape, _ = LAYERS["lstm"]
    module, X, y = make(build, shape)
    report = capacity_report(module, X, y, ["frobenius_norm"], per_layer=True)
    layers = ["r.weight_ih_l0", "r.weight_hh_l0", "r.weight_ih_l1", "r.weight_hh_l1", "l"]
    assert report["layer"].tolist()[1:] == layers


def test_an_old_and_a_new_weight_norm_give_the_same():
    def old() -> nn.Module:
        return nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 5)), nn.GELU(), nn.utils.spectral_norm(nn.Linear(5, 3)))

    module, X, y = make(old, (4,))
    module(X)  # the hook computes the weight
    plain = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 3)).double()
    state = {f"{i}.{part}": getattr(module[i], part).detach() for i in (0, 2) for part in ("weight", "bias")}
    plain.load_state_dict(state)
    names = ["frobenius_norm", "spectral_norm", "parameter_norm", "vc_dimension", "fisher_trace", "fisher_rao_norm"]
    names += ["lipschitz_l2", "kl_divergence", "max_sharpness", "stable_rank"]
    assert measure_capacity(module, X, y, names) == pytest.approx(measure_capacity(plain, X, y, names), rel=1e-6)


# What takes no part ---------------------------------------------------------------------------------------------------


def test_matrices_that_are_not_layers_are_left_out_with_a_warning():
    module, X, y = make(
        lambda: Of(
            lambda m, x: m.l(torch.atan2(x[:, None], m.prototypes).sum(2)), prototypes=(5, 4), l=nn.Linear(5, 3)
        ),
        (4,),
    )
    with pytest.warns(
        CapacityWarning, match=r"leave out weights of the forward pass of `Of`, whose operators have no rule"
    ):
        report = capacity_report(module, X, y, ["frobenius_norm", "spectral_norm", "stable_rank"])
    assert report.loc[0, "value"] == pytest.approx(float(module.l.weight.detach().norm()))
    assert report["computed"].str.contains("left_out=the forward pass of `Of`").all()


def test_a_network_of_unknown_matrices_only_is_refused():
    module, X, y = make(lambda: Of(lambda m, x: torch.atan2(x[:, None], m.prototypes).sum(2), prototypes=(3, 4)), (4,))
    with pytest.raises(UnsupportedLayerError, match="is not defined for this network: the forward pass of `Of` is not"):
        measure_capacity(module, X, y, "frobenius_norm")


def test_parameters_that_are_added_or_placed_are_no_layers():
    module, X, _ = make(
        lambda: Of(
            lambda m, x: m.l(torch.cat([m.token.expand(x.shape[0], 1, 4), x + m.places], 1)).mean(1),
            token=(1, 1, 4),
            places=(1, 5, 4),
            l=nn.Linear(4, 3),
        ),
        (5, 4),
    )
    assert values(module, X, f=("frobenius_norm", {}))["f"] == pytest.approx(float(module.l.weight.detach().norm()))


# Networks that cannot be traced ---------------------------------------------------------------------------------------


class Branching(nn.Module):
    """A network whose forward pass looks at its data, unless it must not."""

    def __init__(self, looks: bool, **parts: nn.Module):
        super().__init__()
        self.looks = looks
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        if self.looks and float(x.sum()) > 1e9:
            x = -x
        for part in self.children():
            x = part(x)
        return x


class Last(nn.Module):
    """The last step of a recurrent layer's output."""

    def forward(self, x):
        return x[0][:, -1]


class Attended(nn.Module):
    """A submodule that looks, too, and calls what takes its input three times."""

    def __init__(self, looks: bool):
        super().__init__()
        self.looks, self.attention = looks, nn.MultiheadAttention(4, 2)

    def forward(self, x):
        x = x.transpose(0, 1)
        x = -x if self.looks and float(x.sum()) > 1e9 else x
        return self.attention(x, x, x, need_weights=False)[0].mean(0)


PARTS = {
    "convolution": (
        lambda looks: Branching(
            looks,
            body=nn.Sequential(nn.Conv1d(4, 3, 3, bias=False), nn.BatchNorm1d(3), nn.ReLU(), nn.Flatten()),
            head=nn.Linear(9, 3),
        ),
        (4, 5),
    ),
    "recurrent": (
        lambda looks: Branching(looks, r=nn.LSTM(4, 6, 2, batch_first=True), last=Last(), head=nn.Linear(6, 3)),
        (5, 4),
    ),
    "attention": (lambda looks: Branching(looks, a=Attended(looks), n=nn.LayerNorm(4), head=nn.Linear(4, 3)), (5, 4)),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", PARTS)
def test_a_network_that_cannot_be_traced_has_the_layers_of_its_parts(name, dtype):
    build, shape = PARTS[name]
    module, X, y = make(lambda: build(True), shape)
    plain = build(False).double().eval()
    plain.load_state_dict(module.state_dict())
    module, plain, X = module.to(dtype), plain.to(dtype), X.to(dtype)
    with pytest.raises(UnsupportedLayerError, match="`Branching` cannot be traced"):
        measure_capacity(module, X, y, "path_norm")
    measures = {"operator": ("frobenius_norm", {"view": "operator"}), "s": "spectral_norm", "rank": "stable_rank"}
    result, expected = (measure_capacity(m, X, y, measures) for m in (module, plain))
    assert result == pytest.approx(expected, rel=1e-9 if dtype == torch.float64 else 1e-5)
    reports = [capacity_report(m, X, y, ["frobenius_norm"], per_layer=True) for m in (module, plain)]
    assert reports[0]["layer"].tolist() == reports[1]["layer"].tolist()


@pytest.mark.parametrize(
    ("loop", "seen"),
    [
        (lambda net, x: torch.stack([net(row) for row in x]), True),
        (lambda net, x: torch.cat([net(part) for part in x.split(1)]), True),
        (lambda net, x: torch.cat([net(x[:1]), *(net(part) for part in x[1:].split(1))]), True),
        (lambda net, x: torch.cat([net(part) for part in x.split(100)]), False),
        (lambda net, x: net(x) if len(x) < 2 else net(x.clone()), False),
    ],
)
def test_calls_for_each_sample_are_not_counted_as_layers(loop, seen):
    module = Of(lambda parts, x: loop(parts.net, x), net=nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    X, names = torch.randn(6, 3), ["frobenius_norm", "spectral_norm", "param_norm"]
    expected = measure_capacity(module.net, X, measures=names)
    if not seen:
        assert measure_capacity(module, X, measures=names) == pytest.approx(expected, rel=1e-6)
        return
    report = capacity_report(module, X, measures=[*names, "parameter_count"])
    assert report["value"].isna().tolist() == [True, True, True, False]
    assert report["reason"][:3].str.contains("calls `net` another number of times for each number of samples").all()


def test_matrices_of_what_cannot_be_traced_are_left_out():
    module, X, y = make(
        lambda: Branching(
            True,
            fc=nn.Linear(4, 5),
            own=Of(lambda m, x: x @ m.w if x.sum() < 1e9 else x, w=(5, 5)),
            head=nn.Linear(5, 3),
        ),
        (4,),
    )
    with pytest.warns(CapacityWarning, match=r"leave out weights of layer `own \(Of\)`"):
        result = measure_capacity(module, X, y, "frobenius_norm")["frobenius_norm"]
    assert result == pytest.approx(float((module.fc.weight.norm() * module.head.weight.norm()).detach()))


def test_a_scorer_warns_once_for_each_reason():
    build, shape, _ = LAYERS["encoder"]
    module, X, y = make(build, shape)
    scorer = CapacityScorer(["path_norm", "lipschitz_l2", "spectral_product_bound", "spectral_norm"])
    with pytest.warns(CapacityWarning) as caught:
        result = scorer(module, X, y)
    paths, slopes = sorted((str(warning.message) for warning in caught), reverse=True)
    assert paths.startswith("No score for neg_path_norm: ")
    assert slopes.startswith("No score for neg_lipschitz_l2, neg_spectral_product_bound: ")
    for message in (paths, slopes):
        assert "in layer `e.self_attn (MultiheadAttention)`" in message
    assert math.isfinite(result["neg_spectral_norm"])


# Constant scales ------------------------------------------------------------------------------------------------------


class Tempered(nn.Module):
    def __init__(self, temperature: float):
        super().__init__()
        self.first, self.last, self.temperature = nn.Linear(4, 5), nn.Linear(5, 3), temperature

    def forward(self, x):
        return self.last(self.first(x).relu() * self.temperature) / self.temperature


def test_products_are_of_the_network_with_its_temperature():
    module, X, y = make(lambda: Tempered(4.0), (4,))
    plain = Tempered(1.0).double()
    plain.load_state_dict(module.state_dict())
    layers = [layer.weight.detach() for layer in (module.first, module.last)]
    measures = ["frobenius_norm", "spectral_norm", "lipschitz_l2"]
    result = measure_capacity(module, X, y, measures)
    assert result["frobenius_norm"] == pytest.approx(math.prod(float(W.norm()) for W in layers))
    assert result["spectral_norm"] == pytest.approx(result["lipschitz_l2"], rel=1e-6)
    report = capacity_report(module, X, y, ["frobenius_norm"], per_layer=True)
    assert report["value"].tolist()[1:] == pytest.approx([4 * float(layers[0].norm()), float(layers[1].norm()) / 4])


def test_the_parameters_stay_those_that_were_trained():
    module, X, y = make(lambda: nn.Sequential(nn.Linear(4, 3), Of(lambda m, x: x / 4)), (4,))
    result = measure_capacity(module, X, y, ["parameter_norm", "fisher_trace"])
    theta = torch.cat([p.detach().flatten() for p in module.parameters()])
    assert result["parameter_norm"] == pytest.approx(float(theta.norm()))
    squares = (X**2).sum(1) + 1  # of the gradient of z_k / 4, for 3 classes
    assert result["fisher_trace"] == pytest.approx(float(3 * squares.mean() / 16))


def test_a_scale_that_others_read_too_and_a_zero_stay():
    module, X, _ = make(
        lambda: Of(lambda m, x: m.l(x) / 2 + m.l(x) * 0 + m.k(x), l=nn.Linear(4, 3), k=nn.Linear(4, 3)), (4,)
    )
    expected = float(module.l.weight.detach().norm() ** 2 * module.k.weight.detach().norm()) / 2
    assert values(module, X, f=("frobenius_norm", {}))["f"] == pytest.approx(expected)
