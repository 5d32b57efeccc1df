"""Convolution in bfloat16 products, of bfloat16 and of float32 arrays: exact on small integers, inside guard pages, in
each form that this CPU has."""

import os
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest

from fastconv.kernels import reference
from fastconv.kernels.cpu import amx, bfloat16, bfloat16_blocking, bfloat16_tiles, bfloat16_weights
from tests.guard import guarded
from tests.kernels.test_cpu_conv import EDGES, conv, shape_of
from tests.support import threads_for_small_problems

BF16, FLOAT32 = np.dtype(ml_dtypes.bfloat16), np.dtype(np.float32)
OPERANDS = {"forward": "xwy", "grad_input": "ywx"}

pytestmark = pytest.mark.skipif(bfloat16.unavailable() is not None, reason=f"{bfloat16.unavailable()}")

MORE = {
    "chunks of channels": conv(1, 70, 40, (9, 13), 3, pad=1),
    "rows of several tiles": conv(1, 6, 5, (3, 150), (2, 3), pad=1),
    "wide, in column blocks": conv(1, 40, 3, (5, 1300), 3, stride=(1, 2), pad=1),
    "few rows, few outputs": conv(1, 33, 90, (2, 2), 2, pad=1),
}


@pytest.fixture(scope="module", autouse=True)
def small_problems_use_threads_too():
    sizes = [bfloat16_blocking.forward_workspace, bfloat16_blocking.grad_input_workspace]
    with threads_for_small_problems(bfloat16_weights, sizes=sizes):
        yield


@pytest.fixture(params=[BF16, FLOAT32], ids=str)
def dtype(request):
    reason = amx.unavailable() if request.param.itemsize == 4 else bfloat16.unavailable()
    if reason:
        pytest.skip(reason)
    return request.param


def home(dtype):
    """Where the functions for arrays of that dtype are."""
    return bfloat16 if dtype == BF16 else bfloat16.bf16x3


def integers(rng, shape, dtype, most=2):
    array = guarded(shape, dtype, at=rng.choice(["start", "end"]))
    array[...] = rng.integers(-most, most + 1, shape)
    return array


def compute(direction, geometry, arrays, out, *, packed=None, bias=None, residual=None, activation=None, threads=1):
    size = getattr(bfloat16_blocking, f"{direction}_workspace")(geometry, out.dtype.itemsize, threads)
    getattr(home(out.dtype), direction)(
        geometry, *arrays, bias, residual, out, activation=activation, packed=packed,
        workspace=guarded(size, np.uint8), threads=threads,
    )  # fmt: skip
    return out.astype(np.float64)


def expected(direction, geometry, arrays, shape, **epilogue):
    dtype = next(a.dtype for a in arrays if a is not None)
    truth = np.empty(shape)
    getattr(reference, direction)(geometry, *arrays, epilogue.pop("bias", None), epilogue.pop("residual", None), truth)
    return truth.astype(dtype).astype(np.float64)


def channels_last(array):
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(array, 1, -1)), -1, 1)


@pytest.mark.parametrize("direction", OPERANDS)
@pytest.mark.parametrize("name", [*EDGES, *MORE])
def test_is_exact_but_for_one_rounding(name, direction, dtype):
    geometry = (EDGES | MORE)[name]
    if direction == "grad_input" and geometry.padding_mode != "zeros" and dtype == BF16:
        pytest.skip("folds no padded gradient")
    rng = np.random.default_rng(0)
    *arrays, result = (shape_of(geometry, letter) for letter in OPERANDS[direction])
    x, w = (integers(rng, shape, dtype) for shape in arrays)
    want = expected(direction, geometry, (x, w), result)
    packed = getattr(home(dtype), f"pack_{direction}")(geometry, w)
    for threads in (1, 2, 5):
        for out in (guarded(result, dtype), channels_last(guarded(result, dtype))):
            np.testing.assert_array_equal(compute(direction, geometry, (x, w), out, threads=threads), want)
    got = compute(direction, geometry, (x, None), guarded(result, dtype), packed=packed)
    np.testing.assert_array_equal(got, want)


@pytest.mark.skipif(amx.unavailable() is not None, reason=f"{amx.unavailable()}")
@pytest.mark.parametrize("long", ["x", "w"])
@pytest.mark.parametrize("name", ["pointwise", "below a tile", "dilation and stride"])
def test_every_part_of_a_float32_number_counts(name, long):
    """One of the operands has three parts, the other one: sums of fewer than 128 products are exact."""
    geometry, rng = EDGES[name], np.random.default_rng(3)
    x, w = (integers(rng, shape, FLOAT32, most=1) for shape in (geometry.input_shape, geometry.weight_shape))
    {"x": x, "w": w}[long][...] *= 1 + 2.0**-9 + 2.0**-17
    want = expected("forward", geometry, (x, w), geometry.output_shape)
    for lay in (np.asarray, channels_last):
        out = guarded(geometry.output_shape, FLOAT32)
        np.testing.assert_array_equal(compute("forward", geometry, (lay(x), w), out), want)


FORMS = {
    "channels last": channels_last,
    "Fortran order": np.asfortranarray,
    "negative strides": lambda a: a[..., ::-1].copy()[..., ::-1],
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (3, 3), (1, 1), (1, 2)])
def test_any_strides_with_an_epilogue(form, kernel, stride, dtype):
    geometry = conv(2, 35, 40, (9, 11), kernel, stride=stride, pad=kernel // 2)
    rng = np.random.default_rng(1)
    shapes = (geometry.input_shape, geometry.weight_shape, geometry.output_shape, (40,))
    x, w, residual, bias = (integers(rng, shape, dtype) for shape in shapes)
    want = np.maximum(expected("forward", geometry, (x, w), residual.shape, bias=bias, residual=residual), 0)
    lay = FORMS[form]
    out = lay(guarded(residual.shape, dtype))
    got = compute("forward", geometry, (lay(x), lay(w)), out, bias=bias, residual=lay(residual), activation="relu")
    np.testing.assert_array_equal(got, want)


def test_rows_of_the_output_lie_together_and_those_of_the_residual_apart(dtype):
    geometry = conv(1, 35, 40, (9, 11), 1)
    rng = np.random.default_rng(1)
    shapes = (geometry.input_shape, geometry.weight_shape, geometry.output_shape)
    x, w, residual = (integers(rng, shape, dtype) for shape in shapes)
    want = expected("forward", geometry, (x, w), residual.shape, residual=residual)
    apart = np.full((*residual.shape[:-1], 13), np.nan, dtype)[..., :11]
    apart[...] = residual
    got = compute("forward", geometry, (x, w), guarded(residual.shape, dtype), residual=apart)
    np.testing.assert_array_equal(got, want)


def test_what_lies_between_the_rows_is_not_seen(dtype):
    """Non-finite input reaches the windows that hold it, though tiles compute positions between the rows too."""
    geometry = conv(1, 3, 4, (6, 7), 3, pad=1)
    x = np.ones(geometry.input_shape, dtype)
    x[0, 1, 2, 6] = np.inf
    y = np.empty(geometry.output_shape, dtype)
    compute("forward", geometry, (x, np.ones(geometry.weight_shape, dtype)), y)
    seen = np.zeros((6, 7), bool)
    seen[1:4, 5:7] = True
    np.testing.assert_array_equal(~np.isfinite(y[0, 0].astype(np.float32)), seen)


@pytest.mark.skipif(bfloat16_tiles.FORM == "dot", reason="the form that the other tests run")
def test_the_form_without_tile_registers(tmp_path):
    """VDPBF16PS instead of AMX, chosen as on a CPU without AMX's features that is named Zen 4."""
    from numba.core.registry import cpu_target

    features = cpu_target.target_context.codegen().magic_tuple()[2]
    kept = ",".join(f for f in features.split(",") if "amx" not in f)
    names = ["chunks of channels", "rows of several tiles", "depthwise multiplier"]
    code = f"""
from tests.kernels import test_bfloat16 as t
assert t.bfloat16_tiles.FORM == "dot"
for name in {names}:
    t.test_is_exact_but_for_one_rounding(name, "forward", t.BF16)
"""
    environment = os.environ | {
        "NUMBA_CPU_NAME": "znver4", "NUMBA_CPU_FEATURES": kept, "FASTCONV_CACHE_DIR": str(tmp_path),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
