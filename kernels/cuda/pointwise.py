"""1x1 convolution: the matrix product of ``im2col.cu`` without taps.

Contiguous planes of channels-first are read 16 bytes at a time, a quarter of the copies that positions one by one take;
other strides and layouts are read as im2col reads them. The weight gradient is im2col's own.
"""

from __future__ import annotations

from .im2col import entry_points

(
    forward, grad_input, pack_forward, pack_grad_input, forward_workspace, grad_input_workspace, forward_instances,
    grad_input_instances,
) = entry_points(quads=True)  # fmt: skip
