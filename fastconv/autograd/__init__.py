"""Automatic differentiation in the spirit of HIPS/autograd.

``tape`` records calls and walks back, and knows no operation; ``array_ops`` and ``activations`` are the operations
of arrays beside their gradients; ``tensor`` gives them operators. Convolutions and poolings join the same way, in
:mod:`fastconv.functional`: :func:`primitive` makes a function of arrays one of Tensors, :func:`defvjp` states its
gradient.
"""

from .activations import gelu, hardswish, leaky_relu, relu, relu6, sigmoid, silu, tanh
from .array_ops import (
    absolute,
    concatenate,
    exp,
    log,
    matmul,
    max,
    maximum,
    mean,
    min,
    minimum,
    pad,
    reshape,
    sqrt,
    stack,
    sum,
    transpose,
    where,
)
from .tape import (
    Array,
    Variable,
    Vjp,
    array_module,
    defvjp,
    defvjp_joint,
    is_floating,
    is_grad_enabled,
    no_grad,
    on_device,
    primitive,
)
from .tensor import Tensor

__all__ = [
    "Array",
    "Tensor",
    "Variable",
    "Vjp",
    "absolute",
    "array_module",
    "concatenate",
    "defvjp",
    "defvjp_joint",
    "exp",
    "gelu",
    "hardswish",
    "is_floating",
    "is_grad_enabled",
    "leaky_relu",
    "log",
    "matmul",
    "max",
    "maximum",
    "mean",
    "min",
    "minimum",
    "no_grad",
    "on_device",
    "pad",
    "primitive",
    "relu",
    "relu6",
    "reshape",
    "sigmoid",
    "silu",
    "sqrt",
    "stack",
    "sum",
    "tanh",
    "transpose",
    "where",
]
