"""Files are written completely or not at all, wherever they are, and refused before they cost much."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from sklearn_capacity.storage import FileError, files, read_file, write_file

TENSORS = {"a": torch.arange(6.0).reshape(2, 3)}


def content(path):
    stored = read_file(path)
    assert stored.intact and torch.equal(stored.tensors["a"], TENSORS["a"])
    return stored.document["n"]


# ---- where a file goes -----------------------------------------------------------------------------------------------


def test_links_are_written_through(tmp_path):
    (tmp_path / "far").mkdir()
    write_file(tmp_path / "far" / "real", {"n": 0}, TENSORS)
    (tmp_path / "link").symlink_to("second")
    (tmp_path / "second").symlink_to(tmp_path / "far" / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "far" / "new")
    write_file(tmp_path / "link", {"n": 1}, TENSORS)
    write_file(tmp_path / "dangling", {"n": 2}, TENSORS)
    assert (tmp_path / "link").is_symlink() and (tmp_path / "second").is_symlink() and content(tmp_path / "link") == 1
    assert (tmp_path / "dangling").is_symlink() and content(tmp_path / "far" / "new") == 2
    assert sorted(os.listdir(tmp_path / "far")) == ["new", "real"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o444])
def test_permissions_are_kept(mode, tmp_path):
    path = tmp_path / "file"
    write_file(path, {"n": 0}, TENSORS)
    path.chmod(mode)
    write_file(path, {"n": 1}, TENSORS)
    assert stat.S_IMODE(path.stat().st_mode) == mode and content(path) == 1


def test_a_new_file_follows_the_mask(tmp_path):
    old = os.umask(0o077)
    try:
        write_file(tmp_path / "file", {"n": 0}, TENSORS)
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o600


def no_regular_files(folder):
    (folder / "folder").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "full").symlink_to("/dev/full")
    (folder / "null").symlink_to("/dev/null")
    (folder / "link").symlink_to("folder")
    return ["folder", "pipe", "full", "null", "link"]


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    names = no_regular_files(tmp_path)
    before = {name: os.stat(tmp_path / name).st_mode for name in names}
    for name in names:
        with pytest.raises(FileError, match=f"{name} is not a regular file and is not replaced"):
            write_file(tmp_path / name, {"n": 0}, TENSORS)
        with pytest.raises(FileError, match=f"{name} is not a regular file"):
            read_file(tmp_path / name)
    assert {name: os.stat(tmp_path / name).st_mode for name in names} == before
    assert sorted(os.listdir(tmp_path)) == sorted(names)


@pytest.mark.parametrize("name", ["loop", "x" * 256, "nowhere/file", "file/below"])
def test_paths_that_cannot_be(name, tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    write_file(tmp_path / "file", {"n": 0}, TENSORS)
    for call in (lambda: write_file(tmp_path / name, {"n": 1}, TENSORS), lambda: read_file(tmp_path / name)):
        with pytest.raises(OSError) as caught:
            call()
        assert str(tmp_path / name) in str(caught.value)
        assert caught.value.errno in (errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR)
    assert sorted(os.listdir(tmp_path)) == ["file", "loop"] and content(tmp_path / "file") == 0


def test_a_missing_folder_is_named(tmp_path):
    path = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError, match=r"missing[/\\]file'$"):
        write_file(path, {"n": 1}, TENSORS)


def test_a_long_name_leaves_room_for_that_of_the_writer(tmp_path):
    for name in ("x" * 255, "é" * 127):
        write_file(tmp_path / name, {"n": 1}, TENSORS)
        assert content(tmp_path / name) == 1
    assert len(os.listdir(tmp_path)) == 2


# ---- what goes wrong in the middle -----------------------------------------------------------------------------------


@pytest.mark.parametrize("step", ["open", "chmod", "fsync", "replace"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EPERM])
def test_a_step_that_fails_keeps_the_old_file(step, number, tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_file(path, {"n": 0}, TENSORS)

    def failing(*args, **kwargs):
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(files.os, step, failing)
        with pytest.raises(OSError, match=str(path)) as caught:
            write_file(path, {"n": 1}, TENSORS)
    assert caught.value.errno == number and content(path) == 0 and os.listdir(tmp_path) == ["file"]


def test_a_limit_on_the_size_of_files(tmp_path):
    """As a full disk or a quota: the write itself stops half-way."""
    path = tmp_path / "file"
    write_file(path, {"n": 0}, TENSORS)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match=f"too large: '{path}'"):
            write_file(path, {"n": 1}, {**TENSORS, "b": torch.zeros(10_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert content(path) == 0 and os.listdir(tmp_path) == ["file"]


def test_leftovers_of_processes_that_have_ended(tmp_path):
    process = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    ended, host = int(process.stdout), files.socket.gethostname()
    names = [f"file.{host}.{ended}.1.tmp", f"file.{host}.{os.getpid()}.1.tmp", f"file.elsewhere.{ended}.1.tmp"]
    names += [f"other.{host}.{ended}.1.tmp", "file.tmp"]
    for name in names:
        (tmp_path / name).touch()
    write_file(tmp_path / "file", {"n": 1}, TENSORS)
    assert sorted(os.listdir(tmp_path)) == sorted(["file", *names[1:]])


def test_two_writers_and_a_reader(tmp_path):
    path, faults = tmp_path / "file", []
    write_file(path, {"n": 0}, TENSORS)

    def write(n):
        for _ in range(30):
            write_file(path, {"n": n}, TENSORS)

    writers = [threading.Thread(target=write, args=(n,)) for n in (1, 2)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        if content(path) not in (0, 1, 2):
            faults.append(path)
    for writer in writers:
        writer.join()
    assert not faults and content(path) in (1, 2) and os.listdir(tmp_path) == ["file"]


# ---- what a file costs -----------------------------------------------------------------------------------------------


def raw(header, size=0, length=None):
    """A safetensors file of this header and so many bytes, which take no place on the disk."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(header) if length is None else length).to_bytes(8, "little") + header, size


def with_document(text, **entries):
    return {"__metadata__": {"sklearn_capacity": text, "sha256": "0" * 64}, **entries}


HUGE = {"dtype": "F32", "shape": [50 * 2**30], "data_offsets": [0, 200 * 2**30]}
COSTLY = {
    "zeros after the end": (raw(with_document("{}"), 200 * 2**30), "instead of the"),
    "a tensor of 200 GB": (raw(with_document("{}", a=HUGE), 200 * 2**30), "more than the"),
    "a tensor that is not there": (raw(with_document("{}", a=HUGE)), "instead of the"),
    "a header of gigabytes": (raw(b"{" + b" " * 100, 2**31, length=2**31), "not a safetensors file"),
    "nested brackets": (raw(with_document("[" * 1_000_000)), "damaged"),
    "closed brackets": (raw(with_document(("[" * 900 + "]" * 900 + ",") * 4000)), "lists besides its tensors"),
    "brackets in the header": (raw(b'{"a":[' + b"[]," * 4_000_000 + b"[]]}"), "lists besides its tensors"),
    "escaped brackets": (
        raw(json.dumps(with_document("?")).replace("?", "[" + "\\u007b\\u007d," * 1_000_000).encode()),
        "objects besides its tensors",
    ),
    "a long text": (raw(with_document(" " * 2**25 + "{}")), "characters besides its tensors"),
}
READ = """
import resource, sys
from sklearn_capacity.storage import FileError, read_file
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    read_file(sys.argv[1])
except FileError as error:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, error)
"""


@pytest.mark.parametrize("case", COSTLY)
def test_costs_are_bounded_before_they_are_paid(case, tmp_path):
    ((start, size), message), path = COSTLY[case], tmp_path / "file"
    with open(path, "wb") as file:
        file.write(start)
        file.truncate(len(start) + size)
    process = subprocess.run([sys.executable, "-c", READ, str(path)], capture_output=True, text=True, timeout=300)
    grown, _, text = process.stdout.partition(" ")
    assert message in text and str(path) in text, process.stderr
    assert int(grown) < 120 * 1024  # KiB


def test_what_nobody_could_read_is_not_written(tmp_path):
    for document in ({"n": [[]] * 2**20}, {"n": [{}] * (2**18 + 1)}, {"n": "x" * 2**25}):
        with pytest.raises(FileError, match=r"besides its tensors, more than the limit of \d+"):
            write_file(tmp_path / "file", document, TENSORS)
    assert not os.listdir(tmp_path)


def test_a_limit_by_the_reader(tmp_path):
    write_file(tmp_path / "file", {"n": 0}, TENSORS)
    with pytest.raises(FileError, match="more than the limit of 100"):
        read_file(tmp_path / "file", max_bytes=100)
    assert 2**20 < files.memory_limit() < 2**50


def test_a_file_may_vanish_while_it_is_replaced_or_read(tmp_path, monkeypatch):
    """Another process that trains the same fit clears what it no longer needs."""
    path = tmp_path / "file"

    def exists(self):
        result = os.path.exists(self)
        if self == path and result:
            path.unlink()
        return result

    monkeypatch.setattr(Path, "exists", exists)
    for _ in range(2):
        write_file(path, {"a": 1}, {})
    assert read_file(path)[0] == {"a": 1}
