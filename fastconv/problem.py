"""Problems: one frozen description of each convolution or pooling, validated once.

The dispatcher, the cost model and the caches see problems, never arrays. The functions at the end build them from
what a user typed, each parameter read by :mod:`fastconv.arguments`; every invalid combination raises here, with the
argument, what was given, what was needed and, where there is one, the fix. Shapes are logical, channels first: the
layout says how the arrays lie in memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from .arguments import (
    INT64_MAX,
    LAYOUTS,
    check_choice,
    flag,
    group_count,
    integer,
    is_sequence,
    norm_exponent,
    paddings,
    sizes,
)
from .kernels import ACTIVATIONS
from .kernels.geometry import (
    PADDING_MODES,
    ConvGeometry,
    Pads,
    PoolGeometry,
    Sizes,
    conv_transpose_output_size,
    hashed_once,
    pool_output_size,
    same_padding,
    span,
)

DTYPES = ("float32", "float64", "float16", "bfloat16")
ITEMSIZE = {"float32": 4, "float64": 8, "float16": 2, "bfloat16": 2}


@hashed_once
@dataclass(frozen=True)
class ConvProblem:
    """One direction of one convolution. ``grad_input`` with an epilogue is the transposed convolution.

    ``prepared`` says that the weights are packed beforehand, as a plan does: what is cheapest may depend on it.

    >>> from fastconv.kernels.geometry import ConvGeometry
    >>> g = ConvGeometry(1, 64, 64, (56, 56), (3, 3), (1, 1), ((1, 1), (1, 1)))
    >>> ConvProblem(g).flops
    231211008
    """

    geometry: ConvGeometry
    direction: str = "forward"
    dtype: str = "float32"
    layout: str = "channels_first"
    device: str = "cpu"
    bias: bool = False
    residual: bool = False
    activation: str | None = None
    prepared: bool = False

    op = "conv"

    @property
    def flops(self) -> int:
        """Floating-point operations of the direct algorithm, two a multiply-add."""
        return 2 * self.geometry.multiply_adds

    @property
    def bytes(self) -> int:
        """Bytes read and written at least once: input, weights and output."""
        g = self.geometry
        arrays = math.prod(g.input_shape) + math.prod(g.weight_shape) + math.prod(g.output_shape) * (1 + self.residual)
        return arrays * ITEMSIZE[self.dtype]

    @property
    def reduction(self) -> int:
        """Products summed for one element of the result, the epilogue's additions included."""
        g = self.geometry
        if self.direction == "grad_weight":
            return g.batch * math.prod(g.output_size)
        if self.direction == "grad_input":
            taps = math.prod(-(-k // s) for k, s in zip(g.kernel_size, g.stride, strict=True))
            folded = 1 if g.padding_mode == "zeros" else math.prod(g.kernel_size)
            return g.out_channels // g.groups * taps * folded + self.bias + self.residual
        return g.reduction + self.bias + self.residual

    def __str__(self) -> str:
        g = self.geometry
        extras = "".join(
            [
                f", dilation {_show(g.dilation)}" if any(d != 1 for d in g.dilation) else "",
                f", groups {g.groups}" if g.groups != 1 else "",
                f", {g.padding_mode} padding" if g.padding_mode != "zeros" else "",
                f", {self.activation}" if self.activation else "",
                ", prepared" if self.prepared else "",
            ]
        )
        return (
            f"conv{g.rank}d {self.direction}: {_show(g.input_shape)} * {_show(g.weight_shape)} -> "
            f"{_show(g.output_shape)}, stride {_show(g.stride)}, padding {_show_pads(g.padding)}{extras}, "
            f"{self.dtype}, {LAYOUTS[g.rank][self.layout == 'channels_last']}, {self.device}"
        )


@hashed_once
@dataclass(frozen=True)
class PoolProblem:
    """One direction of one pooling (``op`` is max_pool, min_pool, avg_pool, lp_pool or max_unpool)."""

    op: str
    geometry: PoolGeometry
    direction: str = "forward"
    dtype: str = "float32"
    layout: str = "channels_first"
    device: str = "cpu"
    indices: bool = False

    @property
    def flops(self) -> int:
        """One operation a tap."""
        return math.prod(self.geometry.output_shape) * self.window

    @property
    def window(self) -> int:
        """Taps of the largest window."""
        if self.op == "max_unpool":
            return 1
        return math.prod(int(w.count.max(initial=0)) for w in self.geometry.windows)

    @property
    def bytes(self) -> int:
        """Bytes read and written at least once: input, output and int64 indices where there are any."""
        g = self.geometry
        outputs = math.prod(g.output_shape)
        return (math.prod(g.input_shape) + outputs) * ITEMSIZE[self.dtype] + 8 * outputs * self.indices

    @property
    def reduction(self) -> int:
        """Terms summed for one element of the result; 1 where nothing is added."""
        if self.op in ("avg_pool", "lp_pool"):
            return self.window
        return self.window if self.direction == "grad_input" and self.op != "max_unpool" else 1

    def __str__(self) -> str:
        g = self.geometry
        if g.adaptive:
            how = "adaptive"
        elif self.op == "max_unpool":
            how = "by indices"
        else:
            how = f"kernel {_show(g.kernel_size)}, stride {_show(g.stride)}, padding {_show_pads(g.padding)}"
        return (
            f"{self.op}{g.rank}d {self.direction}: {_show(g.input_shape)} -> {_show(g.output_shape)}, {how}, "
            f"{self.dtype}, {LAYOUTS[g.rank][self.layout == 'channels_last']}, {self.device}"
        )


Problem = ConvProblem | PoolProblem


def _show(sizes: Sizes) -> str:
    return "x".join(map(str, sizes))


def _show_pads(padding: Pads) -> str:
    return ",".join(str(a) if a == b else f"{a}+{b}" for a, b in padding)


# ---------------------------------------------------------------------------------------------------- building: both


def _too_large(op: str, what: str, shape: Sizes) -> None:
    if math.prod(max(s, 1) for s in shape) > INT64_MAX // 8:
        raise ValueError(f"{op}: {what} would have the shape {shape}, more elements than 64 bits address")


def _check_input(op: str, shape: Sizes) -> None:
    if shape[1] < 1:
        raise ValueError(f"{op}: x has no channels (shape {shape}, channels first)")
    if min(shape[2:]) < 1:
        raise ValueError(
            f"{op}: x has an empty spatial dimension (shape {shape}, channels first); only the batch may be empty"
        )


def _check_weights(op: str, rank: int, shape: Sizes, form: str) -> None:
    if len(shape) != rank + 2:
        raise ValueError(f"{op}: w must have {rank + 2} dimensions {form}, got shape {shape}")
    if min(shape) < 1:
        raise ValueError(f"{op}: w has an empty dimension: {shape}")


def _check_bias(op: str, shape: Sizes | None, channels: int, what: str) -> None:
    if shape is not None and shape != (channels,):
        raise ValueError(f"{op}: bias must have the shape ({channels},), one value per {what}, got {shape}")


def _resolve(pads: Pads | str, size: Sizes, kernel: Sizes, stride: Sizes, dilation: Sizes) -> Pads:
    if pads == "valid":
        return ((0, 0),) * len(size)
    if isinstance(pads, str):
        return same_padding(size, kernel, stride, dilation, lower=pads == "same_lower")
    return pads


# ------------------------------------------------------------------------------------------- building: convolutions


def conv_problem(
    op: str, rank: int, x_shape: Sizes, w_shape: Sizes, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: Any = 1, padding_mode: str = "zeros", activation: str | None = None, bias_shape: Sizes | None = None,
    residual_shape: Sizes | bool | None = None, direction: str = "forward", dtype: str = "float32",
    layout: str = "channels_first", device: str = "cpu", prepared: bool = False,
) -> ConvProblem:  # fmt: skip
    """The problem of ``conv{rank}d``; ``x_shape`` is (N, C, *spatial), ``w_shape`` (K, C/groups, *kernel).
    ``residual_shape`` True stands for the output's own shape.

    >>> conv_problem("conv2d", 2, (1, 3, 8, 8), (4, 3, 3, 3), padding="same").geometry.output_size
    (8, 8)
    """
    strides = sizes(op, "stride", stride, rank, 1)
    dilations = sizes(op, "dilation", dilation, rank, 1)
    pads = paddings(op, padding, rank)
    n_groups = group_count(op, groups)
    check_choice(op, "padding_mode", padding_mode, PADDING_MODES)
    if activation is not None:
        check_choice(op, "activation", activation, ACTIVATIONS, none=True)
    batch, channels, *spatial = x_shape
    _check_weights(op, rank, w_shape, "(C_out, C_in/groups, *kernel)")
    filters, per_group, *kernel = w_shape
    _check_input(op, x_shape)
    if channels % n_groups or filters % n_groups:
        raise ValueError(
            f"{op}: groups={n_groups} must divide the {channels} input channels of x and the {filters} output channels "
            "of w"
        )
    needed = per_group * n_groups
    if needed != channels:
        last = layout == "channels_first" and x_shape[-1] == needed
        hint = "; if its channels come last, say layout='channels_last'" if last else ""
        raise ValueError(
            f"{op}: w of shape {w_shape} takes {per_group} channels a group, so x needs {needed} channels "
            f"(groups={n_groups}), got {channels} (x is {x_shape}, channels first){hint}"
        )
    size, taps = tuple(spatial), tuple(kernel)
    resolved = _resolve(pads, size, taps, strides, dilations)
    for axis, (pair, n) in enumerate(zip(resolved, size, strict=True)):
        if padding_mode == "reflect" and max(pair) >= n:
            raise ValueError(
                f"{op}: padding_mode='reflect' needs padding below the input size, got {max(pair)} for size {n} "
                f"(dimension {axis})"
            )
        if padding_mode == "circular" and max(pair) > n:
            raise ValueError(
                f"{op}: padding_mode='circular' needs padding up to the input size, got {max(pair)} for size {n} "
                f"(dimension {axis})"
            )
    geometry = ConvGeometry(batch, channels, filters, size, taps, strides, resolved, dilations, n_groups, padding_mode)
    if min(geometry.output_size) < 1:
        spans = tuple(span(k, d) for k, d in zip(taps, dilations, strict=True))
        padded = tuple(a + n + b for (a, b), n in zip(resolved, size, strict=True))
        raise ValueError(
            f"{op}: the kernel does not fit: it spans {spans} (dilation included), the padded input has {padded}; "
            "increase padding"
        )
    _too_large(op, "the output", geometry.output_shape)
    _check_bias(op, bias_shape, filters, "output channel")
    if isinstance(residual_shape, tuple) and residual_shape != geometry.output_shape:
        raise ValueError(
            f"{op}: residual must have the output's shape {geometry.output_shape} (channels first), got "
            f"{residual_shape}"
        )
    return ConvProblem(
        geometry, direction, dtype, layout, device, bias_shape is not None, residual_shape is not None, activation,
        prepared,
    )  # fmt: skip


def conv_transpose_problem(
    op: str, rank: int, x_shape: Sizes, w_shape: Sizes, *, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
    dilation: Any = 1, groups: Any = 1, activation: str | None = None, bias_shape: Sizes | None = None,
    direction: str = "grad_input", dtype: str = "float32", layout: str = "channels_first", device: str = "cpu",
    prepared: bool = False,
) -> ConvProblem:  # fmt: skip
    """The problem of ``conv_transpose{rank}d``: the input gradient of the convolution that it transposes.

    ``x_shape`` is (N, C_in, *spatial), ``w_shape`` (C_in, C_out/groups, *kernel). In the problem's geometry the
    roles are the convolution's: its *output* is x, and ``output_padding`` shortens its trailing padding.

    >>> conv_transpose_problem("conv_transpose2d", 2, (1, 8, 7, 7), (8, 4, 2, 2), stride=2).geometry.input_shape
    (1, 4, 14, 14)
    """
    strides = sizes(op, "stride", stride, rank, 1)
    dilations = sizes(op, "dilation", dilation, rank, 1)
    extra = sizes(op, "output_padding", output_padding, rank, 0)
    pads = paddings(op, padding, rank)
    n_groups = group_count(op, groups)
    if activation is not None:
        check_choice(op, "activation", activation, ACTIVATIONS, none=True)
    if any(e >= max(s, d) for e, s, d in zip(extra, strides, dilations, strict=True)):
        raise ValueError(
            f"{op}: output_padding must be smaller than stride or dilation, got {extra} with stride {strides} and "
            f"dilation {dilations}"
        )
    batch, channels, *spatial = x_shape
    _check_weights(op, rank, w_shape, "(C_in, C_out/groups, *kernel)")
    w_channels, per_group, *kernel = w_shape
    _check_input(op, x_shape)
    if w_channels != channels:
        raise ValueError(
            f"{op}: w of shape {w_shape} needs x with {w_channels} channels, got {channels} (x is {x_shape}, channels "
            "first)"
        )
    if channels % n_groups:
        raise ValueError(f"{op}: groups={n_groups} must divide the {channels} input channels of x")
    filters = per_group * n_groups
    size, taps = tuple(spatial), tuple(kernel)
    if pads == "valid":
        pads = ((0, 0),) * rank
    if isinstance(pads, str):
        totals = [span(k, d) + e - s for k, d, e, s in zip(taps, dilations, extra, strides, strict=True)]
        if min(totals) < 0:
            raise ValueError(
                f"{op}: padding={padding!r} needs a kernel span + output_padding >= stride, got kernel {taps}, stride "
                f"{strides}; raise output_padding"
            )
        small = [(t // 2, t - t // 2) for t in totals]
        pads = tuple((b, a) if pads == "same_lower" else (a, b) for a, b in small)
    out = conv_transpose_output_size(size, taps, strides, pads, dilations, extra)
    if min(out) < 1:
        raise ValueError(f"{op}: padding {pads} leaves no output: its size would be {out}; decrease padding")
    trimmed = tuple((a, b - e) for (a, b), e in zip(pads, extra, strict=True))
    geometry = ConvGeometry(batch, filters, channels, out, taps, strides, trimmed, dilations, n_groups)
    _too_large(op, "the output", geometry.input_shape)
    _check_bias(op, bias_shape, filters, "output channel")
    bias = bias_shape is not None
    return ConvProblem(geometry, direction, dtype, layout, device, bias, False, activation, prepared)


# ------------------------------------------------------------------------------------------------ building: poolings


def pool_problem(
    op: str, rank: int, kind: str, x_shape: Sizes, kernel_size: Any, *, stride: Any = None, padding: Any = 0,
    dilation: Any = 1, ceil_mode: bool = False, count_include_pad: bool = True, divisor_override: Any = None,
    norm_type: Any = 2.0, direction: str = "forward", dtype: str = "float32", layout: str = "channels_first",
    device: str = "cpu", indices: bool = False,
) -> PoolProblem:  # fmt: skip
    """The problem of a windowed pooling; ``kind`` is the registry's op, ``x_shape`` (N, C, *spatial).

    >>> pool_problem("max_pool2d", 2, "max_pool", (1, 3, 8, 8), 2).geometry.output_size
    (4, 4)
    """
    kernel = sizes(op, "kernel_size", kernel_size, rank, 1)
    strides = kernel if stride is None else sizes(op, "stride", stride, rank, 1)
    dilations = sizes(op, "dilation", dilation, rank, 1)
    pads = paddings(op, padding, rank)
    _check_input(op, x_shape)
    if divisor_override is not None:
        divisor_override = integer(op, "divisor_override", divisor_override)
        if divisor_override == 0:
            raise ValueError(f"{op}: divisor_override must not be 0")
    norm = norm_exponent(op, norm_type)
    batch, channels, *spatial = x_shape
    size = tuple(spatial)
    resolved = _resolve(pads, size, kernel, strides, dilations)
    for pair, k, d in zip(resolved, kernel, dilations, strict=True):
        if max(pair) >= span(k, d):
            raise ValueError(
                f"{op}: padding must be smaller than the window, or a window could lie wholly on it; got padding "
                f"{resolved} for kernel_size {kernel}, dilation {dilations}"
            )
    partial = flag(op, "ceil_mode", ceil_mode)
    out = pool_output_size(size, kernel, strides, resolved, dilations, partial)
    if min(out) < 1:
        raise ValueError(
            f"{op}: the window does not fit: kernel_size {kernel} with dilation {dilations} on an input of {size} with "
            f"padding {resolved}"
        )
    _too_large(op, "the output", (batch, channels, *out))
    geometry = PoolGeometry(
        batch,
        channels,
        size,
        out,
        kernel,
        strides,
        resolved,
        dilations,
        flag(op, "count_include_pad", count_include_pad),
        divisor_override,
        norm,
    )
    return PoolProblem(kind, geometry, direction, dtype, layout, device, indices)


def adaptive_pool_problem(
    op: str, rank: int, kind: str, x_shape: Sizes, output_size: Any, *, direction: str = "forward",
    dtype: str = "float32", layout: str = "channels_first", device: str = "cpu", indices: bool = False,
) -> PoolProblem:  # fmt: skip
    """The problem of an adaptive pooling; an ``output_size`` entry of None keeps the input's size.

    >>> adaptive_pool_problem("adaptive_avg_pool2d", 2, "avg_pool", (1, 3, 7, 7), 1).geometry.output_size
    (1, 1)
    """
    _check_input(op, x_shape)
    batch, channels, *spatial = x_shape
    if isinstance(output_size, (list, tuple)) and len(output_size) == rank:
        output_size = tuple(n if o is None else o for o, n in zip(output_size, spatial, strict=True))
    out = tuple(spatial) if output_size is None else sizes(op, "output_size", output_size, rank, 1)
    _too_large(op, "the output", (batch, channels, *out))
    return PoolProblem(
        kind, PoolGeometry(batch, channels, tuple(spatial), out), direction, dtype, layout, device, indices
    )


def unpool_problem(
    op: str, rank: int, x_shape: Sizes, kernel_size: Any, *, stride: Any = None, padding: Any = 0,
    output_size: Any = None, direction: str = "forward", dtype: str = "float32", layout: str = "channels_first",
    device: str = "cpu",
) -> PoolProblem:  # fmt: skip
    """The problem of ``max_unpool{rank}d``: its geometry is the pooling's that is undone (x is the *output*).

    ``output_size`` is the spatial size wanted, or a whole shape whose last entries are.

    >>> unpool_problem("max_unpool2d", 2, (1, 3, 4, 4), 2).geometry.input_size
    (8, 8)
    """
    kernel = sizes(op, "kernel_size", kernel_size, rank, 1)
    strides = kernel if stride is None else sizes(op, "stride", stride, rank, 1)
    pads = paddings(op, padding, rank)
    if isinstance(pads, str):
        raise ValueError(f"{op}: padding must be given in numbers, got {pads!r}")
    _check_input(op, x_shape)
    batch, channels, *spatial = x_shape
    default = conv_transpose_output_size(tuple(spatial), kernel, strides, pads, (1,) * rank, (0,) * rank)
    if output_size is None:
        size = default
    else:
        given = tuple(output_size) if is_sequence(output_size) else (output_size,) * rank
        size = sizes(op, "output_size", given[-rank:] if len(given) in (rank + 1, rank + 2) else given, rank, 1)
        if any(not d - s < o < d + s for d, s, o in zip(default, strides, size, strict=True)):
            low, high = (
                tuple(d - s + 1 for d, s in zip(default, strides, strict=True)),
                tuple(d + s - 1 for d, s in zip(default, strides, strict=True)),
            )
            raise ValueError(
                f"{op}: output_size must lie between {low} and {high} for an input of {tuple(spatial)}, got {size}"
            )
    if min(size) < 1:
        raise ValueError(f"{op}: padding {pads} leaves no output: its size would be {size}")
    _too_large(op, "the output", (batch, channels, *size))
    geometry = PoolGeometry(batch, channels, size, tuple(spatial), kernel, strides, pads)
    return PoolProblem("max_unpool", geometry, direction, dtype, layout, device, True)
