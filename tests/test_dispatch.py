"""Choosing: no arrays, no kernels; then options, explain, caches and plans through the public functions."""

import threading
import warnings
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest

import fastconv as fc
from fastconv import dispatch, registry, settings
from fastconv.bounds import sum_bound
from fastconv.dispatch import choose
from fastconv.kernels.cpu import bound
from fastconv.problem import adaptive_pool_problem, conv_problem, conv_transpose_problem, pool_problem, unpool_problem
from fastconv.registry import ROWS, Row
from fastconv.settings import Options
from fastconv.targets import resolve

DTYPES = ("float32", "float64", "float16", "bfloat16")
LAYOUTS = ("channels_first", "channels_last")
PROBLEM = conv_problem("conv2d", 2, (1, 64, 28, 28), (64, 64, 3, 3))
DEFAULT = "winograd_f4x4_3x3"  # chosen for it without options
X, W = np.ones((1, 8, 16, 16), np.float32), np.ones((8, 8, 3, 3), np.float32)


def conv_problems():
    """op × direction × dtype × layout × rank × padding mode, all that change which kernels there are."""
    modes = ("zeros", "reflect", "replicate", "circular")
    for rank, dtype, layout in product((1, 2, 3), DTYPES, LAYOUTS):
        common = {"dtype": dtype, "layout": layout}
        x, w = (2, 4) + (6,) * rank, (4, 2) + (3,) * rank
        for direction, mode in product(("forward", "grad_input", "grad_weight"), modes):
            yield conv_problem(
                "conv", rank, x, w, padding=1, padding_mode=mode, groups=2, direction=direction, **common
            )
        for direction in ("forward", "grad_input", "grad_weight"):
            yield conv_transpose_problem(
                "conv_transpose", rank, x, w, stride=2, groups=2, direction=direction, **common
            )


def pool_problems():
    for rank, dtype, layout, direction in product((1, 2, 3), DTYPES, LAYOUTS, ("forward", "grad_input")):
        common = {"dtype": dtype, "layout": layout, "direction": direction}
        x = (2, 4) + (6,) * rank
        for kind in ("max_pool", "min_pool", "avg_pool", "lp_pool"):
            yield pool_problem("pool", rank, kind, x, 3, stride=2, padding=1, **common)
        for kind in ("max_pool", "avg_pool"):
            yield adaptive_pool_problem("pool", rank, kind, x, 4, **common)
        yield unpool_problem("unpool", rank, x, 2, **common)


@pytest.mark.parametrize("problems", [conv_problems, pool_problems])
def test_nothing_is_left_to_the_reference_alone(problems):
    slow = [str(p) for p in problems() if choose(p).row.family == "reference"]
    assert slow == []


def test_choosing_is_the_same_every_time():
    problem = conv_problem("conv2d", 2, X.shape, W.shape)
    assert len({choose(problem, Options(), t).algorithm for t in (1, 1, 1)}) == 1


def test_forcing_takes_families_and_refuses_with_the_reason(monkeypatch):
    for algorithm in ("direct", "im2col", "reference"):
        assert choose(PROBLEM, Options(algorithm=algorithm)).algorithm == algorithm
    shy = [replace(r, why_not=lambda p: "it is Sunday") if r.algorithm == "im2col" else r for r in ROWS]
    monkeypatch.setattr(
        dispatch, "rows_for", lambda *key: tuple(r for r in shy if (r.op, r.direction, r.device) == key)
    )
    with pytest.raises(ValueError, match=r"no kernel can run this .*im2col: it is Sunday"):
        choose(PROBLEM, Options(algorithm="im2col"))
    assert choose(PROBLEM).algorithm == DEFAULT


def make_row(**changes) -> Row:
    """A kernel that exists only in the table."""
    return replace(
        next(r for r in ROWS if r.name == "cpu/conv/forward/direct"), algorithm="test", family="test", **changes
    )


@pytest.fixture
def with_row(monkeypatch):
    def add(row):
        monkeypatch.setattr(
            dispatch, "rows_for", lambda *key: tuple(r for r in (*ROWS, row) if (r.op, r.direction, r.device) == key)
        )
        monkeypatch.setattr(dispatch, "ROWS", (*ROWS, row))

    return add


def test_the_fastest_able_row_wins(with_row):
    with_row(make_row(seconds=lambda p, t: 0.0))
    assert choose(PROBLEM).algorithm == "test"


def test_max_error_is_in_multiples_of_direct(with_row):
    with_row(make_row(seconds=lambda p, t: 0.0, bound=lambda p: 3 * sum_bound(p)))
    assert choose(PROBLEM).algorithm == "test"
    assert choose(PROBLEM, Options(max_error=1)).row.family == "direct"
    assert choose(PROBLEM, Options(max_error=3.1)).algorithm == "test"


def test_the_default_error_limit_binds_automatic_choice_only(with_row):
    with_row(make_row(seconds=lambda p, t: 0.0, bound=lambda p: 1e6 * sum_bound(p)))
    assert choose(PROBLEM).algorithm == DEFAULT
    assert choose(PROBLEM, Options(algorithm="test")).algorithm == "test"
    with pytest.raises(ValueError, match=r"its error bound is 1e\+06 times direct's, max_error=10"):
        choose(PROBLEM, Options(algorithm="test", max_error=10))


def test_workspace_limit_determinism_and_precision(with_row):
    with_row(make_row(seconds=lambda p, t: 0.0, deterministic=False, precision="tf32"))
    assert choose(PROBLEM).algorithm == DEFAULT
    assert choose(PROBLEM, Options(precision="tf32")).algorithm == "test"
    assert choose(PROBLEM, Options(precision="tf32", deterministic=True)).algorithm == DEFAULT
    with pytest.raises(ValueError, match=r"direct: needs \d+ bytes of workspace, workspace_limit=0"):
        choose(PROBLEM, Options(algorithm="direct", workspace_limit=0))
    assert choose(PROBLEM, Options(workspace_limit=0)).algorithm == "reference"


def test_the_default_error_limit_admits_small_winograd_tiles_only():
    limited = Options()
    for problem in (PROBLEM, conv_problem("conv2d", 2, (1, 512, 14, 14), (512, 512, 3, 3))):
        able = {c.algorithm: c.able for c in dispatch.candidates(problem, limited, 1)}
        assert able["winograd_f2x2_3x3"]
        assert able["winograd_f4x4_3x3"]
        assert not able["winograd_f6x6_3x3"]
        wider = {c.algorithm: c.able for c in dispatch.candidates(problem, Options(max_error=1000), 1)}
        assert wider["winograd_f6x6_3x3"]
        exact = {c.algorithm for c in dispatch.candidates(problem, Options(max_error=1), 1) if c.able}
        assert "direct" in exact
        assert not any(name.startswith("winograd") for name in exact)
    assert choose(PROBLEM, Options(algorithm="winograd_f6x6_3x3")).algorithm == "winograd_f6x6_3x3"
    larger = conv_problem("conv2d", 2, (1, 64, 28, 28), (64, 64, 5, 5), padding=2)  # F(6x6)'s bound, F(4x4)'s error
    assert choose(larger).algorithm == "winograd_f4x4_5x5"
    strided = conv_problem("conv2d", 2, (1, 64, 28, 28), (64, 64, 3, 3), stride=3)
    with pytest.raises(ValueError, match=r"winograd_f4x4_3x3: computes stride 1, not \(3, 3\)"):
        choose(strided, Options(algorithm="winograd"))
    for function in (fc.conv2d, fc.plan_conv2d):
        with pytest.raises(ValueError, match=rf"^{function.__name__}: no kernel can run this"):
            function(X if function is fc.conv2d else X.shape, W, stride=3, algorithm="winograd")


def test_a_slow_path_warns():
    for call in (fc.conv2d, partial(fc.conv2d, stride=[1, 1]), partial(fc.grad.conv2d_weight, dy=fc.conv2d(X, W))):
        arguments = (X, W.shape) if "dy" in getattr(call, "keywords", {}) else (X, W)
        for _ in range(2):  # every time, and at the caller's line
            with fc.options(workspace_limit=0), pytest.warns(fc.SlowPathWarning, match="only the float64") as caught:
                call(*arguments)
            assert caught[0].filename == __file__
    with fc.options(algorithm="reference"), warnings.catch_warnings():
        warnings.simplefilter("error")
        fc.conv2d(X, W)


def test_a_device_without_kernels_says_so(monkeypatch):
    monkeypatch.setattr(dispatch, "rows_for", lambda *of: ())
    with pytest.raises(ValueError, match="no cuda kernel for forward yet; move the arrays to the CPU"):
        choose(replace(PROBLEM, device="cuda"))


def test_options_nest_and_end_with_the_block():
    before = settings.current_options()
    with fc.options(algorithm="direct"):
        with fc.options(num_threads=1) as inner:
            assert inner == settings.current_options() == replace(before, algorithm="direct", num_threads=1)
            assert fc.get_num_threads() == 1
        assert settings.current_options() == replace(before, algorithm="direct")
    assert settings.current_options() == before


def test_options_belong_to_their_thread():
    seen = []
    with fc.options(algorithm="im2col"):
        thread = threading.Thread(target=lambda: seen.append(settings.current_options().algorithm))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_an_option_names_algorithms_that_poolings_lack():
    with fc.options(algorithm="im2col"):
        assert fc.explain(fc.max_pool2d, X, 2).chosen == "direct"
        assert fc.explain(fc.conv2d, X, W).chosen == "im2col"


def test_explain_runs_nothing_and_lists_every_row():
    out = np.full((1, 8, 14, 14), 7, np.float32)
    why = fc.explain(fc.conv2d, X, W, out=out)
    assert (out == 7).all()
    assert [c.algorithm for c in why.rows] == [r.algorithm for r in registry.rows_for("conv", "forward", "cpu")]
    assert why.chosen in str(why)
    assert "predicted" in str(why)
    assert fc.explain(fc.conv2d, X, W, algorithm="im2col").reason == "algorithm='im2col' was asked for"


@pytest.mark.parametrize(
    ("function", "args", "op", "direction"),
    [
        (fc.conv_transpose2d, (X, W), "conv", "grad_input"),
        (fc.max_pool2d, (X, 2), "max_pool", "forward"),
        (fc.adaptive_avg_pool2d, (X, 1), "avg_pool", "forward"),
        (fc.grad.conv2d_weight, (X, (8, 8, 3, 3), np.ones((1, 8, 14, 14), np.float32)), "conv", "grad_weight"),
    ],
)
def test_explain_works_for_every_kind_of_call(function, args, op, direction):
    problem = fc.explain(function, *args).problem
    assert (problem.op, problem.direction) == (op, direction)


def test_explain_follows_tensors_and_options():
    with fc.options(algorithm="im2col"):
        assert fc.explain(fc.conv2d, fc.Tensor(X, requires_grad=True), W).chosen == "im2col"


def test_caches_are_bounded_and_clear():
    fc.cache_clear()
    for n in range(3):
        fc.conv2d(X[:, :, : 8 + n], W)
    info = fc.cache_info()
    assert info.choices == info.problems == 3
    assert 0 < info.workspace_bytes <= dispatch.KEPT_WORKSPACE
    assert info.max_choices == dispatch._choose_cached.cache_parameters()["maxsize"]
    fc.cache_clear()
    assert fc.cache_info() == dispatch.CacheInfo(0, 0, info.max_choices, 0)


def test_a_large_workspace_is_not_kept():
    space = dispatch.Workspace(1000)
    small, large = space.take(500), space.take(2000)
    assert (small.size, large.size) == (500, 2000)
    assert small.ctypes.data % 64 == 0
    space.give(small)
    space.give(large)
    assert space.take(100) is small
    assert space.take(100) is not small  # it is out


def test_a_call_that_interrupts_another_has_a_workspace_of_its_own(monkeypatch):
    """As in a signal handler, between the two steps of a weight gradient and of a transposed depthwise convolution."""
    x, w = np.ones((1, 32, 12, 12), np.float32), np.ones((32, 32, 3, 3), np.float32)
    dy, nan, launch, interrupted = np.ones((1, 32, 10, 10), np.float32), np.full_like(x, np.nan), bound.launch, []
    calls = (
        lambda x: fc.grad.conv2d_weight(x, w.shape, dy),
        lambda x: fc.conv_transpose2d(x, w[:, :1], groups=32, algorithm="depthwise"),
    )
    for call in calls:
        want = call(x)

        def interrupting(*args, call=call):
            if not interrupted:
                interrupted.append(True)
                call(nan)
            launch(*args)

        monkeypatch.setattr(bound, "launch", interrupting)
        for _ in range(3):
            interrupted.clear()
            np.testing.assert_array_equal(call(x), want)
        monkeypatch.setattr(bound, "launch", launch)


@pytest.mark.parametrize(("text", "expected"), [("1", 1), ("1,4", 1), ("junk", None), ("", None)])
def test_omp_num_threads_is_honoured(monkeypatch, text, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    monkeypatch.setattr(settings, "_num_threads", None)
    settings._default_threads.cache_clear()
    try:
        assert fc.get_num_threads() == expected or (expected is None and fc.get_num_threads() >= 1)
    finally:
        settings._default_threads.cache_clear()


def test_row_names_are_unique_and_resolve():
    names = [r.name for r in ROWS]
    assert len(set(names)) == len(names)
    for row in ROWS:
        assert callable(resolve(row.target))
        for extra in (row.workspace, row.prepare):
            assert extra is None or callable(resolve(extra))
