"""Checkpoints of a training run in files that nothing unpickles, and training that goes on from them."""

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

__all__ = ["CheckpointFolder", "CheckpointWriter", "resumable_fit"]

FORMAT = 2
_NAME = re.compile(r"(?:epoch-(\d{8})|(finished))\.safetensors")
_LAST = 10**8  # a finished fit comes after every epoch


class Checkpoint(NamedTuple):
    """What a file says.

    Attributes
    ----------
    history : list of dict
    state : dict
        As `capture` returns it.
    finished : bool
    behaviour : list of float
    """

    history: list[dict[str, Any]]
    state: dict[str, Any]
    finished: bool
    behaviour: list[float]


class CheckpointFolder:
    """The checkpoints of one fit, which each of its files names.

    Two processes may use it at once: each file is written under a name of its own and then renamed, and what either
    of them writes for an epoch is right for the other.

    Parameters
    ----------
    path : path
    fit : str
        Hash of all that decides the result, as far as it can be read.
    behaviour : Behaviour
        What the fit computes first, for the rest.
    """

    def __init__(self, path: str | os.PathLike[str], fit: str, behaviour: Behaviour) -> None:
        self.path = Path(path)
        self.fit = fit
        self.behaviour = behaviour
        self._last = 0  # epoch of the file that was written or read last

    @classmethod
    def open(
        cls, parent: str | os.PathLike[str], fit: str, behaviour: Behaviour
    ) -> tuple[CheckpointFolder, Checkpoint | None]:
        """The folder of a fit and its newest checkpoint.

        A folder that holds the same fit with another behaviour, of code that was another then, is left as it is.
        """
        for number in itertools.count(1):
            folder = cls(Path(parent) / (fit if number == 1 else f"{fit}-{number}"), fit, behaviour)
            folder.clear()
            found = folder.latest()
            if found is None or behaviour.equals(found.behaviour):
                folder._last = len(found.history) if found else 0
                break
        return folder, found

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that is whole, or None; a `CapacityWarning` names each that is not."""
        for epoch, path in reversed(self._files()):
            try:
                return _read(path, self.fit, epoch)
            except FileNotFoundError:  # another process has made a newer one meanwhile
                continue
            except (FileError, OSError) as error:
                warn(f"{str(error).rstrip('.')}. The checkpoint before it is used.")
        return None

    def write(self, history: Any, state: dict[str, Any], *, finished: bool = False) -> None:
        """Add a checkpoint; of those before it one is kept."""
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
        found = ((_NAME.fullmatch(name), name) for name in names)
        return sorted((int(m[1]) if m[1] else _LAST, self.path / name) for m, name in found if m)

    def clear(self) -> None:
        """Remove what processes of this machine left behind that were killed while they wrote."""
        if self.path.is_dir():
            remove_leftovers(self.path)


def _row(epoch: dict[str, Any]) -> dict[str, Any]:
    """An epoch of a history, of its batches the last one's numbers, which skorch's Checkpoint asks for."""
    last = [{key: n for key, n in batch.items() if isinstance(n, int | float)} for batch in epoch["batches"][-1:]]
    return {**epoch, "batches": last}


def _read(path: Path, fit: str, epoch: int) -> Checkpoint:
    stored = read_file(path)
    if not stored.intact:
        raise FileError(f"{path} is damaged: its content does not have the checksum that was written with it.")
    document = stored.document
    if document.get("kind") != "checkpoint" or document.get("format") != FORMAT:
        raise FileError(f"{path} is not a checkpoint of format {FORMAT}.")
    if document.get("fit") != fit:
        raise FileError(f"{path} is of another fit.")
    try:
        history, state = decode(document["history"]), decode(document["state"], stored.tensors)
        behaviour = decode(document["behaviour"])
        finished, number = document["finished"], document["epoch"]
    except (ValueError, KeyError, TypeError) as error:
        raise FileError(f"{path} is damaged: {error}.") from error
    rows = history if isinstance(history, list) else [None]
    if not all(isinstance(part, dict) for part in (state, *rows)) or PARTS - set(state):
        raise FileError(f"{path} is damaged: it holds no history and state.")
    if not (isinstance(behaviour, list) and all(isinstance(value, float) for value in behaviour)):
        raise FileError(f"{path} is damaged: its behaviour is not a list of numbers.")
    if number != len(rows) or finished is not (epoch == _LAST) or (not finished and number != epoch):
        raise FileError(f"{path} is of another epoch, {number!r}.")
    return Checkpoint(history, state, finished, behaviour)


# ---- training --------------------------------------------------------------------------------------------------------


class CheckpointWriter(Callback):
    """Write a checkpoint after every so many epochs; must be the last callback of a net.

    Parameters
    ----------
    folder : CheckpointFolder
    generator : torch.Generator
        Source of the order of batches.
    every : int
    found : Checkpoint or None
        Where to go on: put back when training begins, after all other callbacks have prepared themselves as for a new
        fit.
    """

    def __init__(
        self, folder: CheckpointFolder, generator: torch.Generator, every: int = 1, found: Checkpoint | None = None
    ) -> None:
        self.folder = folder
        self.generator = generator
        self.every = every
        self.found = found

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.early_ = stateful_attributes(net)
        encode(capture(net, self.generator, self.early_), {}, name="state")  # what no file can hold is refused here
        if self.found is not None:
            try:
                net.history.extend({"batches": [], **row} for row in self.found.history)
                restore(net, self.found.state, self.generator)
            except (RuntimeError, KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
                raise FileError(
                    f"A checkpoint in {self.folder.path} does not fit: {error}. Remove that folder."
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
        return {}  # a callback that pickles the net does not take it along


def resumable_fit(
    net: Any,
    data: Any,
    epochs: int,
    folder: CheckpointFolder,
    found: Checkpoint | None,
    generator: torch.Generator,
    every: int = 1,
) -> None:
    """Train a new net for some epochs, from the newest checkpoint on if there is one.

    A finished fit is loaded. One that ended before its last epoch counts as finished only if a callback said so by
    ``has_stopped_``, or is skorch's EarlyStopping out of patience: an interrupt from the keyboard ends the training
    too, and the next fit then goes on.
    """
    finished = found is not None and found.finished
    n_done = 0 if found is None else len(found.history)
    writer = CheckpointWriter(folder, generator, every, found)
    net.callbacks_.append(("checkpoints", writer))
    try:
        # also for a finished fit, of no epochs then: callbacks may divide the optimiser's groups as training begins
        net.partial_fit(data, None, epochs=0 if finished else epochs - n_done)
    finally:
        net.callbacks_.pop()
    # not the length of the history: a callback may have gone back to the best epoch's
    ended = writer.n_epochs_ >= epochs or any(_has_stopped(callback) for _, callback in net.callbacks_)
    if ended and not finished:
        writer.write(net, finished=True)


def _has_stopped(callback: Callback) -> bool:
    patience = getattr(callback, "patience", None)
    out_of_patience = patience is not None and getattr(callback, "misses_", 0) >= patience
    return out_of_patience or bool(getattr(callback, "has_stopped_", False))
