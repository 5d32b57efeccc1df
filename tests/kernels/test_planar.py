"""Planar's tiles that go on from one row to the next: where runs begin and end, and what lies between them."""

from itertools import product

import numpy as np
import pytest

from fastconv.kernels.cpu import planar, planar_blocking, weights
from fastconv.kernels.cpu.blocking import correlation
from tests.kernels.test_cpu_conv import compute, conv, expected, guarded_last, integers, operands, result_of
from tests.support import threads_for_small_problems

JOINED = {
    "11x11 at 4": conv(2, 3, 16, (99, 223), 11, stride=4, pad=2),
    "rows shorter than a vector": conv(2, 16, 24, (9, 7), 3, pad=1),
    "a last block of fewer rows": conv(1, 5, 8, (171, 49), 7, pad=3),
    "one phase of rows": conv(1, 9, 8, (13, 99), (3, 5), stride=(1, 2), pad=1),
    "strides apart": conv(1, 9, 8, (29, 61), 5, stride=(3, 2), pad=1),
    "at 3": conv(1, 6, 9, (31, 150), 7, stride=3, pad=3),
    "dilation": conv(1, 9, 8, (40, 69), 3, stride=(3, 2), dilation=(2, 3), pad=4),
    "groups that fill no tile": conv(1, 12, 20, (14, 14), 5, pad=2, groups=2),
    "more padding than rows": conv(1, 9, 8, (3, 50), 5, pad=(4, 2)),
    "reflect": conv(1, 9, 8, (12, 51), 5, pad=2, mode="reflect"),
    "3-D": conv(1, 4, 8, (5, 9, 17), 3, stride=(2, 2, 1), pad=1),
}


@pytest.fixture(scope="module", autouse=True)
def small_problems_use_threads_too():
    with threads_for_small_problems(weights, sizes=[planar_blocking.planar_forward_workspace]):
        yield


@pytest.mark.parametrize("name", JOINED)
def test_rows_joined_are_exact(name):
    geometry, rng = JOINED[name], np.random.default_rng(1)
    assert planar_blocking.planar_forward(correlation(geometry), 4, 1).joined
    for dtype in (np.float32, np.float64):
        x, w = operands(geometry, "forward", dtype)
        bias, residual = integers(rng, geometry.out_channels, dtype), integers(rng, geometry.output_shape, dtype)
        options = ({}, {"bias": bias, "activation": "relu6"}, {"bias": bias, "residual": residual})
        for extra, layout, threads in product(options, (np.asarray, guarded_last), (1, 3)):
            out = layout(result_of(geometry, "forward", dtype))
            out[...] = np.nan
            compute("planar", "forward", geometry, [x, w], out, threads=threads, **extra)
            np.testing.assert_array_equal(out, expected("forward", geometry, [x, w], **extra))


def test_few_weights_of_one_call_are_packed_by_the_threads(monkeypatch):
    """Those of groups that fill no tile too, as long as their taps lie side by side; whoever packs them, exactly."""
    packed = []
    monkeypatch.setattr(planar, "pack_rows", lambda *arguments: (packed.append(True), weights.pack_rows(*arguments)))
    geometry = conv(2, 6, 22, (9, 37), (2, 3), stride=(1, 2), pad=1, groups=2)
    for dtype in (np.float32, np.float64):
        x, w = operands(geometry, "forward", dtype)
        right = expected("forward", geometry, [x, w])
        channels = w.swapaxes(0, 1).copy().swapaxes(0, 1)
        backwards = w[..., ::-1].copy()[..., ::-1]
        for view, threads in product((guarded_last(w), channels, backwards, np.asfortranarray(w)), (1, 3)):
            out, before = guarded_last(result_of(geometry, "forward", dtype)), len(packed)
            compute("planar", "forward", geometry, [x, view], out, threads=threads)
            np.testing.assert_array_equal(out, right)
            assert (len(packed) > before) == (view.strides[-1] != view.itemsize)
