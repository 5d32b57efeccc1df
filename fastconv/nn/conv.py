"""Convolution layers: :mod:`fastconv.functional`'s convolutions with weights of their own, PyTorch's signatures."""

from __future__ import annotations

from typing import Any

import numpy as np

from .. import functional
from . import init
from .module import Module, Parameter


def per_dimension(name: str, value: Any, rank: int) -> tuple[int, ...]:
    """An integer for every spatial dimension, or one for each.

    >>> per_dimension("stride", 2, 3)
    (2, 2, 2)
    """
    entries = tuple(value) if isinstance(value, tuple | list) else (value,) * rank
    if len(entries) != rank or not all(isinstance(v, int | np.integer) and v >= 1 for v in entries):
        raise ValueError(f"{name} must be a positive integer, or {rank} of them, got {value!r}")
    return tuple(map(int, entries))


class _Conv(Module):
    """What convolutions and transposed convolutions share."""

    rank: int
    operation: str

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        weight_channels: tuple[int, int],
        *,
        groups: int,
        bias: bool,
        dtype: Any,
        generator: np.random.Generator | None,
    ) -> None:
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size = per_dimension("kernel_size", kernel_size, self.rank)
        shape = (*weight_channels, *self.kernel_size)
        weight, start = init.weight_and_bias(shape, out_channels, bias, dtype, generator)
        self.weight = Parameter(weight)
        self.bias = None if start is None else Parameter(start)

    def keywords(self) -> dict[str, Any]:
        """The operation's keywords."""
        raise NotImplementedError

    def forward(self, x: Any) -> Any:
        return getattr(functional, self.operation)(x, self.weight, self.bias, **self.keywords())

    def extra_repr(self) -> str:
        defaults = {"padding": 0, "output_padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}
        parts = [f"{self.in_channels}, {self.out_channels}", f"kernel_size={self.kernel_size}"]
        for name, value in self.keywords().items():
            if value == defaults.get(name):
                continue
            shown = (value,) * self.rank if isinstance(value, int) and name != "groups" else value
            parts.append(f"{name}={shown!r}")
        return ", ".join([*parts, "bias=False"] if self.bias is None else parts)


def _check_channels(in_channels: int, out_channels: int, groups: int) -> None:
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels), ("groups", groups)):
        if not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    for name, value in (("in_channels", in_channels), ("out_channels", out_channels)):
        if value % groups:
            raise ValueError(f"{name} must be a multiple of groups={groups}, got {value}")


class _Convolution(_Conv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        dtype: Any = np.float32,
        generator: np.random.Generator | None = None,
    ) -> None:
        _check_channels(in_channels, out_channels, groups)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            (out_channels, in_channels // groups),
            groups=groups,
            bias=bias,
            dtype=dtype,
            generator=generator,
        )
        self.stride, self.padding, self.dilation, self.padding_mode = stride, padding, dilation, padding_mode

    def keywords(self) -> dict[str, Any]:
        names = ("stride", "padding", "dilation", "groups", "padding_mode")
        return {name: getattr(self, name) for name in names}


class Conv1d(_Convolution):
    """1-D convolution of (N, C_in, L) signals, with a learned ``weight`` (C_out, C_in/groups, K) and ``bias`` (C_out,).

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Conv1d(2, 4, 3, padding=1)(np.zeros((1, 2, 16), np.float32)).shape
    (1, 4, 16)

    Parameters are PyTorch's, and every form of padding that :func:`fastconv.conv1d` takes. ``dtype`` is the weights',
    ``generator`` a NumPy generator to draw them from (by default the one that ``nn.manual_seed`` seeds).
    """

    rank, operation = 1, "conv1d"


class Conv2d(_Convolution):
    """2-D convolution of (N, C_in, H, W) images, with a learned ``weight`` (C_out, C_in/groups, R, S) and ``bias``.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Conv2d(3, 8, 3, stride=2, padding="same")
    Conv2d(3, 8, kernel_size=(3, 3), stride=(2, 2), padding='same')

    Parameters are PyTorch's, and every form of padding that :func:`fastconv.conv2d` takes. ``dtype`` is the weights',
    ``generator`` a NumPy generator to draw them from (by default the one that ``nn.manual_seed`` seeds).
    """

    rank, operation = 2, "conv2d"


class Conv3d(_Convolution):
    """3-D convolution of (N, C_in, D, H, W) volumes or videos; see :class:`Conv2d`.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.Conv3d(1, 2, 3)(np.zeros((1, 1, 4, 5, 6), np.float32)).shape
    (1, 2, 2, 3, 4)
    """

    rank, operation = 3, "conv3d"


class _TransposedConvolution(_Conv):
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
        groups: int = 1,
        bias: bool = True,
        dilation: Any = 1,
        *,
        dtype: Any = np.float32,
        generator: np.random.Generator | None = None,
    ) -> None:
        _check_channels(in_channels, out_channels, groups)
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            (in_channels, out_channels // groups),
            groups=groups,
            bias=bias,
            dtype=dtype,
            generator=generator,
        )
        self.stride, self.padding, self.dilation, self.output_padding = stride, padding, dilation, output_padding

    def keywords(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("stride", "padding", "output_padding", "dilation", "groups")}


class ConvTranspose1d(_TransposedConvolution):
    """1-D transposed convolution: upsamples (N, C_in, L); ``weight`` is (C_in, C_out/groups, K).

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.ConvTranspose1d(2, 4, 2, stride=2)(np.zeros((1, 2, 8), np.float32)).shape
    (1, 4, 16)
    """

    rank, operation = 1, "conv_transpose1d"


class ConvTranspose2d(_TransposedConvolution):
    """2-D transposed convolution: upsamples (N, C_in, H, W); ``weight`` is (C_in, C_out/groups, R, S).

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.ConvTranspose2d(2, 4, 2, stride=2)(np.zeros((1, 2, 8, 8), np.float32)).shape
    (1, 4, 16, 16)

    Parameters are PyTorch's, in its order; ``dtype`` and ``generator`` as for :class:`Conv2d`.
    """

    rank, operation = 2, "conv_transpose2d"


class ConvTranspose3d(_TransposedConvolution):
    """3-D transposed convolution: upsamples (N, C_in, D, H, W); see :class:`ConvTranspose2d`.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.ConvTranspose3d(2, 1, 2, stride=2)(np.zeros((1, 2, 2, 3, 4), np.float32)).shape
    (1, 1, 4, 6, 8)
    """

    rank, operation = 3, "conv_transpose3d"
