"""CuPy's own arrays, over the host's memory and without a GPU: their shapes, strides, views and addresses are real, and
the kernels are emulated. What CuPy computes by itself (copies, sums) needs a GPU: tests/gpu."""

import ctypes
import types

import numpy as np
import pytest

import fastconv as fc
from fastconv.kernels.cuda import direct, module
from fastconv.kernels.cuda.launch import CONV
from fastconv.testing import integers
from tests.cuda_emulator.driver import Emulator
from tests.support import require, require_emulator, require_nvrtc


@pytest.fixture
def cupy(monkeypatch):
    """CuPy, whose memory comes from NumPy and is counted in ``allocated``; device 0 is always current."""
    cupy = require("cupy")
    require_emulator()

    def allocate(size):
        buffer = np.full(size + 512, 0xFF, np.uint8)
        memory = cupy.cuda.UnownedMemory(buffer.ctypes.data, buffer.nbytes, buffer, 0)
        cupy.allocated.append(size)
        return cupy.cuda.MemoryPointer(memory, -buffer.ctypes.data % 512)

    monkeypatch.setattr(cupy, "allocated", [], raising=False)
    monkeypatch.setattr(cupy.cuda.runtime, "getDevice", lambda: 0)
    null = types.SimpleNamespace(ptr=0, synchronize=lambda: None)
    monkeypatch.setattr(cupy.cuda, "get_current_stream", lambda: null)
    monkeypatch.setattr(cupy.ndarray, "copy", lambda a, order="C": put(cupy, host(a)))
    cupy.cuda.set_allocator(allocate)
    with module.use(Emulator()):
        yield cupy
    cupy.cuda.set_allocator(cupy.get_default_memory_pool().malloc)


def put(cupy, array):
    """A CuPy array of these elements."""
    there, array = cupy.empty(array.shape, array.dtype), np.ascontiguousarray(array)
    ctypes.memmove(there.data.ptr, array.ctypes.data, array.nbytes)
    return there


def host(array):
    """A copy of a CuPy array's elements, whatever its strides."""
    first, last = fc.arrays.span(array.shape, array.strides, array.itemsize)
    memory = (ctypes.c_char * (last - first)).from_address(array.data.ptr + first)
    return np.ndarray(array.shape, array.dtype, memory, -first, array.strides).copy()


X, W, B = integers((2, 3, 9, 8), seed=0), integers((5, 3, 3, 3), seed=1), integers((5,), seed=2)


def test_convolutions_and_poolings(cupy):
    x, w, b = (put(cupy, a) for a in (X, W, B))
    expected = fc.conv2d(X, W, B, stride=2, padding=1, activation="relu")
    for _ in range(2):
        y = fc.conv2d(x, w, b, stride=2, padding=1, activation="relu")
        assert type(y) is cupy.ndarray
        np.testing.assert_allclose(host(y), expected, atol=1e-4)
    y, indices = fc.max_pool2d(x, 3, stride=2, return_indices=True)
    here, positions = fc.max_pool2d(X, 3, stride=2, return_indices=True)
    np.testing.assert_array_equal(host(y), here)
    np.testing.assert_array_equal(host(indices), positions)


def test_views_of_every_kind(cupy):
    whole = put(cupy, integers((4, 6, 18, 16), seed=3))
    w = put(cupy, W)
    views = {
        "sliced": lambda a: a[1:3, ::2, 4:13, ::2],
        "backwards": lambda a: a[1::-1, 2::-1, 8::-1, 7::-1],
        "transposed": lambda a: a.transpose(0, 1, 3, 2)[:2, :3, :9, :8],
    }
    for name, view in views.items():
        x, here = view(whole), view(host(whole))
        out = view(put(cupy, np.zeros((4, 10, 18, 16), np.float32)))[:, :3]
        expected = fc.conv2d(np.ascontiguousarray(here), W[:3], padding=1)
        assert fc.conv2d(x, w[:3], padding=1, out=out) is out
        np.testing.assert_allclose(host(out), expected, atol=1e-3, err_msg=name)
        np.testing.assert_array_equal(host(fc.avg_pool2d(x, 2)), fc.avg_pool2d(np.ascontiguousarray(here), 2))


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_plan_called_again_allocates_nothing(cupy, layout):
    def form(a):
        return put(cupy, a if layout == "NCHW" else np.moveaxis(a, 1, -1))

    x, y = form(X), form(np.zeros((2, 5, 9, 8), np.float32))
    plan = fc.plan_conv2d(x.shape, put(cupy, W), put(cupy, B), padding=1, layout=layout)
    plan(x, out=y)
    before = len(cupy.allocated)
    assert plan(x, out=y) is y
    assert len(cupy.allocated) == before
    expected = fc.conv2d(X, W, B, padding=1)
    np.testing.assert_allclose(host(y), expected if layout == "NCHW" else np.moveaxis(expected, 1, -1), atol=1e-3)


def test_overlap_is_seen_across_imports(cupy):
    """Two arrays over the same memory that CuPy holds to be apart, as after two imports through DLPack."""
    x = put(cupy, X)
    memory = cupy.cuda.UnownedMemory(x.data.ptr + X[0].nbytes, X[0].nbytes, x, 0)
    second = cupy.ndarray(X[1:].shape, np.float32, cupy.cuda.MemoryPointer(memory, 0))
    assert not cupy.may_share_memory(x, second)
    assert fc.arrays.overlaps(second, x)
    assert not fc.arrays.overlaps(second, x[:1], None)
    assert fc.arrays.overlaps(second, x[::-1])
    assert not fc.arrays.overlaps(second, x[:1, ::-1, ::-1])


def test_a_kernel_is_loaded_and_may_have_all_shared_memory(monkeypatch):
    """What :class:`fastconv.kernels.cuda.module.Device` asks of CuPy, by the names that CuPy has for it."""
    require_nvrtc()
    cupy = require("cupy")
    from cupy_backends.cuda.api import driver as api

    facts = {
        "major": 9, "minor": 0, "multiProcessorCount": 132, "sharedMemPerBlockOptin": 227 << 10,
        "l2CacheSize": 50 << 20,
    }  # fmt: skip
    loaded, launched, asked = [], [], []

    class Module:
        def load(self, cubin):
            loaded.append(cubin)

        def get_function(self, name):
            return Function()

    class Function:
        ptr = 7

        def __call__(self, *how):
            launched.append(how)

    static = {api.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: 1024}
    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceProperties", lambda index: facts)
    monkeypatch.setattr(cupy.cuda.function, "Module", Module)
    monkeypatch.setattr(api, "funcGetAttribute", lambda attribute, function: static[attribute])
    monkeypatch.setattr(api, "funcSetAttribute", lambda *what: asked.append(what))
    device, struct = module.Device(0), module.Struct.of(CONV)
    assert device.arch == "sm_90a"
    launch = device.function(direct.forward_instances()[0])
    assert device.function(direct.forward_instances()[0]) is launch
    launch((2, 1, 1), (128, 1, 1), (struct, np.int32(3)), 64)
    ((grid, block, (first, second), shared),) = launched
    assert (grid, block, second, shared) == ((2, 1, 1), (128, 1, 1), 3, 64)
    assert first is struct.pointer
    assert isinstance(first, cupy.cuda.function.CPointer)
    assert [cubin[:4] for cubin in loaded] == [b"\x7fELF"]
    assert asked == [(7, api.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, (227 << 10) - 1024)]
