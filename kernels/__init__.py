"""Convolution and pooling kernels: arithmetic only.

Nothing here imports :mod:`fastconv`, chooses between kernels or checks a user's arguments. A caller
(the dispatcher, or you) has already done that and passes a frozen geometry and ready arrays.

**The kernel contract.** Every convolution kernel file offers these functions, with this argument order:

    forward(geometry, x, w, bias, residual, out, *, activation, packed, workspace, threads)
    grad_input(geometry, dy, w, bias, residual, out, *, activation, packed, workspace, threads)
    grad_weight(geometry, x, dy, out, *, workspace, threads)
    pack_forward(geometry, w)  and  pack_grad_input(geometry, w)     -> an opaque ``packed``

=============  ==========================================  ===================================================
argument       shape                                       meaning
=============  ==========================================  ===================================================
``geometry``   :class:`~fastconv.kernels.geometry.ConvGeometry`   every size, stride and padding, resolved to integers
``x``          (N, C, \\*spatial)                           input; any strides (channels-last arrives as a view)
``w``          (K, C/groups, \\*kernel)                     weights; any strides
``bias``       (K,) or None                                added to each output channel (C for ``grad_input``)
``residual``   the shape of ``out``, or None               added before the activation
``dy``         (N, K, \\*output)                            gradient of the output
``out``        last and preallocated                       written completely; any strides
``activation`` None or a name of ``ACTIVATIONS``           ``out = activation(result + bias + residual)``
``packed``     None or what ``pack_*`` returned            prepacked weights; ``w`` is then not read
``workspace``  1-D uint8, 64-byte aligned                  at least as long as the kernel's workspace function says
``threads``    int >= 1                                    work is cut for at most this many threads
=============  ==========================================  ===================================================

``grad_input`` is also the transposed convolution, which is why it takes the epilogue's arguments.
Results do not depend on ``threads``: the same bits come out of one thread and of eight.

Pooling kernels take a :class:`~fastconv.kernels.geometry.PoolGeometry`:

    max_forward / min_forward(geometry, x, indices, out, *, threads)     indices: None, int32 or int64 array like out
    avg_forward / lp_forward(geometry, x, out, *, threads)
    max_grad_input / min_grad_input(geometry, dy, indices, out, *, threads)
    avg_grad_input(geometry, dy, out, *, threads)
    lp_grad_input(geometry, x, y, dy, out, *, threads)
    unpool_forward(geometry, x, indices, out, *, threads)
    unpool_grad_input(geometry, dy, indices, out, *, threads)

``indices`` are flat within one unpadded channel plane (as PyTorch's), -1 where a window holds no element.

Zero padding may be multiplied like any other element: non-finite *weights* may make NaN where windows touch padding,
also in ``grad_input``, where ``reference.py`` does not multiply it. Where exactly depends on how work is cut, so it is
the one thing that ``threads`` may change. Non-finite x and dy give what the reference gives.

Arrays are float32 or float64, all of one dtype; CPU kernels also take float16 and bfloat16, which they
compute in float32. ``reference.py`` follows the same contract and computes in float64 whatever it is given.
"""

ACTIVATIONS = ("relu", "relu6", "leaky_relu", "silu", "gelu", "sigmoid", "tanh", "hardswish")
"""Names of the fused activations, PyTorch's definitions and defaults (leaky slope 0.01, exact erf GELU)."""
