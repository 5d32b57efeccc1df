"""THE table: one row a kernel. Dispatch, tests, benchmarks, documentation and ``explain`` enumerate it.

To add a kernel write one file in ``kernels/`` and one row here; CONTRIBUTING walks through it. A row is data and a
few pure functions of a problem (``refusals``, ``costs``, ``bounds``): nothing here imports a kernel, Numba or CuPy;
``module:function`` strings resolve when a kernel first runs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from .bounds import (
    emulated_bound,
    emulated_typical,
    float64_bound,
    of_phases,
    sum_bound,
    sum_typical,
    winograd_bound,
    winograd_emulated_bound,
    winograd_emulated_typical,
    winograd_typical,
)
from .costs import (
    bf16x3_direct_seconds,
    bf16x3_winograd_seconds,
    bfloat16_seconds,
    depthwise_seconds,
    direct_seconds,
    im2col_seconds,
    planar_seconds,
    pointwise_seconds,
    pool_seconds,
    reference_seconds,
    winograd_phases_seconds,
    winograd_seconds,
)
from .costs_cuda import (
    cuda_depthwise_seconds,
    cuda_direct_seconds,
    cuda_gemm_seconds,
    cuda_gemm_weight_seconds,
    cuda_pointwise_seconds,
    cuda_pool_seconds,
    cuda_winograd_fused_seconds,
    cuda_winograd_seconds,
)
from .kernels.winograd_matrices import VARIANTS, Variant
from .problem import ITEMSIZE, Problem
from .refusals import (
    always,
    bf16x3_winograd_why_not,
    cuda_plane_too_large,
    cuda_winograd_fused_why_not,
    cuda_winograd_why_not,
    is_pointwise,
    no_bfloat16_products,
    not_a_cuda_pointwise,
    not_a_cuda_product,
    not_cuda_depthwise,
    not_for_bf16x3,
    not_narrow,
    not_pointwise,
    plane_too_large,
    winograd_phases_why_not,
    winograd_why_not,
)
from .targets import CPU, CUDA, resolve

Predicate = Callable[[Any], str | None]


@dataclass(frozen=True)
class Row:
    """One kernel: what it computes, where it lives, when it can run, and what it costs.

    Variants of one algorithm share a ``family``; left out, it is the algorithm's own name. An algorithm that computes
    outputs by tiles from common intermediate numbers names the ``tile``, its outputs along the last axes: ``bound`` is
    then relative to the neighbourhood of an output (see :func:`winograd_bound`). Its integers are exact in float64
    where the weights are multiples of ``integer_scale``, and only there. ``automatic`` says whether the row may be
    chosen where neither it nor a ``max_error`` was asked for. ``instances`` names the function that lists what a CUDA
    kernel may launch: :class:`fastconv.kernels.cuda.module.Instance`, each compiled by a test.
    """

    op: str
    direction: str
    device: str
    algorithm: str
    target: str
    summary: str
    dtypes: tuple[str, ...]
    why_not: Predicate
    seconds: Callable[[Any, int], float]
    bound: Callable[[Any], float]
    typical: Callable[[Any], float]
    workspace: str | None = None
    prepare: str | None = None
    instances: str | None = None
    family: str = ""
    deterministic: bool = True
    automatic: bool = True
    precision: str = "ieee"
    tile: tuple[int, ...] = ()
    integer_scale: int = 1

    def __post_init__(self) -> None:
        if not self.family:
            object.__setattr__(self, "family", self.algorithm)

    def refuses(self, problem: Problem) -> str | None:
        """None where the kernel can run the problem, else the reason."""
        if problem.dtype not in self.dtypes:
            return f"computes {', '.join(self.dtypes)}, not {problem.dtype}"
        return self.why_not(problem)

    def workspace_bytes(self, problem: Problem, threads: int) -> int:
        """Bytes of scratch memory the kernel needs for the problem."""
        if self.workspace is None or problem.geometry.batch == 0:
            return 0
        return int(resolve(self.workspace)(problem.geometry, ITEMSIZE[problem.dtype], threads))

    @property
    def name(self) -> str:
        return f"{self.device}/{self.op}/{self.direction}/{self.algorithm}"


# ---------------------------------------------------------------------------------------------------------- the table

FLOATS = ("float32", "float64", "float16", "bfloat16")
REFERENCE = "fastconv.kernels.reference:"

CORRELATIONS = ("forward", "grad_input")
EMULATED: dict[str, Any] = {
    "dtypes": ("float32",),
    "precision": "emulated",
    "bound": emulated_bound,
    "typical": emulated_typical,
}


def _conv(
    algorithm: str, summary: str, seconds: Callable[[Any, int], float], *, workspace: str,
    directions: tuple[str, ...] = CORRELATIONS, module: str = "", variant: str = "", **more: Any,
) -> Iterator[Row]:  # fmt: skip
    """A CPU convolution, a row a direction.

    ``module:direction`` computes, ``module:pack_direction`` prepares weights; a ``variant`` is an object of the module
    that has them. ``workspace`` is completed with the direction. ``more`` are further fields of the row.
    """
    home = f"{CPU}{module or algorithm}:{variant and variant + '.'}"
    fields: dict[str, Any] = {"dtypes": FLOATS, "why_not": always, "bound": sum_bound, "typical": sum_typical} | more
    for direction in directions:
        yield Row(
            op="conv",
            direction=direction,
            device="cpu",
            algorithm=algorithm,
            target=f"{home}{direction}",
            prepare=None if direction == "grad_weight" else f"{home}pack_{direction}",
            workspace=CPU + workspace.format(direction),
            summary=summary,
            seconds=seconds,
            **fields,
        )


def _cuda_conv(
    algorithm: str, summary: str, seconds: Callable[[Any, int], float], *, directions: tuple[str, ...] = CORRELATIONS,
    module: str = "", workspaces: tuple[str, ...] = (), prepared: tuple[str, ...] = (), **more: Any,
) -> Iterator[Row]:  # fmt: skip
    """A CUDA convolution, a row a direction, all in one module of ``kernels/cuda``.

    ``module:direction`` launches, ``module:direction_instances`` lists what it may launch; ``workspaces`` are the
    directions with a ``module:direction_workspace``, ``prepared`` those with a ``module:pack_direction``. ``more`` are
    further fields.
    """
    home = f"{CUDA}{module or algorithm}:"
    fields: dict[str, Any] = {"dtypes": FLOATS, "why_not": always, "bound": sum_bound, "typical": sum_typical} | more
    for direction in directions:
        yield Row(
            op="conv",
            direction=direction,
            device="cuda",
            algorithm=algorithm,
            target=f"{home}{direction}",
            instances=f"{home}{direction}_instances",
            prepare=f"{home}pack_{direction}" if direction in prepared else None,
            workspace=f"{home}{direction}_workspace" if direction in workspaces else None,
            summary=summary,
            seconds=seconds,
            **fields,
        )


AUTOMATIC_SPREAD = 6
"""How many times larger than the products of a tap intermediate numbers may be in what is chosen by default: 3.6 in
F(4x4, 3x3), 3.8 in F(4x4, 5x5), 5.5 in F(5x5, 3x3), but 6.9 in F(6x6, 3x3)."""


def _winograd_fields(variant: Variant) -> dict[str, Any]:
    """Fields that a variant's rows have on every device."""
    return {
        "family": "winograd",
        "bound": partial(winograd_bound, variant),
        "typical": partial(winograd_typical, variant),
        "tile": (variant.rows[0], variant.columns[0]),
        "integer_scale": variant.denominator,
        "automatic": variant.spread / math.sqrt(variant.taps) < AUTOMATIC_SPREAD,
    }


def _winograd(variant: Variant) -> Iterator[Row]:
    """A variant of Winograd convolution."""
    m = "x".join(str(outputs) for outputs, taps in (variant.rows, variant.columns) if taps > 1)
    allowed = "stride 1, any dilation, volumes" if variant.stride == 1 else f"stride {variant.stride}"
    return _conv(
        f"winograd_{variant.name}",
        f"{variant.multiplications} products for {m} outputs of {math.prod(variant.kernel)} taps each; {allowed}",
        partial(winograd_seconds, variant),
        directions=CORRELATIONS if variant.stride == 1 else ("forward",),
        workspace=f"winograd_blocking:{variant.name}.{{}}",
        module="winograd",
        variant=variant.name,
        dtypes=("float32", "float64"),
        why_not=partial(winograd_why_not, variant),
        **_winograd_fields(variant),
    )


BF16X3 = ("f4x4_3x3", "f4x4_5x5")
"""Variants that gain by bf16x3. Tried: F(2x2), F(3x3), F(5x5) and F(6x6) of 3x3 kernels and F(2x2) of 5x5 ones,
together the fastest on 12 of 128 layers (2 threads of a Sapphire Rapids server), these two on 18."""


PHASES = ("f4x4_3x3",)
"""Variants for strides with as many taps a phase; others are told in ``kernels/cpu/winograd_phases.py``."""


def _winograd_phases(variant: Variant) -> Iterator[Row]:
    """The same for a stride, whose phases are channels."""
    rows, columns = variant.kernel
    return _conv(
        f"winograd_{variant.name}_phases",
        f"phases of the stride as channels, of {rows}x{columns} taps each: {variant.multiplications} products for "
        f"{variant.rows[0]}x{variant.columns[0]} outputs; strides from 2",
        partial(winograd_phases_seconds, variant),
        directions=("forward",),
        workspace=f"winograd_phases:{variant.name}.{{}}_workspace",
        module="winograd_phases",
        variant=variant.name,
        dtypes=("float32", "float64"),
        why_not=partial(winograd_phases_why_not, variant),
        **_winograd_fields(variant)
        | {"bound": partial(of_phases, partial(winograd_bound, variant))}
        | {"typical": partial(of_phases, partial(winograd_typical, variant))},
    )


def _bf16x3_winograd(variant: Variant) -> Iterator[Row]:
    """The same with products by AMX."""
    m = "x".join(str(outputs) for outputs, _ in (variant.rows, variant.columns))
    return _conv(
        f"winograd_{variant.name}_bf16x3",
        f"{variant.multiplications} products for {m} outputs, each of six bfloat16 ones by AMX",
        partial(bf16x3_winograd_seconds, variant),
        workspace=f"bf16x3_winograd_blocking:{variant.name}.{{}}",
        module="bf16x3_winograd",
        variant=variant.name,
        why_not=partial(bf16x3_winograd_why_not, variant),
        **_winograd_fields(variant)
        | EMULATED
        | {"bound": partial(winograd_emulated_bound, variant), "typical": partial(winograd_emulated_typical, variant)},
    )


def _cuda_winograd(
    name: str, summary: str, seconds: Callable[[Any, int], float], *, module: str = "winograd",
    why_not: Callable[[Variant, Any], str | None] = cuda_winograd_why_not,
) -> Iterator[Row]:  # fmt: skip
    """A variant of Winograd convolution on CUDA."""
    (variant,) = (v for v in VARIANTS if v.name == name)
    return _cuda_conv(
        f"winograd_{name}",
        summary,
        seconds,
        module=module,
        workspaces=CORRELATIONS,
        prepared=CORRELATIONS,
        dtypes=("float32",),
        why_not=partial(why_not, variant),
        **_winograd_fields(variant),
    )


def _pool(op: str, stem: str, summary: str) -> Iterator[Row]:
    """A CPU pooling, adaptive windows included, and its gradient."""
    for direction in ("forward", "grad_input"):
        yield Row(
            op=op,
            direction=direction,
            device="cpu",
            algorithm="direct",
            target=f"{CPU}pool:{stem}_{direction}",
            summary=summary,
            dtypes=FLOATS,
            why_not=plane_too_large,
            seconds=pool_seconds,
            bound=sum_bound,
            typical=sum_typical,
        )


def _cuda_pool(op: str, stem: str, summary: str, forward: str, gradient: str) -> Iterator[Row]:
    """A CUDA pooling, adaptive windows included, and its gradient; ``forward`` and ``gradient`` name their kernels in
    ``kernels/cuda/pool.py``."""
    for direction, kernels in (("forward", forward), ("grad_input", gradient)):
        yield Row(
            op=op,
            direction=direction,
            device="cuda",
            algorithm="direct",
            target=f"{CUDA}pool:{stem}_{direction}",
            instances=f"{CUDA}pool:{kernels}.instances",
            summary=summary,
            dtypes=FLOATS,
            why_not=cuda_plane_too_large,
            seconds=cuda_pool_seconds,
            bound=sum_bound,
            typical=sum_typical,
        )


def _reference(op: str, stem: str, *directions: str) -> Iterator[Row]:
    """The float64 oracle: always able on the CPU, never the fast choice."""
    for direction in directions:
        yield Row(
            op=op,
            direction=direction,
            device="cpu",
            algorithm="reference",
            target=f"{REFERENCE}{stem}{direction}",
            summary="NumPy in float64, for checking",
            dtypes=FLOATS,
            why_not=always,
            seconds=reference_seconds,
            bound=float64_bound,
            typical=float64_bound,
        )


ROWS: tuple[Row, ...] = (
    *_conv(
        "direct",
        "taps of a padded channels-last slab, summed in register tiles",
        direct_seconds,
        workspace="direct_blocking:{}_workspace",
        directions=(*CORRELATIONS, "grad_weight"),
    ),
    *_conv(
        "im2col",
        "blocks of the im2col matrix times the weights",
        im2col_seconds,
        workspace="im2col_blocking:{}_workspace",
        directions=(*CORRELATIONS, "grad_weight"),
    ),
    *_conv(
        "direct_planar",
        "planes read in place, pixels in the lanes",
        planar_seconds,
        workspace="planar_blocking:planar_{}_workspace",
        module="planar",
        family="direct",
        why_not=is_pointwise,
    ),
    *_conv(
        "pointwise",
        "1x1: the matrix product of the weights and the planes as they lie",
        pointwise_seconds,
        workspace="planar_blocking:pointwise_{}_workspace",
        why_not=not_pointwise,
    ),
    *_conv(
        "depthwise",
        "windows slide over rows of each channel in place, every vector loaded serves several outputs",
        depthwise_seconds,
        workspace="depthwise_plan:{}_workspace",
        why_not=not_narrow,
    ),
    *itertools.chain.from_iterable(map(_winograd, VARIANTS)),
    *itertools.chain.from_iterable(map(_winograd_phases, (v for v in VARIANTS if v.name in PHASES))),
    *itertools.chain.from_iterable(map(_bf16x3_winograd, (v for v in VARIANTS if v.name in BF16X3))),
    *_conv(
        "direct_bfloat16",
        "bfloat16 products summed in float32, by AMX or AVX512-BF16",
        bfloat16_seconds,
        workspace="bfloat16_blocking:{}_workspace",
        module="bfloat16",
        family="direct",
        dtypes=("bfloat16",),
        why_not=no_bfloat16_products,
    ),
    *_conv(
        "direct_bf16x3",
        "direct whose float32 products are six of bfloat16 numbers, by AMX",
        bf16x3_direct_seconds,
        workspace="bfloat16_blocking:{}_workspace",
        module="bfloat16",
        variant="bf16x3",
        family="direct",
        why_not=not_for_bf16x3,
        **EMULATED,
    ),
    *_pool("max_pool", "max", "running maximum of each window, the first one wins"),
    *_pool("min_pool", "min", "running minimum of each window, the first one wins"),
    *_pool("avg_pool", "avg", "mean of each window"),
    *_pool("lp_pool", "lp", "p-norm of each window"),
    *_pool("max_unpool", "unpool", "values scattered to the positions of their indices"),
    *_cuda_conv(
        "direct",
        "8 output channels a thread, weights through shared memory",
        cuda_direct_seconds,
        directions=(*CORRELATIONS, "grad_weight"),
        workspaces=("grad_weight",),
    ),
    *_cuda_conv(
        "im2col",
        "the im2col matrix, read tile by tile, times the weights",
        cuda_gemm_seconds,
        dtypes=("float32",),
        why_not=not_a_cuda_product,
        workspaces=CORRELATIONS,
        prepared=CORRELATIONS,
    ),
    *_cuda_conv(
        "im2col",
        "the im2col matrix times dy, positions split among blocks",
        cuda_gemm_weight_seconds,
        directions=("grad_weight",),
        module="im2col_weight",
        dtypes=("float32",),
        why_not=not_a_cuda_product,
        workspaces=("grad_weight",),
    ),
    *_cuda_conv(
        "pointwise",
        "1x1: the weights times the planes, four positions at a time",
        cuda_pointwise_seconds,
        dtypes=("float32",),
        why_not=not_a_cuda_pointwise,
        workspaces=CORRELATIONS,
        prepared=CORRELATIONS,
    ),
    *_cuda_winograd(
        "f2x2_3x3",
        "16 products for 2x2 outputs of 9 taps each, in one kernel; stride 1",
        cuda_winograd_fused_seconds,
        module="winograd_fused",
        why_not=cuda_winograd_fused_why_not,
    ),
    *_cuda_winograd(
        "f4x4_3x3",
        "36 products for 4x4 outputs of 9 taps each, transformed in chunks; stride 1",
        cuda_winograd_seconds,
    ),
    *_cuda_conv(
        "depthwise",
        "a tile of one channel a thread, weights in registers",
        cuda_depthwise_seconds,
        directions=(*CORRELATIONS, "grad_weight"),
        workspaces=("grad_weight",),
        why_not=not_cuda_depthwise,
    ),
    *_cuda_pool("max_pool", "max", "largest of each window, the first one wins", "EXTREME", "PICK_GRADIENT"),
    *_cuda_pool("min_pool", "min", "smallest of each window, the first one wins", "EXTREME", "PICK_GRADIENT"),
    *_cuda_pool("avg_pool", "avg", "mean of each window", "AVERAGE", "AVERAGE_GRADIENT"),
    *_cuda_pool("lp_pool", "lp", "p-norm of each window", "NORM", "NORM_GRADIENT"),
    *_cuda_pool("max_unpool", "unpool", "winners of a piece of a plane in shared memory", "UNPOOL", "UNPOOL_GRADIENT"),
    *_reference("conv", "", "forward", "grad_input", "grad_weight"),
    *_reference("max_pool", "max_", "forward", "grad_input"),
    *_reference("min_pool", "min_", "forward", "grad_input"),
    *_reference("avg_pool", "avg_", "forward", "grad_input"),
    *_reference("lp_pool", "lp_", "forward", "grad_input"),
    *_reference("max_unpool", "unpool_", "forward", "grad_input"),
)


def rows_for(op: str, direction: str, device: str) -> tuple[Row, ...]:
    """The rows of one operation, in the table's order.

    >>> {"direct", "reference"} <= {row.algorithm for row in rows_for("conv", "forward", "cpu")}
    True
    """
    return tuple(r for r in ROWS if (r.op, r.direction, r.device) == (op, direction, device))


def families() -> tuple[str, ...]:
    """Every name ``algorithm=`` takes besides ``"auto"``: families first, then variants."""
    names = [r.family for r in ROWS] + [r.algorithm for r in ROWS]
    return tuple(dict.fromkeys(names))
