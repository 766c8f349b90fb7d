"""Small networks like those of other libraries: each name stands for a function that builds (module, samples).

What a family is known for is in each of them; widths are a few numbers, so that references can be dense.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ZOO", "build"]

Build = Callable[[], tuple[nn.Module, tuple[int, ...]]]
#: By name, a function that gives a module with 3 outputs and the shape of a sample.
ZOO: dict[str, Build] = {}
SAMPLES, CLASSES, VOCABULARY = 5, 3, 11


def build(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """Module in float64 and eval mode, samples and labels, all drawn from one seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module, shape = ZOO[name]()
        X = torch.randn(SAMPLES, *shape, dtype=torch.float64)
        if name.startswith("token"):
            X = torch.randint(VOCABULARY, (SAMPLES, *shape)).double()
        module = module.double()
        module(X)  # running statistics of batch norms
    return module.eval(), X, torch.arange(SAMPLES) % CLASSES


def network(function: Build) -> Build:
    """Enter a function into the table."""
    ZOO[function.__name__] = function
    return function


class Of(nn.Module):
    """A forward pass `f(self, x)` with named submodules and parameters."""

    def __init__(self, f: Callable[[Of, Tensor], Tensor], **parts: nn.Module | tuple[int, ...]):
        super().__init__()
        self.f = f
        for name, part in parts.items():
            setattr(self, name, part if isinstance(part, nn.Module) else nn.Parameter(0.5 * torch.randn(*part)))

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES))


def _conv_bn(n_in: int, n_out: int, kernel: int, act: nn.Module, **options: int) -> nn.Sequential:
    conv = nn.Conv2d(n_in, n_out, kernel, padding=kernel // 2, bias=False, **options)  # type: ignore[arg-type]
    return nn.Sequential(conv, nn.BatchNorm2d(n_out), act)


# -- convolutions -----------------------------------------------------------------------------------------------------


@network
def squeeze_excitation():
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 2, 1), nn.ReLU(), nn.Conv2d(2, 4, 1), nn.Sigmoid())
    block = Of(lambda m, x: F.relu(x + (y := m.conv(x)) * m.gate(y)), conv=_conv_bn(4, 4, 3, nn.Identity()), gate=gate)
    return nn.Sequential(_conv_bn(2, 4, 3, nn.ReLU()), block, _head(4)), (2, 6, 6)


@network
def mobilenet_v3():
    gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 2, 1), nn.ReLU(), nn.Conv2d(2, 6, 1), nn.Hardsigmoid())
    scaled = Of(lambda m, x: x * m.gate(x), gate=gate)
    wide, deep = _conv_bn(3, 6, 1, nn.Hardswish()), _conv_bn(6, 6, 3, nn.Hardswish(), groups=6)
    block = Of(lambda m, x: x + m.path(x), path=nn.Sequential(wide, deep, scaled, _conv_bn(6, 3, 1, nn.Identity())))
    return nn.Sequential(_conv_bn(2, 3, 3, nn.Hardswish(), stride=2), block, _head(3)), (2, 8, 8)


@network
def ghost():
    first, cheap = _conv_bn(2, 3, 1, nn.ReLU()), _conv_bn(3, 3, 3, nn.ReLU(), groups=3)
    ghost = Of(lambda m, x: torch.cat([y := m.first(x), m.cheap(y)], 1), first=first, cheap=cheap)
    return nn.Sequential(ghost, nn.MaxPool2d(2), _head(6)), (2, 6, 6)


@network
def inception():
    branches = nn.ModuleList([_conv_bn(2, 2, k, nn.ReLU()) for k in (1, 3, 5)])
    block = Of(lambda m, x: torch.cat([b(x) for b in m.branches] + [F.avg_pool2d(x, 3, 1, 1)], 1), branches=branches)
    return nn.Sequential(block, _head(8)), (2, 6, 6)


@network
def densenet():
    def dense(m, x):
        for layer in m.layers:
            x = torch.cat([x, layer(x)], 1)
        return x

    layers = [nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 2, 3, padding=1, bias=False)) for c in (2, 4, 6)]
    return nn.Sequential(Of(dense, layers=nn.ModuleList(layers)), nn.BatchNorm2d(8), nn.ReLU(), _head(8)), (2, 5, 5)


@network
def shufflenet():
    def block(m, x):
        a, b = x.chunk(2, dim=1)
        x = torch.cat([a, m.path(b)], 1)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)

    path = nn.Sequential(_conv_bn(2, 2, 1, nn.ReLU()), _conv_bn(2, 2, 3, nn.Identity(), groups=2))
    return nn.Sequential(_conv_bn(2, 4, 3, nn.ReLU()), Of(block, path=path), _head(4)), (2, 6, 6)


@network
def convnext():
    def block(m, x):
        y = m.depthwise(x).permute(0, 2, 3, 1)
        y = m.down(F.gelu(m.up(m.norm(y)))) * m.scale
        return x + y.permute(0, 3, 1, 2)

    parts = {"depthwise": nn.Conv2d(4, 4, 3, padding=1, groups=4), "norm": nn.LayerNorm(4), "scale": (4,)}
    inner = Of(block, **parts, up=nn.Linear(4, 8), down=nn.Linear(8, 4))
    return nn.Sequential(nn.Conv2d(2, 4, 2, 2), inner, _head(4)), (2, 6, 6)


@network
def unet():
    def forward(m, x):
        first = m.down(x)
        deep = m.deep(F.max_pool2d(first, 2))
        both = torch.cat([first, F.interpolate(deep, scale_factor=2, mode="bilinear"), m.up(deep)], 1)
        return m.head(both)

    parts = {"down": _conv_bn(2, 3, 3, nn.ReLU()), "deep": _conv_bn(3, 4, 3, nn.ReLU())}
    return Of(forward, **parts, up=nn.ConvTranspose2d(4, 2, 2, 2), head=_head(9)), (2, 6, 6)


@network
def evonorm():
    def act(m, x):  # EvoNorm-S0
        spread = x.unflatten(1, (2, 2)).var((2, 3, 4), unbiased=False, keepdim=True)
        scaled = (x * m.v.view(1, -1, 1, 1)).sigmoid() * x
        return (scaled.unflatten(1, (2, 2)) / (spread + 1e-5).sqrt()).flatten(1, 2)

    return nn.Sequential(nn.Conv2d(2, 4, 3), Of(act, v=(4,)), _head(4)), (2, 6, 6)


@network
def video():  # the batch of its convolutions is merged with the frames
    def forward(m, x):
        n, t = x.shape[:2]
        y = F.max_pool2d(m.stem(x.flatten(0, 1)), 2)
        y = m.prelu(m.norm(m.up(y)))
        y = F.pad(F.interpolate(y, scale_factor=0.5, mode="bilinear"), (1, 0, 0, 1), mode="reflect")
        y = F.adaptive_avg_pool2d(F.pad(y, (0, 0, 1, 0)), (3, 2)).reshape(n, t, -1)
        return m.head(y.amax(1))

    parts = {"stem": _conv_bn(2, 3, 3, nn.ReLU()), "up": nn.ConvTranspose2d(3, 4, 2, 2), "norm": nn.GroupNorm(2, 4)}
    return Of(forward, **parts, prelu=nn.PReLU(4), head=nn.Linear(24, CLASSES)), (3, 2, 6, 6)


@network
def video_in_parts():  # frames first, and a batch of two merged axes
    def forward(m, x):
        n, t, s = x.shape[:3]
        y = m.stem(x.permute(1, 0, 2, 3, 4).reshape(t * n * s, *x.shape[3:]))
        y = m.head(y.reshape(t, n, s, -1).mean((0, 2)))
        return y + m.series(x.mean(4).flatten(0, 2)[:, None]).mean((1, 2)).reshape(n, -1).sum(1, keepdim=True)

    stem = nn.Sequential(nn.Conv1d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool1d(2))
    return Of(forward, stem=stem, series=nn.Conv1d(1, 2, 2, 2, bias=False), head=nn.Linear(8, CLASSES)), (2, 2, 3, 5)


@network
def ghost_v2():  # a sum into some of the channels
    def forward(m, x):
        y = torch.cat([first := m.first(x), m.cheap(first)], 1)
        y[:, 1:4] += m.shortcut(x)
        return y

    parts = {"first": _conv_bn(2, 3, 1, nn.ReLU()), "cheap": _conv_bn(3, 3, 3, nn.ReLU(), groups=3)}
    return nn.Sequential(Of(forward, **parts, shortcut=nn.Conv2d(2, 3, 1)), nn.MaxPool2d(2), _head(6)), (2, 4, 4)


@network
def convnext_v2():
    def respond(m, x):
        lengths = x.norm(2, (1, 2), keepdim=True)
        scaled = x * (lengths / (lengths.mean(-1, keepdim=True) + 1e-3))
        return x + torch.addcmul(m.shift, m.scale, scaled)

    last = Of(lambda m, x: m.head(m.norm(x).mean((1, 2))), norm=nn.LayerNorm(3), head=nn.Linear(3, CLASSES))
    stem = Of(lambda m, x: F.gelu(m.conv(x).permute(0, 2, 3, 1)), conv=nn.Conv2d(2, 3, 2, 2))
    return nn.Sequential(stem, Of(respond, shift=(3,), scale=(3,)), last), (2, 4, 4)


# -- attention --------------------------------------------------------------------------------------------------------


@network
def vit():
    def forward(m, x):
        tokens = m.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([m.cls.expand(x.shape[0], -1, -1), tokens], 1) + m.positions
        return m.head(m.norm(m.encoder(tokens))[:, 0])

    layer = nn.TransformerEncoderLayer(4, 2, 8, activation="gelu", batch_first=True, norm_first=True, dropout=0.0)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    parts = {"patches": nn.Conv2d(2, 4, 2, 2), "cls": (1, 1, 4), "positions": (1, 5, 4)}
    return Of(forward, **parts, encoder=encoder, norm=nn.LayerNorm(4), head=nn.Linear(4, CLASSES)), (2, 4, 4)


@network
def coatnet():  # batch norm and attention
    def forward(m, x):
        tokens = m.stem(x).flatten(2).transpose(1, 2)
        attended, _ = m.attention(tokens, tokens, tokens, need_weights=False)
        return m.head((tokens + attended).mean(1))

    parts = {"attention": nn.MultiheadAttention(4, 2, batch_first=True), "head": nn.Linear(4, CLASSES)}
    return Of(forward, stem=_conv_bn(2, 4, 3, nn.GELU(), stride=2), **parts), (2, 6, 6)


@network
def sequence_first():
    def forward(m, x):
        t = x.transpose(0, 1)
        attended, weights = m.attention(m.norm(t), t, t)
        return m.head((t + attended).mean(0)) + weights.mean((1, 2))[:, None]

    attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
    return Of(forward, attention=attention, norm=nn.LayerNorm(4), head=nn.Linear(4, CLASSES)), (5, 4)


@network
def swin():
    def windows(m, x):
        n, h, w, c = x.shape
        shifted = torch.roll(x, (-1, -1), (1, 2)).view(n, h // 2, 2, w // 2, 2, c)
        t = shifted.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 4, c)
        q, k, v = m.qkv(t).reshape(-1, 4, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        scores = ((q @ k.transpose(-2, -1)) + m.bias).softmax(-1)
        t = m.project((scores @ v).transpose(1, 2).reshape(-1, 4, c))
        t = t.view(n, h // 2, w // 2, 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
        return x + torch.roll(t, (1, 1), (1, 2))

    block = Of(windows, qkv=nn.Linear(4, 12), project=nn.Linear(4, 4), bias=(2, 4, 4))
    stem = Of(lambda m, x: m.conv(x).permute(0, 2, 3, 1), conv=nn.Conv2d(2, 4, 2, 2))
    pool = Of(lambda m, x: m.head(x.mean((1, 2))), head=nn.Linear(4, CLASSES))
    return nn.Sequential(stem, nn.LayerNorm(4), block, nn.LayerNorm(4), pool), (2, 8, 8)


@network
def swin_v2():  # cosines of windows, with a trained bias and a mask
    def windows(m, x):
        n, h, w, c = x.shape
        t = x.view(n, h // 2, 2, w // 2, 2, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, 4, c)
        q, k, v = m.qkv(t).reshape(-1, 4, 3, 2, c // 2).permute(2, 0, 3, 1, 4)
        cosines = F.normalize(q, dim=-1, eps=0.1) @ F.normalize(k, dim=-1, eps=0.1).transpose(-2, -1)
        apart = torch.zeros(h * w // 4, 4, 4).index_fill(0, torch.tensor([1]), -2.0)
        mask = (m.bias + apart[:, None].repeat(n, 1, 1, 1)).expand(-1, 2, -1, -1)
        t = F.scaled_dot_product_attention(q, k, v, attn_mask=mask) + (cosines * m.heat).softmax(-1) @ v
        t = t.transpose(1, 2).reshape(-1, 4, c).view(n, h // 2, w // 2, 2, 2, c)
        return x + m.norm(t.permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c))

    stem = Of(lambda m, x: m.conv(x).permute(0, 2, 3, 1), conv=nn.Conv2d(2, 4, 2, 2))
    block = Of(windows, qkv=nn.Linear(4, 12), norm=nn.LayerNorm(4), bias=(2, 4, 4), heat=(2, 1, 1))
    return nn.Sequential(stem, block, Of(lambda m, x: m.head(x.mean((1, 2))), head=nn.Linear(4, CLASSES))), (2, 8, 8)


@network
def levit():  # batch norm behind linear maps of positions
    def forward(m, x):
        t = m.patches(x).flatten(2).transpose(1, 2)
        q, k, v = m.qkv_norm((y := m.qkv(t)).flatten(0, 1)).reshape_as(y).chunk(3, -1)
        return m.head((q @ k.mT).softmax(-1).matmul(v).mean(1))

    parts = {"patches": _conv_bn(2, 4, 2, nn.Hardswish(), stride=2), "qkv": nn.Linear(4, 12, bias=False)}
    return Of(forward, **parts, qkv_norm=nn.BatchNorm1d(12), head=nn.Linear(4, CLASSES)), (2, 4, 4)


@network
def grid_attention():  # as in MaxViT, with `einsum`
    def forward(m, x):
        q, k, v = (part.unflatten(-1, (2, 2)) for part in m.qkv(m.norm(x)).chunk(3, -1))
        scores = torch.einsum("b i h d, b j h d -> b h i j", q, k).softmax(-1)
        mixed = torch.einsum("bhij,bjhd->bihd", scores, v)
        return torch.einsum("bihd,ohd->bio", mixed, m.w).mean(1)

    return Of(forward, qkv=nn.Linear(4, 12), norm=nn.LayerNorm(4), w=(CLASSES, 2, 2)), (5, 4)


@network
def tokens_gpt():
    def forward(m, x):
        ids = x.long()
        h = m.words(ids) + m.places(torch.arange(x.shape[1]))
        for block in m.blocks:
            h = block(h)
        return m.head(h[:, -1])

    def block(m, h):
        q, k, v = (p.unflatten(-1, (2, 2)).transpose(1, 2) for p in m.qkv(m.first(h)).split(4, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
        h = h + m.project(mixed)
        return h + m.down(F.gelu(m.up(m.second(h)), approximate="tanh"))

    def layer():
        norms = {"first": nn.LayerNorm(4), "second": nn.LayerNorm(4)}
        return Of(
            block, **norms, qkv=nn.Linear(4, 12), project=nn.Linear(4, 4), up=nn.Linear(4, 8), down=nn.Linear(8, 4)
        )

    parts = {"words": nn.Embedding(VOCABULARY, 4), "places": nn.Embedding(6, 4), "head": nn.Linear(4, CLASSES)}
    return Of(forward, **parts, blocks=nn.ModuleList([layer(), layer()])), (6,)


@network
def tokens_bert():
    def forward(m, x):
        ids = x.long()
        kinds = torch.zeros_like(ids)
        h = m.norm(m.words(ids) + m.places(torch.arange(x.shape[1]).expand(x.shape[0], -1)) + m.kinds(kinds))
        hidden = ids == 0
        h = m.encoder(h, src_key_padding_mask=hidden.double().masked_fill(hidden, -1e9))
        return m.head(torch.tanh(m.pool(h[:, 0])))

    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True, dropout=0.0)
    parts = {"words": nn.Embedding(VOCABULARY, 4), "places": nn.Embedding(6, 4), "kinds": nn.Embedding(2, 4)}
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
    heads = {"pool": nn.Linear(4, 4), "head": nn.Linear(4, CLASSES)}
    return Of(forward, **parts, **heads, norm=nn.LayerNorm(4), encoder=encoder), (6,)


# -- recurrence -------------------------------------------------------------------------------------------------------


@network
def lstm():
    layer = nn.LSTM(3, 4, batch_first=True)
    return Of(lambda m, x: m.head(m.lstm(x)[0][:, -1]), lstm=layer, head=nn.Linear(4, CLASSES)), (5, 3)
