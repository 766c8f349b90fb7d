"""The quadratic form of a loss's Fisher matrix at the output."""

from __future__ import annotations

from torch import Tensor

from .._validation import NotDefinedError
from ..losses import nearest_rivals

__all__ = ["DISTRIBUTIONS", "fisher_form"]

#: labels of the data, or labels distributed as the model predicts
DISTRIBUTIONS = ("empirical", "model")


def fisher_form(f: Tensor, u: Tensor, y: Tensor | None, loss: str, distribution: str) -> Tensor:
    r""":math:`\langle u, F_\psi u \rangle` of each sample, (n,); differentiable ([FR] definition 2).

    Cross-entropy: :math:`\langle p - e_y, u \rangle^2` or the variance of u under p; squared:
    :math:`\langle f - y, u \rangle^2` or :math:`\|u\|^2`; absolute: :math:`u^2` with either. Hinge: empirical only,
    :math:`(u_k - u_y)^2` where the margin to the nearest rival class k is below 1, else 0.

    Parameters
    ----------
    f, u : Tensor of shape (n, C)
        Logits, and a direction in their space.
    y : Tensor or None
        Class indices (n,) under a loss of classifiers, else targets (n, C); for "empirical" only.
    loss : "cross_entropy", "hinge", "squared" or "absolute"
    distribution : one of `DISTRIBUTIONS`
    """
    if loss == "absolute":
        if f.shape[1] != 1:
            raise NotDefinedError(
                f"The Fisher-Rao norm under the absolute loss is defined for one output, got {f.shape[1]}. "
                'Use loss="squared".'
            )
        return u.squeeze(1) ** 2
    if loss == "squared":
        if distribution == "model":
            return (u**2).sum(1)
        assert y is not None
        return ((f - y.to(f.dtype)) * u).sum(1) ** 2
    if loss == "hinge":
        return _hinge_form(f, u, y, distribution)
    p = f.softmax(1)
    mean = (p * u).sum(1, keepdim=True)  # (n, 1)
    if distribution == "model":
        return (p * (u - mean) ** 2).sum(1)
    assert y is not None
    return (mean - u.gather(1, y[:, None])).squeeze(1) ** 2


def _hinge_form(f: Tensor, u: Tensor, y: Tensor | None, distribution: str) -> Tensor:
    """<e_k - e_y, u>^2 where the loss 1 + f_k - f_y is positive, for the nearest rival k."""
    if distribution == "model":
        raise NotDefinedError(
            'The Fisher-Rao norm under the hinge loss needs distribution="empirical", got "model": the loss is no '
            "likelihood, so that the model predicts no distribution."
        )
    assert y is not None
    rival, label = nearest_rivals(f, y), y[:, None]  # (n, 1) each
    short = f.gather(1, label) - f.gather(1, rival) < 1  # (n, 1)
    return (short * (u.gather(1, rival) - u.gather(1, label)) ** 2).squeeze(1)
