"""The float64 reference against outside oracles: SciPy always, PyTorch (forward and autograd) where installed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scipy import ndimage, signal, special

from fastconv.kernels import ACTIVATIONS, reference
from fastconv.kernels.geometry import ConvGeometry, PoolGeometry, pool_output_size
from tests.support import require

Array = np.ndarray[Any, Any]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


@pytest.fixture
def torch() -> ModuleType:
    return require("torch")


def same(actual: Array, expected: Any, rtol: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, np.asarray(expected), rtol=rtol, atol=1e-12)


def filled(
    function: Callable[..., None], geometry: Any, *arrays: Any, shape: tuple[int, ...], **keywords: Any
) -> Array:
    out = np.full(shape, np.nan)
    function(geometry, *arrays, out, **keywords)
    return out


# --- convolution ---

CONV = {
    "1d": ConvGeometry(2, 3, 4, (9,), (3,), (1,), ((1, 1),)),
    "1d strided, asymmetric": ConvGeometry(2, 3, 4, (10,), (4,), (3,), ((0, 2),)),
    "2d": ConvGeometry(2, 3, 4, (6, 7), (3, 3), (1, 1), ((0, 0), (0, 0))),
    "2d 1x1": ConvGeometry(1, 5, 2, (4, 3), (1, 1), (1, 1), ((0, 0), (0, 0))),
    "2d strided": ConvGeometry(2, 3, 4, (8, 7), (3, 2), (2, 3), ((1, 1), (2, 2))),
    "2d dilated": ConvGeometry(2, 3, 4, (9, 8), (3, 2), (2, 1), ((2, 2), (1, 1)), (2, 3)),
    "2d groups": ConvGeometry(2, 6, 9, (5, 6), (3, 3), (1, 2), ((1, 1), (1, 1)), groups=3),
    "2d depthwise": ConvGeometry(2, 4, 8, (5, 6), (3, 3), (1, 1), ((1, 1), (1, 1)), groups=4),
    "2d padding above the kernel": ConvGeometry(1, 2, 3, (3, 3), (2, 2), (1, 1), ((4, 4), (3, 5))),
    "2d cropped": ConvGeometry(1, 2, 3, (7, 8), (3, 3), (1, 1), ((-1, 2), (0, -2))),
    "3d": ConvGeometry(2, 4, 6, (4, 5, 6), (2, 3, 3), (1, 2, 1), ((1, 0), (1, 1), (2, 1)), (1, 1, 2), groups=2),
    "empty batch": ConvGeometry(0, 3, 4, (6, 7), (3, 3), (1, 1), ((0, 0), (0, 0))),
    "reflect": ConvGeometry(2, 3, 4, (5, 6), (3, 3), (1, 1), ((1, 2), (2, 1)), padding_mode="reflect"),
    "replicate": ConvGeometry(2, 3, 4, (5, 6), (3, 3), (2, 1), ((1, 4), (2, 1)), padding_mode="replicate"),
    "circular": ConvGeometry(2, 3, 4, (5, 6), (3, 3), (1, 1), ((1, 2), (2, 5)), padding_mode="circular"),
    "circular 1d": ConvGeometry(2, 3, 4, (5,), (3,), (1,), ((2, 1),), padding_mode="circular"),
    "reflect 3d": ConvGeometry(
        1, 2, 2, (4, 3, 4), (2, 2, 2), (1, 1, 1), ((1, 1), (2, 0), (1, 2)), padding_mode="reflect"
    ),
}
NUMPY_PAD: dict[str, Any] = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
conv_cases = pytest.mark.parametrize("g", CONV.values(), ids=CONV)


@conv_cases
def test_forward_against_scipy(g: ConvGeometry, rng: np.random.Generator) -> None:
    """Padded by np.pad, correlated at every position by SciPy with the dilated kernel, then subsampled."""
    x, w, bias = (
        rng.standard_normal(g.input_shape),
        rng.standard_normal(g.weight_shape),
        rng.standard_normal(g.out_channels),
    )
    crop = (slice(max(-b, 0), size - max(-a, 0)) for size, (b, a) in zip(g.input_size, g.padding, strict=True))
    widths = tuple((max(before, 0), max(after, 0)) for before, after in g.padding)
    padded = np.pad(x[:, :, *crop], ((0, 0), (0, 0), *widths), mode=NUMPY_PAD[g.padding_mode])
    dilated = np.zeros((*w.shape[:2], *((k - 1) * d + 1 for k, d in zip(g.kernel_size, g.dilation, strict=True))))
    dilated[:, :, *(slice(None, None, d) for d in g.dilation)] = w
    expected = np.zeros(g.output_shape)
    per_group_in, per_group_out = g.in_channels // g.groups, g.out_channels // g.groups
    for n, k, c in np.ndindex(g.batch, g.out_channels, per_group_in):
        plane = padded[n, k // per_group_out * per_group_in + c]
        expected[n, k] += signal.correlate(plane, dilated[k, c], "valid")[tuple(slice(None, None, s) for s in g.stride)]
    expected += bias.reshape(-1, *(1,) * g.rank)
    same(filled(reference.forward, g, x, w, bias, None, shape=g.output_shape), expected)


@conv_cases
def test_gradients_are_the_forward_s_transposes(g: ConvGeometry, rng: np.random.Generator) -> None:
    """<dy, conv(x, w)> = <grad_input(dy, w), x> = <grad_weight(x, dy), w>, for every x, w and dy."""
    x, w, dy = (rng.standard_normal(shape) for shape in (g.input_shape, g.weight_shape, g.output_shape))
    inner = np.vdot(dy, filled(reference.forward, g, x, w, None, None, shape=g.output_shape))
    dx = filled(reference.grad_input, g, dy, w, None, None, shape=g.input_shape)
    dw = filled(reference.grad_weight, g, x, dy, shape=g.weight_shape)
    assert math.isclose(np.vdot(dx, x), inner, rel_tol=1e-12, abs_tol=1e-12)
    assert math.isclose(np.vdot(dw, w), inner, rel_tol=1e-12, abs_tol=1e-12)


def torch_conv(torch: ModuleType, g: ConvGeometry, x: Any, w: Any, bias: Any) -> Any:
    f = torch.nn.functional
    if any(min(pair) < 0 for pair in g.padding) or g.padding_mode == "zeros":
        x = f.pad(x, [p for pair in reversed(g.padding) for p in pair])
    else:  # F.pad's other modes refuse more padding than input: one axis and one element at a time says the same
        index = [torch.arange(size) for size in g.input_size]
        for axis, (pair, i) in enumerate(zip(g.padding, index, strict=True)):
            shown = np.pad(i.numpy(), pair, mode=NUMPY_PAD[g.padding_mode])
            x = x.index_select(axis + 2, torch.from_numpy(shown))
    return getattr(f, f"conv{g.rank}d")(x, w, bias, g.stride, 0, g.dilation, g.groups)


@conv_cases
def test_forward_and_gradients_against_torch(g: ConvGeometry, rng: np.random.Generator, torch: ModuleType) -> None:
    shapes = (g.input_shape, g.weight_shape, (g.out_channels,))
    x, w, bias = (torch.from_numpy(rng.standard_normal(shape)).requires_grad_() for shape in shapes)
    y = torch_conv(torch, g, x, w, bias)
    dy = rng.standard_normal(g.output_shape)
    y.backward(torch.from_numpy(dy))
    arrays = [t.detach().numpy() for t in (x, w, bias)]
    same(filled(reference.forward, g, *arrays, None, shape=g.output_shape), y.detach())
    same(filled(reference.grad_input, g, dy, arrays[1], None, None, shape=g.input_shape), x.grad)
    same(filled(reference.grad_weight, g, arrays[0], dy, shape=g.weight_shape), w.grad)
    db = np.empty(g.out_channels)
    reference.grad_bias(dy, db)
    same(db, bias.grad)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_modes_against_torch_pad(mode: str, rng: np.random.Generator, torch: ModuleType) -> None:
    g = replace(CONV["2d"], padding=((2, 1), (3, 2)), padding_mode=mode)
    x, w = torch.from_numpy(rng.standard_normal(g.input_shape)), torch.from_numpy(rng.standard_normal(g.weight_shape))
    expected = torch.nn.functional.conv2d(torch.nn.functional.pad(x, (3, 2, 2, 1), mode=mode), w)
    same(filled(reference.forward, g, x.numpy(), w.numpy(), None, None, shape=g.output_shape), expected)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_conv_transpose_against_torch(rank: int, groups: int, rng: np.random.Generator, torch: ModuleType) -> None:
    """conv_transpose(x, w, bias) is grad_input with the same arrays, epilogue included."""
    g = ConvGeometry(2, 6, 4, (9,) * rank, (3,) * rank, (3,) * rank, ((1, 1),) * rank, (2,) * rank, groups)
    small, w, bias = (rng.standard_normal(shape) for shape in (g.output_shape, g.weight_shape, (g.in_channels,)))
    extra = 9 - ((g.output_size[0] - 1) * 3 - 2 + 5)
    residual = rng.standard_normal(g.input_shape)
    transpose = getattr(torch.nn.functional, f"conv_transpose{rank}d")
    y = transpose(*map(torch.from_numpy, (small, w, bias)), 3, 1, extra, groups, 2)
    actual = filled(reference.grad_input, g, small, w, bias, residual, shape=g.input_shape, activation="relu")
    same(actual, torch.relu(y + torch.from_numpy(residual)))


def test_epilogue_packed_and_half_precision(rng: np.random.Generator) -> None:
    """out = activation(conv + bias + residual), computed in float64 whatever the inputs are and rounded at the end."""
    g = CONV["2d groups"]
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
        shapes = (g.input_shape, g.weight_shape, (g.out_channels,), g.output_shape)
        x, w, bias, residual = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
        plain = filled(reference.forward, g, *(a.astype(np.float64) for a in (x, w)), None, None, shape=g.output_shape)
        total = plain + bias.astype(np.float64)[:, None, None] + residual.astype(np.float64)
        expected = (total / (1 + np.exp(-total))).astype(dtype)
        out, packed = np.empty(g.output_shape, dtype), reference.pack_forward(g, w)
        reference.forward(g, x, np.zeros_like(w), bias, residual, out, activation="silu", packed=packed)
        assert out.dtype == dtype
        np.testing.assert_array_max_ulp(out.astype(np.float32), expected.astype(np.float32), 2**16)  # one bfloat16 ulp


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_against_torch(name: str, torch: ModuleType) -> None:
    x = np.concatenate([np.linspace(-40, 40, 2001), [0.0, -0.0, 3, -3, 6, 800, -800, np.inf, np.nan]])
    expected = getattr(torch.nn.functional, name)(torch.from_numpy(x))
    same(reference.activate(name, x), expected, rtol=1e-13)


def test_gelu_against_scipy() -> None:
    x = np.linspace(-8, 8, 500)  # further out, rounding t already moves erfc(t) by more than the tolerance
    np.testing.assert_allclose(reference.activate("gelu", x), x * special.ndtr(x), rtol=1e-13)


# --- pooling ---


def pool(
    size: tuple[int, ...],
    kernel: Any,
    stride: Any,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    **rest: Any,
) -> PoolGeometry:
    """A geometry of 2 images of 3 channels; an int stands for itself on every axis."""
    kernel, stride, dilation = ((a,) * len(size) if isinstance(a, int) else a for a in (kernel, stride, dilation))
    padding = ((padding, padding),) * len(size) if isinstance(padding, int) else padding
    out = pool_output_size(size, kernel, stride, padding, dilation, ceil_mode)
    return PoolGeometry(2, 3, size, out, kernel, stride, padding, dilation, **rest)


SYMMETRIC = {
    "1d": (pool((9,), 3, 2, 1), False),
    "2d": (pool((7, 6), 2, 2), False),
    "2d overlapping": (pool((7, 6), 3, 1, 1), False),
    "2d window 1": (pool((4, 5), 1, 1), False),
    "2d window = input": (pool((4, 5), (4, 5), 1), False),
    "2d gaps": (pool((9, 8), 2, (3, 4)), False),
    "2d ceil": (pool((8, 7), 3, 2, 1, ceil_mode=True), True),
    "2d ceil, dropped window": (pool((5, 5), 2, 3, 1, ceil_mode=True), True),
    "3d": (pool((4, 5, 6), (2, 3, 2), (1, 2, 2), ((1, 1), (1, 1), (0, 0))), False),
    "3d ceil": (pool((4, 5, 6), (2, 3, 2), 2, 1, ceil_mode=True), True),
}
symmetric_cases = pytest.mark.parametrize(("g", "ceil_mode"), SYMMETRIC.values(), ids=SYMMETRIC)
DILATED = {
    "1d dilated": (pool((11,), 3, 2, 1, 2), False),
    "2d dilated": (pool((9, 8), 3, (1, 2), 1, (3, 2)), False),
    "2d dilated ceil": (pool((9, 8), 3, (3, 2), 1, (3, 2), ceil_mode=True), True),
    "3d dilated": (pool((5, 5, 6), 2, 1, 1, (1, 2, 3)), False),
}
ALL_POOLS = SYMMETRIC | DILATED
max_cases = pytest.mark.parametrize(("g", "ceil_mode"), ALL_POOLS.values(), ids=ALL_POOLS)


@pytest.mark.parametrize("g", [g for g, _ in ALL_POOLS.values()], ids=ALL_POOLS)
def test_extremes_and_averages_against_scipy(g: PoolGeometry, rng: np.random.Generator) -> None:
    """ndimage slides the (dilated) window over every position of an input padded far enough; ours are a subset."""
    x = rng.standard_normal(g.input_shape)
    footprint = np.zeros([(k - 1) * d + 1 for k, d in zip(g.kernel_size, g.dilation, strict=True)], bool)
    footprint[tuple(slice(None, None, d) for d in g.dilation)] = True
    ends = [(o - 1) * s + f for o, s, f in zip(g.output_size, g.stride, footprint.shape, strict=True)]
    padded_axes = zip(g.padding, ends, g.input_size, strict=True)
    widths = [(before, max(end - before - size, 0)) for (before, _), end, size in padded_axes]
    centres = zip(footprint.shape, g.output_size, g.stride, strict=True)
    at = tuple(slice(f // 2, f // 2 + (o - 1) * s + 1, s) for f, o, s in centres)

    def slide(values: Array, fill: float, how: Callable[[Array], Array]) -> Array:
        padded = np.pad(values, ((0, 0), (0, 0), *widths), constant_values=fill)
        return np.stack([[how(plane)[at] for plane in image] for image in padded])

    where = {"footprint": footprint, "mode": "constant"}
    largest = slide(x, -np.inf, lambda a: ndimage.maximum_filter(a, cval=-np.inf, **where))
    same(filled(reference.max_forward, g, x, None, shape=g.output_shape), largest)
    smallest = slide(x, np.inf, lambda a: ndimage.minimum_filter(a, cval=np.inf, **where))
    same(filled(reference.min_forward, g, x, None, shape=g.output_shape), smallest)

    def sums(a: Array) -> Array:
        return ndimage.correlate(a, footprint.astype(float), mode="constant")

    total, count = slide(x, 0, sums), slide(np.ones_like(x), 0, sums)
    average = filled(reference.avg_forward, replace(g, count_include_pad=False), x, shape=g.output_shape)
    same(average, total / count)
    average = filled(reference.avg_forward, replace(g, divisor_override=7), x, shape=g.output_shape)
    same(average, total / 7)
    norm = filled(reference.lp_forward, replace(g, norm_type=3.0), abs(x), shape=g.output_shape)
    same(norm, slide(abs(x) ** 3, 0, sums) ** (1 / 3))


def torch_sizes(g: PoolGeometry) -> dict[str, Any]:
    return {"kernel_size": g.kernel_size, "stride": g.stride, "padding": tuple(before for before, _ in g.padding)}


@max_cases
def test_max_against_torch(g: PoolGeometry, ceil_mode: bool, rng: np.random.Generator, torch: ModuleType) -> None:
    """Values, indices (small integers: many ties) and gradient."""
    x = torch.from_numpy(rng.integers(-2, 3, g.input_shape).astype(float)).requires_grad_()
    function = getattr(torch.nn.functional, f"max_pool{g.rank}d")
    y, where = function(x, **torch_sizes(g), dilation=g.dilation, ceil_mode=ceil_mode, return_indices=True)
    dy = rng.standard_normal(g.output_shape)
    y.backward(torch.from_numpy(dy))
    indices = np.empty(g.output_shape, np.int64)
    out = filled(reference.max_forward, g, x.detach().numpy(), indices, shape=g.output_shape)
    np.testing.assert_array_equal(out, y.detach())
    np.testing.assert_array_equal(indices, where)
    same(filled(reference.max_grad_input, g, dy, indices, shape=g.input_shape), x.grad)
    smallest = np.empty(g.output_shape, np.int32)
    out = filled(reference.min_forward, g, -x.detach().numpy(), smallest, shape=g.output_shape)
    np.testing.assert_array_equal(out, -y.detach())
    np.testing.assert_array_equal(smallest, where)


@symmetric_cases
@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("override", [None, 5])
def test_avg_against_torch(
    g: PoolGeometry, ceil_mode: bool, include: bool, override: int | None, rng: np.random.Generator, torch: ModuleType
) -> None:
    if g.rank == 1 and override is not None:
        override = None  # F.avg_pool1d has no divisor_override
    g = replace(g, count_include_pad=include, divisor_override=override)
    x = torch.from_numpy(rng.standard_normal(g.input_shape)).requires_grad_()
    keywords = {"ceil_mode": ceil_mode, "count_include_pad": include}
    if g.rank > 1:
        keywords["divisor_override"] = override  # type: ignore[assignment]
    y = getattr(torch.nn.functional, f"avg_pool{g.rank}d")(x, **torch_sizes(g), **keywords)
    dy = rng.standard_normal(g.output_shape)
    y.backward(torch.from_numpy(dy))
    same(filled(reference.avg_forward, g, x.detach().numpy(), shape=g.output_shape), y.detach())
    same(filled(reference.avg_grad_input, g, dy, shape=g.input_shape), x.grad)


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, 1.5])
@pytest.mark.parametrize("name", ["2d overlapping", "2d gaps", "1d", "3d"])
def test_lp_against_torch(p: float, name: str, rng: np.random.Generator, torch: ModuleType) -> None:
    g = replace(SYMMETRIC[name][0], norm_type=p)
    x = torch.from_numpy(abs(rng.standard_normal(g.input_shape)) + 0.1).requires_grad_()
    padded = torch.nn.functional.pad(x, [n for pair in reversed(g.padding) for n in pair])  # F.lp_pool has no padding
    kernel_size, stride = (g.kernel_size[0], g.stride[0]) if g.rank == 1 else (g.kernel_size, g.stride)
    y = getattr(torch.nn.functional, f"lp_pool{g.rank}d")(padded, p, kernel_size, stride)
    dy = rng.standard_normal(g.output_shape)
    y.backward(torch.from_numpy(dy))
    x_array, y_array = x.detach().numpy(), y.detach().numpy()
    same(filled(reference.lp_forward, g, x_array, shape=g.output_shape), y_array)
    same(filled(reference.lp_grad_input, g, x_array, y_array, dy, shape=g.input_shape), x.grad)


def test_lp_gradient_is_zero_where_the_sum_is() -> None:
    g = pool((2, 4), 2, 2, norm_type=2.0)
    x = np.zeros(g.input_shape)
    x[..., :2] = 3.0
    dx = filled(reference.lp_grad_input, g, x, None, np.ones(g.output_shape), shape=g.input_shape)
    same(dx, np.where(x > 0, 0.5, 0))


ADAPTIVE = [((7,), (3,)), ((4,), (6,)), ((6, 7), (3, 4)), ((5, 5), (1, 1)), ((3, 4), (5, 4)), ((4, 5, 6), (2, 3, 1))]


@pytest.mark.parametrize(("size", "out_size"), ADAPTIVE)
def test_adaptive_against_torch(
    size: tuple[int, ...], out_size: tuple[int, ...], rng: np.random.Generator, torch: ModuleType
) -> None:
    g = PoolGeometry(2, 3, size, out_size)
    dy = rng.standard_normal(g.output_shape)
    x = torch.from_numpy(rng.standard_normal(g.input_shape)).requires_grad_()
    y = getattr(torch.nn.functional, f"adaptive_avg_pool{g.rank}d")(x, out_size)
    y.backward(torch.from_numpy(dy))
    same(filled(reference.avg_forward, g, x.detach().numpy(), shape=g.output_shape), y.detach())
    same(filled(reference.avg_grad_input, g, dy, shape=g.input_shape), x.grad)
    x.grad = None
    y, where = getattr(torch.nn.functional, f"adaptive_max_pool{g.rank}d")(x, out_size, return_indices=True)
    y.backward(torch.from_numpy(dy))
    indices = np.empty(g.output_shape, np.int64)
    same(filled(reference.max_forward, g, x.detach().numpy(), indices, shape=g.output_shape), y.detach())
    np.testing.assert_array_equal(indices, where)
    same(filled(reference.max_grad_input, g, dy, indices, shape=g.input_shape), x.grad)


@pytest.mark.parametrize("g", [pool((9,), 2, 2), pool((7, 6), 2, 2), pool((9, 8), 2, (3, 4)), pool((4, 4, 5), 2, 2)])
def test_unpool_against_torch(g: PoolGeometry, rng: np.random.Generator, torch: ModuleType) -> None:
    pooled = np.empty(g.output_shape)
    indices = np.empty(g.output_shape, np.int64)
    reference.max_forward(g, rng.standard_normal(g.input_shape), indices, pooled)
    x = torch.from_numpy(pooled).requires_grad_()
    unpool = getattr(torch.nn.functional, f"max_unpool{g.rank}d")
    y = unpool(x, torch.from_numpy(indices), g.kernel_size, g.stride, output_size=g.input_size)
    dy = rng.standard_normal(g.input_shape)
    y.backward(torch.from_numpy(dy))
    same(filled(reference.unpool_forward, g, pooled, indices, shape=g.input_shape), y.detach())
    same(filled(reference.unpool_grad_input, g, dy, indices, shape=g.output_shape), x.grad)


def test_unpool_keeps_the_last_of_equal_indices_and_skips_minus_one() -> None:
    g = PoolGeometry(1, 1, (4,), (3,), (2,), (1,), ((0, 0),))
    x, indices = np.array([[[5.0, 7.0, 9.0]]]), np.array([[[2, 2, -1]]])
    same(filled(reference.unpool_forward, g, x, indices, shape=(1, 1, 4)), [[[0, 0, 7, 0]]])
    same(
        filled(reference.unpool_grad_input, g, np.arange(4.0).reshape(1, 1, 4), indices, shape=(1, 1, 3)), [[[2, 2, 0]]]
    )


def test_empty_windows() -> None:
    """A window wholly on padding: -inf/inf, index -1, average and norm 0, no gradient."""
    g = PoolGeometry(1, 1, (2,), (3,), (1,), (1,), ((0, 1),))
    x, indices = np.array([[[-4.0, 3.0]]]), np.empty((1, 1, 3), np.int64)
    same(filled(reference.max_forward, g, x, indices, shape=(1, 1, 3)), [[[-4, 3, -np.inf]]])
    assert indices.tolist() == [[[0, 1, -1]]]
    same(filled(reference.min_forward, g, x, indices, shape=(1, 1, 3)), [[[-4, 3, np.inf]]])
    same(filled(reference.max_grad_input, g, np.ones((1, 1, 3)), indices, shape=(1, 1, 2)), [[[1, 1]]])
    for include in (False, True):
        averaging = replace(g, count_include_pad=include)
        same(filled(reference.avg_forward, averaging, x, shape=(1, 1, 3)), [[[-4, 3, 0]]])
        same(filled(reference.avg_grad_input, averaging, np.ones((1, 1, 3)), shape=(1, 1, 2)), [[[1, 1]]])
    same(filled(reference.lp_forward, g, x, shape=(1, 1, 3)), [[[4, 3, 0]]])


def test_nan_wins_and_the_first_counts() -> None:
    g = PoolGeometry(1, 1, (4,), (2,), (3,), (1,), ((0, 0),))
    x, indices = np.array([[[np.inf, np.nan, 1.0, np.nan]]]), np.empty((1, 1, 2), np.int64)
    for function in (reference.max_forward, reference.min_forward):
        assert np.isnan(filled(function, g, x, indices, shape=(1, 1, 2))).all()
        assert indices.tolist() == [[[1, 1]]]
