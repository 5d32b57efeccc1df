"""What every CUDA convolution must do besides computing rightly: any strides, the same bits in any order of warps."""

from dataclasses import replace

import numpy as np
import pytest

from fastconv.kernels import reference
from fastconv.kernels.cuda import direct, launch, module
from fastconv.kernels.geometry import ConvGeometry
from fastconv.problem import ConvProblem, conv_problem
from fastconv.registry import ROWS, Row
from fastconv.targets import resolve
from fastconv.testing import check_row, integers
from tests.cuda_emulator.driver import EmulatedError, Emulator
from tests.guard import guarded
from tests.support import EMULATORS, device, hold, require_emulator

CUDA = [row for row in ROWS if row.device == "cuda" and row.op == "conv"]

PROBLEMS = [
    conv_problem("conv2d", 2, (2, 18, 9, 11), (20, 18, 3, 3), padding=1, bias_shape=(20,)),
    conv_problem("conv2d", 2, (2, 16, 8, 8), (24, 16, 1, 1), bias_shape=(24,)),
    conv_problem("conv2d", 2, (1, 6, 12, 9), (8, 3, 3, 2), groups=2, stride=2, padding=2, dilation=2),
    conv_problem("conv2d", 2, (1, 6, 12, 9), (6, 1, 3, 3), groups=6, padding=1),
    conv_problem("conv1d", 1, (2, 5, 40), (7, 5, 4), padding=3, padding_mode="circular"),
]


def problems(row: Row, **changes) -> list[ConvProblem]:
    """Those that the row runs."""
    every = []
    for problem in PROBLEMS:
        bias = problem.bias and row.direction == "forward"
        every.append(replace(problem, direction=row.direction, device="cuda", bias=bias, **changes))
    able = [p for p in every if row.refuses(p) is None]
    assert able, f"{row.name} refuses every problem of this file"
    return able


@pytest.fixture(autouse=True)
def _emulator():
    require_emulator()


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize("row", CUDA, ids=lambda r: r.name)
def test_the_same_bits_in_any_order(row, layout):
    """Whatever the order of warps and the moment copies land: all arrays that a run leaves behind are equal."""
    for problem in problems(row, layout=layout, dtype=row.dtypes[0]):
        left = []
        for order, eager in (*EMULATORS, ("forward", False)):
            arrays = []

            def empty(shape, dtype, arrays=arrays):
                arrays.append(guarded(shape, dtype))
                return arrays[-1]

            with module.use(Emulator(order, eager=eager)):
                check_row(row, problem, rng=np.random.default_rng(0), empty=empty)
            left.append([a.tobytes() for a in arrays])
        assert all(other == left[0] for other in left[1:]), f"{row.name} ({problem})"


def sliced(array: np.ndarray) -> np.ndarray:
    """The array as every second element, backwards, of a larger one."""
    whole = np.full(tuple(2 * n + 1 for n in array.shape), np.nan, array.dtype)
    view = whole[tuple(slice(2 * n - 1, None, -2) if n else slice(0) for n in array.shape)]
    view[...] = array
    return view


def misaligned(array: np.ndarray) -> np.ndarray:
    """The array in memory that begins at an odd address."""
    view = np.empty(array.nbytes + 1, np.uint8)[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def packed(array: np.ndarray) -> np.ndarray:
    """The array as a field of records of odd length: strides are no multiples of the element."""
    records = np.zeros(array.shape, [("mark", np.uint8), ("value", array.dtype)])
    records["value"] = array
    return records["value"]


def permuted(array: np.ndarray) -> np.ndarray:
    """The array with its axes in another order in memory."""
    return np.ascontiguousarray(array.T).T


def repeated(array: np.ndarray) -> np.ndarray:
    """The first element of the first axis, again and again: a stride of zero."""
    return np.broadcast_to(array[:1], array.shape)


FORMS = {"sliced": sliced, "misaligned": misaligned, "packed": packed, "permuted": permuted, "repeated": repeated}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("row", CUDA, ids=lambda r: r.name)
def test_any_strides_and_alignment(row, form):
    make = FORMS[form]
    for problem in problems(row, dtype=row.dtypes[0]):
        g = problem.geometry
        shapes = {"x": g.input_shape, "w": g.weight_shape, "y": g.output_shape}
        taken, written = {"forward": ("xw", "y"), "grad_input": ("yw", "x"), "grad_weight": ("xy", "w")}[row.direction]
        given = [make(integers(shapes[name], row.dtypes[0], seed=i)) for i, name in enumerate(taken)]
        shape, epilogue = shapes[written], {}
        if row.direction != "grad_weight":
            given += [make(integers(shape[1:2], row.dtypes[0], 3)), make(integers(shape, row.dtypes[0], 4))]
            epilogue = {"activation": "relu"}
        expected = np.empty(shape)
        getattr(reference, row.direction)(g, *given, expected, **epilogue)
        blank = np.full(shape, np.nan, given[0].dtype)
        out = blank if form == "repeated" else make(blank)
        around = None if out.base is None else out.base.copy()
        workspace = guarded(-(-row.workspace_bytes(problem, 1) // 64) * 64, np.uint8)
        with device(row):
            resolve(row.target)(g, *given, out, workspace=workspace, threads=1, **epilogue)
        # Of integers everything is exact but what tiles are transformed to; what is wrong is wrong by 1 at least.
        atol = 0.1 if row.tile else 0
        np.testing.assert_allclose(out.astype(np.float64), expected, 0, atol, err_msg=f"{row.name} ({problem})")
        if form == "sliced" and around is not None:
            out[...] = np.nan
            np.testing.assert_array_equal(out.base, around)  # what lies between was not touched


@pytest.mark.parametrize("row", [r for r in CUDA if r.direction != "grad_weight"], ids=lambda r: r.name)
def test_nothing_is_launched_for_an_empty_result(row):  # a weight gradient is never empty: of no images it is zero
    problem = replace(problems(row)[0], geometry=replace(problems(row)[0].geometry, batch=0))
    emulator = Emulator()
    with module.use(emulator):
        check_row(row, problem, rng=np.random.default_rng(0))
    assert emulator.launches == []


# ------------------------------------------------------------------------------------------------------------- direct


DIRECT = [row for row in CUDA if row.algorithm == "direct"]

MISTAKES = {
    "a tap too far": ("tap.s * g.dilation[2]", "(tap.s + 1) * g.dilation[2]"),
    "a channel left out": ("c < count; c++", "c < count - 1; c++"),
    "the last position left out": ("< g.output[axis]", "< g.output[axis] - 1"),
    "a split left out": ("s < splits", "s < splits - 1"),
    "no barrier": ("            __syncthreads();  // the last chunk has been used\n", ""),
    "a read beyond the end": ("min(first + i * THREADS, pixels - 1)", "(first + i * THREADS)"),
}


def test_planted_mistakes_are_found(tmp_path):
    text = (module.FOLDER / "direct.cu").read_text()
    problem = conv_problem("conv2d", 2, (8, 70, 17, 16), (9, 70, 3, 3), padding=1)
    for name, (right, wrong) in MISTAKES.items():
        assert right in text, name
        (tmp_path / "direct.cu").write_text(text.replace(right, wrong))
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        (tmp_path / "direct.cu").rename(folder / "direct.cu")
        found = 0
        for row in DIRECT:
            for order in ("forward", "reverse"):
                with module.use(Emulator(order, folder=folder)):
                    try:
                        there = replace(problem, direction=row.direction, device="cuda")
                        check_row(row, there, rng=np.random.default_rng(0), empty=guarded)
                    except (AssertionError, EmulatedError):
                        found += 1
        assert found, name


def test_the_launcher_knows_the_tiles_of_the_kernel():
    text = (module.FOLDER / "direct.cu").read_text()
    sizes = direct.THREADS, direct.PIXELS, direct.CHANNELS, direct.CHUNK
    assert "constexpr int THREADS = {}, PIXELS = {}, CHANNELS = {}, CHUNK = {};".format(*sizes) in text


@pytest.mark.parametrize("row", DIRECT, ids=lambda r: r.name)
def test_offsets_of_64_bits(row, monkeypatch):
    """Forced here; by itself the wide index comes with arrays of gigabytes."""
    monkeypatch.setattr(direct, "index_type", lambda *extents: "long long")
    direct._plan.cache_clear()
    for problem in problems(row, dtype="float32"):
        hold(row, problem, seed=0, integers=True)
    direct._plan.cache_clear()


def test_the_width_of_offsets():
    assert launch.index_type(((1, 1, 1 << 14, 1 << 14), (1 << 30, 1 << 30, 1 << 16, 4), 4)) == "int"
    assert launch.index_type(((2, 1, 1 << 14, 1 << 14), (1 << 30, 1 << 30, 1 << 16, 4), 4)) == "long long"
    assert launch.index_type(((4, 4), (-(1 << 33), 4), 4)) == "long long"


def test_split_weight_gradients():
    many = ConvGeometry(16, 4, 8, (40, 40), (3, 3), (1, 1), ((1, 1), (1, 1)))
    assert direct.weight_splits(many) > 8
    assert direct.grad_weight_workspace(many, 2, 1) == direct.weight_splits(many) * 8 * 4 * 9 * 4
    few = ConvGeometry(1, 512, 512, (7, 7), (3, 3), (1, 1), ((1, 1), (1, 1)))
    assert direct.grad_weight_workspace(few, 4, 1) == 0
    (row,) = [r for r in DIRECT if r.direction == "grad_weight"]
    problem = conv_problem("conv2d", 2, (5, 3, 31, 33), (9, 3, 3, 3), padding=1, direction="grad_weight", device="cuda")
    assert direct.weight_splits(problem.geometry) > 1
    hold(row, problem, seed=0, integers=True)
    hold(row, problem, seed=1, integers=False)
