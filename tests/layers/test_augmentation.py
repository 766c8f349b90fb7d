"""Augmentation against a loop over samples that replays the same random numbers."""

from __future__ import annotations

import pytest
import torch

from sklearn_capacity.layers import crop_flip, random_crop, random_flip, resolve_augmentation


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("padding", [None, 0, 3])
def test_crop_is_a_shift_with_zeros(padding):
    X = torch.randn(20, 3, 16, 10)
    p = 2 if padding is None else padding
    shifts = torch.randint(0, 2 * p + 1, (2, 20), generator=generator())
    expected = torch.zeros_like(X)
    for i in range(20):
        for row in range(16):
            for column in range(10):
                r, c = row + int(shifts[0, i]) - p, column + int(shifts[1, i]) - p
                if 0 <= r < 16 and 0 <= c < 10:
                    expected[i, :, row, column] = X[i, :, r, c]
    before = X.clone()
    assert torch.equal(random_crop(X, generator(), padding), expected)
    assert torch.equal(X, before)


def test_every_window_is_drawn_equally_often():
    n, p = 18_000, 1
    X = torch.arange(9.0).reshape(1, 1, 3, 3).repeat(n, 1, 1, 1) + 1
    centre = random_crop(X, generator(), p)[:, 0, 1, 1]  # the pixel in the middle shows the shift
    counts = torch.bincount(centre.long(), minlength=10)[1:]
    assert (counts.double() / n - 1 / 9).abs().max() < 4 * (1 / 9 * 8 / 9 / n) ** 0.5


def test_flip_mirrors_about_half():
    X = torch.randn(4000, 1, 2, 3)
    y = random_flip(X, generator())
    mirrored = (y == X.flip(3)).flatten(1).all(1)
    assert ((y == X).flatten(1).all(1) ^ mirrored).all()
    assert abs(float(mirrored.double().mean()) - 0.5) < 4 * (0.25 / 4000) ** 0.5


def test_same_seed_same_images_whatever_the_global_generator():
    X = torch.randn(8, 3, 8, 8, dtype=torch.float64)
    state = torch.get_rng_state()
    first = crop_flip(X, generator(3))
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    assert torch.equal(first, crop_flip(X, generator(3))) and not torch.equal(first, crop_flip(X, generator(4)))
    assert first.dtype == X.dtype and first.shape == X.shape


def test_resolve():
    assert resolve_augmentation(None) is None
    assert resolve_augmentation("crop") is random_crop and resolve_augmentation("crop_flip") is crop_flip

    def shift(X, generator):
        return X

    assert resolve_augmentation(shift) is shift
    with pytest.raises(ValueError, match="`augmentation` must be None, one of .* Did you mean 'crop_flip'"):
        resolve_augmentation("cropflip")
    with pytest.raises(TypeError, match="`augmentation` must be None, one of .* or a callable, got 3"):
        resolve_augmentation(3)


def test_errors():
    for function in (random_crop, random_flip, crop_flip):
        with pytest.raises(ValueError, match="`X` must have shape .* to be augmented, got"):
            function(torch.zeros(3, 64), generator())
        with pytest.raises(ValueError, match="to be augmented, got a nested tensor"):
            function(torch.nested.nested_tensor([torch.zeros(1, 4, 4), torch.zeros(1, 5, 5)]), generator())
        with pytest.raises(TypeError, match="`generator` must be a torch.Generator, got int"):
            function(torch.zeros(1, 1, 4, 4), 3)
    with pytest.raises(ValueError, match="`padding` must be at least 0"):
        random_crop(torch.zeros(1, 1, 4, 4), generator(), -1)
