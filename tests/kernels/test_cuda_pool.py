"""What is special about pooling on CUDA: which kernel runs, vectors at the edges, windows shared by threads, indices.

Kernels run on the emulator, on arrays that end at guard pages, and every result is the float64 reference's.
"""

import re
from dataclasses import replace

import numpy as np
import pytest

from fastconv.kernels import reference
from fastconv.kernels.cuda import module, pool, tiles
from fastconv.kernels.cuda.module import Instance
from fastconv.kernels.geometry import PoolGeometry
from fastconv.problem import adaptive_pool_problem, pool_problem, unpool_problem
from fastconv.registry import rows_for
from fastconv.testing import check_row
from tests.cuda_emulator.driver import HEADERS, EmulatedError, Emulator
from tests.guard import guarded
from tests.support import EMULATORS, require_emulator


@pytest.fixture(autouse=True)
def _emulator():
    require_emulator()


def launched(problem, **changes):
    """Check the problem on the emulator, in every order of warps; the symbols of its kernels."""
    problem = replace(problem, device="cuda", **changes)
    (row,) = rows_for(problem.op, problem.direction, "cuda")
    assert row.refuses(problem) is None
    found = set()
    for seed, (order, eager) in enumerate(EMULATORS):
        driver = Emulator(order, eager=eager)
        with module.use(driver):
            check_row(row, problem, rng=np.random.default_rng(seed), integers=seed == 0, empty=guarded)
        found.update(driver.launches)
    return found


LAYOUTS = ("channels_first", "channels_last")
FIXED_SHAPES = {
    "fours_in_and_out": (2, 3, 9, 16),
    "fours_in": (1, 2, 6, 12),
    "odd": (2, 3, 7, 13),
    "narrow": (1, 5, 5, 2),
    "one_column": (1, 3, 11, 1),
    "one_row": (1, 2, 1, 8),
    "more_than_a_block": (2, 9, 34, 20),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("window", "shape"),
    [
        pytest.param((size, stride, padding), shape, id=f"k{size}s{stride}p{padding}-{name}")
        for size, stride, padding in pool.FIXED
        for name, shape in FIXED_SHAPES.items()
        if min(shape[2:]) + 2 * padding >= size
    ],
)
def test_fixed_windows(window, shape, layout):
    size, stride, padding = window
    fours = "_fours" if layout == "channels_first" and shape[3] % 4 == 0 else ""
    for more in ({}, {"ceil_mode": True, "padding": ((padding, size - 1),) * 2}):
        arguments = {"stride": stride, "padding": padding} | more
        for op, name in (("max_pool", "largest"), ("min_pool", "largest"), ("avg_pool", "average")):
            problem = pool_problem("pool", 2, op, shape, size, layout=layout, **arguments)
            assert launched(problem) == {f"pool_fixed_{name}{fours}"}
            if op != "avg_pool":
                assert launched(problem, indices=True) == {f"pool_fixed_extreme{fours}"}
            name = "average" if op == "avg_pool" else "pick"
            assert launched(problem, direction="grad_input", indices=op == "max_pool") <= {
                f"pool_fixed_{name}_gradient", "pool_spread",
            }  # fmt: skip
        apart = pool_problem("pool", 2, "avg_pool", shape, size, layout=layout, count_include_pad=False, **arguments)
        assert launched(apart) == {f"pool_fixed_average{fours}"}
        launched(apart, direction="grad_input")
    override = pool_problem("pool", 2, "avg_pool", shape, size, stride=stride, padding=padding, divisor_override=-5)
    launched(override)
    launched(override, direction="grad_input")


@pytest.mark.parametrize(
    ("shape", "layout", "lanes"),
    [
        ((2, 5, 7, 7), "channels_first", 8),
        ((3, 67, 6, 7), "channels_last", 8),
        ((2, 3, 17, 19), "channels_first", 32),
        ((2, 40, 33, 32), "channels_last", 32),
        ((2, 2, 64, 65), "channels_first", 256),
    ],
)
def test_planes_shared_by_threads(shape, layout, lanes, monkeypatch):
    seen = []
    plan = pool._forward_plan
    monkeypatch.setattr(pool, "_forward_plan", lambda *how: seen.append(plan(*how)) or seen[-1])
    for op, name in (("max_pool", "extreme"), ("min_pool", "extreme"), ("avg_pool", "average"), ("lp_pool", "norm")):
        problem = pool_problem("pool", 2, op, shape, shape[2:], layout=layout)
        assert launched(problem, indices=op == "max_pool") == {f"pool_{name}_split"}
    if max(shape[2:]) < 20:  # windows that are no whole planes
        wide = pool_problem("pool", 2, "max_pool", shape, (6, 6), stride=1, padding=2, layout=layout, indices=True)
        assert launched(wide) == {"pool_extreme_split"}
        adaptive = adaptive_pool_problem("pool", 2, "avg_pool", (*shape[:2], 13, 14), 2, layout=layout)
        assert launched(adaptive) == {"pool_average_split"}
    assert lanes in {int(planned.after[-1]) for planned in seen}


@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 7, 7), (3, 4, 6, 6), (1, 1, 1, 1), (1, 3, 5, 1, 9), (2, 8, 300)], ids=str)
def test_averages_of_planes_are_spread_out(shape, layout, dtype):
    rank = len(shape) - 2
    problem = adaptive_pool_problem("pool", rank, "avg_pool", shape, 1, direction="grad_input", layout=layout)
    assert launched(problem, dtype=dtype) == {"pool_spread"}
    padded = pool_problem(
        "pool", rank, "avg_pool", shape, [n + 2 for n in shape[2:]], padding=1,
        direction="grad_input", layout=layout,
    )  # fmt: skip
    assert launched(padded, dtype=dtype) == {"pool_spread"}


GENERAL = [
    pool_problem("pool", 1, "max_pool", (2, 3, 40), 5, stride=2, padding=2, indices=True),
    pool_problem("pool", 2, "max_pool", (2, 3, 13, 11), (3, 2), dilation=(2, 3), padding=(2, 1), indices=True),
    pool_problem("pool", 2, "avg_pool", (2, 3, 13, 11), (3, 5), stride=(1, 3), padding=(1, 2), count_include_pad=False),
    pool_problem("pool", 2, "lp_pool", (2, 3, 9, 9), 3, stride=2, norm_type=3),
    pool_problem("pool", 2, "lp_pool", (2, 3, 9, 9), 3, stride=2, norm_type=1.0),
    pool_problem("pool", 2, "lp_pool", (2, 3, 9, 9), 2, stride=1, norm_type=1.5),
    pool_problem("pool", 3, "max_pool", (1, 2, 5, 6, 7), 3, stride=2, padding=1, ceil_mode=True, indices=True),
    pool_problem("pool", 3, "avg_pool", (1, 2, 5, 6, 7), (1, 3, 3), stride=1, padding=(0, 1, 1)),
    adaptive_pool_problem("pool", 2, "max_pool", (2, 3, 11, 9), (4, 5), indices=True),
    adaptive_pool_problem("pool", 3, "avg_pool", (1, 2, 7, 5, 6), (3, 2, 6)),
    adaptive_pool_problem("pool", 2, "avg_pool", (1, 2, 3, 5), (7, 6)),  # more outputs than inputs
]


@pytest.mark.parametrize("problem", GENERAL, ids=str)
def test_other_windows(problem):
    for layout in LAYOUTS:
        for direction in ("forward", "grad_input"):
            symbols = launched(problem, layout=layout, direction=direction)
            assert not any("fixed" in s or "split" in s for s in symbols)
        launched(problem, layout=layout, dtype="float64")


@pytest.mark.parametrize("symbols", [("max", "max_pool"), ("min", "min_pool")], ids=lambda s: s[0])
@pytest.mark.parametrize("size", [(9, 12), (9, 13), (40, 41)], ids=str)
@pytest.mark.parametrize("window", [(2, 2, 0), (3, 1, 1), (3, 2, 1), (4, 3, 1), None], ids=str)
def test_the_first_of_equals_and_nan(symbols, size, window):
    """Ties, NaN, both infinities and both zeros, in every kind of kernel; windows of nothing but the fill value too."""
    stem, op = symbols
    rng = np.random.default_rng(0)
    x = rng.choice(np.float32([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, 2.0]), (2, 3, *size), p=[0.05, *[0.19] * 5, 0])
    x[0, 0] = -np.inf
    x[1, 0] = np.inf
    x[1, 1, 2, 3] = np.nan
    if window is None:
        problem = pool_problem("pool", 2, op, x.shape, size)
    else:
        problem = pool_problem("pool", 2, op, x.shape, window[0], stride=window[1], padding=window[2])
    shape = problem.geometry.output_shape
    expected, where = np.empty(shape), np.empty(shape, np.int64)
    getattr(reference, f"{stem}_forward")(problem.geometry, x, where, expected)
    for kind in (np.int32, np.int64, None):
        for order, eager in EMULATORS:
            y, indices = guarded(shape, np.float32), None if kind is None else guarded(shape, kind)
            with module.use(Emulator(order, eager=eager)):
                getattr(pool, f"{stem}_forward")(problem.geometry, x, indices, y)
            np.testing.assert_array_equal(y, expected)
            if indices is not None:
                np.testing.assert_array_equal(indices, where)


@pytest.mark.parametrize("window", [(2, 2, 0), (3, 1, 1), (4, 3, 1), (8, 8, 0)], ids=str)
def test_averages_of_what_is_not_finite(window):
    rng = np.random.default_rng(0)
    x = rng.choice(np.float32([np.nan, np.inf, -np.inf, 1.0, 1e37]), (2, 3, 8, 16), p=[0.02, 0.05, 0.05, 0.86, 0.02])
    problem = pool_problem("pool", 2, "avg_pool", x.shape, window[0], stride=window[1], padding=window[2])
    y, expected = guarded(problem.geometry.output_shape, np.float32), np.empty(problem.geometry.output_shape)
    reference.avg_forward(problem.geometry, x, expected)
    with module.use(Emulator()):
        pool.avg_forward(problem.geometry, x, y)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_windows_without_an_element():
    """A dilated window whose every tap is padding."""
    g = PoolGeometry(1, 2, (1,), (1,), (2,), (1,), ((1, 1),), (2,))
    x, y, indices = np.ones((1, 2, 1), np.float32), np.empty((1, 2, 1), np.float32), np.zeros((1, 2, 1), np.int64)
    with module.use(Emulator()):
        pool.max_forward(g, x, indices, y)
        assert (y == -np.inf).all()
        assert (indices == -1).all()
        pool.min_forward(g, x, indices, y)
        assert (y == np.inf).all()
        pool.avg_forward(g, x, y)
        assert (y == 0).all()
        pool.max_grad_input(g, np.ones_like(y), indices, y)
        assert (y == 0).all()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(2, 3, 11), (1, 11, 60, 56), (1, 2, 3, 4, 5)], ids=str)
def test_unpooling(shape, layout):
    """Repeated indices, indices nowhere, planes of several pieces."""
    rank = len(shape) - 2
    problem = unpool_problem("unpool", rank, shape, 2, layout=layout)
    if rank == 2:
        plane = np.prod(problem.geometry.input_size)
        assert plane > pool.PIECE / (8 if layout == "channels_last" else 1)
    assert launched(problem) == {"unpool_forward"}
    assert launched(problem, direction="grad_input") == {"unpool_gradient"}
    launched(replace(problem, indices=False))  # int32


def test_unpooling_skips_what_is_outside():
    g = PoolGeometry(1, 1, (4,), (5,))
    x = np.arange(1, 6, dtype=np.float32).reshape(1, 1, 5)
    indices = np.array([[[3, -1, 4, 2**40, 3]]])
    y, dx = np.empty((1, 1, 4), np.float32), np.empty((1, 1, 5), np.float32)
    with module.use(Emulator()):
        pool.unpool_forward(g, x, indices, y)
        assert y.tolist() == [[[0, 0, 0, 5]]]
        pool.unpool_grad_input(g, y, indices, dx)
        assert dx.tolist() == [[[5, 0, 0, 0, 5]]]


STRIDED = [
    pool_problem("pool", 2, "max_pool", (2, 4, 8, 8), 2),
    pool_problem("pool", 2, "max_pool", (2, 4, 8, 8), 3, stride=1, padding=1),
    pool_problem("pool", 2, "max_pool", (2, 4, 8, 8), (2, 3)),
    pool_problem("pool", 2, "max_pool", (2, 4, 8, 8), 8),
]


def views(shape, dtype, fill):
    """Arrays of a shape that lie strangely: reversed, every second one, transposed, beside their alignment."""
    n, c, h, w = shape
    yield fill((n, c, h, w), dtype)[:, :, ::-1, ::-1]
    yield fill((n, c, 2 * h, 3 * w), dtype)[:, :, ::2, 1::3]
    yield fill((c, w, n, h), dtype).transpose(2, 0, 3, 1)
    raw = np.frombuffer(bytearray(n * c * h * w * np.dtype(dtype).itemsize + 1), np.uint8)[1:]
    yield raw.view(dtype).reshape(shape)
    yield fill((n, c, h, w + 1), dtype)[..., 1:]


@pytest.mark.parametrize("problem", STRIDED, ids=str)
def test_any_strides(problem):
    g = problem.geometry
    rng = np.random.default_rng(0)
    data, dy = rng.integers(-9, 9, g.input_shape), rng.integers(-9, 9, g.output_shape)
    best, where, dx = np.empty(g.output_shape), np.empty(g.output_shape, np.int64), np.empty(g.input_shape)
    mean = np.empty(g.output_shape)
    reference.max_forward(g, data, where, best)
    reference.avg_forward(g, data, mean)
    reference.max_grad_input(g, dy, where, dx)
    with module.use(Emulator("reverse")):
        arrays = (
            views(g.input_shape, np.float32, np.zeros), views(g.output_shape, np.float32, np.zeros),
            views(g.output_shape, np.int64, np.zeros), views(g.input_shape, np.float32, np.zeros),
        )  # fmt: skip
        for x, y, indices, gradient in zip(*arrays, strict=True):
            x[...] = data
            pool.max_forward(g, x, indices, y)
            np.testing.assert_array_equal(y, best)
            np.testing.assert_array_equal(indices, where)
            pool.avg_forward(g, x, y)
            np.testing.assert_allclose(y, mean, rtol=1e-6, atol=1e-6)
            y[...] = dy
            pool.max_grad_input(g, y, indices, gradient)
            np.testing.assert_array_equal(gradient, dx)
            pool.unpool_forward(g, y, indices, gradient)
            expected = np.empty(g.input_shape)
            reference.unpool_forward(g, dy, where, expected)
            np.testing.assert_array_equal(gradient, expected)


@pytest.fixture
def fresh_plans():
    """No plan of an earlier test, and none of this one for later ones."""
    for plan in (pool._forward_plan, pool._gradient_plan, pool._unpool_plan, pool._unpool_gradient_plan):
        plan.cache_clear()
    yield
    for plan in (pool._forward_plan, pool._gradient_plan, pool._unpool_plan, pool._unpool_gradient_plan):
        plan.cache_clear()


@pytest.mark.usefixtures("fresh_plans")
def test_blocks_that_take_several_items(monkeypatch):
    """Grids end at 2^31 - 1 blocks; here at 2."""
    monkeypatch.setattr(tiles, "MAX_GRID", 2)
    shared = pool_problem("pool", 2, "max_pool", (3, 40, 7, 7), 7, indices=True)  # by threads, 32 windows a block
    unpooled = unpool_problem("unpool", 2, (2, 9, 60, 56), 2)
    for problem in (STRIDED[1], STRIDED[3], GENERAL[1], GENERAL[4], shared, unpooled):
        for layout in LAYOUTS:
            for direction in ("forward", "grad_input"):
                launched(problem, layout=layout, direction=direction)


@pytest.mark.usefixtures("fresh_plans")
def test_wide_offsets(monkeypatch):
    """Offsets of 64 bits, which only arrays of gigabytes need, give the same."""
    monkeypatch.setattr(pool, "index_type", lambda *extents: "long long")
    for problem in (STRIDED[1], STRIDED[3], GENERAL[4], GENERAL[8], unpool_problem("unpool", 2, (2, 3, 5, 4), 2)):
        for layout in LAYOUTS:
            launched(problem, layout=layout)
            launched(problem, layout=layout, direction="grad_input")


# ----------------------------------------------------------------------------------------------- what is declared twice


def probe(symbol, *arguments, grid=1, threads=1):
    """Launch a kernel of layouts.cu; arrays by address."""
    driver = Emulator(folder=HEADERS)
    defines = (("ELEMENT", "float"), ("INDEX", "int"))
    values = [
        np.uint64(driver.address(a)) if isinstance(a, np.ndarray) and a.dtype.names is None else a for a in arguments
    ]
    driver.function(Instance("layouts", symbol, defines, threads=128))((grid, 1, 1), (threads, 1, 1), values, 0)


@pytest.mark.parametrize(("symbol", "dtype"), [("tiles_layout", tiles.TILES), ("pool_layout", pool.POOL)])
def test_structs_are_declared_alike_in_python_and_in_c(symbol, dtype):
    got = np.zeros(64, np.int32)
    probe(symbol, np.zeros(1, dtype), got)
    fields = [(offset, field.itemsize) for field, offset in (dtype.fields[name][:2] for name in dtype.names)]
    assert got[: 1 + 2 * len(fields)].tolist() == [dtype.itemsize, *np.ravel(fields)]


def test_divisions_by_multiplication():
    n = np.concatenate([2**31 - 1 - np.arange(70), np.arange(300), 7919 * np.arange(100_000)]).astype(np.int32)
    for d in (1, 2, 3, 5, 7, 56, 64, 641, 65_535, 65_537, 2**30, 2**30 + 1, 2**31 - 1):
        out = np.empty_like(n)
        by = np.array([tiles.divisor(d)], tiles.DIVISOR)
        probe("quotients", n, by, out, np.int32(n.size), grid=-(-n.size // 128), threads=128)
        np.testing.assert_array_equal(out, n // d)


def test_constants_are_those_of_the_sources():
    text = {stem: (module.FOLDER / f"{stem}.cu").read_text() for stem in ("pool", "pool_fixed", "unpool")}
    for stem, name in (("pool", "THREADS"), ("pool_fixed", "THREADS"), ("unpool", "THREADS"), ("unpool", "PIECE")):
        assert int(re.search(rf"\b{name} = (\d+)", text[stem])[1]) == getattr(pool, name), (stem, name)
    assert "ROWS = S == 1 ? 4 : 2, GRADIENT_ROWS = 4;" in text["pool_fixed"]
    assert pool.GRADIENT_ROWS == 4


@pytest.mark.usefixtures("fresh_plans")
def test_a_wrong_tile_is_found(monkeypatch):
    """A plan that leaves out the last row of tiles: NaN stays in the output."""
    real = tiles.tiles

    def short(batch, channels, size, tile, last):
        return real(batch, channels, (size[0], size[1] - tile[0], size[2]), tile, last)

    monkeypatch.setattr(pool, "tiles", short)
    with pytest.raises((AssertionError, EmulatedError)):
        launched(pool_problem("pool", 2, "max_pool", (1, 2, 16, 16), 2))
