"""What is special about depthwise convolution on CUDA: which kernel runs, tiles that hang over, shares of a gradient.

Kernels run on the emulator, on arrays that end at guard pages, and every result is the float64 reference's.
"""

import re
from dataclasses import replace

import numpy as np
import pytest

from fastconv.kernels import reference
from fastconv.kernels.cuda import depthwise, module, tiles
from fastconv.kernels.geometry import ConvGeometry, conv_output_size
from fastconv.problem import conv_problem
from fastconv.registry import rows_for
from fastconv.testing import check_row
from tests.cuda_emulator.driver import EmulatedError, Emulator
from tests.guard import guarded
from tests.support import EMULATORS, require_emulator


@pytest.fixture(autouse=True)
def _emulator():
    require_emulator()


def launched(problem, **changes):
    """Check the problem on the emulator, in every order of warps; the symbols of its kernels."""
    problem = replace(problem, device="cuda", **changes)
    (row,) = (r for r in rows_for("conv", problem.direction, "cuda") if r.algorithm == "depthwise")
    assert row.refuses(problem) is None
    found = set()
    for seed, (order, eager) in enumerate(EMULATORS):
        driver = Emulator(order, eager=eager)
        with module.use(driver):
            check_row(row, problem, rng=np.random.default_rng(seed), integers=seed == 0, empty=guarded)
        found.update(driver.launches)
    return found


def conv(shape, size, multiplier=1, **parameters):
    c = shape[1]
    rank = len(shape) - 2
    return conv_problem(f"conv{rank}d", rank, shape, (c * multiplier, 1, *(size,) * rank), groups=c, **parameters)


LAYOUTS = ("channels_first", "channels_last")
EPILOGUE = {"bias": True, "residual": True, "activation": "gelu"}
SHAPES = {"fours": (2, 3, 10, 16), "fours_in": (1, 2, 7, 12), "odd": (1, 5, 9, 13), "one_column": (2, 3, 8, 1)}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("stride", depthwise.STRIDES)
@pytest.mark.parametrize("size", depthwise.SIZES)
def test_tiles(size, stride, shape, layout):
    """In every layout, with rows of vectors and without, output tiles that hang over and that do not."""
    problem = conv(shape, size, stride=stride, padding=size // 2, layout=layout)
    fours = shape[3] % 4 == 0
    outputs_by_fours = problem.geometry.output_size[1] % 4 == 0
    how = "_across" if layout == "channels_last" else "_fours" if fours else ""
    assert launched(problem, **EPILOGUE) == {f"depthwise{how}"}
    assert launched(problem, direction="grad_weight") == {
        f"depthwise_grad_weight{how if outputs_by_fours else ''}", "depthwise_add_splits",
    }  # fmt: skip
    gradient = f"depthwise{how}" if stride == 1 else "depthwise_strided_grad_input"
    assert launched(problem, direction="grad_input", **EPILOGUE) == {gradient}
    launched(problem, direction="grad_input", activation="relu")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("stride", depthwise.STRIDES)
@pytest.mark.parametrize("size", depthwise.SIZES)
@pytest.mark.parametrize("padding", [0, ((2, 0), (1, 3)), ((3, 9), (8, 4))], ids=str)
def test_padding(size, stride, padding, layout):
    """None, uneven, odd and even, more than the kernel; two outputs a channel; rows that no window reaches."""
    problem = conv((1, 4, 12, 8), size, 2, stride=stride, padding=padding, layout=layout)
    for direction in ("forward", "grad_input", "grad_weight"):
        launched(problem, direction=direction)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(1, 70, 3, 5), (3, 35, 26, 28), (1, 2, 50, 90)], ids=str)
def test_more_than_a_block(shape, layout):
    """More channels than a warp, shares of a gradient, blocks that are not full."""
    problem = conv(shape, 3, padding=1, layout=layout)
    if shape[2] > 3:
        assert max(depthwise._splits(problem.geometry, 32, across=True), depthwise._splits(problem.geometry, 1)) > 1
    for direction in ("forward", "grad_input", "grad_weight"):
        launched(problem, direction=direction)
        launched(replace(problem, direction=direction, dtype="float64"))
    launched(conv(shape, 3, stride=2, padding=1, layout=layout), direction="grad_input")


ANY = {
    "dilated": conv((2, 5, 14, 15), 3, dilation=(2, 3), padding=2, stride=(1, 2)),
    "uneven_stride": conv((1, 3, 9, 10), 3, stride=(2, 1), padding=1),
    "four_by_four": conv((1, 3, 9, 10), 4, 3, stride=2, padding=1),
    "signal": conv((2, 6, 50), 9, padding=4),
    "volume": conv((1, 3, 5, 6, 7), 3, stride=(1, 2, 2), padding=1),
    "circular": conv((1, 3, 6, 7), 3, padding=3, padding_mode="circular"),
    "stride_over_kernel": conv((1, 4, 13, 13), 2, stride=5),
}


@pytest.mark.parametrize("problem", ANY.values(), ids=ANY.keys())
def test_every_other_shape(problem):
    for layout in LAYOUTS:
        for dtype in ("float32", "float64", "bfloat16"):
            assert launched(problem, layout=layout, dtype=dtype) == {"depthwise_any"}
        assert "depthwise_any_grad_weight" in launched(problem, layout=layout, direction="grad_weight")
        if problem.geometry.padding_mode == "zeros":
            assert launched(problem, layout=layout, direction="grad_input") == {"depthwise_any_grad_input"}


def test_what_is_refused():
    grouped = conv_problem("conv2d", 2, (1, 8, 9, 9), (8, 2, 3, 3), groups=4, device="cuda")
    folded = replace(ANY["circular"], direction="grad_input", device="cuda")
    for problem, words in ((grouped, "groups of one input channel"), (folded, "not circular")):
        (row,) = (r for r in rows_for("conv", problem.direction, "cuda") if r.algorithm == "depthwise")
        assert words in row.refuses(problem)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", [3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("width", [8, 11])
def test_infinities_stay_where_they_belong(width, stride, size, layout):
    """Infinite elements that no window reaches, or that tiles reach and windows do not, make no NaN."""
    g = ConvGeometry(1, 3, 3, (10, width), (size, size), (stride, stride), ((size // 2, 0), (size // 2, 1)), groups=3)
    rng = np.random.default_rng(0)
    x, dy = rng.integers(-3, 4, g.input_shape).astype(float), rng.integers(-3, 4, g.output_shape).astype(float)
    w = rng.integers(-3, 4, g.weight_shape).astype(float)
    x[0, 0, -1, -1], x[0, 1, 4, 0], dy[0, 2, -1, 1], dy[0, 2, 0, -1] = np.inf, -np.inf, np.inf, np.nan

    def laid(a):
        return np.moveaxis(np.moveaxis(a.astype(np.float32), 1, -1).copy(), -1, 1) if layout != "channels_first" else (
            a.astype(np.float32)
        )  # fmt: skip

    y, dx, dw = (np.empty(shape) for shape in (g.output_shape, g.input_shape, g.weight_shape))
    with np.errstate(invalid="ignore"):
        reference.forward(g, x, w, None, None, y)
        reference.grad_input(g, dy, w, None, None, dx)
        reference.grad_weight(g, x, dy, dw)
        got = [laid(np.zeros(g.output_shape)), laid(np.zeros(g.input_shape)), np.zeros(g.weight_shape, np.float32)]
        workspace = np.empty(depthwise.grad_weight_workspace(g, 4, 1), np.uint8)
        with module.use(Emulator("reverse")):
            depthwise.forward(g, laid(x), w.astype(np.float32), None, None, got[0])
            depthwise.grad_input(g, laid(dy), w.astype(np.float32), None, None, got[1])
            depthwise.grad_weight(g, laid(x), laid(dy), got[2], workspace=workspace)
    for result, expected in zip(got, (y, dx, dw), strict=True):
        np.testing.assert_array_equal(result, expected)


def strange(shape, fill):
    """Arrays that lie strangely: reversed, every second one, transposed, beside their alignment."""
    n, c, h, w = shape
    yield fill((n, c, h, w), np.float32)[:, :, ::-1, ::-1]
    yield fill((n, c, 2 * h, 3 * w), np.float32)[:, :, ::2, 1::3]
    yield fill((c, w, n, h), np.float32).transpose(2, 0, 3, 1)
    raw = np.frombuffer(bytearray(n * c * h * w * 4 + 1), np.uint8)[1:]
    yield raw.view(np.float32).reshape(shape)
    yield fill((n, c, h, w + 1), np.float32)[..., 1:]


@pytest.mark.parametrize("stride", [1, 2])
def test_any_strides(stride):
    shape, weights = (2, 4, 8, 8), (4, 1, 3, 3)
    g = conv(shape, 3, stride=stride, padding=1).geometry
    rng = np.random.default_rng(0)
    data, factors, gradient = (rng.integers(-4, 5, s) for s in (shape, weights, g.output_shape))
    y, dx, dw = np.empty(g.output_shape), np.empty(shape), np.empty(weights)
    reference.forward(g, data, factors, None, data[:, :, ::stride, ::stride], y)
    reference.grad_input(g, gradient, factors, None, None, dx)
    reference.grad_weight(g, data, gradient, dw)
    arrays = (
        strange(shape, np.zeros), strange(weights, np.zeros), strange(g.output_shape, np.zeros),
        strange(shape, np.zeros), strange(g.output_shape, np.zeros), strange(weights, np.zeros),
    )  # fmt: skip
    workspace = np.empty(depthwise.grad_weight_workspace(g, 4, 1), np.uint8)
    with module.use(Emulator("shuffled")):
        for x, w, out, given, dy, weight in zip(*arrays, strict=True):
            x[...], w[...], dy[...] = data, factors, gradient
            depthwise.forward(g, x, w, None, x[:, :, ::stride, ::stride], out)
            np.testing.assert_array_equal(out, y)
            depthwise.grad_input(g, dy, w, None, None, given)
            np.testing.assert_array_equal(given, dx)
            depthwise.grad_weight(g, x, dy, weight, workspace=workspace)
            np.testing.assert_array_equal(weight, dw)


@pytest.fixture
def fresh_plans():
    """No plan of an earlier test, and none of this one for later ones."""
    for plan in (depthwise._correlation_plan, depthwise._weight_plan):
        plan.cache_clear()
    yield
    for plan in (depthwise._correlation_plan, depthwise._weight_plan):
        plan.cache_clear()


@pytest.mark.usefixtures("fresh_plans")
def test_blocks_that_take_several_items(monkeypatch):
    """Grids end at 2^31 - 1 blocks; here at 2."""
    monkeypatch.setattr(tiles, "MAX_GRID", 2)
    for problem in (ANY["volume"], *(conv((2, 70, 12, 12), 3, stride=s, padding=1) for s in (1, 2))):
        for layout in LAYOUTS:
            for direction in ("forward", "grad_input", "grad_weight"):
                launched(problem, layout=layout, direction=direction)


@pytest.mark.usefixtures("fresh_plans")
def test_wide_offsets(monkeypatch):
    """Offsets of 64 bits, which only arrays of gigabytes need, give the same."""
    monkeypatch.setattr(depthwise, "index_type", lambda *extents: "long long")
    for problem in (ANY["volume"], conv((2, 3, 8, 8), 3, 2, padding=1)):
        for direction in ("forward", "grad_input", "grad_weight"):
            assert all("any" in s or "add" in s for s in launched(problem, direction=direction))


def test_the_turned_convolution_is_the_gradient():
    for size, before, after in ((3, 1, 1), (5, 0, 4), (7, 6, 9), (3, 5, 0)):
        g = ConvGeometry(1, 2, 4, (11, 12), (size, size), (1, 1), ((before, after), (after, before)), groups=2)
        t = depthwise.turned(g)
        assert conv_output_size(t.input_size, t.kernel_size, t.stride, t.padding, t.dilation) == g.input_size
        assert (t.in_channels, t.out_channels, t.groups) == (4, 2, 2)


def test_constants_are_those_of_the_sources():
    read = {path.name: path.read_text() for path in module.FOLDER.glob("depthwise*")}
    assert int(re.search(r"THREADS = (\d+)", read["depthwise.cuh"])[1]) == depthwise.THREADS
    found = re.search(r"THREADS = (\d+), CHUNK = (\d+)", read["depthwise_any.cu"]).groups()
    assert tuple(map(int, found)) == (depthwise.ANY_THREADS, depthwise.CHUNK)
    assert f"GRADIENT_ROWS = {depthwise.GRADIENT_ROWS}" in read["depthwise_strided.cu"]
    rows = re.search(
        r"ROWS = S == 1 \? (\d) : (\d), TALL_ROWS = S == 2 \|\| K == 3 \? (\d) : (\d)", read["depthwise.cu"]
    )
    wide_1, wide_2, tall, taller = map(int, rows.groups())
    for size in depthwise.SIZES:
        for stride in depthwise.STRIDES:
            assert depthwise._rows((size, stride), 4) == (wide_1 if stride == 1 else wide_2)
            assert depthwise._rows((size, stride), 1) == (tall if stride == 2 or size == 3 else taller)


@pytest.mark.usefixtures("fresh_plans")
def test_a_wrong_tile_is_found(monkeypatch):
    """Tiles thought larger than they are: NaN stays in the output."""
    real = depthwise._rows
    monkeypatch.setattr(depthwise, "_rows", lambda window, columns: real(window, columns) + 1)
    with pytest.raises((AssertionError, EmulatedError)):
        launched(conv((1, 2, 24, 8), 3, padding=1))
