"""Data sets ready for a network: x float32 of shape (N, C, H, W) in [0, 1], y int64 of shape (N,)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ..extras import extra
from .formats import cifar10_records, idx
from .samples import Dataset, Samples, Seed, stratified_order

DIGIT_CLASSES = tuple("0123456789")
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def digits(test_size: int = 360, seed: Seed = 0) -> Dataset:
    """The 1,797 handwritten digits of 8×8 pixels that come with scikit-learn, split by class.

    >>> from fastconv import data
    >>> train, test = data.digits()
    >>> train.x.shape, test.x.shape, test.y.dtype.name
    ((1437, 1, 8, 8), (360, 1, 8, 8), 'int64')

    Parameters
    ----------
    test_size : samples in the test part, every class by its share.
    seed : of the split.

    Raises
    ------
    ImportError : scikit-learn is missing (the extra ``fastconv[examples]`` has it).

    Source: Alpaydin and Kaynak, Optical recognition of handwritten digits, UCI (1998): the test set.
    """
    load_digits = extra("sklearn.datasets", "examples", "data.digits()").load_digits
    images, labels = load_digits(return_X_y=True)
    if not 0 < test_size < len(labels):
        raise ValueError(f"test_size must be between 1 and {len(labels) - 1}, got {test_size}")
    x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    y = labels.astype(np.int64)
    train, test = stratified_order(y, test_size, seed)
    return Dataset(Samples(x[train], y[train]), Samples(x[test], y[test]))


def mnist(directory: str | os.PathLike[str]) -> Dataset:
    """MNIST or any set in its form, from the IDX files in a directory, plain or ``.gz``.

    Looks for ``train-images-idx3-ubyte`` with ``train-labels-idx1-ubyte``, and ``t10k-images-idx3-ubyte`` with
    ``t10k-labels-idx1-ubyte``; the spelling ``…images.idx3-ubyte`` serves too. One of the two pairs is enough:
    the other part of the result is then None.

    >>> import pathlib, tempfile
    >>> from fastconv import data
    >>> folder = pathlib.Path(tempfile.mkdtemp())
    >>> image = bytes([0, 0, 8, 3, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 2]) + bytes([255, 0, 0, 255])
    >>> _ = (folder / "t10k-images-idx3-ubyte").write_bytes(image)
    >>> _ = (folder / "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1]) + bytes([7]))
    >>> train, test = data.mnist(folder)
    >>> train is None, test.x[0, 0].tolist(), test.y
    (True, [[1.0, 0.0], [0.0, 1.0]], array([7]))

    Raises
    ------
    FileNotFoundError : no complete pair is there.
    ValueError : a file is damaged, or images and labels do not fit each other.
    """
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such directory; it should hold the four IDX files of MNIST")
    train, test = (_idx_pair(folder, part) for part in ("train", "t10k"))
    if train is None and test is None:
        raise FileNotFoundError(
            f"{folder}: no IDX files; needed are train-images-idx3-ubyte and train-labels-idx1-ubyte, or "
            "t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, plain or .gz"
        )
    return Dataset(train, test)


def fashion_mnist(directory: str | os.PathLike[str]) -> Dataset:
    """Fashion-MNIST: MNIST's file names and form (see :func:`mnist`); classes in ``FASHION_CLASSES``.

    Source: Xiao, Rasul and Vollgraf, arXiv:1708.07747.
    """
    return mnist(directory)


def _idx_pair(folder: Path, part: str) -> Samples | None:
    images_path, labels_path = (_find(folder, part, kind) for kind in ("images-idx3", "labels-idx1"))
    if images_path is None and labels_path is None:
        return None
    if images_path is None or labels_path is None:
        there = images_path or labels_path
        missing = f"{part}-labels-idx1-ubyte" if labels_path is None else f"{part}-images-idx3-ubyte"
        raise FileNotFoundError(f"{there}: its partner {missing} (or {missing}.gz) is not in {folder}")
    images, labels = idx(images_path), idx(labels_path)
    if images.dtype != np.uint8 or images.ndim != 3:
        raise ValueError(f"{images_path}: images must be 3-D uint8, these are {images.ndim}-D {images.dtype}")
    if labels.dtype != np.uint8 or labels.ndim != 1:
        raise ValueError(f"{labels_path}: labels must be 1-D uint8, these are {labels.ndim}-D {labels.dtype}")
    if len(images) != len(labels):
        raise ValueError(
            f"{images_path} has {len(images)} images and {labels_path} {len(labels)} labels; they are no pair"
        )
    return Samples(_scaled(images)[:, None], labels.astype(np.int64))


def _find(folder: Path, part: str, kind: str) -> Path | None:
    names = (f"{part}-{kind}-ubyte", f"{part}-{kind.replace('-', '.')}-ubyte")
    candidates = (folder / (name + suffix) for name in names for suffix in ("", ".gz"))
    return next((path for path in candidates if path.is_file()), None)


def _scaled(images: np.ndarray) -> np.ndarray:
    return np.multiply(images, np.float32(1 / 255), dtype=np.float32)


def cifar10(directory: str | os.PathLike[str]) -> Dataset:
    """CIFAR-10 from its binary version: ``data_batch_1.bin`` … ``data_batch_5.bin`` and ``test_batch.bin``.

    They may lie in ``directory`` or its folder ``cifar-10-batches-bin``. Training batches that are missing are left
    out; a part without any file is None. Classes are in ``CIFAR10_CLASSES``.

    Raises
    ------
    FileNotFoundError : none of the files is there.
    ValueError : a file is damaged.
    """
    top = Path(directory)
    folder = top / "cifar-10-batches-bin" if (top / "cifar-10-batches-bin").is_dir() else top
    train_paths = [path for i in range(1, 6) if (path := folder / f"data_batch_{i}.bin").is_file()]
    test_paths = [path for path in [folder / "test_batch.bin"] if path.is_file()]
    if not train_paths and not test_paths:
        raise FileNotFoundError(f"{folder}: no CIFAR-10 files (data_batch_1.bin … data_batch_5.bin, test_batch.bin)")
    return Dataset(_cifar_part(train_paths), _cifar_part(test_paths))


def _cifar_part(paths: list[Path]) -> Samples | None:
    if not paths:
        return None
    images, labels = zip(*map(cifar10_records, paths), strict=True)
    return Samples(_scaled(np.concatenate(images)), np.concatenate(labels).astype(np.int64))
