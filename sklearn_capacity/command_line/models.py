"""Models for the command line: saved estimators, torch.export archives, factories with weights; pickles on trust."""

from __future__ import annotations

import logging
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import joblib
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..persistence import load
from ..process_state import silenced
from .sizes import check_size

__all__ = ["read_model"]

PICKLES = (".pkl", ".pickle", ".joblib", ".pt", ".pth")
_FORMS = "a file of `save` (.safetensors), a torch.export archive (.pt2), or package.module:factory@weights.safetensors"


def read_model(given: str, trusted: Sequence[str] = ()) -> Any:
    """The model that an argument names.

    Parameters
    ----------
    given : str
        A file of `save`, a torch.export archive, ``package.module:factory@weights.safetensors``, or a pickle.
    trusted : sequence of str
        Pickles that may be opened, which runs the code in them.

    Raises
    ------
    ValueError, OSError, ImportError
        One sentence on what is wrong with it.
    """
    path = Path(given)
    if path.suffix == ".safetensors" and "@" not in given:
        return load(check_size(path))
    if path.suffix == ".pt2":
        return _exported(check_size(path))
    if path.suffix in PICKLES:
        return _pickled(check_size(path), given, trusted)
    if ":" in given:
        return _from_factory(given)
    raise ValueError(f"A model must be {_FORMS}, got {given!r}.")


def _exported(path: Path) -> nn.Module:
    # torch falls back on an unrestricted pickle where an archive holds one, unless this forbids it.
    before = os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD")
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    log = logging.getLogger("torch.export")
    was_disabled, log.disabled = log.disabled, True  # it writes a traceback before it raises
    try:
        with silenced("This version of file is deprecated"):  # torch 2.8 says so of other files
            return torch.export.load(path).module()
    except Exception as error:
        raise ValueError(f"{str(path)!r} cannot be read as an archive of torch.export: {_line(error)}") from error
    finally:
        log.disabled = was_disabled
        if before is None:
            del os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"]
        else:
            os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = before


def _pickled(path: Path, given: str, trusted: Sequence[str]) -> Any:
    if given not in trusted:
        raise ValueError(
            f"{given!r} is a pickle, and reading it can run any code. If you trust its author, add `--trust {given}`."
        )
    try:
        if path.suffix in (".pt", ".pth"):
            return torch.load(path, map_location="cpu", weights_only=False)
        return joblib.load(path)
    except Exception as error:
        raise ValueError(f"{given!r} cannot be read: {_line(error)}") from error


def _from_factory(given: str) -> nn.Module:
    factory, _, weights = given.partition("@")
    package, _, name = factory.partition(":")
    if "" in (package, name, weights):
        raise ValueError(f"A model must be {_FORMS}, got {given!r}.")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as `python -m` does
    try:
        result = pkgutil.resolve_name(factory)()
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        raise ValueError(f"{factory!r} cannot be called: {type(error).__name__}: {_line(error)}") from error
    if not isinstance(result, nn.Module):
        raise ValueError(f"{factory!r} must return an nn.Module, got {type(result).__name__}.")
    try:
        result.load_state_dict(load_file(check_size(Path(weights))))
    except (RuntimeError, SafetensorError) as error:
        raise ValueError(f"The weights {weights!r} do not fit {factory!r}: {_line(error, -1)}") from error
    return result


def _line(error: BaseException, which: int = 0) -> str:
    lines = str(error).strip().splitlines()
    return lines[which].strip() if lines else type(error).__name__
