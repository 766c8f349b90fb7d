"""Save and load fitted estimators: weights as safetensors, the rest as JSON."""

from __future__ import annotations

import inspect
import os
import platform
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np
import sklearn
import skorch
import torch
from sklearn.exceptions import NotFittedError
from torch import nn

from .. import estimators
from .._validation import shown, warn
from .._version import __version__
from ..process_state import keeps_modes
from ..storage import FileError, Stored, decode, encode, read_file, write_file

__all__ = ["load", "save"]

FORMAT = 1
_KIND = "estimator"
#: attributes that `load` recreates, and scikit-learn's settings for one process
_RECREATED = (
    "net_",
    "initial_state_",
    "_callback_settings",
    "_optimizer_settings",
    "_metadata_request",
    "_sklearn_output_config",
)
#: parameters that reveal where an estimator ran; they are private
_PLACES = ("checkpoint_dir",)

_ANYWAY = "Or pickle the estimator, for readers who trust you."
_CURES = {
    "callbacks": "A fitted network predicts without them: `set_params(callbacks=None)` before saving.",
    "optimizer": 'Name it, for example optimizer="sgd", or `set_params(optimizer="adam")`: it only matters in `fit`.',
    "activation": "Name it, or define the network as a `module`, which you pass to `load`.",
    "learning_rate_schedule": "Use a list of factors, or `set_params(learning_rate_schedule=None)` before saving.",
    "random_state": "Use an integer, or `set_params(random_state=None)` before saving.",
    "module_params": "Fix it in the function or class of `module`, which you pass to `load`.",
}


def save(estimator: Any, path: str | os.PathLike[str]) -> None:
    """Write a fitted estimator to one file, which `load` reads without running any code from it.

    The file is a safetensors file: the weights after and before training, and in its metadata as JSON the parameters,
    the fitted attributes, the history and the versions of the libraries. It is written atomically. Not saved: the
    optimiser's state (training that continues after `load` starts with a new one), `checkpoint_dir`, metadata requests
    and, with a `CapacityWarning`, attributes that you have added.

    Parameters
    ----------
    estimator : fitted estimator of this package
        For a Pipeline, save the last step; for a search, its `best_estimator_` or the last step of it.
    path : str or path
        An existing file is replaced. The usual ending is ``.safetensors``.

    Raises
    ------
    TypeError
        If it is not an estimator of this package, or a parameter cannot be written as text; the message says what to
        do.
    NotFittedError
        If it is not fitted.

    See Also
    --------
    load : Read the file.

    Notes
    -----
    A `module` of your own is not saved: pass it to `load` again. Built-in networks, `module=None` or an
    architecture's name, are rebuilt from their parameters.

    Examples
    --------
    >>> import tempfile, os
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_capacity import NetworkClassifier, load, save
    >>> X, y = load_iris(return_X_y=True)
    >>> model = NetworkClassifier((8,), max_epochs=2, random_state=0).fit(X, y)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "iris.safetensors")
    ...     save(model, path)
    ...     same = load(path)
    >>> bool((same.predict_proba(X) == model.predict_proba(X)).all())
    True
    """
    name = _public_name(estimator)
    params = {key: value for key, value in estimator.get_params(deep=False).items() if key not in _PLACES}
    module = params.pop("module")
    document: dict[str, Any] = {"kind": _KIND, "format": FORMAT, "class": name, "versions": _versions()}
    if module is None or isinstance(module, str):
        params["module"] = module
    else:
        document["user_module"] = getattr(module, "__qualname__", type(module).__qualname__)
    document["params"] = {key: _encoded_parameter(key, value) for key, value in params.items()}
    fitted = estimator._fitted_values()
    added = sorted(set(vars(estimator)) - {*estimator.get_params(deep=False), *fitted, *_RECREATED})
    if added:
        warn(f"`save` leaves out the attributes {added}, which {name} does not set itself.")
    document["fitted"] = {key: encode(value, name=key) for key, value in fitted.items()}
    rows = [{key: value for key, value in row.items() if key != "batches"} for row in estimator.history_]
    document["history"] = encode(rows, name="history_")
    tensors = {f"module.{key}": _tensor(key, value) for key, value in estimator.module_.state_dict().items()}
    tensors |= {f"initial.{key}": value for key, value in estimator.initial_state_.items()}
    write_file(path, document, tensors)


def _public_name(estimator: Any) -> str:
    """The name under which `load` finds the class, after a check that the estimator can be saved."""
    if isinstance(estimator, type):
        raise TypeError(f"`estimator` must be a fitted estimator, got the class {estimator.__name__}.")
    name = type(estimator).__name__
    if hasattr(estimator, "steps"):
        raise TypeError(
            "`estimator` must be one of this package, got a Pipeline. Save its last step, `save(pipeline[-1], path)`, "
            "and the steps before it, `pipeline[:-1]`, with skops.io, which is safe too, or with pickle."
        )
    if hasattr(estimator, "cv") and hasattr(estimator, "estimator"):
        raise TypeError(f"`estimator` must be one of this package, got a {name}. Save its `best_estimator_`.")
    if _class_named(name) is not type(estimator):
        raise TypeError(
            f"`estimator` must be one of this package, got {name}. For your own network, save the `state_dict()` "
            "with safetensors.torch.save_file."
        )
    if not estimator.__sklearn_is_fitted__():  # type: ignore[attr-defined]
        raise NotFittedError(f"This {name} is not fitted yet. Call `fit` before saving it.")
    return name


def _class_named(name: Any) -> type | None:
    """An estimator by its public name; any other name gives None."""
    return getattr(estimators, name) if isinstance(name, str) and name in estimators.__all__ else None


def _encoded_parameter(key: str, value: Any) -> Any:
    try:
        return encode(value, name=key)
    except TypeError as error:
        raise TypeError(f"{error} {_CURES.get(key, 'Change it with `set_params` before saving.')} {_ANYWAY}") from error


def _tensor(key: str, value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise TypeError(
            f"The module's state contains {key!r}, which is not a tensor: {type(value).__name__}. {_ANYWAY}"
        )
    return value


def _versions() -> dict[str, str]:
    return {
        "sklearn_capacity": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        "skorch": skorch.__version__,
        "numpy": np.__version__,
    }


@keeps_modes
def load(path: str | os.PathLike[str], *, module: nn.Module | Callable[..., nn.Module] | None = None) -> Any:
    """Read an estimator written by `save`, without running any code from the file.

    Parameters
    ----------
    path : str or path
    module : nn.Module, class or factory, default=None
        The `module` of the saved estimator, if it was your own; its weights come from the file.

    Returns
    -------
    estimator
        The fitted estimator; its predictions equal those of the saved one, bit for bit on the same kind of device. A
        network saved on a GPU is loaded on the CPU, with a `CapacityWarning`, if there is no GPU.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file was not written by `save`, is truncated or changed, comes from a newer version, lacks tensors, or
        contains some of a wrong shape or with non-finite values, or if `module` is missing, superfluous or does not
        match.

    See Also
    --------
    save : Write the file.

    Examples
    --------
    See :func:`sklearn_capacity.save`:

    >>> from sklearn_capacity import load
    >>> load("missing.safetensors")
    Traceback (most recent call last):
    ...
    FileNotFoundError: [Errno 2] No such file or directory: 'missing.safetensors'
    """
    stored = read_file(path)
    cls = _checked_class(path, stored.document)
    owner = stored.document.get("user_module")
    if not isinstance(owner, str | None):
        raise FileError(f"{path} is damaged: the name of its module is not a string.")
    if owner is not None and module is None:
        raise ValueError(
            f"{path} needs the network's class, {owner}, which a file does not contain: `load(path, module=...)`."
        )
    if owner is None and module is not None:
        raise ValueError(f"`module` must be None for {path}, which has a built-in network, got {shown(module)}.")
    try:
        estimator = _restored(cls, stored, module)
    except FileError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError, MemoryError) as error:
        text = str(error)  # it may show a value as large as the file
        text = f"{text[:1000]}..." if len(text) > 1000 else text.rstrip(".")
        raise FileError(f"{path} cannot be loaded: {text}.".replace("....", "...")) from error
    if not stored.intact:
        raise FileError(f"{path} is damaged: its content does not match its checksum.")
    return estimator


def _checked_class(path: Any, document: dict[str, Any]) -> type:
    if document.get("kind") != _KIND:
        raise FileError(f"{path} must contain an estimator, got a {document.get('kind')!r}.")
    number, versions = document.get("format"), document.get("versions")
    if type(number) is not int or number < 1:
        raise FileError(f"{path} is damaged: its format is {number!r}.")
    if number > FORMAT:
        wrote = versions.get("sklearn_capacity") if isinstance(versions, dict) else None
        raise FileError(
            f"{path} has format {number}, newer than {FORMAT}, the newest that this version reads. It was written by "
            f"sklearn_capacity {wrote}: update the package."
        )
    cls = _class_named(document.get("class"))
    if cls is None:
        raise FileError(
            f"{path} contains an estimator of the class {document.get('class')!r}, which this package does not have."
        )
    return cls


def _restored(cls: type, stored: Stored, module: Any) -> Any:
    document = stored.document
    if not all(isinstance(document.get(part), dict) for part in ("params", "fitted")):
        raise ValueError("it has no parameters or no fitted attributes")
    unknown = sorted(set(document["params"]) - set(inspect.signature(cls).parameters).difference(_PLACES))
    if unknown:
        raise ValueError(f"{cls.__name__} has no parameters {unknown}" + " in a file" * (unknown == [*_PLACES]))
    params = _decoded(document["params"])
    if module is not None:
        params["module"] = module
    elif not (params.get("module") is None or isinstance(params["module"], str)):
        raise ValueError(f"`module` must be a name, got {params['module']!r}")
    estimator = cls(**params)
    estimator._check_parameters()
    parts: dict[str, dict[str, torch.Tensor]] = {"module": {}, "initial": {}}
    for name, tensor in stored.tensors.items():
        part, _, key = name.partition(".")
        if part not in parts:
            raise ValueError(f"it has a tensor {reprlib.repr(name)}, which does not belong to an estimator")
        parts[part][key] = tensor
    history = decode(document["history"])
    if not (isinstance(history, list) and all(isinstance(row, dict) for row in history)):
        raise ValueError("the history is not a list of epochs")
    estimator._restore(_decoded(document["fitted"]), parts["module"], parts["initial"], history)
    return estimator


def _decoded(values: dict[str, Any]) -> dict[str, Any]:
    """Named values decoded as one document, so that its size limit covers all of them."""
    return decode({"dict": [[key, value] for key, value in values.items()]})
