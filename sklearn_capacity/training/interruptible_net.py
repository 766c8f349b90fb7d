"""A skorch net that says where Ctrl-C ended its training."""

from __future__ import annotations

import dis
from typing import Any

from skorch import NeuralNet

__all__ = ["InterruptibleNet"]


class InterruptibleNet(NeuralNet):
    """A net that keeps what was learnt until an interrupt, as skorch's, but raises it if nothing was.

    A subclass calls `note_step` after each step.

    Parameters
    ----------
    module, criterion, **kwargs
        As in ``skorch.NeuralNet``.

    Examples
    --------
    See :class:`PenalizedNet`.
    """

    interrupted_ = ""  # a description of where Ctrl-C ended the last training
    # number of epochs before this training, None until its loop begins; and the epoch of its last step
    _begun_at_: int | None = None
    _stepped_in_ = 0

    def note_step(self) -> None:
        """Record that this epoch has had a step."""
        if self._stepped_in_ != len(self.history):  # skorch inspects every attribute that is set
            self._stepped_in_ = len(self.history)

    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> InterruptibleNet:
        self._stepped_in_ = len(self.history)
        try:
            self._begun_at_ = self._stepped_in_
            return super().fit_loop(X, y, epochs, **kwargs)
        except KeyboardInterrupt as error:
            self._note_interrupt(error)
            raise

    def partial_fit(self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any) -> InterruptibleNet:
        """Like skorch's, where an interrupt ends training, but raises the interrupt if nothing has been trained."""
        self.interrupted_, self._begun_at_ = "", None
        try:
            return super().partial_fit(X, y, classes, **fit_params)
        except Exception as error:
            if not self.interrupted_:
                raise
            raise KeyboardInterrupt(
                f"Training was interrupted {self.interrupted_}, and `callbacks` cannot stop there: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _note_interrupt(self, error: KeyboardInterrupt) -> None:
        """Record where Ctrl-C came, unless a callback has stopped training at the end of an epoch."""
        if self._stepped_in_ < len(self.history):
            self.history.pop()  # an epoch without a step
        if self._begun_at_ in (None, self._stepped_in_):
            self.interrupted_ = "before its first step"
            return
        self.history.record("epoch", len(self.history))  # read by callbacks, and possibly not written yet
        has_ended = "dur" in self.history[-1]  # recorded before any callback stops training
        if not (has_ended and _is_raised(error)):
            self.interrupted_ = f"{'after' if has_ended else 'in'} epoch {len(self.history)}"

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        """Raise the interrupt again if nothing has been trained."""
        if self._begun_at_ is None:  # skorch caught an interrupt at the beginning of `fit_loop`
            self.interrupted_ = "before its first step"
        if self.interrupted_ and self._begun_at_ in (None, self._stepped_in_):
            raise KeyboardInterrupt(f"Training was interrupted {self.interrupted_}.")
        super().on_train_end(net, **kwargs)


def _is_raised(error: BaseException) -> bool:
    """Whether Python code raised the exception, as when a callback stops training."""
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    return frame is not None and frame.tb_frame.f_code.co_code[frame.tb_lasti] == dis.opmap["RAISE_VARARGS"]
