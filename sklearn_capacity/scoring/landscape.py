"""Measures as functions of two weights of a network, and the weights themselves: data for figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .._validation import NotDefinedError, as_list, check_integer, check_interval, closest, shown
from ..graph import private_copy
from ..process_state import keeps_modes
from .find_network import resolve
from .measurement import Session
from .requests import parse_measures

__all__ = ["MeasureLandscape", "measure_landscape", "network_weights"]

#: A weight: the name of its parameter and its index in it.
Place = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class MeasureLandscape:
    """Measures over a grid of two weights.

    Attributes
    ----------
    names : (str, str)
        The two weights, such as "0.weight[0, 0]".
    x, y : ndarray
        Values of the first and of the second weight.
    here : (float, float)
        Values of the two weights in the model.
    values : dict of str to ndarray of shape (len(y), len(x))
        Values by label of the measure.
    """

    names: tuple[str, str]
    x: np.ndarray
    y: np.ndarray
    here: tuple[float, float]
    values: dict[str, np.ndarray]


@keeps_modes
def measure_landscape(
    model: Any,
    X: Any,
    y: Any = None,
    *,
    weights: Sequence[Place] | None = None,
    measures: Any = ("fisher_rao_norm", "l2_path_norm"),
    half_width: float | None = None,
    resolution: int = 25,
    loss: str | None = None,
    classes: Any = None,
) -> MeasureLandscape:
    """Evaluate measures of a network while two of its weights vary over a grid around 0.

    Parameters
    ----------
    model, X, y, loss, classes
        As in `measure_capacity`. The model does not change.
    weights : two of (name of a parameter, index), default=None
        None selects the first entry of the first and of the last matrix or kernel.
    measures : str, list of str or dict, default=("fisher_rao_norm", "l2_path_norm")
        As in `measure_capacity`.
    half_width : float > 0, default=None
        The grid runs from -half_width to half_width; None is twice the larger absolute value of the two weights.
    resolution : int >= 2, default=25
        Number of points per axis.

    Returns
    -------
    MeasureLandscape

    Raises
    ------
    ValueError
        For an unknown parameter or an index out of its range.

    Notes
    -----
    The network is traced once and measured resolution^2 times.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity.scoring.landscape import measure_landscape
    >>> net = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    >>> land = measure_landscape(net, torch.ones(1, 1), measures="l1_path_norm", half_width=2.0, resolution=3)
    >>> land.values["l1_path_norm"].round(6).tolist()  # |w_1 w_2|
    [[4.0, 0.0, 4.0], [0.0, 0.0, 0.0], [4.0, 0.0, 4.0]]
    """
    requests, _ = parse_measures(list(measures) if isinstance(measures, tuple) else measures)
    check_integer("resolution", resolution, 2)
    session = Session(model, X, y, loss=loss, classes=classes)
    places = [_place(session.network.parameters, *place) for place in _chosen(session.network.parameters, weights)]
    here = tuple(float(parameter.detach()[index]) for _, parameter, index in places)
    if half_width is None:
        half_width = 2 * max(map(abs, here)) or 1.0
    half_width = check_interval("half_width", half_width, 0, closed="neither")
    grid = np.linspace(-half_width, half_width, resolution)
    values = {request.label: np.empty((resolution, resolution)) for request in requests}
    for i, j in np.ndindex(resolution, resolution):
        for (_, parameter, index), value in zip(places, (grid[j], grid[i]), strict=True):
            parameter.data[index] = float(value)
        moved = session.renewed()
        for request in requests:
            values[request.label][i, j] = moved.run(request).value
    names = tuple(f"{name}[{', '.join(map(str, index))}]" for name, _, index in places)
    return MeasureLandscape(names, grid, grid.copy(), here, values)  # type: ignore[arg-type]


def _chosen(parameters: Mapping[str, Tensor], weights: Sequence[Place] | None) -> Sequence[Place]:
    if weights is not None:
        weights = as_list("weights", weights)
        if len(weights) != 2 or not all(isinstance(place, Sequence) and len(place) == 2 for place in weights):
            raise ValueError(f"`weights` must be two pairs (name of a parameter, index), got {shown(weights)}.")
        return weights
    matrices = [(name, parameter) for name, parameter in parameters.items() if parameter.dim() > 1]
    if not matrices or sum(parameter.numel() for _, parameter in matrices) < 2:
        raise NotDefinedError("The network has no two trained weights to vary. Name them with `weights`.")
    (first, parameter), (last, other) = matrices[0], matrices[-1]
    ends = ((0,) * parameter.dim(), (0,) * other.dim() if last != first else tuple(n - 1 for n in other.shape))
    return [(first, ends[0]), (last, ends[1])]


def _place(parameters: Mapping[str, Tensor], name: str, index: Any) -> tuple[str, Tensor, tuple[int, ...]]:
    if name not in parameters:
        raise ValueError(f"`weights` must name trained parameters, got {name!r}. {closest(name, parameters)}".rstrip())
    parameter, index = parameters[name], tuple(index)
    if len(index) != parameter.dim() or not all(0 <= i < n for i, n in zip(index, parameter.shape, strict=True)):
        raise ValueError(f"`weights` must index `{name}` of shape {tuple(parameter.shape)}, got {index}.")
    return name, parameter, index


@keeps_modes
def network_weights(model: Any, *, initial: bool = False) -> np.ndarray:
    """All entries of the matrices and kernels of a network.

    Parameters
    ----------
    model : estimator, skorch net, nn.Module or scikit-learn network
        As in `measure_capacity`.
    initial : bool, default=False
        The weights before training, which estimators of this package store.

    Returns
    -------
    ndarray of shape (n_weights,)
        Effective weights where a layer is parametrised; without biases and batch norms; tied tensors count once.

    Examples
    --------
    >>> from torch import nn
    >>> from sklearn_capacity.scoring.landscape import network_weights
    >>> network_weights(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))).shape
    (6,)
    """
    subject = resolve(model)
    module = private_copy(subject.module)  # in eval mode, since a spectral normalisation iterates in train mode
    if initial:
        if subject.initial_state is None:
            raise NotDefinedError(
                "The weights before training are known only for estimators of this package. Pass initial=False."
            )
        module.load_state_dict(subject.initial_state)
    by_identity: dict[int, Tensor] = {}
    with torch.no_grad():
        for submodule in module.modules():
            for tensor in _direct_weights(submodule):
                if tensor.dim() > 1:
                    by_identity.setdefault(id(tensor), tensor)
        if not by_identity:
            raise NotDefinedError(f"`{type(module).__name__}` has no matrix or kernel.")
        return np.concatenate([tensor.detach().cpu().double().numpy().ravel() for tensor in by_identity.values()])


def _direct_weights(submodule: nn.Module) -> list[Tensor]:
    """Tensors that a module itself computes with: a parametrisation's result, not its parameters."""
    if isinstance(submodule, parametrize.ParametrizationList):
        return []
    tensors: list[Tensor] = list(submodule.parameters(recurse=False))
    if parametrize.is_parametrized(submodule):
        tensors += [getattr(submodule, name) for name in submodule.parametrizations]  # type: ignore[union-attr]
    return tensors
