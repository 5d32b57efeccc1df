"""Launches noted and run together: the same bits as one by one, on any number of threads; nothing noted that cannot."""

import multiprocessing
import os
import threading
import time
from functools import partial

import numpy as np
import pytest

import fastconv
from fastconv.kernels.cpu import threads as threading_layers
from fastconv.kernels.cpu.arrays import aligned_empty
from fastconv.kernels.cpu.sequence import ABLE, Sequence, record, span

pytestmark = pytest.mark.skipif(not ABLE, reason="no sched_yield here")

CHANNELS = (5, 24, 24, 40, 16)


@pytest.fixture(params=[1, 2, 5], ids="{} threads".format)
def chain(request):
    """Four convolutions one after the other, on unlike numbers of threads: steps, a sequence, x and the results."""
    rng = np.random.default_rng(1)
    workspace = np.empty(1 << 22, np.uint8)
    arrays = [rng.standard_normal((2, c, 40, 44), np.float32) for c in CHANNELS]
    steps, launches = [], []
    with fastconv.options(num_threads=request.param):
        for i, (kernel, algorithm) in enumerate(((3, "direct"), (3, "depthwise"), (1, "pointwise"), (3, "winograd"))):
            groups = CHANNELS[i] if algorithm == "depthwise" else 1
            w = rng.standard_normal((CHANNELS[i + 1], CHANNELS[i] // groups, kernel, kernel), np.float32)
            plan = fastconv.plan_conv2d(
                arrays[i].shape, w, w[:, 0, 0, 0], padding=kernel // 2, groups=groups, algorithm=algorithm,
                activation="relu",
            )  # fmt: skip
            steps.append(partial(plan.run, arrays[i], None, arrays[i + 1]))
            noted = plan.launches(arrays[i], None, arrays[i + 1], workspace)
            assert len(noted) == 1
            launches += noted
    return steps, Sequence(launches, (steps, workspace)), arrays


def expected(steps, arrays) -> list[np.ndarray]:
    for step in steps:
        step()
    return [a.copy() for a in arrays]


def test_same_bits_as_one_by_one_every_time(chain):
    steps, sequence, arrays = chain
    assert sequence.threads == max(one.bound.threads for one in sequence.kept[0])
    want = expected(steps, arrays)
    for _ in range(200):
        for a in arrays[1:]:
            a.fill(np.nan)
        sequence()
        for a, b in zip(arrays, want, strict=True):
            np.testing.assert_array_equal(a, b)


def test_times_of_launches_among_each_other(chain):
    steps, sequence, arrays = chain
    want = expected(steps, arrays)
    for a in arrays[1:]:
        a.fill(np.nan)
    sequence.timed()
    start = time.perf_counter()
    times = sequence.timed()
    elapsed = time.perf_counter() - start
    assert len(times) == len(steps)
    assert min(times) > 1e-6  # a table or a clock that nobody has written gives 0
    assert sum(times) < elapsed
    for a, b in zip(arrays, want, strict=True):
        np.testing.assert_array_equal(a, b)


def test_input_may_change_between_runs(chain):
    steps, sequence, arrays = chain
    arrays[0] *= -2
    want = expected(steps, arrays)
    sequence()
    np.testing.assert_array_equal(arrays[-1], want[-1])


def test_one_thread_computes_the_shares_of_those_that_do_not_come(chain, monkeypatch):
    steps, sequence, arrays = chain
    want = expected(steps, arrays)
    monkeypatch.setattr(threading_layers, "_forked", True)  # launches run share 0 alone
    arrays[-1].fill(np.nan)
    done = threading.Thread(target=sequence, daemon=True)
    done.start()
    done.join(20)
    assert not done.is_alive()
    np.testing.assert_array_equal(arrays[-1], want[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_children_run_sequences(chain):
    steps, sequence, arrays = chain
    want = expected(steps, arrays)[-1]

    def child() -> None:
        arrays[-1].fill(np.nan)
        sequence()
        os._exit(0 if np.array_equal(arrays[-1], want) else 1)

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0


def misaligned(array: np.ndarray) -> np.ndarray:
    memory = np.zeros(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    memory[...] = array
    return memory


def test_what_copies_is_not_noted():
    w = np.ones((8, 4, 3, 3), np.float32)
    x, y = np.ones((1, 4, 8, 8), np.float32), np.zeros((1, 8, 6, 6), np.float32)
    workspace = np.empty(1 << 20, np.uint8)
    plan = fastconv.plan_conv2d(x.shape, w)
    assert plan.launches(x, None, y, workspace)
    assert not y.any()  # noted, not run
    assert plan.launches(misaligned(x), None, y, workspace) is None
    assert plan.launches(x, None, misaligned(y), workspace) is None
    half = fastconv.plan_conv2d(x.shape, w.astype(np.float16))
    assert half.launches(x.astype(np.float16), None, y.astype(np.float16), workspace) is None
    assert record(lambda a, b: np.copyto(b, a), x, x.copy()) is None


@pytest.mark.parametrize(("algorithm", "launches"), [("direct", 4), ("direct_planar", 1)])
def test_phases_of_a_transposed_convolution(algorithm, launches):
    rng = np.random.default_rng(3)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in ((1, 8, 6, 6), (8, 4, 3, 3)))
    bias = rng.standard_normal(4).astype(np.float32)
    plan = fastconv.plan_conv_transpose2d(x.shape, w, bias, stride=2, algorithm=algorithm)
    out, workspace = np.full((1, 4, 13, 13), np.nan, np.float32), aligned_empty(1 << 20, np.dtype(np.uint8))
    noted = plan.launches(x, None, out, workspace)
    assert len(noted) == launches
    Sequence(noted, plan)()
    np.testing.assert_array_equal(out, plan(x))


def test_memory_of_arrays_in_any_order():
    x = np.zeros((3, 4, 5), np.float32)
    low, high = x.ctypes.data, x.ctypes.data + x.nbytes
    assert span(x) == span(x[::-1, :, ::-1]) == span(x.transpose(2, 0, 1)) == (low, high)
    assert span(x[1:, :2, 3:4]) == (x[1:].ctypes.data + 12, x[2, 1, 3:].ctypes.data + 4)


def test_one_element_type():
    noted = []
    for dtype in (np.float32, np.float64):
        x, w = np.ones((1, 4, 8, 8), dtype), np.ones((8, 4, 3, 3), dtype)
        plan = fastconv.plan_conv2d(x.shape, w, algorithm="direct")
        noted += plan.launches(x, None, np.zeros((1, 8, 6, 6), dtype), np.empty(1 << 20, np.uint8))
    with pytest.raises(ValueError, match="one element type needed, got \\['float32', 'float64'\\]"):
        Sequence(noted)


def test_waiting_threads_wait_for_a_time_not_for_a_number_of_looks():
    """What a look costs differs fivefold between CPUs."""
    from fastconv.kernels.cpu.shares import spin

    number = np.zeros(1, np.int64)
    looks = threading_layers._spins(1e-3)
    start = time.perf_counter()
    spin(looks, number.ctypes.data)
    assert time.perf_counter() - start > 0.3e-3
    assert threading_layers._spins(0.0) < threading_layers._spins(1e-4) <= looks
    number[0] = 1
    start = time.perf_counter()
    spin(1 << 40, number.ctypes.data)  # what it waits for is there
    assert time.perf_counter() - start < 1.0
