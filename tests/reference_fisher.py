"""The Fisher information by brute force: one gradient per sample and class, dense matrices, float64.

The folded networks are built here by hand, from torch's own fusion helpers and modules written out, and differentiated
by plain autograd in their own parameters, so nothing of the graph is shared.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

__all__ = ["Affine", "dual", "fisher_rao", "folded", "jacobian", "loss_factor", "matrix"]


class Affine(nn.Module):
    """What an eval batch norm that nothing absorbs is: a scale and a shift per channel."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        scale = norm.weight.detach() / (norm.running_var + norm.eps).sqrt()
        self.scale = nn.Parameter(scale)
        self.shift = nn.Parameter(norm.bias.detach() - norm.running_mean * scale)

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *(1,) * (x.dim() - 2))
        return x * self.scale.reshape(shape) + self.shift.reshape(shape)


def folded(name: str, module: nn.Module) -> nn.Module:
    """The network of tests/networks.py with its batch norms folded by hand."""
    net = copy.deepcopy(module)
    if name == "conv_batch_norm":
        net[0], net[1] = fuse_conv_bn_eval(net[0], net[1]), nn.Identity()
    elif name == "conv_transposed":
        norm = Affine(net[3])
        for group in range(net[2].groups):  # torch's helper takes one group
            inside = slice(2 * group, 2 * group + 2)
            net[2].weight.data[inside] *= norm.scale.detach()[inside].reshape(1, -1, 1, 1)
        net[2].bias.data = net[2].bias.data * norm.scale.detach() + norm.shift.detach()
        net[3] = nn.Identity()
    elif name == "mlp_batch_norm":
        net[0], net[1] = fuse_linear_bn_eval(net[0], net[1]), nn.Identity()
        last, head = Affine(net[3]), net[4]
        joined = nn.Linear(head.in_features, head.out_features).double()
        joined.weight.data = head.weight.detach() * last.scale.detach()
        joined.bias.data = head.bias.detach() + head.weight.detach() @ last.shift.detach()
        net[3], net[4] = nn.Identity(), joined
    elif name == "residual":
        for block in net.blocks:
            block.conv1, block.bn1 = fuse_conv_bn_eval(block.conv1, block.bn1), nn.Identity()
            block.conv2, block.bn2 = fuse_conv_bn_eval(block.conv2, block.bn2), nn.Identity()
            if isinstance(block.shortcut, nn.Sequential):
                block.shortcut = fuse_conv_bn_eval(block.shortcut[0], block.shortcut[1])
    elif name == "residual_preactivation":
        # only the norm after conv1 follows a linear map that nothing else reads
        net.conv1, net.bn2 = fuse_conv_bn_eval(net.conv1, net.bn2), nn.Identity()
        net.bn1, net.last = Affine(net.bn1), Affine(net.last)
    elif name == "weight_norm":
        plain = nn.Linear(net[0].in_features, net[0].out_features).double()
        plain.weight.data, plain.bias.data = net[0].weight.detach().clone(), net[0].bias.detach().clone()
        net[0] = plain
    elif name == "binary":
        net = _TwoLogits(net)
    for parameter in net.parameters():
        parameter.requires_grad_(True)  # the fusion helpers freeze the biases that they make
    return net


class _TwoLogits(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        return torch.cat([-z / 2, z / 2], dim=1)


def trained(net: nn.Module) -> list[nn.Parameter]:
    return [p for p in net.parameters() if p.requires_grad]


def jacobian(net: nn.Module, X: Tensor) -> Tensor:
    """(T, C, P): one backward pass per sample and class."""
    theta = trained(net)
    samples = []
    for x in X:
        f = net(x[None])[0]
        rows = []
        for value in f:
            parts = torch.autograd.grad(value, theta, retain_graph=True, allow_unused=True)
            result = zip(theta, parts, strict=True)
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in result]))
        samples.append(torch.stack(rows))
    return torch.stack(samples)


def loss_factor(f: Tensor, loss: str) -> Tensor:
    """Fisher matrix of the loss at the logits of one sample, (C, C)."""
    if loss == "squared":
        return torch.eye(len(f), dtype=f.dtype)
    p = f.exp() / f.exp().sum()
    return torch.diag(p) - torch.outer(p, p)


def matrix(net: nn.Module, X: Tensor, loss: str) -> Tensor:
    """F = (1/T) sum_t J_t^T H_t J_t, (P, P)."""
    J, logits = jacobian(net, X), net(X).detach()
    total = torch.zeros(J.shape[2], J.shape[2], dtype=J.dtype)
    for j, f in zip(J, logits, strict=True):
        total += j.T @ loss_factor(f, loss) @ j
    return total / len(X)


def dual(net: nn.Module, X: Tensor) -> Tensor:
    """Inner products of all gradients over T, classes first, (C T, C T)."""
    rows = jacobian(net, X).transpose(0, 1).flatten(0, 1)
    return rows @ rows.T / len(X)


def fisher_rao(net: nn.Module, X: Tensor, y: Tensor, loss: str, distribution: str, weights_only: bool) -> float:
    """<theta, F theta> from gradients of log-likelihoods themselves, label by label."""
    theta = trained(net)
    along = [torch.zeros_like(p) if weights_only and p.dim() < 2 else p.detach() for p in theta]

    def slope(value: Tensor) -> float:
        parts = torch.autograd.grad(value, theta, retain_graph=True, allow_unused=True)
        return sum(float((g * v).sum()) for g, v in zip(parts, along, strict=True) if g is not None)

    total = 0.0
    for x, target in zip(X, y, strict=True):
        f = net(x[None])
        if loss == "absolute":
            total += slope((f - target).abs().sum()) ** 2
        elif loss == "squared" and distribution == "empirical":
            total += slope(((f - target) ** 2).sum() / 2) ** 2
        elif loss == "squared":  # E over y = f + noise of <grad, theta>^2 for unit-variance noise: every output counts
            total += sum(slope(value) ** 2 for value in f[0])
        elif distribution == "empirical":
            total += slope(F.cross_entropy(f, target[None])) ** 2
        else:
            p = f[0].softmax(0).detach()
            total += sum(float(p[k]) * slope(F.cross_entropy(f, torch.tensor([k]))) ** 2 for k in range(len(p)))
    return total / len(X)
