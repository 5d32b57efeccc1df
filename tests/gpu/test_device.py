"""The public functions on arrays of a real GPU: every row by name, streams, graphs, memory, large arrays."""

import threading
from dataclasses import replace

import numpy as np
import pytest

import fastconv as fc
from fastconv.kernels.cuda import module
from fastconv.problem import conv_problem
from fastconv.registry import ROWS
from fastconv.testing import integers

CONV = [row for row in ROWS if row.device == "cuda" and row.op == "conv"]
FORWARD = [row for row in CONV if row.direction == "forward"]
SHAPES = (
    # x, w, parameters
    ((3, 17, 13, 18), (33, 17, 3, 3), {"padding": 1}),
    ((2, 16, 9, 12), (24, 16, 1, 1), {}),
    ((2, 8, 15, 14), (8, 1, 3, 3), {"padding": 1, "groups": 8, "stride": 2}),
    ((2, 64, 30, 31), (64, 64, 3, 3), {"padding": 1}),
)


def reference(function, *arguments, **parameters):
    """The float64 reference's result."""
    wide = [a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind == "f" else a for a in arguments]
    with fc.options(algorithm="reference"):
        return function(*wide, **parameters)


def close(got, expected, tolerance=1e-4):
    """Within a share of the largest element; float32 Winograd stays well below the one given."""
    got = got.get()
    assert got.shape == expected.shape
    error = np.abs(got - expected).max(initial=0)
    assert error <= tolerance * max(np.abs(expected).max(initial=0), 1e-30), error


def last(array):
    return np.ascontiguousarray(np.moveaxis(array, 1, -1))


# ------------------------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("row", CONV, ids=lambda r: r.name)
def test_every_convolution_by_name(cupy, row, dtype):
    """On CuPy's own arrays: contiguous in both layouts, and as views with odd strides."""
    if dtype not in row.dtypes:
        pytest.skip(f"computes {', '.join(row.dtypes)}")
    ran = 0
    for shape, weights, parameters in SHAPES:
        x, w = integers(shape, dtype, 0), integers(weights, dtype, 1)
        b = integers(weights[:1], dtype, 2)
        problem = conv_problem("conv2d", 2, shape, weights, device="cuda", dtype=dtype, **parameters)
        if row.refuses(replace(problem, direction=row.direction)) is not None:
            continue
        dy = integers(problem.geometry.output_shape, dtype, 3)
        for layout, form in (("NCHW", np.asarray), ("NHWC", last), ("NCHW", odd), ("NHWC", lambda a: odd(last(a)))):
            how = {"layout": layout, "algorithm": row.algorithm, **parameters}
            there = cupy.asarray
            if row.direction == "forward":
                got = fc.conv2d(move(cupy, form(x)), there(w), there(b), activation="relu", **how)
                expected = reference(fc.conv2d, x, w, b, activation="relu", **parameters)
            elif row.direction == "grad_input":
                got = fc.grad.conv2d_input(form(x).shape, there(w), move(cupy, form(dy)), **how)
                expected = reference(fc.grad.conv2d_input, x.shape, w, dy, **parameters)
            else:
                got = fc.grad.conv2d_weight(move(cupy, form(x)), w.shape, move(cupy, form(dy)), **how)
                expected = reference(fc.grad.conv2d_weight, x, w.shape, dy, **parameters)
            if layout == "NHWC" and row.direction != "grad_weight":
                expected = last(expected)
            close(got, expected, 1e-4 if dtype == "float32" else 1e-12)
            ran += 1
    assert ran


def odd(array):
    """The array as every second element, backwards, of a larger one along the last axis."""
    whole = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
    whole[..., ::-2] = array
    return whole[..., ::-2]


def move(cupy, array):
    """To the device with its strides."""
    if array.base is None or array.flags.c_contiguous:
        return cupy.asarray(np.ascontiguousarray(array))
    return cupy.asarray(np.ascontiguousarray(array.base))[..., ::-2]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_poolings(cupy, layout):
    x = integers((3, 9, 22, 20), seed=5)
    form = np.asarray if layout == "NCHW" else last

    def back(a):
        return a.get() if layout == "NCHW" else np.moveaxis(a.get(), -1, 1)

    for window in ({"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 5, "stride": 3}):
        there = cupy.asarray(form(x))
        y, indices = fc.max_pool2d(there, return_indices=True, layout=layout, **window)
        expected, positions = reference(fc.max_pool2d, x, return_indices=True, **window)
        np.testing.assert_array_equal(back(y), expected)
        np.testing.assert_array_equal(back(indices), positions)
        dy = integers(expected.shape, seed=6)
        for name, given in (("max_pool2d", x), ("min_pool2d", x), ("avg_pool2d", x.shape)):
            array = cupy.asarray(form(given)) if given is x else form(x).shape
            got = getattr(fc.grad, f"{name}_input")(array, cupy.asarray(form(dy)), layout=layout, **window)
            truth = reference(getattr(fc.grad, f"{name}_input"), given, dy, **window)
            np.testing.assert_allclose(back(got), truth, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_allclose(
            back(fc.avg_pool2d(there, layout=layout, **window)), reference(fc.avg_pool2d, x, **window), rtol=1e-5
        )
        norm = fc.lp_pool2d(there, 2, layout=layout, **window)
        np.testing.assert_allclose(back(norm), reference(fc.lp_pool2d, x, 2, **window), rtol=1e-5)
        unpooled = fc.max_unpool2d(y, indices, output_size=(22, 20), layout=layout, **window)
        expected = reference(fc.max_unpool2d, expected, positions, output_size=(22, 20), **window)
        np.testing.assert_array_equal(back(unpooled), expected)
    mean = fc.adaptive_avg_pool2d(cupy.asarray(form(x)), 1, layout=layout)
    np.testing.assert_allclose(back(mean), x.mean((2, 3), keepdims=True), rtol=1e-5, atol=1e-6)


def test_the_default_choice_in_other_ranks(cupy):
    for rank in (1, 3):
        x, w = integers((2, 6, *(9,) * rank), seed=0), integers((8, 6, *(3,) * rank), seed=1)
        name = f"conv{rank}d"
        for mode in ("zeros", "reflect", "replicate", "circular"):
            got = getattr(fc, name)(cupy.asarray(x), cupy.asarray(w), padding=2, padding_mode=mode)
            close(got, reference(getattr(fc, name), x, w, padding=2, padding_mode=mode))
        got = getattr(fc, f"conv_transpose{rank}d")(cupy.asarray(x), cupy.asarray(w.swapaxes(0, 1)), stride=2)
        close(got, reference(getattr(fc, f"conv_transpose{rank}d"), x, w.swapaxes(0, 1), stride=2))


@pytest.mark.parametrize("row", FORWARD, ids=lambda r: r.name)
def test_subnormal_numbers_are_kept(cupy, row):
    x = np.full((1, 16, 6, 6), 1e-41, np.float32)
    for w in (np.ones((16, 16, 3, 3), np.float32), np.ones((16, 16, 1, 1), np.float32)):
        for weights, groups in ((w, 1), (w[:, :1], 16)):
            try:
                y = fc.conv2d(cupy.asarray(x), cupy.asarray(weights), groups=groups, algorithm=row.algorithm).get()
            except ValueError:  # refused
                continue
            expected = 1e-41 * weights[0].size
            assert np.abs(y - expected).max() <= 0.01 * expected, row.name


# ------------------------------------------------------------------------------------- streams, graphs, threads, memory


def test_plans_on_streams_and_threads(gpu):
    """One plan, four threads, each on a stream of its own: every one has its own workspace."""
    w = integers((64, 64, 3, 3), seed=1)
    plans = [fc.plan_conv2d((2, 64, 28, 28), gpu.asarray(w), padding=1, algorithm=name) for name in algorithms(w)]
    errors = []

    def work(seed):
        try:
            x = integers((2, 64, 28, 28), seed=seed)
            with gpu.cuda.Stream(non_blocking=True) as stream:
                there = gpu.asarray(x)
                y = gpu.empty((2, 64, 28, 28), np.float32)
                for plan in plans:
                    for _ in range(20):
                        plan(there, out=y)
                    stream.synchronize()
                    close(y, reference(fc.conv2d, x, w, padding=1))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors


def algorithms(w):
    """The CUDA algorithms able to run these weights forward."""
    problem = conv_problem("conv2d", 2, (2, w.shape[1], 28, 28), w.shape, padding=1, device="cuda")
    return [row.algorithm for row in FORWARD if row.refuses(problem) is None]


def test_graphs(gpu):
    """What a graph replays reads the arrays as they then are."""
    w = integers((64, 64, 3, 3), seed=1)
    for name in algorithms(w):
        plan = fc.plan_conv2d((2, 64, 28, 28), gpu.asarray(w), padding=1, algorithm=name)
        with gpu.cuda.Stream(non_blocking=True) as stream:
            x = gpu.asarray(integers((2, 64, 28, 28), seed=3))
            y = gpu.zeros((2, 64, 28, 28), np.float32)
            plan(x, out=y)
            stream.synchronize()
            stream.begin_capture()
            plan(x, out=y)
            graph = stream.end_capture()
            other = integers((2, 64, 28, 28), seed=4)
            x.set(other)
            y.fill(0)
            graph.launch()
            stream.synchronize()
            close(y, reference(fc.conv2d, other, w, padding=1))


def test_a_plan_called_again_allocates_nothing(gpu):
    w = integers((64, 64, 3, 3), seed=1)
    x, y = gpu.asarray(integers((2, 64, 28, 28))), gpu.empty((2, 64, 28, 28), np.float32)
    counted = []

    class Counting(gpu.cuda.memory_hook.MemoryHook):
        name = "counting"

        def malloc_preprocess(self, **about):
            counted.append(about)

    for name in algorithms(w):
        plan = fc.plan_conv2d(x.shape, gpu.asarray(w), padding=1, algorithm=name)
        plan(x, out=y)
        with Counting():
            plan(x, out=y)
            assert not counted, name
            plan(x)
            assert counted
        counted.clear()


def test_the_second_device(gpu):
    if gpu.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("there is one GPU")
    x, w = integers((2, 8, 9, 9)), integers((8, 8, 3, 3), seed=1)
    with gpu.cuda.Device(1):
        x1, w1 = gpu.asarray(x), gpu.asarray(w)
    y = fc.conv2d(x1, w1)
    assert y.device.id == 1
    with gpu.cuda.Device(1):
        close(y, reference(fc.conv2d, x, w))
    with pytest.raises(TypeError, match="x is on cuda:1 and w on cuda:0"):
        fc.conv2d(x1, gpu.asarray(w))


def test_facts_of_the_device(gpu):
    driver = module.driver()
    assert driver.arch.startswith("sm_")
    assert driver.multiprocessors > 0
    assert driver.shared_bytes_per_block >= 48 << 10
    assert driver.l2_bytes > 1 << 20


# -------------------------------------------------------------------------------------------------- offsets of 64 bits


def test_more_elements_than_an_int_counts(gpu):
    """2^31 elements and some: the last rows are far beyond 32-bit offsets. Checked in windows at both ends."""
    height, width = (1 << 16) + 24, 1 << 15
    free, _ = gpu.cuda.runtime.memGetInfo()
    if free < 40 << 30:
        pytest.skip(f"needs 40 GiB of free memory, there are {free >> 30}")
    x = gpu.empty((1, 1, height, width), np.float32)
    rows, columns = gpu.arange(height, dtype=np.float32) % 5, gpu.arange(width, dtype=np.float32) % 7
    gpu.add(rows[:, None], columns, out=x[0, 0])
    w = gpu.asarray(integers((1, 1, 3, 3), seed=1))
    calls = {
        "conv2d": lambda x: fc.conv2d(x, w),
        "input gradient": lambda x: fc.grad.conv2d_input((1, 1, x.shape[2] + 2, x.shape[3] + 2), w, x),
        "max pool": lambda x: fc.max_pool2d(x, 2),
        "average pool": lambda x: fc.avg_pool2d(x, 3, stride=1),
    }
    for name, call in calls.items():
        with fc.options(max_error=1):  # sums of integers are then exact, whichever kernel each size is given
            y = call(x)
        for rows in (slice(0, 40), slice(height - 40, height)):
            with fc.options(max_error=1):
                part = call(x[:, :, rows])
            inner = y[:, :, : part.shape[2]] if rows.start == 0 else y[:, :, y.shape[2] - part.shape[2] :]
            if name == "input gradient":  # its edge rows lack what lies outside of the part
                part, inner = part[:, :, 2:-2], inner[:, :, 2:-2]
            assert float(abs(inner - part).max()) <= 1e-5, (name, rows)
        del y, part, inner
        gpu.get_default_memory_pool().free_all_blocks()
    ones = gpu.ones((1, 1, height - 2, width - 2), np.float32)
    got = fc.grad.conv2d_weight(x, (1, 1, 3, 3), ones).get()
    assert np.abs(got / float(x[:, :, 1:-1, 1:-1].sum(dtype=np.float64)) - 1).max() < 1e-3
    del x, ones
    gpu.get_default_memory_pool().free_all_blocks()


def far(cupy, shape):
    """An uninitialised array whose images are 2^31 elements apart and some: few of them, 64-bit offsets."""
    apart, image = 2**31 + 4, int(np.prod(shape[1:]))
    whole, packed = cupy.empty((shape[0] - 1) * apart + image, np.float32), np.empty(shape, np.float32).strides
    return cupy.lib.stride_tricks.as_strided(whole, shape, (4 * apart, *packed[1:]))


def fill(array, values):
    """Image by image, so that nothing hangs on CuPy's own handling of such strides."""
    for image, here in zip(array, values, strict=True):
        image[...] = here


@pytest.mark.parametrize("row", CONV, ids=lambda r: r.name)
def test_strides_that_an_int_does_not_count(gpu, row):
    free, _ = gpu.cuda.runtime.memGetInfo()
    if free < 24 << 30:
        pytest.skip(f"needs 24 GiB of free memory, there are {free >> 30}")
    ran = 0
    for shape, weights, parameters in SHAPES:
        shape = (2, *shape[1:])
        problem = conv_problem("conv2d", 2, shape, weights, device="cuda", direction=row.direction, **parameters)
        if row.refuses(problem) is not None:
            continue
        x, w, dy = integers(shape), integers(weights, seed=1), integers(problem.geometry.output_shape, seed=2)
        there, how = far(gpu, dy.shape), {"algorithm": row.algorithm, **parameters}
        if row.direction == "grad_input":
            fill(there, gpu.asarray(dy))
            got = fc.grad.conv2d_input(shape, gpu.asarray(w), there, **how)
            expected = reference(fc.grad.conv2d_input, shape, w, dy, **parameters)
        else:
            given = far(gpu, shape)
            fill(given, gpu.asarray(x))
            if row.direction == "forward":
                got = fc.conv2d(given, gpu.asarray(w), out=there, **how)
                expected = reference(fc.conv2d, x, w, **parameters)
            else:
                fill(there, gpu.asarray(dy))
                got = fc.grad.conv2d_weight(given, weights, there, **how)
                expected = reference(fc.grad.conv2d_weight, x, weights, dy, **parameters)
            del given
        close(gpu.stack(list(got)), expected)
        del there, got
        gpu.get_default_memory_pool().free_all_blocks()
        ran += 1
    assert ran
