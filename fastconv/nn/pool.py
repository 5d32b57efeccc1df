"""Pooling layers: :mod:`fastconv.functional`'s poolings with their parameters remembered, PyTorch's signatures."""

from __future__ import annotations

from typing import Any

from .. import functional
from .module import Module


class _Pool(Module):
    """A pooling whose attributes, in order, are the keywords of its function."""

    operation: str

    def __init__(self, **keywords: Any) -> None:
        self.keywords = keywords

    def forward(self, x: Any) -> Any:
        return getattr(functional, self.operation)(x, **self.keywords)

    def extra_repr(self) -> str:
        defaults = {"stride": None, "divisor_override": None, "return_indices": False, "count_include_pad": True}
        return ", ".join(f"{k}={v!r}" for k, v in self.keywords.items() if k not in defaults or v != defaults[k])


class _Extremum(_Pool):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        return_indices: bool = False,
        ceil_mode: bool = False,
    ) -> None:
        super().__init__(
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            return_indices=return_indices,
            ceil_mode=ceil_mode,
        )


class MaxPool1d(_Extremum):
    """Maximum of each window of (N, C, L); parameters as :func:`fastconv.max_pool1d`, in PyTorch's order.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.MaxPool1d(2)(np.zeros((1, 3, 8), np.float32)).shape
    (1, 3, 4)
    """

    operation = "max_pool1d"


class MaxPool2d(_Extremum):
    """Maximum of each window of (N, C, H, W); parameters as :func:`fastconv.max_pool2d`, in PyTorch's order.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.MaxPool2d(2)(np.zeros((1, 3, 8, 8), np.float32)).shape
    (1, 3, 4, 4)
    """

    operation = "max_pool2d"


class MaxPool3d(_Extremum):
    """Maximum of each window of (N, C, D, H, W); parameters as :func:`fastconv.max_pool3d`, in PyTorch's order.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.MaxPool3d(2)(np.zeros((1, 3, 8, 8, 8), np.float32)).shape
    (1, 3, 4, 4, 4)
    """

    operation = "max_pool3d"


class MinPool1d(_Extremum):
    """Minimum of each window of (N, C, L); parameters as :class:`MaxPool1d`."""

    operation = "min_pool1d"


class MinPool2d(_Extremum):
    """Minimum of each window of (N, C, H, W); parameters as :class:`MaxPool2d`."""

    operation = "min_pool2d"


class MinPool3d(_Extremum):
    """Minimum of each window of (N, C, D, H, W); parameters as :class:`MaxPool3d`."""

    operation = "min_pool3d"


class _Average(_Pool):
    def __init__(
        self,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> None:
        super().__init__(
            kernel_size=kernel_size,
            stride=stride,
            padding=padding,
            ceil_mode=ceil_mode,
            count_include_pad=count_include_pad,
            divisor_override=divisor_override,
        )


class AvgPool1d(_Average):
    """Mean of each window of (N, C, L); parameters as :func:`fastconv.avg_pool1d`, in PyTorch's order.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.AvgPool1d(2)(np.zeros((1, 3, 8), np.float32)).shape
    (1, 3, 4)
    """

    operation = "avg_pool1d"


class AvgPool2d(_Average):
    """Mean of each window of (N, C, H, W); parameters as :func:`fastconv.avg_pool2d`, in PyTorch's order.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.AvgPool2d(3, stride=2, padding=1)
    AvgPool2d(kernel_size=3, stride=2, padding=1, ceil_mode=False)
    """

    operation = "avg_pool2d"


class AvgPool3d(_Average):
    """Mean of each window of (N, C, D, H, W); parameters as :func:`fastconv.avg_pool3d`, in PyTorch's order."""

    operation = "avg_pool3d"


class _Norm(_Pool):
    def __init__(self, norm_type: float, kernel_size: Any, stride: Any = None, ceil_mode: bool = False) -> None:
        super().__init__(norm_type=norm_type, kernel_size=kernel_size, stride=stride, ceil_mode=ceil_mode)


class LPPool1d(_Norm):
    """(Σ x^p)^(1/p) of each window of (N, C, L); parameters as :func:`fastconv.lp_pool1d`, in PyTorch's order.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.LPPool1d(1, 2)(np.ones((1, 1, 4), np.float32)).tolist()
    [[[2.0, 2.0]]]
    """

    operation = "lp_pool1d"


class LPPool2d(_Norm):
    """(Σ x^p)^(1/p) of each window of (N, C, H, W); parameters as :class:`LPPool1d`."""

    operation = "lp_pool2d"


class LPPool3d(_Norm):
    """(Σ x^p)^(1/p) of each window of (N, C, D, H, W); parameters as :class:`LPPool1d`."""

    operation = "lp_pool3d"


class _AdaptiveAverage(_Pool):
    def __init__(self, output_size: Any) -> None:
        super().__init__(output_size=output_size)


class AdaptiveAvgPool1d(_AdaptiveAverage):
    """Mean over ``output_size`` evenly spread windows of (N, C, L)."""

    operation = "adaptive_avg_pool1d"


class AdaptiveAvgPool2d(_AdaptiveAverage):
    """Mean over ``output_size`` evenly spread windows of (N, C, H, W); 1 is global average pooling.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.AdaptiveAvgPool2d(1)(np.zeros((1, 3, 7, 5), np.float32)).shape
    (1, 3, 1, 1)
    """

    operation = "adaptive_avg_pool2d"


class AdaptiveAvgPool3d(_AdaptiveAverage):
    """Mean over ``output_size`` evenly spread windows of (N, C, D, H, W)."""

    operation = "adaptive_avg_pool3d"


class _AdaptiveMaximum(_Pool):
    def __init__(self, output_size: Any, return_indices: bool = False) -> None:
        super().__init__(output_size=output_size, return_indices=return_indices)


class AdaptiveMaxPool1d(_AdaptiveMaximum):
    """Maximum over ``output_size`` evenly spread windows of (N, C, L)."""

    operation = "adaptive_max_pool1d"


class AdaptiveMaxPool2d(_AdaptiveMaximum):
    """Maximum over ``output_size`` evenly spread windows of (N, C, H, W).

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.AdaptiveMaxPool2d((2, 1))(np.zeros((1, 3, 7, 5), np.float32)).shape
    (1, 3, 2, 1)
    """

    operation = "adaptive_max_pool2d"


class AdaptiveMaxPool3d(_AdaptiveMaximum):
    """Maximum over ``output_size`` evenly spread windows of (N, C, D, H, W)."""

    operation = "adaptive_max_pool3d"


class _Unpool(_Pool):
    def __init__(self, kernel_size: Any, stride: Any = None, padding: Any = 0) -> None:
        super().__init__(kernel_size=kernel_size, stride=stride, padding=padding)

    def forward(self, x: Any, indices: Any = None, output_size: Any = None) -> Any:
        return getattr(functional, self.operation)(x, indices, **self.keywords, output_size=output_size)


class MaxUnpool1d(_Unpool):
    """Put maxima back where :class:`MaxPool1d` found them; called with (x, indices, output_size=None)."""

    operation = "max_unpool1d"


class MaxUnpool2d(_Unpool):
    """Put maxima back where :class:`MaxPool2d` found them; called with (x, indices, output_size=None).

    >>> import numpy as np
    >>> from fastconv import nn
    >>> x = np.array([[[[1, 2], [4, 3]]]], np.float32)
    >>> nn.MaxUnpool2d(2)(*nn.MaxPool2d(2, return_indices=True)(x)).tolist()
    [[[[0.0, 0.0], [4.0, 0.0]]]]
    """

    operation = "max_unpool2d"


class MaxUnpool3d(_Unpool):
    """Put maxima back where :class:`MaxPool3d` found them; called with (x, indices, output_size=None)."""

    operation = "max_unpool3d"
