"""What a fitted network offers: its module and history, its outputs, and its state for files and pickles."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import cloudpickle
import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import EarlyStopping
from torch import Tensor, nn

from sklearn_capacity._validation import failure_text
from sklearn_capacity.estimators._attributes import ATTRIBUTES, IMAGES_LAST, Check
from sklearn_capacity.estimators._data import check_data, sound_samples
from sklearn_capacity.estimators._parameters import NetworkParameters
from sklearn_capacity.graph import channels_last
from sklearn_capacity.process_state import computing, keeps_modes
from sklearn_capacity.training import DirectPass, PenalizedNet, direct_pass, to_tensor

__all__ = ["FittedNetwork"]

_FEW = 1 << 14  # values of X up to which a forward pass takes no longer than looking for a faster one
_ROWS = 1024  # samples at once of which the size between two layers is not known
_CACHED = 1 << 18  # values that each thread may hold between two layers


class FittedNetwork(NetworkParameters):
    """Everything that uses the trained skorch net."""

    _fitted_attributes: ClassVar[dict[str, Check]] = ATTRIBUTES  # attributes that a file may set

    # set by a fit
    net_: PenalizedNet
    input_shape_: tuple[int, ...]
    _dtype: np.dtype

    @property
    def module_(self) -> nn.Module:
        """The trained network, which returns logits or outputs."""
        return self._fitted_net("module_").module_

    @property
    def history_(self) -> Any:
        """skorch's History: one dict per epoch, with ``train_loss``, ``dur`` and others."""
        return self._fitted_net("history_").history

    @property
    def best_epoch_(self) -> int:
        """Under early stopping, the epoch whose weights the network has, counted from 1."""
        if not self.early_stopping:
            raise AttributeError(f"{type(self).__name__} has no attribute 'best_epoch_' without early stopping.")
        net = self._fitted_net("best_epoch_")
        stopping = [callback for _, callback in net.callbacks_ if isinstance(callback, EarlyStopping)]
        if hasattr(stopping[-1], "best_epoch_"):
            return stopping[-1].best_epoch_
        best, threshold = 1, math.inf
        for epoch in net.history:  # for an estimator that was saved and loaded
            if epoch["valid_loss"] < threshold:
                best, threshold = epoch["epoch"], epoch["valid_loss"] - self.tol
        return best

    def __sklearn_is_fitted__(self) -> bool:
        return "net_" in vars(self)

    def _fitted_net(self, name: str) -> PenalizedNet:
        if "net_" not in vars(self):
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r} before `fit`.")
        return self.net_

    # ---- prediction -------------------------------------------------------------------------

    @keeps_modes
    def _outputs(self, X: Any) -> np.ndarray:
        """The module's outputs in eval mode, shape (n, n_outputs), in any order of memory."""
        if not self.__sklearn_is_fitted__():
            check_is_fitted(self)  # which takes a while
        self.net_._set_training(False)
        torch.set_grad_enabled(False)  # `keeps_modes` restores it
        samples = sound_samples(self, X)
        parts = [] if samples is None else self._evaluated(samples, checked=False)
        if not parts:
            parts = self._evaluated(check_data(self, X, reset=False), checked=True)
        outputs = (torch.cat(parts) if len(parts) > 1 else parts[0]).cpu()
        in_order = outputs if outputs.is_contiguous() else outputs.permute(*range(outputs.dim())[::-1])
        lowest, highest = (bound.item() for bound in in_order.aminmax())  # nan, if one is; a copy if not in order
        most = torch.finfo(outputs.dtype).max / 2  # differences are finite, too
        if not (-most <= lowest and highest <= most):
            raise ValueError(
                f"X must have finite outputs in the network's {self._dtype}, got samples whose outputs are infinite, "
                "nan or close to overflow. Scale X as in `fit`."
            )
        return outputs.numpy()

    def _evaluated(self, X: np.ndarray, *, checked: bool) -> list[Tensor]:
        """The module's outputs, in parts; none if X has not been checked and a value may not be finite."""
        net, device = self.net_, torch.device(self.net_.device)
        forward, n_rows = DirectPass((net.module_,)), _ROWS
        if X.size > _FEW:
            forward = direct_pass(net.module_, X.ndim)
            n_rows = self._rows_at_once(X, forward.width, device)
        outputs = []
        for start in range(0, len(X), n_rows):
            chunk = X[start : start + n_rows]
            if chunk.dtype != self._dtype:
                with np.errstate(over="ignore"):  # the sum is not finite then
                    chunk = chunk.astype(self._dtype)
            x = to_tensor(chunk, device)
            if not (checked or math.isfinite(x.sum())):  # which may overflow, but is not finite if a value is not
                return []
            x = x if forward.keeps_input else x.clone()  # a CPU tensor may share the user's memory
            with computing():
                outputs.append(forward(channels_last(x) if net.images_last_ else x))
        return outputs

    def _rows_at_once(self, X: np.ndarray, width: int, device: torch.device) -> int:
        """So many samples that the values between two layers stay in a processor's cache; a guess for other layers."""
        if device.type != "cpu":
            return max(self.batch_size, _ROWS)
        cached = _CACHED * torch.get_num_threads()
        if width:
            n_parts = max(1, round(len(X) * width / cached))  # equal parts: a small one would cost as much as its calls
            return max(_ROWS // 4, -(-len(X) // n_parts))
        return max(self.batch_size, min(_ROWS, cached // 2 // X[0].size))

    # ---- files and pickles ------------------------------------------------------------------

    def _fitted_values(self) -> dict[str, Any]:
        """The fitted attributes that a file stores; other attributes set by the user are left out."""
        values = {name: getattr(self, name) for name in self._fitted_attributes if hasattr(self, name)}
        return {**values, IMAGES_LAST: bool(self.net_.images_last_)}

    def __getstate__(self) -> dict[str, Any]:
        # by value where necessary, so that modules of __main__ and lambdas can be pickled
        try:
            return {"by_value": cloudpickle.dumps(super().__getstate__())}
        except RuntimeError as error:  # from torch, for parametrised modules
            raise TypeError(
                f"{type(self).__name__} cannot be pickled because its `module` cannot: {failure_text(error)} Use "
                "sklearn_capacity.save, or pass the module's class."
            ) from error

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(cloudpickle.loads(state["by_value"]))
