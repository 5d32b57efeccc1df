"""fastconv: convolution and pooling kernels in Python, for NumPy and CuPy arrays.

>>> import numpy as np, fastconv
>>> x = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)
>>> w = np.ones((8, 3, 3, 3), np.float32)
>>> fastconv.conv2d(x, w, padding="same", activation="relu").shape
(1, 8, 32, 32)

Importing it loads NumPy and nothing heavier; kernels, Numba and CuPy come with the first call that needs them.
"""

import importlib
from types import ModuleType

from ._version import __version__
from .autograd import Tensor, no_grad
from .dispatch import SlowPathWarning, cache_clear, cache_info, explain
from .functional import (
    adaptive_avg_pool1d,
    adaptive_avg_pool2d,
    adaptive_avg_pool3d,
    adaptive_max_pool1d,
    adaptive_max_pool2d,
    adaptive_max_pool3d,
    avg_pool1d,
    avg_pool2d,
    avg_pool3d,
    conv1d,
    conv2d,
    conv3d,
    conv_transpose1d,
    conv_transpose2d,
    conv_transpose3d,
    lp_pool1d,
    lp_pool2d,
    lp_pool3d,
    max_pool1d,
    max_pool2d,
    max_pool3d,
    max_unpool1d,
    max_unpool2d,
    max_unpool3d,
    min_pool1d,
    min_pool2d,
    min_pool3d,
)
from .plan import (
    ConvPlan,
    plan_conv1d,
    plan_conv2d,
    plan_conv3d,
    plan_conv_transpose1d,
    plan_conv_transpose2d,
    plan_conv_transpose3d,
)
from .settings import get_num_threads, options, set_num_threads

_SUBMODULES = ("backends", "data", "grad", "kernels", "nn", "optim", "testing", "train", "tuning")


def __getattr__(name: str) -> ModuleType:
    """Submodules on first use: ``fastconv.nn`` needs no import of its own."""
    if name in _SUBMODULES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_SUBMODULES])


__all__ = [
    "ConvPlan",
    "SlowPathWarning",
    "Tensor",
    "__version__",
    "adaptive_avg_pool1d",
    "adaptive_avg_pool2d",
    "adaptive_avg_pool3d",
    "adaptive_max_pool1d",
    "adaptive_max_pool2d",
    "adaptive_max_pool3d",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "backends",
    "cache_clear",
    "cache_info",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "data",
    "explain",
    "get_num_threads",
    "grad",
    "kernels",
    "lp_pool1d",
    "lp_pool2d",
    "lp_pool3d",
    "max_pool1d",
    "max_pool2d",
    "max_pool3d",
    "max_unpool1d",
    "max_unpool2d",
    "max_unpool3d",
    "min_pool1d",
    "min_pool2d",
    "min_pool3d",
    "nn",
    "no_grad",
    "optim",
    "options",
    "plan_conv1d",
    "plan_conv2d",
    "plan_conv3d",
    "plan_conv_transpose1d",
    "plan_conv_transpose2d",
    "plan_conv_transpose3d",
    "set_num_threads",
    "testing",
    "train",
    "tuning",
]
