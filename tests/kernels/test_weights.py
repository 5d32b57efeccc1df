"""Packing of weights: the order that the kernels read, whatever the sizes leave over."""

import numpy as np
import pytest

from fastconv.kernels.cpu import simd
from fastconv.kernels.cpu.weights import pack_columns, pack_rows
from tests.guard import guarded

# groups, outputs and inputs of a group, kernel size
SIZES = [
    (1, 64, 64, 3), (1, 33, 35, 3), (1, 8, 1, 5), (1, 16, 3, 3), (2, 24, 7, 3), (1, 40, 320, 1), (32, 16, 16, 3),
    (1, 17, 40, 1), (1, 9, 2, 3), (4, 4, 4, 3), (1, 64, 3, 11), (1, 70, 5, 2),
]  # fmt: skip


def weights(groups: int, outputs: int, inputs: int, size: int, dtype: type) -> np.ndarray:
    """All different, in memory that ends at a guard page."""
    w = guarded((groups, outputs, inputs, 1, size, size), dtype)
    w[...] = np.arange(1, w.size + 1).reshape(w.shape)
    return w


def blocks(w: np.ndarray, width: int) -> np.ndarray:
    """(groups, blocks of ``width`` outputs, width, inputs, taps), zeros beyond the last output."""
    groups, outputs, inputs = w.shape[:3]
    count = -(-outputs // width)
    padded = np.zeros((groups, count * width, inputs, w[0, 0, 0].size), w.dtype)
    padded[:, :outputs] = w.reshape(groups, outputs, inputs, -1)
    return padded.reshape(groups, count, width, inputs, -1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_columns_are_packed_tap_by_tap(sizes, dtype):
    w = weights(*sizes, dtype)
    width = simd.columns(w.itemsize)
    want = blocks(w, width).transpose(0, 1, 4, 3, 2).ravel()
    packed = guarded(want.shape, dtype)
    pack_columns(w, packed, False, width, 1)
    np.testing.assert_array_equal(packed, want)


@pytest.mark.parametrize("height", sorted({simd.PIXEL_ROWS, simd.TILE_ROWS}))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_are_packed_channel_by_channel(sizes, dtype, height):
    w = weights(*sizes, dtype)
    want = blocks(w, height).transpose(0, 1, 3, 4, 2).ravel()
    packed = guarded(want.shape, dtype)
    pack_rows(w, packed, height, 1)
    np.testing.assert_array_equal(packed, want)
