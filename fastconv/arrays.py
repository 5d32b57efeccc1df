"""Arrays at the door: what is accepted, which device it lives on, and how a layout is viewed.

The device follows the array: :func:`fastconv.autograd.on_device` makes it CuPy's current one, so that what is allocated
and launched for an array goes where the array is. CuPy is never imported here but to take in another library's array on
a GPU.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from .autograd import array_module, on_device
from .kernels.geometry import Sizes
from .problem import DTYPES


def device_of(x: Any) -> str:
    """``"cpu"`` or ``"cuda"``.

    >>> device_of(np.zeros(3))
    'cpu'
    """
    return "cpu" if type(x) is np.ndarray or array_module(x) is np else "cuda"


def place(x: Any) -> str:
    """Where an array lies, the number of its GPU included.

    >>> place(np.zeros(3))
    'cpu'
    """
    return "cpu" if device_of(x) == "cpu" else f"cuda:{x.data.device_id}"


_HOST_MEMORY = (1, 3, 11)
"""DLPack's kDLCPU, kDLCUDAHost and kDLROCMHost: the last two are pinned, as PyTorch's loaders make it."""


def intake(op: str, name: str, x: Any) -> Any:
    """``x`` as a NumPy or CuPy array without a copy; TypeError for anything that is not an array.

    Accepts NumPy and CuPy arrays and whatever offers ``__dlpack__`` (PyTorch, JAX, …).
    """
    if type(x) is np.ndarray:
        return x if x.dtype.isnative else x.astype(x.dtype.newbyteorder("="))
    if isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{op}: {name} is a masked array, whose mask would be ignored; fill it first: {name}.filled(0)")
    if isinstance(x, np.ndarray):
        return intake(op, name, np.asarray(x))
    if array_module(x) is not np:
        return x
    if hasattr(x, "__dlpack__"):
        try:
            if x.__dlpack_device__()[0] in _HOST_MEMORY:
                return np.from_dlpack(x)
            return _from_device(x)
        except ImportError:
            raise TypeError(
                f"{op}: {name} lies on a GPU, which needs CuPy: pip install 'fastconv[cuda13]' (or cuda12)"
            ) from None
        except Exception as error:
            raise TypeError(
                f"{op}: {name} ({type(x).__module__}.{type(x).__name__}) cannot be read through DLPack: {error}"
            ) from error
    raise TypeError(
        f"{op}: {name} must be a NumPy or CuPy array (or offer __dlpack__), got {type(x).__name__}; convert with "
        f"numpy.asarray({name})"
    )


class _Unordered:
    """Another library's array on a GPU, asked for without waiting for the stream that wrote it: while a graph is being
    captured, a wait would tie the graph to work outside of it."""

    def __init__(self, x: Any) -> None:
        self.x = x

    def __dlpack_device__(self) -> Any:
        return self.x.__dlpack_device__()

    def __dlpack__(self, *, stream: Any = None, **more: Any) -> Any:
        return self.x.__dlpack__(stream=-1, **more)


def _from_device(x: Any) -> Any:
    """A CuPy array over the memory of x. CuPy hands its current stream to the exporter, which makes that stream wait
    for what is still writing x."""
    import cupy

    with cupy.cuda.Device(x.__dlpack_device__()[1]):
        capturing = cupy.cuda.get_current_stream().is_capturing()
    return cupy.from_dlpack(_Unordered(x) if capturing else x)


def as_dtype(op: str, name: str, dtype: Any) -> np.dtype[Any]:
    """A supported floating-point dtype from anything that names one, ``"bfloat16"`` included."""
    try:
        if isinstance(dtype, str) and dtype == "bfloat16":
            import ml_dtypes  # which teaches NumPy this name

            dtype = ml_dtypes.bfloat16
        found = np.dtype(dtype)
    except TypeError:
        raise TypeError(f"{op}: {name} must be one of {', '.join(DTYPES)}, got {dtype!r}") from None
    float_dtype(op, name, found)
    return found


@lru_cache(maxsize=64)
def dtype_name(dtype: Any) -> str:
    """``dtype.name``, which NumPy composes anew at each look."""
    return str(dtype.name)


def float_dtype(op: str, name: str, dtype: Any) -> str:
    """The name of a supported floating-point dtype; TypeError for any other."""
    name_of_dtype = dtype_name(dtype)
    if name_of_dtype in DTYPES:
        return name_of_dtype
    raise TypeError(
        f"{op}: {name} must be {', '.join(DTYPES[:-1])} or {DTYPES[-1]}, got {dtype}; convert with "
        f"{name}.astype(numpy.float32)"
    )


def same_kind(op: str, first: tuple[str, Any], *others: tuple[str, Any]) -> None:
    """All arrays on one device and of one dtype; None is skipped."""
    name, x = first
    for other, y in others:
        if y is None or (type(x) is type(y) is np.ndarray and x.dtype is y.dtype):
            continue
        if place(x) != place(y):
            raise TypeError(
                f"{op}: {name} is on {place(x)} and {other} on {place(y)}; move one of them, nothing is copied silently"
            )
        if x.dtype != y.dtype:
            raise TypeError(
                f"{op}: {name} is {x.dtype} and {other} is {y.dtype}; use one dtype, for example "
                f"{other}.astype({name}.dtype)"
            )


def channels_first(op: str, name: str, x: Any, rank: int, layout: str) -> tuple[Any, bool]:
    """``x`` viewed as (N, C, *spatial), and whether it had a batch dimension."""
    batched = x.ndim == rank + 2
    if not batched and x.ndim != rank + 1:
        order = "C, *spatial" if layout == "channels_first" else "*spatial, C"
        raise ValueError(
            f"{op}: {name} must have {rank + 2} dimensions (N, {order}) or {rank + 1} without the batch, got shape "
            f"{x.shape}"
        )
    if not batched:
        x = x[None]
    if layout == "channels_last":
        x = x.transpose(0, rank + 1, *range(1, rank + 1))
    return x, batched


def restore(x: Any, rank: int, layout: str, batched: bool) -> Any:
    """The inverse of :func:`channels_first`."""
    if layout == "channels_last":
        x = x.transpose(0, *range(2, rank + 2), 1)
    return x if batched else x[0]


def empty(like: Any, shape: Sizes, layout: str, dtype: Any = None) -> Any:
    """A new array on ``like``'s device, of logical shape (N, C, *spatial), lying in memory as ``layout`` says."""
    xp = array_module(like)
    dtype = like.dtype if dtype is None else dtype
    with on_device(like):
        if layout == "channels_first":
            return xp.empty(shape, dtype)
        n, c, *spatial = shape
        return xp.empty((n, *spatial, c), dtype).transpose(0, len(shape) - 1, *range(1, len(shape) - 1))


def check_out(op: str, out: Any, like: Any, shape: Sizes) -> None:
    """``out`` must be a writeable array of the result's shape, dtype and device (``shape`` as the user sees it)."""
    if type(out) is type(like) is np.ndarray and out.shape == shape and out.dtype is like.dtype:
        flags = out.flags
        if flags.c_contiguous and flags.writeable:  # the usual case
            return
    if not isinstance(out, np.ndarray) and array_module(out) is np:
        raise TypeError(f"{op}: out must be an array of {like.dtype} with shape {shape}, got {type(out).__name__}")
    if out.shape != shape:
        raise ValueError(f"{op}: out must have the shape {shape}, got {out.shape}")
    same_kind(op, ("x", like), ("out", out))
    if isinstance(out, np.ndarray) and not out.flags.writeable:
        raise ValueError(f"{op}: out is read-only")
    if any(n > 1 and stride == 0 for n, stride in zip(out.shape, out.strides, strict=True)):
        raise ValueError(
            f"{op}: out overlaps itself (strides {out.strides}): elements of the result would share memory"
        )


def overlaps(out: Any, *inputs: Any) -> bool:
    """Whether ``out`` may share memory with an input, judged by address ranges (cheap, never wrong about 'no')."""
    if type(out) is np.ndarray:
        return any(y is not None and np.may_share_memory(out, y) for y in inputs)
    # CuPy's own function holds arrays apart that came through DLPack at different times
    start, end = _extent(out)
    for y in inputs:
        if y is not None:
            first, last = _extent(y)
            if first < end and start < last:
                return True
    return False


def _extent(x: Any) -> tuple[int, int]:
    """The addresses between which a CuPy array's elements lie."""
    start: int = x.data.ptr
    first, last = span(x.shape, x.strides, x.itemsize)
    return start + first, start + last


@lru_cache(maxsize=1024)
def span(shape: Sizes, strides: Sizes, itemsize: int) -> tuple[int, int]:
    """The bytes that an array's elements lie between, counted from its first element.

    >>> span((2, 3), (12, 4), 4), span((2, 3), (-12, 4), 4), span((0, 3), (12, 4), 4)
    ((0, 24), (-12, 12), (0, 0))
    """
    if 0 in shape:
        return 0, 0
    first, last = 0, itemsize
    for n, stride in zip(shape, strides, strict=True):
        if stride < 0:
            first += (n - 1) * stride
        else:
            last += (n - 1) * stride
    return first, last
