"""The graph of a network: trace, fold, interpret."""

from .activations import ACTIVATIONS, Activation, activation_of
from .evaluate import EVALUATE, LINEAR_RULES, apply_linear, broadcast, evaluate
from .jacobian import RawJacobian, parameter_jacobian, raw_parameters
from .layout import channels_first, channels_last, takes_channels_last
from .network import Network
from .nodes import NetworkGraph, Node, UnsupportedLayerError, interpret
from .tangent import parameter_tangent
from .trace import Program, named_tensors, private_copy, trace

__all__ = [
    "ACTIVATIONS",
    "EVALUATE",
    "LINEAR_RULES",
    "Activation",
    "Network",
    "NetworkGraph",
    "Node",
    "Program",
    "RawJacobian",
    "UnsupportedLayerError",
    "activation_of",
    "apply_linear",
    "broadcast",
    "channels_first",
    "channels_last",
    "evaluate",
    "interpret",
    "named_tensors",
    "parameter_jacobian",
    "parameter_tangent",
    "private_copy",
    "raw_parameters",
    "takes_channels_last",
    "trace",
]
