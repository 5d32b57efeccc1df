"""Every row of the table against the float64 reference, within the bounds the row itself states."""

from dataclasses import replace

import pytest

from fastconv.bounds import gamma, sum_bound, sum_typical
from fastconv.problem import adaptive_pool_problem, conv_problem, pool_problem, unpool_problem
from fastconv.registry import ROWS, families

from .support import hold

FAST = [row for row in ROWS if row.family != "reference"]
CONV_ROWS = [row for row in FAST if row.op == "conv"]
POOL_ROWS = [row for row in FAST if row.op != "conv"]


def accepted(row, problems):
    """The problems that a row can run, at least one unless this CPU lacks what it needs; a row says in words why it
    cannot run the others."""
    able = []
    for problem in problems:
        reason = row.refuses(problem)
        if reason is None:
            able.append(problem)
        else:
            assert reason.strip(), f"{row.name} refuses {problem} without a reason"
    if not able and reason.startswith("the CPU"):
        pytest.skip(reason)
    assert able, f"{row.name} refuses every problem of this test, the last because: {reason}"
    return able


def dtypes(row):
    """What a row's arithmetic is tested in: wide types where it has them."""
    return [d for d in row.dtypes if d in ("float32", "float64")] or row.dtypes


def conv(rank, x, w, **parameters):
    return conv_problem(f"conv{rank}d", rank, x, w, **parameters)


CONVS = {
    "one_element": conv(2, (1, 1, 1, 1), (1, 1, 1, 1)),
    "pointwise": conv(2, (2, 20, 7, 9), (33, 20, 1, 1)),
    "pointwise_strided": conv(2, (1, 17, 9, 9), (16, 17, 1, 1), stride=2),
    "below_a_tile": conv(2, (1, 3, 5, 5), (7, 3, 3, 3)),
    "at_a_tile": conv(2, (1, 16, 6, 16), (32, 16, 3, 3), padding=1),
    "above_a_tile": conv(2, (2, 17, 7, 18), (49, 17, 3, 3), padding=1),
    "first_layer": conv(2, (2, 3, 19, 19), (8, 3, 7, 7), stride=2, padding=3),
    "one_channel": conv(2, (3, 1, 12, 12), (5, 1, 5, 5), padding=2),
    "stride_over_kernel": conv(2, (1, 4, 13, 13), (6, 4, 2, 2), stride=4),
    "padding_over_kernel": conv(2, (1, 2, 4, 3), (3, 2, 2, 2), padding=((3, 4), (5, 0))),
    "dilated": conv(2, (1, 5, 14, 15), (6, 5, 3, 3), dilation=(2, 3), padding=2, stride=(1, 2)),
    "grouped": conv(2, (2, 12, 8, 8), (18, 4, 3, 3), groups=3, padding=1),
    "depthwise": conv(2, (2, 19, 9, 9), (19, 1, 3, 3), groups=19, padding=1),
    "depthwise_multiplier": conv(2, (1, 6, 9, 9), (12, 1, 5, 5), groups=6, stride=2, padding=2),
    "asymmetric": conv(2, (1, 4, 8, 8), (5, 4, 3, 4), padding=((0, 2), (1, 0))),
    "reflect": conv(2, (1, 3, 6, 7), (4, 3, 3, 3), padding=2, padding_mode="reflect"),
    "replicate": conv(2, (1, 3, 6, 7), (4, 3, 3, 3), padding=((4, 0), (1, 3)), padding_mode="replicate", stride=2),
    "circular": conv(2, (1, 3, 6, 7), (4, 3, 3, 3), padding=3, padding_mode="circular"),
    "signal": conv(1, (2, 8, 50), (12, 8, 3), dilation=4, padding=4),
    "strided": conv(2, (1, 18, 11, 14), (35, 18, 3, 3), stride=2, padding=1),
    "signal_strided": conv(1, (2, 20, 51), (36, 20, 3), stride=2),
    "signal_of_neighbours": conv(1, (2, 8, 50), (36, 8, 3), padding=1),
    "two_by_two": conv(2, (2, 18, 9, 11), (35, 18, 2, 2)),
    "even": conv(2, (1, 18, 12, 15), (35, 18, 4, 4), stride=2, padding=1),
    "eleven_by_eleven": conv(2, (2, 3, 29, 33), (18, 3, 11, 11), stride=4, padding=2),
    "five_by_five": conv(2, (2, 18, 13, 15), (35, 18, 5, 5), padding=2),
    "long_kernel": conv(1, (1, 1, 300), (20, 1, 100), stride=5),
    "volume": conv(3, (1, 3, 5, 6, 7), (6, 3, 3, 3, 3), stride=(1, 2, 2), padding=1),
    "video": conv(3, (2, 18, 3, 6, 7), (35, 18, 2, 3, 3), padding=1, stride=(2, 1, 1)),
    "deep": conv(2, (1, 200, 4, 4), (20, 200, 3, 3), padding=1),
    "empty_batch": conv(2, (0, 3, 6, 6), (4, 3, 3, 3)),
}


@pytest.mark.parametrize("row", CONV_ROWS, ids=lambda r: r.name)
def test_convolution_rows_hold_their_bounds(row):
    problems = [
        replace(p, direction=row.direction, device=row.device, dtype=dtype)
        for p in CONVS.values()
        for dtype in dtypes(row)
    ]
    for problem in accepted(row, problems):
        hold(row, problem, seed=0, integers=True)
        hold(row, problem, seed=1, integers=False, threads=2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("row", CONV_ROWS, ids=lambda r: r.name)
def test_sixteen_bit_rows_accumulate_in_float32(row, dtype):
    if dtype not in row.dtypes:
        assert dtype in (
            row.refuses(replace(CONVS["deep"], direction=row.direction, device=row.device, dtype=dtype)) or ""
        )
        return
    names = ("above_a_tile", "deep", "dilated", "depthwise", "circular", "pointwise")
    problems = [
        replace(CONVS[name], direction=row.direction, device=row.device, dtype=dtype, layout=layout)
        for name in names
        for layout in ("channels_first", "channels_last")
    ]
    for problem in accepted(row, problems):
        hold(row, problem, seed=0, integers=False, threads=2)


@pytest.mark.parametrize("row", [r for r in CONV_ROWS if r.direction != "grad_weight"], ids=lambda r: r.name)
def test_epilogues_are_fused(row):
    names = "above_a_tile", "grouped", "depthwise", "signal", "signal_of_neighbours", "five_by_five", "pointwise"
    names += "two_by_two", "even", "eleven_by_eleven"
    if "_s2_" in row.algorithm:
        names = "strided", "signal_strided", "depthwise_multiplier", "even"
    problems = [
        replace(
            CONVS[name],
            direction=row.direction,
            device=row.device,
            bias=bias,
            residual=residual,
            activation=activation,
            dtype=dtypes(row)[0],
        )
        for name in names
        for activation in (None, "relu", "gelu", "tanh")
        for bias, residual in ((True, True), (True, False), (False, True))
    ]
    for problem in accepted(row, problems):
        hold(row, problem, seed=0, integers=False)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("row", POOL_ROWS, ids=lambda r: r.name)
def test_pooling_rows_hold_their_bounds(row, layout):
    every = []
    for rank, size in ((1, (23,)), (2, (9, 11)), (3, (5, 6, 7))):
        shape = (2, 3, *size)
        problems = [unpool_problem("unpool", rank, shape, 2)]
        if row.op != "max_unpool":
            problems = [
                pool_problem("pool", rank, row.op, shape, 2),
                pool_problem("pool", rank, row.op, shape, 3, stride=2, padding=1, ceil_mode=True),
                pool_problem("pool", rank, row.op, shape, 3, stride=1, padding=((2, 0),) * rank, dilation=2),
                pool_problem("pool", rank, row.op, shape, size),
                pool_problem("pool", rank, row.op, shape, 1, stride=3),
                pool_problem("pool", rank, row.op, (0, *shape[1:]), 2),
            ]
            for axis in range(rank):  # short rows, pooled whole or not, under a dilated axis
                dilation = tuple(2 if a == axis else 1 for a in range(rank))
                for width in (1, 2):
                    narrow = (2, 3, *size[:-1], width)
                    window = (*(2 if a < rank - 1 else width for a in range(rank)),)
                    if dilation[-1] == 1:
                        problems.append(pool_problem("pool", rank, row.op, narrow, window, stride=1, dilation=dilation))
            if row.op in ("max_pool", "avg_pool"):
                problems += [adaptive_pool_problem("pool", rank, row.op, shape, n) for n in (1, 4, size)]
        every += problems
    floats = ("float32", "float64", "bfloat16")
    for problem in accepted(
        row,
        [
            replace(p, direction=row.direction, device=row.device, dtype=dtype, layout=layout)
            for p in every
            for dtype in floats
        ],
    ):
        hold(row, problem, seed=0, integers=True)
        hold(row, problem, seed=1, integers=False, threads=2)


@pytest.mark.parametrize("row", ROWS, ids=lambda r: r.name)
def test_rows_state_sane_numbers(row):
    problems = [replace(p, direction=row.direction, device=row.device, dtype=dtypes(row)[0]) for p in CONVS.values()]
    if row.op == "max_unpool":
        problems = [unpool_problem("unpool", 2, (2, 3, 9, 11), 2, direction=row.direction)]
    elif row.op != "conv":
        problems = [pool_problem("pool", 2, row.op, (2, 3, 9, 11), 3, direction=row.direction)]
    for problem in accepted(row, problems):
        assert 0 < row.seconds(problem, 1) < 60
        assert row.seconds(problem, 2) <= row.seconds(problem, 1)
        assert 0 < row.typical(problem) <= row.bound(problem) < 1
        assert all(0 <= row.workspace_bytes(problem, threads) < 1 << 30 for threads in (1, 2, 8))
    assert row.summary
    assert row.algorithm
    assert row.family
    assert "complex64" in (row.refuses(replace(problems[0], dtype="complex64")) or "")


def test_a_family_left_out_is_the_algorithm():
    row = replace(ROWS[0], algorithm="variant", family="")
    assert row.family == "variant"
    assert replace(row, family="shared").family == "shared"
    assert "" not in families()


def test_gamma():
    assert gamma(1, 2.0**-24) == pytest.approx(2.0**-24)
    assert gamma(10, 0.2) == float("inf")


def test_typical_error_grows_as_the_root_of_the_reduction():
    short, long = CONVS["below_a_tile"], CONVS["deep"]
    ratio = long.reduction / short.reduction
    assert sum_bound(long) / sum_bound(short) == pytest.approx(ratio, rel=0.1)
    assert sum_typical(long) / sum_typical(short) == pytest.approx(ratio**0.5, rel=0.1)
