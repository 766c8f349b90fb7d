"""What a fitted network offers: its module and history, its outputs, and its state for files and pickles."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import cloudpickle
import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from skorch.callbacks import EarlyStopping
from torch import Tensor, nn

from sklearn_capacity._validation import failure_text
from sklearn_capacity.estimators._attributes import ATTRIBUTES, IMAGES_LAST, Check
from sklearn_capacity.estimators._data import check_data
from sklearn_capacity.estimators._outcome import within_range
from sklearn_capacity.estimators._parameters import NetworkParameters
from sklearn_capacity.graph import is_known
from sklearn_capacity.process_state import keeps_modes
from sklearn_capacity.training import PenalizedNet, TensorData

__all__ = ["FittedNetwork"]

_PREDICTION_CHUNK = 1024


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
        """The module's outputs in eval mode, shape (n, n_outputs)."""
        if not self.__sklearn_is_fitted__():
            check_is_fitted(self)  # which takes a while
        X = check_data(self, X, reset=False)
        self.net_._set_training(False)
        with torch.no_grad():
            chunks = [self.net_.infer(chunk) for chunk in self._chunks(X)]
        outputs = torch.cat(chunks) if len(chunks) > 1 else chunks[0]
        if not within_range(outputs).item():
            raise ValueError(
                f"X must have finite outputs in the network's {self._dtype}, got samples whose outputs are infinite, "
                "nan or close to overflow. Scale X as in `fit`."
            )
        return outputs.cpu().numpy()

    def _chunks(self, X: np.ndarray) -> Iterator[Tensor]:
        """X in parts; clones if the module may work in place, since a CPU tensor may share the user's memory."""
        device, size = torch.device(self.net_.device), max(self.batch_size, _PREDICTION_CHUNK)
        chunks = (TensorData(X[start : start + size], device=device).X for start in range(0, len(X), size))
        return chunks if _keeps_input(self.net_.module_) else (chunk.clone() for chunk in chunks)

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


def _keeps_input(module: nn.Module) -> bool:
    """Whether a module begins with a linear layer of torch or of this package, which cannot write to its input."""
    if not is_known(module):
        return False
    plain = (p for p in module.modules() if type(p).forward not in (nn.Sequential.forward, nn.Flatten.forward))
    return isinstance(next(plain, None), nn.Linear | nn.Conv2d)
