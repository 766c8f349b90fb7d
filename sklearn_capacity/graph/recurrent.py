"""Recurrent layers and cells as the steps that they take, for measures that compose along the graph.

Torch runs such a layer in one operator, which the graph of a network keeps. Here each step becomes linear maps, sums,
saturating activations and, in gates, products of bounded signals. The matrices of a layer occur once per step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.utils._pytree import tree_unflatten

from .layouts import Layout
from .nodes import NetworkGraph, Node, Place, Weight

__all__ = ["is_recurrent", "unrolled"]

#: Operators on whole sequences, and on one step.
_LAYERS = {"lstm.input": "lstm", "gru.input": "gru", "rnn_tanh.input": "tanh", "rnn_relu.input": "relu"}
_CELLS = {"lstm_cell": "lstm", "gru_cell": "gru", "rnn_tanh_cell": "tanh", "rnn_relu_cell": "relu"}
_CELLS = {f"{name}.default": kind for name, kind in _CELLS.items()}

Shape = tuple[int, ...]
#: The hidden state of a sample by the name of its node, and the cell state of an LSTM.
State = tuple[str, ...]


@dataclass(frozen=True)
class Matrices:
    """The parameters of one layer in one direction."""

    of_input: Weight
    of_state: Weight
    bias: Weight | None = None
    state_bias: Weight | None = None
    projection: Weight | None = None


@dataclass(frozen=True)
class Stack:
    """Nodes that are joined along a new axis."""

    dim: int
    parts: tuple[str, ...]


def unrolled(graph: NetworkGraph, *, shown: Callable[[str], str] = str) -> NetworkGraph:
    """The graph with recurrent layers and cells as the steps that they take.

    A layer whose steps run along the samples, or whose parameters depend on the input, stays as it is.

    Parameters
    ----------
    graph : NetworkGraph
    shown : callable, default=str
        Returns the user's name of a parameter.
    """
    if not any(is_recurrent(node) for node in graph.nodes):
        return graph
    nodes: dict[str, Node] = {}
    results: dict[str, list[Stack | str]] = {}  # of an unrolled operator
    stacks: dict[str, Stack] = {}  # by the name of the result
    for node in graph.nodes:
        steps = _Steps(node, nodes, shown) if is_recurrent(node) else None
        if steps is not None and steps.fits:
            results[node.name] = steps.results()
        elif node.params.get("target") == "getitem" and node.inputs[0] in results:
            result = results[node.inputs[0]][node.params["leaves"][1]]
            if isinstance(result, Stack):
                stacks[node.name] = result
            _enter_result(nodes, node, result)
        elif (part := _part_of(node, stacks)) is not None:
            _enter_result(nodes, node, part)
        else:
            nodes[node.name] = node
    return NetworkGraph(tuple(nodes.values()), graph.output).live()


def is_recurrent(node: Node) -> bool:
    """Whether a node is a recurrent layer or cell."""
    return _kind(node) is not None


def _kind(node: Node) -> str | None:
    target = node.params.get("target") if node.op == "opaque" else None
    return _LAYERS.get(target, _CELLS.get(target)) if isinstance(target, str) else None


def _part_of(node: Node, stacks: Mapping[str, Stack]) -> str | None:
    """The part that a node selects from a stack; None if it does something else."""
    stack = stacks.get(node.inputs[0]) if node.op == "slice" else None
    selects = stack is not None and node.params["kind"] == "select" and node.params["dim"] == stack.dim
    return stack.parts[node.params["index"]] if stack is not None and selects else None


def _enter_result(nodes: dict[str, Node], node: Node, result: Stack | str) -> None:
    """Enter a result under the name of the node that takes it from the operator."""
    if isinstance(result, Stack):
        shape = (*node.shape[: result.dim - 1], 1, *node.shape[result.dim :])
        parts = []
        for i, part in enumerate(result.parts):
            parts.append(f"{node.name}.{i}")
            nodes[parts[-1]] = _plain(node, parts[-1], "view", (part,), shape, kind="view")
        nodes[node.name] = _plain(node, node.name, "cat", tuple(parts), node.shape, kind="stack", dim=result.dim)
    else:
        nodes[node.name] = _plain(node, node.name, "view", (result,), node.shape, kind="view")


def _plain(node: Node, name: str, op: str, inputs: Sequence[str], shape: Shape, **params: Any) -> Node:
    """A node without tensors in the place of another."""
    return Node(name, op, tuple(inputs), node.scope, shape, params=params, module=node.module)


class _Steps:
    """The steps of a recurrent operator, entered into `nodes`."""

    def __init__(self, node: Node, nodes: dict[str, Node], shown: Callable[[str], str]):
        self.node, self.nodes, self.shown = node, nodes, shown
        self.kind = _kind(node)
        self.count = 0
        self.first: dict[int, str] = {}  # the node that first uses a matrix, by the matrix
        args, kwargs = tree_unflatten(node.params["leaves"], node.params["spec"])
        schema = node.params["function"]._schema.arguments
        self.args: dict[str, Any] = {a.name: v for a, v in zip(schema, args, strict=False)} | kwargs
        for argument in schema:
            self.args.setdefault(argument.name, argument.default_value)
        states = self.args["hx"]
        self.states: list[Any] = list(states) if isinstance(states, list | tuple) else [states]

    @property
    def fits(self) -> bool:
        """Whether all samples take the same steps, each with its own numbers."""
        if not all(isinstance(x, Place) for x in (self.args["input"], *self.states)):
            return False
        matrices = self.args["params"] if self._is_layer else [self.args["w_ih"], self.args["w_hh"]]
        if any(isinstance(matrix, Place) for matrix in matrices):
            return False
        layout, rank = self._layout(self.args["input"]), len(self._for_one(self.args["input"]))
        if layout is None or any(self._layout(state) is None for state in self.states):
            return False
        return rank == 3 and layout.axis != self._time and layout.axis < 2 if self._is_layer else rank == 2

    @property
    def _is_layer(self) -> bool:
        return self.node.params["target"] in _LAYERS

    @property
    def _time(self) -> int:
        """The traced axis of the steps."""
        return 1 if self.args["batch_first"] else 0

    def _layout(self, place: Place) -> Layout | None:
        return self.node.params["layouts"][place.index]

    def _for_one(self, place: Place) -> Shape:
        return self.node.params["for_one"][place.index]

    # -- results -----------------------------------------------------------------------------------------------

    def results(self) -> list[Stack | str]:
        """Those of the operator: outputs and last states of a layer, the state of a cell."""
        return self._of_layers() if self._is_layer else self._of_cell()

    def _of_cell(self) -> list[Stack | str]:
        a = self.args
        weights = Matrices(a["w_ih"], a["w_hh"], a["b_ih"], a["b_hh"])
        driven = self._linear(self._input(a["input"]), weights.of_input, weights.bias)
        state = self._step(driven, tuple(self._input(place) for place in self.states), weights)
        if len(state) == 1:
            self.nodes[self.node.name] = replace(self.nodes[state[0]], name=self.node.name)
        return list(state)

    def _of_layers(self) -> list[Stack | str]:
        layout = self._layout(self.args["input"])
        assert layout is not None
        dim = layout.positions(self._time)[0]
        x = self._input(self.args["input"])
        n_directions = 2 if self.args["bidirectional"] else 1
        n_steps = self.nodes[x].shape[dim - 1]
        outputs: list[str] = []
        last: list[State] = []
        for i in range(self.args["num_layers"]):
            both = []
            for j in range(n_directions):
                index = i * n_directions + j
                states = self._directed(x, dim, index, range(n_steps)[:: -1 if j else 1])
                last.append(states[0 if j else -1])
                both.append([state[0] for state in states])
            outputs = [self._cat(step) for step in zip(*both, strict=True)]
            x = self._stacked(outputs, dim) if i + 1 < self.args["num_layers"] else x
        return [Stack(dim, tuple(outputs)), *(Stack(1, parts) for parts in zip(*last, strict=True))]

    def _directed(self, x: str, dim: int, index: int, order: range) -> list[State]:
        """The states after every step, in the order of the input, for one layer in one direction."""
        weights = self._matrices(index)
        driven = self._linear(x, weights.of_input, weights.bias)  # of all steps
        state = tuple(self._select(self._input(place), 1, index) for place in self.states)
        states: dict[int, State] = {}
        for step in order:
            state = states[step] = self._step(self._select(driven, dim, step), state, weights)
        return [states[step] for step in sorted(states)]

    def _matrices(self, index: int) -> Matrices:
        names = ["of_input", "of_state"]
        names += ["bias", "state_bias"] if self.args["has_biases"] else []
        pairs = self.args["num_layers"] * (2 if self.args["bidirectional"] else 1)
        count = len(self.args["params"]) // pairs
        names += ["projection"] * (count - len(names))
        given = self.args["params"][index * count : (index + 1) * count]
        return Matrices(**dict(zip(names, given, strict=True)))

    # -- one step ----------------------------------------------------------------------------------------------

    def _step(self, driven: str, state: State, weights: Matrices) -> State:
        """The next state, from W x + b and the previous state."""
        recurrent = self._linear(state[0], weights.of_state, weights.state_bias)
        if self.kind == "lstm":
            return self._lstm(self._add(driven, recurrent), state[1], weights.projection)
        if self.kind == "gru":
            return (self._gru(driven, recurrent, state[0]),)
        return (self._activation(self._add(driven, recurrent), str(self.kind)),)

    def _lstm(self, gates: str, cell: str, projection: Weight | None) -> State:
        """c' = f c + i g, h' = o tanh(c')."""
        parts = self._parts(gates, 4)
        i, f, g, o = (self._activation(z, "tanh" if k == 2 else "sigmoid") for k, z in enumerate(parts))
        cell = self._add(self._product(f, cell), self._product(i, g))
        hidden = self._product(o, self._activation(cell, "tanh"))
        return (hidden if projection is None else self._linear(hidden, projection, None)), cell

    def _gru(self, driven: str, recurrent: str, hidden: str) -> str:
        """n = tanh(W x + r (U h)), h' = (1 - z) n + z h."""
        reset, update, new = self._parts(driven, 3)
        more_reset, more_update, more_new = self._parts(recurrent, 3)
        r = self._activation(self._add(reset, more_reset), "sigmoid")
        z = self._activation(self._add(update, more_update), "sigmoid")
        n = self._activation(self._add(new, self._product(r, more_new)), "tanh")
        return self._add(self._product(self._complement(z), n), self._product(z, hidden))

    # -- nodes -------------------------------------------------------------------------------------------------

    def _enter(self, op: str, inputs: Sequence[str], shape: Shape, **params: Any) -> str:
        name = f"{self.node.name}.step{self.count}"
        self.count += 1
        self.nodes[name] = _plain(self.node, name, op, inputs, shape, **params)
        return name

    def _linear(self, x: str, weight: Weight, bias: Weight | None) -> str:
        before = self.nodes[x].shape
        name = self._enter("linear", (x,), (*before[:-1], len(weight.tensor)))
        names = [self.shown(source) for source in weight.sources]
        scope, module = (names[0], "") if len(names) == 1 else (self.node.scope, self.node.module)
        self.nodes[name] = replace(
            self.nodes[name],
            scope=scope,
            module=module,
            weight=weight.tensor,
            bias=None if bias is None else bias.tensor,
            trainable=(weight.trainable, bias is not None and bias.trainable),
            sources=(weight.sources, frozenset() if bias is None else bias.sources),
            params={"input_shape": before, "first_use": self.first.setdefault(id(weight.tensor), name)},
        )
        return name

    def _input(self, place: Place) -> str:
        return self.node.inputs[place.index]

    def _activation(self, x: str, kind: str) -> str:
        return self._enter("activation", (x,), self.nodes[x].shape, kind=kind, args=())

    def _complement(self, x: str) -> str:
        """1 - x."""
        name = self._enter("diagonal", (x,), self.nodes[x].shape, kind="scale", dim=None)
        one = self.args["w_hh" if "w_hh" in self.args else "params"]
        one = (one if isinstance(one, Weight) else one[0]).tensor.new_ones(())  # ()
        self.nodes[name] = replace(self.nodes[name], weight=-one, bias=one)
        return name

    def _product(self, a: str, b: str) -> str:
        return self._enter("function", (a, b), self.nodes[a].shape, kind="product", args=())

    def _add(self, a: str, b: str) -> str:
        return self._enter("add", (a, b), self.nodes[a].shape, signs=(1.0, 1.0))

    def _select(self, x: str, dim: int, index: int) -> str:
        shape = self.nodes[x].shape
        kept = (*shape[: dim - 1], *shape[dim:])
        return self._enter("slice", (x,), kept, kind="select", dim=dim, index=index)

    def _parts(self, x: str, n: int) -> list[str]:
        """Equal parts of the last axis."""
        before = self.nodes[x].shape
        size = before[-1] // n
        shape, cuts = (*before[:-1], size), [slice(i * size, (i + 1) * size, 1) for i in range(n)]
        return [self._enter("slice", (x,), shape, kind="slice", dim=len(before), index=cut) for cut in cuts]

    def _cat(self, parts: Sequence[str]) -> str:
        """Both directions of a step."""
        if len(parts) == 1:
            return parts[0]
        shape = self.nodes[parts[0]].shape
        size = sum(self.nodes[part].shape[-1] for part in parts)
        return self._enter("cat", parts, (*shape[:-1], size), dim=len(shape))

    def _stacked(self, steps: Sequence[str], dim: int) -> str:
        """All steps along the axis `dim`, for the next layer."""
        shape = self.nodes[steps[0]].shape
        wide = (*shape[: dim - 1], 1, *shape[dim - 1 :])
        columns = [self._enter("view", (step,), wide, kind="view") for step in steps]
        return self._enter("cat", columns, (*wide[: dim - 1], len(steps), *wide[dim:]), dim=dim)
