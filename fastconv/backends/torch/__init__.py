"""PyTorch's convolutions and poolings by fastconv: functions, and a block in which PyTorch's own run on fastconv.

    from fastconv.backends import torch as fct

    y = fct.conv2d(x, w, padding=1)        torch.nn.functional's functions, differentiable, on CPU and CUDA tensors
    with fct.use():                        or: PyTorch's own functions and modules inside the block
        y = model(x)
    model = fct.convert(model)             or: a model's own modules, with weights packed ahead and layers folded


All go through custom operators (``torch.ops.fastconv.*``), which ``torch.compile``, ``torch.export``,
``torch.func.vmap`` and autocast know.
"""

from fastconv.extras import extra

extra("torch", "torch", "fastconv.backends.torch")

from .convert import convert, explain, revert  # noqa: E402  # the line above says what is missing
from .functions import (  # noqa: E402
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
)
from .use import use  # noqa: E402

__all__ = [
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d",
    "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "conv1d", "conv2d", "conv3d", "conv_transpose1d",
    "conv_transpose2d", "conv_transpose3d", "convert", "explain", "lp_pool1d", "lp_pool2d", "lp_pool3d",
    "max_pool1d", "max_pool2d", "max_pool3d", "max_unpool1d", "max_unpool2d", "max_unpool3d", "revert", "use",
]  # fmt: skip
