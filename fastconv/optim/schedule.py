"""Learning-rate schedules: PyTorch's names, each a formula of the steps taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ._checks import at_least_zero, count, in_range
from .optimizer import Optimizer


class Schedule:
    """Base class: sets the optimiser's ``lr`` when made and after every ``step()``, from the steps taken so far.

    A sub-class defines :meth:`rate`. What counts as a step, a batch or an epoch, is the caller's choice.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.base_lr = optimizer.lr
        self.steps = 0
        optimizer.lr = self.rate(0)

    def rate(self, step: int) -> float:
        """The learning rate after ``step`` steps."""
        raise NotImplementedError(f"{type(self).__name__} does not define rate")

    def step(self) -> None:
        """Go one step on."""
        self.steps += 1
        self.optimizer.lr = self.rate(self.steps)

    def state_dict(self) -> dict[str, Any]:
        """Where the schedule stands, as plain values."""
        return {"base_lr": self.base_lr, "steps": self.steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.base_lr, self.steps = state["base_lr"], state["steps"]
        self.optimizer.lr = self.rate(self.steps)


class StepLR(Schedule):
    """Multiply the learning rate by ``gamma`` every ``step_size`` steps.

    >>> from fastconv import Tensor, optim
    >>> opt = optim.SGD([Tensor([1.0], requires_grad=True)], lr=1.0)
    >>> schedule, rates = optim.StepLR(opt, step_size=2, gamma=0.5), []
    >>> for _ in range(5):
    ...     rates.append(opt.lr)
    ...     schedule.step()
    >>> rates
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    def __init__(self, optimizer: Optimizer, step_size: int, gamma: float = 0.1) -> None:
        self.step_size, self.gamma = count("step_size", step_size), at_least_zero("gamma", gamma)
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        return self.base_lr * self.gamma ** (step // self.step_size)


class MultiStepLR(Schedule):
    """Multiply the learning rate by ``gamma`` at each of the ``milestones``."""

    def __init__(self, optimizer: Optimizer, milestones: Sequence[int], gamma: float = 0.1) -> None:
        self.milestones, self.gamma = sorted(milestones), at_least_zero("gamma", gamma)
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        return self.base_lr * self.gamma ** sum(step >= m for m in self.milestones)


class ExponentialLR(Schedule):
    """Multiply the learning rate by ``gamma`` every step."""

    def __init__(self, optimizer: Optimizer, gamma: float) -> None:
        self.gamma = at_least_zero("gamma", gamma)
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        return self.base_lr * self.gamma**step


class CosineAnnealingLR(Schedule):
    """Half a cosine from the learning rate to ``eta_min`` in ``T_max`` steps, and ``eta_min`` from then on.

    >>> from fastconv import Tensor, optim
    >>> opt = optim.SGD([Tensor([1.0], requires_grad=True)], lr=1.0)
    >>> schedule = optim.CosineAnnealingLR(opt, T_max=2)
    >>> schedule.step()
    >>> round(opt.lr, 6)
    0.5

    Source: Loshchilov and Hutter, SGDR, arXiv:1608.03983 (without restarts; PyTorch's rises again after ``T_max``).
    """

    def __init__(self, optimizer: Optimizer, T_max: int, eta_min: float = 0.0) -> None:
        self.T_max, self.eta_min = count("T_max", T_max), at_least_zero("eta_min", eta_min)
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        return _cosine(self.base_lr, self.eta_min, step / self.T_max)


class LinearWarmup(Schedule):
    """Raise the learning rate from ``start_factor`` of it to all of it in ``steps`` steps, then follow ``after``.

    >>> from fastconv import Tensor, optim
    >>> opt = optim.SGD([Tensor([1.0], requires_grad=True)], lr=1.0)
    >>> schedule = optim.LinearWarmup(opt, 4, after=optim.CosineAnnealingLR(opt, T_max=10))
    >>> opt.lr
    0.0
    >>> schedule.step()
    >>> opt.lr
    0.25
    """

    def __init__(
        self, optimizer: Optimizer, steps: int, *, start_factor: float = 0.0, after: Schedule | None = None
    ) -> None:
        self.warmup, self.start_factor = count("steps", steps), in_range("start_factor", start_factor, 0, 1)
        self.after = after
        if after is not None:
            optimizer.lr = after.base_lr
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        if step < self.warmup:
            return self.base_lr * (self.start_factor + (1 - self.start_factor) * step / self.warmup)
        return self.base_lr if self.after is None else self.after.rate(step - self.warmup)


class OneCycleLR(Schedule):
    """Rise to ``max_lr`` and fall to almost nothing, along half cosines, in ``total_steps`` steps.

    Parameters
    ----------
    max_lr : the highest learning rate.
    total_steps : length of the cycle; the lowest rate holds after it.
    pct_start : share of the cycle that rises, above 0 and below 1.
    div_factor : ``max_lr`` over the first rate.
    final_div_factor : the first rate over the last.

    Source: Smith and Topin, Super-convergence, arXiv:1708.07120.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float,
        total_steps: int,
        pct_start: float = 0.3,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
    ) -> None:
        self.max_lr, self.total_steps = at_least_zero("max_lr", max_lr), count("total_steps", total_steps)
        if not 0 < pct_start < 1:
            raise ValueError(f"pct_start must be above 0 and below 1, got {pct_start}")
        for name, value in (("div_factor", div_factor), ("final_div_factor", final_div_factor)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        self.pct_start = pct_start
        self.first_lr = max_lr / div_factor
        self.last_lr = self.first_lr / final_div_factor
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        top = self.pct_start * self.total_steps - 1
        if step <= top:
            return _cosine(self.first_lr, self.max_lr, step / top if top else 1.0)
        return _cosine(self.max_lr, self.last_lr, (step - top) / (self.total_steps - 1 - top))


def _cosine(start: float, end: float, share: float) -> float:
    """From ``start`` to ``end`` along half a cosine; ``end`` for a share of 1 and more."""
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
