"""From a module to a program: trace once with torch.export, bind tensors as often as wanted."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..process_state import computed_once, silenced, undisturbed
from .export_cleanup import no_leftovers
from .fold import fold
from .nodes import NetworkGraph, Node, Place, UnsupportedLayerError
from .rules import CONVERSIONS, SPLITS, Call, Draft, Ref, Weight, split_piece

__all__ = ["Program", "named_tensors", "private_copy", "trace"]

# Samples to trace with; one would be specialised away.
SAMPLES = 2


#: Operators that are folded into the layers beside them.
_FOLDED = {
    torch.ops.aten.batch_norm.default,
    torch.ops.aten._native_batch_norm_legit_no_training.default,
    torch.ops.aten.pad.default,
    torch.ops.aten.constant_pad_nd.default,
}


def named_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer under every name it has, so that tied ones are found."""
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors.update(module.named_buffers(remove_duplicate=False))
    return tensors


def private_copy(module: nn.Module, device: torch.device | str | None = None) -> nn.Module:
    """A deep copy in eval mode, on `device`; a tensor that a forward pass left behind in it loses its history."""
    memo: dict[int, Any] = {}
    for tensor in named_tensors(module).values():
        moved = tensor.detach()
        moved = moved.clone() if device is None else moved.to(device, copy=True)
        memo[id(tensor)] = nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved
    for submodule in module.modules():
        for value in vars(submodule).values():
            if isinstance(value, Tensor) and id(value) not in memo and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo).eval()


@dataclass(frozen=True)
class Program:
    """The structure of a module's forward pass, without its tensors.

    `bind` gives the graph for one set of tensors, as a differentiable function of them, so a training loop traces once
    and binds every step. `batch` is the first axis's size, a symbol, or a number where the forward pass fixed it (by
    calling `len(x)`, say). `inside` is the dotted path, with its last dot, of the user's module within what was traced.
    """

    nodes: tuple[torch.fx.Node, ...]
    tensor_names: Mapping[str, str]
    constants: Mapping[str, Tensor]
    input_name: str
    input_shape: tuple[int, ...]
    batch: str
    output_name: str
    inside: str = ""

    def shown(self, scope: str) -> str:
        """The name of a submodule as the user knows it."""
        return "" if scope + "." == self.inside else scope.removeprefix(self.inside)

    @property
    def may_fold(self) -> bool:
        """Whether `bind` may join layers: there is a batch norm, or a padding before a convolution."""
        return any(node.target in _FOLDED for node in self.nodes)

    def bind(self, tensors: Mapping[str, Tensor], *, folded: bool = True) -> NetworkGraph:
        """The graph with effective weights: parametrisations applied, batch norm folded.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Parameters and buffers by name, as `named_tensors` gives them, on one device.
        folded : bool, default=True
            False leaves batch norm, padding by another layer, and the fixed head of a one-logit model as nodes of
            their own.
        """
        return fold(_Binder(self, tensors).graph(), norms=folded)


def trace(
    module: nn.Module,
    input_shape: tuple[int, ...],
    *,
    dtype: torch.dtype | None = None,
    training: bool = False,
    inside: str = "",
) -> Program:
    """Trace a module's forward pass, in eval mode unless told otherwise, on a private CPU copy.

    Parameters
    ----------
    module : nn.Module
        Left as it is.
    input_shape : tuple of int
        Shape of one sample.
    dtype : torch.dtype, default=None
        Floating dtype of the sample; that of the parameters by default.
    training : bool, default=False
        Whether every submodule keeps the mode it is in; the program then only tells what that mode changes.
    inside : str, default=""
        Path of the user's module within `module`, with a dot at its end, where that wraps it.

    Raises
    ------
    UnsupportedLayerError
        If the forward pass depends on the data in a way that no graph can show.
    """
    twin = private_copy(module, "cpu")
    if training:
        for copied, original in zip(twin.modules(), module.modules(), strict=True):
            copied.training = original.training
    floats = [t.dtype for t in named_tensors(twin).values() if t.is_floating_point()]
    dtype = dtype or (floats[0] if floats else torch.get_default_dtype())
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(SAMPLES, *input_shape, dtype=dtype, device="cpu", generator=generator)
    try:
        exported = undisturbed(functools.partial(_exported, _Plain(twin), sample))
    except Exception as error:
        name = type(module.get_submodule(inside[:-1])).__name__
        raise UnsupportedLayerError(
            f"The forward pass of `{name}` cannot be traced as a graph of operators "
            f"({_first_line(error)}). Measures of the graph need control flow that depends on shapes only; "
            "margins, Jacobians and the Fisher-Rao norm work without it."
        ) from error
    signature = exported.graph_signature
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    names = {key: name.removeprefix("module.") for key, name in named.items()}
    constants = {key: exported.constants[name] for key, name in signature.inputs_to_lifted_tensor_constants.items()}
    nodes = tuple(exported.graph_module.graph.nodes)
    (input_name,) = signature.user_inputs
    placeholder = next(node for node in nodes if node.name == input_name)
    batch = str(placeholder.meta["val"].shape[0])
    output_name = str(signature.user_outputs[0])
    return Program(nodes, names, constants, input_name, tuple(input_shape), batch, output_name, inside)


def _exported(module: nn.Module, sample: Tensor) -> torch.export.ExportedProgram:
    """The program of a module's forward pass, functional, for any number of samples."""
    dim = torch.export.Dim
    spec = (dict.fromkeys(range(1, sample.dim()), dim.STATIC) | {0: dim.AUTO},)
    with no_leftovers() as traced, silenced():
        exported = torch.export.export(module, (sample,), dynamic_shapes=spec, strict=False)
        if _mutates(exported.graph):  # three quarters of the time, so only where it is needed
            traced.append(exported)
            exported = exported.run_decompositions({})
        traced.append(exported)
    return exported


def _mutates(graph: torch.fx.Graph) -> bool:
    """Whether an in-place operator stands in the graph; running the empty decomposition makes those functional."""
    schemas = (getattr(node.target, "_schema", None) for node in graph.nodes)
    return any(schema is not None and schema.is_mutable for schema in schemas)


class _Plain(nn.Module):
    """Gives the forward pass one positional argument whatever the module calls it."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.module = module

    def forward(self, x):  # type: ignore[no-untyped-def]
        return self.module(x)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__


class _Binder:
    """Evaluates what depends on parameters alone, converts the rest node by node."""

    def __init__(self, program: Program, tensors: Mapping[str, Tensor]):
        self.program = program
        self.tensors = tensors
        self.canonical: dict[int, str] = {}
        for name, tensor in tensors.items():
            self.canonical.setdefault(id(tensor), name)
        floats = [t for t in tensors.values() if t.is_floating_point()]
        self.device = floats[0].device if floats else torch.device("cpu")
        self.dtype = floats[0].dtype if floats else torch.get_default_dtype()
        self.env: dict[str, Any] = {}
        self.by_name: dict[str, Node] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        #: Nodes whose values are no real numbers: indices, sizes, comparisons, complex numbers.
        self.not_real: set[str] = set()
        self.batch_sizes: set[str] = set()
        #: Opaque operators that return several tensors.
        self.several: set[str] = set()

    def graph(self) -> NetworkGraph:
        output = ""
        for node in self.program.nodes:
            if node.op == "placeholder":
                self.env[node.name] = self._placeholder(node)
            elif node.op == "output":
                output = self._output()
            else:
                self.env[node.name] = self._call(node)
        live = {output}
        for bound in reversed(self.by_name.values()):  # dead code: sizes of views and unused statistics
            if bound.name in live:
                live.update(bound.inputs)
        kept = tuple(node for node in self.by_name.values() if node.name in live or node.op == "input")
        return NetworkGraph(kept, output)

    def _placeholder(self, node: torch.fx.Node) -> Any:
        if node.name == self.program.input_name:
            shape = self.program.input_shape
            self.by_name[node.name] = Node(node.name, "input", (), "", shape)
            self.shapes[node.name] = (-1, *shape)
            return Ref(node.name)
        if node.name in self.program.tensor_names:
            name = self.program.tensor_names[node.name]
            tensor = self.tensors[name]
            source = self.canonical[id(tensor)]
            trainable = isinstance(tensor, nn.Parameter) and tensor.requires_grad
            return Weight(tensor, trainable, frozenset({source}))
        constant = self.program.constants[node.name].to(self.device)
        return Weight(constant.to(self.dtype) if constant.is_floating_point() else constant, False, frozenset())

    def _output(self) -> str:
        # By name: inputs and buffers that the forward pass overwrites stand before it among the outputs.
        value = self.env.get(self.program.output_name)
        if not isinstance(value, Ref):
            raise UnsupportedLayerError("The network's output does not depend on its input.")
        return value.name

    def _call(self, node: torch.fx.Node) -> Any:
        args = torch.fx.node.map_arg((tuple(node.args), dict(node.kwargs)), lambda n: self.env[n.name])
        leaves = [self.env[n.name] for n in node.all_input_nodes]
        if not any(isinstance(leaf, Ref) for leaf in leaves):
            return self._constant(node, *args)
        if node.target is operator.getitem and isinstance(args[0][0], Ref):
            return self._part(node, args[0][0], args[0][1])
        return self._convert(node, *args)

    def _part(self, node: torch.fx.Node, whole: Ref, index: int) -> Ref:
        """One of the several results of an operator."""
        producer = node.args[0]
        assert isinstance(producer, torch.fx.Node)
        if producer.target in CONVERSIONS and index == 0 and whole.name not in self.several:
            return whole  # batch norm, pooling with indices: the rule stands for the first result
        draft = None
        if producer.target in SPLITS:
            named = _named(producer, producer.args, producer.kwargs)
            x, full = self.env[named["self"].name], self._shape(node.meta["val"])
            if self._batch_first(full, [x]):
                rank = len(self.shapes[x.name])
                shapes = [tuple(part.shape) for part in producer.meta["val"]]
                draft = split_piece(x, rank, named["dim"] % rank, shapes, index)
        return self._append(node, draft or self._opaque(node, (whole, index), {}), node.meta.get("val"))

    def _constant(self, node: torch.fx.Node, args: tuple, kwargs: dict) -> Any:
        """Run an operator of parameters, buffers and numbers: a parametrised weight, a table of indices."""
        given = torch.utils._pytree.tree_leaves((args, kwargs), is_leaf=lambda v: isinstance(v, Weight))
        weights = [leaf for leaf in given if isinstance(leaf, Weight)]
        unwrapped = torch.utils._pytree.tree_map_only(
            Weight, lambda w: w.tensor, (args, kwargs), is_leaf=lambda v: isinstance(v, Weight)
        )
        args, kwargs = unwrapped
        if "device" in kwargs:
            kwargs = {**kwargs, "device": self.device}
        if isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point:
            kwargs = {**kwargs, "dtype": self.dtype}
        value = node.target(*args, **kwargs)  # type: ignore[operator]
        sources = frozenset().union(*(w.sources for w in weights))
        trainable = any(w.trainable for w in weights)
        # One tensor, or the several that a split gives.
        return torch.utils._pytree.tree_map_only(Tensor, lambda t: Weight(t, trainable, sources), value)

    def _convert(self, node: torch.fx.Node, args: tuple, kwargs: dict) -> Ref:
        value = node.meta.get("val")
        if isinstance(value, tuple | list) and value and node.target in CONVERSIONS:
            value = value[0]
        full = self._shape(value) if isinstance(value, Tensor) else ()
        scope = self.program.shown(_scope(node))
        rule = CONVERSIONS.get(node.target)
        draft: Draft | Ref | None = None
        inputs = [self.env[n.name] for n in node.all_input_nodes]
        if rule is not None and self._real(value, inputs) and self._batch_first(full, inputs):
            draft = rule(
                Call(
                    target=node.target,
                    args=_named(node, args, kwargs),
                    shapes=self.shapes,
                    shape=full,
                    scope=scope,
                    device=self.device,
                    dtype=self.dtype,
                    batch_sizes=self.batch_sizes,
                    producer=lambda ref: self.by_name[ref.name],
                )
            )
        if isinstance(draft, Ref):
            return draft
        if draft is None:
            draft = self._opaque(node, args, kwargs)
            if isinstance(node.meta.get("val"), tuple | list):
                self.several.add(node.name)
        return self._append(node, draft, value)

    def _append(self, node: torch.fx.Node, draft: Draft, value: Any) -> Ref:
        full = self._shape(value) if isinstance(value, Tensor) else ()
        self._add(node.name, draft, self.program.shown(_scope(node)), full[1:])
        if isinstance(value, Tensor):  # and no size, which may stand among a view's arguments
            self.shapes[node.name] = full
            if not value.is_floating_point():
                self.not_real.add(node.name)
        elif str(value) == self.program.batch:
            self.batch_sizes.add(node.name)
        return Ref(node.name)

    def _add(self, name: str, draft: Draft, scope: str, shape: tuple[int, ...]) -> None:
        """Bind a draft, after those among its inputs."""
        inputs = []
        for i, part in enumerate(draft.inputs):
            if isinstance(part, Draft):
                inputs.append(f"{name}.{i}")  # no name of the trace has a dot
                self._add(inputs[-1], part, scope, shape)
            else:
                inputs.append(part.name)
        self.by_name[name] = Node(
            name,
            draft.op,
            tuple(inputs),
            scope,
            shape if draft.shape is None else draft.shape,
            None if draft.weight is None else draft.weight.tensor,
            None if draft.bias is None else draft.bias.tensor,
            (draft.weight is not None and draft.weight.trainable, draft.bias is not None and draft.bias.trainable),
            (_sources(draft.weight), _sources(draft.bias)),
            draft.params,
        )

    def _shape(self, value: Tensor) -> tuple[int, ...]:
        """Sizes, -1 for the number of samples and -2 for anything else that depends on it."""
        batch = self.program.batch
        return tuple(
            -1 if i == 0 and str(size) == batch else size if isinstance(size, int) else -2
            for i, size in enumerate(value.shape)
        )

    def _real(self, value: Any, inputs: list[Any]) -> bool:
        """Whether an operator takes real numbers to real numbers; a cast of indices, say, has no canonical form."""
        real = isinstance(value, Tensor) and value.is_floating_point()
        return real and not any(isinstance(v, Ref) and v.name in self.not_real for v in inputs)

    def _batch_first(self, full: tuple[int, ...], inputs: list[Any]) -> bool:
        """Whether output and inputs are one row per sample; only then does an operator have a canonical form."""
        shapes = [full, *(self.shapes[v.name] for v in inputs if isinstance(v, Ref) and v.name in self.shapes)]
        return all(shape[:1] == (-1,) and -2 not in shape for shape in shapes)

    def _opaque(self, node: torch.fx.Node, args: tuple, kwargs: dict) -> Draft:
        leaves, spec = torch.utils._pytree.tree_flatten((args, kwargs), is_leaf=lambda v: isinstance(v, Ref | Weight))
        refs = tuple(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Ref)))
        trained = any(isinstance(leaf, Weight) and leaf.trainable for leaf in leaves)
        places = {ref: Place(index) for index, ref in enumerate(refs)}
        values = [places[leaf] if isinstance(leaf, Ref) else leaf for leaf in leaves]
        target = getattr(node.target, "__name__", str(node.target))
        function = node.target
        if function is torch.ops.aten.view.default:  # another attention kernel gives other strides than the trace saw
            function = torch.ops.aten.reshape.default
        params = {"target": target, "function": function, "leaves": values, "spec": spec, "trained": trained}
        return Draft("opaque", refs, params=params)


def _named(node: torch.fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of an operator by the names of its schema."""
    schema = node.target._schema.arguments  # type: ignore[union-attr]
    given = {argument.name: value for argument, value in zip(schema, args, strict=False)}
    return {**{argument.name: argument.default_value for argument in schema}, **given, **kwargs}


def _sources(weight: Weight | None) -> frozenset[str]:
    return frozenset() if weight is None else weight.sources


def _scope(node: torch.fx.Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    path = paths[-1] if paths else ""
    if path.startswith("_empty_nn_module_stack"):
        return ""
    return path.removeprefix("module").removeprefix(".")
