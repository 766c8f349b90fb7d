"""A run of the network on a few samples before measuring: the shape of its outputs, and whether they are a function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode

from .._validation import NotDefinedError, has_packed_weights, warn
from ..graph import Network, UnsupportedLayerError, channels_last
from ..process_state import RandomNumbers, restored_at_the_end, surely
from ..training import embedding_cure

__all__ = ["is_hollow", "measurable", "probe", "torch_refusals"]

#: Allowed difference of two passes relative to the largest logit: far above rounding, far below the effect of other
#: random numbers or of another batch.
TOLERANCE = 1e-3
#: Number of samples of the probe, and the two groups in which they pass once more. Each is in another order, as a
#: network may reverse, shift or sort its samples; no sample is in both, since an extreme value of the batch would be
#: that of both; and of three numbers of samples one is even and two are odd.
SAMPLES, GROUPS = 5, ([3, 0], [4, 2, 1])
#: Parts of torch's messages for what cannot be differentiated, or not twice.
REFUSALS = (
    "derivative for",
    "does not require grad",
    "not have been used in the graph",
    "modified by an inplace operation",
    "not differentiable",
    "donated buffers",
    "not implemented for",
)


@contextmanager
def torch_refusals(purpose: str) -> Iterator[None]:
    """Convert torch's refusals for a network to an error of this package; other errors pass."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if not isinstance(error, torch.linalg.LinAlgError) and not any(part in text for part in REFUSALS):
            raise
        reason = f"cannot be computed for this network; torch says: {text}"
        raise NotDefinedError(f"{purpose} {reason}", reason=reason) from error


def measurable(module: nn.Module) -> nn.Module:
    """The eager module inside wrappers that change no output.

    Raises
    ------
    NotDefinedError
        If the module can neither be copied nor differentiated.
    """
    while True:
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            module = module.module
        elif isinstance(inner := getattr(module, "_orig_mod", None), nn.Module):  # torch.compile
            module = inner
        else:
            break
    name = type(module).__name__
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            raise NotDefinedError(f"`{name}` is compiled to TorchScript. Pass the original module.")
        if has_packed_weights(part):
            raise NotDefinedError(f"`{name}` is quantized: it has no derivatives. Pass the module before quantization.")
    for key, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise NotDefinedError(f"`{key}` of `{name}` has no values yet. Run a batch through the lazy module first.")
        if is_hollow(tensor):
            raise NotDefinedError(f"`{key}` of `{name}` is on the meta device and has no values. Load them first.")
        if tensor.is_complex() or tensor.is_quantized:
            raise NotDefinedError(f"`{key}` of `{name}` has dtype {tensor.dtype}, but weights must be real numbers.")
    return module


def is_hollow(tensor: Tensor) -> bool:
    """Whether a tensor is on the meta device; a subclass on that device may have values."""
    return tensor.is_meta and type(tensor.data) is Tensor


def probe(network: Network, X: Any, task: str | None) -> None:
    """Raise if the network fails on such samples, or does not map one sample to one vector of logits.

    Parameters
    ----------
    network : Network
    X : array or Tensor of shape (n, ...) or None
        None stands for random samples.
    task : "classification", "regression" or None

    Raises
    ------
    ValueError
        If the forward pass fails.
    NotDefinedError
        If a classifier does not return a vector of logits.
    UnsupportedLayerError
        If two passes over the same samples differ, or the outputs of a sample depend on its batch.
    """
    choices = _samples(network, X)
    numbers = RandomNumbers(network.device)
    try:
        numbers.enter()
        samples, (first, shape, returned, apart, repeatable) = _passes_of_one(network, choices)
        if not repeatable:
            raise UnsupportedLayerError(
                "The network draws random numbers in eval mode: two passes over the same samples differ. Make it "
                "deterministic in eval mode; for example, `torch.nn.functional.dropout` needs `training=self.training`."
            )
        draws = _draws(network, samples, numbers)
    except BaseException:
        surely(numbers.leave)
        raise
    # Without draws, nothing is restored, since another thread of the user's may be drawing numbers.
    if not (draws and restored_at_the_end(numbers.leave)):
        numbers.leave(restore=False)
    if not shape or 0 in shape:
        raise NotDefinedError("The network has no outputs.")
    if task == "classification" and sum(size > 1 for size in shape) > 1:
        raise NotDefinedError(
            f"The network returns an array of shape {shape} for one sample, but a classifier must return one vector of "
            "logits. Pool or flatten it in the forward pass."
        )
    if not apart:
        raise UnsupportedLayerError(f"The network mixes its samples in eval mode: {_mixing(network, samples, first)}")
    if task == "classification" and first.dim() == 2 and first.shape[1] > 1:
        _check_meaning(network, returned)


#: What the forward passes return: see `_forward_passes`.
_Passes = tuple[Tensor, tuple[int, ...], Tensor, bool, bool]


def _passes_of_one(network: Network, choices: list[Tensor]) -> tuple[Tensor, _Passes]:
    """The first of the choices that the network takes, and its forward passes."""
    for samples in choices[:-1]:
        try:
            return samples, _forward_passes(network, samples)
        except NotDefinedError:
            raise
        except ValueError:  # of the user's code, which may check its samples
            continue
    return choices[-1], _forward_passes(network, choices[-1])


@torch.no_grad()
def _forward_passes(network: Network, samples: Tensor) -> _Passes:
    """Logits, the shape of one output, the outputs, whether the groups have the same logits, and another pass has."""
    before = set(network.tensors())
    try:
        first, shape, returned = network.explored(samples)
        if first.layout != torch.strided or not first.is_floating_point():
            raise NotDefinedError(f"The network must return dense floats, got {first.layout}, {first.dtype}.")
        created = sorted(map(network.shown, set(network.tensors()) - before))
        if created:
            raise NotDefinedError(
                f"The forward pass creates {', '.join(f'`{name}`' for name in created)}, with values that nobody has "
                "trained. Run a batch through the module first."
            )
        apart = _are_apart(network, samples, first)
        return first, shape, returned, apart, apart or _equal(first, network.forward(samples))
    except (torch.OutOfMemoryError, MemoryError, NotDefinedError):
        raise
    except Exception as error:  # the user's code may raise anything
        shown = network.input_shape
        cure = embedding_cure(network.module, "measure")
        cure = f".{cure}" if cure else ""
        raise ValueError(f"The network failed on samples of shape {shown}, those of `X`: {error}{cure}") from error


def _are_apart(network: Network, samples: Tensor, first: Tensor) -> bool:
    """Whether the samples of every group have the same logits as before; their images have another layout if possible.

    A network whose logits depend on the layout gets images in torch's default one from here on.
    """
    if not network.takes_channels_last:
        return _same_in_groups(network, samples, first, lambda X: X)
    try:
        if _same_in_groups(network, samples, first, channels_last):
            return True
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception:  # the user's code may raise anything
        pass
    vars(network)["takes_channels_last"] = False
    return _same_in_groups(network, samples, first, lambda X: X)


def _same_in_groups(network: Network, samples: Tensor, first: Tensor, laid_out: Callable[[Tensor], Tensor]) -> bool:
    passes = (network.forward(laid_out(_rows(samples, group))) for group in GROUPS)
    return all(_equal(_rows(first, group), logits) for group, logits in zip(GROUPS, passes, strict=True))


@torch.no_grad()
def _mixing(network: Network, samples: Tensor, first: Tensor) -> str:
    """What the outputs of a sample depend on, and the cure."""
    n = len(samples)
    alone = torch.cat([network.forward(_rows(samples, [i] * n))[i : i + 1] for i in range(n)])  # (n, C)
    if _equal(alone, first):
        return (
            "the outputs of one depend on its place in the batch or on the number of samples there, so it is not a "
            "function of one input. Leave `len(x)`, and what differs along the first axis, out of the forward pass."
        )
    if all(any(_equal(row, other) for other in alone) for row in first):
        return (
            "it returns the outputs of other samples in the place of a sample's, as after `flip`, `roll` or `sort` "
            "along the first axis. Keep the order of the samples."
        )
    return (
        "the outputs of one depend on the others in its batch, so it is not a function of one input. Build batch "
        "normalisation with `track_running_stats=True`, and attention and recurrent layers with `batch_first=True`."
    )


def _check_meaning(network: Network, returned: Tensor) -> None:
    """Warn if probabilities are interpreted as logits, or logits as probabilities: the values would be wrong."""
    if not bool(returned.isfinite().all()):
        return
    sum_to_one = bool(((returned.sum(-1) - 1).abs() <= TOLERANCE).all())
    if network.output in ("logits", "log_probabilities") and bool((returned >= 0).all()) and sum_to_one:
        warn(
            "The network returns probabilities (outputs from 0 to 1 that sum to 1), and the measures interpret them as "
            "logits. Remove the final softmax."
        )
    elif network.output == "probabilities" and not sum_to_one:
        warn(
            "skorch's NLLLoss expects probabilities, but the outputs of this network do not sum to 1. Train "
            "logits with criterion=nn.CrossEntropyLoss, or end the module in a softmax."
        )


@torch.no_grad()
def _draws(network: Network, samples: Tensor, numbers: RandomNumbers) -> bool:
    """Whether the network draws random numbers, though its outputs do not depend on them.

    Other threads may have drawn those that are missing, so this one is watched during another pass.
    """
    if not numbers.changed():
        return False
    with _Draws() as seen:
        network.forward(samples)
    return seen.any


class _Draws(TorchDispatchMode):
    """Whether an operator of this thread draws from torch's default generator."""

    any = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.any = self.any or torch.Tag.nondeterministic_seeded in func.tags
        return func(*args, **(kwargs or {}))


def _samples(network: Network, X: Any) -> list[Tensor]:
    """The probe's samples; if X has too few that differ, also copies of these alone, which a network cannot refuse."""
    if X is None:
        generator = torch.Generator().manual_seed(0)
        samples = torch.randn(SAMPLES, *network.input_shape, generator=generator, dtype=torch.float64, device="cpu")
        return [samples.to(device=network.device, dtype=network.dtype)]
    rows = np.linspace(0, len(X) - 1, SAMPLES).astype(int)
    samples = _rows(X, rows.tolist()) if isinstance(X, Tensor) else torch.from_numpy(np.array(X[rows]))
    samples = samples.to(device=network.device, dtype=network.dtype).unique(dim=0)
    # Missing samples are multiples of the last, so that they differ; a part of a token's index is an index, too.
    missing = [samples[-1:] * factor for factor in (0, 0.5, 0.25, 0.75)][: SAMPLES - len(samples)]
    order = [1, 3, 0, 4, 2]  # so that a sort shows
    copies = [_rows(samples, [i % len(samples) for i in order])] if missing else []
    return [_rows(torch.cat([samples, *missing]), order), *copies]


def _rows(samples: Tensor, places: list[int]) -> Tensor:
    """The samples at some places, without an index on another device than theirs."""
    return torch.stack([samples[i] for i in places])


def _equal(a: Tensor, b: Tensor) -> bool:
    finite = a.isfinite() & b.isfinite()
    scale = a[finite].abs().max() if bool(finite.any()) else 0
    return bool(((a - b)[finite].abs() <= TOLERANCE * scale).all())
