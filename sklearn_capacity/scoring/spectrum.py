"""The eigenvalues of the Fisher information and of the Hessian of the loss, for any model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from .._validation import NotDefinedError, check_integer, check_option
from ..derivatives.fisher_matrix import LOSSES
from ..measures.fisher_eigenvalues import fisher_eigenvalues
from ..measures.hessian_estimates import hessian_quadrature as _quadrature
from ..process_state import computing, keeps_modes
from .measurement import Session

__all__ = ["fisher_spectrum", "hessian_quadrature"]


@keeps_modes
def fisher_spectrum(
    model: Any,
    X: Any,
    *,
    loss: str = "squared",
    n_largest: int | None = None,
    batch_size: int | None = None,
    device: Any = None,
    random_state: int = 0,
    verbose: int = 0,
) -> np.ndarray:
    r"""Compute eigenvalues of the Fisher information matrix of a network.

    .. math:: F = \frac{1}{T} \sum_{t=1}^T J_t^T H_t J_t

    with :math:`J_t` the Jacobian of the C logits at sample t in the P trainable parameters (batch norm folded,
    each tied tensor once), and :math:`H_t = I` for the squared loss ([MF] eq. 3) or :math:`\mathrm{diag}(p) - p p^T`
    for the softmax.

    Parameters
    ----------
    model : estimator, skorch net, nn.Module, or a Pipeline, target transformer or fitted search around one
        As in `measure_capacity`.
    X : array-like or Tensor of shape (n_samples, ...)
    loss : "squared" or "cross_entropy", default="squared"
        The model's distribution: a Gaussian of unit variance around the logits, or the softmax.
    n_largest : int, default=None
        Return only this many of the largest; None returns all that may be nonzero. Eigenvalues are repeated by
        multiplicity.
    batch_size : int, default=None
        Number of samples processed at once; None chooses it by memory. It is halved when memory runs out.
    device : str or torch.device, default=None
        Where to compute; None is the model's device.
    random_state : int, default=0
        Seed of the start vectors, where an iteration is used.
    verbose : int, default=0
        1 shows the progress.

    Returns
    -------
    ndarray of shape (min(C T, P),) or (n_largest,)
        In descending order, clipped at 0. All other eigenvalues of F are 0.

    Raises
    ------
    ValueError
        If the smaller of the two matrices has more than 15,000 rows and `n_largest` is None, or `n_largest` is out of
        range.
    NotDefinedError
        If there are no trainable parameters, or the softmax has only one logit.

    See Also
    --------
    displays.FisherSpectrumDisplay : Draws it.
    theory.mean_field : What theory predicts for random networks.

    Notes
    -----
    All eigenvalues are computed from the dual matrix of size C T, or from F itself where that costs less. For a network
    of linear layers the dual takes C backward passes and one product of (C T)^2 entries per layer, without forming the
    gradients of single samples; the memory is that of the matrix and its copy in float64. The largest eigenvalues of a
    large matrix are computed by block Lanczos, with one backward and one tangent sweep per product.

    References
    ----------
    Karakida, Akaho, Amari (2019), Universal statistics of Fisher information in deep neural networks, eq. 3 and
    supplementary material D.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import fisher_spectrum
    >>> X = torch.tensor([[2.0, 0.0], [0.0, 4.0]])  # F = diag(2, 8)
    >>> fisher_spectrum(nn.Linear(2, 1, bias=False), X).round(6).tolist()
    [8.0, 2.0]
    """
    check_option("loss", loss, LOSSES)
    if X is None:
        raise ValueError("`X` must contain samples, got None: the Fisher information is an average over data.")
    session = Session(model, X, None, batch_size=batch_size, device=device, random_state=random_state, verbose=verbose)
    values, _ = fisher_eigenvalues(session.network, session.batch, loss, n_largest)
    return values.numpy().copy()


@keeps_modes
def hessian_quadrature(
    model: Any,
    X: Any,
    y: Any,
    *,
    n_draws: int = 10,
    n_steps: int = 80,
    loss: str | None = None,
    classes: Any = None,
    max_samples: int | None = None,
    batch_size: int | None = None,
    device: Any = None,
    random_state: int = 0,
    verbose: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Compute quadrature nodes and weights for the spectrum of the Hessian of the mean loss (`HessianSpectrumDisplay`).

    Parameters
    ----------
    model, X, y, loss, classes, max_samples, batch_size, device, random_state, verbose
        As in `measure_capacity`.
    n_draws : int >= 1, default=10
        Number of random vectors of stochastic Lanczos quadrature.
    n_steps : int >= 1, default=80
        Number of Hessian-vector products per random vector.

    Returns
    -------
    nodes, weights : ndarray of shape (n_draws, min(n_steps, P)), or (1, P)
        With up to 300 parameters, the eigenvalues themselves with weights 1 / P. The weights of each draw sum to 1.

    Raises
    ------
    NotDefinedError
        If there is no loss or no trainable parameter, or the Hessian is not finite.
    """
    check_integer("n_draws", n_draws)
    check_integer("n_steps", n_steps)
    session = Session(
        model,
        X,
        y,
        loss=loss,
        classes=classes,
        max_samples=max_samples,
        batch_size=batch_size,
        device=device,
        random_state=random_state,
        verbose=verbose,
    )
    if session.loss is None:
        raise NotDefinedError('The Hessian needs a loss: pass loss="cross_entropy", "hinge", "squared" or "absolute".')
    with computing(), torch.inference_mode(False):
        nodes, weights = _quadrature(session.network, session.batch, n_draws, n_steps)
    return nodes.numpy(), weights.numpy()
