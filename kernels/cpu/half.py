"""float16 and bfloat16 through the float32 kernels: operands are converted into the workspace, results rounded once."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import numpy as np

from .arrays import Workspace

_SINGLE = np.dtype(np.float32)


def in_float32(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let a kernel function take 16-bit arrays.

    The workspace holds float32 copies of every operand (see ``blocking._with_half``) in front of the kernel's own
    scratch. A residual is placed where the result will be: the epilogue reads each element before it writes it.
    """

    @wraps(function)
    def kernel(geometry: Any, *arrays: np.ndarray | None, workspace: np.ndarray, **options: Any) -> None:
        out = arrays[-1]
        assert out is not None
        if out.dtype.itemsize != 2:
            function(geometry, *arrays, workspace=workspace, **options)
            return
        scratch = Workspace(workspace)
        result = scratch.take(out.shape, _SINGLE)
        singles: list[np.ndarray | None] = []
        prepacked = options.get("packed") is not None
        for i, array in enumerate(arrays[:-1]):
            if i == 1 and prepacked:  # the weights are not read
                singles.append(None)
            elif array is None or array.ndim == 1:  # a bias is small
                singles.append(None if array is None else array.astype(_SINGLE))
            elif i == 3:
                result[...] = array
                singles.append(result)
            else:
                single = scratch.take(array.shape, _SINGLE)
                single[...] = array
                singles.append(single)
        function(geometry, *singles, result, workspace=workspace[scratch.used :], **options)
        out[...] = result

    return kernel
