"""Checks after training: for an interrupt, weights that are not finite, and a network no better than a constant."""

from __future__ import annotations

import math
import sys
import warnings
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor, nn

from sklearn_capacity._validation import CapacityWarning, DivergenceError, warn
from sklearn_capacity.graph.outputs import normalizing_call
from sklearn_capacity.process_state import computing, keeps_random_numbers
from sklearn_capacity.training import PenalizedNet, TensorBatch, TensorData

__all__ = [
    "check_finite",
    "warn_of_failure",
    "warn_of_interrupt",
    "warn_of_normalized_outputs",
    "within_range",
]

#: number of optimiser steps after which a network no better than a constant counts as a failure, not as a short fit
SETTLED = 100
#: a loss of this many times that of zero outputs is a failure after any number of steps
GROSS = 10.0
#: About the loss of an untrained network on standardised data.
ORDINARY_LOSS = 1.0
#: with a loss below this share of the best constant's, a network with equal outputs has not failed
SUSPECT = 0.9
#: inputs whose root mean square is outside this range are named as a cause
ORDINARY_SCALE = (0.1, 10.0)
#: number of samples that are examined before training
_FEW = 8
_ENDING_NAMES = {"probabilities": "softmax", "log_probabilities": "log-softmax", "one_probability": "sigmoid"}


def warn_of_interrupt(net: PenalizedNet) -> None:
    """Warn if Ctrl-C has ended training: skorch returns normally, so a search would not notice."""
    if net.interrupted_:
        warn(
            f"Training was interrupted {net.interrupted_}. The estimator keeps what was learnt until then; a search "
            "continues with its next fit. Fit again to train to the end."
        )


def check_finite(net: PenalizedNet, data: TensorData) -> tuple[Tensor, float]:
    """The outputs for some training samples and their loss; raises if these or the weights are not finite.

    The recorded losses precede the steps that they lead to, so only this check sees what the last step has done.
    Buffers are not checked, since a mask may contain infinities; those of batch norm affect the outputs.
    """
    outputs = first_outputs(net, data, net.batch_size)
    loss = _loss(net, outputs, data[: len(outputs)])
    finite = [within_range(outputs), loss.isfinite(), *(p.isfinite().all() for p in net.module_.parameters())]
    if not torch.stack(finite).all().item():
        epoch = net.history[-1]
        raise DivergenceError(
            f"Training diverged in epoch {epoch['epoch']}: after its last step the network's weights, outputs or loss "
            f"are no longer finite; the epoch's training loss was {epoch.get('train_loss')}. "
            f"Lower `learning_rate` ({net.lr:g}) or scale the data."
        )
    return outputs, loss.item()


def within_range(outputs: Tensor) -> Tensor:
    """Whether outputs and their differences are finite, as a tensor of one bool."""
    lowest, highest = outputs.aminmax()  # nan, if one is
    return torch.maximum(highest, -lowest) <= torch.finfo(outputs.dtype).max / 2


def first_outputs(net: PenalizedNet, data: TensorData, n_samples: int) -> Tensor:
    """The module's outputs in eval mode for the first samples."""
    net._set_training(False)
    with computing(), torch.no_grad():
        return net.module_(data.X[:n_samples].clone())


# ---- no better than a constant ------------------------------------------------------------------


def warn_of_failure(
    net: PenalizedNet,
    data: TensorData,
    outputs: Tensor,
    loss: float,
    *,
    partial: bool,
    stops_early: bool,
    is_held: bool,
) -> None:
    """Warn if the trained network is worse than the best constant prediction, or predicts a constant.

    A short training, one that stops early or one with a penalty may legitimately end near the constant, so there only
    a loss far above it, or a dead network, counts. The targets of one call of `partial_fit` may all be the same, and
    the best constant then has no loss: there, the loss must also be far above that of an untrained network.
    The epoch's recorded loss and that of a first batch are a first filter that costs little; the recorded one is
    averaged over the epoch and includes dropout, so the loss of the final network decides.

    Parameters
    ----------
    net : PenalizedNet
        The trained net.
    data : TensorData
    outputs : Tensor of shape (m, n_outputs)
        Outputs for the first m samples.
    loss : float
        Their loss.
    partial : bool
        Whether training continues with other samples.
    stops_early : bool
        Whether training may have stopped early.
    is_held : bool
        Whether a penalty may keep the network from learning.
    """
    if net.interrupted_ or "train_loss" not in net.history[-1]:
        return
    constant, zero = _trivial_losses(net, data, outputs.shape[1])
    n_steps = sum(epoch.get("train_batch_count", 0) for epoch in net.history)
    settled = n_steps >= SETTLED and not (partial or stops_early) and not is_held and constant > 0
    last = net.history[-1, "train_loss"]
    gross = GROSS * max(constant, zero, ORDINARY_LOSS if partial else 0.0)
    dead = last > SUSPECT * constant > 0 and not is_held and _is_constant(outputs, data.X[: len(outputs)])
    if not (max(last, loss) > gross or dead or (settled and last > constant)):
        return
    loss = _loss_of(net, data)
    failed = loss > gross or (settled and loss > constant)
    if not failed and not (dead and loss > SUSPECT * constant):
        return
    what = "the same output for every sample and " if dead else ""
    _warn_once(
        f"Training ended in epoch {len(net.history)} with {what}a training loss of {loss:.4g}, no better than the "
        f"{constant:.4g} of the best constant prediction; the first epoch's loss was "
        f"{net.history[0].get('train_loss', math.nan):.4g}. {_cure(net, data, slow=not dead and loss <= gross)}",
        ConvergenceWarning,
        once=partial,
    )


def _trivial_losses(net: PenalizedNet, data: TensorData, n_outputs: int) -> tuple[float, float]:
    """Training losses of the best constant outputs and of outputs that are all zero."""
    with torch.no_grad():
        best = net.criterion_.best_constant(data.y, n_outputs, data.sample_weight)  # (n_outputs,)
        constants = torch.stack([best, torch.zeros_like(best)])  # (2, n_outputs)
        constant, zero = [_loss(net, c.expand(len(data), -1), data[:]).item() for c in constants]
    return constant, zero


def _loss(net: PenalizedNet, outputs: Tensor, batch: TensorBatch) -> Tensor:
    """The weighted loss, averaged over the samples of the batch."""
    return net.criterion_(outputs, batch[1], sample_weight=batch.sample_weight)


def _loss_of(net: PenalizedNet, data: TensorData) -> float:
    """The training loss of the network in its current state, in eval mode."""
    net._set_training(False)
    size = max(net.batch_size, 512)
    with computing(), torch.no_grad():
        chunks = (data[start : start + size] for start in range(0, len(data), size))
        losses = [_loss(net, net.infer(chunk[0].clone()), chunk) * len(chunk[0]) for chunk in chunks]
        return (torch.stack(losses).sum() / len(data)).item()


def _is_constant(outputs: Tensor, X: Tensor) -> bool:
    """Whether samples that differ all have the same output."""
    spread = (outputs - outputs[:1]).abs().max()
    return bool((spread <= 1e-6 * outputs.abs().max()) & (X != X[:1]).any())


def _cure(net: PenalizedNet, data: TensorData, *, slow: bool) -> str:
    """What to try; `slow` marks a training that may only have been too short."""
    cures = [f"Lower `learning_rate` ({net.lr:g})"]
    if slow:
        cures = [f"Change `learning_rate` ({net.lr:g})", "train for more epochs"]
    y = data.y if data.y is not None and data.y.is_floating_point() else None
    for name, values, scaler in (("X", data.X, "StandardScaler"), ("y", y, "TransformedTargetRegressor")):
        scale = 1.0 if values is None else values.double().square().mean().sqrt().item()
        if not ORDINARY_SCALE[0] <= scale <= ORDINARY_SCALE[1]:
            cures.append(f"scale {name}, whose root mean square is {scale:.3g}, to about 1 ({scaler})")
    return ", or ".join(cures) + "."


# ---- outputs that are not logits -----------------------------------------------------------------


def warn_of_normalized_outputs(net: PenalizedNet, data: TensorData) -> None:
    """Warn if a classifier's module ends in a softmax, a log-softmax or a sigmoid, which the loss itself applies."""
    with keeps_random_numbers():  # a module may draw random numbers in eval mode, too
        outputs = first_outputs(net, data, _FEW)
        total = outputs.sum(dim=1) if (outputs >= 0).all() else outputs.exp().sum(dim=1)  # 1, if normalised
        normalized = bool(((total - 1).abs() < 1e-3).all())
        if not normalized and not ((outputs >= 0) & (outputs <= 1)).all():
            return
        name, ending = _ending(net.module_, data.X[:_FEW].clone())
    if not normalized and ending != "one_probability":
        return
    ending = ending or ("probabilities" if (outputs >= 0).all() else "log_probabilities")
    harm = "training is slow and stops improving early"
    if ending == "log_probabilities":
        harm = "training is unaffected, but penalties on the Jacobian are those of the log-probabilities"
    _warn_once(
        f"`module` ends in a {_ENDING_NAMES[ending]}, in {name}, but the loss expects logits: {harm}. "
        "Remove it; `predict_proba` returns the probabilities of the logits.",
        CapacityWarning,
    )


def _ending(module: nn.Module, X: Tensor) -> tuple[str, str | None]:
    """A description of the layer that computes the outputs, and which of the three functions it is, if any."""
    makers: list[tuple[str, nn.Module, Any]] = []
    handles = [
        layer.register_forward_hook(lambda layer, args, output, name=name: makers.append((name, layer, output)))
        for name, layer in module.named_modules()
        if name
    ]
    try:
        with computing(), torch.no_grad():
            returned, ending = normalizing_call(module, X)
    finally:
        for handle in handles:
            handle.remove()
    for name, layer, output in makers:  # the innermost come first
        if output is returned:
            return f"its layer {name!r} ({type(layer).__name__})", ending
    return "its `forward`", ending


# ---- searches -----------------------------------------------------------------------------------

_PASSED_ON = ("sklearn_capacity.", "sklearn.", "skorch.", "joblib.", "dask.", "distributed.")
_SEARCHES = ("sklearn.model_selection.", "joblib.", "dask.", "distributed.")
_warned: set[tuple[type, str, int]] = set()  # warnings that searches have already issued


def _warn_once(message: str, category: type[Warning], *, once: bool = False) -> None:
    """Warn at the user's line; in a search, where hundreds of fits may fail, or if `once`, once per line and process.

    Python's filter cannot do this: the texts contain different numbers, and joblib resets the filter for each task.
    """
    frame, level, repeated = sys._getframe(1), 2, once
    while frame.f_back is not None and (name := frame.f_globals.get("__name__", "")).startswith(_PASSED_ON):
        repeated |= name.startswith(_SEARCHES)
        frame, level = frame.f_back, level + 1
    place = (category, frame.f_code.co_filename, frame.f_lineno)
    if repeated and place in _warned:
        return
    if repeated:
        _warned.add(place)
        message += " Other fits may have the same problem; this warning is issued once."
    warnings.warn(message, category, stacklevel=level)
