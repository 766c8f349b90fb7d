"""He's initialisation, also for residual branches without batch norm."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import torch
from torch import nn

from sklearn_capacity._validation import check_instance

__all__ = ["he_initialize", "scale_branches"]

M = TypeVar("M", bound=nn.Module)


def he_initialize(module: M) -> M:
    r"""Draw all linear and convolution weights of a module from He's normal distribution.

    .. math:: W_{ij} \sim N(0, 2 / \text{fan in}), \qquad b = 0.

    Parameters
    ----------
    module : torch.nn.Module
        Modified in place. Layers other than ``Linear`` and ``Conv2d`` keep their initial values.

    Returns
    -------
    torch.nn.Module
        The same object.

    Notes
    -----
    The numbers come from torch's global generator, as in any module's constructor: seed it with
    ``torch.manual_seed``, or build the module within ``torch.random.fork_rng``.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun. Delving deep into rectifiers. ICCV 2015, equation 10.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.layers import he_initialize
    >>> _ = torch.manual_seed(0)
    >>> layer = he_initialize(torch.nn.Linear(1000, 50))
    >>> round(float(layer.weight.detach().std() * (1000 / 2) ** 0.5), 1)
    1.0
    """
    for layer in check_instance("module", module, nn.Module, "an nn.Module").modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            if nn.parameter.is_lazy(layer.weight):
                raise ValueError("`module` must have its shapes, got a lazy layer. Run a batch through it first.")
            if layer.weight.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
                raise TypeError(f"`module` must have weights in float16 to float64, got {layer.weight.dtype}.")
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def scale_branches(last_layers: Iterable[nn.Module]) -> None:
    r"""Multiply the last weight of each of n residual branches by :math:`n^{-1/2}`, in place.

    .. math:: \prod_{b=1}^{n} (1 + 1/n) < e

    is then the growth of the activations' second moment over n residual additions, whereas He's initialisation alone
    doubles it at each addition: :math:`2^{59}` for 59 skips without batch norm.

    Parameters
    ----------
    last_layers : iterable of torch.nn.Linear or torch.nn.Conv2d
        The last weight layer of every branch.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.layers.initialization import scale_branches
    >>> layers = [torch.nn.Linear(2, 2) for _ in range(4)]
    >>> before = layers[0].weight.clone()
    >>> scale_branches(layers)
    >>> bool(torch.equal(layers[0].weight, before / 2))
    True
    """
    layers = list(last_layers)
    with torch.no_grad():
        for layer in layers:
            layer.get_parameter("weight").mul_(len(layers) ** -0.5)
