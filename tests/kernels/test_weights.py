"""Packing of weights: the order that the kernels read, whatever the sizes leave over."""

import numpy as np
import pytest

from fastconv.kernels.cpu import blocking, depthwise, depthwise_plan, direct, direct_blocking, simd, tiles
from fastconv.kernels.cpu.arrays import weight_view
from fastconv.kernels.cpu.weights import pack_columns, pack_rows
from fastconv.kernels.geometry import ConvGeometry
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


@pytest.mark.parametrize("height", sorted({tiles.PIXEL_ROWS, tiles.TILE_ROWS}))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_rows_are_packed_channel_by_channel(sizes, dtype, height):
    w = weights(*sizes, dtype)
    want = blocks(w, height).transpose(0, 1, 3, 4, 2).ravel()
    packed = guarded(want.shape, dtype)
    pack_rows(w, packed, height, 1)
    np.testing.assert_array_equal(packed, want)


CALLS = [
    # kernel module, channels, size, filters, kernel, stride, groups
    *((direct, *sizes) for sizes in (
        (70, 7, 100, 3, 1, 1), (64, 14, 96, 1, 1, 1), (35, 9, 33, 3, 1, 1), (32, 14, 64, 3, 1, 2), (48, 5, 16, 3, 1, 1),
        (3, 20, 40, 5, 1, 1),
    )),
    *((depthwise, *sizes) for sizes in (
        (40, 9, 40, 3, 1, 40), (20, 9, 40, 3, 1, 20), (12, 20, 12, 5, 2, 4), (7, 9, 7, 7, 1, 7), (16, 33, 32, 9, 1, 8),
    )),
]  # fmt: skip


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "call", CALLS, ids=lambda call: " ".join([call[0].__name__.split(".")[-1], *map(str, call[1:])])
)
def test_weights_packed_on_the_way_give_the_same_bits(call, threads):
    """Some kernels may be given weights that are not packed, in any strides: a thread packs what it needs next."""
    kernel, channels, size, filters, taps, stride, groups = call
    padding = ((taps // 2, taps // 2),) * 2
    geometry = ConvGeometry(1, channels, filters, (size, size), (taps, taps), (stride, stride), padding, (1, 1), groups)
    rng = np.random.default_rng(0)
    x = rng.standard_normal(geometry.input_shape, np.float32)
    w = guarded(geometry.weight_shape, np.float32)
    w[...] = rng.standard_normal(w.shape, np.float32)
    flipped = rng.standard_normal(w.shape, np.float32)[::-1, :, ::-1, ::-1]
    workspace_bytes = {
        direct: direct_blocking.forward_workspace, depthwise: depthwise_plan.forward_workspace
    }[kernel](geometry, 4, threads)  # fmt: skip
    for weights in (w, flipped, np.asfortranarray(w)):
        view = weight_view(geometry, weights)
        if kernel is depthwise or weights is w:
            assert kernel._unpacked(blocking.correlation(geometry), x, view, threads)
        workspace = guarded((workspace_bytes,), np.uint8)
        got, want = np.empty((2, *geometry.output_shape), np.float32)
        for packed, result in ((None, got), (kernel.pack_forward(geometry, weights), want)):
            kernel.forward(
                geometry, x, weights, None, None, result, packed=packed, workspace=workspace, threads=threads
            )
        np.testing.assert_array_equal(got, want)
