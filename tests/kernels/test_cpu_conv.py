"""Direct and im2col convolution on the CPU, forward and both gradients, held to the float64 reference.

Data are small integers, so every sum is exact and equality is bitwise, except where activations and rounding are the
subject. Arrays and workspaces end at guard pages: a stray access crashes the run.
"""

import json
import multiprocessing
import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from itertools import product
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastconv.kernels import ACTIVATIONS, reference
from fastconv.kernels.cpu import blocking, direct_blocking, im2col_blocking, planar_blocking, weights
from fastconv.kernels.geometry import PADDING_MODES, ConvGeometry, conv_output_size
from tests.guard import GUARDS, guarded
from tests.support import threads_for_small_problems

ALGORITHMS = ("direct", "im2col", "planar")
DIRECTIONS = ("forward", "grad_input", "grad_weight")
KERNELS = [(a, d) for a in ALGORITHMS for d in DIRECTIONS if (a, d) != ("planar", "grad_weight")]


def conv(n, c, k, size, kernel, stride=1, pad=0, dilation=1, groups=1, mode="zeros") -> ConvGeometry:
    rank = len(size)

    def each(value):
        return (value,) * rank if isinstance(value, int) else value

    pads = tuple((p, p) if isinstance(p, int) else p for p in each(pad))
    return ConvGeometry(n, c, k, size, each(kernel), each(stride), pads, each(dilation), groups, mode)


EDGES = {
    "1x1": conv(1, 1, 1, (1, 1), 1),
    "one output pixel": conv(2, 5, 3, (3, 3), 3),
    "below a tile": conv(1, 3, 31, (3, 4), 3, pad=1),
    "at a tile": conv(1, 16, 32, (4, 7), 3, pad=1),
    "above a tile": conv(1, 17, 33, (3, 5), 3, pad=1),
    "several blocks": conv(2, 33, 70, (23, 19), 3, pad=1),
    "first layer": conv(2, 3, 40, (18, 17), 7, stride=2, pad=3),
    "one channel": conv(3, 1, 32, (11, 12), 3),
    "deep": conv(1, 320, 70, (3, 9), 3),
    "pointwise": conv(2, 35, 50, (9, 9), 1),
    "pointwise stride 2": conv(3, 16, 33, (7, 7), 1, stride=2),
    "small maps, merged images": conv(9, 8, 40, (3, 3), 3, pad=1),
    "padding larger than the kernel": conv(1, 3, 8, (2, 2), 3, pad=5),
    "asymmetric padding": conv(2, 4, 6, (11, 12), (3, 2), stride=(2, 3), pad=((2, 1), (0, 3))),
    "stride larger than the kernel": conv(1, 3, 8, (20, 20), 2, stride=(3, 5), pad=((1, 1), (4, 4))),
    "patches": conv(1, 3, 8, (20, 20), 4, stride=4),
    "dilation": conv(2, 4, 6, (13, 12), 3, pad=2, dilation=(2, 3)),
    "rows that no tap reads": conv(1, 3, 33, (12, 100), (3, 2), stride=(2, 1), pad=(9, 0), dilation=(9, 1)),
    "dilation and stride": conv(1, 4, 6, (15, 16), 3, stride=(2, 3), pad=2, dilation=(3, 2)),
    "phases of a gradient wider than what they read": conv(1, 7, 32, (4, 5), 2, stride=3, dilation=(1, 2)),
    "groups": conv(2, 24, 48, (7, 9), 3, pad=1, groups=2),
    "small groups": conv(2, 20, 20, (8, 9), 3, pad=1, groups=5),
    "groups of 2 in, 3 out": conv(1, 22, 33, (8, 9), 3, stride=2, pad=1, groups=11),
    "depthwise": conv(2, 40, 40, (8, 9), 3, pad=1, groups=40),
    "many groups": conv(1, 100, 100, (6, 5), 3, pad=1, groups=100),
    "depthwise multiplier": conv(2, 10, 20, (8, 9), 3, stride=(2, 1), pad=1, groups=10),
    "reflect": conv(2, 8, 8, (8, 9), 3, pad=((2, 1), (3, 0)), groups=2, mode="reflect"),
    "replicate": conv(2, 3, 5, (8, 9), 3, stride=2, pad=((1, 2), (3, 1)), mode="replicate"),
    "circular": conv(2, 3, 5, (8, 9), 3, pad=((1, 2), (3, 1)), dilation=(2, 1), mode="circular"),
    "1-D": conv(2, 5, 7, (50,), 5, stride=2, pad=2),
    "1-D, long and dilated": conv(1, 2, 7, (3000,), 5, pad=2, dilation=3),
    "1-D reflect": conv(1, 2, 3, (9,), 4, pad=8, mode="reflect"),
    "3-D": conv(2, 5, 7, (5, 6, 7), (3, 2, 3), stride=(2, 1, 1), pad=((1, 1), (0, 1), (2, 2)), dilation=(1, 1, 2)),
    "3-D replicate": conv(1, 2, 3, (5, 6, 7), (3, 2, 3), pad=1, mode="replicate"),
    "3-D depthwise": conv(1, 6, 6, (4, 5, 6), 3, stride=2, pad=1, groups=6),
}
SHAPES = {"forward": "xwy", "grad_input": "ywx", "grad_weight": "xyw"}  # operands, then the result


def size_of(algorithm: str, direction: str) -> Any:
    """The function that states the workspace."""
    if algorithm in ("planar", "pointwise"):
        return getattr(planar_blocking, f"{algorithm}_{direction}_workspace")
    home = {"direct": direct_blocking, "im2col": im2col_blocking}[algorithm]
    return getattr(home, f"{direction}_workspace")


@pytest.fixture(scope="module", autouse=True)
def small_problems_use_threads_too():
    """Let every problem use the threads it is given."""
    pointwise = [("pointwise", "forward"), ("pointwise", "grad_input")]
    with threads_for_small_problems(weights, sizes=[size_of(a, d) for a, d in (*KERNELS, *pointwise)]):
        yield


@pytest.mark.parametrize(
    ("geometry", "rows"),
    [
        (conv(1, 64, 256, (56, 56), 1), 4),
        (conv(1, 64, 256, (112, 112), 1), 2),
        (conv(1, 100, 8, (13, 57), 7, pad=3), 3),
    ],
)
def test_threads_get_equal_shares_of_the_rows(geometry, rows):
    """56 rows in blocks of 5, the most that fit, would be 30 rows for one thread and 26 for the other; 13 in blocks of
    4 would be 8 and 5, instead of 6 and 7."""
    assert direct_blocking.forward(blocking.correlation(geometry), 4, threads=2).block.rows == rows


def test_small_problems_use_fewer_threads():
    c = blocking.correlation(EDGES["several blocks"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocking, "THREAD_WORK", c.pixels * 33 * 70 * 9 // 3)
        assert [c.useful_threads(n) for n in (1, 2, 8)] == [1, 2, 3]


def shape_of(geometry: ConvGeometry, letter: str) -> tuple[int, ...]:
    return {"x": geometry.input_shape, "w": geometry.weight_shape, "y": geometry.output_shape}[letter]


def integers(rng, shape, dtype=np.float32, most=4) -> np.ndarray:
    array = guarded(shape, dtype, at=rng.choice(["start", "end"]))
    array[...] = rng.integers(-most, most + 1, shape)
    return array


def operands(geometry, direction, dtype=np.float32, seed=0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [integers(rng, shape_of(geometry, letter), dtype) for letter in SHAPES[direction][:2]]


def result_of(geometry, direction, dtype) -> np.ndarray:
    return guarded(shape_of(geometry, SHAPES[direction][2]), dtype)


def compute(
    module: ModuleType | str, direction, geometry, arrays, out=None, *, dtype=None, bias=None, residual=None,
    activation=None, packed=None, threads=1,
) -> np.ndarray:  # fmt: skip
    """Run one kernel, its workspace of the stated size at a guard page."""
    algorithm = module
    module = import_module(f"fastconv.kernels.cpu.{module}") if isinstance(module, str) else module
    out = result_of(geometry, direction, dtype or arrays[0].dtype) if out is None else out
    options = {"threads": threads}
    if module is not reference:
        size = size_of(algorithm, direction)(geometry, out.itemsize, threads)
        options["workspace"] = guarded(size, np.uint8)
    if direction == "grad_weight":
        module.grad_weight(geometry, *arrays, out, **options)
    else:
        function = getattr(module, direction)
        function(geometry, *arrays, bias, residual, out, activation=activation, packed=packed, **options)
    return out


def expected(direction, geometry, arrays, **options) -> np.ndarray:
    return compute(reference, direction, geometry, arrays, dtype=np.float64, **options)


@pytest.mark.parametrize(("algorithm", "direction"), KERNELS)
@pytest.mark.parametrize("name", EDGES)
def test_is_exact_and_independent_of_threads(algorithm, name, direction):
    geometry = EDGES[name]
    for dtype in (np.float32, np.float64):
        arrays = operands(geometry, direction, dtype)
        want = expected(direction, geometry, arrays)
        for threads in (1, 2, 5):
            np.testing.assert_array_equal(compute(algorithm, direction, geometry, arrays, threads=threads), want)


POINTWISE = {
    "a pixel": conv(1, 1, 1, (1, 1), 1),
    "rows of tiles": conv(3, 35, 50, (9, 9), 1),
    "many blocks": conv(3, 300, 24, (21, 33), 1),
    "stride 2": conv(2, 24, 48, (31, 121), 1, stride=2),
    "stride and padding": conv(2, 16, 33, (17, 19), 1, stride=(2, 3), pad=((1, 0), (2, 2))),
    "replicate": conv(2, 6, 17, (8, 9), 1, pad=((1, 2), (3, 1)), mode="replicate"),
    "groups": conv(2, 24, 48, (17, 17), 1, groups=3),
    "1-D": conv(4, 5, 16, (100,), 1),
    "3-D": conv(2, 9, 8, (3, 5, 11), 1),
    "3-D, stride": conv(2, 3, 9, (4, 5, 6), 1, stride=2, pad=1),
}


@pytest.mark.parametrize("direction", ["forward", "grad_input"])
@pytest.mark.parametrize("name", POINTWISE)
def test_pointwise_is_exact(name, direction):
    geometry = POINTWISE[name]
    for dtype in (np.float32, np.float64):
        arrays = operands(geometry, direction, dtype)
        shape = shape_of(geometry, SHAPES[direction][2])
        bias = integers(np.random.default_rng(1), shape[1], dtype)
        residual = integers(np.random.default_rng(2), shape, dtype)
        for options in ({}, {"bias": bias, "activation": "relu"}, {"bias": bias, "residual": residual}):
            want = expected(direction, geometry, arrays, **options)
            for threads in (1, 2, 5):
                result = compute("pointwise", direction, geometry, arrays, threads=threads, **options)
                np.testing.assert_array_equal(result, want)
            changed = [channels_last(arrays[0]), arrays[1][..., ::-1].copy()[..., ::-1]]
            np.testing.assert_array_equal(compute("pointwise", direction, geometry, changed, **options), want)


@st.composite
def geometries(draw) -> ConvGeometry:
    rank = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 5]))
    size = tuple(draw(st.integers(1, 9)) for _ in range(rank))
    kernel = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    stride, dilation = (tuple(draw(st.integers(1, 3)) for _ in range(rank)) for _ in range(2))
    mode = draw(st.sampled_from(PADDING_MODES))
    most = [{"reflect": n - 1, "circular": n}.get(mode, 4) for n in size]
    pads = tuple((draw(st.integers(0, m)), draw(st.integers(0, m))) for m in most)
    if any(n < 1 for n in conv_output_size(size, kernel, stride, pads, dilation)):
        kernel = (1,) * rank
    c, k = (draw(st.integers(1, 9)) * groups for _ in range(2))
    return ConvGeometry(draw(st.integers(1, 3)), c, k, size, kernel, stride, pads, dilation, groups, mode)


@given(geometries(), st.sampled_from(KERNELS), st.integers(1, 4))
def test_random_problems_are_exact(geometry, kernel, threads):
    algorithm, direction = kernel
    arrays = operands(geometry, direction)
    result = compute(algorithm, direction, geometry, arrays, threads=threads)
    np.testing.assert_array_equal(result, expected(direction, geometry, arrays))


def channels_last(array: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


def misaligned(array: np.ndarray) -> np.ndarray:
    memory = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


def read_only(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flags.writeable = False
    return array


FORMS = {
    "channels last": channels_last,
    "Fortran order": np.asfortranarray,
    "negative strides": lambda a: a[::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1],
    "reversed columns": lambda a: a[..., ::-1].copy()[..., ::-1],
    "every second element": lambda a: np.repeat(np.repeat(a, 2, -1), 2, 1)[:, ::2, ..., ::2],
    "misaligned": misaligned,
    "read only": read_only,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ["above a tile", "first layer", "depthwise", "small groups", "reflect", "3-D"])
def test_takes_arrays_of_any_strides(algorithm, name, form):
    geometry = EDGES[name]
    for direction in (d for a, d in KERNELS if a == algorithm):
        arrays = operands(geometry, direction)
        want = expected(direction, geometry, arrays)
        changed = [FORMS[form](a) for a in arrays]
        assert all(np.array_equal(a, b) for a, b in zip(arrays, changed, strict=True))
        np.testing.assert_array_equal(compute(algorithm, direction, geometry, changed), want)
        out = np.zeros_like(want, np.float32)
        if form != "read only":
            out = FORMS[form](out)
        residual = FORMS[form](integers(np.random.default_rng(1), out.shape))
        if direction == "grad_weight":
            compute(algorithm, direction, geometry, changed, out)
        else:
            compute(algorithm, direction, geometry, changed, out, residual=residual)
            want = want + residual
        np.testing.assert_array_equal(out, want)


def guarded_last(array: np.ndarray, pitch: int = 0) -> np.ndarray:
    """A channels-last copy at a guard page; with ``pitch`` more channels lie between its positions."""
    moved = np.moveaxis(array, 1, -1)
    memory = guarded((*moved.shape[:-1], moved.shape[-1] + pitch), array.dtype)
    memory = memory[..., pitch:]
    memory[...] = moved
    return np.moveaxis(memory, -1, 1)


RESIDUALS = {
    "none": lambda a: None,
    "channels last": guarded_last,
    "channels first": lambda a: a,
    "reversed": lambda a: a[..., ::-1, :].copy()[..., ::-1, :],
    "one for all positions": lambda a: np.broadcast_to(a[:, :, :1, :1], a.shape),
    "one for all channels": lambda a: np.broadcast_to(a[:, :1], a.shape),
    "every second channel": lambda a: np.repeat(a, 2, 1)[:, ::2],
}
IN_REGISTERS = {
    **{f"pointwise, {name}": g for name, g in POINTWISE.items() if len(g.input_size) == 2},
    "pointwise, rows a set of the cache apart": conv(1, 512, 40, (5, 6), 1),
    "one vector of outputs": conv(1, 5, 9, (6, 7), 3, pad=1),
    "several blocks": EDGES["several blocks"],
    "deep": EDGES["deep"],
    "groups": EDGES["groups"],
    "first layer": EDGES["first layer"],
    "first layer, several tiles a row": conv(1, 3, 24, (5, 120), 3, stride=2, pad=1),
}


@pytest.mark.parametrize("residual", RESIDUALS)
@pytest.mark.parametrize("name", IN_REGISTERS)
def test_what_tiles_finish_in_registers(name, residual):
    """Bias, residual and limits where the sums never leave the tile, and where the strides forbid it."""
    geometry, rng = IN_REGISTERS[name], np.random.default_rng(5)
    arrays = operands(geometry, "forward")
    shape = geometry.output_shape
    extra = RESIDUALS[residual](integers(rng, shape))
    algorithms = ("direct", "planar", "pointwise") if name.startswith("pointwise") else ("direct", "planar")
    for activation in (None, "relu", "relu6"):
        options = {"bias": integers(rng, shape[1]), "residual": extra, "activation": activation}
        want = expected("forward", geometry, arrays, **options)
        for algorithm, pitch, threads in product(algorithms, (0, 3), (1, 3)):
            for change in (np.asarray, lambda a, pitch=pitch: guarded_last(a, pitch)):
                out = change(np.zeros(shape, np.float32))
                given = [change(arrays[0]), arrays[1]]
                compute(algorithm, "forward", geometry, given, out, threads=threads, **options)
                np.testing.assert_array_equal(out, want)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("algorithm", [*ALGORITHMS, "pointwise"])
def test_large_biases_are_added_once(algorithm, last):
    """A sum that began at the bias would round each product to the bias's last place."""
    geometry, rng = conv(1, 600, 40, (9, 9), 1), np.random.default_rng(8)
    change = channels_last if last else np.asarray
    x, w = (rng.uniform(0.5, 1, shape_of(geometry, letter)).astype(np.float32) for letter in "xw")
    bias, out = np.full(40, 1e6, np.float32), change(np.zeros(geometry.output_shape, np.float32))
    compute(algorithm, "forward", geometry, [change(x), w], out, bias=bias)
    assert abs(out - expected("forward", geometry, [x, w], bias=bias)).max() <= np.spacing(bias[0])


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
@pytest.mark.parametrize("name", ["several blocks", "deep", "first layer", "pointwise", "groups", "above a tile"])
def test_bits_do_not_depend_on_threads(name, last):
    geometry, rng = EDGES[name], np.random.default_rng(6)
    change = channels_last if last else np.asarray
    x, w, y = (rng.standard_normal(shape_of(geometry, letter), np.float32) for letter in "xwy")
    bias, out = rng.standard_normal(y.shape[1], np.float32), change(np.zeros_like(y))
    for algorithm in ALGORITHMS:
        for residual in (None, change(y)):
            results = [
                compute(
                    algorithm, "forward", geometry, [change(x), w], out, bias=bias, residual=residual,
                    activation="relu", threads=threads,
                ).tobytes()
                for threads in (1, 2, 3, 5)
            ]  # fmt: skip
            assert len(set(results)) == 1, algorithm


@pytest.mark.parametrize(("algorithm", "direction"), KERNELS)
def test_empty_batch(algorithm, direction):
    geometry = conv(0, 3, 4, (5, 5), 3)
    result = compute(algorithm, direction, geometry, operands(geometry, direction))
    assert not result.any()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
@pytest.mark.parametrize(
    "name", ["above a tile", "groups of 2 in, 3 out", "replicate", "stride larger than the kernel"]
)
def test_packed_weights_give_the_same_bits(algorithm, direction, name):
    geometry, rng = EDGES[name], np.random.default_rng(2)
    a, w = (rng.standard_normal(shape_of(geometry, s), np.float32) for s in SHAPES[direction][:2])
    module = import_module(f"fastconv.kernels.cpu.{algorithm}")
    packed = getattr(module, "pack_forward" if direction == "forward" else "pack_grad_input")(geometry, w)
    plain = compute(algorithm, direction, geometry, [a, w], threads=2)
    assert np.array_equal(compute(algorithm, direction, geometry, [a, None], packed=packed, threads=2), plain)


@pytest.mark.parametrize("activation", [None, *ACTIVATIONS])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("direction", ["forward", "grad_input"])
def test_epilogue(algorithm, direction, activation):
    """Sums are exact, so what differs is the activation's own rounding: a few units in the last place."""
    for name, layout in (("above a tile", np.asarray), ("above a tile", channels_last), ("replicate", np.asarray)):
        geometry = EDGES[name]
        for dtype, unit in ((np.float32, 2.0**-24), (np.float64, 2.0**-53)):
            arrays = [a / 32 for a in operands(geometry, direction, dtype)]  # sums within about -8 to 8
            shape = shape_of(geometry, SHAPES[direction][2])
            rng = np.random.default_rng(3)
            residual = integers(rng, shape, dtype) / 16
            bias = integers(rng, (2 * shape[1],), dtype)[::2] / 16
            options = {"bias": bias, "residual": residual, "activation": activation}
            want = expected(direction, geometry, arrays, **options)
            out = layout(np.zeros(shape, dtype))
            compute(algorithm, direction, geometry, arrays, out, **options)
            units = 4.0
            if activation == "gelu":  # its tail is exp(-x²/2): rounding x² alone costs x²/2 units
                units = 8 + expected(direction, geometry, arrays, **options | {"activation": None}) ** 2
            assert (abs(out - want) <= units * unit * (abs(want) + 2.0**-60)).all(), abs(out - want).max()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_extreme_values(activation):
    values = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-30, -1e-30, 1e4, -1e4, 700.0, -700.0, 40.0, -40.0])
    geometry = conv(1, 1, 1, (len(values),), 1)
    arrays = [values.reshape(1, 1, -1), np.ones((1, 1, 1))]
    result = compute("direct", "forward", geometry, arrays, activation=activation)
    want = expected("forward", geometry, arrays, activation=activation)
    np.testing.assert_allclose(result, want, rtol=1e-14, atol=1e-300)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize(("algorithm", "direction"), KERNELS)
def test_16_bit_results_are_rounded_once(algorithm, direction, dtype):
    geometry = EDGES["above a tile"]
    arrays = operands(geometry, direction, dtype)
    options = {}
    if direction != "grad_weight":
        rng, shape = np.random.default_rng(4), shape_of(geometry, SHAPES[direction][2])
        options = {
            "bias": integers(rng, shape[1], dtype),
            "residual": integers(rng, shape, dtype),
            "activation": "relu",
        }
    want = expected(direction, geometry, arrays, **options).astype(dtype)
    np.testing.assert_array_equal(compute(algorithm, direction, geometry, arrays, **options), want)


@pytest.mark.parametrize(("algorithm", "direction"), KERNELS)
def test_error_is_within_the_worst_case_bound_and_typical_of_its_length(algorithm, direction):
    """n products round to at most n u (|w| * |x|); typically to about sqrt(n) u of the sum of squares."""
    geometry, rng, unit = conv(2, 60, 40, (30, 31), 3, pad=1), np.random.default_rng(5), 2.0**-24
    arrays = [rng.standard_normal(shape_of(geometry, s), np.float32) for s in SHAPES[direction][:2]]
    error = abs(compute(algorithm, direction, geometry, arrays) - expected(direction, geometry, arrays))
    size = expected(direction, geometry, [abs(a) for a in arrays])
    n = {"forward": 60 * 9, "grad_input": 40 * 9, "grad_weight": 2 * 30 * 31}[direction]
    assert (error <= n * unit * size).all()
    assert np.sqrt((error**2).mean()) <= n**0.5 * unit * n**0.5  # products are of size 1: their sums of sqrt(n)


def test_long_weight_gradients_do_not_drift():
    """Summed one by one, 200,000 equal terms of 0.1 would be off by 1e-3 relative in float32; in two levels by 1e-5."""
    geometry = conv(1, 1, 1, (200_000,), 1)
    x = np.full(geometry.input_shape, 0.1, np.float32)
    for algorithm in ("direct", "im2col"):
        result = compute(algorithm, "grad_weight", geometry, [x, np.ones_like(x)])
        assert abs(result.item() / (200_000 * np.float64(x[0, 0, 0])) - 1) < 3e-5


def test_a_wrong_kernel_is_noticed():
    geometry = EDGES["above a tile"]
    x, w = operands(geometry, "forward")
    broken = w.copy()
    broken[:, :, 1, 1] = 0
    assert not np.array_equal(
        compute("direct", "forward", geometry, [x, broken]), expected("forward", geometry, [x, w])
    )


@pytest.mark.skipif(not GUARDS, reason="pages are protected on Linux only")
def test_guard_pages_stop_a_stray_read():
    code = "from tests.guard import guarded; import ctypes; a = guarded(3, 'f4'); ctypes.string_at(a.ctypes.data, 13)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode < 0


def test_eight_threads_at_once_get_the_same_bits():
    geometry, rng = EDGES["several blocks"], np.random.default_rng(6)
    cases = []
    for algorithm, direction in KERNELS:
        arrays = [rng.standard_normal(shape_of(geometry, s), np.float32) for s in SHAPES[direction][:2]]
        cases.append((algorithm, direction, arrays, compute(algorithm, direction, geometry, arrays)))
    barrier = threading.Barrier(8)

    def work(_: int) -> bool:
        barrier.wait()
        runs = [(compute(a, d, geometry, x, threads=2), want) for _ in range(3) for a, d, x, want in cases]
        return all(np.array_equal(result, want) for result, want in runs)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def _in_child(geometry, arrays, want) -> bool:
    return bool(np.array_equal(compute("direct", "forward", geometry, arrays, threads=2), want))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12: forking with threads is what we test
def test_forked_children_compute_too():
    """A second OpenMP region in a child of fork aborts the process: children must run serially."""
    geometry = EDGES["several blocks"]
    arrays = operands(geometry, "forward")
    want = compute("direct", "forward", geometry, arrays, threads=2)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_in_child, (geometry, arrays, want)).get(timeout=60)


AVX2 = "+sse,+sse2,+sse3,+ssse3,+sse4.1,+sse4.2,+avx,+avx2,+fma,+bmi,+bmi2,+popcnt,+lzcnt,+f16c,+movbe"
TARGETS = {
    "AVX2": ("haswell", AVX2, 32, "direct im2col planar pointwise"),
    "SSE2": ("x86-64", "+sse,+sse2", 16, "direct planar pointwise"),
}
OTHER_ISA = """
import json, sys
import numpy as np
from fastconv.kernels.cpu import simd
from tests.kernels import test_cpu_conv as t
right = {}
for name in ("several blocks", "small groups", "asymmetric padding"):
    for algorithm in sys.argv[1].split():
        for direction in t.DIRECTIONS[: 3 if algorithm == "direct" else 2]:
            geometry = t.POINTWISE["many blocks"] if algorithm == "pointwise" else t.EDGES[name]
            arrays = t.operands(geometry, direction)
            result = t.compute(algorithm, direction, geometry, arrays)
            want, last = t.expected(direction, geometry, arrays), t.channels_last(np.zeros_like(result))
            same = np.array_equal(result, want)
            if direction != "grad_weight":
                same &= np.array_equal(t.compute(algorithm, direction, geometry, arrays, last), want)
            right[f"{name}, {algorithm} {direction}"] = bool(same)
print(json.dumps([simd.VECTOR_BYTES, right]))
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 instruction sets")
@pytest.mark.parametrize("target", TARGETS)
def test_other_instruction_sets(target):
    cpu, features, vector_bytes, algorithms = TARGETS[target]
    environment = os.environ | {"NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": features}
    done = subprocess.run(
        [sys.executable, "-c", OTHER_ISA, algorithms], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    used, right = json.loads(done.stdout)
    assert used == vector_bytes
    assert all(right.values()), [name for name, ok in right.items() if not ok]
