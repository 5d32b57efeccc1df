"""The attributes that every operator with a sliding window has: kernel, strides, dilations, padding."""

from __future__ import annotations

from typing import Any, NamedTuple

from ....kernels.geometry import Pads, same_padding
from .task import Call, Sizes


class Window(NamedTuple):
    """As fastconv's functions take them."""

    kernel: Sizes
    stride: Sizes
    dilation: Sizes
    padding: Pads

    @property
    def rank(self) -> int:
        return len(self.kernel)


def sizes(call: Call, name: str, rank: int, default: int) -> Sizes:
    """An attribute with a number for each spatial dimension."""
    given = call.attribute(name)
    if given is None or (len(given) == 0 and rank):
        return (default,) * rank
    if len(given) != rank:
        raise ValueError(f"{call.node}: {name} must have {rank} entries, got {list(given)}")
    return tuple(int(n) for n in given)


def pairs(call: Call, rank: int) -> Pads:
    """The attribute ``pads``: all beginnings, then all ends."""
    given = call.attribute("pads") or (0,) * (2 * rank)
    if len(given) != 2 * rank:
        raise ValueError(f"{call.node}: pads must have {2 * rank} entries, got {list(given)}")
    return tuple((int(a), int(b)) for a, b in zip(given[:rank], given[rank:], strict=True))


def spatial_rank(call: Call) -> int:
    """How many spatial dimensions the first input has."""
    rank = len(call.spec().shape) - 2
    if not 1 <= rank <= 3:
        raise ValueError(f"{call.node}: needs an input of 3 to 5 dimensions, got the shape {call.spec().shape}")
    return rank


def window(call: Call, kernel: Any = None) -> Window:
    """All of them; ``kernel`` where it follows from weights."""
    rank, spatial = spatial_rank(call), call.spec().shape[2:]
    kernel = sizes(call, "kernel_shape", rank, 1) if kernel is None else tuple(kernel)
    if len(kernel) != rank:
        raise ValueError(f"{call.node}: a kernel of {len(kernel)} dimensions on an input of shape {call.spec().shape}")
    stride, dilation = sizes(call, "strides", rank, 1), sizes(call, "dilations", rank, 1)
    automatic = call.attribute("auto_pad", "NOTSET")
    if automatic in ("SAME_UPPER", "SAME_LOWER"):
        padding = same_padding(spatial, kernel, stride, dilation, lower=automatic == "SAME_LOWER")
    elif automatic == "VALID":
        padding = ((0, 0),) * rank
    elif automatic in ("NOTSET", ""):
        padding = pairs(call, rank)
    else:
        raise ValueError(f"{call.node}: auto_pad must be NOTSET, SAME_UPPER, SAME_LOWER or VALID, got {automatic!r}")
    return Window(kernel, stride, dilation, padding)
