"""What a training has ended in: an interrupt, a network that is no longer finite."""

from __future__ import annotations

import torch

from sklearn_capacity._validation import warn
from sklearn_capacity.process_state import computing
from sklearn_capacity.training import PenalizedNet, TensorData

__all__ = ["check_finite", "tell_interrupt"]


def tell_interrupt(net: PenalizedNet) -> None:
    """Warn if Ctrl-C has ended the training, which skorch takes for its end: in a search it would pass unseen."""
    if net.history and "dur" not in net.history[-1]:  # the time of an epoch is taken at its end, before any stop
        net.history.record("epoch", len(net.history))  # which the interrupt may have come before
        warn(
            f"Training was interrupted in epoch {net.history[-1, 'epoch']}, and the network is kept as it "
            "was then; a search goes on with its next fit. Fit again for a network that is trained to its end."
        )


def check_finite(net: PenalizedNet, data: TensorData) -> None:
    """Raise if the weights, or the outputs for some training samples, are not finite after the last step.

    Buffers are left out: a mask may hold infinities. Those of batch norm show in the outputs.
    """
    sample = data.X[: net.batch_size].clone()
    net._set_training(False)
    with computing(), torch.no_grad():
        tensors = [*net.module_.parameters(), net.module_(sample)]
        finite = torch.stack([t.isfinite().all() for t in tensors]).all().item()
    if not finite:
        epoch = net.history[-1]
        raise ValueError(
            f"Training diverged in epoch {epoch['epoch']}: the network is no longer finite, its last training loss "
            f"was {epoch.get('train_loss')}. Lower `learning_rate` ({net.lr:g}) or scale the data."
        )
