"""Random crops and flips of a batch of images, on their device."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor
from torch.nn import functional

from sklearn_capacity._validation import check_instance, check_integer, closest, shown

__all__ = ["AUGMENTATIONS", "crop_flip", "random_crop", "random_flip", "resolve_augmentation"]

Augmentation = Callable[[Tensor, Generator], Tensor]


def random_crop(X: Tensor, generator: Generator, padding: int | None = None) -> Tensor:
    """Shift each image of a batch by a random number of pixels, with zeros at the border.

    Each image is padded by p zeros on all four sides, and a window of its original size is cut out at a position drawn
    uniformly from the (2p + 1)^2 possible ones.

    Parameters
    ----------
    X : Tensor of shape (n_samples, channels, height, width)
        Images on any device.
    generator : torch.Generator
        A CPU generator, so that all devices use the same random numbers.
    padding : int, default=None
        p, at least 0. None: an eighth of the height (4 for 32 pixels, as is usual for CIFAR-10), at least 1.

    Returns
    -------
    Tensor of the same shape, dtype and device
        New memory; X is not changed.

    Raises
    ------
    ValueError
        If X is not a batch of images, or `padding` is negative.

    Notes
    -----
    The cost is one padded copy, one gather, and two random integers per image.

    References
    ----------
    K. He, X. Zhang, S. Ren, J. Sun. Deep residual learning for image recognition. CVPR 2016, section 4.2.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.layers import random_crop
    >>> X = torch.ones(2, 1, 8, 8)
    >>> random_crop(X, torch.Generator().manual_seed(0)).shape
    torch.Size([2, 1, 8, 8])
    """
    _check_images(X)
    _check_generator(generator)
    n_samples, _, height, width = X.shape
    p = max(1, height // 8) if padding is None else check_integer("padding", padding, 0)
    shifts = torch.randint(0, 2 * p + 1, (2, n_samples), generator=generator, device="cpu").to(X.device)
    windows = functional.pad(X, (p, p, p, p)).unfold(2, height, 1).unfold(3, width, 1)  # a view: no copies
    return windows[torch.arange(n_samples, device=X.device), :, shifts[0], shifts[1]]


def random_flip(X: Tensor, generator: Generator) -> Tensor:
    """Mirror each image of a batch left to right with probability one half.

    Parameters
    ----------
    X : Tensor of shape (n_samples, channels, height, width)
        Images on any device.
    generator : torch.Generator
        A CPU generator, so that all devices use the same random numbers.

    Returns
    -------
    Tensor of the same shape, dtype and device
        New memory; X is not changed.

    Raises
    ------
    ValueError
        If X is not a batch of images.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.layers import random_flip
    >>> X = torch.arange(3.0).reshape(1, 1, 1, 3)
    >>> random_flip(X, torch.Generator().manual_seed(1)).flatten().tolist()
    [2.0, 1.0, 0.0]
    """
    _check_images(X)
    _check_generator(generator)
    mirrored = torch.randint(0, 2, (len(X),), generator=generator, device="cpu").to(X.device).bool()
    return torch.where(mirrored.reshape(-1, 1, 1, 1), X.flip(3), X)


def crop_flip(X: Tensor, generator: Generator) -> Tensor:
    """Apply a random crop, then a random flip, to each image of a batch.

    Parameters
    ----------
    X : Tensor of shape (n_samples, channels, height, width)
        Images on any device.
    generator : torch.Generator
        A CPU generator, so that all devices use the same random numbers.

    Returns
    -------
    Tensor of the same shape, dtype and device
        New memory; X is not changed.

    Raises
    ------
    ValueError
        If X is not a batch of images.

    Examples
    --------
    >>> import torch
    >>> from sklearn_capacity.layers import crop_flip
    >>> crop_flip(torch.zeros(3, 1, 8, 8), torch.Generator().manual_seed(0)).shape
    torch.Size([3, 1, 8, 8])
    """
    return random_flip(random_crop(X, generator), generator)


AUGMENTATIONS: dict[str, Augmentation] = {"crop_flip": crop_flip, "crop": random_crop, "flip": random_flip}


def resolve_augmentation(augmentation: str | Augmentation | None) -> Augmentation | None:
    """Turn an estimator's parameter `augmentation` into a function of a batch and a generator.

    Parameters
    ----------
    augmentation : {"crop_flip", "crop", "flip"}, callable or None
        A callable is called as ``augmentation(X, generator)`` with a batch on the device and a CPU generator, and must
        return a batch of the same shape.

    Returns
    -------
    callable or None
        The function, or None if `augmentation` is None.

    Raises
    ------
    ValueError
        If it is an unknown name.
    TypeError
        If it is neither a name nor callable.

    Examples
    --------
    >>> from sklearn_capacity.layers import resolve_augmentation
    >>> resolve_augmentation("flip").__name__
    'random_flip'
    """
    if augmentation is None or (callable(augmentation) and not isinstance(augmentation, str)):
        return augmentation
    names = ", ".join(repr(name) for name in AUGMENTATIONS)
    message = f"`augmentation` must be None, one of {names} or a callable, got {shown(augmentation)}."
    if not isinstance(augmentation, str):
        raise TypeError(message)
    if augmentation not in AUGMENTATIONS:
        raise ValueError(f"{message} {closest(augmentation, AUGMENTATIONS)}".rstrip())
    return AUGMENTATIONS[augmentation]


def _check_generator(generator: Generator | None) -> None:
    check_instance("generator", generator, (Generator, type(None)), "a torch.Generator")


def _check_images(X: Tensor) -> None:
    check_instance("X", X, Tensor, "a tensor of images")
    if X.is_nested or X.dim() != 4:
        shape = "a nested tensor" if X.is_nested else tuple(X.shape)
        raise ValueError(
            f"`X` must have shape (n_samples, channels, height, width) to be augmented, got {shape}. "
            "Pass input_shape=(channels, height, width) to the estimator."
        )
