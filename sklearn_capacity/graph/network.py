"""A trained network as measures use it: a private copy in eval mode, its logits, its graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode

from ..process_state import computed_once
from .evaluate import evaluate
from .known_programs import Programs, structure_of
from .memory_layout import channels_first, takes_channels_last
from .module_layers import module_layers
from .nodes import NetworkGraph, UnsupportedLayerError
from .outputs import Wrapper, as_logits, first_output
from .recurrent import unrolled
from .trace import Program, named_tensors, private_copy, refuse_own_operators, trace
from .weight_layers import WeightLayers, weight_layers

__all__ = ["Network"]

#: Allowed difference of graph and module, relative to the largest logit.
_TOLERANCES = {torch.float64: 1e-8, torch.float32: 1e-3}
LARGEST_TOLERANCE = 5e-2
#: Samples that pass through a network at once in double precision on a CPU: so many, or what its cache holds. An
#: encoder of 24 features then takes two thirds of the time, a small residual network of images half of it.
CACHED_SAMPLES, CACHE_BYTES = 16, 2**20
#: Whether modules take images with their channels last, by structure.
_LAYOUTS = Programs(most=1000, largest_cost=1)


class _Results(TorchDispatchMode):
    """Records the floating dtypes of all results, and how many numbers the new ones and the largest contain."""

    def __init__(self) -> None:
        super().__init__()
        self.dtypes: set[torch.dtype] = set()
        self.numbers = self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = (result,) if isinstance(result, Tensor) else torch.utils._pytree.tree_leaves(result)
        floats = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        self.dtypes |= {leaf.dtype for leaf in floats}
        if not func.is_view:
            sizes = [leaf.numel() for leaf in floats]
            self.numbers += sum(sizes)
            self.largest = max(self.largest, *sizes, 0)
        return result

    def per_sample(self, X: Tensor) -> dict[str, int]:
        """What one sample of X makes, by the names of the network's properties."""
        size = max(X[0].numel(), self.largest // len(X))
        return {"activation_size": size, "activation_total": max(1, self.numbers // len(X))}


def _refuse_others(outputs: Any) -> Tensor:
    """The outputs, if they are a tensor."""
    if not isinstance(outputs, Tensor):
        raise TypeError(
            f"its forward pass must return a tensor, got {type(outputs).__name__}. Wrap it in a module that returns "
            "the logits."
        )
    return outputs


def _placed(module: nn.Module, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The module with its tensors on a device and its floats in one dtype.

    `to` takes long for many submodules. On a GPU it also joins the weights of recurrent layers, so there it is called.
    """
    tensors = named_tensors(module).values()
    there = all(t.device == device and (t.dtype == dtype or not t.is_floating_point()) for t in tensors)
    return module if there and device.type == "cpu" else module.to(dtype=dtype, device=device)


def _rows(outputs: Tensor, n_samples: int) -> Tensor:
    return outputs.reshape(n_samples, -1) if outputs.dim() != 2 else outputs


class Network:
    """The network that a measure receives: logits, weights and the graph of a private copy in eval mode.

    Parameters
    ----------
    module : nn.Module
        Copied; the original is not used again.
    input_shape : tuple of int
        Shape of one sample.
    output : "logits", "one_logit", "probabilities", "one_probability" or "log_probabilities", default="logits"
        What the module returns. One logit z becomes [-z/2, z/2]. If the last step is a softmax (for one probability a
        sigmoid, for log-probabilities a log-softmax), the logits are its input. Otherwise the logits are the logarithms
        of probabilities, the log-odds of a single probability, or the log-probabilities themselves.
    initial_state : mapping of str to Tensor, default=None
        Raw parameters before training, for distances from the initialisation.
    dtype, device : default=None
        Where to compute; those of the module by default.
    samples : Tensor of shape (n, *input_shape), default=None
        A few inputs for comparing graph and module, if the module does not accept random numbers (token ids).
    """

    def __init__(
        self,
        module: nn.Module,
        input_shape: tuple[int, ...],
        *,
        output: str = "logits",
        initial_state: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        samples: Tensor | None = None,
    ):
        copied = private_copy(module, device)
        tensors = named_tensors(copied)
        floats = [t for t in tensors.values() if t.is_floating_point()]
        self.dtype = dtype or (floats[0].dtype if floats else torch.get_default_dtype())
        self.device = torch.device(device or (floats[0].device if floats else "cpu"))
        #: Trainable raw parameters by name, before any head was added.
        self.parameters = {
            name: p for name, p in _placed(copied, self.dtype, self.device).named_parameters() if p.requires_grad
        }
        self.parameter_count = sum(p.numel() for p in self.parameters.values())
        sizes = [tensor.numel() for tensor in {id(t): t for t in tensors.values()}.values()]
        #: Numbers in all parameters and buffers, a tied one once, and in the largest of them.
        self.size, self.largest_tensor = sum(sizes), max(sizes, default=0)
        self.input_shape = tuple(input_shape)
        self._samples = samples
        self.output = output
        self.module = _placed(as_logits(copied, output), self.dtype, self.device)
        self.initial_state = initial_state
        self._memo: dict[Any, Any] = {}
        #: The trace, or the reason why there is none, once known; this list is shared with renewed networks.
        self._traced: list[Program | UnsupportedLayerError] = []

    def forward(self, X: Tensor, state: Mapping[str, Tensor] | None = None) -> Tensor:
        """Logits (n, C) of the module, optionally with other tensors; differentiable in X and in these tensors.

        Parameters
        ----------
        X : Tensor of shape (n, *input_shape)
            Never written to, even by a module that works in place.
        state : mapping of str to Tensor, default=None
            Parameters and buffers that replace those of the same names.
        """
        return _rows(self._outputs(X, state), len(X))

    def refuse_replacing(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise if one of these tensors of `module` computes by its class what no other in its place would."""
        refuse_own_operators(tensors, self._inside, "no other values can take its place")

    def logits(self, X: Tensor) -> Tensor:
        """Logits (n, C) without a gradient.

        In double precision on a CPU, few samples at a time, from the graph if that is known and faster; in single
        precision its folded weights would give other digits.
        """
        with torch.no_grad():
            if self.dtype != torch.float64 or not X.is_cpu:
                return self.forward(X)
            pieces = X.split(max(CACHED_SAMPLES, CACHE_BYTES // (self.activation_size * X.element_size())))
            if self.has_graph and self._pools:
                return torch.cat([_rows(evaluate(self.graph, channels_first(x)), len(x)) for x in pieces])
            return torch.cat([self.forward(x) for x in pieces])

    @computed_once
    def _pools(self) -> bool:
        """Whether the graph has maxima over windows of images, which take a fifth of the time of torch's kernel."""
        return any(node.op == "max_pool" and node.params["nd"] > 1 for node in self.graph.nodes)

    def explored(self, X: Tensor) -> tuple[Tensor, tuple[int, ...], Tensor]:
        """Logits (n, C), the shape of the module's output for one sample, and the output before any conversion.

        What this object tells of a forward pass is noted, since each of its properties would take another one.
        """
        X, returned = X.clone(), list[Any]()
        before = X._version  # torch's counter for a tensor and all its views
        hook = self.users_module.register_forward_hook(lambda module, args, result: returned.append(result))
        try:
            with _Results() as seen:
                outputs = first_output(self.module(X))
        finally:
            hook.remove()
        vars(self)["_overwrites_input"] = X._version != before
        shape = tuple(_refuse_others(outputs).shape)
        if shape[:1] != (len(X),):
            raise ValueError(f"its forward pass must return one row of outputs for each sample, got shape {shape}.")
        rows = _rows(outputs, len(X))
        vars(self).update(seen.per_sample(X), n_outputs=rows.shape[1])
        return rows, shape[1:] or (1,), first_output(returned[-1])

    def _outputs(self, X: Tensor, state: Mapping[str, Tensor] | None = None) -> Tensor:
        if not self.takes_channels_last:
            X, state = channels_first(X), {name: channels_first(t) for name, t in (state or {}).items()}
        X = X.clone() if self._overwrites_input else X
        outputs = functional_call(self.module, dict(state), (X,)) if state else self.module(X)
        return _refuse_others(first_output(outputs))

    @computed_once
    def takes_channels_last(self) -> bool:
        """Whether the module supports channels-last images and kernels; one of the same structure may have shown it.

        The probe compares passes in both layouts, since weights of zero can hide a difference from that one.
        """
        if not any(parameter.dim() == 4 for parameter in self.module.parameters()):
            return False
        known = None if self._structure is None else _LAYOUTS.get(self._structure)
        if known is None:
            known = takes_channels_last(self.module, self.input_shape)
            if self._structure is not None:
                _LAYOUTS.keep(self._structure, known, 1)
        return known

    @computed_once
    def _structure(self) -> Hashable:
        """What `structure_of` says of the module."""
        return structure_of(self.module, self.input_shape, self.dtype, training=False)

    @computed_once
    def _overwrites_input(self) -> bool:
        """Whether the module overwrites its input, as one that begins with an in-place ReLU does."""
        with torch.no_grad():
            X = torch.zeros(2, *self.input_shape, dtype=self.dtype, device=self.device)
            before = X._version  # torch's counter for a tensor and all its views
            self.module(X)
            return X._version != before

    @property
    def users_module(self) -> nn.Module:
        """The copy of the user's module, without the wrapper that computes logits."""
        return self.module.get_submodule(self._inside[:-1])

    @property
    def program(self) -> Program:
        """The structure of the forward pass, traced once.

        Raises
        ------
        UnsupportedLayerError
            If the module cannot be traced.
        """
        if not self._traced:
            try:
                options: dict[str, Any] = {"inside": self._inside, "structure": self._structure}
                self._traced.append(trace(self.module, self.input_shape, dtype=self.dtype, **options))
            except UnsupportedLayerError as error:
                self._traced.append(error)
                raise
        (program,) = self._traced
        if isinstance(program, UnsupportedLayerError):
            raise UnsupportedLayerError(str(program)) from program
        return program

    @computed_once
    def _inside(self) -> str:
        """Path of the user's module within the wrappers around it."""
        return "module." * sum(isinstance(module, Wrapper) for module in self.module.modules())

    def shown(self, name: str) -> str:
        """The name of a tensor or a submodule of `module` in the user's module."""
        return name.removeprefix(self._inside)

    @computed_once
    def graph(self) -> NetworkGraph:
        """The folded graph, checked against the module.

        Raises
        ------
        UnsupportedLayerError
            If the module cannot be traced, or the graph does not reproduce it.
        """
        with torch.no_grad():
            graph = self.program.bind(self.tensors())
            try:
                self._check(graph)
            except UnsupportedLayerError:
                if not self.program.reused:
                    raise
                graph = self._traced_anew().bind(self.tensors())
                self._check(graph)
        return graph

    @property
    def has_graph(self) -> bool:
        """Whether the graph is known already."""
        return "graph" in vars(self)

    @computed_once
    def unrolled_graph(self) -> NetworkGraph:
        """The graph with recurrent layers as their steps, for measures that compose along it; checked as well."""
        with torch.no_grad():
            graph = unrolled(self.graph, shown=self.shown)
            if graph is not self.graph:
                self._check(graph)
        return graph

    def _traced_anew(self) -> Program:
        """The program of this very module, if that of an equal one does not fit it."""
        program = trace(self.module, self.input_shape, dtype=self.dtype, inside=self._inside, anew=True)
        self._traced[:] = [program]
        return program

    @computed_once
    def weight_layers(self) -> WeightLayers:
        """The weight layers with effective, folded weights.

        Raises
        ------
        UnsupportedLayerError
            If neither the module nor a submodule with weights can be traced, or layers are called sample by sample.
        """
        with torch.no_grad():
            try:
                return weight_layers(self.graph, shown=self.shown)
            except UnsupportedLayerError:
                layers = self._layers_of_parts()
                if layers is None:
                    raise
                return layers

    def _layers_of_parts(self) -> WeightLayers | None:
        """The weight layers of the submodules that can be traced; None if there are none."""
        for inputs in self._inputs_to_try(2):
            try:
                X = inputs.to(device=self.device, dtype=self.dtype)
                layers = module_layers(self.module, X, shown=lambda name: self.shown(f"{name}.").removesuffix("."))
            except (torch.OutOfMemoryError, UnsupportedLayerError):
                raise
            except (RuntimeError, IndexError, TypeError, ValueError):  # inputs that the module does not take
                continue
            return layers if layers.nodes else None
        return None

    def tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers by all their names."""
        return named_tensors(self.module)

    def initial_tensors(self) -> dict[str, Tensor]:
        """Parameters and buffers of the module before training, by the names of `named_tensors`.

        Raises
        ------
        UnsupportedLayerError
            If there is no initial state, or it belongs to another module.
        """
        if self.initial_state is None:
            raise UnsupportedLayerError("The weights before training are not known for this model.")
        tensors = self.tensors()
        for name, parameter in self.parameters.items():
            initial = self.initial_state.get(name)
            if initial is None or initial.shape != parameter.shape:
                got = "is missing" if initial is None else f"has shape {tuple(initial.shape)}"
                raise UnsupportedLayerError(
                    f"The weights before training belong to another module: `{name}` {got}, while its shape is now "
                    f"{tuple(parameter.shape)}."
                )
        for name, tensor in tensors.items():
            initial = self.initial_state.get(self.shown(name))
            if initial is not None and tensor.is_floating_point():
                moved = initial.to(device=self.device, dtype=self.dtype)
                tensors[name] = nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
        return tensors

    def renewed(self) -> Network:
        """The network after an in-place change of its module's weights: the trace is reused, other caches are not."""
        renewed = copy.copy(self)
        for followed in ("graph", "unrolled_graph", "weight_layers"):
            renewed.__dict__.pop(followed, None)
        renewed._memo = {}
        return renewed

    @computed_once
    def activation_size(self) -> int:
        """Number of entries in the largest tensor of the forward pass for one sample."""
        return self._of_a_pass()["activation_size"]

    @computed_once
    def activation_total(self) -> int:
        """Numbers in all the tensors that one sample makes, which a backward pass needs."""
        return self._of_a_pass()["activation_total"]

    def _of_a_pass(self) -> dict[str, int]:
        X = torch.zeros(2, *self.input_shape, dtype=self.dtype, device=self.device)
        with torch.no_grad(), _Results() as seen:
            self.forward(X)
        return seen.per_sample(X)

    def once(self, key: Any, compute: Callable[[], Any]) -> Any:
        """The value of `compute`, cached with the network, for example operator norms that several measures share."""
        if key not in self._memo:
            self._memo[key] = compute()
        return self._memo[key]

    def _inputs_to_try(self, n: int) -> Iterator[Tensor]:
        """Random inputs, then the caller's samples, for example token ids."""
        generator = torch.Generator().manual_seed(0)
        yield torch.randn(n, *self.input_shape, dtype=torch.float64, device="cpu", generator=generator)
        if self._samples is not None and len(self._samples):
            yield self._samples[[i % len(self._samples) for i in range(n)]]

    @property
    def kept(self) -> Mapping[Any, Any]:
        """What `once` has stored so far."""
        return self._memo

    @computed_once
    def n_outputs(self) -> int:
        with torch.no_grad():
            return self.forward(torch.zeros(2, *self.input_shape, dtype=self.dtype, device=self.device)).shape[1]

    def _dtypes_inside(self, X: Tensor) -> set[torch.dtype]:
        """The floating dtypes of everything that the forward pass computes."""
        with _Results() as seen:
            self.forward(X)
        return seen.dtypes | {self.dtype}

    def _compared(self, graph: NetworkGraph) -> tuple[Tensor, Tensor, Tensor]:
        """Samples, and the outputs of module and graph for them."""
        # Another number of samples than the trace had, so that one baked into the graph shows.
        failure: Exception | None = None
        for inputs in self._inputs_to_try(3):
            X = inputs.to(device=self.device, dtype=self.dtype)
            try:
                return X, self.forward(X), evaluate(graph, X).reshape(len(X), -1)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, IndexError, TypeError, ValueError) as error:
                failure = error
        raise UnsupportedLayerError(
            f"The traced graph cannot be compared with the module on 3 random samples: {failure} Does the forward pass "
            "fix the number of samples, by `len(x)` instead of `x.shape[0]`? If it needs integers, pass `X`."
        ) from failure

    def _check(self, graph: NetworkGraph) -> None:
        X, expected, got = self._compared(graph)
        if got.shape != expected.shape:
            raise UnsupportedLayerError(
                f"The traced graph returns shape {tuple(got.shape)}, the module {tuple(expected.shape)}."
            )
        gap = (got - expected).abs().max() / expected.abs().max().clamp_min(torch.finfo(self.dtype).tiny)
        if not torch.isfinite(expected).all() or bool(gap <= _TOLERANCES.get(self.dtype, LARGEST_TOLERANCE)):
            return
        # The graph omits casts; a module that rounds to float32 inside has that accuracy in float64, too.
        tolerance = max(_TOLERANCES.get(dtype, LARGEST_TOLERANCE) for dtype in self._dtypes_inside(X))
        if not bool(gap <= tolerance):
            raise UnsupportedLayerError(
                f"The traced graph does not reproduce the module: relative error {float(gap):.1e}, tolerance "
                f"{tolerance:g}. Does its forward pass draw random numbers or keep state in eval mode?"
            )
