"""ONNX's operators on NumPy arrays and fastconv's kernels; :data:`OPERATORS` has them by name."""

from . import arithmetic, convolution, pooling, shapes
from .convolution import Packed
from .task import OPERATORS, Call, Orders, Replay, Spec, Task, evaluate, task_of

__all__ = [
    "OPERATORS",
    "Call",
    "Orders",
    "Packed",
    "Replay",
    "Spec",
    "Task",
    "arithmetic",
    "convolution",
    "evaluate",
    "pooling",
    "shapes",
    "task_of",
]
