"""Depthwise convolution on the CPU, forward and input gradient, held to the float64 reference.

Data are small integers, so every sum is exact and equality is bitwise. Arrays and workspaces end at guard pages.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastconv.kernels.cpu import depthwise, depthwise_plan
from fastconv.kernels.geometry import PADDING_MODES, ConvGeometry, conv_output_size
from tests.guard import guarded
from tests.kernels.test_cpu_conv import FORMS, SHAPES, channels_last, conv, expected, integers, operands, shape_of
from tests.support import threads_for_small_problems

DIRECTIONS = ("forward", "grad_input")
EDGES = {
    "one element": conv(1, 2, 2, (1, 1), 1, groups=2),
    "below a vector": conv(2, 5, 5, (3, 4), 3, pad=1, groups=5),
    "a tile": conv(1, 32, 32, (7, 32), 3, pad=1, groups=32),
    "above a tile": conv(2, 33, 33, (8, 33), 3, pad=1, groups=33),
    "several bands": conv(1, 3, 3, (120, 90), 3, pad=1, groups=3),
    "several bands, stride 2": conv(2, 3, 3, (101, 90), 3, stride=2, pad=1, groups=3),
    "wide": conv(1, 2, 2, (9, 300), 7, pad=3, groups=2),
    "5x5 stride 2": conv(1, 20, 20, (17, 40), 5, stride=2, pad=2, groups=20),
    "5x5": conv(2, 3, 3, (13, 28), 5, pad=2, groups=3),
    "5x5, small maps": conv(3, 5, 5, (7, 7), 5, pad=((2, 1), (1, 2)), groups=5),
    "5x5, several bands": conv(1, 2, 2, (131, 90), 5, pad=(2, 1), groups=2),
    "5x5, more padding than rows": conv(1, 2, 2, (3, 20), 5, pad=((7, 6), (2, 2)), groups=2),
    "7x7": conv(1, 18, 18, (15, 20), 7, pad=3, groups=18),
    "7x7, two strips": conv(2, 3, 3, (12, 56), 7, pad=3, groups=3),
    "7x7 stride 2": conv(1, 18, 18, (15, 20), 7, stride=2, pad=3, groups=18),
    "even kernels": conv(1, 6, 6, (14, 20), (4, 6), pad=(2, 3), groups=6),
    "tall kernel": conv(1, 4, 4, (20, 9), (11, 2), pad=(5, 0), groups=4),
    "1x1": conv(1, 20, 20, (9, 9), 1, groups=20),
    "1x1 stride 2": conv(1, 20, 20, (9, 9), 1, stride=2, groups=20),
    "1x1 stride 2, rows begin in padding": conv(1, 4, 4, (2, 2), 1, stride=2, pad=((0, 1), (1, 0)), groups=4),
    "patches": conv(1, 6, 6, (20, 20), 4, stride=4, groups=6),
    "stride larger than the kernel": conv(1, 3, 3, (20, 20), 2, stride=(3, 5), pad=((1, 1), (4, 4)), groups=3),
    "stride 3": conv(1, 3, 3, (20, 40), 5, stride=3, pad=2, groups=3),
    "asymmetric": conv(2, 4, 4, (11, 12), (3, 2), stride=(2, 3), pad=((2, 1), (0, 3)), groups=4),
    "dilation": conv(2, 4, 4, (13, 12), 3, pad=2, dilation=(2, 3), groups=4),
    "dilation and stride": conv(1, 4, 4, (15, 16), 3, stride=(2, 4), pad=2, dilation=(4, 2), groups=4),
    "padding larger than the kernel": conv(1, 3, 3, (2, 2), 3, pad=5, groups=3),
    "multiplier": conv(2, 17, 51, (8, 19), 3, pad=1, groups=17),
    "multiplier, stride 2": conv(1, 10, 20, (8, 9), 3, stride=2, pad=1, groups=10),
    "groups of 4": conv(2, 20, 20, (8, 19), 3, pad=1, groups=5),
    "groups of 2 in, 3 out": conv(1, 22, 33, (8, 9), 3, stride=2, pad=1, groups=11),
    "groups of 16": conv(1, 32, 32, (14, 14), 3, pad=1, groups=2),
    "reflect": conv(2, 4, 4, (8, 9), 3, pad=((2, 1), (3, 0)), groups=4, mode="reflect"),
    "replicate": conv(2, 3, 3, (8, 9), 3, stride=2, pad=((1, 2), (3, 1)), groups=3, mode="replicate"),
    "circular": conv(2, 3, 3, (8, 9), 3, pad=((1, 2), (3, 1)), dilation=(2, 1), groups=3, mode="circular"),
    "1-D": conv(2, 5, 5, (500,), 5, stride=2, pad=2, groups=5),
    "1-D, long kernel": conv(1, 3, 3, (300,), 31, pad=15, groups=3),
    "3-D": conv(1, 6, 6, (4, 5, 20), 3, stride=(2, 1, 1), pad=1, groups=6),
}


@pytest.fixture(scope="module", autouse=True)
def small_problems_use_threads_too():
    with threads_for_small_problems(sizes=[depthwise_plan.forward_workspace, depthwise_plan.grad_input_workspace]):
        yield


def compute(
    direction, geometry, arrays, out=None, *, threads=1, bias=None, residual=None, activation=None, packed=None
):
    """Run the kernel, its workspace of the stated size at a guard page."""
    out = guarded(shape_of(geometry, SHAPES[direction][2]), arrays[0].dtype) if out is None else out
    size = getattr(depthwise_plan, f"{direction}_workspace")(geometry, out.itemsize, threads)
    options = {"activation": activation, "packed": packed, "threads": threads}
    workspace = guarded(-(-size // 64) * 64, np.uint8)
    getattr(depthwise, direction)(geometry, *arrays, bias, residual, out, workspace=workspace, **options)
    return out


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", EDGES)
def test_is_exact_in_every_layout(name, direction):
    geometry = EDGES[name]
    for dtype in (np.float32, np.float64):
        a, w = operands(geometry, direction, dtype)
        want = expected(direction, geometry, [a, w])
        for threads in (1, 2, 5):
            np.testing.assert_array_equal(compute(direction, geometry, [a, w], threads=threads), want)
            out = channels_last(np.full(want.shape, np.nan, dtype))
            np.testing.assert_array_equal(
                compute(direction, geometry, [channels_last(a), w], out, threads=threads), want
            )


@st.composite
def geometries(draw) -> ConvGeometry:
    rank = draw(st.integers(1, 3))
    groups, inputs, outputs = draw(st.integers(2, 40)), draw(st.sampled_from([1, 1, 1, 2, 3])), draw(st.integers(1, 3))
    size = tuple(draw(st.integers(1, 40 if a == rank - 1 else 11)) for a in range(rank))
    kernel = tuple(draw(st.integers(1, 9)) for _ in range(rank))
    stride, dilation = (tuple(draw(st.integers(1, 3)) for _ in range(rank)) for _ in range(2))
    mode = draw(st.sampled_from(PADDING_MODES))
    most = [{"reflect": n - 1, "circular": n}.get(mode, 4) for n in size]
    pads = tuple((draw(st.integers(0, m)), draw(st.integers(0, m))) for m in most)
    if any(n < 1 for n in conv_output_size(size, kernel, stride, pads, dilation)):
        kernel = (1,) * rank
    c, k = groups * inputs, groups * outputs
    return ConvGeometry(draw(st.integers(1, 3)), c, k, size, kernel, stride, pads, dilation, groups, mode)


@settings(max_examples=60)
@given(geometries(), st.sampled_from(DIRECTIONS), st.sampled_from(list(FORMS)), st.integers(1, 4))
def test_random_problems_are_exact(geometry, direction, form, threads):
    a, w = operands(geometry, direction)
    result = compute(direction, geometry, [FORMS[form](a), w], threads=threads)
    np.testing.assert_array_equal(result, expected(direction, geometry, [a, w]))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["above a tile", "5x5 stride 2", "multiplier", "groups of 4", "reflect", "3-D"])
def test_takes_arrays_of_any_strides(name, form):
    geometry = EDGES[name]
    for direction in DIRECTIONS:
        arrays = operands(geometry, direction)
        want = expected(direction, geometry, arrays)
        out = np.zeros(want.shape, np.float32)
        residual = integers(np.random.default_rng(1), out.shape)
        out = out if form == "read only" else FORMS[form](out)
        compute(direction, geometry, [FORMS[form](a) for a in arrays], out, residual=FORMS[form](residual))
        np.testing.assert_array_equal(out, want + residual)


@pytest.mark.parametrize("name", ["below a vector", "several bands", "5x5 stride 2", "7x7"])
@pytest.mark.parametrize("at", ["start", "end"])
def test_reads_nothing_outside_the_first_and_last_rows(name, at, monkeypatch):
    geometry = EDGES[name]
    a, w = operands(geometry, "forward")
    rows = guarded((*a.shape[:2], 1, a.shape[3]), a.dtype, at=at)
    rows[...] = a[:, :, :1]
    repeated = np.broadcast_to(rows, a.shape)  # every row of the last channel is the last in memory
    inputs = [repeated, guarded(a.shape, a.dtype, at=at)]
    inputs[1][...] = a
    for near in (depthwise_plan.NEAR_BYTES, 0):  # small problems, too, ask for what is ahead
        monkeypatch.setattr(depthwise_plan, "NEAR_BYTES", near)
        depthwise._prepare.cache_clear()
        for x in inputs:
            np.testing.assert_array_equal(compute("forward", geometry, [x, w]), expected("forward", geometry, [x, w]))
    depthwise._prepare.cache_clear()


@pytest.mark.parametrize("layout", [np.asarray, channels_last], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", ["above a tile", "5x5 stride 2", "multiplier", "even kernels", "groups of 4"])
def test_epilogue_is_exact_where_the_activation_is(name, layout):
    geometry = EDGES[name]
    for direction in DIRECTIONS:
        a, w = operands(geometry, direction)
        shape = shape_of(geometry, SHAPES[direction][2])
        rng = np.random.default_rng(2)
        for bias in (None, integers(rng, shape[1:2])):
            for residual in (None, layout(integers(rng, shape))):
                for activation in (None, "relu", "relu6"):
                    options = {"bias": bias, "residual": residual, "activation": activation}
                    out = layout(np.full(shape, np.nan, np.float32))
                    compute(direction, geometry, [layout(a), w], out, **options)
                    np.testing.assert_array_equal(out, expected(direction, geometry, [a, w], **options))
        out = layout(integers(rng, shape))
        want = expected(direction, geometry, [a, w], residual=out.copy(), activation="relu")
        compute(direction, geometry, [layout(a), w], out, residual=out, activation="relu")  # as 16-bit calls do
        np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("layout", [np.asarray, channels_last], ids=["channels first", "channels last"])
def test_nan_passes_through_the_rectifier_and_stays_in_its_windows(layout):
    geometry = EDGES["above a tile"]
    x, w = operands(geometry, "forward")
    x[1, 7, 3, 5] = np.nan
    for activation in (None, "relu", "relu6"):
        out = layout(np.zeros(geometry.output_shape, np.float32))
        compute("forward", geometry, [layout(x), w], out, activation=activation)
        np.testing.assert_array_equal(out, expected("forward", geometry, [x, w], activation=activation))
        assert np.isnan(out).sum() == 9


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", ["above a tile", "multiplier", "stride larger than the kernel", "groups of 4"])
def test_packed_weights_give_the_same_bits(direction, name):
    geometry, rng = EDGES[name], np.random.default_rng(3)
    a, w = (rng.standard_normal(shape_of(geometry, s), np.float32) for s in SHAPES[direction][:2])
    packed = getattr(depthwise, f"pack_{direction}")(geometry, w)
    plain = compute(direction, geometry, [a, w], threads=2)
    assert np.array_equal(compute(direction, geometry, [a, None], packed=packed, threads=2), plain)


def test_passes_cover_every_tap_once():
    for kernel in range(1, 34):
        for stride in range(1, 5):
            for dilation in range(1, 4):
                found = depthwise_plan.passes(kernel, stride, dilation)
                assert sorted(tap for p in found for tap in p.taps) == list(range(kernel))
