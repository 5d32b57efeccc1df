"""Winograd on the CPU and on CUDA: error on hard data, non-finite numbers, exactness, strides, and planted mistakes."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from fastconv.kernels import reference
from fastconv.kernels.cpu import winograd, winograd_blocking, winograd_layout
from fastconv.kernels.cpu.amx import AMX
from fastconv.kernels.cpu.blocking import correlation
from fastconv.kernels.cpu.bound import bind
from fastconv.kernels.cpu.panels import PASS
from fastconv.kernels.winograd_matrices import VARIANTS
from fastconv.problem import conv_problem
from fastconv.registry import ROWS
from fastconv.targets import resolve
from fastconv.testing import check_row
from fastconv.testing.referee import neighbourhood
from tests.guard import guarded
from tests.support import device

WINOGRAD = [
    r for r in ROWS if r.family == "winograd" and not r.algorithm.endswith("_phases")
]  # test_winograd_phases.py
FORWARD = [r for r in WINOGRAD if r.direction == "forward"]
F4X4 = [r for r in FORWARD if r.algorithm.startswith("winograd_f4x4_3x3")]
BY_NAME = {v.name: v for v in VARIANTS}


@pytest.fixture(autouse=True)
def needs(request):
    """Skip the rows that multiply by AMX where the CPU has none."""
    row = getattr(request.node, "callspec", None) and request.node.callspec.params.get("row")
    if row and row.precision == "emulated" and not AMX:
        pytest.skip("the CPU has no AMX-BF16")


def able(row, *dtypes):
    """Those that the row computes."""
    return [dtype for dtype in dtypes if np.dtype(dtype).name in row.dtypes]


def variant(row):
    return BY_NAME[row.algorithm.removeprefix("winograd_").removesuffix("_bf16x3")]


def problem(row, *, size=19, n=1, c=20, k=37, groups=1, **parameters):
    kernel = variant(row).kernel
    rank = 2 if kernel[0] > 1 else 1
    spatial = (size if isinstance(size, tuple) else (size, size + 4))[-rank:]
    fields = {"padding": 1, "stride": variant(row).stride, "device": row.device, "groups": groups, **parameters}
    return conv_problem("conv", rank, (n, c, *spatial), (k, c // groups, *kernel[-rank:]), **fields)


def run(row, p, x, w, bias=None, residual=None, out=None, threads=1, activation=None):
    out = np.empty(p.geometry.output_shape, x.dtype) if out is None else out
    workspace = guarded(row.workspace_bytes(p, threads), np.uint8)
    kernel = resolve(row.target)
    with device(row):
        kernel(p.geometry, x, w, bias, residual, out, activation=activation, workspace=workspace, threads=threads)
    return out


def at_the_edge(array):
    copy = guarded(array.shape, array.dtype)
    copy[...] = array
    return copy


def draws(p):
    rng = np.random.default_rng(0)
    return rng.standard_normal(p.geometry.input_shape), rng.standard_normal(p.geometry.weight_shape)


def spread_out(x, w):
    """A dynamic range of 2^24 within every tile."""
    rng = np.random.default_rng(1)
    return x * 2.0 ** rng.integers(-12, 13, x.shape), w * 2.0 ** rng.integers(-12, 13, w.shape)


def cancelling(x, w):
    """Sums of a thousandth of their terms: even channels repeat the odd ones with weights of the other sign."""
    x[:, 1::2] = x[:, ::2]
    w[:, 1::2] = -w[:, ::2] * (1 + 1e-3 * w[:, 1::2])
    return x, w


def level(x, w):
    """A picture that hardly varies under weights that sum to zero."""
    return 100 + 1e-2 * x, w - w.mean(tuple(range(2, w.ndim)), keepdims=True)


@pytest.mark.parametrize("data", [spread_out, cancelling, level])
@pytest.mark.parametrize("row", FORWARD, ids=lambda r: f"{r.device}-{r.algorithm}")
def test_hard_data_stay_within_the_bound(row, data):
    for dtype in able(row, np.float32, np.float64):
        p = problem(row, c=24, dtype=np.dtype(dtype).name)
        x, w = (a.astype(dtype) for a in data(*draws(p)))
        y, wide = run(row, p, x, w), np.longdouble
        truth = np.empty(y.shape)
        reference.forward(p.geometry, x, w, None, None, truth)
        around = neighbourhood(p.geometry, "forward", abs(x.astype(np.float64)), abs(w.astype(np.float64)), row.tile)
        limit = (row.bound(p) + p.reduction * 2.0**-53) * around  # float64's reference rounds too
        assert (abs(y.astype(wide) - truth) <= limit).all()


@pytest.mark.parametrize("row", FORWARD, ids=lambda r: f"{r.device}-{r.algorithm}")
def test_a_missing_tap_is_seen(row, monkeypatch):
    p = problem(row)
    with device(row):
        check_row(row, p, rng=np.random.default_rng(0))
    kernel = resolve(row.target)

    def careless(geometry, x, w, *arrays, packed=None, **options):
        if w is not None:
            w = w.copy()
            w[3, 5, ..., 1] = 0
        kernel(geometry, x, w, *arrays, packed=packed, **options)

    monkeypatch.setattr("fastconv.testing.referee.resolve", lambda target: careless)
    with device(row), pytest.raises(AssertionError, match=r"root mean square|elements are wrong"):
        check_row(replace(row, prepare=None), p, rng=np.random.default_rng(0))


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("row", FORWARD, ids=lambda r: f"{r.device}-{r.algorithm}")
def test_non_finite_numbers_spread_to_every_output_that_sees_them(row, value):
    p = problem(row)
    x, w = (a.astype(np.float32) for a in draws(p))
    whole = run(row, p, x, w)
    at = (0, 3, *(n // 2 for n in p.geometry.input_size))
    x[at] = value
    y, truth = run(row, p, x, w), np.empty(whole.shape)
    reference.forward(p.geometry, x, w, None, None, truth)
    assert not np.isfinite(y[~np.isfinite(truth)]).any()
    changed = ~np.isfinite(y)
    assert np.array_equal(y[~changed], whole[~changed])
    for axis, m in enumerate(row.tile[-p.geometry.rank :], 2):  # no further than the tiles that read it
        where = np.nonzero(changed)[axis]
        assert where.max() - where.min() < p.geometry.kernel_size[axis - 2] + 2 * m


@pytest.mark.parametrize("row", FORWARD, ids=lambda r: f"{r.device}-{r.algorithm}")
def test_any_strides_any_threads_and_guard_pages(row):
    p = problem(row, n=2, c=19, k=35)
    x, w = (a.astype(np.float32) for a in draws(p))
    expected = run(row, p, at_the_edge(x), at_the_edge(w))
    for threads in (2, 3, 8):
        assert np.array_equal(run(row, p, x, w, threads=threads), expected)
    backwards = x[..., ::-1].copy()[..., ::-1]
    wide = np.zeros((*x.shape[:-1], 2 * x.shape[-1]), np.float32)
    wide[..., ::2] = x
    for view in (backwards, wide[..., ::2], np.moveaxis(np.moveaxis(x, 1, -1).copy(), -1, 1)):
        assert np.array_equal(run(row, p, view, w), expected)
    flipped = w[..., ::-1].copy()[..., ::-1]
    assert np.array_equal(run(row, p, x, flipped), expected)
    assert np.array_equal(run(row, p, x, np.asfortranarray(w)), expected)
    for out in (
        guarded(expected.shape, np.float32),
        np.moveaxis(np.empty(np.moveaxis(expected, 1, -1).shape, np.float32), -1, 1),
        np.empty((*expected.shape[:-1], 2 * expected.shape[-1]), np.float32)[..., ::2],
        np.empty(expected.shape, np.float32)[..., ::-1],
    ):
        assert np.array_equal(run(row, p, x, w, out=out), expected)


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("row", F4X4, ids=lambda r: r.device)
def test_clamps_in_registers_keep_nan(row, activation):
    p = problem(row, bias_shape=(37,), activation=activation)
    x, w = (a.astype(np.float32) for a in draws(p))
    bias = np.linspace(-9, 9, 37, dtype=np.float32)
    bias[4] = np.nan
    y = run(row, p, x, w, bias, activation=activation)
    truth = np.empty(y.shape)
    reference.forward(p.geometry, x, w, bias, None, truth, activation=activation)
    assert np.isnan(y[:, 4]).all()
    np.testing.assert_allclose(y, truth, atol=1e-3)


@pytest.mark.parametrize("row", FORWARD, ids=lambda r: f"{r.device}-{r.algorithm}")
def test_what_it_does_not_compute(row):
    stride, rank = variant(row).stride, problem(row).geometry.rank
    assert f"stride {stride}" in row.refuses(problem(row, stride=3 - stride))
    plain = row.device == "cuda" or stride > 1
    assert ("dilation 1" in (row.refuses(problem(row, dilation=2)) or "")) == plain
    assert "float16" in row.refuses(problem(row, dtype="float16"))
    assert "kernels" in row.refuses(
        conv_problem("conv", rank, (1, 4, *(9,) * rank), (4, 4, *(7,) * rank), stride=stride)
    )
    volume = row.refuses(volume_problem(row, 3)) or ""
    assert ("volumes" in volume) == (row.device == "cuda" or row.precision == "emulated")
    assert ("one slice" in volume) == (stride > 1)
    assert row.refuses(problem(row, size=6, groups=1, padding_mode="circular")) is None


CPU = [r for r in WINOGRAD if r.device == "cpu"]
STRIDED = {
    (19, 23): {},
    (28, 32): {
        "padding": 2,
        "groups": 2,
        "c": 36,
        "bias_shape": (38,),
        "activation": "relu",
        "padding_mode": "circular",
    },
    (6, 131): {"padding": ((3, 0), (0, 2)), "layout": "channels_last", "n": 3, "residual_shape": True},
}


@pytest.mark.parametrize("size", STRIDED, ids=str)
@pytest.mark.parametrize("row", [r for r in CPU if variant(r).stride > 1], ids=lambda r: r.name)
def test_strides(row, size):
    rank = problem(row).geometry.rank
    fields = {"c": 18, "k": 38, **STRIDED[size]}
    if isinstance(fields.get("padding"), tuple):
        fields["padding"] = fields["padding"][-rank:]
    for dtype in ("float32", "float64"):
        p = problem(row, size=size, dtype=dtype, **fields)
        check_row(row, p, rng=np.random.default_rng(0), threads=3, empty=guarded)
        check_row(row, p, rng=np.random.default_rng(1), integers=True)


TRANSPOSED = [r for r in CPU if r.direction == "grad_input"]


@pytest.mark.parametrize("row", TRANSPOSED, ids=lambda r: r.name)
def test_transposed_strides(row):
    """An input gradient whose phases have as many taps each as the variant."""
    rank = problem(row).geometry.rank
    fields = {"direction": "grad_input"}
    for stride, layout in (((2, 2), "channels_first"), ((3, 2), "channels_last"), ((1, 4), "channels_first")):
        stride, taps = stride[-rank:], variant(row).kernel[-rank:]
        kernel = tuple(s * r for s, r in zip(stride, taps, strict=True))
        shapes = (2, 4, *(15, 27)[-rank:]), (18, 2, *kernel)
        for more in ({"padding": 1}, {"padding": 1, "padding_mode": "circular"}):
            p = conv_problem("conv", rank, *shapes, stride=stride, groups=2, layout=layout, **fields, **more)
            check_row(row, p, rng=np.random.default_rng(0), threads=3, empty=guarded)
        cut = replace(p.geometry, padding=((-1, 2), (4, -3))[-rank:], padding_mode="zeros")
        check_row(row, replace(p, geometry=cut), rng=np.random.default_rng(0), threads=3, empty=guarded)
    p = conv_problem("conv", rank, (1, 4, *(15, 27)[-rank:]), (4, 4, *(6,) * rank), stride=5, direction="grad_input")
    assert "at stride" in row.refuses(p)


DILATED = {
    (2, 2): {"padding": 2},
    (1, 3): {"padding": 5, "padding_mode": "reflect", "layout": "channels_last"},
    (24, 3): {"padding": "same", "size": 22},  # more phases than rows
    (2, 30): {"padding": "same"},  # than columns
    (5, 7): {"padding": 2, "size": 30, "groups": 2, "bias_shape": (38,), "activation": "relu"},
}


@pytest.mark.parametrize("dilation", DILATED, ids=str)
@pytest.mark.parametrize("row", [r for r in CPU if variant(r).stride == 1], ids=lambda r: r.name)
def test_dilations(row, dilation):
    rank = problem(row).geometry.rank
    p = problem(row, c=18, k=38, dilation=dilation[-rank:], **DILATED[dilation])
    for dtype in able(row, "float32", "float64"):
        p = replace(p, dtype=dtype, direction=row.direction)
        check_row(row, p, rng=np.random.default_rng(0), threads=3, empty=guarded)
        check_row(row, p, rng=np.random.default_rng(1), integers=True)


def volume_problem(row, slices, n=1, c=20, k=37, groups=1, size=(5, 9, 10), stride=1, **parameters):
    v = variant(row)
    fields = {"padding": 1, "device": row.device, "direction": row.direction, **parameters}
    shapes = (n, c, *size), (k, c // groups, slices, *v.kernel)
    return conv_problem("conv3d", 3, *shapes, stride=(stride, *v.strides), groups=groups, **fields)


VOLUMES = {
    "plain": {"slices": 3, "n": 2},
    "parts of blocks": {"slices": 2, "n": 5, "size": (3, 9, 10), "k": 70, "padding": (2, 1, 2), "residual_shape": True},
    "apart": {"slices": 3, "stride": 2, "dilation": (2, 1, 1), "padding": (3, 1, 1), "groups": 2, "k": 38, "n": 2},
    "taps without slices, slices without taps": {
        "slices": 2,
        "stride": 4,
        "padding": (9, 1, 1),
        "bias_shape": (37,),
        "activation": "relu",
    },
    "reflect": {"slices": 5, "padding": (3, 2, 1), "padding_mode": "reflect", "layout": "channels_last"},
    "one slice": {"slices": 1, "stride": 2, "n": 3, "layout": "channels_last"},
}


@pytest.mark.parametrize("volume", VOLUMES)
@pytest.mark.parametrize("row", [r for r in CPU if r.precision == "ieee"], ids=lambda r: r.name)
def test_volumes(row, volume):
    fields = dict(VOLUMES[volume])
    if variant(row).stride > 1:
        fields["slices"], fields["padding"] = 1, (2, 2, 1)
    p = volume_problem(row, **fields)
    check_row(row, p, rng=np.random.default_rng(0), threads=2, empty=guarded)
    check_row(row, replace(p, dtype="float64"), rng=np.random.default_rng(1), integers=True)


def test_volumes_give_the_bits_of_any_number_of_threads():
    row = next(r for r in F4X4 if r.device == "cpu")
    p = volume_problem(row, 3, n=3, size=(6, 13, 14))
    x, w = (a.astype(np.float32) for a in draws(p))
    expected = run(row, p, x, w)
    assert all(np.array_equal(run(row, p, x, w, threads=threads), expected) for threads in (2, 5))


def test_slices_of_padding_are_left_out():
    """Blocks of one depth, of two or three images, need two slices each: what another tap sees is zeros."""
    shapes = (8, 64, 2, 14, 7), (64, 64, 3, 3, 3)
    c, f = correlation(conv_problem("conv3d", 3, *shapes, padding=1).geometry), BY_NAME["f4x4_3x3"]
    cut = winograd_blocking.plan(f, c, 4, 2, 32)
    table = winograd_layout._planes(c, cut).tolist()
    rows, blocks = table[: 16 * 5], table[16 * 5 :]
    assert (cut.turns, cut.blocks, cut.grid.plane) == (3, 6, 8)
    assert rows[:10] == [0, 0, -1, 0, 1, 1, 0, -1, 0, 1]
    assert rows[10:20] == [0, 1, 0, 1, -1, 1, 1, 0, 1, -1]
    assert blocks == [0, 1, 3, 16, 0, 2, 32, 1, 3, 56, 0, 2, 80, 1, 3, 104, 0, 2, 128]


def test_a_dilation_beyond_the_width_needs_no_more_memory():
    """Its phases without an output have no tiles: V of 2048 channels would be 288 MB for a dilation of 1000."""
    shapes, variant = ((1, 2048, 33, 33), (256, 2048, 3, 3)), BY_NAME["f4x4_3x3"]
    v = {
        winograd_blocking.plan(variant, correlation(p.geometry), 4, 2).scratch[1]
        for p in (conv_problem("conv2d", 2, *shapes, padding="same", dilation=(1, d)) for d in (33, 1000))
    }
    assert len(v) == 1


def test_blocks_have_more_rows_in_a_last_narrower_strip():
    """Two cells and one: a block that is 3 rows of the first strip is 6 of the last."""
    row = next(r for r in FORWARD if r.device == "cpu" and r.algorithm == "winograd_f2_3")
    p = conv_problem("conv2d", 2, (1, 64, 12, 97), (5, 64, 1, 3), padding="same", dilation=(1, 24))
    check_row(row, p, rng=np.random.default_rng(0), empty=guarded)


def test_many_strips_of_dilated_cells_in_the_middle_of_rows():
    row = next(r for r in F4X4 if r.device == "cpu")
    p = conv_problem(
        "conv2d", 2, (1, 17, 13, 300), (20, 17, 3, 3), padding=(2, 3), dilation=(2, 3), residual_shape=True
    )
    check_row(row, p, rng=np.random.default_rng(0), threads=5, empty=guarded)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 113])
@pytest.mark.parametrize("row", F4X4, ids=lambda r: r.device)
def test_sizes_around_a_tile(row, size):
    with device(row):
        check_row(row, problem(row, size=size, n=3, c=5, k=6), rng=np.random.default_rng(size), threads=2)
        for dtype in able(row, "float64"):
            check_row(row, problem(row, size=size, dtype=dtype), rng=np.random.default_rng(size), integers=True)


def test_channels_of_several_passes():
    row = next(r for r in F4X4 if r.device == "cpu")
    p = problem(row, c=2 * PASS + 19)
    check_row(row, p, rng=np.random.default_rng(0), integers=True, empty=guarded)
    check_row(row, p, rng=np.random.default_rng(0), threads=2)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("outputs", [3, 8, 16, 27])
@pytest.mark.parametrize("size", [7, 15, 29])
def test_groups_of_few_outputs(size, outputs, layout):
    """Tiles one vector wide or not, blocks of several planes, of one, and of parts of one."""
    row = next(r for r in F4X4 if r.device == "cpu")
    fields = {"padding": 1, "groups": 3, "layout": layout, "bias_shape": (3 * outputs,), "activation": "relu"}
    for n, threads in ((1, 1), (9, 2), (10, 3)):
        shape = (n, 3 * 19, size, size - 1)
        p = conv_problem("conv2d", 2, shape, (3 * outputs, 19, 3, 3), **fields)
        check_row(row, p, rng=np.random.default_rng(n), threads=threads, empty=guarded)


@pytest.mark.parametrize("row", F4X4, ids=lambda r: r.device)
def test_padding_that_counts_down_to_the_first_column_ends_there(row):
    """The columns under the last tile beyond it are zeros, not what lies before x in memory."""
    fields = {"padding": 1, "padding_mode": "reflect", "device": row.device}
    p = conv_problem("conv2d", 2, (1, 1, 6, 2), (1, 1, 3, 3), **fields)
    memory = np.full(1 + 12, np.nan, np.float32)
    x = memory[1:].reshape(1, 1, 6, 2)
    x[...] = 1
    out = run(row, p, x, np.ones((1, 1, 3, 3), np.float32))
    np.testing.assert_allclose(out, 9, rtol=1e-5)


@pytest.mark.parametrize("name", ["winograd_f2x2_3x3", "winograd_f4x4_3x3", "winograd_f2x2_5x5", "winograd_f4_3"])
@pytest.mark.parametrize(("groups", "slices"), [(1, 0), (2, 0), (2, 3)])
def test_weights_of_one_call_give_the_bits_of_a_plan(name, groups, slices, monkeypatch):
    """Each block transforms them as it needs them; at guard pages, in every order of memory."""
    monkeypatch.setattr(winograd_blocking, "ONCE_BYTES", 0)
    variant = BY_NAME[name.removeprefix("winograd_")]
    monkeypatch.setattr(winograd_blocking, "CHUNK_BYTES", 20 * 128 * variant.products)
    planning = (winograd_blocking.plan, winograd.prepare, winograd._made, bind)
    for cached in planning:
        cached.cache_clear()
    row = next(r for r in FORWARD if r.device == "cpu" and r.algorithm == name)
    kernel = variant.kernel if variant.kernel[0] > 1 or slices else variant.kernel[1:]
    size = (10, 14)[: len(kernel)]
    kernel, size = ((slices, *kernel), (2, 4, 5)) if slices else (kernel, size)
    shapes = (1, 53 * groups, *size), (43 * groups, 53, *kernel)
    p = conv_problem("conv", len(kernel), *shapes, padding=1, groups=groups)
    x, w = (a.astype(np.float32) for a in draws(p))
    g = p.geometry
    assert 0 < winograd_blocking.plan(variant, correlation(g), 4, 1, once=True).chunk < 53
    out, packed = np.empty(g.output_shape, np.float32), resolve(row.prepare)(g, w)
    workspace = np.empty(row.workspace_bytes(p, 1), np.uint8)
    resolve(row.target)(g, x, w, None, None, out, packed=packed, workspace=workspace)
    for threads in (1, 2, 5):
        assert np.array_equal(run(row, p, at_the_edge(x), at_the_edge(w), threads=threads), out)
    backwards, exchanged = w[..., ::-1].copy()[..., ::-1], w.swapaxes(0, 1).copy().swapaxes(0, 1)
    for view in (backwards, exchanged, np.asfortranarray(w)):
        assert np.array_equal(run(row, p, x, view), out)
    back = next(r for r in ROWS if r.target == row.target.replace(".forward", ".grad_input"))
    check_row(back, replace(p, direction="grad_input"), rng=np.random.default_rng(0), empty=guarded)
    for cached in planning:
        cached.cache_clear()


def hold(variant, p, itemsize, threads):
    """The stated workspace to what vectors of 64, 32 and 16 bytes use; whether weights are transformed there."""
    stated, uses = winograd_blocking.Workspaces(variant).forward(p.geometry, itemsize, threads), set()
    wanted, threads_used = correlation(p.geometry), correlation(p.geometry).useful_threads(threads)
    for width in (128, 64, 32):
        cut = winograd_blocking.plan(variant, wanted, itemsize, threads_used, width // itemsize, once=True)
        packing = 0 if cut.chunk else cut.packed * itemsize + threads * cut.gathered_bytes
        assert packing + threads_used * cut.thread_bytes <= stated, (p, itemsize, width)
        uses.add(cut.chunk > 0)
    return uses


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_the_stated_workspace_suffices_on_every_cpu(variant):
    """It is stated without asking for the length of vectors, which decides how many weights are packed."""
    uses = set()
    for k, groups, n, itemsize in product((3, 7, 15, 16, 24, 32), (1, 3), (1, 5, 40), (4, 8)):
        size, kernel = ((14, 14), variant.kernel) if variant.kernel[0] > 1 else ((14,), variant.kernel[1:])
        shapes = (n, 9 * groups, *size), (k * groups, 9, *kernel)
        p = conv_problem("conv", len(kernel), *shapes, groups=groups, padding=1, stride=variant.stride)
        hold(variant, p, itemsize, 2)
    for k, itemsize, threads in product((33, 65, 147), (4, 8), (1, 2)):
        most = winograd_blocking.ONCE_BYTES // (variant.products * itemsize * k)  # input channels around that limit
        for c in range(most * 2 // 3, most + 4, 3):
            size, kernel = ((9, 9), variant.kernel) if variant.kernel[0] > 1 else ((9,), variant.kernel[1:])
            pads = {"padding": 5, "stride": variant.stride}
            if variant.stride == 1:
                pads["dilation"] = 1 + c % 3
                if c % 2:
                    size, kernel = (5, 9, 9), (2, *variant.kernel)
            p = conv_problem("conv", len(kernel), (1, c, *size), (k, c, *kernel), **pads)
            uses |= hold(variant, p, itemsize, threads)
    assert uses == ({False, True} if variant.stride == 1 else {False})


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_weights_packed_for_a_batch_serve_pieces_of_it(variant, monkeypatch):
    """The order of U depends on channels alone, also where blocks follow the rows of an image (small L2 caches)."""
    kernel = variant.kernel if variant.kernel[0] > 1 else variant.kernel[1:]
    small = winograd_blocking.caches()._replace(l2=512 << 10)
    monkeypatch.setattr(winograd_blocking, "caches", lambda: small)
    winograd_blocking.plan.cache_clear()
    orders = set()
    for n, size in product((1, 2, 5), (14, 28, 31)):
        shapes = (n, 256, *(size,) * len(kernel)), (2560, 256, *kernel)
        p = conv_problem("conv", len(kernel), *shapes, stride=variant.stride)
        cut = winograd_blocking.plan(variant, correlation(p.geometry), 4, 2)
        orders.add((cut.u_group, cut.k_blocks, cut.width, cut.packed))
    winograd_blocking.plan.cache_clear()
    assert len(orders) == 1
