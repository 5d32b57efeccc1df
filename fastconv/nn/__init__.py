"""Layers, networks and losses, with PyTorch's names and meanings.

>>> import numpy as np
>>> from fastconv import nn
>>> nn.manual_seed(0)
>>> model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 10))
>>> images, labels = np.zeros((4, 1, 8, 8), np.float32), np.array([3, 1, 4, 1])
>>> loss = nn.cross_entropy(model(images), labels)
>>> loss.backward()
>>> model[0].weight.grad.shape
(8, 1, 3, 3)
"""

from ..autograd import gelu, hardswish, leaky_relu, relu, relu6, sigmoid, silu, tanh
from .activation import (
    GELU,
    Dropout,
    Hardswish,
    LeakyReLU,
    LogSoftmax,
    ReLU,
    ReLU6,
    Sigmoid,
    SiLU,
    Softmax,
    Tanh,
)
from .conv import Conv1d, Conv2d, Conv3d, ConvTranspose1d, ConvTranspose2d, ConvTranspose3d
from .dense import Linear, linear
from .files import load, save
from .init import get_rng_state, manual_seed, set_rng_state
from .loss import CrossEntropyLoss, MSELoss, cross_entropy, l1_loss, log_softmax, mse_loss, nll_loss, softmax
from .module import Flatten, Identity, Module, Parameter, Sequential
from .norm import BatchNorm1d, BatchNorm2d, BatchNorm3d
from .pool import (
    AdaptiveAvgPool1d,
    AdaptiveAvgPool2d,
    AdaptiveAvgPool3d,
    AdaptiveMaxPool1d,
    AdaptiveMaxPool2d,
    AdaptiveMaxPool3d,
    AvgPool1d,
    AvgPool2d,
    AvgPool3d,
    LPPool1d,
    LPPool2d,
    LPPool3d,
    MaxPool1d,
    MaxPool2d,
    MaxPool3d,
    MaxUnpool1d,
    MaxUnpool2d,
    MaxUnpool3d,
    MinPool1d,
    MinPool2d,
    MinPool3d,
)

__all__ = [
    "GELU",
    "AdaptiveAvgPool1d",
    "AdaptiveAvgPool2d",
    "AdaptiveAvgPool3d",
    "AdaptiveMaxPool1d",
    "AdaptiveMaxPool2d",
    "AdaptiveMaxPool3d",
    "AvgPool1d",
    "AvgPool2d",
    "AvgPool3d",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "CrossEntropyLoss",
    "Dropout",
    "Flatten",
    "Hardswish",
    "Identity",
    "LPPool1d",
    "LPPool2d",
    "LPPool3d",
    "LeakyReLU",
    "Linear",
    "LogSoftmax",
    "MSELoss",
    "MaxPool1d",
    "MaxPool2d",
    "MaxPool3d",
    "MaxUnpool1d",
    "MaxUnpool2d",
    "MaxUnpool3d",
    "MinPool1d",
    "MinPool2d",
    "MinPool3d",
    "Module",
    "Parameter",
    "ReLU",
    "ReLU6",
    "Sequential",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
    "cross_entropy",
    "gelu",
    "get_rng_state",
    "hardswish",
    "l1_loss",
    "leaky_relu",
    "linear",
    "load",
    "log_softmax",
    "manual_seed",
    "mse_loss",
    "nll_loss",
    "relu",
    "relu6",
    "save",
    "set_rng_state",
    "sigmoid",
    "silu",
    "softmax",
    "tanh",
]
