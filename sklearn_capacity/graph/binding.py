"""From a program and tensors to a graph: values that depend only on parameters are computed, the rest is converted.

Every operation of the trace gets a value. A `Weight` (or a number, or a list of these) is known: it depends only on
parameters and buffers. A `Ref` depends on the network's input and names the node that represents it.
"""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only

from .constants import constant_rows, keeps_parameters, without_content
from .layouts import ROWS, Layout, Signal, Sizes, at_samples, reshaped
from .nodes import NetworkGraph, Node, Place, UnsupportedLayerError
from .rules import CONVERSIONS, READ_MASKS, SPLITS, Call, Draft, Ref, Weight, split_piece
from .rules.drafts import as_view
from .rules.rows import BROADCASTS, ENTRIES, REPEATS, VIEWS, Repeated, on_rows
from .selections import note_selection

if TYPE_CHECKING:
    from .trace import Program

__all__ = ["Binder"]


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
        self.whole_numbers: dict[str, int] = {}  # for two samples
        self.readers: set[str] = set()  # operations whose rules may have read entries of tensors that nodes only hold

    def graph(self) -> NetworkGraph:
        """The graph, without nodes that its output does not need, such as sizes of views and unused statistics.

        Raises
        ------
        UnsupportedLayerError
            If the output does not depend on the input.
        """
        for operation in self.program.nodes:
            if operation.op == "placeholder":
                self.enter_tensor(operation)
            elif operation.users or operation.name == self.program.output_name:  # no assertions of the trace
                self.bind(operation)
        return self.network()

    def enter_tensor(self, placeholder: fx.Node) -> None:
        """Enter the value of the input, a parameter or buffer, or a tensor constant."""
        self.values[placeholder.name] = self._placeholder(placeholder)

    def bind(self, operation: fx.Node) -> Any:
        """The value of an operation whose inputs have values; entered into the binder, with its nodes."""
        self.values[operation.name] = self._value(operation)
        return self.values[operation.name]

    def network(self) -> NetworkGraph:
        """The graph of the nodes so far."""
        # By name, since overwritten inputs and buffers precede it among the outputs.
        output = self.values.get(self.program.output_name)
        if not isinstance(output, Ref):
            raise UnsupportedLayerError("The network's output does not depend on its input.")
        return NetworkGraph(tuple(self.nodes.values()), output.name).live()

    def copy(self) -> Binder:
        """A binder with the same values and nodes, to which others can be added."""
        other = copy.copy(self)
        for name in ("values", "nodes", "signals", "shapes", "whole_numbers"):
            setattr(other, name, dict(getattr(self, name)))
        return other

    # -- values of operations ----------------------------------------------------------------------------------

    def _placeholder(self, operation: fx.Node) -> Ref | Weight:
        """The input, a parameter or buffer, or a tensor constant."""
        name, program = operation.name, self.program
        if name == program.input_name:
            self.nodes[name] = Node(name, "input", (), "", program.input_shape)
            sizes = program.sizes[name]
            self._note(name, Signal((-1, *program.input_shape), is_tensor=True, is_real=True, layout=ROWS, sizes=sizes))
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
        if not any(isinstance(value, Ref | Repeated) for value in read):
            return self._known(operation, args, kwargs)
        if operation.target is operator.getitem and isinstance(args[0], Ref):
            return self._part(operation, args[0], args[1])
        repeated = self._repeated(operation, args, kwargs)
        return self._converted(operation, args, kwargs) if repeated is None else repeated

    def _known(self, operation: fx.Node, args: tuple, kwargs: dict) -> Any:
        """Evaluate an operator of parameters, buffers and numbers, as in a parametrised weight."""
        weights = [leaf for leaf in tree_leaves((args, kwargs), is_leaf=_is_weight) if _is_weight(leaf)]
        args, kwargs = tree_map_only(Weight, lambda w: w.tensor, (args, kwargs), is_leaf=_is_weight)
        floats = self.dtype
        args, kwargs = tree_map_only(torch.dtype, lambda d: floats if d.is_floating_point else d, (args, kwargs))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": self.device}
        result = operation.target(*args, **kwargs)  # type: ignore[operator]
        trainable = any(w.trainable for w in weights)
        if trainable and isinstance(result, Tensor) and isinstance(args[0] if args else None, Tensor):
            rest = args[1:]
            apply: Any = operation.target
            note_selection(_packet(operation), args[0], result, lambda x: apply(x, *rest, **kwargs))
        sources = frozenset().union(*(w.sources for w in weights))
        # One tensor, or the several results of a split.
        return tree_map_only(Tensor, lambda tensor: Weight(tensor, trainable, sources), result)

    def _repeated(self, operation: fx.Node, args: tuple, kwargs: dict) -> Any:
        """The value of an operator that reads the input's sizes only, if it is the same for all samples."""
        result = operation.meta.get("val")
        results = result if isinstance(result, tuple | list) else (result,)  # several of a split
        if not results or not all(isinstance(part, Tensor) for part in results):
            return None
        if not hasattr(operation.target, "_schema"):
            return None
        given = without_content(
            _packet(operation),
            _named(operation, args, kwargs),
            lambda ref: self.signals[ref.name].for_two,
            lambda ref: self.signals[ref.name].sizes,
            lambda ref: self.signals[ref.name].dtype or self.dtype,
            self.device,
        )
        if given is None:
            return None
        value = self._known(operation, (), tree_map_only(Repeated, lambda r: r.weight, given, is_leaf=_is_repeated))
        leaves = tree_leaves(given, is_leaf=_is_repeated)
        read = [leaf.row if isinstance(leaf, Repeated) else leaf for leaf in leaves if _is_repeated(leaf)]
        parts = value if isinstance(value, tuple | list) else (value,)
        alike = [self._alike(operation, part, traced, read) for part, traced in zip(parts, results, strict=True)]
        if None in alike:
            return None
        return alike if isinstance(value, tuple | list) else alike[0]

    def _alike(
        self, operation: fx.Node, value: Weight, traced: Tensor, read: Sequence[Weight]
    ) -> Repeated | Weight | None:
        """A result, for two samples, as one row for all of them; None if their rows differ."""
        sizes = Sizes.of(traced, self.program.batch)
        if not any(sizes.multiples):
            return value
        layout = self._layout(operation, sizes)
        if layout is None:
            return None
        rows = layout.to_rows(value.tensor)
        alike = torch.equal(rows[0], rows[1]) and keeps_parameters(_packet(operation), read, rows[:1])
        return Repeated(value, layout) if alike else None

    def _signal_of(self, constant: Repeated, name: str) -> Ref:
        """A node with the same rows for every sample."""
        source = Ref(self.program.input_name)
        rows = constant.row.tensor.shape[1:]
        signal = Signal(
            (-1, *rows),
            is_tensor=True,
            is_real=constant.weight.tensor.is_floating_point(),
            layout=constant.layout,
            sizes=Sizes.repeated(constant.weight.tensor.shape, constant.layout),
        )
        sizes = self.program.sizes[source.name]
        return self._enter(name, "", "", constant_rows(source, sizes, constant.row), signal)

    def _converted(self, operation: fx.Node, args: tuple, kwargs: dict) -> Ref:
        """The node into which its rule converts an operator, or an opaque node."""
        result = operation.meta.get("val")
        rule = None if _reads_later_results(operation) else CONVERSIONS.get(operation.target)
        if rule is not None and isinstance(result, tuple | list) and result:
            result = result[0]  # batch norm, pooling with indices: the rule describes the first of several results
        signal = self._signal(operation, result)
        draft: Draft | Ref | None = None
        masks = operation.target in READ_MASKS
        if rule is not None and self._in_rows([signal], operation.all_input_nodes, masks=masks):
            draft = self._draft(operation, args, kwargs, signal)
        if isinstance(draft, Ref):
            return draft  # the identity
        if draft is None:
            args, kwargs = self._as_signals(operation, (args, kwargs))
            draft = self._opaque(operation, args, kwargs, signal)
        return self._bound(operation, draft, signal)

    def _draft(self, operation: fx.Node, args: tuple, kwargs: dict, signal: Signal) -> Draft | Ref | None:
        """What an operator's rule makes of it on rows; None if it does not keep the samples apart."""
        named = _named(operation, args, kwargs)
        # With a signal, what is the same for all samples is a constant that broadcasts.
        broadcasts = _packet(operation) in BROADCASTS and any(isinstance(value, Ref) for value in named.values())
        if _packet(operation) not in ENTRIES:
            named = {
                key: value if isinstance(value, Repeated) and (broadcasts or key == "attn_mask") else signals
                for (key, value), signals in zip(
                    named.items(), self._as_signals(operation, named).values(), strict=True
                )
            }
        refs = [leaf for leaf in tree_leaves(named, is_leaf=lambda v: isinstance(v, Ref)) if isinstance(leaf, Ref)]
        tensors = {ref.name: self.signals[ref.name] for ref in refs if self.signals[ref.name].is_tensor}
        layouts = {name: tensor.layout for name, tensor in tensors.items() if tensor.layout is not None}
        if not tensors or len(layouts) < len(tensors) or signal.layout is None:
            return None
        call = Call(
            target=operation.target,
            args=named,
            shapes=self.shapes,
            shape=signal.shape,
            scope=self.program.shown(_origin(operation)[0]),
            device=self.device,
            dtype=self.dtype,
            whole_numbers=self.whole_numbers,
            producer=lambda ref: self._producer(operation, ref),
            is_real=lambda ref: self.signals[ref.name].is_real,
            traced=signal.for_one,
            traced_rank=len(next(iter(tensors.values())).for_one),
        )

        if isinstance(named.get("attn_mask"), Weight):
            self.readers.add(operation.name)  # which keys it leaves out

        def view(ref: Ref, shape: tuple[int, ...], layout: Layout) -> Ref:
            reshaped = replace(self.signals[ref.name], shape=(-1, *shape), layout=layout)
            return self._enter(f"{operation.name}.{ref.name}", *_origin(operation), as_view(ref, shape), reshaped)

        return on_rows(call, CONVERSIONS[operation.target], layouts, signal.layout, view)

    def _producer(self, operation: fx.Node, ref: Ref) -> Node:
        """The node of a value, for a rule that may read untrained factors and shifts, such as a slope."""
        node = self.nodes[ref.name]
        if node.op == "diagonal" and any(held.sources and not held.trainable for held in node.tensors().values()):
            self.readers.add(operation.name)
        return node

    def _as_signals(self, operation: fx.Node, arguments: Any) -> Any:
        """The arguments with nodes for what is the same for all samples."""
        if not any(isinstance(self.values[node.name], Repeated | list | tuple) for node in operation.all_input_nodes):
            return arguments
        number = itertools.count()
        return tree_map_only(
            Repeated,
            lambda constant: self._signal_of(constant, f"{operation.name}.constant{next(number)}"),
            arguments,
            is_leaf=_is_repeated,
        )

    def _part(self, operation: fx.Node, whole: Ref, index: int) -> Ref:
        """One of the several results of an operator."""
        producer = operation.args[0]
        assert isinstance(producer, fx.Node)
        by_rule = producer.target in CONVERSIONS and self.nodes[whole.name].op != "opaque"
        if by_rule and index == 0:
            return whole
        signal = self._signal(operation, operation.meta.get("val"))
        draft = None
        if producer.target in SPLITS and self._in_rows([signal], producer.all_input_nodes):
            draft = self._piece(producer, index)
        return self._bound(operation, draft or self._opaque(operation, (whole, index), {}, signal), signal)

    def _piece(self, producer: fx.Node, index: int) -> Draft | None:
        """A piece of a split as a slice of the rows; None if it cuts through the samples."""
        named = _named(producer, producer.args, producer.kwargs)
        x = self.values[named["self"].name]
        signal, pieces = self.signals[x.name], producer.meta["val"]
        rank, layout = len(signal.for_one), signal.layout
        dim = named["dim"] % rank
        if layout is None or dim == layout.axis:
            return None
        sizes = None if pieces[0].dim() < rank else [piece.shape[dim] for piece in pieces]
        return split_piece(x, layout.positions(dim)[0], sizes, index % len(pieces))

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
            "layouts": tuple(self.signals[ref.name].layout for ref in refs),
            "result_for_one": signal.for_one,
            "result_layout": signal.layout,
            "stack_trace": operation.meta.get("stack_trace"),
            "is_whole": signal.is_tensor and not signal.is_real,
        }
        return Draft("opaque", refs, params=params)

    # -- nodes ---------------------------------------------------------------------------------------------------------

    def _bound(self, operation: fx.Node, draft: Draft, signal: Signal) -> Ref:
        """Enter the operation's node, after those of the drafts among its inputs."""
        return self._enter(operation.name, *_origin(operation), draft, signal)

    def _enter(self, name: str, path: str, module: str, draft: Draft, signal: Signal) -> Ref:
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

        self._note(name, signal)
        return Ref(enter(name, draft))

    def _note(self, name: str, signal: Signal) -> None:
        self.signals[name], self.shapes[name] = signal, signal.shape
        if signal.for_two is not None:
            self.whole_numbers[name] = signal.for_two

    def _signal(self, operation: fx.Node, result: Any) -> Signal:
        """The properties that the trace records of a result that depends on the input."""
        if isinstance(result, int | torch.SymInt):
            is_batch_size = str(result) == self.program.batch
            return Signal(is_batch_size=is_batch_size, for_two=2 if is_batch_size else at_samples(result, 2))
        sizes = self.program.sizes.get(operation.name)
        if not isinstance(result, Tensor) or sizes is None:
            return Signal()
        layout = self._layout(operation, sizes)
        if layout is None:
            shape = tuple(
                -2 if multiple else size for multiple, size in zip(sizes.multiples, sizes.for_one, strict=True)
            )
        else:
            shape = (-1, *layout.row_shape(sizes.for_one))
        return Signal(
            shape, is_tensor=True, is_real=result.is_floating_point(), layout=layout, sizes=sizes, dtype=result.dtype
        )

    def _layout(self, operation: fx.Node, sizes: Sizes) -> Layout | None:
        """Where the samples are in a result; None if that is not known."""
        axis = sizes.samples_axis
        if axis is None:
            return None
        read = [self._place(self.values[node.name]) for node in operation.all_input_nodes]
        places = [place for place in read if place is not None]
        if places and _packet(operation) in VIEWS:
            return reshaped(*places[0], sizes)
        multiple = sizes.multiples[axis]
        if multiple == 1:
            return Layout(axis)
        alike = (layout for layout, before in places if before.multiples[layout.axis] == multiple)
        layout = next(alike, None)
        if layout is not None:
            return Layout(axis, layout.outer, layout.inner)
        if _packet(operation) in REPEATS and len(places) == 1:
            return REPEATS[_packet(operation)](places[0][0], multiple)
        return None if places else Layout(axis, 1, multiple)  # a constant

    def _place(self, value: Any) -> tuple[Layout, Sizes] | None:
        """Layout and sizes of a tensor with samples."""
        if isinstance(value, Repeated):
            return value.layout, Sizes.repeated(value.weight.tensor.shape, value.layout)
        signal = self.signals[value.name] if isinstance(value, Ref) else None
        if signal is None or signal.layout is None or signal.sizes is None:
            return None
        return signal.layout, signal.sizes

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


def _packet(operation: fx.Node) -> str:
    """The name of an operator without its overload."""
    return getattr(operation.target, "__name__", str(operation.target)).split(".")[0]


def _is_repeated(value: Any) -> bool:
    return isinstance(value, Repeated | Weight)


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
