"""The activations on the CPU: everywhere within the errors that ``activations.py`` states."""

import numpy as np
import pytest

import fastconv as fc
from fastconv.kernels import ACTIVATIONS, reference
from fastconv.kernels.cpu.vector import FUSES

UNITS = {"silu": 5, "gelu": 7.5, "sigmoid": 4.5, "tanh": 3.5, "hardswish": 3, "leaky_relu": 1.5, "relu": 0, "relu6": 0}
"""Of half a last place of the result."""

EXTREMES = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 3e38, -3e38, 88.7, -87.3, -88.7, -103.9, 745.0, -745.0]


def activate(name, x):
    return fc.conv1d(x.reshape(1, 1, -1), np.ones((1, 1, 1), x.dtype), activation=name, algorithm="direct").ravel()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_errors_are_within_the_stated_ones(name, dtype):
    """Where functions bend, as they saturate, and at all magnitudes down to subnormal ones."""
    rng, count = np.random.default_rng(0), 1 << (16 if dtype == np.float32 else 13)
    sizes = np.exp(rng.uniform(-103, 5, count))
    x = np.concatenate([EXTREMES, np.linspace(-110, 110, count), rng.normal(0, 3, count), sizes, -sizes]).astype(dtype)
    with np.errstate(all="ignore"):
        want = reference.activate(name, x)
    result = activate(name, x)
    finite = np.isfinite(want)
    np.testing.assert_array_equal(result[~finite], want[~finite])
    x, want, result = (a[finite].astype(np.float64) for a in (x, want, result))
    x = np.clip(x, -1000, 1000)
    unit, least = (2.0**-24, 2.0**-149) if dtype == np.float32 else (2.0**-53, 5e-324)
    units = np.full(x.shape, float(UNITS[name]))
    if dtype == np.float64 and units.any():  # NumPy's own error; in Phi's tail x is rounded before it is squared
        units += 4 + (2 * x * x if name == "gelu" else 0)
    if name == "gelu" and not FUSES:
        units += x * x / 2
    factor = np.maximum(abs(x), 1)  # of a probability, which becomes subnormal first
    allowed = units * unit * abs(want) + np.where(abs(want) < factor * np.finfo(dtype).tiny, factor * least, 0)
    worst = np.argmax(abs(result - want) - allowed)
    assert (abs(result - want) <= allowed).all(), (x[worst], result[worst], want[worst])
