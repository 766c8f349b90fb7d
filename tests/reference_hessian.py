"""Second derivatives of the training loss as dense float64 matrices, from the user's own module.

By torch.func, forward over reverse; by central differences of the gradient where that fails: torch 2.13 has no forward
derivative of weight normalisation or of recurrent layers, and a wrong one of layer norm's backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, hessian
from torch.nn.utils import parametrize

__all__ = ["by_differences", "dense_hessian", "flat_parameters"]

_NO_FORWARD_DERIVATIVE = (nn.RNNBase, nn.LayerNorm)


def by_differences(module: nn.Module) -> bool:
    """Whether the Hessian of a module comes from differences, with 7 digits or so."""
    modules = list(module.modules())
    return any(isinstance(m, _NO_FORWARD_DERIVATIVE) or parametrize.is_parametrized(m) for m in modules)


def flat_parameters(module: nn.Module) -> tuple[list[str], dict[str, Tensor]]:
    """Names of the trainable parameters in order, and tensors in their place that can be differentiated by."""
    theta = {n: p.detach().clone().requires_grad_(True) for n, p in module.named_parameters() if p.requires_grad}
    return list(theta), theta


def dense_hessian(
    module: nn.Module, X: Tensor, y: Tensor, loss: str = "cross_entropy", *, one_logit: bool = False
) -> Tensor:
    """(P, P), in the order of the trainable parameters."""
    names, theta = flat_parameters(module)

    def mean_loss(theta: dict[str, Tensor]) -> Tensor:
        logits = functional_call(module, theta, (X,)).reshape(len(X), -1)
        if one_logit:
            return F.binary_cross_entropy_with_logits(logits[:, 0], y.to(logits.dtype))
        if loss == "cross_entropy":
            return F.cross_entropy(logits, y)
        return {"squared": F.mse_loss, "absolute": F.l1_loss}[loss](logits, y)

    if by_differences(module):
        return _by_rows(mean_loss, names, theta)
    blocks = hessian(mean_loss)(theta)
    sizes = [theta[name].numel() for name in names]
    rows = [
        torch.cat([blocks[a][b].reshape(p, q) for b, q in zip(names, sizes, strict=True)], 1)
        for a, p in zip(names, sizes, strict=True)
    ]
    return torch.cat(rows).detach()


def _by_rows(mean_loss, names: list[str], theta: dict[str, Tensor], step: float = 1e-5) -> Tensor:
    """Central differences of the gradient, row by row."""
    points = [theta[name].detach() for name in names]
    rows = []
    for point in points:
        for i in range(point.numel()):
            ends = []
            for sign in (1, -1):
                point.view(-1)[i] += sign * step
                moved = [p.clone().requires_grad_(True) for p in points]
                result = torch.autograd.grad(mean_loss(dict(zip(names, moved, strict=True))), moved)
                ends.append(torch.cat([g.flatten() for g in result]))
                point.view(-1)[i] -= sign * step
            rows.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(rows)
