"""From a program and tensors to a graph: values that depend only on parameters are computed, the rest is converted.

Every operation of the trace gets a value. A `Weight` (or a number, or a list of these) is known: it depends only on
parameters and buffers. A `Ref` depends on the network's input and names the node that represents it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from .nodes import NetworkGraph, Node, Place, UnsupportedLayerError
from .rules import CONVERSIONS, READ_MASKS, SPLITS, Call, Draft, Ref, Weight, split_piece

if TYPE_CHECKING:
    from .trace import Program

__all__ = ["Binder"]


@dataclass(frozen=True)
class Signal:
    """Properties of a value that depends on the input.

    Attributes
    ----------
    shape : tuple of int
        Sizes with the batch, -1 for the number of samples and -2 for any other size that depends on it; () if the value
        is not a tensor.
    is_tensor : bool
    is_real : bool
        Whether it contains real numbers, as opposed to indices, booleans or complex numbers.
    is_batch_size : bool
        Whether it is the number of samples.
    for_one : tuple of int
        Its sizes for a single sample, with the samples along any axis, separate or merged with another.
    """

    shape: tuple[int, ...] = ()
    is_tensor: bool = False
    is_real: bool = False
    is_batch_size: bool = False
    for_one: tuple[int, ...] = ()

    @property
    def is_mask(self) -> bool:
        """Whether it holds truth values or whole numbers, one row per sample."""
        return self.is_tensor and not self.is_real and self.shape[:1] == (-1,) and -2 not in self.shape

    @property
    def has_rows(self) -> bool:
        """Whether it is real and has one row per sample, as rules require; batch sizes also qualify."""
        return not self.is_tensor or (self.is_real and self.shape[:1] == (-1,) and -2 not in self.shape)


class Binder:
    """Binds tensors to a program, in one walk over its operations.

    Parameters
    ----------
    program : Program
    tensors : mapping of str to Tensor
        Parameters and buffers by name.
    """

    def __init__(self, program: Program, tensors: Mapping[str, Tensor]):
        self.program = program
        self.tensors = tensors
        self.first_names: dict[int, str] = {}  # first names of tied tensors, which have several
        for name, tensor in tensors.items():
            self.first_names.setdefault(id(tensor), name)
        floats = [t for t in tensors.values() if t.is_floating_point()]
        self.device = floats[0].device if floats else torch.device("cpu")
        self.dtype = floats[0].dtype if floats else torch.get_default_dtype()
        self.values: dict[str, Any] = {}  # by name of the trace's operation
        self.nodes: dict[str, Node] = {}
        self.signals: dict[str, Signal] = {}  # by node name; the subsets that rules use follow
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.batch_sizes: set[str] = set()

    def graph(self) -> NetworkGraph:
        """The graph, without nodes that its output does not need, such as sizes of views and unused statistics.

        Raises
        ------
        UnsupportedLayerError
            If the output does not depend on the input.
        """
        for operation in self.program.nodes:
            if operation.op == "placeholder":
                self.values[operation.name] = self._placeholder(operation)
            elif operation.op != "output":
                self.values[operation.name] = self._value(operation)
        # By name, since overwritten inputs and buffers precede it among the outputs.
        output = self.values.get(self.program.output_name)
        if not isinstance(output, Ref):
            raise UnsupportedLayerError("The network's output does not depend on its input.")
        live = {output.name}
        for node in reversed(self.nodes.values()):
            if node.name in live:
                live.update(node.inputs)
        kept = tuple(node for node in self.nodes.values() if node.name in live or node.op == "input")
        return NetworkGraph(kept, output.name)

    # -- values of operations ----------------------------------------------------------------------------------

    def _placeholder(self, operation: fx.Node) -> Ref | Weight:
        """The input, a parameter or buffer, or a tensor constant."""
        name, program = operation.name, self.program
        if name == program.input_name:
            self.nodes[name] = Node(name, "input", (), "", program.input_shape)
            shape, for_one = (-1, *program.input_shape), (1, *program.input_shape)
            self._note(name, Signal(is_tensor=True, is_real=True, shape=shape, for_one=for_one))
            return Ref(name)
        if name in program.tensor_names:
            tensor = self.tensors[program.tensor_names[name]]
            trainable = isinstance(tensor, nn.Parameter) and tensor.requires_grad
            return Weight(tensor, trainable, frozenset({self.first_names[id(tensor)]}))
        constant = program.constants[name].to(self.device)
        return Weight(constant.to(self.dtype) if constant.is_floating_point() else constant, False, frozenset())

    def _value(self, operation: fx.Node) -> Any:
        """The value of an operator: a known value if all its inputs are known."""
        args, kwargs = fx.node.map_arg((tuple(operation.args), dict(operation.kwargs)), lambda n: self.values[n.name])
        read = [self.values[n.name] for n in operation.all_input_nodes]
        if not any(isinstance(value, Ref) for value in read):
            return self._known(operation, args, kwargs)
        if operation.target is operator.getitem and isinstance(args[0], Ref):
            return self._part(operation, args[0], args[1])
        return self._converted(operation, args, kwargs)

    def _known(self, operation: fx.Node, args: tuple, kwargs: dict) -> Any:
        """Evaluate an operator of parameters, buffers and numbers, as in a parametrised weight."""
        weights = [leaf for leaf in tree_leaves((args, kwargs), is_leaf=_is_weight) if _is_weight(leaf)]
        args, kwargs = tree_map_only(Weight, lambda w: w.tensor, (args, kwargs), is_leaf=_is_weight)
        if "device" in kwargs:
            kwargs = {**kwargs, "device": self.device}
        if isinstance(kwargs.get("dtype"), torch.dtype) and kwargs["dtype"].is_floating_point:
            kwargs = {**kwargs, "dtype": self.dtype}
        result = operation.target(*args, **kwargs)  # type: ignore[operator]
        trainable = any(w.trainable for w in weights)
        sources = frozenset().union(*(w.sources for w in weights))
        # One tensor, or the several results of a split.
        return tree_map_only(Tensor, lambda tensor: Weight(tensor, trainable, sources), result)

    def _converted(self, operation: fx.Node, args: tuple, kwargs: dict) -> Ref:
        """The node into which its rule converts an operator, or an opaque node."""
        result = operation.meta.get("val")
        rule = None if _reads_later_results(operation) else CONVERSIONS.get(operation.target)
        if rule is not None and isinstance(result, tuple | list) and result:
            result = result[0]  # batch norm, pooling with indices: the rule describes the first of several results
        signal = self._signal(result)
        draft: Draft | Ref | None = None
        masks = operation.target in READ_MASKS
        if rule is not None and self._in_rows([signal], operation.all_input_nodes, masks=masks):
            call = Call(
                target=operation.target,
                args=_named(operation, args, kwargs),
                shapes=self.shapes,
                shape=signal.shape,
                scope=self.program.shown(_origin(operation)[0]),
                device=self.device,
                dtype=self.dtype,
                batch_sizes=self.batch_sizes,
                producer=lambda ref: self.nodes[ref.name],
                is_real=lambda ref: self.signals[ref.name].is_real,
            )
            draft = rule(call)
        if isinstance(draft, Ref):
            return draft  # the identity
        if draft is None:
            draft = self._opaque(operation, args, kwargs, signal)
        return self._bound(operation, draft, signal)

    def _part(self, operation: fx.Node, whole: Ref, index: int) -> Ref:
        """One of the several results of an operator."""
        producer = operation.args[0]
        assert isinstance(producer, fx.Node)
        by_rule = producer.target in CONVERSIONS and self.nodes[whole.name].op != "opaque"
        if by_rule and index == 0:
            return whole
        signal = self._signal(operation.meta.get("val"))
        draft = None
        if producer.target in SPLITS and self._in_rows([signal], producer.all_input_nodes):
            named = _named(producer, producer.args, producer.kwargs)
            x = self.values[named["self"].name]
            rank = len(self.signals[x.name].shape)
            pieces = [tuple(piece.shape) for piece in producer.meta["val"]]
            draft = split_piece(x, rank, named["dim"] % rank, pieces, index)
        return self._bound(operation, draft or self._opaque(operation, (whole, index), {}, signal), signal)

    def _opaque(self, operation: fx.Node, args: tuple, kwargs: dict, signal: Signal) -> Draft:
        """The draft of an operator without a rule: its function, its arguments, its inputs, and their sizes."""
        leaves, spec = tree_flatten((args, kwargs), is_leaf=lambda v: isinstance(v, Ref | Weight))
        refs = tuple(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, Ref)))
        places = {ref: Place(index) for index, ref in enumerate(refs)}
        function: Any = operation.target
        if function is torch.ops.aten.view.default:  # another attention kernel gives other strides than the trace saw
            function = torch.ops.aten.reshape.default
        params = {
            "target": getattr(operation.target, "__name__", str(operation.target)),
            "function": function,
            "leaves": [places[leaf] if isinstance(leaf, Ref) else leaf for leaf in leaves],
            "spec": spec,
            "trained": any(_is_weight(leaf) and leaf.trainable for leaf in leaves),
            "is_tensor": signal.is_tensor or isinstance(operation.meta.get("val"), tuple | list),
            "for_one": tuple(self.signals[ref.name].for_one for ref in refs),
            "stack_trace": operation.meta.get("stack_trace"),
        }
        return Draft("opaque", refs, params=params)

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _bound(self, operation: fx.Node, draft: Draft, signal: Signal) -> Ref:
        """Enter the operation's node, after those of the drafts among its inputs."""
        path, module = _origin(operation)
        scope = self.program.shown(path)

        def enter(name: str, draft: Draft) -> str:
            parts = enumerate(draft.inputs)  # names of the trace have no dot
            inputs = tuple(enter(f"{name}.{i}", p) if isinstance(p, Draft) else p.name for i, p in parts)
            shape = signal.shape[1:] if draft.shape is None else draft.shape
            weight, bias = draft.weight, draft.bias
            self.nodes[name] = Node(
                name,
                draft.op,
                inputs,
                scope,
                shape,
                None if weight is None else weight.tensor,
                None if bias is None else bias.tensor,
                (weight is not None and weight.trainable, bias is not None and bias.trainable),
                (_sources(weight), _sources(bias)),
                draft.params,
                module,
            )
            return name

        self._note(operation.name, signal)
        return Ref(enter(operation.name, draft))

    def _note(self, name: str, signal: Signal) -> None:
        self.signals[name], self.shapes[name] = signal, signal.shape
        if signal.is_batch_size:
            self.batch_sizes.add(name)

    def _signal(self, result: Any) -> Signal:
        """The properties that the trace records of a result that depends on the input."""
        batch = self.program.batch
        if not isinstance(result, Tensor):
            return Signal(is_batch_size=str(result) == batch)
        shape = tuple(
            -1 if axis == 0 and str(size) == batch else size if isinstance(size, int) else -2
            for axis, size in enumerate(result.shape)
        )
        for_one = tuple(1 if shape[axis] == -1 else _for_one(size) for axis, size in enumerate(result.shape))
        return Signal(shape, is_tensor=True, is_real=result.is_floating_point(), for_one=for_one)

    def _in_rows(self, results: Sequence[Signal], read: Iterable[fx.Node], *, masks: bool = False) -> bool:
        """Whether an operator maps rows per sample to rows per sample; only then does it have a canonical form."""
        refs = [value for value in (self.values[n.name] for n in read) if isinstance(value, Ref)]
        results = [*results, *(self.signals[ref.name] for ref in refs)]
        if not results[0].is_tensor or not results[0].is_real:
            return False
        return all(signal.has_rows or (masks and signal.is_mask) for signal in results)


def _reads_later_results(operation: fx.Node) -> bool:
    """Whether something reads another result than the first of several, which no rule supports."""
    if operation.target in SPLITS:
        return False
    return any(user.target is operator.getitem and user.args[1] != 0 and user.users for user in operation.users)


def _for_one(size: int | torch.SymInt) -> int:
    """A size for a single sample."""
    if isinstance(size, int):
        return size
    expression = size.node.expr
    return int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))


def _sources(weight: Weight | None) -> frozenset[str]:
    return frozenset() if weight is None else weight.sources


def _is_weight(value: Any) -> bool:
    return isinstance(value, Weight)


def _named(operation: fx.Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of an operator by the names of its schema."""
    schema = operation.target._schema.arguments  # type: ignore[union-attr]
    given = {argument.name: value for argument, value in zip(schema, args, strict=False)}
    return {**{argument.name: argument.default_value for argument in schema}, **given, **kwargs}


def _origin(operation: fx.Node) -> tuple[str, str]:
    """Dotted name and class of the submodule that an operation came from."""
    stack = operation.meta.get("nn_module_stack") or {}
    path, kind = [("", ""), *stack.values()][-1]
    name = kind if isinstance(kind, str) else kind.__qualname__
    if path.startswith("_empty_nn_module_stack"):
        return "", ""
    return path.removeprefix("module").removeprefix("."), name.rsplit(".", 1)[-1]
