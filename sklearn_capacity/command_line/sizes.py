"""What a file would take in memory, checked before it is read."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ..storage import memory_limit

__all__ = ["check_size"]


def check_size(path: Path) -> Path:
    """The path of a file that fits into a quarter of the memory, also when it is unpacked.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, or if it is too large.
    """
    if not path.is_file():
        raise FileNotFoundError(f"There is no file {str(path)!r}.")
    size, limit = path.stat().st_size, memory_limit()
    if size <= limit and zipfile.is_zipfile(path):
        size = _unpacked(path)  # zeros are packed to a thousandth
    if size > limit:
        raise ValueError(f"{str(path)!r} takes {size} bytes of memory, more than the limit of {limit}.")
    return path


def _unpacked(path: Path) -> int:
    try:
        with zipfile.ZipFile(path) as archive:
            return sum(member.file_size for member in archive.infolist())
    except Exception as error:  # zipfile raises many kinds for what it cannot read
        raise ValueError(f"{str(path)!r} is a damaged archive: {error}") from error
