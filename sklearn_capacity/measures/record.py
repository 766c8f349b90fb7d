"""The record of a measure: its function, what it needs and how it behaves."""

from __future__ import annotations

import contextlib
import copy
import functools
import inspect
import math
import numbers
import types
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor

from .._validation import NotDefinedError, as_list, check_instance, check_option, shown, shown_with_kind
from .memory import Peak
from .pass_limits import UNSHARED, Limits

__all__ = ["COSTS", "INVARIANCES", "NEEDS", "Measure", "Measured", "NotDefinedError", "logarithm"]

#: What a measure may need besides the network's forward pass; these are its only reasons to refuse a network.
#: "layers": the trained matrices and their input sizes, in any network. "homogeneous": a graph of
#: linear maps and positively homogeneous functions. "lipschitz": one of functions with a known Lipschitz constant.
#: "chain": linear maps without biases and rectifiers, one after the other. "graph": a module that can be traced.
NEEDS = (
    "weights",
    "layers",
    "homogeneous",
    "lipschitz",
    "chain",
    "graph",
    "data",
    "labels",
    "loss",
    "initial_state",
)
#: From cheap to expensive, with factors of the approximate number of forward passes over the data.
#: `measures="cheap"` excludes "gradients" (of single samples) and what follows.
COSTS: dict[str, tuple[float | str, ...]] = {
    "weights": (0,),
    "forward": (2,),
    "jacobian": (1.5, "n_outputs"),
    "gradients": (15, "n_outputs"),
    "spectrum": (15, "n_outputs"),
    "draws": (1000,),
    "ascent": (2000,),
}
CHEAP_COSTS = ("weights", "forward", "jacobian")
INVARIANCES = ("permutation", "layer_rescaling", "node_rescaling")


def logarithm(value: float) -> float:
    """The natural logarithm; -inf for 0, nan for nan."""
    return -math.inf if value == 0 else math.log(value)


@dataclass(frozen=True)
class Measured:
    """A measured number.

    Attributes
    ----------
    value : float
        The value; may be infinite where the measure's docstring says so.
    log_value : float or None
        Natural logarithm, stored if the value itself may overflow.
    standard_error : float or None
        Standard error of a stochastic measure.
    per_layer : sequence of mappings
        One row per weight layer, each with at least "layer" and "value".
    info : mapping
        How it was computed: method, iterations, residual.
    """

    value: float
    log_value: float | None = None
    standard_error: float | None = None
    per_layer: Sequence[Mapping[str, Any]] = ()
    info: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_log(cls, log_value: float, **others: Any) -> Measured:
        """Create from the logarithm of a positive number; above the largest float, the value is inf."""
        value = math.inf if log_value >= 709.78 else math.exp(log_value)  # nan stays nan
        return cls(value, float(log_value), **others)

    def log(self) -> float:
        """The logarithm of the value; -inf for 0."""
        return logarithm(self.value) if self.log_value is None else self.log_value


@dataclass(frozen=True)
class Measure:
    """The record of a measure, from which the scorer, tables, docs and common tests are derived.

    Attributes
    ----------
    name : str
    function : callable(network, batch, *, params) -> Measured or float
        Or ``f(module, X, y)``, which receives a copy of the user's module in eval mode, and tensors.
    family : str, default="other"
        "size", "norm", "capacity", "margin", "jacobian", "fisher", "sharpness", ...
    lower_is_better : bool, default=True
        Whether lower values suggest better generalisation.
    source : str, default=""
        Paper and equation.
    needs : subset of NEEDS
    cost : one of COSTS
    passes : tuple of float, str and callable, default=()
        Factors of the number of forward passes over the data that it takes, roughly: numbers, names of its parameters,
        "n_outputs", "per_sample" (one over the number of samples), or functions of a mapping with all of these. Empty:
        those of its cost.
    unit : str
        Unit of the value; "1" for a pure number.
    tasks : subset of ("classification", "regression")
    invariances : subset of INVARIANCES
        Function-preserving changes of a rectifier network's weights that do not change the value.
    stochastic : bool
        Whether it draws random numbers (from its own seeded generator).
    signed : bool
        Whether it may be negative, so that its logarithm is not defined.
    fixed : mapping
        Fixed parameters: `l1_path_norm` is `path_norm` with p = 1.
    same_as : str, default=""
        Another measure with the same value by definition when no parameters are given.
    description : str
        Summary in the docs table; by default the first line of the function's docstring.
    memory : Peak
        Memory that it needs at its peak; without room for it the measure is refused beforehand.
    limits : callable, default=None
        ``limits(network, batch, **params)`` returns the largest numbers of passes over the data that it can take, by
        part (see `measures.pass_limits`); measures of a call share the parts of equal names, except `UNSHARED`. None
        if no limit is known.
    """

    name: str
    function: Callable[..., Any]
    family: str = "other"
    lower_is_better: bool = True
    source: str = ""
    needs: frozenset[str] = frozenset()
    cost: str = "weights"
    passes: tuple[float | str | Callable[[Mapping[str, Any]], float], ...] = ()
    unit: str = "1"
    tasks: tuple[str, ...] = ("classification", "regression")
    invariances: frozenset[str] = frozenset()
    stochastic: bool = False
    signed: bool = False
    fixed: Mapping[str, Any] = field(default_factory=dict)
    same_as: str = ""
    description: str = ""
    memory: Peak = field(default_factory=Peak)
    limits: Limits | None = None

    def __post_init__(self) -> None:
        check_instance("name", self.name, str, "text")
        _check_function(self.name, self.function)
        check_instance("memory", self.memory, Peak, "a `Peak`")
        check_instance("lower_is_better", self.lower_is_better, bool, "True or False")
        for name, kind in (("needs", frozenset), ("invariances", frozenset), ("tasks", tuple)):
            given = getattr(self, name)
            object.__setattr__(self, name, kind([given] if isinstance(given, str) else as_list(name, given)))
        if not self.tasks:
            raise ValueError("`tasks` must name a task, 'classification', 'regression' or both, got none.")
        for task in self.tasks:
            check_option("tasks", task, ("classification", "regression"))
        check_option("cost", self.cost, tuple(COSTS))
        known = {*self.parameters, "n_outputs", "per_sample"}
        for factor in self.passes:
            if isinstance(factor, str):
                check_option("passes", factor, tuple(sorted(known)))
        for need in self.needs:
            check_option("needs", need, NEEDS)
        for invariance in self.invariances:
            check_option("invariances", invariance, INVARIANCES)

    @property
    def cheap(self) -> bool:
        return self.cost in CHEAP_COSTS and not self.stochastic

    @property
    def summary(self) -> str:
        return self.description or (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    @property
    def parameters(self) -> dict[str, Any]:
        """Names and defaults of the parameters that a user may set."""
        named, _ = _settable(self.function)
        return {name: default for name, default in named.items() if name not in self.fixed}

    def estimated_passes(self, n_outputs: int, n_samples: int, params: Mapping[str, Any]) -> float:
        """How many forward passes over the data it takes, roughly."""
        known = {"n_outputs": n_outputs, "per_sample": 1 / max(1, n_samples), **self.parameters, **params}
        named = [known[f] if isinstance(f, str) else f for f in self.passes or COSTS[self.cost]]
        factors = [factor(known) if callable(factor) else factor for factor in named]
        return math.prod(1 if factor is None else float(factor) for factor in factors)

    def most_passes(
        self, label: str, network: Any, batch: Any, params: Mapping[str, Any]
    ) -> dict[Hashable, float] | None:
        """Upper bounds of the passes over the data by part, where a label names its own part; None if not known."""
        if self.limits is None:
            return None
        named, _ = _settable(self.function)
        parts = self.limits(network, batch, **{**named, **self.fixed, **params})
        if parts is None:
            return None
        return {("measure", label) if part == UNSHARED else part: passes for part, passes in parts.items()}

    @property
    def takes_any(self) -> bool:
        """Whether its function has ``**params``."""
        return _settable(self.function)[1]

    def __call__(self, network: Any, batch: Any, **params: Any) -> Measured:
        returned = self.function(*_arguments(self.function, network, batch), **{**self.fixed, **params})
        if not isinstance(returned, Measured):
            return Measured(_as_number(self.name, returned))
        optional: dict[str, Any] = {
            key: None if (number := getattr(returned, key)) is None else _as_number(self.name, number)
            for key in ("log_value", "standard_error")
        }
        return replace(returned, value=_as_number(self.name, returned.value), **optional)


# -- calling a function, and checking what it returns ------------------------------------------------------------------

_PACKAGE = f"{__name__.partition('.')[0]}."
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def _check_function(name: str, function: Any) -> None:
    """Refuse functions that cannot be called as ``f(network, batch)`` or ``f(module, X, y)``."""
    if not callable(function) or isinstance(function, type):
        raise TypeError(f"The measure {name!r} must be a function, got {shown(function)}.")
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # written in C, without a signature
        parameters = inspect.signature(lambda: None).parameters.values()
    several = any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters)
    if not several and len([p for p in parameters if p.kind in _POSITIONAL]) < 2:
        raise TypeError(
            f"The measure {name!r} must be a function f(network, batch) or f(module, X, y), got {shown(function)}."
        )


def _takes_module(function: Callable[..., Any]) -> bool:
    """Whether a function is called as ``f(module, X, y)`` or ``f(module, X)`` rather than as ``f(network, batch)``."""
    positional = _positional(function)
    if len(positional) < 2:
        return False
    second, needed = positional[1].name, [p for p in positional if p.default is inspect.Parameter.empty]
    return second == "X" or (second != "batch" and len(needed) >= 3)


def _positional(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return [p for p in _parameters(function) if p.kind in _POSITIONAL]


def _parameters(function: Callable[..., Any]) -> Sequence[inspect.Parameter]:
    own = isinstance(function, types.FunctionType) and function.__module__.startswith(_PACKAGE)
    return _parameters_of_own(function) if own else _read_parameters(function)


def _read_parameters(function: Callable[..., Any]) -> Sequence[inspect.Parameter]:
    return tuple(inspect.signature(function).parameters.values())


#: Of this package's functions, which nobody changes: a call with a few measures asks for them dozens of times.
_parameters_of_own = functools.lru_cache(maxsize=1024)(_read_parameters)


def _settable(function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """Names and defaults of the parameters other than the data, and whether the function has ``**params``."""
    parameters = _parameters(function)
    first = {p.name for p in _positional(function)[: 3 if _takes_module(function) else 2]}
    kinds = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    named = {p.name: p.default for p in parameters if p.kind in kinds and p.name not in first}
    return named, any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters)


def _arguments(function: Callable[..., Any], network: Any, batch: Any) -> tuple[Any, ...]:
    """The positional arguments of a function: network and batch, or a copy of the module, X and y."""
    if not _takes_module(function):
        return network, batch
    module = copy.deepcopy(network.users_module)  # which the function may change
    positional = _positional(function)
    if len(positional) < 3:
        return module, batch.X
    optional = positional[2].default is not inspect.Parameter.empty
    return (module, batch.X) if optional and not batch.has_labels else (module, batch.X, batch.y)


def _as_number(name: str, returned: Any) -> float:
    """The returned real number as a float; tensors and arrays of shape () are accepted."""
    value = returned
    if isinstance(value, Tensor | np.ndarray | np.generic) and value.shape == ():
        with contextlib.suppress(RuntimeError):  # on the meta device there is no number
            value = value.item()
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        got = shown_with_kind(returned)
        raise TypeError(f"The measure {name!r} must return one real number or a `Measured`, got {got}.")
    try:
        return float(value)
    except OverflowError as error:
        raise ValueError(f"The measure {name!r} must return a number that a float can hold: {error}.") from error
