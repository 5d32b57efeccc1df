"""Readers of the binary formats in which the classic data sets come: IDX and CIFAR-10's records.

Files are read to the byte: one that is cut off, too long or of another kind raises ValueError, which names the file.
"""

from __future__ import annotations

import gzip
import math
import os
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

PathLike = str | os.PathLike[str]

IDX_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
CIFAR10_RECORD = 1 + 3 * 32 * 32  # a label, then the red, green and blue planes
_CHUNK = 1 << 24


def idx(path: PathLike) -> np.ndarray:
    """Read an IDX file, the format of MNIST: plain, or compressed with gzip whatever its name.

    >>> import pathlib, tempfile
    >>> from fastconv import data
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "labels-idx1-ubyte"
    >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3]) + bytes([5, 0, 4]))
    >>> data.idx(path)
    array([5, 0, 4], dtype=uint8)

    Returns
    -------
    an array of the file's shape and element type, in the machine's byte order.

    Raises
    ------
    ValueError : the file is not IDX, is cut off, or goes on after its last element.
    OSError : the file cannot be opened.

    Source: http://yann.lecun.com/exdb/mnist/ ("the IDX file format").
    """
    with _open(path) as file:
        try:
            return _read_idx(file, path)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(
                f"{path}: the gzip stream is damaged or cut off ({error}); fetch the file again"
            ) from error


def _open(path: PathLike) -> BinaryIO | gzip.GzipFile:
    with open(path, "rb") as file:
        compressed = file.read(2) == b"\x1f\x8b"
    return gzip.open(path, "rb") if compressed else open(path, "rb")


def _read_idx(file: BinaryIO | gzip.GzipFile, path: PathLike) -> np.ndarray:
    magic = file.read(4)
    if len(magic) < 4:
        raise ValueError(f"{path}: not an IDX file: it has {len(magic)} bytes, fewer than its 4-byte magic number")
    if magic[:2] != b"\0\0" or magic[2] not in IDX_DTYPES:
        kinds = ", ".join(f"0x{k:02x}" for k in IDX_DTYPES)
        raise ValueError(
            f"{path}: not an IDX file: it starts with {magic.hex(' ')}, where 00 00, an element type ({kinds}) and "
            "the number of dimensions are expected"
        )
    header = file.read(4 * magic[3])
    if len(header) < 4 * magic[3]:
        raise ValueError(f"{path}: cut off inside the header, which should list {magic[3]} sizes; fetch the file again")
    shape = tuple(map(int, np.frombuffer(header, ">u4")))
    dtype = np.dtype(IDX_DTYPES[magic[2]])
    expected = math.prod(shape) * dtype.itemsize
    body = _read_up_to(file, expected + 1)
    if len(body) < expected:
        raise ValueError(
            f"{path}: cut off: shape {shape} of {dtype.newbyteorder('=')} needs {expected} bytes, {len(body)} are "
            "there; fetch the file again"
        )
    if len(body) > expected:
        raise ValueError(f"{path}: bytes follow the {expected} of its shape {shape}; the file or its header is wrong")
    return np.frombuffer(body, dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _read_up_to(file: BinaryIO | gzip.GzipFile, size: int) -> bytearray:
    """At most ``size`` bytes, in chunks: a header that claims terabytes must not allocate them."""
    body = bytearray()
    while len(body) < size and (chunk := file.read(min(_CHUNK, size - len(body)))):
        body += chunk
    return body


def cifar10_records(path: PathLike) -> tuple[np.ndarray, np.ndarray]:
    """Read one file of CIFAR-10's binary version.

    >>> import pathlib, tempfile
    >>> from fastconv import data
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "test_batch.bin"
    >>> _ = path.write_bytes(bytes([3]) + bytes(3072))
    >>> images, labels = data.cifar10_records(path)
    >>> images.shape, labels
    ((1, 3, 32, 32), array([3], dtype=uint8))

    Returns
    -------
    images, uint8 of shape (N, 3, 32, 32), and labels, uint8 of shape (N,).

    Raises
    ------
    ValueError : the size is no multiple of a record's 3,073 bytes, or a label is above 9.
    OSError : the file cannot be opened.

    Source: https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    raw = np.frombuffer(Path(path).read_bytes(), np.uint8)
    if not raw.size or raw.size % CIFAR10_RECORD:
        raise ValueError(
            f"{path}: CIFAR-10 files hold records of {CIFAR10_RECORD} bytes, this one has {raw.size} bytes; it is "
            "cut off or of another kind"
        )
    records = raw.reshape(-1, CIFAR10_RECORD)
    labels = records[:, 0].copy()
    if labels.max() > 9:
        raise ValueError(f"{path}: label {labels.max()} in record {int(labels.argmax())}, CIFAR-10 has 0 to 9")
    return records[:, 1:].reshape(-1, 3, 32, 32), labels
