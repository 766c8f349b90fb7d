"""Curvature of the loss in one layer's weights, relative to the weights (Petzka et al., 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .._validation import check_instance, closest, shown
from ..derivatives.double_backward import twice_differentiable
from ..graph import Network
from ..graph.fold import HEAD
from ..losses import sample_losses
from .batch import Batch
from .losses import targets
from .memory import Peak
from .pass_limits import UNSHARED, Parts
from .record import Measure, Measured, NotDefinedError

__all__ = ["MEASURES", "relative_flatness"]


def relative_flatness(network: Network, batch: Batch, *, layer: str | None = None) -> Measured:
    r"""Trace of the Hessian in one layer's weights, weighted by the inner products of its rows.

    .. math:: \kappa = \sum_{s, s'} \langle w_s, w_{s'} \rangle \, \mathrm{tr}\, H_{s,s'}, \qquad
        H_{s,s'} = \left( \frac{\partial^2 L}{\partial w_{s,t}\, \partial w_{s',t'}} \right)_{t,t'}

    :math:`w_s` are the rows of the weight matrix of a linear layer, one per output, and L is the mean loss over all the
    data (cross-entropy or hinge; squared or absolute error, averaged over the outputs as in training). The bias is
    ignored; a normalised weight counts as its effective weight. Smaller (flatter) values suggest better
    generalisation. The value is invariant under rescaling of rectifier layers against each other.

    Parameters
    ----------
    layer : str, default=None
        Name of a linear layer, as in ``named_modules()``; None selects the last layer with parameters, whose inputs are
        the last hidden features.

    Returns
    -------
    Measured
        The report shows the layer.

    Raises
    ------
    NotDefinedError
        If the layer is not linear, does not receive exactly one vector per sample, or shares its weight.
    ValueError
        If there is no layer of this name.

    Notes
    -----
    The value is exact. H is computed from the Hessian with respect to the layer's outputs z, since :math:`H_{s,s'}` is
    the mean of :math:`\partial^2 \ell / \partial z_s \partial z_{s'}\; x x^\top` over the layer's inputs x. The cost is
    one product with that Hessian per singular value of the weight, each two backward passes through the layers above.

    References
    ----------
    Petzka, Kamp, Adilova, Sminchisescu, Boley (2021), Relative flatness and generalization, definition 3.

    Examples
    --------
    For the squared loss of f = w x, with w = 3 and x = 2, the Hessian is 2 x^2 = 8.

    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity import measure_capacity
    >>> net = nn.Linear(1, 1, bias=False)
    >>> _ = net.weight.data.fill_(3.0)
    >>> measure_capacity(net, torch.tensor([[2.0]]), torch.tensor([0.0]), "relative_flatness")
    {'relative_flatness': 72.0}
    """
    name, linear = _linear_layer(network, layer)
    parameters = dict(network.module.named_parameters())
    network.refuse_replacing(parameters)
    state = {key: p.detach() for key, p in parameters.items()}

    def on_chunk(X: Tensor, y: Tensor) -> Tensor:
        with twice_differentiable(), _shifted(linear, name, len(X)) as seen:
            losses = sample_losses(network.forward(X, state).double(), y, batch.loss)
        x, weight, shift = seen  # (n, in), (out, in), (n, out)
        lengths = x.double().square().sum(1)  # (n,)
        total = torch.zeros((), dtype=torch.float64, device=X.device)
        for direction in _directions(weight):  # (out,)
            total += (lengths * _curvature(losses.sum(), shift, direction)).sum()
        return total

    value = float(torch.stack(batch.map(on_chunk, targets(batch))).sum()) / batch.n_samples
    return Measured(value, info={"layer": name})


def _directions(weight: Tensor) -> Tensor:
    """Vectors a_k of the outputs, one per row, with sum_k a_k a_k^T = W W^T."""
    left, lengths, _ = torch.linalg.svd(weight.double(), full_matrices=False)  # W W^T = U S^2 U^T
    return (left * lengths).T  # (min(out, in), out)


def _curvature(loss: Tensor, shift: Tensor, direction: Tensor) -> Tensor:
    """a^T (d^2 loss / dz^2) a of every sample, (n,); samples do not interact in eval mode."""
    along = direction.to(shift)  # (out,)
    (slope,) = torch.autograd.grad(loss, shift, create_graph=True, allow_unused=True)  # dL/dz, (n, out)
    if slope is None or not slope.requires_grad:
        return shift.new_zeros(len(shift), dtype=torch.float64)
    # H a of each sample, (n, out)
    (second,) = torch.autograd.grad((slope * along).sum(), shift, retain_graph=True, allow_unused=True)
    if second is None:
        return shift.new_zeros(len(shift), dtype=torch.float64)
    return (second * along).double().sum(1)


@contextmanager
def _shifted(linear: nn.Module, name: str, n_samples: int) -> Iterator[list[Tensor]]:
    """In the context, add a zero to the layer's outputs z; the list receives its inputs, its weight and that zero."""
    seen: list[Tensor] = []

    def add(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        (x,) = inputs
        if seen or x.dim() != 2 or len(x) != n_samples:
            raise NotDefinedError(
                f"The relative flatness needs a linear layer that receives one vector per sample, once, but `{name}` "
                "does not. Name another `layer`."
            )
        shift = torch.zeros_like(output, requires_grad=True)
        seen.extend((x.detach(), module.weight.detach(), shift))
        return output + shift

    handle = linear.register_forward_hook(add)
    try:
        yield seen
    finally:
        handle.remove()


def _linear_layer(network: Network, wanted: str | None) -> tuple[str, nn.Linear]:
    """The linear layer of the given name, or the last one if no layer with parameters follows it."""
    modules = {network.shown(name): module for name, module in network.module.named_modules()}
    if wanted is not None:
        check_instance("layer", wanted, str, "the name of a linear layer or None")
        if wanted not in modules:
            hint = closest(wanted, modules)
            raise ValueError(f"`layer` must be the name of a submodule, got {shown(wanted)}.{hint and ' ' + hint}")
    ended = _ended(network, modules)
    if not ended:
        raise NotDefinedError("The relative flatness needs a linear layer, but the network has no weights.")
    name = ended[-1] if wanted is None else wanted
    linear = modules[name]
    if not isinstance(linear, nn.Linear):
        raise NotDefinedError(
            f"The relative flatness needs a linear layer, but `{name}` is a {type(linear).__name__}. Name a linear "
            "layer as `layer`."
        )
    if name not in ended:
        raise NotDefinedError(
            f"The relative flatness needs a layer that the forward pass uses, but `{name}` is not used."
        )
    holders = [id(p) for _, p in network.module.named_parameters(remove_duplicate=False)]
    if holders.count(id(linear.weight)) > 1:
        raise NotDefinedError(
            f"The relative flatness needs a weight that is used once, but that of `{name}` is tied to another layer's."
        )
    return name, linear


def _ended(network: Network, modules: dict[str, nn.Module]) -> list[str]:
    """Names of the submodules with parameters in the order in which they finish in a forward pass.

    A submodule around others with parameters, such as one with a class token, finishes last and is none of them.
    """
    ended: list[str] = []
    handles = [
        module.register_forward_hook(lambda *_, name=name: ended.append(name))
        for name, module in modules.items()
        if name != HEAD and (isinstance(module, nn.Linear) or any(True for _ in module.parameters(recurse=False)))
    ]
    try:
        with torch.no_grad():
            network.forward(torch.zeros(2, *network.input_shape, dtype=network.dtype, device=network.device))
    finally:
        for handle in handles:
            handle.remove()
    inside = {name: {id(part) for part in modules[name].modules()} - {id(modules[name])} for name in ended}
    alone = {name for name in ended if not any(id(modules[other]) in inside[name] for other in ended)}
    return [name for name in ended if name in alone or isinstance(modules[name], nn.Linear)]


def _limits(network: Network, batch: Batch, *, layer: str | None, **params: Any) -> Parts:
    """Behind the last layer there is only the loss; behind another, three sweeps for each direction."""
    sweeps = 0 if layer is None else 3 * min(_linear_layer(network, layer)[1].weight.shape)
    return {UNSHARED: 1 + sweeps}


MEASURES = (
    Measure(
        "relative_flatness",
        relative_flatness,
        family="hessian",
        lower_is_better=True,
        source="Petzka et al. (2021), definition 3",
        needs=frozenset({"data", "labels", "loss"}),
        cost="jacobian",
        unit="loss",
        invariances=frozenset({"permutation", "layer_rescaling"}),
        signed=True,
        memory=Peak(layers=5, passes=4),
        limits=_limits,
    ),
)
