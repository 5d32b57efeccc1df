"""Samples and labels: how they are held, split and handed out in mini-batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..autograd import Array, array_module

Seed = int | Sequence[int] | np.random.Generator | None


class Samples(NamedTuple):
    """Inputs ``x`` of shape (N, C, \\*spatial), float32, and labels ``y`` of shape (N,), int64."""

    x: Array
    y: Array


class Dataset(NamedTuple):
    """Training and test samples; None for the part whose files are not there. Unpacks as ``train, test = ...``."""

    train: Samples | None
    test: Samples | None

    def only(self) -> Samples:
        """The samples, where only one part exists; :func:`split` can then make two of them.

        Raises
        ------
        ValueError : both parts exist.
        """
        parts = [part for part in self if part is not None]
        if len(parts) != 1:
            raise ValueError("both a training and a test part exist; use .train and .test")
        return parts[0]


class Batches:
    """Mini-batches of (x, y); every pass over a shuffled one has an order of its own. See :func:`batches`."""

    def __init__(self, x: Array, y: Array, batch_size: int, shuffle: bool, seed: Seed, drop_last: bool) -> None:
        self.x, self.y, self.batch_size = x, y, batch_size
        self.drop_last = drop_last
        self.generator = np.random.default_rng(seed) if shuffle else None

    def __len__(self) -> int:
        """Number of batches in a pass."""
        full, rest = divmod(len(self.x), self.batch_size)
        return full + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[Samples]:
        starts = range(0, len(self) * self.batch_size, self.batch_size)
        if self.generator is None:
            for i in starts:
                yield Samples(self.x[i : i + self.batch_size], self.y[i : i + self.batch_size])
            return
        order = self.generator.permutation(len(self.x))
        x_order, y_order = (array_module(a).asarray(order) for a in (self.x, self.y))
        for i in starts:
            yield Samples(self.x[x_order[i : i + self.batch_size]], self.y[y_order[i : i + self.batch_size]])


def batches(
    x: Array, y: Array, batch_size: int, *, shuffle: bool = False, seed: Seed = None, drop_last: bool = False
) -> Batches:
    """Cut samples into mini-batches, in their order or a random one.

    >>> from fastconv import data
    >>> x, y = np.arange(5.0).reshape(5, 1), np.arange(5)
    >>> [len(batch.y) for batch in data.batches(x, y, 2)]
    [2, 2, 1]
    >>> for images, labels in data.batches(x, y, 2, shuffle=True, seed=(7, 0), drop_last=True):
    ...     assert (images[:, 0] == labels).all()

    Parameters
    ----------
    x : samples along the first axis; an array of any dtype and device.
    y : as many labels.
    batch_size : samples in a batch; the last may have fewer.
    shuffle : a random order, drawn anew for every pass over the result.
    seed : for the order: an int, a sequence of ints such as (seed, epoch), or a generator.
    drop_last : leave an incomplete last batch out.

    Raises
    ------
    ValueError : ``x`` and ``y`` differ in length, or ``batch_size`` is below 1.
    """
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)):
        raise TypeError(f"batch_size must be an integer, got {batch_size!r}")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    if len(x) != len(y):
        raise ValueError(f"x and y must have one length, got {len(x)} samples and {len(y)} labels")
    return Batches(x, y, batch_size, shuffle, seed, drop_last)


def split(x: Array, y: Array, sizes: Sequence[int] = (8000, 2000), seed: Seed = 0) -> tuple[Samples, ...]:
    """Cut samples into disjoint random parts.

    >>> from fastconv import data
    >>> train, test = data.split(np.zeros((10, 1, 8, 8)), np.arange(10), sizes=(8, 2), seed=1)
    >>> len(train.x), sorted([*train.y, *test.y]) == list(range(10))
    (8, True)

    Parameters
    ----------
    sizes : samples in each part; together at most as many as there are.
    seed : of the permutation that decides which sample goes where.

    Raises
    ------
    ValueError : ``x`` and ``y`` differ in length, or there are too few samples.
    """
    if len(x) != len(y):
        raise ValueError(f"x and y must have one length, got {len(x)} samples and {len(y)} labels")
    if not all(isinstance(n, (int, np.integer)) for n in sizes):
        raise TypeError(f"sizes must be integers, got {tuple(sizes)}")
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes must be at least 1 each, got {tuple(sizes)}")
    if sum(sizes) > len(x):
        raise ValueError(f"sizes {tuple(sizes)} need {sum(sizes)} samples, there are {len(x)}; ask for fewer")
    order = np.random.default_rng(seed).permutation(len(x))
    ends = np.cumsum(sizes)
    return tuple(Samples(x[order[end - n : end]], y[order[end - n : end]]) for n, end in zip(sizes, ends, strict=True))


def stratified_order(y: Any, test_size: int, seed: Seed) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and test samples, every class represented in the test part by its share."""
    generator = np.random.default_rng(seed)
    classes, counts = np.unique(y, return_counts=True)
    share = counts * (test_size / len(y))
    quota = np.floor(share).astype(int)
    most_cut = np.argsort(quota - share, kind="stable")
    quota[most_cut[: test_size - quota.sum()]] += 1
    parts = [generator.permutation(np.flatnonzero(y == c)) for c in classes]
    test = np.concatenate([part[:n] for part, n in zip(parts, quota, strict=True)])
    train = np.concatenate([part[n:] for part, n in zip(parts, quota, strict=True)])
    return generator.permutation(train), generator.permutation(test)
