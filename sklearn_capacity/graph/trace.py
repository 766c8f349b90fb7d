"""From a module to a program: trace once, by a recording or with torch.export, bind tensors any number of times."""

from __future__ import annotations

import copy
import functools
import itertools
import operator
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export.graph_signature import OutputKind
from torch.nn.modules.dropout import _DropoutNd

from ..process_state import undisturbed, without_torch_warnings
from .binding import Binder
from .expansion import write_out
from .export_cleanup import no_leftovers
from .fold import fold
from .in_place import mutates, replace_in_place
from .inlining import inline_modes
from .known_programs import Programs, structure_of
from .layouts import Sizes
from .nodes import NetworkGraph, UnsupportedLayerError
from .recording import is_known, recorded, recorded_twice
from .templates import Template, kinds_of

__all__ = ["Program", "is_idle", "named_tensors", "private_copy", "refuse_own_operators", "trace"]

# Number of samples for tracing; a single one would be specialised away.
SAMPLES = 2
#: Exported programs of this process, and the errors of failed exports; half a megabyte each is much.
_PROGRAMS = Programs(most=100, largest_cost=2**20)
#: What binding reads of a node's `meta`; the rest would hold other graphs.
_META = ("val", "nn_module_stack", "stack_trace")


#: Kinds of a module's tables, such as those of its hooks.
_TABLES = (dict, OrderedDict)

#: Operators that are folded into adjacent layers.
_FOLDED = {
    torch.ops.aten.batch_norm.default,
    torch.ops.aten._native_batch_norm_legit_no_training.default,
    torch.ops.aten.pad.default,
    torch.ops.aten.constant_pad_nd.default,
}


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under all its names, so that tied tensors are recognised."""
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    return tensors


def private_copy(module: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """A deep copy in eval mode, on `device`; tensors left by a forward pass lose their autograd history."""
    memo: dict[int, Any] = {}
    for tensor in named_tensors(module).values():
        moved = tensor.detach()
        moved = moved.clone() if device is None else moved.to(device, copy=True)
        if isinstance(tensor, nn.Parameter):  # also one of another tensor class, which `moved` keeps
            kind = type(tensor) if _defines_operators(type(tensor)) else nn.Parameter
            moved = kind(moved, tensor.requires_grad)
        memo[id(tensor)] = moved
    for submodule in module.modules():
        for value in vars(submodule).values():
            if isinstance(value, Tensor):
                if id(value) not in memo and not value.is_leaf:
                    memo[id(value)] = value.detach().clone()
            elif type(value) in _TABLES and not value:  # a module has a dozen; a deep copy would take most of its time
                memo[id(value)] = type(value)()
    try:
        copied = copy.deepcopy(module, memo)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UnsupportedLayerError(f"`{type(module).__name__}` cannot be copied ({_first_line(error)}).") from error
    copied.eval()  # a user's `train`, which it calls, may return nothing
    return copied


@dataclass(frozen=True)
class Program:
    """The structure of a module's forward pass, without its tensors.

    `bind` returns the graph for one set of tensors, as a differentiable function of them, so a training loop traces
    once and binds at every step. `batch` is the size of the first axis: a symbol, or a number if the forward pass fixed
    it (by calling `len(x)`, for example). `inside` is the dotted path, with a final dot, of the user's module in the
    traced one. `reused` tells that another module of equal structure was traced, `confirmed` on which devices one of
    them was found to give the program's outputs.
    """

    nodes: tuple[torch.fx.Node, ...]
    tensor_names: Mapping[str, str]
    constants: Mapping[str, Tensor]
    input_name: str
    input_shape: tuple[int, ...]
    batch: str
    output_name: str
    inside: str = ""
    reused: bool = False
    confirmed: set[torch.device] = field(default_factory=set, repr=False, compare=False)
    #: Of the tensors bound before, by their kinds.
    _templates: Programs = field(default_factory=lambda: Programs(4, 2**20), init=False, repr=False, compare=False)

    @property
    def cost(self) -> int:
        """Numbers that the constants hold, and some hundreds for each node."""
        return 300 * len(self.nodes) + sum(constant.numel() for constant in self.constants.values())

    def shown(self, scope: str) -> str:
        """The name of a submodule in the user's module."""
        return "" if scope + "." == self.inside else scope.removeprefix(self.inside)

    @functools.cached_property
    def sizes(self) -> Mapping[str, Sizes]:
        """The sizes of every tensor by the operation's name; of several results, those of the first."""
        results = {node.name: node.meta.get("val") for node in self.nodes}
        firsts = {name: r[0] if isinstance(r, tuple | list) and r else r for name, r in results.items()}
        return {name: Sizes.of(r, self.batch) for name, r in firsts.items() if isinstance(r, Tensor)}

    @property
    def may_fold(self) -> bool:
        """Whether `bind` may join layers: there is a batch norm, or a padding before a convolution."""
        return any(node.target in _FOLDED for node in self.nodes)

    def bind(self, tensors: Mapping[str, Tensor], *, folded: bool = True) -> NetworkGraph:
        """The graph with effective weights: parametrisations applied, batch norm folded.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Parameters and buffers by name, as returned by `named_tensors`, on one device.
        folded : bool, default=True
            False keeps batch norm, padding by another layer, and the fixed head of a one-logit model as separate nodes.
        """
        return fold(self._unfolded(tensors), norms=folded)

    def _unfolded(self, tensors: Mapping[str, Tensor]) -> NetworkGraph:
        """The graph as traced; of a program that several networks share, by the template of an earlier one."""
        template = self.template(tensors)
        graph = None if template is None else template.graph(tensors)
        return Binder(self, tensors).graph() if graph is None else graph

    def template(self, tensors: Mapping[str, Tensor]) -> Template | None:
        """The graph without tensors, for all tensors of these kinds; None if no other network shares the program."""
        if not self.reused:
            return None
        kinds = kinds_of(tensors)
        template = self._templates.get(kinds)
        if template is None:
            binder = Binder(self, tensors)
            binder.graph()
            template = Template(binder)
            self._templates.keep(kinds, template, template.cost)
        return template


def trace(
    module: nn.Module,
    input_shape: tuple[int, ...],
    *,
    dtype: torch.dtype | None = None,
    training: bool = False,
    inside: str = "",
    anew: bool = False,
    structure: Hashable = None,
) -> Program:
    """Trace a module's forward pass, in eval mode unless `training`, on a private copy.

    Of modules with equal structure only the first is traced; see `known_programs`.

    Parameters
    ----------
    module : nn.Module
        Not modified.
    input_shape : tuple of int
        Shape of one sample.
    dtype : torch.dtype, default=None
        Floating dtype of the sample; by default that of the parameters.
    training : bool, default=False
        Whether every submodule keeps its current mode; such a program only serves for comparison with eval mode.
    inside : str, default=""
        Path of the user's module in `module`, with a final dot, if `module` is a wrapper.
    anew : bool, default=False
        Whether to forget the program of an equal module.
    structure : hashable, default=None
        What `structure_of` says of the module, if that is known.

    Raises
    ------
    UnsupportedLayerError
        If the forward pass depends on the data in a way that a graph cannot represent.
    """
    tensors = named_tensors(module)
    refuse_own_operators(tensors, inside, "the forward pass has no graph")
    floats = [t.dtype for t in tensors.values() if t.is_floating_point()]
    dtype = dtype or (floats[0] if floats else torch.get_default_dtype())
    key = structure or structure_of(module, tuple(input_shape), dtype, training=training)
    known = None if key is None or anew else _PROGRAMS.get(key)
    if isinstance(known, Program):
        return known if known.inside == inside else replace(known, inside=inside)  # itself, since it knows its sizes
    if known is not None:
        raise UnsupportedLayerError(known)
    try:
        with torch.inference_mode(False):  # which forbids differentiation, and another caller may differentiate
            program = _new_program(module, tuple(input_shape), dtype, training, inside)
    except UnsupportedLayerError as error:
        if key is not None and not isinstance(error.__cause__, MemoryError | torch.OutOfMemoryError):
            _PROGRAMS.keep(key, str(error), len(str(error)))
        raise
    if key is not None:
        _PROGRAMS.keep(key, replace(program, reused=True), program.cost)
    return program


def _new_program(
    module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype, training: bool, inside: str
) -> Program:
    """The program of a module from the calls that it makes where these can be recorded, otherwise from an export."""
    meta_copy = functools.partial(_copy_to, "meta", module, training)
    if is_known(module):
        record = recorded(meta_copy(), input_shape, dtype)
    else:
        record = without_torch_warnings(lambda: recorded_twice(meta_copy, input_shape, dtype))
    if record is None:
        return _from_export(_copy_to("cpu", module, training), input_shape, dtype, inside)
    nodes, names = record.nodes, record.tensor_names
    return Program(nodes, names, {}, record.input_name, input_shape, record.batch, record.output_name, inside)


def _copy_to(device: str, module: nn.Module, training: bool) -> nn.Module:
    """A private copy in eval mode, or in the modes of the original."""
    private = private_copy(module, device)
    if training:
        for copied, original in zip(private.modules(), module.modules(), strict=True):
            copied.training = original.training and not is_idle(original)
    return private


def refuse_own_operators(tensors: Mapping[str, Tensor], inside: str, consequence: str) -> None:
    """Raise for a weight of a class whose operators neither a graph nor plain tensors in its place would have."""
    for name, tensor in tensors.items():
        if _defines_operators(type(tensor)):
            raise UnsupportedLayerError(
                f"`{name.removeprefix(inside)}` is a {type(tensor).__name__}, whose operators may differ from torch's, "
                f"so {consequence}; margins and Jacobians work without."
            )


def _defines_operators(kind: type) -> bool:
    """Whether it is a class of parameters that may compute something else than torch's own."""
    own = itertools.takewhile(lambda base: base is not nn.Parameter, kind.__mro__)
    return issubclass(kind, nn.Parameter) and any("__torch_function__" in vars(base) for base in own)


def is_idle(module: nn.Module) -> bool:
    """Whether it is a dropout that drops nothing."""
    return isinstance(module, _DropoutNd) and module.p == 0


def _from_export(private: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype, inside: str) -> Program:
    """The program that torch exports for a private copy."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(SAMPLES, *input_shape, dtype=dtype, device="cpu", generator=generator)
    try:
        export = functools.partial(_exported, _Plain(private), sample)
        exported = undisturbed(lambda: without_torch_warnings(export))
        if inline_modes(exported.graph_module):
            replace_in_place(exported.graph)
            if mutates(exported.graph):
                raise NotImplementedError("an in-place operator under autocast or without gradients")
        branch = next((node for node in exported.graph.nodes if node.op == "get_attr"), None)
        if branch is not None:  # the body of `torch.cond` or the like
            raise NotImplementedError(f"`{next(iter(branch.users)).target}` has a body of its own")
        if any(_has_wrong_shape(node) for node in exported.graph.nodes):  # and all that follows from it has
            raise NotImplementedError(
                f"torch {torch.__version__} exports the final states of an LSTM with an axis too many; "
                "use its outputs, `outputs[:, -1]`, or torch 2.13"
            )
    except Exception as error:
        name = type(private.get_submodule(inside[:-1])).__name__
        raise UnsupportedLayerError(
            f"The forward pass of `{name}` cannot be traced as a graph of operators "
            f"({_first_line(error)}). Measures that need the graph require control flow that depends on shapes only; "
            "margins, Jacobians and the Fisher-Rao norm work without it."
        ) from error
    signature = exported.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = {key: name.removeprefix("module.") for key, name in named.items()}
    constants = {key: exported.constants[name] for key, name in signature.inputs_to_lifted_tensor_constants.items()}
    nodes = tuple(exported.graph_module.graph.nodes)
    for node in nodes:
        node.meta = {name: node.meta[name] for name in _META if name in node.meta}
    (input_name,) = signature.user_inputs
    placeholder = next(node for node in nodes if node.name == input_name)
    batch = str(placeholder.meta["val"].shape[0])
    # By place, since overwritten inputs and buffers precede it among the outputs, and inlining renames.
    place = next(i for i, spec in enumerate(signature.output_specs) if spec.kind is OutputKind.USER_OUTPUT)
    output_name = str(nodes[-1].args[0][place])  # type: ignore[index]
    return Program(nodes, names, constants, input_name, input_shape, batch, output_name, inside)


def _has_wrong_shape(node: fx.Node) -> bool:
    """Whether a node is a state of an LSTM, (layers, n, width), that the export took for four-dimensional."""
    if node.target is not operator.getitem or not node.users:
        return False
    source, index = node.args
    is_state = source.target is torch.ops.aten.lstm.input and index != 0  # type: ignore[union-attr]
    return bool(is_state and node.meta["val"].dim() == 4)


def _exported(module: nn.Module, sample: Tensor) -> torch.export.ExportedProgram:
    """The program of a module's forward pass, in functional form, for any number of samples."""
    dim = torch.export.Dim
    spec = (dict.fromkeys(range(1, sample.dim()), dim.STATIC) | {0: dim.AUTO},)
    with no_leftovers() as traced:
        exported = torch.export.export(module, (sample,), dynamic_shapes=spec, strict=False)
        write_out(exported.graph)
        replace_in_place(exported.graph)
        if mutates(exported.graph):  # takes three quarters of the time, so only if needed
            traced.append(exported)
            exported = exported.run_decompositions({})
        traced.append(exported)
    return exported


class _Plain(nn.Module):
    """Gives the forward pass one positional argument, independent of its name."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.module(x)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
