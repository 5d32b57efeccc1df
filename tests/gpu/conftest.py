"""A GPU for every test here, or the reason why it is skipped."""

import sys

import pytest

from fastconv.kernels.cuda import module
from tests import fake_cupy
from tests.gpu.mirror import REHEARSAL
from tests.support import REQUIRED, require_emulator


def missing() -> str | None:
    """Why there is no GPU for the tests, or None."""
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # no CuPy, no driver, no device: CuPy has a class for each
        return " ".join(str(error).split())
    return None if count else "CuPy finds no device"


@pytest.fixture(autouse=True)
def cupy(monkeypatch):
    """CuPy with a GPU; in a rehearsal its stand-in with the emulator."""
    if REHEARSAL:
        require_emulator()
        fake = fake_cupy.module()
        monkeypatch.setitem(sys.modules, "cupy", fake)
        with module.use(fake_cupy.Emulated()):
            yield fake
        return
    reason = missing()
    if reason is not None:
        if "gpu" in REQUIRED:
            pytest.fail(f"FASTCONV_REQUIRE names gpu: {reason}")
        pytest.skip(f"needs a GPU and CuPy: {reason}")
    import cupy

    yield cupy
    cupy.cuda.Device().synchronize()


@pytest.fixture
def gpu(cupy):
    """CuPy with a real GPU: graphs, events, memory of its own."""
    if REHEARSAL:
        pytest.skip("a rehearsal has no GPU")
    return cupy
