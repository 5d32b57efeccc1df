"""Winograd on CUDA: chunks of tiles, tiles of the products, aligned rows, wide offsets, cropped gradients, mistakes."""

from dataclasses import replace

import numpy as np
import pytest

from fastconv.kernels.cuda import launch, module, winograd, winograd_fused, winograd_weights
from fastconv.kernels.cuda.gemm_tiles import LARGE, NARROW
from fastconv.kernels.cuda.module import Instance
from fastconv.kernels.geometry import ConvGeometry
from fastconv.problem import ConvProblem, conv_problem
from fastconv.registry import ROWS, Row
from fastconv.testing import check_row
from tests.cuda_emulator.driver import EmulatedError, Emulator
from tests.guard import guarded
from tests.support import EMULATORS, require_emulator

ROW = {(r.direction, r.algorithm): r for r in ROWS if r.device == "cuda" and r.family == "winograd"}
F4X4 = [row for row in ROW.values() if row.algorithm == "winograd_f4x4_3x3"]
every_row = pytest.mark.parametrize("row", ROW.values(), ids=lambda r: r.name)


@pytest.fixture(autouse=True)
def _emulator():
    require_emulator()


def forget_tiles() -> None:
    winograd.chunks.cache_clear()
    winograd._plan.cache_clear()


def problem(row: Row, n: int, c: int, k: int, size: tuple[int, int], **more) -> ConvProblem:
    fields = {"padding": 1, "device": "cuda", "direction": row.direction} | more
    residual = fields.pop("residual", False)
    if row.direction == "grad_input":  # k are summed
        c, k = k, c
    return replace(conv_problem("conv2d", 2, (n, c, *size), (k, c, 3, 3), **fields), residual=residual)


def hold(row: Row, p: ConvProblem, emulator: Emulator, *, kept: int = -1) -> bytes:
    """Right within the row's bounds; the bytes of all arrays that the run was given, or of the output."""
    arrays = []

    def empty(shape, dtype):
        arrays.append(guarded(shape, dtype))
        return arrays[-1]

    with module.use(emulator):
        check_row(row, p, rng=np.random.default_rng(0), empty=empty)
    if kept < 0:
        return b"".join(a.tobytes() for a in arrays)
    return arrays[kept].tobytes()


OUT = 3  # of the arrays that check_row makes with a residual: image, weights, residual, output


# ------------------------------------------------------------------------------------------------------------- chunks


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("row", F4X4, ids=lambda r: r.name)
def test_a_result_does_not_depend_on_its_chunks(row, layout, monkeypatch):
    p = problem(row, 2, 5, 7, (45, 50), layout=layout, residual=True)
    emulator = Emulator()
    whole = hold(row, p, emulator, kept=OUT)
    assert emulator.launches.count("winograd_products") == 2  # packed or not
    monkeypatch.setattr(winograd, "MAX_BYTES", 1)
    emulator = Emulator()
    assert hold(row, p, emulator, kept=OUT) == whole
    assert emulator.launches.count("winograd_products") == 2 * 3


def test_a_chunk_fits_the_workspace_it_is_given():
    """Which may have been measured for another device."""
    row = ROW["forward", "winograd_f4x4_3x3"]
    g = problem(row, 2, 5, 7, (45, 50)).geometry
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(np.float32) for shape in (g.input_shape, g.weight_shape))
    results = []
    least = winograd.PACKING.nbytes(g) + winograd.chunk_bytes(g)
    for nbytes in (least, least + winograd.chunk_bytes(g) - 64, winograd.forward_workspace(g, 4, 1)):
        out, workspace = guarded(g.output_shape, np.float32), guarded(nbytes, np.uint8)
        with module.use(Emulator()):
            winograd.forward(g, x, w, None, None, out, workspace=workspace)
        results.append(out.tobytes())
    assert len(set(results)) == 1


def layer(n: int, channels: int, size: int) -> ConvGeometry:
    return ConvGeometry(n, channels, channels, (size, size), (3, 3), (1, 1), ((1, 1), (1, 1)))


def test_the_choice_of_chunks():
    for n in (1, 32, 128):
        for channels, size in ((64, 56), (128, 28), (256, 14), (512, 7), (64, 224)):
            g = layer(n, channels, size)
            tiles = winograd.tile_count(g, 4)
            cut = winograd.chunks(g, *winograd.H200, winograd.MAX_BYTES)
            assert cut.tiles % winograd.TILES == 0
            assert cut.tiles < tiles + winograd.TILES
            assert cut.tiles // winograd.TILES * winograd.chunk_bytes(g) <= winograd.MAX_BYTES
    assert winograd.chunks(layer(32, 256, 56), 50 << 20, 132, winograd.MAX_BYTES).tile == LARGE
    assert winograd.chunks(layer(1, 512, 7), 50 << 20, 132, winograd.MAX_BYTES).tile == NARROW  # more blocks
    small = winograd.chunks(layer(128, 64, 56), 50 << 20, 132, 24 << 20)
    assert small.tiles * winograd.chunk_bytes(layer(1, 64, 56)) <= 128 * (24 << 20)


def test_cycles_grow_with_the_work():
    for cycles in (
        lambda g: winograd_fused.cycles(g, 132),
        lambda g: winograd.chunks(g, *winograd.H200, winograd.MAX_BYTES).cycles,
    ):
        assert cycles(layer(1, 64, 56)) < cycles(layer(32, 64, 56)) < cycles(layer(32, 128, 56))


# ------------------------------------------------------------------------------------------------- tiles, steps, rows


@pytest.mark.parametrize("tile", [LARGE, NARROW], ids=["large", "narrow"])
@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
def test_both_tiles_of_the_products(layout, tile, monkeypatch):
    """More than 2 * stages + 1 steps, the last one partly filled, and a block of columns beyond the first."""
    monkeypatch.setattr(winograd, "PRODUCT_TILES", (tile,))
    forget_tiles()
    row = ROW["forward", "winograd_f4x4_3x3"]
    p = problem(row, 1, 117, 130, (9, 6), layout=layout)
    assert len({hold(row, p, Emulator(order, eager=eager)) for order, eager in EMULATORS}) == 1
    forget_tiles()


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("channels", [3, 16, 45])
def test_steps_of_the_fused_kernel(channels, layout):
    """One, two and six steps of two buffers; three blocks of output channels, two of tiles; the last ones in part."""
    row = ROW["forward", "winograd_f2x2_3x3"]
    p = problem(row, 1, channels, 131, (9, 20), layout=layout, residual=True)
    assert len({hold(row, p, Emulator(order, eager=eager)) for order, eager in EMULATORS}) == 1


@every_row
@pytest.mark.parametrize("width", [8, 9, 10, 12])
@pytest.mark.parametrize("padding", [0, 1, 2, ((1, 1), (2, 0))])
def test_rows_of_every_alignment(row, width, padding):
    p = problem(row, 2, 3, 5, (7, width), padding=padding, residual=True, activation="relu")
    hold(row, p, Emulator())
    g = p.geometry
    shape = g.output_shape if row.direction == "forward" else g.input_shape
    strides = np.empty(shape, np.float32).strides
    known = winograd_weights.layout(row.direction, g, strides, strides, strides, None)
    assert known.output_vector == next(n for n in (4, 2, 1) if shape[-1] % n == 0)


def test_vectors():
    vector, aligned = winograd_weights.vector, winograd_weights.aligned_vector
    assert [vector((64, 32, 4 * n, 4)) for n in (4, 6, 7, 8)] == [4, 2, 1, 4]
    assert vector((64, 32, 16, 8)) == 1
    assert vector((64, 32, 16, -4)) == 1
    assert [aligned(4, 64, 0), aligned(4, 64, 72), aligned(4, 68), aligned(2, 64), aligned(1, 64)] == [4, 2, 1, 2, 1]


@every_row
def test_addresses_that_are_less_aligned_than_strides(row):
    g = problem(row, 1, 4, 6, (8, 8)).geometry
    forward = row.direction == "forward"
    given, made = (g.input_shape, g.output_shape) if forward else (g.output_shape, g.input_shape)
    rng = np.random.default_rng(0)
    x, w, residual = (rng.standard_normal(s).astype(np.float32) for s in (given, g.weight_shape, made))
    launcher = winograd if row.algorithm == "winograd_f4x4_3x3" else winograd_fused
    compute = getattr(launcher, row.direction)
    nbytes = getattr(launcher, f"{row.direction}_workspace")(g, 4, 1)

    def moved(array, by):
        view = np.full(array.size + by, np.nan, np.float32)[by:].reshape(array.shape)
        view[...] = array
        return view

    results = []
    for a, b, c in ((0, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 1), (3, 2, 2)):
        out = moved(np.full(made, np.nan, np.float32), c)
        with module.use(Emulator()):
            compute(g, moved(x, a), w, None, moved(residual, b), out, workspace=guarded(nbytes, np.uint8))
        results.append(out.tobytes())
    assert len(set(results)) == 1


@every_row
@pytest.mark.parametrize("padding", [3, ((4, 0), (5, 3))])
def test_padding_wider_than_the_kernel(row, padding):
    """An input gradient then reads only a part of dy."""
    hold(row, problem(row, 1, 3, 4, (6, 5), padding=padding), Emulator())


@every_row
def test_offsets_of_64_bits(row, monkeypatch):
    monkeypatch.setattr(winograd_weights, "index_type", lambda *extents: "long long")
    winograd_weights.layout.cache_clear()
    for layout in ("channels_first", "channels_last"):
        for mode in ("zeros", "circular") if row.direction == "forward" else ("zeros",):
            p = problem(row, 2, 18, 20, (9, 12), layout=layout, residual=True, padding_mode=mode)
            hold(row, p, Emulator("reverse"))
    winograd_weights.layout.cache_clear()


def test_what_is_refused():
    row = ROW["grad_input", "winograd_f4x4_3x3"]
    assert "folds no padded gradient" in row.refuses(problem(row, 1, 4, 4, (9, 9), padding_mode="reflect"))
    assert "float64" in row.refuses(problem(row, 1, 4, 4, (9, 9), dtype="float64"))


# ------------------------------------------------------------------------------------------------------------- device


def test_the_launchers_know_the_sizes_of_the_kernels():
    text = {stem: module.source(stem) for stem in ("winograd", "winograd_fused")}
    sizes = f"TILES = {winograd.TILES}, CHANNELS = {winograd.CHANNELS};"
    assert sizes in text["winograd"]
    sizes = f"TURNED_TILES = {winograd.TURNED_TILES}, TURNED_CHANNELS = {winograd.TURNED_CHANNELS};"
    assert sizes in text["winograd"]
    assert winograd.TURNED_PITCH == winograd.TURNED_TILES + 1
    weights = winograd_weights
    sizes = f"WEIGHT_THREADS = {weights.THREADS}, WEIGHT_INPUTS = {weights.WEIGHT_INPUTS}"
    assert sizes in text["winograd"]
    assert weights.THREADS == weights.WEIGHT_INPUTS * weights.WEIGHT_OUTPUTS
    fused = winograd_fused
    sizes = "THREADS = {}, TILES = {}, CHANNELS = {}, DEPTH = {};"
    assert sizes.format(fused.THREADS, fused.TILES, weights.BLOCK_OUTPUTS, fused.DEPTH) in text["winograd_fused"]


def test_the_struct_of_weights_is_the_kernel_s(tmp_path):
    names = winograd_weights.WEIGHTS.names
    assert names is not None
    lines = "".join(f"    out[i++] = (int)((const char *)&g.{name} - (const char *)&g);\n" for name in names)
    head = '#include "winograd.cuh"\nKERNEL(1, 1) offsets(const Weights g, int *out) {\n    int i = 0;\n'
    (tmp_path / "offsets.cu").write_text(f"{head}{lines}    out[i] = sizeof g;\n}}\n")
    instance = Instance("offsets", "offsets", winograd.PACKING.defines, 1)
    out = np.full(len(names) + 1, -1, np.int32)
    with module.use(Emulator(folder=tmp_path)):
        arguments = np.zeros(1, winograd_weights.WEIGHTS), launch.pointer(out)
        module.driver().function(instance)((1, 1, 1), (1, 1, 1), arguments, 0)
    dtype = winograd_weights.WEIGHTS
    assert out.tolist() == [*(dtype.fields[name][1] for name in names), dtype.itemsize]


MISTAKES = {
    "winograd.cuh": {
        "the odd part with the wrong sign": ("to[i + 1] = even - odd", "to[i + 1] = even + odd"),
        "a row of outputs left out": ("g.output[1] - tile.row)", "g.output[1] - tile.row - 1)"),
        "weights of padded channels not zeros": ("c < g.inputs && k < g.outputs", "true"),
    },
    "winograd.cu": {
        "a position too far": ("tile.row - g.padding[1]", "tile.row - g.padding[1] + 1"),
        "read before it is stored": ("    __syncthreads();\n", ""),
        "an input channel left out": ("c < end; c++", "c < end - 1; c++"),
        "a write beyond the last tile": ("if (t >= count || ", "if ("),
    },
    "winograd_products.cu": {
        "a channel left out": ("k < v_left", "k < v_left - 1"),
        "a write beyond the last column": ("if (k + column_of(j) < padded)", ""),
    },
    "winograd_fused.cu": {
        "a step left out": ("step < steps; step++", "step < steps - 1; step++"),
        "weights not awaited": ("            wait<0>();\n", ""),
        "no barrier between steps": (
            "            wait<0>();\n            __syncthreads();\n", "            wait<0>();\n",
        ),
        "no barrier between halves of the results": ("if (part) __syncthreads();", ""),
        "the wrong half of V": ("half * 2 * SIZE * TILES", "(1 - half) * 2 * SIZE * TILES"),
        "a channel beyond the last": ("left > 0 ? mask : 0", "mask"),
    },
}  # fmt: skip


@pytest.mark.parametrize(("name", "mistake"), [(n, m) for n, some in MISTAKES.items() for m in some])
def test_planted_mistakes_are_found(name, mistake, tmp_path, monkeypatch):
    monkeypatch.setattr(winograd, "PRODUCT_TILES", (LARGE,))
    forget_tiles()
    right, wrong = MISTAKES[name][mistake]
    text = (module.FOLDER / name).read_text()
    assert right in text
    for other in ("winograd.cu", "winograd_fused.cu", "winograd_products.cu"):
        (tmp_path / other).write_text((module.FOLDER / other).read_text())
    (tmp_path / name).write_text(text.replace(right, wrong))
    try:
        assert found(name, tmp_path), f"{mistake} in {name} was not found"
    finally:
        forget_tiles()


def found(name, folder):
    for row in ROW.values():
        if row.direction != "forward" or (name == "winograd_fused.cu") != (row.algorithm == "winograd_f2x2_3x3"):
            continue
        for layout in ("channels_first", "channels_last"):
            for order, eager in EMULATORS:
                try:
                    p = problem(row, 2, 21, 130, (11, 13), layout=layout)
                    hold(row, p, Emulator(order, eager=eager, folder=folder))
                except (AssertionError, EmulatedError):
                    return True
    return False
