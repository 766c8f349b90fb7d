"""Samples and targets for the command line, from npz, csv and parquet files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from .._validation import closest
from .sizes import check_size

__all__ = ["read_data"]


def read_data(given: str, target: str | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    """X and y of a file.

    Parameters
    ----------
    given : str
        An npz file with arrays ``X`` and ``y``, or a csv or parquet file.
    target : str, default=None
        The column, or the array, of the targets.

    Raises
    ------
    ValueError, OSError, ImportError
        One sentence on what is wrong with it.
    """
    path = Path(given)
    readers = {".npz": _npz, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise ValueError(f"Data must be an .npz, .csv or .parquet file, got {given!r}.")
    return readers[path.suffix](check_size(path), target)


def _npz(path: Path, target: str | None) -> tuple[np.ndarray, np.ndarray | None]:
    name = target or "y"
    try:
        with np.load(path, allow_pickle=False) as archive:
            names = list(archive)
            arrays = {wanted: archive[wanted] for wanted in ("X", name) if wanted in names}
    except Exception as error:  # zipfile and the parser of headers have errors of their own
        raise ValueError(f"{str(path)!r} is not an npz file: {error}") from error
    for wanted in ("X", *([target] if target else [])):
        if wanted not in arrays:
            raise ValueError(f"{str(path)!r} has no array {wanted!r}, only {', '.join(names) or 'none'}.")
    return arrays["X"], arrays.get(name)


def _csv(path: Path, target: str | None) -> tuple[np.ndarray, np.ndarray]:
    try:
        return _columns(path, pd.read_csv(path), target)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as csv: {error}") from error


def _parquet(path: Path, target: str | None) -> tuple[np.ndarray, np.ndarray]:
    try:
        table = pd.read_parquet(path)
    except ImportError as error:
        raise ImportError("Parquet files need pyarrow. Install it with `pip install pyarrow`.") from error
    return _columns(path, table, target)


def _columns(path: Path, table: pd.DataFrame, target: str | None) -> tuple[np.ndarray, np.ndarray]:
    columns = [str(name) for name in table.columns]
    table.columns = pd.Index(columns)
    if target is None:
        raise ValueError(f"Name the target column of {str(path)!r} with --target, one of: {', '.join(columns)}.")
    if target not in columns:
        hint = closest(target, columns)
        raise ValueError(f"{str(path)!r} has no column {target!r}. {hint or 'It has: ' + ', '.join(columns) + '.'}")
    features = table.drop(columns=target)
    text = [name for name in features if not pd.api.types.is_numeric_dtype(features[name])]
    if text:
        raise ValueError(f"Features must be numbers; column {text[0]!r} of {str(path)!r} is not. Encode or drop it.")
    return features.to_numpy(dtype=np.float32), table[target].to_numpy()
