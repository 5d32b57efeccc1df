"""Optimisers and learning-rate schedules.

>>> from fastconv import Tensor, optim
>>> w = Tensor([4.0], requires_grad=True)
>>> opt = optim.SGD([w], lr=0.2)
>>> schedule = optim.CosineAnnealingLR(opt, T_max=50)
>>> for _ in range(50):
...     opt.zero_grad()
...     ((w - 1) ** 2).sum().backward()
...     opt.step()
...     schedule.step()
>>> bool(abs(w.data[0] - 1) < 0.05), opt.lr
(True, 0.0)
"""

from .optimizer import SGD, Adam, AdamW, Optimizer
from .schedule import CosineAnnealingLR, ExponentialLR, LinearWarmup, MultiStepLR, OneCycleLR, Schedule, StepLR

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LinearWarmup",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "Schedule",
    "StepLR",
]
