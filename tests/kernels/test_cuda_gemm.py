"""Matrix products of CUDA convolutions: every tile and way of reading, splits, packed weights, the choice of tiles."""

import mmap
from dataclasses import replace

import numpy as np
import pytest

from fastconv.kernels import reference
from fastconv.kernels.cuda import gemm, gemm_tiles, im2col, im2col_weight, module
from fastconv.kernels.cuda.gemm_tiles import LARGE, NARROW, SLIM, SMALL, TILES, Choice, choose
from fastconv.kernels.geometry import ConvGeometry
from fastconv.problem import conv_problem
from fastconv.refusals import CUDA_POSITIONS
from fastconv.registry import ROWS
from fastconv.testing import check_row, integers
from tests.cuda_emulator.driver import EmulatedError, Emulator
from tests.guard import guarded
from tests.support import EMULATORS, require_emulator

ROW = {(r.direction, r.algorithm): r for r in ROWS if r.device == "cuda" and r.algorithm in ("im2col", "pointwise")}


def geometry(n, c, k, size, kernel, **more) -> ConvGeometry:
    rank = len(size)
    fields = {"stride": (1,) * rank, "padding": ((0, 0),) * rank} | more
    return ConvGeometry(n, c, k, size, kernel, **fields)


class Recorder(Emulator):
    """Knows the instances that were launched."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.instances = set()

    def function(self, instance):
        self.instances.add(instance)
        return super().function(instance)


@pytest.fixture
def forced(monkeypatch):
    """Call it with a tile and splits: they are taken from then on."""

    def force(tile, splits=1):
        def forced_choose(rows, columns, groups, steps, multiprocessors, tiles=TILES, most_splits=128):
            one = tile if tile in tiles else tiles[0]
            return Choice(one, max(1, min(splits, most_splits, steps)), 0.0)

        for launcher in (im2col, im2col_weight):
            monkeypatch.setattr(launcher, "choose", forced_choose)
            launcher._plan.cache_clear()

    yield force
    monkeypatch.undo()
    for launcher in (im2col, im2col_weight):
        launcher._plan.cache_clear()


def hold(row, problem, emulator) -> bytes:
    """Right within the row's bounds; what the run left in its arrays."""
    arrays = []

    def empty(shape, dtype):
        arrays.append(guarded(shape, dtype))
        return arrays[-1]

    with module.use(emulator):
        check_row(row, problem, rng=np.random.default_rng(0), empty=empty)
    return b"".join(a.tobytes() for a in arrays)


# More rows and columns than any tile, channels that fill no step, more than 2 * stages + 1 steps.
EDGES = {
    "POSITIONS": ("im2col", conv_problem("conv2d", 2, (2, 29, 9, 10), (133, 29, 3, 3), padding=1)),
    "CHANNELS": (
        "im2col", conv_problem("conv2d", 2, (2, 29, 9, 10), (133, 29, 3, 3), padding=1, layout="channels_last"),
    ),
    "FEW": ("im2col", conv_problem("conv2d", 2, (2, 3, 17, 16), (70, 3, 7, 7), padding=3, stride=(2, 1))),
    "QUADS": ("pointwise", conv_problem("conv2d", 2, (3, 130, 8, 9), (133, 130, 1, 1))),
}  # fmt: skip


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize(
    ("gather", "tile"),
    [(g, t) for g in EDGES for t in (im2col.FEW_TILES if g == "FEW" else TILES)],
    ids=lambda v: v if isinstance(v, str) else f"{v.rows}x{v.columns}",
)
def test_every_tile_and_way_of_reading(gather, tile, splits, forced):
    require_emulator()
    forced(tile, splits)
    algorithm, problem = EDGES[gather]
    row = ROW["forward", algorithm]
    problem = replace(problem, device="cuda", activation="silu", residual=True)
    orders = EMULATORS if splits == 1 else EMULATORS[:1]
    emulators = [Recorder(order, eager=eager) for order, eager in orders]
    assert len({hold(row, problem, emulator) for emulator in emulators}) == 1
    assert emulators[0].instances == {gemm.PACK, im2col.kernel(gather, tile), *[gemm.ADD] * (splits > 1)}


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("tile", im2col_weight.TILES, ids=lambda t: f"{t.rows}x{t.columns}")
@pytest.mark.parametrize(
    ("layout", "channels"),
    [("channels_first", 20), ("channels_last", 20), ("channels_last", 18), ("channels_first", 3)],
)
def test_every_tile_of_weight_gradients(layout, channels, tile, splits, forced):
    require_emulator()
    forced(tile, splits)
    problem = conv_problem(
        "conv2d", 2, (2, channels, 10, 9), (132, channels, 3, 3), padding=1, layout=layout, direction="grad_weight"
    )
    orders = EMULATORS if splits == 1 else EMULATORS[:1]
    emulators = [Recorder(order, eager=eager) for order, eager in orders]
    problem = replace(problem, device="cuda")
    assert len({hold(ROW["grad_weight", "im2col"], problem, e) for e in emulators}) == 1
    gather, width = ("POSITIONS", 1) if layout == "channels_first" else ("CHANNELS", 1 if channels % 4 else 4)
    tile = im2col_weight.SMALL if layout == "channels_last" and width == 1 else tile
    assert emulators[0].instances == {im2col_weight._kernel(gather, width, tile), *[gemm.ADD] * (splits > 1)}


def test_an_int_counts_to_the_end_of_the_last_tile():
    assert max(tile.rows for tile in TILES) - 1 + CUDA_POSITIONS < 2**31
    row = next(r for r in ROWS if (r.device, r.algorithm, r.direction) == ("cuda", "im2col", "forward"))
    for positions, refused in ((CUDA_POSITIONS, False), (CUDA_POSITIONS + 1, True)):
        problem = conv_problem("conv1d", 1, (1, 4, positions), (4, 4, 3), padding=1, device="cuda")
        assert (row.refuses(problem) is not None) is refused


def test_tiles_fit_the_shared_memory_of_every_gpu():
    """Turing's 64 KiB: fewer taps a tile where a group has few channels. The emulator refuses what does not fit."""
    require_emulator()
    problem = conv_problem("conv2d", 2, (2, 1, 24, 24), (70, 1, 11, 11), padding=5, direction="grad_weight")
    emulators = [Recorder(shared_bytes_per_block=k << 10) for k in (227, 64)]
    for emulator in emulators:
        hold(ROW["grad_weight", "im2col"], replace(problem, device="cuda"), emulator)
    assert emulators[0].instances != emulators[1].instances
    for algorithm, problem in EDGES.values():
        hold(ROW["forward", algorithm], replace(problem, device="cuda"), Recorder(shared_bytes_per_block=64 << 10))


def test_a_split_that_does_not_fit_the_workspace_is_not_made(forced):
    require_emulator()
    forced(SMALL, 8)
    g = geometry(1, 64, 8, (8, 8), (3, 3))
    x, w = integers(g.input_shape, "float32", 0), integers(g.weight_shape, "float32", 1)
    expected = np.empty(g.output_shape)
    reference.forward(g, x, w, None, None, expected)
    (c,) = im2col.correlations("forward", g)
    for splits in (1, 5):
        out = np.empty(g.output_shape, np.float32)
        room = (splits * gemm_tiles.part_bytes(c.rows, c.outputs, 1) + 63) // 64 * 64
        workspace = guarded(c.packed_bytes + room, np.uint8)
        emulator = Emulator()
        with module.use(emulator):
            im2col.forward(g, x, w, None, None, out, workspace=workspace)
        np.testing.assert_array_equal(out, expected)
        assert ("add_parts" in emulator.launches) == (splits > 1)


NO_RESERVE = 0x4000  # MAP_NORESERVE of Linux, which Python does not name before 3.13


def far(shape, stride) -> np.ndarray:
    """A float32 array whose images are ``stride`` elements apart: memory is taken only where it is touched."""
    images = mmap.mmap(
        -1, ((shape[0] - 1) * stride + int(np.prod(shape[1:]))) * 4, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | NO_RESERVE
    )
    first = np.frombuffer(images, np.float32)
    return np.lib.stride_tricks.as_strided(
        first, shape, (stride * 4, *np.empty((1, *shape[1:]), np.float32).strides[1:])
    )


def test_offsets_of_64_bits():
    require_emulator()
    g = geometry(2, 18, 20, (6, 7), (3, 3))
    x, y = far(g.input_shape, 2**31 + 4), far(g.output_shape, 2**31 + 8)
    x[...], w = integers(g.input_shape, "float32", 0), integers(g.weight_shape, "float32", 1)
    expected = np.empty(g.output_shape)
    reference.forward(g, x, w, None, None, expected)
    with module.use(Emulator()):
        workspace = guarded(im2col.forward_workspace(g, 4, 1), np.uint8)
        im2col.forward(g, x, w, None, None, y, workspace=workspace)
        np.testing.assert_array_equal(y, expected)
        dw, dx = np.empty(g.weight_shape, np.float32), far(g.input_shape, 2**31 + 4)
        workspace = guarded(im2col_weight.grad_weight_workspace(g, 4, 1), np.uint8)
        im2col_weight.grad_weight(g, x, y, dw, workspace=workspace)
        expected = np.empty(g.weight_shape)
        reference.grad_weight(g, x, y, expected)
        np.testing.assert_array_equal(dw, expected)
        workspace = guarded(im2col.grad_input_workspace(g, 4, 1), np.uint8)
        y[...] = integers(g.output_shape, "float32", 2)
        im2col.grad_input(g, y, w, None, None, dx, workspace=workspace)
    expected = np.empty(g.input_shape)
    reference.grad_input(g, y, w, None, None, expected)
    np.testing.assert_array_equal(dx, expected)


def test_prepared_weights_are_all_that_is_read():
    require_emulator()
    g = geometry(2, 6, 5, (7, 9), (3, 2), stride=(2, 1), padding=((1, 1), (0, 1)))
    w = integers(g.weight_shape, "float32", 0)
    x, dy = integers(g.input_shape, "float32", 1), integers(g.output_shape, "float32", 2)
    with module.use(Emulator()):
        forward, backward = im2col.pack_forward(g, w), im2col.pack_grad_input(g, w)
        for run, given, packed, shape in (
            ("forward", x, forward, g.output_shape), ("grad_input", dy, backward, g.input_shape)
        ):  # fmt: skip
            out, expected = np.empty(shape, np.float32), np.empty(shape)
            getattr(reference, run)(g, given, w, None, None, expected)
            nothing = np.full_like(w, np.nan)
            getattr(im2col, run)(g, given, nothing, None, None, out, packed=packed, workspace=np.empty(0, np.uint8))
            np.testing.assert_array_equal(out, expected)


# ------------------------------------------------------------------------------------------------- the choice of tiles


def test_tiles_are_those_of_the_source():
    text = (module.FOLDER / "gemm.cuh").read_text()
    assert f"DEPTH = {gemm_tiles.DEPTH}, STAGES = {gemm_tiles.STAGES};" in text
    for tile in TILES:
        assert tile.threads <= 256
        assert tile.threads * tile.blocks <= 512  # 128 registers a thread
        assert tile.shared_bytes * tile.blocks <= 200 << 10


LAYERS = {  # rows, columns, steps: what must be taken on 132 multiprocessors
    "VGG 56x56, 256 to 256, batch 32": ((100352, 256, 1, 144), {LARGE}, 1),
    "ResNet 56x56, 64 to 64, batch 32": ((100352, 64, 1, 36), {NARROW}, 1),
    "32 channels": ((401408, 32, 1, 18), {SLIM}, 1),
    "ResNet 7x7, 512 to 512, batch 1": ((49, 512, 1, 288), {SMALL}, 4),
    "a 3x3 weight gradient, 64 to 64": ((576, 64, 1, 6272), {NARROW, SMALL}, 12),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_get_the_tiles_that_fit(name):
    sizes, tiles, splits = LAYERS[name]
    choice = choose(*sizes, 132)
    assert choice.tile in tiles
    assert choice.splits >= splits
    assert splits > 1 or choice.splits == 1
    work = np.prod(sizes[:3], dtype=float) * sizes[3] * gemm_tiles.DEPTH / gemm_tiles.FFMA / 132
    assert choice.cycles > work  # nothing is faster than the peak
    if sizes[0] > 1000:
        assert choice.cycles < 2 * work


def test_more_multiprocessors_never_take_longer():
    for sizes, _, _ in LAYERS.values():
        cycles = [choose(*sizes, n).cycles for n in (1, 4, 16, 64, 132, 264)]
        assert cycles == sorted(cycles, reverse=True)


def test_splits_stop_where_they_must():
    assert choose(64, 64, 1, 0, 132).splits == 1
    assert choose(64, 64, 1, 7, 132).splits == 1
    assert choose(64, 64, 1, 4096, 132, most_splits=0).splits == 1
    assert choose(64, 64, 1, 4096, 132, most_splits=5).splits <= 5
    assert choose(2**16, 2**15, 1, 4096, 10**7).splits == 1  # parts are counted in 32 bits


@pytest.mark.parametrize(
    ("row", "other", "column", "across"),
    [
        ((800, 400, 20, 1), None, 100, 1),  # channels-first
        ((800, 400, 20, 2), None, 100, 0),  # every second element of a row
        ((800, 400, 24, 1), None, 100, 0),  # rows with gaps: five fours would cross them
        ((8000, 4000, 160, 8), None, 1, 2),  # channels-last
        ((8000, 4000, 160, 8), (800, 400, 20, 1), 1, 0),  # a residual of the other layout
        ((802, 400, 20, 1), None, 100, 0),  # images that do not begin at fours
    ],
)
def test_fours_are_written_where_they_lie_side_by_side(row, other, column, across):
    sizes = (2, 1, 5, 4) if 24 in row else (2, 1, 5, 20)
    sizes = (2, 1, 5, 5) if 24 in row else sizes
    other_column = column if other is None else 100
    made = gemm.result(sizes, 8, 3, row, column, other or row, other_column, aligned=True)
    assert made["across"] == across
    assert gemm.result(sizes, 8, 3, row, column, other or row, other_column, aligned=False)["across"] == 0


# ------------------------------------------------------------------------------------------------------------ mistakes

MISTAKES = {
    "gemm.cuh": {
        "a wait too weak": ("                wait<STAGES - 2>();", "                wait<STAGES - 1>();"),
        "no barrier before the next step": ("__syncthreads();\n                const int move", "const int move"),
        "a buffer too few": ("step + STAGES - 1 < steps", "step + STAGES < steps"),
    },
    "im2col.cu": {
        "channels beyond the last": ("inside && walk.c + channel() + k < g.inputs", "inside"),
        "the last row again": ("min(row + (int)threadIdx.x, rows - 1)", "(row + (int)threadIdx.x)"),
    },
    "im2col_weight.cu": {
        "a position beyond the last": ("if (left > 0) {", "if (true) {"),
        "a half not changed": ("half = entries() - half;", ""),
    },
    "gemm_passes.cu": {"a split left out": ("split < r.splits", "split < r.splits - 1")},
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "mistake"), [(name, mistake) for name, mistakes in MISTAKES.items() for mistake in mistakes]
)
def test_planted_mistakes_are_found(name, mistake, tmp_path, forced):
    require_emulator()
    for path in module.FOLDER.glob("*.cu*"):
        (tmp_path / path.name).write_text(path.read_text())
    right, wrong = MISTAKES[name][mistake]
    text = (module.FOLDER / name).read_text()
    assert right in text
    (tmp_path / name).write_text(text.replace(right, wrong))
    forced(SMALL, 3)
    direction = "grad_weight" if "weight" in name else "forward"
    problem = replace(EDGES["POSITIONS"][1], direction=direction, device="cuda")
    left = set()
    try:
        for order, eager in EMULATORS:
            left.add(hold(ROW[direction, "im2col"], problem, Emulator(order, eager=eager, folder=tmp_path)))
    except (AssertionError, EmulatedError):
        return
    assert len(left) > 1, mistake
