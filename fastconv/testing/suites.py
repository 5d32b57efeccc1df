"""The named suites: the shapes that tests, benchmarks and tables of results share, as data.

A case is named ``suite/CxSIZE-KkKERNEL`` followed by what is not usual: ``s`` stride, ``p`` padding, ``d`` dilation,
``g`` groups. One size or kernel entry stands for all dimensions; without ``p`` the padding is the symmetric one that
keeps the size at stride 1. So ``first/3x224-64k7s2`` is ResNet's first layer, 3×224×224 to 64 channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..kernels.geometry import Sizes
from ..problem import Problem, adaptive_pool_problem, conv_problem, pool_problem

BATCHES = {"cpu": (1, 16), "cuda": (32, 128)}
"""The batch sizes at which a case is measured, unless it has its own."""


@dataclass(frozen=True)
class Case:
    """One row of a suite. Without ``batch`` and layout, which :meth:`problem` adds.

    ``op`` is the registry's: ``"conv"``, ``"max_pool"`` or ``"avg_pool"``. Spatial tuples have one entry per dimension.
    A pooling has as many ``filters`` as ``channels``; one with an empty ``kernel`` pools each plane to one element.
    """

    suite: str
    op: str
    channels: int
    size: Sizes
    filters: int
    kernel: Sizes
    stride: Sizes
    padding: Sizes
    dilation: Sizes
    groups: int = 1
    batch: int | None = None

    @property
    def rank(self) -> int:
        """Number of spatial dimensions."""
        return len(self.size)

    @property
    def name(self) -> str:
        """The case's name, unique among all suites."""
        pool = self.op.removesuffix("_pool")
        if not self.kernel:
            return f"{self.suite}/{self.channels}x{_short(self.size)}-global_{pool}"
        what = f"{self.filters}k" if self.op == "conv" else pool
        usual = tuple((k - 1) * d // 2 for k, d in zip(self.kernel, self.dilation, strict=True))
        extras = "".join(
            f"{letter}{_short(value)}"
            for letter, value, default in (
                ("s", self.stride, (1,) * self.rank),
                ("p", self.padding, usual),
                ("d", self.dilation, (1,) * self.rank),
                ("g", (self.groups,), (1,)),
            )
            if value != default
        )
        return f"{self.suite}/{self.channels}x{_short(self.size)}-{what}{_short(self.kernel)}{extras}"

    @property
    def directions(self) -> tuple[str, ...]:
        """The directions that the operation has: forward, and one gradient an input."""
        return ("forward", "grad_input", "grad_weight") if self.op == "conv" else ("forward", "grad_input")

    def batches(self, device: str = "cpu") -> tuple[int, ...]:
        """The batch sizes at which the case is measured on a device."""
        return BATCHES[device] if self.batch is None else (self.batch,)

    def problem(self, batch: int = 1, **described: Any) -> Problem:
        """The case as a problem.

        >>> cases("pooling")[0].problem(batch=16, layout="channels_last").geometry.output_shape
        (16, 64, 56, 56)

        Parameters
        ----------
        batch : number of images.
        described : what a problem says further: direction, dtype, layout, device, indices, activation…
        """
        shape = (batch, self.channels, *self.size)
        if self.op == "conv":
            weights = (self.filters, self.channels // self.groups, *self.kernel)
            return conv_problem(
                self.name, self.rank, shape, weights, stride=self.stride, padding=self.padding, dilation=self.dilation,
                groups=self.groups, **described,
            )  # fmt: skip
        if not self.kernel:
            return adaptive_pool_problem(self.name, self.rank, self.op, shape, 1, **described)
        return pool_problem(
            self.name, self.rank, self.op, shape, self.kernel, stride=self.stride, padding=self.padding,
            dilation=self.dilation, **described,
        )  # fmt: skip


def _short(sizes: Sizes) -> str:
    return str(sizes[0]) if len(set(sizes)) == 1 else "x".join(map(str, sizes))


def _conv(
    suite: str, channels: int, size: int | Sizes, filters: int, kernel: int, stride: int = 1, padding: int = 0,
    groups: int = 1, *, dilation: int = 1, rank: int = 2, batch: int | None = None,
) -> Case:  # fmt: skip
    full = (size,) * rank if isinstance(size, int) else size
    return Case(
        suite, "conv", channels, full, filters, (kernel,) * rank, (stride,) * rank, (padding,) * rank,
        (dilation,) * rank, groups, batch,
    )  # fmt: skip


def _same(suite: str, *rows: tuple[int, int, int], padding: int = 1) -> tuple[Case, ...]:
    """3×3 layers of stride 1: (channels, size, filters)."""
    return tuple(_conv(suite, c, size, k, 3, 1, padding) for c, size, k in rows)


def _layers(suite: str, *rows: tuple[int, int, int, int, int, int, int]) -> tuple[Case, ...]:
    """(channels, size, filters, kernel, stride, padding, groups)."""
    return tuple(_conv(suite, *row) for row in rows)


def _pools(*rows: tuple[int, int, int, int, int]) -> tuple[Case, ...]:
    """(channels, size, kernel, stride, padding), as maximum and as average; then global average pooling."""
    pools = tuple(
        Case("pooling", op, c, (size,) * 2, c, (k,) * 2, (s,) * 2, (p,) * 2, (1, 1))
        for op in ("max_pool", "avg_pool")
        for c, size, k, s, p in rows
    )
    return (*pools, Case("pooling", "avg_pool", 2048, (7, 7), 2048, (), (), (), ()))


SUITES: dict[str, tuple[Case, ...]] = {
    # 3×3, stride 1: the networks that most time is spent in.
    "resnet": _same("resnet", (64, 56, 64), (128, 28, 128), (256, 14, 256), (512, 7, 512)),
    "vgg": _same(
        "vgg", (64, 224, 64), (64, 112, 128), (128, 112, 128), (128, 56, 256), (256, 56, 256), (256, 28, 512),
        (512, 28, 512), (512, 14, 512),
    ),
    "unet": _same(
        "unet", (32, 224, 32), (64, 112, 64), (128, 56, 128), (256, 28, 256), (512, 28, 256), (256, 56, 128),
        (128, 112, 64), (64, 224, 32),
    ),
    "lecture": _same("lecture", (32, 26, 64), padding=0),
    "pointwise": _layers(
        "pointwise", (64, 56, 256, 1, 1, 0, 1), (256, 56, 64, 1, 1, 0, 1), (256, 56, 512, 1, 2, 0, 1),
        (512, 28, 128, 1, 1, 0, 1), (1024, 14, 256, 1, 1, 0, 1), (2048, 7, 512, 1, 1, 0, 1), (24, 56, 144, 1, 1, 0, 1),
        (320, 7, 1280, 1, 1, 0, 1),
    ),
    "first": _layers(
        "first", (3, 224, 64, 7, 2, 3, 1), (3, 224, 64, 11, 4, 2, 1), (3, 224, 32, 3, 2, 1, 1),
        (3, 224, 64, 3, 1, 1, 1), (1, 28, 32, 3, 1, 0, 1), (32, 28, 96, 5, 1, 2, 1), (48, 27, 256, 5, 1, 2, 1),
        (192, 17, 192, 5, 1, 2, 1),
    ),
    "strided": _layers(
        "strided", (128, 56, 128, 3, 2, 1, 1), (256, 28, 256, 3, 2, 1, 1), (512, 14, 512, 3, 2, 1, 1),
        (512, 38, 512, 3, 2, 1, 1),
    ),
    "depthwise": _layers(
        "depthwise", (32, 112, 32, 3, 1, 1, 32), (96, 112, 96, 3, 2, 1, 96), (144, 56, 144, 3, 1, 1, 144),
        (576, 14, 576, 3, 1, 1, 576), (240, 28, 240, 5, 1, 2, 240), (96, 56, 96, 7, 1, 3, 96),
    ),
    "awkward": (
        *_layers(
            "awkward", (35, 17, 33, 3, 1, 1, 1), (128, 28, 32, 3, 1, 1, 1), (512, 14, 512, 3, 1, 1, 32),
            (1, 1024, 8, 5, 1, 2, 1), (3, 512, 16, 3, 1, 1, 1),
        ),
        _conv("awkward", 64, 56, 64, 3, 1, 2, dilation=2),
        _conv("awkward", 1, 28, 16, 3, 1, 1, batch=64),
        _conv("awkward", 16, 28, 16, 3, 1, 1, batch=64),
    ),
    "conv1d": (
        _conv("conv1d", 1, 16000, 64, 10, 5, 0, rank=1),
        _conv("conv1d", 512, 3199, 512, 3, 2, 0, rank=1),
        _conv("conv1d", 80, 3000, 384, 3, 1, 1, rank=1),
        _conv("conv1d", 64, 1024, 64, 3, 1, 1, dilation=4, rank=1),
    ),
    "conv3d": (
        _conv("conv3d", 3, (16, 112, 112), 64, 3, 1, 1, rank=3),
        _conv("conv3d", 64, (8, 28, 28), 64, 3, 1, 1, rank=3),
    ),
    "pooling": _pools(
        (64, 112, 3, 2, 1), (64, 224, 2, 2, 0), (128, 56, 2, 2, 0), (512, 14, 2, 2, 0), (192, 28, 3, 1, 1)
    ),
}  # fmt: skip
"""Every case by suite, float32: layers of ResNet, VGG, U-Net, MobileNet, AlexNet, Inception, wav2vec, Whisper and
others, and shapes that fit no tile. A floor for claims of speed, not a target to tune to."""


def cases(suite: str | None = None, op: str | None = None) -> tuple[Case, ...]:
    """The cases of one suite or of all, of one operation or of any.

    >>> [case.name for case in cases("conv3d")]
    ['conv3d/3x16x112x112-64k3', 'conv3d/64x8x28x28-64k3']

    Parameters
    ----------
    suite : a key of :data:`SUITES`, or None.
    op : ``"conv"``, ``"max_pool"``, ``"avg_pool"``, or None.

    Raises
    ------
    ValueError : no suite or operation has that name.
    """
    if suite is not None and suite not in SUITES:
        raise ValueError(f"cases: suite must be None or one of {', '.join(map(repr, SUITES))}; got {suite!r}")
    every = [case for row in SUITES.values() for case in row]
    ops = sorted({case.op for case in every})
    if op is not None and op not in ops:
        raise ValueError(f"cases: op must be None or one of {', '.join(map(repr, ops))}; got {op!r}")
    return tuple(case for case in every if suite in (None, case.suite) and op in (None, case.op))
