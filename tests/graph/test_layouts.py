"""Layouts against torch's own views, with samples that differ in their numbers."""

from __future__ import annotations

import pytest
import torch

from sklearn_capacity.graph.layouts import ROWS, Layout, Sizes, order_of_axes, reshaped

N = 3
LAYOUTS = [ROWS, Layout(1), Layout(2), Layout(0, 2, 1), Layout(0, 1, 2), Layout(1, 2, 5), Layout(2, 5, 2)]


def traced(layout: Layout, others: tuple[int, ...] = (4, 7)) -> torch.Tensor:
    """A tensor in a layout; every number of sample i is i modulo N."""
    sizes = list(others)
    sizes.insert(layout.axis, N)
    x = torch.arange(N).reshape([N if axis == layout.axis else 1 for axis in range(3)]).expand(sizes)
    outer = [layout.outer if axis == layout.axis else 1 for axis in range(3)]
    return x.repeat_interleave(layout.inner, layout.axis).repeat(outer)


def sizes_of(x: torch.Tensor, layout: Layout) -> Sizes:
    multiple = layout.outer * layout.inner
    one = tuple(multiple if axis == layout.axis else size for axis, size in enumerate(x.shape))
    return Sizes(tuple(multiple if axis == layout.axis else 0 for axis in range(x.dim())), one, one)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_rows_are_samples_and_the_inverse_restores_the_tensor(layout):
    x = traced(layout)
    rows = layout.to_rows(x)
    assert rows.shape == (N, *layout.row_shape(x.shape))
    assert bool((rows.flatten(1) == torch.arange(N)[:, None]).all())
    numbers = torch.arange(x.numel()).reshape(x.shape)
    assert torch.equal(layout.from_rows(layout.to_rows(numbers)), numbers)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_axes_of_rows_are_those_of_the_tensor(layout):
    x = traced(layout)
    rows = layout.to_rows(x)
    for axis in range(3):
        positions = layout.positions(axis)
        expected = layout.outer * layout.inner if axis == layout.axis else x.shape[axis]
        assert torch.Size(rows.shape[p] for p in positions).numel() == expected


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("shape", [(-1,), (-1, 7), (4, -1), (2, -1), (-1, 1, 14), (28, -1), (2, 2, -1, 7), (5, -1, 2)])
def test_a_reshape_keeps_track_of_the_samples_or_is_refused(layout, shape):
    x = traced(layout)
    other = [size for size in shape if size > 0]
    if x.numel() % torch.Size(other).numel():
        return
    y = x.reshape(shape)
    axis = shape.index(-1)
    if y.shape[axis] % N:
        return
    after = Sizes(
        tuple(size // N if a == axis else 0 for a, size in enumerate(y.shape)),
        tuple(size // N if a == axis else size for a, size in enumerate(y.shape)),
        (),
    )
    layout_after = reshaped(layout, sizes_of(x, layout), after)
    candidates = [Layout(axis, k, after.multiples[axis] // k) for k in range(1, after.multiples[axis] + 1)]
    candidates = [c for c in candidates if c.outer * c.inner == after.multiples[axis]]
    samples = torch.arange(N)[:, None]
    right = [c for c in candidates if bool((c.to_rows(y).flatten(1) == samples).all())]
    assert layout_after in right if right else layout_after is None


def test_the_order_of_axes_is_read_off_the_operator():
    assert order_of_axes(torch.ops.aten.transpose.int, {"self": None, "dim0": 0, "dim1": -1}, "self", 3) == (2, 1, 0)
    assert order_of_axes(torch.ops.aten.permute.default, {"self": None, "dims": [1, 2, 0]}, "self", 3) == (1, 2, 0)
