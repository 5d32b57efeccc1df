"""The dense layer's kernel: exact on integers at every edge of vectors, rows and shares."""

from typing import Any

import numpy as np
import pytest

from fastconv.kernels.cpu import dense
from tests.guard import guarded


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_integers_come_out_exactly(dtype: Any) -> None:
    random = np.random.default_rng(0)

    def integers(*shape: int) -> np.ndarray:
        array = guarded(shape, dtype)  # ends where memory ends
        array[...] = random.integers(-4, 5, shape)
        return array

    for inputs in (1, 5, 8, 15, 16, 17, 37, 4000):
        for outputs in (1, 2, 3, 4, 5, 31, 130):
            for batch in (1, 3):
                x, w, bias = integers(batch, inputs), integers(outputs, inputs), integers(outputs)
                out = guarded((batch, outputs), dtype)
                out[...] = np.nan
                dense.forward(x, w, bias, out, activation="relu", threads=2)
                np.testing.assert_array_equal(out, np.maximum(x @ w.T + bias, 0))
                dense.forward(x, w, None, out, threads=1)
                np.testing.assert_array_equal(out, x @ w.T)
