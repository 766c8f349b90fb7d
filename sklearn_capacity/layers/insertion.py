"""Insert a generalization layer into an existing network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sklearn_capacity._validation import (
    as_list,
    check_boolean,
    check_integer,
    check_option,
    closest,
    copied_module,
    failure_text,
    shown,
)
from sklearn_capacity.layers.dropout import ConvGeneralizationDropout, GeneralizationDropout
from sklearn_capacity.layers.generalization import (
    ConvGeneralizationLayer,
    GeneralizationLayer,
    GeneralizationWrap,
    conv_body,
    conv_shortcut,
    linear_body,
    linear_shortcut,
)

__all__ = ["FORMS", "insert_generalization_layer"]

FORMS = {"skip": ("wrap", "block", "conv3x3"), "dropout": ("block", "conv3x3")}


def insert_generalization_layer(
    module: nn.Module,
    position: str | int = "head",
    variant: str = "skip",
    form: str | None = None,
    *,
    depth: int | None = None,
    nu: float = 1.0,
    p: float = 0.5,
    activation: str = "relu",
    replace: bool = False,
    input_shape: Sequence[int] | None = None,
) -> nn.Module:
    r"""Return a copy of a network with a generalization layer at a position.

    The submodule l at `position` is replaced by

    ========== ============ ===========================================================
    variant    form         new submodule
    ========== ============ ===========================================================
    "skip"     "wrap"       :math:`l(\phi(W_g x)) + \nu S x` (figure 3)
    "skip"     "block"      :math:`l(F(x) + \nu x)`, or with `replace` :math:`F(x) + \nu S x` (figures 6, 7)
    "skip"     "conv3x3"    the same with 3x3 convolutions and batch norm in F
    "dropout"  "block"      :math:`l(\mathrm{dropout}(\mathrm{relu}(W_g x)))` (figure 5)
    "dropout"  "conv3x3"    the same with two 3x3 convolutions and batch norm (table 1)
    ========== ============ ===========================================================

    Parameters
    ----------
    module : torch.nn.Module
        Any network. It is copied, not changed.
    position : str or int, default="head"
        A submodule's name as in ``named_modules`` ("stage2", "layers.3"), the index of a direct child (as in
        ``nn.Sequential``), or "head": the last linear map (``Linear`` or ``Conv2d``) that is executed, or
        that is registered if there is no `input_shape`.
    variant : {"skip", "dropout"}, default="skip"
        The layer of section 3.1 or of section 3.2.
    form : {"wrap", "block", "conv3x3"}, default=None
        See the table. None: "wrap" for "skip", "block" for "dropout". For feature maps, the first two use 1x1
        convolutions.
    depth : {1, 2}, default=None
        Number of linear maps in W_g or F, with a ReLU between two. None: 1, or 2 for "conv3x3". Only for "skip".
    nu : float in (0, inf), default=1.0
        Initial strength of the skip.
    p : float in [0, 1), default=0.5
        Probability of dropping a node; only for "dropout".
    activation : {"relu", "identity"}, default="relu"
        :math:`\phi` of the form "wrap".
    replace : bool, default=False
        Replace the submodule by the block instead of inserting the block before it; the block has the submodule's
        stride and change of channels or features. Only for "skip" with "block" or "conv3x3".
    input_shape : sequence of int, default=None
        Shape of one sample, for one forward pass in eval mode of the copy, which finds the shapes at `position`.
        Required if the submodule there is neither ``Linear`` nor ``Conv2d``.

    Returns
    -------
    torch.nn.Module
        The new network, on the same device and with the same dtype. Activations inside the submodule at `position` are
        no longer in place, since they would overwrite what the gradient of the new layer needs.

    Raises
    ------
    ValueError
        If the position, variant or form does not exist, the form does not match the shapes, or these are unknown.
    TypeError
        If `module` is not a module.

    References
    ----------
    Generalization by design: learning in the manifold of distributions, sections 3.1 and 3.2.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from sklearn_capacity.layers import insert_generalization_layer
    >>> network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> longer = insert_generalization_layer(network, "head", "skip", "block")
    >>> type(longer[2].generalization).__name__, len(list(network.parameters())), len(list(longer.parameters()))
    ('GeneralizationLayer', 4, 6)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"`module` must be a torch.nn.Module, got {type(module).__name__}.")
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise TypeError("`module` must not be scripted or traced, since its layers cannot change. Pass the original.")
    check_option("variant", variant, FORMS)
    form = FORMS[variant][0] if form is None else check_option("form", form, FORMS[variant])
    replace = check_boolean("replace", replace)
    if replace and (variant != "skip" or form == "wrap"):
        raise ValueError("`replace` needs variant='skip' and form='block' or 'conv3x3'.")
    module = copied_module(module, "Insert the layer before a batch has run through the module.")
    flow = None if input_shape is None else _watch(module, input_shape)
    name, target = _find(module, position, flow)
    place = _place(name, target, flow)
    if variant == "dropout":
        added: nn.Module = _dropout_layer(place, form, p)
    elif form == "wrap":
        added = _wrap(target, place, depth, activation, nu)
    else:
        added = _block(place, form, depth, nu, replace)
    _like(added, target, module)
    for layer in target.modules():
        if getattr(layer, "inplace", False) is True:
            layer.inplace = False  # type: ignore[assignment]
    if not (replace or isinstance(added, GeneralizationWrap)):
        added = nn.Sequential(OrderedDict(generalization=added, layer=target))
    added.train(target.training)
    return _put(module, name, added)


@dataclass(frozen=True)
class _Place:
    """Shapes at a submodule; `crop` is the number of pixels that an unpadded convolution removes on each side."""

    name: str
    is_map: bool
    size_in: int
    size_out: int | None
    stride: tuple[int, int] = (1, 1)
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)  # left, right, top, bottom


class _Crop(nn.Module):
    """Crop the border that an unpadded convolution removes."""

    def __init__(self, left: int, right: int, top: int, bottom: int) -> None:
        super().__init__()
        self.rows = (top, -bottom if bottom else None)
        self.columns = (left, -right if right else None)

    def forward(self, input: Tensor) -> Tensor:
        return input[:, :, self.rows[0] : self.rows[1], self.columns[0] : self.columns[1]]


@dataclass(frozen=True)
class _Flow:
    """Shapes in one forward pass in eval mode, by submodule, in the order of the calls."""

    shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]


def _watch(module: nn.Module, input_shape: Sequence[int]) -> _Flow:
    """The shapes in an eval pass over two samples of zeros; the module does not change."""
    shape = tuple(check_integer("input_shape", size) for size in as_list("input_shape", input_shape))
    reference = next((t for t in module.parameters() if t.is_floating_point()), None)
    if reference is None:
        raise ValueError("`module` must have parameters, got none: there is nothing to regularise.")
    if not reference.is_meta and any(p.is_meta for p in module.parameters()):
        raise ValueError("`module` must have values, got tensors on the meta device. Initialise them first.")
    recorder = _ShapeRecorder(module)
    modes = [(layer, layer.training) for layer in module.modules()]
    try:
        module.eval()
        with torch.no_grad():
            module(torch.zeros((2, *shape), dtype=reference.dtype, device=reference.device))
    except Exception as error:
        text = failure_text(error)
        if text is None:
            raise
        raise ValueError(f"`module` must take samples of `input_shape` {shape}, and failed on zeros: {text}") from error
    finally:
        recorder.remove()
        for layer, mode in modes:
            layer.training = mode
    return recorder.flow


class _ShapeRecorder:
    """Hooks on all submodules that record inputs and outputs.

    A layer that is registered under two names is called once for each: its first call counts for the first name, its
    second for the second, and further calls are ignored.
    """

    def __init__(self, module: nn.Module) -> None:
        self.entered: dict[str, tuple[int, ...]] = {}
        self.left: dict[str, tuple[int, ...]] = {}
        self.handles: list[Any] = []
        names: dict[nn.Module, list[str]] = {}
        for name, layer in module.named_modules(remove_duplicate=False):
            names.setdefault(layer, []).append(name)
        for layer, layer_names in names.items():
            self.handles.append(layer.register_forward_pre_hook(self._enter(iter(layer_names))))
            self.handles.append(layer.register_forward_hook(self._leave(iter(layer_names))))

    def _enter(self, names: Iterator[str]) -> Callable[..., None]:
        def hook(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
            name = next(names, None)
            if name is not None and inputs and isinstance(inputs[0], Tensor):
                self.entered[name] = tuple(inputs[0].shape[1:])

        return hook

    def _leave(self, names: Iterator[str]) -> Callable[..., None]:
        def hook(_layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            name = next(names, None)
            if name is not None and isinstance(output, Tensor):
                self.left[name] = tuple(output.shape[1:])

        return hook

    @property
    def flow(self) -> _Flow:
        """Input and output shapes of the submodules that map one tensor to one, in the order of their calls."""
        return _Flow({name: (shape, self.left[name]) for name, shape in self.entered.items() if name in self.left})

    def remove(self) -> None:
        """Remove the hooks."""
        for handle in self.handles:
            handle.remove()


def _find(module: nn.Module, position: str | int, flow: _Flow | None) -> tuple[str, nn.Module]:
    """The name and the submodule at a position."""
    by_name = dict(module.named_modules(remove_duplicate=False))
    if position == "head":
        maps = [name for name, layer in by_name.items() if isinstance(layer, (nn.Linear, nn.Conv2d))]
        if flow is not None:
            maps = [name for name in flow.shapes if name in maps]
        if not maps:
            raise ValueError("`position` must name a submodule, got 'head', but the module has no Linear or Conv2d.")
        return maps[-1], by_name[maps[-1]]
    if isinstance(position, str):
        if position not in by_name or not position:
            hint = closest(position, by_name) or "See `module.named_modules()`."
            raise ValueError(
                f"`position` must be 'head', an index or a submodule's name, got {shown(position)}. {hint}"
            )
        return position, by_name[position]
    children = [name for name, child in module._modules.items() if child is not None]  # with repetitions
    if not children:
        raise ValueError(f"`position` must be 'head' for a module without submodules, got {shown(position)}.")
    check_integer("position", position, -len(children), len(children) - 1)
    return children[position], by_name[children[position]]


def _place(name: str, target: nn.Module, flow: _Flow | None) -> _Place:
    if isinstance(target, nn.Linear):
        return _Place(name, False, target.in_features, target.out_features)
    if isinstance(target, nn.Conv2d):
        return _conv_place(name, target)
    if flow is None:
        raise ValueError(
            f"`input_shape` must be given to find the shapes at {name!r}, a {type(target).__name__}. "
            "Pass the shape of one sample."
        )
    if name not in flow.shapes:
        raise ValueError(f"`position` must name a submodule that maps one tensor to one, got {name!r}.")
    before, after = flow.shapes[name]
    if len(before) == 3:
        stride = _stride(before[1:], after[1:])
        return _Place(name, True, before[0], after[0] if stride else None, stride or (1, 1))
    if len(before) in (1, 2):
        return _Place(name, False, before[-1], after[-1] if after[:-1] == before[:-1] else None)
    raise ValueError(
        f"`position` must name a submodule that receives vectors or images, but {name!r} receives {before}."
    )


def _stride(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, int] | None:
    """The strides with which a 1x1 convolution maps one size to the other, or None."""
    if len(after) != 2:
        return None
    rows, columns = (-(-a // b) for a, b in zip(before, after, strict=True))
    return (rows, columns) if (-(-before[0] // rows), -(-before[1] // columns)) == after else None


def _conv_place(name: str, conv: nn.Conv2d) -> _Place:
    crop: list[int] = []
    for axis in (1, 0):  # width first, as in torch's padding
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        if isinstance(conv.padding, str):
            both = [0, 0] if conv.padding == "same" else [reach // 2, reach - reach // 2]
        else:
            both = [reach // 2 - conv.padding[axis], reach - reach // 2 - conv.padding[axis]]
        crop += both
    fits = min(crop) >= 0
    return _Place(
        name,
        True,
        conv.in_channels,
        conv.out_channels if fits else None,
        (conv.stride[0], conv.stride[1]),
        (crop[0], crop[1], crop[2], crop[3]) if fits else (0, 0, 0, 0),
    )


def _dropout_layer(place: _Place, form: str, p: float) -> nn.Module:
    if place.is_map:
        return ConvGeneralizationDropout(place.size_in, p, form="conv1x1" if form == "block" else form)
    _refuse_vectors(place, form)
    return GeneralizationDropout(place.size_in, p)


def _wrap(target: nn.Module, place: _Place, depth: int | None, activation: str, nu: float) -> nn.Module:
    depth = 1 if depth is None else depth
    if place.size_out is None:
        raise ValueError(f"form='wrap' cannot put a skip over {place.name!r}: {_WHY_NOT}. Use form='block'.")
    if not place.is_map:
        body = linear_body(place.size_in, place.size_in, depth)
        shortcut = linear_shortcut(place.size_in, place.size_out)
    else:
        body = conv_body(place.size_in, place.size_in, 1, "conv1x1", depth)
        shortcut = conv_shortcut(place.size_in, place.size_out, place.stride)
        if any(place.crop):
            shortcut = nn.Sequential(_Crop(*place.crop), shortcut)
    return GeneralizationWrap(target, body, shortcut, activation, nu)


def _block(place: _Place, form: str, depth: int | None, nu: float, replace: bool) -> nn.Module:
    size_out = place.size_out if replace else place.size_in
    if size_out is None or (replace and (any(place.crop) or len(set(place.stride)) > 1)):
        raise ValueError(f"`replace` cannot substitute a block for {place.name!r}: {_WHY_NOT}.")
    if place.is_map:
        kind = "conv1x1" if form == "block" else form
        stride = place.stride[0] if replace else 1
        return ConvGeneralizationLayer(place.size_in, size_out, stride, form=kind, depth=depth, nu=nu)
    _refuse_vectors(place, form)
    return GeneralizationLayer(place.size_in, size_out, 1 if depth is None else depth, nu)


_WHY_NOT = "no 1x1 convolution with a stride, and no projection, maps its input's shape to its output's"


def _refuse_vectors(place: _Place, form: str) -> None:
    if form == "conv3x3":
        raise ValueError(
            f"form='conv3x3' needs feature maps, but {place.name or 'the module'!r} receives vectors. "
            "Name the submodule that pools or flattens, or use form='block'."
        )


def _like(added: nn.Module, target: nn.Module, module: nn.Module) -> None:
    """Move new layers to the device and dtype of the network."""
    for owner in (target, module):
        for tensor in owner.parameters():
            if tensor.is_floating_point():
                added.to(device=tensor.device, dtype=tensor.dtype)
                return


def _put(module: nn.Module, name: str, new: nn.Module) -> nn.Module:
    if not name:
        return new
    parent, _, last = name.rpartition(".")
    module.get_submodule(parent)._modules[last] = new
    return module
