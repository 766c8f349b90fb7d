"""Bounds of a convolution's spectral norm against scipy, power iteration, FFT on the image and the reshaped kernel.

The reference is ARPACK at machine precision. Errors are in the notes and, where a target exists, in the ratio column.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds

from benchmarks.timing import measure_row, paired_medians
from sklearn_capacity.linalg import ConvOperator, MatrixOperator, conv_norm_lower, conv_norm_upper

# Channels in and out, image, kernel, stride: layers of an MNIST net, of ResNet-20 and of VGG.
LAYERS = {
    "1-32 5x5 on 28": (1, 32, 28, 5, 1),
    "32-32 5x5 on 14": (32, 32, 14, 5, 1),
    "16-16 3x3 on 32": (16, 16, 32, 3, 1),
    "32-64 3x3/2 on 16": (32, 64, 16, 3, 2),
    "64-64 3x3 on 8": (64, 64, 8, 3, 1),
    "3-64 3x3 on 32": (3, 64, 32, 3, 1),
    "64-64 3x3 on 16": (64, 64, 16, 3, 1),
    "128-256 3x3/2 on 8": (128, 256, 8, 3, 2),
}
#: Relative accuracy of both sides of the comparison with scipy.
ACCURACY = 1e-7


def layer(c_in: int, c_out: int, size: int, kernel: int, stride: int) -> ConvOperator:
    """A layer with He's initialisation, padded to keep the image size."""
    generator = torch.Generator().manual_seed(c_in + c_out + size)
    weight = torch.randn((c_out, c_in, kernel, kernel), generator=generator) * math.sqrt(2 / (c_in * kernel**2))
    return ConvOperator(weight, (c_in, size, size), stride, kernel // 2)


def power_iteration(operator: ConvOperator, steps: int = 50, tol: float = 0.0) -> float:
    """The usual estimate; with a tolerance, until the residual is below it."""
    v = torch.randn((1, *operator.input_shape), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = 0.0
    for _ in range(steps):
        v = v / torch.linalg.vector_norm(v)
        product = operator.adjoint(operator.forward(v))
        value = math.sqrt(float((v * product).sum()))
        if float(torch.linalg.vector_norm(product - value**2 * v)) <= tol * value**2:
            break
        v = product
    return value


def fft_on_image(operator: ConvOperator) -> float:
    """Sedghi, Gupta, Long (2019) on the image itself, without the stride: the norm in public code."""
    transform = torch.fft.fft2(operator.weight, s=operator.input_shape[1:])
    return float(torch.linalg.svdvals(transform.permute(2, 3, 0, 1))[..., 0].max())


def arpack(operator: ConvOperator, tol: float = 0.0) -> float:
    """ARPACK's largest singular value by `scipy.sparse.linalg.svds`, by default at machine precision."""
    shapes = (1, *operator.output_shape), (1, *operator.input_shape)
    rows, columns = (math.prod(shape) for shape in shapes)

    def product(map_, shape, x):
        return map_(torch.as_tensor(x.reshape(shape))).numpy().ravel()

    linear = LinearOperator(
        (rows, columns),
        matvec=partial(product, operator.forward, shapes[1]),
        rmatvec=partial(product, operator.adjoint, shapes[0]),
        dtype=np.float64,
    )
    start = np.random.default_rng(0).standard_normal(min(rows, columns))
    return float(svds(linear, k=1, tol=tol, v0=start, return_singular_vectors=False)[0])


def run() -> list[dict]:
    """Rows for the lower bound and scipy's per layer, its error, the upper bound and a large matrix."""
    operators = {name: layer(*sizes) for name, sizes in LAYERS.items()}
    truth = {name: arpack(operator) for name, operator in operators.items()}
    lower = {name: conv_norm_lower(operator).value for name, operator in operators.items()}
    rows = [
        measure_row(
            f"conv norm, lower bound, {name}",
            partial(conv_norm_lower, operator, ACCURACY),
            partial(arpack, operator, ACCURACY),
            target=1.0,
            note=f"off by {abs(lower[name] / truth[name] - 1):.0e}; peer: svds to the same tolerance",
            repeats=3,
        )
        for name, operator in operators.items()
    ]
    return rows + _accuracy_rows(operators, truth, lower) + [_matrix_row()]


def _accuracy_rows(operators: dict, truth: dict[str, float], lower: dict[str, float]) -> list[dict]:
    """The error of the lower bound against 50 power iterations, and the upper bound against FFT on the image."""

    def worst(values: dict[str, float]) -> tuple[float, str]:
        return max((abs(value / truth[name] - 1), name) for name, value in values.items())

    def every(function):
        return lambda: {name: function(operator) for name, operator in operators.items()}

    error, where = worst(lower)
    power, power_where = worst(every(power_iteration)())
    reshaped = {name: float(torch.linalg.matrix_norm(op.weight.flatten(1), 2)) for name, op in operators.items()}
    below = worst(reshaped)[0]
    times = paired_medians(every(conv_norm_lower), every(power_iteration), 3)
    upper = {name: conv_norm_upper(operator, lower[name]) for name, operator in operators.items()}
    gaps = ", ".join(f"{100 * (upper[name] / truth[name] - 1):.2g} %" for name in operators)
    fft, fft_where = worst(every(fft_on_image)())
    return [
        {
            "kernel": "conv norm, lower bound: worst relative error in 1e-6 (ratio)",
            "ours": times.first,
            "peer": times.second,
            "ratio": error * 1e6,
            "target": 1.0,
            "note": f"{error:.1e} ({where}); peer: 50 power iterations, {power:.1e} ({power_where}); reshaped kernels: "
            f"{100 * below:.0f} % off",
        },
        measure_row(
            "conv norm, upper bound: time",
            lambda: {name: conv_norm_upper(operator, lower[name]) for name, operator in operators.items()},
            every(fft_on_image),
            note=f"proven, above the norm by {gaps}; peer: FFT on the image, off by {100 * fft:.0f} % ({fft_where})",
            repeats=3,
        ),
    ]


def _matrix_row() -> dict:
    """A square layer of MNIST's width against all singular values, which `torch.linalg.matrix_norm` computes."""
    weight = torch.randn((784, 784), generator=torch.Generator().manual_seed(0)) * math.sqrt(2 / 784)
    dense = weight.double()
    return measure_row(
        "matrix norm, 784 x 784",
        lambda: MatrixOperator(weight).norm_lower(),
        lambda: torch.linalg.matrix_norm(dense, 2),
        target=1.0,
        note="peer: all singular values",
        repeats=5,
    )
