"""ONNX models on fastconv's kernels: loaded, checked, optimised, and run.

    from fastconv.backends import onnx as fco

    net = fco.prepare("model.onnx")        a path, bytes, or an onnx.ModelProto
    (y,) = net.run([x])                    NumPy arrays in and out
    print(net.explain())                   which kernel each node runs on

:func:`prepare`, :func:`run_model`, :func:`run_node` and :func:`supports_device` are ``onnx.backend.base``'s interface;
:class:`Executor` is what they use.
"""

from fastconv.extras import extra

extra("onnx", "onnx", "fastconv.backends.onnx")

from .backend import Backend, Prepared, explain  # noqa: E402  # the line above says what is missing
from .executor import Executor, Explanation  # noqa: E402

is_compatible = Backend.is_compatible
prepare = Backend.prepare
run_model = Backend.run_model
run_node = Backend.run_node
supports_device = Backend.supports_device

__all__ = [
    "Backend", "Executor", "Explanation", "Prepared", "explain", "is_compatible", "prepare", "run_model", "run_node",
    "supports_device",
]  # fmt: skip
