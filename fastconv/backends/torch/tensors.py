"""PyTorch's tensors as arrays and back, without a copy.

On the CPU an array is NumPy's, over the tensor's memory; on a GPU CuPy's, and what runs inside :func:`on_device` runs
on the tensor's device and on PyTorch's current stream. bfloat16 travels as 16-bit integers, because PyTorch knows no
NumPy type for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.autograd import forward_ad

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""PyTorch's channels-last formats, by number of dimensions: there is none for (N, C, L)."""


def why_not(*tensors: Any) -> str | None:
    """None where all tensors can be read as arrays of one dtype on one device, else the reason; None is skipped."""
    first = tensors[0]
    for t in tensors:
        if t is None:
            continue
        if not isinstance(t, torch.Tensor):
            return f"takes tensors, not {type(t).__name__}"
        if t.layout is not torch.strided or t.is_quantized:
            return f"takes dense tensors, not {t.layout}"
        if t.dtype not in DTYPES:
            return f"computes float32, float64, float16 and bfloat16, not {str(t.dtype).removeprefix('torch.')}"
        if t.device.type not in ("cpu", "cuda", "meta"):
            return f"runs on the CPU and on CUDA devices, not on {t.device}"
        if forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None:
            return "has no forward-mode derivatives"
        if t.dtype != first.dtype or t.device != first.device:
            kinds = f"{first.dtype} on {first.device} and {t.dtype} on {t.device}"
            return f"takes tensors of one dtype and device, not {kinds}"
    return None


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether x lies in a channels-last format and not also in the usual one."""
    form = CHANNELS_LAST.get(x.dim())
    return form is not None and x.is_contiguous(memory_format=form) and not x.is_contiguous()


def empty(like: torch.Tensor, shape: Any, channels_last: bool) -> torch.Tensor:
    """A new tensor of ``like``'s dtype and device."""
    form = CHANNELS_LAST[len(shape)] if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=form)


def array(t: torch.Tensor) -> Any:
    """The tensor's elements as a NumPy or CuPy array over the same memory."""
    if t.is_cpu and t.dtype is not torch.bfloat16:
        return t.numpy(force=True)  # detached; a copy only of a lazily negated tensor
    if t.is_cuda:
        import cupy

        return cupy.from_dlpack(t.detach().resolve_neg())
    return t.detach().resolve_neg().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def tensor(a: Any) -> torch.Tensor:
    """A NumPy or CuPy array as a tensor over the same memory."""
    if not isinstance(a, np.ndarray):
        return torch.utils.dlpack.from_dlpack(a)
    if a.dtype is _BFLOAT16:
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)


class _Stream:
    """A stream of PyTorch's in the form in which CuPy takes one; PyTorch's own class has it in late releases only."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.stream.cuda_stream


@contextmanager
def _on_stream(device: torch.device) -> Iterator[None]:
    import cupy

    stream = _Stream(torch.cuda.current_stream(device))
    with cupy.cuda.Device(device.index), cupy.cuda.Stream.from_external(stream):
        yield


def on_device(t: torch.Tensor) -> Any:
    """A context in which CuPy's work goes to the tensor's device, in PyTorch's current stream."""
    return _on_stream(t.device) if t.is_cuda else nullcontext()


def channels_last_view(a: Any) -> Any:
    """(N, C, *spatial) seen as (N, *spatial, C)."""
    return a.transpose(0, *range(2, a.ndim), 1)


def channels_first_view(a: Any) -> Any:
    """(N, *spatial, C) seen as (N, C, *spatial)."""
    return a.transpose(0, a.ndim - 1, *range(1, a.ndim - 1))
