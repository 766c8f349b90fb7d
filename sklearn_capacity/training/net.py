"""skorch nets that add penalties to the training loss and keep the data on the device."""

from __future__ import annotations

import inspect
import math
from typing import Any

import cloudpickle
import torch
from skorch import NeuralNet, NeuralNetClassifier, NeuralNetRegressor
from skorch.callbacks import Callback, Checkpoint, LoadInitState, PassthroughScoring, TrainEndCheckpoint
from skorch.utils import TeeGenerator, is_dataset
from torch import Tensor

from sklearn_capacity.derivatives.modes import has_parts_in_training
from sklearn_capacity.graph import channels_last
from sklearn_capacity.losses import CrossEntropyLoss, SquaredLoss
from sklearn_capacity.penalties import SharedPass, forward_pass
from sklearn_capacity.process_state import computing, keeps_modes
from sklearn_capacity.training.batches import TensorBatch, TensorBatches, TensorData
from sklearn_capacity.training.interruptible_net import InterruptibleNet
from sklearn_capacity.training.objectives import (
    Objective,
    begins_with_closure,
    calls_closure_once,
    step_with_gradients,
)
from sklearn_capacity.training.penalty_terms import PenaltyTerm, penalty_terms
from sklearn_capacity.training.stack_gradients import StackGradients, stack_gradients
from sklearn_capacity.training.unobserved_step import unobserved_step

__all__ = ["PenalizedClassifier", "PenalizedNet", "PenalizedRegressor"]

_BATCH_EVENTS = ("on_batch_begin", "on_batch_end", "on_grad_computed")
#: whoever overrides one of these, in a subclass or on a net, may depend on autograd's graph of a step
_STEP_METHODS = ("_forward", "_loss", "infer", "train_step", "train_step_single")


class PenalizedNet(InterruptibleNet):
    """A skorch net that minimises ``loss + sum of strength * penalty``.

    Parameters
    ----------
    module, criterion, **kwargs
        As in ``skorch.NeuralNet``. A criterion whose ``forward`` accepts ``sample_weight`` receives
        the weights of the batch.
    penalty : callable, default=None
        ``penalty(module, X, sample_weight=None)`` returns a differentiable scalar, for example
        :func:`sklearn_capacity.penalties.frobenius_penalty`, or a ``functools.partial`` of it. It is
        evaluated on training batches only, with the module in training mode. `sample_weight` may be missing from its
        signature. One with a parameter ``y`` or ``criterion`` receives the batch's targets or the loss; one with
        ``shared`` receives the loss's forward pass, a :class:`sklearn_capacity.penalties.SharedPass`, so it need not
        run its own.
    penalty_strength : float, default=1.0
    penalties : sequence of (penalty, strength), default=()
        Further penalties.
    iterator_train, iterator_valid : default=TensorBatches
        Iterators over batches of tensors that stay on the device.
    iterator_train__shuffle : bool, default=True
    dataset : default=TensorData
    train_split : default=None
        Unlike skorch's default, None uses all samples for training.

    Notes
    -----
    The history's ``train_loss`` is the loss alone, averaged over an epoch while the weights change; ``train_penalty``
    is the penalty before multiplication by its strength. The second of several penalties is ``train_penalty_2``, and so
    on; one of strength 0 is not evaluated. Entries per batch are stored only if a callback uses batches.

    Examples
    --------
    >>> import numpy as np, torch
    >>> from sklearn_capacity.penalties import frobenius_penalty
    >>> from sklearn_capacity.training import PenalizedClassifier
    >>> net = PenalizedClassifier(torch.nn.Linear(2, 2), penalty=frobenius_penalty, penalty_strength=0.1,
    ...                           max_epochs=2, verbose=0)
    >>> X, y = np.random.default_rng(0).normal(size=(20, 2)).astype("float32"), np.arange(20) % 2
    >>> sorted(key for key in net.fit(X, y).history[-1] if key.startswith("train_"))
    ['train_batch_count', 'train_loss', 'train_loss_best', 'train_penalty']
    """

    _mode_: bool | None = None  # the module's last mode: training or not
    _observed_ = False
    loss_is_criterion_ = False  # whether the loss is the criterion's value, without further steps
    _evaluates_once_ = True  # whether a step calls its closure once, and first
    _gradients_: StackGradients | None = None  # computes the gradients in this epoch, or None where autograd does
    _terms_: tuple[list, list[PenaltyTerm]] | None = None  # penalties with strengths, and the terms built from them
    images_last_ = False  # whether the module receives channels-last images

    def __init__(
        self,
        module: Any,
        *,
        criterion: Any,
        penalty: Any = None,
        penalty_strength: float = 1.0,
        penalties: Any = (),
        iterator_train: Any = TensorBatches,
        iterator_train__shuffle: bool = True,
        iterator_valid: Any = TensorBatches,
        dataset: Any = TensorData,
        train_split: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            module,
            criterion=criterion,
            iterator_train=iterator_train,
            iterator_train__shuffle=iterator_train__shuffle,
            iterator_valid=iterator_valid,
            dataset=dataset,
            train_split=train_split,
            **kwargs,
        )
        self.penalty = penalty
        self.penalty_strength = penalty_strength
        self.penalties = penalties

    @property
    def _default_callbacks(self) -> list[tuple[str, Callback]]:
        # run_single_epoch records the losses, from sums that stay on the device
        return [(name, cb) for name, cb in super()._default_callbacks if not isinstance(cb, PassthroughScoring)]

    def initialize_criterion(self) -> PenalizedNet:
        super().initialize_criterion()
        self.weighs_samples_ = "sample_weight" in inspect.signature(self.criterion_.forward).parameters
        # skorch's `get_loss` looks for containers, and for probabilities in place of logits
        plain = type(self).get_loss in (NeuralNet.get_loss, NeuralNetClassifier.get_loss)
        self.loss_is_criterion_ = plain and not isinstance(self.criterion_, torch.nn.NLLLoss)
        return self

    def get_dataset(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """The data as tensors where the module is, in its precision."""
        if self.dataset is not TensorData or is_dataset(X):
            return super().get_dataset(X, y)
        dtype = next((p.dtype for p in self.module_.parameters() if p.is_floating_point()), None)
        return TensorData(X, y, sample_weight, device=self.device, dtype=dtype)

    # ---- one step ---------------------------------------------------------------------------

    def _set_training(self, training: bool = True) -> None:
        # not for every batch, which is slow and would unfreeze what a callback has frozen
        if self._mode_ is not training or self._was_switched():
            super()._set_training(training)
            self._mode_ = training

    def _was_switched(self) -> bool:
        """Whether a user or a callback has switched the whole module since, or a part of it to training."""
        return not self.module_.training if self._mode_ else has_parts_in_training(self.module_)

    def infer(self, x: Any, **fit_params: Any) -> Any:
        with computing():
            if not isinstance(x, Tensor):
                return super().infer(x, **fit_params)
            x = x.to(self.device)  # as skorch does, which first looks for containers
            return self.module_(channels_last(x) if self.images_last_ else x, **fit_params)

    def _loss(self, prediction: Tensor, batch: Any) -> Tensor:
        weight = getattr(batch, "sample_weight", None)
        if weight is None or not self.weighs_samples_:
            if self.loss_is_criterion_ and isinstance(batch, TensorBatch):  # whose tensors are on the device
                return self.criterion_(prediction, batch[1])
            return self.get_loss(prediction, batch[1], X=batch[0], training=self._mode_)
        return self.criterion_(prediction, batch[1], sample_weight=weight)

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        self._set_training(True)
        if self._gradients_ is not None:
            loss, prediction = self._gradients_(batch[0], batch[1], batch.sample_weight)
            return {"loss": loss, "y_pred": prediction}
        X = batch[0].to(self.device)
        version = X._version
        terms = self._terms()
        shared = self._forward(X, terms, fit_params)
        loss = self._loss(shared.logits, batch)
        if terms and X._version != version:
            raise ValueError(
                "`module` must not modify its input in place, since the penalty needs it. "
                "Let the first operation return a new tensor, as nn.ReLU(inplace=False) does."
            )
        offered = {
            "y": batch[1],
            "criterion": self.criterion_,
            "sample_weight": getattr(batch, "sample_weight", None),
        }
        values = {term.key: term.value(shared, **offered) for term in terms}
        objective = sum((term.strength * values[term.key] for term in terms), start=loss)
        if not objective.requires_grad:
            raise ValueError(
                "`module` must return outputs that depend on a trained parameter, but these do not. Remove `detach` "
                "and `no_grad` from it, and `callbacks` that freeze every parameter."
            )
        objective.backward()
        return {"loss": loss, "y_pred": shared.logits, "objective": objective, **values}

    def _terms(self) -> list[PenaltyTerm]:
        """The active penalties, updated if a penalty or a strength has changed, as a callback may do at any step."""
        alone = [] if self.penalty is None else [(self.penalty, self.penalty_strength)]
        pairs = [*alone, *self.penalties]
        if self._terms_ is None or self._terms_[0] != pairs:
            self._terms_ = pairs, penalty_terms(pairs)
        return self._terms_[1]

    def _forward(self, X: Tensor, terms: list[PenaltyTerm], fit_params: dict[str, Any]) -> SharedPass:
        """The module's output for the loss, from a pass that penalties reuse if possible."""

        def infer(x: Tensor) -> Any:
            return self.infer(x, **fit_params)

        changed = fit_params or type(self).infer is not PenalizedNet.infer  # not simply the module at X
        if changed or not any(term.takes_shared_pass for term in terms):
            return SharedPass(self.module_, X, infer(X))
        return forward_pass(self.module_, X, infer)

    def train_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        if self._observed_:
            self.optimizer_.observe(*batch)
        steps: list[dict[str, Any]] = []

        def closure() -> Tensor:  # like skorch's, but a line search also sees the penalty
            self._zero_grad_optimizer()
            step = self.train_step_single(batch, **fit_params)
            steps.append(step)
            if self._listens_:
                named = TeeGenerator(self.get_all_learnable_params())
                self.notify("on_grad_computed", named_parameters=named, batch=batch, training=True)
            return step.pop("objective", step["loss"])

        with computing():
            if self._evaluates_once_ or self._gradients_ is not None:
                self._step_optimizer(closure)
            else:
                step_with_gradients(self.optimizer_, Objective(closure, self.module_, self._generators()))
        self.note_step()
        return steps[0]

    def _step_optimizer(self, step_fn: Any) -> None:
        for name in self._optimizers:
            unobserved_step(getattr(self, name + "_"))(step_fn)

    def _zero_grad_optimizer(self, set_to_none: bool | None = None) -> None:
        """Like skorch's; torch's own method also writes to a profile, which a small step would notice."""
        for name in self._optimizers:
            optimizer = getattr(self, name + "_")
            is_torchs = getattr(optimizer.zero_grad, "__func__", None) is torch.optim.Optimizer.zero_grad
            if set_to_none is False or not is_torchs:
                optimizer.zero_grad(*() if set_to_none is None else (set_to_none,))
                continue
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def _generators(self) -> list[torch.Generator]:
        """The generators of the iterator's transform and of the penalties."""
        offered = [getattr(self, "iterator_train__generator", None), *(g for t in self._terms() for g in t.generators)]
        return [generator for generator in offered if isinstance(generator, torch.Generator)]

    def validation_step(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        self._set_training(False)
        with computing(), torch.no_grad():
            prediction = self.infer(batch[0], **fit_params)
            return {"loss": self._loss(prediction, batch), "y_pred": prediction, **self._scores(prediction, batch[1])}

    def _scores(self, prediction: Tensor, y: Any) -> dict[str, Tensor]:
        """The values recorded for each validation batch besides its loss."""
        return {}

    # ---- one epoch --------------------------------------------------------------------------

    def _callbacks_listen(self) -> bool:
        """Whether a callback handles each batch or reads its history."""
        listens = any(
            isinstance(callback, PassthroughScoring | Checkpoint | TrainEndCheckpoint | LoadInitState)
            or any(getattr(type(callback), event) is not getattr(Callback, event) for event in _BATCH_EVENTS)
            for _, callback in self.callbacks_
        )
        return listens or any(getattr(type(self), event) is not getattr(PenalizedNet, event) for event in _BATCH_EVENTS)

    def begin_training(self) -> None:
        """Inspect the callbacks and the optimiser, which may have changed since the last training."""
        self._listens_ = self._callbacks_listen()
        self._mode_ = None
        # optimisers that need more than gradients receive the module, and the batch of each step
        self._observed_ = hasattr(self.optimizer_, "attach")
        if self._observed_:
            self.optimizer_.attach(self.module_, self.criterion_)
        self._evaluates_once_ = len(self._optimizers) > 1 or calls_closure_once(self.optimizer_)

    def _gradients_of(self, iterator: Any, fit_params: dict[str, Any]) -> StackGradients | None:
        """What computes an epoch's gradients without autograd, if nobody could notice."""
        methods = [(getattr(self, name), getattr(PenalizedNet, name)) for name in _STEP_METHODS]
        overridden = any(getattr(method, "__func__", None) is not original for method, original in methods)
        listens = self._listens_ or self._observed_ or overridden or fit_params or not self.loss_is_criterion_
        if listens or self._terms() or not begins_with_closure(self.optimizer_):
            return None
        if type(iterator) is not TensorBatches or iterator.transform is not None:  # a transform may be trained, too
            return None
        return stack_gradients(self.module_, self.criterion_, iterator.dataset)

    @keeps_modes
    def fit_loop(self, X: Any, y: Any = None, epochs: int | None = None, **kwargs: Any) -> PenalizedNet:
        self.begin_training()
        return super().fit_loop(X, y, epochs, **kwargs)

    def run_single_epoch(self, iterator: Any, training: bool, prefix: str, step_fn: Any, **fit_params: Any) -> None:
        """Like skorch's, but keeps the losses on the device and reads them once, at the end."""
        if iterator is None:
            return
        losses: dict[str, list[Tensor]] = {}
        sizes: list[int] = []
        self._gradients_ = self._gradients_of(iterator, fit_params) if training else None
        try:
            for batch in iterator:
                if self._listens_:
                    self.notify("on_batch_begin", batch=batch, training=training)
                step = step_fn(batch, **fit_params)
                sizes.append(len(batch[0]))
                for key in _recorded(step):
                    losses.setdefault(key, []).append(step[key].detach())
                if self._listens_:
                    self._record_batch(step, sizes[-1], prefix)
                    self.notify("on_batch_end", batch=batch, training=training, **step)
        finally:
            self._gradients_ = None
        self.history.record(f"{prefix}_batch_count", len(sizes))
        for key, values in losses.items():
            weights = torch.tensor(sizes, dtype=values[0].dtype, device=values[0].device)
            self.history.record(f"{prefix}_{key}", (torch.stack(values) @ weights).item() / sum(sizes))
        self._record_best(f"{prefix}_loss")

    def _record_best(self, name: str) -> None:
        """Record whether this epoch's value is below all previous ones, which skorch's callbacks need."""
        *earlier, last = self.history
        if name in last:
            best = next((epoch[name] for epoch in reversed(earlier) if epoch.get(f"{name}_best")), math.inf)
            self.history.record(f"{name}_best", last[name] < best)

    def _record_batch(self, step: dict[str, Any], size: int, prefix: str) -> None:
        for key in _recorded(step):
            self.history.record_batch(f"{prefix}_{key}", step[key].item())
        self.history.record_batch(f"{prefix}_batch_size", size)

    # ---- pickling ---------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        # skorch uses plain pickle for modules, which fails for classes of __main__ and for lambdas
        state = {**self.__dict__, "_terms_": None}
        kept = {key: state.pop(key) for key in ("device", "torch_load_kwargs")}
        return {**kept, "__cuda_dependent_attributes__": cloudpickle.dumps(state)}


def _recorded(step: dict[str, Any]) -> list[str]:
    """Names of a step's entries in the history: the loss, the accuracy and the penalties."""
    return [key for key in step if key in ("loss", "acc") or key.startswith("penalty")]


class PenalizedClassifier(PenalizedNet, NeuralNetClassifier):
    """:class:`PenalizedNet` for classification; the module returns logits.

    Examples
    --------
    See :class:`PenalizedNet`.
    """

    def __init__(self, module: Any, *, criterion: Any = CrossEntropyLoss, **kwargs: Any) -> None:
        super().__init__(module, criterion=criterion, **kwargs)

    def _scores(self, prediction: Tensor, y: Any) -> dict[str, Tensor]:
        """The accuracy, unless skorch's callback records it."""
        if any(name == "valid_acc" for name, _ in self.callbacks_):
            return {}
        return {"acc": (prediction.argmax(dim=1) == y).to(prediction.dtype).mean()}

    def check_data(self, X: Any, y: Any) -> None:
        if y is None and isinstance(X, TensorData) and X.y is not None:
            self.classes_inferred_ = X.y.unique().cpu().numpy()  # skorch < 1.4 supports only CUDA and MPS tensors
        else:
            super().check_data(X, y)


class PenalizedRegressor(PenalizedNet, NeuralNetRegressor):
    """:class:`PenalizedNet` for regression; the module returns (n, n_outputs).

    Examples
    --------
    See :class:`PenalizedNet`.
    """

    def __init__(self, module: Any, *, criterion: Any = SquaredLoss, **kwargs: Any) -> None:
        super().__init__(module, criterion=criterion, **kwargs)
