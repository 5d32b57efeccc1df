"""Random poolings and convolutions, transposed too: every row against the float64 reference, forward and gradients."""

import pytest
from hypothesis import assume, event, given
from hypothesis import strategies as st

from fastconv.kernels.geometry import PADDING_MODES
from fastconv.problem import (
    adaptive_pool_problem,
    conv_problem,
    conv_transpose_problem,
    pool_problem,
    unpool_problem,
)
from fastconv.registry import ROWS
from tests.support import hold

FAST = [row for row in ROWS if row.family != "reference"]
WINDOWED = [row for row in FAST if row.op.endswith("_pool")]
ADAPTIVE = [row for row in FAST if row.op in ("max_pool", "avg_pool")]
UNPOOL = [row for row in FAST if row.op == "max_unpool"]
CONV = [row for row in FAST if row.op == "conv"]
CUDA_CONV = [row for row in CONV if row.device == "cuda"]  # the CPU's have random problems in tests/kernels
LARGEST_SIZE = {1: 24, 2: 10, 3: 6}


def axes(rank, low, high):
    return st.tuples(*[st.integers(low, high)] * rank)


def pads(rank, high):
    """A (before, after) pair per axis, the two drawn apart."""
    return st.tuples(*[st.tuples(st.integers(0, high), st.integers(0, high))] * rank)


def built(builder, *arguments, **parameters):
    """The builder's problem; what it calls invalid is no example."""
    try:
        return builder(*arguments, **parameters)
    except ValueError:
        assume(False)


def common(row):
    return st.fixed_dictionaries(
        {
            "direction": st.just(row.direction),
            "device": st.just(row.device),
            "dtype": st.sampled_from(["float32", "float64"]),
            "layout": st.sampled_from(["channels_first", "channels_last"]),
        }
    )


@st.composite
def images(draw, channel_unit=1):
    """Rank, then a shape (N, C, *spatial) whose channels are a multiple of the unit."""
    rank = draw(st.integers(1, 3))
    channels = channel_unit * draw(st.integers(1, 8))
    return rank, (draw(st.integers(0, 3)), channels, *draw(axes(rank, 1, LARGEST_SIZE[rank])))


@st.composite
def poolings(draw, row):
    rank, shape = draw(images())
    parameters = {
        "stride": draw(st.none() | axes(rank, 1, 4)),
        "padding": draw(pads(rank, 2)),
        "dilation": draw(axes(rank, 1, 3)),
        "ceil_mode": draw(st.booleans()),
        "count_include_pad": draw(st.booleans()),
        "divisor_override": draw(st.none() | st.sampled_from([1, 5, -3])) if row.op == "avg_pool" else None,
        "norm_type": draw(st.sampled_from([0.5, 1.0, 2.0, 3.0])) if row.op == "lp_pool" else 2.0,
        "indices": row.op in ("max_pool", "min_pool") and draw(st.booleans()),
    }
    return built(pool_problem, "pool", rank, row.op, shape, draw(axes(rank, 1, 4)), **parameters, **draw(common(row)))


@st.composite
def adaptive_poolings(draw, row):
    rank, shape = draw(images())
    size = draw(axes(rank, 1, LARGEST_SIZE[rank] + 3))  # larger than the input too
    indices = row.op == "max_pool" and draw(st.booleans())
    return built(adaptive_pool_problem, "pool", rank, row.op, shape, size, indices=indices, **draw(common(row)))


@st.composite
def unpoolings(draw, row):
    rank, shape = draw(images())
    stride = draw(axes(rank, 1, 4))
    parameters = {"stride": stride, "padding": draw(pads(rank, 1))}
    kernel = draw(axes(rank, 1, 4))
    problem = built(unpool_problem, "unpool", rank, shape, kernel, **parameters)
    grown = tuple(n + draw(st.integers(1 - s, s - 1)) for n, s in zip(problem.geometry.input_size, stride, strict=True))
    size = draw(st.none() | st.just(grown))
    return built(unpool_problem, "unpool", rank, shape, kernel, output_size=size, **parameters, **draw(common(row)))


@st.composite
def transposed_convolutions(draw, row):
    groups = draw(st.integers(1, 4))
    rank, shape = draw(images(channel_unit=groups))
    kernel, stride, dilation = draw(axes(rank, 1, 4)), draw(axes(rank, 1, 3)), draw(axes(rank, 1, 3))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    outputs = draw(st.integers(1, 20))
    parameters = {"stride": stride, "padding": draw(pads(rank, 3)), "dilation": dilation, "output_padding": extra}
    if row.direction != "grad_weight":
        parameters["activation"] = draw(st.none() | st.sampled_from(["relu", "tanh"]))
    if row.direction == "grad_input":  # only there is the bias the transposed convolution's own
        parameters["bias_shape"] = draw(st.sampled_from([None, (outputs * groups,)]))
    weights = (shape[1], outputs, *kernel)
    return built(
        conv_transpose_problem, "conv_transpose", rank, shape, weights, groups=groups, **parameters, **draw(common(row))
    )


@st.composite
def convolutions(draw, row):
    groups = draw(st.integers(1, 3))
    rank, shape = draw(images(channel_unit=groups))
    size, mode = shape[2:], draw(st.sampled_from(PADDING_MODES))
    most = [{"reflect": n - 1, "circular": n}.get(mode, 4) for n in size]
    parameters = {
        "stride": draw(axes(rank, 1, 3)),
        "padding": tuple((draw(st.integers(0, m)), draw(st.integers(0, m))) for m in most),
        "dilation": draw(axes(rank, 1, 3)),
        "padding_mode": mode,
        "groups": groups,
    }
    outputs = groups * draw(st.integers(1, 9))
    if row.direction != "grad_weight":
        parameters["activation"] = draw(st.none() | st.sampled_from(["relu", "silu"]))
    if row.direction == "forward":
        parameters["bias_shape"] = draw(st.sampled_from([None, (outputs,)]))
    weights = (outputs, shape[1] // groups, *draw(axes(rank, 1, 4)))
    return built(conv_problem, "conv", rank, shape, weights, **parameters, **draw(common(row)))


def run(row, problem, seed, threads):
    """On small integers, and on random numbers; what a row refuses it refuses with a reason."""
    reason = row.refuses(problem)
    event("runs" if reason is None else "refuses")
    if reason is not None:
        assert reason.strip()
        return
    hold(row, problem, seed=seed, integers=True, threads=threads)
    hold(row, problem, seed=seed + 1, integers=False, threads=threads)


SEEDS = st.integers(0, 2**32 - 1)
THREADS = st.sampled_from([1, 2])


@pytest.mark.parametrize("row", WINDOWED, ids=lambda r: r.name)
@given(data=st.data(), seed=SEEDS, threads=THREADS)
def test_pooling(row, data, seed, threads):
    run(row, data.draw(poolings(row)), seed, threads)


@pytest.mark.parametrize("row", ADAPTIVE, ids=lambda r: r.name)
@given(data=st.data(), seed=SEEDS, threads=THREADS)
def test_adaptive_pooling(row, data, seed, threads):
    run(row, data.draw(adaptive_poolings(row)), seed, threads)


@pytest.mark.parametrize("row", UNPOOL, ids=lambda r: r.name)
@given(data=st.data(), seed=SEEDS, threads=THREADS)
def test_unpooling(row, data, seed, threads):
    run(row, data.draw(unpoolings(row)), seed, threads)


@pytest.mark.parametrize("row", CONV, ids=lambda r: r.name)
@given(data=st.data(), seed=SEEDS, threads=THREADS)
def test_transposed_convolution(row, data, seed, threads):
    run(row, data.draw(transposed_convolutions(row)), seed, threads)


@pytest.mark.parametrize("row", CUDA_CONV, ids=lambda r: r.name)
@given(data=st.data(), seed=SEEDS, threads=THREADS)
def test_convolution(row, data, seed, threads):
    run(row, data.draw(convolutions(row)), seed, threads)
