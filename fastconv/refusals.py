"""Why a kernel cannot run a problem: what the registry's rows say of what they leave to others.

Each function takes a problem and gives None where the kernel can run it, else the reason, which completes a sentence
whose subject is the kernel: "direct_bfloat16 computes 1x1 kernels, not (3, 3)".
"""

from __future__ import annotations

import math

from .kernels.geometry import phases_as_channels
from .kernels.winograd_matrices import Variant
from .problem import ConvProblem, PoolProblem, Problem
from .targets import CPU, CUDA, resolve


def always(problem: Problem) -> str | None:
    return None


def winograd_why_not(variant: Variant, problem: ConvProblem) -> str | None:
    g = problem.geometry
    kernel, stride = (1, *g.kernel_size)[-2:], (1, *g.stride)[-2:]
    if max(stride) > 1 and max(g.dilation[-2:]) > 1:
        return f"computes dilation 1 where there is a stride, not {g.dilation}"
    if problem.direction == "grad_input":  # of a stride: each phase has its share of the taps
        taps = tuple(s * k for s, k in zip(stride, variant.kernel, strict=True))
        return None if kernel == taps else f"computes kernels {taps} at stride {stride}, not {kernel}"
    if stride != variant.strides:
        return f"computes stride {variant.stride}, not {g.stride}"
    if variant.stride > 1 and g.rank > 2 and g.kernel_size[0] > 1:
        return f"computes kernels of one slice at stride 2, not {g.kernel_size}"
    if kernel != variant.kernel:
        return f"computes kernels {variant.kernel}, not {kernel}"
    return None


def winograd_phases_why_not(variant: Variant, problem: ConvProblem) -> str | None:
    g = problem.geometry
    if g.rank != 2:
        return f"computes images of two dimensions, not {g.rank}"
    if max(g.dilation) > 1:
        return f"computes dilation 1, not {g.dilation}"
    taps = phases_as_channels(g).kernel_size
    if max(g.stride) == 1 or taps != variant.kernel:
        return f"computes strides that leave {variant.kernel} taps of a kernel a phase, here {taps} of {g.kernel_size}"
    return None


def not_flat(problem: ConvProblem) -> str | None:
    g = problem.geometry
    return "computes images, not volumes" if g.rank > 2 else None


def bf16x3_winograd_why_not(variant: Variant, problem: ConvProblem) -> str | None:
    return no_amx(problem) or not_flat(problem) or winograd_why_not(variant, problem)


def cuda_winograd_why_not(variant: Variant, problem: ConvProblem) -> str | None:
    g = problem.geometry
    if problem.direction == "grad_input" and g.padding_mode != "zeros":
        return "folds no padded gradient"
    if any(d != 1 for d in g.dilation):
        return f"computes dilation 1, not {g.dilation}"
    if any(s != 1 for s in g.stride):
        return f"computes stride 1, not {g.stride}"
    return not_flat(problem) or winograd_why_not(variant, problem)


def cuda_winograd_fused_why_not(variant: Variant, problem: ConvProblem) -> str | None:
    reason = cuda_winograd_why_not(variant, problem)
    if reason is not None:
        return reason
    zeros = problem.geometry.padding_mode == "zeros"
    needed = resolve(f"{CUDA}winograd_fused:shared_bytes")(zeros)
    available = resolve(f"{CUDA}module:least_shared_bytes")()
    if needed <= available:
        return None
    return f"needs {needed} bytes of shared memory a block, the GPU (or one of them) has {available}"


def plane_too_large(problem: PoolProblem) -> str | None:
    g = problem.geometry
    plane = math.prod(g.input_size) * (g.channels if problem.layout == "channels_last" else 1)
    return None if plane < 2**31 else f"counts positions in 32 bits, a plane has {plane} elements"


def cuda_plane_too_large(problem: PoolProblem) -> str | None:
    plane = math.prod(problem.geometry.input_size)
    return None if plane < 2**31 else f"counts positions of a plane in 32 bits, there are {plane}"


def is_pointwise(problem: ConvProblem) -> str | None:
    return None if not_pointwise(problem) else "is called pointwise where the kernel is 1x1"


def not_pointwise(problem: ConvProblem) -> str | None:
    kernel = problem.geometry.kernel_size
    return None if max(kernel) == 1 else f"computes 1x1 kernels, not {kernel}"


NARROW_GROUP = 16  # channels: wider groups fill the tiles of a matrix product


def not_narrow(problem: ConvProblem) -> str | None:
    g = problem.geometry
    inputs = (g.out_channels if problem.direction == "grad_input" else g.in_channels) // g.groups
    if g.groups > 1 and inputs <= NARROW_GROUP:
        return None
    count = "is 1 group" if g.groups == 1 else f"are {g.groups} groups"
    return f"is for groups of at most {NARROW_GROUP} channels, here there {count} of {inputs}"


def not_cuda_depthwise(problem: ConvProblem) -> str | None:
    g = problem.geometry
    if g.in_channels != g.groups:
        return f"is for groups of one input channel, here they have {g.in_channels // g.groups}"
    if problem.direction == "grad_input" and g.padding_mode != "zeros":
        return f"gathers input gradients of zero padding, not {g.padding_mode}"
    return None


def no_bfloat16_products(problem: ConvProblem) -> str | None:
    if problem.direction == "grad_input" and problem.geometry.padding_mode != "zeros":
        return "folds no padded gradient, which would have to be held in float32"
    reason: str | None = resolve(f"{CPU}bfloat16:unavailable")()
    return reason


def no_amx(problem: ConvProblem) -> str | None:
    reason: str | None = resolve(f"{CPU}amx:unavailable")()
    return reason


def not_for_bf16x3(problem: ConvProblem) -> str | None:
    return no_amx(problem) or (None if not_narrow(problem) else "pads each group to 32 channels, which here are few")


CUDA_POSITIONS = 2**31 - 128
"""Positions that an int counts, to the end of the last tile."""


def not_a_cuda_product(problem: ConvProblem) -> str | None:
    g = problem.geometry
    if problem.direction == "grad_input" and g.padding_mode != "zeros":
        return f"folds no gradient of an input padded by {g.padding_mode}"
    if g.batch * max(math.prod(g.input_size), math.prod(g.output_size)) > CUDA_POSITIONS:
        return "counts positions in 32 bits"
    return None


def not_a_cuda_pointwise(problem: ConvProblem) -> str | None:
    return not_pointwise(problem) or not_a_cuda_product(problem)
