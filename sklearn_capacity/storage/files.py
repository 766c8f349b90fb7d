"""One safetensors file: tensors, a JSON document, and a digest of both; written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

__all__ = ["FileError", "Stored", "read_file", "write_file"]

_KEY, _DIGEST = "sklearn_capacity", "sha256"
_MAX_HEADER = 100_000_000  # the format's own limit
_PICKLE_STARTS = (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b", b"BZh", b"\xfd7zXZ")


class FileError(ValueError):
    """A file is not what it should be; the message names it and says why.

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
        Whether the content has the checksum that was written with it.
    """

    document: dict[str, Any]
    tensors: dict[str, Tensor]
    intact: bool


def write_file(path: str | os.PathLike[str], document: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a file that is either whole or not there, also after a loss of power.

    Parameters
    ----------
    path : path
        A file of this name is replaced.
    document : dict
        What JSON can hold.
    tensors : dict of str to Tensor
        Tensors that share memory are written one by one.
    """
    path = Path(path)
    text = json.dumps(document, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    held = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    data = save(held, metadata={_KEY: text, _DIGEST: _digest(text, held)})
    if int.from_bytes(data[:8], "little") > _MAX_HEADER:  # nobody could read it
        raise ValueError(f"{path} would need a header of more than {_MAX_HEADER // 10**6} MB for what is no tensor.")
    # a name of its own for each thread of each process, so that two that write the same file never share one
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:  # a full disk does not say where it is
            error.filename = str(path)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name last; not every system can, and none needs it for a file to be whole."""
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


def read_file(path: str | os.PathLike[str]) -> Stored:
    """The document and the tensors of a file.

    Raises
    ------
    FileNotFoundError
        If there is none.
    FileError
        If it is of another kind, or was cut off.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a pipe would never end, nor would a device
        raise FileError(f"{path} is no regular file.")
    data = path.read_bytes()
    text, digest = _metadata(path, data)
    try:
        tensors = load(data)
        document = json.loads(text)
    except (SafetensorError, ValueError, RecursionError, RuntimeError, KeyError) as error:
        raise FileError(f"{path} is damaged: {error}.") from error
    if not isinstance(document, dict):
        raise FileError(f"{path} is damaged: its document is no JSON object.")
    return Stored(document, tensors, digest == _digest(text, tensors))


def _metadata(path: Path, data: bytes) -> tuple[str, str]:
    """The header's own entries, read before the tensors are looked at."""
    if data.startswith(_PICKLE_STARTS):
        raise FileError(
            f"{path} is a pickle or an archive, which could run code or fill the memory, and is not opened. "
            "Only files of `sklearn_capacity.save` are read; use joblib or pickle yourself for files that you trust."
        )
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or not data[8:9] == b"{" or size > _MAX_HEADER:
        raise FileError(f"{path} is no safetensors file. Only files of `sklearn_capacity.save` are read.")
    if len(data) < 8 + size:
        raise FileError(f"{path} is damaged: it was cut off after {len(data)} bytes.")
    try:
        metadata = json.loads(data[8 : 8 + size]).get("__metadata__") or {}
        text, digest = metadata.get(_KEY), metadata.get(_DIGEST)
    except (ValueError, RecursionError, AttributeError) as error:
        raise FileError(f"{path} is damaged: its header is no JSON object.") from error
    if not isinstance(text, str) or not isinstance(digest, str):
        raise FileError(f"{path} is a safetensors file of another program. Use safetensors itself to read it.")
    return text, digest
