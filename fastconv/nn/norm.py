"""Batch normalisation: one primitive for training and one for evaluation, each with its gradient by hand.

    y[n, c, s] = weight[c] · (x[n, c, s] - mean[c]) / sqrt(variance[c] + eps) + bias[c]

with the batch's own mean and variance in training. Their dependence on x is part of the gradient, which for
x̂ = (x - mean)·inv, inv = 1 / sqrt(variance + eps), over the n elements of a channel is

    dbias = Σ g        dweight = Σ g·x̂        dx = weight·inv · (g - dbias/n - x̂·dweight/n).

Every pass runs over blocks of images that fit the L2 cache, so that an expression of several array operations reads
memory once; sums of a block are in the working precision (float32 at least), sums over blocks in float64. The mean that
is subtracted is rounded to the working precision; what rounding took is accounted for afterwards, channel by channel,
so that data far from zero lose nothing.

Source: Ioffe and Szegedy, Batch normalization, arXiv:1502.03167.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..autograd import Array, array_module, defvjp_joint, primitive
from .module import Module, Parameter

_BLOCK_ELEMENTS = 1 << 16


def _planes(x: Array) -> Array:
    """(N, C, \\*spatial) as (N, C, S)."""
    return x.reshape(*x.shape[:2], math.prod(x.shape[2:]))


def _blocks(x: Array) -> Iterator[slice]:
    """Slices of the batch that are processed together: everything at once on a GPU; one for an empty batch too."""
    images = len(x)
    if array_module(x) is np and images:
        step = max(1, _BLOCK_ELEMENTS * images // max(x.size, 1))
    else:
        step = max(images, 1)
    return (slice(i, i + step) for i in range(0, max(images, 1), step))


def _working(dtype: Any) -> Any:
    return np.promote_types(dtype, np.float32)


def _column(vector: Array, dtype: Any) -> Array:
    return vector.astype(dtype, copy=False)[:, None]


def _channel_sums(like: Array, block_sums: Callable[[slice], tuple[Array, ...]]) -> list[Array]:
    """Add up what ``block_sums`` returns for each block, in float64."""
    totals: list[Array] = []
    for block in _blocks(like):
        sums = [s.astype(np.float64) for s in block_sums(block)]
        totals = [t + s for t, s in zip(totals, sums, strict=True)] if totals else sums
    return totals


@primitive
def _normalise_batch(x: Array, weight: Array | None, bias: Array | None, *, eps: float) -> tuple[Array, Array, Array]:
    """(y, mean, variance); the variance is the biased one."""
    xp, planes, work = array_module(x), _planes(x), _working(x.dtype)
    count = planes.shape[0] * planes.shape[2]
    (total,) = _channel_sums(planes, lambda b: (planes[b].astype(work, copy=False).sum(axis=(0, 2)),))
    centre = (total / count).astype(work)

    def moments(b: slice) -> tuple[Array, ...]:
        centred = planes[b] - centre[:, None]
        return centred.sum(axis=(0, 2)), xp.einsum("ncs,ncs->c", centred, centred)

    shift, squares = (s / count for s in _channel_sums(planes, moments))
    mean, variance = centre + shift, xp.maximum(squares - shift * shift, 0)
    return _scaled(x, weight, bias, mean, variance, eps), mean, variance


@primitive
def _normalise_with(
    x: Array, weight: Array | None, bias: Array | None, *, mean: Array, variance: Array, eps: float
) -> Array:
    return _scaled(x, weight, bias, mean, variance, eps)


def _scaled(x: Array, weight: Array | None, bias: Array | None, mean: Array, variance: Array, eps: float) -> Array:
    xp, planes, work = array_module(x), _planes(x), _working(x.dtype)
    scale = _inverse(variance, eps) if weight is None else weight * _inverse(variance, eps)
    centre, factor = _column(mean, work), _column(scale, work)
    rounding = (centre[:, 0] - mean) * scale
    offset = _column(rounding if bias is None else bias + rounding, work)
    out = xp.empty(planes.shape, x.dtype)
    for b in _blocks(planes):
        y = planes[b] - centre
        y *= factor
        y += offset
        out[b] = y
    return out.reshape(x.shape)


def _inverse(variance: Array, eps: float) -> Array:
    return 1 / array_module(variance).sqrt(variance.astype(np.float64) + eps)


def _joint_vjp(
    wanted: Sequence[int],
    x: Array,
    weight: Array | None,
    *,
    mean: Array,
    variance: Array,
    eps: float,
    through_statistics: bool,
) -> Callable[[Array], list[Array]]:
    xp, work = array_module(x), _working(x.dtype)
    inverse, centre = _inverse(variance, eps), mean.astype(work)[:, None]  # copies: running statistics move on
    rounding = centre[:, 0] - mean

    def vjp(g: Array) -> list[Array]:
        planes, gradients = _planes(x), _planes(g)
        dbias = dweight = None
        if through_statistics or wanted != [0]:

            def sums(b: slice) -> tuple[Array, Array]:
                centred = planes[b] - centre
                block = gradients[b].astype(work, copy=False)
                return block.sum(axis=(0, 2)), xp.einsum("ncs,ncs->c", block, centred)

            dbias, correlation = _channel_sums(planes, sums)
            dweight = (correlation + rounding * dbias) * inverse
        results = {1: dweight, 2: dbias}
        if 0 in wanted:
            results[0] = _input_gradient(
                planes, gradients, centre, inverse if weight is None else weight * inverse,
                (dbias, dweight * inverse) if through_statistics else None,
            ).reshape(x.shape)  # fmt: skip
        return [results[i] for i in wanted]

    return vjp


def _input_gradient(planes: Array, gradients: Array, centre: Array, scale: Array, statistics: Any) -> Array:
    """scale·g, and through the statistics also - scale/n·(Σ g + (x - mean)·inv²·Σ g·(x - mean))."""
    work = centre.dtype
    out = array_module(planes).empty(planes.shape, planes.dtype)
    factor = _column(scale, work)
    if statistics is not None:
        count = planes.shape[0] * planes.shape[2]
        slope, offset = (_column(-scale * s / count, work) for s in reversed(statistics))
    for b in _blocks(planes):
        dx = gradients[b] * factor
        if statistics is not None:
            through = planes[b] - centre
            through *= slope
            through += offset
            dx += through
        out[b] = dx
    return out


defvjp_joint(
    _normalise_batch,
    lambda wanted, ans, args, keywords: _joint_vjp(
        wanted, args[0], args[1], mean=ans[1], variance=ans[2], **keywords, through_statistics=True
    ),
)
defvjp_joint(
    _normalise_with,
    lambda wanted, ans, args, keywords: _joint_vjp(wanted, args[0], args[1], **keywords, through_statistics=False),
)


class _BatchNorm(Module):
    ranks: tuple[int, ...]
    shapes: str
    running_mean: Any
    running_var: Any
    num_batches_tracked: Any

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        dtype: Any = np.float32,
    ) -> None:
        if not isinstance(num_features, int | np.integer) or num_features < 1:
            raise ValueError(f"num_features must be a positive integer, got {num_features!r}")
        if eps < 0:
            raise ValueError(f"eps must not be negative, got {eps}")
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.affine, self.track_running_stats = affine, track_running_stats
        self.weight = Parameter(np.ones(num_features, dtype)) if affine else None
        self.bias = Parameter(np.zeros(num_features, dtype)) if affine else None
        self.register_buffer("running_mean", np.zeros(num_features, dtype) if track_running_stats else None)
        self.register_buffer("running_var", np.ones(num_features, dtype) if track_running_stats else None)
        self.register_buffer("num_batches_tracked", np.zeros((), np.int64) if track_running_stats else None)

    def forward(self, x: Any) -> Any:
        name = type(self).__name__
        if x.ndim not in self.ranks:
            raise ValueError(f"{name}: x must have shape {self.shapes}, got {x.shape}")
        if x.shape[1] != self.num_features:
            raise ValueError(
                f"{name}: x must have {self.num_features} channels (num_features), got {x.shape[1]} in {x.shape}"
            )
        if not self.training and self.track_running_stats:
            return _normalise_with(
                x, self.weight, self.bias, mean=self.running_mean, variance=self.running_var, eps=self.eps
            )
        count = x.size // self.num_features
        if count < 2:
            raise ValueError(
                f"{name}: training needs more than one value a channel to estimate a variance, got shape {x.shape}; "
                "use a larger batch, or model.eval()"
            )
        y, mean, variance = _normalise_batch(x, self.weight, self.bias, eps=self.eps)
        if self.training and self.track_running_stats:
            self._track(mean, variance * (count / (count - 1)))
        return y

    def _track(self, mean: Array, unbiased_variance: Array) -> None:
        """Move the running statistics towards a batch's; without momentum they are the mean of all batches."""
        self.num_batches_tracked += 1
        share = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        for running, batch in ((self.running_mean, mean), (self.running_var, unbiased_variance)):
            running *= 1 - share
            running += (share * batch).astype(running.dtype)

    def extra_repr(self) -> str:
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}"
        )


class BatchNorm1d(_BatchNorm):
    """Batch normalisation of (N, C) features or (N, C, L) signals; see :class:`BatchNorm2d`."""

    ranks, shapes = (2, 3), "(N, C) or (N, C, L)"


class BatchNorm2d(_BatchNorm):
    """Batch normalisation of (N, C, H, W) images: every channel gets mean 0 and variance 1, then a learned scale.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> y = nn.BatchNorm2d(1)(np.array([1.0, 3.0], np.float32).reshape(2, 1, 1, 1))
    >>> y.numpy().ravel().round(3).tolist()
    [-1.0, 1.0]

    In training the batch's own statistics serve, and running averages of them are kept for evaluation.

    Parameters
    ----------
    num_features : channels C.
    eps : added to the variance.
    momentum : share of a batch in the running averages; None averages all batches equally.
    affine : whether there are a learned ``weight`` and ``bias`` of shape (C,).
    track_running_stats : False makes evaluation use the batch's statistics too.

    Raises
    ------
    ValueError : the input's shape does not fit, or training with one value a channel.
    """

    ranks, shapes = (4,), "(N, C, H, W)"


class BatchNorm3d(_BatchNorm):
    """Batch normalisation of (N, C, D, H, W) volumes; see :class:`BatchNorm2d`."""

    ranks, shapes = (5,), "(N, C, D, H, W)"
