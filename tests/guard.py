"""Arrays that end (or begin) exactly at a page that may not be touched: a stray read or write crashes the process.

Linux only. Where pages cannot be protected, :func:`guarded` gives ordinary arrays and ``GUARDS`` is False.
"""

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

GUARDS = sys.platform.startswith("linux")


def guarded(shape: int | tuple[int, ...], dtype: DTypeLike, *, at: str = "end") -> np.ndarray[Any, Any]:
    """A C-contiguous array of 0xFF bytes (NaN in every float type), its ``at`` ("end" or "start") on a guard page."""
    dtype = np.dtype(dtype)
    count = int(np.prod(shape))
    if not GUARDS:
        array = np.empty(count, dtype)
        array.view(np.uint8)[:] = 255
        return array.reshape(shape)
    page = mmap.PAGESIZE
    room = -(-max(count * dtype.itemsize, 1) // page) * page
    memory = mmap.mmap(-1, room + page)  # the array holds the only reference: unmapped with it
    whole = np.frombuffer(memory, np.uint8)
    whole[:] = 255
    start = page if at == "start" else room - count * dtype.itemsize
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    forbidden = whole.ctypes.data + (0 if at == "start" else room)
    if libc.mprotect(forbidden, page, 0):
        raise OSError(ctypes.get_errno(), "mprotect")
    return whole[start : start + count * dtype.itemsize].view(dtype).reshape(shape)
