"""The emulator shows mistakes: each one planted is caught. And what it emulates, it emulates rightly."""

import ml_dtypes
import numpy as np
import pytest

from fastconv.kernels import ACTIVATIONS, reference
from fastconv.kernels.cuda import module
from fastconv.kernels.cuda.launch import CONV, activation_id
from fastconv.kernels.cuda.module import Instance
from fastconv.kernels.geometry import PADDING_MODES, source_indices
from fastconv.testing import integers
from tests.cuda_emulator.driver import HEADERS, UNDEFINED, EmulatedError, Emulator, build
from tests.guard import guarded
from tests.support import require_emulator

ORDERS = [(order, eager) for order in ("forward", "reverse", "shuffled") for eager in (False, True)]
BLOCKS, THREADS, TILES = 3, 96, 5
GEOMETRY = np.zeros(1, CONV)
FLOAT = (("ELEMENT", "float"),)


@pytest.fixture(scope="module", autouse=True)
def _emulator():
    require_emulator()


def emulator(order="forward", eager=False, extra=()):
    return Emulator(order, eager=eager, folder=HEADERS, extra=extra)


def run(
    symbol, *args, grid=1, threads=128, shared=0, defines=FLOAT, order="forward", eager=False, stem="probes", extra=(),
):  # fmt: skip
    """Launch a kernel of this folder; arrays are passed by address."""
    driver = emulator(order, eager, extra)
    values = [np.uint64(driver.address(a)) if isinstance(a, np.ndarray) and a.dtype != CONV else a for a in args]
    values = [np.int32(a) if isinstance(a, int) else a for a in values]
    function = driver.function(Instance(stem, symbol, defines, threads=128))
    function((grid, 1, 1), (threads, 1, 1), values, shared)


# ---------------------------------------------------------------------------------------------------- planted mistakes


def planted(order, eager, *defines):
    """The planted kernel's output under one order: a guarded array, so that a stray access is one."""
    x = guarded((BLOCKS, TILES, THREADS), np.float32)
    x[:] = np.random.default_rng(0).standard_normal(x.shape)
    y = guarded((BLOCKS, 2, THREADS), np.float32)
    run(
        "planted", x, y, TILES, grid=BLOCKS, threads=THREADS, shared=2 * THREADS * 4, defines=defines, order=order,
        eager=eager, stem="planted", extra=(UNDEFINED,),
    )  # fmt: skip
    return x, y


def test_a_right_kernel_gives_the_same_bits_in_every_order():
    results = [planted(*how)[1] for how in ORDERS]
    x, y = planted("forward", False)
    np.testing.assert_allclose(y[:, 0], x[:, :, ::-1].sum(1), rtol=1e-5)
    np.testing.assert_allclose(y[:, 1, ::32], y[:, 0].reshape(BLOCKS, -1, 32).sum(2), rtol=1e-4)
    assert all(np.array_equal(y, other) for other in results)


@pytest.mark.parametrize(
    "define", ["NO_BARRIER", "NO_SECOND_BARRIER", "STAGES_AWAITED", "UNWRITTEN"], ids=lambda d: d.lower()
)
def test_a_wrong_kernel_shows_in_some_order(define):
    """Missing barriers, a wait for too few copies, an output left out."""
    right = planted("forward", False)[1]
    value = 2 if define == "STAGES_AWAITED" else 1
    wrong = [not np.array_equal(right, planted(*how, (define, value))[1]) for how in ORDERS]
    assert any(wrong)


@pytest.mark.parametrize(
    ("define", "message"),
    [
        ("STRAY_READ", r"block \(2, 0, 0\): thread \d+: an access outside of an array"),
        ("STRAY_WRITE", r"thread \d+: an access outside of an array"),
        ("SHARED_OVERRUN", r"thread \d+: an access outside of shared memory"),
        ("MIXED", r"warp \d: lanes 0 and 1 meet in different collectives"),
        ("DIVERGED", r"deadlock.*3 threads at __syncthreads \(thread 5\), 93 threads in a warp's collective"),
        ("MISALIGNED", r"planted\.cu:\d+: .*float4.* at 0x[0-9a-f]*4, which is not aligned to 16 bytes"),
        ("MISALIGNED_COPY", r"copy_async<16> from 0x[0-9a-f]*4 to 0x[0-9a-f]*, which is not aligned"),
        ("DIVISION", r"thread \d+: a division by zero"),
        ("OVERFLOW", r"planted\.cu:\d+: a product overflows"),
        ("OUT_OF_BOUNDS", r"planted\.cu:\d+: index \d of an array of a thread is outside of it"),
        ("ENDLESS", r"calls a collective whose mask ffffffff|deadlock"),
    ],
)
def test_an_undefined_kernel_ends_with_a_message(define, message):
    for order, eager in ORDERS:
        with pytest.raises(EmulatedError, match=f"planted: .*{message}"):
            planted(order, eager, (define, 1))


def test_a_launch_that_cuda_would_refuse_is_refused():
    y = np.zeros(8, np.int32)
    with pytest.raises(EmulatedError, match="the block is"):
        run("conv_layout", GEOMETRY, y, threads=129)
    with pytest.raises(EmulatedError, match="the grid is"):
        run("conv_layout", GEOMETRY, y, grid=0)
    with pytest.raises(EmulatedError, match="bytes of shared memory"):
        run("conv_layout", GEOMETRY, y, shared=1 << 20)
    with pytest.raises(EmulatedError, match=r"arguments have \[\d+, 8, 4\] bytes, the kernel takes \[\d+, 8\]"):
        run("conv_layout", GEOMETRY, y, 1)
    with pytest.raises(EmulatedError, match=r"structs arrays of one element; got \['void', 'uint64'\]"):
        run("conv_layout", GEOMETRY[0], y)
    with pytest.raises(RuntimeError, match=r"probes\.cu for the emulator"):
        run("conv_layout", GEOMETRY, y, defines=(("ELEMENT", "no_such_type"),))


# --------------------------------------------------------------------------------------------------- what is emulated


def test_collectives():
    got = np.zeros((48, 10), np.int32)
    ballot = {0: sum(1 << j for j in range(0, 32, 3)), 32: sum(1 << j for j in range(8) if (32 + j) % 3 == 0)}
    odd = {0: sum(1 << j for j in range(5, 32, 2)), 32: sum(1 << j for j in range(5, 8, 2))}
    expected = np.zeros_like(got)
    for i in range(40):
        first, lane = i // 32 * 32, i % 32
        down, up = (i + 3 if i % 8 + 3 < 8 else i), (i - 3 if i % 8 >= 3 else i)
        parted = first + 1 if lane < 4 else odd[first]
        expected[i] = (
            (first + 2) * 3, (i ^ 4) * 3, down, up, np.uint32(ballot[first]).astype(np.int32), int(1.5 * (first + 7)),
            first == 32, first == 0, np.uint32(parted).astype(np.int32), first + lane // 16 * 16 + 5,
        )  # fmt: skip
    for order, eager in ORDERS:
        got[:] = 0
        run("collectives", got, threads=48, order=order, eager=eager)
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(("order", "eager"), ORDERS)
def test_asynchronous_copies(order, eager):
    x, y = guarded(96, np.float32), np.zeros(96, np.float32)
    x[:] = np.arange(96) + 1
    run("copies", x, y, threads=32, shared=96 * 4, order=order, eager=eager)
    size = np.repeat([4, 2, 1], 32)
    np.testing.assert_array_equal(y, np.where(np.arange(96) // size % 2 == 0, x, 0))


@pytest.mark.parametrize(("order", "eager"), ORDERS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_products_of_matrices(dtype, order, eager):
    a, b = (integers(shape, dtype, seed=i) for i, shape in enumerate(((16, 16), (16, 8))))
    c = guarded((16, 8), np.float32)
    how = {"defines": (("ELEMENT", np.dtype(dtype).name),), "order": order, "eager": eager}
    run("matrices", a, b, c, threads=32, shared=2 * (256 + 128), stem="matrices", **how)
    np.testing.assert_array_equal(c, a.astype(np.float32) @ b.astype(np.float32))


@pytest.mark.parametrize("mode", PADDING_MODES)
def test_padding_shows_what_geometry_says(mode):
    for n, before, after in ((5, 4, 4), (1, 0, 0), (7, 3, 0), (3, 2, 1)):
        expected = source_indices(n, before, after, mode)
        got = np.zeros(expected.size, np.int32)
        run("padding_sources", got, got.size, before, n, PADDING_MODES.index(mode))
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16], ids=["float16", "bfloat16"])
def test_sixteen_bit_elements_round_as_numpys(dtype):
    every = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    values = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)
    values *= np.float32(2) ** np.random.default_rng(1).integers(-140, 120, values.size).astype(np.float32)
    values[:6] = np.inf, -np.inf, np.nan, 0, -0.0, 65520  # the last one rounds to float16's infinity
    with np.errstate(over="ignore"):
        halfway = every.astype(np.float32)[:0x7C00] * np.float32(1 + 2.0**-12)  # ties, or near them
        values[100 : 100 + halfway.size // 2] = halfway[::2][: halfway.size // 2]
        expected = values.astype(dtype)
    wide, narrowed = np.zeros(every.size, np.float32), np.zeros_like(every)
    name = np.dtype(dtype).name
    run("convert", every, wide, values, narrowed, every.size, grid=every.size // 128, defines=(("ELEMENT", name),))
    np.testing.assert_array_equal(wide, every.astype(np.float32))
    np.testing.assert_array_equal(narrowed.astype(np.float32), expected.astype(np.float32))
    assert np.signbit(narrowed[4].astype(np.float32))


@pytest.mark.parametrize("element", ["float", "double"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_references(name, element):
    dtype = np.dtype({"float": np.float32, "double": np.float64}[element])
    x = np.concatenate([np.linspace(-12, 12, 3001), [np.inf, 1e30, 1e-42, 0.0]]).astype(dtype)
    y, expected = np.zeros_like(x), reference.activate(name, x.astype(np.float64))
    run("activations", x, y, x.size, activation_id(name), grid=-(-x.size // 128), defines=(("ELEMENT", element),))
    finite = np.isfinite(expected)
    np.testing.assert_array_equal(y[~finite], expected[~finite])
    x, y, expected = x[finite], y[finite].astype(np.float64), expected[finite]
    size = np.abs(expected) + np.minimum(np.abs(x.astype(np.float64)), 1)
    assert (np.abs(y - expected) <= 4 * np.finfo(dtype).eps * size + np.finfo(dtype).tiny).all()


def test_the_struct_is_declared_alike_in_python_and_in_c():
    got = np.zeros(64, np.int32)
    run("conv_layout", GEOMETRY, got)
    fields = [(offset, dtype.itemsize) for dtype, offset in (CONV.fields[name][:2] for name in CONV.names)]
    assert got[: 1 + 2 * len(fields)].tolist() == [CONV.itemsize, *np.ravel(fields)]
    assert not got[1 + 2 * len(fields) :].any()


def test_built_libraries_are_kept():
    instance = Instance("probes", "conv_layout", (("ELEMENT", "float"),), threads=128)
    build([instance], HEADERS)
    with module.use(emulator()) as _:
        assert module.driver().function(instance) is not None
