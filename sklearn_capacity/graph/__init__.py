"""The graph of a network: trace, fold, interpret.

`trace` turns a module into a `Program`: `recording` runs modules that make the calls in `known_calls`; torch exports
others. `known_programs` keeps programs by structure; `expansion` writes out composed operators, and `in_place`
replaces in-place ones. `binding` binds tensors to a program and converts its operators with the table in `rules`:
`layouts` records where the samples of a value are, `constants` have none, and `selections` tells which entries of a
parameter a tensor takes; `templates` bind the tensors of other networks of a structure, and `rebinding` repeats what
was computed from tensors once these have changed. `fold` folds batch norms and constant factors. The result is a
`NetworkGraph` of `nodes`, which `evaluate` and every other interpreter traverse in order. Measures receive a `Network`
(in `network`): a module with its program, its graph and its checks. `activations` is the table of element-wise
functions, `functions` that of smooth functions of several entries, such as products and softmax, `max_pooling` takes
maxima over windows, `joined_norms` joins the steps of normalisations, `outputs` finds a module's logits, `end_layers`
the linear maps at the ends of a graph, `memory_layout` tests channels-last images, `export_cleanup` frees what a trace
leaves behind, `inlining` writes out regions under autocast. `weight_layers` lists the weight layers of any graph and
creates their linear operators: `linear_maps` finds those in operators without a rule, and `module_layers` traces the
submodules of a module that cannot be traced. `recurrent` writes recurrent layers as their steps. Read `nodes` first,
then `trace` and `binding`.

Data flow: module -> trace -> Program.bind(tensors) -> fold -> NetworkGraph -> interpret(rules).
"""

from .activations import ACTIVATIONS, Activation, activation_of
from .evaluate import EVALUATE, LINEAR_RULES, apply_linear, broadcast, evaluate
from .memory_layout import channels_first, channels_last, takes_channels_last
from .network import Network
from .nodes import NetworkGraph, Node, UnsupportedLayerError, interpret
from .rebinding import Rebinder
from .recording import is_known
from .trace import Program, named_tensors, private_copy, trace
from .weight_layers import WeightLayers, operator_of, weight_layers

__all__ = [
    "ACTIVATIONS",
    "EVALUATE",
    "LINEAR_RULES",
    "Activation",
    "Network",
    "NetworkGraph",
    "Node",
    "Program",
    "Rebinder",
    "UnsupportedLayerError",
    "WeightLayers",
    "activation_of",
    "apply_linear",
    "broadcast",
    "channels_first",
    "channels_last",
    "evaluate",
    "interpret",
    "is_known",
    "named_tensors",
    "operator_of",
    "private_copy",
    "takes_channels_last",
    "trace",
    "weight_layers",
]
