"""Both ends of a convolution's spectral norm against power iteration, FFT on the image and the reshaped kernel.

The truth is ARPACK's at machine precision. Errors are in the notes and, where a target exists, in the ratio column.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, svds

from benchmarks.timing import measure_row, paired_medians
from sklearn_capacity.linalg import ConvOperator, conv_norm_lower, conv_norm_upper

# Channels in and out, image, kernel, stride: the layers of the MNIST net and of ResNet-20.
LAYERS = {
    "1-32 5x5 on 28": (1, 32, 28, 5, 1),
    "32-32 5x5 on 14": (32, 32, 14, 5, 1),
    "16-16 3x3 on 32": (16, 16, 32, 3, 1),
    "16-32 3x3/2 on 32": (16, 32, 32, 3, 2),
    "32-64 3x3/2 on 16": (32, 64, 16, 3, 2),
    "64-64 3x3 on 8": (64, 64, 8, 3, 1),
}


def layer(c_in: int, c_out: int, size: int, kernel: int, stride: int) -> ConvOperator:
    """A layer as initialised by He, padded to keep the image."""
    generator = torch.Generator().manual_seed(c_in + c_out + size)
    weight = torch.randn((c_out, c_in, kernel, kernel), generator=generator) * math.sqrt(2 / (c_in * kernel**2))
    return ConvOperator(weight, (c_in, size, size), stride, kernel // 2)


def power_iteration(operator: ConvOperator, steps: int = 50, tol: float = 0.0) -> float:
    """The usual estimate; with a tolerance, until the residual falls below it."""
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
    """Sedghi, Gupta, Long (2019) on the image itself, the stride left out: what public code calls the norm."""
    transform = torch.fft.fft2(operator.weight, s=operator.input_shape[1:])
    return float(torch.linalg.svdvals(transform.permute(2, 3, 0, 1))[..., 0].max())


def reference(operator: ConvOperator) -> float:
    """ARPACK's largest singular value, at machine precision."""
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
    return float(svds(linear, k=1, v0=start, return_singular_vectors=False)[0])


def run() -> list[dict]:
    """Rows for the lower end, its error and the upper end, over all the layers."""
    operators = {name: layer(*sizes) for name, sizes in LAYERS.items()}
    truth = {name: reference(operator) for name, operator in operators.items()}
    lower = {name: conv_norm_lower(operator).value for name, operator in operators.items()}

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
    same = operators["32-64 3x3/2 on 16"]
    return [
        {
            "kernel": "conv norm, lower end: worst relative error in 1e-6 (ratio)",
            "ours": times.first,
            "peer": times.second,
            "ratio": error * 1e6,
            "target": 1.0,
            "note": f"{error:.1e} ({where}); peer: 50 power iterations, {power:.1e} ({power_where})",
        },
        measure_row(
            "conv norm, lower end: time to a residual of 1e-7",
            lambda: conv_norm_lower(same),
            lambda: power_iteration(same, 5000, 1e-7),
            target=1.0,
            note=f"one layer; peer: power iteration to that residual; reshaped kernels: {100 * below:.0f} % off",
            repeats=1,
        ),
        measure_row(
            "conv norm, upper end: time",
            lambda: {name: conv_norm_upper(operator, lower[name]) for name, operator in operators.items()},
            every(fft_on_image),
            note=f"proven, above the norm by {gaps}; peer: FFT on the image, off by {100 * fft:.0f} % ({fft_where})",
            repeats=3,
        ),
    ]
