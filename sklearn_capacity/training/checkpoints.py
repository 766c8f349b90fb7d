"""Checkpoints of a training run in files without pickles, and training that resumes from them."""

from __future__ import annotations

import itertools
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from skorch import NeuralNet
from skorch.callbacks import Callback

from sklearn_capacity._validation import warn
from sklearn_capacity.storage import FileError, decode, encode, read_file, remove_leftovers, write_file
from sklearn_capacity.training.behaviour import Behaviour
from sklearn_capacity.training.run_state import PARTS, capture, restore, stateful_attributes

__all__ = ["FORMAT", "CheckpointFolder", "CheckpointWriter", "resumable_fit"]

FORMAT = 2
_NAME = re.compile(r"(?:epoch-(\d{8})|(finished))\.safetensors")
_LAST = 10**8  # the number of a finished fit, after any epoch


class Checkpoint(NamedTuple):
    """The content of a checkpoint file.

    Attributes
    ----------
    history : list of dict
    state : dict
        The state returned by `capture`.
    finished : bool
    behaviour : list of float
    """

    history: list[dict[str, Any]]
    state: dict[str, Any]
    finished: bool
    behaviour: list[float]


class CheckpointFolder:
    """The checkpoints of one fit; each file contains the hash of the fit.

    Two processes may use it at once: each file is written under a temporary name and then renamed, and whatever one
    process writes for an epoch is also valid for the other.

    Parameters
    ----------
    path : path
    fit : str
        Hash of everything readable that determines the result.
    behaviour : Behaviour
        The first values of the fit, for everything else.
    """

    def __init__(self, path: str | os.PathLike[str], fit: str, behaviour: Behaviour) -> None:
        self.path = Path(path)
        self.fit = fit
        self.behaviour = behaviour
        self._last = 0  # epoch of the last file written or read

    @classmethod
    def open(
        cls, parent: str | os.PathLike[str], fit: str, behaviour: Behaviour
    ) -> tuple[CheckpointFolder, Checkpoint | None]:
        """The folder of a fit and its newest checkpoint.

        A folder of the same fit with another behaviour (from code that has since changed) is left unchanged.
        """
        for number in itertools.count(1):
            folder = cls(Path(parent) / (fit if number == 1 else f"{fit}-{number}"), fit, behaviour)
            folder.clear()
            checkpoint = folder.latest()
            if checkpoint is None or behaviour.equals(checkpoint.behaviour):
                folder._last = len(checkpoint.history) if checkpoint else 0
                break
        return folder, checkpoint

    def latest(self) -> Checkpoint | None:
        """The newest intact checkpoint, or None; a `CapacityWarning` names each damaged one."""
        for epoch, path in reversed(self._files()):
            try:
                return _read(path, self.fit, epoch)
            except FileNotFoundError:  # another process has written a newer one meanwhile
                continue
            except (FileError, OSError) as error:
                warn(f"{str(error).rstrip('.')}. The previous checkpoint is used.")
        return None

    def write(self, history: Any, state: dict[str, Any], *, finished: bool = False) -> None:
        """Add a checkpoint and keep one previous checkpoint."""
        tensors: dict[str, torch.Tensor] = {}
        rows = [_row(epoch) for epoch in history]
        document = {
            "kind": "checkpoint",
            "format": FORMAT,
            "fit": self.fit,
            "behaviour": encode(self.behaviour.values.tolist(), name="behaviour"),
            "epoch": len(rows),
            "finished": finished,
            "history": encode(rows, name="history_"),
            "state": encode(state, tensors, name="state"),
        }
        self.path.mkdir(parents=True, exist_ok=True)
        name = "finished" if finished else f"epoch-{len(rows):08d}"
        write_file(self.path / f"{name}.safetensors", document, tensors)
        number = _LAST if finished else len(rows)
        for epoch, old in self._files():
            if epoch < number and epoch != self._last:
                old.unlink(missing_ok=True)
        self._last = len(rows)

    def _files(self) -> list[tuple[int, Path]]:
        """(epoch, path), oldest first."""
        names = os.listdir(self.path) if self.path.is_dir() else []
        matches = ((_NAME.fullmatch(name), name) for name in names)
        return sorted((int(m[1]) if m[1] else _LAST, self.path / name) for m, name in matches if m)

    def clear(self) -> None:
        """Remove temporary files of processes on this machine that were killed while writing."""
        if self.path.is_dir():
            remove_leftovers(self.path)


def _row(epoch: dict[str, Any]) -> dict[str, Any]:
    """An epoch of a history, with the values of its last batch only, which skorch's Checkpoint needs."""
    last = [{key: n for key, n in batch.items() if isinstance(n, int | float)} for batch in epoch["batches"][-1:]]
    return {**epoch, "batches": last}


def _read(path: Path, fit: str, epoch: int) -> Checkpoint:
    stored = read_file(path)
    if not stored.intact:
        raise FileError(f"{path} is damaged: its content does not match its checksum.")
    document = stored.document
    if document.get("kind") != "checkpoint" or document.get("format") != FORMAT:
        raise FileError(f"{path} is not a checkpoint of format {FORMAT}.")
    if document.get("fit") != fit:
        raise FileError(f"{path} belongs to another fit.")
    try:
        history, state = decode(document["history"]), decode(document["state"], stored.tensors)
        behaviour = decode(document["behaviour"])
        finished, number = document["finished"], document["epoch"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path} is damaged: {error}.") from error
    rows = history if isinstance(history, list) else [None]
    if not all(isinstance(part, dict) for part in (state, *rows)) or PARTS - set(state):
        raise FileError(f"{path} is damaged: it has no history or no state.")
    if not (isinstance(behaviour, list) and all(isinstance(value, float) for value in behaviour)):
        raise FileError(f"{path} is damaged: its behaviour is not a list of numbers.")
    if number != len(rows) or finished is not (epoch == _LAST) or (not finished and number != epoch):
        raise FileError(f"{path} belongs to another epoch, {number!r}.")
    return Checkpoint(history, state, finished, behaviour)


# ---- training --------------------------------------------------------------------------------------------------------


class CheckpointWriter(Callback):
    """Write a checkpoint every `every` epochs; must be the last callback of a net.

    Parameters
    ----------
    folder : CheckpointFolder
    generator : torch.Generator
        Source of the order of batches.
    every : int
    checkpoint : Checkpoint or None
        The checkpoint to resume from: it is restored when training starts, after all other callbacks have prepared
        themselves as for a new fit.
    """

    def __init__(
        self, folder: CheckpointFolder, generator: torch.Generator, every: int = 1, checkpoint: Checkpoint | None = None
    ) -> None:
        self.folder = folder
        self.generator = generator
        self.every = every
        self.checkpoint = checkpoint

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.early_ = stateful_attributes(net)
        encode(capture(net, self.generator, self.early_), {}, name="state")  # refuses at once what a file cannot store
        if self.checkpoint is not None:
            try:
                net.history.extend({"batches": [], **row} for row in self.checkpoint.history)
                restore(net, self.checkpoint.state, self.generator)
            except (RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
                raise FileError(
                    f"A checkpoint in {self.folder.path} does not match this fit: {error}. Remove that folder."
                ) from error
        self.n_epochs_ = len(net.history)

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        self.n_epochs_ = len(net.history)
        if self.n_epochs_ % self.every == 0:
            self.write(net)

    def write(self, net: NeuralNet, *, finished: bool = False) -> None:
        """Add a checkpoint to the folder."""
        self.folder.write(net.history, capture(net, self.generator, self.early_), finished=finished)

    def __getstate__(self) -> dict[str, Any]:
        return {}  # a callback that pickles the net must not include the writer


def resumable_fit(
    net: Any,
    data: Any,
    epochs: int,
    folder: CheckpointFolder,
    checkpoint: Checkpoint | None,
    generator: torch.Generator,
    every: int = 1,
) -> None:
    """Train a new net for some epochs, starting from the newest checkpoint if there is one.

    A finished fit is loaded. A fit that stopped before its last epoch counts as finished only if a callback has
    ``has_stopped_``, or is skorch's EarlyStopping out of patience: an interrupt from the keyboard also stops training,
    and the next fit must then resume.
    """
    finished = checkpoint is not None and checkpoint.finished
    n_done = 0 if checkpoint is None else len(checkpoint.history)
    writer = CheckpointWriter(folder, generator, every, checkpoint)
    net.callbacks_.append(("checkpoints", writer))
    try:
        # also for a finished fit, with 0 epochs: callbacks may split the optimiser's groups when training starts
        net.partial_fit(data, None, epochs=0 if finished else epochs - n_done)
    finally:
        net.callbacks_.pop()
    # not the length of the history, which a callback may have reset to the best epoch
    ended = writer.n_epochs_ >= epochs or any(_has_stopped(callback) for _, callback in net.callbacks_)
    if ended and not finished:
        writer.write(net, finished=True)


def _has_stopped(callback: Callback) -> bool:
    patience = getattr(callback, "patience", None)
    out_of_patience = patience is not None and getattr(callback, "misses_", 0) >= patience
    return out_of_patience or bool(getattr(callback, "has_stopped_", False))
