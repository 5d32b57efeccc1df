"""Poolings that ran before go a short way: its results and its errors are those of the long one."""

from __future__ import annotations

import itertools
from functools import partial
from typing import Any

import numpy as np
import pytest

import fastconv as fc
from fastconv import call as call_module
from fastconv.pooled import ready_calls

CALLS: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
    ("max_pool2d", (3,), {"stride": 2, "padding": 1}),
    ("max_pool2d", ((3, 2),), {"return_indices": True}),
    ("min_pool2d", (2,), {"padding": ((0, 1), (1, 0))}),
    ("avg_pool2d", (3,), {"stride": 1, "padding": 1, "count_include_pad": False}),
    ("lp_pool2d", (1, 2), {}),
    ("lp_pool2d", (2, 2), {}),
    ("adaptive_avg_pool2d", (1,), {}),
    ("adaptive_max_pool2d", ((2, 3),), {"return_indices": True}),
]


@pytest.fixture(autouse=True)
def _nothing_kept() -> None:
    fc.cache_clear()


def images(layout: str | None = None, dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    shape = (2, 3, 8, 9) if layout is None else (2, 8, 9, 3)
    return np.random.default_rng(5).integers(-4, 5, shape).astype(dtype)


@pytest.mark.parametrize(("name", "arguments", "keywords"), CALLS, ids=[f"{n} {a} {k}" for n, a, k in CALLS])
@pytest.mark.parametrize("layout", [None, "channels_last"])
def test_the_second_call_gives_what_the_first_gave(name: str, arguments: Any, keywords: Any, layout: Any) -> None:
    function, x = getattr(fc, name), images(layout)
    results = [function(x, *arguments, layout=layout, **keywords) for _ in range(2)]
    assert len(ready_calls) == 1
    if isinstance(results[0], tuple):
        for a, b in zip(*results, strict=True):
            np.testing.assert_array_equal(a, b)
            assert (a.dtype, a.flags.c_contiguous) == (b.dtype, b.flags.c_contiguous)
        results = [r[0] for r in results]
    np.testing.assert_array_equal(*results)
    assert not np.shares_memory(*results)
    strided = np.ascontiguousarray(x[..., ::-1])[..., ::-1]
    again = function(strided, *arguments, layout=layout, **keywords)
    np.testing.assert_array_equal(again[0] if isinstance(again, tuple) else again, results[0])


def test_out_is_checked_every_time() -> None:
    x = images()
    y = fc.max_pool2d(x, 2)
    out = np.zeros_like(y)
    assert fc.max_pool2d(x, 2, out=out) is out
    np.testing.assert_array_equal(out, y)
    with pytest.raises(ValueError, match="out must have the shape"):
        fc.max_pool2d(x, 2, out=np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(TypeError, match="out is float64"):
        fc.max_pool2d(x, 2, out=y.astype(np.float64))
    out.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        fc.max_pool2d(x, 2, out=out)
    memory = np.zeros(x.size + y.size, np.float32)
    for start in (0, 1, 40, x.size - 1, x.size):
        inside = memory[: x.size].reshape(x.shape)
        inside[...] = x
        overlapping = memory[start : start + y.size].reshape(y.shape)
        np.testing.assert_array_equal(fc.max_pool2d(inside, 2, out=overlapping), y)
    strided = np.zeros((*y.shape[:-1], 2 * y.shape[-1]), np.float32)[..., ::2]
    np.testing.assert_array_equal(fc.max_pool2d(x, 2, out=strided), y)


def test_what_differs_is_told_apart() -> None:
    x = images()
    fc.max_pool2d(x, 2, padding=1)
    fc.max_pool2d(x, (2, 2), padding=(1, 1), ceil_mode=False)
    for wrong in ({"padding": True}, {"padding": (1, True)}, {"ceil_mode": 0}, {"padding": 1.0}):
        with pytest.raises(TypeError):
            fc.max_pool2d(x, 2, **wrong)
    with pytest.raises(TypeError):
        fc.max_pool2d(x, 2.0)
    assert fc.max_pool2d(x, [2, 2], padding=1).shape == fc.max_pool2d(x, 2, padding=1).shape
    for dtype in (np.float64, np.float16, ">f4"):
        for _ in range(2):
            y = fc.max_pool2d(x.astype(dtype), 2, padding=1)
            np.testing.assert_array_equal(y, fc.max_pool2d(x, 2, padding=1))
            assert y.dtype == np.dtype(dtype).newbyteorder("=")


def test_options_and_explain_still_count() -> None:
    x = images()
    fc.max_pool2d(x, 2)
    assert fc.explain(fc.max_pool2d, x, 2).chosen == "direct"
    with fc.options(algorithm="reference"):
        assert fc.explain(fc.max_pool2d, x, 2).chosen == "reference"
        np.testing.assert_array_equal(fc.max_pool2d(x, 2), fc.max_pool2d(x, 2))
    assert len(ready_calls) == 1
    fc.cache_clear()
    assert len(ready_calls) == 0


def test_empty_batches() -> None:
    for _ in range(2):
        assert fc.max_pool2d(np.zeros((0, 3, 8, 8), np.float32), 2).shape == (0, 3, 4, 4)


# ------------------------------------------------------------------------------------------------------ convolutions


@pytest.mark.parametrize("layout", [None, "channels_last"])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("name", ["conv2d", "conv_transpose2d"])
def test_the_second_convolution_gives_what_the_first_gave(name: str, batched: bool, layout: Any) -> None:
    function, x = getattr(fc, name), images(layout)
    x = x if batched else x[0]
    w = np.random.default_rng(6).integers(-4, 5, (4, 3, 3, 3) if name == "conv2d" else (3, 4, 3, 3)).astype(x.dtype)
    bias = np.arange(4, dtype=x.dtype)
    call = partial(function, x, w, bias, padding=1, layout=layout, activation="relu")
    first = call()
    assert len(ready_calls) == 1
    out = np.full_like(first, np.nan)
    inside = np.zeros((*first.shape[:-1], 2 * first.shape[-1]), x.dtype)[..., ::2]
    for result in (call(), call(out=out), call(out=inside)):
        np.testing.assert_array_equal(result, first)
    assert len(ready_calls) == 1
    with pytest.raises(ValueError, match="out must have the shape"):
        call(out=out[..., :-1])
    if name == "conv2d" and first.shape == x.shape:
        overlapping = x.copy()
        np.testing.assert_array_equal(function(overlapping, w, out=overlapping), first)


def test_convolutions_are_told_apart() -> None:
    x, w = images(), np.ones((3, 3, 3, 3), np.float32)
    plain = fc.conv2d(x, w)
    assert fc.conv2d(x.astype(np.float64), w.astype(np.float64)).dtype == np.float64
    np.testing.assert_array_equal(fc.conv2d(x.astype(">f4"), w), plain)
    np.testing.assert_array_equal(fc.conv2d(x, w.astype(">f4")), plain)
    assert fc.conv2d(x, w, stride=2).shape == (2, 3, 3, 4)
    assert fc.conv2d(x, w, np.ones(3, np.float32))[0, 0, 0, 0] == plain[0, 0, 0, 0] + 1
    with pytest.raises(TypeError, match="stride must be"):
        fc.conv2d(x, w, stride=True)
    with pytest.raises(TypeError, match="one dtype"):
        fc.conv2d(x, w.astype(np.float64))
    with pytest.raises(ValueError, match="bias must have"):
        fc.conv2d(x, w, np.ones(2, np.float32))
    with fc.options(algorithm="im2col"):
        assert fc.explain(fc.conv2d, x, w).chosen == "im2col"
    for _ in range(2):
        with fc.options(workspace_limit=0), pytest.warns(fc.SlowPathWarning):
            fc.conv2d(x, w)


ALGORITHMS = ("direct", "im2col", "direct_planar", "winograd_f2x2_3x3", "auto")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_later_convolutions_use_their_own_arrays(algorithm: str) -> None:
    """From the second call on what to launch is known, and where in the arrays given then; strides and alignment are
    looked at every time."""
    rng = np.random.default_rng(7)
    shapes = ((2, 32, 9, 9), (40, 32, 3, 3), (40,))
    forms = {
        "as before": lambda a: a,
        "in another place": np.copy,
        "reversed": lambda a: np.ascontiguousarray(a[::-1])[::-1],
        "columns apart": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
        "misaligned": lambda a: np.frombuffer(b"." + a.tobytes(), np.uint8)[1:].view(a.dtype).reshape(a.shape),
    }
    for with_bias in (False, True):
        fc.cache_clear()
        for _ in range(3):
            for form, changed in itertools.product(forms.values(), range(2 + with_bias)):
                arrays = [rng.integers(-4, 5, shape).astype(np.float32) for shape in shapes[: 2 + with_bias]]
                want = fc.conv2d(*arrays, padding=1, algorithm="reference")
                arrays[changed] = form(arrays[changed])
                got = fc.conv2d(*arrays, padding=1, algorithm=algorithm)
                np.testing.assert_array_equal(got, want)
                out = form(np.full_like(want, np.nan))
                if out.flags.writeable:
                    np.testing.assert_array_equal(fc.conv2d(*arrays, padding=1, algorithm=algorithm, out=out), want)
        (ready,) = (kept for kept in ready_calls.values() if kept.repeats)
        assert any(ready.repeats.values())
        assert len(ready.repeats) <= call_module.REPEATS


@pytest.mark.parametrize("algorithm", ["direct", "depthwise", "direct_planar"])
def test_later_convolutions_find_any_workspace(algorithm: str) -> None:
    """Nothing that an earlier call left in the shared workspace is used; here outputs that no tap of w reaches."""
    x, w = images()[:, :, :5, :5], np.ones((3, 1, 1, 2), np.float32)
    call = partial(fc.conv_transpose2d, np.ascontiguousarray(x), w, stride=3, groups=3)
    want = call(algorithm="reference")
    other = np.full((1, 32, 40, 40), np.nan, np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(call(algorithm=algorithm), want)
        for name in ("direct", "im2col"):
            fc.conv2d(other, np.full((32, 32, 3, 3), np.nan, np.float32), algorithm=name)


def test_arrays_that_lie_in_each_other_are_told_apart() -> None:
    """Weights between the numbers of a strided x: their address is one of x's, too."""
    rng = np.random.default_rng(3)
    memory = rng.standard_normal((1, 4, 12, 24), np.float32)
    x = memory[..., ::2]
    w = memory.reshape(-1)[24 : 24 + 4 * 4 * 9].reshape(4, 4, 3, 3)
    fc.conv2d(x, w, padding=1)
    fc.conv2d(x, w, padding=1)
    another, apart = rng.standard_normal(memory.shape, np.float32)[..., ::2], np.ones_like(w)
    expected = fc.conv2d(np.ascontiguousarray(another), apart, padding=1)
    for _ in range(2):
        np.testing.assert_allclose(fc.conv2d(another, apart, padding=1), expected, rtol=1e-5, atol=1e-5)
