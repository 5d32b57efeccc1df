"""Data sets and mini-batches.

>>> from fastconv import data
>>> train, test = data.digits()
>>> images, labels = next(iter(data.batches(*train, 64, shuffle=True, seed=0)))
>>> images.shape, labels.shape
((64, 1, 8, 8), (64,))
"""

from .datasets import CIFAR10_CLASSES, DIGIT_CLASSES, FASHION_CLASSES, cifar10, digits, fashion_mnist, mnist
from .downloads import SOURCES, Source, download
from .formats import cifar10_records, idx
from .samples import Batches, Dataset, Samples, batches, split

__all__ = [
    "CIFAR10_CLASSES",
    "DIGIT_CLASSES",
    "FASHION_CLASSES",
    "SOURCES",
    "Batches",
    "Dataset",
    "Samples",
    "Source",
    "batches",
    "cifar10",
    "cifar10_records",
    "digits",
    "download",
    "fashion_mnist",
    "idx",
    "mnist",
    "split",
]
