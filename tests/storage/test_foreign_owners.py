"""Files of another user, and a clock that was set back: success or one error, and the last good state stays."""

from __future__ import annotations

import multiprocessing
import os
import stat
import time
import warnings

import numpy as np
import pytest
import torch

from sklearn_capacity import NetworkClassifier
from sklearn_capacity.storage import read_file, write_file

needs_root = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give files away and become another user"
)
USER, OTHER = 4321, 5432  # ids of users that need not exist
X, y = np.random.default_rng(0).normal(size=(40, 4)), np.arange(40) % 2


def as_user(function, *args):
    """(name of the error or None, its message or the result, warnings) of a call by another user, in a forked child."""

    def run(sender):
        os.setgroups([])
        os.setgid(USER)
        os.setuid(USER)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                outcome = (None, function(*args))
            except BaseException as error:
                outcome = (type(error).__name__, str(error))
        sender.send((*outcome, [str(warning.message) for warning in caught]))
        os._exit(0)

    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=run, args=(sender,))
    process.start()
    assert receiver.poll(120), "it hangs"
    result = receiver.recv()
    process.join(60)
    return result


@pytest.fixture
def folder(tmp_path):
    """A folder that any user reaches; those of pytest are root's alone."""
    for parent in (tmp_path, *tmp_path.parents):
        if stat.S_IMODE(parent.stat().st_mode) & 0o055 != 0o055 and parent.stat().st_uid == os.geteuid():
            parent.chmod(stat.S_IMODE(parent.stat().st_mode) | 0o055)
    (tmp_path / "folder").mkdir()
    return tmp_path / "folder"


def give(path, user, mode):
    os.chown(path, user, user)
    path.chmod(mode)


def write(path):
    write_file(path, {"n": 1}, {"a": torch.ones(2)})


# ---- files -----------------------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("mode", [0o755, 0o1777])  # a folder that is only read, and one like /tmp
def test_a_file_of_another_user_is_not_replaced(folder, mode):
    path = folder / "file"
    write_file(path, {"n": 0}, {"a": torch.ones(2)})
    give(path, OTHER, 0o644)
    give(folder, OTHER, mode)
    error, message, caught = as_user(write, path)
    assert error == "PermissionError" and str(path) in message and not caught
    assert os.listdir(folder) == ["file"] and read_file(path).document == {"n": 0}
    assert path.stat().st_uid == OTHER and stat.S_IMODE(path.stat().st_mode) == 0o644


@needs_root
def test_a_file_of_another_user_in_the_user_s_folder(folder):
    path = folder / "file"
    write_file(path, {"n": 0}, {"a": torch.ones(2)})
    give(path, OTHER, 0o600)
    give(folder, USER, 0o755)
    assert as_user(write, path) == (None, None, [])  # as `mv` does: the permissions of the folder decide
    assert os.listdir(folder) == ["file"] and read_file(path).document == {"n": 1}
    assert path.stat().st_uid == USER and stat.S_IMODE(path.stat().st_mode) == 0o600


@needs_root
@pytest.mark.parametrize(("file_mode", "folder_mode"), [(0o600, 0o755), (0o644, 0o700)])
def test_a_file_that_cannot_be_read(folder, file_mode, folder_mode):
    path = folder / "file"
    write(path)
    give(path, OTHER, file_mode)
    give(folder, OTHER, folder_mode)
    error, message, caught = as_user(read_file, path)
    assert error == "PermissionError" and str(path) in message and not caught


# ---- checkpoints -----------------------------------------------------------------------------------------------------


def fit(folder, max_epochs=3):
    model = NetworkClassifier((4,), max_epochs=max_epochs, random_state=0, checkpoint_dir=folder).fit(X, y)
    return [row["train_loss"] for row in model.history_]


def tree(folder):
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def give_all(folder, user, folder_mode, file_mode):
    for path in (folder, *folder.rglob("*")):
        give(path, user, folder_mode if path.is_dir() else file_mode)


@needs_root
@pytest.mark.parametrize(("folder_mode", "file_mode"), [(0o700, 0o600), (0o755, 0o600), (0o755, 0o644)])
def test_a_fit_that_may_not_write_says_so(folder, folder_mode, file_mode):
    fit(folder)
    for path in folder.rglob("finished*"):
        path.unlink()  # interrupted after the last epoch: there is something to write
    give_all(folder, OTHER, folder_mode, file_mode)
    before = tree(folder)
    error, message, _ = as_user(fit, folder)
    assert error == "PermissionError" and str(folder) in message
    assert tree(folder) == before


@needs_root
def test_checkpoints_that_cannot_be_read_are_replaced(folder):
    losses = fit(folder)
    give_all(folder, USER, 0o755, 0o644)
    for path in folder.rglob("*.safetensors"):
        give(path, OTHER, 0o600)
    error, again, caught = as_user(fit, folder)
    assert error is None and again == losses
    assert caught and all("Permission denied" in message and str(folder) in message for message in caught)
    assert not list(folder.rglob("*.tmp"))
    assert as_user(fit, folder) == (None, losses, [])


# ---- clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("years", [-60, 50])
@pytest.mark.parametrize("newest", [True, False])
def test_times_of_files_do_not_count(folder, years, newest):
    losses = fit(folder)
    paths = sorted(folder.rglob("*.safetensors"))
    paths[-1].unlink()  # the finished one
    moved = paths[-2] if newest else paths[0]
    when = time.time() + years * 365 * 86400
    os.utime(moved, (when, when))
    os.utime(moved.parent, (when, when))
    assert fit(folder) == losses and fit(folder) == losses
    assert not list(folder.rglob("*.tmp")) and len(list(folder.rglob("finished*"))) == 1


def test_a_clock_that_is_set_back_during_a_fit(folder, monkeypatch):
    losses, now = fit(folder / "steady"), iter(range(10**6, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    assert fit(folder / "set back") == losses
    assert fit(folder / "set back") == losses
    assert [path.suffix for path in (folder / "set back").rglob("*.*")] == [".safetensors"] * 2
