"""What a user typed, as integers and names: every form of a parameter, resolved or refused.

Each function takes the operation's public name and, where it may be one of several, the argument's; it returns the
checked value or raises ValueError or TypeError with the argument, what was given and what was needed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from .kernels.geometry import Pads, Sizes

LAYOUTS = {1: ("NCW", "NWC"), 2: ("NCHW", "NHWC"), 3: ("NCDHW", "NDHWC")}
INT64_MAX = 2**63 - 1
LARGEST_PADDING = 2**31 - 1

Padding = int | str | Sequence[int | Sequence[int]]
IntOrSequence = int | Sequence[int]


def normalize_layout(op: str, rank: int, layout: Any) -> str:
    """``"channels_first"`` or ``"channels_last"`` from any of a layout's names.

    >>> normalize_layout("conv2d", 2, "NHWC")
    'channels_last'
    """
    if layout is None:
        return "channels_first"
    first, last = LAYOUTS[rank]
    if isinstance(layout, str):
        if layout in ("channels_first", first):
            return "channels_first"
        if layout in ("channels_last", last):
            return "channels_last"
    if isinstance(layout, str) and layout in sum(LAYOUTS.values(), ()):
        raise ValueError(
            f"{op}: layout {layout!r} names {len(layout) - 2} spatial dimensions, {op} has {rank}; use {first!r} or "
            f"{last!r}"
        )
    raise ValueError(
        f"{op}: layout must be None, 'channels_first', 'channels_last', {first!r} or {last!r}, got {layout!r}"
    )


def integer(op: str, name: str, value: Any) -> int:
    """An integer of any type but bool that fits 64 bits."""
    if isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an integer, got the bool {value}")
    try:
        result = operator.index(value)
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {value!r} ({type(value).__name__})") from None
    if abs(result) > INT64_MAX:
        raise ValueError(f"{op}: {name} does not fit 64 bits: {value}")
    return result


def is_sequence(value: Any) -> bool:
    """Whether a value has entries; a string and an array without dimensions are one value.

    >>> is_sequence([1, 2]), is_sequence("same"), is_sequence(np.array(2))
    (True, False, False)
    """
    return hasattr(value, "__len__") and not isinstance(value, str | bytes) and getattr(value, "ndim", 1) > 0


def sizes(op: str, name: str, value: Any, rank: int, minimum: int) -> Sizes:
    """An integer or one integer per spatial dimension, each at least ``minimum``."""
    if not is_sequence(value):
        entries = (integer(op, name, value),) * rank
    else:
        if len(value) != rank:
            raise ValueError(
                f"{op}: {name} needs one integer or {rank} (one per spatial dimension), got {freeze(value)!r}"
            )
        entries = tuple(integer(op, f"{name}[{i}]", v) for i, v in enumerate(value))
    if any(v < minimum for v in entries):
        raise ValueError(f"{op}: {name} must be >= {minimum} in every dimension, got {value!r}")
    return entries


def shape_of(op: str, name: str, value: Any) -> Sizes:
    """A whole shape that the user gave: integers, none negative."""
    if not is_sequence(value):
        raise TypeError(f"{op}: {name} must be a shape, a sequence of integers, got {value!r}")
    shape = tuple(integer(op, f"{name}[{i}]", v) for i, v in enumerate(value))
    if any(v < 0 for v in shape):
        raise ValueError(f"{op}: {name} must not be negative anywhere, got {shape}")
    return shape


def freeze(value: Any) -> Any:
    """Lists as tuples, at any depth, so that what users type can be a cache key."""
    if isinstance(value, (list, tuple)):
        return tuple(v if type(v) is int else freeze(v) for v in value)
    return value


def paddings(op: str, padding: Any, rank: int) -> Pads | str:
    """A (before, after) pair per spatial dimension, or the name of a rule that needs the sizes to give them."""
    if isinstance(padding, str):
        if padding not in ("valid", "same", "same_lower"):
            raise ValueError(
                f"{op}: padding must be an integer, one per spatial dimension, (before, after) pairs, 'valid', 'same' "
                f"or 'same_lower', got {padding!r}"
            )
        return padding
    if not is_sequence(padding):
        p = integer(op, "padding", padding)
        entries: list[tuple[int, int]] = [(p, p)] * rank
    else:
        if len(padding) != rank:
            hint = ""
            if len(padding) == 2 and rank == 1:
                before, after = padding
                hint = f"; for {before!r} before and {after!r} after write padding=(({before!r}, {after!r}),)"
            elif len(padding) == 2 * rank:
                hint = (
                    "; write (before, after) pairs: padding=(" + ", ".join("(before, after)" for _ in range(rank)) + ")"
                )
            raise ValueError(
                f"{op}: padding needs {rank} entr{'y' if rank == 1 else 'ies'}, one per spatial dimension, got "
                f"{freeze(padding)!r}{hint}"
            )
        entries = []
        for i, entry in enumerate(padding):
            if is_sequence(entry):
                if len(entry) != 2:
                    raise ValueError(
                        f"{op}: padding[{i}] must be an integer or a (before, after) pair, got {freeze(entry)!r}"
                    )
                entries.append((integer(op, f"padding[{i}][0]", entry[0]), integer(op, f"padding[{i}][1]", entry[1])))
            else:
                p = integer(op, f"padding[{i}]", entry)
                entries.append((p, p))
    if any(p > LARGEST_PADDING for pair in entries for p in pair):
        raise ValueError(f"{op}: padding must be at most {LARGEST_PADDING}, got {freeze(padding)!r}")
    if any(p < 0 for pair in entries for p in pair):
        raise ValueError(f"{op}: padding must be >= 0, got {freeze(padding)!r}; crop x by slicing it instead")
    return tuple(entries)


def group_count(op: str, groups: Any) -> int:
    """A number of groups, at least 1."""
    n = integer(op, "groups", groups)
    if n < 1:
        raise ValueError(f"{op}: groups must be >= 1, got {groups!r}")
    return n


def norm_exponent(op: str, norm_type: Any) -> float:
    """The p of an Lp norm, positive and finite."""
    try:
        norm = float(norm_type)
    except (TypeError, ValueError):
        raise TypeError(f"{op}: norm_type must be a positive number, got {norm_type!r}") from None
    if not 0 < norm < math.inf:
        raise ValueError(
            f"{op}: norm_type must be positive and finite, got {norm_type!r}; for the maximum use max_pool"
        )
    return norm


def flag(op: str, name: str, value: Any) -> bool:
    """True or False, NumPy's too; what else Python takes for one is a mistake here."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{op}: {name} must be True or False, got {value!r}")


def check_choice(op: str, name: str, value: Any, choices: tuple[str, ...], *, none: bool = False) -> None:
    """Raise ValueError unless ``value`` is one of ``choices``; ``none`` says that None was also allowed."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(
            f"{op}: {name} must be {'None or ' if none else ''}one of {', '.join(map(repr, choices))}; got {value!r}"
        )


def mismatch(op: str, name: str, given: Any, needed: Any, why: str = "") -> NoReturn:
    """Raise the ValueError of a shape that does not fit."""
    raise ValueError(f"{op}: {name} must have the shape {needed}{why}, got {given}")
