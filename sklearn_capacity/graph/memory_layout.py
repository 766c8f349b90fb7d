"""The memory layout of images."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.torch_version import TorchVersion

from .trace import private_copy

__all__ = ["channels_first", "channels_last", "memory_format_of", "takes_channels_last"]

#: Torch reads memory that is not there for the gradient of a group norm's weight at channels-last images that require
#: none, for example behind layers that are frozen in mid-training.
_GROUP_NORM_CRASHES = TorchVersion(torch.__version__) < "2.14"


def channels_last(x: Tensor) -> Tensor:
    """Images or kernels with the channels as the last axis in memory; other tensors, and tensors on a GPU, unchanged.

    On a CPU, convolutions then take 0.2 to 0.9 of the time. With one channel the layout in memory is the same, but
    channels-last strides select faster algorithms: a network for digits of 28 x 28 pixels trains in 0.5 to 0.75 of the
    time.
    """
    return _laid_out(x) if x.is_cpu else x


def channels_first(x: Tensor) -> Tensor:
    """The tensor in torch's default layout, including its strides."""
    return x.reshape(-1).view(x.shape) if x.dim() == 4 else x


@torch.no_grad()
def takes_channels_last(module: nn.Module, input_shape: tuple[int, ...], *, training: bool = False) -> bool:
    """Whether a module computes the same values with channels-last images and kernels.

    A module that calls ``x.view(len(x), -1)`` on a convolution's output fails. Without kernels the result is False, and
    with group norms before torch 2.14, where a backward pass could end the process.

    Parameters
    ----------
    module : nn.Module
        A copy is run on two random samples in eval mode.
    input_shape : tuple of int
        Shape of one sample.
    training : bool, default=False
        Whether it must also run in training mode; that may draw random numbers.
    """
    kernel = next((p for p in module.parameters() if p.dim() == 4), None)
    if kernel is None or (_GROUP_NORM_CRASHES and any(map(_is_trained_group_norm, module.modules()))):
        return False
    X = torch.randn(2, *input_shape, generator=torch.Generator().manual_seed(0), device="cpu").to(kernel)
    try:
        copied = private_copy(module)
        expected = copied(X.clone())
        kernels = {name: _laid_out(p) for name, p in copied.named_parameters()}
        same = torch.allclose(functional_call(copied, kernels, (_laid_out(X),)), expected, 1e-3, 1e-5, equal_nan=True)
        if same and training:
            copied.train()
            copied(_laid_out(X))
        return same
    except torch.OutOfMemoryError:
        raise
    except Exception:  # an error of a user's module on random samples either recurs in use or is harmless
        return False


def _is_trained_group_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.GroupNorm) and module.weight is not None


def _laid_out(x: Tensor) -> Tensor:
    if x.dim() != 4:
        return x
    if x.shape[1] != 1 or not x.is_contiguous():
        return x.contiguous(memory_format=torch.channels_last)
    _, _, height, width = x.shape
    return x if x.stride(1) == 1 else x.as_strided(x.shape, (height * width, 1, width, 1), x.storage_offset())


def memory_format_of(x: Tensor) -> torch.memory_format:
    """The memory format of a new tensor that matches x."""
    last = x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
