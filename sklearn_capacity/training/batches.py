"""Training data as tensors on the device, split into batches by one gather each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

__all__ = ["TensorBatch", "TensorBatches", "TensorData", "embedding_cure", "to_tensor"]


def embedding_cure(module: nn.Module, verb: str) -> str:
    """A hint for a network with an embedding that failed on real numbers, or ""."""
    embeds = any(isinstance(part, nn.Embedding | nn.EmbeddingBag) for part in module.modules())
    return f" It receives real numbers here, so {verb} the part after its embedding." * embeds


class TensorBatch(tuple):
    """A pair (X, y), as skorch's callbacks expect it, with the sample weights as an attribute."""

    sample_weight: Tensor | None

    def __new__(cls, X: Tensor, y: Tensor | None, sample_weight: Tensor | None = None) -> TensorBatch:
        self = super().__new__(cls, (X, y))
        self.sample_weight = sample_weight
        return self


def to_tensor(array: Any, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Tensor:
    """An array as a tensor on the device; floating point arrays get `dtype`, others keep theirs."""
    if not isinstance(array, Tensor):
        array = np.ascontiguousarray(array)  # in which an axis of length 1 may still run backwards: torch refuses it
        # torch warns about memory maps that joblib opened read-only, and might write into them
        shared = array.flags.writeable and min(array.strides, default=0) >= 0
        array = torch.from_numpy(array if shared else array.copy())
    return array.to(device=device, dtype=dtype if array.is_floating_point() else None)


class TensorData(Dataset):
    """Samples, targets and weights that stay on the device.

    Parameters
    ----------
    X : ndarray or Tensor of shape (n, ...)
    y : ndarray or Tensor of shape (n,) or (n, C), default=None
    sample_weight : ndarray or Tensor of shape (n,), default=None
    device, dtype : default=None
        Device and dtype of the data; None keeps those of the arrays.
    """

    def __init__(
        self,
        X: Any,
        y: Any = None,
        sample_weight: Any = None,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.X = to_tensor(X, device, dtype)
        self.y = None if y is None else to_tensor(y, device, dtype)
        self.sample_weight = None if sample_weight is None else to_tensor(sample_weight, device, dtype)

    def __len__(self) -> int:
        return len(self.X)

    def __getitem__(self, index: Any) -> TensorBatch:
        y, weight = self.y, self.sample_weight
        return TensorBatch(self.X[index], y if y is None else y[index], weight if weight is None else weight[index])

    def take(self, index: Tensor) -> TensorBatch:
        """The samples of an index tensor; faster than ``self[index]``."""
        y, weight = (None if t is None else t.index_select(0, index) for t in (self.y, self.sample_weight))
        return TensorBatch(self.X.index_select(0, index), y, weight)


class TensorBatches:
    """Iterate over a :class:`TensorData` in batches; replaces the DataLoader in skorch nets.

    Parameters
    ----------
    dataset : TensorData
    batch_size : int
        A last batch with a single sample is merged into the previous one, since batch norm cannot
        normalise one value.
    shuffle : bool, default=False
        Whether each pass has a new random order.
    generator : torch.Generator on the CPU, default=None
        Source of the order; None is torch's default generator.
    transform : callable, default=None
        ``transform(X, generator)`` returns the replacement of a batch's X, with the same shape, dtype and device, for
        example :func:`sklearn_capacity.layers.crop_flip`.
    """

    def __init__(
        self,
        dataset: TensorData,
        batch_size: int,
        shuffle: bool = False,
        generator: torch.Generator | None = None,
        transform: Callable[[Tensor, Any], Tensor] | None = None,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.generator = generator
        self.transform = transform

    def _bounds(self) -> list[tuple[int, int]]:
        n_samples = len(self.dataset)
        starts = list(range(0, n_samples, self.batch_size))
        if len(starts) > 1 and n_samples - starts[-1] == 1:
            starts.pop()
        return list(zip(starts, [*starts[1:], n_samples], strict=True))

    def __len__(self) -> int:
        return len(self._bounds())

    def __iter__(self) -> Iterator[TensorBatch]:
        for batch in self._batches():
            if self.transform is not None:
                X, y = batch
                kind = X.shape, X.dtype, X.device  # recorded before, since a transform may work in place
                transformed = _checked(self.transform(X, self.generator), *kind)
                batch = TensorBatch(transformed, y, batch.sample_weight)
            yield batch

    def _batches(self) -> Iterator[TensorBatch]:
        data, bounds = self.dataset, self._bounds()
        if not self.shuffle or len(bounds) == 1:  # the order inside a batch does not matter
            for start, stop in bounds:
                batch = data[start:stop]
                # a module or a transform that works in place must not modify the data, which may be the user's array
                yield TensorBatch(batch[0].clone(), batch[1], batch.sample_weight)
            return
        order = torch.randperm(len(data), generator=self.generator, device="cpu").to(data.X.device)
        for start, stop in bounds:
            yield data.take(order[start:stop])


def _checked(X: Any, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The result of a transform, if it can replace the batch."""
    if not isinstance(X, Tensor):
        raise TypeError(f"`augmentation` must return a tensor, got {type(X).__name__}.")
    if X.shape != shape:
        raise ValueError(
            f"`augmentation` must return a batch of its input's shape {tuple(shape)}, got {tuple(X.shape)}."
        )
    if X.dtype != dtype or X.device != device or X.layout != torch.strided:
        raise ValueError(
            f"`augmentation` must return a dense batch like its input, {dtype} on {device}, got {X.dtype}, {X.layout} "
            f"on {X.device}. Convert it with `.to(X)`."
        )
    return X
