"""One safetensors file: tensors, a JSON document, and a digest of both; written atomically."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from .._validation import check_instance

__all__ = ["FileError", "Stored", "memory_limit", "read_file", "remove_leftovers", "write_file"]

_KEY, _DIGEST = "sklearn_capacity", "sha256"
MAX_TEXT = 2**25  # characters of a document: 100,000 epochs of 8 numbers
MAX_HEADER = 2 * MAX_TEXT  # bytes; it holds the document with its quotes escaped
MAX_LISTS, MAX_OBJECTS = 2**20, 2**18
_TEMPORARY = re.compile(r".+\.(?P<host>[^.].*)\.(?P<pid>\d+)\.\d+\.tmp", re.DOTALL)
_PICKLE_STARTS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")


class FileError(ValueError):
    """A file is not valid; the message names it and says why.

    Examples
    --------
    >>> from sklearn_capacity.storage import FileError
    >>> issubclass(FileError, ValueError)
    True
    """


class Stored(NamedTuple):
    """Content of a file.

    Attributes
    ----------
    document : dict
    tensors : dict of str to Tensor
    intact : bool
        Whether the content matches the checksum in the file.
    """

    document: dict[str, Any]
    tensors: dict[str, Tensor]
    intact: bool


def write_file(path: str | os.PathLike[str], document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file atomically, also with respect to a loss of power.

    Parameters
    ----------
    path : path
        A regular file of this name is replaced and keeps its permissions; a symbolic link is followed.
    document : dict
        A document of JSON types.
    tensors : dict of str to Tensor
        Tensors that share memory are written separately.

    Raises
    ------
    FileError
        If the path is not a regular file, or if the written file could not be read; nothing is then changed.
    OSError
        If the system refuses; the message names the path, and an existing file is unchanged.
    """
    path = Path(check_instance("path", path, (str, os.PathLike), "the path of a file"))
    text = json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    check_text(text, path)
    held = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    data = save(held, metadata={_KEY: text, _DIGEST: _digest(text, held)})
    check_header(data[8 : 8 + int.from_bytes(data[:8], "little")], path)
    try:
        target = Path(os.path.realpath(path))  # follows links; the temporary file is placed next to the real one
        mode = _mode_of(target, path)
        _replace(target, data, mode)
    except OSError as error:
        if error.errno and str(path) not in (error.filename, error.filename2):  # a full disk does not name the path
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _mode_of(target: Path, path: Path) -> int | None:
    """Permissions of the file to replace, or None if there is none."""
    try:
        status = os.lstat(target)
    except FileNotFoundError:
        return None
    if stat.S_ISLNK(status.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    if not stat.S_ISREG(status.st_mode):
        raise FileError(f"{path} is not a regular file and is not replaced.")
    return stat.S_IMODE(status.st_mode)


def _replace(target: Path, data: bytes, mode: int | None) -> None:
    """Write the data under this name, by way of a temporary name unique to process, thread and run."""
    descriptor, temporary = _temporary(target)
    try:
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.chmod(temporary, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        remove_leftovers(target.parent, f"{target.name}.")
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _sync_folder(target.parent)


def _temporary(target: Path) -> tuple[int, str]:
    """A new file next to the target, whose name identifies the writing process and machine."""
    suffix = f"{socket.gethostname()}.{os.getpid()}.{secrets.randbits(60)}.tmp"
    # a name may have 255 bytes: a long one is truncated, and the identification of the writer is kept
    stem = os.fsencode(target.name)[: 254 - len(suffix)].decode(errors="ignore")
    temporary = str(target.with_name(f"{stem}.{suffix}"))
    return os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666), temporary


def remove_leftovers(folder: Path, name: str = "") -> None:
    """Remove temporary files, with names starting with `name`, of processes on this machine that have ended."""
    for other in os.listdir(folder):
        match = _TEMPORARY.fullmatch(other)
        if match and other.startswith(name) and match["host"] == socket.gethostname():
            if not _is_alive(int(match["pid"])):
                with contextlib.suppress(OSError):  # another user's file, or a read-only folder
                    os.unlink(folder / other)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # another user's process
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Make the new name durable; not every system can, and the file is intact without it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_file(path: str | os.PathLike[str], *, max_bytes: int | None = None) -> Stored:
    """The document and the tensors of a file.

    The cost is checked in advance: sizes are compared and the header is read before the rest.

    Parameters
    ----------
    path : path
    max_bytes : int, default=None
        A larger file is refused. None: a quarter of the memory, since reading a file takes up to three times its size.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    FileError
        If the file is of another kind, too large, or truncated.
    """
    path = Path(check_instance("path", path, (str, os.PathLike), "the path of a file"))
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device would never end
        raise FileError(f"{path} is not a regular file.")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(16)
        header = _header(path, start, size, file)
        entries, text, digest = _metadata(path, header)
        n_bytes = 8 + len(header) + _declared(path, entries)
        if size != n_bytes:
            raise FileError(f"{path} is damaged: it has {size} bytes instead of the {n_bytes} that its header states.")
        limit = memory_limit() if max_bytes is None else max_bytes
        if size > limit:
            raise FileError(f"{path} has {size} bytes, more than the limit of {limit}.")
        file.seek(0)
        data = file.read(n_bytes)
    try:
        tensors = load(data)
        del data
        document = json.loads(text)
    except (SafetensorError, ValueError, RecursionError, RuntimeError, KeyError) as error:
        raise FileError(f"{path} is damaged: {error}.") from error
    if not isinstance(document, dict):
        raise FileError(f"{path} is damaged: its document is not a JSON object.")
    return Stored(document, tensors, digest == _digest(text, tensors))


def _header(path: Path, start: bytes, size: int, file: Any) -> bytes:
    if start.startswith(_PICKLE_STARTS):
        raise FileError(
            f"{path} is a pickle or an archive, which could run code or fill the memory, so it is not opened. "
            "Only files of `sklearn_capacity.save` are supported; use joblib or pickle yourself for files that you "
            "trust."
        )
    length = int.from_bytes(start[:8], "little")
    if len(start) < 9 or start[8:9] != b"{" or length > MAX_HEADER:
        raise FileError(f"{path} is not a safetensors file. Only files of `sklearn_capacity.save` are supported.")
    if size < 8 + length:
        raise FileError(f"{path} is damaged: it is truncated after {size} bytes.")
    file.seek(8)
    header = file.read(length)
    check_header(header, path)
    return header


def _metadata(path: Path, header: bytes) -> tuple[dict[str, Any], str, str]:
    """The entries of the tensors, the document and the checksum."""
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", None) or {}
        text, digest = metadata.get(_KEY), metadata.get(_DIGEST)
    except (ValueError, RecursionError, AttributeError) as error:
        raise FileError(f"{path} is damaged: its header is not a JSON object.") from error
    if not isinstance(text, str) or not isinstance(digest, str):
        raise FileError(f"{path} is a safetensors file of another program. Use safetensors itself to read it.")
    check_text(text, path)
    return entries, text, digest


def _declared(path: Path, entries: dict[str, Any]) -> int:
    """Total bytes of all tensors; safetensors checks their consistency."""
    try:
        ends = [entry["data_offsets"][1] for entry in entries.values()]
    except (KeyError, TypeError, IndexError) as error:
        raise FileError(f"{path} is damaged: its header does not locate the tensors.") from error
    if not all(type(end) is int and end >= 0 for end in ends):
        raise FileError(f"{path} is damaged: its header does not locate the tensors.")
    return max(ends, default=0)


# ---- limits ------------------------------------------------------------------------------------------------


def check_header(header: bytes, path: Path) -> None:
    """Refuse a header that would take far more memory than it has bytes, before it is parsed."""
    _check_size(len(header), header.count(b"["), header.count(b"{"), path, MAX_HEADER)


def check_text(text: str, path: Path) -> None:
    """The same for the document, in which brackets may have been escaped."""
    _check_size(len(text), text.count("["), text.count("{"), path, MAX_TEXT)


def _check_size(n_characters: int, n_lists: int, n_objects: int, path: Path, most: int) -> None:
    """Each list or object costs 60 to 200 bytes of memory for 2 characters of text."""
    for n, limit, what in (
        (n_characters, most, "characters"),
        (n_lists, MAX_LISTS, "lists"),
        (n_objects, MAX_OBJECTS, "objects"),
    ):
        if n > limit:
            raise FileError(f"{path} has {n} {what} besides its tensors, more than the limit of {limit}.")


def memory_limit() -> int:
    """A quarter of the memory of this machine, or of its control group's limit."""
    try:
        size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not available on every system
        size = 2**34
    with contextlib.suppress(OSError, ValueError):
        size = min(size, int(Path("/sys/fs/cgroup/memory.max").read_text()))  # "max" is not a number
    return size // 4
