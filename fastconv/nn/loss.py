"""Softmax and losses, each a primitive with its gradient beside it: the exponentials are computed once."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..autograd import Array, Tensor, Vjp, absolute, array_module, defvjp, on_device, primitive
from .module import Module

REDUCTIONS = ("mean", "sum", "none")


@primitive
def softmax(x: Array, dim: int = -1) -> Array:
    """exp(x) / Σ exp(x) along an axis, without overflow.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.softmax(np.array([1000.0, 1000.0])).tolist()
    [0.5, 0.5]
    """
    y = array_module(x).exp(x - x.max(axis=dim, keepdims=True))
    y /= y.sum(axis=dim, keepdims=True)
    return y


defvjp(softmax, lambda y, x, dim=-1: lambda g: y * (g - (g * y).sum(axis=dim, keepdims=True)))


@primitive
def log_softmax(x: Array, dim: int = -1) -> Array:
    """x - log Σ exp(x) along an axis, without overflow.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> nn.log_softmax(np.array([1000.0, 1000.0])).round(4).tolist()
    [-0.6931, -0.6931]
    """
    xp = array_module(x)
    y = x - x.max(axis=dim, keepdims=True)
    y -= xp.log(xp.exp(y).sum(axis=dim, keepdims=True))
    return y


defvjp(log_softmax, lambda y, x, dim=-1: lambda g: g - array_module(y).exp(y) * g.sum(axis=dim, keepdims=True))


# --- classification ----------------------------------------------------------------------------------------------


def _one_hot(hot: Array, like: Array) -> Array:
    """Ones at the labels, zeros elsewhere, in the shape and dtype of ``like``."""
    classes = array_module(hot).arange(like.shape[1]).reshape(-1, *(1,) * (like.ndim - 2))
    return (classes == hot).astype(like.dtype)


@primitive
def _cross_entropy(logits: Array, hot: Array, label_smoothing: float) -> Array:
    """The loss of each position; ``hot`` holds its label's index along axis 1, kept as an axis of size 1."""
    log_p = log_softmax(logits, 1)
    xp = array_module(logits)
    loss = -xp.take_along_axis(log_p, hot, axis=1)[:, 0]
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * log_p.mean(axis=1)
    return loss


def _cross_entropy_vjp(loss: Array, logits: Array, hot: Array, label_smoothing: float) -> Vjp:
    """softmax(logits) minus the target distribution, times the position's gradient."""

    def vjp(g: Array) -> Array:
        out = softmax(logits, 1)
        if label_smoothing:
            out -= label_smoothing / logits.shape[1]
        out -= _one_hot(hot, out) * (1 - label_smoothing)
        out *= g[:, None]
        return out

    return vjp


defvjp(_cross_entropy, _cross_entropy_vjp, None, None)


@primitive
def _pick(log_p: Array, hot: Array) -> Array:
    return -array_module(log_p).take_along_axis(log_p, hot, axis=1)[:, 0]


def _pick_vjp(loss: Array, log_p: Array, hot: Array) -> Vjp:
    return lambda g: _one_hot(hot, log_p) * -g[:, None]


defvjp(_pick, _pick_vjp, None)


def cross_entropy(logits: Any, labels: Any, *, reduction: str = "mean", label_smoothing: float = 0.0) -> Any:
    """The cross-entropy between softmax(logits) and the labels' classes: the loss of classifiers.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> round(float(nn.cross_entropy(np.zeros((2, 10)), np.array([3, 7]))), 4)
    2.3026

    Parameters
    ----------
    logits : (N, classes), or (N, classes, \\*spatial) for a label at every position; array or Tensor, float.
    labels : (N,) or (N, \\*spatial) integers, 0 ≤ label < classes.
    reduction : ``"mean"`` over all labels, ``"sum"``, or ``"none"`` for the losses one by one.
    label_smoothing : share of the target spread evenly over all classes, 0 to 1.

    Returns
    -------
    a scalar; a Tensor if ``logits`` is one, otherwise an array.

    Raises
    ------
    ValueError : shapes that do not fit, a label out of range, an unknown reduction.
    TypeError : labels that are not integers, logits that are no array.
    """
    _check_reduction("cross_entropy", reduction)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing must be between 0 and 1, got {label_smoothing}")
    with on_device(logits):
        hot = _label_indices("cross_entropy", "logits", logits, labels)
    return _reduced(_cross_entropy(logits, hot, label_smoothing), reduction)


def nll_loss(log_probabilities: Any, labels: Any, *, reduction: str = "mean") -> Any:
    """Minus the log-probability of each label: :func:`cross_entropy` after :func:`log_softmax`; same parameters.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> float(nn.nll_loss(np.array([[-1.0, -2.0]]), np.array([1])))
    2.0
    """
    _check_reduction("nll_loss", reduction)
    with on_device(log_probabilities):
        hot = _label_indices("nll_loss", "log_probabilities", log_probabilities, labels)
    return _reduced(_pick(log_probabilities, hot), reduction)


def _label_indices(op: str, name: str, scores: Any, labels: Any) -> Array:
    """The labels as an index array with an axis of size 1 for the classes, checked."""
    if not hasattr(scores, "ndim"):
        raise TypeError(f"{op}: {name} must be an array or a Tensor, got {type(scores).__name__}")
    xp = array_module(scores)
    labels = xp.asarray(labels.data if isinstance(labels, Tensor) else labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(f"{op}: labels must be integers (class numbers), got {labels.dtype} of shape {labels.shape}")
    needed = (*scores.shape[:1], *scores.shape[2:])
    if scores.ndim < 2 or labels.shape != needed:
        raise ValueError(
            f"{op}: {name} of shape (N, classes, *spatial) need labels of shape (N, *spatial), got {name} "
            f"{scores.shape} and labels {labels.shape}"
        )
    classes = scores.shape[1]
    if labels.size and not (int(labels.min()) >= 0 and int(labels.max()) < classes):
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"{op}: labels must be between 0 and {classes - 1} for {classes} classes, got {int(wrong)}")
    return labels[:, None].astype(np.int64)


# --- regression --------------------------------------------------------------------------------------------------


def mse_loss(prediction: Any, target: Any, *, reduction: str = "mean") -> Any:
    """The squared difference of prediction and target.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> float(nn.mse_loss(np.array([1.0, 2.0]), np.array([1.0, 4.0])))
    2.0

    Parameters
    ----------
    prediction : array or Tensor of any shape.
    target : array or Tensor of the same shape: nothing is broadcast.
    reduction : ``"mean"``, ``"sum"`` or ``"none"``.

    Raises
    ------
    ValueError : different shapes, or an unknown reduction.
    """
    difference = _difference("mse_loss", prediction, target, reduction)
    return _reduced(difference * difference, reduction)


def l1_loss(prediction: Any, target: Any, *, reduction: str = "mean") -> Any:
    """The absolute difference of prediction and target; parameters as :func:`mse_loss`.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> float(nn.l1_loss(np.array([1.0, 2.0]), np.array([1.0, 4.0])))
    1.0
    """
    return _reduced(absolute(_difference("l1_loss", prediction, target, reduction)), reduction)


def _difference(op: str, prediction: Any, target: Any, reduction: str) -> Any:
    _check_reduction(op, reduction)
    if prediction.shape != target.shape:
        raise ValueError(f"{op}: prediction and target must have one shape, got {prediction.shape} and {target.shape}")
    return prediction - target


def _check_reduction(op: str, reduction: str) -> None:
    if reduction not in REDUCTIONS:
        raise ValueError(f"{op}: reduction must be one of {REDUCTIONS}, got {reduction!r}")


def _reduced(loss: Any, reduction: str) -> Any:
    if reduction == "none":
        return loss
    return loss.mean() if reduction == "mean" else loss.sum()


class CrossEntropyLoss(Module):
    """:func:`cross_entropy` as a module.

    >>> import numpy as np
    >>> from fastconv import nn
    >>> round(float(nn.CrossEntropyLoss()(np.zeros((1, 2)), np.array([0]))), 4)
    0.6931
    """

    def __init__(self, *, reduction: str = "mean", label_smoothing: float = 0.0) -> None:
        _check_reduction("CrossEntropyLoss", reduction)
        self.reduction, self.label_smoothing = reduction, label_smoothing

    def forward(self, logits: Any, labels: Any) -> Any:
        return cross_entropy(logits, labels, reduction=self.reduction, label_smoothing=self.label_smoothing)


class MSELoss(Module):
    """:func:`mse_loss` as a module."""

    def __init__(self, *, reduction: str = "mean") -> None:
        _check_reduction("MSELoss", reduction)
        self.reduction = reduction

    def forward(self, prediction: Any, target: Any) -> Any:
        return mse_loss(prediction, target, reduction=self.reduction)
